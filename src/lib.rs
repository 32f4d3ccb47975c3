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

pub use error::{Error, ErrorKind, Result};
