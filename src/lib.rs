//! Blockferry copies disk images between regions.

pub mod chunk;
mod codec;
mod disk;
pub mod error;
pub mod geometry;
pub mod id;
pub mod job;
pub mod location;
pub mod options;
pub mod seal;

pub use error::{Error, ErrorKind, Result};
