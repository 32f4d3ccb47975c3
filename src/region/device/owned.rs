//! A block device in the hands of its owner: written in place, committed by a record, undone by
//! zeros.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::chunk::{Durable, Sealed, Written};
use crate::disk::File;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkRun, to_usize};
use crate::job::{JobState, Progress};
use crate::journal::{Journal, Prepared, Settlement, Status, settle};
use crate::manifest::Manifest;
use crate::region::stage::until_decided;
use crate::region::{BoxFuture, LocalFile, Outcome, Restored, Target, Wishes, blocking};

use super::{Shared, Stage, clean_up, found, remove};

/// A device in the hands of its owner.
#[derive(Debug)]
pub(super) struct DeviceStage {
    shared: Arc<Shared>,
    stage: Stage,
    /// Before the journal: whoever owns that next must find the device closed.
    device: Arc<File>,
    journal: Journal,
    restored: Mutex<Option<Restored>>,
}

impl DeviceStage {
    pub(super) fn into_target(self) -> Result<Arc<dyn Target>> {
        let file = LocalFile::of(self.device.clone())?;
        Ok(Arc::new(DeviceTarget { file, stage: Arc::new(self) }))
    }

    pub(super) fn new(
        shared: &Arc<Shared>,
        stage: Stage,
        journal: Journal,
        device: File,
        restored: Restored,
    ) -> Self {
        let restored = Mutex::new(Some(restored));
        Self { shared: shared.clone(), stage, journal, device: Arc::new(device), restored }
    }

    fn begin(&self) -> Result<Restored> {
        let epoch = self.journal.begin_attempt()?;
        let image_bytes = self.journal.header().spec.geometry.image_bytes();
        let progress = Progress::new(JobState::Copying, image_bytes);
        self.journal.set_status(&Status { epoch, progress })?;
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        restored.take().ok_or_else(|| Error::new(ErrorKind::Invalid, "begin the same target twice"))
    }

    fn prepare(&self, manifest: &Manifest) -> Result<()> {
        self.device.sync_all()?;
        let facts = self.device.facts()?;
        let root = manifest.root();
        let (device, inode) = (facts.device, facts.inode);
        self.journal.append_prepared(Prepared { device, inode, root })
    }

    fn try_publish(&self) -> Result<Option<Outcome>> {
        let Some(decision) = self.journal.try_decide()? else { return Ok(None) };
        match settle(found(&self.journal)?) {
            Settlement::FinishCommit => {}
            Settlement::FinishCancel => {
                decision.cancel()?;
                return Ok(Some(Outcome::Cancelled));
            }
            Settlement::Keep | Settlement::Lost | Settlement::Forget => {
                // The decision: every byte is durable, and this record says so for good.
                self.journal.append_done(&decision)?;
            }
        }
        Ok(Some(Outcome::Committed))
    }

    fn try_discard(&self) -> Result<Option<Outcome>> {
        if !self.journal.is_still_in(&self.stage.dir)? {
            let committed = self.journal.is_done();
            return Ok(Some(if committed { Outcome::Committed } else { Outcome::Cancelled }));
        }
        let Some(decision) = self.journal.try_decide()? else { return Ok(None) };
        match settle(found(&self.journal)?) {
            Settlement::FinishCommit => return Ok(Some(Outcome::Committed)),
            // Order: durable before it is acted on; who wrote it may have died before its sync.
            Settlement::FinishCancel | Settlement::Keep | Settlement::Lost | Settlement::Forget => {
                decision.cancel()?;
            }
        }
        drop(decision);
        clean_up(&self.stage, &self.journal, &self.device)?;
        Ok(Some(Outcome::Cancelled))
    }

    fn wishes(&self) -> Result<Wishes> {
        let control = self.journal.control()?;
        Ok(Wishes {
            cancelled: self.journal.is_cancelled()?,
            suspend: control.suspend_epoch == Some(self.journal.epoch()),
            limits: control.limits,
        })
    }
}

#[derive(Debug)]
struct DeviceTarget {
    /// Before the stage: see there.
    file: LocalFile,
    stage: Arc<DeviceStage>,
}

impl DeviceTarget {
    fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DeviceStage) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'_, Result<T>> {
        let stage = self.stage.clone();
        blocking(move || work(&stage).map_err(|error| error.within(stage.shared.location.clone())))
    }
}

impl Target for DeviceTarget {
    fn location(&self) -> String {
        self.stage.shared.location.clone()
    }

    fn begin(&self) -> BoxFuture<'_, Result<Restored>> {
        self.with(DeviceStage::begin)
    }

    fn write(&self, chunk: Sealed) -> BoxFuture<'_, Result<Written>> {
        self.with(move |stage| {
            stage.device.write_at(chunk.range().offset, chunk.data())?;
            Ok(chunk.written())
        })
    }

    fn write_zeroes(&self, run: ChunkRun) -> BoxFuture<'_, Result<Written>> {
        self.with(move |stage| {
            stage.device.write_zeroes(stage.journal.header().spec.geometry.run_range(run))?;
            Ok(Written::zeroes(run))
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<()>> {
        self.with(|stage| stage.device.sync_data())
    }

    fn checkpoint<'a>(&'a self, chunks: &'a [Durable]) -> BoxFuture<'a, Result<()>> {
        let chunks = chunks.to_vec();
        self.with(move |stage| stage.journal.append_progress(&chunks))
    }

    fn read_back(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        self.with(move |stage| {
            stage.device.evict(range)?;
            let mut buffer = vec![0; to_usize(range.len)];
            let count = stage.device.read_at(range.offset, &mut buffer)?;
            buffer.truncate(count);
            Ok(buffer.into())
        })
    }

    fn commit<'a>(&'a self, manifest: &'a Manifest) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let manifest = manifest.clone();
            self.with(move |stage| stage.prepare(&manifest)).await?;
            let stage = self.stage.clone();
            until_decided(move || stage.try_publish()).await
        })
    }

    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        self.with(|stage| remove(&stage.stage))
    }

    fn discard(&self) -> BoxFuture<'_, Result<Outcome>> {
        let stage = self.stage.clone();
        Box::pin(until_decided(move || stage.try_discard()))
    }

    fn wishes(&self) -> BoxFuture<'_, Result<Wishes>> {
        self.with(DeviceStage::wishes)
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
