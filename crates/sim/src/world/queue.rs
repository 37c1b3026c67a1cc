//! What happens next: events by time, and by the order in which they were put in at equal times.

use gabion_types::{Duration, Instant};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Order: (time, number of the push). Time never goes back.
#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    now: Instant,
    pushes: u64,
}

#[derive(Debug)]
struct Entry<E> {
    at: Instant,
    push: u64,
    event: E,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), now: Instant::ZERO, pushes: 0 }
    }
}

impl<E> Queue<E> {
    pub fn now(&self) -> Instant {
        self.now
    }

    pub fn len(&self) -> usize {
        self.heap.len()
    }

    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// A time that is past counts as now.
    pub fn at(&mut self, at: Instant, event: E) {
        self.pushes += 1;
        self.heap.push(Reverse(Entry { at: at.max(self.now), push: self.pushes, event }));
    }

    pub fn after(&mut self, wait: Duration, event: E) {
        self.at(self.now + wait, event);
    }

    /// Takes the next event and moves the time to it.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }

    pub fn next_at(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }
}

impl<E> Entry<E> {
    fn key(&self) -> (Instant, u64) {
        (self.at, self.push)
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_then_by_their_order() {
        let mut queue = Queue::default();
        queue.after(Duration::from_nanos(5), "later");
        queue.after(Duration::from_nanos(1), "first");
        queue.after(Duration::from_nanos(1), "second");
        assert_eq!([queue.pop(), queue.pop()], [Some("first"), Some("second")]);
        queue.at(Instant::ZERO, "past counts as now");
        assert_eq!(queue.pop(), Some("past counts as now"));
        assert_eq!(queue.now(), Instant::from_nanos(1));
        assert_eq!([queue.pop(), queue.pop()], [Some("later"), None]);
    }
}
