//! Tokens that let a new node in. A member makes one from the cluster's secret alone; any member knows
//! it again by that, and the map knows which were used.
//!
//! Shape: `gabion-join-1.`, token, `.`, expires, `.`, key; 16, 16 and 32 hex digits. The key is an HMAC by
//! the secret over the other two. It is never sent: the new node proves by it what it asks for, the
//! member proves its answer, and the secret in that is hidden by it.

use crate::control::proof::{hex, unhex};
use gabion_api::v1::{JoinRequest, JoinResponse};
pub use gabion_cluster::Ticket;
use gabion_types::ClusterId;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;
use std::str::FromStr;

const HEAD: &str = "gabion-join-1";
const KEY_BYTES: usize = 16;

/// Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub ticket: Ticket,
    key: [u8; KEY_BYTES],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "that is no token: one begins with `gabion-join-1.` and has 64 hex digits and two dots more; copy it \
     whole, as `gabion cluster token` has printed it on a member"
)]
pub struct NotAToken;

impl JoinToken {
    /// `token` is drawn at random.
    pub fn make(secret: &[u8; 32], cluster: ClusterId, ticket: Ticket) -> Self {
        let mut mac = mac_by(secret, b"gabion join token 1");
        mac.update(&cluster.bytes());
        mac.update(&ticket.token.to_le_bytes());
        mac.update(&ticket.expires_ms.to_le_bytes());
        let tag: [u8; 32] = mac.finalize().into_bytes().into();
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(&tag[..KEY_BYTES]);
        Self { ticket, key }
    }

    /// The request with its proof.
    pub fn prove_request(&self, mut request: JoinRequest) -> JoinRequest {
        request.proof = self.request_mac(&request).finalize().into_bytes().to_vec().into();
        request
    }

    pub fn is_request(&self, request: &JoinRequest) -> bool {
        self.request_mac(request).verify_slice(&request.proof).is_ok()
    }

    /// The answer with the cluster's secret in it, hidden, and its proof. `nonce` is drawn at random.
    pub fn seal(
        &self,
        mut answer: JoinResponse,
        secret: &[u8; 32],
        nonce: [u8; 16],
    ) -> JoinResponse {
        answer.nonce = nonce.to_vec().into();
        answer.sealed_secret = self.hide(&nonce, secret).to_vec().into();
        answer.proof = self.answer_mac(&answer).finalize().into_bytes().to_vec().into();
        answer
    }

    /// The cluster's secret. None: who answered does not know it.
    pub fn open(&self, answer: &JoinResponse) -> Option<[u8; 32]> {
        self.answer_mac(answer).verify_slice(&answer.proof).ok()?;
        let sealed = answer.sealed_secret.as_ref().try_into().ok()?;
        Some(self.hide(&answer.nonce, sealed))
    }

    fn request_mac(&self, request: &JoinRequest) -> Hmac<Sha256> {
        let mut mac = mac_by(&self.key, b"gabion join request 1");
        mac.update(&self.ticket.token.to_le_bytes());
        mac.update(&self.ticket.expires_ms.to_le_bytes());
        let JoinRequest { name, peer, api, nbd, http, zone, .. } = request;
        for text in [name, peer, api, nbd, http, zone] {
            update_with(&mut mac, text.as_bytes());
        }
        mac
    }

    fn answer_mac(&self, answer: &JoinResponse) -> Hmac<Sha256> {
        let mut mac = mac_by(&self.key, b"gabion join answer 1");
        update_with(&mut mac, answer.cluster_id.as_bytes());
        mac.update(&answer.node.to_le_bytes());
        mac.update(&answer.segment_bytes.to_le_bytes());
        for voter in &answer.voters {
            mac.update(&voter.node.to_le_bytes());
            for text in [&voter.name, &voter.api, &voter.peer, &voter.nbd, &voter.http] {
                update_with(&mut mac, text.as_bytes());
            }
        }
        update_with(&mut mac, &answer.nonce);
        update_with(&mut mac, &answer.sealed_secret);
        mac
    }

    /// There and back: 32 bytes that look like chance, over those of the secret.
    fn hide(&self, nonce: &[u8], secret: &[u8; 32]) -> [u8; 32] {
        let mut mac = mac_by(&self.key, b"gabion join secret 1");
        update_with(&mut mac, nonce);
        let mut bytes: [u8; 32] = mac.finalize().into_bytes().into();
        bytes.iter_mut().zip(secret).for_each(|(byte, of)| *byte ^= of);
        bytes
    }
}

/// Source: HMAC-SHA256, RFC 2104.
fn mac_by(key: &[u8], what: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    update_with(&mut mac, what);
    mac
}

/// With its length, so that no two lists of texts look the same.
fn update_with(mac: &mut Hmac<Sha256>, bytes: &[u8]) {
    mac.update(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
    mac.update(bytes);
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ticket { token, expires_ms } = self.ticket;
        write!(f, "{HEAD}.{token:016x}.{expires_ms:016x}.{}", hex(&self.key))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = NotAToken;

    fn from_str(typed: &str) -> Result<Self, NotAToken> {
        let parts: Vec<&str> = typed.trim().split('.').collect();
        let [HEAD, token, expires, key] = parts[..] else { return Err(NotAToken) };
        let number = |digits: &str| unhex(digits.as_bytes()).map(u64::from_be_bytes);
        let token = number(token).ok_or(NotAToken)?;
        let expires_ms = number(expires).ok_or(NotAToken)?;
        let key = unhex(key.as_bytes()).ok_or(NotAToken)?;
        Ok(Self { ticket: Ticket { token, expires_ms }, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [7; 32];

    fn token(secret: &[u8; 32], expires_ms: u64) -> JoinToken {
        let ticket = Ticket { token: 0x1234, expires_ms };
        JoinToken::make(secret, ClusterId::new([3; 16]), ticket)
    }

    fn request() -> JoinRequest {
        let text = |text: &str| text.to_owned();
        JoinRequest {
            name: text("d"),
            peer: text("h:1"),
            api: text("h:2"),
            ..JoinRequest::default()
        }
    }

    #[test]
    fn a_token_is_typed_as_it_was_printed() {
        let made = token(&SECRET, 99);
        let typed = made.to_string();
        assert_eq!(typed.parse(), Ok(made.clone()));
        assert_eq!(format!(" {typed}\n").parse(), Ok(made.clone()));
        let shown = format!("{made:?}");
        assert!(!shown.contains(typed.rsplit('.').next().unwrap()), "{shown}");
        let cut = &typed[..typed.len() - 1];
        for wrong in ["", "x", cut, &typed.replace("join-1", "join-2"), &format!("{typed}.00")] {
            assert_eq!(wrong.parse::<JoinToken>(), Err(NotAToken), "{wrong}");
        }
    }

    #[test]
    fn a_proof_is_of_one_request_by_one_token() {
        let made = token(&SECRET, 99);
        let proven = made.prove_request(request());
        assert!(made.is_request(&proven));
        assert!(!token(&[8; 32], 99).is_request(&proven), "another cluster");
        assert!(!token(&SECRET, 100).is_request(&proven), "good for longer");
        let elsewhere = JoinRequest { peer: "evil:1".to_owned(), ..proven.clone() };
        assert!(!made.is_request(&elsewhere));
        let shifted = JoinRequest { name: "dh:1".to_owned(), peer: String::new(), ..proven };
        assert!(!made.is_request(&shifted));
    }

    #[test]
    fn the_secret_is_told_to_who_has_the_token_only() {
        let made = token(&SECRET, 99);
        let told = made.seal(JoinResponse { node: 4, ..JoinResponse::default() }, &SECRET, [5; 16]);
        assert_eq!(made.open(&told), Some(SECRET));
        assert_ne!(told.sealed_secret, SECRET.as_slice());
        assert_eq!(token(&[8; 32], 99).open(&told), None);
        assert_eq!(made.open(&JoinResponse { node: 5, ..told.clone() }), None);
        let cut = JoinResponse { sealed_secret: vec![1, 2].into(), ..told };
        assert_eq!(made.open(&cut), None);
    }
}
