//! Who of a fan-out is there, and which chunks wait for whom; nothing here waits itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Chunk, GATHER_TIME};
use crate::engine::memory::Room;
use crate::geometry::{ChunkIndex, ChunkRun, to_u64};
use crate::plan::ChunkSet;

/// Who is there, and which chunks wait for whom.
#[derive(Debug)]
pub(super) struct Table {
    legs: BTreeMap<u64, Leg>,
    /// By chunk; each waits for somebody.
    pub(super) slots: BTreeMap<u32, Slot>,
    /// How many legs have ever joined.
    joined: u64,
    gathering: Group,
    /// How many reads for others were begun.
    claims: u64,
    near_chunks: u32,
}

/// Legs that wait for each other at the start.
#[derive(Debug)]
struct Group {
    number: u64,
    began: Instant,
    legs: u32,
    came: u32,
}

#[derive(Debug)]
struct Leg {
    /// What it has not come by yet.
    needs: ChunkSet,
    /// The chunk that it asked for last.
    at: u32,
    /// Those in front that have parted from it.
    parted_from: BTreeSet<u64>,
    /// How many reads for others had been begun when it joined.
    claims_before: u64,
}

#[derive(Debug)]
pub(super) struct Slot {
    number: u64,
    pub(super) takers: BTreeSet<u64>,
    chunk: watch::Receiver<Option<Arc<Chunk>>>,
    _leave: Room,
}

#[derive(Debug)]
pub(super) enum Asked {
    Take(u64, watch::Receiver<Option<Arc<Chunk>>>),
    Read(Option<(u64, watch::Sender<Option<Arc<Chunk>>>)>),
    /// Others will need it, and there is no leave for more to wait.
    Full,
}

impl Table {
    pub(super) fn new(near_chunks: u32) -> Self {
        let (legs, slots) = (BTreeMap::new(), BTreeMap::new());
        let gathering = Group { number: 0, began: Instant::now(), legs: 0, came: 0 };
        Self { legs, slots, joined: 0, gathering, claims: 0, near_chunks }
    }

    pub(super) fn join(&mut self, legs: u32, needs: ChunkSet) -> (u64, u64) {
        let id = self.joined;
        self.joined += 1;
        let group = self.came(legs);
        let claims_before = self.claims;
        let parted_from = BTreeSet::new();
        self.legs.insert(id, Leg { needs, at: 0, parted_from, claims_before });
        (id, group)
    }

    /// One of so many legs is here, or is known to go without the others; with whom it waits.
    pub(super) fn came(&mut self, legs: u32) -> u64 {
        let (now, last) = (Instant::now(), &self.gathering);
        if last.came >= last.legs || last.began + GATHER_TIME < now {
            // Those that are here already have waited their time.
            let here = u32::try_from(self.legs.len()).unwrap_or(u32::MAX);
            self.gathering = Group { number: last.number + 1, began: now, legs, came: here };
        }
        self.gathering.came = self.gathering.came.saturating_add(1);
        self.gathering.number
    }

    pub(super) fn has_gathered(&self, group: u64) -> bool {
        let last = &self.gathering;
        last.number != group || last.came >= last.legs
    }

    pub(super) fn leave(&mut self, id: u64) {
        self.legs.remove(&id);
        self.pass_over(&BTreeSet::from([id]));
    }

    /// Who is near those in front is one of them.
    fn step(&mut self, id: u64, at: u32) {
        let near: Vec<u64> = {
            let is_near = |leg: &Leg| leg.at <= at + self.near_chunks;
            self.legs.iter().filter(|(_, leg)| is_near(leg)).map(|(other, _)| *other).collect()
        };
        if let Some(leg) = self.legs.get_mut(&id) {
            leg.at = at;
            leg.parted_from.retain(|other| !near.contains(other));
        }
    }

    /// Those of the others who will come to that chunk soon.
    fn takers(&self, id: u64, index: u32) -> BTreeSet<u64> {
        let will_come = |(other, leg): &(&u64, &Leg)| {
            **other != id
                && leg.needs.holds(index)
                && index <= leg.at + self.near_chunks
                && !leg.parted_from.contains(&id)
        };
        self.legs.iter().filter(will_come).map(|(other, _)| *other).collect()
    }

    pub(super) fn goes_alone(&mut self, id: u64, chunks: ChunkRun) -> bool {
        self.step(id, chunks.first.get());
        let is_shared = |index: ChunkIndex| {
            self.slots.contains_key(&index.get()) || !self.takers(id, index.get()).is_empty()
        };
        // Also who is the last one may find what another has read for it before that left.
        let is_last = self.legs.len() == 1 && self.slots.is_empty();
        let alone = is_last || !chunks.iter().any(is_shared);
        if alone && let Some(leg) = self.legs.get_mut(&id) {
            chunks.iter().for_each(|index| leg.needs.remove(index.get()));
        }
        alone
    }

    pub(super) fn ask(
        &mut self,
        id: u64,
        index: u32,
        keep: impl FnOnce() -> Option<Room>,
    ) -> Asked {
        self.step(id, index);
        let Some(leg) = self.legs.get(&id) else { return Asked::Read(None) };
        match self.slots.get_mut(&index) {
            Some(slot) if slot.number >= leg.claims_before => {
                slot.takers.remove(&id);
                let (number, chunk) = (slot.number, slot.chunk.clone());
                if slot.takers.is_empty() {
                    self.slots.remove(&index);
                }
                Asked::Take(number, chunk)
            }
            // It was begun before we were here.
            Some(_) => self.read_for_oneself(id, index),
            None => self.ask_to_read(id, index, keep),
        }
    }

    fn ask_to_read(&mut self, id: u64, index: u32, keep: impl FnOnce() -> Option<Room>) -> Asked {
        let takers = self.takers(id, index);
        if takers.is_empty() {
            return self.read_for_oneself(id, index);
        }
        let Some(leave) = keep() else {
            // What other fan-outs keep is nothing that we could wait for.
            return match self.slots.is_empty() {
                true => self.read_for_oneself(id, index),
                false => Asked::Full,
            };
        };
        let (number, (show, chunk)) = (self.claims, watch::channel(None));
        self.claims += 1;
        self.slots.insert(index, Slot { number, takers, chunk, _leave: leave });
        Asked::Read(Some((number, show)))
    }

    fn read_for_oneself(&mut self, id: u64, index: u32) -> Asked {
        self.done(id, index);
        Asked::Read(None)
    }

    /// That leg has the chunk, or comes by it without the others.
    pub(super) fn done(&mut self, id: u64, index: u32) {
        if let Some(leg) = self.legs.get_mut(&id) {
            leg.needs.remove(index);
        }
        if let Some(slot) = self.slots.get_mut(&index) {
            slot.takers.remove(&id);
            if slot.takers.is_empty() {
                self.slots.remove(&index);
            }
        }
    }

    pub(super) fn give_up(&mut self, index: u32, number: u64) {
        if self.slots.get(&index).is_some_and(|slot| slot.number == number) {
            self.slots.remove(&index);
        }
    }

    /// Parts from those whom the oldest chunk waits for.
    pub(super) fn part(&mut self, id: u64) {
        let oldest = self.slots.iter().min_by_key(|(_, slot)| slot.number);
        let Some((index, slot)) = oldest.map(|(index, slot)| (*index, slot)) else { return };
        let mut behind = slot.takers.clone();
        behind.remove(&id);
        for (_, leg) in self.legs.iter_mut().filter(|(other, _)| behind.contains(other)) {
            leg.parted_from.insert(id);
        }
        self.slots.remove(&index);
        self.pass_over(&behind);
    }

    /// Who waits for memory itself keeps none from others: what takes some is kept for nobody, and
    /// what is still being read not for this leg.
    pub(super) fn let_go(&mut self, id: u64) {
        self.slots.retain(|_, slot| slot.chunk.borrow().is_none());
        self.pass_over(&BTreeSet::from([id]));
    }

    /// How many chunks are being read for others, that one among them.
    pub(super) fn under_way(&self, number: u64) -> u64 {
        let is_read = |slot: &&Slot| slot.number != number && slot.chunk.borrow().is_none();
        1 + to_u64(self.slots.values().filter(is_read).count())
    }

    /// Nothing waits for them any more.
    fn pass_over(&mut self, legs: &BTreeSet<u64>) {
        self.slots.retain(|_, slot| {
            slot.takers.retain(|taker| !legs.contains(taker));
            !slot.takers.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::fan::tests::{CHUNKS, all};
    use crate::engine::memory::Memory;

    #[test]
    fn a_leg_that_has_caught_up_is_one_of_the_others_again() {
        let mut table = Table::new(2);
        let (one, two) = (table.join(1, all(CHUNKS)).0, table.join(1, all(CHUNKS)).0);
        let reads_for_others = |table: &mut Table, id, index| {
            let asked = table.ask(id, index, || Memory::new(1 << 30).keep(1));
            table.done(id, index);
            matches!(asked, Asked::Read(Some(_)))
        };
        assert!((0..3).all(|index| reads_for_others(&mut table, one, index)));
        assert!(!reads_for_others(&mut table, one, 3), "three in front");
        assert!((0..3).all(|index| !reads_for_others(&mut table, two, index)), "it takes them");
        assert!(reads_for_others(&mut table, one, 4));
        table.part(one);
        assert!(table.slots.is_empty());
        assert!(!reads_for_others(&mut table, one, 5), "parted");
        assert!(!reads_for_others(&mut table, two, 3));
        assert!(!reads_for_others(&mut table, two, 4));
        let far = table.join(1, all(CHUNKS)).0;
        assert!(reads_for_others(&mut table, one, 6), "two in front");
        assert!(!table.slots[&6].takers.contains(&far), "it has just begun");
    }

    #[test]
    fn legs_that_are_behind_together_read_together() {
        let mut table = Table::new(2);
        let (front, one, two) = (
            table.join(1, all(CHUNKS)).0,
            table.join(1, all(CHUNKS)).0,
            table.join(1, all(CHUNKS)).0,
        );
        let keep = || Memory::new(1 << 30).keep(1);
        for index in 0..CHUNKS {
            table.ask(front, index, keep);
            table.done(front, index);
            while !table.slots.is_empty() {
                table.part(front);
            }
        }
        let mut reads = 0;
        for (index, id) in (0..CHUNKS).flat_map(|index| [(index, one), (index, two)]) {
            reads += u32::from(matches!(table.ask(id, index, keep), Asked::Read(_)));
            table.done(id, index);
        }
        assert_eq!(reads, CHUNKS);
    }

    #[test]
    fn bytes_from_before_a_leg_joined_are_not_taken() {
        let mut table = Table::new(100);
        let (one, _two) = (table.join(1, all(CHUNKS)).0, table.join(1, all(CHUNKS)).0);
        let keep = || Memory::new(1 << 30).keep(1);
        assert!(matches!(table.ask(one, 0, keep), Asked::Read(Some(_))));
        let three = table.join(1, all(CHUNKS)).0;
        assert!(matches!(table.ask(three, 0, keep), Asked::Read(None)), "begun before it came");
        assert!(matches!(table.ask(one, 1, keep), Asked::Read(Some(_))));
        assert!(matches!(table.ask(three, 1, keep), Asked::Take(..)));
    }

    proptest! {
        /// Whatever the order of events: every leg comes by every chunk, what waits, waits for
        /// somebody who is there and has not had it, and in the end nothing waits.
        #[test]
        fn every_leg_comes_by_every_chunk(
            steps in proptest::collection::vec((0_u64..4, 0_u32..10), 0..200),
            leave_count in 0_usize..4,
        ) {
            let mut table = Table::new(2);
            let mut at: BTreeMap<u64, u32> =
                (0..4).map(|_| (table.join(1, all(CHUNKS)).0, 0)).collect();
            let leave = Arc::new(tokio::sync::Semaphore::new(leave_count));
            let rest = (0..4).flat_map(|id| (0..4 * CHUNKS).map(move |_| (id, 1)));
            for (id, what) in steps.into_iter().chain(rest) {
                match (what, at.get(&id).copied()) {
                    (0, Some(_)) => {
                        table.leave(id);
                        at.remove(&id);
                    }
                    (9, Some(_)) => {
                        let oldest = table.slots.iter().min_by_key(|(_, slot)| slot.number);
                        if let Some((index, number)) = oldest.map(|(i, slot)| (*i, slot.number)) {
                            table.give_up(index, number);
                        }
                    }
                    (_, Some(index)) if index < CHUNKS => {
                        let run = ChunkRun::new(ChunkIndex::new(index), 1);
                        let keep = || leave.clone().try_acquire_owned().ok();
                        if what == 1 && table.goes_alone(id, run) {
                            at.insert(id, index + 1);
                            continue;
                        }
                        match table.ask(id, index, keep) {
                            Asked::Full => {
                                let before = table.slots.len();
                                table.part(id);
                                prop_assert!(table.slots.len() < before, "it waits without end");
                            }
                            // A read that fails is made again.
                            Asked::Read(Some((number, _))) if what == 8 => {
                                table.give_up(index, number);
                            }
                            Asked::Read(Some(_)) | Asked::Take(..) => {
                                table.done(id, index);
                                at.insert(id, index + 1);
                            }
                            Asked::Read(None) => {
                                at.insert(id, index + 1);
                            }
                        }
                    }
                    _ => {}
                }
                for (index, slot) in &table.slots {
                    prop_assert!(!slot.takers.is_empty(), "chunk {index} waits for nobody");
                    for taker in &slot.takers {
                        prop_assert!(at.get(taker).is_some_and(|at| at <= index), "{taker} had it");
                    }
                }
                prop_assert_eq!(leave.available_permits() + table.slots.len(), leave_count);
            }
            prop_assert!(at.values().all(|at| *at == CHUNKS), "{at:?}");
            prop_assert!(table.slots.is_empty(), "{:?}", table.slots);
        }
    }
}
