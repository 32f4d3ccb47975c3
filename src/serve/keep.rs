//! What a push has written and not recorded yet, and how it gets on record: sync, then checkpoint.

use std::sync::PoisonError;

use crate::chunk::{AwaitingSync, Durable, Written};
use crate::error::Result;
use crate::geometry::{ChunkRun, to_u64};
use crate::region::Target;
use crate::sync::{Mutex, MutexGuard};

/// Chunks of one record.
const RECORD_COUNT_MAX: usize = 8 << 10;

/// Chunks on their way from written to recorded.
#[derive(Debug, Default)]
pub(super) struct Book {
    pages: Mutex<Pages>,
    /// One sync or checkpoint at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Pages {
    written: Vec<Written>,
    written_bytes: u64,
    durable: Vec<Durable>,
    /// A sync or a checkpoint has failed: nothing is recorded any more.
    broken: bool,
}

impl Book {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the target accepted; gives how many bytes wait for a sync.
    pub(super) fn enter(&self, written: &[Written], bytes: u64) -> u64 {
        let mut pages = self.pages();
        pages.written.extend_from_slice(written);
        pages.written_bytes += bytes;
        pages.written_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        let pages = self.pages();
        pages.written.is_empty() && pages.durable.is_empty()
    }

    /// Makes durable what was written before this was called.
    pub(super) async fn sync(&self, target: &dyn Target) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.sync_now(target).await
    }

    /// Puts on record what is durable, as far as `admit` lets it.
    pub(super) async fn record(
        &self,
        target: &dyn Target,
        admit: impl Fn(Vec<Durable>) -> Vec<Durable>,
        recorded: impl Fn(&[Durable]) -> Result<()>,
    ) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.record_now(target, admit, recorded).await
    }

    /// Both, one after the other.
    pub(super) async fn keep(
        &self,
        target: &dyn Target,
        admit: impl Fn(Vec<Durable>) -> Vec<Durable>,
        recorded: impl Fn(&[Durable]) -> Result<()>,
    ) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.sync_now(target).await?;
        self.record_now(target, admit, recorded).await
    }

    async fn sync_now(&self, target: &dyn Target) -> Result<()> {
        self.check()?;
        let mut written = {
            let mut pages = self.pages();
            pages.written_bytes = 0;
            std::mem::take(&mut pages.written)
        };
        if written.is_empty() {
            return Ok(());
        }
        written.sort_by_key(|chunk| chunk.run().first);
        let awaiting = AwaitingSync::new(written);
        // Order: data first, then the record that it is durable.
        if let Err(error) = target.sync().await {
            self.pages().broken = true;
            return Err(error);
        }
        self.pages().durable.extend(awaiting.synced());
        Ok(())
    }

    async fn record_now(
        &self,
        target: &dyn Target,
        admit: impl Fn(Vec<Durable>) -> Vec<Durable>,
        recorded: impl Fn(&[Durable]) -> Result<()>,
    ) -> Result<()> {
        self.check()?;
        let durable = std::mem::take(&mut self.pages().durable);
        // Order: admitted first, as from there on no other content is taken. A chunk that was
        // written over and then again as before looks as if it had never changed, but its last
        // write is not synced: it waits for that.
        let durable = {
            let admitted = admit(durable);
            let mut pages = self.pages();
            let written = Overlap::of(&pages.written);
            let (waits, durable): (Vec<_>, Vec<_>) =
                admitted.into_iter().partition(|chunk| written.meets(chunk.run()));
            pages.durable.extend(waits);
            durable
        };
        for chunks in durable.chunks(RECORD_COUNT_MAX) {
            if let Err(error) = target.checkpoint(chunks).await {
                self.pages().broken = true;
                return Err(error);
            }
            recorded(chunks)?;
        }
        Ok(())
    }

    /// A sync that failed is never tried again as if it were harmless.
    fn check(&self) -> Result<()> {
        use crate::error::{Error, ErrorKind};
        match self.pages().broken {
            true => Err(Error::new(ErrorKind::Io, "record chunks after a sync that failed")),
            false => Ok(()),
        }
    }
}

/// Runs that were written, to see which others meet them.
struct Overlap(Vec<ChunkRun>);

impl Overlap {
    fn of(written: &[Written]) -> Self {
        let mut runs: Vec<ChunkRun> = written.iter().map(Written::run).collect();
        runs.sort_by_key(|run| run.first);
        // Apart, so that their ends ascend as well.
        let mut apart: Vec<ChunkRun> = Vec::with_capacity(runs.len());
        for run in runs {
            match apart.last_mut().filter(|last| run.first.get() <= last.end()) {
                Some(last) => last.count = last.end().max(run.end()) - last.first.get(),
                None => apart.push(run),
            }
        }
        Self(apart)
    }

    fn meets(&self, run: ChunkRun) -> bool {
        let at = self.0.partition_point(|written| written.end() <= run.first.get());
        self.0.get(at).is_some_and(|written| written.first.get() < run.end())
    }
}

/// How many bytes these chunks may hold.
pub(super) fn bytes_of(written: &[Written]) -> u64 {
    use crate::chunk::Content;
    let data = |chunk: &Written| match chunk.content() {
        Content::Data { data_bytes, .. } => u64::from(data_bytes),
        Content::Zero => 0,
    };
    debug_assert!(to_u64(written.len()) < u64::from(u32::MAX));
    written.iter().map(data).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;
    use crate::geometry::{ChunkIndex, ChunkSize, Geometry};
    use crate::id::JobId;
    use crate::job::{Endpoint, Fingerprint, JobSpec};
    use crate::region::{MemoryRegion, Region};

    fn run(first: u32, count: u32) -> ChunkRun {
        ChunkRun::new(ChunkIndex::new(first), count)
    }

    fn zeroes(first: u32, count: u32) -> Written {
        Written::zeroes(run(first, count))
    }

    #[test]
    fn runs_meet_where_they_share_a_chunk() {
        let overlap = Overlap::of(&[zeroes(8, 2), zeroes(2, 2), zeroes(3, 3), zeroes(8, 1)]);
        for (first, count, meets) in [
            (0, 2, false),
            (0, 3, true),
            (4, 1, true),
            (5, 1, true),
            (6, 2, false),
            (6, 3, true),
            (9, 5, true),
            (10, 5, false),
            (0, 100, true),
        ] {
            assert_eq!(overlap.meets(run(first, count)), meets, "{first} {count}");
        }
        assert!(!Overlap::of(&[]).meets(run(0, 9)));
    }

    /// A chunk is written, synced, written over and then written again as it was first: what is on
    /// the disk if power is lost now is not what the table says.
    #[tokio::test]
    async fn a_chunk_that_was_written_since_its_sync_is_not_recorded() {
        let region = MemoryRegion::new("here");
        let end = |name: &str| Endpoint::new("here".parse().unwrap(), name.parse().unwrap());
        let geometry = Geometry::new(64 << 16, ChunkSize::MIN).unwrap();
        let job = JobId::from_bytes([1; 16]);
        let spec = JobSpec::new(job, end("m"), end("to"), geometry, Fingerprint::new());
        let target = region.stage(&spec).await.unwrap();
        target.begin().await.unwrap();
        let book = Book::default();
        let recorded = AtomicUsize::new(0);
        let count = |chunks: &[Durable]| {
            recorded.fetch_add(chunks.len(), SeqCst);
            Ok(())
        };
        for chunk in [zeroes(0, 4), zeroes(9, 1)] {
            book.enter(&[target.write_zeroes(chunk.run()).await.unwrap()], 0);
        }
        book.sync(&*target).await.unwrap();
        // Whatever stood there in between, this is its latest write, and it is not synced.
        book.enter(&[target.write_zeroes(run(2, 1)).await.unwrap()], 0);
        book.record(&*target, |all| all, count).await.unwrap();
        assert_eq!(recorded.load(SeqCst), 1, "the run that was not touched");
        assert!(!book.is_empty());
        book.keep(&*target, |all| all, count).await.unwrap();
        assert_eq!(recorded.load(SeqCst), 3, "the rest, once that is synced");
        assert!(book.is_empty());
    }
}
