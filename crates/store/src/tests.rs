//! A store on a model disk.

mod crash;
mod damage;
mod joins;
pub(crate) mod model;
mod replay;
mod requests;
mod verify;
