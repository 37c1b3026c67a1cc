//! What a seed decides: topology, limits, settings, workload and faults.

use super::fault::FaultKind;
use super::parted::{Parted, PartedStep};
use super::schedule::{Part, Strike};
use super::script::Script;
use crate::consensus::ConsensusTimes;
use crate::disk::DiskTimes;
use crate::nbd_guest::Dialect;
use crate::workload::{Mix, OpPlan};
use crate::world::Spread;
use gabion_types::{Duration, HoldPolicy, Limits, Prng, SegmentSize};

/// All that is drawn before the first event.
#[derive(Clone, Debug)]
pub struct Swarm {
    /// Disks of each machine; none: a witness.
    pub disks: Vec<usize>,
    pub disk_bytes: u64,
    pub limits: Limits,
    pub volumes: Vec<VolumePlan>,
    pub guests: Vec<GuestPlan>,
    pub unit_bytes: u64,
    /// Of the cluster map, as an operator sets them.
    pub settings: Vec<(&'static str, String)>,
    /// Local nanoseconds a million of the world's, by machine.
    pub clocks_ppm: Vec<u64>,
    pub net: Spread,
    pub disk_times: DiskTimes,
    pub consensus: ConsensusTimes,
    /// The machines on which disks are damaged while guests work, fewer than there are copies; then
    /// nothing takes the copies of others away.
    pub frail: Vec<usize>,
    /// Volumes are promised more than the disks hold. Once faults are over guests give back what
    /// has no room with all copies.
    pub over_committed: bool,
    /// What goes wrong while guests work.
    pub strikes: Vec<Strike>,
    /// How long faults go on.
    pub chaos: Duration,
    /// When all is whole again, a disk dies for good.
    pub disk_dies: bool,
    /// Then data rot, on the disks of one machine.
    pub rots: bool,
    /// What happens after all is well: everything stops, or loses power, and comes back.
    pub finale: Finale,
    /// Decides which disk dies and what rots.
    pub damage_seed: u64,
    /// What of all this happens.
    pub part: Part,
}

#[derive(Clone, Debug)]
pub struct VolumePlan {
    pub name: String,
    pub size_bytes: u64,
    pub rf: u8,
    /// How long its guests bear to wait.
    pub hold: HoldPolicy,
    /// To the guests of one machine at a time.
    pub exclusive: bool,
}

#[derive(Clone, Debug)]
pub struct GuestPlan {
    pub volume: usize,
    pub mix: Mix,
    pub depth: usize,
    pub think: Spread,
    /// After so long without an answer it hangs up and goes elsewhere.
    pub patience: Duration,
    /// It dies with its connection, as a VM with its machine: what came after it does not ask again
    /// what was not answered.
    pub forgets: bool,
    /// It speaks NBD, and how; else its node is asked as by gRPC.
    pub nbd: Option<Dialect>,
    /// Exactly these requests; none given: it invents them.
    pub asks: Option<Vec<OpPlan>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finale {
    None,
    Stop,
    PowerCut,
    Kill,
}

/// Units: bytes.
const DISK: u64 = 64 << 20;
/// Most of it is the journal.
const SMALL_DISK: u64 = 24 << 20;
const VOLUMES_MAX: u64 = 3;
/// Of a volume, at most.
const BLOCKS: u64 = 1024;
/// So much of each volume has room on one small disk, with little to spare: an owner's share of what
/// is free is soon too small for its guests, and still every copy can be made anew elsewhere.
const SMALL_BLOCKS: u64 = 430;
/// Of a volume that is promised more than there is, for each machine with its one disk: at least and
/// at most; and what is kept of the whole.
const OVER_BLOCKS: (u64, u64) = (700, 1200);
pub const KEPT_BLOCKS: u64 = 150;
/// Units: bytes.
const OVER_DISK: u64 = 21 << 20;
/// Units: bytes.
const LARGE_REQUEST: u64 = 1 << 20;

/// How much of it there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Ample,
    /// For every copy, if only just.
    Small,
    /// Less than what is promised.
    Promised,
}

impl Room {
    fn draw(prng: &mut Prng) -> Self {
        let small = prng.chance(1, 6);
        match small && prng.chance(1, 2) {
            true => Self::Promised,
            false if small => Self::Small,
            false => Self::Ample,
        }
    }

    /// Most of so small a disk would be reserve else.
    fn limits(self, limits: Limits) -> Limits {
        match self {
            Self::Ample | Self::Small => limits,
            Self::Promised => Limits { write_bytes_per_disk: 1 << 20, ..limits },
        }
    }

    /// Disks of each machine, and the unit of the judge.
    fn topology(self, disks: Vec<usize>, unit_bytes: u64) -> (Vec<usize>, u64) {
        match self {
            Self::Ample | Self::Small => (disks, unit_bytes),
            Self::Promised => {
                (disks.into_iter().map(|disks| disks.min(1)).collect(), gabion_types::BLOCK_BYTES)
            }
        }
    }

    /// Of a volume, at least and at most.
    fn blocks(self, disks: &[usize]) -> (u64, u64) {
        match self {
            Self::Ample => (1, BLOCKS),
            Self::Small => (1, SMALL_BLOCKS),
            Self::Promised => {
                let disks = disks.iter().sum::<usize>() as u64;
                (OVER_BLOCKS.0 * disks, OVER_BLOCKS.1 * disks)
            }
        }
    }

    fn disk_bytes(self) -> u64 {
        match self {
            Self::Ample => DISK,
            Self::Small => SMALL_DISK,
            Self::Promised => OVER_DISK,
        }
    }
}

impl GuestPlan {
    /// It writes much, anywhere.
    fn fill_up(&mut self, part_bytes: u64) {
        self.mix.fill_up(part_bytes / gabion_types::BLOCK_BYTES);
        (self.depth, self.think) = (16, Spread::new(10, 500));
    }

    /// Where volumes are not made anew: NBD does not tell which one it serves.
    fn draw_nbd(&mut self, prng: &mut Prng, unit_bytes: u64) {
        self.nbd = prng.chance(1, 2).then_some(Dialect::PLAIN);
        if self.nbd.is_some() {
            // It takes structured replies, which a plain guest does not.
            self.mix.status = 0;
        }
        // A unit is a register of the judge's: many small ones take long.
        let one_in = if unit_bytes == gabion_types::BLOCK_BYTES { 2 } else { 8 };
        if self.nbd.is_some() && prng.chance(1, one_in) {
            self.mix.count_max = prng.between(1, LARGE_REQUEST / unit_bytes);
        }
    }
}

impl Swarm {
    pub fn draw(prng: &mut Prng) -> Self {
        let machines = pick(prng, &[3, 3, 3, 3, 4, 5, 6, 7]);
        let rf = if prng.chance(1, 5) { 3 } else { 2 };
        let disks = Self::draw_disks(prng, machines, rf);
        let unit_bytes = if prng.chance(1, 4) { 512 } else { 4096 };
        let limits = Limits {
            segment: SegmentSize::new(pick(prng, &[256 << 10, 1 << 20, 1 << 20]))
                .expect("a power of two in range"),
            part_bytes: pick(prng, &[16 << 10, 64 << 10, 256 << 10]),
            requests_per_volume: pick(prng, &[2, 8, 64, 256]),
            write_bytes_per_disk: pick(prng, &[1 << 20, 4 << 20]),
        };
        let room = Room::draw(prng);
        let limits = room.limits(limits);
        let (disks, unit_bytes) = room.topology(disks, unit_bytes);
        let volumes = Self::draw_volumes(prng, rf, room.blocks(&disks));
        let mut guests = Self::draw_guests(prng, &volumes, unit_bytes, &limits);
        if room == Room::Promised {
            guests.iter_mut().for_each(|guest| guest.fill_up(u64::from(limits.part_bytes)));
        }
        let mut frail = Self::draw_frail(prng, &disks, &volumes);
        frail.retain(|_| room == Room::Ample);
        let faults = FaultKind::draw(prng, !frail.is_empty());
        if !faults.contains(&FaultKind::Remake) {
            guests.iter_mut().for_each(|guest| guest.draw_nbd(prng, unit_bytes));
        }
        let fault_every = Duration::from_millis(pick(prng, &[300, 1000, 3000]));
        let chaos = Duration::from_secs(prng.between(10, 30));
        let mut swarm = Self {
            clocks_ppm: Self::draw_clocks(prng, machines, &faults),
            disks,
            disk_bytes: room.disk_bytes(),
            limits,
            volumes,
            guests,
            unit_bytes,
            settings: Self::draw_settings(prng),
            over_committed: room == Room::Promised,
            net: pick(
                prng,
                &[
                    Spread::new(20, 100),
                    Spread::new(50, 500).with_tail(20_000, 200),
                    Spread::new(100, 2000).with_tail(200_000, 500),
                ],
            ),
            disk_times: DiskTimes::FAST,
            consensus: pick(
                prng,
                &[ConsensusTimes::FAST, ConsensusTimes::FAST, ConsensusTimes::SLOW],
            ),
            strikes: Strike::draw(
                &mut prng.fork(),
                &faults,
                (fault_every, chaos),
                (machines, &frail),
            ),
            frail,
            chaos,
            disk_dies: prng.chance(1, 3),
            rots: prng.chance(1, 2),
            finale: pick(prng, &[Finale::None, Finale::Stop, Finale::PowerCut, Finale::Kill]),
            damage_seed: prng.next_u64(),
            part: Part::default(),
        };
        swarm.draw_scrubs();
        swarm.draw_dialects();
        swarm.draw_emptying();
        swarm.draw_suspicion();
        swarm.draw_exclusive();
        swarm
    }

    /// What is free is not enough for more than was planned.
    pub fn is_small(&self) -> bool {
        self.disk_bytes != DISK
    }

    /// Disks are levelled often, and one is added: in a third of the runs. Drawn apart, so that what a seed
    /// decided before stays as it was. Where disks are damaged, nothing takes the sound copies of others away.
    pub fn levels(&self) -> Option<Prng> {
        let mut prng = Prng::new(self.damage_seed.rotate_left(40));
        let sound = self.frail.is_empty() && !self.is_small();
        (sound && prng.chance(1, 2)).then_some(prng)
    }

    /// In half of the runs whose disks are sound a copy goes, and then the one that is left, before another is filled. Drawn apart,
    /// too; and nothing is lost for good by it.
    pub fn script(&self) -> Script {
        let mut prng = Prng::new(self.damage_seed.rotate_left(48));
        let sound = self.frail.is_empty() && !self.is_small() && self.volumes[0].rf == 2;
        if sound && prng.chance(1, 3) {
            Script::Parted { how: Parted::Silent, step: PartedStep::Whole }
        } else {
            Script::None
        }
    }

    /// Copies are looked through without being asked.
    pub fn scrubs(&self) -> bool {
        self.settings.iter().any(|(name, _)| name.starts_with("scrub."))
    }

    /// In each third run copies are looked through all the time. Drawn apart, so that the rest of a
    /// seed is as it was before there were scrubs.
    fn draw_scrubs(&mut self) {
        let mut prng = Prng::new(!self.damage_seed);
        if prng.chance(1, 3) {
            let often = [
                ("scrub.light", pick(&mut prng, &["1s", "3s"])),
                ("scrub.deep", pick(&mut prng, &["2s", "6s"])),
                ("scrub.share", pick(&mut prng, &["10%", "50%", "100%"])),
            ];
            self.settings.extend(often.map(|(name, value)| (name, value.to_string())));
        }
    }

    /// In each third run somebody wants disks and machines to be empty. Drawn apart, too.
    fn draw_emptying(&mut self) {
        let mut prng = Prng::new(self.damage_seed.rotate_left(16));
        if self.is_small() || !prng.chance(1, 3) {
            return;
        }
        let kinds = [FaultKind::EmptyDisk, FaultKind::EmptyNode];
        let every = Duration::from_secs(pick(&mut prng, &[2, 4, 8]));
        let all = (self.machines(), &[][..]);
        self.strikes.extend(Strike::draw(&mut prng, &kinds, (every, self.chaos), all));
    }

    /// In each fourth run some volumes are the guests' of one machine at a time. Drawn apart, too.
    fn draw_exclusive(&mut self) {
        let mut prng = Prng::new(self.damage_seed.rotate_left(56));
        if !prng.chance(1, 4) {
            return;
        }
        for volume in &mut self.volumes {
            volume.exclusive = prng.chance(1, 2);
        }
        let every = Duration::from_secs(pick(&mut prng, &[1, 3, 6]));
        let all = (self.machines(), &[][..]);
        let evictions = Strike::draw(&mut prng, &[FaultKind::Evict], (every, self.chaos), all);
        self.strikes.extend(evictions);
    }

    /// Where disks rot, few rotten blocks make some of them suspect. Drawn apart, too.
    fn draw_suspicion(&mut self) {
        let mut prng = Prng::new(self.damage_seed.rotate_left(24));
        if !self.frail.is_empty() {
            let most = pick(&mut prng, &["0", "1", "4", "16"]);
            self.settings.push(("disk.suspect", most.to_string()));
        }
    }

    /// Each second guest with NBD uses more of it than it needs. Drawn apart, too.
    fn draw_dialects(&mut self) {
        let mut prng = Prng::new(self.damage_seed.rotate_left(32));
        for guest in &mut self.guests {
            let Some(dialect) = guest.nbd.as_mut().filter(|_| prng.chance(1, 2)) else { continue };
            *dialect = Dialect::draw(&mut prng);
            if dialect.allocation {
                guest.mix.status = prng.between(1, 10);
            }
        }
    }

    /// A narrow window is full all the time, a wide one never.
    pub fn link_unsent_max(&self) -> u64 {
        [8 << 10, 256 << 10, 4 << 20][crate::world::index(self.damage_seed % 3)]
    }

    pub fn machines(&self) -> usize {
        self.disks.len()
    }

    /// At least rf machines have a disk.
    fn draw_disks(prng: &mut Prng, machines: usize, rf: u8) -> Vec<usize> {
        let mut disks: Vec<usize> = (0..machines).map(|_| pick(prng, &[1, 1, 2, 3])).collect();
        if prng.chance(1, 4) && machines > usize::from(rf) {
            disks[machines - 1] = 0;
        }
        disks
    }

    /// A drift of 10 % is all that leases bear: then no clock may stand besides.
    fn draw_clocks(prng: &mut Prng, machines: usize, faults: &[FaultKind]) -> Vec<u64> {
        let drift = if faults.contains(&FaultKind::PauseClock) { 80_000 } else { 100_000 };
        (0..machines).map(|_| prng.between(1_000_000 - drift, 1_000_000 + drift)).collect()
    }

    /// In each third run; only where each block has a copy elsewhere.
    fn draw_frail(prng: &mut Prng, disks: &[usize], volumes: &[VolumePlan]) -> Vec<usize> {
        let mut machines: Vec<usize> = (0..disks.len()).filter(|one| disks[*one] > 0).collect();
        let copies = volumes.iter().map(|volume| usize::from(volume.rf)).min().unwrap_or(1);
        let most = if prng.chance(1, 3) { prng.between(1, 2) } else { 0 };
        let count = crate::world::index(most).min(copies - 1);
        let mut drawn = || {
            let place = crate::world::index(prng.below(machines.len() as u64));
            machines.swap_remove(place)
        };
        (0..count).map(|_| drawn()).collect()
    }

    fn draw_settings(prng: &mut Prng) -> Vec<(&'static str, String)> {
        // In this order: a lease is at least three times as long as what renews it, and a silence
        // twice as long as what breaks it.
        let drawn = [
            ("lease.duration", pick(prng, &["4s", "6s"])),
            ("ping.silence", pick(prng, &["1500ms", "3s"])),
            ("rebuild.wait", pick(prng, &["1s", "5s", "20s"])),
            ("rebuild.away", pick(prng, &["34%", "50%", "100%"])),
            ("fence.wait", pick(prng, &["300ms", "1s", "3s"])),
            ("member.slow", pick(prng, &["2s", "5s", "10s"])),
            ("member.lag", pick(prng, &["0s", "5ms", "30ms"])),
            ("fill.inflight", pick(prng, &["256KiB", "1MiB", "8MiB"])),
            ("ping.interval", pick(prng, &["100ms", "250ms", "500ms"])),
            ("lease.renew", pick(prng, &["250ms", "500ms", "1s"])),
        ];
        let changed =
            drawn.into_iter().filter(|(name, _)| *name == "rebuild.wait" || prng.chance(1, 3));
        changed.map(|(name, value)| (name, value.to_string())).collect()
    }

    fn draw_volumes(prng: &mut Prng, rf: u8, (least, most): (u64, u64)) -> Vec<VolumePlan> {
        let count = prng.between(1, VOLUMES_MAX);
        (0..count)
            .map(|number| {
                let size_bytes = prng.between(least, most) * 4096;
                VolumePlan {
                    name: format!("vm{number}"),
                    size_bytes,
                    rf: if prng.chance(1, 6) { 1.max(rf - 1) } else { rf },
                    hold: Self::draw_hold(&mut Prng::new(size_bytes)),
                    exclusive: false,
                }
            })
            .collect()
    }

    fn draw_hold(prng: &mut Prng) -> HoldPolicy {
        if !prng.chance(1, 6) {
            return HoldPolicy::NeverFail;
        }
        HoldPolicy::FailAfter(Duration::from_millis(prng.between(500, 4000)))
    }

    fn draw_guests(
        prng: &mut Prng,
        volumes: &[VolumePlan],
        unit_bytes: u64,
        limits: &Limits,
    ) -> Vec<GuestPlan> {
        let count = prng.between(1, 5);
        let part = u64::from(limits.part_bytes);
        (0..count)
            .map(|number| {
                let volume = crate::world::index(number % volumes.len() as u64);
                let units = volumes[volume].size_bytes / unit_bytes;
                GuestPlan {
                    volume,
                    mix: Mix::draw(prng, units, unit_bytes, part),
                    depth: pick(prng, &[1, 4, 16]),
                    think: pick(prng, &[Spread::new(10, 2000), Spread::new(1000, 20_000)]),
                    patience: Duration::from_millis(pick(prng, &[1500, 5000, 20_000, 600_000])),
                    forgets: prng.chance(1, 3),
                    nbd: None,
                    asks: None,
                }
            })
            .collect()
    }
}

/// One of several.
pub fn pick<T: Clone>(prng: &mut Prng, items: &[T]) -> T {
    prng.pick(items).expect("there are some").clone()
}

/// How many map pages each disk of a process may keep in memory: most often fewer than it needs.
pub(crate) fn map_pages_max(seed: u64) -> usize {
    const DRAWN: [usize; 6] = [0, 1, 2, 4, 8, 32_768];
    DRAWN[crate::world::index(seed % DRAWN.len() as u64)]
}
