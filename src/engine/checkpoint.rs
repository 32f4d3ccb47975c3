//! Checkpoints in the background: sync the target, then put on record what that made durable.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, timeout};

use crate::chunk::{Content, Durable};
use crate::engine::run::Run;
use crate::error::Result;
use crate::geometry::{ByteRange, ChunkRun};
use crate::job::Stall;
use crate::region::blocking;
use crate::sabotage;

/// Makes checkpoints until the ledger is closed and everything in it is on record. Runs of chunks
/// that became durable go to `verify`. Workers never wait for it.
pub(crate) async fn keep(
    run: &Run,
    interval: Duration,
    verify: &UnboundedSender<ChunkRun>,
) -> Result<()> {
    loop {
        let closed = run.ledger.is_closed();
        if !closed {
            // Either a checkpoint is due by bytes, or by time: both are fine.
            timeout(interval, run.ledger.due()).await.ok();
        }
        let began = Instant::now();
        if sabotage::is("D8") {
            run.target.sync().await?;
        }
        let awaiting = run.ledger.take();
        if awaiting.is_empty() {
            if closed {
                return Ok(());
            }
            continue;
        }
        // Order: data first, then the record that it is durable.
        if !sabotage::is("M2") && !sabotage::is("D8") {
            run.target.sync().await?;
        }
        let durable = awaiting.synced();
        run.ledger.synced();
        run.target.checkpoint(&durable).await?;
        if sabotage::is("M2") {
            run.target.sync().await?;
        }
        run.counters.stalled(Stall::Sync, began.elapsed());
        if run.drop_behind {
            drop_pages(run, &durable).await;
        }
        for chunk in &durable {
            // The receiver outlives the sender; it only goes first when the run is ending.
            verify.send(chunk.run()).ok();
        }
    }
}

/// Takes what has just become durable out of the page cache: it is clean, so that costs no write,
/// and it would push out what others keep there.
async fn drop_pages(run: &Run, durable: &[Durable]) {
    let Some(target) = run.target.local() else { return };
    let mut ranges: Vec<ByteRange> = Vec::new();
    let is_data = |chunk: &&Durable| matches!(chunk.content(), Content::Data { .. });
    for range in durable.iter().filter(is_data).map(|c| run.spec.geometry.run_range(c.run())) {
        match ranges.last_mut() {
            Some(last) if last.end() == range.offset => last.len += range.len,
            _ => ranges.push(range),
        }
    }
    // Advice, no more: where it is not taken, nothing is lost.
    blocking(move || ranges.into_iter().try_for_each(|range| target.file.evict(range))).await.ok();
}
