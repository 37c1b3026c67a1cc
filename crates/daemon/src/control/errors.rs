//! Our errors as what goes over the wire.

use gabion_api::v1::{ErrorCode, ErrorDetail};
use gabion_cluster::AdminError;
use gabion_node::OpenError;
use gabion_types::{IoError, RefusedChange};

/// `what; what to do next`: the text is written like that where an error is defined.
fn split(code: ErrorCode, text: &str, subject: &str) -> ErrorDetail {
    let (what, next) = text.split_once("; ").unwrap_or((text, ""));
    let named = subject.is_empty() || what.contains(subject);
    let what = if named { what.to_owned() } else { format!("{subject}: {what}") };
    ErrorDetail::of(code, what, next).about(subject)
}

pub fn admin_error(error: &AdminError, subject: &str) -> ErrorDetail {
    let code = match error {
        AdminError::NotLeader { .. } => ErrorCode::NotLeader,
        AdminError::BadName => ErrorCode::BadName,
        AdminError::NameTaken => ErrorCode::NameTaken,
        AdminError::NoVolume => ErrorCode::NoVolume,
        AdminError::BadSize { .. } => ErrorCode::BadSize,
        AdminError::Shrinks { .. } => ErrorCode::Shrinks,
        AdminError::TooFewNodes { .. } => ErrorCode::TooFewNodes,
        AdminError::BadRf => ErrorCode::BadRf,
        AdminError::NoRoom { .. } | AdminError::NoRoomAtEnd { .. } => ErrorCode::NoRoom,
        AdminError::Attached => ErrorCode::Attached,
        AdminError::NoSetting => ErrorCode::NoSetting,
        AdminError::BadValue { .. } => ErrorCode::BadValue,
        AdminError::NoNode => ErrorCode::NoNode,
        AdminError::NoDisk => ErrorCode::NoDisk,
        AdminError::DiskFailed
        | AdminError::NotDrained { .. }
        | AdminError::NodeLives
        | AdminError::LastCopies { .. }
        | AdminError::NothingStranded
        | AdminError::RemainsChanged
        | AdminError::NodeLeads => ErrorCode::Refused,
        AdminError::TooFewNodesLeft { .. } => ErrorCode::TooFewNodes,
        AdminError::NoRoomLeft { .. } => ErrorCode::NoRoom,
        AdminError::NoMajority => ErrorCode::NoMajority,
        AdminError::StillMaking { .. } => ErrorCode::TimedOut,
        AdminError::NotReleased => ErrorCode::Refused,
        AdminError::NodeAway { .. } => ErrorCode::Refused,
        AdminError::TokenUsed { .. } | AdminError::TokenExpired => ErrorCode::TokenVoid,
        AdminError::NodeNameTaken => ErrorCode::NameTaken,
        AdminError::TooManyNodes { .. } => ErrorCode::TooMany,
        AdminError::NodeRemoved => ErrorCode::Refused,
        AdminError::TooMany => ErrorCode::TooMany,
        AdminError::Map(refused) => refused_change(*refused),
    };
    split(code, &error.to_string(), subject)
}

fn refused_change(refused: RefusedChange) -> ErrorCode {
    match refused {
        RefusedChange::NoRoom => ErrorCode::NoRoom,
        RefusedChange::NotFound => ErrorCode::NoVolume,
        RefusedChange::NameTaken => ErrorCode::NameTaken,
        RefusedChange::Attached => ErrorCode::Attached,
        RefusedChange::OtherEpoch
        | RefusedChange::NotOwner
        | RefusedChange::LastInSync
        | RefusedChange::TooFewCopies
        | RefusedChange::NotGone
        | RefusedChange::InUse
        | RefusedChange::Removed
        | RefusedChange::Invalid
        | RefusedChange::Busy
        | RefusedChange::OtherIncarnation => ErrorCode::Refused,
    }
}

pub fn open_error(error: OpenError, volume: &str) -> ErrorDetail {
    let code = match error {
        OpenError::NotFound => ErrorCode::NoVolume,
        OpenError::NotReady => ErrorCode::NotReady,
        OpenError::NoMajority => ErrorCode::NoMajority,
        OpenError::Stopping => ErrorCode::Stopping,
        OpenError::TooMany => ErrorCode::TooMany,
        OpenError::KeptOut(_) | OpenError::Barred => ErrorCode::Attached,
    };
    split(code, &error.to_string(), volume)
}

pub fn io_error(error: IoError, volume: &str) -> ErrorDetail {
    let code = match error {
        IoError::OutOfRange => ErrorCode::OutOfRange,
        IoError::Misaligned => ErrorCode::Misaligned,
        IoError::TooLarge => ErrorCode::TooLarge,
        IoError::NoSpace => ErrorCode::NoSpace,
        IoError::Lost => ErrorCode::Lost,
        IoError::HeldTooLong => ErrorCode::HeldTooLong,
        IoError::Gone => ErrorCode::Gone,
        IoError::Stopping => ErrorCode::Stopping,
    };
    split(code, &error.to_string(), volume)
}

pub fn no_volume(name: &str) -> ErrorDetail {
    let what = format!("there is no volume {name}");
    ErrorDetail::of(ErrorCode::NoVolume, what, "see `gabion volume list`").about(name)
}

pub fn no_majority() -> ErrorDetail {
    let what = "the cluster has no leader now, as far as this node knows";
    ErrorDetail::of(ErrorCode::NoMajority, what, "try again when more nodes are up")
}
