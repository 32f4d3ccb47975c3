//! Journal records: bytes to values and back, the chain that links them, and the torn-tail rule.
//! Pure.

use crate::chunk::{Content, Digest, Durable};
use crate::codec::{Decoder, Encoder};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun, Geometry, to_u64, to_usize};
use crate::id::JobId;
use crate::job::JobSpec;
use crate::sabotage;

/// Records begin and end on multiples of this: a sector that is written whole or not at all.
pub(crate) const SECTOR: usize = 512;
/// The most bytes of one record, frame and all.
pub(crate) const RECORD_LEN_MAX: usize = 1 << 20;
/// The most bytes of the header record: it lives in a room of its own.
pub(crate) const HEADER_LEN_MAX: usize = 32 << 10;
/// The most bytes of a journal: a record of its own for each of 2^20 chunks, and as much again.
const JOURNAL_LEN_MAX: u64 = 1 << 30;
/// The most chunks of one progress record, so that it fits in `RECORD_LEN_MAX` however they are
/// grouped.
pub(crate) const PROGRESS_CHUNKS_MAX: usize = 16 << 10;

/// The first bytes of every record.
pub(crate) const MAGIC: [u8; 4] = *b"BFJR";
/// The version of every record but the header of a job with a key, which has the next one.
const VERSION: u16 = 1;
const VERSION_MAX: u16 = 2;
/// The frame before the payload: magic 4, version 2, kind 1, zero 1, payload length 4, zero 4,
/// sequence 8, job 16, checksum of the record before 16, checksum 16.
const FRAME_LEN: usize = 72;
const SUM_AT: usize = 56;
const SUM_CONTEXT: &str = "blockferry 2026-11-21 journal record v1";

/// The most places behind the valid records that may look like the start of one. A crash tears one
/// append; each place more may cost another MiB of hashing, and a sector of each may be one.
const LOOKALIKES_MAX: u32 = 64;

const _: () = assert!(FRAME_LEN + PROGRESS_CHUNKS_MAX * (36 + 9) + SECTOR < RECORD_LEN_MAX);

/// What every record carries of the one before it; all zeros before the first.
pub(crate) type Sum = [u8; 16];

/// The first record: what the job is, and the name it will publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) spec: JobSpec,
    /// The name that appears in the region at commit: an image's folder, a file, a device's path.
    pub(crate) name: String,
}

/// Everything is durable and about to be published under the header's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) root: Digest,
}

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Record {
    Header(Box<Header>),
    /// A process began to run the job; later attempts fence earlier ones.
    Attempt {
        epoch: u32,
    },
    /// These chunks are durable at the target.
    Progress(Vec<Durable>),
    Prepared(Prepared),
    /// The decision of a target that is written in place: it is committed.
    Done,
}

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Self::Header(_) => 1,
            Self::Attempt { .. } => 2,
            Self::Progress(_) => 3,
            Self::Prepared(_) => 4,
            Self::Done => 5,
        }
    }

    fn version(&self) -> u16 {
        match self {
            Self::Header(header) => header.spec.record_version(),
            _ => VERSION,
        }
    }

    pub(crate) fn payload(&self) -> Vec<u8> {
        let mut out = Encoder::new();
        match self {
            Self::Header(header) => {
                header.spec.encode(&mut out);
                out.block(header.name.as_bytes());
            }
            Self::Attempt { epoch } => {
                out.u32(*epoch);
            }
            Self::Progress(chunks) => encode_progress(chunks, &mut out),
            Self::Prepared(prepared) => {
                out.u64(prepared.device).u64(prepared.inode).raw(prepared.root.as_bytes());
            }
            Self::Done => {}
        }
        out.finish()
    }

    pub(crate) fn decode(kind: u8, payload: &[u8], geometry: Option<Geometry>) -> Result<Self> {
        const NAME_LEN_MAX: usize = 4096;
        let mut from = Decoder::new(payload, "journal record");
        let record = match kind {
            1 => Self::Header(Box::new(Header {
                spec: JobSpec::decode(&mut from)?,
                name: from.text(NAME_LEN_MAX)?.to_owned(),
            })),
            2 => Self::Attempt { epoch: from.u32()? },
            3 => {
                let geometry = geometry.ok_or_else(|| from.corrupt("progress before header"))?;
                Self::Progress(decode_progress(&mut from, geometry)?)
            }
            4 => Self::Prepared(Prepared {
                device: from.u64()?,
                inode: from.u64()?,
                root: Digest::from_bytes(from.array()?),
            }),
            5 => Self::Done,
            _ => return Err(from.corrupt("its kind is unknown")),
        };
        from.finish()?;
        Ok(record)
    }
}

/// Groups neighbours: a zero run is 0, first, count; data chunks are 1, first, count, then digest
/// and data bytes of each.
fn encode_progress(chunks: &[Durable], out: &mut Encoder) {
    debug_assert!(chunks.len() <= PROGRESS_CHUNKS_MAX);
    let mut rest = chunks;
    while let Some(head) = rest.first() {
        let Content::Data { .. } = head.content() else {
            out.u8(0).u32(head.run().first.get()).u32(head.run().count);
            rest = &rest[1..];
            continue;
        };
        let follows = |pair: &[Durable]| {
            matches!(pair[1].content(), Content::Data { .. })
                && pair[0].run().end() == pair[1].run().first.get()
        };
        let len = 1 + rest.windows(2).take_while(|pair| follows(pair)).count();
        out.u8(1).u32(head.run().first.get()).u32(u32::try_from(len).unwrap_or(u32::MAX));
        for chunk in &rest[..len] {
            if let Content::Data { digest, data_bytes } = chunk.content() {
                out.raw(digest.as_bytes()).u32(data_bytes);
            }
        }
        rest = &rest[len..];
    }
}

fn decode_progress(from: &mut Decoder<'_>, geometry: Geometry) -> Result<Vec<Durable>> {
    let mut chunks = Vec::new();
    let mut data_end = None;
    while from.remaining() > 0 {
        let kind = from.u8()?;
        let (first, count) = (ChunkIndex::new(from.u32()?), from.u32()?);
        let fits = first.get().checked_add(count).is_some_and(|end| end <= geometry.chunk_count());
        if count == 0 || !fits {
            return Err(from.corrupt("progress lies outside the image"));
        }
        let items = to_u64(chunks.len()) + if kind == 0 { 1 } else { u64::from(count) };
        if items > to_u64(PROGRESS_CHUNKS_MAX) {
            return Err(from.corrupt("progress of too many chunks"));
        }
        if kind == 1 && data_end == Some(first) {
            return Err(from.corrupt("neighbours are not grouped"));
        }
        let run = ChunkRun::new(first, count);
        data_end = (kind == 1).then(|| ChunkIndex::new(run.end()));
        match kind {
            0 => chunks.push(Durable::recorded(run, Content::Zero)),
            1 => {
                for index in run.iter() {
                    let digest = Digest::from_bytes(from.array()?);
                    let data_bytes = from.u32()?;
                    if u64::from(data_bytes) > geometry.range(index).len {
                        return Err(from.corrupt("a chunk has more data than it is long"));
                    }
                    let content = Content::Data { digest, data_bytes };
                    chunks.push(Durable::recorded(ChunkRun::new(index, 1), content));
                }
            }
            _ => return Err(from.corrupt("a run is neither zero nor data")),
        }
    }
    Ok(chunks)
}

/// The end of a chain of records: what the next one has to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    job: JobId,
    next_seq: u64,
    last_sum: Sum,
}

impl Chain {
    /// Before the first record of that job.
    pub(crate) fn new(job: JobId) -> Self {
        Self { job, next_seq: 0, last_sum: [0; 16] }
    }

    /// The bytes of the next record, a multiple of 512, and the chain after it.
    pub(crate) fn seal(self, record: &Record) -> (Vec<u8>, Self) {
        let payload = record.payload();
        let mut out = Encoder::new();
        out.raw(&MAGIC).u16(record.version()).u8(record.kind()).u8(0);
        out.u32(u32::try_from(payload.len()).unwrap_or(u32::MAX)).u32(0);
        out.u64(self.next_seq).raw(self.job.as_bytes()).raw(&self.last_sum).raw(&[0; 16]);
        out.raw(&payload);
        let mut bytes = out.finish();
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        debug_assert!(bytes.len() <= RECORD_LEN_MAX, "record of {} bytes", bytes.len());
        let sum = checksum(&bytes);
        bytes[SUM_AT..FRAME_LEN].copy_from_slice(&sum);
        (bytes, Self { next_seq: self.next_seq + 1, last_sum: sum, ..self })
    }

    /// Takes in a sealed record that should come next.
    fn accept(&mut self, frame: &Frame<'_>, geometry: Option<Geometry>) -> Option<Record> {
        if (frame.seq, frame.previous) != (self.next_seq, self.last_sum) {
            return None;
        }
        let record = Record::decode(frame.kind, frame.payload, geometry).ok()?;
        if record.version() != frame.version {
            return None;
        }
        self.next_seq += 1;
        self.last_sum = frame.sum;
        Some(record)
    }
}

/// BLAKE3 over the whole record, its own field left out, cut to 16 bytes.
fn checksum(bytes: &[u8]) -> Sum {
    let mut hasher = blake3::Hasher::new_derive_key(SUM_CONTEXT);
    hasher.update(&bytes[..SUM_AT]).update(&bytes[FRAME_LEN..]);
    let mut sum = [0; 16];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    sum
}

/// A record whose own checksum holds. Whether it is the next of the chain is another question.
struct Frame<'a> {
    version: u16,
    kind: u8,
    seq: u64,
    previous: Sum,
    sum: Sum,
    payload: &'a [u8],
}

/// How long the record that begins in this sector says it is, if it may be one.
fn announced_len(sector: &[u8]) -> Option<usize> {
    if sector.get(..4)? != MAGIC {
        return None;
    }
    let payload = u32::from_le_bytes(sector.get(8..12)?.try_into().ok()?);
    let len = FRAME_LEN.checked_add(usize::try_from(payload).ok()?)?.next_multiple_of(SECTOR);
    (len <= RECORD_LEN_MAX).then_some(len)
}

fn open_frame(bytes: &[u8], job: JobId) -> Option<Frame<'_>> {
    debug_assert_eq!(announced_len(bytes), Some(bytes.len()));
    let mut from = Decoder::new(bytes, "journal record");
    let (_magic, version, kind, _zero) =
        (from.raw(4).ok()?, from.u16().ok()?, from.u8().ok()?, from.u8().ok()?);
    let (len, _zero, seq) = (from.u32().ok()?, from.u32().ok()?, from.u64().ok()?);
    let (owner, previous, sum) = (from.array().ok()?, from.array().ok()?, from.array().ok()?);
    let payload = from.raw(usize::try_from(len).ok()?).ok()?;
    let valid = (VERSION..=VERSION_MAX).contains(&version)
        && owner == *job.as_bytes()
        && sum == checksum(bytes);
    valid.then_some(Frame { version, kind, seq, previous, sum, payload })
}

/// What a journal says, read from its first byte to the end of its valid records.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) header: Header,
    /// The number of the last attempt.
    pub(crate) epoch: u32,
    pub(crate) prepared: Option<Prepared>,
    pub(crate) done: bool,
    pub(crate) chain: Chain,
    /// Where the next record goes.
    pub(crate) end: u64,
}

/// Reads bytes of the journal at an offset; past its end it gives zeros.
pub(crate) type ReadAt<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> Result<()>;

/// Reads a journal of `len` bytes whose log starts at `log_at`, and shows each durable chunk to
/// `visit`.
///
/// Returns `None` when no start was ever acknowledged: the header is missing or torn and no record
/// follows it. Its owner may append meanwhile.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when a record of this job follows an invalid one: that is damage, not a
/// torn tail, and dropping what follows would lose acknowledged work. [`ErrorKind::Unsupported`]
/// for a newer version.
pub(crate) fn replay(
    job: JobId,
    len: u64,
    log_at: u64,
    read: ReadAt<'_>,
    visit: &mut dyn FnMut(&Durable),
) -> Result<Option<Replay>> {
    if len > JOURNAL_LEN_MAX {
        return Err(corrupt("it is longer than any journal", JOURNAL_LEN_MAX));
    }
    let mut buffer = Vec::new();
    let mut chain = Chain::new(job);
    refuse_newer(read)?;
    let header = match next_record(job, 0, HEADER_LEN_MAX, read, &mut buffer)? {
        Some(frame) => chain.accept(&frame, None),
        None => None,
    };
    let Some(Record::Header(header)) = header else {
        refuse_later_records(job, log_at, len, read, &mut buffer)?;
        return Ok(None);
    };
    if header.spec.job != job {
        return Err(corrupt("the header is of another job", 0));
    }
    let header = *header;
    let mut replay = Replay { header, epoch: 0, prepared: None, done: false, chain, end: log_at };
    loop {
        replay.follow(read, visit, &mut buffer)?;
        let end = replay.end;
        let told = refuse_later_records(job, end, len, read, &mut buffer);
        // Its owner may be appending while we read, and a read is not atomic: of two records, the
        // later alone may have been seen. By now the earlier one is whole, or it is damaged.
        if told.is_err() {
            replay.follow(read, visit, &mut buffer)?;
        }
        if replay.end == end {
            return told.map(|()| Some(replay));
        }
    }
}

impl Replay {
    /// Reads on from where it ended, to the end of the valid records.
    fn follow(
        &mut self,
        read: ReadAt<'_>,
        visit: &mut dyn FnMut(&Durable),
        buffer: &mut Vec<u8>,
    ) -> Result<()> {
        let job = self.header.spec.job;
        let geometry = self.header.spec.geometry;
        while let Some(frame) = next_record(job, self.end, RECORD_LEN_MAX, read, buffer)? {
            let Some(record) = self.chain.accept(&frame, Some(geometry)) else { break };
            match record {
                Record::Header(_) => return Err(corrupt("a second header", self.end)),
                Record::Attempt { epoch } => self.epoch = epoch,
                Record::Progress(chunks) => chunks.iter().for_each(&mut *visit),
                Record::Prepared(prepared) => self.prepared = Some(prepared),
                Record::Done => self.done = true,
            }
            self.end += to_u64(buffer.len());
        }
        Ok(())
    }
}

/// The header of a journal alone; `None` when it is missing or torn.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a newer version.
pub(crate) fn read_header(job: JobId, read: ReadAt<'_>) -> Result<Option<Header>> {
    refuse_newer(read)?;
    let mut buffer = Vec::new();
    let Some(frame) = next_record(job, 0, HEADER_LEN_MAX, read, &mut buffer)? else {
        return Ok(None);
    };
    match Chain::new(job).accept(&frame, None) {
        Some(Record::Header(header)) if header.spec.job == job => Ok(Some(*header)),
        _ => Ok(None),
    }
}

/// The record at that offset if its own checksum holds; its bytes are left in `buffer`.
fn next_record<'a>(
    job: JobId,
    at: u64,
    len_max: usize,
    read: ReadAt<'_>,
    buffer: &'a mut Vec<u8>,
) -> Result<Option<Frame<'a>>> {
    buffer.resize(SECTOR, 0);
    read(at, buffer)?;
    let Some(len) = announced_len(buffer).filter(|len| *len <= len_max) else { return Ok(None) };
    buffer.resize(len, 0);
    read(at + to_u64(SECTOR), &mut buffer[SECTOR..])?;
    Ok(open_frame(buffer, job))
}

/// A version above ours in the very first bytes: say so rather than call it torn.
fn refuse_newer(read: ReadAt<'_>) -> Result<()> {
    let mut head = [0; 6];
    read(0, &mut head)?;
    let version = u16::from_le_bytes([head[4], head[5]]);
    if head[..4] == MAGIC && version > VERSION_MAX {
        return Err(Error::new(ErrorKind::Unsupported, format!("read journal version {version}"))
            .hint("it was written by a newer blockferry: upgrade"));
    }
    Ok(())
}

/// Stops at the end of the valid records; any valid record beyond is proof of damage in between.
fn refuse_later_records(
    job: JobId,
    from: u64,
    len: u64,
    read: ReadAt<'_>,
    buffer: &mut Vec<u8>,
) -> Result<()> {
    let mut window = vec![0; 64 << 10];
    let mut lookalikes = 0;
    let mut at = from;
    while at < len {
        let filled =
            to_usize(len - at).min(window.len()).next_multiple_of(SECTOR).min(window.len());
        read(at, &mut window[..filled])?;
        for sector in (0..filled).step_by(SECTOR) {
            if announced_len(&window[sector..sector + SECTOR]).is_none() {
                continue;
            }
            let place = at + to_u64(sector);
            let found = next_record(job, place, RECORD_LEN_MAX, read, buffer)?;
            if found.is_some() && !sabotage::is("M28") {
                return Err(corrupt("a valid record follows a damaged one", from));
            }
            lookalikes += 1;
            if lookalikes > LOOKALIKES_MAX {
                return Err(corrupt("more torn records than a crash can leave", from));
            }
        }
        at += to_u64(filled);
    }
    Ok(())
}

fn corrupt(why: &str, at: u64) -> Error {
    Error::new(ErrorKind::Corrupt, format!("read journal: {why}, at byte {at} of it"))
        .hint("its job cannot be resumed; cancel it and copy again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::sample_spec;

    const LOG_AT: u64 = 64 << 10;
    const LOG: usize = 64 << 10;

    fn header() -> Header {
        Header { spec: sample_spec(), name: "m-1".into() }
    }

    fn data(index: u32) -> Durable {
        let content = Content::Data {
            digest: Digest::from_bytes([u8::try_from(index).unwrap(); 32]),
            data_bytes: 5,
        };
        Durable::recorded(ChunkRun::new(ChunkIndex::new(index), 1), content)
    }

    fn zeros(first: u32, count: u32) -> Durable {
        Durable::recorded(ChunkRun::new(ChunkIndex::new(first), count), Content::Zero)
    }

    fn journal(records: &[Record]) -> Vec<u8> {
        let (mut bytes, mut chain) =
            Chain::new(sample_spec().job).seal(&Record::Header(Box::new(header())));
        bytes.resize(LOG, 0);
        for record in records {
            let (sealed, next) = chain.seal(record);
            bytes.extend(sealed);
            chain = next;
        }
        bytes
    }

    fn sample() -> Vec<Record> {
        let prepared = Prepared { device: 1, inode: 2, root: Digest::from_bytes([3; 32]) };
        vec![
            Record::Attempt { epoch: 1 },
            Record::Progress(vec![data(0), data(1), zeros(2, 9), data(15)]),
            Record::Attempt { epoch: 2 },
            Record::Progress(vec![data(11)]),
            Record::Prepared(prepared),
        ]
    }

    fn read(bytes: &[u8]) -> Result<Option<(Replay, Vec<Durable>)>> {
        let mut seen = Vec::new();
        let mut read = |at: u64, buffer: &mut [u8]| {
            for (n, byte) in buffer.iter_mut().enumerate() {
                *byte = bytes.get(usize::try_from(at).unwrap() + n).copied().unwrap_or(0);
            }
            Ok(())
        };
        let job = sample_spec().job;
        let found =
            replay(job, to_u64(bytes.len()), LOG_AT, &mut read, &mut |chunk| seen.push(*chunk))?;
        Ok(found.map(|replay| (replay, seen)))
    }

    #[test]
    fn what_was_appended_is_replayed() {
        let (replay, seen) = read(&journal(&sample())).unwrap().unwrap();
        assert_eq!(replay.header, header());
        assert_eq!((replay.epoch, replay.done), (2, false));
        assert_eq!(replay.prepared.unwrap().inode, 2);
        assert_eq!(seen, [data(0), data(1), zeros(2, 9), data(15), data(11)]);
    }

    /// Longer than a sector, so that it is read in two pieces.
    #[test]
    fn a_long_record_is_replayed_and_found_behind_damage() {
        let chunks: Vec<Durable> = (0..16).map(data).collect();
        let records = [Record::Attempt { epoch: 1 }, Record::Progress(chunks.clone())];
        let bytes = journal(&records);
        assert_eq!(bytes.len(), LOG + 3 * SECTOR);
        assert_eq!(read(&bytes).unwrap().unwrap().1, chunks);
        let mut damaged = bytes;
        damaged[LOG] ^= 1;
        assert_eq!(read(&damaged).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_header_has_the_oldest_version_that_says_it_all_and_torn_none_is_too_new() {
        let version = |key| {
            let spec = JobSpec { key, ..sample_spec() };
            let header = Record::Header(Box::new(Header { spec, ..header() }));
            Chain::new(sample_spec().job).seal(&header).0
        };
        let (clear, encrypted) = (version(None), version(Some("k".parse().unwrap())));
        assert_eq!((clear[4], encrypted[4]), (1, 2));
        assert_eq!((u16::from(encrypted[4]), encrypted[5]), (VERSION_MAX, 0));
        let mut torn = encrypted;
        torn.resize(LOG, 0);
        assert!(read(&torn).unwrap().is_some(), "whole");
        torn[9] ^= 1;
        assert!(read(&torn).unwrap().is_none(), "torn, and not of a later version");
    }

    #[test]
    fn a_journal_cut_anywhere_gives_a_prefix_or_was_never_acknowledged() {
        let whole = journal(&sample());
        let (_, all) = read(&whole).unwrap().unwrap();
        for len in (0..whole.len()).step_by(37).chain(LOG - 3..whole.len()) {
            match read(&whole[..len]).unwrap() {
                None => assert!(len < LOG, "cut at {len}"),
                Some((_, seen)) => assert!(all.starts_with(&seen), "cut at {len}"),
            }
        }
    }

    #[test]
    fn a_flip_of_any_byte_is_refused_or_costs_only_the_last_record() {
        let whole = journal(&sample());
        let (_, all) = read(&whole).unwrap().unwrap();
        let header_len =
            Chain::new(sample_spec().job).seal(&Record::Header(Box::new(header()))).0.len();
        let last = whole.len() - SECTOR;
        for at in (0..header_len).chain(LOG..whole.len()) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            match read(&bytes) {
                Err(error) => assert!(
                    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported),
                    "{error}"
                ),
                Ok(Some((replay, seen))) => {
                    assert!(at >= last, "flip at {at} went unseen");
                    assert_eq!((replay.prepared, seen), (None, all.clone()));
                }
                Ok(None) => panic!("flip at {at}: an acknowledged start was forgotten"),
            }
        }
    }

    #[test]
    fn records_of_another_job_do_not_count() {
        let mut bytes = journal(&sample());
        let other = JobId::from_bytes([0x22; 16]);
        let (foreign, _) = Chain::new(other).seal(&Record::Attempt { epoch: 9 });
        bytes.extend(foreign);
        assert_eq!(read(&bytes).unwrap().unwrap().0.epoch, 2);
    }

    #[test]
    fn a_swapped_or_repeated_record_is_refused() {
        let whole = journal(&sample());
        let first = LOG;
        let mut repeated = whole.clone();
        repeated.extend_from_slice(&whole[first..first + SECTOR]);
        assert_eq!(read(&repeated).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn golden_bytes_of_an_attempt() {
        let (bytes, _) = Chain::new(sample_spec().job).seal(&Record::Attempt { epoch: 7 });
        let hex: String = bytes[..76].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(bytes.len(), SECTOR);
        assert_eq!(
            hex,
            "42464a52010002000400000000000000000000000000000011111111111111111111111111111111\
             000000000000000000000000000000004c5e7fc4a14f2308abd5afb66d4ee2bc07000000"
        );
    }

    #[test]
    fn golden_bytes_of_a_whole_journal() {
        // Header, attempts, progress with data and zero runs, prepared: a change here is a new
        // version.
        let bytes = journal(&sample());
        assert_eq!(bytes.len(), LOG + 5 * SECTOR);
        assert_eq!(
            blake3::hash(&bytes).to_string(),
            "e57c0e5fcddf9a1bc85608fce5bb3c4b4454dee8ea895fbdfe12442e9e35bef8"
        );
    }

    #[test]
    fn a_log_full_of_torn_records_is_refused_before_all_of_them_are_hashed() {
        let mut bytes = journal(&sample());
        let mut torn = [0; SECTOR];
        torn[..4].copy_from_slice(&MAGIC);
        torn[8..12].copy_from_slice(&(512_u32 << 10).to_le_bytes());
        bytes.resize(bytes.len() + SECTOR, 0);
        for count in [LOOKALIKES_MAX, LOOKALIKES_MAX + 1, 10_000] {
            let mut bytes = bytes.clone();
            (0..count).for_each(|_| bytes.extend_from_slice(&torn));
            let mut read_bytes = 0;
            let mut read = |at: u64, buffer: &mut [u8]| {
                read_bytes += buffer.len();
                let tail = bytes.get(to_usize(at)..).unwrap_or_default();
                let filled = tail.len().min(buffer.len());
                buffer[..filled].copy_from_slice(&tail[..filled]);
                buffer[filled..].fill(0);
                Ok(())
            };
            let len = to_u64(bytes.len());
            let found = replay(sample_spec().job, len, LOG_AT, &mut read, &mut |_| {});
            assert_eq!(found.is_err(), count > LOOKALIKES_MAX, "{count} torn records");
            assert!(read_bytes < 64 << 20, "{count} torn records: {read_bytes} bytes read");
        }
    }

    #[test]
    fn records_that_are_appended_while_it_is_read_are_no_damage() {
        let bytes = journal(&sample());
        let ends: Vec<usize> =
            (1..=sample().len()).map(|n| journal(&sample()[..n]).len()).collect();
        let late = ends[1]..ends[2];
        for seen_at_look in [1, 2, 3] {
            // Its first sector is zeros to whoever looks before it is there.
            let mut looks = 0;
            let mut read = |at: u64, buffer: &mut [u8]| {
                let at = to_usize(at);
                let tail = bytes.get(at..).unwrap_or_default();
                let filled = tail.len().min(buffer.len());
                buffer[..filled].copy_from_slice(&tail[..filled]);
                buffer[filled..].fill(0);
                looks += usize::from(at == late.start);
                if (at..at + filled).contains(&late.start) && looks < seen_at_look {
                    let from = late.start - at;
                    buffer[from..filled.min(from + SECTOR)].fill(0);
                }
                Ok(())
            };
            let mut seen = Vec::new();
            let job = sample_spec().job;
            let len = to_u64(bytes.len());
            let found = replay(job, len, LOG_AT, &mut read, &mut |chunk| seen.push(*chunk));
            let whole = found.map(|found| found.unwrap().end == len);
            // The second look is the search for later records, the third the one that counts.
            assert!(whole.unwrap(), "seen at look {seen_at_look}");
            let once = [data(0), data(1), zeros(2, 9), data(15), data(11)];
            assert_eq!(seen, once, "seen at look {seen_at_look}: each chunk once");
        }
    }

    #[test]
    fn progress_is_written_in_one_way_and_bounded() {
        let geometry = sample_spec().geometry;
        let read = |payload: &[u8]| Record::decode(3, payload, Some(geometry));
        let mut out = Encoder::new();
        for first in [0, 1] {
            out.u8(1).u32(first).u32(1).raw(&[7; 32]).u32(5);
        }
        assert!(read(&out.finish()).is_err(), "two groups where one would be written");
        (0..PROGRESS_CHUNKS_MAX).for_each(|_| {
            out.u8(0).u32(0).u32(1);
        });
        let mut most = out.finish();
        assert!(read(&most).is_ok());
        most.extend_from_slice(&[0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert!(read(&most).is_err(), "more chunks than are ever written");
    }

    #[test]
    fn a_chunk_has_at_most_as_much_data_as_it_is_long() {
        let geometry = sample_spec().geometry;
        let len = u32::try_from(geometry.range(ChunkIndex::new(0)).len).unwrap();
        for (data_bytes, is_fine) in [(0, true), (len, true), (len + 1, false)] {
            let mut out = Encoder::new();
            out.u8(1).u32(0).u32(1).raw(&[7; 32]).u32(data_bytes);
            let read = Record::decode(3, &out.finish(), Some(geometry));
            assert_eq!(read.is_ok(), is_fine, "{data_bytes} bytes");
        }
    }

    #[test]
    fn a_run_of_zeros_is_one_item_of_progress_however_long_it_is() {
        let count = u32::try_from(PROGRESS_CHUNKS_MAX).unwrap() + 1;
        let chunk_size = sample_spec().geometry.chunk_size();
        let geometry = Geometry::new(u64::from(count) * chunk_size.bytes(), chunk_size).unwrap();
        let mut out = Encoder::new();
        out.u8(0).u32(0).u32(count);
        let read = Record::decode(3, &out.finish(), Some(geometry));
        assert_eq!(read.unwrap(), Record::Progress(vec![zeros(0, count)]));
    }

    #[test]
    fn what_was_done_in_place_is_replayed() {
        let mut records = sample();
        records.push(Record::Done);
        assert!(read(&journal(&records)).unwrap().unwrap().0.done);
    }

    #[test]
    fn the_header_alone_tells_what_the_job_is() {
        let job = sample_spec().job;
        let alone = |bytes: &[u8]| {
            read_header(job, &mut |at, buffer| {
                let tail = bytes.get(to_usize(at)..).unwrap_or_default();
                let filled = tail.len().min(buffer.len());
                buffer[..filled].copy_from_slice(&tail[..filled]);
                buffer[filled..].fill(0);
                Ok(())
            })
        };
        let whole = journal(&sample());
        assert_eq!(alone(&whole).unwrap(), Some(header()));
        let mut torn = whole.clone();
        torn[100] ^= 1;
        assert_eq!(alone(&torn).unwrap(), None);
        assert_eq!(alone(&[]).unwrap(), None);
        let mut newer = whole;
        newer[4] = 3;
        assert_eq!(alone(&newer).unwrap_err().kind(), ErrorKind::Unsupported);
        // Sealed for this job, and about another.
        let mut strange = header();
        strange.spec.job = JobId::from_bytes([0x22; 16]);
        let (bytes, _) = Chain::new(job).seal(&Record::Header(Box::new(strange)));
        assert_eq!(alone(&bytes).unwrap(), None);
        assert_eq!(read(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_record_however_far_behind_damage_is_found() {
        let whole = journal(&[Record::Attempt { epoch: 1 }]);
        let (_, chain) = Chain::new(sample_spec().job).seal(&Record::Header(Box::new(header())));
        let (late, _) = chain.seal(&Record::Attempt { epoch: 2 });
        for gap in [1, 127, 128, 129, 1000] {
            let mut bytes = whole.clone();
            bytes.resize(whole.len() + gap * SECTOR, 0);
            assert_eq!(read(&bytes).unwrap().unwrap().0.epoch, 1, "zeros are no damage");
            bytes.extend_from_slice(&late);
            assert_eq!(read(&bytes).unwrap_err().kind(), ErrorKind::Corrupt, "{gap} sectors off");
        }
    }

    #[test]
    fn a_journal_that_is_longer_than_any_is_not_even_read() {
        for (len, kind) in
            [(JOURNAL_LEN_MAX, ErrorKind::Io), (JOURNAL_LEN_MAX + 1, ErrorKind::Corrupt)]
        {
            let mut read =
                |_: u64, _: &mut [u8]| Err(Error::new(ErrorKind::Io, "read a broken device"));
            let found = replay(sample_spec().job, len, LOG_AT, &mut read, &mut |_| {});
            assert_eq!(found.unwrap_err().kind(), kind, "{len} bytes");
        }
    }

    #[test]
    fn progress_outside_the_image_is_not_replayed() {
        let bytes = journal(&[Record::Progress(vec![zeros(10, 100)])]);
        // Its checksum holds, but what it says cannot be: it is a valid record after the end.
        assert_eq!(read(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
