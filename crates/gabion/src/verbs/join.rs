//! `gabion cluster token` and `gabion cluster join`: a machine more in a cluster that runs.

use crate::cli::{JoinArgs, TokenArgs};
use crate::failure::{Exit, Failure};
use crate::layout::{LimitsEntry, Voter, random_hex, write_secret_toml};
use crate::process;
use crate::remote::Remote;
use crate::verbs::{node, show};
use gabion_api::v1;
use gabion_daemon::settings::JoinSettings;
use gabion_daemon::token::{JoinToken, Ticket};
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A token is good for so long at most.
const VALID_MOST: Duration = Duration::from_secs(7 * 24 * 3600);
/// Of an address that is typed without a port.
const API_PORT: u16 = 7400;
/// The configuration of a member on this machine, if none is named.
const USUAL_CONFIGS: [&str; 2] = ["gabion-data/node1/config.toml", "/etc/gabion/node.toml"];

/// As `cluster_file` in a node's configuration is read; that of a node that joined is its own.
#[derive(Serialize)]
struct JoinedFile {
    cluster: String,
    node: u32,
    secret: String,
    voters: Vec<Voter>,
    limits: LimitsEntry,
}

/// By the secret in a member's configuration: nobody is asked, and nothing is sent.
pub fn token(args: &TokenArgs, as_json: bool) -> Result<(), Failure> {
    let config = args.config.clone().map_or_else(usual_config, Ok)?;
    let settings = process::settings(&config)?;
    let valid = args.valid.0;
    if valid.is_zero() || valid > VALID_MOST {
        let days = VALID_MOST.as_secs() / 86_400;
        let what = format!("a token is good for a second at least, and {days} days at most");
        return Err(Failure::new(Exit::Usage, what, "give another --valid, such as 1h"));
    }
    let digits = random_hex(8)?;
    let token = u64::from_str_radix(&digits, 16).expect("16 hex digits are a number");
    let expires_ms = unix_ms().saturating_add(u64::try_from(valid.as_millis()).unwrap_or(u64::MAX));
    let token = JoinToken::make(&settings.secret, settings.cluster, Ticket { token, expires_ms })
        .to_string();
    let at = &settings.info.api;
    show(as_json, &json!({ "token": token, "expires_ms": expires_ms, "address": at }), || {
        format!(
            "{token}\nit lets one node in, within {}; on its machine, with its /etc/gabion/node.toml:\n  \
             gabion cluster join {at} --token {token}",
            crate::span::shown(valid)
        )
    });
    Ok(())
}

pub fn join(args: &JoinArgs, as_json: bool) -> Result<(), Failure> {
    let config = &args.config;
    let cannot = |error: &dyn std::fmt::Display| Failure::failed(error.to_string(), "");
    let joining = JoinSettings::read(config).map_err(|error| cannot(&error))?;
    let joined = joining.joined(config).map_err(|error| {
        Failure::new(
            Exit::Refused,
            error.to_string(),
            "give the new node a configuration of its own",
        )
    })?;
    let settings = match joined {
        Some(settings) => settings,
        None => {
            ask(args, &joining)?;
            process::settings(config)?
        }
    };
    let made = node::make(&settings, args.force, as_json).map_err(|failure| {
        let id = settings.info.id.get();
        let what =
            format!("it is node {id} of the cluster now, but it was not made: {}", failure.what);
        let next = format!("put that right; then `gabion node init --config {}`", config.display());
        Failure::new(failure.exit, what, next)
    })?;
    let (id, cluster) = (settings.info.id.get(), settings.cluster);
    let disks: Vec<_> = made.iter().map(node::inited).collect();
    let value = json!({
        "node": id.to_string(), "cluster_id": cluster.to_string(), "disks": disks,
    });
    show(as_json, &value, || {
        let mut lines: Vec<String> = made.iter().map(ToString::to_string).collect();
        lines.push(format!(
            "it is node {id} of cluster {cluster}; `gabion node run --config {}` runs it",
            config.display()
        ));
        lines.join("\n")
    });
    Ok(())
}

/// Uses the token up, and writes what is told.
fn ask(args: &JoinArgs, joining: &JoinSettings) -> Result<(), Failure> {
    let token: JoinToken =
        args.token.parse().map_err(|error: gabion_daemon::token::NotAToken| {
            let text = error.to_string();
            let (what, next) = text.split_once("; ").unwrap_or((&text, ""));
            Failure::new(Exit::Usage, what, next)
        })?;
    let info = &joining.info;
    let request = token.prove_request(v1::JoinRequest {
        token: token.ticket.token,
        expires_ms: token.ticket.expires_ms,
        name: info.name.clone(),
        peer: info.peer.clone(),
        api: info.api.clone(),
        nbd: info.nbd.clone(),
        http: info.http.clone(),
        zone: info.zone.clone(),
        ..v1::JoinRequest::default()
    });
    let answer = Remote::at(&addresses(&args.address))?.join(request)?;
    let secret = token.open(&answer).ok_or_else(|| {
        let what = format!(
            "who answered at {} did not prove that it is of the token's cluster; nothing was written",
            args.address
        );
        Failure::new(Exit::Refused, what, "is it the address of a member's API?")
    })?;
    let voter = |voter: v1::JoinedVoter| {
        let v1::JoinedVoter { node, name, api, peer, nbd, http } = voter;
        Voter { node, name, api, peer, nbd, http }
    };
    let file = JoinedFile {
        cluster: answer.cluster_id,
        node: answer.node,
        secret: secret.iter().map(|byte| format!("{byte:02x}")).collect(),
        voters: answer.voters.into_iter().map(voter).collect(),
        limits: LimitsEntry { segment_bytes: answer.segment_bytes },
    };
    let path: &Path = &joining.cluster_file;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|e| Failure::io("make", parent, &e))?;
    }
    write_secret_toml(path, &file)
}

/// One or more, each with a port.
fn addresses(typed: &str) -> Vec<String> {
    let all = typed.split(',').map(str::trim).filter(|address| !address.is_empty());
    let with_port = |address: &str| {
        let has_port = address.rsplit_once(':').is_some_and(|(host, port)| {
            port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
        });
        match (has_port, address.contains(':') && !address.starts_with('[')) {
            (true, _) => address.to_owned(),
            (false, true) => format!("[{address}]:{API_PORT}"),
            (false, false) => format!("{address}:{API_PORT}"),
        }
    };
    all.map(with_port).collect()
}

pub fn usual_config() -> Result<PathBuf, Failure> {
    let found = USUAL_CONFIGS.iter().map(PathBuf::from).find(|path| path.exists());
    found.ok_or_else(|| {
        let what = format!("there is no {}, and no {}", USUAL_CONFIGS[0], USUAL_CONFIGS[1]);
        Failure::new(Exit::NotFound, what, "name a member's configuration with --config")
    })
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gabion_daemon::settings::Settings;

    /// Zero: the configuration does not say.
    fn node_of(config: &Path) -> u32 {
        Settings::read(config).map_or(0, |settings| settings.info.id.get())
    }

    #[test]
    fn an_address_needs_no_port() {
        let all = addresses("10.0.0.1, b:7401,::1,[fe80::1]:99");
        assert_eq!(all, ["10.0.0.1:7400", "b:7401", "[::1]:7400", "[fe80::1]:99"]);
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = std::env::temp_dir().join(format!("gabion-joined-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let voter = Voter {
            node: 1,
            name: "a".to_owned(),
            api: "10.0.0.1:7400".to_owned(),
            peer: "10.0.0.1:7500".to_owned(),
            nbd: "10.0.0.1:10809".to_owned(),
            http: "10.0.0.1:7600".to_owned(),
        };
        let file = JoinedFile {
            cluster: "01".repeat(16),
            node: 4,
            secret: "02".repeat(32),
            voters: vec![voter],
            limits: LimitsEntry { segment_bytes: 1 << 20 },
        };
        write_secret_toml(&dir.join("cluster.toml"), &file).unwrap();
        let config = "name = \"d\"\ndir = \"/x\"\ncluster_file = \"cluster.toml\"\n[listen]\n\
                      api = \"10.0.0.4:7400\"\npeer = \"10.0.0.4:7500\"\nnbd = \"127.0.0.1:1\"\n\
                      http = \"127.0.0.1:2\"\n";
        let path = dir.join("node.toml");
        std::fs::write(&path, config).unwrap();
        assert_eq!(node_of(&path), 4);
        let joining = JoinSettings::read(&path).unwrap();
        let settings = joining.joined(&path).unwrap().unwrap();
        assert_eq!((settings.info.api.as_str(), settings.secret[0]), ("10.0.0.4:7400", 2));
        std::fs::write(&path, format!("node = 3\n{config}")).unwrap();
        assert_eq!(node_of(&path), 0, "another id than the one that it got");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
