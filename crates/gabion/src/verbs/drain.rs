//! `gabion disk drain`, `gabion node drain` and `gabion node remove`.

use crate::bar::Progress;
use crate::failure::{Exit, Failure};
use crate::remote::Remote;
use crate::verbs::show;
use gabion_api::v1;
use gabion_api::view;
use serde_json::{Value, json};
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Begin,
    BeginAndWait,
    Cancel,
}

impl Wish {
    pub fn of(wait: bool, cancel: bool) -> Self {
        match (wait, cancel) {
            (_, true) => Self::Cancel,
            (true, false) => Self::BeginAndWait,
            (false, false) => Self::Begin,
        }
    }
}

/// How far it is.
struct Seen {
    name: String,
    /// As `view` has it.
    json: Value,
    drain: v1::Drain,
    copies_left: u64,
    waits: Vec<String>,
}

pub fn disk(
    remote: &Remote,
    typed: &str,
    node: &str,
    wish: Wish,
    as_json: bool,
) -> Result<(), Failure> {
    let id = remote.drain_disk(typed, node, wish == Wish::Cancel)?;
    follow(wish, as_json, || {
        let disks = remote.disks()?;
        let disk = disks.into_iter().find(|disk| disk.id == id).ok_or_else(|| gone("disk", id))?;
        Ok(Seen {
            name: format!("disk {id} ({}) of node {}", disk.path, disk.node),
            json: view::disk(&disk),
            drain: disk.drain(),
            copies_left: left(&disk),
            waits: Vec::new(),
        })
    })
}

pub fn node(remote: &Remote, typed: &str, wish: Wish, as_json: bool) -> Result<(), Failure> {
    let id = remote.drain_node(typed, wish == Wish::Cancel)?;
    follow(wish, as_json, || {
        let nodes = remote.nodes()?;
        let node = nodes.into_iter().find(|node| node.id == id).ok_or_else(|| gone("node", id))?;
        Ok(Seen {
            name: format!("node {}", node.name),
            json: view::node(&node),
            drain: node.drain(),
            copies_left: node.disks.iter().map(left).sum(),
            waits: node.drain_waits.clone(),
        })
    })
}

pub fn remove(remote: &Remote, typed: &str, force: bool, as_json: bool) -> Result<(), Failure> {
    let id = remote.remove_node(typed, force)?;
    show(as_json, &json!({ "node": id.map(|id| id.to_string()), "name": typed }), || {
        format!("node {typed} is removed; its id is never used again, its disks are free")
    });
    Ok(())
}

fn left(disk: &v1::Disk) -> u64 {
    disk.replicas + disk.to_drop
}

fn gone(what: &str, id: u32) -> Failure {
    Failure::new(Exit::NotFound, format!("{what} {id} is not of this cluster any more"), "")
}

fn follow(
    wish: Wish,
    as_json: bool,
    look: impl Fn() -> Result<Seen, Failure>,
) -> Result<(), Failure> {
    let seen = look()?;
    let (name, copies) = (seen.name.clone(), seen.copies_left);
    match wish {
        Wish::Cancel => {
            show(as_json, &seen.json, || format!("{name} is used again"));
            return Ok(());
        }
        Wish::Begin if seen.drain != v1::Drain::Drained => {
            show(as_json, &seen.json, || {
                format!("{name} is being drained, {copies} copies to move; see `gabion status`")
            });
            return Ok(());
        }
        Wish::Begin | Wish::BeginAndWait => {}
    }
    let last = wait(seen, as_json, look)?;
    show(as_json, &last.json, || {
        format!("{name} is drained: nothing is left on it, it is safe to take it away")
    });
    Ok(())
}

fn wait(
    first: Seen,
    as_json: bool,
    look: impl Fn() -> Result<Seen, Failure>,
) -> Result<Seen, Failure> {
    let all = first.copies_left;
    let mut bar = (!as_json).then(|| Progress::new(all.max(1)));
    let mut seen = first;
    let last = loop {
        match seen.drain {
            v1::Drain::Drained => break seen,
            v1::Drain::Draining => {}
            v1::Drain::Unspecified => {
                let what = format!("{} is not drained any more: somebody wants it used", seen.name);
                return Err(Failure::new(Exit::Refused, what, "see `gabion events`"));
            }
        }
        if let Some(bar) = &mut bar {
            let text = match &seen.waits[..] {
                [] => format!("{} copies left", seen.copies_left),
                waits => waits.join("; "),
            };
            bar.set(all.saturating_sub(seen.copies_left), &text);
        }
        std::thread::sleep(LOOK_EVERY);
        match look() {
            Ok(now) => seen = now,
            // A cluster that does not answer now goes on all the same.
            Err(failure) if failure.exit == Exit::Failed => {}
            Err(failure) => return Err(failure),
        }
    };
    if let Some(bar) = bar {
        bar.done();
    }
    Ok(last)
}
