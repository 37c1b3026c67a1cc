//! `LinkMessage` to bytes and back.

use super::{Incoming, Outgoing};
use crate::error::WireError;
use crate::header::Kind;
use crate::link::{Hello, LinkClass, LinkMessage, LinkRefusal};
use crate::message::RequestId;
use gabion_types::{ClusterId, Incarnation, NodeId};

pub(super) fn encode(request: RequestId, link: &LinkMessage) -> Outgoing {
    match link {
        LinkMessage::Hello(hello) => encode_hello(request, hello),
        LinkMessage::Proof { mac } => {
            let mut out = Outgoing::new(Kind::Proof, request);
            out.aux.bytes(mac);
            out
        }
        LinkMessage::Refused { reason } => {
            Outgoing::new(Kind::LinkRefused, request).u8(match reason {
                LinkRefusal::WrongCluster => 0,
                LinkRefusal::WrongNode => 1,
                LinkRefusal::WrongIncarnation => 2,
                LinkRefusal::NoCommonProtocol => 3,
                LinkRefusal::BadProof => 4,
                LinkRefusal::UnknownNode => 5,
            })
        }
        LinkMessage::Ping { number } => Outgoing::new(Kind::Ping, request).u64(*number),
        LinkMessage::Pong { number } => Outgoing::new(Kind::Pong, request).u64(*number),
        LinkMessage::Renewed { number } => Outgoing::new(Kind::Renewed, request).u64(*number),
        LinkMessage::Renew { incarnation, number, term } => {
            Outgoing::new(Kind::Renew, request).u64(*number).u64(incarnation.get()).u64(*term)
        }
        LinkMessage::ReleaseVolume { volume, idle } => {
            let mut out = Outgoing::new(Kind::ReleaseVolume, request);
            out.header.volume = volume.get();
            out.aux.u8(u8::from(*idle));
            out
        }
        LinkMessage::Leaving => Outgoing::new(Kind::Leaving, request),
    }
}

/// Shape: the same in every protocol version, so that a refusal can be understood.
fn encode_hello(request: RequestId, hello: &Hello) -> Outgoing {
    let mut out = Outgoing::new(Kind::Hello, request);
    out.aux.bytes(&hello.cluster.bytes());
    out.aux.u32(hello.node.get());
    out.aux.u32(hello.to.get());
    out.aux.u64(hello.incarnation.get());
    out.aux.u8(match hello.class {
        LinkClass::Control => 0,
        LinkClass::Data => 1,
        LinkClass::Bulk => 2,
    });
    out.aux.u16(hello.protocol_min);
    out.aux.u16(hello.protocol_max);
    out.aux.bytes(&hello.nonce);
    out
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds are other modules'")]
pub(super) fn decode(mut from: Incoming<'_>) -> Result<LinkMessage, WireError> {
    let link = match from.kind() {
        Kind::Hello => LinkMessage::Hello(Hello {
            cluster: ClusterId::new(from.aux.array()?),
            node: NodeId::new(from.aux.u32()?),
            to: NodeId::new(from.aux.u32()?),
            incarnation: Incarnation::new(from.aux.u64()?),
            class: match from.aux.u8()? {
                0 => LinkClass::Control,
                1 => LinkClass::Data,
                2 => LinkClass::Bulk,
                other => return Err(from.value("a link class", u64::from(other))),
            },
            protocol_min: from.aux.u16()?,
            protocol_max: from.aux.u16()?,
            nonce: from.aux.array()?,
        }),
        Kind::Proof => LinkMessage::Proof { mac: from.aux.array()? },
        Kind::LinkRefused => LinkMessage::Refused {
            reason: match from.aux.u8()? {
                0 => LinkRefusal::WrongCluster,
                1 => LinkRefusal::WrongNode,
                2 => LinkRefusal::WrongIncarnation,
                3 => LinkRefusal::NoCommonProtocol,
                4 => LinkRefusal::BadProof,
                5 => LinkRefusal::UnknownNode,
                other => return Err(from.value("a reason", u64::from(other))),
            },
        },
        Kind::Ping => LinkMessage::Ping { number: from.aux.u64()? },
        Kind::Pong => LinkMessage::Pong { number: from.aux.u64()? },
        Kind::Renewed => LinkMessage::Renewed { number: from.aux.u64()? },
        Kind::Renew => {
            let number = from.aux.u64()?;
            let incarnation = Incarnation::new(from.aux.u64()?);
            LinkMessage::Renew { incarnation, number, term: from.aux.u64()? }
        }
        Kind::ReleaseVolume => LinkMessage::ReleaseVolume {
            volume: from.volume(),
            idle: match from.aux.u8()? {
                0 => false,
                1 => true,
                other => return Err(from.value("a flag", u64::from(other))),
            },
        },
        Kind::Leaving => LinkMessage::Leaving,
        other => {
            return Err(WireError::UnknownKind { found: other.code() });
        }
    };
    from.finish()?;
    Ok(link)
}
