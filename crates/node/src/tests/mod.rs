//! Parts of a node against each other, without a cluster.

mod links;
mod sessions;
