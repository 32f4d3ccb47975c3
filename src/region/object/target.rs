//! A stage in an object store, as a target: what the engine calls, and signs of life beside it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::sleep;

use crate::chunk::{Durable, Sealed, Written};
use crate::error::Result;
use crate::geometry::{ByteRange, ChunkRun};
use crate::job::{JobSpec, Progress};
use crate::manifest::Manifest;
use crate::region::{BoxFuture, LocalFile, Outcome, Restored, Target, Wishes};

use super::encrypted::Lock;
use super::household::Presence;
use super::pulse::Heart;
use super::register::Held;
use super::stage::Stage;
use super::{Shared, alike};

/// A stage, and its one owner. Dropping it is a crash: the stage stays.
#[derive(Debug)]
pub(super) struct ObjectTarget {
    stage: Arc<Stage>,
    presence: Arc<Presence>,
}

impl Drop for ObjectTarget {
    fn drop(&mut self) {
        // Order: who asks from now on waits until the last sign of life is out of the way.
        self.presence.leave();
        self.stage.end();
    }
}

/// Takes a claim over, or a new one, and shows that its owner lives.
pub(super) fn own(
    shared: Arc<Shared>,
    spec: &JobSpec,
    presence: Presence,
    (held, heart): (Held, Heart),
    fresh: Option<Lock>,
) -> Arc<dyn Target> {
    let presence = Arc::new(presence);
    let stage = Arc::new(Stage::new(shared, spec, presence.owner(), (held, heart), fresh));
    let beating = tokio::spawn(show_life(stage.clone(), presence.clone()));
    stage.beats_in(beating);
    Arc::new(ObjectTarget { stage, presence })
}

/// Beats until the target is dropped, and then tells that it has let go, so that nobody needs to
/// wait. Whoever asks in this process waits for that.
async fn show_life(stage: Arc<Stage>, presence: Arc<Presence>) {
    loop {
        tokio::select! {
            biased;
            () = stage.ended() => break,
            () = sleep(stage.beat_interval()) => {}
        }
        // A beat under way is brought to its end: it must not land behind the clean-up.
        stage.beat().await;
    }
    stage.let_go().await;
    drop(presence);
}

impl Target for ObjectTarget {
    fn location(&self) -> String {
        self.stage.location()
    }

    fn begin(&self) -> BoxFuture<'_, Result<Restored>> {
        Box::pin(async move {
            let mut restored = self.stage.begin().await?;
            restored.base = alike::find(&self.stage).await;
            Ok(restored)
        })
    }

    fn write(&self, chunk: Sealed) -> BoxFuture<'_, Result<Written>> {
        Box::pin(self.stage.write(chunk))
    }

    fn write_zeroes(&self, run: ChunkRun) -> BoxFuture<'_, Result<Written>> {
        // Nothing is stored of zeros; what was there before is not the chunk's any more.
        self.stage.forget(run);
        Box::pin(std::future::ready(Ok(Written::zeroes(run))))
    }

    fn sync(&self) -> BoxFuture<'_, Result<()>> {
        // What the store has acknowledged is durable.
        Box::pin(std::future::ready(self.stage.attempt().map(|_| ())))
    }

    fn checkpoint<'a>(&'a self, chunks: &'a [Durable]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.stage.checkpoint(chunks))
    }

    fn read_back(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(self.stage.read_back(range))
    }

    fn commit<'a>(&'a self, manifest: &'a Manifest) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(self.stage.commit(manifest))
    }

    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.stage.finish())
    }

    fn discard(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.stage.discard())
    }

    fn wishes(&self) -> BoxFuture<'_, Result<Wishes>> {
        Box::pin(self.stage.wishes())
    }

    fn report<'a>(&'a self, progress: &'a Progress) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.stage.report(progress))
    }

    fn local(&self) -> Option<LocalFile> {
        None
    }
}
