//! The cluster that the verbs ask: found, called, and its errors turned into exit codes.

use crate::failure::{Exit, Failure};
use crate::layout::{ClusterDir, read_cluster_file};
use gabion_api::{Client, ClientError, v1};
use std::future::Future;
use std::path::Path;
use tokio::runtime::Runtime;
use tonic::Status;

/// The client library, blocking.
pub struct Remote {
    runtime: Runtime,
    client: Client,
}

impl Remote {
    /// By what was typed (or `$GABION_CLUSTER`), else by `./gabion-data/cluster.toml`.
    pub fn find(typed: Option<&str>) -> Result<Self, Failure> {
        if let Some(typed) = typed {
            let addresses: Vec<String> = typed
                .split(',')
                .map(str::trim)
                .filter(|a| !a.is_empty())
                .map(str::to_owned)
                .collect();
            return Self::at(&addresses);
        }
        let path = ClusterDir::file_of(Path::new("gabion-data"));
        if !path.exists() {
            return Err(Failure::new(
                Exit::Failed,
                format!("no cluster is named, and there is no {}", path.display()),
                "`gabion up` makes one here; else use --cluster HOST:PORT or $GABION_CLUSTER",
            ));
        }
        let file = read_cluster_file(&path)?;
        Self::at(&file.nodes.into_iter().map(|node| node.api).collect::<Vec<_>>())
    }

    pub fn at(addresses: &[String]) -> Result<Self, Failure> {
        let client = Client::new(addresses).map_err(|error| failure(&error))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::failed(format!("cannot start the client: {e}"), ""))?;
        Ok(Self { runtime, client })
    }

    fn wait<T>(&self, call: impl Future<Output = Result<T, ClientError>>) -> Result<T, Failure> {
        self.runtime.block_on(call).map_err(|error| failure(&error))
    }

    pub fn status(&self) -> Result<v1::StatusResponse, Failure> {
        self.wait(self.client.status())
    }

    pub fn nodes(&self) -> Result<Vec<v1::Node>, Failure> {
        self.wait(self.client.nodes())
    }

    pub fn disks(&self) -> Result<Vec<v1::Disk>, Failure> {
        self.wait(self.client.disks())
    }

    pub fn drain_disk(&self, disk: &str, node: &str, cancel: bool) -> Result<u32, Failure> {
        self.wait(self.client.drain_disk(disk, node, cancel))
    }

    pub fn drain_node(&self, node: &str, cancel: bool) -> Result<u32, Failure> {
        self.wait(self.client.drain_node(node, cancel))
    }

    /// None: it had been removed by an earlier try.
    pub fn remove_node(&self, node: &str, force: bool) -> Result<Option<u32>, Failure> {
        self.wait(self.client.remove_node(node, force))
    }

    pub fn join(&self, request: v1::JoinRequest) -> Result<v1::JoinResponse, Failure> {
        self.wait(self.client.join(request))
    }

    pub fn settings(&self) -> Result<Vec<v1::Setting>, Failure> {
        self.wait(self.client.settings())
    }

    pub fn set_setting(&self, name: &str, value: &str) -> Result<(), Failure> {
        self.wait(self.client.set_setting(name, value))
    }

    /// Hands each event to `each`, until the stream ends.
    pub fn events(&self, follow: bool, mut each: impl FnMut(v1::Event)) -> Result<(), Failure> {
        let mut stream = self.wait(self.client.events(follow))?;
        let failed = |status: Status| refused(&v1::ErrorDetail::from_status(&status));
        while let Some(event) = self.runtime.block_on(stream.message()).map_err(failed)? {
            each(event);
        }
        Ok(())
    }

    pub fn volumes(&self) -> Result<Vec<v1::Volume>, Failure> {
        self.wait(self.client.volumes())
    }

    pub fn volume(&self, name: &str) -> Result<v1::Volume, Failure> {
        self.wait(self.client.volume(name))
    }

    pub fn create(&self, request: v1::CreateVolumeRequest) -> Result<v1::Volume, Failure> {
        self.wait(self.client.create(request))
    }

    pub fn explain(&self, name: &str) -> Result<v1::ExplainVolumeResponse, Failure> {
        self.wait(self.client.explain(name))
    }

    pub fn resize(&self, name: &str, size_bytes: u64) -> Result<v1::Volume, Failure> {
        self.wait(self.client.resize(name, size_bytes))
    }

    pub fn delete(&self, name: &str, force: bool) -> Result<(), Failure> {
        self.wait(self.client.delete(name, force))
    }

    pub fn move_volume(&self, name: &str, to: &str) -> Result<(), Failure> {
        self.wait(self.client.move_volume(name, to))
    }

    pub fn scrub(&self, name: &str, deep: bool) -> Result<u64, Failure> {
        self.wait(self.client.scrub(name, deep))
    }

    pub fn recover(
        &self,
        name: &str,
        accept_loss: bool,
    ) -> Result<Vec<v1::StrandedSegment>, Failure> {
        self.wait(self.client.recover(name, accept_loss))
    }

    pub fn clients(&self, name: &str) -> Result<v1::ClientsResponse, Failure> {
        self.wait(self.client.clients(name))
    }

    pub fn evict(&self, request: v1::EvictRequest) -> Result<v1::EvictResponse, Failure> {
        self.wait(self.client.evict(request))
    }

    pub fn locate(&self, name: &str, offset: u64) -> Result<v1::LocateResponse, Failure> {
        self.wait(self.client.locate(name, offset))
    }
}

/// What went wrong, as an exit code and a text.
fn failure(error: &ClientError) -> Failure {
    let text = error.to_string();
    let (what, next) = text.split_once("; ").unwrap_or((text.as_str(), ""));
    match error {
        ClientError::Refused(detail) => refused(detail),
        ClientError::NobodyAnswers { .. } => Failure::failed(
            text.as_str(),
            "is the cluster up? `gabion up` runs one here; --cluster names another",
        ),
        ClientError::NoAddress | ClientError::BadAddress(_) => {
            Failure::new(Exit::Usage, what, next)
        }
        ClientError::NoVolumeInAnswer => Failure::failed(what, next),
    }
}

fn refused(detail: &v1::ErrorDetail) -> Failure {
    Failure::new(exit_of(detail.code()), detail.what.clone(), detail.next.clone())
}

fn exit_of(code: v1::ErrorCode) -> Exit {
    use v1::ErrorCode as Code;
    match code {
        Code::NoVolume
        | Code::NoNode
        | Code::NoDisk
        | Code::NoClient
        | Code::NoSetting
        | Code::Gone => Exit::NotFound,
        Code::BadName
        | Code::BadSize
        | Code::BadRf
        | Code::BadValue
        | Code::BadRequest
        | Code::Misaligned
        | Code::TooLarge
        | Code::OutOfRange
        | Code::NameTaken
        | Code::Shrinks
        | Code::Attached
        | Code::TooFewNodes
        | Code::NoRoom
        | Code::Refused
        | Code::TooMany
        | Code::NoSpace
        | Code::WrongSecret
        | Code::TokenVoid
        | Code::NotBuilt => Exit::Refused,
        Code::Unspecified
        | Code::NotLeader
        | Code::NoMajority
        | Code::Stopping
        | Code::NotReady
        | Code::Unreachable
        | Code::TimedOut
        | Code::Lost
        | Code::HeldTooLong
        | Code::Internal => Exit::Failed,
    }
}
