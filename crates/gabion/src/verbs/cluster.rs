//! `gabion cluster`: what the nodes of a new cluster have in common.

use crate::cli::{ClusterVerb, NewNode};
use crate::failure::{Exit, Failure};
use crate::layout::{LimitsEntry, Voter, random_hex, write_secret_toml};
use crate::size::ByteSize;
use crate::verbs::{join, recover, show};
use gabion_daemon::settings::VOTERS_MAX;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// As `cluster_file` in a node's configuration is read.
#[derive(Serialize)]
struct SharedFile {
    cluster: String,
    secret: String,
    voters: Vec<Voter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<LimitsEntry>,
}

pub fn run(verb: &ClusterVerb, as_json: bool) -> Result<(), Failure> {
    match verb {
        ClusterVerb::Init { file, nodes, segment_size } => {
            init(file, nodes, *segment_size, as_json)
        }
        ClusterVerb::Token(args) => join::token(args, as_json),
        ClusterVerb::Join(args) => join::join(args, as_json),
        ClusterVerb::Recover(args) => recover::run(args, as_json),
    }
}

fn init(
    path: &Path,
    nodes: &[NewNode],
    segment_size: Option<ByteSize>,
    as_json: bool,
) -> Result<(), Failure> {
    let usage = |what: &str| Failure::new(Exit::Usage, what, "give each node once by --node");
    let names: BTreeSet<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    if names.len() != nodes.len() {
        return Err(usage("two nodes have the same name"));
    }
    if nodes.len() > VOTERS_MAX {
        return Err(usage(&format!("a cluster begins with at most {VOTERS_MAX} nodes")));
    }
    if path.exists() {
        return Err(Failure::new(
            Exit::Refused,
            format!("{} is there already: a cluster was made with it", path.display()),
            "its secret is what that cluster's nodes know each other by; give another --file",
        ));
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(|e| Failure::io("make", parent, &e))?;
    }
    let voters: Vec<Voter> = (1..).zip(nodes).map(|(number, node)| voter(number, node)).collect();
    let shared = SharedFile {
        cluster: random_hex(16)?,
        secret: random_hex(32)?,
        voters,
        limits: segment_size.map(|size| LimitsEntry { segment_bytes: size.0 }),
    };
    write_secret_toml(path, &shared)?;
    let shown: Vec<_> = shared
        .voters
        .iter()
        .map(|voter| json!({ "id": voter.node.to_string(), "name": voter.name, "api": voter.api }))
        .collect();
    let value = json!({ "cluster_id": shared.cluster, "nodes": shown });
    show(as_json, &value, || text(path, &shared));
    Ok(())
}

fn voter(number: u32, node: &NewNode) -> Voter {
    let NewNode { name, host, api, peer, nbd, http } = node;
    // An IPv6 address stands in brackets where a port follows.
    let host = if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]")
    } else {
        host.clone()
    };
    let at = |port: &u16| format!("{host}:{port}");
    let (api, peer, nbd, http) = (at(api), at(peer), at(nbd), at(http));
    Voter { node: number, name: name.clone(), api, peer, nbd, http }
}

fn text(path: &Path, shared: &SharedFile) -> String {
    let mut lines = vec![
        format!("cluster {}: {}", shared.cluster, path.display()),
        "copy it to each machine, readable for gabion alone: the secret stands in it; then there"
            .to_owned(),
    ];
    for Voter { node, name, .. } in &shared.voters {
        lines.push(format!(
            "  {name}: a configuration with `node = {node}`, `gabion node init`, `gabion node run`"
        ));
    }
    let apis: Vec<&str> = shared.voters.iter().map(|voter| voter.api.as_str()).collect();
    lines.push(format!("verbs find it by: export GABION_CLUSTER={}", apis.join(",")));
    lines.join("\n")
}
