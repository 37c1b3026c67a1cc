//! Proof that both ends of a link know the cluster's secret.

use gabion_types::NodeId;
use gabion_wire::LinkClass;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What is proven over. Source: HMAC-SHA256, RFC 2104.
#[derive(Clone, Copy, Debug)]
pub struct Proof {
    pub dialler: [u8; 16],
    pub acceptor: [u8; 16],
    /// Who proves.
    pub speaker: NodeId,
    pub class: LinkClass,
}

pub fn proof(secret: &[u8; 32], parts: &Proof) -> [u8; 32] {
    mac(secret, parts).finalize().into_bytes().into()
}

/// In constant time.
pub fn verify(secret: &[u8; 32], parts: &Proof, tag: &[u8; 32]) -> bool {
    mac(secret, parts).verify_slice(tag).is_ok()
}

fn mac(secret: &[u8; 32], parts: &Proof) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(b"gabion peer link 1");
    mac.update(&parts.dialler);
    mac.update(&parts.acceptor);
    mac.update(&parts.speaker.get().to_le_bytes());
    mac.update(&[match parts.class {
        LinkClass::Control => 0,
        LinkClass::Data => 1,
        LinkClass::Bulk => 2,
    }]);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_own_parts_only() {
        let parts = Proof {
            dialler: [1; 16],
            acceptor: [2; 16],
            speaker: NodeId::new(7),
            class: LinkClass::Data,
        };
        let tag = proof(&[9; 32], &parts);
        assert!(verify(&[9; 32], &parts, &tag));
        assert!(!verify(&[8; 32], &parts, &tag));
        assert!(!verify(&[9; 32], &Proof { speaker: NodeId::new(6), ..parts }, &tag));
        assert!(!verify(&[9; 32], &Proof { class: LinkClass::Bulk, ..parts }, &tag));
        assert!(!verify(&[9; 32], &Proof { acceptor: [3; 16], ..parts }, &tag));
    }
}
