//! Typed errors on the wire: a gRPC status that carries an `ErrorDetail`.

use crate::v1::{ErrorCode, ErrorDetail};
use bytes::Bytes;
use prost::Message;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// The type of the one detail in the `google.rpc.Status`.
pub const DETAIL_TYPE_URL: &str = "type.googleapis.com/gabion.v1.ErrorDetail";
/// The trailer that carries the plain `ErrorDetail`.
pub const DETAIL_KEY: &str = "gabion-error-bin";

/// `google.rpc.Status`, of which only this much is needed.
/// Source: googleapis, google/rpc/status.proto.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

impl ErrorDetail {
    /// `what` happened, to what; what to do `next` (may be empty).
    pub fn of(code: ErrorCode, what: impl Into<String>, next: impl Into<String>) -> Self {
        let retry = grpc_code(code) == Code::Unavailable;
        let (what, next) = (what.into(), next.into());
        Self { code: code.into(), what, next, subject: String::new(), retry }
    }

    #[must_use]
    pub fn about(mut self, subject: impl Into<String>) -> Self {
        self.subject = subject.into();
        self
    }

    /// The whole of it as one sentence for people.
    pub fn text(&self) -> String {
        if self.next.is_empty() {
            return self.what.clone();
        }
        format!("{}; {}", self.what, self.next)
    }

    /// As the failure of a call.
    pub fn into_status(self) -> Status {
        let code = grpc_code(self.code());
        let text = self.text();
        let detail = self.encode_to_vec();
        let any = prost_types::Any { type_url: DETAIL_TYPE_URL.to_owned(), value: detail.clone() };
        let status = RpcStatus { code: code as i32, message: text.clone(), details: vec![any] };
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(DETAIL_KEY, MetadataValue::from_bytes(&detail));
        Status::with_details_and_metadata(code, text, status.encode_to_vec().into(), metadata)
    }

    /// What a failed call carries; made up from its status where it carries nothing (it never
    /// reached a node, or did not come from one).
    pub fn from_status(status: &Status) -> Self {
        plain(status).or_else(|| wrapped(status.details())).unwrap_or_else(|| made_up(status))
    }
}

fn plain(status: &Status) -> Option<ErrorDetail> {
    let value = status.metadata().get_bin(DETAIL_KEY)?;
    ErrorDetail::decode(value.to_bytes().ok()?).ok()
}

fn wrapped(details: &[u8]) -> Option<ErrorDetail> {
    let status = RpcStatus::decode(details).ok()?;
    let any = status.details.into_iter().find(|any| any.type_url == DETAIL_TYPE_URL)?;
    ErrorDetail::decode(Bytes::from(any.value)).ok()
}

fn made_up(status: &Status) -> ErrorDetail {
    let code = match status.code() {
        Code::Unavailable => ErrorCode::Unreachable,
        Code::DeadlineExceeded => ErrorCode::TimedOut,
        Code::Unauthenticated | Code::PermissionDenied => ErrorCode::WrongSecret,
        Code::InvalidArgument => ErrorCode::BadRequest,
        Code::OutOfRange => ErrorCode::OutOfRange,
        Code::Unimplemented => ErrorCode::NotBuilt,
        Code::ResourceExhausted => ErrorCode::TooMany,
        Code::FailedPrecondition | Code::Aborted => ErrorCode::Refused,
        Code::NotFound => ErrorCode::NoVolume,
        Code::AlreadyExists => ErrorCode::NameTaken,
        Code::DataLoss => ErrorCode::Lost,
        Code::Ok | Code::Cancelled | Code::Unknown | Code::Internal => ErrorCode::Internal,
    };
    ErrorDetail::of(code, status.message(), "")
}

/// The gRPC code that goes with ours.
pub fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::BadName
        | ErrorCode::BadSize
        | ErrorCode::BadRf
        | ErrorCode::BadValue
        | ErrorCode::BadRequest
        | ErrorCode::Misaligned
        | ErrorCode::TooLarge => Code::InvalidArgument,
        ErrorCode::OutOfRange => Code::OutOfRange,
        ErrorCode::NoVolume
        | ErrorCode::NoNode
        | ErrorCode::NoDisk
        | ErrorCode::NoClient
        | ErrorCode::NoSetting
        | ErrorCode::Gone => Code::NotFound,
        ErrorCode::NameTaken => Code::AlreadyExists,
        ErrorCode::Shrinks
        | ErrorCode::Attached
        | ErrorCode::TooFewNodes
        | ErrorCode::TokenVoid
        | ErrorCode::Refused => Code::FailedPrecondition,
        ErrorCode::NoRoom | ErrorCode::NoSpace | ErrorCode::TooMany => Code::ResourceExhausted,
        ErrorCode::NotLeader
        | ErrorCode::NoMajority
        | ErrorCode::Stopping
        | ErrorCode::NotReady
        | ErrorCode::Unreachable => Code::Unavailable,
        ErrorCode::TimedOut | ErrorCode::HeldTooLong => Code::DeadlineExceeded,
        ErrorCode::Lost => Code::DataLoss,
        ErrorCode::WrongSecret => Code::Unauthenticated,
        ErrorCode::Internal | ErrorCode::Unspecified => Code::Internal,
        ErrorCode::NotBuilt => Code::Unimplemented,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_survives_either_trailer() {
        let detail = ErrorDetail::of(ErrorCode::NoVolume, "there is no volume vm1", "make it");
        let detail = detail.about("vm1");
        let status = detail.clone().into_status();
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), "there is no volume vm1; make it");
        assert_eq!(ErrorDetail::from_status(&status), detail);
        assert_eq!(wrapped(status.details()), Some(detail));
    }

    #[test]
    fn a_status_of_another_server_gets_a_detail() {
        let detail = ErrorDetail::from_status(&Status::unavailable("no connection"));
        assert_eq!(detail.code(), ErrorCode::Unreachable);
        assert!(detail.retry);
        assert_eq!(detail.text(), "no connection");
    }
}
