//! Owners: their inputs and effects.

use super::{Event, LEASE_OWNER, MS, Owner, World};
use gabion_types::{Duration, Flaws, Instant, IoError, Limits, NodeId, SegmentSize, VolumeView};
use gabion_volume::{Effect, Input, Settings, Volume, VolumeConfig, VolumeEvent};
use std::collections::BTreeMap;

impl World {
    pub(super) fn feed(&mut self, owner: u64, input: Input) -> Result<(), String> {
        let now = self.instant();
        if self.tracing {
            let text = format!("{input:?}");
            let text: String = text.chars().take(600).collect();
            self.say(|| format!("owner {owner} <- {text}"));
        }
        let Some(state) = self.owners.get_mut(&owner) else { return Ok(()) };
        state.volume.handle(now, input);
        self.drain(owner)
    }

    pub(super) fn drain(&mut self, owner: u64) -> Result<(), String> {
        loop {
            let Some(state) = self.owners.get_mut(&owner) else { return Ok(()) };
            let Some(effect) = state.volume.next_effect() else { break };
            self.on_effect(owner, effect)?;
        }
        let now = self.now;
        let Some(state) = self.owners.get_mut(&owner) else { return Ok(()) };
        let wake = state.volume.next_deadline().map(|at| at.nanos().max(now));
        if wake != state.wake {
            state.wake = wake;
            if let Some(at) = wake {
                self.at(at - now, Event::Wake { owner, at });
            }
        }
        Ok(())
    }

    pub(super) fn on_effect(&mut self, owner: u64, effect: Effect) -> Result<(), String> {
        if self.tracing {
            let text = format!("{effect:?}");
            let text: String = text.chars().take(600).collect();
            self.say(|| format!("owner {owner} -> {text}"));
        }
        match effect {
            Effect::Ask { node, class, request, ask } => {
                self.send(owner, node, class, request, ask)
            }
            Effect::GuestDone { ticket, result } => {
                return self.on_guest_done(owner, ticket, result);
            }
            Effect::GuestLate { ticket } => {
                return self.on_guest_done(owner, ticket, Err(IoError::HeldTooLong));
            }
            Effect::GuestOver => {}
            Effect::Propose { number, change } => {
                let after = self.between(MS, 30 * MS);
                let state = self.owners.get_mut(&owner).unwrap();
                assert!(state.proposed.len() < 2, "one proposal at a time");
                state.proposed.insert(number.0, change.clone());
                self.at(after, Event::Propose { owner, number: number.0, change });
            }
            Effect::Serving => {}
            Effect::Scrubbed { ask, found } => self.on_scrubbed(ask, found)?,
            Effect::Ended => self.forget_owner(owner),
            Effect::Event(event) => match event {
                VolumeEvent::FillDone { .. } => self.done.fills += 1,
                VolumeEvent::Repaired { .. } => self.done.repairs += 1,
                VolumeEvent::MemberFailed { .. } => self.done.removals += 1,
                VolumeEvent::Combining { .. } => self.done.combines += 1,
                VolumeEvent::TookOver { .. }
                | VolumeEvent::FillStarted { .. }
                | VolumeEvent::ScrubBegan { .. }
                | VolumeEvent::Scrubbed { .. }
                | VolumeEvent::Lost { .. }
                | VolumeEvent::Unfit { .. }
                | VolumeEvent::Held { .. }
                | VolumeEvent::HoldOver { .. } => {}
            },
        }
        Ok(())
    }

    pub(super) fn forget_owner(&mut self, owner: u64) {
        self.say(|| format!("owner {owner} is gone"));
        let Some(state) = self.owners.remove(&owner) else { return };
        for request in state.tickets.into_values() {
            let gone = self.requests.get(&request).is_some_and(|request| request.once)
                || (!self.healing && self.prng.chance(1, 4));
            if gone {
                self.abandon(request);
            }
        }
        for disk in self.disks.values_mut() {
            disk.origin_gone(|origin| origin.owner == owner);
        }
    }

    pub(super) fn start_owner(&mut self, node: NodeId, view: VolumeView) -> Result<(), String> {
        self.given += 1;
        let owner = self.given;
        let life = (node, self.nodes[&node].life);
        let peers: Vec<NodeId> = self.nodes.keys().copied().filter(|peer| *peer != node).collect();
        let links: BTreeMap<NodeId, (u64, bool)> =
            peers.iter().map(|peer| (*peer, (1, self.is_cut(node, *peer)))).collect();
        let cut: Vec<NodeId> =
            links.iter().filter(|(_, (_, cut))| *cut).map(|(peer, _)| *peer).collect();
        let down = if self.prng.chance(1, 2) { cut.clone() } else { Vec::new() };
        let settings = Settings {
            fence_wait: Duration::from_millis(1000),
            slow_wait: Duration::from_secs(5),
            lag: Duration::from_millis(100),
            rebuild_wait: Duration::from_millis(self.between(500, 8000)),
            fill_bytes_in_flight: self.between(1, 8) * 4096,
            scrub_share_percent: 50,
            flaws: Flaws::NONE,
        };
        let segment = SegmentSize::new(64 << 10).unwrap();
        let limits = Limits {
            segment,
            requests_per_volume: u32::try_from(self.between(2, 64)).unwrap(),
            ..Limits::DEFAULT
        };
        let seed = self.prng.next_u64();
        let cluster_start = self.prng.chance(1, 8);
        let config = VolumeConfig { me: node, limits, settings, seed, cluster_start, down };
        let epoch = view.owner_epoch;
        let volume = Volume::new(config, view, self.instant());
        self.say(|| format!("owner {owner} begins on {node} at {epoch}"));
        let state = Owner {
            node,
            life,
            epoch,
            volume,
            wake: None,
            tickets: BTreeMap::new(),
            links,
            arrivals: BTreeMap::new(),
            proposed: BTreeMap::new(),
            releasing: false,
        };
        self.owners.insert(owner, state);
        self.done.owners += 1;
        self.latest = Some(owner);
        self.drain(owner)?;
        for peer in cut {
            let after = self.between(200 * MS, 900 * MS);
            self.at(after, Event::NodeDown { owner, node: peer, link: 1 });
        }
        // What was never answered runs first.
        let held: Vec<u64> = self.requests.keys().copied().collect();
        for request in held {
            if !self.requests[&request].once {
                self.submit(owner, request)?;
            }
        }
        self.on_renew(owner)
    }

    pub(super) fn on_renew(&mut self, owner: u64) -> Result<(), String> {
        let Some(state) = self.owners.get(&owner) else { return Ok(()) };
        let (node, life, epoch) = (state.node, state.life, state.epoch);
        self.at(500 * MS, Event::Renew { owner });
        // Renewed is the lease of this ownership: the same life may have got the volume again.
        let rightful = self.map.owner == Some(life) && self.map.view.owner_epoch == epoch;
        if self.nodes[&node].alone || !rightful {
            return Ok(());
        }
        self.renewed = self.now;
        let until = Instant::from_nanos(self.now + LEASE_OWNER);
        self.feed(owner, Input::Lease { until })
    }
}
