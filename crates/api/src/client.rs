//! An operator by gRPC: the calls of `Volumes` and `Cluster`, over to another node by itself.

#[cfg(test)]
mod tests;

use crate::v1;
use crate::v1::cluster_client::ClusterClient;
use crate::v1::volumes_client::VolumesClient;
use crate::v1::{ErrorCode, ErrorDetail};
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status, Streaming};

const CONNECT_MOST: Duration = Duration::from_secs(2);
/// One call, at one node.
const CALL_MOST: Duration = Duration::from_secs(30);
/// A connection on which not even this is answered in time is broken: a frozen machine, a cut cable.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// A cluster without a leader, or in a change of leaders, is asked again for so long.
const ASK_AGAIN_MOST: Duration = Duration::from_secs(15);
const ASK_AGAIN_PAUSE: Duration = Duration::from_millis(100);
/// A volume whose making was begun by a call that got no answer is waited for so long.
const MADE_MOST: Duration = Duration::from_secs(30);

/// Why a call failed. What may go well at another node, or a little later, was tried again before.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ClientError {
    /// The cluster's own word.
    #[error("{}", .0.text())]
    Refused(ErrorDetail),
    /// With the last reason.
    #[error("no node answers at {}: {why}", nodes.join(", "))]
    NobodyAnswers { nodes: Vec<String>, why: String },
    #[error("no address of a node is given; give host:port of the API of one or more nodes")]
    NoAddress,
    #[error("{0} is no address; an address is host:port, such as 127.0.0.1:7401")]
    BadAddress(String),
    /// It is not as new as this program, or no node of Gabion.
    #[error("the node answered without a volume; is it as new as this program?")]
    NoVolumeInAnswer,
}

impl ClientError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Refused(detail) => detail.code(),
            Self::NobodyAnswers { .. } => ErrorCode::Unreachable,
            Self::NoAddress | Self::BadAddress(_) => ErrorCode::BadRequest,
            Self::NoVolumeInAnswer => ErrorCode::Internal,
        }
    }
}

/// The nodes of a cluster; the one that answered last is asked first. Cheap to share by reference:
/// all its methods take `&self`. Any node answers; a change goes to the leader by itself.
///
/// A node that cannot be reached, dies or freezes is passed over, and a cluster without a leader is
/// asked again for 15 s. So a change may be asked for twice: then it counts as done when it is found
/// done.
#[derive(Debug)]
pub struct Client {
    nodes: Vec<Node>,
    at: AtomicUsize,
}

#[derive(Debug)]
struct Node {
    address: String,
    endpoint: Endpoint,
    /// Kept only while it works: a broken one is made anew.
    channel: Mutex<Option<Channel>>,
}

/// Why a node gave no answer that counts.
enum NoAnswer {
    /// Nothing was sent to it.
    NotReached(String),
    /// The connection broke, or the time was up: what was asked may have been done.
    Lost(String),
    Refused(Status),
}

/// How a call ended.
struct Outcome<T> {
    result: Result<T, ClientError>,
    /// It was asked for before, without a final answer: that may have done it.
    asked_before: bool,
}

impl Client {
    /// `nodes`: `host:port` of the API of one or more nodes. Nothing is sent yet.
    ///
    /// Errors: none is given, or one is no address.
    pub fn new(nodes: &[String]) -> Result<Self, ClientError> {
        let nodes = nodes.iter().map(|address| node(address)).collect::<Result<Vec<_>, _>>()?;
        if nodes.is_empty() {
            return Err(ClientError::NoAddress);
        }
        Ok(Self { nodes, at: AtomicUsize::new(0) })
    }

    pub async fn status(&self) -> Result<v1::StatusResponse, ClientError> {
        self.call(|c| async { ClusterClient::new(c).status(v1::StatusRequest {}).await })
            .await
            .result
    }

    pub async fn nodes(&self) -> Result<Vec<v1::Node>, ClientError> {
        let ask = |c| async { ClusterClient::new(c).nodes(v1::NodesRequest {}).await };
        Ok(self.call(ask).await.result?.nodes)
    }

    pub async fn disks(&self) -> Result<Vec<v1::Disk>, ClientError> {
        let ask = |c| async { ClusterClient::new(c).disks(v1::DisksRequest {}).await };
        Ok(self.call(ask).await.result?.disks)
    }

    pub async fn settings(&self) -> Result<Vec<v1::Setting>, ClientError> {
        let request = v1::ListSettingsRequest {};
        let ask = |c| async move { ClusterClient::new(c).list_settings(request).await };
        Ok(self.call(ask).await.result?.settings)
    }

    pub async fn set_setting(&self, name: &str, value: &str) -> Result<(), ClientError> {
        let request = v1::SetSettingRequest { name: name.to_owned(), value: value.to_owned() };
        let ask = |c| {
            let request = request.clone();
            async move { ClusterClient::new(c).set_setting(request).await }
        };
        self.call(ask).await.result.map(drop)
    }

    /// `disk`: its id or its path; `node`: the id or the name of its node, or nothing. Its id, when the
    /// emptying has begun (`cancel`: has ended).
    pub async fn drain_disk(
        &self,
        disk: &str,
        node: &str,
        cancel: bool,
    ) -> Result<u32, ClientError> {
        let (disk, node) = (disk.to_owned(), node.to_owned());
        let request = v1::DrainDiskRequest { disk, node, cancel };
        let ask = |c| {
            let request = request.clone();
            async move { ClusterClient::new(c).drain_disk(request).await }
        };
        self.call(ask).await.result.map(|answer| answer.disk)
    }

    /// `node`: the id or the name of a node. Its id, as `drain_disk`.
    pub async fn drain_node(&self, node: &str, cancel: bool) -> Result<u32, ClientError> {
        let request = v1::DrainNodeRequest { node: node.to_owned(), cancel };
        let ask = |c| {
            let request = request.clone();
            async move { ClusterClient::new(c).drain_node(request).await }
        };
        self.call(ask).await.result.map(|answer| answer.node)
    }

    /// `node`: the id or the name of a node. Its id. Where an earlier try within the call got no answer,
    /// a node that is not there was removed by it.
    pub async fn remove_node(&self, node: &str, force: bool) -> Result<Option<u32>, ClientError> {
        let request = v1::RemoveNodeRequest { node: node.to_owned(), force };
        let ask = |c| {
            let request = request.clone();
            async move { ClusterClient::new(c).remove_node(request).await }
        };
        let outcome = self.call(ask).await;
        match outcome.result {
            Err(error) if outcome.asked_before && error.code() == ErrorCode::NoNode => Ok(None),
            result => result.map(|answer| Some(answer.node)),
        }
    }

    /// A new node, by its token. Asked twice by the same node, it is answered the same.
    pub async fn join(&self, request: v1::JoinRequest) -> Result<v1::JoinResponse, ClientError> {
        let ask = |c| {
            let request = request.clone();
            async move { ClusterClient::new(c).join(request).await }
        };
        self.call(ask).await.result
    }

    /// The events that are known; `follow`: then those to come, until the node that tells them is
    /// lost. Errors: also what the stream itself gives, as `ErrorDetail::from_status` reads it.
    pub async fn events(&self, follow: bool) -> Result<Streaming<v1::Event>, ClientError> {
        let request = v1::EventsRequest { follow, ..v1::EventsRequest::default() };
        self.call(|c| async move { ClusterClient::new(c).events(request).await }).await.result
    }

    /// In the order of names, without segments.
    pub async fn volumes(&self) -> Result<Vec<v1::Volume>, ClientError> {
        let ask = |c| async { VolumesClient::new(c).list(v1::ListVolumesRequest {}).await };
        Ok(self.call(ask).await.result?.volumes)
    }

    pub async fn volume(&self, name: &str) -> Result<v1::Volume, ClientError> {
        let request = v1::GetVolumeRequest { name: name.to_owned() };
        let ask = |c| {
            let request = request.clone();
            async move { VolumesClient::new(c).get(request).await }
        };
        present(self.call(ask).await.result?.volume)
    }

    /// Durable: on every copy, when it returns. Where an earlier try within the call got no answer,
    /// a volume of that name and just that kind is the one that the try made.
    pub async fn create(
        &self,
        request: v1::CreateVolumeRequest,
    ) -> Result<v1::Volume, ClientError> {
        let ask = |c| {
            let request = request.clone();
            async move { VolumesClient::new(c).create(request).await }
        };
        let outcome = self.call(ask).await;
        match outcome.result {
            Err(error) if outcome.asked_before && error.code() == ErrorCode::NameTaken => {
                self.made_before(&request, error).await
            }
            result => present(result?.volume),
        }
    }

    /// The volume that an earlier try has made; `taken`, if it is another one.
    async fn made_before(
        &self,
        request: &v1::CreateVolumeRequest,
        taken: ClientError,
    ) -> Result<v1::Volume, ClientError> {
        let until = Instant::now() + MADE_MOST;
        loop {
            let found = self.volume(&request.name).await?;
            if !is_of(&found, request) {
                return Err(taken);
            }
            if found.state() != v1::VolumeState::Creating {
                return Ok(found);
            }
            if Instant::now() >= until {
                let what = format!("volume {} is still being made", request.name);
                let next =
                    "see `gabion volume show`; it is made when all its copies can be reached";
                let detail = ErrorDetail::of(ErrorCode::TimedOut, what, next);
                return Err(ClientError::Refused(detail.about(&request.name)));
            }
            tokio::time::sleep(ASK_AGAIN_PAUSE).await;
        }
    }

    pub async fn explain(&self, name: &str) -> Result<v1::ExplainVolumeResponse, ClientError> {
        let request = v1::ExplainVolumeRequest { name: name.to_owned() };
        let ask = |c| {
            let request = request.clone();
            async move { VolumesClient::new(c).explain(request).await }
        };
        self.call(ask).await.result
    }

    pub async fn resize(&self, name: &str, size_bytes: u64) -> Result<v1::Volume, ClientError> {
        let request = v1::ResizeVolumeRequest { name: name.to_owned(), size_bytes };
        let ask = |c| {
            let request = request.clone();
            async move { VolumesClient::new(c).resize(request).await }
        };
        present(self.call(ask).await.result?.volume)
    }

    /// Where an earlier try within the call got no answer, a volume that is not there was deleted
    /// by it.
    pub async fn delete(&self, name: &str, force: bool) -> Result<(), ClientError> {
        let request = v1::DeleteVolumeRequest { name: name.to_owned(), force };
        let ask = |c| {
            let request = request.clone();
            async move { VolumesClient::new(c).delete(request).await }
        };
        let outcome = self.call(ask).await;
        match outcome.result {
            Err(error) if outcome.asked_before && error.code() == ErrorCode::NoVolume => Ok(()),
            result => result.map(drop),
        }
    }

    /// `to`: the id or the name of a node.
    pub async fn move_volume(&self, name: &str, to: &str) -> Result<(), ClientError> {
        let request = v1::MoveVolumeRequest { name: name.to_owned(), to: to.to_owned() };
        let ask = |c| {
            let request = request.clone();
            async move { VolumesClient::new(c).r#move(request).await }
        };
        self.call(ask).await.result.map(drop)
    }

    /// Its number; it goes on by itself.
    pub async fn scrub(&self, name: &str, deep: bool) -> Result<u64, ClientError> {
        let request = v1::ScrubVolumeRequest { name: name.to_owned(), deep };
        let ask = |c| {
            let request = request.clone();
            async move { VolumesClient::new(c).scrub(request).await }
        };
        self.call(ask).await.result.map(|answer| answer.number)
    }

    /// What is left of segments whose copies are all gone; `accept_loss`: goes on with that.
    pub async fn recover(
        &self,
        name: &str,
        accept_loss: bool,
    ) -> Result<Vec<v1::StrandedSegment>, ClientError> {
        let request = v1::RecoverVolumeRequest { name: name.to_owned(), accept_loss };
        let ask = |c| {
            let request = request.clone();
            async move { VolumesClient::new(c).recover(request).await }
        };
        self.call(ask).await.result.map(|answer| answer.stranded)
    }

    pub async fn clients(&self, name: &str) -> Result<v1::ClientsResponse, ClientError> {
        let request = v1::ClientsRequest { name: name.to_owned() };
        let ask = |c| {
            let request = request.clone();
            async move { VolumesClient::new(c).clients(request).await }
        };
        self.call(ask).await.result
    }

    pub async fn evict(&self, request: v1::EvictRequest) -> Result<v1::EvictResponse, ClientError> {
        let ask = |c| {
            let request = request.clone();
            async move { VolumesClient::new(c).evict(request).await }
        };
        self.call(ask).await.result
    }

    /// Units: bytes of the volume.
    pub async fn locate(&self, name: &str, offset: u64) -> Result<v1::LocateResponse, ClientError> {
        let request = v1::LocateRequest { name: name.to_owned(), offset };
        let ask = |c| {
            let request = request.clone();
            async move { VolumesClient::new(c).locate(request).await }
        };
        self.call(ask).await.result
    }

    /// Asks one node after the other, and those that have no majority just now again.
    async fn call<T, F>(&self, mut ask: impl FnMut(Channel) -> F) -> Outcome<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let until = Instant::now() + ASK_AGAIN_MOST;
        let mut asked_before = false;
        let mut silent = 0;
        loop {
            let at = self.at.load(Ordering::Relaxed);
            let why = match ask_one(&self.nodes[at], &mut ask).await {
                Ok(answer) => return Outcome { result: Ok(answer), asked_before },
                Err(NoAnswer::NotReached(why)) => why,
                Err(NoAnswer::Lost(why)) => {
                    asked_before = true;
                    why
                }
                Err(NoAnswer::Refused(status)) => {
                    let detail = ErrorDetail::from_status(&status);
                    if !detail.retry || Instant::now() >= until {
                        return Outcome { result: Err(ClientError::Refused(detail)), asked_before };
                    }
                    // A leader that lost its office may have the change in its log already.
                    asked_before = true;
                    silent = 0;
                    tokio::time::sleep(ASK_AGAIN_PAUSE).await;
                    self.pass_over(at);
                    continue;
                }
            };
            self.pass_over(at);
            silent += 1;
            if silent >= self.nodes.len() {
                let nodes = self.nodes.iter().map(|node| node.address.clone()).collect();
                let result = Err(ClientError::NobodyAnswers { nodes, why });
                return Outcome { result, asked_before };
            }
        }
    }

    fn pass_over(&self, at: usize) {
        self.at.store((at + 1) % self.nodes.len(), Ordering::Relaxed);
    }
}

fn node(address: &str) -> Result<Node, ClientError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| ClientError::BadAddress(address.to_owned()))?
        .connect_timeout(CONNECT_MOST)
        .timeout(CALL_MOST)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .tcp_nodelay(true);
    Ok(Node { address: address.to_owned(), endpoint, channel: Mutex::new(None) })
}

async fn ask_one<T, F>(node: &Node, ask: &mut impl FnMut(Channel) -> F) -> Result<T, NoAnswer>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let kept = node.channel.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let channel = match kept {
        Some(channel) => channel,
        None => {
            let connected = node.endpoint.connect().await;
            connected.map_err(|e| NoAnswer::NotReached(e.to_string()))?
        }
    };
    let answer = ask(channel.clone()).await.map_err(|status| {
        // A node's own answer has no local cause; a connection that broke has.
        match std::error::Error::source(&status) {
            Some(_) => NoAnswer::Lost(status.message().to_owned()),
            None => NoAnswer::Refused(status),
        }
    });
    let works = !matches!(answer, Err(NoAnswer::Lost(_)));
    *node.channel.lock().unwrap_or_else(PoisonError::into_inner) = works.then_some(channel);
    Ok(answer?.into_inner())
}

fn present(volume: Option<v1::Volume>) -> Result<v1::Volume, ClientError> {
    volume.ok_or(ClientError::NoVolumeInAnswer)
}

/// Whether a volume is as it was asked for.
fn is_of(volume: &v1::Volume, asked: &v1::CreateVolumeRequest) -> bool {
    let exclusive = |attach| attach == v1::Attach::Exclusive;
    // 0 is the cluster's own choice.
    let rf = asked.rf == 0 || volume.rf == asked.rf;
    rf && volume.size_bytes == asked.size_bytes
        && volume.hold_ms == asked.hold_ms
        && exclusive(volume.attach()) == exclusive(asked.attach())
}
