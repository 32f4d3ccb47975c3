//! The only journal I/O: one file per job, appended to and synced by its owner, watched and voted
//! on by others.

use std::sync::Mutex;

use crate::chunk::Durable;
use crate::disk::{Dir, File, LockByte};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, to_u64};
use crate::host;
use crate::id::JobId;
use crate::journal::record::{
    Chain, HEADER_LEN_MAX, Header, MAGIC, PROGRESS_CHUNKS_MAX, Prepared, Record, Replay,
    read_header, replay,
};
use crate::journal::slot::{self, Control, SLOT_LEN, Slot, SlotKind, Status};
use crate::sabotage;
use crate::sync;

/// The journal's name in its stage.
pub(crate) const JOURNAL: &str = "journal";

const CANCEL_AT: u64 = 32 << 10;
const CONTROL_AT: u64 = 36 << 10;
const STATUS_AT: u64 = 40 << 10;
const LOG_AT: u64 = 48 << 10;
/// Room that is reserved at the start and kept ahead of the log.
const RESERVE: u64 = 64 << 10;
/// `LOG_AT + RESERVE`, as bytes in memory.
const KEPT: usize = 112 << 10;

const _: () = assert!(HEADER_LEN_MAX as u64 <= CANCEL_AT && KEPT as u64 == LOG_AT + RESERVE);

/// The right to run the job.
const OWNER: LockByte = LockByte(0);
/// The right to decide its outcome.
const DECISION: LockByte = LockByte(1);
/// The right to change the control slot.
const CONTROL: LockByte = LockByte(2);

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    header: Header,
    tail: Mutex<Tail>,
    watching: bool,
}

#[derive(Debug)]
struct Tail {
    chain: Chain,
    end: u64,
    reserved: u64,
    epoch: u32,
    prepared: Option<Prepared>,
    done: bool,
    /// A sync failed: what is on the disk is unknown until the journal is opened anew.
    poisoned: bool,
}

impl Tail {
    fn new(chain: Chain) -> Self {
        Self {
            chain,
            end: LOG_AT,
            reserved: 0,
            epoch: 0,
            prepared: None,
            done: false,
            poisoned: false,
        }
    }
}

/// Keeps room for the slots and the first records: a cancel must not depend on what is free then.
/// Where room cannot be reserved, zeros take it.
fn keep_room(file: &File) -> Result<()> {
    if file.reserve(ByteRange::new(0, LOG_AT + RESERVE))? {
        return Ok(());
    }
    file.write_at(0, &[0; KEPT])
}

fn read_padded(file: &File, at: u64, buffer: &mut [u8]) -> Result<()> {
    let count = file.read_at(at, buffer)?;
    buffer[count..].fill(0);
    Ok(())
}

/// How the log of a journal ends.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ending {
    pub(crate) prepared: Option<Prepared>,
    pub(crate) done: bool,
}

/// What opening a journal found.
#[derive(Debug)]
pub(crate) enum Open {
    /// A valid header and the records after it.
    Valid(Box<Journal>),
    /// No header was ever durable: nobody was told of this job.
    Unacknowledged,
}

impl Journal {
    /// Makes the journal of a new job, owned by the caller and durable but for its name in `dir`.
    pub(crate) fn create(dir: &Dir, header: Header) -> Result<Self> {
        let file = dir.create_file(JOURNAL, 0o600)?;
        if !file.try_lock(OWNER)? {
            return Err(Error::new(ErrorKind::Busy, "own new journal"));
        }
        file.set_len(LOG_AT + RESERVE)?;
        sabotage::unless("M30", || keep_room(&file))?;
        let (bytes, chain) =
            Chain::new(header.spec.job).seal(&Record::Header(Box::new(header.clone())));
        if bytes.len() > HEADER_LEN_MAX {
            return Err(Error::new(ErrorKind::Invalid, "describe the job in its journal")
                .hint("use shorter names and fewer attributes"));
        }
        file.write_at(0, &bytes)?;
        file.sync_all()?;
        let tail = Tail { reserved: LOG_AT + RESERVE, ..Tail::new(chain) };
        Ok(Self { file, header, tail: Mutex::new(tail), watching: false })
    }

    /// Opens a journal to watch the job or to vote on it: its log is not read and nothing can be
    /// appended.
    ///
    /// `None`: no such file, or no header in it.
    pub(crate) fn watch(dir: &Dir, job: JobId) -> Result<Option<Self>> {
        let Some(file) = dir.find_file_rw(JOURNAL)? else { return Ok(None) };
        let Some(header) = read_header(job, &mut |at, buffer| read_padded(&file, at, buffer))?
        else {
            return Ok(None);
        };
        let tail = Tail { poisoned: true, ..Tail::new(Chain::new(job)) };
        Ok(Some(Self { file, header, tail: Mutex::new(tail), watching: true }))
    }

    /// Opens the journal of `job` in `dir` without owning it, and shows each durable chunk to
    /// `visit`. `None`: no such file.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it is damaged in a way that no crash can cause.
    pub(crate) fn open(
        dir: &Dir,
        job: JobId,
        visit: &mut dyn FnMut(&Durable),
    ) -> Result<Option<Open>> {
        let Some(file) = dir.find_file_rw(JOURNAL)? else { return Ok(None) };
        let log = read_log(&file, job, visit)?;
        Ok(Some(Self::over(file, log)))
    }

    /// As [`Journal::open`], but owns it first, so that nobody appends behind what was read.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while another process, or another handle in this one, owns it.
    pub(crate) fn take_over(
        dir: &Dir,
        job: JobId,
        visit: &mut dyn FnMut(&Durable),
    ) -> Result<Option<Open>> {
        let Some(file) = dir.find_file_rw(JOURNAL)? else { return Ok(None) };
        let log = own(dir, &file, job).and_then(|()| read_log(&file, job, visit));
        if !matches!(log, Ok(Some(_))) {
            // Nothing comes of it that would give the right back: see `drop`.
            file.unlock(OWNER).ok();
        }
        Ok(Some(Self::over(file, log?)))
    }

    fn over(file: File, log: Option<Log>) -> Open {
        let Some(Log { found, len }) = log else { return Open::Unacknowledged };
        let tail = Tail {
            chain: found.chain,
            end: found.end,
            reserved: len.max(found.end),
            epoch: found.epoch,
            prepared: found.prepared,
            done: found.done,
            poisoned: false,
        };
        let tail = Mutex::new(tail);
        let journal = Self { file, header: found.header, tail, watching: false };
        Open::Valid(Box::new(journal))
    }

    /// Whether what lies under the journal's name in `dir` was never one of ours, not even torn.
    pub(crate) fn is_foreign(dir: &Dir) -> Result<bool> {
        let Some(file) = dir.find_file(JOURNAL)? else { return Ok(false) };
        let mut head = [0; 4];
        read_padded(&file, 0, &mut head)?;
        Ok(head != [0; 4] && head != MAGIC)
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.tail().epoch
    }

    pub(crate) fn prepared(&self) -> Option<Prepared> {
        self.tail().prepared
    }

    /// How the log ends, also of a journal whose log was not read: see [`Journal::watch`].
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the log is damaged in a way that no crash can cause.
    pub(crate) fn read_ending(&self) -> Result<Ending> {
        if !self.watching {
            return Ok(Ending { prepared: self.prepared(), done: self.is_done() });
        }
        let mut read = |at: u64, buffer: &mut [u8]| read_padded(&self.file, at, buffer);
        let found = replay(self.job(), self.file.len()?, LOG_AT, &mut read, &mut |_| {})?;
        Ok(found.map_or(Ending::default(), |found| Ending {
            prepared: found.prepared,
            done: found.done,
        }))
    }

    pub(crate) fn is_done(&self) -> bool {
        self.tail().done
    }

    fn job(&self) -> JobId {
        self.header.spec.job
    }

    /// Tries to become the one that runs the job. Held until this journal is dropped.
    pub(crate) fn try_own(&self) -> Result<bool> {
        sync::point();
        self.file.try_lock(OWNER)
    }

    /// Whether another process, or another handle in this one, runs the job.
    pub(crate) fn is_owned_elsewhere(&self) -> Result<bool> {
        self.file.is_locked(OWNER)
    }

    /// Whether this is still the file of that name in `dir`: a stage may have been removed while we
    /// waited for a right.
    pub(crate) fn is_still_in(&self, dir: &Dir) -> Result<bool> {
        sync::point();
        let named = dir.facts_of(JOURNAL)?;
        let ours = self.file.facts()?;
        Ok(named.is_some_and(|named| named.same_file(&ours)))
    }

    /// Begins the next attempt, and returns its number.
    ///
    /// # Durability
    /// Survives power loss when it returns.
    pub(crate) fn begin_attempt(&self) -> Result<u32> {
        let epoch = self.epoch().saturating_add(1);
        self.append(&Record::Attempt { epoch })?;
        self.tail().epoch = epoch;
        Ok(epoch)
    }

    /// Records chunks whose bytes are durable at the target.
    ///
    /// # Durability
    /// Survives power loss when it returns.
    pub(crate) fn append_progress(&self, chunks: &[Durable]) -> Result<()> {
        // Order: one unsynced append at a time, or a torn tail could look like damage.
        chunks
            .chunks(PROGRESS_CHUNKS_MAX)
            .try_for_each(|part| self.append(&Record::Progress(part.to_vec())))
    }

    /// Records that everything is durable and about to be published.
    ///
    /// # Durability
    /// Survives power loss when it returns.
    pub(crate) fn append_prepared(&self, prepared: Prepared) -> Result<()> {
        self.append(&Record::Prepared(prepared))?;
        self.tail().prepared = Some(prepared);
        Ok(())
    }

    /// Records the commit of a target that is written in place. Only the holder of the decision may
    /// call it.
    ///
    /// # Durability
    /// Survives power loss when it returns.
    pub(crate) fn append_done(&self, _right: &Decision<'_>) -> Result<()> {
        self.append(&Record::Done)?;
        self.tail().done = true;
        Ok(())
    }

    /// Records that what was published is durable under its name. It decides nothing; but from now
    /// on a name that is gone tells nothing of the job: somebody has moved or removed its image.
    ///
    /// # Durability
    /// Survives power loss when it returns.
    pub(crate) fn append_published(&self) -> Result<()> {
        if !self.is_done() {
            self.append(&Record::Done)?;
            self.tail().done = true;
        }
        Ok(())
    }

    fn append(&self, record: &Record) -> Result<()> {
        let mut tail = self.tail();
        if tail.poisoned {
            return Err(Error::new(ErrorKind::Io, "append to a journal whose sync failed")
                .hint("resume the job: its journal must be read anew"));
        }
        let (bytes, chain) = tail.chain.seal(record);
        let end = tail.end + to_u64(bytes.len());
        // What a failed write or sync left on the disk is unknown, so nothing may follow it.
        tail.poisoned = true;
        if end > tail.reserved {
            let more = ByteRange::new(tail.reserved, end + RESERVE - tail.reserved);
            self.file.reserve(more)?;
            self.file.set_len(more.end())?;
            tail.reserved = more.end();
        }
        self.file.write_at(tail.end, &bytes)?;
        let is_prepared = matches!(record, Record::Prepared(_));
        if !(sabotage::is("D2") && is_prepared) {
            self.file.sync_data()?;
        }
        tail.poisoned = false;
        (tail.chain, tail.end) = (chain, end);
        Ok(())
    }

    /// Makes durable what was read of it.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_data()
    }

    /// Tries to take the right to decide. It ends when the value is dropped.
    pub(crate) fn try_decide(&self) -> Result<Option<Decision<'_>>> {
        sync::point();
        let held = self.file.try_lock(DECISION)? || sabotage::is("D3");
        Ok(held.then_some(Decision { journal: self }))
    }

    /// Whether somebody decided to cancel, or was about to: a slot that is not empty counts,
    /// whatever is in it.
    pub(crate) fn is_cancelled(&self) -> Result<bool> {
        Ok(self.read_slot(SlotKind::Cancel, CANCEL_AT)? != Slot::Empty)
    }

    /// What others ask of the owner; nothing when the slot is empty or damaged, for it holds only
    /// wishes.
    pub(crate) fn control(&self) -> Result<Control> {
        match self.read_slot(SlotKind::Control, CONTROL_AT)? {
            // What cannot be read is no wish; the owner must not go deaf over it.
            Slot::Written(payload) => Ok(Control::decode(&payload).unwrap_or_default()),
            Slot::Empty | Slot::Damaged => Ok(Control::default()),
        }
    }

    /// Changes what is asked of the owner; `false` when somebody else is changing it at this
    /// moment.
    ///
    /// # Durability
    /// Survives power loss when it returns.
    pub(crate) fn try_set_control(&self, change: impl FnOnce(&mut Control)) -> Result<bool> {
        if !self.file.try_lock(CONTROL)? {
            return Ok(false);
        }
        let changed = self.control().and_then(|mut control| {
            change(&mut control);
            sync::point();
            let sector = slot::seal(SlotKind::Control, self.job(), &control.encode());
            self.file.write_at(CONTROL_AT, &sector)?;
            self.file.sync_data()
        });
        self.file.unlock(CONTROL)?;
        changed.map(|()| true)
    }

    /// Forgets a wish that was meant for an owner before us: it has come to rest. Best effort.
    pub(crate) fn forget_suspend(&self) -> Result<()> {
        if self.control()?.suspend_epoch.is_some() {
            self.try_set_control(|control| control.suspend_epoch = None)?;
        }
        Ok(())
    }

    /// What the owner last told of itself.
    pub(crate) fn status(&self) -> Result<Option<Status>> {
        // The owner may be writing it at this moment: look again before it is called damaged.
        const LOOKS: usize = 8;
        for _ in 0..LOOKS {
            match self.read_slot(SlotKind::Status, STATUS_AT)? {
                // A label that cannot be read is none.
                Slot::Written(payload) => return Ok(Status::decode(&payload).ok()),
                Slot::Empty => return Ok(None),
                Slot::Damaged => {}
            }
        }
        Ok(None)
    }

    /// Tells others how far the owner is. Not synced.
    pub(crate) fn set_status(&self, status: &Status) -> Result<()> {
        let sector = slot::seal(SlotKind::Status, self.job(), &status.encode());
        self.file.write_at(STATUS_AT, &sector)
    }

    fn read_slot(&self, kind: SlotKind, at: u64) -> Result<Slot> {
        sync::point();
        let mut sector = [0; SLOT_LEN];
        self.file.read_at(at, &mut sector)?;
        Ok(slot::open(kind, self.job(), &sector))
    }

    fn tail(&self) -> std::sync::MutexGuard<'_, Tail> {
        host::lock(&self.tail)
    }
}

/// What a file was found to hold that has a header.
struct Log {
    found: Replay,
    len: u64,
}

fn read_log(file: &File, job: JobId, visit: &mut dyn FnMut(&Durable)) -> Result<Option<Log>> {
    let len = file.len()?;
    let mut read = |at: u64, buffer: &mut [u8]| read_padded(file, at, buffer);
    let found = replay(job, len, LOG_AT, &mut read, visit)?;
    Ok(found.map(|found| Log { found, len }))
}

/// Takes the right to run the job, and lets go of what only memory holds of its journal.
fn own(dir: &Dir, file: &File, job: JobId) -> Result<()> {
    let owned = file.try_lock(OWNER)?;
    // Order: owned, then looked for again: whoever had it may have removed it.
    let named = dir.facts_of(JOURNAL)?;
    if !owned || !named.is_some_and(|named| file.facts().is_ok_and(|f| f.same_file(&named))) {
        return Err(Error::new(ErrorKind::Busy, format!("take over job {job}"))
            .hint("another process runs it"));
    }
    // Order: dropped before it is read. Pages whose sync failed are clean, and readable as long
    // as they stay in memory; a record that is nowhere else must not be built upon.
    file.sync_data()?;
    sabotage::unless("D13", || file.evict(ByteRange::new(0, file.len()?)))
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Given back by hand: a child that was forked at this moment still has the handle, and
        // would keep the right until it runs its own program.
        self.file.unlock(OWNER).ok();
    }
}

/// The right to decide between commit and cancel, held until dropped.
#[derive(Debug)]
pub(crate) struct Decision<'a> {
    journal: &'a Journal,
}

impl Decision<'_> {
    /// Decides to cancel: from now on nobody can commit the job. Again is fine.
    ///
    /// # Durability
    /// Survives power loss when it returns. Needs no space: the slot was reserved at the start.
    pub(crate) fn cancel(&self) -> Result<()> {
        let sector = slot::seal(SlotKind::Cancel, self.journal.job(), &[]);
        sync::point();
        if sabotage::is("M9") {
            return Ok(());
        }
        self.journal.file.write_at(CANCEL_AT, &sector)?;
        sabotage::unless("D9", || self.journal.file.sync_data())
    }
}

impl Drop for Decision<'_> {
    fn drop(&mut self) {
        // A right that cannot be given back ends with the handle.
        self.journal.file.unlock(DECISION).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::sample_spec;
    use crate::options::Limits;

    fn folder() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_path(temp.path()).unwrap();
        (temp, dir)
    }

    fn header() -> Header {
        Header { spec: sample_spec(), name: "m-1".into() }
    }

    fn open(dir: &Dir) -> Journal {
        match Journal::open(dir, sample_spec().job, &mut |_| {}).unwrap().unwrap() {
            Open::Valid(journal) => *journal,
            Open::Unacknowledged => panic!("unacknowledged"),
        }
    }

    #[test]
    fn a_second_owner_is_kept_out_until_the_first_is_gone() {
        let (_temp, dir) = folder();
        let first = Journal::create(&dir, header()).unwrap();
        let second = open(&dir);
        assert!(!second.try_own().unwrap());
        assert!(second.is_owned_elsewhere().unwrap());
        drop(first);
        assert!(second.try_own().unwrap());
    }

    #[test]
    fn a_cancel_needs_the_decision_and_is_seen_by_the_owner() {
        let (_temp, dir) = folder();
        let owner = Journal::create(&dir, header()).unwrap();
        let other = open(&dir);
        let held = owner.try_decide().unwrap().unwrap();
        assert!(other.try_decide().unwrap().is_none());
        drop(held);
        other.try_decide().unwrap().unwrap().cancel().unwrap();
        assert!(owner.is_cancelled().unwrap());
    }

    #[test]
    fn wishes_and_status_cross_from_handle_to_handle() {
        let (_temp, dir) = folder();
        let owner = Journal::create(&dir, header()).unwrap();
        assert_eq!(owner.control().unwrap(), Control::default());
        let limits = Limits::NONE.with_bytes_per_sec(5);
        assert!(open(&dir).try_set_control(|control| control.limits = Some(limits)).unwrap());
        assert_eq!(owner.control().unwrap().limits, Some(limits));
        assert_eq!(open(&dir).status().unwrap(), None);
    }

    /// Chunks enough that their record fills pages of its own: the next one does not write them
    /// again.
    #[cfg(feature = "testing")]
    #[test]
    fn a_record_whose_sync_failed_is_not_built_upon() {
        use crate::chunk::{Content, Digest};
        use crate::geometry::{ChunkIndex, ChunkRun, ChunkSize, Geometry};
        use crate::testing::{Action, Failure, Simulation};

        let chunk = ChunkSize::MIN;
        let geometry = Geometry::new(1 << 30, chunk).unwrap();
        let mut header = header();
        header.spec.geometry = geometry;
        let job = header.spec.job;
        let chunks: Vec<_> = (0..1000)
            .map(|index| {
                let content =
                    Content::Data { digest: Digest::from_bytes([7; 32]), data_bytes: 65_536 };
                Durable::recorded(ChunkRun::new(ChunkIndex::new(index), 1), content)
            })
            .collect();
        let host = Simulation::new(1);
        let _entered = host.enter();
        host.make_dir("d").unwrap();
        let dir = Dir::open_path(&host.process().path("d")).unwrap();
        let seen = |dir: &Dir| {
            let mut count = 0;
            let opened = Journal::take_over(dir, job, &mut |_| count += 1).unwrap().unwrap();
            assert!(matches!(opened, Open::Valid(_)));
            (opened, count)
        };

        let journal = Journal::create(&dir, header).unwrap();
        dir.sync().unwrap();
        journal.append_progress(&chunks[..500]).unwrap();
        // A write, then its sync.
        host.plan(host.call_count() + 1, Action::Fail(Failure::Io));
        journal.append_progress(&chunks[500..]).unwrap_err();
        assert_eq!(host.taken_count(), 1);
        drop(journal);

        let (opened, count) = seen(&dir);
        assert_eq!(count, 500);
        let Open::Valid(journal) = opened else { unreachable!() };
        journal.begin_attempt().unwrap();
        drop(journal);
        host.lose_power(0);
        let dir = Dir::open_path(&host.process().path("d")).unwrap();
        let (opened, count) = seen(&dir);
        assert_eq!(count, 500);
        assert!(matches!(opened, Open::Valid(journal) if journal.epoch() == 1));
    }

    #[test]
    fn attempts_count_up_across_openings() {
        let (_temp, dir) = folder();
        assert_eq!(Journal::create(&dir, header()).unwrap().begin_attempt().unwrap(), 1);
        assert_eq!(open(&dir).begin_attempt().unwrap(), 2);
        assert_eq!(open(&dir).epoch(), 2);
    }
}
