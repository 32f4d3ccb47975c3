//! How the local lane writes: in large blocks, past the page cache for as long as that is faster.

use std::time::Duration;

use tokio::time::Instant;

use crate::disk::File;
use crate::engine::pool::{PIECE_BYTES, SCRATCH_ALIGNMENT, WINDOW_BYTES};
use crate::error::Result;
use crate::geometry::{ByteRange, to_u64};
use crate::region::LocalFile;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// After that many bytes the gauge decides how to go on: few, because a small image must not be
/// done before it knows.
const PROBE_BYTES: u64 = 16 << 20;
/// And so many once direct writes have proved fast: a moment's hiccup must not turn a GiB away.
const PROBE_AGAIN_BYTES: u64 = 64 << 20;
/// After that many bytes through the page cache the other way is tried once more.
const HOLD_BYTES: u64 = 1 << 30;
/// What direct writes of all threads together must reach to be kept. Below it the device is the
/// limit: a copy through memory costs nothing beside it, and the page cache keeps its queue deeper
/// than a handful of threads can. Above it the memory and the cores are.
const DIRECT_BYTES_PER_SEC_MIN: u64 = 2560 << 20;

/// The staged file of a local copy.
#[derive(Debug)]
pub(super) struct Writer {
    target: LocalFile,
    direct: Option<File>,
    gauge: Gauge,
}

impl Writer {
    /// That many threads will write.
    pub(super) fn new(target: LocalFile, threads: usize) -> Self {
        let wanted = target.file_system.writes_directly();
        let direct = wanted.then(|| target.file.reopen_direct()).flatten();
        Self { target, direct, gauge: Gauge::new(threads) }
    }

    /// How many bytes are best written at a time: few that stay in the core's cache, or many that
    /// a device takes in one request.
    pub(super) fn block_bytes(&self) -> usize {
        if self.direct().is_some() { WINDOW_BYTES } else { PIECE_BYTES }
    }

    /// Whether reserving room before writing saves work. Not in the page cache: there the file
    /// system sees whole extents before it looks for room.
    pub(super) fn gains_by_reserving(&self) -> bool {
        self.direct().is_some() && self.target.file_system.gains_by_reserving()
    }

    /// Reserves room for bytes that are about to be written.
    pub(super) fn reserve(&self, range: ByteRange) -> Result<()> {
        self.target.file.reserve(range)
    }

    /// Gives room back that was reserved for what turned out to be zeros.
    pub(super) fn give_back(&self, range: ByteRange) -> Result<()> {
        self.target.file.punch(range).map(drop)
    }

    /// Sends bytes that were written through the page cache on their way, so that the device is
    /// busy while others are still being read and hashed, and while a flush is under way.
    pub(super) fn send_on(&self, range: ByteRange) {
        if self.direct().is_none() && self.target.file_system.gains_by_reserving() {
            // It only makes a sync shorter: the sync tells what is wrong.
            self.target.file.evict(range).ok();
        }
    }

    pub(super) fn write_zeroes(&self, range: ByteRange) -> Result<()> {
        self.target.file.write_zeroes(range)
    }

    /// Writes all bytes at `offset`. What is not aligned, as the end of an image may be, goes
    /// through the page cache.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some(direct) = self.direct().filter(|_| is_aligned(offset, bytes)) else {
            self.target.file.write_at(offset, bytes)?;
            self.gauge.cached(to_u64(bytes.len()));
            return Ok(());
        };
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % SCRATCH_ALIGNMENT);
        let began = Instant::now();
        if direct.write_direct_at(offset, whole)? {
            self.gauge.direct(to_u64(whole.len()), began.elapsed());
        } else {
            self.gauge.give_up();
            self.target.file.write_at(offset, whole)?;
        }
        self.target.file.write_at(offset + to_u64(whole.len()), rest)
    }

    fn direct(&self) -> Option<&File> {
        self.direct.as_ref().filter(|_| self.gauge.is_direct())
    }
}

/// Whether a direct write may begin there, from there.
fn is_aligned(offset: u64, bytes: &[u8]) -> bool {
    offset.is_multiple_of(to_u64(SCRATCH_ALIGNMENT))
        && bytes.as_ptr().addr().is_multiple_of(SCRATCH_ALIGNMENT)
        && bytes.len() >= SCRATCH_ALIGNMENT
}

/// Measures direct writes, and decides by that. Relaxed: a verdict that comes a block late does no
/// harm.
#[derive(Debug)]
struct Gauge {
    threads: u64,
    is_direct: AtomicBool,
    given_up: AtomicBool,
    probe_bytes: AtomicU64,
    bytes: AtomicU64,
    ns: AtomicU64,
}

impl Gauge {
    fn new(threads: usize) -> Self {
        Self {
            threads: to_u64(threads),
            is_direct: AtomicBool::new(true),
            given_up: AtomicBool::new(false),
            probe_bytes: AtomicU64::new(PROBE_BYTES),
            bytes: AtomicU64::new(0),
            ns: AtomicU64::new(0),
        }
    }

    /// Refused once is refused, whatever a write that was faster and ended later says.
    fn is_direct(&self) -> bool {
        self.is_direct.load(Relaxed) && !self.given_up.load(Relaxed)
    }

    /// One thread has written that much past the page cache, in that time.
    fn direct(&self, bytes: u64, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let ns = self.ns.fetch_add(ns, Relaxed).saturating_add(ns);
        let bytes = self.bytes.fetch_add(bytes, Relaxed) + bytes;
        if bytes < self.probe_bytes.load(Relaxed) {
            return;
        }
        let needed = u128::from(ns) * u128::from(DIRECT_BYTES_PER_SEC_MIN);
        let is_fast = u128::from(bytes) * u128::from(self.threads) * 1_000_000_000 >= needed;
        self.begin_again(is_fast, PROBE_AGAIN_BYTES);
    }

    /// That much was written through the page cache; only a stray end while that is not the way.
    fn cached(&self, bytes: u64) {
        if self.is_direct() {
            return;
        }
        let bytes = self.bytes.fetch_add(bytes, Relaxed) + bytes;
        if bytes >= HOLD_BYTES {
            self.begin_again(true, PROBE_BYTES);
        }
    }

    fn give_up(&self) {
        self.given_up.store(true, Relaxed);
    }

    fn begin_again(&self, is_direct: bool, probe_bytes: u64) {
        self.is_direct.store(is_direct, Relaxed);
        self.probe_bytes.store(probe_bytes, Relaxed);
        self.bytes.store(0, Relaxed);
        self.ns.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::disk::Dir;
    use crate::engine::pool::Scratch;

    const THREADS: usize = 4;

    /// So many MiB are written, by all threads at that rate together.
    fn note(gauge: &Gauge, mib: u64, bytes_per_sec: u64) {
        let took = Duration::from_nanos((4 << 20) * 1_000_000_000 / bytes_per_sec);
        (0..mib).for_each(|_| gauge.direct(1 << 20, took));
    }

    #[test]
    fn a_fast_device_is_written_directly_and_a_slow_one_through_the_page_cache() {
        let gauge = Gauge::new(THREADS);
        note(&gauge, 15, DIRECT_BYTES_PER_SEC_MIN / 2);
        assert!(gauge.is_direct(), "judged before it was measured");
        note(&gauge, 1, DIRECT_BYTES_PER_SEC_MIN / 2);
        assert!(!gauge.is_direct());
    }

    #[test]
    fn a_device_that_was_fast_is_given_more_time_to_be_slow() {
        let gauge = Gauge::new(THREADS);
        note(&gauge, 16 + 640, 2 * DIRECT_BYTES_PER_SEC_MIN);
        assert!(gauge.is_direct());
        note(&gauge, 63, DIRECT_BYTES_PER_SEC_MIN / 2);
        assert!(gauge.is_direct(), "turned away by a hiccup");
        note(&gauge, 1, DIRECT_BYTES_PER_SEC_MIN / 2);
        assert!(!gauge.is_direct());
    }

    #[test]
    fn the_verdict_is_looked_at_again() {
        let gauge = Gauge::new(THREADS);
        note(&gauge, 16, 1 << 20);
        (0..HOLD_BYTES / PROBE_BYTES - 1).for_each(|_| gauge.cached(PROBE_BYTES));
        assert!(!gauge.is_direct());
        gauge.cached(PROBE_BYTES);
        assert!(gauge.is_direct());
        gauge.give_up();
        (0..=HOLD_BYTES / PROBE_BYTES).for_each(|_| gauge.cached(PROBE_BYTES));
        assert!(!gauge.is_direct(), "refused once is refused");
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a skipped test says why")]
    fn a_direct_write_that_is_not_aligned_is_told_as_refused() {
        let temp = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let dir = Dir::open_path(temp.path()).unwrap();
        let file = Arc::new(dir.create_file("f", 0o600).unwrap());
        let Some(direct) = Writer::new(LocalFile::of(file).unwrap(), THREADS).direct else {
            eprintln!("skipped: the file system here takes no direct writes");
            return;
        };
        assert!(!direct.write_direct_at(1, &[7; 100]).unwrap());
    }

    #[test]
    fn bytes_arrive_whatever_their_alignment_and_whichever_way_they_go() {
        // Below the build folder: a real disk, where the temporary folder may be in memory.
        let temp = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let dir = Dir::open_path(temp.path()).unwrap();
        let file = Arc::new(dir.create_file("f", 0o600).unwrap());
        let writer = Writer::new(LocalFile::of(file.clone()).unwrap(), THREADS);
        let mut scratch = Scratch::new();
        let window = scratch.window();
        let mut naive = vec![0; 5 * WINDOW_BYTES];
        file.set_len(to_u64(naive.len())).unwrap();
        let stretches =
            [(0, 0, WINDOW_BYTES), (WINDOW_BYTES + 512, 1, 70_000), (3 << 20, 0, 9_001)];
        for (round, (offset, skip, len)) in stretches.into_iter().enumerate() {
            window.fill(u8::try_from(round).unwrap() + 1);
            let bytes = &window[skip..(skip + len).min(WINDOW_BYTES)];
            writer.write(to_u64(offset), bytes).unwrap();
            naive[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        let mut back = vec![9; naive.len()];
        assert_eq!(file.read_at(0, &mut back).unwrap(), naive.len());
        assert!(back == naive);
    }
}

#[cfg(all(test, races))]
mod races {
    use std::sync::Arc;

    use super::*;

    /// Exhaustive, and with the host's weak memory: relaxed loads may see old values.
    #[test]
    fn a_device_that_refused_direct_writes_is_not_asked_again_whatever_is_measured_meanwhile() {
        loom::model(|| {
            let gauge = Arc::new(Gauge::new(2));
            let measure = |bytes| {
                let gauge = gauge.clone();
                loom::thread::spawn(move || gauge.direct(bytes, Duration::from_nanos(1)))
            };
            let threads = [measure(PROBE_BYTES), measure(PROBE_BYTES / 2)];
            gauge.give_up();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            assert!(!gauge.is_direct(), "a fast write that ended late has overruled the refusal");
            gauge.cached(HOLD_BYTES);
            assert!(!gauge.is_direct(), "refused once is refused");
        });
    }
}
