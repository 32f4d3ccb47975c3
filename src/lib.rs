//! Blockferry copies disk images between regions.

pub mod chunk;
mod codec;
mod disk;
pub mod engine;
pub mod error;
pub mod geometry;
pub mod id;
pub mod job;
mod journal;
pub mod location;
pub mod manifest;
pub mod options;
pub mod plan;
pub mod region;
pub mod seal;
#[cfg(feature = "testing")]
pub mod testing;
pub mod throttle;

pub use error::{Error, ErrorKind, Result};
