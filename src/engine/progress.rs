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
    moves_ended: AtomicU64,
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

    /// A move ended: it succeeded, failed or was given up.
    pub(crate) fn ended(&self) {
        Self::add(&self.moves_ended, 1);
    }

    /// Every move that was issued has ended, and its end was looked at.
    ///
    /// # Errors
    /// `Io` when not: then a completion was dropped, and nothing may be committed.
    pub(crate) fn balance(&self) -> Result<()> {
        let (issued, ended) = (self.moves_issued.load(Relaxed), self.moves_ended.load(Relaxed));
        if issued == ended {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Io, format!("account for moves: {issued} issued, {ended} ended")))
    }
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
        counters.ended();
        assert!(counters.balance().is_ok());
    }
}
