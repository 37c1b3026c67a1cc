//! A store on a model disk.

mod crash;
mod damage;
mod hangs;
mod joins;
mod loads;
mod look;
pub(crate) mod model;
mod paced;
mod replay;
mod requests;
mod straighten;
mod verify;
