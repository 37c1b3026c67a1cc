//! What the simulator does to a cluster, and what it holds the cluster to: for `gabion sim list`.

use crate::cluster::FaultKind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: &'static str,
    pub text: &'static str,
}

const fn listed(name: &'static str, text: &'static str) -> Listed {
    Listed { name, text }
}

/// Besides those of the schedule: by the names under which they are counted.
const LATE: [Listed; 7] = [
    listed("disk-died", "a disk fails for good once all is whole"),
    listed("disk-hung", "a disk answers nothing any more, and gives no error, once all is whole"),
    listed("rot", "blocks on the disks of one machine flip, vanish, move or become unreadable"),
    listed("torn-page", "a power cut leaves 512 bytes of one write beside those of another"),
    listed("no-space", "a write is refused as the disks are full"),
    listed("front-frozen", "a process hangs with requests of its guests in hand"),
    listed("late-connection", "a process that is gone is heard of after its successor has dialled"),
];

/// Promises of the design, then what the simulator asks besides.
pub const PROMISES: &[Listed] = &[
    listed("acked-survives", "what was acknowledged is there, whatever failed"),
    listed("flush-means-flush", "a flush covers every write that was completed before"),
    listed("one-register", "each block is one register: no value comes back, none is torn"),
    listed("one-owner", "one owner at a time completes writes"),
    listed("majority-first", "fewer copies acknowledge only after a majority agreed"),
    listed("no-silent-corruption", "what is read was written, or it is an error; never zeros"),
    listed("hold-not-fail", "requests wait while there is hope"),
    listed("bounded", "every queue, table and buffer has its bound"),
    listed("durable-on-all", "what is acknowledged is on every copy of its write set"),
    listed("sound-sources", "what one copy gives to another is what a guest wrote"),
    listed("whole", "once faults are over all copies come back"),
    listed("never-fewer", "a copy that works is taken away only when another has its place"),
    listed("one-host", "on an exclusive volume nothing is done for guests of two machines"),
    listed("drained", "what the map calls empty holds nothing"),
    listed("replicas-equal", "after healing all copies of a block have one version and checksum"),
    listed("settled-on-all", "what a copy calls settled is on every copy that may be read"),
    listed("no-write-under-read", "no slot is written while it is read"),
    listed("no-leaks", "when all is quiet nothing holds a slot or a request that is not needed"),
    listed("no-sleepers", "whatever may go on is made to, as soon as it may"),
    listed("no-spinning", "a node that woke by itself has done what was due, and sleeps again"),
    listed(
        "liveness",
        "once faults are over every request is answered, and what was asked for is done",
    ),
    listed("comes-to-an-end", "nothing goes on for ever"),
    listed("exactly-once", "each request is answered once"),
    listed("whole-answers", "an answer fits its request"),
    listed("answers-in-time", "a store answers in its time while its disk is well"),
    listed(
        "volume-size",
        "a guest is told the size that the volume was made with, or has grown to",
    ),
    listed("recovers", "a disk opens after any stop, kill or power cut"),
    listed("locates", "a store knows where each block lies"),
    listed("store", "a store answers as the replica protocol says"),
    listed("nbd", "a node speaks NBD, and answers only what was asked"),
    listed(crate::caught::PROMISE, "no core panics"),
];

pub fn faults() -> Vec<Listed> {
    let scheduled = FaultKind::ALL.iter().map(|kind| listed(kind.name(), kind.text()));
    scheduled.chain(LATE).collect()
}

/// Whether a promise stands in the list.
pub fn is_promise(name: &str) -> bool {
    PROMISES.iter().any(|promise| promise.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_said_once() {
        let faults = faults();
        for names in [&faults[..], PROMISES] {
            let different: BTreeSet<_> = names.iter().map(|one| one.name).collect();
            assert_eq!(different.len(), names.len());
            assert!(names.iter().all(|one| !one.text.is_empty() && one.text.len() < 90));
        }
    }
}
