//! What is well formed on the outside and nonsense within, on the ports of peers and of gRPC.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use bytes::{Buf, BufMut, Bytes, BytesMut};
use gabion::writer::Writer;
use gabion_api::v1;
use gabion_tests::Cluster;
use gabion_types::{ClusterId, Incarnation, NodeId, Prng};
use gabion_wire::{
    AUX_BYTES_MAX, Body, Header, Hello, Kind, LinkClass, LinkMessage, Message, PAYLOAD_BYTES_MAX,
    PROTOCOL, RequestId, encode,
};
use prost::Message as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// A call or a stream that is not over by then hangs.
const MOST: Duration = Duration::from_secs(20);

/// Guests go on as if nothing was, on one connection; every node serves, and none panicked.
fn nobody_is_harmed(cluster: &Cluster, writer: Writer) {
    assert!(!writer.ended());
    let left = writer.stop();
    assert_eq!(left.wrong, None);
    assert!(left.progress.failed.is_empty(), "{:?}", left.progress.failed);
    assert_eq!(left.progress.connections, 1, "{:?}", left.progress.last_break);
    for node in cluster.local.ids() {
        assert!(cluster.local.ready(node), "node {node}");
        assert!(!cluster.log(node).contains("panicked"), "node {node}");
    }
    cluster.wait_healthy("vm1");
}

fn noise(chance: &mut Prng, most: u64) -> Vec<u8> {
    let length = usize::try_from(chance.below(most + 1)).unwrap();
    (0..length).map(|_| chance.next_u64().to_le_bytes()[0]).collect()
}

fn drawn(chance: &mut Prng) -> u32 {
    u32::from_le_bytes(chance.next_u64().to_le_bytes()[..4].try_into().unwrap())
}

/// A header whose checksum is right, over fields of any value.
fn header(chance: &mut Prng, kind: Kind, aux_len: u32, payload_len: u32) -> Vec<u8> {
    let small = |chance: &mut Prng| if chance.below(2) == 0 { 1 } else { drawn(chance) };
    let header = Header {
        kind,
        aux_len,
        request: chance.next_u64(),
        volume: small(chance),
        segment: small(chance),
        disk: small(chance),
        block: small(chance),
        owner_epoch: chance.next_u64(),
        version_epoch: chance.next_u64(),
        version_seq: chance.next_u64(),
        payload_len,
    };
    header.encode().to_vec()
}

/// A message of any kind: its header holds, its fields have their checksum, and mean nothing; or it
/// ends early, or announces more than is allowed.
fn message(chance: &mut Prng) -> Vec<u8> {
    let all = Kind::ALL;
    let kind = all[usize::try_from(chance.below(all.len() as u64)).unwrap()];
    let mut fields = noise(chance, 300);
    if !fields.is_empty() {
        let crc = crc32fast::hash(&fields);
        fields.extend(crc.to_le_bytes());
    }
    let payload = if kind.carries_payload() { noise(chance, 9000) } else { Vec::new() };
    let aux_len = u32::try_from(fields.len()).unwrap();
    let payload_len = u32::try_from(payload.len()).unwrap();
    let mut bytes = match chance.below(8) {
        0 => header(chance, kind, AUX_BYTES_MAX + 1, 0),
        1 => header(chance, kind, u32::MAX, u32::MAX),
        2 => header(chance, kind, aux_len, PAYLOAD_BYTES_MAX + 1),
        3 => header(chance, kind, AUX_BYTES_MAX, payload_len),
        _ => header(chance, kind, aux_len, payload_len),
    };
    bytes.extend(fields);
    bytes.extend(payload);
    if chance.below(6) == 0 {
        let end = usize::try_from(chance.below(bytes.len() as u64)).unwrap();
        bytes.truncate(end);
    }
    bytes
}

/// As a peer begins; `speaker` may be one of the cluster.
fn hello(chance: &mut Prng, cluster: ClusterId) -> Vec<u8> {
    let node = |chance: &mut Prng| NodeId::new(u32::try_from(chance.below(5)).unwrap());
    let classes = [LinkClass::Control, LinkClass::Data, LinkClass::Bulk];
    let hello = Hello {
        cluster,
        node: node(chance),
        to: if chance.below(4) == 0 { node(chance) } else { NodeId::new(1) },
        incarnation: Incarnation::new(chance.next_u64()),
        class: classes[usize::try_from(chance.below(3)).unwrap()],
        protocol_min: if chance.below(4) == 0 { 7 } else { PROTOCOL },
        protocol_max: if chance.below(4) == 0 { 0 } else { 9 },
        nonce: [drawn(chance).to_le_bytes()[0]; 16],
    };
    let body = Body::Link(LinkMessage::Hello(hello));
    encode(&Message { request: RequestId(0), body }).unwrap().head.to_vec()
}

// promise: bounded
#[test]
fn well_formed_nonsense_from_peers_harms_nobody() {
    let cluster = Cluster::start();
    cluster.create("vm1", 64);
    let writer = Writer::start(cluster.writer_plan("vm1", 64, 1));
    let file = cluster.local.dir.node_file(1).unwrap();
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(file.cluster.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    }
    let mut chance = Prng::new(7);
    let mut answered = 0;
    for round in 0..1000u32 {
        let mut socket = TcpStream::connect(&file.listen.peer).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        if round % 4 > 0 {
            // The node may hang up at any byte.
            drop(socket.write_all(&hello(&mut chance, ClusterId::new(id))));
            if round % 8 == 1 && socket.read(&mut [0; 64]).is_ok_and(|bytes| bytes > 0) {
                answered += 1;
            }
        }
        let mut bytes = Vec::new();
        if round % 4 > 1 {
            // A proof of the right shape that proves nothing.
            let mac = [drawn(&mut chance).to_le_bytes()[0]; 32];
            let body = Body::Link(LinkMessage::Proof { mac });
            bytes.extend(&*encode(&Message { request: RequestId(0), body }).unwrap().head);
        }
        for _ in 0..chance.below(3) + 1 {
            bytes.extend(message(&mut chance));
        }
        drop(socket.write_all(&bytes));
        if round % 10 == 0 {
            socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            drop(socket.read(&mut [0; 512]));
        }
    }
    assert!(answered > 30, "only {answered} got as far as an answer to their Hello");
    nobody_is_harmed(&cluster, writer);
}

/// Bytes as they are, within gRPC's frames.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

async fn call(channel: &Channel, path: &'static str, message: Bytes) -> Result<Bytes, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    let answer = client.unary(Request::new(message), path, Raw);
    let answer = tokio::time::timeout(MOST, answer).await;
    Ok(answer.unwrap_or_else(|_| panic!("it hangs"))?.into_inner())
}

/// The messages of one stream of `Io`, then the end; how it ended, and how many answers came.
async fn stream(channel: &Channel, messages: Vec<Bytes>) -> (usize, Option<Status>) {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/gabion.v1.Io/Attach");
    let requests = Request::new(tokio_stream::iter(messages));
    let answers = async {
        let mut answers = match client.streaming(requests, path, Raw).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return (0, Some(status)),
        };
        let mut count = 0;
        loop {
            match answers.message().await {
                Ok(Some(_)) => count += 1,
                Ok(None) => return (count, None),
                Err(status) => return (count, Some(status)),
            }
        }
    };
    tokio::time::timeout(MOST, answers).await.unwrap_or_else(|_| panic!("it hangs"))
}

/// Cut short, changed in places, or with a length that nothing has.
fn spoilt(chance: &mut Prng, whole: &[u8]) -> Bytes {
    let mut bytes = BytesMut::from(whole);
    match chance.below(4) {
        0 if !bytes.is_empty() => {
            bytes.truncate(usize::try_from(chance.below(bytes.len() as u64)).unwrap());
        }
        1 => bytes.put_slice(&[0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]),
        2 => bytes.put_slice(&noise(chance, 200)),
        _ => {
            for _ in 0..chance.below(4) + 1 {
                if !bytes.is_empty() {
                    let at = usize::try_from(chance.below(bytes.len() as u64)).unwrap();
                    bytes[at] = chance.next_u64().to_le_bytes()[0];
                }
            }
        }
    }
    bytes.freeze()
}

fn io(id: u64, op: v1::io_request::Op) -> Bytes {
    v1::IoRequest { id, op: Some(op) }.encode_to_vec().into()
}

fn open() -> Bytes {
    io(0, v1::io_request::Op::Open(v1::OpenVolume { volume: "vm2".to_owned() }))
}

// promise: bounded
#[test]
fn well_framed_nonsense_over_grpc_harms_nobody() {
    let cluster = Cluster::start();
    cluster.create("vm1", 64);
    // Its guests talk nonsense; what becomes of its data is theirs.
    cluster.create("vm2", 32);
    let writer = Writer::start(cluster.writer_plan("vm1", 64, 1));
    let api = cluster.local.dir.entry(2).unwrap().api.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = Channel::from_shared(format!("http://{api}")).unwrap().connect_lazy();
        let mut chance = Prng::new(11);
        unary_nonsense(&channel, &mut chance).await;
        stream_nonsense(&channel, &mut chance).await;
    });
    let listed = cluster.json(&["volume", "list"]);
    let names: Vec<&str> =
        listed["volumes"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"vm1"), "{names:?}");
    nobody_is_harmed(&cluster, writer);
}

async fn unary_nonsense(channel: &Channel, chance: &mut Prng) {
    // A field of the wrong type, and a string that is none: never a message.
    for bytes in [&[0x08, 0x01][..], &[0x0A, 0x02, 0xFF, 0xFE], &[0x0A, 0xFF], &[0xFF; 20]] {
        let refused = call(channel, "/gabion.v1.Volumes/Create", Bytes::copy_from_slice(bytes));
        let status = refused.await.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{bytes:?}: {status}");
    }
    let create = v1::CreateVolumeRequest {
        name: "n".repeat(300),
        size_bytes: u64::MAX,
        rf: u32::MAX,
        hold_ms: u64::MAX,
        attach: 77,
    };
    let status = call(channel, "/gabion.v1.Volumes/Create", create.encode_to_vec().into()).await;
    assert_eq!(status.unwrap_err().code(), Code::InvalidArgument);
    let paths = [
        "/gabion.v1.Volumes/Create",
        "/gabion.v1.Volumes/Get",
        "/gabion.v1.Volumes/List",
        "/gabion.v1.Volumes/Resize",
        "/gabion.v1.Volumes/Move",
        "/gabion.v1.Volumes/Locate",
        "/gabion.v1.Cluster/Status",
        "/gabion.v1.Cluster/SetSetting",
        "/gabion.v1.Internal/Append",
        "/gabion.v1.Internal/Vote",
        "/gabion.v1.Internal/Propose",
        "/gabion.v1.Volumes/NoSuchCall",
    ];
    let whole = v1::LocateRequest { name: "nobody".to_owned(), offset: u64::MAX }.encode_to_vec();
    for round in 0..300usize {
        let path = paths[round % paths.len()];
        let answer = call(channel, path, spoilt(chance, &whole)).await;
        if path.contains("Internal") {
            assert_eq!(answer.unwrap_err().code(), Code::Unauthenticated, "{path}");
        } else if path.contains("NoSuchCall") {
            assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "{path}");
        }
    }
}

async fn stream_nonsense(channel: &Channel, chance: &mut Prng) {
    use v1::io_request::Op;
    let (answers, status) = stream(channel, vec![Bytes::from_static(&[0xFF; 9])]).await;
    assert!(answers == 0 && status.is_some(), "{answers} answers, {status:?}");
    let (answers, status) = stream(channel, vec![open(), Bytes::from_static(&[0xFF; 9])]).await;
    assert!(answers == 1 && status.is_some(), "{answers} answers, {status:?}");
    let offset = u64::MAX;
    // Each of these makes no sense, and the stream of a guest that sends it is answered or ended.
    let senseless = [
        v1::IoRequest { id: 5, op: None }.encode_to_vec().into(),
        open(),
        io(5, Op::Read(v1::ReadOp { offset, length: 512 })),
        io(5, Op::Read(v1::ReadOp { offset: 0, length: u32::MAX })),
        io(5, Op::Read(v1::ReadOp { offset: 1, length: 1 })),
        io(5, Op::Write(v1::WriteOp { offset, data: Bytes::from_static(&[1; 512]) })),
        io(5, Op::Write(v1::WriteOp { offset: 0, data: Bytes::new() })),
        io(5, Op::Zero(v1::ZeroOp { offset: 0, length: u64::MAX })),
        io(5, Op::Trim(v1::TrimOp { offset, length: u64::MAX })),
    ];
    for request in senseless {
        let (answers, status) = stream(channel, vec![open(), request.clone()]).await;
        assert!(answers >= 2 || status.is_some(), "{request:?}: {answers} answers");
        let (answers, status) = stream(channel, vec![request]).await;
        assert!(answers >= 1 || status.is_some(), "without an open: {answers} answers");
    }
    let write = io(9, Op::Write(v1::WriteOp { offset: 4096, data: Bytes::from(vec![3; 4096]) }));
    for _ in 0..200 {
        let mut messages = vec![open()];
        for _ in 0..chance.below(4) + 1 {
            messages.push(spoilt(chance, &write));
        }
        let _ended = stream(channel, messages).await;
    }
    let (answers, status) = stream(channel, vec![open(), write]).await;
    assert!(answers == 2 && status.is_none(), "{answers} answers, {status:?}");
}
