//! The client against servers that do what was asked and never say so, refuse, and are not there.

use super::*;
use crate::v1::volumes_server::{Volumes, VolumesServer};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Request;
use tonic::transport::Server;

/// The volumes of one cluster: all servers of a test share them.
type Shared = Arc<Mutex<Vec<v1::Volume>>>;

/// What a server does with a call that changes something.
#[derive(Clone, Copy, PartialEq)]
enum Behaviour {
    Serves,
    /// Does it and dies, so that the answer gets lost.
    DoesAndDies,
    /// Does it and says that no majority is there.
    DoesAndRefuses,
    /// Doesn't do it and says so, to be asked again.
    Refuses,
}

struct Fake {
    behaviour: Behaviour,
    volumes: Shared,
    /// Told when this server is to be gone.
    dies: tokio::sync::mpsc::UnboundedSender<()>,
}

impl Fake {
    async fn then<T>(&self, done: Result<T, Status>) -> Result<Response<T>, Status> {
        let no_majority = ErrorDetail::of(ErrorCode::NoMajority, "no leader is known", "");
        match self.behaviour {
            Behaviour::Serves => done.map(Response::new),
            Behaviour::DoesAndRefuses | Behaviour::Refuses => Err(no_majority.into_status()),
            Behaviour::DoesAndDies => {
                self.dies.send(()).unwrap();
                std::future::pending().await
            }
        }
    }
}

fn error(code: ErrorCode) -> Status {
    ErrorDetail::of(code, "refused", "").into_status()
}

#[tonic::async_trait]
impl Volumes for Fake {
    async fn create(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<v1::CreateVolumeResponse>, Status> {
        if self.behaviour == Behaviour::Refuses {
            return self.then(Err(error(ErrorCode::Internal))).await;
        }
        let asked = request.into_inner();
        let made = {
            let mut volumes = self.volumes.lock().unwrap();
            let taken = volumes.iter().any(|volume| volume.name == asked.name);
            let volume = v1::Volume {
                name: asked.name,
                size_bytes: asked.size_bytes,
                rf: if asked.rf == 0 { 2 } else { asked.rf },
                hold_ms: asked.hold_ms,
                attach: v1::Attach::Any.into(),
                state: v1::VolumeState::Ready.into(),
                ..v1::Volume::default()
            };
            if taken {
                Err(error(ErrorCode::NameTaken))
            } else {
                volumes.push(volume.clone());
                Ok(v1::CreateVolumeResponse { volume: Some(volume) })
            }
        };
        self.then(made).await
    }

    async fn list(
        &self,
        _request: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        let volumes = self.volumes.lock().unwrap().clone();
        Ok(Response::new(v1::ListVolumesResponse { volumes }))
    }

    async fn get(
        &self,
        request: Request<v1::GetVolumeRequest>,
    ) -> Result<Response<v1::GetVolumeResponse>, Status> {
        let name = request.into_inner().name;
        let volumes = self.volumes.lock().unwrap().clone();
        let found = volumes.into_iter().find(|volume| volume.name == name);
        let volume = Some(found.ok_or_else(|| error(ErrorCode::NoVolume))?);
        Ok(Response::new(v1::GetVolumeResponse { volume }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        let name = request.into_inner().name;
        let gone = {
            let mut volumes = self.volumes.lock().unwrap();
            let before = volumes.len();
            volumes.retain(|volume| volume.name != name);
            volumes.len() < before
        };
        let done = gone.then_some(v1::DeleteVolumeResponse {});
        self.then(done.ok_or_else(|| error(ErrorCode::NoVolume))).await
    }

    async fn scrub(
        &self,
        _request: Request<v1::ScrubVolumeRequest>,
    ) -> Result<Response<v1::ScrubVolumeResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn recover(
        &self,
        _request: Request<v1::RecoverVolumeRequest>,
    ) -> Result<Response<v1::RecoverVolumeResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn clients(
        &self,
        _request: Request<v1::ClientsRequest>,
    ) -> Result<Response<v1::ClientsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn evict(
        &self,
        _request: Request<v1::EvictRequest>,
    ) -> Result<Response<v1::EvictResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn explain(
        &self,
        _request: Request<v1::ExplainVolumeRequest>,
    ) -> Result<Response<v1::ExplainVolumeResponse>, Status> {
        Err(error(ErrorCode::NoVolume))
    }

    async fn resize(
        &self,
        _request: Request<v1::ResizeVolumeRequest>,
    ) -> Result<Response<v1::ResizeVolumeResponse>, Status> {
        Err(error(ErrorCode::Shrinks))
    }

    async fn r#move(
        &self,
        _request: Request<v1::MoveVolumeRequest>,
    ) -> Result<Response<v1::MoveVolumeResponse>, Status> {
        Err(error(ErrorCode::NoNode))
    }

    async fn locate(
        &self,
        _request: Request<v1::LocateRequest>,
    ) -> Result<Response<v1::LocateResponse>, Status> {
        Err(error(ErrorCode::OutOfRange))
    }
}

/// Dropped, it hangs up as a killed process does.
struct TestServer {
    address: String,
    runtime: Arc<Mutex<Option<Runtime>>>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }
}

fn serve(behaviour: Behaviour, volumes: &Shared) -> TestServer {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (dies, mut told) = tokio::sync::mpsc::unbounded_channel();
    let service = VolumesServer::new(Fake { behaviour, volumes: Arc::clone(volumes), dies });
    runtime.spawn(async move {
        let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
        Server::builder().add_service(service).serve_with_incoming(incoming).await
    });
    let runtime = Arc::new(Mutex::new(Some(runtime)));
    let killed = Arc::clone(&runtime);
    std::thread::spawn(move || {
        if told.blocking_recv().is_some()
            && let Some(runtime) = killed.lock().unwrap().take()
        {
            runtime.shutdown_background();
        }
    });
    TestServer { address, runtime }
}

/// Two nodes of one cluster, and a client that asks the first of them first.
fn cluster(first: Behaviour, second: Behaviour) -> (Client, Shared, [TestServer; 2]) {
    let volumes = Shared::default();
    let servers = [serve(first, &volumes), serve(second, &volumes)];
    let addresses = servers.each_ref().map(|server| server.address.clone());
    (Client::new(&addresses).unwrap(), volumes, servers)
}

fn request(name: &str, size_bytes: u64) -> v1::CreateVolumeRequest {
    v1::CreateVolumeRequest { name: name.to_owned(), size_bytes, ..Default::default() }
}

#[tokio::test]
async fn a_volume_that_a_dying_node_made_is_made() {
    for first in [Behaviour::DoesAndDies, Behaviour::DoesAndRefuses] {
        let (client, volumes, _servers) = cluster(first, Behaviour::Serves);
        let made = client.create(request("vm1", 4096)).await.unwrap();
        assert_eq!((made.name.as_str(), made.size_bytes, made.rf), ("vm1", 4096, 2));
        assert_eq!(volumes.lock().unwrap().len(), 1);
        // Asked once, and answered: that is another one.
        let again = client.create(request("vm1", 4096)).await.unwrap_err();
        assert_eq!(again.code(), ErrorCode::NameTaken);
    }
}

#[tokio::test]
async fn a_volume_of_that_name_that_is_another_one_is_no_success() {
    let differs: [fn(&mut v1::CreateVolumeRequest); 3] =
        [|r| r.size_bytes = 8192, |r| r.rf = 3, |r| r.hold_ms = 1000];
    for differ in differs {
        // The first says that it may be asked again, without having done anything.
        let (client, volumes, _servers) = cluster(Behaviour::Refuses, Behaviour::Serves);
        let mut other = request("vm1", 4096);
        differ(&mut other);
        volumes.lock().unwrap().push(v1::Volume {
            name: other.name,
            size_bytes: other.size_bytes,
            rf: if other.rf == 0 { 2 } else { other.rf },
            hold_ms: other.hold_ms,
            state: v1::VolumeState::Ready.into(),
            ..v1::Volume::default()
        });
        let asked = v1::CreateVolumeRequest { rf: 2, ..request("vm1", 4096) };
        let error = client.create(asked).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::NameTaken);
    }
}

#[tokio::test]
async fn a_volume_that_a_dying_node_deleted_is_deleted() {
    for first in [Behaviour::DoesAndDies, Behaviour::DoesAndRefuses] {
        let (client, volumes, _servers) = cluster(first, Behaviour::Serves);
        volumes.lock().unwrap().push(v1::Volume { name: "vm1".to_owned(), ..Default::default() });
        client.delete("vm1", false).await.unwrap();
        assert!(volumes.lock().unwrap().is_empty());
        let again = client.delete("vm1", false).await.unwrap_err();
        assert_eq!(again.code(), ErrorCode::NoVolume);
    }
}

#[tokio::test]
async fn a_node_that_is_not_there_is_passed_over_and_was_asked_nothing() {
    let volumes = Shared::default();
    let server = serve(Behaviour::Serves, &volumes);
    let nodes = ["127.0.0.1:1".to_owned(), server.address.clone()];
    volumes.lock().unwrap().push(v1::Volume { name: "vm1".to_owned(), ..Default::default() });
    let client = Client::new(&nodes).unwrap();
    assert_eq!(client.volumes().await.unwrap().len(), 1);
    let client = Client::new(&nodes).unwrap();
    assert_eq!(client.create(request("vm1", 0)).await.unwrap_err().code(), ErrorCode::NameTaken);
    let client = Client::new(&nodes).unwrap();
    assert_eq!(client.delete("vm2", false).await.unwrap_err().code(), ErrorCode::NoVolume);
}

#[tokio::test]
async fn the_clusters_word_is_final_and_typed() {
    let (client, _volumes, _servers) = cluster(Behaviour::Serves, Behaviour::Serves);
    assert_eq!(client.resize("vm1", 0).await.unwrap_err().code(), ErrorCode::Shrinks);
    assert_eq!(client.move_volume("vm1", "9").await.unwrap_err().code(), ErrorCode::NoNode);
    assert_eq!(client.locate("vm1", 0).await.unwrap_err().code(), ErrorCode::OutOfRange);
    // These servers have no such service.
    assert_eq!(client.status().await.unwrap_err().code(), ErrorCode::NotBuilt);
}

#[tokio::test]
async fn nobody_there_is_told_with_all_addresses() {
    let nodes = ["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()];
    let error = Client::new(&nodes).unwrap().nodes().await.unwrap_err();
    assert!(matches!(&error, ClientError::NobodyAnswers { nodes: all, .. } if *all == nodes));
    assert!(error.to_string().starts_with("no node answers at 127.0.0.1:1, 127.0.0.1:2: "));
    assert_eq!(Client::new(&[]).unwrap_err(), ClientError::NoAddress);
    let bad = Client::new(&["a b".to_owned()]).unwrap_err();
    assert_eq!(bad, ClientError::BadAddress("a b".to_owned()));
}
