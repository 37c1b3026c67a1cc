//! Fixed newstyle negotiation, from the greeting to the transmission phase.
//!
//! Source: "Handshake", "Fixed newstyle negotiation", "Option types". Without TLS (NOTLS mode).

use crate::command::Features;
use crate::connection::send;
use crate::io::{Effect, Export, Want};
use crate::limits::{DROP_BYTES_MAX, OPTION_BYTES_DROPPED_MAX, OPTION_BYTES_MAX, STRING_BYTES_MAX};
use crate::options::{InfoRequest, MetaRequest, OptionHeader, name};
use crate::proto::{CLIENT_FLAGS_BYTES, OPTION_BYTES, allocation, answer, handshake, info, option};
use crate::reply;
use bytes::{Buf, Bytes};
use std::collections::VecDeque;

/// Where the connection goes from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Stay,
    Serve(Export, Features),
    Close,
}

#[derive(Clone, Debug)]
pub(crate) struct Handshake {
    step: Step,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was selected by the last SET_META_CONTEXT.
    allocation_of: Option<String>,
}

#[derive(Clone, Debug)]
enum Step {
    ClientFlags,
    Option,
    Data(OptionHeader),
    /// Too much data: `left` bytes of it are still to be dropped.
    Drop {
        option: u32,
        left: u32,
    },
    /// The node was asked; nothing is read until it answers.
    Asked(Question),
}

#[derive(Clone, Debug)]
enum Question {
    List,
    ExportName { name: String },
    Info(InfoRequest),
    Go(InfoRequest),
    ListMeta(MetaRequest),
    SetMeta(MetaRequest),
}

impl Question {
    fn option(&self) -> u32 {
        match self {
            Self::List => option::LIST,
            Self::ExportName { .. } => option::EXPORT_NAME,
            Self::Info(_) => option::INFO,
            Self::Go(_) => option::GO,
            Self::ListMeta(_) => option::LIST_META_CONTEXT,
            Self::SetMeta(_) => option::SET_META_CONTEXT,
        }
    }
}

impl Handshake {
    pub fn new(effects: &mut VecDeque<Effect>) -> Self {
        send(effects, reply::greeting());
        let step = Step::ClientFlags;
        Self { step, no_zeroes: false, structured: false, allocation_of: None }
    }

    pub fn want(&self) -> Want {
        match &self.step {
            Step::ClientFlags => Want::Exactly(CLIENT_FLAGS_BYTES),
            Step::Option => Want::Exactly(OPTION_BYTES),
            Step::Data(header) => Want::Exactly(header.length as usize),
            Step::Drop { left, .. } => Want::Exactly((*left).min(DROP_BYTES_MAX) as usize),
            Step::Asked(_) => Want::Paused,
        }
    }

    pub fn received(&mut self, bytes: &Bytes, effects: &mut VecDeque<Effect>) -> Next {
        assert_eq!(self.want(), Want::Exactly(bytes.len()), "the driver delivers what is wanted");
        match &mut self.step {
            Step::ClientFlags => self.client_flags(bytes),
            Step::Option => {
                let head = bytes.first_chunk().expect("as many bytes as wanted are there");
                match OptionHeader::decode(head) {
                    Some(header) => self.option_header(header, effects),
                    None => Next::Close,
                }
            }
            Step::Data(header) => {
                let option = header.option;
                self.option(option, bytes, effects)
            }
            Step::Drop { option, left } => {
                let option = *option;
                *left -= u32::try_from(bytes.len()).expect("no more than is left was wanted");
                if *left == 0 {
                    self.answer(effects, option, answer::ERR_TOO_BIG, "too much data");
                }
                Next::Stay
            }
            Step::Asked(_) => Next::Stay,
        }
    }

    fn client_flags(&mut self, mut bytes: &[u8]) -> Next {
        let flags = bytes.get_u32();
        let known = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        if flags & !known != 0 {
            return Next::Close;
        }
        self.no_zeroes = flags & u32::from(handshake::NO_ZEROES) != 0;
        self.step = Step::Option;
        Next::Stay
    }

    fn option_header(&mut self, header: OptionHeader, effects: &mut VecDeque<Effect>) -> Next {
        let OptionHeader { option, length } = header;
        let name_too_long = option == option::EXPORT_NAME && length as usize > STRING_BYTES_MAX;
        if length > OPTION_BYTES_DROPPED_MAX || name_too_long {
            return Next::Close;
        }
        if length > OPTION_BYTES_MAX {
            self.step = Step::Drop { option, left: length };
        } else if length > 0 {
            self.step = Step::Data(header);
        } else {
            return self.option(option, &Bytes::new(), effects);
        }
        Next::Stay
    }

    fn option(&mut self, code: u32, data: &Bytes, effects: &mut VecDeque<Effect>) -> Next {
        self.step = Step::Option;
        match code {
            option::EXPORT_NAME => match name(data) {
                Some(name) => {
                    effects.push_back(Effect::Open { name: name.clone() });
                    self.step = Step::Asked(Question::ExportName { name });
                }
                // There is no way to say what is wrong.
                None => return Next::Close,
            },
            option::ABORT => {
                self.answer(effects, code, answer::ACK, "");
                return Next::Close;
            }
            option::LIST if data.is_empty() => {
                effects.push_back(Effect::List);
                self.step = Step::Asked(Question::List);
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.answer(effects, code, answer::ACK, "");
            }
            option::LIST | option::STRUCTURED_REPLY | option::STARTTLS if !data.is_empty() => {
                self.answer(effects, code, answer::ERR_INVALID, "this option has no data");
            }
            option::INFO | option::GO => match InfoRequest::decode(data) {
                Some(request) => self.ask_info(code, request, effects),
                None => self.answer(effects, code, answer::ERR_INVALID, "malformed data"),
            },
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.ask_meta(code, data, effects);
            }
            option::STARTTLS => self.answer(effects, code, answer::ERR_UNSUP, "no TLS here"),
            _ => self.answer(effects, code, answer::ERR_UNSUP, "no such option here"),
        }
        Next::Stay
    }

    fn ask_info(&mut self, code: u32, request: InfoRequest, effects: &mut VecDeque<Effect>) {
        let name = request.name.clone();
        if code == option::GO {
            effects.push_back(Effect::Open { name });
            self.step = Step::Asked(Question::Go(request));
        } else {
            effects.push_back(Effect::Describe { name });
            self.step = Step::Asked(Question::Info(request));
        }
    }

    fn ask_meta(&mut self, code: u32, data: &[u8], effects: &mut VecDeque<Effect>) {
        if code == option::SET_META_CONTEXT {
            // What was selected before is gone, also when this fails.
            self.allocation_of = None;
        }
        if !self.structured {
            let text = "structured replies come first";
            return self.answer(effects, code, answer::ERR_INVALID, text);
        }
        let Some(request) = MetaRequest::decode(data) else {
            return self.answer(effects, code, answer::ERR_INVALID, "malformed data");
        };
        effects.push_back(Effect::Describe { name: request.export.clone() });
        self.step = Step::Asked(match code {
            option::SET_META_CONTEXT => Question::SetMeta(request),
            _ => Question::ListMeta(request),
        });
    }

    pub fn listed(&mut self, exports: &[String], effects: &mut VecDeque<Effect>) {
        if !matches!(self.step, Step::Asked(Question::List)) {
            return;
        }
        for name in exports {
            send(effects, reply::server(option::LIST, name));
        }
        self.answer(effects, option::LIST, answer::ACK, "");
    }

    /// The volume is there, and not for this client now.
    pub fn refused(&mut self, why: &str, effects: &mut VecDeque<Effect>) -> Next {
        let Step::Asked(question) = &self.step else { return Next::Stay };
        match question {
            Question::ExportName { .. } => return Next::Close,
            Question::Go(_) => self.answer(effects, option::GO, answer::ERR_POLICY, why),
            Question::List | Question::Info(_) | Question::ListMeta(_) | Question::SetMeta(_) => {}
        }
        Next::Stay
    }

    pub fn export(&mut self, export: Option<Export>, effects: &mut VecDeque<Effect>) -> Next {
        let question = match &self.step {
            Step::Asked(Question::List) => return Next::Stay,
            Step::Asked(question) => question.clone(),
            Step::ClientFlags | Step::Option | Step::Data(_) | Step::Drop { .. } => {
                return Next::Stay;
            }
        };
        let code = question.option();
        let Some(export) = export else {
            if matches!(question, Question::ExportName { .. }) {
                return Next::Close;
            }
            self.answer(effects, code, answer::ERR_UNKNOWN, "there is no such volume now");
            return Next::Stay;
        };
        match question {
            Question::List => {}
            Question::ExportName { name } => {
                let bytes = reply::export_name(&export, self.structured, self.no_zeroes);
                send(effects, bytes);
                return Next::Serve(export, self.features(&name));
            }
            Question::Info(request) => self.describe(code, &request, &export, effects),
            Question::Go(request) => {
                self.describe(code, &request, &export, effects);
                return Next::Serve(export, self.features(&request.name));
            }
            Question::ListMeta(request) => {
                if request.no_queries || request.asks_namespace || request.asks_allocation {
                    send(effects, reply::meta_context(code, 0));
                }
                self.answer(effects, code, answer::ACK, "");
            }
            Question::SetMeta(request) => {
                if request.asks_allocation {
                    send(effects, reply::meta_context(code, allocation::ID));
                    self.allocation_of = Some(request.export);
                }
                self.answer(effects, code, answer::ACK, "");
            }
        }
        Next::Stay
    }

    /// The sizes are sent to everybody: they are not the default ones.
    fn describe(
        &mut self,
        code: u32,
        request: &InfoRequest,
        export: &Export,
        effects: &mut VecDeque<Effect>,
    ) {
        send(effects, reply::info_export(code, export, self.structured));
        if request.wants_name {
            send(effects, reply::info_text(code, info::NAME, &export.name));
        }
        if request.wants_description {
            send(effects, reply::info_text(code, info::DESCRIPTION, "a volume of Gabion"));
        }
        send(effects, reply::info_block_size(code));
        self.answer(effects, code, answer::ACK, "");
    }

    fn features(&self, name: &str) -> Features {
        let allocation = self.structured && self.allocation_of.as_deref() == Some(name);
        Features { structured: self.structured, allocation }
    }

    /// An option that waits for its answer gets one.
    pub fn shutdown(&mut self, effects: &mut VecDeque<Effect>) {
        if let Step::Asked(question) = &self.step
            && !matches!(question, Question::ExportName { .. })
        {
            let option = question.option();
            self.answer(effects, option, answer::ERR_SHUTDOWN, "this node is stopping");
        }
    }

    /// The final reply to an option; the next one may come.
    fn answer(&mut self, effects: &mut VecDeque<Effect>, code: u32, kind: u32, text: &str) {
        send(effects, reply::option(code, kind, text.as_bytes()));
        self.step = Step::Option;
    }
}
