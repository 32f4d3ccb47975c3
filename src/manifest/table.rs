//! The chunk table: what each chunk of an image holds, in 32 bytes and two bits a chunk. Pure.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use crate::chunk::{Content, Digest};
use crate::geometry::{ChunkIndex, ChunkRun, Geometry, to_usize};

use super::{ROOT_CONTEXT, RUN_DATA, RUN_ZERO};

/// What each chunk of an image holds: zeros, or bytes with a digest.
#[derive(Clone, PartialEq, Eq)]
pub struct ChunkTable {
    geometry: Geometry,
    data: Bitmap,
    // A zero chunk's slot is zero and untouched, so that a sparse image costs no memory for it.
    /// Shared, so that a manifest is cloned at no cost: this is all but the whole of it.
    digests: Arc<Vec<[u8; 32]>>,
}

impl ChunkTable {
    /// How the image is cut.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The digest of that chunk of the image; `None`: it holds only zeros.
    pub fn digest(&self, index: ChunkIndex) -> Option<Digest> {
        debug_assert!(self.geometry.holds(ChunkRun::new(index, 1)), "chunk {index} past the end");
        self.data.holds(index.get()).then(|| Digest::from_bytes(self.digests[index.slot()]))
    }

    /// The maximal runs of chunks of one kind, in order; `true`: they hold only zeros.
    pub fn runs(&self) -> impl Iterator<Item = (ChunkRun, bool)> {
        let chunk_count = self.geometry.chunk_count();
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = ChunkIndex::new(next);
            let is_data = (next < chunk_count).then(|| self.data.holds(next))?;
            next = self.data.end_of_equals(next).min(chunk_count);
            Some((ChunkRun::new(first, next - first.get()), !is_data))
        })
    }

    /// How many bytes of the image lie in zero chunks.
    pub fn zero_bytes(&self) -> u64 {
        let zero_runs = self.runs().filter(|(_, is_zero)| *is_zero);
        zero_runs.map(|(run, _)| self.geometry.run_range(run).len).sum()
    }

    /// The root of the image: BLAKE3 over its size, its chunk size and its runs.
    ///
    /// It is the same for a sparse and a fully allocated copy, and costs one hash of the digests.
    pub fn root(&self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
        hasher.update(&self.geometry.image_bytes().to_le_bytes());
        hasher.update(&self.geometry.chunk_size().bytes().to_le_bytes());
        let Ok(()) = self.each_run_bytes(|bytes| {
            hasher.update(bytes);
            Ok::<_, Infallible>(())
        });
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }

    /// The runs as they stand in the root and in the manifest, piece by piece.
    pub(super) fn each_run_bytes<E>(
        &self,
        mut put: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for (run, is_zero) in self.runs() {
            put(&[if is_zero { RUN_ZERO } else { RUN_DATA }])?;
            put(&run.count.to_le_bytes())?;
            if !is_zero {
                put(self.digests[slots(run)].as_flattened())?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ChunkTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkTable").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

/// A chunk table of which some chunks may still be missing.
#[derive(Clone, Debug)]
pub struct TableBuilder {
    table: ChunkTable,
    held: Bitmap,
    missing: u32,
}

impl TableBuilder {
    /// Every chunk is missing.
    pub fn new(geometry: Geometry) -> Self {
        let missing = geometry.chunk_count();
        // Not pushed: the allocator gives zero pages, which take no memory until they are written.
        let digests = vec![[0; 32]; slots(geometry.chunks()).len()];
        let table = ChunkTable { geometry, data: Bitmap::new(missing), digests: Arc::new(digests) };
        Self { table, held: Bitmap::new(missing), missing }
    }

    /// Notes what these chunks of the image hold: one chunk of data, or a run of zero chunks. The
    /// last note on a chunk is the one that stays.
    /// Chunks outside the image are left out.
    pub fn put(&mut self, run: ChunkRun, content: Content) {
        debug_assert!(self.table.geometry.holds(run), "{run:?} past the end");
        if !self.table.geometry.holds(run) {
            return;
        }
        match content {
            Content::Zero => run.iter().for_each(|index| self.hold(index, false)),
            Content::Data { digest, .. } => {
                debug_assert_eq!(run.count, 1, "a digest is that of one chunk");
                self.data_slots(run).fill(*digest.as_bytes());
            }
        }
    }

    /// Marks a run as data whose digests the caller puts in place.
    pub(super) fn data_slots(&mut self, run: ChunkRun) -> &mut [[u8; 32]] {
        run.iter().for_each(|index| self.hold(index, true));
        &mut Arc::make_mut(&mut self.table.digests)[slots(run)]
    }

    fn hold(&mut self, index: ChunkIndex, is_data: bool) {
        if !self.held.set(index.get(), true) {
            self.missing -= 1;
        }
        if self.table.data.set(index.get(), is_data) && !is_data {
            Arc::make_mut(&mut self.table.digests)[index.slot()] = [0; 32];
        }
    }

    /// Whether that chunk was put.
    pub fn holds(&self, index: ChunkIndex) -> bool {
        self.held.holds(index.get())
    }

    /// What was put for that chunk, if anything was: a digest, or none for zeros.
    pub fn digest(&self, index: ChunkIndex) -> Option<Option<Digest>> {
        self.holds(index).then(|| self.table.digest(index))
    }

    /// How many chunks are not put yet.
    pub fn missing(&self) -> u32 {
        self.missing
    }

    /// The geometry of the image.
    pub fn geometry(&self) -> Geometry {
        self.table.geometry
    }

    /// Maximal runs of chunks that are not put yet.
    pub fn missing_runs(&self) -> impl Iterator<Item = ChunkRun> {
        let count = self.table.geometry.chunk_count();
        let mut next = 0;
        std::iter::from_fn(move || {
            while next < count && self.held.holds(next) {
                next = self.held.end_of_equals(next).min(count);
            }
            (next < count).then(|| {
                let first = next;
                next = self.held.end_of_equals(next).min(count);
                ChunkRun::new(ChunkIndex::new(first), next - first)
            })
        })
    }

    /// Bytes of the chunks put as zero so far.
    pub fn zero_bytes(&self) -> u64 {
        let geometry = self.table.geometry;
        let is_zero = |index: &ChunkIndex| self.digest(*index) == Some(None);
        geometry.chunks().iter().filter(is_zero).map(|index| geometry.range(index).len).sum()
    }

    /// The table; `None` while chunks are missing.
    pub fn finish(self) -> Option<ChunkTable> {
        (self.missing == 0).then_some(self.table)
    }
}

pub(super) fn slots(run: ChunkRun) -> std::ops::Range<usize> {
    run.first.slot()..ChunkIndex::new(run.end()).slot()
}

/// One bit a chunk; those past the last stay clear.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bitmap(Vec<u64>);

impl Bitmap {
    fn new(len: u32) -> Self {
        Self(vec![0; to_usize(u64::from(len.div_ceil(u64::BITS)))])
    }

    fn holds(&self, index: u32) -> bool {
        let (word, bit) = place(index);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Sets or clears a bit, and tells what it was.
    fn set(&mut self, index: u32, on: bool) -> bool {
        let (word, bit) = place(index);
        let word = &mut self.0[word];
        let was_on = *word & bit != 0;
        *word = if on { *word | bit } else { *word & !bit };
        was_on
    }

    /// The first bit after that one which differs from it; past the end, where there is none.
    fn end_of_equals(&self, index: u32) -> u32 {
        let flip = if self.holds(index) { u64::MAX } else { 0 };
        let (first_word, bit) = place(index);
        let mut mask = !(bit - 1);
        for (at, word) in self.0.iter().enumerate().skip(first_word) {
            let differing = (word ^ flip) & mask;
            if differing != 0 {
                let before = u32::try_from(at).unwrap_or(u32::MAX) * u64::BITS;
                return before + differing.trailing_zeros();
            }
            mask = u64::MAX;
        }
        u32::MAX
    }
}

fn place(index: u32) -> (usize, u64) {
    (to_usize(u64::from(index / u64::BITS)), 1 << (index % u64::BITS))
}
