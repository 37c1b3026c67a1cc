//! Compiles `proto/` without `protoc`.

use prost::Message;
use std::path::PathBuf;

const FILES: [&str; 5] = [
    "gabion/v1/cluster.proto",
    "gabion/v1/errors.proto",
    "gabion/v1/internal.proto",
    "gabion/v1/io.proto",
    "gabion/v1/volumes.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let descriptors = protox::compile(FILES, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
