//! The connection from outside: scripts of bytes as clients send them, each command, arbitrary
//! bytes.

#![expect(clippy::unwrap_used, reason = "a test that unwraps nothing fails")]

mod arbitrary;
mod client;
mod commands;
mod flow;
mod options;
mod script;
