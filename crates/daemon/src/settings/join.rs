//! The configuration of a node that is not in the cluster yet: what stands in the cluster file is what
//! it joins for.

use super::{File, Settings, SettingsError, from_toml, listen, wrong_in};
use gabion_cluster::NodeInfo;
use gabion_types::NodeId;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// As far as it can be read before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinSettings {
    /// Where what it is told is to be written.
    pub cluster_file: PathBuf,
    /// What the others are to know of it; its id is yet to come.
    pub info: NodeInfo,
}

impl JoinSettings {
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| SettingsError::Read { path: path.into(), error })?;
        Self::parse(path, &text)
    }

    /// `path` is for the errors, and where a relative `cluster_file` is to be.
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let file: File = from_toml(path, text)?;
        let wrong = |key, value: String, wants| wrong_in(path, (key, value, wants));
        let name = file.cluster_file.ok_or_else(|| {
            let wants =
                "given, where the cluster's secret is to be written, such as \"cluster.toml\"";
            wrong("cluster_file", String::new(), wants)
        })?;
        if file.cluster.is_some() || file.secret.is_some() || file.voters.is_some() {
            let wants = "left out, with `secret` and `voters`: joining tells what they are";
            return Err(wrong("cluster", "…".into(), wants));
        }
        let wants = "given, with the addresses by which the others reach this machine";
        let text = file.listen.ok_or_else(|| wrong("listen", String::new(), wants))?;
        let at = listen(&text).map_err(|wrong| wrong_in(path, wrong))?;
        let reached = |key, at: SocketAddr| {
            let wants = "the address by which the others reach this machine";
            if at.ip().is_unspecified() { Err(wrong(key, at.to_string(), wants)) } else { Ok(()) }
        };
        reached("listen.api", at.api)?;
        reached("listen.peer", at.peer)?;
        let node_name = file.name.filter(|name| !name.is_empty());
        let info = NodeInfo {
            id: NodeId::new(0),
            name: node_name.ok_or_else(|| {
                wrong("name", String::new(), "given: what the node is called in the cluster")
            })?,
            peer: text.peer,
            api: text.api,
            nbd: text.nbd,
            http: text.http,
            zone: file.zone,
        };
        Ok(Self { cluster_file: path.parent().unwrap_or(Path::new("")).join(name), info })
    }

    /// What an earlier call has written; none: there was none.
    ///
    /// Errors: the node is one of those that made the cluster, or what is there cannot be read.
    pub fn joined(&self, config: &Path) -> Result<Option<Settings>, SettingsError> {
        if !self.cluster_file.exists() {
            return Ok(None);
        }
        let settings = Settings::read(config)?;
        if settings.voters.iter().any(|voter| voter.id == settings.info.id) {
            let wants = "absent: this node is of a cluster already";
            let found = self.cluster_file.display().to_string();
            return Err(wrong_in(config, ("cluster_file", found, wants)));
        }
        Ok(Some(settings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"d\"\ndir = \"/x\"\ncluster_file = \"cluster.toml\"\n\
                        zone = \"z\"\n[listen]\napi = \"10.0.0.4:7400\"\npeer = \"10.0.0.4:7500\"\n\
                        nbd = \"127.0.0.1:10809\"\nhttp = \"127.0.0.1:7600\"\n";

    fn parse(text: &str) -> Result<JoinSettings, String> {
        JoinSettings::parse(Path::new("/etc/g/node.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_known_before_is_not_asked_for() {
        let settings = parse(GOOD).unwrap();
        assert_eq!(settings.cluster_file, Path::new("/etc/g/cluster.toml"));
        assert_eq!((&*settings.info.name, &*settings.info.zone), ("d", "z"));
        assert_eq!(settings.info.peer, "10.0.0.4:7500");
    }

    #[test]
    fn what_is_missing_is_named() {
        for (from, to, named) in [
            ("cluster_file = \"cluster.toml\"\n", "", "`cluster_file`"),
            ("zone", "secret = \"00\"\nzone", "`cluster`"),
            ("name = \"d\"\n", "", "`name`"),
            ("10.0.0.4:7400", "0.0.0.0:7400", "reach this machine"),
            ("peer = \"10.0.0.4:7500\"\n", "", "peer"),
        ] {
            let error = parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
