//! Stories in `golden/*.txt`: what happens to an owner, and below each line what it does about it.
//! `UPDATE_GOLDEN=1` writes what it does anew.
//!
//! Lines: `serve`, `take over at e<N>`, `given <disk> holds <blocks> as <epoch>.<seq>`,
//! `given <disk> settled <seq>`, `given <disk> fenced by e<N>`, `guest <n> writes|reads <blocks>`,
//! `<disk> answers`, `<disk> hears nothing`, `all answer`, `node <n> is down|up`, `<n> ms pass`, `<disk> rots at <block>`,
//! `map: <disk> leaves, <disk> joins`, `map: <disk> joins`, `map: <disk> in sync`,
//! `map: <disk> leaves`, `map: another owns it`, `show <disk>`.

use crate::bench::{Bench, disk, epoch, node, view};
use crate::disk::Block;
use bytes::Bytes;
use gabion_types::{
    BlockIndex, BlockKind, BlockRange, Combining, DiskId, Duration, GuestData, GuestResult,
    Joining, OwnerChange, Seq, Stale, Version, VolumeView, block_crc,
};
use gabion_volume::{Effect, Input};
use gabion_wire::RequestId;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// Numbers requests by the order in which a script meets them, and says what an owner does.
#[derive(Default)]
pub struct Teller {
    numbers: BTreeMap<RequestId, usize>,
    said: String,
}

impl Teller {
    fn number(&mut self, request: RequestId) -> usize {
        let next = self.numbers.len() + 1;
        *self.numbers.entry(request).or_insert(next)
    }

    fn say(&mut self, line: &str) {
        writeln!(self.said, "    {line}").unwrap();
    }

    pub fn tell_input(&mut self, input: &Input) {
        if let Input::Answer { request, answer } = input {
            let number = self.number(*request);
            let disk = answer.disk;
            self.say(&match &answer.result {
                Ok(done) => format!("{disk} answers #{number}: {done}"),
                Err(refusal) => format!("{disk} refuses #{number}: {refusal}"),
            });
        }
    }

    pub fn tell_effect(&mut self, effect: &Effect) {
        let line = match effect {
            Effect::Ask { request, ask, .. } => {
                format!("ask {} #{}: {}", ask.disk, self.number(*request), ask.op)
            }
            Effect::GuestDone { ticket, result } => {
                format!("guest {}: {}", ticket.0, result_text(result))
            }
            Effect::GuestLate { ticket } => format!("guest {}: it has waited too long", ticket.0),
            Effect::GuestOver => "a late request is over".to_owned(),
            Effect::Propose { change, .. } => format!("propose: {}", change_text(change)),
            Effect::Serving => "serving".to_owned(),
            Effect::Ended => "it owns the volume no more".to_owned(),
            Effect::Scrubbed { ask, found } => format!("scrub {} is done: {found:?}", ask.number),
            Effect::Event(event) => format!("event: {event:?}"),
        };
        self.say(&line);
    }
}

/// Each block that was read by the number of the guest that wrote it.
fn result_text(result: &GuestResult) -> String {
    match result {
        Ok(GuestData::Read(data)) => {
            let labels = data.chunks(4096).map(|block| match block[0] {
                0 => "zeros".to_owned(),
                label => format!("what guest {label} wrote"),
            });
            format!("reads {}", labels.collect::<Vec<_>>().join(", "))
        }
        Ok(data) => format!("{data:?}").to_lowercase(),
        Err(error) => format!("failed, {error}"),
    }
}

fn change_text(change: &OwnerChange) -> String {
    let listed = |items: Vec<String>| items.join(", ");
    match change {
        OwnerChange::RemoveMembers { epoch, removals, add_joiner } => {
            let removals = removals.iter().map(|removal| {
                let back = if removal.may_return { " (it may return)" } else { "" };
                let compare = if removal.compare_all { " (nothing on it is trusted)" } else { "" };
                format!("{} out of {}{back}{compare}", removal.disk, removal.segment)
            });
            let joiner = if *add_joiner { ", another joins" } else { "" };
            format!("{}{joiner}, by {epoch}", listed(removals.collect()))
        }
        OwnerChange::AddJoining { epoch, joins } => {
            let joins = joins.iter().map(|(segment, disk)| match disk {
                Some(disk) => format!("{disk} joins {segment}"),
                None => format!("any disk joins {segment}"),
            });
            format!("{}, by {epoch}", listed(joins.collect()))
        }
        OwnerChange::Promote { epoch, promotes } => {
            let promotes = promotes.iter().map(|one| {
                format!("{}, joiner of {}, is in sync in {}", one.disk, one.joined, one.segment)
            });
            format!("{}, by {epoch}", listed(promotes.collect()))
        }
        OwnerChange::Combine { epoch, combines } => {
            let combines = combines.iter().map(|one| {
                let Combining { segment, joiner, joined, elder } = one;
                format!("{joiner}, joiner of {joined}, with {elder} is {segment}")
            });
            format!("{}, by {epoch}", listed(combines.collect()))
        }
        OwnerChange::Forget { epoch, stale } => {
            let stale = stale.iter().map(|(segment, disk)| format!("{disk} of {segment}"));
            format!("forget {}, by {epoch}", listed(stale.collect()))
        }
        OwnerChange::Release { epoch, clean } => format!("release, clean: {clean}, by {epoch}"),
    }
}

/// One segment of 64 KiB on disks 1 and 2.
fn small_view() -> VolumeView {
    let mut view = view();
    view.segments.truncate(1);
    view.size_bytes = 64 << 10;
    view
}

struct Script {
    bench: Option<Bench>,
}

impl Script {
    fn bench(&mut self) -> &mut Bench {
        self.bench.as_mut().expect("a script begins with `serve` or `take over`")
    }

    /// What an owner does about one line.
    fn line(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        match words.as_slice() {
            ["serve"] => {
                let mut bench = Bench::serving(small_view());
                bench.teller = Teller::default();
                self.bench = Some(bench);
            }
            ["take", "over", "at", at] => {
                let mut view = small_view();
                view.epoch = parsed_epoch(at);
                view.owner_epoch = view.epoch;
                view.clean = false;
                self.bench = Some(Bench::new(view));
            }
            ["given", rest @ ..] => self.given(rest),
            ["map:", "another", "owns", "it"] => {
                let bench = self.bench();
                let mut view = bench.view.clone();
                view.epoch = view.epoch.next();
                view.owner_epoch = view.epoch;
                bench.feed(Input::View { view, owned: false });
            }
            ["map:", rest @ ..] => self.map(rest),
            ["guest", guest, does, blocks] => self.guest(guest, does, blocks),
            ["node", number, state] | ["node", number, "is", state] => {
                let node = node(number.parse().unwrap());
                self.bench().feed(match *state {
                    "down" => Input::NodeDown { node },
                    "up" => Input::LinkUp { node },
                    other => panic!("no state {other}"),
                });
            }
            [ms, "ms", "pass"] => {
                self.bench().wait(Duration::from_millis(ms.parse().unwrap()));
            }
            ["all", "answer"] => self.bench().answer_all(),
            ["show", name] => return self.show(parsed_disk(name)),
            [name, "answers"] => {
                let disk = parsed_disk(name);
                self.bench().answer(|ask| ask.disk == disk);
            }
            [name, "hears", "nothing"] => {
                let disk = parsed_disk(name);
                self.bench().asked.retain(|asked| asked.ask.disk != disk);
            }
            [name, "rots", "at", block] => {
                let at = parsed_range(block).first();
                self.segment(name).blocks.get_mut(&at).unwrap().bad = true;
            }
            other => panic!("no line {other:?}"),
        }
        std::mem::take(&mut self.bench().teller.said)
    }

    fn segment(&mut self, name: &str) -> &mut crate::disk::Segment {
        let disk = self.bench().disks.get_mut(&parsed_disk(name)).unwrap();
        disk.durable.segments.values_mut().next().expect("the disk has the segment")
    }

    fn given(&mut self, words: &[&str]) {
        match words {
            [name, "holds", blocks, "as", version] => {
                let version = parsed_version(version);
                let label = u8::try_from(version.seq.get()).unwrap();
                let segment = self.segment(name);
                segment.highest = segment.highest.max(version.seq);
                for at in parsed_range(blocks).iter() {
                    let data = Bytes::from(vec![label; 4096]);
                    let (kind, crc) = (BlockKind::Data, block_crc(&data));
                    segment.blocks.insert(at, Block { version, kind, crc, data, bad: false });
                }
            }
            [name, "settled", seq] => self.segment(name).settled = Seq::new(seq.parse().unwrap()),
            [name, "fenced", "by", at] => {
                let fence = parsed_epoch(at);
                let disk = parsed_disk(name);
                self.bench().disks.get_mut(&disk).unwrap().durable.fence = fence;
            }
            other => panic!("nothing is given as {other:?}"),
        }
    }

    fn guest(&mut self, guest: &str, does: &str, blocks: &str) {
        let guest: u8 = guest.parse().unwrap();
        let range = parsed_range(blocks);
        let bytes = self.bench().block(range.first().get().into(), range.count().into());
        match does {
            "writes" => self.bench().write(guest.into(), bytes, guest),
            "reads" => self.bench().read(guest.into(), bytes),
            other => panic!("guests do not {other}"),
        }
    }

    /// The map executes the last proposal, and what it changes is told.
    fn map(&mut self, words: &[&str]) {
        self.bench().commit(|view| {
            let now = view.epoch;
            let members = &mut view.segments[0];
            match words {
                [name, "leaves", more @ ..] => {
                    let left = parsed_disk(name);
                    if members.is_in_sync(left) {
                        members.in_sync.retain(|disk| *disk != left);
                        members.stale.push(Stale {
                            disk: left,
                            left: now,
                            compare_all: false,
                            reach: None,
                        });
                    }
                    members.joining.retain(|joining| joining.disk != left);
                    if let [name, "joins"] = more {
                        members.joining.push(joining(parsed_disk(name), now, None));
                    }
                }
                [name, "joins"] => {
                    let disk = parsed_disk(name);
                    let left = members.stale(disk).map(|stale| stale.left);
                    members.stale.retain(|stale| stale.disk != disk);
                    members.joining.push(joining(disk, now, left));
                }
                [name, "in", "sync"] => {
                    let disk = parsed_disk(name);
                    members.joining.retain(|joining| joining.disk != disk);
                    members.in_sync.push(disk);
                }
                other => panic!("the map does not change by {other:?}"),
            }
        });
    }

    fn show(&mut self, id: DiskId) -> String {
        let segment = self.bench().disks[&id].durable.segments.values().next();
        let Some(segment) = segment else { return format!("    {id} has no segment\n") };
        let blocks = segment.blocks.iter().map(|(at, block)| {
            let kind = if block.bad { " bad" } else { "" };
            format!("b{} {}{kind}", at.get(), block.version)
        });
        let blocks: Vec<_> = blocks.collect();
        let blocks = if blocks.is_empty() { "nothing".to_owned() } else { blocks.join(", ") };
        format!("    {id} settled {}: {blocks}\n", segment.settled)
    }
}

fn joining(
    disk: DiskId,
    joined: gabion_types::Epoch,
    left: Option<gabion_types::Epoch>,
) -> Joining {
    Joining {
        disk,
        joined,
        left,
        compare_all: false,
        fill_waits: left.is_none(),
        reach: None,
        alone: false,
    }
}

fn parsed_disk(name: &str) -> DiskId {
    disk(name.strip_prefix('d').and_then(|number| number.parse().ok()).unwrap_or_else(|| {
        panic!("{name} is no disk");
    }))
}

fn parsed_epoch(text: &str) -> gabion_types::Epoch {
    epoch(text.trim_start_matches('e').parse().unwrap())
}

fn parsed_version(text: &str) -> Version {
    let (at, seq) = text.split_once('.').unwrap();
    Version { epoch: parsed_epoch(at), seq: Seq::new(seq.parse().unwrap()) }
}

fn parsed_range(text: &str) -> BlockRange {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.trim_start_matches('b').parse::<u32>().unwrap();
    let (first, last) = (number(first), number(last));
    BlockRange::new(BlockIndex::new(first), last - first + 1).unwrap()
}

/// Comments, then lines without an indent, each with what it leads to below it.
fn run(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    let old = std::fs::read_to_string(&path).unwrap();
    let mut script = Script { bench: None };
    let mut new = String::new();
    for line in old.lines().filter(|line| !line.starts_with("    ")) {
        writeln!(new, "{line}").unwrap();
        if !line.is_empty() && !line.starts_with('#') {
            new.push_str(&script.line(line));
        }
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        return std::fs::write(&path, &new).unwrap();
    }
    assert!(old == new, "{name} has changed; UPDATE_GOLDEN=1 writes it anew. It would be:\n{new}");
}

macro_rules! golden {
    ($($test:ident: $file:literal;)*) => {
        $(#[test]
        fn $test() {
            run($file);
        })*
    };
}

// rule: volume/a-rotten-tail-hides-nothing
golden! {
    a_plain_write: "plain-write.txt";
    a_member_is_lost_during_a_write: "member-lost-during-write.txt";
    a_takeover_with_a_tail: "takeover-with-a-tail.txt";
    a_takeover_with_a_rotten_tail: "takeover-with-a-rotten-tail.txt";
    an_orphan_is_rolled_back_by_a_delta_join: "delta-join-rolls-back-an-orphan.txt";
    a_read_mends_a_bad_copy: "read-repair.txt";
    a_fenced_zombie_tells_nothing: "fenced-zombie.txt";
}
