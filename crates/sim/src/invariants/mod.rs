//! What has to hold, one file each. What a read may return is the judge's: `oracle`.

pub mod bounded;
pub mod durable_on_all;
pub mod exactly_once;
pub mod flush_means_flush;
pub mod hold_not_fail;
pub mod majority_first;
pub mod never_fewer;
pub mod no_leaks;
pub mod no_sleepers;
pub mod no_spinning;
pub mod no_write_under_read;
pub mod one_owner;
pub mod place;
pub mod replicas_equal;
pub mod settled_on_all;
pub mod sound_sources;
pub mod whole;
