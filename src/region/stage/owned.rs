//! A stage in the hands of its owner: begin, commit by one rename, finish, discard.

use std::sync::Arc;

use crate::disk::{Dir, File, default_file_mode};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, to_u64};
use crate::id::JobId;
use crate::journal::{Journal, Prepared, Settlement, settle};
use crate::manifest::Manifest;
use crate::region::{CELL_BYTES, Outcome, Restored};
use crate::sabotage;
use crate::seal::is_zero;
use crate::sync;

use super::{DATA, Held, IMAGE, Layout, MANIFEST, Owned, RECORDS, Stage, StageStore};
use super::{find_rw, image};

/// Committed images are for their owner and group to read, and for nobody to write.
const IMAGE_DIR_MODE: u32 = 0o750;
const IMAGE_FILE_MODE: u32 = 0o440;

/// A stage whose owner we are. Dropping it gives the stage up as a crash would: it can be taken
/// over.
#[derive(Debug)]
pub(crate) struct OwnedStage {
    store: Arc<StageStore>,
    stage: Stage,
    /// Where `data` lies: the folder `image`, or the stage itself.
    inner: Dir,
    held: Held,
}

impl OwnedStage {
    pub(super) fn fresh(
        store: &Arc<StageStore>,
        parent: Dir,
        dir: Dir,
        inner: Dir,
        journal: Journal,
        data: File,
    ) -> Result<Self> {
        let spec = &journal.header().spec;
        let restored = Restored::new(spec.geometry);
        let stage = Stage { parent, dir, job: spec.job };
        Ok(Self { store: store.clone(), stage, inner, held: Held::new(data, journal, restored) })
    }

    /// Takes a stage over from an owner that is gone.
    pub(super) fn take_over(
        store: &Arc<StageStore>,
        stage: Stage,
        journal: Journal,
        restored: Restored,
        key_file: Option<&[u8]>,
    ) -> Result<Self> {
        if settle(store.found(&stage, &journal)?) == Settlement::FinishCommit {
            return Err(Error::new(ErrorKind::Exists, format!("take over job {}", stage.job))
                .hint("it has committed: recover it"));
        }
        let nothing_done = restored.table.missing() == restored.table.geometry().chunk_count();
        let inner = match store.find_inner(&stage.dir)? {
            Some(inner) => inner,
            // A start that failed has removed it, and could not remove the journal.
            None if nothing_done => make_inner(&stage)?,
            None => return Err(bytes_are_gone(stage.job)),
        };
        let geometry = journal.header().spec.geometry;
        let data = match find_rw(&inner, DATA)? {
            Some(data) if nothing_done || data.len()? >= geometry.image_bytes() => data,
            // The crash came between the journal and the data.
            None if nothing_done => inner.create_file(DATA, 0o600)?,
            _ => return Err(bytes_are_gone(stage.job)),
        };
        if key_file.is_some() {
            let there =
                find_rw(&inner, image::KEY)?.is_some() && find_rw(&inner, RECORDS)?.is_some();
            match (there, nothing_done) {
                // The crash may have come between the data and the key, or half way through that.
                (_, true) => image::make_key_files(&inner, key_file)?,
                (true, false) => {}
                (false, false) => return Err(bytes_are_gone(stage.job)),
            }
        }
        journal.forget_suspend()?;
        data.set_len(geometry.image_bytes())?;
        make_blank(&data, &restored)?;
        // Order: all that a stage needs is durable before its next attempt begins.
        data.sync_all()?;
        inner.sync()?;
        Ok(Self { store: store.clone(), stage, inner, held: Held::new(data, journal, restored) })
    }

    /// The bytes of the stage's key file, and the file of its records.
    #[cfg(feature = "encrypt")]
    pub(crate) fn locked(&self) -> Result<(crate::cipher::KeyBox, File)> {
        let key = self.inner.open_file(image::KEY)?;
        let key_box = crate::region::encrypted::read_key_box(&key)?;
        Ok((key_box, self.inner.open_file_rw(RECORDS)?))
    }

    /// Makes the stage an encrypted one, of which what was on record is known again.
    #[cfg(feature = "encrypt")]
    pub(crate) fn unlock(
        &mut self,
        cipher: crate::cipher::ImageCipher,
        key: crate::id::KeyId,
        records: File,
    ) -> Result<()> {
        let masked = self.held.take_restored()?;
        let (file, restored) = crate::region::EncryptedFile::staged(cipher, key, records, &masked)?;
        if restored.table.missing() != masked.table.missing() {
            make_blank(&self.held.data, &restored)?;
            self.held.data.sync_all()?;
        }
        self.held.unlock(file, restored);
        Ok(())
    }

    /// How the job was decided, if it was. Also told of a stage that is gone.
    fn decided(&self) -> Result<Option<Outcome>> {
        if !self.held.journal.is_still_in(&self.stage.dir)? {
            // Only a decided stage is removed, and its journal goes on telling those who hold it.
            let committed =
                self.held.journal.prepared().is_some() && !self.held.journal.is_cancelled()?;
            return Ok(Some(if committed { Outcome::Committed } else { Outcome::Cancelled }));
        }
        match settle(self.store.found(&self.stage, &self.held.journal)?) {
            Settlement::FinishCommit => Ok(Some(Outcome::Committed)),
            Settlement::FinishCancel => Ok(Some(Outcome::Cancelled)),
            Settlement::Keep => Ok(None),
            Settlement::Lost | Settlement::Forget => {
                Err(Error::new(ErrorKind::Corrupt, "find the stage: its bytes are gone"))
            }
        }
    }

    fn sync_data(&self) -> Result<()> {
        sabotage::unless("D12", || self.held.data.sync_all())
    }

    fn write_manifest(&self, manifest: &Manifest) -> Result<()> {
        // An earlier attempt may have left one behind.
        self.inner.remove_file(MANIFEST)?;
        let file = self.inner.create_file(MANIFEST, 0o600)?;
        match &self.held.encrypted {
            Some(encrypted) => encrypted.write_manifest(manifest, &mut file.writer())?,
            None => manifest.encode_to(&mut file.writer())?,
        }
        file.set_mode(IMAGE_FILE_MODE)?;
        sabotage::unless("D10", || file.sync_all())
    }
}

impl Owned for OwnedStage {
    fn held(&self) -> &Held {
        &self.held
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        // Zeros within a chunk stay holes, as those do that the local lane comes upon.
        let held: Vec<bool> = bytes.chunks(CELL_BYTES).map(|cell| !is_zero(cell)).collect();
        let mut rest = bytes;
        for run in held.chunk_by(PartialEq::eq) {
            let at = offset + to_u64(bytes.len() - rest.len());
            let (part, behind) = rest.split_at(rest.len().min(run.len() * CELL_BYTES));
            if run[0] {
                self.held.data.write_at(at, part)?;
            } else {
                self.write_zeroes(ByteRange::new(at, to_u64(part.len())))?;
            }
            rest = behind;
        }
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange) -> Result<()> {
        // A stage is blank, see `OwnedStage::take_over`, but this attempt may have written here.
        if self.held.data.punch(range)? {
            return Ok(());
        }
        self.held.data.write_zeroes(range)
    }

    fn prepare(&self, manifest: &Manifest) -> Result<()> {
        // A commit that is asked for again finds its bytes published: they must not be touched.
        if self.decided()?.is_some() {
            return Ok(());
        }
        let published = match self.store.layout {
            Layout::Images => {
                self.held.data.set_mode(IMAGE_FILE_MODE)?;
                self.sync_data()?;
                if let Some(encrypted) = &self.held.encrypted {
                    encrypted.publish(IMAGE_FILE_MODE)?;
                    if let Some(key) = find_rw(&self.inner, image::KEY)? {
                        key.set_mode(IMAGE_FILE_MODE)?;
                        key.sync_all()?;
                    }
                }
                self.write_manifest(manifest)?;
                self.inner.set_mode(IMAGE_DIR_MODE)?;
                self.inner.facts()?
            }
            Layout::Files => {
                self.held.data.set_mode(default_file_mode())?;
                self.sync_data()?;
                self.held.data.facts()?
            }
        };
        sabotage::unless("D11", || self.inner.sync().and_then(|()| self.stage.dir.sync()))?;
        // Order: all of the above before the record that says so.
        self.held.journal.append_prepared(Prepared {
            device: published.device,
            inode: published.inode,
            root: match &self.held.encrypted {
                Some(encrypted) => encrypted.blind(&manifest.root())?,
                None => manifest.root(),
            },
        })
    }

    fn try_publish(&self) -> Result<Option<Outcome>> {
        let Some(decision) = self.held.journal.try_decide()? else { return Ok(None) };
        match self.decided()? {
            Some(Outcome::Committed) => {}
            Some(Outcome::Cancelled) => {
                decision.cancel()?;
                return Ok(Some(Outcome::Cancelled));
            }
            None => {
                let (payload, name) = (self.store.payload(), &self.held.journal.header().name);
                sync::point();
                // The decision: one rename that replaces nothing.
                self.stage.dir.rename_no_replace(payload, &self.store.root, name).map_err(
                    |error| error.hint("move what is there out of the way, then resume"),
                )?;
            }
        }
        self.store.sync_published(&self.stage)?;
        sabotage::unless("D14", || self.held.journal.append_published())?;
        // Order: on record first. Until then the name alone shows the commit, and whoever sees the
        // image may move it away before a cancel looks.
        drop(decision);
        Ok(Some(Outcome::Committed))
    }

    fn finish(&self) -> Result<()> {
        self.store.remove(&self.stage.parent, &self.stage.dir, self.stage.job)
    }

    fn try_discard(&self) -> Result<Option<Outcome>> {
        if !self.held.journal.is_still_in(&self.stage.dir)? {
            return self.decided();
        }
        let Some(decision) = self.held.journal.try_decide()? else { return Ok(None) };
        match settle(self.store.found(&self.stage, &self.held.journal)?) {
            Settlement::FinishCommit => return Ok(Some(Outcome::Committed)),
            // Order: durable before it is acted on; who wrote it may have died before its sync.
            Settlement::FinishCancel | Settlement::Keep | Settlement::Lost | Settlement::Forget => {
                decision.cancel()?;
            }
        }
        drop(decision);
        self.store.clean(&self.stage.parent, &self.stage.dir, self.stage.job)?;
        Ok(Some(Outcome::Cancelled))
    }
}

/// What no record covers may hold anything: makes it blank again, so that zeros need no write.
fn make_blank(data: &File, restored: &Restored) -> Result<()> {
    let geometry = restored.table.geometry();
    for run in restored.table.missing_runs() {
        let range = geometry.run_range(run);
        if !data.punch(range)? {
            data.write_zeroes(range)?;
        }
    }
    Ok(())
}

fn make_inner(stage: &Stage) -> Result<Dir> {
    let inner = stage.dir.make_dir(IMAGE, 0o700)?;
    stage.dir.sync()?;
    Ok(inner)
}

fn bytes_are_gone(job: JobId) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("take over job {job}: bytes that were on record are gone"),
    )
    .hint("cancel the job and copy again")
}
