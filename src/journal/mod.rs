//! The journal of one job: an append-only file that survives crashes, and the rights over the job
//! that its locks give.
//!
//! ```text
//! file    := header pad cancel control status pad log
//! header  := record            at 0, at most 32 KiB
//! cancel  := slot              at 32 KiB: empty until somebody decides to cancel
//! control := slot              at 36 KiB: limits and a wish to suspend, written by any process
//! status  := slot              at 40 KiB: progress, written by the owner for others to show
//! log     := record*           from 48 KiB; ends at the first invalid record
//! ```
//!
//! Two byte-range locks on the file are the rights: *owner* is held by the one process that copies,
//! *decision* by whoever is about to commit or to cancel.

mod file;
mod record;
mod recovery;
pub(crate) mod slot;

pub(crate) use file::{Ending, JOURNAL, Journal, Open};
#[cfg(feature = "testing")]
pub(crate) use record::{
    Chain, HEADER_LEN_MAX, PROGRESS_CHUNKS_MAX, RECORD_LEN_MAX, Record, SECTOR, replay,
};
pub(crate) use record::{Header, Prepared};
pub(crate) use recovery::{Found, Published, Settlement, settle};
pub(crate) use slot::Status;
