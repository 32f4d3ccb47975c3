//! The target that directory and file regions share: an owned stage behind the async trait.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::chunk::{Durable, Sealed, Written};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkRun, to_usize};
use crate::job::Progress;
use crate::journal::Status;
use crate::manifest::Manifest;
use crate::region::{BoxFuture, LocalFile, Outcome, Restored, Target, Wishes, blocking};

use super::OwnedStage;

/// How long one waits for a decision that another process is taking.
const DECISION_TIMEOUT: Duration = Duration::from_secs(30);
const DECISION_POLL: Duration = Duration::from_millis(5);

/// A staged image on a file system.
#[derive(Debug)]
pub(crate) struct StageTarget {
    stage: Arc<OwnedStage>,
    location: String,
    file: LocalFile,
}

impl StageTarget {
    pub(crate) fn new(stage: OwnedStage, location: String) -> Result<Self> {
        let file = LocalFile::of(stage.data.clone())?;
        Ok(Self { stage: Arc::new(stage), location, file })
    }

    /// Runs blocking work on the stage; errors name the place.
    fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&OwnedStage) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'_, Result<T>> {
        let stage = self.stage.clone();
        let place = self.location.clone();
        blocking(move || work(&stage).map_err(|error| error.within(place)))
    }
}

/// Asks again until the one who holds the decision has let go of it.
pub(crate) async fn until_decided<T: Send + 'static>(
    ask: impl Fn() -> Result<Option<T>> + Clone + Send + 'static,
) -> Result<T> {
    let deadline = tokio::time::Instant::now() + DECISION_TIMEOUT;
    loop {
        if let Some(answer) = blocking(ask.clone()).await? {
            return Ok(answer);
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(Error::new(ErrorKind::Busy, "decide between commit and cancel")
                .hint("another process has been deciding for 30 seconds; ask again")
                .retryable(true));
        }
        tokio::time::sleep(DECISION_POLL).await;
    }
}

impl Target for StageTarget {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn begin(&self) -> BoxFuture<'_, Result<Restored>> {
        self.with(OwnedStage::begin)
    }

    fn write(&self, chunk: Sealed) -> BoxFuture<'_, Result<Written>> {
        self.with(move |stage| {
            stage.data.write_at(chunk.range().offset, chunk.data())?;
            Ok(chunk.written())
        })
    }

    fn write_zeroes(&self, run: ChunkRun) -> BoxFuture<'_, Result<Written>> {
        self.with(move |stage| {
            // A stage is blank, see `OwnedStage::take_over`, but this attempt may have written
            // here.
            let range = stage.journal.header().spec.geometry.run_range(run);
            if !stage.data.punch(range)? {
                stage.data.write_zeroes(range)?;
            }
            Ok(Written::zeroes(run))
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<()>> {
        self.with(|stage| stage.data.sync_data())
    }

    fn checkpoint<'a>(&'a self, chunks: &'a [Durable]) -> BoxFuture<'a, Result<()>> {
        let chunks = chunks.to_vec();
        self.with(move |stage| stage.journal.append_progress(&chunks))
    }

    fn read_back(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        self.with(move |stage| {
            stage.data.evict(range)?;
            let mut buffer = vec![0; to_usize(range.len)];
            let count = stage.data.read_at(range.offset, &mut buffer)?;
            // A stage that is too short does not verify.
            buffer.truncate(count);
            Ok(buffer.into())
        })
    }

    fn commit<'a>(&'a self, manifest: &'a Manifest) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let manifest = manifest.clone();
            self.with(move |stage| stage.prepare(&manifest)).await?;
            let stage = self.stage.clone();
            until_decided(move || stage.try_publish())
                .await
                .map_err(|error| error.within(self.location.clone()))
        })
    }

    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        self.with(OwnedStage::finish)
    }

    fn discard(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async move {
            let stage = self.stage.clone();
            until_decided(move || stage.try_discard())
                .await
                .map_err(|error| error.within(self.location.clone()))
        })
    }

    fn wishes(&self) -> BoxFuture<'_, Result<Wishes>> {
        self.with(OwnedStage::wishes)
    }

    fn report<'a>(&'a self, progress: &'a Progress) -> BoxFuture<'a, Result<()>> {
        let progress = progress.clone();
        self.with(move |stage| {
            let epoch = stage.journal.epoch();
            stage.journal.set_status(&Status { epoch, progress })
        })
    }

    fn local(&self) -> Option<LocalFile> {
        Some(self.file.clone())
    }
}
