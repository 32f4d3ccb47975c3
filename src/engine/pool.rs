//! The engine's worker threads: one queue that all jobs share, so that each gets its turn.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::host;

/// How much of a chunk is read and hashed at a time: it stays in a core's L2 cache.
pub(crate) const PIECE_BYTES: usize = 256 << 10;
/// How much a device takes in one request where writes go to it directly.
pub(crate) const WINDOW_BYTES: usize = 1 << 20;
/// Where a window begins in memory: direct writes ask for whole pages.
pub(crate) const SCRATCH_ALIGNMENT: usize = 4096;

/// What a worker thread lends to the work it runs.
pub(crate) struct Scratch {
    buffer: Box<[u8]>,
    start: usize,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let buffer = vec![0; WINDOW_BYTES + SCRATCH_ALIGNMENT].into_boxed_slice();
        // A window that could not be aligned is as good, but for direct writes.
        let start = buffer.as_ptr().align_offset(SCRATCH_ALIGNMENT).min(SCRATCH_ALIGNMENT);
        Self { buffer, start }
    }

    /// The whole window.
    pub(crate) fn window(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.start + WINDOW_BYTES]
    }

    /// As much of it as stays in the core's cache.
    pub(crate) fn piece(&mut self) -> &mut [u8] {
        &mut self.window()[..PIECE_BYTES]
    }
}

type Work = Box<dyn FnOnce(&mut Scratch) + Send>;

/// A fixed number of threads; in a simulation none, and fibers in their place. Dropping it lets
/// them end after what is queued; it does not wait.
#[derive(Debug)]
pub(crate) struct Pool {
    queue: Sender<Work>,
    threads: usize,
    closed: Arc<AtomicBool>,
}

impl Pool {
    pub(crate) fn start(threads: usize) -> Result<Self> {
        let (queue, work) = unbounded();
        let closed = Arc::new(AtomicBool::new(false));
        for number in 0..if host::is_simulated() { 0 } else { threads } {
            let work: Receiver<Work> = work.clone();
            let closed = closed.clone();
            thread::Builder::new()
                .name(format!("blockferry-{number}"))
                .spawn(move || run(&work, &closed))
                .map_err(|error| Error::io("start a worker thread", error))?;
        }
        Ok(Self { queue, threads, closed })
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Drops what is queued, as a crash would. What is under way runs to its end.
    pub(crate) fn close(&self) {
        self.closed.store(true, Relaxed);
    }

    /// Runs work on a thread of the pool, in the order of asking.
    ///
    /// The work runs to its end even when the future is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Scratch) -> T + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let work: Work = Box::new(move |scratch| {
            let done = catch_unwind(AssertUnwindSafe(|| work(scratch)));
            // Nobody waits for the answer when the future was dropped.
            drop(reply.send(done));
        });
        if host::is_simulated() {
            let closed = self.closed.clone();
            host::spawn_blocking(move || work_on(work, &closed, &mut Scratch::new()));
        } else {
            let queued = self.queue.send(work);
            queued.map_err(|_| Error::new(ErrorKind::Io, "queue work: no threads"))?;
        }
        match answer.await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(panic)) => Err(Error::new(ErrorKind::Io, told(&*panic))),
            Err(gone) => Err(Error::new(ErrorKind::Io, "run work: its thread ended").because(gone)),
        }
    }
}

fn run(work: &Receiver<Work>, closed: &AtomicBool) {
    let mut scratch = Scratch::new();
    while let Ok(work) = work.recv() {
        work_on(work, closed, &mut scratch);
    }
}

fn work_on(work: Work, closed: &AtomicBool, scratch: &mut Scratch) {
    if !closed.load(Relaxed) {
        work(scratch);
    }
}

fn told(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("run work: it panicked: {}", text.unwrap_or("without a message"))
}
