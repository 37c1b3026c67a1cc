//! The API's port: all gRPC services of a node.

use crate::consensus::Answerer;
use crate::control::ask::Context;
use crate::control::cluster::ClusterService;
use crate::control::guest::IoService;
use crate::control::internal::InternalService;
use crate::control::volumes::VolumesService;
use crate::data::Published;
use gabion_api::DESCRIPTORS;
use gabion_api::v1::cluster_server::ClusterServer;
use gabion_api::v1::io_server::IoServer;
use gabion_api::v1::volumes_server::VolumesServer;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// A client whose machine is gone without a word is noticed after two of these.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// One message of a guest, with its 4 MiB. Units: bytes.
const IO_MESSAGE_BYTES_MAX: usize = 5 << 20;
/// What a client may send before it is read. Units: bytes.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Serves until it is dropped. Errors: the listener broke.
pub async fn serve(
    listener: TcpListener,
    context: Arc<Context>,
    answerer: Answerer,
    state: watch::Receiver<Arc<Published>>,
) -> Result<(), tonic::transport::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let ready = state.borrow().stats.ready;
    set_health(&reporter, ready).await;
    tokio::spawn(report_health(reporter, state, ready));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    let old_reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    let internal = InternalService::server(
        Arc::clone(&context.peers),
        answerer,
        Arc::clone(&context.store),
        Arc::clone(&context.local),
    );
    let io = IoServer::new(IoService::new(Arc::clone(&context)))
        .max_decoding_message_size(IO_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(IO_MESSAGE_BYTES_MAX);
    let incoming = TcpListenerStream::new(listener).map(|stream| {
        if let Ok(stream) = &stream {
            // Small answers must not wait for more; a socket that refuses this still works.
            let _slower = stream.set_nodelay(true);
        }
        stream
    });
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(health)
        .add_service(reflection.build_v1().expect("our own descriptors are whole"))
        .add_service(old_reflection.build_v1alpha().expect("our own descriptors are whole"))
        .add_service(VolumesServer::new(VolumesService::new(Arc::clone(&context))))
        .add_service(ClusterServer::new(ClusterService::new(context)))
        .add_service(io)
        .add_service(internal)
        .serve_with_incoming(incoming)
        .await
}

/// As `/readyz` says it.
async fn report_health(
    reporter: HealthReporter,
    mut state: watch::Receiver<Arc<Published>>,
    mut before: bool,
) {
    while state.changed().await.is_ok() {
        let ready = state.borrow_and_update().stats.ready;
        if before != ready {
            before = ready;
            set_health(&reporter, ready).await;
        }
    }
    set_health(&reporter, false).await;
}

/// Of the services that need it, and of the node as a whole, whose name is empty.
async fn set_health(reporter: &HealthReporter, ready: bool) {
    type Guests = IoServer<IoService>;
    type Operators = VolumesServer<VolumesService>;
    type Watchers = ClusterServer<ClusterService>;
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    reporter.set_service_status("", status).await;
    // What a cluster looks like is told also where nothing can be served.
    reporter.set_serving::<Watchers>().await;
    if ready {
        reporter.set_serving::<Guests>().await;
        reporter.set_serving::<Operators>().await;
    } else {
        reporter.set_not_serving::<Guests>().await;
        reporter.set_not_serving::<Operators>().await;
    }
}
