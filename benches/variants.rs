//! Ways to copy a file, timed against each other: an experiment, and no part of the engine.
//!
//! It repeats the figures that the engine's ways were chosen by; what came of them stands in
//! `manual/performance`. Each variant is a whole copy: the source is read and hashed in strips, the
//! target is written, and a final `fsync` counts. The variants take turns, round by round, and in
//! the first round every copy is compared with its source byte for byte.
//!
//! ```text
//! cargo bench --bench variants -- SOURCE FOLDER [--rounds N] [--warm MIB] [--only NAME,..]
//! ```
//!
//! The copies are made in FOLDER, which is to have room for one. `--warm` touches so many MiB of
//! fresh memory before each sample: a virtual machine may have given its free memory back to the
//! host, and taking it again costs more than the copy that is to be timed. `--only` names variants,
//! and the table keeps their order. With fewer than both places, or with `--test`, each variant
//! copies a small made-up file once, which proves that it still copies right.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a bench that cannot go on stops")]
#![expect(clippy::print_stdout, reason = "the table is what it is run for")]

#[path = "made/noise.rs"]
mod noise;
#[path = "made/smoke.rs"]
mod smoke;

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use memmap2::{Advice, Mmap, MmapMut, MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, copy_file_range, fadvise, fallocate, fstatfs, ioctl_ficlone};
use rustix::time::{ClockId, clock_gettime};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// What a thread takes at a time, and what is hashed as one.
const STRIP: u64 = 4 << 20;
/// What direct reads and writes are multiples of, in memory and in the file.
const BLOCK: usize = 4096;
const BACKGROUND: u64 = 128 << 20;
const BEHIND: u64 = 64 << 20;
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// One way to copy.
struct Variant {
    name: &'static str,
    what: &'static str,
    way: Way,
}

#[derive(Clone, Copy)]
struct Way {
    piece_bytes: usize,
    threads: usize,
    /// Whether the target's blocks are reserved before the first is written.
    reserved: bool,
    /// Whether the source is out of the page cache when the copy begins.
    cold: bool,
    read: Read,
    write: Write,
    flush: Flush,
}

#[derive(Clone, Copy, PartialEq)]
enum Read {
    Buffered,
    Direct,
    Mapped,
}

#[derive(Clone, Copy, PartialEq)]
enum Write {
    Buffered,
    /// Past the page cache; a tail that is no whole block is written buffered.
    Direct,
    /// As `Direct`, with so many writes of each thread in flight.
    Ring(usize),
    /// The kernel copies what the thread has hashed.
    CopyRange,
    /// The target shares the source's blocks before anything is hashed.
    Clone,
    Mapped,
    /// As `Mapped`, with the pages of a strip made at once.
    Populated,
}

/// What is flushed before the end; the final `fsync` follows in any case.
#[derive(Clone, Copy)]
enum Flush {
    AtEnd,
    /// `fdatasync` on a thread of its own, each time so many bytes have been written.
    Background(u64),
    /// Each strip is sent on its way once it is written.
    Early,
    /// As `Early`; strips so many bytes behind are waited for and dropped from the page cache.
    Evicting(u64),
}

const BUFFERED: Way = Way {
    piece_bytes: 256 * KIB,
    threads: 2,
    reserved: true,
    cold: false,
    read: Read::Buffered,
    write: Write::Buffered,
    flush: Flush::AtEnd,
};
const DIRECT: Way = Way { piece_bytes: MIB, threads: 4, write: Write::Direct, ..BUFFERED };

const fn variant(name: &'static str, what: &'static str, way: Way) -> Variant {
    Variant { name, what, way }
}

#[rustfmt::skip]
const VARIANTS: [Variant; 26] = [
    variant("buffered", "256 KiB, 2 threads", BUFFERED),
    variant("buffered-64k", "64 KiB, 2 threads", Way { piece_bytes: 64 * KIB, ..BUFFERED }),
    variant("buffered-1m", "1 MiB, 2 threads", Way { piece_bytes: MIB, ..BUFFERED }),
    variant("buffered-x1", "256 KiB, 1 thread", Way { threads: 1, ..BUFFERED }),
    variant("buffered-x3", "256 KiB, 3 threads", Way { threads: 3, ..BUFFERED }),
    variant("buffered-x4", "256 KiB, 4 threads", Way { threads: 4, ..BUFFERED }),
    variant("unreserved", "buffered, without fallocate", Way { reserved: false, ..BUFFERED }),
    variant("background", "buffered, fdatasync in the background each 128 MiB",
        Way { flush: Flush::Background(BACKGROUND), ..BUFFERED }),
    variant("early", "buffered, write-back begun after each strip",
        Way { flush: Flush::Early, ..BUFFERED }),
    variant("evicting", "as early, and evicted 64 MiB behind",
        Way { flush: Flush::Evicting(BEHIND), ..BUFFERED }),
    variant("mmap", "mapped source, buffered writes", Way { read: Read::Mapped, ..BUFFERED }),
    variant("mmap-direct", "mapped source, direct writes, 1 MiB, 4 threads",
        Way { read: Read::Mapped, ..DIRECT }),
    variant("copy-range", "read and hashed, written by copy_file_range",
        Way { write: Write::CopyRange, ..BUFFERED }),
    variant("direct-x2", "direct writes, 1 MiB, 2 threads", Way { threads: 2, ..DIRECT }),
    variant("direct-x4", "direct writes, 1 MiB, 4 threads", DIRECT),
    variant("direct-x8", "direct writes, 1 MiB, 8 threads", Way { threads: 8, ..DIRECT }),
    variant("direct-x16", "direct writes, 1 MiB, 16 threads", Way { threads: 16, ..DIRECT }),
    variant("direct-256k", "direct writes, 256 KiB, 4 threads",
        Way { piece_bytes: 256 * KIB, ..DIRECT }),
    variant("direct-background", "as direct-x4, fdatasync in the background each 128 MiB",
        Way { flush: Flush::Background(BACKGROUND), ..DIRECT }),
    variant("uring-16", "io_uring direct writes, 1 MiB, 16 in flight for each of 2 threads",
        Way { write: Write::Ring(16), threads: 2, ..DIRECT }),
    variant("uring-32", "io_uring direct writes, 1 MiB, 32 in flight for each of 2 threads",
        Way { write: Write::Ring(32), threads: 2, ..DIRECT }),
    variant("cold-buffered-read", "cold source, buffered reads, else as direct-x4",
        Way { cold: true, ..DIRECT }),
    variant("cold-direct-read", "cold source, direct reads, else as direct-x4",
        Way { cold: true, read: Read::Direct, ..DIRECT }),
    variant("clone", "FICLONE, then hashed", Way { write: Write::Clone, ..BUFFERED }),
    variant("mapped", "mapped target, meant for tmpfs", Way { write: Write::Mapped, ..BUFFERED }),
    variant("populated", "mapped target, populated strip by strip, meant for tmpfs",
        Way { write: Write::Populated, ..BUFFERED }),
];

struct Options {
    /// The source and the folder; none for the made-up file.
    places: Option<(PathBuf, PathBuf)>,
    rounds: usize,
    warm_mib: usize,
    variants: Vec<&'static Variant>,
}

struct Row {
    variant: &'static Variant,
    samples: Vec<Sample>,
    refusal: Option<io::Error>,
}

struct Sample {
    wall: Duration,
    final_sync: Duration,
    cpu: Duration,
}

fn main() {
    let options = options();
    let scratch = match &options.places {
        Some((_, folder)) => tempfile::tempdir_in(folder).unwrap(),
        None => tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
    };
    let (source, target) = (scratch.path().join("source"), scratch.path().join("target"));
    let source = match &options.places {
        Some((source, _)) => source.clone(),
        None => {
            std::fs::write(&source, noise::noise(8 * MIB + 12_345)).unwrap();
            source
        }
    };
    let row = |variant| Row { variant, samples: Vec::new(), refusal: None };
    let mut rows: Vec<Row> = options.variants.iter().copied().map(row).collect();
    for round in 0..options.rounds {
        for row in rows.iter_mut().filter(|row| row.refusal.is_none()) {
            let way =
                if options.places.is_some() { row.variant.way } else { small(row.variant.way) };
            let sample = prepare(&source, scratch.path(), way, &options)
                .and_then(|()| copy(&source, &target, way));
            match sample {
                Ok(sample) => row.samples.push(sample),
                Err(error) if is_refusal(&error) => row.refusal = Some(error),
                Err(error) => panic!("{}: {error}", row.variant.name),
            }
            if round == 0 && row.refusal.is_none() {
                compare(&source, &target, row.variant.name);
            }
            if target.exists() {
                std::fs::remove_file(&target).unwrap();
            }
        }
    }
    print_table(&rows);
}

fn options() -> Options {
    let (mut operands, mut rounds, mut warm_mib, mut names) = (Vec::new(), 5, 0, String::new());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--rounds" => rounds = words.next().unwrap().parse().unwrap(),
            "--warm" => warm_mib = words.next().unwrap().parse().unwrap(),
            "--only" => names = words.next().unwrap(),
            // What cargo and a test harness understand is not for here.
            flag if flag.starts_with("--") => {}
            operand => operands.push(PathBuf::from(operand)),
        }
    }
    let places = match <[PathBuf; 2]>::try_from(operands) {
        Ok([source, folder]) if !smoke::is_smoke() => Some((source, folder)),
        _ => None,
    };
    if places.is_none() {
        (rounds, warm_mib) = (1, 0);
    }
    assert!(rounds > 0, "no round, no table");
    let named = |name: &str| {
        let found = VARIANTS.iter().find(|variant| variant.name == name);
        assert!(found.is_some(), "{name} is none of {:?}", VARIANTS.each_ref().map(|v| v.name));
        found.unwrap()
    };
    let variants = match names.as_str() {
        "" => VARIANTS.iter().collect(),
        names => names.split(',').map(named).collect(),
    };
    Options { places, rounds, warm_mib, variants }
}

/// The same way, flushing so often that the made-up file is long enough for it.
fn small(way: Way) -> Way {
    let flush = match way.flush {
        Flush::Background(_) => Flush::Background(STRIP),
        Flush::Evicting(_) => Flush::Evicting(STRIP),
        flush => flush,
    };
    Way { flush, ..way }
}

/// Leaves nothing of the last sample to this one: no dirty pages, a source that is in the page
/// cache or out of it, and free memory that the machine really has.
fn prepare(source: &Path, folder: &Path, way: Way, options: &Options) -> io::Result<()> {
    if options.places.is_some() {
        rustix::fs::syncfs(File::open(folder)?)?;
    }
    let mut source = File::open(source)?;
    if way.cold {
        if fstatfs(&source)?.f_type == TMPFS_MAGIC {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "tmpfs is never cold"));
        }
        // Dirty pages stay, whatever the advice.
        source.sync_all()?;
        fadvise(&source, 0, None, rustix::fs::Advice::DontNeed)?;
    } else {
        io::copy(&mut source, &mut io::sink())?;
    }
    if options.warm_mib > 0 {
        let mut memory = MmapMut::map_anon(options.warm_mib * MIB)?;
        memory.advise(Advice::HugePage)?;
        memory.iter_mut().step_by(BLOCK).for_each(|byte| *byte = 1);
        black_box(&memory);
    }
    Ok(())
}

/// Whether it says that this cannot be done here, and not that it went wrong.
fn is_refusal(error: &io::Error) -> bool {
    let refusals =
        [libc::EOPNOTSUPP, libc::EINVAL, libc::EXDEV, libc::ENOSYS, libc::EPERM, libc::ENOTTY];
    error.kind() == io::ErrorKind::Unsupported
        || error.raw_os_error().is_some_and(|code| refusals.contains(&code))
}

fn compare(source: &Path, target: &Path, name: &str) {
    let (source, target) = (File::open(source).unwrap(), File::open(target).unwrap());
    let len = source.metadata().unwrap().len();
    assert_eq!(target.metadata().unwrap().len(), len, "{name}: another length");
    let (mut expected, mut found) = (vec![0; MIB], vec![0; MIB]);
    for piece in pieces(0..len, MIB) {
        let count = size(piece.end - piece.start);
        source.read_exact_at(&mut expected[..count], piece.start).unwrap();
        target.read_exact_at(&mut found[..count], piece.start).unwrap();
        assert!(expected[..count] == found[..count], "{name}: other bytes from {}", piece.start);
    }
}

fn print_table(rows: &[Row]) {
    println!("| variant | what it does | wall, s | min–max, s | final sync, s | CPU, s |");
    println!("|---|---|---:|---:|---:|---:|");
    for row in rows.iter().filter(|row| row.refusal.is_none()) {
        let sorted = |part: fn(&Sample) -> Duration| {
            let mut times: Vec<f64> =
                row.samples.iter().map(|sample| part(sample).as_secs_f64()).collect();
            times.sort_by(f64::total_cmp);
            times
        };
        let median = |part: fn(&Sample) -> Duration| sorted(part)[row.samples.len() / 2];
        let walls = sorted(|sample| sample.wall);
        println!(
            "| {} | {} | {:.3} | {:.3}–{:.3} | {:.3} | {:.3} |",
            row.variant.name,
            row.variant.what,
            median(|sample| sample.wall),
            walls[0],
            walls[walls.len() - 1],
            median(|sample| sample.final_sync),
            median(|sample| sample.cpu),
        );
    }
    for row in rows {
        if let Some(error) = &row.refusal {
            println!("\nSkipped {} ({}): {error}", row.variant.name, row.variant.what);
        }
    }
}

// ---- The copy ----

/// A copy under way, as its threads share it.
struct Job {
    way: Way,
    len: u64,
    source: File,
    source_map: Option<Mmap>,
    target: File,
    /// The target again, past the page cache.
    direct: Option<File>,
    target_map: Option<MmapRaw>,
    next: AtomicU64,
}

fn copy(source: &Path, target: &Path, way: Way) -> io::Result<Sample> {
    let (cpu, start) = (cpu_time(), Instant::now());
    let job = Job::open(source, target, way)?;
    let (written, strips) = channel();
    thread::scope(|scope| {
        let flusher = scope.spawn(|| job.flush_behind(strips));
        let worker = |written: Sender<u64>| {
            let job = &job;
            scope.spawn(move || match way.write {
                Write::Ring(depth) => job.ring_strips(depth, &written),
                _ => job.copy_strips(&written),
            })
        };
        let workers: Vec<_> = (0..way.threads).map(|_| worker(written.clone())).collect();
        drop(written);
        // All are joined before the first failure is told.
        let mut ends: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        ends.push(flusher.join().unwrap());
        ends.into_iter().collect::<io::Result<()>>()
    })?;
    let copied = start.elapsed();
    job.target.sync_all()?;
    let wall = start.elapsed();
    Ok(Sample { wall, final_sync: wall - copied, cpu: cpu_time() - cpu })
}

impl Job {
    fn open(source: &Path, target: &Path, way: Way) -> io::Result<Self> {
        let source = match way.read {
            Read::Direct => {
                OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(source)?
            }
            Read::Buffered | Read::Mapped => File::open(source)?,
        };
        let len = source.metadata()?.len();
        let path = target;
        let target = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        if way.write == Write::Clone {
            ioctl_ficlone(&target, &source)?;
        } else {
            target.set_len(len)?;
            if way.reserved {
                fallocate(&target, FallocateFlags::empty(), 0, len)?;
            }
        }
        let direct = match way.write {
            Write::Direct | Write::Ring(_) => {
                Some(OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path)?)
            }
            _ => None,
        };
        let target_map = match way.write {
            Write::Mapped | Write::Populated => {
                Some(MmapOptions::new().len(size(len)).map_raw(&target)?)
            }
            _ => None,
        };
        let source_map = match way.read {
            Read::Mapped => Some(raw::map(&source)?),
            Read::Buffered | Read::Direct => None,
        };
        let next = AtomicU64::new(0);
        Ok(Self { way, len, source, source_map, target, direct, target_map, next })
    }

    /// Copies strips until none is left.
    fn copy_strips(&self, written: &Sender<u64>) -> io::Result<()> {
        let mut buffer = MmapMut::map_anon(self.way.piece_bytes)?;
        while let Some(strip) = self.next_strip() {
            let strip_len = strip.end - strip.start;
            if let (Write::Populated, Some(map)) = (self.way.write, &self.target_map) {
                map.advise_range(Advice::PopulateWrite, size(strip.start), size(strip_len))?;
            }
            let mut hasher = blake3::Hasher::new();
            for piece in pieces(strip.clone(), self.way.piece_bytes) {
                let bytes = self.read(&mut buffer, &piece)?;
                hasher.update(bytes);
                self.write(bytes, piece.start)?;
            }
            black_box(hasher.finalize());
            self.send_off(&strip)?;
            written.send(strip_len).unwrap();
        }
        Ok(())
    }

    /// As `copy_strips`, with writes in flight while the next pieces are read and hashed.
    fn ring_strips(&self, depth: usize, written: &Sender<u64>) -> io::Result<()> {
        let mut ring = raw::Ring::new(self.direct.as_ref().unwrap(), depth, self.way.piece_bytes)?;
        let mut tail = [0; BLOCK];
        while let Some(strip) = self.next_strip() {
            let mut hasher = blake3::Hasher::new();
            for piece in pieces(strip.clone(), self.way.piece_bytes) {
                let len = size(piece.end - piece.start);
                let whole = len - len % BLOCK;
                if whole > 0 {
                    ring.write_at(piece.start, whole, |buffer| {
                        self.source.read_exact_at(buffer, piece.start)?;
                        hasher.update(buffer);
                        Ok(())
                    })?;
                }
                let (tail, tail_at) = (&mut tail[..len - whole], piece.start + whole as u64);
                self.source.read_exact_at(tail, tail_at)?;
                hasher.update(tail);
                self.target.write_all_at(tail, tail_at)?;
            }
            black_box(hasher.finalize());
            written.send(strip.end - strip.start).unwrap();
        }
        ring.drain()
    }

    fn next_strip(&self) -> Option<Range<u64>> {
        let at = self.next.fetch_add(STRIP, Ordering::Relaxed);
        (at < self.len).then(|| at..self.len.min(at + STRIP))
    }

    fn read<'a>(&'a self, buffer: &'a mut [u8], piece: &Range<u64>) -> io::Result<&'a [u8]> {
        if let Some(map) = &self.source_map {
            return Ok(&map[size(piece.start)..size(piece.end)]);
        }
        let len = size(piece.end - piece.start);
        if self.way.read == Read::Direct {
            // Whole blocks are asked for; the file ends inside its last one.
            let count =
                self.source.read_at(&mut buffer[..len.next_multiple_of(BLOCK)], piece.start)?;
            assert_eq!(count, len, "a direct read at {} was cut short", piece.start);
        } else {
            self.source.read_exact_at(&mut buffer[..len], piece.start)?;
        }
        Ok(&buffer[..len])
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        match self.way.write {
            Write::Buffered => self.target.write_all_at(bytes, at),
            Write::Direct => {
                let (whole, tail) = bytes.split_at(bytes.len() - bytes.len() % BLOCK);
                assert!(whole.as_ptr().addr().is_multiple_of(BLOCK), "memory out of line");
                assert!(size(at).is_multiple_of(BLOCK), "{at} is inside a block");
                self.direct.as_ref().unwrap().write_all_at(whole, at)?;
                self.target.write_all_at(tail, at + whole.len() as u64)
            }
            Write::CopyRange => {
                let (mut from, mut to, end) = (at, at, at + bytes.len() as u64);
                while to < end {
                    let rest = size(end - to);
                    let (from, to) = (Some(&mut from), Some(&mut to));
                    let count = copy_file_range(&self.source, from, &self.target, to, rest)?;
                    assert!(count > 0, "the source has become shorter");
                }
                Ok(())
            }
            Write::Mapped | Write::Populated => {
                raw::store(self.target_map.as_ref().unwrap(), size(at), bytes);
                Ok(())
            }
            // The bytes are there, or the ring writes them.
            Write::Clone | Write::Ring(_) => Ok(()),
        }
    }

    /// Begins the write-back of a strip, and ends that of an earlier one.
    fn send_off(&self, strip: &Range<u64>) -> io::Result<()> {
        let begin = libc::SYNC_FILE_RANGE_WRITE;
        let behind = match self.way.flush {
            Flush::AtEnd | Flush::Background(_) => return Ok(()),
            Flush::Early => None,
            Flush::Evicting(behind) => strip.start.checked_sub(behind),
        };
        raw::sync_range(&self.target, strip.start, strip.end - strip.start, begin)?;
        if let Some(at) = behind {
            let wait = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
            raw::sync_range(&self.target, at, STRIP, begin | wait)?;
            fadvise(&self.target, at, STRIP.try_into().ok(), rustix::fs::Advice::DontNeed)?;
        }
        Ok(())
    }

    /// Syncs beside the workers until they end; the rest is for the final sync.
    fn flush_behind(&self, strips: Receiver<u64>) -> io::Result<()> {
        let each = match self.way.flush {
            Flush::Background(each) => each,
            Flush::AtEnd | Flush::Early | Flush::Evicting(_) => u64::MAX,
        };
        let (mut written, mut synced) = (0, 0);
        while let Ok(bytes) = strips.recv() {
            written += bytes + strips.try_iter().sum::<u64>();
            if written < self.len && written - synced >= each {
                synced = written;
                self.target.sync_data()?;
            }
        }
        Ok(())
    }
}

fn pieces(range: Range<u64>, piece_bytes: usize) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range.step_by(piece_bytes).map(move |at| at..end.min(at + piece_bytes as u64))
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}

/// What all threads of this process have used.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap()
}

/// What the compiler cannot prove.
mod raw {
    #![expect(unsafe_code, reason = "maps and rings are what is tried here")]

    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;

    use io_uring::{IoUring, opcode, types};
    use memmap2::{Mmap, MmapMut, MmapRaw};

    /// Maps a source, which nobody may change or cut while the bench runs.
    pub(crate) fn map(source: &File) -> io::Result<Mmap> {
        // SAFETY: whoever runs the bench leaves the source alone, as its figures need it too.
        unsafe { Mmap::map(source) }
    }

    /// Stores bytes in a mapped target, where no other thread stores any.
    pub(crate) fn store(map: &MmapRaw, at: usize, bytes: &[u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= map.len()), "past the map");
        // SAFETY: the range is inside the map, as just asserted, and nothing refers to the map's
        // memory. Each strip is handed to one thread, so no other thread stores here.
        unsafe { map.as_mut_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// `sync_file_range(2)`.
    pub(crate) fn sync_range(file: &File, at: u64, len: u64, flags: u32) -> io::Result<()> {
        let cast = |bytes: u64| i64::try_from(bytes).map_err(io::Error::other);
        // SAFETY: the call takes no memory of ours, and the descriptor is open as long as `file`.
        match unsafe { libc::sync_file_range(file.as_raw_fd(), cast(at)?, cast(len)?, flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Writes in flight, with the buffers they come from.
    pub(crate) struct Ring<'a> {
        ring: IoUring,
        file: &'a File,
        buffers: Vec<MmapMut>,
        /// How long the write from each buffer is; nothing for one that is free.
        flying: Vec<Option<usize>>,
    }

    impl<'a> Ring<'a> {
        pub(crate) fn new(file: &'a File, depth: usize, piece_bytes: usize) -> io::Result<Self> {
            let entries = u32::try_from(depth.next_power_of_two()).map_err(io::Error::other)?;
            let ring = IoUring::builder().setup_single_issuer().build(entries)?;
            let buffers =
                (0..depth).map(|_| MmapMut::map_anon(piece_bytes)).collect::<Result<_, _>>()?;
            Ok(Self { ring, file, buffers, flying: vec![None; depth] })
        }

        /// Fills a buffer that is free, waiting for one if need be, and sends it on its way.
        pub(crate) fn write_at<F>(&mut self, at: u64, len: usize, fill: F) -> io::Result<()>
        where
            F: FnOnce(&mut [u8]) -> io::Result<()>,
        {
            self.reap(0)?;
            let index = loop {
                match self.flying.iter().position(Option::is_none) {
                    Some(index) => break index,
                    None => self.reap(1)?,
                }
            };
            let bytes = &mut self.buffers[index][..len];
            fill(bytes)?;
            let count = u32::try_from(len).map_err(io::Error::other)?;
            let write = opcode::Write::new(types::Fd(self.file.as_raw_fd()), bytes.as_ptr(), count);
            let entry = write.offset(at).build().user_data(index as u64);
            self.flying[index] = Some(len);
            // SAFETY: the buffer is this ring's own; it is neither touched again before the kernel
            // has answered, as `flying` says, nor freed, as `drop` waits. The file outlives `self`.
            unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
            self.ring.submit().map(drop)
        }

        /// Waits for every write.
        pub(crate) fn drain(&mut self) -> io::Result<()> {
            while self.flying.iter().any(Option::is_some) {
                self.reap(1)?;
            }
            Ok(())
        }

        /// Waits for so many writes, and takes note of all that have ended.
        fn reap(&mut self, wanted: usize) -> io::Result<()> {
            if wanted > 0 {
                self.ring.submit_and_wait(wanted)?;
            }
            let mut first_failure = Ok(());
            for entry in self.ring.completion() {
                let index = usize::try_from(entry.user_data()).map_err(io::Error::other)?;
                let expected = self.flying[index].take();
                let end = match usize::try_from(entry.result()) {
                    Ok(count) if Some(count) == expected => Ok(()),
                    Ok(_) => Err(io::ErrorKind::WriteZero.into()),
                    Err(_) => Err(io::Error::from_raw_os_error(-entry.result())),
                };
                first_failure = first_failure.and(end);
            }
            first_failure
        }
    }

    impl Drop for Ring<'_> {
        /// Waits for what a failure has left in flight: the kernel still reads those buffers.
        fn drop(&mut self) {
            while self.flying.iter().any(Option::is_some) {
                if self.reap(1).is_err() && self.ring.submit_and_wait(0).is_err() {
                    // The ring itself is broken: its buffers are better lost than read when freed.
                    std::mem::forget(std::mem::take(&mut self.buffers));
                    return;
                }
            }
        }
    }
}
