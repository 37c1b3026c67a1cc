//! Bytes of a link, in the order of their arrival, to messages.

use crate::codec::decode;
use crate::error::WireError;
use crate::header::{HEADER_BYTES, Header};
use crate::message::Message;
use bytes::Bytes;

/// Payloads of so many bytes and more are asked for by themselves, so that the driver can receive
/// them straight into an aligned buffer; smaller ones come in one piece with the fields before
/// them.
pub const LARGE_PAYLOAD_BYTES: u32 = 64 << 10;

/// Says how many bytes it needs next and takes exactly those.
///
/// promise: bounded. Holds at most the fields of one message; a header that announces more than the
/// bounds is an error before anything more is asked for.
#[derive(Clone, Debug, Default)]
pub struct Assembler {
    state: State,
}

#[derive(Clone, Debug, Default)]
enum State {
    #[default]
    Header,
    /// The fields, and the payload too unless it is large.
    Aux(Header),
    Payload {
        header: Header,
        aux: Bytes,
    },
    Broken(WireError),
}

impl Assembler {
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes to deliver next, in one piece. Zero: the link is broken and has to be closed.
    pub fn want(&self) -> usize {
        match &self.state {
            State::Header => HEADER_BYTES,
            State::Aux(header) if has_large_payload(header) => header.aux_len as usize,
            State::Aux(header) => header.aux_len as usize + header.payload_len as usize,
            State::Payload { header, .. } => header.payload_len as usize,
            State::Broken(_) => 0,
        }
    }

    /// The bytes wanted next are a large payload: better received into an aligned buffer.
    pub fn wants_payload(&self) -> bool {
        matches!(self.state, State::Payload { .. })
    }

    /// Errors: what the bytes are not; the same again for whatever comes after.
    pub fn received(&mut self, bytes: Bytes) -> Result<Option<Message>, WireError> {
        let result = self.advance(bytes);
        if let Err(error) = result {
            self.state = State::Broken(error);
        }
        result
    }

    fn advance(&mut self, bytes: Bytes) -> Result<Option<Message>, WireError> {
        let wanted = self.want();
        match std::mem::take(&mut self.state) {
            State::Broken(error) => Err(error),
            _ if bytes.len() != wanted => Err(WireError::Chunk { found: bytes.len(), wanted }),
            State::Header => {
                let head = bytes.first_chunk().expect("as many bytes as wanted are there");
                let header = Header::decode(head)?;
                if header.aux_len == 0 && has_large_payload(&header) {
                    self.state = State::Payload { header, aux: Bytes::new() };
                } else if header.aux_len == 0 && header.payload_len == 0 {
                    return decode(&header, &[], Bytes::new()).map(Some);
                } else {
                    self.state = State::Aux(header);
                }
                Ok(None)
            }
            State::Aux(header) if has_large_payload(&header) => {
                self.state = State::Payload { header, aux: bytes };
                Ok(None)
            }
            State::Aux(header) => {
                let mut aux = bytes;
                let payload = aux.split_off(header.aux_len as usize);
                decode(&header, &aux, payload).map(Some)
            }
            State::Payload { header, aux } => decode(&header, &aux, bytes).map(Some),
        }
    }
}

fn has_large_payload(header: &Header) -> bool {
    header.payload_len >= LARGE_PAYLOAD_BYTES
}
