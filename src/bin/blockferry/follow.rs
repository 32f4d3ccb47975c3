//! From a started job to its end: progress, signals, and what to paste afterwards.

use std::time::{Duration, Instant};

use blockferry::engine::{Job, JobOutcome};
use blockferry::options::EngineOptions;
use blockferry::{Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::context::Context;
use crate::out;
use crate::output::{Report, report_copy};
use crate::progress::{Display, Progress};

/// The exit code of a process that an interrupt ended.
const INTERRUPTED: i32 = 130;
/// Chunks in memory, where an end of the copy is not on this host.
const WINDOW_BYTES: u64 = 64 << 20;

/// What the first SIGINT or SIGTERM does to the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OnInterrupt {
    /// Checkpoint and stop; exit code 3
    Suspend,
    /// Roll back; exit code 4
    Cancel,
}

/// Options of the verbs that run a copy.
#[derive(Debug, clap::Args)]
pub(crate) struct Running {
    /// What the first SIGINT or SIGTERM does; a second one leaves at once
    #[arg(long, value_name = "WHAT", default_value = "suspend")]
    on_interrupt: OnInterrupt,
    /// Progress on stderr; auto: a bar on a terminal, else nothing
    #[arg(long, value_name = "HOW", default_value = "auto")]
    progress: Display,
    /// Worker threads; 0: one a core, and at least four
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Whether the copy may share its blocks with the source where the file system can
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    reflink: Reflink,
    /// What becomes of the copy's pages in the page cache once they are durable
    #[arg(long, value_name = "WHAT", default_value = "drop")]
    page_cache: PageCache,
}

impl Running {
    /// An engine with these options.
    pub(crate) fn of_engine(&self, options: EngineOptions) -> EngineOptions {
        let share = self.reflink == Reflink::Auto;
        let drop = self.page_cache == PageCache::Drop;
        // What is under way to or from another daemon.
        let options = options.with_memory_bytes_max(WINDOW_BYTES);
        options.with_threads(self.threads).with_share_extents(share).with_drop_behind(drop)
    }
}

/// What becomes of cached pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PageCache {
    /// They make room for others
    Drop,
    /// They stay, for whoever reads the copy next
    Keep,
}

/// Whether copies share blocks with their source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Reflink {
    /// Wherever that can be had: no byte is moved
    Auto,
    /// The copy has blocks of its own
    Never,
}

/// Interrupts, caught from before the job starts: none may slip through in between.
#[derive(Debug)]
pub(crate) struct Interrupts(mpsc::Receiver<()>);

impl Interrupts {
    pub(crate) fn catch() -> Result<Self> {
        let on = |kind| signal(kind).map_err(|error| Error::io("catch signals", error));
        let signals = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
        let (first, caught) = mpsc::channel(1);
        tokio::spawn(watch(signals, first));
        Ok(Self(caught))
    }

    /// Waits for the first one.
    #[cfg(any(feature = "clouds", feature = "peer"))]
    pub(crate) async fn first(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

async fn watch((mut interrupt, mut terminate): (Signal, Signal), first: mpsc::Sender<()>) {
    let mut count = 0;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        count += 1;
        if count > 1 {
            // As a crash: what is staged stays, and the job can be resumed or cancelled.
            std::process::exit(INTERRUPTED);
        }
        first.send(()).await.ok();
    }
}

/// Follows a job to its end.
pub(crate) async fn follow(
    job: &Job,
    running: &Running,
    mut interrupts: Interrupts,
    context: &Context,
    json: bool,
) -> Report {
    let began = Instant::now();
    if !json && job.outcome().is_none() {
        let spec = job.spec();
        out::note(&format!("job {}: {} to {}", job.id(), spec.source, spec.target));
    }
    let mut progress = Progress::new(running.progress, job);
    let outcome = {
        let mut ended = Box::pin(job.wait());
        loop {
            tokio::select! {
                outcome = &mut ended => break outcome,
                Some(()) = interrupts.0.recv() => {
                    tokio::spawn(stop(job.clone(), running.on_interrupt));
                }
                () = tokio::time::sleep(progress.interval()) => progress.show(job),
            }
        }
    };
    progress.end(job);
    let elapsed = began.elapsed().max(Duration::from_millis(1));
    report_copy(job, &outcome, elapsed).with_notes(what_next(job, &outcome, context))
}

async fn stop(job: Job, how: OnInterrupt) {
    match how {
        OnInterrupt::Suspend => drop(job.suspend().await),
        OnInterrupt::Cancel => {
            // A cancel that fails to decide leaves the job running; a suspend always stops it.
            if let Err(error) = job.cancel().await {
                out::note(&format!("blockferry: {}", error.report()));
                drop(job.suspend().await);
            }
        }
    }
}

/// The lines to paste when the job can go on.
fn what_next(job: &Job, outcome: &JobOutcome, context: &Context) -> Vec<String> {
    let said = match outcome {
        JobOutcome::Suspended => format!("job {} suspended", job.id()),
        JobOutcome::Failed { resumable: true, .. } => {
            format!("job {} can be resumed", job.id())
        }
        _ => return Vec::new(),
    };
    vec![
        said,
        format!("  resume: {}", context.line("resume", job.id())),
        format!("  cancel: {}", context.line("cancel", job.id())),
    ]
}
