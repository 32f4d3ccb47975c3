//! The chunk protocol between two daemons, as pure machines: frames, messages, sessions. Pure.
//!
//! One daemon sends the bytes of an image, the other stages, verifies and commits them. Who dialled
//! does not matter: a daemon may push to another or pull from it. Nothing here reads a socket or a
//! clock; bytes, time and the ends of connections are handed in, frames and events are taken out.
//!
//! | to | see |
//! |---|---|
//! | cut a stream of bytes into frames | [`frame`] |
//! | know what the frames say | [`message`] |
//! | speak with another daemon | [`session`] |
//! | put a chunk in fewer bytes, and safely back | [`compress`](crate::compress) |

pub mod frame;
pub mod message;
pub mod session;
