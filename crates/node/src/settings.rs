//! What a node works by until the map says otherwise.

use gabion_types::{Duration, Flaws, Limits};

/// Times and bounds of one node. Where the cluster map has a setting of the same meaning, the map's
/// value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    pub limits: Limits,
    pub ping_interval: Duration,
    /// No byte on a link with a ping outstanding for so long: silent.
    pub ping_silence: Duration,
    /// A closed connection that cannot be dialled anew for so long: down.
    pub reconnect_grace: Duration,
    pub redial_interval: Duration,
    pub lease: Duration,
    pub renew_interval: Duration,
    /// A proposal without an outcome is proposed again after so long.
    pub propose_again: Duration,
    /// A volume's name that is not known yet may still be on its way.
    pub unknown_name_wait: Duration,
    /// A front or owner that is not heard from loses its session after so long.
    pub session_wait: Duration,
    /// An owner without guests of its own lets the volume go after so long, if others have some.
    pub idle_owner_wait: Duration,
    /// A clean stop is over after so long, finished or not.
    pub stop_wait: Duration,
    pub fence_wait: Duration,
    /// A peer that was not seen in this process's life counts as failed after so long: all nodes may
    /// have lost power together.
    pub start_wait: Duration,
    pub slow_wait: Duration,
    pub lag: Duration,
    pub rebuild_wait: Duration,
    pub fill_bytes_in_flight: u64,
    // promise: bounded
    /// Bytes of requests given to one link that have not left this machine. Full: what carries data
    /// waits with the owner or the front that has it.
    pub link_unsent_max: u64,
    /// The part of a disk's time that scrubs take at most.
    pub scrub_share_percent: u32,
    /// A disk that has not answered for so long is out of service. Zero: it may take for ever.
    pub disk_hang: Duration,
    /// Map pages that each disk keeps in memory.
    pub map_pages_max: usize,
    /// None but in tests.
    pub flaws: Flaws,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            limits: Limits::DEFAULT,
            ping_interval: Duration::from_millis(250),
            ping_silence: Duration::from_secs(1),
            reconnect_grace: Duration::from_millis(200),
            redial_interval: Duration::from_millis(50),
            lease: Duration::from_secs(3),
            renew_interval: Duration::from_millis(500),
            propose_again: Duration::from_millis(500),
            unknown_name_wait: Duration::from_millis(500),
            session_wait: Duration::from_secs(1),
            idle_owner_wait: Duration::from_secs(5),
            stop_wait: Duration::from_secs(8),
            fence_wait: Duration::from_secs(1),
            start_wait: Duration::from_secs(10),
            slow_wait: Duration::from_secs(5),
            lag: Duration::from_millis(100),
            rebuild_wait: Duration::from_secs(60),
            fill_bytes_in_flight: 8 << 20,
            link_unsent_max: 4 << 20,
            scrub_share_percent: 10,
            disk_hang: Duration::from_secs(30),
            map_pages_max: 65_536,
            flaws: Flaws::NONE,
        }
    }
}
