//! Programs in another language: one with nothing but `proto/` and a public gRPC library, and those that use the harness.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion_tests::command::needs_loop_devices;
use gabion_tests::fixture::{program, temp_dir};
use gabion_tests::net::in_namespaces;
use gabion_tests::{Cluster, needs, run};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const INSTALL_MOST: Duration = Duration::from_secs(400);
const MOST: Duration = Duration::from_secs(60);
/// Three power cuts, or each fault once.
const EXAMPLE_MOST: Duration = Duration::from_secs(300);

/// With public packages, in a place of its own.
fn interpreter(dir: &Path) -> PathBuf {
    let venv = dir.join("venv");
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv), INSTALL_MOST).ok();
    let python = venv.join("bin/python");
    let packages = ["grpcio", "grpcio-tools", "grpcio-reflection", "grpcio-health-checking"];
    let mut install = Command::new(&python);
    run(install.args(["-m", "pip", "install", "--quiet"]).args(packages), INSTALL_MOST).ok();
    python
}

#[test]
fn a_python_program_uses_a_volume() {
    if !needs(&["python3"]) {
        return;
    }
    let dir = temp_dir("python");
    let python = interpreter(&dir);
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let names = ["cluster", "errors", "io", "volumes"];
    let mut generate = Command::new(&python);
    generate.args(["-m", "grpc_tools.protoc"]).arg("-I").arg(&proto);
    generate.arg(format!("--python_out={}", dir.display()));
    generate.arg(format!("--grpc_python_out={}", dir.display()));
    generate.args(names.map(|name| format!("gabion/v1/{name}.proto"))).current_dir(&proto);
    run(&mut generate, MOST).ok();

    let cluster = Cluster::start();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/guest.py");
    let mut guest = Command::new(&python);
    guest.arg(&program).args(cluster.local.api_addresses()).env("PYTHONPATH", &dir);
    let said = run(&mut guest, MOST).ok();
    assert!(said.contains("all is well"), "{said}");
    std::fs::remove_dir_all(dir).unwrap();
}

// promise: acked-survives, flush-means-flush
#[test]
fn the_harness_cuts_power_and_sqlite_keeps_what_it_committed() {
    if !needs(&["python3", "nbdfuse", "mkfs.ext4"]) || !needs_loop_devices() {
        return;
    }
    let dir = temp_dir("harness");
    let python = interpreter(&dir);
    for example in ["sqlite_power_cut.py", "faults.py"] {
        run_example(Command::new(&python), example);
    }
    std::fs::remove_dir_all(dir).unwrap();
}

// promise: acked-survives, hold-not-fail
#[test]
fn the_harness_cuts_the_network_and_mends_it() {
    if !needs(&["python3", "nbdfuse", "mkfs.ext4"]) || !needs_loop_devices() {
        return;
    }
    let dir = temp_dir("harness");
    if let Some(command) = in_namespaces(&interpreter(&dir)) {
        run_example(command, "cut_network.py");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

fn run_example(mut python: Command, example: &str) {
    let harness = Path::new(env!("CARGO_MANIFEST_DIR")).join("harness/python");
    python.arg(harness.join("examples").join(example));
    python.env("PYTHONPATH", &harness).env("PYTHONDONTWRITEBYTECODE", "1");
    let said = run(python.env("GABION_BIN", program()), EXAMPLE_MOST).ok();
    assert!(said.contains("all is well"), "{said}");
    println!("{said}");
}
