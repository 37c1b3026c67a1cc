//! A program in another language, with nothing but `proto/` and a public gRPC library.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion_tests::fixture::temp_dir;
use gabion_tests::{Cluster, needs, run};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const INSTALL_MOST: Duration = Duration::from_secs(400);
const MOST: Duration = Duration::from_secs(60);

#[test]
fn a_python_program_uses_a_volume() {
    if !needs(&["python3"]) {
        return;
    }
    let dir = temp_dir("python");
    let venv = dir.join("venv");
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv), INSTALL_MOST).ok();
    let python = venv.join("bin/python");
    let packages = ["grpcio", "grpcio-tools", "grpcio-reflection", "grpcio-health-checking"];
    let mut install = Command::new(&python);
    run(install.args(["-m", "pip", "install", "--quiet"]).args(packages), INSTALL_MOST).ok();
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
