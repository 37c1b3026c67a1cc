//! The cluster that the verbs ask: found, called, and its errors turned into exit codes.

use crate::failure::{Exit, Failure};
use crate::layout::{ClusterDir, read_cluster_file};
use gabion_api::v1;
use gabion_api::v1::cluster_client::ClusterClient;
use gabion_api::v1::volumes_client::VolumesClient;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

const CONNECT_MOST: Duration = Duration::from_secs(2);
/// One call, at one node.
const CALL_MOST: Duration = Duration::from_secs(30);
/// A cluster without a leader, or in a change of leaders, is asked again for so long.
const ASK_AGAIN_MOST: Duration = Duration::from_secs(15);
const ASK_AGAIN_PAUSE: Duration = Duration::from_millis(100);

/// The nodes of a cluster; the first that answers is asked.
pub struct Remote {
    runtime: Runtime,
    nodes: Vec<Node>,
    /// The one that answered last.
    at: usize,
}

struct Node {
    address: String,
    endpoint: Endpoint,
    channel: Option<Channel>,
}

/// Why a node gave no answer that counts.
enum NoAnswer {
    /// It could not be reached, or the connection broke: another node may be asked. (What was asked
    /// may have been done; every call names what it wants, so that asking again does no harm.)
    NotReached(String),
    Refused(Status),
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
        let node = |address: &String| {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| {
                let what = format!("{address} is no address");
                Failure::new(Exit::Usage, what, "an address is HOST:PORT, such as 127.0.0.1:7401")
            })?;
            let endpoint = endpoint.connect_timeout(CONNECT_MOST).timeout(CALL_MOST);
            Ok(Node { address: address.clone(), endpoint, channel: None })
        };
        let nodes = addresses.iter().map(node).collect::<Result<Vec<_>, Failure>>()?;
        if nodes.is_empty() {
            return Err(Failure::new(
                Exit::Usage,
                "no address is given",
                "for example 127.0.0.1:7401",
            ));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::failed(format!("cannot start the client: {e}"), ""))?;
        Ok(Self { runtime, nodes, at: 0 })
    }

    /// Asks one node after the other, and those that have no majority just now again.
    fn call<T, F>(&mut self, mut ask: impl FnMut(Channel) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let until = Instant::now() + ASK_AGAIN_MOST;
        let mut silent = 0;
        loop {
            let node = &mut self.nodes[self.at];
            match self.runtime.block_on(ask_one(node, &mut ask)) {
                Ok(answer) => return Ok(answer),
                Err(NoAnswer::NotReached(why)) => {
                    silent += 1;
                    if silent >= self.nodes.len() {
                        return Err(self.nobody(&why));
                    }
                }
                Err(NoAnswer::Refused(status)) => {
                    let detail = v1::ErrorDetail::from_status(&status);
                    if !detail.retry || Instant::now() >= until {
                        return Err(failure(&detail));
                    }
                    silent = 0;
                    std::thread::sleep(ASK_AGAIN_PAUSE);
                }
            }
            self.at = (self.at + 1) % self.nodes.len();
        }
    }

    fn nobody(&self, why: &str) -> Failure {
        let addresses: Vec<&str> = self.nodes.iter().map(|node| node.address.as_str()).collect();
        Failure::failed(
            format!("no node answers at {}: {why}", addresses.join(", ")),
            "is the cluster up? `gabion up` runs one here; --cluster names another",
        )
    }

    pub fn status(&mut self) -> Result<v1::StatusResponse, Failure> {
        self.call(|c| async { ClusterClient::new(c).status(v1::StatusRequest {}).await })
    }

    pub fn nodes(&mut self) -> Result<Vec<v1::Node>, Failure> {
        let ask = |c| async { ClusterClient::new(c).nodes(v1::NodesRequest {}).await };
        Ok(self.call(ask)?.nodes)
    }

    pub fn disks(&mut self) -> Result<Vec<v1::Disk>, Failure> {
        let ask = |c| async { ClusterClient::new(c).disks(v1::DisksRequest {}).await };
        Ok(self.call(ask)?.disks)
    }

    pub fn settings(&mut self) -> Result<Vec<v1::Setting>, Failure> {
        let request = v1::ListSettingsRequest {};
        Ok(self
            .call(|c| async move { ClusterClient::new(c).list_settings(request).await })?
            .settings)
    }

    pub fn set_setting(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        let request = v1::SetSettingRequest { name: name.to_owned(), value: value.to_owned() };
        self.call(|c| {
            let request = request.clone();
            async move { ClusterClient::new(c).set_setting(request).await }
        })
        .map(drop)
    }

    /// Hands each event to `each`, until the stream ends.
    pub fn events(&mut self, follow: bool, mut each: impl FnMut(v1::Event)) -> Result<(), Failure> {
        let request = v1::EventsRequest { follow, local_only: false };
        let mut stream =
            self.call(|c| async move { ClusterClient::new(c).events(request).await })?;
        let failed = |status: Status| failure(&v1::ErrorDetail::from_status(&status));
        while let Some(event) = self.runtime.block_on(stream.message()).map_err(failed)? {
            each(event);
        }
        Ok(())
    }

    pub fn volumes(&mut self) -> Result<Vec<v1::Volume>, Failure> {
        let ask = |c| async { VolumesClient::new(c).list(v1::ListVolumesRequest {}).await };
        Ok(self.call(ask)?.volumes)
    }

    pub fn volume(&mut self, name: &str) -> Result<v1::Volume, Failure> {
        let request = v1::GetVolumeRequest { name: name.to_owned() };
        let answer = self.call(|c| {
            let request = request.clone();
            async move { VolumesClient::new(c).get(request).await }
        })?;
        present(answer.volume)
    }

    pub fn create(&mut self, request: v1::CreateVolumeRequest) -> Result<v1::Volume, Failure> {
        let answer = self.call(|c| {
            let request = request.clone();
            async move { VolumesClient::new(c).create(request).await }
        })?;
        present(answer.volume)
    }

    pub fn resize(&mut self, name: &str, size_bytes: u64) -> Result<v1::Volume, Failure> {
        let request = v1::ResizeVolumeRequest { name: name.to_owned(), size_bytes };
        let answer = self.call(|c| {
            let request = request.clone();
            async move { VolumesClient::new(c).resize(request).await }
        })?;
        present(answer.volume)
    }

    pub fn delete(&mut self, name: &str, force: bool) -> Result<(), Failure> {
        let request = v1::DeleteVolumeRequest { name: name.to_owned(), force };
        self.call(|c| {
            let request = request.clone();
            async move { VolumesClient::new(c).delete(request).await }
        })
        .map(drop)
    }

    pub fn move_volume(&mut self, name: &str, to: &str) -> Result<(), Failure> {
        let request = v1::MoveVolumeRequest { name: name.to_owned(), to: to.to_owned() };
        self.call(|c| {
            let request = request.clone();
            async move { VolumesClient::new(c).r#move(request).await }
        })
        .map(drop)
    }

    pub fn locate(&mut self, name: &str, offset: u64) -> Result<v1::LocateResponse, Failure> {
        let request = v1::LocateRequest { name: name.to_owned(), offset };
        self.call(|c| {
            let request = request.clone();
            async move { VolumesClient::new(c).locate(request).await }
        })
    }
}

async fn ask_one<T, F>(node: &mut Node, ask: &mut impl FnMut(Channel) -> F) -> Result<T, NoAnswer>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let channel = match node.channel.take() {
        Some(channel) => channel,
        None => {
            let connected = node.endpoint.connect().await;
            connected.map_err(|e| NoAnswer::NotReached(e.to_string()))?
        }
    };
    let answer = ask(channel.clone()).await.map_err(|status| {
        // A node's own answer has no local cause; a connection that broke has.
        match std::error::Error::source(&status) {
            Some(_) => NoAnswer::NotReached(status.message().to_owned()),
            None => NoAnswer::Refused(status),
        }
    })?;
    // Kept only while it works: a broken one is made anew.
    node.channel = Some(channel);
    Ok(answer.into_inner())
}

fn present(volume: Option<v1::Volume>) -> Result<v1::Volume, Failure> {
    volume.ok_or_else(|| {
        Failure::failed("the node answered without a volume", "is it as new as this program?")
    })
}

/// What went wrong, as an exit code and a text.
fn failure(detail: &v1::ErrorDetail) -> Failure {
    Failure::new(exit_of(detail.code()), detail.what.clone(), detail.next.clone())
}

fn exit_of(code: v1::ErrorCode) -> Exit {
    use v1::ErrorCode as Code;
    match code {
        Code::NoVolume | Code::NoNode | Code::NoSetting | Code::Gone => Exit::NotFound,
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
        | Code::WrongSecret => Exit::Refused,
        Code::Unspecified
        | Code::NotLeader
        | Code::NoMajority
        | Code::Stopping
        | Code::NotReady
        | Code::Unreachable
        | Code::TimedOut
        | Code::Lost
        | Code::HeldTooLong
        | Code::Internal
        | Code::NotBuilt => Exit::Failed,
    }
}
