//! `LinkMessage` to bytes and back.

use super::{Incoming, Outgoing};
use crate::error::WireError;
use crate::header::Kind;
use crate::link::{Hello, LinkClass, LinkMessage, LinkRefusal};
use crate::message::RequestId;
use gabion_types::{ClusterId, Incarnation, NodeId};

pub(super) fn encode(request: RequestId, link: &LinkMessage) -> Outgoing {
    match link {
        LinkMessage::Hello(hello) => {
            let mut out = Outgoing::new(Kind::Hello, request);
            // Shape: the same in every protocol version, so that a refusal can be understood.
            out.aux.bytes(&hello.cluster.bytes());
            out.aux.u32(hello.node.get());
            out.aux.u32(hello.to.get());
            out.aux.u64(hello.incarnation.get());
            out.aux.u8(match hello.class {
                LinkClass::Control => 0,
                LinkClass::Data => 1,
                LinkClass::Bulk => 2,
            });
            out.aux.u16(hello.protocol_min);
            out.aux.u16(hello.protocol_max);
            out.aux.bytes(&hello.nonce);
            out
        }
        LinkMessage::Proof { mac } => {
            let mut out = Outgoing::new(Kind::Proof, request);
            out.aux.bytes(mac);
            out
        }
        LinkMessage::Refused { reason } => {
            let mut out = Outgoing::new(Kind::LinkRefused, request);
            out.aux.u8(match reason {
                LinkRefusal::WrongCluster => 0,
                LinkRefusal::WrongNode => 1,
                LinkRefusal::WrongIncarnation => 2,
                LinkRefusal::NoCommonProtocol => 3,
                LinkRefusal::BadProof => 4,
                LinkRefusal::UnknownNode => 5,
            });
            out
        }
        LinkMessage::Ping { number } => numbered(Kind::Ping, request, *number),
        LinkMessage::Pong { number } => numbered(Kind::Pong, request, *number),
        LinkMessage::Renewed { number } => numbered(Kind::Renewed, request, *number),
        LinkMessage::Renew {
            incarnation,
            number,
            term,
        } => {
            let mut out = numbered(Kind::Renew, request, *number);
            out.aux.u64(incarnation.get());
            out.aux.u64(*term);
            out
        }
        LinkMessage::ReleaseVolume { volume } => {
            let mut out = Outgoing::new(Kind::ReleaseVolume, request);
            out.header.volume = volume.get();
            out
        }
    }
}

fn numbered(kind: Kind, request: RequestId, number: u64) -> Outgoing {
    let mut out = Outgoing::new(kind, request);
    out.aux.u64(number);
    out
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the other kinds are other modules'"
)]
pub(super) fn decode(mut from: Incoming<'_>) -> Result<LinkMessage, WireError> {
    let link = match from.kind() {
        Kind::Hello => LinkMessage::Hello(Hello {
            cluster: ClusterId::new(from.aux.array()?),
            node: NodeId::new(from.aux.u32()?),
            to: NodeId::new(from.aux.u32()?),
            incarnation: Incarnation::new(from.aux.u64()?),
            class: match from.aux.u8()? {
                0 => LinkClass::Control,
                1 => LinkClass::Data,
                2 => LinkClass::Bulk,
                other => return Err(from.value("a link class", u64::from(other))),
            },
            protocol_min: from.aux.u16()?,
            protocol_max: from.aux.u16()?,
            nonce: from.aux.array()?,
        }),
        Kind::Proof => LinkMessage::Proof {
            mac: from.aux.array()?,
        },
        Kind::LinkRefused => LinkMessage::Refused {
            reason: match from.aux.u8()? {
                0 => LinkRefusal::WrongCluster,
                1 => LinkRefusal::WrongNode,
                2 => LinkRefusal::WrongIncarnation,
                3 => LinkRefusal::NoCommonProtocol,
                4 => LinkRefusal::BadProof,
                5 => LinkRefusal::UnknownNode,
                other => return Err(from.value("a reason", u64::from(other))),
            },
        },
        Kind::Ping => LinkMessage::Ping {
            number: from.aux.u64()?,
        },
        Kind::Pong => LinkMessage::Pong {
            number: from.aux.u64()?,
        },
        Kind::Renewed => LinkMessage::Renewed {
            number: from.aux.u64()?,
        },
        Kind::Renew => {
            let number = from.aux.u64()?;
            let incarnation = Incarnation::new(from.aux.u64()?);
            LinkMessage::Renew {
                incarnation,
                number,
                term: from.aux.u64()?,
            }
        }
        Kind::ReleaseVolume => LinkMessage::ReleaseVolume {
            volume: from.volume(),
        },
        other => {
            return Err(WireError::UnknownKind {
                found: other.code(),
            });
        }
    };
    from.finish()?;
    Ok(link)
}
