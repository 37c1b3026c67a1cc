//! A store on a model disk.

mod crash;
mod damage;
mod joins;
mod loads;
pub(crate) mod model;
mod replay;
mod requests;
mod verify;
