//! Counters of a running job, and what is told of them: rate, time to the end, shares.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::job::{Stall, Stalls};

/// Over how long the rate is averaged.
const RATE_WINDOW: Duration = Duration::from_secs(3);

/// What the lanes count. Relaxed: the counters order nothing, and joins make the last values seen.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) read_bytes: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
    pub(crate) reused_bytes: AtomicU64,
    /// Bytes of planned chunks that are dealt with: what the rate and the time to the end rest on.
    pub(crate) passed_bytes: AtomicU64,
    pub(crate) planned_bytes: AtomicU64,
    stalls_ns: [AtomicU64; Stall::ALL.len()],
    moves_issued: AtomicU64,
    moves_succeeded: AtomicU64,
    moves_failed: AtomicU64,
    moves_cancelled: AtomicU64,
}

/// What became of the moves of a job, or of many: a move is what a lane takes from the plan at a
/// time, a run of chunks or of zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Moves {
    /// Those that were begun.
    pub issued: u64,
    /// Those that moved all of theirs.
    pub succeeded: u64,
    /// Those that ended in an error.
    pub failed: u64,
    /// Those that ended while their job was being stopped: perhaps with all of theirs, perhaps not.
    pub cancelled: u64,
}

impl Moves {
    /// Whether every move that was begun has ended, and its end was looked at. Not so while a job
    /// runs.
    pub fn is_balanced(&self) -> bool {
        self.issued == self.succeeded + self.failed + self.cancelled
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.issued += other.issued;
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
    }
}

/// How a move ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MoveEnd {
    Succeeded,
    Failed,
    Cancelled,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Relaxed);
    }

    pub(crate) fn stalled(&self, stall: Stall, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.stalls_ns[slot(stall)].fetch_add(ns, Relaxed);
    }

    pub(crate) fn stalls(&self) -> Stalls {
        let of = |stall| Duration::from_nanos(self.stalls_ns[slot(stall)].load(Relaxed));
        Stalls {
            read: of(Stall::Read),
            seal: of(Stall::Seal),
            throttle: of(Stall::Throttle),
            write: of(Stall::Write),
            sync: of(Stall::Sync),
        }
    }

    pub(crate) fn issued(&self) {
        Self::add(&self.moves_issued, 1);
    }

    pub(crate) fn ended(&self, end: MoveEnd) {
        let counter = match end {
            MoveEnd::Succeeded => &self.moves_succeeded,
            MoveEnd::Failed => &self.moves_failed,
            MoveEnd::Cancelled => &self.moves_cancelled,
        };
        Self::add(counter, 1);
    }

    pub(crate) fn moves(&self) -> Moves {
        Moves {
            issued: self.moves_issued.load(Relaxed),
            succeeded: self.moves_succeeded.load(Relaxed),
            failed: self.moves_failed.load(Relaxed),
            cancelled: self.moves_cancelled.load(Relaxed),
        }
    }

    /// Every move that was issued has ended, and its end was looked at.
    ///
    /// # Errors
    /// `Io` when not: then a completion was dropped.
    pub(crate) fn balance(&self) -> Result<()> {
        let moves = self.moves();
        if moves.is_balanced() { Ok(()) } else { Err(unaccounted(moves)) }
    }

    /// As [`Counters::balance`], and all of them succeeded: else nothing may be committed.
    pub(crate) fn all_succeeded(&self) -> Result<()> {
        let moves = self.moves();
        if moves.issued == moves.succeeded { Ok(()) } else { Err(unaccounted(moves)) }
    }
}

fn unaccounted(moves: Moves) -> Error {
    let Moves { issued, succeeded, failed, cancelled } = moves;
    let sum = format!("{issued} issued, {succeeded} succeeded, {failed} failed");
    Error::new(ErrorKind::Io, format!("account for moves: {sum}, {cancelled} cancelled"))
}

fn slot(stall: Stall) -> usize {
    match stall {
        Stall::Read => 0,
        Stall::Seal => 1,
        Stall::Throttle => 2,
        Stall::Write => 3,
        Stall::Sync => 4,
    }
}

/// Bytes passed at some moments of the last seconds.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// Notes a sample and returns bytes per second over the window.
    pub(crate) fn sample(&mut self, now: Instant, bytes: u64) -> u64 {
        while self.samples.len() > 2
            && self.samples.front().is_some_and(|(at, _)| now - *at > RATE_WINDOW)
        {
            self.samples.pop_front();
        }
        self.samples.push_back((now, bytes));
        let Some((since, before)) = self.samples.front() else { return 0 };
        let ms = (now - *since).as_millis();
        if ms == 0 {
            return 0;
        }
        u64::try_from(u128::from(bytes - before) * 1000 / ms).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_that_of_the_last_seconds() {
        let mut rate = Rate::default();
        let mut bytes = 0;
        for _ in 0..100 {
            tokio::time::advance(Duration::from_millis(100)).await;
            bytes += 1000;
            rate.sample(Instant::now(), bytes);
        }
        assert_eq!(rate.sample(Instant::now(), bytes), 10_000 * 31 / 31);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(rate.sample(Instant::now(), bytes) < 10_000);
    }

    #[test]
    fn a_dropped_completion_is_noticed() {
        let counters = Counters::default();
        counters.issued();
        assert!(counters.balance().is_err());
        for (end, all_succeeded) in
            [(MoveEnd::Succeeded, true), (MoveEnd::Failed, false), (MoveEnd::Cancelled, false)]
        {
            counters.ended(end);
            assert!(counters.balance().is_ok(), "{end:?}");
            assert_eq!(counters.all_succeeded().is_ok(), all_succeeded, "{end:?}");
            counters.issued();
            assert!(counters.balance().is_err() && counters.all_succeeded().is_err(), "{end:?}");
        }
        let moves = Moves { issued: 4, succeeded: 1, failed: 1, cancelled: 1 };
        assert_eq!(counters.moves(), moves);
        let mut sum = moves;
        sum.add(moves);
        assert_eq!(sum, Moves { issued: 8, succeeded: 2, failed: 2, cancelled: 2 });
    }
}
