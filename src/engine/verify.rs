//! Reads staged chunks back, past the page cache, and compares them with what was written.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

use crate::chunk::Digest;
use crate::engine::pool::{PIECE_BYTES, Scratch};
use crate::engine::run::Run;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun, Geometry, to_u64, to_usize};
use crate::job::Verified;
use crate::options::Verify;
use crate::region::LocalFile;
use crate::sabotage;
use crate::seal::{ChunkHasher, digest_of, is_zero};

/// How many chunks are read back at a time, memory permitting.
const READ_BACK_COUNT_MAX: u64 = 4;

/// What verification found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) verified: Verified,
    /// Chunks that do not compare equal.
    pub(crate) failed: Vec<ChunkIndex>,
}

/// Verifies runs as they become durable, until the sender is gone.
pub(crate) async fn follow(
    run: &Arc<Run>,
    mode: Verify,
    durable: &mut UnboundedReceiver<ChunkRun>,
) -> Result<Findings> {
    let mut findings = Findings::default();
    findings.verified.mode = mode;
    let at_once = run.budget_chunks().clamp(1, READ_BACK_COUNT_MAX);
    let mut reads = JoinSet::new();
    while let Some(chunks) = durable.recv().await {
        for index in chunks.iter().filter(|index| is_chosen(mode, *index)) {
            if run.halt.is_cancelled() {
                break;
            }
            while to_u64(reads.len()) >= at_once {
                settle(&mut reads, &mut findings).await?;
            }
            let run = run.clone();
            reads.spawn(async move { (index, check(&run, index).await) });
        }
    }
    while !reads.is_empty() {
        settle(&mut reads, &mut findings).await?;
    }
    Ok(findings)
}

type Check = (ChunkIndex, Result<(bool, u64)>);

async fn settle(reads: &mut JoinSet<Check>, findings: &mut Findings) -> Result<()> {
    let Some(ended) = reads.join_next().await else { return Ok(()) };
    let (index, checked) =
        ended.map_err(|error| Error::new(ErrorKind::Io, "verify a chunk").because(error))?;
    let (equal, bytes) = checked?;
    findings.verified.chunks += 1;
    findings.verified.bytes += bytes;
    if !equal {
        findings.failed.push(index);
    }
    Ok(())
}

/// Whether that chunk is part of the sample: chunks are chosen evenly over the image.
fn is_chosen(mode: Verify, index: ChunkIndex) -> bool {
    match mode {
        _ if sabotage::is("M7") => false,
        Verify::None => false,
        Verify::Full => true,
        Verify::Sample { per_million } => {
            let step = |n: u64| n * u64::from(per_million) / 1_000_000;
            let n = u64::from(index.get());
            // Chunk 0 is always chosen: a sample of a small image is not empty.
            n == 0 || step(n + 1) > step(n)
        }
    }
}

/// Reads one chunk back and compares it; tells also how many bytes were read.
async fn check(run: &Arc<Run>, index: ChunkIndex) -> Result<(bool, u64)> {
    let geometry = run.spec.geometry;
    let range = geometry.range(index);
    let expected = run.ledger.digest(index).flatten();
    if let Some(local) = run.target.local() {
        let place = run.target.location();
        return run
            .pool
            .run(move |scratch| {
                check_local(&local, geometry, index, expected, scratch)
                    .map_err(|error| error.at(place, range.offset))
            })
            .await?;
    }
    let _room = run.reserve_memory().await?;
    let bytes = run.target.read_back(range).await?;
    let read = to_u64(bytes.len());
    let equal = run
        .pool
        .run(move |_| match expected {
            _ if read != range.len => false,
            None => is_zero(&bytes),
            Some(digest) => digest_of(geometry, index, &bytes) == digest,
        })
        .await?;
    Ok((equal, read))
}

/// As above, for a file on this host: piece by piece, on the worker thread that calls it.
fn check_local(
    local: &LocalFile,
    geometry: Geometry,
    index: ChunkIndex,
    expected: Option<Digest>,
    scratch: &mut Scratch,
) -> Result<(bool, u64)> {
    let range = geometry.range(index);
    let in_hole = |data: Option<u64>| data.is_none_or(|data| data >= range.end());
    if expected.is_none()
        && local.file_system.trusts_holes()
        && in_hole(local.file.next_data(range.offset)?)
    {
        return Ok((true, 0));
    }
    // What comes back must come from the device, not from memory.
    sabotage::unless("M8", || local.file.evict(range))?;
    if let Some(encrypted) = &local.encrypted {
        encrypted.evict(range)?;
    }
    let mut hasher = ChunkHasher::new(geometry, index);
    let mut all_zero = true;
    let mut chunk = None;
    let mut at = range.offset;
    while at < range.end() {
        let len = to_usize(range.end() - at).min(PIECE_BYTES);
        let piece = &mut scratch.piece()[..len];
        let read = match &local.encrypted {
            // What does not decrypt does not verify. Zeros were not written, and have no record.
            Some(encrypted) if expected.is_some() => {
                match encrypted.read(&local.file, at, piece, &mut chunk) {
                    Err(error) if error.kind() == ErrorKind::Corrupt => 0,
                    read => read.map(|_| len)?,
                }
            }
            _ => local.file.read_at(at, piece)?,
        };
        if read < len {
            return Ok((false, at - range.offset));
        }
        match expected {
            None => all_zero &= is_zero(piece),
            Some(_) => hasher.update(piece),
        }
        at += to_u64(len);
    }
    let equal = match expected {
        None => all_zero,
        Some(digest) => hasher.finish() == digest,
    };
    Ok((equal, range.len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_share_asked_for() {
        for per_million in [1, 50_000, 333_333, 1_000_000] {
            let mode = Verify::Sample { per_million };
            let count = (0..100_000).filter(|n| is_chosen(mode, ChunkIndex::new(*n))).count();
            let wanted = usize::try_from(per_million / 10).unwrap();
            assert!(count.abs_diff(wanted) <= 1, "{per_million}: {count}");
        }
        assert!(!is_chosen(Verify::None, ChunkIndex::new(0)));
    }
}
