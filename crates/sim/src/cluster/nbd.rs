//! Guests that speak NBD: their bytes on the way to their node and back.

use super::guest::Guest;
use super::{Cluster, Event};
use crate::nbd_guest::{Carelessness, NbdGuest, Said};
use crate::net::Machine;
use crate::world::Spread;
use bytes::Bytes;
use gabion_node::{GuestId, Input, OpenError, OpenedVolume};
use gabion_types::GuestData;

/// From a guest's socket to its node.
const WAY: Spread = Spread::new(2, 100);

impl Cluster {
    pub(super) fn nbd_open(
        &mut self,
        (machine, id): (Machine, GuestId),
        guest: usize,
        nbd: NbdGuest,
    ) {
        self.guests[guest].nbd = Some(nbd);
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

    pub(super) fn count_careless(&mut self, careless: Option<Carelessness>) {
        match careless {
            // It is counted when it is answered.
            Some(Carelessness::Aside) | None => {}
            Some(Carelessness::Nonsense) => self.count("nbd-nonsense"),
            Some(Carelessness::GoodBye) => self.count("nbd-good-bye"),
        }
    }

    pub(super) fn on_nbd_sent(&mut self, machine: Machine, id: GuestId, pieces: &[Bytes]) {
        let Some(guest) = self.nbd_guest(machine, id) else { return };
        let volume = guest.plan.volume;
        let Some(nbd) = guest.nbd.as_mut() else { return };
        let said = nbd.receive(pieces);
        let chunks = nbd.take_chunks();
        *self.counts.entry("nbd-chunks").or_default() += chunks;
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
                Said::Listed { names } => self.on_nbd_listed(&names),
                Said::Described { size_bytes } => self.on_nbd_described(volume, size_bytes),
                Said::Refused => self.count("nbd-refused"),
                Said::Done { tag, result } => {
                    if let Ok(GuestData::Status(_)) = result {
                        self.count("nbd-status");
                    }
                    self.on_guest_done(machine, id, tag, result);
                }
            }
        }
    }

    /// A node may not have heard of all volumes; but of no other ones.
    fn on_nbd_listed(&mut self, names: &[String]) {
        self.count("nbd-listed");
        let known = |name: &String| self.swarm.volumes.iter().any(|volume| volume.name == *name);
        if let Some(name) = names.iter().find(|name| !known(name)) {
            self.break_promise("nbd", format!("it lists {name}, which nobody made"));
        }
    }

    fn on_nbd_described(&mut self, volume: usize, size_bytes: u64) {
        self.count("nbd-described");
        let plan = &self.swarm.volumes[volume];
        let entry = self.map.volume_by_name(&plan.name);
        let most = entry.map_or(u64::MAX, |entry| entry.spec.size_bytes);
        if !(plan.size_bytes..=most).contains(&size_bytes) {
            let text = format!("{} is described as {size_bytes} bytes", plan.name);
            self.break_promise("volume-size", text);
        }
    }

    fn nbd_gives_up(&mut self, machine: Machine, id: GuestId) {
        if let Some(guest) = self.machines[machine].guests.get(&id).copied() {
            self.hang_up(guest);
        }
    }
}
