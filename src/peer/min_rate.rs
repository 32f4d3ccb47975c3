//! Whether a peer that owes bytes sends them fast enough, given `now`. Pure.

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

/// A peer that owes bytes must move them at a lowest rate, averaged over a span of time.
///
/// It keeps a purse of time, full at first with the whole span. While something is owed, the purse
/// empties as time goes by; every byte that moves puts back what it takes at the lowest rate; while
/// nothing is owed it fills again. A peer with an empty purse is too slow. So one that sends
/// nothing lasts exactly the span, one at half the rate twice as long, and one at the lowest rate
/// for ever; and a peer that trickles many small bodies pays from the same purse for all of them.
#[derive(Clone, Debug)]
pub struct MinRate {
    bytes_per_sec: u64,
    over: Duration,
    /// What was in the purse at `since`.
    left: Duration,
    since: Instant,
    owed: bool,
}

impl MinRate {
    /// What is asked of peers unless somebody says otherwise.
    pub const BYTES_PER_SEC: u64 = 16 << 10;
    /// The span that it is averaged over unless somebody says otherwise.
    pub const OVER: Duration = Duration::from_secs(30);

    /// A full purse, and nothing owed. A rate of 0 asks for nothing but that, within the span,
    /// something moves.
    pub fn new(bytes_per_sec: u64, over: Duration, now: Instant) -> Self {
        Self { bytes_per_sec, over, left: over, since: now, owed: false }
    }

    /// Something is owed from now on: a frame's header has come and its body has not, or the peer
    /// does not take what is to be written. Nothing changes where something is owed already.
    pub fn owed(&mut self, now: Instant) {
        self.settle(now);
        self.owed = true;
    }

    /// Nothing is owed any more, or it is this side that does not read.
    pub fn rest(&mut self, now: Instant) {
        self.settle(now);
        self.owed = false;
    }

    /// Bytes have moved.
    pub fn moved(&mut self, bytes: u64, now: Instant) {
        self.settle(now);
        let nanos = match self.bytes_per_sec {
            0 => u128::MAX,
            rate => u128::from(bytes) * NANOS_PER_SEC / u128::from(rate),
        };
        let gained = u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos);
        self.left = self.left.saturating_add(gained).min(self.over);
    }

    /// When the peer is too slow if nothing moves until then; `None` while nothing is owed.
    pub fn ends_at(&self) -> Option<Instant> {
        if self.owed { self.since.checked_add(self.left) } else { None }
    }

    /// Whether the peer is fast enough yet.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when it is too slow.
    pub fn check(&self, now: Instant) -> Result<()> {
        if self.ends_at().is_none_or(|end| now < end) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unavailable, "wait for bytes that the other side owes").hint(
            format!("it moved less than {} bytes/s over {:?}", self.bytes_per_sec, self.over),
        ))
    }

    /// Brings the purse up to `now`. A clock read before another's changes nothing.
    fn settle(&mut self, now: Instant) {
        let past = now.saturating_duration_since(self.since);
        self.since = self.since.max(now);
        self.left = match self.owed {
            true => self.left.saturating_sub(past),
            false => self.left.saturating_add(past).min(self.over),
        };
    }
}

const NANOS_PER_SEC: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: Duration = Duration::from_secs(1);
    const RATE: u64 = 1000;

    fn owing(start: Instant) -> MinRate {
        let mut guard = MinRate::new(RATE, 30 * SEC, start);
        guard.owed(start);
        guard
    }

    /// Feeds `bytes` each `pause` until it is too slow, at most for an hour; tells when that was.
    fn lasts(guard: &mut MinRate, start: Instant, pause: Duration, bytes: u64) -> Option<Duration> {
        let mut now = start;
        while now < start + 3600 * SEC {
            let next = now + pause;
            if let Some(end) = guard.ends_at().filter(|&end| end <= next) {
                assert!(guard.check(end).is_err());
                assert!(guard.check(end - Duration::from_nanos(1)).is_ok());
                return Some(end - start);
            }
            now = next;
            guard.moved(bytes, now);
        }
        None
    }

    #[test]
    fn a_peer_lasts_by_its_rate() {
        let start = Instant::now();
        assert_eq!(lasts(&mut owing(start), start, SEC, 0), Some(30 * SEC));
        assert_eq!(lasts(&mut owing(start), start, SEC, RATE), None);
        assert_eq!(lasts(&mut owing(start), start, 10 * SEC, 10 * RATE), None);
        assert_eq!(lasts(&mut owing(start), start, SEC, 100 * RATE), None);
        // The end comes in a pause, so up to one pause's worth of what is left early.
        let half = lasts(&mut owing(start), start, SEC / 10, RATE / 20).unwrap();
        assert!(half.abs_diff(60 * SEC) <= SEC, "{half:?}");
        let almost = lasts(&mut owing(start), start, SEC / 10, RATE * 9 / 100).unwrap();
        assert!(almost.abs_diff(300 * SEC) <= SEC, "{almost:?}");
    }

    #[test]
    fn bytes_in_advance_buy_no_more_than_the_span() {
        let start = Instant::now();
        let mut guard = owing(start);
        guard.moved(u64::MAX, start + SEC);
        assert_eq!(guard.ends_at(), Some(start + 31 * SEC));
    }

    #[test]
    fn what_nobody_owes_is_not_asked_for() {
        let start = Instant::now();
        let mut guard = MinRate::new(RATE, 30 * SEC, start);
        assert_eq!(guard.ends_at(), None);
        assert!(guard.check(start + 3600 * SEC).is_ok());
        guard.owed(start + 3600 * SEC);
        assert_eq!(guard.ends_at(), Some(start + 3630 * SEC));
        // Owed twice is owed once.
        guard.owed(start + 3610 * SEC);
        assert_eq!(guard.ends_at(), Some(start + 3630 * SEC));
        guard.rest(start + 3629 * SEC);
        assert_eq!(guard.ends_at(), None);
        assert!(guard.check(start + 9999 * SEC).is_ok());
    }

    #[test]
    fn a_trickle_of_small_bodies_pays_from_one_purse() {
        let start = Instant::now();
        let mut guard = MinRate::new(RATE, 30 * SEC, start);
        let mut now = start;
        let mut bodies = 0;
        // Each body of 10 bytes is owed for 20 s, and the next one begins right after it.
        let error = loop {
            guard.owed(now);
            now += 20 * SEC;
            if let Err(error) = guard.check(now) {
                break error;
            }
            guard.moved(10, now);
            guard.rest(now);
            bodies += 1;
        };
        assert_eq!((bodies, error.kind()), (1, ErrorKind::Unavailable));
    }

    #[test]
    fn rest_fills_the_purse_again() {
        let start = Instant::now();
        let mut guard = owing(start);
        guard.rest(start + 20 * SEC);
        guard.owed(start + 25 * SEC);
        assert_eq!(guard.ends_at(), Some(start + (25 + 15) * SEC));
    }

    #[test]
    fn extremes_neither_overflow_nor_stick() {
        let start = Instant::now();
        let mut any = MinRate::new(0, SEC, start);
        any.owed(start);
        any.moved(1, start + SEC / 2);
        assert_eq!(any.ends_at(), Some(start + SEC + SEC / 2));
        let mut fast = MinRate::new(u64::MAX, Duration::MAX, start);
        fast.owed(start);
        fast.moved(u64::MAX, start + SEC);
        assert!(fast.check(start + SEC).is_ok());
        // A clock read earlier than the last one.
        let mut guard = owing(start + SEC);
        guard.moved(0, start);
        assert_eq!(guard.ends_at(), Some(start + 31 * SEC));
    }
}
