//! Guests that speak NBD: their bytes on the way to their node and back.

use super::guest::Guest;
use super::{Cluster, Event};
use crate::nbd_guest::{NbdGuest, Said};
use crate::net::Machine;
use crate::world::Spread;
use bytes::Bytes;
use gabion_node::{GuestId, Input, OpenError, OpenedVolume};

/// From a guest's socket to its node.
const WAY: Spread = Spread::new(2, 100);

impl Cluster {
    pub(super) fn nbd_open(&mut self, machine: Machine, id: GuestId, guest: usize, name: String) {
        self.guests[guest].nbd = Some(NbdGuest::new(name));
        self.feed(machine, Input::NbdAccepted { guest: id });
    }

    fn nbd_guest(&mut self, machine: Machine, id: GuestId) -> Option<&mut Guest> {
        let guest = self.machines[machine].guests.get(&id)?;
        self.guests.get_mut(*guest)
    }

    /// The node reads so many bytes next.
    pub(super) fn on_nbd_want(&mut self, machine: Machine, id: GuestId, bytes: usize) {
        if let Some(nbd) = self.nbd_guest(machine, id).and_then(|guest| guest.nbd.as_mut()) {
            nbd.want(bytes);
            self.flow_soon(machine, id);
        }
    }

    pub(super) fn flow_soon(&mut self, machine: Machine, guest: GuestId) {
        let wait = WAY.draw(&mut self.prng);
        self.queue.after(wait, Event::Flow { machine, guest });
    }

    /// Bytes come in at the node, if all that it reads is there.
    pub(super) fn flow(&mut self, machine: Machine, guest: GuestId) {
        let nbd = self.nbd_guest(machine, guest).and_then(|one| one.nbd.as_mut());
        if let Some(bytes) = nbd.and_then(NbdGuest::take) {
            self.feed(machine, Input::NbdBytes { guest, bytes });
        }
    }

    pub(super) fn on_nbd_sent(&mut self, machine: Machine, id: GuestId, pieces: &[Bytes]) {
        let Some(guest) = self.nbd_guest(machine, id) else { return };
        let volume = guest.plan.volume;
        let Some(said) = guest.nbd.as_mut().map(|nbd| nbd.receive(pieces)) else { return };
        let said = match said {
            Ok(said) => said,
            Err(error) => return self.break_promise("nbd", error.to_string()),
        };
        // The first answer makes it send what it wants.
        self.flow_soon(machine, id);
        for said in said {
            match said {
                Said::Opened { size_bytes } => {
                    let name = self.swarm.volumes[volume].name.clone();
                    let entry = self.map.volume_by_name(&name).map(|entry| entry.id);
                    let opened = entry.map(|volume| OpenedVolume { volume, name, size_bytes });
                    self.on_guest_opened(machine, id, opened.ok_or(OpenError::NotFound));
                }
                // It asks elsewhere.
                Said::NotOpened => self.nbd_gives_up(machine, id),
                Said::Done { tag, result } => self.on_guest_done(machine, id, tag, result),
            }
        }
    }

    fn nbd_gives_up(&mut self, machine: Machine, id: GuestId) {
        if let Some(guest) = self.machines[machine].guests.get(&id).copied() {
            self.hang_up(guest);
        }
    }
}
