//! Clusters of real processes for the tests in `tests/`.

pub mod browser;
pub mod command;
pub mod faulty;
pub mod fixture;
pub mod http;
pub mod machines;
pub mod net;
pub mod ports;
pub mod powercut;
pub mod proxy;
pub mod vm;

pub use command::{Ran, left_out, needs, rounds, run};
pub use fixture::{Cluster, Shape};
