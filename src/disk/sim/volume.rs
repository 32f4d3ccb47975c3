//! The file system of a simulated disk: inodes, names, room; and what power loss leaves of them.

use std::collections::{BTreeMap, BTreeSet};

use rustix::io::{Errno, Result};

use super::inode::{Inode, Room};
use super::rng::Rng;
use crate::disk::{FileSystem, Kind};

/// The number of the topmost folder.
const TOP: u64 = 1;

/// A change of names that is not durable yet.
#[derive(Clone, Debug)]
struct Change {
    /// The name that goes, and in which folder.
    gone: Option<(u64, String)>,
    /// The name that comes.
    come: Option<(u64, String)>,
    inode: u64,
    /// What it took the name from.
    replaced: Option<u64>,
    removes_dir: bool,
}

impl Change {
    fn is_about(&self, inode: u64) -> bool {
        self.inode == inode || self.replaced == Some(inode)
    }

    /// Whether `later` cannot be durable without this.
    fn is_needed_by(&self, later: &Self) -> bool {
        let mut names = self.gone.iter().chain(&self.come);
        let touches = |other: &(u64, String)| {
            later.gone.as_ref() == Some(other)
                || later.come.as_ref() == Some(other)
                || later.removes_dir && other.0 == later.inode
        };
        names.any(touches)
    }

    /// Whether a sync of that folder makes it durable. A move is made durable by the folder that
    /// it leads to: file systems that keep a log do more than that, others no more.
    fn is_synced_by(&self, dir: u64) -> bool {
        self.come.as_ref().or(self.gone.as_ref()).is_some_and(|(of, _)| *of == dir)
    }
}

/// A file system.
#[derive(Debug)]
pub(super) struct Volume {
    inodes: BTreeMap<u64, Inode>,
    free: BTreeSet<u64>,
    next: u64,
    pending: Vec<Change>,
    pub(super) room: Room,
    pub(super) device: u64,
    pub(super) file_system: FileSystem,
}

impl Volume {
    pub(super) fn new(file_system: FileSystem) -> Self {
        let mut inodes = BTreeMap::new();
        inodes.insert(TOP, Inode::new(Kind::Dir, 0o755, 0));
        let room = Room { used: 0, capacity: u64::MAX };
        let (free, pending) = (BTreeSet::new(), Vec::new());
        Self { inodes, free, next: TOP + 1, pending, room, device: 1, file_system }
    }

    /// What that number names. It is gone only when a file is used after power loss.
    pub(super) fn inode(&self, number: u64) -> Result<&Inode> {
        self.inodes.get(&number).ok_or(Errno::IO)
    }

    pub(super) fn inode_mut(&mut self, number: u64) -> Result<&mut Inode> {
        self.inodes.get_mut(&number).ok_or(Errno::IO)
    }

    /// A file, and the room on the disk.
    pub(super) fn file(&mut self, number: u64) -> Result<(&mut Inode, &mut Room)> {
        let inode = self.inodes.get_mut(&number).ok_or(Errno::IO)?;
        Ok((inode, &mut self.room))
    }

    /// The number under that name.
    pub(super) fn find(&self, dir: u64, name: &str) -> Result<u64> {
        let folder = self.inode(dir)?;
        if folder.kind != Kind::Dir {
            return Err(Errno::NOTDIR);
        }
        folder.entries.get(name).copied().ok_or(Errno::NOENT)
    }

    /// The number that a path leads to, from the top.
    pub(super) fn walk(&self, path: &str) -> Result<u64> {
        path.split('/').filter(|name| !name.is_empty()).try_fold(TOP, |dir, name| {
            // A folder that is removed while somebody is in it has no names.
            self.find(dir, name)
        })
    }

    pub(super) fn create(
        &mut self,
        dir: u64,
        name: &str,
        inode: Inode,
        rng: &mut Rng,
    ) -> Result<u64> {
        if !self.inode(dir)?.is_linked {
            return Err(Errno::NOENT);
        }
        if self.inode(dir)?.entries.contains_key(name) {
            return Err(Errno::EXIST);
        }
        if self.room.used >= self.room.capacity {
            return Err(Errno::NOSPC);
        }
        self.room.used += 1;
        let number = self.number(rng);
        self.inodes.insert(number, inode);
        let change = Change {
            gone: None,
            come: Some((dir, name.to_owned())),
            inode: number,
            replaced: None,
            removes_dir: false,
        };
        self.change(change)?;
        Ok(number)
    }

    /// A number for a new inode: often one that was used before.
    fn number(&mut self, rng: &mut Rng) -> u64 {
        if let Some(free) = self.free.first().copied().filter(|_| rng.chance(1, 2)) {
            self.free.remove(&free);
            return free;
        }
        self.next += 1;
        self.next - 1
    }

    pub(super) fn unlink(&mut self, dir: u64, name: &str, is_dir: bool) -> Result<()> {
        let number = self.find(dir, name)?;
        let inode = self.inode_mut(number)?;
        match (inode.kind, is_dir) {
            (Kind::Dir, false) => return Err(Errno::ISDIR),
            (Kind::Dir, true) if !inode.entries.is_empty() => return Err(Errno::NOTEMPTY),
            (Kind::Dir, true) | (_, false) => {}
            (_, true) => return Err(Errno::NOTDIR),
        }
        inode.is_linked = false;
        let change = Change {
            gone: Some((dir, name.to_owned())),
            come: None,
            inode: number,
            replaced: None,
            removes_dir: is_dir,
        };
        self.change(change)?;
        self.reap(number);
        Ok(())
    }

    pub(super) fn rename(
        &mut self,
        (from_dir, from): (u64, &str),
        (to_dir, to): (u64, &str),
        replaces: bool,
    ) -> Result<()> {
        let number = self.find(from_dir, from)?;
        if !self.inode(to_dir)?.is_linked {
            return Err(Errno::NOENT);
        }
        let there = self.inode(to_dir)?.entries.get(to).copied();
        if let Some(there) = there {
            if !replaces {
                return Err(Errno::EXIST);
            }
            let there = self.inode(there)?;
            match (self.inode(number)?.kind, there.kind) {
                (Kind::Dir, Kind::Dir) if there.entries.is_empty() => {}
                (Kind::Dir, Kind::Dir) => return Err(Errno::NOTEMPTY),
                (Kind::Dir, _) => return Err(Errno::NOTDIR),
                (_, Kind::Dir) => return Err(Errno::ISDIR),
                _ => {}
            }
        }
        let change = Change {
            gone: Some((from_dir, from.to_owned())),
            come: Some((to_dir, to.to_owned())),
            inode: number,
            replaced: there,
            removes_dir: false,
        };
        self.change(change)?;
        if let Some(replaced) = there {
            self.inode_mut(replaced)?.is_linked = false;
            self.reap(replaced);
        }
        Ok(())
    }

    fn change(&mut self, change: Change) -> Result<()> {
        if let Some((dir, name)) = &change.gone {
            self.inode_mut(*dir)?.entries.remove(name);
        }
        if let Some((dir, name)) = &change.come {
            self.inode_mut(*dir)?.entries.insert(name.clone(), change.inode);
        }
        self.pending.push(change);
        Ok(())
    }

    /// Frees the room of a file that nobody can get at any more. Its number is free once its
    /// removal is durable.
    pub(super) fn reap(&mut self, number: u64) {
        let Some(inode) = self.inodes.get_mut(&number) else { return };
        if inode.is_linked || inode.open_count > 0 || inode.is_freed {
            return;
        }
        // What it held comes back with its name, if power loss undoes the removal.
        inode.is_freed = true;
        self.room.used = self.room.used.saturating_sub(1 + inode.page_count());
        self.forget(number);
    }

    /// Forgets a file that is gone for good.
    fn forget(&mut self, number: u64) {
        let is_freed = self.inodes.get(&number).is_some_and(|inode| inode.is_freed);
        if is_freed && !self.pending.iter().any(|change| change.is_about(number)) {
            self.inodes.remove(&number);
            self.free.insert(number);
        }
    }

    /// Makes one file a clone of another.
    pub(super) fn share(&mut self, source: u64, target: u64) -> Result<()> {
        let mut file = self.inodes.remove(&target).ok_or(Errno::IO)?;
        if let Some(source) = self.inodes.get(&source) {
            file.share(source, &mut self.room);
        }
        self.inodes.insert(target, file);
        Ok(())
    }

    /// Makes the names in a folder durable.
    pub(super) fn sync_names(&mut self, dir: u64) {
        let wanted = self.pending.iter().map(|change| change.is_synced_by(dir)).collect();
        self.settle(wanted);
    }

    /// Makes those pending changes durable, and those that they need.
    fn settle(&mut self, mut wanted: Vec<bool>) {
        for later in (0..self.pending.len()).rev().filter(|at| wanted[*at]).collect::<Vec<_>>() {
            self.need(later, &mut wanted);
        }
        let pending = std::mem::take(&mut self.pending);
        let mut settled = Vec::new();
        for (change, wanted) in pending.into_iter().zip(wanted) {
            if !wanted {
                self.pending.push(change);
                continue;
            }
            if let Some((dir, name)) = &change.gone
                && let Some(inode) = self.inodes.get_mut(dir)
            {
                inode.durable_entries.remove(name);
            }
            if let Some((dir, name)) = &change.come
                && let Some(inode) = self.inodes.get_mut(dir)
            {
                inode.durable_entries.insert(name.clone(), change.inode);
            }
            settled.push(change.inode);
            settled.extend(change.replaced);
        }
        settled.into_iter().for_each(|number| self.forget(number));
    }

    fn need(&self, later: usize, wanted: &mut [bool]) {
        for earlier in (0..later).rev() {
            if !wanted[earlier] && self.pending[earlier].is_needed_by(&self.pending[later]) {
                wanted[earlier] = true;
                self.need(earlier, wanted);
            }
        }
    }

    /// The kernel writes something back by itself.
    pub(super) fn write_back(&mut self, rng: &mut Rng) {
        let count = self.pending.len();
        if count > 0 && rng.chance(1, 2) {
            let at = rng.below(u64::try_from(count).unwrap_or(1));
            self.settle((0..count).map(|n| u64::try_from(n) == Ok(at)).collect());
            return;
        }
        let is_unsynced = |inode: &Inode| inode.kind == Kind::File && !inode.is_synced();
        let unsynced = self.inodes.iter().filter(|(_, inode)| is_unsynced(inode));
        let unsynced: Vec<u64> = unsynced.map(|(number, _)| *number).collect();
        if let Some(inode) = rng.pick(&unsynced).and_then(|at| self.inodes.get_mut(&at)) {
            inode.write_back(rng);
        }
    }

    /// Power is lost. Of what was not synced, about `keep_per_cent` stay, each by itself.
    pub(super) fn crash(&mut self, keep_per_cent: u64, rng: &mut Rng) {
        let mut kept: Vec<bool> = Vec::with_capacity(self.pending.len());
        for (at, change) in self.pending.iter().enumerate() {
            let mut earlier = self.pending[..at].iter().zip(&kept);
            let is_possible = earlier.all(|(other, kept)| *kept || !other.is_needed_by(change));
            kept.push(rng.chance(keep_per_cent, 100) && is_possible);
        }
        self.settle(kept);
        self.pending.clear();
        let mut reached = BTreeSet::new();
        let mut next = vec![TOP];
        while let Some(number) = next.pop() {
            let Some(inode) = self.inodes.get_mut(&number) else { continue };
            reached.insert(number);
            inode.crash(keep_per_cent, rng);
            (inode.is_linked, inode.is_freed) = (true, false);
            inode.entries = inode.durable_entries.clone();
            next.extend(inode.entries.values().copied());
        }
        let lost = self.inodes.keys().filter(|number| !reached.contains(number));
        let lost: Vec<u64> = lost.copied().collect();
        for number in lost {
            self.inodes.remove(&number);
            self.free.insert(number);
        }
        self.room.used = self.inodes.values().map(|inode| 1 + inode.page_count()).sum();
        // A device may have another number after each boot.
        self.device += rng.below(2);
    }

    /// Everything is as durable as it can be.
    pub(super) fn sync_everything(&mut self) {
        self.settle(vec![true; self.pending.len()]);
        for inode in self.inodes.values_mut() {
            inode.sync(false);
        }
    }

    /// All paths below a folder, those of folders with a slash at the end.
    pub(super) fn paths(&self, below: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut next = vec![(String::new(), self.walk(below)?)];
        while let Some((path, number)) = next.pop() {
            for (name, child) in &self.inode(number)?.entries {
                let is_dir = self.inode(*child)?.kind == Kind::Dir;
                let path = format!("{path}{name}{}", if is_dir { "/" } else { "" });
                if is_dir {
                    next.push((path.clone(), *child));
                }
                found.push(path);
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}
