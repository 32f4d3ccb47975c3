//! The job index: one small file per job in the state folder, so that an acknowledged start is
//! never forgotten.

use std::path::Path;
use std::sync::Arc;

use crate::chunk::Digest;
use crate::codec::{Decoder, Encoder, cut};
use crate::disk::Dir;
use crate::engine::clock::unix_ms;
use crate::error::{Error, ErrorKind, Result};
use crate::id::JobId;
use crate::job::{JobSpec, JobState, Receipt};
use crate::region::{BoxFuture, blocking};

/// How long the record of an ended job is kept.
const KEPT_MS: u64 = 30 * 24 * 3600 * 1000;
const JOBS: &str = "jobs";
const MAGIC: [u8; 8] = *b"BFJOBRC\0";
const VERSION_MAX: u16 = 2;
const SUM_CONTEXT: &str = "blockferry 2026-11-21 job record v1";
/// More than any record has: specs, receipts and messages are bounded themselves.
const RECORD_LEN_MAX: u64 = 256 << 10;
const MESSAGE_LEN_MAX: usize = 4096;

/// What the index knows of a job. The region is the truth; this is its history.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobRecord {
    /// What the job was to do.
    pub spec: JobSpec,
    /// Where it stood when the record was written.
    pub state: JobState,
    /// Why it stopped, for failed jobs and for rollbacks that are pending.
    pub error: Option<(ErrorKind, String)>,
    /// The account of a committed copy.
    pub receipt: Option<Receipt>,
    /// Milliseconds since 1970 when the record was written; a label only.
    pub updated_unix_ms: u64,
}

impl JobRecord {
    pub(crate) fn new(spec: JobSpec, state: JobState) -> Self {
        Self { spec, state, error: None, receipt: None, updated_unix_ms: unix_ms() }
    }

    pub(crate) fn with_error(mut self, error: &Error) -> Self {
        let mut message = error.report();
        message.truncate(cut(&message, MESSAGE_LEN_MAX).len());
        self.error = Some((error.kind(), message));
        self
    }

    /// Whether this, on record, is not to be replaced by what somebody has seen from outside: a
    /// job of that id ended once, and a later one only begins.
    fn outlasts(&self, seen: &Self) -> bool {
        let (mine, theirs) = (self.spec.created_unix_ms, seen.spec.created_unix_ms);
        let is_news = seen.state == JobState::Committed && self.state != JobState::Committed;
        mine > theirs || mine == theirs && self.state.is_final() && !is_news
    }

    /// Without what is a digest of an encrypted image's content: whoever may know its root gets it
    /// from the image.
    fn masked(mut self) -> Self {
        if let (Some(receipt), true) = (&mut self.receipt, self.spec.key.is_some()) {
            receipt.root = Digest::from_bytes([0; 32]);
        }
        self
    }

    /// The bytes: magic, version, spec, state, time, error, receipt, and a BLAKE3 checksum of it
    /// all.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.raw(&MAGIC).u16(self.spec.record_version());
        self.spec.encode(&mut out);
        out.u8(self.state.code()).u64(self.updated_unix_ms);
        out.option(self.error.as_ref(), |out, (kind, message)| {
            out.block(kind.name().as_bytes()).block(message.as_bytes());
        });
        out.option(self.receipt.as_ref(), |out, receipt| receipt.encode(out));
        let mut bytes = out.finish();
        let sum = blake3::derive_key(SUM_CONTEXT, &bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        const KIND_LEN_MAX: usize = 32;
        let mut from = Decoder::new(bytes, "job record");
        if from.array()? != MAGIC {
            return Err(from.corrupt("it is no job record"));
        }
        let version = from.u16()?;
        if version > VERSION_MAX {
            return Err(Error::new(ErrorKind::Unsupported, format!("read job record {version}"))
                .hint("it was written by a newer blockferry: upgrade"));
        }
        if version == 0 {
            return Err(from.corrupt("its version never existed"));
        }
        let (body, sum) =
            bytes.split_at_checked(bytes.len().saturating_sub(32)).unwrap_or_default();
        if sum != blake3::derive_key(SUM_CONTEXT, body) {
            return Err(from.corrupt("its checksum is wrong"));
        }
        let mut from = Decoder::new(body, "job record");
        from.raw(MAGIC.len() + 2)?;
        let spec = JobSpec::decode(&mut from)?;
        if spec.record_version() != version {
            return Err(from.corrupt("its version is not that of its fields"));
        }
        let code = from.u8()?;
        let state =
            JobState::from_code(code).ok_or_else(|| from.corrupt("the job state is unknown"))?;
        let updated_unix_ms = from.u64()?;
        let error = from.option(|from| {
            let kind = ErrorKind::from_name(from.text(KIND_LEN_MAX)?);
            let kind = kind.ok_or_else(|| from.corrupt("the error kind is unknown"))?;
            Ok((kind, from.text(MESSAGE_LEN_MAX)?.to_owned()))
        })?;
        let receipt = from.option(Receipt::decode)?;
        from.finish()?;
        Ok(Self { spec, state, error, receipt, updated_unix_ms })
    }
}

/// The folder of records.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    dir: Arc<Dir>,
    place: String,
}

impl Index {
    /// Opens the index in that state folder, makes it where it is missing, and drops what is too
    /// old.
    pub(crate) async fn open(state_dir: &Path) -> Result<Self> {
        let path = state_dir.join(JOBS);
        let place = path.display().to_string();
        let named = place.clone();
        let dir = blocking(move || Dir::open_or_create_path(&path).map_err(|e| e.within(named)));
        let index = Self { dir: Arc::new(dir.await?), place };
        index.prune().await?;
        Ok(index)
    }

    fn with<'a, T: Send + 'static>(
        &self,
        work: impl FnOnce(&Dir) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'a, Result<T>> {
        let (dir, place) = (self.dir.clone(), self.place.clone());
        blocking(move || work(&dir).map_err(|error| error.within(place)))
    }

    /// The record of that job; `None` when there is none.
    pub(crate) async fn read(&self, job: JobId) -> Result<Option<JobRecord>> {
        self.with(move |dir| read(dir, job)).await
    }

    /// As [`Index::read`], but a damaged record counts as none. One of a newer version does not: it
    /// is not ours to write over.
    pub(crate) async fn read_usable(&self, job: JobId) -> Result<Option<JobRecord>> {
        match self.read(job).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
            read => read,
        }
    }

    /// Every record. A damaged or newer one is left out: the region is the truth.
    pub(crate) async fn all(&self) -> Result<Vec<JobRecord>> {
        self.with(|dir| {
            let names = dir.names(|name| name.parse::<JobId>().is_ok())?;
            let jobs = names.iter().filter_map(|name| name.parse().ok());
            let mut records = Vec::new();
            for job in jobs {
                match read(dir, job) {
                    Ok(record) => records.extend(record),
                    Err(error)
                        if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {}
                    // A record that may not be read is not one that is not there.
                    Err(error) => return Err(error),
                }
            }
            Ok(records)
        })
        .await
    }

    /// Writes a record in place of the one before.
    ///
    /// # Durability
    /// Survives power loss when it returns; a crash leaves the old record or the new one.
    pub(crate) async fn write(&self, record: JobRecord) -> Result<()> {
        self.with(move |dir| {
            let _claim = dir.claim()?;
            replace(dir, record)
        })
        .await
    }

    /// As [`Index::write`], for who has seen from outside how a job stands: what its owner, or
    /// somebody else, has written of its end meanwhile stays. A commit that was seen is true
    /// whatever the record says.
    pub(crate) async fn write_seen(&self, record: JobRecord) -> Result<()> {
        self.with(move |dir| {
            let _claim = dir.claim()?;
            let there = match read(dir, record.spec.job) {
                Err(error) if error.kind() == ErrorKind::Corrupt => None,
                read => read?,
            };
            match there.is_some_and(|there| there.outlasts(&record)) {
                true => Ok(()),
                false => replace(dir, record),
            }
        })
        .await
    }

    /// Removes a record; one that is not there is fine.
    pub(crate) async fn remove(&self, job: JobId) -> Result<()> {
        self.with(move |dir| {
            dir.remove_file(&job.to_string())?;
            dir.sync()
        })
        .await
    }

    async fn prune(&self) -> Result<()> {
        self.with(|dir| {
            // Under the claim nobody is writing one: what is there was left by a crash.
            let _claim = dir.claim()?;
            dir.names(|name| name.ends_with(".new"))?
                .iter()
                .try_for_each(|name| dir.remove_file(name))
        })
        .await?;
        let now = unix_ms();
        for record in self.all().await? {
            if record.state.is_final() && now.saturating_sub(record.updated_unix_ms) > KEPT_MS {
                self.remove(record.spec.job).await?;
            }
        }
        Ok(())
    }
}

/// Puts a record in place of the one before. Under the claim.
fn replace(dir: &Dir, record: JobRecord) -> Result<()> {
    // Order: claim → temporary file → sync → rename → sync folder.
    let name = record.spec.job.to_string();
    let temporary = format!("{name}.new");
    dir.remove_file(&temporary)?;
    let file = dir.create_file(&temporary, 0o600)?;
    file.write_at(0, &record.masked().encode())?;
    file.sync_all()?;
    dir.rename_over(&temporary, &name)?;
    dir.sync()
}

fn read(dir: &Dir, job: JobId) -> Result<Option<JobRecord>> {
    let Some(file) = dir.find_file(&job.to_string())? else { return Ok(None) };
    let len = file.len()?;
    if len > RECORD_LEN_MAX {
        return Err(Error::new(ErrorKind::Corrupt, "read job record: it is too long"));
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let count = file.read_at(0, &mut bytes)?;
    bytes.truncate(count);
    JobRecord::decode(&bytes).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::sample_spec;

    fn sample() -> JobRecord {
        let error = Error::new(ErrorKind::NoSpace, "write chunk").within("dir:///b");
        let mut record =
            JobRecord::new(sample_spec(), JobState::Failed { resumable: true }).with_error(&error);
        record.receipt = Some(Receipt::found(crate::chunk::Digest::from_bytes([1; 32]), 9, 3, 1));
        record
    }

    #[test]
    fn records_come_back_and_damage_is_seen() {
        let record = sample();
        let bytes = record.encode();
        assert_eq!(JobRecord::decode(&bytes).unwrap(), record);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            assert!(JobRecord::decode(&flipped).is_err(), "flip at {at}");
            assert!(JobRecord::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn golden_bytes_of_a_record() {
        let mut record = sample();
        record.updated_unix_ms = 1_700_000_000_001;
        let hash = blake3::hash(&record.encode()).to_string();
        assert_eq!(
            (record.encode().len(), hash.as_str()),
            (437, "f9fe8c08d5bb0af998f2aa73914157d9e4aef600dd8958b9da907ad176095e19")
        );
    }

    #[tokio::test]
    async fn a_record_is_kept_until_it_is_too_old() {
        let temp = tempfile::tempdir().unwrap();
        let index = Index::open(temp.path()).await.unwrap();
        let mut record = sample();
        index.write(record.clone()).await.unwrap();
        assert_eq!(index.read(record.spec.job).await.unwrap(), Some(record.clone()));
        record.state = JobState::RolledBack;
        record.updated_unix_ms = 0;
        index.write(record.clone()).await.unwrap();
        let index = Index::open(temp.path()).await.unwrap();
        assert_eq!(index.read(record.spec.job).await.unwrap(), None);
    }
}
