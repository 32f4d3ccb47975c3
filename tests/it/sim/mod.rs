//! The engine on a simulated host: random lives, and one fault at every call.

mod away;
#[cfg(feature = "encrypt")]
mod encrypted;
mod host;
mod life;
mod oracle;
mod points;
mod random;
mod removal;
mod settle;
