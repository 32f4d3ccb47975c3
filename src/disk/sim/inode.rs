//! Files of a simulated disk: what reads give now, and what power loss would leave of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustix::io::{Errno, Result};

use super::rng::Rng;
use crate::disk::Kind;
use crate::geometry::{ByteRange, to_u64, to_usize};

/// What a file system reads, writes and allocates at a time.
const PAGE: u64 = 4096;
/// What a device writes whole or not at all.
const SECTOR: usize = 512;

/// How far a write that goes astray may go: no further than the smallest chunk, so that it never
/// hits one that was verified before.
const ASTRAY_PAGES: u64 = 16;

type Page = Arc<[u8; 4096]>;
/// A page that was written to the device, and what the device held there before.
pub(super) type Written = (u64, Option<Page>);

/// The room on a disk, in pages.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) used: u64,
    pub(super) capacity: u64,
}

impl Room {
    fn take(&mut self) -> Result<()> {
        if self.used >= self.capacity {
            return Err(Errno::NOSPC);
        }
        self.used += 1;
        Ok(())
    }
}

/// One state of a file.
#[derive(Clone, Debug, Default)]
struct Content {
    size: u64,
    mode: u32,
    pages: BTreeMap<u64, Page>,
    /// Pages that have room on the disk, written or not.
    allocated: BTreeSet<u64>,
}

impl Content {
    /// Puts a page there, or none; gives back what was there.
    fn put(&mut self, at: u64, page: Option<&Page>) -> Option<Page> {
        match page {
            Some(page) => {
                self.allocated.insert(at);
                self.pages.insert(at, page.clone())
            }
            None => self.pages.remove(&at),
        }
    }

    fn cut(&mut self) {
        let end = self.size.div_ceil(PAGE);
        self.pages.split_off(&end);
        if let Some(last) = self.pages.get_mut(&(self.size / PAGE)) {
            let tail = to_usize(self.size % PAGE);
            Arc::make_mut(last)[tail..].fill(0);
        }
    }
}

/// A file or a folder.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) kind: Kind,
    live: Content,
    durable: Content,
    /// Pages that a sync would write.
    dirty: BTreeSet<u64>,
    /// Pages whose write-back failed or went wrong: reads give what was written until they are
    /// evicted, and no sync will write them.
    phantom: BTreeSet<u64>,
    pub(super) changed_ns: i128,
    /// Of a folder: its names, now and after power loss.
    pub(super) entries: BTreeMap<String, u64>,
    pub(super) durable_entries: BTreeMap<String, u64>,
    /// Byte locks, and the lock on the whole file, by open file description.
    pub(super) locks: BTreeMap<u64, u64>,
    pub(super) flock: Option<u64>,
    pub(super) is_linked: bool,
    /// Its room was given back: nobody can get at it any more.
    pub(super) is_freed: bool,
    pub(super) open_count: u32,
    /// It holds an image's bytes: the only ones that a device may store wrongly.
    pub(super) is_data: bool,
}

impl Inode {
    pub(super) fn new(kind: Kind, mode: u32, changed_ns: i128) -> Self {
        let content = Content { mode, ..Content::default() };
        Self {
            kind,
            live: content.clone(),
            durable: content,
            dirty: BTreeSet::new(),
            phantom: BTreeSet::new(),
            changed_ns,
            entries: BTreeMap::new(),
            durable_entries: BTreeMap::new(),
            locks: BTreeMap::new(),
            flock: None,
            is_linked: true,
            is_freed: false,
            open_count: 0,
            is_data: false,
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.live.size
    }

    pub(super) fn mode(&self) -> u32 {
        self.live.mode
    }

    pub(super) fn set_mode(&mut self, mode: u32) {
        self.live.mode = mode;
    }

    pub(super) fn page_count(&self) -> u64 {
        to_u64(self.live.allocated.len())
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let count = to_usize(self.live.size.saturating_sub(offset)).min(buffer.len());
        for (at, from, part) in pieces(offset, count) {
            let into = &mut buffer[part.clone()];
            match self.live.pages.get(&at) {
                Some(page) => into.copy_from_slice(&page[from..from + part.len()]),
                None => into.fill(0),
            }
        }
        count
    }

    /// Writes as much as there is room for.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8], room: &mut Room) -> Result<usize> {
        let mut done = 0;
        for (at, from, part) in pieces(offset, bytes.len()) {
            if !self.live.allocated.contains(&at) {
                if let Err(full) = room.take() {
                    if done == 0 {
                        return Err(full);
                    }
                    break;
                }
                self.live.allocated.insert(at);
            }
            let page = self.live.pages.entry(at).or_insert_with(|| Arc::new([0; 4096]));
            Arc::make_mut(page)[from..from + part.len()].copy_from_slice(&bytes[part.clone()]);
            self.touch(at);
            done = part.end;
        }
        self.live.size = self.live.size.max(offset + to_u64(done));
        Ok(done)
    }

    fn touch(&mut self, page: u64) {
        self.dirty.insert(page);
        self.phantom.remove(&page);
    }

    pub(super) fn set_len(&mut self, len: u64, room: &mut Room) {
        if len < self.live.size {
            let end = len.div_ceil(PAGE);
            for page in self.live.pages.split_off(&end).into_keys() {
                self.touch(page);
            }
            room.used -= to_u64(self.live.allocated.split_off(&end).len());
        }
        self.live.size = len;
        let last = len / PAGE;
        if !len.is_multiple_of(PAGE) && self.live.pages.contains_key(&last) {
            self.live.cut();
            self.touch(last);
        }
    }

    /// Makes the range read as zeros; gives its room back, or keeps it.
    pub(super) fn zero(&mut self, range: ByteRange, keep: bool, room: &mut Room) -> Result<()> {
        if keep {
            self.reserve(range, room)?;
        }
        for (at, from, part) in pieces(range.offset, to_usize(range.len)) {
            if part.len() == to_usize(PAGE) {
                if self.live.pages.remove(&at).is_some() {
                    self.touch(at);
                }
                if !keep && self.live.allocated.remove(&at) {
                    room.used -= 1;
                }
            } else if let Some(page) = self.live.pages.get_mut(&at) {
                Arc::make_mut(page)[from..from + part.len()].fill(0);
                self.touch(at);
            }
        }
        Ok(())
    }

    pub(super) fn reserve(&mut self, range: ByteRange, room: &mut Room) -> Result<()> {
        for (at, _, _) in pieces(range.offset, to_usize(range.len)) {
            if !self.live.allocated.contains(&at) {
                room.take()?;
                self.live.allocated.insert(at);
            }
        }
        Ok(())
    }

    /// Makes this file a clone of `source`.
    pub(super) fn share(&mut self, source: &Self, room: &mut Room) {
        for page in self.live.pages.keys().chain(source.live.pages.keys()) {
            self.dirty.insert(*page);
        }
        room.used -= self.page_count();
        self.live.pages.clone_from(&source.live.pages);
        self.live.allocated = source.live.pages.keys().copied().collect();
        self.live.size = source.live.size;
        room.used += self.page_count();
    }

    /// Where data begins at or after `offset`.
    pub(super) fn next_data(&self, offset: u64) -> Result<u64> {
        let next = self.live.pages.range(offset / PAGE..).next();
        let data = next.map(|(at, _)| (at * PAGE).max(offset));
        data.filter(|data| *data < self.live.size).ok_or(Errno::NXIO)
    }

    pub(super) fn next_hole(&self, offset: u64) -> Result<u64> {
        if offset >= self.live.size {
            return Err(Errno::NXIO);
        }
        let mut page = offset / PAGE;
        while self.live.pages.contains_key(&page) {
            page += 1;
        }
        Ok((page * PAGE).max(offset).min(self.live.size))
    }

    /// Makes everything durable, but for the mode where only data is asked for; tells which pages
    /// that wrote.
    pub(super) fn sync(&mut self, data_only: bool) -> Vec<Written> {
        let dirty = std::mem::take(&mut self.dirty);
        let write = |page| (page, self.durable.put(page, self.live.pages.get(&page)));
        let written = dirty.into_iter().map(write).collect();
        self.sync_facts(data_only);
        written
    }

    fn sync_facts(&mut self, data_only: bool) {
        self.durable.size = self.live.size;
        self.durable.allocated.clone_from(&self.live.allocated);
        if !data_only {
            self.durable.mode = self.live.mode;
        }
        self.durable.cut();
    }

    /// A sync that failed: what it was to write is taken for clean, and is not written.
    pub(super) fn lose_dirty(&mut self) {
        self.phantom.append(&mut self.dirty);
    }

    /// The device has stored one bit of what was just written wrongly.
    pub(super) fn rot(&mut self, written: &[Written], rng: &mut Rng) {
        let Some((at, _)) = rng.pick(written) else { return };
        if let Some(page) = self.durable.pages.get_mut(&at) {
            Arc::make_mut(page)[to_usize(rng.below(PAGE))] ^= 1;
            self.phantom.insert(at);
        }
    }

    /// The device has put one page of what was just written into the place of another: there it
    /// stands, and where it should stand is what was there before.
    pub(super) fn misdirect(&mut self, written: &[Written], rng: &mut Rng) {
        let Some((at, before)) = rng.pick(written) else { return };
        let to = at / ASTRAY_PAGES * ASTRAY_PAGES + rng.below(ASTRAY_PAGES);
        let Some(page) = self.durable.pages.get(&at).cloned() else { return };
        if to == at || to * PAGE >= self.durable.size {
            return;
        }
        self.durable.put(at, before.as_ref());
        self.durable.put(to, Some(&page));
        self.durable.cut();
        self.phantom.extend([at, to]);
    }

    /// Drops clean pages: reads give what the device holds.
    pub(super) fn evict(&mut self, range: ByteRange, room: &mut Room) {
        let pages = range.offset / PAGE..range.end().div_ceil(PAGE);
        let lost: Vec<u64> = self.phantom.range(pages).copied().collect();
        for page in lost {
            self.phantom.remove(&page);
            let durable = self.durable.pages.get(&page).cloned();
            // Where the device went astray, a page has come to be that nobody had asked room for.
            let is_new = durable.is_some() && !self.live.allocated.contains(&page);
            room.used += u64::from(is_new);
            self.live.put(page, durable.as_ref());
        }
    }

    pub(super) fn is_synced(&self) -> bool {
        self.dirty.is_empty()
            && self.live.size == self.durable.size
            && self.live.mode == self.durable.mode
    }

    /// The kernel writes something back by itself.
    pub(super) fn write_back(&mut self, rng: &mut Rng) {
        let dirty: Vec<u64> = self.dirty.iter().copied().collect();
        match rng.pick(&dirty) {
            Some(page) => {
                self.dirty.remove(&page);
                self.durable.put(page, self.live.pages.get(&page));
            }
            None => self.sync_facts(false),
        }
    }

    /// What power loss leaves: each sector that was not synced is the old or the new one.
    pub(super) fn crash(&mut self, keep_per_cent: u64, rng: &mut Rng) {
        let mut left = self.durable.clone();
        let keeps_facts = rng.chance(keep_per_cent, 100);
        if keeps_facts {
            (left.size, left.mode) = (self.live.size, self.live.mode);
            left.allocated.clone_from(&self.live.allocated);
        }
        for at in std::mem::take(&mut self.dirty) {
            let (old, new) = (self.durable.pages.get(&at), self.live.pages.get(&at));
            match (old, new) {
                (_, Some(new)) => {
                    let old = old.cloned().unwrap_or_else(|| Arc::new([0; 4096]));
                    left.put(at, Some(&torn(&old, new, keep_per_cent, rng)));
                }
                // Room that is given back is given back whole, with the facts.
                (Some(_), None) if keeps_facts => {
                    left.put(at, None);
                }
                (_, None) => {}
            }
        }
        left.cut();
        self.phantom.clear();
        self.live = left.clone();
        self.durable = left;
        self.locks.clear();
        self.flock = None;
        self.open_count = 0;
    }
}

fn torn(old: &Page, new: &Page, keep_per_cent: u64, rng: &mut Rng) -> Page {
    let mut page = old.clone();
    let into = Arc::make_mut(&mut page);
    for at in (0..into.len()).step_by(SECTOR) {
        if rng.chance(keep_per_cent, 100) {
            into[at..at + SECTOR].copy_from_slice(&new[at..at + SECTOR]);
        }
    }
    page
}

/// The pages that `len` bytes at `offset` touch: which page, from where in it, and which of the
/// bytes.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + to_u64(done);
        let from = to_usize(at % PAGE);
        let count = (to_usize(PAGE) - from).min(len - done);
        let part = done..done + count;
        done += count;
        (count > 0).then_some((at / PAGE, from, part))
    })
}
