//! What people type behind `gabion sim`.

use crate::size::ByteSize;
use crate::span::Span;
use clap::{Args, Subcommand};
use gabion_sim::cluster::Trouble;
use std::collections::BTreeSet;
use std::str::FromStr;

#[derive(Debug, Subcommand)]
pub enum SimVerb {
    /// Run whole clusters in a virtual world, under every fault: one seed, many, or a scenario
    Run(Box<SimRunArgs>),
    /// Faults that are injected, and promises that are checked
    List,
    /// A large cluster loses a rack: how long until every copy is there again, and what the map and its manager cost
    Scale(SimScaleArgs),
}

#[derive(Clone, Debug, Args)]
pub struct SimScaleArgs {
    #[arg(long, default_value_t = 300)]
    pub nodes: u32,
    #[arg(long, default_value_t = 10)]
    pub racks: u32,
    /// Of each node
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub disks: u32,
    #[arg(long, default_value = "2TiB")]
    pub disk_size: ByteSize,
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub segments: u32,
    /// Segments of each volume, of 256 MiB
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub volume_segments: u32,
    /// Copies of each segment
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=3))]
    pub rf: u8,
    /// What filling gets of a disk, in a second
    #[arg(long, default_value = "100MiB")]
    pub disk_rate: ByteSize,
    /// What filling gets of a node's network each way, in a second
    #[arg(long, default_value = "1GiB")]
    pub node_rate: ByteSize,
}

#[derive(Clone, Debug, Args)]
#[command(group = clap::ArgGroup::new("which").args(["seed", "seeds"]))]
pub struct SimRunArgs {
    /// Replay one seed; with --nodes: another draw of the same scenario
    #[arg(long)]
    pub seed: Option<u64>,
    /// Run these seeds on all cores, the last one excluded; `A..` with --time
    #[arg(long, value_name = "A..B")]
    pub seeds: Option<Seeds>,
    /// Run new seeds for so long
    #[arg(long, conflicts_with_all = ["seed", "nodes"])]
    pub time: Option<Span>,
    /// Simulate one disk's store alone instead of a cluster
    #[arg(long, conflicts_with = "nodes")]
    pub store: bool,
    /// How many seeds run at a time; without: one a core
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,

    /// Print everything that happens, one line an event
    #[arg(long, conflicts_with_all = ["seeds", "time"])]
    pub trace: bool,
    /// Of the trace, only lines of this node, guest or `world`
    #[arg(long, requires = "trace", value_name = "NAME")]
    pub of: Option<String>,
    /// Print what happened in words
    #[arg(long, conflicts_with_all = ["seeds", "time", "trace"])]
    pub story: bool,
    /// Of the seed's schedule, only these faults: numbers, disk-dies, rot, finale; or none
    #[arg(long, value_name = "LIST", requires = "seed", conflicts_with_all = ["nodes", "store", "seeds", "time"])]
    pub only: Option<List<Trouble>>,
    /// Of the seed's guests, only these, or none
    #[arg(long, value_name = "LIST", requires = "seed", conflicts_with_all = ["nodes", "store", "seeds", "time"])]
    pub guests: Option<List<usize>>,
    /// Of one store's run, only so many requests
    #[arg(long, value_name = "COUNT", requires_all = ["seed", "store"], conflicts_with_all = ["seeds", "time"])]
    pub actions: Option<u64>,

    /// What would my cluster do: a cluster of so many nodes, each with one disk and one guest
    #[arg(long, value_name = "N", conflicts_with = "seeds")]
    pub nodes: Option<usize>,
    /// Kill so many of the nodes
    #[arg(long, requires = "nodes", default_value_t = 0, value_name = "K")]
    pub kill: usize,
    /// Two nodes that do not hear each other, such as node1,node3; may be given again
    #[arg(long, requires = "nodes", value_name = "A,B")]
    pub cut: Vec<Cut>,
    /// Copies of each block
    #[arg(long, requires = "nodes", default_value_t = 2)]
    pub rf: u8,
    /// The last node has no disk
    #[arg(long, requires = "nodes")]
    pub witness: bool,
    /// How long a killed node stays away, and how long a cut lasts
    #[arg(long, requires = "nodes", default_value = "30s")]
    pub down: Span,
    /// Time between one of these faults and the next
    #[arg(long, requires = "nodes", default_value = "0s")]
    pub apart: Span,
}

/// `A..B`, or `A..` without an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    pub first: u64,
    pub end: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seeds are A..B with A below B, such as 0..1000")]
pub struct NotSeeds;

impl FromStr for Seeds {
    type Err = NotSeeds;

    fn from_str(typed: &str) -> Result<Self, NotSeeds> {
        let (first, end) = typed.split_once("..").ok_or(NotSeeds)?;
        let first = first.parse().map_err(|_| NotSeeds)?;
        let end = match end {
            "" => None,
            end => Some(end.parse().ok().filter(|end| *end > first).ok_or(NotSeeds)?),
        };
        Ok(Self { first, end })
    }
}

/// Items with commas between, or `none`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T>(pub BTreeSet<T>);

impl<T: Ord + FromStr> FromStr for List<T> {
    type Err = T::Err;

    fn from_str(typed: &str) -> Result<Self, T::Err> {
        if typed == "none" {
            return Ok(Self(BTreeSet::new()));
        }
        typed.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Two nodes, counted from 0 here and from 1 where they are typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut(pub usize, pub usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cut names two nodes, such as node1,node3 or 1,3")]
pub struct NotACut;

impl FromStr for Cut {
    type Err = NotACut;

    fn from_str(typed: &str) -> Result<Self, NotACut> {
        let node = |text: &str| {
            let number = text.trim().trim_start_matches("node").parse::<usize>().ok();
            number.and_then(|number| number.checked_sub(1)).ok_or(NotACut)
        };
        let (one, other) = typed.split_once(',').ok_or(NotACut)?;
        Ok(Self(node(one)?, node(other)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;
    use gabion_sim::cluster::NotATrouble;

    #[test]
    fn seeds_have_an_order() {
        assert_eq!("3..9".parse(), Ok(Seeds { first: 3, end: Some(9) }));
        assert_eq!("3..".parse(), Ok(Seeds { first: 3, end: None }));
        for typed in ["", "3", "..", "9..3", "3..3", "a..b"] {
            assert_eq!(typed.parse::<Seeds>(), Err(NotSeeds), "{typed}");
        }
    }

    #[test]
    fn parts_of_a_schedule_are_lists() {
        let only = "3,rot,12".parse::<List<Trouble>>();
        assert_eq!(only, Ok(List([Trouble::Strike(3), Trouble::Rot, Trouble::Strike(12)].into())));
        assert_eq!("none".parse::<List<usize>>(), Ok(List(BTreeSet::new())));
        assert_eq!("3,x".parse::<List<Trouble>>(), Err(NotATrouble));
    }

    #[test]
    fn cuts_name_two_nodes() {
        assert_eq!("node1,node3".parse(), Ok(Cut(0, 2)));
        assert_eq!("2,1".parse(), Ok(Cut(1, 0)));
        for typed in ["", "node1", "0,1", "a,b"] {
            assert_eq!(typed.parse::<Cut>(), Err(NotACut), "{typed}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let parses = |line: &str| Cli::try_parse_from(line.split(' ')).is_ok();
        for good in [
            "gabion sim run --seed 7 --trace --of node2",
            "gabion sim run --seed 7 --only 3,7,finale --guests 0",
            "gabion sim run --seeds 0..2000 --json",
            "gabion sim run --time 10m",
            "gabion sim run --time 10m --seeds 5000..",
            "gabion sim run --nodes 5 --kill 2 --cut node1,node3 --cut 2,4 --down 90s",
            "gabion sim run --nodes 3 --seed 4 --story",
            "gabion sim list --json",
        ] {
            assert!(parses(good), "{good}");
        }
        for bad in [
            "gabion sim run --seed 7 --seeds 0..3",
            "gabion sim run --kill 2",
            "gabion sim run --seeds 0..3 --trace",
            "gabion sim run --seeds 0..3 --only 3",
            "gabion sim run --nodes 5 --seeds 0..3",
        ] {
            assert!(!parses(bad), "{bad}");
        }
    }
}
