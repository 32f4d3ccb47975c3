//! The remote lane: a bounded set of async chunk tasks; hashing runs on the pool, never on the
//! runtime.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::time::{Instant, sleep};

use crate::chunk::Written;
use crate::engine::fan::{Chunk, Claim, Hand, Taken, Turn};
use crate::engine::progress::Counters;
use crate::engine::retry::retry_after;
use crate::engine::run::Run;
use crate::error::Result;
use crate::geometry::{ChunkIndex, ChunkRun};
use crate::host::{Toll, pass_toll, tolled};
use crate::job::Stall;
use crate::seal::{Seal, seal};

use super::{Ways, base, check_vouched, enter, local, pass_throttle};

/// Copies chunks one after the other, each whole in memory, within the engine's memory budget.
pub(super) async fn copy(run: &Arc<Run>, ways: &Ways, chunks: ChunkRun) -> Result<()> {
    for index in chunks.iter() {
        if run.halt.is_cancelled() {
            break;
        }
        let _held = run.hold_chunk().await;
        let Some(chunk) = come_by(run, ways, index).await? else { break };
        put(run, ways, index, &chunk).await?;
    }
    Ok(())
}

/// The limits of a run, as its ends see them when they have to move bytes again.
struct Limited(Arc<Run>);

impl Toll for Limited {
    fn pass(&self, bytes: u64) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            // The time is that of the read or write that it holds up. What is in hand when a run is
            // halted is brought to its end, and waits for nothing.
            let _turn = self.0.gates_turn.lock().await;
            self.0.gates.pass(bytes, 1, &self.0.halt).await;
        })
    }
}

/// Reads a chunk, or takes it from another leg of a fan-out; `None`: halted first.
async fn come_by(run: &Arc<Run>, ways: &Ways, index: ChunkIndex) -> Result<Option<Arc<Chunk>>> {
    for attempt in 1.. {
        // Retries are charged: a limit is a limit on what the source has to serve. What is taken is
        // charged to who takes it, as if read.
        if !pass_throttle(run, run.spec.geometry.range(index).len, 1).await {
            break;
        }
        let claim = match &ways.hand {
            None => None,
            Some(hand) => match take_turn(run, hand, index).await {
                Come::Taken(chunk) => return Ok(Some(chunk)),
                Come::Halted => break,
                Come::Own(claim) => claim,
            },
        };
        match read(run, index).await {
            Ok(chunk) => {
                claim.into_iter().for_each(|claim| claim.show(&chunk));
                return Ok(Some(chunk));
            }
            Err(error) => {
                // Others must not wait for our next attempt.
                drop(claim);
                match retry_after(&error, attempt) {
                    Some(delay) => sleep(delay).await,
                    None => return Err(error),
                }
            }
        }
    }
    Ok(None)
}

/// What a leg of a fan-out is to do for a chunk.
enum Come {
    Taken(Arc<Chunk>),
    /// Read it, for others too where there is a claim.
    Own(Option<Claim>),
    Halted,
}

async fn take_turn(run: &Run, hand: &Hand, index: ChunkIndex) -> Come {
    let began = Instant::now();
    let come = loop {
        match hand.turn(index, &run.halt).await {
            None => return Come::Halted,
            Some(Turn::Read(claim)) => break Come::Own(Some(claim)),
            Some(Turn::Take(taking)) => tokio::select! {
                biased;
                () = run.halt.cancelled() => return Come::Halted,
                taken = taking.taken() => match taken {
                    Taken::Chunk(chunk) => break Come::Taken(chunk),
                    Taken::Late => break Come::Own(None),
                    Taken::Lost => {}
                },
            },
        }
    };
    run.counters.stalled(Stall::Read, began.elapsed());
    come
}

async fn read(run: &Arc<Run>, index: ChunkIndex) -> Result<Arc<Chunk>> {
    let geometry = run.spec.geometry;
    let range = geometry.range(index);
    let room = run.reserve_memory().await?;
    let began = Instant::now();
    let limited: Arc<dyn Toll> = Arc::new(Limited(run.clone()));
    let data = tolled(limited, run.source.read_at(range)).await;
    run.counters.stalled(Stall::Read, began.elapsed());
    let data = data?;
    Counters::add(&run.counters.read_bytes, range.len);

    let counters = run.counters.clone();
    let seal = run
        .pool
        .run(move |_| {
            let began = Instant::now();
            let sealed = seal(geometry, index, data);
            counters.stalled(Stall::Seal, began.elapsed());
            sealed
        })
        .await?;
    if let Some(vouched) = run.vouched() {
        let digest = match &seal {
            Seal::Zero(_) => None,
            Seal::Data(sealed) => Some(sealed.digest()),
        };
        check_vouched(digest, vouched.table().digest(index))
            .map_err(|error| error.at(run.source.location(), range.offset))?;
    }
    Ok(Chunk::new(seal, room))
}

/// Writes a chunk, where the base does not spare it.
async fn put(run: &Arc<Run>, ways: &Ways, index: ChunkIndex, chunk: &Chunk) -> Result<()> {
    if let Seal::Data(sealed) = &chunk.seal
        && base::spares(run, index, sealed.digest()).await?
    {
        return Ok(());
    }
    if let (Seal::Data(sealed), Some(ends)) = (&chunk.seal, &ways.ends) {
        return local::put(run, ends, sealed.clone()).await;
    }
    let began = Instant::now();
    let len = run.spec.geometry.range(index).len;
    let limited: Arc<dyn Toll> = Arc::new(Limited(run.clone()));
    let written = match &chunk.seal {
        Seal::Zero(index) if run.is_blank() => Ok(Written::zeroes(ChunkRun::new(*index, 1))),
        Seal::Zero(index) => {
            let write = || run.target.write_zeroes(ChunkRun::new(*index, 1));
            tolled(limited, retried(len, write)).await
        }
        Seal::Data(sealed) => {
            Counters::add(&run.counters.written_bytes, len);
            tolled(limited, retried(len, || run.target.write(sealed.clone()))).await
        }
    };
    run.counters.stalled(Stall::Write, began.elapsed());
    enter(run, written?);
    Ok(())
}

/// Writes of a chunk at its place are idempotent, so they may be made again. They are charged, as
/// reads are.
async fn retried<T, F: Future<Output = Result<T>>>(bytes: u64, call: impl Fn() -> F) -> Result<T> {
    let mut attempt = 1;
    loop {
        match call().await {
            Err(error) => match retry_after(&error, attempt) {
                Some(delay) => sleep(delay).await,
                None => return Err(error),
            },
            done => return done,
        }
        pass_toll(bytes).await;
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;
    use crate::error::{Error, ErrorKind};

    #[derive(Default)]
    struct Counted(Mutex<Vec<u64>>);

    impl Toll for Counted {
        fn pass(&self, bytes: u64) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
            Box::pin(async move { self.0.lock().unwrap().push(bytes) })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_write_but_the_first_is_charged_here() {
        let toll = Arc::new(Counted::default());
        let calls = AtomicU32::new(0);
        let write = || async {
            match calls.fetch_add(1, Relaxed) {
                0 | 1 => Err(Error::new(ErrorKind::Unavailable, "write")),
                _ => Ok(()),
            }
        };
        tolled(toll.clone(), retried(7, write)).await.unwrap();
        assert_eq!(*toll.0.lock().unwrap(), [7, 7]);
        retried(7, write).await.unwrap();
        assert_eq!(calls.load(Relaxed), 4);
    }
}
