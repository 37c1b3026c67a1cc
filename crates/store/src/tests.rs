//! A store on a model disk.

mod crash;
mod damage;
mod joins;
mod model;
mod replay;
mod requests;
