//! The one binary; `lib.rs` has what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    gabion::main()
}
