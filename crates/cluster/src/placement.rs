//! Where the segments of a new volume go.
