//! Copies without moving bytes: where the file system can, the stage shares the source's extents.

use std::sync::Arc;

use crate::chunk::Written;
use crate::disk::File;
use crate::engine::progress::Counters;
use crate::engine::run::Run;
use crate::error::Result;
use crate::manifest::Manifest;
use crate::region::blocking;

/// Makes the fresh stage of the run share all bytes with the source, if both lie on one file system
/// that can. The run is told.
pub(super) async fn share(run: &Arc<Run>) -> Result<()> {
    let (Some(source), Some(target)) = (run.source.local(), run.target.local()) else {
        return Ok(());
    };
    // A copy has a data key of its own: what the source's has encrypted is of no use to it.
    if source.encrypted.is_some() || target.encrypted.is_some() {
        return Ok(());
    }
    let (place, image_bytes) = (run.target.location(), run.spec.geometry.image_bytes());
    let owner = run.target.clone();
    let share = move || {
        // Keeps the stage owned until the call has ended, also after a crash: nobody may take a
        // stage over, or publish it, while it is still being changed.
        let _owner = owner;
        // A source of another length has changed: the copy will tell so, in its own words.
        if source.file.len()? != image_bytes {
            return Ok(false);
        }
        // Kernels before the end of 2024 could tell a clone on XFS that ended half way as whole.
        let shared = target.file.share_bytes_of(&source.file)?
            && has_same_holes(&source.file, &target.file, image_bytes)?;
        if !shared {
            // Of a clone that ended half way nothing may stay: the copy takes the stage for blank.
            target.file.set_len(0)?;
        }
        // It may have grown between the two calls.
        target.file.set_len(image_bytes)?;
        Ok(shared)
    };
    if blocking(share).await.map_err(|error| error.within(place))? {
        run.set_shared();
    }
    Ok(())
}

/// Whether both files have data and holes in the same places.
fn has_same_holes(source: &File, target: &File, end: u64) -> Result<bool> {
    let mut offset = 0;
    while offset < end {
        let data = source.next_data(offset)?.unwrap_or(end).min(end);
        if target.next_data(offset)?.unwrap_or(end).min(end) != data {
            return Ok(false);
        }
        if data == end {
            break;
        }
        let hole = source.next_hole(data)?.unwrap_or(end).min(end);
        if target.next_hole(data)?.unwrap_or(end).min(end) != hole {
            return Ok(false);
        }
        // A source that changes under us may answer with a hole where we stand.
        offset = hole.max(data + 1);
    }
    Ok(true)
}

/// Carries the source's digests over for bytes that are shared: none is read.
pub(super) async fn carry(run: &Run, manifest: &Manifest) {
    let geometry = run.spec.geometry;
    for (chunks, is_zero) in manifest.table().runs() {
        if is_zero {
            take(run, Written::zeroes(chunks)).await;
            continue;
        }
        for index in chunks.iter() {
            if run.halt.is_cancelled() {
                return;
            }
            let Some(digest) = manifest.table().digest(index) else { continue };
            let len = geometry.range(index).len;
            Counters::add(&run.counters.reused_bytes, len);
            Counters::add(&run.counters.passed_bytes, len);
            let data_bytes = u32::try_from(len).unwrap_or(u32::MAX);
            take(run, Written::data(index, digest, data_bytes)).await;
        }
    }
}

/// Enters a chunk in the ledger, when that has room.
async fn take(run: &Run, shared: Written) {
    tokio::select! {
        biased;
        () = run.ledger.room() => run.ledger.accept_shared(shared),
        () = run.halt.cancelled() => {}
    }
}
