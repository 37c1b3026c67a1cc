//! What people type.

use crate::drill_args::DrillVerb;
use crate::sim_args::SimVerb;
use crate::size::ByteSize;
use crate::span::Span;
use crate::verbs::recover::Remembered;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use gabion_daemon::settings::DISK_BYTES_MIN;
use std::path::PathBuf;
use std::str::FromStr;

#[derive(Debug, Parser)]
#[command(
    name = "gabion",
    version,
    about = "Replicated block volumes from the local disks of a few plain machines.",
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 not healthy in time, 4 not found, 5 refused."
)]
pub struct Cli {
    /// Where the cluster is: host:port of the API of one or more nodes. Without: ./gabion-data/cluster.toml
    #[arg(long, global = true, env = "GABION_CLUSTER", value_name = "ADDR[,ADDR]")]
    pub cluster: Option<String>,
    /// Print JSON with stable names instead of text for people
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a cluster on this machine in the foreground; Ctrl-C stops it cleanly, its data stay
    Up(UpArgs),
    /// The whole story by itself in under a minute: exit 0 only if every check in it held
    Demo(DemoArgs),
    /// Health first: what is wrong, then nodes and volumes
    Status {
        /// Show it anew each second
        #[arg(long)]
        watch: bool,
    },
    /// A new cluster of real machines
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Nodes: make and run one, start and kill those of `up`
    #[command(subcommand)]
    Node(NodeVerb),
    /// Disks of the cluster
    #[command(subcommand)]
    Disk(DiskVerb),
    /// Volumes: make, show, wait for, change
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Settings of the whole cluster, changed at run time
    #[command(subcommand)]
    Settings(SettingsVerb),
    /// What happened: takeovers, removals, rebuilds, corruption found and mended
    Events {
        /// Go on with what happens from now on
        #[arg(long)]
        follow: bool,
    },
    /// Live: nodes, volumes, their requests and latencies, what is being copied; `q` ends it
    Top {
        /// How often the cluster is asked
        #[arg(long, default_value = "1s")]
        every: Span,
    },
    /// Measure a volume through NBD
    Bench(BenchArgs),
    /// Whole clusters in a virtual world, under every fault; and what would yours do
    #[command(subcommand)]
    Sim(SimVerb),
    /// A cluster of `up` hurt on purpose, and what its guests felt
    #[command(subcommand)]
    Drill(DrillVerb),
    /// What a maintainer needs to know of this cluster
    #[command(subcommand)]
    Support(SupportVerb),
    /// What a shell is told to complete verbs: `source <(gabion completions bash)`
    Completions { shell: Shell },
    /// Write a manual page for each verb
    Man {
        /// For example ~/.local/share/man/man1
        dir: PathBuf,
    },
}

/// Judged before anything is laid out.
fn disk_size(typed: &str) -> Result<ByteSize, String> {
    let size: ByteSize = typed.parse().map_err(|error| format!("{error}"))?;
    if size.0 < DISK_BYTES_MIN || !size.0.is_multiple_of(4096) {
        return Err("a disk has at least 64MiB, and a multiple of 4KiB".to_owned());
    }
    Ok(size)
}

#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// Nodes with disks
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=63))]
    pub nodes: u32,
    /// Where all of it lies; an existing cluster there is continued
    #[arg(long, default_value = "gabion-data")]
    pub dir: PathBuf,
    /// Size of each disk file, when it is made
    #[arg(long, default_value = "2GiB", value_parser = disk_size)]
    pub disk_size: ByteSize,
    /// Disks of each node
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub disks: u32,
    /// One node more, without disks: the third vote of two nodes
    #[arg(long)]
    pub witness: bool,
    /// The nodes are in these zones in turn: copies go to different ones
    #[arg(long, value_delimiter = ',')]
    pub zones: Vec<String>,
    /// Start a node again that died
    #[arg(long)]
    pub restart: bool,
    #[command(flatten)]
    pub hidden: HiddenArgs,
}

#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Keep the cluster's files here instead of in a temporary directory
    #[arg(long)]
    pub dir: Option<PathBuf>,
    #[command(flatten)]
    pub hidden: HiddenArgs,
}

/// For tests that run side by side.
#[derive(Clone, Debug, Args)]
pub struct HiddenArgs {
    /// Added to each port
    #[arg(long, default_value_t = 0, hide = true)]
    pub base_port_offset: u16,
    /// Bytes of a segment, fixed when the cluster is made
    #[arg(long, hide = true)]
    pub segment_size: Option<ByteSize>,
    #[arg(long, default_value = "auto", hide = true)]
    pub io: IoDriver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IoDriver {
    Auto,
    Uring,
    Portable,
}

impl IoDriver {
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Portable => "portable",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// Write the file that all nodes of a new cluster share: its id, its secret, its voters
    Init {
        /// Copy it to each machine; `cluster_file` in a node's configuration names it
        #[arg(long, default_value = "/etc/gabion/cluster.toml")]
        file: PathBuf,
        /// A node, once for each; ports that are not given are 7400 (api), 7500 (peer), 10809 (nbd), 7600 (http)
        #[arg(
            long = "node",
            required = true,
            value_name = "NAME=HOST[,api=PORT,peer=PORT,nbd=PORT,http=PORT]"
        )]
        nodes: Vec<NewNode>,
        #[arg(long, hide = true)]
        segment_size: Option<ByteSize>,
    },
    /// On a member: a token that lets one more node in; it is made here, of the secret, and nobody is asked
    Token(TokenArgs),
    /// On a new machine: join a cluster that runs, and make this node and its disks
    Join(JoinArgs),
    /// All nodes lost their consensus logs: make the map anew from what their disks say
    Recover(RecoverArgs),
}

#[derive(Debug, Args)]
pub struct TokenArgs {
    /// Of a node of the cluster that is on this machine. Without: gabion-data/node1/config.toml, else
    /// /etc/gabion/node.toml
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// How long it is good
    #[arg(long, default_value = "1h")]
    pub valid: Span,
}

#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The API of one or more members: HOST or HOST:PORT
    #[arg(value_name = "ADDR[,ADDR]")]
    pub address: String,
    /// As `gabion cluster token` has printed it on a member
    #[arg(long)]
    pub token: String,
    /// The new node's: its name, its directory, where it listens, its disks; `cluster_file` is written
    #[arg(long, default_value = "/etc/gabion/node.toml")]
    pub config: PathBuf,
    /// Also take disks that hold data: what is lost is named
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// All logs are lost: the directory of each node, or its configuration file; or the directory of `up`
    #[arg(long, num_args = 1.., value_name = "DIR", required_unless_present = "force_majority")]
    pub from_disks: Vec<PathBuf>,
    /// A majority of the voters is gone for good: of each node that is left, the same
    #[arg(long, num_args = 1.., value_name = "DIR", conflicts_with = "from_disks", requires = "lost")]
    pub force_majority: Vec<PathBuf>,
    /// The ids of the voters that are gone, all of them; what only they had heard of is lost
    #[arg(long, value_name = "ID[,ID]", value_delimiter = ',', requires = "force_majority")]
    pub lost: Vec<u32>,
    /// What is remembered of a volume, as `ID=NAME,size=20GiB,rf=2` or less of it; once for each
    #[arg(long = "volume", value_name = "ID=NAME", conflicts_with = "force_majority")]
    pub volumes: Vec<Remembered>,
    /// Nodes and disks that are not there are gone for good, and so is what only they had
    #[arg(long, conflicts_with = "force_majority")]
    pub others_are_lost: bool,
    /// Show what would be made, and write nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// A node of a cluster that is being made, as it is typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNode {
    pub name: String,
    pub host: String,
    pub api: u16,
    pub peer: u16,
    pub nbd: u16,
    pub http: u16,
}

impl FromStr for NewNode {
    type Err = String;

    fn from_str(typed: &str) -> Result<Self, String> {
        let wrong = || "a node is NAME=HOST, such as node1=10.0.0.1".to_owned();
        let (name, rest) = typed.split_once('=').ok_or_else(wrong)?;
        let mut parts = rest.split(',');
        let host = parts.next().unwrap_or_default();
        if name.is_empty() || host.is_empty() || host.contains(char::is_whitespace) {
            return Err(wrong());
        }
        let (name, host) = (name.to_owned(), host.to_owned());
        let mut node = Self { name, host, api: 7400, peer: 7500, nbd: 10809, http: 7600 };
        for part in parts {
            let (what, port) = part.split_once('=').ok_or_else(wrong)?;
            let port = port.parse().map_err(|_| format!("{port} is no port"))?;
            match what {
                "api" => node.api = port,
                "peer" => node.peer = port,
                "nbd" => node.nbd = port,
                "http" => node.http = port,
                _ => return Err(format!("{what} is none of api, peer, nbd, http")),
            }
        }
        Ok(node)
    }
}

#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// Make a node: write its identity, make or format its disks; what is its own already is kept
    Init {
        #[arg(long)]
        config: PathBuf,
        /// Also take disks that hold data, and replace those that are gone: what is lost is named
        #[arg(long)]
        force: bool,
    },
    /// Run a node in the foreground; SIGTERM stops it cleanly
    Run {
        #[arg(long)]
        config: PathBuf,
        /// Overrides the configuration's `io`
        #[arg(long)]
        io: Option<IoDriver>,
        /// Stop when the process that started this one dies
        #[arg(long, hide = true)]
        with_parent: bool,
    },
    /// Start a node of `up` that does not run
    Start {
        node: u32,
        #[arg(long, default_value = "gabion-data")]
        dir: PathBuf,
    },
    /// Signal a node of `up`
    Kill {
        node: u32,
        #[arg(long, default_value = "gabion-data")]
        dir: PathBuf,
        #[arg(long, default_value = "KILL")]
        signal: String,
    },
    /// All nodes, and how they are
    List,
    /// Remove a drained node from the cluster, for good; its id is never used again
    Remove {
        /// Its id or its name
        node: String,
        /// One that is dead for good and holds no last copy, though it is not drained
        #[arg(long)]
        force: bool,
    },
    /// Empty all disks of a node and hand over what it owns: it may be taken away when that is done
    Drain {
        /// Its id or its name
        node: String,
        /// Until nothing is left on it
        #[arg(long, conflicts_with = "cancel")]
        wait: bool,
        /// It is used again
        #[arg(long)]
        cancel: bool,
    },
}

#[derive(Debug, Args)]
pub struct AddDiskArgs {
    /// A whole device, or a file that is made and written full
    pub path: PathBuf,
    /// Of the file; of a device, what is used of it: else all
    #[arg(long, value_parser = disk_size)]
    pub size: Option<ByteSize>,
    /// The node's. Without: gabion-data/node1/config.toml, else /etc/gabion/node.toml
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Also a disk that holds data: what is lost is named
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Subcommand)]
pub enum DiskVerb {
    /// All disks, and how they are
    List,
    /// On a node's machine: make a disk more for it, whether it runs or not; its configuration names it then
    Add(AddDiskArgs),
    /// Empty a disk: its copies move to others, none is missed meanwhile; it may be taken away then
    Drain {
        /// Its id or its path
        disk: String,
        /// Id or name of its node, where several have that path
        #[arg(long)]
        node: Option<String>,
        /// Until nothing is left on it
        #[arg(long, conflicts_with = "cancel")]
        wait: bool,
        /// It is used again
        #[arg(long)]
        cancel: bool,
    },
    /// Read a disk that no node uses from end to end, verify every structure and block; exit code 0 if all is good
    Check { path: PathBuf },
    /// What lies where on a disk that no node uses: superblock, journal, map
    Show { path: PathBuf },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttachMode {
    /// Whoever opens it
    Any,
    /// The guests of one node at a time (not built yet: refused)
    Exclusive,
}

#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Make a volume; done when every copy has durably recorded it
    Create {
        name: String,
        #[arg(long)]
        size: ByteSize,
        /// Copies of each block
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
        rf: u32,
        /// I/O without a usable copy or a majority: never-fail holds it for ever, else a time such as 60s
        #[arg(long, default_value = "never-fail")]
        hold: String,
        #[arg(long, default_value = "any")]
        attach: AttachMode,
    },
    /// All volumes
    List,
    /// One volume with all its segments
    Show { name: String },
    /// Why it is as it is, what is copied from where to where, and which single loss would hurt now
    Explain { name: String },
    /// Wait until a volume is healthy; exit code 3 if it is not in time
    Wait {
        name: String,
        /// Every segment has all its copies in sync
        #[arg(long, required = true)]
        healthy: bool,
        #[arg(long, default_value = "120s")]
        timeout: Span,
    },
    /// Where each copy of one block lies now
    Locate {
        name: String,
        /// A byte of the volume
        offset: ByteSize,
    },
    /// Make a volume larger
    Resize {
        name: String,
        #[arg(long)]
        size: ByteSize,
    },
    /// Make another node the owner
    Move {
        name: String,
        /// Name or number of the node
        #[arg(long)]
        to: String,
    },
    /// Look through all copies of a volume, and mend what is bad or behind
    Scrub {
        name: String,
        /// Read and verify every block of every copy; else their tables are compared
        #[arg(long)]
        deep: bool,
        /// Until it is done; exit 1 where something could not be mended
        #[arg(long)]
        wait: bool,
    },
    /// What is left of segments whose copies are all gone: alone it only tells
    Recover {
        name: String,
        /// Go on with that, for good: what only the copies had that are gone is LOST, also if they come back
        #[arg(long)]
        accept_loss: bool,
    },
    /// Who is connected to a volume, at whichever node
    Clients { name: String },
    /// Close connections to a volume; of an exclusive one the evicted nodes' guests stay out until one of
    /// another node is in
    Evict {
        name: String,
        /// This one only, by its id in `volume clients`; it may come back
        #[arg(long)]
        client: Option<String>,
        /// Evict nobody, and let those in again that were evicted
        #[arg(long, conflicts_with = "client")]
        let_back: bool,
    },
    /// Delete a volume; refused while guests are attached
    Delete {
        name: String,
        /// Also while guests are attached
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum SupportVerb {
    /// One tar: status, volumes, disks, settings, events, metrics, and the logs of an `up`; no guests' data, no secret
    Bundle {
        /// Without: gabion-support-TIME.tar here
        #[arg(long)]
        out: Option<PathBuf>,
        /// Whose logs are taken, if it is there
        #[arg(long, default_value = "gabion-data")]
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum SettingsVerb {
    /// All settings with their values
    List,
    /// One value
    Get { name: String },
    /// Change one on all nodes
    Set { name: String, value: String },
}

#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// A volume's name, or an NBD URI
    pub target: String,
    #[arg(long, default_value = "randwrite")]
    pub rw: BenchMode,
    /// Bytes of one request
    #[arg(long, default_value = "4k", value_parser = parse_bench_size)]
    pub bs: u32,
    /// Requests in flight
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub depth: u32,
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchMode {
    Read,
    Write,
    #[value(name = "randread")]
    RandRead,
    #[value(name = "randwrite")]
    RandWrite,
}

/// Block sizes are written as fio writes them: `4k`, `1m`; always binary.
fn parse_bench_size(typed: &str) -> Result<u32, String> {
    let wrong = || "a block size is a multiple of 512 up to 32m, such as 4k or 1m".to_owned();
    let lower = typed.to_ascii_lowercase();
    let (number, unit) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 1 << 10),
        Some(b'm') => (&lower[..lower.len() - 1], 1 << 20),
        _ => (lower.as_str(), 1u32),
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    let bytes = number.checked_mul(unit).ok_or_else(wrong)?;
    let fits = bytes > 0 && bytes.is_multiple_of(512) && bytes <= 32 << 20;
    fits.then_some(bytes).ok_or_else(wrong)
}

#[cfg(test)]
mod tests;
