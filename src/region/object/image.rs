//! A committed image as bytes: the manifest, and which attempt has written each chunk. Pure.

use bytes::Bytes;

use crate::chunk::Digest;
use crate::codec::{Decoder, Encoder};
use crate::error::Result;
use crate::geometry::{CHUNK_COUNT_MAX, ChunkIndex, ChunkRun, Geometry, to_u64, to_usize};
use crate::manifest::Manifest;

use super::names::{Mark, Part};

/// The most bytes of one: 2^20 digests, each chunk written by another attempt, and the attributes.
const PLAIN_LEN_MAX: u64 = 48 << 20;
/// The same of an encrypted image, with a salt for each chunk.
pub(crate) const IMAGE_LEN_MAX: u64 = 80 << 20;
/// The salt of a write of a chunk: what its mark begins with.
pub(crate) const SALT_LEN: usize = 24;
/// What tells one write of a chunk from all others.
pub(crate) type Salt = [u8; SALT_LEN];

/// Which attempt has written each chunk. Resumes leave long runs, so runs are what is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Epochs {
    /// From that chunk on, that attempt; ascending, neighbours differ.
    runs: Vec<(u32, u32)>,
}

impl Epochs {
    /// The next chunk that is not zero was written by that attempt; chunks come in order.
    pub(crate) fn push(&mut self, index: ChunkIndex, epoch: u32) {
        if self.runs.last().is_none_or(|(_, last)| *last != epoch) {
            self.runs.push((index.get(), epoch));
        }
    }

    /// The attempt that has written that chunk, which must not be zero.
    pub(crate) fn of(&self, index: ChunkIndex) -> Option<u32> {
        let behind = self.runs.partition_point(|(first, _)| *first <= index.get());
        self.runs.get(behind.checked_sub(1)?).map(|(_, epoch)| *epoch)
    }

    /// Whether the image with that manifest is made of that chunk of that attempt.
    pub(crate) fn name(
        &self,
        epoch: u32,
        index: ChunkIndex,
        digest: &Digest,
        manifest: &Manifest,
    ) -> bool {
        index.get() < manifest.geometry().chunk_count()
            && self.of(index) == Some(epoch)
            && manifest.table().digest(index) == Some(*digest)
    }
}

/// The writes that an encrypted image is made of: attempt and salt of each chunk that is not zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Writes {
    /// Neighbours of one attempt; ascending, and as long as they can be.
    runs: Vec<(ChunkRun, u32)>,
    /// How many chunks are in the runs before each.
    before: Vec<usize>,
    salts: Vec<Salt>,
}

impl Writes {
    /// The next chunk that is not zero; chunks come in order.
    pub(crate) fn push(&mut self, index: ChunkIndex, epoch: u32, salt: Salt) {
        match self.runs.last_mut() {
            Some((run, of)) if run.end() == index.get() && *of == epoch => run.count += 1,
            _ => {
                self.runs.push((ChunkRun::new(index, 1), epoch));
                self.before.push(self.salts.len());
            }
        }
        self.salts.push(salt);
    }

    /// The write of that chunk; `None`: it is zero.
    pub(crate) fn of(&self, index: ChunkIndex) -> Option<(u32, Salt)> {
        let behind = self.runs.partition_point(|(run, _)| run.first <= index);
        let at = behind.checked_sub(1)?;
        let (run, epoch) = self.runs.get(at)?;
        let within = index.slot() - run.first.slot();
        let is_in = within < to_usize(u64::from(run.count));
        let salt = self.salts.get(self.before.get(at)? + within).filter(|_| is_in)?;
        Some((*epoch, *salt))
    }

    /// Whether the image is made of the chunk with that mark, which that attempt has written.
    pub(crate) fn name(&self, epoch: u32, index: ChunkIndex, mark: &Mark) -> bool {
        self.of(index).is_some_and(|(of, salt)| of == epoch && mark.starts_with(&salt))
    }

    /// The chunks that are not zero.
    #[cfg(any(feature = "encrypt", feature = "testing"))]
    pub(crate) fn chunks(&self) -> impl Iterator<Item = ChunkIndex> {
        self.runs.iter().flat_map(|(run, _)| run.iter())
    }
}

/// A committed image.
///
/// | bytes | field |
/// |---|---|
/// | 8, 2 | magic `BFOBJIM\0`, version 1 |
/// | 4 | number of runs |
/// | 8 each | first chunk (4), the attempt that has written from there on (4) |
/// | … | the manifest, to the end; it has its own checksum |
///
/// One that is encrypted:
///
/// | bytes | field |
/// |---|---|
/// | 8, 2 | magic `BFOBJIE\0`, version 1 |
/// | 4 | number of runs of chunks that are not zero |
/// | 12 each | first chunk (4), count (4), the attempt that has written them (4) |
/// | 24 each | for each of these chunks the salt of its write |
/// | … | the manifest, encrypted, to the end; it is bound to the BLAKE3 of everything before |
///
/// The head holds the BLAKE3 of all of it.
#[derive(Debug)]
pub(crate) enum Image {
    Plain { epochs: Epochs, manifest: Manifest },
    Sealed(SealedImage),
}

/// An encrypted image, as far as it can be read without its key: enough to tell which objects it is
/// made of.
#[derive(Debug)]
pub(crate) struct SealedImage {
    pub(crate) writes: Writes,
    /// BLAKE3 of what stands before the body.
    pub(crate) sum: [u8; 32],
    /// The manifest, encrypted.
    pub(crate) body: Bytes,
}

impl Image {
    /// The bytes of one that is not encrypted.
    pub(crate) fn encode(epochs: &Epochs, manifest: &Manifest) -> Result<Vec<u8>> {
        let mut out = Encoder::new();
        out.raw(&MAGIC).u16(VERSION);
        out.u32(u32::try_from(epochs.runs.len()).unwrap_or(u32::MAX));
        for (first, epoch) in &epochs.runs {
            out.u32(*first).u32(*epoch);
        }
        let mut bytes = out.finish();
        manifest.encode_to(&mut bytes)?;
        debug_assert!(to_u64(bytes.len()) <= PLAIN_LEN_MAX, "an image is bounded");
        Ok(bytes)
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self> {
        let mut from = Decoder::new(bytes, "the manifest of an image");
        match from.array().ok() {
            Some(MAGIC) => Self::decode_plain(&mut from),
            Some(MAGIC_SEALED) => SealedImage::decode(bytes, &mut from).map(Self::Sealed),
            _ => Err(from.corrupt("it is none")),
        }
    }

    fn decode_plain(from: &mut Decoder<'_>) -> Result<Self> {
        from.version(VERSION)?;
        let count = to_usize(u64::from(from.u32()?));
        if count > from.remaining() / 8 {
            return Err(from.corrupt("it is cut short"));
        }
        let mut epochs = Epochs::default();
        for _ in 0..count {
            let (first, epoch) = (from.u32()?, from.u32()?);
            let fits = epochs.runs.last().is_none_or(|(last, of)| *last < first && *of != epoch);
            if !fits || epoch == 0 {
                return Err(from.corrupt("its attempts are out of order"));
            }
            epochs.runs.push((first, epoch));
        }
        let mut rest = from.raw(from.remaining())?;
        let manifest = Manifest::decode_from(&mut rest)?;
        check_epochs(&epochs, &manifest).map_err(|why| from.corrupt(why))?;
        Ok(Self::Plain { epochs, manifest })
    }

    /// Whether the image is made of that part of that attempt. Its manifest is no part in this
    /// sense, nor is its key.
    pub(crate) fn names(&self, epoch: u32, part: &Part) -> bool {
        match (self, part) {
            (Self::Plain { epochs, manifest }, Part::Chunk { index, digest }) => {
                epochs.name(epoch, *index, digest, manifest)
            }
            (Self::Sealed(sealed), Part::Sealed { index, mark }) => {
                sealed.writes.name(epoch, *index, mark)
            }
            _ => false,
        }
    }
}

impl SealedImage {
    /// What stands before the body.
    #[cfg(any(feature = "encrypt", feature = "testing", test))]
    pub(crate) fn encode_front(writes: &Writes) -> Vec<u8> {
        let mut out = Encoder::new();
        out.raw(&MAGIC_SEALED).u16(VERSION);
        out.u32(u32::try_from(writes.runs.len()).unwrap_or(u32::MAX));
        for (run, epoch) in &writes.runs {
            out.u32(run.first.get()).u32(run.count).u32(*epoch);
        }
        out.raw(writes.salts.as_flattened());
        out.finish()
    }

    fn decode(bytes: &Bytes, from: &mut Decoder<'_>) -> Result<Self> {
        from.version(VERSION)?;
        let count = to_usize(u64::from(from.u32()?));
        if count > from.remaining() / 12 {
            return Err(from.corrupt("it is cut short"));
        }
        let mut writes = Writes::default();
        let mut chunks = 0;
        for _ in 0..count {
            let (first, count, epoch) = (from.u32()?, from.u32()?, from.u32()?);
            let fits = writes
                .runs
                .last()
                .is_none_or(|(last, of)| last.end() < first || last.end() == first && *of != epoch);
            let ends = first.checked_add(count).is_some_and(|end| end <= CHUNK_COUNT_MAX);
            if !fits || !ends || count == 0 || epoch == 0 {
                return Err(from.corrupt("its attempts are out of order"));
            }
            writes.runs.push((ChunkRun::new(ChunkIndex::new(first), count), epoch));
            writes.before.push(chunks);
            chunks += to_usize(u64::from(count));
        }
        let salts = from.raw(chunks * SALT_LEN)?;
        writes.salts = vec![[0; SALT_LEN]; chunks];
        writes.salts.as_flattened_mut().copy_from_slice(salts);
        let (front, body) = bytes.split_at(bytes.len() - from.remaining());
        let sum = *blake3::hash(front).as_bytes();
        Ok(Self { writes, sum, body: bytes.slice_ref(body) })
    }
}

/// Every run begins at a chunk that is not zero, and every such chunk has one.
fn check_epochs(epochs: &Epochs, manifest: &Manifest) -> Result<(), &'static str> {
    let (table, geometry): (_, Geometry) = (manifest.table(), manifest.geometry());
    let count = geometry.chunk_count();
    let data = |first: u32| first < count && table.digest(ChunkIndex::new(first)).is_some();
    if !epochs.runs.iter().all(|(first, _)| data(*first)) {
        return Err("an attempt begins at a chunk that is not there");
    }
    let first = table.runs().find(|(_, is_zero)| !is_zero).map(|(run, _)| run.first.get());
    if first != epochs.runs.first().map(|(first, _)| *first) {
        return Err("no attempt has written its first chunk");
    }
    Ok(())
}

const MAGIC: [u8; 8] = *b"BFOBJIM\0";
const MAGIC_SEALED: [u8; 8] = *b"BFOBJIE\0";
const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::chunk::Content;
    use crate::error::ErrorKind;
    use crate::geometry::ChunkSize;
    use crate::manifest::TableBuilder;

    /// Chunks by the attempt that wrote them; 0: zeros.
    fn image(chunks: &[u32]) -> (Epochs, Manifest) {
        let bytes = to_u64(chunks.len()) * ChunkSize::MIN.bytes();
        let mut table = TableBuilder::new(Geometry::new(bytes, ChunkSize::MIN).unwrap());
        let mut epochs = Epochs::default();
        for (index, epoch) in (0..).map(ChunkIndex::new).zip(chunks) {
            let digest = Digest::from_bytes([7; 32]);
            let content = match epoch {
                0 => Content::Zero,
                _ => Content::Data { digest, data_bytes: 1 },
            };
            table.put(ChunkRun::new(index, 1), content);
            if *epoch != 0 {
                epochs.push(index, *epoch);
            }
        }
        let manifest = Manifest::new(table.finish().unwrap(), None, BTreeMap::new()).unwrap();
        (epochs, manifest)
    }

    fn decode(bytes: &[u8]) -> Result<Image> {
        Image::decode(&Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn an_image_comes_back_as_it_went_in() {
        for chunks in [&[][..], &[0, 0], &[1], &[0, 2, 2, 0, 2, 1, 3, 0]] {
            let (epochs, manifest) = image(chunks);
            let bytes = Image::encode(&epochs, &manifest).unwrap();
            let Image::Plain { epochs: back, manifest: again } = decode(&bytes).unwrap() else {
                panic!("it is not encrypted");
            };
            assert_eq!((&back, &again), (&epochs, &manifest));
            for (index, epoch) in (0..).map(ChunkIndex::new).zip(chunks) {
                if *epoch != 0 {
                    assert_eq!(back.of(index), Some(*epoch), "{chunks:?}, chunk {index}");
                }
            }
            for at in 0..bytes.len() {
                assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
            }
        }
        assert_eq!(image(&[0, 2, 2, 0, 2, 1]).0.runs, [(1, 2), (5, 1)]);
    }

    #[test]
    fn attempts_that_cannot_be_are_refused() {
        let (_, manifest) = image(&[0, 2, 2, 0]);
        let forged = |runs: &[(u32, u32)]| {
            let bytes = Image::encode(&Epochs { runs: runs.to_vec() }, &manifest).unwrap();
            decode(&bytes).is_err()
        };
        assert!(forged(&[]) && forged(&[(0, 2)]) && forged(&[(2, 2)]) && forged(&[(1, 0)]));
        assert!(
            forged(&[(1, 2), (2, 2)]) && forged(&[(1, 2), (1, 3)]) && forged(&[(1, 2), (4, 3)])
        );
        assert!(!forged(&[(1, 2), (2, 3)]));
        let later = [&MAGIC[..], &[2, 0]].concat();
        assert_eq!(decode(&later).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(decode(b"x").unwrap_err().kind(), ErrorKind::Corrupt);
    }

    /// Chunks by the attempt that wrote them; 0: zeros.
    fn writes(chunks: &[u32]) -> Writes {
        let mut writes = Writes::default();
        for (index, epoch) in (0..).zip(chunks).filter(|(_, epoch)| **epoch != 0) {
            writes.push(ChunkIndex::new(index), *epoch, [index.to_le_bytes()[0] + 1; SALT_LEN]);
        }
        writes
    }

    #[test]
    fn the_writes_of_an_encrypted_image_come_back_and_its_body_is_what_follows() {
        for chunks in [&[][..], &[0, 0], &[1], &[0, 2, 2, 0, 2, 1, 3, 0]] {
            let writes = writes(chunks);
            let front = SealedImage::encode_front(&writes);
            let Image::Sealed(back) = decode(&[&front[..], b"body"].concat()).unwrap() else {
                panic!("it is encrypted");
            };
            assert_eq!((&back.writes, &back.body[..]), (&writes, &b"body"[..]));
            assert_eq!(&back.sum, blake3::hash(&front).as_bytes());
            for (index, epoch) in (0..).map(ChunkIndex::new).zip(chunks) {
                let salt = [index.get().to_le_bytes()[0] + 1; SALT_LEN];
                let expected = (*epoch != 0).then_some((*epoch, salt));
                assert_eq!(back.writes.of(index), expected, "{chunks:?}, chunk {index}");
                let mut mark = [0; 72];
                mark[..SALT_LEN].copy_from_slice(&salt);
                let image = Image::Sealed(SealedImage { writes: back.writes.clone(), ..part() });
                let named = |epoch| image.names(epoch, &Part::Sealed { index, mark });
                assert_eq!(named(1), *epoch == 1);
                mark[0] ^= 1;
                assert!(!image.names(*epoch, &Part::Sealed { index, mark }));
                let digest = Digest::from_bytes([7; 32]);
                assert!(!image.names(*epoch, &Part::Chunk { index, digest }));
            }
            assert_eq!(back.writes.of(ChunkIndex::new(u32::MAX)), None);
            for at in 0..front.len() {
                assert!(decode(&front[..at]).is_err(), "cut at {at}");
            }
        }
    }

    fn part() -> SealedImage {
        SealedImage { writes: Writes::default(), sum: [0; 32], body: Bytes::new() }
    }

    #[test]
    fn writes_that_cannot_be_are_refused() {
        let forged = |runs: &[(u32, u32, u32)]| {
            let mut out = Encoder::new();
            out.raw(&MAGIC_SEALED).u16(VERSION).u32(u32::try_from(runs.len()).unwrap());
            for (first, count, epoch) in runs {
                out.u32(*first).u32(*count).u32(*epoch);
            }
            out.raw(&[1; 10 * SALT_LEN]);
            decode(&out.finish()).is_err()
        };
        assert!(forged(&[(0, 0, 1)]) && forged(&[(0, 1, 0)]) && forged(&[(0, 11, 1)]));
        assert!(forged(&[(1, 1, 1), (0, 1, 1)]) && forged(&[(0, 2, 1), (1, 1, 2)]));
        assert!(forged(&[(0, 1, 1), (1, 1, 1)]), "neighbours of one attempt are one run");
        assert!(forged(&[(CHUNK_COUNT_MAX, 1, 1)]) && forged(&[(u32::MAX, 2, 1)]));
        assert!(!forged(&[(0, 1, 1), (1, 1, 2), (CHUNK_COUNT_MAX - 1, 1, 1)]));
    }
}
