//! What a lane asks before it moves bytes, for benches: the path itself is no caller's business.

use std::time::Instant;

use crate::throttle::{Take, Throttle, ThrottlePath};

/// Somebody who is charged at several throttles at once, as a job is at its engine's, its regions'
/// and its own.
#[derive(Clone, Debug)]
pub struct Taker(ThrottlePath);

impl Taker {
    /// One who takes from all of these nodes or from none.
    pub fn new(nodes: impl IntoIterator<Item = Throttle>) -> Self {
        Self(ThrottlePath::new(nodes))
    }

    /// Takes `bytes` and `ops` at `now`; `None`: granted. Else nothing was taken, and this is when
    /// to ask again.
    #[must_use = "a refusal that is ignored breaks the ceiling"]
    pub fn take(&self, now: Instant, bytes: u64, ops: u64) -> Option<Instant> {
        match self.0.take(now, bytes, ops) {
            Take::Granted => None,
            Take::At(at) => Some(at),
        }
    }
}
