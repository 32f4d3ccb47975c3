//! Reads staged chunks back, past the page cache, and compares them with what was written.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

use crate::engine::run::Run;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun, to_u64};
use crate::job::Verified;
use crate::options::Verify;
use crate::seal::{digest_of, is_zero};

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
    if expected.is_none()
        && let Some(local) = run.target.local()
        && local.trusts_holes
        && local.file.next_data(range.offset)?.is_none_or(|data| data >= range.end())
    {
        return Ok((true, 0));
    }
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
