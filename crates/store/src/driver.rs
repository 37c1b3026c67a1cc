//! What is in flight to the disk, and the effects that wait to be fetched.

use crate::io::Effect;
use bytes::Bytes;
use gabion_types::{DiskOp, DiskOpKind, DiskToken};
use std::collections::{BTreeMap, VecDeque};

/// Each token in flight with what it is for.
#[derive(Debug)]
pub(crate) struct Driver<U> {
    next_token: u64,
    in_flight: BTreeMap<DiskToken, U>,
    pub(crate) effects: VecDeque<Effect>,
}

impl<U> Driver<U> {
    pub(crate) fn new(next_token: u64) -> Self {
        Self { next_token, in_flight: BTreeMap::new(), effects: VecDeque::new() }
    }

    pub(crate) fn submit(&mut self, usage: U, kind: DiskOpKind) {
        let token = DiskToken(self.next_token);
        self.next_token += 1;
        self.in_flight.insert(token, usage);
        self.effects.push_back(Effect::Disk(DiskOp { token, kind }));
    }

    pub(crate) fn read(&mut self, usage: U, offset: u64, length: u64) {
        self.submit(usage, DiskOpKind::Read { offset, length });
    }

    pub(crate) fn write(&mut self, usage: U, offset: u64, pieces: Vec<Bytes>) {
        self.submit(usage, DiskOpKind::Write { offset, pieces });
    }

    pub(crate) fn done(&mut self, token: DiskToken) -> Option<U> {
        self.in_flight.remove(&token)
    }

    pub(crate) fn next_token(&self) -> u64 {
        self.next_token
    }
}
