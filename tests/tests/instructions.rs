//! How many instructions the cores take for a guest's request: counted, so that no noise of a machine is in it.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion_tests::fixture::{program, temp_dir};
use gabion_tests::{needs, run};
use serde_json::Value;
use std::fs;
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(300);
/// In which all that the cores do is done: sessions, order, replication, journal, NBD.
const COUNTED: &str = "gabion_node::node::Node::handle";
/// Three nodes for some seconds without a fault, each with a guest; two copies of each block.
const SCENARIO: [&str; 9] = ["sim", "run", "--json", "--nodes", "3", "--kill", "0", "--seed", "1"];
/// The most that a request may take, on all three nodes together. Measured and 5 %: see `benches/README.md` for what to do
/// where a change is meant to need more, or another compiler counts otherwise.
const INSTRUCTIONS_MAX: u64 = 111_300;

#[test]
fn a_request_takes_no_more_instructions_than_it_did() {
    if !needs(&["valgrind"]) {
        return;
    }
    let out = temp_dir("callgrind");
    let file = out.join("counts");
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--collect-atstart=no"]);
    command.arg(format!("--toggle-collect={COUNTED}"));
    command.arg(format!("--callgrind-out-file={}", file.display()));
    command.arg(program()).args(SCENARIO);
    let said: Value = serde_json::from_str(&run(&mut command, MOST).ok()).unwrap();
    assert_eq!(said["broken"], Value::Null);
    let operations = said["operations"].as_u64().unwrap();
    let counts = fs::read_to_string(&file).unwrap();
    let summary = counts.lines().find_map(|line| line.strip_prefix("summary: ")).unwrap();
    let instructions: u64 = summary.trim().parse().unwrap();
    drop(fs::remove_dir_all(out));
    let each = instructions / operations;
    println!("{instructions} instructions for {operations} requests: {each} each");
    assert!(each > INSTRUCTIONS_MAX / 2, "{each}: something else is counted than was");
    assert!(each <= INSTRUCTIONS_MAX, "{each} instructions a request, at most {INSTRUCTIONS_MAX}");
}
