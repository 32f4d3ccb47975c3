//! A tree of token buckets: engine, regions and jobs stay below their ceilings, given `now`. Pure.
//!
//! Every node ([`Throttle`]) holds one bucket for bytes and one for operations; a taker walks a
//! path of nodes and takes from all of them or from none.
//!
//! **Smoothness.** A bucket holds 100 ms worth of its rate, and whoever finds it out of debt may
//! take any amount, going into debt for the rest; the next one waits until that is paid. So over
//! *any* window of `w` seconds
//!
//! ```text
//! bytes granted <= rate * w + rate * 0.1 s + one grant
//! ```
//!
//! and takers who always ask again when told get `rate * w` in the long run, never more than one
//! grant behind. Arithmetic is exact (no rounding, no drift) for rates from 1 to `u64::MAX`.
//!
//! **Fairness.** There is no queue here: all who wait are told the same moment, and the first to
//! ask then is served. Nobody waits while tokens lie idle on the whole path, and a refusal costs
//! nobody anything. The engine puts a queue before each node, so that takers share evenly.
//!
//! **Changes.** New limits hold for everybody who asks afterwards, and nobody waits longer than 100
//! ms before asking again. A change never prolongs a debt: what is owed is paid at the faster of
//! the old and the new rate. One change thus admits at most one grant more than the bound.

use std::num::NonZeroU64;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::options::Limits;
use crate::sync::{Mutex, MutexGuard};

/// Ceilings that can be changed while bytes flow; a cheap handle, all clones of which are one node.
#[derive(Clone, Debug)]
pub struct Throttle(Arc<Mutex<Node>>);

impl Throttle {
    /// A node with these ceilings and full buckets.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Node {
            bytes: limits.bytes_per_sec.map(Bucket::new),
            ops: limits.ops_per_sec.map(Bucket::new),
        })))
    }

    /// The ceilings in force.
    pub fn limits(&self) -> Limits {
        let node = self.lock();
        let mut limits = Limits::NONE;
        limits.bytes_per_sec = node.bytes.as_ref().map(|bucket| bucket.rate);
        limits.ops_per_sec = node.ops.as_ref().map(|bucket| bucket.rate);
        limits
    }

    /// Changes the ceilings for everybody who asks from `now` on; those who wait see it within 100
    /// ms.
    ///
    /// Setting the ceilings that are in force already changes nothing.
    pub fn set_limits(&self, limits: Limits, now: Instant) {
        let mut node = self.lock();
        change(&mut node.bytes, limits.bytes_per_sec, now);
        change(&mut node.ops, limits.ops_per_sec, now);
    }

    fn lock(&self) -> MutexGuard<'_, Node> {
        // A node is whole between any two statements that can panic, so a poisoned one is still
        // good.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Node {
    bytes: Option<Bucket>,
    ops: Option<Bucket>,
}

fn change(bucket: &mut Option<Bucket>, rate: Option<NonZeroU64>, now: Instant) {
    match (bucket.as_mut(), rate) {
        (Some(bucket), Some(rate)) => bucket.set_rate(rate, now),
        (_, rate) => *bucket = rate.map(Bucket::new),
    }
}

/// What a taker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a refusal that is ignored breaks the ceiling"]
pub(crate) enum Take {
    /// All of it, from every node.
    Granted,
    /// Nothing, from no node: ask again then. At most 100 ms from now.
    At(Instant),
}

/// The nodes that one taker is charged at: usually engine, region and job.
#[derive(Clone, Debug)]
pub(crate) struct ThrottlePath(Vec<Throttle>);

impl ThrottlePath {
    /// A path over these nodes. A node that is named twice (both ends in one region) is charged
    /// once.
    pub(crate) fn new(nodes: impl IntoIterator<Item = Throttle>) -> Self {
        let mut nodes: Vec<_> = nodes.into_iter().collect();
        // Order: every path locks its nodes in the order of their addresses, so that no two paths
        // can deadlock.
        nodes.sort_by_key(|node| Arc::as_ptr(&node.0));
        nodes.dedup_by(|a, b| Arc::ptr_eq(&a.0, &b.0));
        Self(nodes)
    }

    /// Takes `bytes` and `ops` from every node of the path, or nothing from any. Of what is zero
    /// nobody is asked.
    pub(crate) fn take(&self, now: Instant, bytes: u64, ops: u64) -> Take {
        let mut nodes: Vec<_> = self.0.iter().map(Throttle::lock).collect();
        let charges = nodes.iter_mut().flat_map(|node| node.charges(bytes, ops));
        // The latest of all: whoever asks earlier would be refused by that one.
        if let Some(at) = charges.filter_map(|(bucket, _)| bucket.ready_at(now)).max() {
            let soon = now.checked_add(ASK_AGAIN_MAX).unwrap_or(at);
            return Take::At(at.min(soon));
        }
        for (bucket, amount) in nodes.iter_mut().flat_map(|node| node.charges(bytes, ops)) {
            bucket.charge(amount);
        }
        Take::Granted
    }

    /// How many of the `wanted` bytes to take in one go so that traffic is smooth at 100 ms.
    ///
    /// All of them without a ceiling on bytes. Else at most 50 ms worth of the lowest rate, in
    /// whole multiples of 64 KiB (the last grant may be smaller), but never less than 64 KiB unless
    /// less is wanted.
    pub(crate) fn grant_bytes(&self, wanted: u64) -> u64 {
        let rates = self.0.iter().filter_map(|node| node.limits().bytes_per_sec);
        match rates.min() {
            None => wanted,
            Some(rate) => {
                let most = (rate.get() / GRANTS_PER_SEC).max(GRANT_STEP_BYTES);
                wanted.min(most - most % GRANT_STEP_BYTES)
            }
        }
    }

    /// Returns bytes that were taken and not used, to every node. A bucket is never fuller than
    /// full.
    pub(crate) fn give_back(&self, bytes: u64) {
        for node in &self.0 {
            if let Some(bucket) = &mut node.lock().bytes {
                bucket.give_back(bytes);
            }
        }
    }
}

impl Node {
    /// The buckets that have something to give, with how much.
    fn charges(&mut self, bytes: u64, ops: u64) -> impl Iterator<Item = (&mut Bucket, u64)> {
        let bytes = self.bytes.as_mut().map(|bucket| (bucket, bytes));
        let ops = self.ops.as_mut().map(|bucket| (bucket, ops));
        bytes.into_iter().chain(ops).filter(|&(_, amount)| amount > 0)
    }
}

/// One rate. Amounts are kept in billionths, of which `rate` drain in a nanosecond: nothing is ever
/// rounded.
///
/// `used` is what was taken and has not drained yet. Up to `capacity` it came out of the bucket;
/// what is above is debt. It stays below 2^95: a capacity (less than 2^91) and one amount (less
/// than 2^94).
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: NonZeroU64,
    used: u128,
    /// When `used` was right; `None` before the first question.
    updated: Option<Instant>,
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn new(rate: NonZeroU64) -> Self {
        Self { rate, used: 0, updated: None }
    }

    /// `None` when out of debt, else when that will be (or a moment more than 100 ms away).
    pub(crate) fn ready_at(&mut self, now: Instant) -> Option<Instant> {
        let updated = self.drain(now);
        let debt = self.used.saturating_sub(self.capacity());
        if debt == 0 {
            return None;
        }
        let wait_ns = debt.div_ceil(self.rate_wide());
        let wait = Duration::from_nanos(u64::try_from(wait_ns).unwrap_or(u64::MAX));
        // `updated` is later than `now` when another thread read the clock after us and came first.
        Some(updated.checked_add(wait.min(ASK_AGAIN_MAX)).unwrap_or(updated))
    }

    /// Takes an amount, if need be on debt.
    pub(crate) fn charge(&mut self, amount: u64) {
        debug_assert!(self.used <= self.capacity(), "charged while in debt");
        self.used = self.used.saturating_add(u128::from(amount) * SCALE);
    }

    /// Returns an amount.
    pub(crate) fn give_back(&mut self, amount: u64) {
        // Draining before or after gives the same, so this needs no clock.
        self.used = self.used.saturating_sub(u128::from(amount) * SCALE);
    }

    /// Goes on at another rate. Tokens are kept as far as they fit; a debt is paid at the faster of
    /// the two rates.
    pub(crate) fn set_rate(&mut self, rate: NonZeroU64, now: Instant) {
        self.drain(now);
        let old = self.rate_wide();
        let tokens = self.capacity().saturating_sub(self.used);
        let debt = self.used.saturating_sub(self.capacity());
        self.rate = rate;
        let new = self.rate_wide();
        // `debt * new / old` in two parts, because the product may not fit.
        let debt = if new < old { debt / old * new + debt % old * new / old } else { debt };
        self.used = self.capacity().saturating_sub(tokens) + debt;
    }

    /// Lets drain what has drained since the last question; a `now` before that changes nothing.
    fn drain(&mut self, now: Instant) -> Instant {
        let updated = self.updated.map_or(now, |updated| updated.max(now));
        let elapsed = updated.saturating_duration_since(self.updated.unwrap_or(updated));
        self.used = self.used.saturating_sub(elapsed.as_nanos().saturating_mul(self.rate_wide()));
        self.updated = Some(updated);
        updated
    }

    fn capacity(&self) -> u128 {
        self.rate_wide() * CAPACITY_NS
    }

    fn rate_wide(&self) -> u128 {
        u128::from(self.rate.get())
    }
}

/// Billionths in one byte or operation: one nanosecond of the rate 1.
const SCALE: u128 = 1_000_000_000;
/// A bucket holds what its rate yields in that time.
const CAPACITY_NS: u128 = 100_000_000;
/// Nobody waits longer before asking again, so that changed limits are seen.
const ASK_AGAIN_MAX: Duration = Duration::from_millis(100);
/// A grant is at most the yield of 50 ms, so that two of them fit into a full bucket.
const GRANTS_PER_SEC: u64 = 20;
/// Grants are multiples of the smallest chunk.
const GRANT_STEP_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const SEC: Duration = Duration::from_secs(1);

    fn bytes_per_sec(rate: u64) -> Throttle {
        Throttle::new(Limits::NONE.with_bytes_per_sec(rate))
    }

    fn path(nodes: &[&Throttle]) -> ThrottlePath {
        ThrottlePath::new(nodes.iter().map(|&node| node.clone()))
    }

    /// Asks whenever told to until `end`, and returns what was granted when.
    fn run(path: &ThrottlePath, mut now: Instant, end: Instant, bytes: u64) -> Vec<(Instant, u64)> {
        let mut grants = Vec::new();
        while now < end {
            match path.take(now, bytes, 1) {
                Take::Granted => grants.push((now, bytes)),
                Take::At(at) => {
                    assert!(at > now && at <= now + ASK_AGAIN_MAX);
                    now = at;
                }
            }
        }
        grants
    }

    fn total(grants: &[(Instant, u64)]) -> u64 {
        grants.iter().map(|&(_, bytes)| bytes).sum()
    }

    /// `bytes granted <= rate * w + rate * 0.1 s + one grant`, for every window that there is.
    fn check_every_window(grants: &[(Instant, u64)], rate: u64) {
        for (i, &(from, _)) in grants.iter().enumerate() {
            let mut sum = 0;
            for &(to, bytes) in &grants[i..] {
                sum += u128::from(bytes) * SCALE;
                let yielded = ((to - from).as_nanos() + CAPACITY_NS) * u128::from(rate);
                assert!(sum <= yielded + u128::from(bytes) * SCALE, "window {:?}", to - from);
            }
        }
    }

    #[test]
    fn the_long_run_rate_is_exact_within_one_grant_and_every_window_is_bounded() {
        let start = Instant::now();
        for rate in [64 * KIB, MIB, 3 * MIB + 7, 100 * MIB, 10_000 * MIB] {
            let throttle = bytes_per_sec(rate);
            let path = path(&[&throttle]);
            let grant = path.grant_bytes(u64::MAX);
            let grants = run(&path, start, start + 10 * SEC, grant);
            let expected = 10 * rate + rate / 10;
            assert!(total(&grants).abs_diff(expected) <= grant, "rate {rate}");
            check_every_window(&grants, rate);
        }
    }

    #[test]
    fn idle_time_saves_up_no_more_than_the_capacity() {
        let start = Instant::now();
        let throttle = bytes_per_sec(10 * MIB);
        let path = path(&[&throttle]);
        let mut grants = run(&path, start, start + SEC, 64 * KIB);
        grants.extend(run(&path, start + 3600 * SEC, start + 3601 * SEC, 64 * KIB));
        check_every_window(&grants, 10 * MIB);
    }

    #[test]
    fn a_piece_larger_than_the_capacity_passes_and_the_next_waits_for_it() {
        let start = Instant::now();
        let path = path(&[&bytes_per_sec(MIB)]);
        assert_eq!(path.take(start, 4 * MIB, 1), Take::Granted);
        assert_eq!(path.take(start, 1, 1), Take::At(start + ASK_AGAIN_MAX));
        // 4 s less the 100 ms that the bucket held; to the nanosecond.
        let paid = start + Duration::from_millis(3900);
        assert_eq!(path.take(paid - Duration::from_nanos(1), 1, 1), Take::At(paid));
        assert_eq!(path.take(paid, 1, 1), Take::Granted);
    }

    #[test]
    fn two_takers_share() {
        let start = Instant::now();
        let engine = bytes_per_sec(20 * MIB);
        let jobs = [path(&[&engine]), path(&[&engine])];
        let mut shares = [0, 0];
        let mut grants = Vec::new();
        // Who waited longest asks first, as timers wake them.
        let mut waiting = std::collections::VecDeque::from([(start, 0), (start, 1)]);
        while let Some((now, job)) = waiting.pop_front()
            && now < start + 10 * SEC
        {
            let next = match jobs[job].take(now, 256 * KIB, 1) {
                Take::Granted => {
                    shares[job] += 256 * KIB;
                    grants.push((now, 256 * KIB));
                    now
                }
                Take::At(at) => at,
            };
            waiting.push_back((next, job));
        }
        check_every_window(&grants, 20 * MIB);
        assert!(total(&grants).abs_diff(202 * MIB) <= 256 * KIB);
        assert!(shares[0].abs_diff(shares[1]) <= 2 * MIB, "{shares:?}");
    }

    #[test]
    fn the_tightest_node_rules_and_a_refusal_takes_nothing_from_the_others() {
        let start = Instant::now();
        let (engine, region, job) =
            (bytes_per_sec(80 * MIB), Throttle::new(Limits::NONE), bytes_per_sec(8 * MIB));
        let whole = path(&[&engine, &region, &job]);
        let grants = run(&whole, start, start + 10 * SEC, 64 * KIB);
        assert!(total(&grants).abs_diff(80 * MIB + 8 * MIB / 10) <= 64 * KIB);

        let end = start + 20 * SEC;
        while whole.take(end, 64 * KIB, 1) == Take::Granted {}
        for _ in 0..1000 {
            assert!(matches!(whole.take(end, MIB, 1), Take::At(_)));
        }
        // What the engine holds is its capacity less what the job was granted.
        let job_took = (8 * MIB / 10).div_ceil(64 * KIB) * 64 * KIB;
        let mut others = 0;
        while path(&[&engine]).take(end, 64 * KIB, 1) == Take::Granted {
            others += 64 * KIB;
        }
        assert!((job_took + others).abs_diff(8 * MIB) <= 2 * 64 * KIB, "{others}");
    }

    #[test]
    fn a_node_that_is_named_twice_is_charged_once() {
        let start = Instant::now();
        let region = bytes_per_sec(8 * MIB);
        let grants = run(&path(&[&region, &region]), start, start + 10 * SEC, 64 * KIB);
        assert!(total(&grants).abs_diff(80 * MIB + 8 * MIB / 10) <= 64 * KIB);
    }

    #[test]
    fn a_raised_limit_is_felt_at_once_and_a_lowered_one_does_not_prolong_the_debt() {
        let start = Instant::now();
        let throttle = bytes_per_sec(1);
        let path = path(&[&throttle]);
        assert_eq!(path.take(start, MIB, 1), Take::Granted);
        let change = start + SEC;
        assert!(matches!(path.take(change, MIB, 1), Take::At(_)));
        throttle.set_limits(Limits::NONE.with_bytes_per_sec(1_000_000_000), change);
        assert_eq!(throttle.limits().bytes_per_sec.unwrap().get(), 1_000_000_000);
        let Take::At(at) = path.take(change, MIB, 1) else { panic!("the debt is forgotten") };
        assert!(at <= change + Duration::from_millis(2));
        assert_eq!(path.take(at, 200_000_000, 1), Take::Granted);

        // 200 ms of debt stay 200 ms at a tenth of a millionth of the rate.
        throttle.set_limits(Limits::NONE.with_bytes_per_sec(100), at);
        assert!(matches!(path.take(at + Duration::from_millis(199), 1, 1), Take::At(_)));
        assert_eq!(path.take(at + Duration::from_millis(200), 1, 1), Take::Granted);

        throttle.set_limits(Limits::NONE, at + SEC);
        assert_eq!(path.take(at + SEC, u64::MAX, u64::MAX), Take::Granted);
        assert_eq!(path.take(at + SEC, u64::MAX, u64::MAX), Take::Granted);
    }

    #[test]
    fn setting_the_same_limits_again_refills_nothing() {
        let start = Instant::now();
        let limits = Limits::NONE.with_bytes_per_sec(MIB).with_ops_per_sec(10);
        let throttle = Throttle::new(limits);
        let path = path(&[&throttle]);
        assert_eq!(path.take(start, MIB, 1), Take::Granted);
        let refused = path.take(start + SEC / 2, MIB, 1);
        throttle.set_limits(limits, start + SEC / 2);
        assert_eq!(path.take(start + SEC / 2, MIB, 1), refused);
        assert_eq!(throttle.limits(), limits);
    }

    #[test]
    fn operations_have_their_own_limit() {
        let start = Instant::now();
        let path = path(&[&Throttle::new(Limits::NONE.with_ops_per_sec(50))]);
        let grants = run(&path, start, start + 10 * SEC, MIB);
        assert!(grants.len().abs_diff(505) <= 1, "{}", grants.len());
        assert!(matches!(path.take(start + 10 * SEC - Duration::from_nanos(1), 1, 1), Take::At(_)));
        // Bytes without an operation are not its business.
        assert_eq!(path.take(start, MIB, 0), Take::Granted);
    }

    #[test]
    fn extreme_rates_and_amounts_neither_overflow_nor_stick() {
        let start = Instant::now();
        let far = start + Duration::from_secs(1 << 32);
        for (rate, other) in [(1, u64::MAX), (u64::MAX, 1)] {
            let throttle = bytes_per_sec(rate);
            let path = path(&[&throttle]);
            assert_eq!(path.take(start, u64::MAX, u64::MAX), Take::Granted);
            assert!(matches!(path.take(start, 1, 1), Take::At(_)));
            throttle.set_limits(Limits::NONE.with_bytes_per_sec(other), start);
            assert!(matches!(path.take(start, 1, 1), Take::At(_)));
            throttle.set_limits(Limits::NONE.with_bytes_per_sec(u64::MAX), start);
            assert_eq!(path.take(far, u64::MAX, 1), Take::Granted);
        }
        let slow = path(&[&bytes_per_sec(1)]);
        let grants = run(&slow, start, start + 10 * SEC, 1);
        // At 0 s, then whenever 0.9 bytes of debt are paid.
        assert_eq!(grants.len(), 11);
    }

    #[test]
    fn what_was_not_used_can_be_given_back() {
        let start = Instant::now();
        let throttle = bytes_per_sec(MIB);
        let path = path(&[&throttle, &Throttle::new(Limits::NONE)]);
        assert_eq!(path.take(start, 4 * MIB, 1), Take::Granted);
        path.give_back(4 * MIB);
        path.give_back(u64::MAX);
        assert_eq!(path.take(start, MIB, 1), Take::Granted);
        // Full, but not fuller: 1 MiB taken, a tenth was there.
        let paid = start + Duration::from_millis(900);
        assert!(matches!(path.take(paid - Duration::from_nanos(1), 1, 1), Take::At(_)));
        assert_eq!(path.take(paid, 1, 1), Take::Granted);
    }

    #[test]
    fn grants_are_smooth_at_100_ms() {
        let grant = |rate, wanted| path(&[&bytes_per_sec(rate)]).grant_bytes(wanted);
        assert_eq!(path(&[]).grant_bytes(64 * MIB), 64 * MIB);
        assert_eq!(grant(0, 64 * MIB), 64 * MIB);
        assert_eq!(grant(1, 64 * MIB), 64 * KIB);
        assert_eq!(grant(1, 5), 5);
        assert_eq!(grant(u64::MAX, 64 * MIB), 64 * MIB);
        assert_eq!(grant(20 * 64 * KIB, 64 * MIB), 64 * KIB);
        assert_eq!(grant(20 * (2 * 64 * KIB) + 19, 64 * MIB), 128 * KIB);
        assert_eq!(grant(100 * MIB, 64 * MIB), 5 * MIB);
        let (a, b) = (bytes_per_sec(100 * MIB), bytes_per_sec(10 * MIB));
        assert_eq!(path(&[&a, &b]).grant_bytes(64 * MIB), 512 * KIB);
    }

    #[test]
    fn a_clock_read_before_the_last_taker_s_gives_nothing_away() {
        let start = Instant::now();
        let path = path(&[&bytes_per_sec(1000)]);
        assert_eq!(path.take(start + SEC, 150, 1), Take::Granted);
        let paid = start + SEC + SEC / 20;
        assert_eq!(path.take(start + SEC - Duration::from_millis(10), 1, 1), Take::At(paid));
        assert_eq!(path.take(paid, 1, 1), Take::Granted);
    }

    /// A bucket as an arrival curve: what is used is the worst backlog over all windows that end
    /// now.
    fn twin_grants(grants: &[(u64, u64)], rate: u64, now_ns: u64) -> bool {
        let backlog = |i: usize| -> i128 {
            let sum: i128 = grants[i..].iter().map(|&(_, n)| i128::from(n) * 1_000_000_000).sum();
            sum - i128::from(rate) * i128::from(now_ns - grants[i].0)
        };
        let used = (0..grants.len()).map(backlog).max().unwrap_or(0).max(0);
        used <= i128::from(rate) * 100_000_000
    }

    proptest! {
        #[test]
        fn a_path_agrees_with_its_naive_twin(
            rates in prop::collection::vec(
                prop_oneof![1..10_u64, 1..5_000_u64, Just(1 << 40)],
                1..4,
            ),
            asks in prop::collection::vec((0..200_000_000_u64, 0..1_000_u64), 1..80),
        ) {
            let start = Instant::now();
            let nodes: Vec<_> = rates.iter().map(|&rate| bytes_per_sec(rate)).collect();
            let path = ThrottlePath::new(nodes.iter().cloned());
            let mut granted = Vec::new();
            let mut now_ns = 0;
            for (pause_ns, bytes) in asks {
                now_ns += pause_ns;
                let now = start + Duration::from_nanos(now_ns);
                let fits = bytes == 0
                    || rates.iter().all(|&rate| twin_grants(&granted, rate, now_ns));
                match path.take(now, bytes, 1) {
                    Take::Granted => {
                        prop_assert!(fits);
                        granted.push((now_ns, bytes));
                    }
                    Take::At(at) => {
                        prop_assert!(!fits && at > now && at <= now + ASK_AGAIN_MAX);
                        // Nobody is sent away for longer than need be.
                        let wait_ns = u64::try_from((at - now).as_nanos()).unwrap();
                        let early = now_ns + wait_ns - 1;
                        prop_assert!(!rates.iter().all(|&rate| twin_grants(&granted, rate, early)));
                    }
                }
            }
        }
    }
}

#[cfg(all(test, races))]
mod races {
    use super::*;
    use crate::sync::races::check;

    #[test]
    fn takers_whose_paths_cross_never_lock_each_other_out_and_never_take_too_much() {
        check(15, || {
            let rate = Limits::NONE.with_bytes_per_sec(1 << 20);
            let (one, two) = (Throttle::new(rate), Throttle::new(rate));
            let now = Instant::now();
            let takers: Vec<_> = [[&one, &two], [&two, &one], [&one, &one]]
                .map(|nodes| ThrottlePath::new(nodes.map(Clone::clone)))
                .into_iter()
                .map(|path| {
                    // What the bucket holds and no more, so that one more must wait.
                    let take = move || path.take(now, (1 << 20) / 10 + 1, 1) == Take::Granted;
                    shuttle::thread::spawn(take)
                })
                .collect();
            two.set_limits(rate.with_ops_per_sec(9), now);
            let granted = takers.into_iter().filter(|_| true).map(|taker| taker.join().unwrap());
            let granted = granted.filter(|granted| *granted).count();
            assert_eq!(granted, 1, "the clock stands still: one grant empties the bucket");
        });
    }
}
