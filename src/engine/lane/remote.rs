//! The remote lane: a bounded set of async chunk tasks; hashing runs on the pool, never on the
//! runtime.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::time::{Instant, sleep};

use crate::chunk::Written;
use crate::engine::fan::{Chunk, Claim, Hand, Turn};
use crate::engine::memory::Room;
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
        let Some(_held) = run.hold_chunk().await else { break };
        match come_by(run, ways, index).await? {
            Come::Chunk(chunk) => put(run, ways, index, &chunk).await?,
            Come::Alone(ends) => local::copy(run, &ends, ChunkRun::new(index, 1), true).await?,
            Come::Halted => break,
        }
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

/// How a chunk was come by.
enum Come {
    /// It was read, or taken from another leg of a fan-out.
    Chunk(Arc<Chunk>),
    /// There is no room for it, and both ends are on this host: it goes by the other lane.
    Alone(Arc<local::Ends>),
    Halted,
}

async fn come_by(run: &Arc<Run>, ways: &Ways, index: ChunkIndex) -> Result<Come> {
    let len = run.spec.geometry.range(index).len;
    for attempt in 1.. {
        // Order: room first, so that what has passed the limits moves at once. In a fan-out another
        // may have the chunk.
        let mut room = None;
        if ways.hand.is_none() {
            room = reserve(run).await?;
            if room.is_none() {
                break;
            }
        }
        // Retries are charged: a limit is a limit on what the source has to serve. What is taken is
        // charged to who takes it, as if read.
        if !pass_throttle(run, len, 1).await {
            break;
        }
        let mut claim = None;
        if let Some(hand) = &ways.hand {
            match take_turn(run, hand, index).await? {
                Some(Turned::Taken(chunk)) => return Ok(Come::Chunk(chunk)),
                Some(Turned::Own(own)) => claim = Some(own),
                None => {
                    run.gates.give_back(len);
                    break;
                }
            }
            room = hand.wait(reserve(run)).await.transpose()?.flatten();
            if room.is_none() {
                // Nobody is to wait for what waits itself.
                claim.take().into_iter().for_each(Claim::withdraw);
                if let Some(ends) = ways.ends.as_ref().filter(|_| !run.halt.is_cancelled()) {
                    run.gates.give_back(len);
                    return Ok(Come::Alone(ends.clone()));
                }
                room = reserve(run).await?;
            }
        }
        let Some(room) = room else {
            run.gates.give_back(len);
            break;
        };
        match read(run, index, room).await {
            Ok(chunk) => {
                claim.into_iter().for_each(|claim| claim.show(&chunk));
                return Ok(Come::Chunk(chunk));
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
    Ok(Come::Halted)
}

/// Room for a chunk; `None`: halted first.
async fn reserve(run: &Run) -> Result<Option<Room>> {
    tokio::select! {
        biased;
        room = run.reserve_memory() => room.map(Some),
        () = run.halt.cancelled() => Ok(None),
    }
}

/// What a leg of a fan-out is to do for a chunk.
enum Turned {
    Taken(Arc<Chunk>),
    /// Read it.
    Own(Claim),
}

async fn take_turn(run: &Run, hand: &Hand, index: ChunkIndex) -> Result<Option<Turned>> {
    let began = Instant::now();
    let turned = loop {
        match hand.turn(index, &run.halt).await {
            None => return Ok(None),
            Some(Turn::Read(claim)) => break Turned::Own(claim),
            Some(Turn::Take(taking)) => tokio::select! {
                biased;
                () = run.halt.cancelled() => return Ok(None),
                taken = taking.taken() => if let Some(chunk) = taken {
                    check(run, index, &chunk.seal)?;
                    break Turned::Taken(chunk);
                },
            },
        }
    };
    run.counters.stalled(Stall::Read, began.elapsed());
    Ok(Some(turned))
}

async fn read(run: &Arc<Run>, index: ChunkIndex, room: Room) -> Result<Arc<Chunk>> {
    let geometry = run.spec.geometry;
    let range = geometry.range(index);
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
    check(run, index, &seal)?;
    Ok(Chunk::new(seal, room))
}

/// A chunk must be what the source of this run vouches for, whoever has read it.
fn check(run: &Run, index: ChunkIndex, seal: &Seal) -> Result<()> {
    let Some(vouched) = run.vouched() else { return Ok(()) };
    let digest = match seal {
        Seal::Zero(_) => None,
        Seal::Data(sealed) => Some(sealed.digest()),
    };
    let offset = run.spec.geometry.range(index).offset;
    check_vouched(digest, vouched.table().digest(index))
        .map_err(|error| error.at(run.source.location(), offset))
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
