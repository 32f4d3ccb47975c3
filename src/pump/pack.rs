//! Whether chunks travel packed: only where that is faster than sending them as they are.

use std::fmt;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;

use crate::compress::Packer;
use crate::geometry::to_u64;
use crate::host;
use crate::sync::time::Instant;
use crate::sync::{Mutex, MutexGuard};
use crate::wire::message::Codec;

/// The fastest level: a link that is worth a slower one is slow indeed.
const LEVEL: i32 = 1;
/// Chunks that go as they are first, to see how fast the link is.
const TRIAL_COUNT: u64 = 8;
/// Every so many chunks one is packed to see whether it pays by now.
const PROBE_EVERY: u64 = 32;
/// Over how long the link's rate is taken at least, and over how many chunks: those that share a
/// link arrive together.
const RATE_TIME: Duration = Duration::from_millis(250);
const RATE_COUNT_MIN: u32 = 4;
/// How many chunks are packed at a time: as many as are taken to be, on a machine of two cores.
const PACKED_AT_A_TIME: u128 = 2;

/// Decides for one session, and packs.
pub(crate) struct Packing {
    known: Mutex<Known>,
    spare: Mutex<Vec<Packer>>,
}

#[derive(Debug)]
struct Known {
    /// Whether the other side takes packed chunks.
    allowed: bool,
    chunk_count: u64,
    /// Of the link: what arrived since then.
    since: Option<Instant>,
    arrived_bytes: u64,
    arrived_count: u32,
    /// The best rate that was seen.
    link_bytes_per_sec: u64,
    tries: Tries,
}

/// What packing has brought lately.
#[derive(Clone, Copy, Debug, Default)]
struct Tries {
    plain_bytes: u64,
    packed_bytes: u64,
    nanos: u128,
}

impl Tries {
    fn add(&mut self, plain_bytes: u64, packed_bytes: u64, took: Duration) {
        // Older ones count half as much each time.
        self.plain_bytes = self.plain_bytes / 2 + plain_bytes;
        self.packed_bytes = self.packed_bytes / 2 + packed_bytes;
        self.nanos = self.nanos / 2 + took.as_nanos();
    }

    /// Whether packing and sending is faster than sending alone, over such a link.
    fn pay(&self, link_bytes_per_sec: u64) -> bool {
        let saved = u128::from(self.plain_bytes.saturating_sub(self.packed_bytes));
        let saved_nanos = saved * 1_000_000_000 / u128::from(link_bytes_per_sec.max(1));
        saved_nanos > self.nanos / PACKED_AT_A_TIME
    }
}

impl fmt::Debug for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Packing").field(&*self.known()).finish()
    }
}

impl Packing {
    /// Nothing is known yet, and nothing packed until that is [allowed](Packing::allow).
    pub(crate) fn new() -> Self {
        let known = Known {
            allowed: false,
            chunk_count: 0,
            since: None,
            arrived_bytes: 0,
            arrived_count: 0,
            link_bytes_per_sec: 0,
            tries: Tries::default(),
        };
        Self { known: Mutex::new(known), spare: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the other side takes packed chunks.
    pub(crate) fn allow(&self, allowed: bool) {
        self.known().allowed = allowed;
    }

    /// The chunk as it should travel.
    pub(crate) async fn pack(self: std::sync::Arc<Self>, chunk: Bytes) -> (Codec, Bytes) {
        if !self.known().is_worth_a_try(Instant::now()) {
            return (Codec::Raw, chunk);
        }
        let (packing, plain) = (self.clone(), chunk.clone());
        let packed = host::spawn_blocking(move || packing.pack_now(&plain)).await;
        // A thread that is gone, or a zstd that fails, costs nothing but the packing.
        match packed.ok().flatten() {
            Some(packed) => (Codec::Zstd, packed),
            None => (Codec::Raw, chunk),
        }
    }

    fn pack_now(&self, plain: &Bytes) -> Option<Bytes> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut packer = match spare {
            Some(packer) => packer,
            None => Packer::new(LEVEL).ok()?,
        };
        let began = Instant::now();
        let packed = packer.pack(plain).ok().flatten();
        let packed_len = packed.as_ref().map_or(plain.len(), Bytes::len);
        let took = began.elapsed();
        self.known().tries.add(to_u64(plain.len()), to_u64(packed_len), took);
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(packer);
        packed
    }

    /// So many bytes have arrived at the other side.
    pub(crate) fn arrived(&self, bytes: u64) {
        self.known().arrived(bytes, Instant::now());
    }
}

impl Known {
    fn is_worth_a_try(&mut self, now: Instant) -> bool {
        // From the first chunk's start, not its arrival: what goes with it arrives with it.
        self.since.get_or_insert(now);
        self.chunk_count += 1;
        if !self.allowed || self.chunk_count <= TRIAL_COUNT || self.link_bytes_per_sec == 0 {
            return false;
        }
        self.tries.pay(self.link_bytes_per_sec)
            || self.tries.plain_bytes == 0
            || self.chunk_count.is_multiple_of(PROBE_EVERY)
    }

    fn arrived(&mut self, bytes: u64, now: Instant) {
        let since = *self.since.get_or_insert(now);
        self.arrived_bytes += bytes;
        self.arrived_count += 1;
        let took = now.into_std().saturating_duration_since(since.into_std());
        if took >= RATE_TIME && self.arrived_count >= RATE_COUNT_MIN {
            let rate = u128::from(self.arrived_bytes) * 1_000_000_000 / took.as_nanos();
            let rate = u64::try_from(rate).unwrap_or(u64::MAX);
            self.link_bytes_per_sec = self.link_bytes_per_sec.max(rate);
            (self.since, self.arrived_bytes, self.arrived_count) = (Some(now), 0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_pays_on_a_slow_link_and_not_on_a_fast_one() {
        let mut tries = Tries::default();
        assert!(!tries.pay(1), "nothing was tried");
        // 4 MiB to a half in 8 ms, as zstd does.
        tries.add(4 << 20, 2 << 20, Duration::from_millis(8));
        assert!(tries.pay(125_000_000), "1 Gb/s");
        assert!(!tries.pay(1_500_000_000), "loopback");
        // The half saves 2 MiB: 5 ms of this link, and 8 ms of one of two cores are 4.
        assert!(tries.pay(419_430_400), "two are packed at a time");
        assert!(!tries.pay(600_000_000), "3.5 ms");
        let mut noise = Tries::default();
        noise.add(4 << 20, 4 << 20, Duration::from_millis(2));
        assert!(!noise.pay(1_000_000), "noise never pays");
    }

    #[test]
    fn what_packing_brought_long_ago_counts_for_little() {
        let mut tries = Tries::default();
        for _ in 0..20 {
            tries.add(4 << 20, 4 << 20, Duration::from_millis(8));
        }
        // 8 and as much again of noise, of which half is forgotten: 4 MiB saved in 16 ms.
        tries.add(4 << 20, 0, Duration::from_millis(8));
        assert!(tries.pay(400_000_000), "saves 10 ms");
    }

    #[test]
    fn a_rate_is_taken_over_some_time_and_some_chunks_and_the_best_one_counts() {
        let packing = Packing::new();
        let (mut known, start) = (packing.known(), Instant::now());
        known.is_worth_a_try(start);
        let ms = |at: u64| start + Duration::from_millis(at);
        for at in 1..=4 {
            known.arrived(1 << 20, ms(at));
        }
        assert_eq!(known.link_bytes_per_sec, 0, "4 ms tell nothing");
        known.arrived(1 << 20, ms(500));
        assert_eq!(known.link_bytes_per_sec, 10 << 20, "5 MiB in half a second");
        for at in [2000, 2100, 2200, 2500] {
            known.arrived(1 << 20, ms(at));
        }
        assert_eq!(known.link_bytes_per_sec, 10 << 20, "a link that waits is not slow");
        for at in [2600, 2700, 2800, 2900] {
            known.arrived(8 << 20, ms(at));
        }
        assert_eq!(known.link_bytes_per_sec, 80 << 20, "of these 400 ms alone");
        let packing = Packing::new();
        let mut known = packing.known();
        known.is_worth_a_try(start);
        known.arrived(64 << 20, ms(500));
        assert_eq!(known.link_bytes_per_sec, 0, "one chunk tells nothing");
    }

    #[test]
    fn chunks_that_arrive_together_do_not_make_a_link_fast() {
        let packing = Packing::new();
        let (mut known, start) = (packing.known(), Instant::now());
        known.is_worth_a_try(start);
        // Four links share 100 Mb/s: four chunks of 4 MiB arrive at a time, every 1.34 s.
        for bunch in 1..4_u32 {
            for chunk in 0..4_u32 {
                let at = Duration::from_micros(u64::from(bunch * 1_342_177 + chunk * 100));
                known.arrived(4 << 20, start + at);
            }
        }
        let rate = known.link_bytes_per_sec;
        assert!((12_000_000..13_000_000).contains(&rate), "{rate}");
    }

    #[tokio::test]
    async fn the_first_chunks_go_as_they_are_and_then_it_is_tried() {
        let packing = std::sync::Arc::new(Packing::new());
        packing.allow(true);
        let chunk = Bytes::from(vec![7; 64 << 10]);
        packing.known().link_bytes_per_sec = 1_000;
        for _ in 0..TRIAL_COUNT {
            assert_eq!(packing.clone().pack(chunk.clone()).await.0, Codec::Raw);
        }
        packing.known().link_bytes_per_sec = 0;
        assert_eq!(packing.clone().pack(chunk.clone()).await.0, Codec::Raw, "no rate is known");
        packing.known().link_bytes_per_sec = 1_000;
        let (codec, packed) = packing.clone().pack(chunk.clone()).await;
        assert_eq!(codec, Codec::Zstd);
        assert!(packed.len() < 1_000);
        packing.allow(false);
        assert_eq!(packing.pack(chunk).await.0, Codec::Raw, "the other side does not take it");
    }

    #[tokio::test]
    async fn what_does_not_pay_is_tried_again_now_and_then() {
        let packing = std::sync::Arc::new(Packing::new());
        packing.allow(true);
        packing.known().link_bytes_per_sec = u64::MAX;
        let chunk = Bytes::from(vec![7; 64 << 10]);
        let mut packed = Vec::new();
        for number in 1..=3 * PROBE_EVERY {
            if packing.clone().pack(chunk.clone()).await.0 == Codec::Zstd {
                packed.push(number);
            }
        }
        let due = [TRIAL_COUNT + 1, PROBE_EVERY, 2 * PROBE_EVERY, 3 * PROBE_EVERY];
        assert_eq!(packed, due);
    }
}
