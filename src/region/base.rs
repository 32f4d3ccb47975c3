//! A base: a committed image of the same region that a stage takes chunks over from.

use std::fmt;
use std::sync::Arc;

use crate::chunk::{Content, Digest, Written};
use crate::disk::{Dir, File};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun, Geometry, to_u64, to_usize};
use crate::manifest::{ChunkTable, TableBuilder};
use crate::seal::{ChunkHasher, is_zero};

use super::stage::{DATA, Described, Owned, read_manifest};
use super::{Base, BoxFuture, LocalFile, blocking};

/// How much is read at a time: it stays in the core's cache.
const PIECE_BYTES: u64 = 256 << 10;
/// Zeros are left out in blocks of this many bytes.
const BLOCK_BYTES: usize = 64 << 10;

/// An image that was opened to be a base.
#[derive(Clone, Debug)]
pub(crate) struct BaseImage {
    file: LocalFile,
    /// Cut as the new image is.
    table: Arc<TableBuilder>,
}

impl BaseImage {
    /// Opens what lies in an image's folder, as the base of an image that is cut so.
    pub(crate) fn open(folder: &Dir, geometry: Geometry) -> Result<Self> {
        let manifest = match read_manifest(folder)? {
            Some(Described::Plain(manifest)) => manifest,
            Some(Described::Encrypted(_)) => {
                // Its bytes are of no use as they lie, and which chunks equal them is its secret.
                return Err(Error::new(ErrorKind::Unsupported, "open base: it is encrypted")
                    .hint("copy without a base, or with one that lies in clear"));
            }
            None => return Err(Error::new(ErrorKind::Corrupt, "open base: it has no manifest")),
        };
        let file = LocalFile::of(Arc::new(folder.open_file(DATA)?))?;
        let (is, should) = (file.file.len()?, manifest.geometry().image_bytes());
        if is != should {
            let what = format!("open base: {is} bytes of data where {should} belong");
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        let table = Arc::new(in_common(manifest.table(), geometry)?);
        Ok(Self { file, table })
    }
}

/// What a base holds for an image that is cut so: its chunks of data that lie within both, as long
/// in the one as in the other.
///
/// # Errors
/// [`ErrorKind::Invalid`] for chunks of another size: nothing could be compared.
pub(crate) fn in_common(base: &ChunkTable, geometry: Geometry) -> Result<TableBuilder> {
    let (theirs, ours) = (base.geometry().chunk_size(), geometry.chunk_size());
    if theirs != ours {
        let what =
            format!("take an image in chunks of {theirs} as base of one in chunks of {ours}");
        return Err(Error::new(ErrorKind::Invalid, what)
            .hint(format!("copy with a chunk size of {theirs}, or without base")));
    }
    let mut common = TableBuilder::new(geometry);
    for (run, _) in base.runs().filter(|(_, is_zero)| !is_zero) {
        let both = run.iter().take_while(|index| geometry.holds(ChunkRun::new(*index, 1)));
        for index in both.filter(|i| base.geometry().range(*i) == geometry.range(*i)) {
            if let Some(digest) = base.digest(index) {
                common.put(ChunkRun::new(index, 1), Content::Data { digest, data_bytes: 0 });
            }
        }
    }
    Ok(common)
}

/// The base of a stage on the same host.
pub(crate) struct LocalBase<O> {
    image: BaseImage,
    geometry: Geometry,
    /// Keeps the stage owned for as long as bytes are taken over.
    owner: Arc<O>,
    place: String,
}

impl<O> fmt::Debug for LocalBase<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalBase").field("image", &self.image).finish_non_exhaustive()
    }
}

impl<O: Owned> LocalBase<O> {
    pub(crate) fn new(image: BaseImage, owner: Arc<O>, place: String) -> Self {
        let geometry = image.table.geometry();
        Self { image, geometry, owner, place }
    }
}

impl<O: Owned> Base for LocalBase<O> {
    fn table(&self) -> &TableBuilder {
        &self.image.table
    }

    fn take(&self, run: ChunkRun, share: bool) -> BoxFuture<'_, Result<Vec<Written>>> {
        let (image, owner) = (self.image.clone(), self.owner.clone());
        let (geometry, place) = (self.geometry, self.place.clone());
        blocking(move || {
            let target = &owner.held().data;
            let (from, to) = (image.file.file_system, target.file_system()?);
            let share = share && from.shares_extents() && from == to;
            let hand = Hand { base: &image.file.file, target, geometry, share };
            let mut taken = Vec::new();
            for index in run.iter() {
                let Some(Some(digest)) = image.table.digest(index) else { continue };
                let one = hand.take(index, digest).map_err(|e| e.within(place.clone()))?;
                taken.extend(one);
            }
            Ok(taken)
        })
    }
}

/// Takes chunks over, one after the other.
struct Hand<'a> {
    base: &'a File,
    target: &'a File,
    geometry: Geometry,
    share: bool,
}

impl Hand<'_> {
    /// Takes a chunk over; `None` when the base does not hold what it is said to: the target reads
    /// as zeros there then.
    fn take(&self, index: ChunkIndex, digest: Digest) -> Result<Option<Written>> {
        let range = self.geometry.range(index);
        // What an earlier write has left there must not shine through where zeros are left out.
        let is_blank = self.target.punch(range)?;
        let shared = self.share && self.target.copy_range_of(self.base, range)?;
        let found = match shared {
            // It is the target's bytes that are looked at: whatever the file system has done.
            true => self.walk(index, self.target, |_, _| Ok(())),
            false => self.walk(index, self.base, |offset, block| {
                if is_blank && is_zero(block) {
                    Ok(())
                } else {
                    self.target.write_at(offset, block)
                }
            }),
        };
        match found? {
            Some((found, data_bytes)) if found == digest => {
                Ok(Some(Written::data(index, digest, data_bytes)))
            }
            _ => {
                if !self.target.punch(range)? {
                    self.target.write_zeroes(range)?;
                }
                Ok(None)
            }
        }
    }

    /// Reads a chunk block by block; its digest, and how many of its bytes lie in blocks that are
    /// not zero. `None` when the file does not give all of it.
    fn walk(
        &self,
        index: ChunkIndex,
        file: &File,
        mut each: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<Option<(Digest, u32)>> {
        let range = self.geometry.range(index);
        let mut hasher = ChunkHasher::new(self.geometry, index);
        let mut piece = vec![0; to_usize(range.len.min(PIECE_BYTES))];
        let (mut offset, mut data_bytes) = (range.offset, 0);
        while offset < range.end() {
            let len = to_usize((range.end() - offset).min(PIECE_BYTES));
            // A base that cannot be read is no worse than one that is damaged: the source has it.
            if file.read_at(offset, &mut piece[..len]).is_ok_and(|count| count == len) {
                hasher.update(&piece[..len]);
            } else {
                return Ok(None);
            }
            for block in piece[..len].chunks(BLOCK_BYTES) {
                each(offset, block)?;
                let is_data = u32::from(!is_zero(block));
                data_bytes += is_data * u32::try_from(block.len()).unwrap_or(0);
                offset += to_u64(block.len());
            }
        }
        Ok(Some((hasher.finish(), data_bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ChunkSize;

    const CHUNK: u64 = ChunkSize::MIN.bytes();

    fn table(image_bytes: u64, chunks: &[u8]) -> ChunkTable {
        let geometry = Geometry::new(image_bytes, ChunkSize::MIN).unwrap();
        let mut table = TableBuilder::new(geometry);
        for (index, fill) in (0..).zip(chunks) {
            let digest = Digest::from_bytes([*fill; 32]);
            let content = match fill {
                0 => Content::Zero,
                _ => Content::Data { digest, data_bytes: 0 },
            };
            table.put(ChunkRun::new(ChunkIndex::new(index), 1), content);
        }
        table.finish().unwrap()
    }

    #[test]
    fn an_image_of_another_size_has_in_common_the_chunks_that_are_as_long() {
        let base = table(4 * CHUNK + 9, &[1, 0, 3, 4, 5]);
        let held = |image_bytes: u64| {
            let geometry = Geometry::new(image_bytes, ChunkSize::MIN).unwrap();
            let common = in_common(&base, geometry).unwrap();
            let holds = |index: &ChunkIndex| common.digest(*index).is_some();
            geometry.chunks().iter().filter(holds).map(ChunkIndex::get).collect::<Vec<_>>()
        };
        assert_eq!(held(4 * CHUNK + 9), [0, 2, 3, 4], "zeros are not taken over");
        assert_eq!(held(9 * CHUNK), [0, 2, 3], "grown: the short chunk is whole now");
        assert_eq!(held(3 * CHUNK + 9), [0, 2], "shrunk: the last chunk is short now");
        assert_eq!(held(0), [0_u32; 0]);
    }

    #[test]
    fn chunks_of_another_size_are_refused_with_the_size_that_would_do() {
        let geometry = Geometry::new(4 * CHUNK, ChunkSize::DEFAULT).unwrap();
        let error = in_common(&table(CHUNK, &[1]), geometry).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.report().contains("64 KiB") || error.report().contains("64KiB"), "{error}");
    }

    /// On a file system that shares no extents, or not these.
    #[test]
    fn bytes_that_are_not_those_of_the_digest_leave_the_target_blank() {
        let temp = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let dir = Dir::open_path(temp.path()).unwrap();
        let geometry = Geometry::new(3 * CHUNK, ChunkSize::MIN).unwrap();
        let bytes: Vec<u8> = (0..3 * CHUNK).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let base = dir.create_file("base", 0o600).unwrap();
        base.write_at(0, &bytes).unwrap();
        let index = ChunkIndex::new(1);
        let range = geometry.range(index);
        let mine = &bytes[to_usize(range.offset)..to_usize(range.end())];
        let digest = crate::seal::digest_of(geometry, index, mine);
        let target = dir.create_file("target", 0o600).unwrap();
        let held = || {
            let mut held = vec![0; to_usize(3 * CHUNK)];
            target.read_at(0, &mut held).unwrap();
            held
        };
        for share in [false, true] {
            target.write_at(0, &vec![9; bytes.len()]).unwrap();
            let hand = Hand { base: &base, target: &target, geometry, share };
            let other = Digest::from_bytes([7; 32]);
            assert_eq!(hand.take(index, other).unwrap(), None);
            assert!(held()[to_usize(range.offset)..to_usize(range.end())].iter().all(|b| *b == 0));
            assert!(hand.take(index, digest).unwrap().is_some());
            assert!(&held()[to_usize(range.offset)..to_usize(range.end())] == mine);
            assert!(held()[to_usize(range.end())..].iter().all(|byte| *byte == 9));
        }
        base.set_len(CHUNK + 5).unwrap();
        let hand = Hand { base: &base, target: &target, geometry, share: false };
        assert_eq!(hand.take(index, digest).unwrap(), None, "a base that is too short");
    }

    #[test]
    fn zeros_within_a_chunk_stay_holes() {
        let temp = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let dir = Dir::open_path(temp.path()).unwrap();
        let size = ChunkSize::from_bytes(4 * CHUNK).unwrap();
        let geometry = Geometry::new(4 * CHUNK, size).unwrap();
        let mut bytes = vec![0; to_usize(4 * CHUNK)];
        bytes[to_usize(2 * CHUNK)..to_usize(3 * CHUNK)].fill(5);
        let base = dir.create_file("base", 0o600).unwrap();
        base.write_at(0, &bytes).unwrap();
        let target = dir.create_file("target", 0o600).unwrap();
        // An earlier write, which must not shine through.
        target.write_at(0, &vec![9; bytes.len()]).unwrap();
        let index = ChunkIndex::new(0);
        let digest = crate::seal::digest_of(geometry, index, &bytes);
        let hand = Hand { base: &base, target: &target, geometry, share: false };
        let taken = hand.take(index, digest).unwrap().unwrap();
        assert_eq!(taken, Written::data(index, digest, u32::try_from(CHUNK).unwrap()));
        let mut held = vec![1; bytes.len()];
        target.read_at(0, &mut held).unwrap();
        assert!(held == bytes);
        if target.file_system().unwrap().trusts_holes() {
            assert_eq!(target.next_data(0).unwrap(), Some(2 * CHUNK));
            assert_eq!(target.next_hole(2 * CHUNK).unwrap(), Some(3 * CHUNK));
        }
    }
}
