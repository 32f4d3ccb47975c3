//! Owning again what a job has staged, once its owner is gone.

use crate::chunk::Durable;
use crate::disk::Dir;
use crate::error::{Error, ErrorKind, Result};
use crate::job::JobSpec;
use crate::journal::{Journal, Open};
use crate::region::Restored;

use super::nothing_staged;

/// Owns the journal of a job whose owner is gone, and tells what it made durable.
pub(crate) fn open_restoring(dir: &Dir, spec: &JobSpec) -> Result<(Journal, Restored)> {
    let mut restored = Restored::new(spec.geometry);
    let mut broken = Ok(());
    let journal = open_visiting(dir, spec, &mut |chunk| {
        if let Err(error) = restored.record(chunk) {
            broken = Err(error);
        }
    })?;
    broken?;
    Ok((journal, restored))
}

/// Owns the journal of a job whose owner is gone, and shows each chunk that it made durable.
pub(crate) fn open_visiting(
    dir: &Dir,
    spec: &JobSpec,
    visit: &mut dyn FnMut(&Durable),
) -> Result<Journal> {
    let gone = || nothing_staged(spec.job);
    let watched = Journal::watch(dir, spec.job)?.ok_or_else(gone)?;
    if !watched.header().spec.same_request(spec) {
        return Err(Error::new(ErrorKind::Invalid, format!("take over job {}", spec.job))
            .hint("it was started with another request"));
    }
    match Journal::take_over(dir, spec.job, visit)? {
        Some(Open::Valid(journal)) => Ok(*journal),
        Some(Open::Unacknowledged) | None => Err(gone()),
    }
}
