//! Checkpoints in the background: sync the target, then put on record what that made durable.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, timeout};

use crate::engine::run::Run;
use crate::error::Result;
use crate::geometry::ChunkRun;
use crate::job::Stall;

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
        let awaiting = run.ledger.take();
        if awaiting.is_empty() {
            if closed {
                return Ok(());
            }
            continue;
        }
        // Order: data first, then the record that it is durable.
        run.target.sync().await?;
        let durable = awaiting.synced();
        run.ledger.synced();
        run.target.checkpoint(&durable).await?;
        run.counters.stalled(Stall::Sync, began.elapsed());
        for chunk in &durable {
            // The receiver outlives the sender; it only goes first when the run is ending.
            verify.send(chunk.run()).ok();
        }
    }
}
