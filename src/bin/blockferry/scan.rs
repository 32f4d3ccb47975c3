//! Reading an image whole: the digest of every chunk, holes skipped, on all cores.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use blockferry::chunk::Digest;
use blockferry::geometry::{ByteRange, ChunkIndex, Geometry};
use blockferry::plan::ExtentKind;
use blockferry::region::Source;
use blockferry::seal::{ChunkHasher, content_digest, is_zero, zero_digest};
use blockferry::{Error, ErrorKind, Result};
use tokio::task::{JoinSet, spawn_blocking};

/// How much is read at a time, however large the chunks are: buffers that pass from thread to
/// thread are kept by the allocator of each, so large ones would add up.
const PIECE_BYTES: u64 = 256 << 10;

/// What an image turned out to hold.
pub(crate) struct Scan {
    /// By chunk; `None`: only zeros.
    pub(crate) digests: Vec<Option<Digest>>,
    pub(crate) read_bytes: u64,
}

/// Reads every chunk that may hold data. The source must not change meanwhile.
pub(crate) async fn scan(source: &Arc<dyn Source>, geometry: Geometry) -> Result<Scan> {
    let before = source.fingerprint().await?;
    let chunks = Arc::new(data_chunks(&**source, geometry).await?);
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..threads() {
        workers.spawn(read(source.clone(), geometry, chunks.clone(), next.clone()));
    }
    let mut digests = vec![None; geometry.chunks().iter().count()];
    let mut read_bytes = 0;
    while let Some(done) = workers.join_next().await {
        for (index, digest) in done.map_err(broken)?? {
            read_bytes += geometry.range(index).len;
            digests[index.slot()] = digest;
        }
    }
    match before.difference(&source.fingerprint().await?) {
        None => Ok(Scan { digests, read_bytes }),
        Some(what) => Err(Error::new(
            ErrorKind::SourceChanged,
            format!("read the image: it changed meanwhile: {what}"),
        )
        .within(source.location())),
    }
}

/// The chunks that are not claimed to be zero, in order.
async fn data_chunks(source: &dyn Source, geometry: Geometry) -> Result<Vec<ChunkIndex>> {
    let mut chunks = Vec::new();
    let mut offset = 0;
    while offset < geometry.image_bytes() {
        let rest = ByteRange::new(offset, geometry.image_bytes() - offset);
        let extents = source.extents(rest).await?;
        let end = extents.last().map_or(offset, |last| last.range.end());
        if end <= offset {
            return Err(Error::new(ErrorKind::Io, "read the image: its extents do not go on")
                .at(source.location(), offset));
        }
        for extent in extents.iter().filter(|e| e.kind == ExtentKind::Data && e.range.len > 0) {
            let first = geometry.index_of(extent.range.offset).get();
            let last = geometry.index_of(extent.range.end() - 1).get();
            let fresh = chunks.last().map_or(0, |before: &ChunkIndex| before.get() + 1);
            chunks.extend((first.max(fresh)..=last).map(ChunkIndex::new));
        }
        offset = end;
    }
    Ok(chunks)
}

async fn read(
    source: Arc<dyn Source>,
    geometry: Geometry,
    chunks: Arc<Vec<ChunkIndex>>,
    next: Arc<AtomicUsize>,
) -> Result<Vec<(ChunkIndex, Option<Digest>)>> {
    let mut found = Vec::new();
    while let Some(index) = chunks.get(next.fetch_add(1, Relaxed)).copied() {
        found.push((index, read_chunk(&*source, geometry, index).await?));
    }
    Ok(found)
}

async fn read_chunk(
    source: &dyn Source,
    geometry: Geometry,
    index: ChunkIndex,
) -> Result<Option<Digest>> {
    let range = geometry.range(index);
    let (mut hasher, mut all_zero) = (ChunkHasher::new(geometry, index), true);
    let mut at = range.offset;
    while at < range.end() {
        let len = PIECE_BYTES.min(range.end() - at);
        let bytes = source.read_at(ByteRange::new(at, len)).await?;
        let hash = move || {
            hasher.update(&bytes);
            (hasher, all_zero && is_zero(&bytes))
        };
        (hasher, all_zero) = spawn_blocking(hash).await.map_err(broken)?;
        at += len;
    }
    Ok((!all_zero).then(|| hasher.finish()))
}

/// The BLAKE3 of the whole image, as `b3sum` prints it. Zero chunks are hashed here, on all cores.
pub(crate) fn content_of(geometry: Geometry, digests: &[Option<Digest>]) -> Result<Digest> {
    let zeros: Vec<ChunkIndex> =
        geometry.chunks().iter().filter(|index| digests[index.slot()].is_none()).collect();
    let share = zeros.len().div_ceil(threads()).max(1);
    let mut all = digests.to_vec();
    std::thread::scope(|scope| {
        let hash = |part: &[ChunkIndex]| -> Vec<Digest> {
            part.iter().map(|index| zero_digest(geometry, *index)).collect()
        };
        let parts: Vec<_> =
            zeros.chunks(share).map(|part| (part, scope.spawn(move || hash(part)))).collect();
        for (part, thread) in parts {
            let hashed = thread
                .join()
                .map_err(|_| Error::new(ErrorKind::Io, "hash zeros: a thread panicked"))?;
            part.iter().zip(hashed).for_each(|(index, digest)| all[index.slot()] = Some(digest));
        }
        Ok::<_, Error>(())
    })?;
    let nothing = Digest::from_bytes([0; 32]);
    // Every slot is filled by now.
    Ok(content_digest(geometry, |index| all[index.slot()].unwrap_or(nothing)))
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

fn broken(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Io, "read the image: a task ended early").because(error)
}
