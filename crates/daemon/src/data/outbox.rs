//! Effects for the control plane, which may be slower than the data plane for a while.

use gabion_node::Effect;
use gabion_types::{Duration, Instant};
use std::collections::VecDeque;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

/// Effects that the control plane has not taken yet.
pub(crate) const EFFECTS_MAX: usize = 4096;
/// A full queue is tried again so much later.
const AGAIN: Duration = Duration::from_millis(5);

/// What must arrive waits here while the queue is full; meanwhile nothing is taken from the control
/// plane, so that what waits is bounded by the requests that are under way.
pub(crate) struct Outbox {
    sender: Sender<Effect>,
    waiting: VecDeque<Effect>,
    lost: u64,
    closed: bool,
}

impl Outbox {
    pub(crate) fn new(sender: Sender<Effect>) -> Self {
        Self { sender, waiting: VecDeque::new(), lost: 0, closed: false }
    }

    pub(crate) fn push(&mut self, effect: Effect) {
        if !self.waiting.is_empty() {
            return self.keep(effect);
        }
        match self.sender.try_send(effect) {
            Ok(()) => {}
            Err(TrySendError::Full(effect)) => self.keep(effect),
            Err(TrySendError::Closed(_)) => self.closed = true,
        }
    }

    fn keep(&mut self, effect: Effect) {
        if must_arrive(&effect) {
            self.waiting.push_back(effect);
        } else {
            self.lost += 1;
        }
    }

    /// Tries what waits again.
    pub(crate) fn flush(&mut self) {
        while let Some(effect) = self.waiting.pop_front() {
            match self.sender.try_send(effect) {
                Ok(()) => {}
                Err(TrySendError::Full(effect)) => return self.waiting.push_front(effect),
                Err(TrySendError::Closed(_)) => self.closed = true,
            }
        }
        if self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            tracing::warn!(lost, "the control plane was behind; it lost effects that come again");
        }
    }

    /// The last words: waits until the control plane has taken them, or is gone.
    pub(crate) fn finish(&mut self) {
        for effect in self.waiting.drain(..) {
            if self.sender.blocking_send(effect).is_err() {
                self.closed = true;
            }
        }
    }

    pub(crate) fn is_blocked(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The control plane is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(crate) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        self.is_blocked().then(|| now + AGAIN)
    }
}

/// The node says the others again by itself, or they are for the log only.
fn must_arrive(effect: &Effect) -> bool {
    match effect {
        Effect::GuestOpened { .. }
        | Effect::GuestDone { .. }
        | Effect::GuestRoom { .. }
        | Effect::GuestEnded { .. }
        | Effect::AdminDone { .. }
        | Effect::Stopped => true,
        Effect::Propose { .. }
        | Effect::ConfirmLeader { .. }
        | Effect::Event(_)
        | Effect::Disk { .. }
        | Effect::Connect { .. }
        | Effect::Send { .. }
        | Effect::CloseLink { .. }
        | Effect::NbdWant { .. }
        | Effect::NbdSend { .. }
        | Effect::NbdClose { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gabion_node::GuestId;
    use gabion_types::{GuestData, IoError};
    use tokio::sync::mpsc;

    fn done(tag: u64) -> Effect {
        Effect::GuestDone { guest: GuestId(2), tag, result: Err(IoError::Gone) }
    }

    #[test]
    fn answers_wait_in_order_and_repeats_are_dropped() {
        let (sender, mut receiver) = mpsc::channel(2);
        let mut outbox = Outbox::new(sender);
        for tag in 0..4 {
            outbox.push(done(tag));
            outbox.push(Effect::ConfirmLeader { number: tag, term: 1 });
        }
        assert!(outbox.is_blocked());
        let mut tags = Vec::new();
        loop {
            outbox.flush();
            let Ok(effect) = receiver.try_recv() else { break };
            if let Effect::GuestDone { tag, result, .. } = effect {
                assert_ne!(result, Ok(GuestData::Done));
                tags.push(tag);
            }
        }
        assert_eq!(tags, [0, 1, 2, 3]);
        assert!(!outbox.is_blocked() && !outbox.is_closed());
        drop(receiver);
        outbox.push(done(9));
        assert!(outbox.is_closed());
    }
}
