//! What has to hold, one file each.

pub mod replicas_equal;
pub mod whole;
