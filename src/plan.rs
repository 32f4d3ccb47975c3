//! What is still to be moved: size, extents and durable chunks in, runs of chunks out. Pure.

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkIndex, ChunkRun, Geometry, to_usize};

/// What a source says of a stretch of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// They may hold anything; they are read.
    Data,
    /// The region claims that they read as zero; they are not read.
    Zero,
}

/// A stretch of a source's bytes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Which bytes.
    pub range: ByteRange,
    /// What the source says of them.
    pub kind: ExtentKind,
}

/// Takes in what is known of an image; memory is two bits a chunk, however many extents there are.
#[derive(Debug)]
pub(crate) struct Planner {
    geometry: Geometry,
    classes: Classes,
    /// The last extents, joined as long as they are of one kind: only chunks wholly inside are of
    /// that kind.
    open: Extent,
}

impl Planner {
    pub(crate) fn new(geometry: Geometry) -> Self {
        let open = Extent { range: ByteRange::new(0, 0), kind: ExtentKind::Data };
        let mut classes = Classes::done(geometry);
        classes.change(geometry.chunks(), |word, mask| {
            word.data |= mask;
            word.zero |= mask;
        });
        Self { geometry, classes, open }
    }

    /// Marks chunks that a durable record covers: they are not moved again. Before, between or
    /// after extents.
    pub(crate) fn durable(&mut self, run: ChunkRun) {
        debug_assert!(self.geometry.holds(run), "durable chunks {run:?} past the end");
        self.classes.change(run, |word, mask| {
            word.data &= !mask;
            word.zero &= !mask;
        });
    }

    /// Takes in the next extent; together they cover the image once, in order.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when this one leaves a gap, overlaps the one before or ends past the
    /// image: a region that gets this wrong may have left out data.
    pub(crate) fn extent(&mut self, extent: Extent) -> Result<()> {
        let ByteRange { offset, len } = extent.range;
        let expected = self.open.range.end();
        if offset != expected {
            let fault = if offset > expected { "a gap" } else { "an overlap" };
            return Err(refusal(&format!("{fault}, byte {offset} follows byte {expected}")));
        }
        let image_bytes = self.geometry.image_bytes();
        if offset.checked_add(len).is_none_or(|end| end > image_bytes) {
            let extent = format!("{len} bytes at byte {offset}");
            return Err(refusal(&format!("{extent} go past the image's {image_bytes}")));
        }
        if extent.kind == self.open.kind {
            self.open.range.len += len;
        } else if len > 0 {
            self.close();
            self.open = extent;
        }
        Ok(())
    }

    /// The plan, once the extents have covered the image.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when they ended before the image did.
    pub(crate) fn finish(mut self) -> Result<Plan> {
        let (covered, image_bytes) = (self.open.range.end(), self.geometry.image_bytes());
        if covered != image_bytes {
            return Err(refusal(&format!("they end at byte {covered} of {image_bytes}")));
        }
        self.close();
        Ok(Plan::new(self.geometry, self.classes))
    }

    /// Decides the chunks that the open stretch covers whole. Those it shares with its neighbours
    /// stay mixed.
    fn close(&mut self) {
        let Extent { range, kind } = self.open;
        let first = match range.offset.checked_sub(1) {
            Some(before) => self.geometry.index_of(before).get() + 1,
            None => 0,
        };
        let end = if range.end() == self.geometry.image_bytes() {
            self.geometry.chunk_count()
        } else {
            self.geometry.index_of(range.end()).get()
        };
        let whole = ChunkRun::new(ChunkIndex::new(first), end.saturating_sub(first));
        // Clearing, never setting: a chunk that is done has neither bit and stays done.
        self.classes.change(whole, |word, mask| match kind {
            ExtentKind::Data => word.zero &= !mask,
            ExtentKind::Zero => word.data &= !mask,
        });
    }
}

fn refusal(why: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("use the extents of the source: {why}"))
        .hint("extents cover the image once, in order; its region is at fault")
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// The source claims that all of these chunks are zero: make them so, unread.
    Zero(ChunkRun),
    /// Read, hash and write these chunks.
    Copy {
        /// Chunks of one class.
        run: ChunkRun,
        /// Whether each of them has both data and claimed zeros (or nothing is known); else they
        /// are all data.
        mixed: bool,
    },
}

/// The chunks still to move, handed out once each, in ascending order.
#[derive(Debug)]
pub(crate) struct Plan {
    geometry: Geometry,
    classes: Classes,
    /// Chunks before this one are handed out, held or done.
    cursor: u32,
    remaining_bytes: u64,
}

impl Plan {
    fn new(geometry: Geometry, classes: Classes) -> Self {
        let count: u32 = classes.words.iter().map(|word| word.data.count_ones()).sum();
        let chunk_count = geometry.chunk_count();
        let ends_in_copy = chunk_count > 0 && classes.at(chunk_count - 1).data == 1;
        // Only the last chunk may be short: as many chunks from the other end have as many bytes.
        let first = if ends_in_copy { chunk_count - count } else { 0 };
        let copied = geometry.run_range(ChunkRun::new(ChunkIndex::new(first), count));
        Self { geometry, classes, cursor: 0, remaining_bytes: copied.len }
    }

    /// A plan to copy just these chunks, as mixed ones.
    pub(crate) fn only(geometry: Geometry, chunks: impl IntoIterator<Item = ChunkIndex>) -> Self {
        let mut classes = Classes::done(geometry);
        for index in chunks {
            let run = ChunkRun::new(index, 1);
            debug_assert!(geometry.holds(run), "chunk {index} past the end");
            classes.change(run, |word, mask| {
                word.data |= mask;
                word.zero |= mask;
            });
        }
        Self::new(geometry, classes)
    }

    /// Bytes of the chunks to copy that are not handed out yet.
    pub(crate) fn remaining_bytes(&self) -> u64 {
        self.remaining_bytes
    }

    /// Hands out the next run: all neighbouring zero chunks, or chunks of one class to copy, at
    /// most `data_bytes_max` bytes of them but at least one.
    pub(crate) fn next(&mut self, data_bytes_max: u64) -> Option<Move> {
        let chunk_count = self.geometry.chunk_count();
        let first = self.classes.find(self.cursor, chunk_count, |word| word.data | word.zero);
        self.cursor = first;
        if first == chunk_count {
            return None;
        }
        let class = self.classes.at(first);
        let count_max = match class.data {
            0 => chunk_count,
            _ => u32::try_from(data_bytes_max / self.geometry.chunk_size().bytes())
                .unwrap_or(u32::MAX)
                .max(1),
        };
        // The search is bounded by what may be handed out: small steps through a long run stay
        // linear.
        let until = chunk_count.min(first.saturating_add(count_max));
        let (data, zero) = (class.data.wrapping_neg(), class.zero.wrapping_neg());
        let differs = |word: Word| (word.data ^ data) | (word.zero ^ zero);
        self.cursor = self.classes.find(first, until, differs);
        debug_assert!(first < self.cursor && self.cursor <= until);
        let run = ChunkRun::new(ChunkIndex::new(first), self.cursor - first);
        Some(self.hand_out(class.of(run)))
    }

    /// Takes a chunk out: the caller sees to it later, by a plan of its own. Whether it was
    /// pending.
    pub(crate) fn hold_back(&mut self, index: ChunkIndex) -> bool {
        let run = ChunkRun::new(index, 1);
        if index.get() < self.cursor || !self.geometry.holds(run) {
            return false;
        }
        let class = self.classes.at(index.get());
        if class.data | class.zero == 0 {
            return false;
        }
        self.classes.change(run, |word, mask| {
            word.data &= !mask;
            word.zero &= !mask;
        });
        if let Move::Copy { .. } = class.of(run) {
            self.remaining_bytes -= self.geometry.range(index).len;
        }
        true
    }

    /// The chunks that are to be read, of those not handed out yet.
    pub(crate) fn to_copy(&self) -> ChunkSet {
        let mut set = ChunkSet { words: self.classes.words.iter().map(|word| word.data).collect() };
        (0..self.cursor).for_each(|index| set.remove(index));
        set
    }

    fn hand_out(&mut self, next: Move) -> Move {
        if let Move::Copy { run, .. } = next {
            let bytes = self.geometry.run_range(run).len;
            debug_assert!(bytes <= self.remaining_bytes);
            self.remaining_bytes = self.remaining_bytes.saturating_sub(bytes);
        }
        next
    }
}

/// Some of the chunks of an image, in a bit each.
#[derive(Debug)]
pub(crate) struct ChunkSet {
    words: Vec<u64>,
}

impl ChunkSet {
    pub(crate) fn holds(&self, index: u32) -> bool {
        self.words.get(slot(index)).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    pub(crate) fn remove(&mut self, index: u32) {
        if let Some(word) = self.words.get_mut(slot(index)) {
            *word &= !(1 << (index % 64));
        }
    }
}

/// The class of every chunk of an image, in two bits.
///
/// ```text
/// data zero
///   0    0   done: durable already, handed out or held
///   0    1   zero: all claimed zero
///   1    0   data: all claimed data
///   1    1   mixed: some of each, or nothing said yet
/// ```
#[derive(Debug)]
struct Classes {
    words: Vec<Word>,
}

/// The bits of 64 neighbouring chunks, lowest first; or those of one chunk, in the lowest bit.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    data: u64,
    zero: u64,
}

impl Word {
    /// What is to be done with a run of chunks that are all of this class.
    fn of(self, run: ChunkRun) -> Move {
        match self {
            Self { data: 0, .. } => Move::Zero(run),
            Self { zero, .. } => Move::Copy { run, mixed: zero != 0 },
        }
    }
}

impl Classes {
    fn done(geometry: Geometry) -> Self {
        Self { words: vec![Word::default(); slot(geometry.chunk_count().next_multiple_of(64))] }
    }

    fn at(&self, index: u32) -> Word {
        let word = self.words.get(slot(index)).copied().unwrap_or_default();
        Word { data: word.data >> (index % 64) & 1, zero: word.zero >> (index % 64) & 1 }
    }

    /// Calls `change` with every word that the run touches and a mask of the run's chunks in it.
    fn change(&mut self, run: ChunkRun, change: impl Fn(&mut Word, u64)) {
        let mut index = run.first.get();
        while index < run.end()
            && let Some(word) = self.words.get_mut(slot(index))
        {
            let count = (run.end() - index).min(64 - index % 64);
            change(word, (u64::MAX >> (64 - count)) << (index % 64));
            index += count;
        }
    }

    /// The first chunk in `from..until` whose bit `test` sets, else `until`. Goes 64 chunks at a
    /// time.
    fn find(&self, from: u32, until: u32, test: impl Fn(Word) -> u64) -> u32 {
        let mut index = from;
        while index < until
            && let Some(&word) = self.words.get(slot(index))
        {
            let hits = test(word) >> (index % 64);
            if hits != 0 {
                return until.min(index + hits.trailing_zeros());
            }
            index += 64 - index % 64;
        }
        until
    }
}

/// The word that holds the bits of that chunk.
fn slot(index: u32) -> usize {
    to_usize(u64::from(index / 64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::{CHUNK_COUNT_MAX, ChunkSize};

    const CHUNK: u64 = ChunkSize::MIN.bytes();

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Class {
        Done,
        Zero,
        Data,
        Mixed,
    }

    fn geometry(image_bytes: u64) -> Geometry {
        Geometry::new(image_bytes, ChunkSize::MIN).unwrap()
    }

    fn extent(offset: u64, len: u64, kind: ExtentKind) -> Extent {
        Extent { range: ByteRange { offset, len }, kind }
    }

    fn run(first: u32, count: u32) -> ChunkRun {
        ChunkRun::new(ChunkIndex::new(first), count)
    }

    /// Feeds neighbouring extents of these lengths, from byte 0.
    fn feed(planner: &mut Planner, extents: &[(u64, ExtentKind)]) {
        let mut offset = 0;
        for &(len, kind) in extents {
            planner.extent(extent(offset, len, kind)).unwrap();
            offset += len;
        }
    }

    fn drain(plan: &mut Plan, data_bytes_max: u64) -> Vec<Move> {
        let mut moves = Vec::new();
        while let Some(next) = plan.next(data_bytes_max) {
            moves.push(next);
        }
        assert_eq!(plan.remaining_bytes(), 0);
        moves
    }

    /// What a plan of these classes hands out, one chunk looked at after the other.
    fn naive_moves(classes: &[Class], chunks_max: u32) -> Vec<Move> {
        let mut moves = Vec::new();
        let mut last = Class::Done;
        for (index, &class) in (0..).zip(classes) {
            match moves.last_mut() {
                Some(Move::Zero(run)) if class == last && class == Class::Zero => run.count += 1,
                Some(Move::Copy { run, .. })
                    if class == last && class != Class::Done && run.count < chunks_max =>
                {
                    run.count += 1;
                }
                _ => match class {
                    Class::Done => {}
                    Class::Zero => moves.push(Move::Zero(run(index, 1))),
                    Class::Data => moves.push(Move::Copy { run: run(index, 1), mixed: false }),
                    Class::Mixed => moves.push(Move::Copy { run: run(index, 1), mixed: true }),
                },
            }
            last = class;
        }
        moves
    }

    fn naive_bytes(geometry: Geometry, classes: &[Class]) -> u64 {
        let copied =
            |&(_, &class): &(ChunkIndex, &Class)| matches!(class, Class::Data | Class::Mixed);
        geometry
            .chunks()
            .iter()
            .zip(classes)
            .filter(copied)
            .map(|(i, _)| geometry.range(i).len)
            .sum()
    }

    #[test]
    fn an_empty_image_gives_no_move() {
        let mut planner = Planner::new(geometry(0));
        planner.extent(extent(0, 0, ExtentKind::Zero)).unwrap();
        let mut plan = planner.finish().unwrap();
        assert!(!plan.hold_back(ChunkIndex::new(0)));
        assert_eq!((plan.next(u64::MAX), plan.remaining_bytes()), (None, 0));
        assert_eq!(Plan::only(geometry(0), []).next(1), None);
    }

    #[test]
    fn gaps_overlaps_and_ends_past_the_image_are_refused() {
        let refused = |extents: &[(u64, u64)], what: &str| {
            let mut planner = Planner::new(geometry(3 * CHUNK));
            let feed = || {
                for &(offset, len) in extents {
                    planner.extent(extent(offset, len, ExtentKind::Zero))?;
                }
                planner.finish().map(|_| ())
            };
            let error = feed().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains("extents of the source"), "{error}");
            assert!(error.to_string().contains(what), "{error}");
        };
        refused(&[(1, 5)], "a gap");
        refused(&[(0, CHUNK), (CHUNK + 1, 1)], "a gap");
        refused(&[(0, CHUNK), (CHUNK - 1, 1)], "an overlap");
        refused(&[(0, CHUNK), (0, CHUNK)], "an overlap");
        refused(&[(0, 3 * CHUNK + 1)], "past the image");
        refused(&[(0, CHUNK), (CHUNK, u64::MAX)], "past the image");
        refused(&[(0, CHUNK), (u64::MAX, u64::MAX)], "a gap");
        refused(&[], "end at byte 0");
        refused(&[(0, 3 * CHUNK - 1)], "end at byte");
    }

    #[test]
    fn a_chunk_is_zero_only_when_all_of_it_is_claimed() {
        let mut planner = Planner::new(geometry(4 * CHUNK + 9));
        let (half, zero, data) = (CHUNK / 2, ExtentKind::Zero, ExtentKind::Data);
        let extents = [(half, zero), (half, zero), (CHUNK - 1, zero), (1, data), (CHUNK, zero)];
        feed(&mut planner, &extents);
        planner.extent(extent(3 * CHUNK, CHUNK, data)).unwrap();
        planner.extent(extent(4 * CHUNK, 9, zero)).unwrap();
        let mut plan = planner.finish().unwrap();
        assert_eq!(plan.remaining_bytes(), 2 * CHUNK);
        let expected = [
            Move::Zero(run(0, 1)),
            Move::Copy { run: run(1, 1), mixed: true },
            Move::Zero(run(2, 1)),
            Move::Copy { run: run(3, 1), mixed: false },
            Move::Zero(run(4, 1)),
        ];
        assert_eq!(drain(&mut plan, u64::MAX), expected);
    }

    #[test]
    fn a_held_chunk_is_not_handed_out() {
        for kind in [ExtentKind::Zero, ExtentKind::Data] {
            let mut planner = Planner::new(geometry(3 * CHUNK));
            planner.durable(run(2, 1));
            planner.extent(extent(0, 3 * CHUNK, kind)).unwrap();
            let mut plan = planner.finish().unwrap();
            assert!(plan.hold_back(ChunkIndex::new(0)));
            assert!(!plan.hold_back(ChunkIndex::new(0)), "held already");
            assert!(!plan.hold_back(ChunkIndex::new(2)), "durable already");
            assert!(!plan.hold_back(ChunkIndex::new(3)), "no such chunk");
            plan.next(u64::MAX).unwrap();
            assert!(!plan.hold_back(ChunkIndex::new(1)), "handed out already");
            assert_eq!(plan.next(u64::MAX), None);
            assert_eq!(plan.remaining_bytes(), 0);
        }
    }

    #[test]
    fn what_is_to_copy_is_what_has_data_and_was_not_handed_out() {
        let geometry = geometry(200 * CHUNK);
        let mut planner = Planner::new(geometry);
        planner.durable(run(70, 3));
        let extents = [(60, ExtentKind::Data), (4, ExtentKind::Zero), (136, ExtentKind::Data)];
        feed(&mut planner, &extents.map(|(count, kind)| (count * CHUNK, kind)));
        let mut plan = planner.finish().unwrap();
        assert!(plan.hold_back(ChunkIndex::new(130)));
        for handed_out in [0, 10] {
            if handed_out > 0 {
                plan.next(handed_out * CHUNK);
            }
            let mut set = plan.to_copy();
            let is_in = |index: u32| {
                u64::from(index) >= handed_out
                    && !(60..64).contains(&index)
                    && !(70..73).contains(&index)
                    && index != 130
                    && index < 200
            };
            let held = |set: &ChunkSet| -> Vec<u32> {
                (0..300).filter(|index| set.holds(*index)).collect()
            };
            let mut expected: Vec<u32> = (0..300).filter(|index| is_in(*index)).collect();
            assert_eq!(held(&set), expected);
            for index in [0, 1, 63, 64, 65, 127, 128, 130, 199, 200, 10_000] {
                set.remove(index);
                expected.retain(|kept| *kept != index);
                assert_eq!(held(&set), expected, "without {index}");
            }
        }
    }

    #[test]
    fn chunks_to_rewrite_are_planned_as_mixed() {
        let geometry = geometry(200 * CHUNK - 5);
        let mut plan = Plan::only(geometry, [199, 3, 64, 63, 3].map(ChunkIndex::new));
        assert_eq!(plan.remaining_bytes(), 4 * CHUNK - 5);
        let copy = |first, count| Move::Copy { run: run(first, count), mixed: true };
        assert_eq!(drain(&mut plan, u64::MAX), [copy(3, 1), copy(63, 2), copy(199, 1)]);
    }

    #[test]
    fn the_largest_image_is_one_run_and_small_steps_through_it_stay_linear() {
        let chunks = u64::from(CHUNK_COUNT_MAX);
        for kind in [ExtentKind::Zero, ExtentKind::Data] {
            let mut planner = Planner::new(geometry(chunks * CHUNK));
            planner.extent(extent(0, chunks * CHUNK, kind)).unwrap();
            let mut plan = planner.finish().unwrap();
            assert_eq!(drain(&mut plan, u64::MAX).len(), 1);
        }
        let mut planner = Planner::new(geometry(chunks * CHUNK));
        planner.extent(extent(0, chunks * CHUNK, ExtentKind::Data)).unwrap();
        let mut plan = planner.finish().unwrap();
        assert_eq!(drain(&mut plan, 0).len(), 1 << 20);
    }

    fn kinds() -> impl Strategy<Value = ExtentKind> {
        prop_oneof![Just(ExtentKind::Data), Just(ExtentKind::Zero)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn classes_agree_with_claims_byte_by_byte(
            extents in prop::collection::vec(
                (prop_oneof![0..3_u64, Just(CHUNK / 2), Just(CHUNK), 0..3 * CHUNK], kinds()),
                0..10,
            ),
            durable in prop::collection::vec(0..30_u32, 0..4),
            durable_first in any::<bool>(),
            chunks_max in 1..4_u32,
        ) {
            let claims: Vec<ExtentKind> = extents.iter()
                .flat_map(|&(len, kind)| std::iter::repeat_n(kind, usize::try_from(len).unwrap()))
                .collect();
            let geometry = geometry(u64::try_from(claims.len()).unwrap());
            let chunk_count = geometry.chunk_count();
            let durable: Vec<_> = durable.into_iter().filter(|&i| i < chunk_count).collect();
            let mut classes: Vec<_> = claims.chunks(1 << 16).map(|chunk| {
                match (chunk.contains(&ExtentKind::Data), chunk.contains(&ExtentKind::Zero)) {
                    (true, true) => Class::Mixed,
                    (true, false) => Class::Data,
                    _ => Class::Zero,
                }
            }).collect();
            for &index in &durable {
                classes[ChunkIndex::new(index).slot()] = Class::Done;
            }

            let mut planner = Planner::new(geometry);
            if durable_first {
                durable.iter().for_each(|&index| planner.durable(run(index, 1)));
            }
            feed(&mut planner, &extents);
            durable.iter().for_each(|&index| planner.durable(run(index, 1)));
            let mut plan = planner.finish().unwrap();
            prop_assert_eq!(plan.remaining_bytes(), naive_bytes(geometry, &classes));
            let moves = drain(&mut plan, u64::from(chunks_max) * CHUNK + 17);
            prop_assert_eq!(moves, naive_moves(&classes, chunks_max));
        }

        #[test]
        fn long_plans_hand_out_every_chunk_once(
            stretches in prop::collection::vec((1..150_u64, 0..4_u8), 1..12),
            cut in 0..CHUNK / 2,
            chunks_max in prop_oneof![1..200_u32, Just(u32::MAX)],
            held in prop::option::of(0..400_u32),
        ) {
            let chunk_count: u64 = stretches.iter().map(|&(count, _)| count).sum();
            let geometry = geometry(chunk_count * CHUNK - cut);
            let mut planner = Planner::new(geometry);
            let mut classes = Vec::new();
            for &(count, class) in &stretches {
                let all = [Class::Done, Class::Zero, Class::Data, Class::Mixed];
                let class = all[usize::from(class)];
                let first = u32::try_from(classes.len()).unwrap();
                let run = run(first, u32::try_from(count).unwrap());
                for range in run.iter().map(|index| geometry.range(index)) {
                    let halves = match class {
                        Class::Zero => [ExtentKind::Zero, ExtentKind::Zero],
                        Class::Mixed => [ExtentKind::Zero, ExtentKind::Data],
                        Class::Done | Class::Data => [ExtentKind::Data, ExtentKind::Data],
                    };
                    let (half, middle) = (range.len / 2, range.offset + range.len / 2);
                    planner.extent(extent(range.offset, half, halves[0])).unwrap();
                    planner.extent(extent(middle, range.len - half, halves[1])).unwrap();
                    classes.push(class);
                }
                if class == Class::Done {
                    planner.durable(run);
                }
            }
            let mut plan = planner.finish().unwrap();
            prop_assert_eq!(plan.remaining_bytes(), naive_bytes(geometry, &classes));

            if let Some(index) = held.filter(|&index| index < geometry.chunk_count()) {
                let slot = ChunkIndex::new(index).slot();
                let pending = classes[slot] != Class::Done;
                prop_assert_eq!(plan.hold_back(ChunkIndex::new(index)), pending);
                classes[slot] = Class::Done;
                prop_assert_eq!(plan.remaining_bytes(), naive_bytes(geometry, &classes));
            }
            let moves = drain(&mut plan, u64::from(chunks_max).saturating_mul(CHUNK));
            prop_assert_eq!(moves, naive_moves(&classes, chunks_max));
        }
    }
}
