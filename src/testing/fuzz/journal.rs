//! Journal replay against a naive twin: the same records, the same end, the same refusals.
//!
//! An input is a journal without the gap behind its header: records on sectors, one after another.

use super::{Effort, assert_refusal, cuts, sample_spec};
use crate::chunk::{Content, Digest, Durable};
use crate::error::ErrorKind;
use crate::geometry::{ChunkIndex, ChunkRun, Geometry, to_u64, to_usize};
use crate::id::JobId;
use crate::journal::{
    Chain, HEADER_LEN_MAX, Header, PROGRESS_CHUNKS_MAX, Prepared, RECORD_LEN_MAX, Record, SECTOR,
    replay,
};

const SUM_CONTEXT: &str = "blockferry 2026-11-21 journal record v1";
const FRAME_LEN: usize = 72;
const LOOKALIKES_MAX: usize = 64;

pub(super) fn window(len: usize) -> usize {
    RECORD_LEN_MAX + PROGRESS_CHUNKS_MAX * size_of::<Durable>() + 8 * len
}

pub(super) fn check(bytes: &[u8], effort: Effort) {
    check_cuts(bytes, effort);
    let mended = mended(bytes);
    if mended != bytes {
        check_cuts(&mended, effort);
    }
}

fn check_cuts(bytes: &[u8], effort: Effort) {
    let whole = check_one(bytes);
    for len in cuts(bytes, effort) {
        let part = check_one(&bytes[..len]);
        // What is cut tells nothing that the whole does not. Behind the end of the whole it may:
        // zeros beyond the cut can put a damaged padding right.
        if let (Some((whole, end)), Some((part, _))) = (&whole, &part)
            && len < *end
        {
            assert!(whole.starts_with(part), "cut at {len}");
        }
    }
}

/// Replays and compares with the twin; returns the chunks that are told durable, and the end.
fn check_one(bytes: &[u8]) -> Option<(Vec<Durable>, usize)> {
    let job = JobId::from_bytes(array(bytes, 24).unwrap_or_default());
    let log_at = announced_len(bytes).unwrap_or(SECTOR);
    let (mut seen, mut read_bytes) = (Vec::new(), 0);
    let mut read = |at: u64, buffer: &mut [u8]| {
        read_bytes += buffer.len();
        let rest = bytes.get(to_usize(at)..).unwrap_or_default();
        let filled = rest.len().min(buffer.len());
        buffer[..filled].copy_from_slice(&rest[..filled]);
        buffer[filled..].fill(0);
        Ok(())
    };
    let mut visit = |chunk: &Durable| seen.push(*chunk);
    let told = replay(job, to_u64(bytes.len()), to_u64(log_at), &mut read, &mut visit);
    let read_bytes_max = 4 * (bytes.len() + SECTOR) + (LOOKALIKES_MAX + 2) * RECORD_LEN_MAX;
    assert!(read_bytes <= read_bytes_max, "{read_bytes} bytes were read");
    let twin = Twin::of(bytes, job, log_at);
    match told {
        Err(error) => {
            assert_refusal(&error);
            let newer = error.kind() == ErrorKind::Unsupported;
            assert_eq!((newer, !newer), (twin.newer, twin.damaged), "{}", error.report());
            return None;
        }
        Ok(None) => assert!(twin.accepts() && twin.records.is_empty()),
        Ok(Some(replay)) => {
            assert!(twin.accepts() && !twin.records.is_empty());
            assert_eq!(replay.end, to_u64(twin.end));
            assert_eq!(twin.records.first(), Some(&Record::Header(Box::new(replay.header))));
            let said = (replay.epoch, replay.prepared, replay.done);
            assert_eq!(said, twin.said());
        }
    }
    assert_eq!(seen, twin.chunks());
    Some((seen, twin.end))
}

/// What a journal says, read the simple way from bytes that are all there.
struct Twin {
    newer: bool,
    damaged: bool,
    records: Vec<Record>,
    end: usize,
}

impl Twin {
    fn of(bytes: &[u8], job: JobId, log_at: usize) -> Self {
        // What is missing reads as zeros.
        let version_byte = |at| bytes.get(at).copied().unwrap_or(0);
        let version = u16::from_le_bytes([version_byte(4), version_byte(5)]);
        let newer = bytes.starts_with(b"BFJR") && version > 2;
        let mut twin = Self { newer, damaged: false, records: Vec::new(), end: 0 };
        if newer {
            return twin;
        }
        let mut previous = [0; 16];
        let mut geometry = None;
        while let Some(frame) = Frame::at(bytes, twin.end, job) {
            let fits = geometry.is_some() || (frame.kind == 1 && frame.len <= HEADER_LEN_MAX);
            if !fits || (frame.seq, frame.previous) != (to_u64(twin.records.len()), previous) {
                break;
            }
            let Ok(record) = Record::decode(frame.kind, &frame.payload, geometry) else { break };
            // The second version is that of headers which name a key, and of nothing else.
            let names_key = matches!(&record, Record::Header(header) if header.spec.key.is_some());
            if (frame.version == 2) != names_key {
                break;
            }
            assert!(record.payload() == frame.payload, "written otherwise: {record:?}");
            if let Record::Header(header) = &record
                && (geometry.replace(header.spec.geometry).is_some() || header.spec.job != job)
            {
                twin.damaged = true;
                return twin;
            }
            previous = frame.sum;
            twin.end += frame.len;
            twin.records.push(record);
        }
        let after = if twin.records.is_empty() { log_at } else { twin.end };
        let places = (after..bytes.len()).step_by(SECTOR);
        let torn = places.clone().filter(|at| announced_len(&bytes[*at..]).is_some()).count();
        twin.damaged =
            torn > LOOKALIKES_MAX || { places }.any(|at| Frame::at(bytes, at, job).is_some());
        twin
    }

    fn accepts(&self) -> bool {
        !self.newer && !self.damaged
    }

    fn chunks(&self) -> Vec<Durable> {
        let progress = self.records.iter().filter_map(|record| match record {
            Record::Progress(chunks) => Some(chunks.clone()),
            _ => None,
        });
        progress.flatten().collect()
    }

    fn said(&self) -> (u32, Option<Prepared>, bool) {
        let mut said = (0, None, false);
        for record in &self.records {
            match record {
                Record::Attempt { epoch } => said.0 = *epoch,
                Record::Prepared(prepared) => said.1 = Some(*prepared),
                Record::Done => said.2 = true,
                Record::Header(_) | Record::Progress(_) => {}
            }
        }
        said
    }
}

struct Frame {
    version: u8,
    kind: u8,
    seq: u64,
    previous: [u8; 16],
    sum: [u8; 16],
    payload: Vec<u8>,
    len: usize,
}

impl Frame {
    /// The record of that job that begins there, if its own checksum holds.
    fn at(bytes: &[u8], at: usize, job: JobId) -> Option<Self> {
        let len = announced_len(bytes.get(at..)?)?;
        let mut record = bytes[at..bytes.len().min(at + len)].to_vec();
        record.resize(len, 0);
        let payload_len = array(&record, 8).map(u32::from_le_bytes)?;
        let sum = array(&record, 56)?;
        let known = matches!(array(&record, 4)?, [1 | 2, 0]);
        let ours = known && array(&record, 24) == Some(*job.as_bytes());
        if !ours || sum != checksum(&record) {
            return None;
        }
        Some(Self {
            version: record[4],
            kind: record[6],
            seq: array(&record, 16).map(u64::from_le_bytes)?,
            previous: array(&record, 40)?,
            sum,
            payload: record[FRAME_LEN..][..to_usize(u64::from(payload_len))].to_vec(),
            len,
        })
    }
}

/// The same records as one chain of one job, every sum put right; what is none is left alone.
fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    let job: [u8; 16] = array(&bytes, 24).unwrap_or_default();
    let (mut at, mut seq, mut previous) = (0, 0_u64, [0; 16]);
    while at < bytes.len() {
        let len = announced_len(&bytes[at..]).filter(|len| at + len <= bytes.len());
        let Some(len) = len else {
            at += SECTOR;
            continue;
        };
        let record = &mut bytes[at..at + len];
        let is_second = record[4] == 2 && record[6] == 1;
        record[4..6].copy_from_slice(&[if is_second { 2 } else { 1 }, 0]);
        record[16..24].copy_from_slice(&seq.to_le_bytes());
        record[24..40].copy_from_slice(&job);
        record[40..56].copy_from_slice(&previous);
        if record[6] == 1 && seq == 0 && record.len() >= FRAME_LEN + 16 {
            // The job is named once more in the spec.
            record[FRAME_LEN..FRAME_LEN + 16].copy_from_slice(&job);
        }
        previous = checksum(record);
        record[56..72].copy_from_slice(&previous);
        (at, seq) = (at + len, seq + 1);
    }
    bytes
}

fn announced_len(bytes: &[u8]) -> Option<usize> {
    let payload_len = array(bytes, 8).map(u32::from_le_bytes)?;
    let len = (FRAME_LEN + to_usize(u64::from(payload_len))).next_multiple_of(SECTOR);
    (bytes.starts_with(b"BFJR") && len <= RECORD_LEN_MAX).then_some(len)
}

fn checksum(record: &[u8]) -> [u8; 16] {
    let covered = [&record[..56], &record[FRAME_LEN..]].concat();
    let mut sum = [0; 16];
    sum.copy_from_slice(&blake3::derive_key(SUM_CONTEXT, &covered)[..16]);
    sum
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let Some(spec) = sample_spec() else { return Vec::new() };
    let (chain, geometry) = (Chain::new(spec.job), spec.geometry);
    let header = Record::Header(Box::new(Header { spec, name: "m-1".into() }));
    let prepared = Prepared { device: 1, inode: 2, root: Digest::from_bytes([3; 32]) };
    let attempt = Record::Attempt { epoch: 1 };
    let progress = Record::Progress(sample_chunks(geometry));
    let write = |records: &[&Record]| {
        let (mut bytes, mut chain) = (Vec::new(), chain);
        for record in records {
            let (sealed, next) = chain.seal(record);
            bytes.extend_from_slice(&sealed);
            chain = next;
        }
        bytes
    };
    let whole = write(&[&header, &attempt, &progress, &Record::Prepared(prepared), &Record::Done]);
    let at = whole.len() - 2 * SECTOR;
    let mut torn = whole.clone();
    torn[at + SECTOR + 60] ^= 1;
    let mut damaged = whole.clone();
    damaged[at + 60] ^= 1;
    let twice = write(&[&header, &attempt, &header]);
    vec![write(&[&header]), write(&[&attempt]), whole, torn, damaged, twice]
}

fn sample_chunks(geometry: Geometry) -> Vec<Durable> {
    let one = |index: u32| {
        let content = Content::Data { digest: Digest::from_bytes([7; 32]), data_bytes: 5 };
        Durable::recorded(ChunkRun::new(ChunkIndex::new(index), 1), content)
    };
    let zeros = ChunkRun::new(ChunkIndex::new(2), geometry.chunk_count() - 3);
    vec![one(0), one(1), Durable::recorded(zeros, Content::Zero), one(geometry.chunk_count() - 1)]
}
