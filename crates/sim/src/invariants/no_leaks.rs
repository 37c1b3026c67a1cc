//! No slot and no buffer leaks: when all is quiet, each slot that is taken is named by the map or
//! holds metadata, and no node holds a request. Source: DESIGN 5, 7.

use super::place::Place;
use crate::oracle::Broken;
use gabion_store::SlotAccount;

/// Errors: slots that nothing names, or requests that nobody waits for.
pub fn check(places: &[Place<'_>], held_requests: usize) -> Result<(), Broken> {
    let account = |place: &Place<'_>| {
        let store = place.store.filter(|store| store.is_serving())?;
        Some((store.slot_account(&mut place.peek())?, place.disk.has_lost_map()))
    };
    let accounts = places.iter().filter_map(account);
    for (number, (account, lost_map)) in accounts.enumerate() {
        check_account(account, lost_map)
            .map_err(|text| broken(format!("disk {number}: {text}")))?;
    }
    if held_requests > 0 {
        return Err(broken(format!("{held_requests} requests are held, and no guest waits")));
    }
    Ok(())
}

/// What a damaged page of the map named comes back at a start.
fn check_account(account: SlotAccount, lost_map: bool) -> Result<(), String> {
    if account.named_free > 0 {
        return Err(format!("{} slots with data count as free: {account:?}", account.named_free));
    }
    match account.leaked() {
        0 => Ok(()),
        _ if lost_map => Ok(()),
        leaked => Err(format!("{leaked} slots leaked: {account:?}")),
    }
}

fn broken(text: String) -> Broken {
    Broken { promise: "no-leaks", text }
}
