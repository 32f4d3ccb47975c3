//! The base of a stage at another daemon, which takes chunks over by itself.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::chunk::Written;
use crate::error::{ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun};
use crate::manifest::TableBuilder;
use crate::region::{Base, BoxFuture};
use crate::wire::session::Sender;

use super::Stage;

/// What the other daemon holds of the base, as it told when the first attempt began.
pub(super) struct PeerBase {
    stage: Arc<Stage>,
    table: TableBuilder,
    /// The other side gives nothing of it any more.
    lost: AtomicBool,
}

impl fmt::Debug for PeerBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PeerBase").field(&self.stage.location).finish()
    }
}

impl PeerBase {
    pub(super) fn new(stage: Arc<Stage>, table: TableBuilder) -> Self {
        Self { stage, table, lost: AtomicBool::new(false) }
    }

    /// Has the run taken over whole, or half by half where that is refused: a base that is damaged
    /// in one place is good in others.
    async fn take_run(&self, run: ChunkRun) -> Result<Vec<Written>> {
        let (mut taken, mut left) = (Vec::new(), vec![run]);
        while let Some(run) = left.pop() {
            if self.lost.load(Relaxed) {
                break;
            }
            let send = |sender: &mut Sender| sender.send_same(vec![run]);
            let Err(refusal) = self.stage.give(send).await else {
                taken.extend(run.iter().filter_map(|index| self.written(index)));
                continue;
            };
            // A stage that is lost ends the copy; anything else only costs that the chunks travel.
            self.stage.check()?;
            if refusal.kind() != ErrorKind::Corrupt {
                self.lost.store(true, Relaxed);
            } else if run.count > 1 {
                let first = ChunkRun::new(run.first, run.count / 2);
                let rest = ChunkIndex::new(first.end());
                left.extend([ChunkRun::new(rest, run.count - first.count), first]);
            }
        }
        Ok(taken)
    }

    fn written(&self, index: ChunkIndex) -> Option<Written> {
        let digest = self.table.digest(index).flatten()?;
        let len = self.table.geometry().range(index).len;
        Some(Written::data(index, digest, u32::try_from(len).unwrap_or(u32::MAX)))
    }
}

impl Base for PeerBase {
    fn table(&self) -> &TableBuilder {
        &self.table
    }

    fn take(&self, run: ChunkRun, _share: bool) -> BoxFuture<'_, Result<Vec<Written>>> {
        Box::pin(self.take_run(run))
    }
}
