//! Blockferry copies disk images between regions.

pub mod chunk;
mod codec;
pub mod error;
pub mod geometry;
pub mod id;
pub mod options;

pub use error::{Error, ErrorKind, Result};
