//! Small images to send: their chunks, their digests, and what a base has in common with them.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::chunk::{Content, Digest};
use crate::compress::Packer;
use crate::error::Result;
use crate::geometry::{ChunkIndex, ChunkRun, ChunkSize, Geometry, to_usize};
use crate::id::{ImageId, JobId, RegionName};
use crate::job::{Endpoint, Fingerprint, JobSpec};
use crate::manifest::{Manifest, TableBuilder};
use crate::region::base::in_common;
use crate::seal::{Seal, seal};

use super::dice::Dice;

/// The most chunks a picture has.
pub(super) const CHUNKS_MAX: usize = 8;
pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// An image: some chunks of noise, some of text, some of zeros.
#[derive(Clone, Debug)]
pub(super) struct Picture {
    pub(super) geometry: Geometry,
    pub(super) chunks: Vec<Drawn>,
    pub(super) manifest: Arc<Manifest>,
}

/// One chunk and its digest; none of zeros.
#[derive(Clone, Debug)]
pub(super) struct Drawn {
    pub(super) bytes: Bytes,
    pub(super) digest: Option<Digest>,
    /// As a zstd frame, where that is shorter.
    pub(super) packed: Option<Bytes>,
}

impl Picture {
    /// An image of a size and with zeros that the dice choose.
    pub(super) fn draw(dice: &mut Dice<'_>) -> Result<Self> {
        let count = 1 + dice.below(CHUNKS_MAX);
        let variants: Vec<usize> = (0..count).map(|_| dice.below(VARIANTS)).collect();
        Self::of(&variants)
    }

    /// The same image with some chunks changed: what a liar has.
    pub(super) fn changed(&self, dice: &mut Dice<'_>) -> Result<Self> {
        let variants: Vec<usize> = (0..self.chunks.len()).map(|_| dice.below(VARIANTS)).collect();
        Self::of(&variants)
    }

    fn of(variants: &[usize]) -> Result<Self> {
        let image_bytes = CHUNK_BYTES * variants.len();
        let geometry = Geometry::new(crate::geometry::to_u64(image_bytes), ChunkSize::MIN)?;
        let chunks: Vec<Drawn> = variants
            .iter()
            .enumerate()
            .map(|(at, variant)| drawn(geometry, at, *variant))
            .collect();
        let mut builder = TableBuilder::new(geometry);
        for (index, chunk) in geometry.chunks().iter().zip(&chunks) {
            let content = match chunk.digest {
                Some(digest) => Content::Data { digest, data_bytes: 0 },
                None => Content::Zero,
            };
            builder.put(ChunkRun::new(index, 1), content);
        }
        let table = builder.finish();
        assert!(table.is_some(), "a picture without all its chunks");
        let Some(table) = table else { return Self::of(variants) };
        let manifest = Manifest::new(table, None, std::collections::BTreeMap::new())?;
        Ok(Self { geometry, chunks, manifest: Arc::new(manifest) })
    }

    /// What it has in common, as a base, with an image that is cut so.
    pub(super) fn in_common(&self, geometry: Geometry) -> Result<TableBuilder> {
        in_common(self.manifest.table(), geometry)
    }

    pub(super) fn chunk(&self, index: ChunkIndex) -> &Drawn {
        &self.chunks[index.slot()]
    }

    /// The job that copies it.
    pub(super) fn spec(&self) -> Result<JobSpec> {
        let end = || Ok(Endpoint::new(RegionName::try_from("b")?, ImageId::try_from("m")?));
        let job = JobId::from_bytes([5; 16]);
        Ok(JobSpec::new(job, end()?, end()?, self.geometry, Fingerprint::new()))
    }
}

const VARIANTS: usize = 4;

/// Drawn once for all worlds: hashing and packing would take most of the time. By chunk count, as
/// the only chunk of an image has another digest.
fn drawn(geometry: Geometry, at: usize, variant: usize) -> Drawn {
    static DRAWN: OnceLock<Vec<Drawn>> = OnceLock::new();
    let all = DRAWN.get_or_init(|| {
        let alone = Geometry::new(CHUNK_BYTES as u64, ChunkSize::MIN);
        let many = Geometry::new((CHUNK_BYTES * CHUNKS_MAX) as u64, ChunkSize::MIN);
        let (Ok(alone), Ok(many)) = (alone, many) else { return Vec::new() };
        let slots = many.chunks().iter().flat_map(|index| (0..VARIANTS).map(move |v| (index, v)));
        let of_many = slots.map(|(index, variant)| paint(many, index, variant));
        let first = ChunkIndex::new(0);
        of_many.chain((0..VARIANTS).map(|variant| paint(alone, first, variant))).collect()
    });
    let place = if geometry.chunk_count() == 1 { CHUNKS_MAX } else { at };
    all[place * VARIANTS + variant].clone()
}

fn paint(geometry: Geometry, index: ChunkIndex, variant: usize) -> Drawn {
    let mut bytes = vec![0; to_usize(geometry.range(index).len)];
    match variant {
        0 => {}
        1 => bytes.fill(7),
        _ => {
            let mut noise = blake3::Hasher::new();
            noise.update(&index.get().to_le_bytes()).update(&variant.to_le_bytes());
            noise.finalize_xof().fill(&mut bytes);
        }
    }
    match seal(geometry, index, bytes.into()) {
        Seal::Zero(_) => Drawn { bytes: zeroes(), digest: None, packed: None },
        Seal::Data(sealed) => {
            let packed = Packer::new(1).and_then(|mut packer| packer.pack(sealed.data()));
            Drawn {
                bytes: sealed.data().clone(),
                digest: Some(sealed.digest()),
                packed: packed.ok().flatten(),
            }
        }
    }
}

/// The bytes of a chunk of zeros: the same for all.
pub(super) fn zeroes() -> Bytes {
    static ZEROES: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];
    Bytes::from_static(&ZEROES)
}
