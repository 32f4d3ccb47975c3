//! Slots of a journal, and the control block and status that they carry.

use super::{Effort, assert_refusal, mend_sum};
use crate::id::JobId;
use crate::job::{JobState, Progress};
use crate::journal::slot::{Control, SLOT_LEN, Slot, SlotKind, Status, open, seal};
use crate::options::Limits;

const SUM_CONTEXT: &str = "blockferry 2026-11-21 journal slot v1";
const KINDS: [SlotKind; 3] = [SlotKind::Cancel, SlotKind::Control, SlotKind::Status];

pub(super) fn check(bytes: &[u8], _: Effort) {
    let mut sector = [0; SLOT_LEN];
    let len = bytes.len().min(SLOT_LEN);
    sector[..len].copy_from_slice(&bytes[..len]);
    check_one(&sector);
    mend_sum(&mut sector, 16, SUM_CONTEXT);
    check_one(&sector);
}

fn check_one(sector: &[u8; SLOT_LEN]) {
    let mut job = [0; 16];
    job.copy_from_slice(&sector[8..24]);
    let job = JobId::from_bytes(job);
    let mut written = 0;
    for kind in KINDS {
        match open(kind, job, sector) {
            Slot::Empty => assert_eq!(sector, &[0; SLOT_LEN]),
            Slot::Damaged => assert_ne!(sector, &[0; SLOT_LEN]),
            Slot::Written(payload) => {
                written += 1;
                assert_eq!(&seal(kind, job, &payload), sector, "written otherwise");
                check_payload(kind, &payload);
            }
        }
    }
    assert!(written <= 1, "one slot stands in for another");
}

fn check_payload(kind: SlotKind, payload: &[u8]) {
    let again = match kind {
        SlotKind::Cancel => return,
        SlotKind::Control => Control::decode(payload).map(Control::encode),
        SlotKind::Status => Status::decode(payload).map(|status| status.encode()),
    };
    match again {
        Ok(again) => assert_eq!(again, payload, "written otherwise"),
        Err(error) => assert_refusal(&error),
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let job = JobId::from_bytes([0x11; 16]);
    let limits = Some(Limits::NONE.with_ops_per_sec(3));
    let control = Control { limits, suspend_epoch: Some(2) };
    let status = Status { epoch: 1, progress: Progress::new(JobState::Copying, 1 << 30) };
    let slots = [
        (SlotKind::Cancel, Vec::new()),
        (SlotKind::Control, Control::default().encode()),
        (SlotKind::Control, control.encode()),
        (SlotKind::Status, status.encode()),
    ];
    let mut seeds: Vec<_> =
        slots.iter().map(|(kind, payload)| seal(*kind, job, payload).to_vec()).collect();
    seeds.push(vec![0; SLOT_LEN]);
    seeds
}
