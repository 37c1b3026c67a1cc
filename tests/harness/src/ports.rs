//! Ports of their own for clusters that run side by side, also in other processes.

use gabion::layout::Plan;
use gabion::process;
use std::fs::File;

/// Clusters at a time on this machine.
const SLOTS: u16 = 40;
const FIRST_OFFSET: u16 = 2000;
/// The four ranges of ports of one slot do not touch those of another, for clusters of up to 5 nodes.
const APART: u16 = 300;

/// A range of ports that is ours while this lives: the lock on its file says so to others.
pub struct Slot {
    pub offset: u16,
    _lock: File,
}

impl Slot {
    pub fn take() -> Self {
        let dir = std::env::temp_dir().join("gabion-tests-ports");
        std::fs::create_dir_all(&dir).expect("the temporary directory can be written");
        for slot in 0..SLOTS {
            let file = File::create(dir.join(slot.to_string())).expect("it can be written");
            if file.try_lock().is_err() {
                continue;
            }
            let offset = FIRST_OFFSET + slot * APART;
            let plan = Plan {
                nodes: 5,
                disks: 0,
                disk_bytes: 0,
                witness: false,
                port_offset: offset,
                segment_bytes: 0,
                io: String::new(),
                zones: Vec::new(),
            };
            if process::check_ports(&plan.addresses()).is_ok() {
                return Self { offset, _lock: file };
            }
        }
        panic!("all {SLOTS} ranges of ports are taken");
    }
}
