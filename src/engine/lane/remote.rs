//! The remote lane: a bounded set of async chunk tasks; hashing runs on the pool, never on the
//! runtime.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::time::{Instant, sleep};

use crate::chunk::Written;
use crate::engine::progress::Counters;
use crate::engine::retry::retry_after;
use crate::engine::run::Run;
use crate::error::Result;
use crate::geometry::{ChunkIndex, ChunkRun};
use crate::host::{Toll, pass_toll, tolled};
use crate::job::Stall;
use crate::seal::{Seal, seal};

use super::{base, check_vouched, enter, pass_throttle};

/// Copies chunks one after the other, each whole in memory, within the engine's memory budget.
pub(super) async fn copy(run: &Arc<Run>, chunks: ChunkRun) -> Result<()> {
    for index in chunks.iter() {
        if run.halt.is_cancelled() {
            break;
        }
        copy_chunk(run, index).await?;
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

async fn copy_chunk(run: &Arc<Run>, index: ChunkIndex) -> Result<()> {
    let geometry = run.spec.geometry;
    let range = geometry.range(index);
    let limited: Arc<dyn Toll> = Arc::new(Limited(run.clone()));
    let _room = run.reserve_memory().await?;

    let mut data = None;
    for attempt in 1.. {
        // Retries are charged: a limit is a limit on what the source has to serve.
        if !pass_throttle(run, range.len, 1).await {
            return Ok(());
        }
        let began = Instant::now();
        let read = tolled(limited.clone(), run.source.read_at(range)).await;
        run.counters.stalled(Stall::Read, began.elapsed());
        match read {
            Ok(bytes) => {
                Counters::add(&run.counters.read_bytes, range.len);
                data = Some(bytes);
                break;
            }
            Err(error) => match retry_after(&error, attempt) {
                Some(delay) => sleep(delay).await,
                None => return Err(error),
            },
        }
    }
    let Some(data) = data else { return Ok(()) };

    let counters = run.counters.clone();
    let sealed = run
        .pool
        .run(move |_| {
            let began = Instant::now();
            let sealed = seal(geometry, index, data);
            counters.stalled(Stall::Seal, began.elapsed());
            sealed
        })
        .await?;
    if let Some(vouched) = run.vouched() {
        let digest = match &sealed {
            Seal::Zero(_) => None,
            Seal::Data(sealed) => Some(sealed.digest()),
        };
        check_vouched(digest, vouched.table().digest(index))
            .map_err(|error| error.at(run.source.location(), range.offset))?;
    }

    if let Seal::Data(sealed) = &sealed
        && base::spares(run, index, sealed.digest()).await?
    {
        return Ok(());
    }
    let began = Instant::now();
    let len = range.len;
    let written = match sealed {
        Seal::Zero(index) if run.is_blank() => Ok(Written::zeroes(ChunkRun::new(index, 1))),
        Seal::Zero(index) => {
            let write = || run.target.write_zeroes(ChunkRun::new(index, 1));
            tolled(limited, retried(len, write)).await
        }
        Seal::Data(sealed) => {
            Counters::add(&run.counters.written_bytes, range.len);
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
