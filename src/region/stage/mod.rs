//! Stages on a file system: how a copy is claimed, prepared, published by one rename, cancelled and
//! recovered.

mod image;
mod owned;
mod reopen;
mod target;
mod vote;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::disk::{Dir, Facts};
use crate::error::{Error, ErrorKind, Result};
use crate::id::JobId;
use crate::job::JobSpec;
use crate::journal::{
    Ending, Found, Header, JOURNAL, Journal, Open, Published, Settlement, settle,
};
use crate::region::{Recovered, Settled, StagedJob};
use crate::{sabotage, sync};

use image::find_rw;
pub(crate) use image::{
    DATA, Described, KEY, MANIFEST, NEW_KEY, RECORDS, destroy_key, read_manifest,
    refuse_inside_image,
};
pub(crate) use owned::OwnedStage;
pub(crate) use reopen::open_restoring;
#[cfg(feature = "object")]
pub(crate) use reopen::open_visiting;
pub(crate) use target::{Held, JournaledTarget, Owned, until_decided};
pub(crate) use vote::{put_wish, staged_job};

/// What a directory region's stage publishes.
const IMAGE: &str = "image";
/// The folder of a directory region that is ours.
const OURS: &str = ".blockferry";
const STAGE: &str = "stage";
/// How the stages of plain files are named, beside the file to be.
const FILE_STAGE_PREFIX: &str = ".blockferry-";

/// What a stage publishes, and where stages are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `<root>/.blockferry/stage/<job>/{journal,image/{data,manifest}}`; `image` becomes
    /// `<root>/<name>`.
    Images,
    /// `<root>/.blockferry-<job>/{journal,data}`; `data` becomes `<root>/<name>`.
    Files,
}

/// The stages below one folder.
#[derive(Debug)]
pub(crate) struct StageStore {
    root: Dir,
    layout: Layout,
    location: String,
    parent_is_durable: AtomicBool,
}

/// Whether the caller holds the claim on the stages' folder.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Claim {
    Held,
    Needed,
}

/// One stage's folder, open.
#[derive(Debug)]
struct Stage {
    parent: Dir,
    dir: Dir,
    job: JobId,
}

impl StageStore {
    pub(crate) fn new(root: Dir, layout: Layout, location: String) -> Self {
        Self { root, layout, location, parent_is_durable: AtomicBool::new(false) }
    }

    pub(crate) fn root(&self) -> &Dir {
        &self.root
    }

    /// Stages a new image under `name`, or takes over what the job has staged. `key_file`: what a
    /// stage that is to be encrypted begins with.
    pub(crate) fn stage(
        self: &Arc<Self>,
        spec: &JobSpec,
        name: &str,
        key_file: Option<&[u8]>,
    ) -> Result<OwnedStage> {
        image::refuse_without_key(spec, key_file)?;
        let parent = self.make_parent()?;
        // Order: the claim is held while we look for rivals and until our own name is durable.
        let _claim = parent.claim()?;
        match self.settle(spec.job, Claim::Held)?.settled {
            Settled::Kept => return self.reopen(spec, key_file),
            Settled::Running => return Err(owned_elsewhere(spec.job)),
            Settled::Failed(error) => return Err(error),
            Settled::Committed | Settled::RolledBack | Settled::Forgotten => {}
        }
        if self.root.facts_of(name)?.is_some() {
            return Err(Error::new(ErrorKind::Exists, format!("stage {name}"))
                .hint("choose another name, or remove what is there"));
        }
        self.refuse_rivals(spec.job, name)?;
        self.create(&parent, spec, name, key_file)
    }

    /// Takes over what the job has staged; [`ErrorKind::NotFound`] when there is nothing of it.
    pub(crate) fn reopen(
        self: &Arc<Self>,
        spec: &JobSpec,
        key_file: Option<&[u8]>,
    ) -> Result<OwnedStage> {
        image::refuse_without_key(spec, key_file)?;
        let stage = self.find(spec.job)?.ok_or_else(|| nothing_staged(spec.job))?;
        let (journal, restored) = open_restoring(&stage.dir, spec)?;
        OwnedStage::take_over(self, stage, journal, restored, key_file)
    }

    /// One stage per name: a rival that is only waiting to be cleaned is cleaned, any other is
    /// `Busy`.
    fn refuse_rivals(&self, job: JobId, name: &str) -> Result<()> {
        for rival in self.stages()?.into_iter().filter(|rival| *rival != job) {
            // A rival that cannot be read cannot be resumed, and the rename replaces nothing
            // anyway.
            if self.name_of(rival).ok().flatten().as_deref() != Some(name) {
                continue;
            }
            let settled = self.settle(rival, Claim::Held)?.settled;
            if !matches!(settled, Settled::RolledBack | Settled::Committed | Settled::Forgotten) {
                return Err(Error::new(ErrorKind::Busy, format!("stage {name}"))
                    .hint(format!("job {rival} copies to it: wait, resume or cancel that one")));
            }
        }
        Ok(())
    }

    /// Makes a stage, or leaves nothing of it.
    fn create(
        self: &Arc<Self>,
        parent: &Dir,
        spec: &JobSpec,
        name: &str,
        key_file: Option<&[u8]>,
    ) -> Result<OwnedStage> {
        self.create_parts(parent, spec, name, key_file).map_err(|error| {
            let cleaned = match parent.find_dir(&self.folder(spec.job)) {
                Ok(Some(dir)) => self.clean(parent, &dir, spec.job),
                Ok(None) => Ok(()),
                Err(later) => Err(later),
            };
            cleaned.err().into_iter().fold(error, Error::and)
        })
    }

    fn create_parts(
        self: &Arc<Self>,
        parent: &Dir,
        spec: &JobSpec,
        name: &str,
        key_file: Option<&[u8]>,
    ) -> Result<OwnedStage> {
        let folder = self.folder(spec.job);
        // Order: folders → journal → data, each durable before the next, so that a stage without a
        // valid header was never acknowledged, and one that holds data always was about to be.
        let dir = parent.make_dir(&folder, 0o700)?;
        let inner = match self.layout {
            Layout::Images => dir.make_dir(IMAGE, 0o700)?,
            Layout::Files => dir.reopen()?,
        };
        inner.sync()?;
        dir.sync()?;
        sabotage::unless("D1", || parent.sync())?;
        let header = Header { spec: spec.clone(), name: name.to_owned() };
        let journal = Journal::create(&dir, header)?;
        dir.sync()?;
        let data = inner.create_file(DATA, 0o600)?;
        data.set_len(spec.geometry.image_bytes())?;
        data.sync_all()?;
        image::make_key_files(&inner, key_file)?;
        inner.sync()?;
        OwnedStage::fresh(self, parent.reopen()?, dir, inner, journal, data)
    }

    /// The staged jobs, by number.
    fn stages(&self) -> Result<Vec<JobId>> {
        let Some(parent) = self.find_parent()? else { return Ok(Vec::new()) };
        let names = parent.names(|name| self.job_of(name).is_some())?;
        Ok(names.iter().filter_map(|name| self.job_of(name)).collect())
    }

    /// What is known of each staged job.
    pub(crate) fn jobs(&self) -> Result<Vec<StagedJob>> {
        // One that cannot be read must not hide the others; `recover` says what is wrong with it.
        Ok(self.stages()?.into_iter().filter_map(|job| self.job(job).ok().flatten()).collect())
    }

    /// What is known of that job, if it is staged here and was acknowledged.
    pub(crate) fn job(&self, job: JobId) -> Result<Option<StagedJob>> {
        Ok(self.named_job(job)?.map(|(_, staged)| staged))
    }

    /// The same, with the name that it is to publish. Both are of one look: a stage may go between
    /// two.
    pub(crate) fn named_job(&self, job: JobId) -> Result<Option<(String, StagedJob)>> {
        let Some(stage) = self.find(job)? else { return Ok(None) };
        let Some(journal) = Journal::watch(&stage.dir, job)? else { return Ok(None) };
        Ok(Some((journal.header().name.clone(), staged_job(&journal)?)))
    }

    /// The job that has that name staged.
    pub(crate) fn job_staging(&self, name: &str) -> Result<Option<JobId>> {
        for job in self.stages()? {
            if self.name_of(job).ok().flatten().as_deref() == Some(name) {
                return Ok(Some(job));
            }
        }
        Ok(None)
    }

    /// Whether that job has committed, and its stage is still there.
    pub(crate) fn has_published(&self, job: JobId) -> Result<bool> {
        let Some(stage) = self.find(job)? else { return Ok(false) };
        let Some(journal) = Journal::watch(&stage.dir, job)? else { return Ok(false) };
        Ok(settle(self.found(&stage, &journal)?) == Settlement::FinishCommit)
    }

    /// Settles every stage that no live process owns, or just the one.
    pub(crate) fn recover(&self, only: Option<JobId>) -> Result<Vec<Recovered>> {
        let mut all = self.stages()?;
        all.retain(|job| only.is_none_or(|only| only == *job));
        let settle_one = |job| {
            self.settle(job, Claim::Needed)
                .unwrap_or_else(|error| Recovered::new(job, None, Settled::Failed(error)))
        };
        Ok(all.into_iter().map(settle_one).collect())
    }

    /// Settles one stage.
    fn settle(&self, job: JobId, claim: Claim) -> Result<Recovered> {
        let gone = || Recovered::new(job, None, Settled::Forgotten);
        let Some(stage) = self.find(job)? else { return Ok(gone()) };
        if Journal::watch(&stage.dir, job)?.is_none() {
            return self.sweep(&stage, claim);
        }
        // Order: owned before it is read, or an append by its owner looks like damage.
        let opened = match Journal::take_over(&stage.dir, job, &mut |_| {}) {
            Ok(Some(Open::Valid(journal))) => journal,
            // Its header was in memory alone.
            Ok(Some(Open::Unacknowledged)) => return self.sweep(&stage, claim),
            Ok(None) => return Ok(gone()),
            Err(error) if error.kind() == ErrorKind::Busy => {
                let spec = self.job(job)?.map(|told| told.spec);
                return Ok(Recovered::new(job, spec, Settled::Running));
            }
            Err(error) => return Err(error),
        };
        let spec = Some(opened.header().spec.clone());
        let settled = match settle(self.found(&stage, &opened)?) {
            Settlement::Forget | Settlement::Keep => Settled::Kept,
            Settlement::FinishCommit => {
                self.sync_published(&stage)?;
                self.remove(&stage.parent, &stage.dir, job)?;
                Settled::Committed
            }
            Settlement::FinishCancel => match opened.try_decide()? {
                Some(decision) => {
                    // Order: durable before it is acted on; see `try_discard`.
                    decision.cancel()?;
                    self.clean(&stage.parent, &stage.dir, job)?;
                    Settled::RolledBack
                }
                None => Settled::Running,
            },
            Settlement::Lost => Settled::Failed(
                Error::new(ErrorKind::Corrupt, format!("recover job {job}: its bytes are gone"))
                    .within(self.location.clone())
                    .hint("the file system lost synced data; cancel the job and copy again"),
            ),
        };
        Ok(Recovered::new(job, spec, settled))
    }

    /// Removes a stage without header, unless somebody is making it at this moment.
    fn sweep(&self, stage: &Stage, claim: Claim) -> Result<Recovered> {
        // The claim keeps out those who are just making this very stage.
        let needed = claim == Claim::Needed;
        let _held = needed.then(|| stage.parent.claim()).transpose()?;
        if Journal::watch(&stage.dir, stage.job)?.is_some() {
            return Ok(Recovered::new(stage.job, None, Settled::Running));
        }
        self.forget(stage)?;
        Ok(Recovered::new(stage.job, None, Settled::Forgotten))
    }

    /// What is found of a job, for the recovery table.
    fn found(&self, stage: &Stage, journal: &Journal) -> Result<Found> {
        let staged = stage.dir.facts_of(self.payload())?;
        sync::point();
        let named = self.root.facts_of(&journal.header().name)?;
        let cancelled = journal.is_cancelled()?;
        // What is not in the stage has left it by the rename, or was never there: the log tells.
        let is_away = staged.is_none() && !cancelled;
        let Ending { prepared, done } = if is_away {
            journal.read_ending()?
        } else {
            Ending { prepared: journal.prepared(), done: false }
        };
        // A device may have another number after a reboot or a mount: the record's tells nothing.
        // The inode of what a cancel has removed may be a stranger's by now.
        let ours = |facts: Facts| match (prepared, staged) {
            (Some(prepared), None) => is_away && prepared.inode == facts.inode,
            (Some(_), Some(staged)) => staged.same_file(&facts),
            (None, _) => false,
        };
        Ok(Found {
            acknowledged: true,
            cancelled,
            done,
            prepared: prepared.is_some(),
            staged: staged.is_some(),
            published: match named {
                None => Published::Nothing,
                Some(facts) if ours(facts) => Published::Ours,
                Some(_) => Published::Foreign,
            },
        })
    }

    /// Order: a commit is answered only after both folders are durable, whoever answers.
    fn sync_published(&self, stage: &Stage) -> Result<()> {
        sabotage::unless("M3", || self.root.sync())?;
        stage.dir.sync()
    }

    /// Removes what nobody was told of. A stage that holds data was acknowledged: without its
    /// journal it is damage.
    fn forget(&self, stage: &Stage) -> Result<()> {
        if self.holds_data(stage)? || Journal::is_foreign(&stage.dir)? {
            let what = format!("recover job {}: its journal is missing or damaged", stage.job);
            return Err(Error::new(ErrorKind::Corrupt, what)
                .within(self.location.clone())
                .hint("cancel the job and copy again"));
        }
        self.clean(&stage.parent, &stage.dir, stage.job)
    }

    fn holds_data(&self, stage: &Stage) -> Result<bool> {
        match self.find_inner(&stage.dir)? {
            Some(inner) => Ok(inner.facts_of(DATA)?.is_some()),
            None => Ok(false),
        }
    }

    /// The folder of the stage's data, where there is one.
    fn find_inner(&self, dir: &Dir) -> Result<Option<Dir>> {
        match self.layout {
            Layout::Images => dir.find_dir(IMAGE),
            Layout::Files => dir.reopen().map(Some),
        }
    }

    /// Rolls back: the data first, the journal that demands it last. Needs no space and may be
    /// repeated.
    fn clean(&self, parent: &Dir, dir: &Dir, job: JobId) -> Result<()> {
        if let Some(inner) = self.find_inner(dir)? {
            let may_be_encrypted = self.layout == Layout::Images;
            if may_be_encrypted {
                // Order: the key first. From here on the rest is noise, however long it lies there.
                sabotage::unless("E1", || destroy_key(&inner))?;
            }
            if let Some(data) = find_rw(&inner, DATA)? {
                // Frees the room at once, also while a reader of ours still holds the file.
                data.set_len(0)?;
            }
            inner.remove_file(DATA)?;
            inner.remove_file(MANIFEST)?;
            if may_be_encrypted {
                inner.remove_file(RECORDS)?;
                inner.remove_file(image::KEY)?;
            }
            inner.sync()?;
        }
        if self.layout == Layout::Images {
            dir.remove_dir(IMAGE)?;
        }
        // Order: the data is gone for good before the journal is.
        dir.sync()?;
        self.remove(parent, dir, job)
    }

    /// Removes a stage that holds nothing but its journal.
    fn remove(&self, parent: &Dir, dir: &Dir, job: JobId) -> Result<()> {
        dir.remove_file(JOURNAL)?;
        parent.remove_dir(&self.folder(job))?;
        sabotage::unless("M4", || parent.sync())
    }

    /// The name that a staged job is to publish; `None` when it has no valid header.
    pub(crate) fn name_of(&self, job: JobId) -> Result<Option<String>> {
        let Some(stage) = self.find(job)? else { return Ok(None) };
        Ok(Journal::watch(&stage.dir, job)?.map(|journal| journal.header().name.clone()))
    }

    /// What leaves the stage when it is published.
    fn payload(&self) -> &'static str {
        match self.layout {
            Layout::Images => IMAGE,
            Layout::Files => DATA,
        }
    }

    fn folder(&self, job: JobId) -> String {
        match self.layout {
            Layout::Images => job.to_string(),
            Layout::Files => format!("{FILE_STAGE_PREFIX}{job}"),
        }
    }

    fn job_of(&self, folder: &str) -> Option<JobId> {
        let text = match self.layout {
            Layout::Images => folder,
            Layout::Files => folder.strip_prefix(FILE_STAGE_PREFIX)?,
        };
        text.parse().ok()
    }

    fn find(&self, job: JobId) -> Result<Option<Stage>> {
        let Some(parent) = self.find_parent()? else { return Ok(None) };
        let dir = parent.find_dir(&self.folder(job))?;
        Ok(dir.map(|dir| Stage { parent, dir, job }))
    }

    pub(crate) fn find_parent(&self) -> Result<Option<Dir>> {
        match self.layout {
            Layout::Images => match self.root.find_dir(OURS)? {
                Some(ours) => ours.find_dir(STAGE),
                None => Ok(None),
            },
            Layout::Files => self.root.reopen().map(Some),
        }
    }

    /// The folder of the stages, made durable on first use.
    pub(crate) fn make_parent(&self) -> Result<Dir> {
        if self.layout == Layout::Files {
            return self.root.reopen();
        }
        let (ours, _) = self.root.open_or_make_dir(OURS, 0o700)?;
        let (parent, _) = ours.open_or_make_dir(STAGE, 0o700)?;
        // Whoever made them first may have died before its sync.
        if !self.parent_is_durable.load(Relaxed) {
            ours.sync()?;
            self.root.sync()?;
            self.parent_is_durable.store(true, Relaxed);
        }
        Ok(parent)
    }
}

fn owned_elsewhere(job: JobId) -> Error {
    Error::new(ErrorKind::Busy, format!("take over job {job}")).hint("another process runs it")
}

fn nothing_staged(job: JobId) -> Error {
    Error::new(ErrorKind::NotFound, format!("take over job {job}"))
        .hint("nothing of it is staged any more")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::Digest;
    use crate::job::sample_spec;
    use crate::journal::Prepared;

    #[test]
    fn a_commit_is_known_again_on_a_device_that_has_another_number_since() {
        for layout in [Layout::Images, Layout::Files] {
            let temp = tempfile::tempdir().unwrap();
            let root = Dir::open_path(temp.path()).unwrap();
            let store = Arc::new(StageStore::new(root, layout, "here".into()));
            let owned = store.stage(&sample_spec(), "m-1", None).unwrap();
            let stage = store.find(sample_spec().job).unwrap().unwrap();
            let payload = stage.dir.facts_of(store.payload()).unwrap().unwrap();
            let prepared = Prepared {
                device: payload.device + 1,
                inode: payload.inode,
                root: Digest::from_bytes([1; 32]),
            };
            owned.held().journal.append_prepared(prepared).unwrap();
            stage.dir.rename_no_replace(store.payload(), &store.root, "m-1").unwrap();
            drop(owned);
            let recovered = store.recover(None).unwrap();
            assert_eq!(recovered.len(), 1, "{layout:?}");
            assert!(matches!(recovered[0].settled, Settled::Committed), "{recovered:?}");
            assert_eq!(store.stages().unwrap(), [], "{layout:?}");
        }
    }

    #[test]
    fn a_stranger_that_was_given_the_inode_of_cancelled_data_is_no_commit() {
        let temp = tempfile::tempdir().unwrap();
        let root = Dir::open_path(temp.path()).unwrap();
        let store = Arc::new(StageStore::new(root, Layout::Files, "here".into()));
        let owned = store.stage(&sample_spec(), "m-1", None).unwrap();
        let stranger = store.root.create_file("m-1", 0o600).unwrap().facts().unwrap();
        let prepared = Prepared {
            device: stranger.device,
            inode: stranger.inode,
            root: Digest::from_bytes([1; 32]),
        };
        let journal = &owned.held().journal;
        journal.append_prepared(prepared).unwrap();
        journal.try_decide().unwrap().unwrap().cancel().unwrap();
        // A crash comes after the data is gone and before the journal is.
        store.find(sample_spec().job).unwrap().unwrap().dir.remove_file(DATA).unwrap();
        drop(owned);
        let recovered = store.recover(None).unwrap();
        assert!(matches!(recovered[0].settled, Settled::RolledBack), "{recovered:?}");
        assert_eq!(store.stages().unwrap(), []);
        assert!(store.root.facts_of("m-1").unwrap().is_some());
    }
}

#[cfg(all(test, races))]
mod races {
    use std::collections::BTreeMap;

    use super::*;
    use crate::chunk::Content;
    use crate::geometry::{ChunkIndex, ChunkRun};
    use crate::job::sample_spec;
    use crate::manifest::{Manifest, TableBuilder};
    use crate::options::Limits;
    use crate::region::{Outcome, Vote, Wish};
    use crate::sync::races::check;

    /// In memory, where there is such a folder: a schedule makes and removes a whole stage.
    fn folder() -> tempfile::TempDir {
        let memory = std::path::Path::new("/dev/shm");
        if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
    }

    fn manifest() -> Manifest {
        let spec = sample_spec();
        let mut table = TableBuilder::new(spec.geometry);
        let all = ChunkRun::new(ChunkIndex::new(0), spec.geometry.chunk_count());
        table.put(all, Content::Zero);
        Manifest::new(table.finish().unwrap(), Some(spec.job), BTreeMap::new()).unwrap()
    }

    /// As `until_decided`, without a clock.
    fn insist<T>(ask: impl Fn() -> Result<Option<T>>) -> T {
        loop {
            if let Some(answer) = ask().unwrap() {
                return answer;
            }
            shuttle::thread::yield_now();
        }
    }

    fn race(layout: Layout) {
        let (temp, spec) = (folder(), sample_spec());
        let open = || {
            let root = Dir::open_path(temp.path()).unwrap();
            Arc::new(StageStore::new(root, layout, "here".into()))
        };
        let owned = open().stage(&spec, "m-1", None).unwrap();
        let cancel = || {
            let (store, spec) = (open(), spec.clone());
            shuttle::thread::spawn(move || {
                insist(|| store.try_cancel(spec.job, &spec.target.image))
            })
        };
        let cancels = [cancel(), cancel()];
        let owner = shuttle::thread::spawn(move || {
            owned.prepare(&manifest()).unwrap();
            let ended = insist(|| owned.try_publish());
            // As the driver does, after either.
            match ended {
                Outcome::Committed => owned.finish().unwrap(),
                Outcome::Cancelled => assert_eq!(insist(|| owned.try_discard()), ended),
            }
            ended
        });
        let votes = cancels.map(|cancel| cancel.join().unwrap());
        let ended = owner.join().unwrap();
        let published = temp.path().join("m-1").exists();
        assert_eq!(published, ended == Outcome::Committed, "{votes:?}");
        for vote in votes {
            let agrees = match vote {
                Vote::Committed => ended == Outcome::Committed,
                Vote::Cancelled { .. } => ended == Outcome::Cancelled,
                // All is over and the stage is gone: of a plain file only the index knows.
                Vote::Unknown => true,
            };
            assert!(agrees, "{ended:?}, but {votes:?}");
        }
        let first = |vote: &&Vote| matches!(vote, Vote::Cancelled { first: true, .. });
        let firsts = votes.iter().filter(first).count();
        assert!(firsts <= 1, "two were told that they decided it: {votes:?}");
        assert_eq!(open().stages().unwrap(), [], "a stage was left behind: {votes:?}");
    }

    #[test]
    fn of_a_commit_and_two_cancels_one_decides_and_all_agree_on_an_image() {
        check(3, || race(Layout::Images));
    }

    #[test]
    fn of_a_commit_and_two_cancels_one_decides_and_all_agree_on_a_file() {
        check(3, || race(Layout::Files));
    }

    #[test]
    fn no_wish_is_lost_to_another_that_comes_at_once() {
        check(4, || {
            let (temp, spec) = (folder(), sample_spec());
            let open = || {
                let root = Dir::open_path(temp.path()).unwrap();
                Arc::new(StageStore::new(root, Layout::Files, "here".into()))
            };
            let owned = open().stage(&spec, "m-1", None).unwrap();
            let limits = Limits::NONE.with_bytes_per_sec(5);
            let wish = |wish| {
                let (store, job) = (open(), spec.job);
                shuttle::thread::spawn(move || assert!(insist(|| store.try_wish(job, wish))))
            };
            let wishes = [wish(Wish::Suspend), wish(Wish::Limit(limits))];
            // The owner may look at any moment, and what it sees is whole.
            let seen = owned.held().journal.control().unwrap();
            assert!(seen.limits.is_none_or(|seen| seen == limits));
            wishes.into_iter().for_each(|wish| wish.join().unwrap());
            let told = owned.held().journal.control().unwrap();
            assert_eq!((told.limits, told.suspend_epoch), (Some(limits), Some(0)));
        });
    }
}
