//! Slots: blocks of the journal outside its log that are written over in place. Pure.

use crate::codec::{Decoder, Encoder};
use crate::error::Result;
use crate::id::JobId;
use crate::job::{Progress, decode_limits, encode_limits};
use crate::options::Limits;

/// A slot is one sector: written whole or not at all.
pub(crate) const SLOT_LEN: usize = 512;

const MAGIC: [u8; 4] = *b"BFSL";
const VERSION: u16 = 1;
const SUM_CONTEXT: &str = "blockferry 2026-11-21 journal slot v1";
const PAYLOAD_LEN_MAX: usize = SLOT_LEN - 4 - 2 - 2 - 16 - 4 - 16;

/// Which slot: part of what its checksum covers, so that one cannot stand in for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotKind {
    Cancel,
    Control,
    Status,
}

impl SlotKind {
    fn code(self) -> u16 {
        match self {
            Self::Cancel => 1,
            Self::Control => 2,
            Self::Status => 3,
        }
    }
}

/// What is in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Never written.
    Empty,
    /// Written; the payload.
    Written(Vec<u8>),
    /// Neither: torn or damaged.
    Damaged,
}

/// The sector of a slot: magic, version, kind, job, payload length, payload, zeros, checksum.
pub(crate) fn seal(kind: SlotKind, job: JobId, payload: &[u8]) -> [u8; SLOT_LEN] {
    debug_assert!(payload.len() <= PAYLOAD_LEN_MAX, "slot payload of {} bytes", payload.len());
    let mut out = Encoder::new();
    out.raw(&MAGIC).u16(VERSION).u16(kind.code()).raw(job.as_bytes()).block(payload);
    let mut bytes = out.finish();
    bytes.resize(SLOT_LEN - 16, 0);
    let mut sector = [0; SLOT_LEN];
    sector[..SLOT_LEN - 16].copy_from_slice(&bytes);
    sector[SLOT_LEN - 16..].copy_from_slice(&checksum(&bytes));
    sector
}

/// What that sector holds.
pub(crate) fn open(kind: SlotKind, job: JobId, sector: &[u8; SLOT_LEN]) -> Slot {
    if sector.iter().all(|byte| *byte == 0) {
        return Slot::Empty;
    }
    let (body, sum) = sector.split_at(SLOT_LEN - 16);
    let read = || -> Result<Vec<u8>> {
        let mut from = Decoder::new(body, "journal slot");
        let frame = (from.array()?, from.u16()?, from.u16()?, from.array()?);
        if sum != checksum(body) || frame != (MAGIC, VERSION, kind.code(), *job.as_bytes()) {
            return Err(from.corrupt("it is damaged"));
        }
        let payload = from.block(PAYLOAD_LEN_MAX)?;
        if from.raw(from.remaining())?.iter().any(|byte| *byte != 0) {
            return Err(from.corrupt("bytes follow its end"));
        }
        Ok(payload.to_vec())
    };
    read().map_or(Slot::Damaged, Slot::Written)
}

fn checksum(body: &[u8]) -> [u8; 16] {
    let mut sum = [0; 16];
    sum.copy_from_slice(&blake3::derive_key(SUM_CONTEXT, body)[..16]);
    sum
}

/// What others ask of the owner while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Control {
    /// The job's ceilings; `None` while nobody has changed them.
    pub(crate) limits: Option<Limits>,
    /// The attempt that is to suspend (0: before the first); another attempt takes no notice.
    pub(crate) suspend_epoch: Option<u32>,
}

impl Control {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.option(self.limits, |out, limits| encode_limits(limits, out));
        out.option(self.suspend_epoch, |out, epoch| {
            out.u32(epoch);
        });
        out.finish()
    }

    pub(crate) fn decode(payload: &[u8]) -> Result<Self> {
        let mut from = Decoder::new(payload, "control slot");
        let limits = from.option(decode_limits)?;
        let control = Self { limits, suspend_epoch: from.option(|from| from.u32())? };
        from.finish()?;
        Ok(control)
    }
}

/// What the owner tells others while it runs. Never synced: a label, not a promise.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Status {
    pub(crate) epoch: u32,
    pub(crate) progress: Progress,
}

impl Status {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.u32(self.epoch);
        self.progress.encode(&mut out);
        out.finish()
    }

    pub(crate) fn decode(payload: &[u8]) -> Result<Self> {
        let mut from = Decoder::new(payload, "status slot");
        let status = Self { epoch: from.u32()?, progress: Progress::decode(&mut from)? };
        from.finish()?;
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobState;

    const JOB: JobId = JobId::from_bytes([5; 16]);

    #[test]
    fn slots_come_back_and_every_flip_is_seen() {
        let control =
            Control { limits: Some(Limits::NONE.with_ops_per_sec(3)), suspend_epoch: Some(2) };
        let sector = seal(SlotKind::Control, JOB, &control.encode());
        let Slot::Written(payload) = open(SlotKind::Control, JOB, &sector) else { panic!() };
        assert_eq!(Control::decode(&payload).unwrap(), control);
        for at in 0..SLOT_LEN {
            let mut flipped = sector;
            flipped[at] ^= 1;
            assert_eq!(open(SlotKind::Control, JOB, &flipped), Slot::Damaged, "flip at {at}");
        }
        assert_eq!(open(SlotKind::Cancel, JOB, &sector), Slot::Damaged);
        assert_eq!(open(SlotKind::Control, JobId::from_bytes([6; 16]), &sector), Slot::Damaged);
        assert_eq!(open(SlotKind::Cancel, JOB, &[0; SLOT_LEN]), Slot::Empty);
        let mut long = seal(SlotKind::Cancel, JOB, &[]);
        long[SLOT_LEN - 17] = 1;
        let sum = checksum(&long[..SLOT_LEN - 16]);
        long[SLOT_LEN - 16..].copy_from_slice(&sum);
        assert_eq!(open(SlotKind::Cancel, JOB, &long), Slot::Damaged, "bytes after the payload");
    }

    #[test]
    fn a_status_fits_in_its_sector() {
        let status = Status { epoch: 1, progress: Progress::new(JobState::Copying, u64::MAX) };
        let sector = seal(SlotKind::Status, JOB, &status.encode());
        let Slot::Written(payload) = open(SlotKind::Status, JOB, &sector) else { panic!() };
        assert_eq!(Status::decode(&payload).unwrap(), status);
    }

    #[test]
    fn the_longest_payload_fills_its_sector() {
        let payload = [7; PAYLOAD_LEN_MAX];
        let sector = seal(SlotKind::Status, JOB, &payload);
        assert_eq!(open(SlotKind::Status, JOB, &sector), Slot::Written(payload.to_vec()));
        assert_eq!(payload.len(), 468);
    }

    #[test]
    fn golden_bytes_of_the_slots() {
        let control =
            Control { limits: Some(Limits::NONE.with_ops_per_sec(3)), suspend_epoch: None };
        let status = Status { epoch: 7, progress: Progress::new(JobState::Copying, 1 << 30) };
        let hash = |sector: [u8; SLOT_LEN]| blake3::hash(&sector).to_string();
        let cancel = hash(seal(SlotKind::Cancel, JOB, &[]));
        let control = hash(seal(SlotKind::Control, JOB, &control.encode()));
        let status = hash(seal(SlotKind::Status, JOB, &status.encode()));
        assert_eq!(
            [cancel, control, status].map(|hex| hex[..16].to_owned()),
            ["75483b7983653ca6", "4c4e2820fda8c665", "53a7a717f090b04f"]
        );
    }
}
