//! Chunks that the target takes over from its base: which these are, and how they get there.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::time::Instant;

use crate::chunk::{Content, Digest};
use crate::engine::progress::Counters;
use crate::engine::run::Run;
use crate::error::Result;
use crate::geometry::{ChunkIndex, ChunkRun, Geometry};
use crate::job::Stall;
use crate::plan::Plan;
use crate::region::Base;

use super::{enter, pass_throttle};

/// How many bytes are taken over at a time: little enough that a cancel does not wait for it.
const RUN_BYTES: u64 = 16 << 20;

/// Takes out of the plan what need not even be read: the source vouches for the same digest as the
/// base.
pub(crate) fn known_alike(run: &Run, plan: &mut Plan) -> VecDeque<ChunkRun> {
    let mut alike = Runs::new(run.spec.geometry);
    let (Some(base), Some(vouched)) = (run.base(), run.vouched()) else { return alike.runs };
    for (chunks, is_zero) in vouched.table().runs() {
        for index in chunks.iter().filter(|_| !is_zero) {
            let digest = vouched.table().digest(index);
            if digest.is_some() && holds(&**base, index) == digest && plan.hold_back(index) {
                alike.push(index);
            }
        }
    }
    alike.runs
}

/// Neighbouring chunks, in runs that are not too long.
pub(super) struct Runs {
    pub(super) runs: VecDeque<ChunkRun>,
    count_max: u32,
}

impl Runs {
    pub(super) fn new(geometry: Geometry) -> Self {
        let count_max = u32::try_from(RUN_BYTES / geometry.chunk_size().bytes()).unwrap_or(1);
        Self { runs: VecDeque::new(), count_max: count_max.max(1) }
    }

    /// The next chunk, in order.
    pub(super) fn push(&mut self, index: ChunkIndex) {
        match self.runs.back_mut() {
            Some(last) if last.end() == index.get() && last.count < self.count_max => {
                last.count += 1;
            }
            _ => self.runs.push_back(ChunkRun::new(index, 1)),
        }
    }
}

/// The digest of what the base has there, if it has data there.
pub(super) fn holds(base: &dyn Base, index: ChunkIndex) -> Option<Digest> {
    base.table().digest(index).flatten()
}

/// Takes these chunks over; returns those that the base could not give after all.
pub(super) async fn take(
    run: &Run,
    base: &dyn Base,
    chunks: ChunkRun,
) -> Result<VecDeque<ChunkRun>> {
    let mut missing = Runs::new(run.spec.geometry);
    // A limit is a limit on what is read on this host; what another daemon copies within itself is
    // not.
    if run.target.local().is_some() {
        let mut left = run.spec.geometry.run_range(chunks).len;
        while left > 0 {
            let bytes = run.gates.grant_bytes(left);
            if !pass_throttle(run, bytes, 1).await {
                return Ok(missing.runs);
            }
            left -= bytes.min(left);
        }
    }
    let began = Instant::now();
    let taken = base.take(chunks, run.share_extents).await?;
    run.counters.stalled(Stall::Write, began.elapsed());
    let mut next = chunks.first.get();
    for written in taken {
        let Content::Data { digest, data_bytes } = written.content() else { continue };
        let index = written.run().first;
        // Only what was asked for, in order, and nothing that the table did not say.
        if index.get() < next || index.get() >= chunks.end() || holds(base, index) != Some(digest) {
            continue;
        }
        (next..index.get()).for_each(|lost| missing.push(ChunkIndex::new(lost)));
        next = index.get() + 1;
        Counters::add(&run.counters.reused_bytes, u64::from(data_bytes));
        enter(run, written);
    }
    (next..chunks.end()).for_each(|lost| missing.push(ChunkIndex::new(lost)));
    Ok(missing.runs)
}

/// Takes a chunk over that has been read, and that the base has alike; `false`: it is to be
/// written.
pub(super) async fn spares(run: &Arc<Run>, index: ChunkIndex, digest: Digest) -> Result<bool> {
    // Of a source that vouches for its digests, what the base holds alike was never read.
    let Some(base) = run.base().filter(|_| run.vouched().is_none()) else { return Ok(false) };
    if !run.gains_by_base() || holds(&**base, index) != Some(digest) {
        return Ok(false);
    }
    let missing = take(run, &**base, ChunkRun::new(index, 1)).await?;
    Ok(missing.is_empty())
}
