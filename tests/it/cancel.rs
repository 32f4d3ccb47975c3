//! One winner, whenever a cancel or a failure comes: at every operation, on both sides of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use blockferry::engine::{CancelAnswer, Engine, Job, JobOutcome};
use blockferry::id::JobId;
use blockferry::options::Verify;
use blockferry::region::{Located, Region, Vote};
use blockferry::testing::{Hook, Hooked, Point, When};
use blockferry::{Error, ErrorKind};

use crate::world::{
    KIB, World, committed, ended, image, kind, noise, region, request, resumed, small, suspended,
};

/// A copy from region `from` to region `hooked`: the world's `m` and `place` behind a hook.
struct Play {
    world: World,
    place: &'static str,
    bytes: Vec<u8>,
}

/// Chunks of data, of zeros, and a last one that is not whole.
fn sample() -> Vec<u8> {
    let mut bytes = noise(7, 4 * 64 * KIB + 777);
    bytes[64 << 10..128 << 10].fill(0);
    bytes
}

impl Play {
    fn new(place: &'static str) -> Self {
        let (world, bytes) = (World::in_memory(), sample());
        world.m.insert(&image("disk"), bytes.clone());
        Self { world, place, bytes }
    }

    async fn engine(&self, hook: Hook) -> Engine {
        let options = self.world.options().with_checkpoint(64 * KIB, std::time::Duration::MAX);
        let engine = self.world.engine_with(options).await;
        for (name, behind) in [("from", "m"), ("hooked", self.place)] {
            let hooked = Hooked::new(self.world.region(behind), hook.clone());
            engine.register(region(name), Arc::new(hooked)).await.unwrap();
        }
        engine
    }

    async fn start(&self, engine: &Engine) -> blockferry::Result<Job> {
        let options = small().with_verify(Verify::Full).with_token("once");
        engine.copy(request("from/disk", "hooked/disk", options)).await
    }

    fn bare(&self) -> Arc<dyn Region> {
        self.world.region(self.place)
    }

    /// The image is visible with the right bytes; nothing else is there.
    async fn assert_committed(&self, job: JobId) {
        let region = self.bare();
        assert_eq!(region.locate(&image("disk")).await.unwrap(), Located::Committed(Some(job)));
        let source = region.open(&image("disk")).await.unwrap();
        let whole = blockferry::geometry::ByteRange::new(0, source.size_bytes());
        assert!(source.read_at(whole).await.unwrap() == self.bytes, "wrong bytes are visible");
    }

    async fn assert_nothing(&self) {
        let region = self.bare();
        assert_eq!(region.locate(&image("disk")).await.unwrap(), Located::Absent);
        assert!(region.jobs().await.unwrap().is_empty());
        assert!(region.list().await.unwrap().is_empty());
        match self.place {
            "n" => assert!(self.world.n.is_empty()),
            folder => self.world.assert_empty(folder),
        }
    }

    /// A new copy to the same destination goes through, once what is there is removed.
    async fn assert_free(&self, engine: &Engine) {
        let region = self.bare();
        if !region.list().await.unwrap().is_empty() {
            region.remove(&image("disk")).await.unwrap();
        }
        let job = engine.copy(request("from/disk", "hooked/disk", small())).await.unwrap();
        committed(ended(&job).await);
        self.assert_committed(job.id()).await;
    }
}

/// Decides to cancel from within a hook, which cannot await: on a thread of its own.
fn vote_now(region: Arc<dyn Region>, job: JobId) -> Vote {
    let vote = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(region.cancel(job, &image("disk"))).unwrap()
    });
    vote.join().unwrap()
}

/// The operations that a job itself makes, in an order that does not hang on the clock.
fn is_counted(point: Point) -> bool {
    !matches!(point.operation, "wishes" | "report" | "locate" | "jobs" | "job" | "recover")
}

/// Counts the points that matter, and does something at one of them.
struct Nth {
    seen: AtomicU64,
    at: u64,
}

impl Nth {
    fn at(at: u64) -> Arc<Self> {
        Arc::new(Self { seen: AtomicU64::new(0), at })
    }

    fn is_now(&self, point: Point) -> bool {
        is_counted(point) && self.seen.fetch_add(1, Ordering::SeqCst) == self.at
    }
}

async fn points_of_a_copy(place: &'static str) -> u64 {
    let play = Play::new(place);
    let never = Nth::at(u64::MAX);
    let counting = never.clone();
    let engine = play.engine(Arc::new(move |point| {
        counting.is_now(point);
        Ok(())
    }));
    let engine = engine.await;
    let job = play.start(&engine).await.unwrap();
    committed(ended(&job).await);
    play.assert_committed(job.id()).await;
    never.seen.load(Ordering::SeqCst)
}

/// Cancels at that point; tells whether the cancel won, and where it was.
async fn cancel_at(place: &'static str, n: u64) -> Option<(bool, Point)> {
    let play = Play::new(place);
    let told: Arc<Mutex<Option<(Point, Vote)>>> = Arc::default();
    let (nth, bare, tell) = (Nth::at(n), play.bare(), told.clone());
    // The job's number comes from its token; it is learned from a copy that is cancelled at once.
    let job = number_of_the_job().await;
    let hook: Hook = Arc::new(move |point| {
        if nth.is_now(point) {
            let vote = vote_now(bare.clone(), job);
            *tell.lock().unwrap() = Some((point, vote));
        }
        Ok(())
    });
    let engine = play.engine(hook).await;
    let started = play.start(&engine).await;
    let outcome = match &started {
        Ok(job) => Some(ended(job).await),
        Err(error) => {
            assert!(told.lock().unwrap().is_some(), "{error:?}");
            None
        }
    };
    let (point, vote) = (*told.lock().unwrap())?;
    let here = format!("cancel at point {n}, {point:?}: {vote:?}, {outcome:?}");
    let first = engine.cancel(job).await.unwrap().answer;
    let second = engine.cancel(job).await.unwrap().answer;
    assert_eq!(first, second, "{here}");
    let won = match (vote, &outcome) {
        (Vote::Cancelled { first: true, .. }, Some(JobOutcome::RolledBack { clean: true })) => {
            assert_eq!(first, CancelAnswer::AlreadyCancelled { clean: true }, "{here}");
            play.assert_nothing().await;
            true
        }
        (Vote::Committed, Some(JobOutcome::Committed(_))) => {
            assert_eq!(first, CancelAnswer::AlreadyCommitted, "{here}");
            play.assert_committed(job).await;
            false
        }
        // Before the stage is there, there is nothing to cancel yet.
        (Vote::Unknown, Some(JobOutcome::Committed(_))) => {
            let early = matches!(point.operation, "open" | "fingerprint" | "stage");
            assert!(early && (point.operation, point.when) != ("stage", When::After), "{here}");
            assert_eq!(first, CancelAnswer::AlreadyCommitted, "{here}");
            play.assert_committed(job).await;
            false
        }
        _ => unreachable!("{here}"),
    };
    play.assert_free(&engine).await;
    Some((won, point))
}

async fn number_of_the_job() -> JobId {
    let play = Play::new("n");
    let engine = play.engine(Arc::new(|_| Ok(()))).await;
    play.start(&engine).await.unwrap().id()
}

async fn cancel_everywhere(place: &'static str) {
    let count = points_of_a_copy(place).await;
    let mut won: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    // Checkpoints and reads may interleave otherwise, so there may be a few points more or less.
    for n in 0..count + 4 {
        let Some((cancelled, point)) = cancel_at(place, n).await else { continue };
        let counts = won.entry(point.operation).or_default();
        *(if cancelled { &mut counts.0 } else { &mut counts.1 }) += 1;
    }
    eprintln!("cancelled at each of about {count} points in {place}: (won, lost) {won:?}");
    let sum = |of: fn(&(u32, u32)) -> u32| won.values().map(of).sum::<u32>();
    assert!(sum(|counts| counts.0) >= 15, "the cancel wins before the commit: {won:?}");
    assert!(sum(|counts| counts.1) >= 3, "the cancel loses after the commit: {won:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cancel_at_any_operation_has_one_outcome_in_memory() {
    cancel_everywhere("n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cancel_at_any_operation_has_one_outcome_in_a_folder() {
    cancel_everywhere("b").await;
}

/// Fails once at that point; then whatever came of it is driven to rest.
async fn fail_at(place: &'static str, n: u64, failure: ErrorKind) -> Option<(String, Point)> {
    let play = Play::new(place);
    let told: Arc<Mutex<Option<Point>>> = Arc::default();
    let (nth, tell) = (Nth::at(n), told.clone());
    let hook: Hook = Arc::new(move |point| {
        if nth.is_now(point) {
            *tell.lock().unwrap() = Some(point);
            return Err(Error::new(failure, "do as the test says"));
        }
        Ok(())
    });
    let engine = play.engine(hook).await;
    let started = play.start(&engine).await;
    let job = match &started {
        Ok(job) => job.clone(),
        Err(error) => {
            // What was not acknowledged may be started again with the same token.
            assert_eq!(error.kind(), failure, "{error:?}");
            resumed_start(&play, &engine).await
        }
    };
    let outcome = ended(&job).await;
    let point = (*told.lock().unwrap())?;
    let here = format!("failure at point {n}, {point:?}: {outcome:?}");
    let ending = match (&started, &outcome) {
        (Err(_), JobOutcome::Committed(_)) => "refused, then committed",
        (Ok(_), JobOutcome::Committed(_)) => "committed all the same",
        (Ok(_), JobOutcome::Failed { error, resumable: true }) if error.kind() == failure => {
            committed(ended(&resumed(&engine, &job).await).await);
            "failed, then committed"
        }
        _ => unreachable!("{here}"),
    };
    play.assert_committed(job.id()).await;
    let again = engine.resume(job.id()).await.unwrap();
    committed(ended(&again).await);
    assert_eq!(engine.cancel(job.id()).await.unwrap().answer, CancelAnswer::AlreadyCommitted);
    engine.recover(&region("hooked")).await.unwrap();
    assert!(play.bare().jobs().await.unwrap().is_empty(), "{here}: a stage is left");
    play.assert_free(&engine).await;
    Some((ending.to_owned(), point))
}

async fn resumed_start(play: &Play, engine: &Engine) -> Job {
    let again = play.start(engine).await;
    assert!(again.is_ok(), "a start that failed may be made again: {again:?}");
    again.unwrap()
}

async fn fail_everywhere(place: &'static str, failure: ErrorKind) {
    let count = points_of_a_copy(place).await;
    let mut endings: BTreeMap<String, u32> = BTreeMap::new();
    for n in 0..count + 4 {
        let Some((ending, _)) = fail_at(place, n, failure).await else { continue };
        *endings.entry(ending).or_default() += 1;
    }
    eprintln!("failed with {failure:?} at each of about {count} points in {place}: {endings:?}");
    assert!(endings.len() >= 2, "{endings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_failure_at_any_operation_leaves_the_job_resumable_in_memory() {
    fail_everywhere("n", ErrorKind::Io).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_failure_at_any_operation_leaves_the_job_resumable_in_a_folder() {
    fail_everywhere("b", ErrorKind::Io).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_passing_failure_of_a_read_or_write_is_retried() {
    let play = Play::new("n");
    let (nth, count) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let failures = count.clone();
    let hook: Hook = Arc::new(move |point| {
        let is_write = matches!(point.operation, "write" | "write_zeroes");
        if is_write && nth.fetch_add(1, Ordering::SeqCst) % 3 == 0 {
            failures.fetch_add(1, Ordering::SeqCst);
            return Err(Error::new(ErrorKind::Unavailable, "do as the test says"));
        }
        Ok(())
    });
    let engine = play.engine(hook).await;
    let job = play.start(&engine).await.unwrap();
    committed(ended(&job).await);
    play.assert_committed(job.id()).await;
    assert!(count.load(Ordering::SeqCst) >= 2);
}

/// What a resume does, with a cancel from elsewhere at each of its operations.
async fn cancel_a_resume_at(place: &'static str, n: u64) -> Option<(bool, Point)> {
    let play = Play::new(place);
    let job = {
        let engine = play.engine(Arc::new(|_| Ok(()))).await;
        let options = small().with_limits(crate::world::rate(1));
        let job = engine.copy(request("from/disk", "hooked/disk", options)).await.unwrap();
        suspended(&job.suspend().await);
        engine.limit(job.id(), blockferry::options::Limits::NONE).await.unwrap();
        job.id()
    };
    let told: Arc<Mutex<Option<(Point, Vote)>>> = Arc::default();
    let (seen, bare, tell) = (AtomicU64::new(0), play.bare(), told.clone());
    let hook: Hook = Arc::new(move |point| {
        if seen.fetch_add(1, Ordering::SeqCst) == n {
            let vote = vote_now(bare.clone(), job);
            *tell.lock().unwrap() = Some((point, vote));
        }
        Ok(())
    });
    let engine = play.engine(hook).await;
    let outcome = match engine.resume(job).await {
        Ok(job) => Ok(ended(&job).await),
        Err(error) => Err(error),
    };
    let (point, vote) = (*told.lock().unwrap())?;
    let here = format!("cancel at point {n}, {point:?}: {vote:?}, {outcome:?}");
    let answer = engine.cancel(job).await.unwrap().answer;
    let there = play.bare().locate(&image("disk")).await.unwrap();
    let won = match vote {
        Vote::Cancelled { .. } => {
            assert_eq!(answer, CancelAnswer::AlreadyCancelled { clean: true }, "{here}");
            assert_eq!(there, Located::Absent, "{here}");
            assert!(!matches!(outcome, Ok(JobOutcome::Committed(_))), "{here}");
            true
        }
        _ => {
            assert_eq!(answer, CancelAnswer::AlreadyCommitted, "{here}");
            assert_eq!(there, Located::Committed(Some(job)), "{here}");
            assert!(matches!(outcome, Ok(JobOutcome::Committed(_))), "{here}");
            false
        }
    };
    Some((won, point))
}

async fn cancel_a_resume_everywhere(place: &'static str) {
    const PASSES_MAX: u32 = 10;
    let mut won: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    let committed = |won: &BTreeMap<&str, (u32, u32)>| won.values().any(|(_, lost)| *lost > 0);
    // Looks at wishes and checkpoints hang on the clock, so that the number of an operation differs
    // from run to run: the end is where a few in a row find none, and a pass may step over a point.
    for _ in 0..PASSES_MAX {
        let (mut n, mut beyond) = (0, 0);
        while beyond < 6 {
            let found = cancel_a_resume_at(place, n).await;
            n += 1;
            let Some((cancelled, point)) = found else {
                beyond += 1;
                continue;
            };
            beyond = 0;
            let counts = won.entry(point.operation).or_default();
            *(if cancelled { &mut counts.0 } else { &mut counts.1 }) += 1;
        }
        if committed(&won) {
            break;
        }
    }
    eprintln!("cancelled at each point of a resume in {place}: (won, lost) {won:?}");
    assert!(won.contains_key("recover") && won.contains_key("reopen"), "{won:?}");
    assert!(committed(&won), "the commit is reached: {won:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_job_that_was_cancelled_while_it_is_resumed_never_commits_in_memory() {
    cancel_a_resume_everywhere("n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_job_that_was_cancelled_while_it_is_resumed_never_commits_in_a_folder() {
    cancel_a_resume_everywhere("b").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hook_that_is_left_alone_changes_nothing() {
    let play = Play::new("b");
    let engine = play.engine(Arc::new(|_| Ok(()))).await;
    let job = play.start(&engine).await.unwrap();
    committed(ended(&job).await);
    play.assert_committed(job.id()).await;
    assert_eq!(
        kind(engine.copy(request("from/disk", "hooked/disk", small())).await),
        Some(ErrorKind::Exists)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_checkpoint_covers_only_what_a_sync_has_made_durable() {
    let play = Play::new("n");
    let told: Arc<Mutex<Vec<Point>>> = Arc::default();
    let tell = told.clone();
    let hook: Hook = Arc::new(move |point| {
        tell.lock().unwrap().push(point);
        Ok(())
    });
    let engine = play.engine(hook).await;
    let job = play.start(&engine).await.unwrap();
    committed(ended(&job).await);
    let told = told.lock().unwrap().clone();
    let kept = |point: &&Point| matches!(point.operation, "sync" | "checkpoint" | "commit");
    let order: Vec<_> = told.iter().filter(kept).map(|p| (p.operation, p.when)).collect();
    let (sides, pair) = ([When::Before, When::After], ["sync", "checkpoint"]);
    let round: Vec<_> = pair.iter().flat_map(|name| sides.map(|when| (*name, when))).collect();
    let (rounds, commit) = order.split_at(order.len() - 2);
    assert!(rounds.len() >= 4, "{order:?}");
    assert!(rounds.chunks(4).all(|one| one == round), "sync, then checkpoint: {order:?}");
    assert_eq!(commit, sides.map(|when| ("commit", when)), "everything is on record by then");
}

/// Two writes are held up. Once the job has heard of the cancel the one is let go; the other only
/// after the job has looked for wishes a few times more, which it does as long as it has not ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cancelled_job_ends_only_when_what_is_in_flight_has_ended() {
    let play = Play::new("n");
    let (first, held_first) = std::sync::mpsc::channel::<()>();
    let (second, held_second) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(vec![held_second, held_first]);
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let hook: Hook = Arc::new(move |point| {
        tell.send(point).ok();
        if (point.operation, point.when) == ("write", When::Before) {
            let held = held.lock().unwrap().pop();
            // It ends when the other side is dropped. What the runtime had set aside for this
            // thread goes to another one: it may be the second write.
            tokio::task::block_in_place(|| {
                held.into_iter().for_each(|held| assert!(held.recv().is_err()));
            });
        }
        Ok(())
    });
    let engine = play.engine(hook).await;
    let job = play.start(&engine).await.unwrap();
    for _ in 0..2 {
        while told.recv().await.unwrap().operation != "write" {}
    }
    let asked = job.clone();
    let cancel = tokio::spawn(async move { asked.cancel().await });
    while told.recv().await.unwrap().operation != "cancel" {}
    for release in [first, second] {
        let mut looks = 0;
        while looks < 3 {
            let point = told.recv().await.unwrap();
            assert_ne!(point.operation, "discard", "a write is in flight");
            looks += u32::from((point.operation, point.when) == ("wishes", When::After));
        }
        drop(release);
    }
    assert_eq!(cancel.await.unwrap().unwrap().answer, CancelAnswer::Cancelled { clean: true });
    assert!(matches!(ended(&job).await, JobOutcome::RolledBack { clean: true }));
    play.assert_nothing().await;
}
