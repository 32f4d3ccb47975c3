//! The manual: pages of documentation, and no code.
//!
//! | page | for whom |
//! |---|---|
//! | [`guarantees`] | everybody: what holds, which test proves it, and what is not promised |
//! | [`operating`] | those who run it: folders, modes, crashes, cancel, limits, memory, exit codes |
//! | [`clouds`] | those who put it behind a cloud's API: configuration, calls, states, followers, what strangers can do |
//! | [`formats`] | those who read its bytes: journal, manifest, job record, digests |
//! | [`encryption`] | those who encrypt images at rest: keys, bytes, what is protected and what is not |
//! | [`protocol`] | those who write, or watch, the other side of a peer copy: every byte on the wire, every state |
//! | [`performance`] | those who ask how fast it is, and why it works as it does: figures, what was tried, what was dropped |
//! | [`testing`] | those who ask why any of this should be believed: what is tried, how often, and what is not |
//! | [`architecture`] | those who change it: the corridor, the rooms, who may know whom |

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[cfg(feature = "clouds")]
#[doc = include_str!("clouds.md")]
pub mod clouds {}
#[doc = include_str!("encryption.md")]
pub mod encryption {}

#[doc = include_str!("formats.md")]
pub mod formats {}

#[doc = include_str!("guarantees.md")]
pub mod guarantees {}

#[doc = include_str!("operating.md")]
pub mod operating {}

#[doc = include_str!("performance.md")]
pub mod performance {}

#[doc = include_str!("protocol.md")]
pub mod protocol {}

#[doc = include_str!("testing.md")]
pub mod testing {}
