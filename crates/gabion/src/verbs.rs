//! The verbs that ask a cluster, each a function: ask, then show as JSON or as text.

pub mod accept_loss;
pub mod clients;
pub mod cluster;
pub mod disk;
pub mod disk_add;
pub mod drain;
pub mod explain;
pub mod force_majority;
pub mod join;
pub mod manual;
pub mod node;
pub mod recover;
pub mod scale;
pub mod scrub;
pub mod settings;
pub mod sim;
pub mod status;
pub mod support;
pub mod top;
pub mod volume;

use crate::cli::{BenchArgs, Cli, DiskVerb, SupportVerb, Verb};
use crate::failure::Failure;
use crate::nbd_client::{Address, Uri};
use crate::remote::Remote;
use crate::{bench, demo, drill, up};
use serde_json::Value;
use std::io::Write;

/// Does what was typed.
pub fn run(cli: &Cli) -> Result<(), Failure> {
    let remote = || Remote::find(cli.cluster.as_deref());
    match &cli.verb {
        Verb::Up(args) => up::up(args, cli.json),
        Verb::Demo(args) => demo::demo(args, cli.json),
        Verb::Cluster(verb) => cluster::run(verb, cli.json),
        Verb::Node(verb) => node::run(verb, cli.json, remote),
        Verb::Status { watch } => status::run(&remote()?, *watch, cli.json),
        Verb::Disk(DiskVerb::List) => status::disks(&remote()?, cli.json),
        Verb::Disk(DiskVerb::Drain { disk, node, wait, cancel }) => {
            let node = node.as_deref().unwrap_or_default();
            drain::disk(&remote()?, disk, node, drain::Wish::of(*wait, *cancel), cli.json)
        }
        Verb::Disk(DiskVerb::Add(args)) => disk_add::run(args, cli.json),
        Verb::Disk(DiskVerb::Check { path }) => disk::check(path, cli.json),
        Verb::Disk(DiskVerb::Show { path }) => disk::show_disk(path, cli.json),
        Verb::Volume(verb) => volume::run(&remote()?, verb, cli.json),
        Verb::Settings(verb) => settings::run(&remote()?, verb, cli.json),
        Verb::Events { follow } => status::events(&remote()?, *follow, cli.json),
        Verb::Top { every } => top::run(remote()?, every.0, cli.json),
        Verb::Sim(verb) => sim::run(verb, cli.json),
        Verb::Drill(verb) => drill::run(verb, cli.json),
        Verb::Completions { shell } => {
            manual::completions(*shell);
            Ok(())
        }
        Verb::Man { dir } => manual::pages(dir),
        Verb::Support(SupportVerb::Bundle { out, dir }) => {
            support::bundle(&remote()?, out.as_deref(), dir, cli.json)
        }
        Verb::Bench(args) => {
            let uri = bench_target(args, remote)?;
            let measured = bench::run(args, &uri)?;
            show(cli.json, &measured.json(), || measured.text());
            Ok(())
        }
    }
}

/// A name is looked for in the cluster, and measured at its owner, else at the first node that is up.
fn bench_target(
    args: &BenchArgs,
    remote: impl Fn() -> Result<Remote, Failure>,
) -> Result<Uri, Failure> {
    if let Some(uri) = Uri::parse(&args.target) {
        return Ok(uri);
    }
    let remote = remote()?;
    let volume = remote.volume(&args.target)?;
    let nodes = remote.nodes()?;
    let owner = volume.owner.map(|owner| owner.node);
    let node = nodes
        .iter()
        .find(|node| Some(node.id) == owner)
        .or_else(|| nodes.iter().find(|node| node.reachable))
        .ok_or_else(|| Failure::failed("no node is up", "see `gabion status`"))?;
    Ok(Uri { address: Address::Tcp(node.nbd.clone()), export: volume.name })
}

pub(crate) fn show(as_json: bool, value: &Value, text: impl FnOnce() -> String) {
    let shown = if as_json { value.to_string() } else { text() };
    // A reader who has seen enough may go: that is no failure of the verb.
    let _ = writeln!(std::io::stdout().lock(), "{shown}");
}
