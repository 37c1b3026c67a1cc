//! What `gabion drill` is told.

use crate::drill::schedule::Window;
use crate::size::ByteSize;
use crate::span::Span;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Clone, Debug, Subcommand)]
pub enum DrillVerb {
    /// Hurt each node of a healthy `up` in turn, under a load that is verified; a table of what guests felt
    #[command(
        after_help = "Examples:\n  gabion drill run\n  gabion drill run --only freeze --for 10s --json\n  gabion drill run --every 24h --between 09:00-17:00 --weekdays"
    )]
    Run(DrillArgs),
    /// What earlier drills found, the newest first
    List(DrillDirArgs),
    /// End the one that runs; the node that is hurt is well again when this returns
    Stop(DrillDirArgs),
}

#[derive(Clone, Debug, Args)]
pub struct DrillDirArgs {
    #[arg(long, default_value = "gabion-data")]
    pub dir: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub struct DrillArgs {
    #[arg(long, default_value = "gabion-data")]
    pub dir: PathBuf,
    /// Only these, in this order
    #[arg(long, value_delimiter = ',', default_value = "kill,freeze,slow")]
    pub only: Vec<Harm>,
    /// How long a node is away, frozen or slow
    #[arg(long = "for", default_value = "6s")]
    pub lasts: Span,
    /// The volume that the load is on; made for it, and deleted afterwards
    #[arg(long, default_value = "64MiB")]
    pub size: ByteSize,
    /// Again and again, so long from one beginning to the next, until it is stopped
    #[arg(long)]
    pub every: Option<Span>,
    /// Begin only then, by this machine's clock: people are there who can look
    #[arg(long, value_name = "HH:MM-HH:MM", default_value = "00:00-24:00")]
    pub between: Window,
    /// Begin only from Monday to Friday
    #[arg(long)]
    pub weekdays: bool,
}

/// What is done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Harm {
    /// kill -9, and started again
    Kill,
    /// Its process is stopped, and goes on later as if nothing had been
    Freeze,
    /// Its process has a fifth of the time
    Slow,
}

impl Harm {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::Slow => "slow",
        }
    }
}
