//! A simulated host: a disk that forgets what was not synced and fails when it is told to, blocking
//! work without threads, a clock and random numbers that follow from a seed.

mod calls;
mod fault;
mod fd;
mod fiber;
mod inode;
mod rng;
mod volume;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::disk::{FileSystem, Kind};
use crate::error::{Error, Result};
use crate::geometry::to_u64;
use inode::Inode;
use volume::Volume;

pub use fault::{Action, Failure, Faults};
pub(super) use fd::{Fd, make_dir, open, pause, stat, umask};
pub use rng::Rng;

thread_local! {
    static ENTERED: RefCell<Option<Simulation>> = const { RefCell::new(None) };
}

/// When the simulated host's wall clock begins, in milliseconds since 1970.
const WALL_BEGIN_MS: u64 = 1_800_000_000_000;

/// A simulated host.
///
/// While it is entered on a thread, everything that the crate asks of its host on that thread, it
/// asks of the simulation: files, worker threads, wall time, random numbers. It wants a tokio
/// runtime of that one thread, with its clock paused. Everything then follows from the seed.
#[derive(Clone, Debug)]
pub struct Simulation {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
    /// Told when a process dies, and when what is held may go on.
    told: Arc<Notify>,
    /// Told when a planned action was taken.
    taken: Notify,
}

#[derive(Debug)]
struct World {
    rng: Rng,
    volume: Volume,
    faults: Faults,
    /// What is to happen at a call, by its number.
    plan: BTreeMap<u64, Action>,
    /// A failure that has come to stay.
    lasting: Option<Failure>,
    handles: BTreeMap<u64, Handle>,
    handle_next: u64,
    process_next: u32,
    alive: BTreeSet<u32>,
    call_count: u64,
    trace: DefaultHasher,
    log: Option<Vec<String>>,
    began: Option<Instant>,
    ticks: i128,
    wall_jump_ms: i64,
    holding: bool,
    taken_count: u64,
    flaky: BTreeSet<u64>,
}

/// An open file description.
#[derive(Debug)]
struct Handle {
    inode: u64,
    process: u32,
}

/// A process of the simulated host: it sees the disk below a path of its own.
#[derive(Clone, Debug)]
pub struct Process {
    simulation: Simulation,
    number: u32,
}

/// While it lives, its thread is in a simulation.
#[derive(Debug)]
pub struct Entered(());

impl Drop for Entered {
    fn drop(&mut self) {
        ENTERED.with_borrow_mut(|entered| *entered = None);
    }
}

pub(super) fn entered() -> Option<Simulation> {
    ENTERED.with_borrow(Clone::clone)
}

/// Wall time in the simulation that the thread is in.
pub(crate) fn unix_ms() -> Option<u64> {
    entered().map(|simulation| simulation.shared.world().unix_ms())
}

/// Random bytes in the simulation that the thread is in.
pub(crate) fn random() -> Option<[u8; 16]> {
    let simulation = entered()?;
    let mut world = simulation.shared.world();
    let (low, high) = (world.rng.next_u64(), world.rng.next_u64());
    Some(((u128::from(high) << 64) | u128::from(low)).to_le_bytes())
}

/// Runs blocking work in the simulation that the thread is in; gives it back where it is in none.
pub(crate) fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
    work: F,
) -> std::result::Result<JoinHandle<T>, F> {
    if is_entered() { Ok(fiber::spawn(work)) } else { Err(work) }
}

/// Whether the thread is in a simulation.
pub(crate) fn is_entered() -> bool {
    ENTERED.with_borrow(Option::is_some)
}

/// Lets others go on; false where that cannot be.
pub(crate) fn give_way() -> bool {
    // Time must pass: those who are waited for may wait for it.
    is_entered() && fiber::pause(Duration::from_millis(1))
}

impl Simulation {
    /// A host whose disk is empty and has a file system that can do what ext4 can.
    pub fn new(seed: u64) -> Self {
        let world = World {
            rng: Rng::new(seed),
            volume: Volume::new(FileSystem::Ext4),
            faults: Faults::default(),
            plan: BTreeMap::new(),
            lasting: None,
            handles: BTreeMap::new(),
            handle_next: 0,
            process_next: 0,
            alive: BTreeSet::new(),
            call_count: 0,
            trace: DefaultHasher::new(),
            log: None,
            began: None,
            ticks: 0,
            wall_jump_ms: 0,
            holding: false,
            taken_count: 0,
            flaky: BTreeSet::new(),
        };
        let shared =
            Shared { world: Mutex::new(world), told: Arc::default(), taken: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Puts this thread into the simulation.
    #[must_use]
    pub fn enter(&self) -> Entered {
        ENTERED.with_borrow_mut(|entered| *entered = Some(self.clone()));
        Entered(())
    }

    /// The disk's file system: `ext4`, `xfs` (extents can be shared), `tmpfs`, or any other, which
    /// is trusted with nothing.
    pub fn use_file_system(&self, name: &str) {
        self.shared.world().volume.file_system = match name {
            "ext4" => FileSystem::Ext4,
            "xfs" => FileSystem::Xfs,
            "tmpfs" => FileSystem::Tmpfs,
            _ => FileSystem::Other,
        };
    }

    /// The disk has room for that many pages of 4 KiB more than it holds now.
    pub fn limit_room(&self, pages: u64) {
        let room = &mut self.shared.world().volume.room;
        room.capacity = room.used.saturating_add(pages);
    }

    /// What goes wrong at random from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.world().faults = faults;
    }

    /// What is to happen at the call of that number, counted from 0.
    pub fn plan(&self, call: u64, action: Action) {
        self.shared.world().plan.insert(call, action);
    }

    /// All faults end, room comes back, and what hangs goes on.
    pub fn heal(&self) {
        let mut world = self.shared.world();
        world.faults = Faults::default();
        world.plan.clear();
        world.lasting = None;
        world.holding = false;
        world.volume.room.capacity = u64::MAX;
        drop(world);
        self.shared.told.notify_waiters();
    }

    /// Waits until a planned action was taken.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn taken(&self) {
        let taken = self.shared.taken.notified();
        tokio::pin!(taken);
        taken.as_mut().enable();
        if self.shared.world().taken_count == 0 {
            taken.await;
        }
    }

    /// How many planned actions were taken.
    pub fn taken_count(&self) -> u64 {
        self.shared.world().taken_count
    }

    /// Lets a call go on that [`Action::HoldBefore`] or [`Action::HoldAfter`] holds.
    pub fn release(&self) {
        self.shared.world().holding = false;
        self.shared.told.notify_waiters();
    }

    /// Power is lost: every process dies, and of what was not synced about that share stays.
    pub fn lose_power(&self, keep_per_cent: u64) {
        self.shared.world().lose_power(keep_per_cent);
        self.shared.told.notify_waiters();
    }

    /// How many calls were made to the disk.
    pub fn call_count(&self) -> u64 {
        self.shared.world().call_count
    }

    /// A digest of all calls so far, their arguments and results.
    pub fn trace(&self) -> u64 {
        self.shared.world().trace.finish()
    }

    /// Keeps a line for each call from now on.
    pub fn keep_log(&self) {
        self.shared.world().log.get_or_insert_default();
    }

    /// The lines that were kept.
    pub fn log(&self) -> Vec<String> {
        self.shared.world().log.clone().unwrap_or_default()
    }

    /// The wall clock jumps.
    pub fn jump_wall_clock(&self, ms: i64) {
        let mut world = self.shared.world();
        world.wall_jump_ms = world.wall_jump_ms.saturating_add(ms);
    }

    /// A new process.
    pub fn process(&self) -> Process {
        let mut world = self.shared.world();
        world.process_next += 1;
        let number = world.process_next;
        world.alive.insert(number);
        Process { simulation: self.clone(), number }
    }

    /// Makes a folder and those above it, as durable as can be.
    ///
    /// # Errors
    /// `Io` where a file is in the way.
    pub fn make_dir(&self, path: &str) -> Result<()> {
        let mut world = self.shared.world();
        world.make_dirs(path).map_err(|errno| Error::io("make simulated folder", errno))?;
        world.volume.sync_everything();
        Ok(())
    }

    /// Puts a file there, or other bytes into the one that is there, and makes that durable, with
    /// the names in its folder if its own is new. Pages of zeros are holes in it.
    ///
    /// # Errors
    /// `Io` where its folder is missing.
    pub fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let mut world = self.shared.world();
        let capacity = std::mem::replace(&mut world.volume.room.capacity, u64::MAX);
        let put = world.put(path, bytes);
        world.volume.room.capacity = capacity;
        put.map_err(|errno| Error::io("write simulated file", errno))
    }

    /// Somebody moves a file or a folder, and that is durable at once.
    ///
    /// # Errors
    /// `Io` where there is nothing, or something is in the way.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        let mut world = self.shared.world();
        let volume = &mut world.volume;
        let mut move_it = || {
            let (from_dir, from_name) = from.rsplit_once('/').unwrap_or(("", from));
            let (to_dir, to_name) = to.rsplit_once('/').unwrap_or(("", to));
            let (from_dir, to_dir) = (volume.walk(from_dir)?, volume.walk(to_dir)?);
            volume.rename((from_dir, from_name), (to_dir, to_name), false)
        };
        move_it().map_err(|errno| Error::io("move simulated file", errno))?;
        volume.sync_everything();
        Ok(())
    }

    /// What a file holds; `None` where there is none.
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        let world = self.shared.world();
        let inode = world.volume.inode(world.volume.walk(path).ok()?).ok()?;
        let mut bytes = vec![0; usize::try_from(inode.size()).ok()?];
        (inode.kind == Kind::File).then(|| {
            inode.read(0, &mut bytes);
            bytes
        })
    }

    /// The permission bits of what lies there; `None` where there is nothing.
    pub fn mode(&self, path: &str) -> Option<u32> {
        let world = self.shared.world();
        let inode = world.volume.inode(world.volume.walk(path).ok()?).ok()?;
        Some(inode.mode())
    }

    /// All paths below a folder, those of folders with a slash at the end.
    pub fn paths(&self, below: &str) -> Vec<String> {
        self.shared.world().volume.paths(below).unwrap_or_default()
    }

    /// Reads of that file may now give a wrong bit: see [`Faults`].
    pub fn make_flaky(&self, path: &str) {
        let mut world = self.shared.world();
        if let Ok(inode) = world.volume.walk(path) {
            world.flaky.insert(inode);
        }
    }
}

impl Process {
    /// The path under which this process sees that path of the disk.
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new(&format!("/p{}", self.number)).join(path)
    }

    /// Kills it: its locks end, and nothing that it still does has an effect.
    pub fn kill(&self) {
        self.simulation.shared.world().kill(self.number);
        self.simulation.shared.told.notify_waiters();
    }

    /// Whether it lives.
    pub fn is_alive(&self) -> bool {
        self.simulation.shared.world().alive.contains(&self.number)
    }
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    /// Since the simulation was first looked at, in steps that are never the same.
    fn now_ns(&mut self) -> i128 {
        self.ticks += 1;
        i128::from(self.passed_ms()) * 1_000_000_000 + self.ticks
    }

    /// A runtime's paused clock moves by whole milliseconds, give or take.
    fn passed_ms(&mut self) -> u64 {
        let now = Instant::now();
        let began = *self.began.get_or_insert(now);
        let us = u64::try_from((now - began).as_micros()).unwrap_or(u64::MAX);
        us.saturating_add(500) / 1000
    }

    fn unix_ms(&mut self) -> u64 {
        let ms = WALL_BEGIN_MS.saturating_add(self.passed_ms());
        ms.saturating_add_signed(self.wall_jump_ms)
    }

    fn kill(&mut self, process: u32) {
        self.alive.remove(&process);
        let of_it = self.handles.iter().filter(|(_, handle)| handle.process == process);
        let of_it: Vec<u64> = of_it.map(|(number, _)| *number).collect();
        of_it.into_iter().for_each(|number| self.close(number));
    }

    fn lose_power(&mut self, keep_per_cent: u64) {
        self.alive.clear();
        self.handles.clear();
        let Self { volume, rng, .. } = self;
        volume.crash(keep_per_cent, rng);
    }

    /// The last use of an open file description: its locks end.
    fn close(&mut self, number: u64) {
        let Some(handle) = self.handles.remove(&number) else { return };
        if let Ok(inode) = self.volume.inode_mut(handle.inode) {
            inode.locks.retain(|_, holder| *holder != number);
            inode.flock = inode.flock.filter(|holder| *holder != number);
            inode.open_count = inode.open_count.saturating_sub(1);
        }
        self.volume.reap(handle.inode);
    }

    fn make_dirs(&mut self, path: &str) -> rustix::io::Result<u64> {
        let mut dir = self.volume.walk("")?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            dir = match self.volume.find(dir, name) {
                Err(Errno::NOENT) => {
                    let fresh = Inode::new(Kind::Dir, 0o755, self.now_ns());
                    self.volume.create(dir, name, fresh, &mut self.rng)?
                }
                found => found?,
            };
        }
        Ok(dir)
    }

    fn put(&mut self, path: &str, bytes: &[u8]) -> rustix::io::Result<()> {
        let now = self.now_ns();
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = self.volume.walk(folder)?;
        let found = self.volume.find(dir, name);
        let is_new = found == Err(Errno::NOENT);
        let number = match found {
            Err(Errno::NOENT) => {
                let fresh = Inode::new(Kind::File, 0o644, now);
                self.volume.create(dir, name, fresh, &mut self.rng)?
            }
            found => found?,
        };
        let (file, room) = self.volume.file(number)?;
        file.changed_ns = now;
        file.set_len(0, room);
        file.set_len(to_u64(bytes.len()), room);
        for (n, page) in bytes.chunks(4096).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                file.write(to_u64(n) * 4096, page, room)?;
            }
        }
        file.sync(false);
        if is_new {
            self.volume.sync_names(dir);
        }
        Ok(())
    }

    /// Takes a call and what came of it into the trace.
    fn note(&mut self, what: std::fmt::Arguments<'_>, key: impl Hash) {
        key.hash(&mut self.trace);
        if let Some(log) = &mut self.log {
            log.push(format!("{} {what}", self.call_count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Dir, File, LockByte};
    use crate::error::ErrorKind;
    use crate::geometry::ByteRange;

    /// A host with a folder `d`, as a first process sees it.
    fn host(seed: u64) -> (Simulation, Entered, Process, Dir) {
        let host = Simulation::new(seed);
        let entered = host.enter();
        host.make_dir("d").unwrap();
        let process = host.process();
        let dir = Dir::open_path(&process.path("d")).unwrap();
        (host, entered, process, dir)
    }

    fn dir_after_power_loss(host: &Simulation, keep_per_cent: u64) -> Dir {
        host.lose_power(keep_per_cent);
        Dir::open_path(&host.process().path("d")).unwrap()
    }

    fn all_of(file: &File) -> Vec<u8> {
        let mut bytes = vec![9; usize::try_from(file.len().unwrap()).unwrap()];
        assert_eq!(file.read_at(0, &mut bytes).unwrap(), bytes.len());
        bytes
    }

    #[test]
    fn what_was_synced_stays_and_what_was_not_may_go() {
        let (host, _entered, _, dir) = host(1);
        let file = dir.create_file("f", 0o600).unwrap();
        file.write_at(0, &[1; 5000]).unwrap();
        file.sync_all().unwrap();
        dir.sync().unwrap();
        file.write_at(0, &[2; 9000]).unwrap();
        assert_eq!(all_of(&file), [2; 9000]);
        let dir = dir_after_power_loss(&host, 0);
        assert_eq!(all_of(&dir.open_file("f").unwrap()), [1; 5000]);
    }

    #[test]
    fn a_file_without_a_synced_name_is_lost_with_all_its_synced_bytes() {
        let (host, _entered, _, dir) = host(1);
        dir.create_file("f", 0o600).unwrap().sync_all().unwrap();
        let dir = dir_after_power_loss(&host, 0);
        assert_eq!(dir.names(|_| true).unwrap(), [""; 0]);
    }

    #[test]
    fn power_loss_tears_between_sectors_and_never_within_one() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let (host, _entered, _, dir) = host(seed);
            let file = dir.create_file("f", 0o600).unwrap();
            file.write_at(0, &[1; 1024]).unwrap();
            file.sync_all().unwrap();
            dir.sync().unwrap();
            file.write_at(0, &[2; 1024]).unwrap();
            let left = all_of(&dir_after_power_loss(&host, 50).open_file("f").unwrap());
            assert!(left.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            seen.insert((left[0], left[512]));
        }
        assert_eq!(seen.len(), 4, "old and new, in every mixture: {seen:?}");
    }

    #[test]
    fn a_rename_is_lost_or_kept_whole_and_the_folder_it_leads_to_makes_it_durable() {
        for synced in [false, true] {
            for seed in 0..16 {
                let (host, _entered, _, dir) = host(seed);
                let other = dir.make_dir("e", 0o700).unwrap();
                dir.create_file("f", 0o600).unwrap();
                dir.sync().unwrap();
                dir.rename_no_replace("f", &other, "g").unwrap();
                if synced {
                    other.sync().unwrap();
                }
                let dir = dir_after_power_loss(&host, 50);
                let old = dir.facts_of("f").unwrap().is_some();
                let new = dir.open_dir("e").unwrap().facts_of("g").unwrap().is_some();
                assert!(old != new, "one name, never none and never two");
                assert!(new || !synced);
            }
        }
    }

    #[test]
    fn a_failed_sync_is_not_made_good_by_the_next_one() {
        let (host, _entered, _, dir) = host(1);
        let file = dir.create_file("f", 0o600).unwrap();
        file.write_at(0, &[1; 4096]).unwrap();
        file.sync_all().unwrap();
        dir.sync().unwrap();
        file.write_at(0, &[2; 4096]).unwrap();
        host.plan(host.call_count(), Action::Fail(Failure::Io));
        assert_eq!(file.sync_data().unwrap_err().kind(), ErrorKind::Io);
        file.sync_data().unwrap();
        assert_eq!(all_of(&file), [2; 4096], "memory still has it");
        file.evict(ByteRange::new(0, 4096)).unwrap();
        assert_eq!(all_of(&file), [1; 4096], "the device never had");
    }

    #[test]
    fn a_write_that_went_astray_shows_when_it_is_read_from_the_device() {
        let mut found = 0;
        for seed in 0..16 {
            let (host, _entered, _, dir) = host(seed);
            let file = dir.create_file("data", 0o600).unwrap();
            file.set_len(64 << 10).unwrap();
            host.set_faults(Faults { misdirected: 1_000_000, ..Faults::default() });
            file.write_at(4096, &[1; 4096]).unwrap();
            file.sync_data().unwrap();
            let mut right = vec![0; 64 << 10];
            right[4096..8192].fill(1);
            assert!(all_of(&file) == right, "memory still has it");
            file.evict(ByteRange::new(0, 64 << 10)).unwrap();
            let pages = all_of(&file);
            let pages: Vec<u8> = pages.chunks(4096).map(|page| page[0]).collect();
            assert_eq!(pages.iter().filter(|page| **page == 1).count(), 1, "one page, somewhere");
            found += u32::from(pages[1] == 0);
        }
        assert!(found >= 8, "{found} of 16 went astray");
    }

    #[test]
    fn what_somebody_else_writes_is_durable_and_makes_nothing_else_so() {
        let (host, _entered, _, dir) = host(1);
        let file = dir.create_file("f", 0o600).unwrap();
        dir.sync().unwrap();
        file.write_at(0, &[1; 4096]).unwrap();
        host.write("d/g", &[2; 5]).unwrap();
        let dir = dir_after_power_loss(&host, 0);
        assert_eq!(all_of(&dir.open_file("f").unwrap()), [0; 0]);
        assert_eq!(all_of(&dir.open_file("g").unwrap()), [2; 5]);
    }

    #[test]
    fn a_rename_that_may_replace_replaces_what_a_kernel_would() {
        let (_host, _entered, _, dir) = host(1);
        for name in ["empty", "full", "moved"] {
            dir.make_dir(name, 0o700).unwrap();
        }
        dir.open_dir("full").unwrap().create_file("x", 0o600).unwrap();
        dir.create_file("file", 0o600).unwrap();
        dir.create_file("other", 0o600).unwrap();
        for (from, to) in [("moved", "full"), ("moved", "file"), ("file", "moved")] {
            assert!(dir.rename_over(from, to).is_err(), "{from} over {to}");
        }
        dir.rename_over("moved", "empty").unwrap();
        dir.rename_over("file", "other").unwrap();
        assert_eq!(dir.names(|_| true).unwrap(), ["empty", "full", "other"]);
    }

    #[test]
    fn a_file_system_that_is_not_known_lies_about_its_holes() {
        let (host, _entered, _, dir) = host(1);
        host.use_file_system("other");
        let file = dir.create_file("f", 0o600).unwrap();
        file.write_at(0, &[1; 4096]).unwrap();
        assert_eq!(file.next_data(0).unwrap(), None);
        assert!(!file.file_system().unwrap().trusts_holes());
    }

    #[test]
    fn interrupts_and_short_calls_are_not_noticed() {
        let (host, _entered, _, dir) = host(1);
        host.set_faults(Faults { short: 500_000, interrupted: 300_000, ..Faults::default() });
        let file = dir.create_file("f", 0o600).unwrap();
        let bytes: Vec<u8> = (0..20_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        file.write_at(0, &bytes).unwrap();
        assert_eq!(all_of(&file), bytes);
    }

    #[test]
    fn a_full_disk_takes_what_was_reserved_before() {
        let (host, _entered, _, dir) = host(1);
        let file = dir.create_file("f", 0o600).unwrap();
        file.reserve(ByteRange::new(0, 8192)).unwrap();
        host.limit_room(0);
        file.write_at(0, &[1; 8192]).unwrap();
        assert_eq!(file.write_at(8192, &[1; 1]).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(dir.create_file("g", 0o600).unwrap_err().kind(), ErrorKind::NoSpace);
        assert!(file.punch(ByteRange::new(0, 4096)).unwrap());
        file.write_at(8192, &[1; 1]).unwrap();
    }

    #[test]
    fn holes_are_told_and_made() {
        let (_host, _entered, _, dir) = host(1);
        let file = dir.create_file("f", 0o600).unwrap();
        file.set_len(40_000).unwrap();
        assert_eq!(file.next_data(0).unwrap(), None);
        file.write_at(9000, &[1; 10]).unwrap();
        assert_eq!(file.next_data(0).unwrap(), Some(8192));
        assert_eq!(file.next_hole(9000).unwrap(), Some(12_288));
        file.set_len(9005).unwrap();
        file.set_len(9010).unwrap();
        assert_eq!(all_of(&file)[8995..], [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_death_of_a_process_ends_its_locks_and_its_deeds() {
        let (host, _entered, first, dir) = host(1);
        let file = dir.create_file("f", 0o600).unwrap();
        assert!(file.try_lock(LockByte(0)).unwrap());
        let other = Dir::open_path(&host.process().path("d")).unwrap().open_file_rw("f").unwrap();
        assert!(!other.try_lock(LockByte(0)).unwrap());
        first.kill();
        assert!(other.try_lock(LockByte(0)).unwrap());
        assert!(file.write_at(0, &[1]).is_err());
        assert_eq!(other.len().unwrap(), 0);
    }
}
