//! No slot and no buffer leaks: when all is quiet, each slot that is taken is named by the map or
//! holds metadata, and no node holds a request. When guests are gone too, nothing that passes takes
//! any of what is bounded. Source: DESIGN 5, 6, 7 ("no held request, no leaked slot or buffer").

use super::place::Place;
use crate::oracle::Broken;
use gabion_store::SlotAccount;
use gabion_types::{Load, NodeId};

/// Errors: slots that nothing names, or requests that nobody waits for.
pub fn check(places: &[Place<'_>], held_requests: usize) -> Result<(), Broken> {
    let account = |place: &Place<'_>| {
        let store = place.store.filter(|store| store.is_serving())?;
        store.slot_account(&mut place.peek())
    };
    let accounts = places.iter().filter_map(account);
    for (number, account) in accounts.enumerate() {
        check_account(account).map_err(|text| broken(format!("disk {number}: {text}")))?;
    }
    if held_requests > 0 {
        return Err(broken(format!("{held_requests} requests are held, and no guest waits")));
    }
    Ok(())
}

/// Of a node without guests. Errors: something takes room, and nothing is under way.
pub fn check_empty(node: NodeId, loads: &[Load], guest_bytes: u64) -> Result<(), Broken> {
    if guest_bytes > 0 {
        return Err(broken(format!("{node} holds {guest_bytes} bytes of guests that are gone")));
    }
    match loads.iter().find(|load| !load.lasts && load.used > 0) {
        Some(Load { what, used, .. }) => {
            Err(broken(format!("{node} without guests: {what}: {used}")))
        }
        None => Ok(()),
    }
}

fn check_account(account: SlotAccount) -> Result<(), String> {
    if account.named_free > 0 {
        return Err(format!("{} slots with data count as free: {account:?}", account.named_free));
    }
    match account.leaked() {
        0 => Ok(()),
        _ if account.page_lost => Ok(()),
        leaked => Err(format!("{leaked} slots leaked: {account:?}")),
    }
}

fn broken(text: String) -> Broken {
    Broken { promise: "no-leaks", text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_gone_with_the_guests() {
        let check = |used, bytes| {
            let loads = [Load::new("requests", used, 8), Load::new("pages", 3, 8).that_lasts()];
            check_empty(NodeId::new(1), &loads, bytes)
        };
        assert_eq!(check(0, 0), Ok(()));
        assert!(check(1, 0).is_err());
        assert!(check(0, 1).is_err());
    }
}
