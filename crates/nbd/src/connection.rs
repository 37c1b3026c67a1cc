//! One client's connection, from the greeting to the end.

use crate::handshake::{Handshake, Next};
use crate::io::{Effect, Export, Input, Want};
use crate::limits::NbdLimits;
use crate::serving::Serving;
use std::collections::VecDeque;

/// Shape: a driver feeds one input, drains all effects, and reads as `want` says. It keeps a bound
/// on what it has not sent yet, and stops reading above it: a client that does not read its answers
/// is held back by that alone.
///
/// Order: `want` stays `Exactly` the same number until those bytes are delivered; only `Shutdown`
/// may end it before. Parts of a write are handed on in the order of the stream.
#[derive(Clone, Debug)]
pub struct Connection {
    limits: NbdLimits,
    phase: Phase,
    effects: VecDeque<Effect>,
}

#[derive(Clone, Debug)]
enum Phase {
    Handshake(Handshake),
    Serving(Serving),
    Closed,
}

impl Connection {
    /// The greeting is its first effect.
    pub fn new(limits: NbdLimits) -> Self {
        limits.check();
        let mut effects = VecDeque::new();
        let phase = Phase::Handshake(Handshake::new(&mut effects));
        Self { limits, phase, effects }
    }

    /// Inputs that come too late, answers to what was dropped among them, change nothing.
    pub fn handle(&mut self, input: Input) {
        let effects = &mut self.effects;
        match (&mut self.phase, input) {
            (Phase::Closed, _) => {}
            (phase, Input::Received(bytes)) => {
                let next = match phase {
                    Phase::Handshake(handshake) => handshake.received(&bytes, effects),
                    Phase::Serving(serving) => serving.received(&bytes, effects),
                    Phase::Closed => Next::Stay,
                };
                self.go(next);
            }
            (Phase::Handshake(handshake), Input::Listed { exports }) => {
                handshake.listed(&exports, effects);
            }
            (Phase::Handshake(handshake), Input::Export(export)) => {
                let next = handshake.export(export, effects);
                self.go(next);
            }
            (Phase::Serving(serving), Input::Done { tag, result }) => {
                let next = serving.done(tag, result, effects);
                self.go(next);
            }
            (Phase::Handshake(handshake), Input::Refused { why }) => {
                let next = handshake.refused(&why, effects);
                self.go(next);
            }
            (Phase::Handshake(handshake), Input::Shutdown) => {
                handshake.shutdown(effects);
                self.go(Next::Close);
            }
            (Phase::Serving(serving), Input::Shutdown) => {
                serving.shutdown(effects);
                self.go(Next::Close);
            }
            (Phase::Handshake(_), Input::Done { .. })
            | (
                Phase::Serving(_),
                Input::Listed { .. } | Input::Export(_) | Input::Refused { .. },
            ) => {}
        }
    }

    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    pub fn want(&self) -> Want {
        match &self.phase {
            Phase::Handshake(handshake) => handshake.want(),
            Phase::Serving(serving) => serving.want(),
            Phase::Closed => Want::Closed,
        }
    }

    /// What the client is attached to, from the moment that it may send requests.
    pub fn export(&self) -> Option<&Export> {
        match &self.phase {
            Phase::Serving(serving) => Some(serving.export()),
            Phase::Handshake(_) | Phase::Closed => None,
        }
    }

    /// Requests taken and not yet answered.
    pub fn requests_in_flight(&self) -> usize {
        match &self.phase {
            Phase::Serving(serving) => serving.requests_in_flight(),
            Phase::Handshake(_) | Phase::Closed => 0,
        }
    }

    fn go(&mut self, next: Next) {
        match next {
            Next::Stay => {}
            Next::Serve(export, features) => {
                self.phase = Phase::Serving(Serving::new(self.limits, export, features));
            }
            Next::Close => {
                self.phase = Phase::Closed;
                self.effects.push_back(Effect::Close);
            }
        }
    }
}

/// To the socket, in one piece.
pub(crate) fn send(effects: &mut VecDeque<Effect>, bytes: bytes::Bytes) {
    effects.push_back(Effect::Send { pieces: vec![bytes] });
}
