//! Inputs and effects of a node as one short line each, for traces.

use super::Cluster;
use super::machine::machine_of;
use super::schedule::named;
use crate::net::Machine;
use gabion_node::{Effect, Input, LinkId};
use gabion_types::GuestResult;
use gabion_wire::Answered;

/// Longer details are cut.
const DETAIL_MAX: usize = 200;

pub fn input_kind(input: &Input) -> &'static str {
    match input {
        Input::Disk { .. } => "disk done",
        Input::DiskAdded { .. } => "gets a disk",
        Input::WantPage { .. } => "wants a map page",
        Input::Connected { .. } => "connected",
        Input::LinkClosed { .. } => "link closed",
        Input::Accepted { .. } => "accepted",
        Input::Peer { .. } => "receives",
        Input::PeerBytes { .. } => "peer bytes",
        Input::LinkBacklog { .. } => "link drains",
        Input::NbdAccepted { .. } | Input::NbdBytes { .. } => "nbd",
        Input::GuestOpen { .. } => "guest opens",
        Input::Guest { .. } => "guest asks",
        Input::GuestClosed { .. } => "guest hangs up",
        Input::EvictGuest { .. } => "guest is evicted",
        Input::Committed { .. } => "hears committed",
        Input::Restored { .. } => "restored",
        Input::Leader { .. } => "hears of leader",
        Input::LeaderConfirmed { .. } => "leader confirmed",
        Input::Admin { .. } => "operator asks",
        Input::WallClock { .. } => "told the time",
        Input::TurnEnds => "turn ends",
        Input::Quiesce => "told to let go",
        Input::Stop => "told to stop",
        Input::Tick => "tick",
    }
}

pub fn effect_kind(effect: &Effect) -> &'static str {
    match effect {
        Effect::Disk { .. } => "to disk",
        Effect::Connect { .. } => "dials",
        Effect::Send { .. } => "sends",
        Effect::CloseLink { .. } => "closes link",
        Effect::NbdWant { .. } | Effect::NbdSend { .. } | Effect::NbdClose { .. } => "nbd",
        Effect::GuestOpened { .. } => "opened",
        Effect::GuestDone { .. } => "answers guest",
        Effect::GuestRoom { .. } => "tells guest of room",
        Effect::GuestEnded { .. } => "ends guest",
        Effect::Propose { .. } => "proposes",
        Effect::ConfirmLeader { .. } => "confirms leader",
        Effect::AdminDone { .. } => "operator done",
        Effect::Event(_) => "event",
        Effect::Stopped => "stopped",
    }
}

impl Cluster {
    pub(super) fn describe_input(&self, machine: Machine, input: &Input) -> String {
        let peer = |link| self.peer_of(machine, link);
        let text = match input {
            Input::Disk { disk, done } => match &done.result {
                Ok(data) if data.is_empty() => format!("disk{} #{}", disk.0, done.token.0),
                Ok(data) => format!("disk{} #{}: {} bytes", disk.0, done.token.0, data.len()),
                Err(error) => format!("disk{} #{}: {error}", disk.0, done.token.0),
            },
            Input::DiskAdded { disk } => disk.path.clone(),
            Input::WantPage { disk, .. } => format!("disk{}", disk.0),
            Input::Connected { link }
            | Input::LinkClosed { link }
            | Input::Accepted { link }
            | Input::PeerBytes { link } => format!("{} link {}", peer(*link), link.0),
            Input::LinkBacklog { link, unsent } => {
                format!("{} link {}: {unsent} bytes left", peer(*link), link.0)
            }
            Input::Peer { link, message } => format!("from {}: {message}", peer(*link)),
            Input::NbdAccepted { guest }
            | Input::NbdBytes { guest, .. }
            | Input::GuestClosed { guest }
            | Input::EvictGuest { guest } => format!("guest {}", guest.0),
            Input::GuestOpen { guest, volume } => format!("guest {} wants {volume}", guest.0),
            Input::Guest { guest, tag, op } => format!("guest {} #{tag}: {op}", guest.0),
            Input::Committed { index, command } => {
                let from = &command.from;
                format!("{index} by {} #{}: {:?}", from.node, from.number, command.change)
            }
            Input::Restored { index, .. } => format!("the map of {index}"),
            Input::Leader { term, leader } => {
                let leader = leader.map_or("nobody".into(), |node| named(machine_of(node)));
                format!("{leader} leads in term {term}")
            }
            Input::LeaderConfirmed { number, term } => format!("#{number} term {term}"),
            Input::Admin { number, request } => format!("#{number}: {request:?}"),
            Input::WallClock { unix_ms } => format!("{unix_ms} ms"),
            Input::Quiesce | Input::Stop | Input::Tick | Input::TurnEnds => String::new(),
        };
        cut(text)
    }

    pub(super) fn describe_effect(&self, machine: Machine, effect: &Effect) -> String {
        let peer = |link| self.peer_of(machine, link);
        let text = match effect {
            Effect::Disk { disk, op } => format!("disk{} #{}: {}", disk.0, op.token.0, op.kind),
            Effect::Connect { link, node, class } => {
                format!("{} link {} for {class:?}", named(machine_of(*node)), link.0)
            }
            Effect::Send { link, message } => format!("to {}: {message}", peer(*link)),
            Effect::CloseLink { link } => format!("{} link {}", peer(*link), link.0),
            Effect::NbdWant { guest, .. }
            | Effect::NbdSend { guest, .. }
            | Effect::NbdClose { guest }
            | Effect::GuestRoom { guest, .. }
            | Effect::GuestEnded { guest } => format!("guest {}", guest.0),
            Effect::GuestOpened { guest, result: Ok(opened) } => {
                format!("guest {} has {} {}", guest.0, opened.volume, opened.name)
            }
            Effect::GuestOpened { guest, result: Err(error) } => {
                format!("guest {}: {error}", guest.0)
            }
            Effect::GuestDone { guest, tag, result } => {
                format!("guest {} #{tag}: {}", guest.0, answered(result))
            }
            Effect::Propose { command } => {
                format!("#{}: {:?}", command.from.number, command.change)
            }
            Effect::ConfirmLeader { number, term } => format!("#{number} term {term}"),
            Effect::AdminDone { number, reply } => format!("#{number}: {reply:?}"),
            Effect::Event(event) => format!("{event:?}"),
            Effect::Stopped => String::new(),
        };
        cut(text)
    }

    fn peer_of(&self, machine: Machine, link: LinkId) -> String {
        let end = self.machines[machine].end_of(link);
        let ends = end.and_then(|(conn, _)| self.net.ends(conn));
        match ends {
            Some((from, to)) => named(if from == machine { to } else { from }),
            None => "nobody".to_string(),
        }
    }
}

fn answered(result: &GuestResult) -> Answered<'_> {
    Answered(result)
}

fn cut(text: String) -> String {
    match text.char_indices().nth(DETAIL_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
