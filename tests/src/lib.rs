//! What the tests in `tests/` have beside the harness: a browser, a proxy, virtual machines.

pub mod browser;
pub mod http;
pub mod proxy;
pub mod vm;

pub use gabion_harness::{
    Cluster, Mounted, Ran, Shape, command, exported, faulty, fixture, left_out, machines, needs,
    net, ports, powercut, rounds, run,
};
