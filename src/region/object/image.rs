//! A committed image as bytes: the manifest, and which attempt has written each chunk. Pure.

use crate::codec::{Decoder, Encoder};
use crate::error::Result;
use crate::geometry::{ChunkIndex, Geometry, to_u64, to_usize};
use crate::manifest::Manifest;

/// The most bytes of one: 2^20 digests, each chunk written by another attempt, and the attributes.
pub(crate) const IMAGE_LEN_MAX: u64 = 48 << 20;

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
/// The head holds the BLAKE3 of all of it.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) epochs: Epochs,
    pub(crate) manifest: Manifest,
}

impl Image {
    pub(crate) fn encode(epochs: &Epochs, manifest: &Manifest) -> Result<Vec<u8>> {
        let mut out = Encoder::new();
        out.raw(&MAGIC).u16(VERSION);
        out.u32(u32::try_from(epochs.runs.len()).unwrap_or(u32::MAX));
        for (first, epoch) in &epochs.runs {
            out.u32(*first).u32(*epoch);
        }
        let mut bytes = out.finish();
        manifest.encode_to(&mut bytes)?;
        debug_assert!(to_u64(bytes.len()) <= IMAGE_LEN_MAX, "an image is bounded");
        Ok(bytes)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut from = Decoder::new(bytes, "the manifest of an image");
        if from.array().ok() != Some(MAGIC) {
            return Err(from.corrupt("it is none"));
        }
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
        let image = Self { epochs, manifest };
        image.check_epochs().map_err(|why| from.corrupt(why))?;
        Ok(image)
    }

    fn geometry(&self) -> Geometry {
        self.manifest.geometry()
    }

    /// Every run begins at a chunk that is not zero, and every such chunk has one.
    fn check_epochs(&self) -> Result<(), &'static str> {
        let table = self.manifest.table();
        let count = self.geometry().chunk_count();
        let data = |first: u32| first < count && table.digest(ChunkIndex::new(first)).is_some();
        if !self.epochs.runs.iter().all(|(first, _)| data(*first)) {
            return Err("an attempt begins at a chunk that is not there");
        }
        let first = table.runs().find(|(_, is_zero)| !is_zero).map(|(run, _)| run.first.get());
        if first != self.epochs.runs.first().map(|(first, _)| *first) {
            return Err("no attempt has written its first chunk");
        }
        Ok(())
    }
}

const MAGIC: [u8; 8] = *b"BFOBJIM\0";
const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::chunk::{Content, Digest};
    use crate::error::ErrorKind;
    use crate::geometry::{ChunkRun, ChunkSize};
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

    #[test]
    fn an_image_comes_back_as_it_went_in() {
        for chunks in [&[][..], &[0, 0], &[1], &[0, 2, 2, 0, 2, 1, 3, 0]] {
            let (epochs, manifest) = image(chunks);
            let bytes = Image::encode(&epochs, &manifest).unwrap();
            let back = Image::decode(&bytes).unwrap();
            assert_eq!((&back.epochs, &back.manifest), (&epochs, &manifest));
            for (index, epoch) in (0..).map(ChunkIndex::new).zip(chunks) {
                if *epoch != 0 {
                    assert_eq!(back.epochs.of(index), Some(*epoch), "{chunks:?}, chunk {index}");
                }
            }
            for at in 0..bytes.len() {
                assert!(Image::decode(&bytes[..at]).is_err(), "cut at {at}");
            }
        }
        assert_eq!(image(&[0, 2, 2, 0, 2, 1]).0.runs, [(1, 2), (5, 1)]);
    }

    #[test]
    fn attempts_that_cannot_be_are_refused() {
        let (_, manifest) = image(&[0, 2, 2, 0]);
        let forged = |runs: &[(u32, u32)]| {
            let bytes = Image::encode(&Epochs { runs: runs.to_vec() }, &manifest).unwrap();
            Image::decode(&bytes).is_err()
        };
        assert!(forged(&[]) && forged(&[(0, 2)]) && forged(&[(2, 2)]) && forged(&[(1, 0)]));
        assert!(
            forged(&[(1, 2), (2, 2)]) && forged(&[(1, 2), (1, 3)]) && forged(&[(1, 2), (4, 3)])
        );
        assert!(!forged(&[(1, 2), (2, 3)]));
        let later = [&MAGIC[..], &[2, 0]].concat();
        assert_eq!(Image::decode(&later).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(Image::decode(b"x").unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
