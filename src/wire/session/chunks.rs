//! A set of chunks, one bit each. Pure.

use crate::geometry::{ChunkIndex, ChunkRun, to_usize};

/// A set of chunks of one image.
#[derive(Clone, Debug, Default)]
pub(super) struct ChunkSet {
    words: Vec<u64>,
    chunk_count: u32,
    count: u32,
    /// No chunk before this one is in the set.
    first: u32,
}

impl ChunkSet {
    /// None of that many chunks.
    pub(super) fn new(chunk_count: u32) -> Self {
        let words = vec![0; to_usize(u64::from(chunk_count.div_ceil(u64::BITS)))];
        Self { words, chunk_count, count: 0, first: chunk_count }
    }

    pub(super) fn holds(&self, index: ChunkIndex) -> bool {
        let (word, bit) = place(index.get());
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Whether any chunk of the run is in the set.
    pub(super) fn meets(&self, run: ChunkRun) -> bool {
        run.iter().any(|index| self.holds(index))
    }

    /// Whether all chunks of the run are in the set.
    pub(super) fn covers(&self, run: ChunkRun) -> bool {
        run.iter().all(|index| self.holds(index))
    }

    pub(super) fn insert(&mut self, run: ChunkRun) {
        self.change(run, true);
        self.first = self.first.min(run.first.get());
    }

    pub(super) fn remove(&mut self, run: ChunkRun) {
        self.change(run, false);
    }

    fn change(&mut self, run: ChunkRun, on: bool) {
        debug_assert!(run.end() <= self.chunk_count, "{run:?} of {} chunks", self.chunk_count);
        for index in run.iter() {
            let (at, bit) = place(index.get());
            let Some(word) = self.words.get_mut(at) else { return };
            if (*word & bit != 0) != on {
                *word ^= bit;
                self.count = if on { self.count + 1 } else { self.count - 1 };
            }
        }
    }

    /// Takes the first `runs_max` maximal runs out of the set.
    pub(super) fn take_runs(&mut self, runs_max: usize) -> Vec<ChunkRun> {
        let mut runs = Vec::new();
        while runs.len() < runs_max && self.count > 0 {
            let Some(first) = self.next(self.first, true) else { break };
            let end = self.next(first, false).unwrap_or(self.chunk_count);
            let run = ChunkRun::new(ChunkIndex::new(first), end - first);
            self.remove(run);
            self.first = end;
            runs.push(run);
        }
        runs
    }

    /// The first chunk from `from` on that is in the set, or that is not.
    fn next(&self, from: u32, on: bool) -> Option<u32> {
        let mut index = from;
        while index < self.chunk_count {
            let (at, bit) = place(index);
            let word = self.words.get(at).copied().unwrap_or(0);
            let differing = (if on { word } else { !word }) & !(bit - 1);
            if differing != 0 {
                let found = (index & !(u64::BITS - 1)) + differing.trailing_zeros();
                return (found < self.chunk_count).then_some(found);
            }
            index = (index | (u64::BITS - 1)) + 1;
        }
        None
    }
}

fn place(index: u32) -> (usize, u64) {
    (to_usize(u64::from(index / u64::BITS)), 1 << (index % u64::BITS))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_come_out_maximal_and_in_order(
            changes in prop::collection::vec((0_u32..200, 1_u32..70, any::<bool>()), 0..20),
            runs_max in 1_usize..5,
        ) {
            let mut set = ChunkSet::new(200);
            let mut naive = [false; 200];
            for (first, count, on) in changes {
                let run = ChunkRun::new(ChunkIndex::new(first), count.min(200 - first));
                if on { set.insert(run) } else { set.remove(run) }
                run.iter().for_each(|index| naive[index.slot()] = on);
            }
            let mut taken = Vec::new();
            loop {
                let runs = set.take_runs(runs_max);
                prop_assert!(runs.len() <= runs_max);
                if runs.is_empty() { break }
                taken.extend(runs);
            }
            prop_assert_eq!(set.count, 0);
            let mut back = [false; 200];
            for pair in taken.windows(2) {
                prop_assert!(pair[0].end() < pair[1].first.get());
            }
            taken.iter().flat_map(|run| run.iter()).for_each(|index| back[index.slot()] = true);
            prop_assert_eq!(back, naive);
        }
    }
}
