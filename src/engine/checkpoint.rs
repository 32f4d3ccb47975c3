//! Checkpoints in the background: sync the target, then put on record what that made durable.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use crate::chunk::{Content, Durable};
use crate::engine::run::Run;
use crate::error::Result;
use crate::geometry::{ByteRange, ChunkRun};
use crate::job::Stall;
use crate::region::blocking;
use crate::sabotage;
use crate::sync::time::{Instant, timeout};

/// Makes checkpoints until the ledger is closed and everything in it is on record. Runs of chunks
/// that became durable go to `verify`. Workers never wait for it.
pub(crate) async fn keep(
    run: &Run,
    interval: Duration,
    verify: &UnboundedSender<ChunkRun>,
) -> Result<()> {
    loop {
        let closed = run.ledger.is_closed();
        if !closed {
            // Either a checkpoint is due by bytes, or by time: both are fine.
            timeout(interval, run.ledger.due()).await.ok();
        }
        let began = Instant::now();
        if sabotage::is("D8") {
            run.target.sync().await?;
        }
        let awaiting = run.ledger.take();
        if awaiting.is_empty() {
            if closed {
                return Ok(());
            }
            continue;
        }
        // Order: data first, then the record that it is durable.
        if !sabotage::is("M2") && !sabotage::is("D8") {
            run.target.sync().await?;
        }
        let durable = awaiting.synced();
        run.ledger.synced();
        run.target.checkpoint(&durable).await?;
        if sabotage::is("M2") {
            run.target.sync().await?;
        }
        run.counters.stalled(Stall::Sync, began.elapsed());
        if run.drop_behind {
            drop_pages(run, &durable).await;
        }
        for chunk in &durable {
            // The receiver outlives the sender; it only goes first when the run is ending.
            verify.send(chunk.run()).ok();
        }
    }
}

/// Takes what has just become durable out of the page cache: it is clean, so that costs no write,
/// and it would push out what others keep there.
async fn drop_pages(run: &Run, durable: &[Durable]) {
    let Some(target) = run.target.local() else { return };
    let mut ranges: Vec<ByteRange> = Vec::new();
    let is_data = |chunk: &&Durable| matches!(chunk.content(), Content::Data { .. });
    for range in durable.iter().filter(is_data).map(|c| run.spec.geometry.run_range(c.run())) {
        match ranges.last_mut() {
            Some(last) if last.end() == range.offset => last.len += range.len,
            _ => ranges.push(range),
        }
    }
    // Advice, no more: where it is not taken, nothing is lost.
    blocking(move || ranges.into_iter().try_for_each(|range| target.file.evict(range))).await.ok();
}

#[cfg(all(test, races))]
mod races {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use bytes::Bytes;
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::chunk::{Digest, Sealed, Written};
    use crate::engine::gate::Gates;
    use crate::engine::memory::Memory;
    use crate::engine::pool::Pool;
    use crate::engine::run::Start;
    use crate::geometry::ChunkIndex;
    use crate::id::ImageId;
    use crate::job::{Progress, sample_spec};
    use crate::manifest::Manifest;
    use crate::region::{
        BoxFuture, Capabilities, LocalFile, MemoryRegion, Outcome, Region, Restored, Source,
        Target, Wishes,
    };
    use crate::sync::{Mutex, races::check};

    /// A target that knows which of its chunks are durable: those that were written when a sync
    /// began that has returned.
    #[derive(Debug, Default)]
    struct Disk {
        written: Mutex<BTreeSet<u32>>,
        durable: Mutex<BTreeSet<u32>>,
        recorded: Mutex<BTreeSet<u32>>,
    }

    fn ready<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, Result<T>> {
        Box::pin(std::future::ready(Ok(value)))
    }

    impl Target for Disk {
        fn location(&self) -> String {
            "disk".into()
        }

        fn begin(&self) -> BoxFuture<'_, Result<Restored>> {
            ready(Restored::new(sample_spec().geometry))
        }

        fn write(&self, chunk: Sealed) -> BoxFuture<'_, Result<Written>> {
            self.written.lock().unwrap().insert(chunk.index().get());
            ready(chunk.written())
        }

        fn write_zeroes(&self, run: ChunkRun) -> BoxFuture<'_, Result<Written>> {
            ready(Written::zeroes(run))
        }

        fn sync(&self) -> BoxFuture<'_, Result<()>> {
            Box::pin(async {
                let mut began = self.written.lock().unwrap().clone();
                shuttle::future::yield_now().await;
                self.durable.lock().unwrap().append(&mut began);
                Ok(())
            })
        }

        fn checkpoint<'a>(&'a self, chunks: &'a [Durable]) -> BoxFuture<'a, Result<()>> {
            let durable = self.durable.lock().unwrap().clone();
            for chunk in chunks {
                let index = chunk.run().first.get();
                assert!(durable.contains(&index), "told durable, and written after the sync began");
                assert!(self.recorded.lock().unwrap().insert(index), "recorded twice");
            }
            ready(())
        }

        fn read_back(&self, _range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
            ready(Bytes::new())
        }

        fn commit<'a>(&'a self, _manifest: &'a Manifest) -> BoxFuture<'a, Result<Outcome>> {
            ready(Outcome::Committed)
        }

        fn finish(&self) -> BoxFuture<'_, Result<()>> {
            ready(())
        }

        fn discard(&self) -> BoxFuture<'_, Result<Outcome>> {
            ready(Outcome::Cancelled)
        }

        fn wishes(&self) -> BoxFuture<'_, Result<Wishes>> {
            ready(Wishes::default())
        }

        fn report<'a>(&'a self, _progress: &'a Progress) -> BoxFuture<'a, Result<()>> {
            ready(())
        }

        fn local(&self) -> Option<LocalFile> {
            None
        }
    }

    /// What a run asks for, and these tests do not use.
    fn surroundings() -> (Arc<dyn Source>, Arc<Pool>) {
        let image: ImageId = "m".parse().unwrap();
        let region = MemoryRegion::new("north");
        region.insert(&image, vec![1; 1_000_003]);
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(Ok(source)) = region.open(&image).as_mut().poll(&mut context) else {
            panic!("memory is ready at once")
        };
        (source, Arc::new(Pool::start(0).unwrap()))
    }

    /// A run whose ledger is full after two chunks.
    fn run_to(disk: &Arc<Disk>, source: &Arc<dyn Source>, pool: &Arc<Pool>) -> Arc<Run> {
        let spec = sample_spec();
        let restored = Restored::new(spec.geometry);
        let checkpoint_bytes = 2 * spec.geometry.chunk_size().bytes();
        let start = Start {
            spec,
            source: source.clone(),
            target: disk.clone(),
            capabilities: Capabilities::staged(),
            counters: Arc::default(),
            gates: Gates::new([]),
            stop: CancellationToken::new(),
            pool: pool.clone(),
            memory: Arc::new(Memory::new(1 << 20)),
            fans: Arc::default(),
            legs: 1,
            checkpoint_bytes,
            checkpoint_interval: Duration::from_secs(1),
            share_extents: false,
            drop_behind: false,
        };
        Arc::new(Run::new(start, restored))
    }

    /// What a lane does with a chunk.
    async fn lane(run: Arc<Run>, first: u32, count: u32) {
        for index in first..first + count {
            run.ledger.room().await;
            let range = run.spec.geometry.range(ChunkIndex::new(index));
            let data = Bytes::from(vec![1; crate::geometry::to_usize(range.len)]);
            let digest = Digest::from_bytes([7; 32]);
            let chunk = Sealed::new(ChunkIndex::new(index), range, digest, data);
            let written = run.target.write(chunk).await.unwrap();
            shuttle::future::yield_now().await;
            run.ledger.accept(written);
        }
    }

    #[test]
    fn no_chunk_is_lost_between_lanes_and_checkpoints_and_none_is_told_durable_too_early() {
        let (source, pool) = surroundings();
        check(35, move || {
            let disk = Arc::<Disk>::default();
            let run = run_to(&disk, &source, &pool);
            let (verify, mut verified) = mpsc::unbounded_channel();
            let lanes = [(0, 3), (3, 2), (5, 1)]
                .map(|(first, count)| shuttle::future::spawn(lane(run.clone(), first, count)));
            let keeper = run.clone();
            let keeper = shuttle::future::spawn(async move {
                keep(&keeper, Duration::from_secs(1), &verify).await.unwrap();
            });
            shuttle::future::block_on(async {
                for lane in lanes {
                    lane.await.unwrap();
                }
                run.ledger.close();
                keeper.await.unwrap();
            });
            let all: BTreeSet<u32> = (0..6).collect();
            assert_eq!(*disk.recorded.lock().unwrap(), all, "a chunk was lost");
            let mut told = 0;
            while let Ok(chunks) = verified.try_recv() {
                told += chunks.count;
            }
            assert_eq!(told, 6, "all of them are to be verified");
        });
    }

    /// Without the interval: whoever waits for enough to be there is woken when it is, or when no
    /// more comes.
    #[test]
    fn whoever_waits_for_a_checkpoint_to_be_due_is_woken() {
        let (source, pool) = surroundings();
        check(10, move || {
            let run = run_to(&Arc::default(), &source, &pool);
            let lanes = [(0, 2), (2, 3)]
                .map(|(first, count)| shuttle::future::spawn(lane(run.clone(), first, count)));
            let waiter = run.clone();
            let waiter = shuttle::future::spawn(async move {
                while !waiter.ledger.is_closed() {
                    waiter.ledger.due().await;
                    let taken = waiter.ledger.take();
                    drop(taken.synced());
                    waiter.ledger.synced();
                }
            });
            shuttle::future::block_on(async {
                for lane in lanes {
                    lane.await.unwrap();
                }
                run.ledger.close();
                waiter.await.unwrap();
            });
        });
    }
}
