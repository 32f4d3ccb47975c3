//! Job records: the files of the index.

use super::{Effort, assert_refusal, cuts, mend_sum, sample_spec};
use crate::chunk::Digest;
use crate::engine::JobRecord;
use crate::error::{Error, ErrorKind};
use crate::job::{JobState, Receipt};

const SUM_CONTEXT: &str = "blockferry 2026-11-21 job record v1";

pub(super) fn check(bytes: &[u8], effort: Effort) {
    check_cuts(bytes, effort);
    let mut mended = bytes.to_vec();
    mend_sum(&mut mended, 32, SUM_CONTEXT);
    check_cuts(&mended, effort);
}

fn check_cuts(bytes: &[u8], effort: Effort) {
    let record = match JobRecord::decode(bytes) {
        Ok(record) => record,
        Err(error) => return assert_refusal(&error),
    };
    assert!(record.encode() == bytes, "written otherwise: {record:?}");
    for len in cuts(bytes, effort) {
        let mut part = bytes[..len].to_vec();
        assert!(JobRecord::decode(&part).is_err(), "cut at {len}");
        mend_sum(&mut part, 32, SUM_CONTEXT);
        assert!(JobRecord::decode(&part).is_err(), "cut at {len}, with a sum that holds");
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let Some(spec) = sample_spec() else { return Vec::new() };
    let running = JobRecord::new(spec.clone(), JobState::Copying);
    let error = Error::new(ErrorKind::NoSpace, "write chunk").within("dir:///b");
    let failed =
        JobRecord::new(spec.clone(), JobState::Failed { resumable: true }).with_error(&error);
    let mut committed = JobRecord::new(spec.clone(), JobState::Committed);
    let mut receipt = Receipt::found(Digest::from_bytes([1; 32]), 9, 3, 1);
    receipt.fingerprint = spec.fingerprint;
    receipt.warnings = vec!["remove stage".into()];
    committed.receipt = Some(receipt);
    [running, failed, committed].map(|record| record.encode()).into()
}
