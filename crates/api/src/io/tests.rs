//! The client against servers that hang up, hold answers back and refuse.

use super::*;
use crate::v1::io_server::{Io, IoServer};
use crate::v1::{Done, IoRequest, IoResponse, OpenedVolume, ReadData};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request as Call, Response, Status, Streaming};

/// What one server does with the requests of a stream.
#[derive(Clone, Copy, PartialEq)]
enum Behaviour {
    Serves,
    /// Takes them and never answers.
    Silent,
    /// Never answers a large request; executes and answers the others at once.
    SlowWhenLarge,
    /// There is no such volume.
    Refuses,
    /// Serves two, then says that it stops.
    Stops,
}

struct Fake {
    behaviour: Behaviour,
    /// Offsets of the writes that were executed, by all servers of a test, in order.
    written: Arc<Mutex<Vec<u64>>>,
}

fn done() -> io_response::Result {
    io_response::Result::Done(Done {})
}

impl Fake {
    fn execute(&self, op: Option<io_request::Op>) -> io_response::Result {
        match op {
            Some(io_request::Op::Write(write)) => {
                self.written.lock().unwrap().push(write.offset);
                done()
            }
            Some(io_request::Op::Read(read)) => {
                let data = Bytes::from(vec![7; read.length as usize]);
                io_response::Result::Read(ReadData { data })
            }
            Some(
                io_request::Op::Open(_)
                | io_request::Op::Flush(_)
                | io_request::Op::Zero(_)
                | io_request::Op::Trim(_),
            )
            | None => done(),
        }
    }
}

#[tonic::async_trait]
impl Io for Fake {
    type AttachStream = ReceiverStream<Result<IoResponse, Status>>;

    async fn attach(
        &self,
        call: Call<Streaming<IoRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut requests = call.into_inner();
        let (sender, answers) = mpsc::channel(8);
        let fake = Fake { behaviour: self.behaviour, written: Arc::clone(&self.written) };
        tokio::spawn(async move {
            let opened = if fake.behaviour == Behaviour::Refuses {
                let detail = ErrorDetail::of(ErrorCode::NoVolume, "there is no volume vm1", "");
                io_response::Result::Error(detail)
            } else {
                let opened = OpenedVolume { size_bytes: 1 << 20, ..OpenedVolume::default() };
                io_response::Result::Opened(opened)
            };
            let mut result = opened;
            let mut served = 0;
            while let Ok(Some(request)) = requests.message().await {
                if served > 0 {
                    if fake.behaviour == Behaviour::Silent {
                        continue;
                    }
                    let large = matches!(&request.op, Some(io_request::Op::Write(write))
                        if write.data.len() > 4096)
                        || matches!(&request.op, Some(io_request::Op::Read(read))
                        if read.length > 4096);
                    if fake.behaviour == Behaviour::SlowWhenLarge && large {
                        continue;
                    }
                    result = fake.execute(request.op);
                }
                served += 1;
                let answer = IoResponse { id: request.id, result: Some(result.clone()) };
                if sender.send(Ok(answer)).await.is_err() {
                    return;
                }
                if fake.behaviour == Behaviour::Stops && served > 2 {
                    let detail = ErrorDetail::of(ErrorCode::Stopping, "this node is stopping", "");
                    let ended = io_response::Result::Ended(detail);
                    let _gone = sender.send(Ok(IoResponse { id: 0, result: Some(ended) })).await;
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// Dropped, it hangs up as a killed process does.
struct TestServer {
    address: String,
    runtime: Option<Runtime>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn serve(behaviour: Behaviour, written: &Arc<Mutex<Vec<u64>>>) -> TestServer {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = IoServer::new(Fake { behaviour, written: Arc::clone(written) });
    runtime.spawn(async move {
        let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
        Server::builder().add_service(service).serve_with_incoming(incoming).await
    });
    TestServer { address, runtime: Some(runtime) }
}

async fn write_all(client: &IoClient, offsets: std::ops::Range<u64>) {
    for offset in offsets {
        client.write(offset * 4096, Bytes::from_static(&[1; 4096])).await.unwrap();
    }
}

#[tokio::test]
async fn reads_and_writes_come_back() {
    let written = Arc::default();
    let server = serve(Behaviour::Serves, &written);
    let client = IoClient::open(std::slice::from_ref(&server.address), "vm1").await.unwrap();
    assert_eq!(client.size_bytes(), 1 << 20);
    write_all(&client, 0..3).await;
    client.flush().await.unwrap();
    client.zero(0, 4096).await.unwrap();
    client.trim(0, 4096).await.unwrap();
    assert_eq!(client.read(0, 512).await.unwrap(), Bytes::from(vec![7; 512]));
    assert_eq!(*written.lock().unwrap(), [0, 4096, 8192]);
    assert_eq!(client.state().borrow().waiting_since, None);
}

#[tokio::test]
async fn what_a_killed_node_left_unanswered_goes_to_another_in_order() {
    let written = Arc::default();
    let silent = serve(Behaviour::Silent, &written);
    let other = serve(Behaviour::Serves, &written);
    let nodes = [silent.address.clone(), other.address.clone()];
    let client = IoClient::open(&nodes, "vm1").await.unwrap();
    let writes = (0..20).map(|at| client.write(at * 4096, Bytes::from_static(&[1; 4096])));
    let mut all = Vec::new();
    for write in writes {
        all.push(Box::pin(write));
    }
    let finished = async {
        let mut set = Vec::new();
        for write in &mut all {
            // Polled once in order, so that they are sent in order.
            let polled = std::future::poll_fn(|context| {
                std::task::Poll::Ready(write.as_mut().poll(context).is_ready())
            });
            set.push(polled.await);
        }
        assert!(set.iter().all(|ready| !ready));
        drop(silent);
        for write in all {
            write.await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), finished).await.unwrap();
    let expected: Vec<u64> = (0..20).map(|at| at * 4096).collect();
    assert_eq!(*written.lock().unwrap(), expected);
    assert_eq!(client.state().borrow().breaks, 1);
    assert_eq!(client.state().borrow().connected.as_ref(), Some(&nodes[1]));
}

async fn polled<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(Pin::new(&mut *future).poll(context).is_ready())
    })
    .await
}

/// A node may have executed the small write while parts of the large one are open: sent again after
/// its death, the large one would lie over what was answered.
#[tokio::test]
async fn a_request_waits_for_an_earlier_one_that_it_overlaps() {
    let written = Arc::default();
    let slow = serve(Behaviour::SlowWhenLarge, &written);
    let other = serve(Behaviour::Serves, &written);
    let nodes = [slow.address.clone(), other.address.clone()];
    let client = IoClient::open(&nodes, "vm1").await.unwrap();
    let mut large = Box::pin(client.write(0, Bytes::from(vec![1; 1 << 19])));
    let mut inside = Box::pin(client.write(4096, Bytes::from_static(&[2; 4096])));
    let mut seen = Box::pin(client.read(8192, 4096));
    let mut long_read = Box::pin(client.read(1 << 19, 1 << 18));
    let mut under_read = Box::pin(client.write(1 << 19, Bytes::from_static(&[3; 4096])));
    assert!(!polled(&mut large).await && !polled(&mut inside).await && !polled(&mut seen).await);
    assert!(!polled(&mut long_read).await && !polled(&mut under_read).await);
    // What lies beside is not held up, and its answer shows that the others had their time.
    client.write(3 << 18, Bytes::from_static(&[4; 4096])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!polled(&mut inside).await && !polled(&mut seen).await);
    assert!(!polled(&mut under_read).await);
    assert_eq!(*written.lock().unwrap(), [3 << 18]);
    drop(slow);
    let all = async {
        large.await.unwrap();
        inside.await.unwrap();
        seen.await.unwrap();
        long_read.await.unwrap();
        under_read.await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.unwrap();
    let order = written.lock().unwrap().clone();
    let place = |offset: u64| order.iter().position(|at| *at == offset).unwrap();
    assert_eq!(order.len(), 4, "{order:?}");
    assert!(place(0) < place(4096), "{order:?}");
}

#[tokio::test]
async fn a_node_that_stops_hands_over() {
    let written = Arc::default();
    let stops = serve(Behaviour::Stops, &written);
    let other = serve(Behaviour::Serves, &written);
    let nodes = [stops.address.clone(), other.address.clone()];
    let client = IoClient::open(&nodes, "vm1").await.unwrap();
    write_all(&client, 0..6).await;
    assert_eq!(client.state().borrow().connected.as_ref(), Some(&nodes[1]));
}

#[tokio::test]
async fn a_refusal_is_final_and_typed() {
    let server = serve(Behaviour::Refuses, &Arc::default());
    let error = IoClient::open(std::slice::from_ref(&server.address), "vm1").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::NoVolume);
    assert_eq!(error.to_string(), "there is no volume vm1");
    let none = IoClient::open(&[], "vm1").await.unwrap_err();
    assert_eq!(none, IoClientError::NoAddress);
}

#[tokio::test]
async fn nobody_there_ends_in_time() {
    let nodes = ["127.0.0.1:1".to_owned()];
    let within = Duration::from_millis(300);
    let error = IoClient::open_within(&nodes, "vm1", within).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TimedOut);
}
