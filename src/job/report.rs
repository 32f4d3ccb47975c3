//! What a job has done so far and in the end: progress, stalls, receipt. Pure.

use std::time::Duration;

use crate::chunk::Digest;
use crate::codec::{Decoder, Encoder, cut};
use crate::error::Result;
use crate::job::spec::{decode_verify, encode_verify};
use crate::job::{Fingerprint, JobState};
use crate::options::Verify;

/// The stages of the corridor in which time can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stall {
    /// Reading the source.
    Read,
    /// Zero detection, hashing, compression.
    Seal,
    /// Waiting for a limit.
    Throttle,
    /// Writing the target.
    Write,
    /// Waiting for durability and the journal.
    Sync,
}

impl Stall {
    /// Every stage, in the order of the corridor.
    pub const ALL: [Self; 5] = [Self::Read, Self::Seal, Self::Throttle, Self::Write, Self::Sync];

    /// The stable name, as in the command line's JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Seal => "seal",
            Self::Throttle => "throttle",
            Self::Write => "write",
            Self::Sync => "sync",
        }
    }
}

/// Time spent in each stage, summed over all workers of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stalls {
    /// Reading the source.
    pub read: Duration,
    /// Zero detection, hashing, compression.
    pub seal: Duration,
    /// Waiting for a limit.
    pub throttle: Duration,
    /// Writing the target.
    pub write: Duration,
    /// Waiting for durability and the journal.
    pub sync: Duration,
}

impl Stalls {
    /// The time of that stage.
    pub fn of(&self, stall: Stall) -> Duration {
        match stall {
            Stall::Read => self.read,
            Stall::Seal => self.seal,
            Stall::Throttle => self.throttle,
            Stall::Write => self.write,
            Stall::Sync => self.sync,
        }
    }

    /// The share of that stage in all the time counted, from 0 to 1; 0 when none was counted.
    pub fn share(&self, stall: Stall) -> f64 {
        let total: f64 = Stall::ALL.iter().map(|s| self.of(*s).as_secs_f64()).sum();
        if total > 0.0 { self.of(stall).as_secs_f64() / total } else { 0.0 }
    }

    /// The stage that took the most time; `None` when none was counted.
    pub fn bottleneck(&self) -> Option<Stall> {
        let longest = Stall::ALL.into_iter().max_by_key(|stall| self.of(*stall))?;
        (!self.of(longest).is_zero()).then_some(longest)
    }

    fn encode(&self, out: &mut Encoder) {
        for stall in Stall::ALL {
            out.u64(u64::try_from(self.of(stall).as_nanos()).unwrap_or(u64::MAX));
        }
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        let mut time = || from.u64().map(Duration::from_nanos);
        Ok(Self { read: time()?, seal: time()?, throttle: time()?, write: time()?, sync: time()? })
    }
}

/// Where a job stands now. All counters are of this run of the job, in bytes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// The job's state.
    pub state: JobState,
    /// Size of the image.
    pub image_bytes: u64,
    /// Bytes found to be data so far, in this run and in those that it resumed.
    pub data_bytes: u64,
    /// Bytes found to be zero so far.
    pub zero_bytes: u64,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// Data bytes written to the target: of what did not come from a file on this host whole
    /// chunks, also where zeros within them were left as holes.
    pub written_bytes: u64,
    /// Data bytes that a durable checkpoint of an earlier run covered.
    pub resumed_bytes: u64,
    /// Data bytes that the target took over without moving them (clones, base images).
    pub reused_bytes: u64,
    /// Data bytes still to be looked at, an estimate from the source's extents.
    pub remaining_bytes: u64,
    /// Bytes per second over the last few seconds.
    pub rate_bytes_per_sec: u64,
    /// Time to the end at this rate; `None` while nothing moves.
    pub eta: Option<Duration>,
    /// Where time went.
    pub stalls: Stalls,
}

impl Progress {
    /// Nothing done yet.
    pub fn new(state: JobState, image_bytes: u64) -> Self {
        Self {
            state,
            image_bytes,
            data_bytes: 0,
            zero_bytes: 0,
            read_bytes: 0,
            written_bytes: 0,
            resumed_bytes: 0,
            reused_bytes: 0,
            remaining_bytes: 0,
            rate_bytes_per_sec: 0,
            eta: None,
            stalls: Stalls::default(),
        }
    }

    pub(crate) fn encode(&self, out: &mut Encoder) {
        out.u8(self.state.code());
        for count in [
            self.image_bytes,
            self.data_bytes,
            self.zero_bytes,
            self.read_bytes,
            self.written_bytes,
            self.resumed_bytes,
            self.reused_bytes,
            self.remaining_bytes,
            self.rate_bytes_per_sec,
        ] {
            out.u64(count);
        }
        out.option(self.eta, |out, eta| {
            out.u64(eta.as_secs());
        });
        self.stalls.encode(out);
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        let code = from.u8()?;
        let state =
            JobState::from_code(code).ok_or_else(|| from.corrupt("the job state is unknown"))?;
        Ok(Self {
            state,
            image_bytes: from.u64()?,
            data_bytes: from.u64()?,
            zero_bytes: from.u64()?,
            read_bytes: from.u64()?,
            written_bytes: from.u64()?,
            resumed_bytes: from.u64()?,
            reused_bytes: from.u64()?,
            remaining_bytes: from.u64()?,
            rate_bytes_per_sec: from.u64()?,
            eta: from.option(|from| from.u64().map(Duration::from_secs))?,
            stalls: Stalls::decode(from)?,
        })
    }
}

/// What was read back before commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// How much was asked for.
    pub mode: Verify,
    /// Chunks that were read back and compared.
    pub chunks: u32,
    /// Bytes that were read back and compared.
    pub bytes: u64,
    /// Chunks that did not compare equal at first and were written again.
    pub rewritten_chunks: u32,
}

/// The account of a committed copy. Counters are of the run that committed it, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// What the source looked like, at the start and at the commit alike.
    pub fingerprint: Fingerprint,
    /// Root of the image's chunk table.
    pub root: Digest,
    /// Size of the image.
    pub image_bytes: u64,
    /// Bytes of it that are data: what is zero is told by blocks of 64 KiB where bytes were looked
    /// at, and by chunks where digests were carried over from the source.
    pub data_bytes: u64,
    /// Bytes of it that are zero and were not moved.
    pub zero_bytes: u64,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// Data bytes written to the target: of what did not come from a file on this host whole
    /// chunks, also where zeros within them were left as holes.
    pub written_bytes: u64,
    /// Data bytes that a durable checkpoint of an earlier run covered.
    pub resumed_bytes: u64,
    /// Data bytes that the target took over without moving them.
    pub reused_bytes: u64,
    /// Chunks of the image.
    pub chunks: u32,
    /// What was read back.
    pub verified: Verified,
    /// Time from the start of this run to the acknowledged commit.
    pub elapsed: Duration,
    /// Where time went.
    pub stalls: Stalls,
    /// Failures after the decision that did not change it, such as a stage that could not be
    /// removed yet.
    pub warnings: Vec<String>,
}

impl Receipt {
    const WARNING_COUNT_MAX: u16 = 16;
    const WARNING_LEN_MAX: usize = 1024;

    /// The receipt of an image found committed, whose own account was lost in a crash: the root and
    /// sizes are exact, the counters of the run are zero.
    pub fn found(root: Digest, image_bytes: u64, zero_bytes: u64, chunks: u32) -> Self {
        Self {
            fingerprint: Fingerprint::new(),
            root,
            image_bytes,
            data_bytes: image_bytes - zero_bytes,
            zero_bytes,
            read_bytes: 0,
            written_bytes: 0,
            resumed_bytes: 0,
            reused_bytes: 0,
            chunks,
            verified: Verified::default(),
            elapsed: Duration::ZERO,
            stalls: Stalls::default(),
            warnings: Vec::new(),
        }
    }

    pub(crate) fn encode(&self, out: &mut Encoder) {
        self.fingerprint.encode(out);
        out.raw(self.root.as_bytes());
        for count in [
            self.image_bytes,
            self.data_bytes,
            self.zero_bytes,
            self.read_bytes,
            self.written_bytes,
            self.resumed_bytes,
            self.reused_bytes,
        ] {
            out.u64(count);
        }
        out.u32(self.chunks);
        encode_verify(self.verified.mode, out);
        out.u32(self.verified.chunks).u64(self.verified.bytes);
        out.u32(self.verified.rewritten_chunks);
        out.u64(u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX));
        self.stalls.encode(out);
        let kept = self.warnings.iter().take(usize::from(Self::WARNING_COUNT_MAX));
        out.u16(u16::try_from(kept.len()).unwrap_or(Self::WARNING_COUNT_MAX));
        for warning in kept {
            out.block(cut(warning, Self::WARNING_LEN_MAX).as_bytes());
        }
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        let fingerprint = Fingerprint::decode(from)?;
        let root = Digest::from_bytes(from.array()?);
        let mut receipt = Self::found(root, 0, 0, 0);
        receipt.fingerprint = fingerprint;
        for count in [
            &mut receipt.image_bytes,
            &mut receipt.data_bytes,
            &mut receipt.zero_bytes,
            &mut receipt.read_bytes,
            &mut receipt.written_bytes,
            &mut receipt.resumed_bytes,
            &mut receipt.reused_bytes,
        ] {
            *count = from.u64()?;
        }
        receipt.chunks = from.u32()?;
        receipt.verified.mode = decode_verify(from)?;
        receipt.verified.chunks = from.u32()?;
        receipt.verified.bytes = from.u64()?;
        receipt.verified.rewritten_chunks = from.u32()?;
        receipt.elapsed = Duration::from_millis(from.u64()?);
        receipt.stalls = Stalls::decode(from)?;
        let count = from.u16()?;
        if count > Self::WARNING_COUNT_MAX {
            return Err(from.corrupt("there are too many warnings"));
        }
        for _ in 0..count {
            receipt.warnings.push(from.text(Self::WARNING_LEN_MAX)?.to_owned());
        }
        Ok(receipt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_sum_to_one_and_name_the_bottleneck() {
        let mut stalls = Stalls::default();
        assert_eq!(stalls.bottleneck(), None);
        stalls.read = Duration::from_millis(100);
        stalls.write = Duration::from_millis(300);
        assert_eq!(stalls.bottleneck(), Some(Stall::Write));
        assert!((stalls.share(Stall::Write) - 0.75).abs() < 1e-9);
        let sum: f64 = Stall::ALL.iter().map(|stall| stalls.share(*stall)).sum();
        assert!((sum - 1.0).abs() < 1e-9);
    }

    #[test]
    fn receipts_and_progress_come_back_as_they_went_in() {
        let mut receipt = Receipt::found(Digest::from_bytes([7; 32]), 100, 40, 3);
        receipt.fingerprint = Fingerprint::new().with("size", 100);
        receipt.verified.mode = Verify::Full;
        receipt.stalls.sync = Duration::from_nanos(5);
        receipt.warnings.push("remove stage".into());
        let mut out = Encoder::new();
        receipt.encode(&mut out);
        let mut progress = Progress::new(JobState::Copying, 100);
        progress.eta = Some(Duration::from_secs(9));
        progress.encode(&mut out);
        let bytes = out.finish();
        let mut from = Decoder::new(&bytes, "test");
        assert_eq!(Receipt::decode(&mut from).unwrap(), receipt);
        assert_eq!(Progress::decode(&mut from).unwrap(), progress);
        from.finish().unwrap();
    }
}
