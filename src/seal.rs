//! Zero detection and BLAKE3: a chunk's bytes become a digest, the digests that of the image. Pure.

use blake3::hazmat::{self, ChainingValue, HasherExt, Mode};
use bytes::Bytes;

use crate::chunk::{Digest, Sealed};
use crate::geometry::{ChunkIndex, ChunkRun, Geometry, to_u64, to_usize};

/// A chunk after sealing.
#[derive(Clone, Debug)]
#[must_use]
pub enum Seal {
    /// All its bytes are zero: they need not travel.
    Zero(ChunkIndex),
    /// Its bytes with their digest.
    Data(Sealed),
}

/// Seals one chunk: `data` is all its bytes.
pub fn seal(geometry: Geometry, index: ChunkIndex, data: Bytes) -> Seal {
    let range = geometry.range(index);
    debug_assert_eq!(to_u64(data.len()), range.len, "a chunk is sealed whole");
    if is_zero(&data) {
        return Seal::Zero(index);
    }
    let digest = digest_of(geometry, index, &data);
    Seal::Data(Sealed::new(index, range, digest, data))
}

/// Whether all bytes are zero. Bytes that are not are told apart early.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Without an exit inside it, the fold over a block becomes straight vector code.
    let (blocks, rest) = bytes.as_chunks::<ZERO_TEST_BYTES>();
    let is_zero_block = |block: &[u8; ZERO_TEST_BYTES]| {
        let (words, _) = block.as_chunks::<8>();
        words.iter().fold(0, |any, word| any | u64::from_ne_bytes(*word)) == 0
    };
    blocks.iter().all(is_zero_block) && rest.iter().fold(0, |any, byte| any | byte) == 0
}

/// How many bytes are looked at before [`is_zero`] may stop.
const ZERO_TEST_BYTES: usize = 2048;
const _: () = assert!(ZERO_TEST_BYTES.is_multiple_of(8));

/// The digest of one chunk: `bytes` is all of it.
pub fn digest_of(geometry: Geometry, index: ChunkIndex, bytes: &[u8]) -> Digest {
    let mut hasher = ChunkHasher::new(geometry, index);
    hasher.update(bytes);
    hasher.finish()
}

/// The digest of that chunk if it holds only zeros.
///
/// It differs from chunk to chunk, so it costs a full hash.
pub fn zero_digest(geometry: Geometry, index: ChunkIndex) -> Digest {
    let mut hasher = ChunkHasher::new(geometry, index);
    hasher.zeroes(geometry.range(index).len);
    hasher.finish()
}

/// Hashes one chunk in pieces.
///
/// A chunk's digest is its BLAKE3 subtree chaining value at its own offset, so that
/// [`content_digest`] can merge the digests into that of the image, and a chunk that is put at a
/// wrong offset does not verify. The only chunk of an image has its ordinary BLAKE3.
#[derive(Clone, Debug)]
pub struct ChunkHasher {
    hasher: blake3::Hasher,
    is_root: bool,
    remaining_bytes: u64,
}

impl ChunkHasher {
    /// For the bytes of that chunk, in order.
    pub fn new(geometry: Geometry, index: ChunkIndex) -> Self {
        let range = geometry.range(index);
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(range.offset);
        Self { hasher, is_root: geometry.chunk_count() == 1, remaining_bytes: range.len }
    }

    /// Takes the next bytes of the chunk; together no more than the chunk has.
    pub fn update(&mut self, bytes: &[u8]) {
        debug_assert!(to_u64(bytes.len()) <= self.remaining_bytes, "bytes past the chunk's end");
        self.remaining_bytes = self.remaining_bytes.saturating_sub(to_u64(bytes.len()));
        self.hasher.update(bytes);
    }

    /// Takes the next `len` bytes of the chunk, all of them zero.
    pub fn zeroes(&mut self, mut len: u64) {
        while len > 0 {
            let piece = len.min(to_u64(ZEROES.len()));
            self.update(&ZEROES[..to_usize(piece)]);
            len -= piece;
        }
    }

    /// The digest, when every byte of the chunk was taken.
    #[must_use]
    pub fn finish(self) -> Digest {
        debug_assert_eq!(self.remaining_bytes, 0, "a chunk is hashed whole");
        Digest::from_bytes(match self.is_root {
            true => *self.hasher.finalize().as_bytes(),
            false => self.hasher.finalize_non_root(),
        })
    }
}

/// Wide enough for the hash to use every vector lane, small enough to stay in the first caches.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The BLAKE3 of the whole raw image, merged from the digests of its chunks: what `b3sum` prints.
///
/// `digest_at` is asked for each chunk once, in order.
pub fn content_digest(
    geometry: Geometry,
    mut digest_at: impl FnMut(ChunkIndex) -> Digest,
) -> Digest {
    match geometry.chunk_count() {
        0 => Digest::from_bytes(*blake3::hash(&[]).as_bytes()),
        1 => digest_at(ChunkIndex::new(0)),
        _ => {
            let (left, right) = halves(geometry.chunks());
            let left = chaining_value(left, &mut digest_at);
            let right = chaining_value(right, &mut digest_at);
            let root = hazmat::merge_subtrees_root(&left, &right, Mode::Hash);
            Digest::from_bytes(*root.as_bytes())
        }
    }
}

/// Of a subtree below the root. It recurses at most 20 deep, as an image has at most 2^20 chunks.
fn chaining_value(
    run: ChunkRun,
    digest_at: &mut impl FnMut(ChunkIndex) -> Digest,
) -> ChainingValue {
    if run.count == 1 {
        return *digest_at(run.first).as_bytes();
    }
    let (left, right) = halves(run);
    let left = chaining_value(left, digest_at);
    let right = chaining_value(right, digest_at);
    hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash)
}

/// The shape of the BLAKE3 tree: on the left the largest power of two that leaves something right.
fn halves(run: ChunkRun) -> (ChunkRun, ChunkRun) {
    debug_assert!(run.count >= 2, "nothing to halve in {run:?}");
    let left = ChunkRun::new(run.first, run.count.next_power_of_two() / 2);
    (left, ChunkRun::new(ChunkIndex::new(left.end()), run.count - left.count))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::ChunkSize;

    const CHUNK: usize = 64 << 10;

    fn cut(image: &[u8]) -> Geometry {
        Geometry::new(to_u64(image.len()), ChunkSize::MIN).unwrap()
    }

    fn piece(image: &[u8], index: ChunkIndex) -> &[u8] {
        let range = cut(image).range(index);
        &image[to_usize(range.offset)..to_usize(range.end())]
    }

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        (0..len).map(|_| next()).collect()
    }

    /// Merges the digests of all chunks, and notes the order in which they were asked for.
    fn merged(image: &[u8]) -> (Digest, Vec<u32>) {
        let mut asked = Vec::new();
        let digest = content_digest(cut(image), |index| {
            asked.push(index.get());
            digest_of(cut(image), index, piece(image, index))
        });
        (digest, asked)
    }

    #[test]
    fn chunk_digests_merge_into_the_blake3_of_the_image() {
        let sizes = [0, 1, 63, 1024, 1025, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK];
        let more = [5 * CHUNK + 77, 7 * CHUNK + 1, 8 * CHUNK, 8 * CHUNK + 1, 13 * CHUNK - 1];
        for len in sizes.into_iter().chain(more) {
            let image = noise(len, 7);
            let (digest, asked) = merged(&image);
            assert_eq!(digest.as_bytes(), blake3::hash(&image).as_bytes(), "{len} bytes");
            assert_eq!(asked, (0..cut(&image).chunk_count()).collect::<Vec<_>>(), "{len} bytes");
        }
    }

    #[test]
    fn larger_chunks_merge_into_the_same_blake3() {
        let image = noise((5 << 20) + 3, 11);
        for shift in 16..=23 {
            let size = ChunkSize::from_bytes(1 << shift).unwrap();
            let geometry = Geometry::new(to_u64(image.len()), size).unwrap();
            let digest = content_digest(geometry, |index| {
                let range = geometry.range(index);
                digest_of(geometry, index, &image[to_usize(range.offset)..to_usize(range.end())])
            });
            assert_eq!(digest.as_bytes(), blake3::hash(&image).as_bytes(), "{size}");
        }
    }

    #[test]
    fn a_chunk_at_a_wrong_offset_does_not_verify() {
        let image = noise(3 * CHUNK, 3);
        let bytes = piece(&image, ChunkIndex::new(1));
        let right = digest_of(cut(&image), ChunkIndex::new(1), bytes);
        for wrong in [0, 2] {
            assert_ne!(digest_of(cut(&image), ChunkIndex::new(wrong), bytes), right);
        }
        let alone = digest_of(cut(bytes), ChunkIndex::new(0), bytes);
        assert_eq!(alone.as_bytes(), blake3::hash(bytes).as_bytes());
        assert_ne!(digest_of(cut(&image), ChunkIndex::new(0), bytes), alone);
    }

    #[test]
    fn odd_pieces_hash_like_one() {
        let image = noise(2 * CHUNK + 5000, 5);
        for index in cut(&image).chunks().iter() {
            let bytes = piece(&image, index);
            for step in [1, 63, 1000, 1025, 16_385, CHUNK] {
                let mut hasher = ChunkHasher::new(cut(&image), index);
                bytes.chunks(step).for_each(|part| hasher.update(part));
                assert_eq!(hasher.finish(), digest_of(cut(&image), index, bytes));
            }
        }
    }

    #[test]
    fn zeroes_hash_like_zero_bytes() {
        let size = ChunkSize::from_bytes(1 << 18).unwrap();
        let geometry = Geometry::new((1 << 18) + 100_001, size).unwrap();
        for index in geometry.chunks().iter() {
            let bytes = vec![0; to_usize(geometry.range(index).len)];
            assert_eq!(zero_digest(geometry, index), digest_of(geometry, index, &bytes));
        }
        let mut mixed = vec![0; CHUNK];
        mixed[1000..1003].copy_from_slice(b"abc");
        let mut hasher = ChunkHasher::new(cut(&mixed), ChunkIndex::new(0));
        hasher.zeroes(1000);
        hasher.update(b"abc");
        hasher.zeroes(0);
        hasher.zeroes(to_u64(CHUNK) - 1003);
        assert_eq!(hasher.finish().as_bytes(), blake3::hash(&mixed).as_bytes());
    }

    #[test]
    fn one_byte_anywhere_is_not_zero() {
        for len in [0, 1, 7, 8, 9, ZERO_TEST_BYTES - 1, ZERO_TEST_BYTES, 2 * ZERO_TEST_BYTES + 13] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes), "{len} zeros");
            for at in 0..len {
                bytes[at] = [1, 0x80, 0xff][at % 3];
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                assert!(is_zero(&bytes[..at]) && is_zero(&bytes[at + 1..]));
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn seal_tells_zeros_from_data() {
        let mut image = vec![0; 2 * CHUNK];
        image[2 * CHUNK - 1] = 1;
        let sealed = |index| {
            let bytes = Bytes::copy_from_slice(piece(&image, ChunkIndex::new(index)));
            seal(cut(&image), ChunkIndex::new(index), bytes)
        };
        assert!(matches!(sealed(0), Seal::Zero(index) if index.get() == 0));
        let Seal::Data(data) = sealed(1) else { panic!("a chunk with a byte in it is data") };
        assert_eq!(data.range(), cut(&image).range(ChunkIndex::new(1)));
        let digest = digest_of(cut(&image), ChunkIndex::new(1), &image[CHUNK..]);
        assert_eq!((data.digest(), &data.data()[..]), (digest, &image[CHUNK..]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_image_has_its_blake3(len in 0..20 * CHUNK, seed: u64) {
            let image = noise(len, seed);
            prop_assert_eq!(*merged(&image).0.as_bytes(), *blake3::hash(&image).as_bytes());
        }

        #[test]
        fn is_zero_agrees_with_its_naive_twin(
            zeros in 0_usize..9000,
            more in proptest::collection::vec(prop_oneof![20 => Just(0), 1 => 1_u8..], 0..60),
        ) {
            let bytes = [vec![0; zeros], more].concat();
            prop_assert_eq!(is_zero(&bytes), bytes.iter().all(|byte| *byte == 0));
        }
    }
}
