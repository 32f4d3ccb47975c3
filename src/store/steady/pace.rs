//! How many requests at a time, how long until the next try, when to send a second one. Pure.

use std::time::Duration;
use std::time::Instant;

use crate::store::Class;

/// How a [`Steady`](super::Steady) store goes about it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SteadyOptions {
    /// How often a request is sent at most, the first time included.
    pub attempts_max: u32,
    /// How long a call goes on trying.
    pub patience: Duration,
    /// How long one request may take, beside the time for its bytes.
    pub deadline: Duration,
    /// The slowest that bytes may move, in bytes per second.
    pub bytes_per_sec_min: u64,
    /// Requests at a time: at first.
    pub window_first: usize,
    /// Requests at a time: at most.
    pub window_max: usize,
    /// The delay before the second try, doubled for each further one.
    pub backoff_first: Duration,
    /// The longest delay between two tries.
    pub backoff_max: Duration,
    /// Whether a straggler among reads, and writes without a condition, is sent a second time.
    pub hedge: bool,
}

impl Default for SteadyOptions {
    fn default() -> Self {
        Self {
            attempts_max: 8,
            patience: Duration::from_secs(120),
            deadline: Duration::from_secs(30),
            bytes_per_sec_min: 256 << 10,
            window_first: 16,
            window_max: 64,
            backoff_first: Duration::from_millis(50),
            backoff_max: Duration::from_secs(10),
            hedge: true,
        }
    }
}

impl SteadyOptions {
    /// How long a request that moves that many bytes may take.
    pub(super) fn deadline_of(&self, bytes: u64) -> Duration {
        self.deadline + Duration::from_secs(bytes / self.bytes_per_sec_min.max(1))
    }
}

/// How many requests may be under way: one more for each round that went well, half as many when
/// the store asks for fewer.
#[derive(Debug)]
pub(super) struct Window {
    limit: usize,
    limit_max: usize,
    in_flight: usize,
    /// Successes since the limit last grew.
    good_count: usize,
    last_cut: Option<Instant>,
}

impl Window {
    pub(super) fn new(options: &SteadyOptions) -> Self {
        let limit_max = options.window_max.max(1);
        let limit = options.window_first.clamp(1, limit_max);
        Self { limit, limit_max, in_flight: 0, good_count: 0, last_cut: None }
    }

    /// Takes a place for one request, if there is one.
    pub(super) fn enter(&mut self) -> bool {
        let is_free = self.in_flight < self.limit;
        self.in_flight += usize::from(is_free);
        is_free
    }

    /// Gives the place back. `begun`: when the request was sent.
    pub(super) fn leave(&mut self, verdict: Option<Class>, begun: Instant, now: Instant) {
        debug_assert!(self.in_flight > 0, "a place is given back once");
        self.in_flight = self.in_flight.saturating_sub(1);
        match verdict {
            None => {
                self.good_count += 1;
                if self.good_count >= self.limit && self.limit < self.limit_max {
                    self.limit += 1;
                    self.good_count = 0;
                }
            }
            // All that were under way at the last cut tell of the same crowd.
            Some(Class::Throttled) if self.last_cut.is_none_or(|cut| begun > cut) => {
                self.limit = (self.limit / 2).max(1);
                self.good_count = 0;
                self.last_cut = Some(now);
            }
            Some(_) => {}
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }
}

/// What may be spent on tries beyond the first: refilled by successes, so that a store that is down
/// is not asked ever more.
#[derive(Debug)]
pub(super) struct Budget {
    tokens: u32,
}

impl Budget {
    const TOKENS_MAX: u32 = 500;
    const RETRY_COST: u32 = 5;

    pub(super) fn new() -> Self {
        Self { tokens: Self::TOKENS_MAX }
    }

    pub(super) fn refill(&mut self) {
        self.tokens = (self.tokens + 1).min(Self::TOKENS_MAX);
    }

    pub(super) fn spend(&mut self) -> bool {
        let left = self.tokens.checked_sub(Self::RETRY_COST);
        self.tokens = left.unwrap_or(self.tokens);
        left.is_some()
    }
}

/// The delay before the next try, after `attempt` (counted from 1) failed; `None`: give up.
///
/// `dice` is random; `asked` what the store asked for; `spent` how long the call has taken.
pub(super) fn delay(
    options: &SteadyOptions,
    attempt: u32,
    class: Class,
    asked: Option<Duration>,
    spent: Duration,
    dice: u64,
) -> Option<Duration> {
    if class == Class::Fatal || attempt >= options.attempts_max {
        return None;
    }
    let doubled = options.backoff_first.saturating_mul(1 << attempt.saturating_sub(1).min(16));
    // Who was told to go away stays away longer.
    let doubled = if class == Class::Throttled { doubled.saturating_mul(4) } else { doubled };
    let ceiling = doubled.min(options.backoff_max);
    // Between half and all of it, so that those who were turned away together do not come back so.
    let micros = u64::try_from(ceiling.as_micros()).unwrap_or(u64::MAX);
    let wait = Duration::from_micros(micros / 2 + dice % (micros / 2 + 1));
    let wait = wait.max(asked.unwrap_or_default());
    (spent + wait <= options.patience).then_some(wait)
}

/// How long requests of one kind take, to know a straggler.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Latency {
    /// In microseconds, and how far they lie from it.
    mean: u64,
    spread: u64,
    count: u64,
    /// Second sendings that are allowed, in twentieths.
    credit: u64,
}

impl Latency {
    const COUNT_MIN: u64 = 16;
    const WAIT_MIN: Duration = Duration::from_millis(200);
    /// One in twenty.
    const COST: u64 = 20;

    pub(super) fn note(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min(1 << 40);
        if self.count == 0 {
            (self.mean, self.spread) = (micros, micros / 2);
        } else {
            self.spread = (self.spread * 7 + self.mean.abs_diff(micros)) / 8;
            self.mean = (self.mean * 7 + micros) / 8;
        }
        self.count += 1;
        self.credit = (self.credit + 1).min(Self::COST * 4);
    }

    /// After how long a request of this kind is a straggler, once enough is known.
    pub(super) fn straggles_after(&self) -> Option<Duration> {
        let late = Duration::from_micros(self.mean * 2 + self.spread * 4);
        (self.count >= Self::COUNT_MIN).then_some(late.max(Self::WAIT_MIN))
    }

    /// Takes the right to send one a second time.
    pub(super) fn spend(&mut self) -> bool {
        let left = self.credit.checked_sub(Self::COST);
        self.credit = left.unwrap_or(self.credit);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> SteadyOptions {
        SteadyOptions { window_first: 4, window_max: 6, ..SteadyOptions::default() }
    }

    #[test]
    fn the_window_grows_by_one_a_round_and_halves_once_a_crowd() {
        let mut window = Window::new(&options());
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let round = |window: &mut Window, verdict, begun, now| {
            let mut count = 0;
            while window.enter() {
                count += 1;
            }
            for _ in 0..count {
                window.leave(verdict, begun, now);
            }
            count
        };
        assert_eq!(round(&mut window, None, at(0), at(1)), 4);
        assert_eq!(round(&mut window, None, at(1), at(2)), 5);
        assert_eq!(round(&mut window, None, at(2), at(3)), 6);
        // Full; and four that are turned away together are one crowd.
        assert_eq!(round(&mut window, Some(Class::Throttled), at(3), at(4)), 6);
        assert_eq!(window.limit(), 3);
        assert_eq!(round(&mut window, Some(Class::Throttled), at(4), at(5)), 3);
        assert_eq!(window.limit(), 3, "begun no later than the cut");
        round(&mut window, Some(Class::Throttled), at(6), at(7));
        round(&mut window, Some(Class::Throttled), at(8), at(9));
        round(&mut window, Some(Class::Throttled), at(10), at(11));
        assert_eq!((window.limit(), window.in_flight), (1, 0));
        round(&mut window, Some(Class::Transient), at(12), at(13));
        assert_eq!(window.limit(), 1);
    }

    #[test]
    fn delays_double_with_jitter_and_end() {
        let options = SteadyOptions::default();
        let wait = |attempt, class, dice| {
            delay(&options, attempt, class, None, Duration::ZERO, dice).map(|d| d.as_micros())
        };
        assert_eq!(wait(1, Class::Transient, 0), Some(25_000));
        assert_eq!(wait(1, Class::Transient, 25_000), Some(50_000));
        assert_eq!(wait(3, Class::Transient, 0), Some(100_000));
        assert_eq!(wait(1, Class::Throttled, 0), Some(100_000));
        assert_eq!(wait(7, Class::Throttled, 0), Some(5_000_000));
        assert_eq!(wait(8, Class::Transient, 0), None);
        assert_eq!(wait(1, Class::Fatal, 0), None);
        let asked = Some(Duration::from_secs(3));
        let told = delay(&options, 1, Class::Throttled, asked, Duration::ZERO, 0);
        assert_eq!(told, asked);
        assert_eq!(delay(&options, 1, Class::Throttled, asked, options.patience, 0), None);
    }

    #[test]
    fn a_store_that_is_down_is_not_asked_ever_more() {
        let mut budget = Budget::new();
        assert_eq!((0..1000).filter(|_| budget.spend()).count(), 100);
        for _ in 0..10 {
            budget.refill();
        }
        assert_eq!((0..1000).filter(|_| budget.spend()).count(), 2);
    }

    #[test]
    fn one_in_twenty_is_sent_twice_and_only_once_enough_is_known() {
        let mut latency = Latency::default();
        for _ in 0..15 {
            latency.note(Duration::from_millis(400));
        }
        assert_eq!(latency.straggles_after(), None);
        latency.note(Duration::from_millis(400));
        assert!(latency.straggles_after().unwrap() > Duration::from_millis(800));
        for _ in 0..84 {
            latency.note(Duration::from_millis(10));
        }
        assert_eq!(latency.straggles_after(), Some(Latency::WAIT_MIN));
        assert_eq!((0..100).filter(|_| latency.spend()).count(), 4);
    }
}
