#![doc = include_str!("../README.md")]

pub mod bar;
pub mod bench;
pub mod cli;
pub mod demo;
pub mod drill;
pub mod drill_args;
pub mod failure;
pub mod grpc_writer;
pub mod judge;
pub mod layout;
pub mod local;
pub mod nbd_client;
pub mod offline_disk;
pub mod process;
pub mod remote;
pub mod sim_args;
pub mod size;
pub mod span;
pub mod top;
pub mod up;
pub mod verbs;
pub mod writer;

use clap::Parser;
use std::process::ExitCode;

/// The whole of the binary: what was typed is done, and the exit code says how it went.
pub fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match verbs::run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.exit.into()
        }
    }
}
