//! A cluster on this machine measured with fio, beside what people use instead, in the same run. `benches/run` runs it.

mod cpu;
mod fio;
mod grpc;
mod jobs;
mod peers;
mod rebuild;
mod report;

use clap::Parser;
use gabion_harness::run;
use report::Row;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Measures a cluster of three nodes on this machine beside QEMU's servers
#[derive(Parser)]
struct Arguments {
    /// How often each pair is measured, in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// How long each of them is measured, after three seconds without
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(4..=600))]
    seconds: u32,
    /// The volume that is copied anew when a node died, in MiB
    #[arg(long, default_value_t = 4096)]
    rebuild_mib: u64,
    /// Only rows with these words in them
    #[arg(long)]
    only: Option<String>,
    /// Where `table.md` and `picture.svg` are written
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/results"))]
    out: PathBuf,
}

fn main() {
    let arguments = Arguments::parse();
    let wanted = |name: &str| arguments.only.as_ref().is_none_or(|words| name.contains(words));
    let mut rows = jobs::measure(arguments.runs, arguments.seconds, &wanted);
    rows.extend(jobs::rebuilds(arguments.runs, arguments.rebuild_mib, &wanted));
    let text = format!("{}\n\n{}", machine(&arguments), report::table(&rows));
    println!("\n{text}");
    write(&arguments, &rows, &text).unwrap_or_else(|e| panic!("{}: {e}", arguments.out.display()));
}

fn write(arguments: &Arguments, rows: &[Row], text: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(&arguments.out)?;
    std::fs::write(arguments.out.join("table.md"), text)?;
    std::fs::write(arguments.out.join("picture.svg"), report::picture(rows))
}

fn machine(arguments: &Arguments) -> String {
    let said = |program: &str, words: &[&str]| {
        let ran = run(Command::new(program).args(words), Duration::from_secs(10));
        ran.out.lines().next().unwrap_or_default().trim().to_owned()
    };
    let dir = std::env::temp_dir();
    format!(
        "Commit {}, {} cores shared by all nodes, servers and fio, Linux {}, files on {}, {}, {}. {} runs of {} s, medians; \
         a ratio is of the same run.",
        said("git", &["rev-parse", "--short", "HEAD"]),
        said("nproc", &[]),
        said("uname", &["-r"]),
        said("findmnt", &["-no", "FSTYPE", "-T", &dir.display().to_string()]),
        said("qemu-nbd", &["--version"]),
        said("fio", &["--version"]),
        arguments.runs,
        arguments.seconds
    )
}
