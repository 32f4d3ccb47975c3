//! One fault at every call to the disk, in every scenario: all of them, counted.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;
use std::{env, thread};

use blockferry::ErrorKind;
use blockferry::id::JobId;
use blockferry::options::{CopyOptions, Limits};
use blockferry::testing::{Action, Failure};
use tokio::time::{sleep, timeout};

use super::host::{
    AGES, DESTINATIONS, Daemon, FILE, Host, MEMORY, TARGETS, bytes_of, in_simulation, options,
    panics, request,
};
use super::oracle::Oracle;
use super::settle::{all_ended, settle, told};
use crate::world::{end, region};

const KILLS: [Action; 2] = [Action::KillBefore, Action::KillAfter];
const POWER: [Action; 6] = [
    Action::PowerBefore(0),
    Action::PowerBefore(50),
    Action::PowerBefore(100),
    Action::PowerAfter(0),
    Action::PowerAfter(50),
    Action::PowerAfter(100),
];
const FAILURES: [Action; 8] = [
    Action::Fail(Failure::Io),
    Action::Fail(Failure::NoSpace),
    Action::Fail(Failure::Short),
    Action::Fail(Failure::Interrupted),
    Action::FailFrom(Failure::Io),
    Action::FailFrom(Failure::NoSpace),
    Action::FailFrom(Failure::Short),
    Action::Full,
];
/// What another process meets is a call that has had its effect, or is about to.
const HOLDS: [Action; 2] = [Action::HoldBefore, Action::HoldAfter];
/// Of all pairs, the default suite tries one in so many.
const PAIR_STEP: usize = 64;
/// So many broken promises are enough to see what is wrong.
const BROKEN_MAX: usize = 16;
/// What a crash is where pairs of them are tried.
const CRASHES: [Action; 3] = [Action::KillAfter, Action::PowerAfter(0), Action::PowerAfter(100)];

fn at_most(bytes_per_sec: u64) -> CopyOptions {
    options().with_limits(Limits::NONE.with_bytes_per_sec(bytes_per_sec))
}

/// Slow enough that something can come in between.
fn slow() -> CopyOptions {
    at_most(20_000)
}

/// So slow that what lies behind the first chunk takes more than two seconds.
fn crawling() -> CopyOptions {
    at_most(1_000)
}

/// What is done while something goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    /// An image is copied into a folder.
    Copy,
    /// An image with a hole in its middle.
    Sparse,
    /// An image that is encrypted where it lies.
    #[cfg(feature = "encrypt")]
    Encrypted,
    /// To a plain file, whose commit moves the bytes themselves.
    Commit,
    /// To a region that has no files, so that several chunks are under way at once.
    Remote,
    /// A suspended job goes on to its end.
    Resume,
    /// A running job is cancelled.
    Cancel,
    /// What a killed process left is settled.
    Recover,
}

const SCENARIOS: &[Scenario] = &[
    Scenario::Copy,
    Scenario::Sparse,
    #[cfg(feature = "encrypt")]
    Scenario::Encrypted,
    Scenario::Commit,
    Scenario::Remote,
    Scenario::Resume,
    Scenario::Cancel,
    Scenario::Recover,
];

/// What is done to a scenario.
#[derive(Clone, Copy, Debug)]
enum Doing {
    Nothing,
    /// At its call of that number.
    At(u64, Action),
    /// The same, and power is lost as soon as the scenario is told how it ended.
    AtThenPower(u64, Action),
    /// A crash at that call, and another at that call of the recovery.
    Twice((u64, Action), (u64, Action)),
    /// A second process cancels while that call stands still.
    CancelAt(u64, Action),
    /// The same, and power is lost as soon as it is answered.
    CancelAtThenPower(u64, Action),
    /// A second process starts a copy to the same destination while that call stands still.
    RivalAt(u64, Action),
    /// Somebody else puts a file at the destination while that call stands still.
    StrangerAt(u64, Action),
    /// The engine is dropped while that call stands still.
    DropAt(u64),
    /// The call to the engine is dropped after so many polls.
    PollsOnly(u64),
}

/// What came of a point.
#[derive(Debug)]
struct Done {
    verdict: Result<(), String>,
    /// Calls of the scenario, and of the recovery after it.
    calls: (u64, u64),
    /// Whether what was to happen has happened.
    taken: bool,
}

struct Stage {
    host: Host,
    oracle: Arc<Mutex<Oracle>>,
    scenario: Scenario,
    daemon: Daemon,
    job: Option<JobId>,
}

impl Scenario {
    fn destination(self) -> usize {
        match self {
            Self::Commit => FILE,
            Self::Remote => MEMORY,
            _ => 0,
        }
    }

    fn source(self) -> Vec<u8> {
        let is_long = matches!(self, Self::Sparse | Self::Remote);
        let mut bytes = bytes_of(0, if is_long { 140_000 } else { 70_001 });
        if self == Self::Sparse {
            bytes[20_000..135_000].fill(0);
        }
        bytes
    }

    /// Everything up to the part that is tried.
    async fn begin(self) -> Stage {
        let source = self.source();
        let host = Host::new(7, &source, true);
        let mut oracle = Oracle::default();
        oracle.knows_source(source);
        let daemon = host.daemon(true).await.unwrap();
        let mut stage =
            Stage { host, oracle: Arc::new(Mutex::new(oracle)), scenario: self, daemon, job: None };
        if matches!(self, Self::Resume | Self::Cancel | Self::Recover) {
            let to = DESTINATIONS[self.destination()];
            let job = stage.daemon.engine.copy(request("s/image", to, slow())).await.unwrap();
            stage.oracle().was_started(job.id(), self.destination());
            stage.job = Some(job.id());
            sleep(Duration::from_millis(500)).await;
            if self == Self::Resume {
                stage.daemon.engine.suspend(job.id()).await.unwrap();
            }
            if self != Self::Cancel {
                stage.daemon.process.kill();
                sleep(Duration::from_secs(1)).await;
                stage.daemon = stage.host.daemon(true).await.unwrap();
            }
        }
        stage
    }
}

impl Stage {
    fn oracle(&self) -> std::sync::MutexGuard<'_, Oracle> {
        self.oracle.lock().unwrap()
    }

    /// The part that is tried.
    async fn act(&self, doing: Doing) {
        let (daemon, destination) = (&self.daemon, self.scenario.destination());
        let tell = |told: &dyn Fn(&mut Oracle)| {
            if daemon.process.is_alive() {
                told(&mut self.oracle());
            }
        };
        let started = match (self.scenario, self.job) {
            (Scenario::Cancel, Some(job)) => {
                self.oracle().is_asked(job);
                match (daemon.engine.cancel(job).await, doing) {
                    (Ok(reply), _) => tell(&|oracle| oracle.was_answered_of(job, &reply)),
                    (Err(error), Doing::At(_, Action::Full)) => {
                        tell(&|oracle| oracle.violated(format!("a cancel needs no room: {error}")));
                    }
                    (Err(_), _) => {}
                }
                return;
            }
            (Scenario::Recover, _) => {
                daemon.engine.recover(&region("b")).await.ok();
                return;
            }
            (_, Some(job)) => daemon.engine.resume(job).await,
            (_, None) => {
                // Where several chunks are under way, most of them are to wait for their turn.
                let options = if destination == MEMORY { slow() } else { options() };
                #[cfg(feature = "encrypt")]
                let options = match self.scenario {
                    Scenario::Encrypted => super::host::encrypted(options),
                    _ => options,
                };
                daemon.engine.copy(request("s/image", DESTINATIONS[destination], options)).await
            }
        };
        let Ok(job) = started else { return };
        tell(&|oracle| {
            oracle.was_started(job.id(), destination);
            oracle.look(&self.host);
        });
        let outcome = job.wait().await;
        tell(&|oracle| oracle.was_told(job.id(), &outcome));
        if let Err(what) = all_ended(&daemon.engine) {
            tell(&|oracle| oracle.violated(what.clone()));
        }
    }

    /// What others do while a call stands still; they are given some time before it goes on.
    async fn beside(&self, doing: Doing) {
        self.host.sim.taken().await;
        let Ok(other) = self.host.daemon(true).await else { return };
        let mut others = pin!(async {
            match doing {
                Doing::RivalAt(..) => self.start_beside(&other).await,
                Doing::StrangerAt(..) => self.oracle().knows_stranger(self.host.put_stranger()),
                Doing::CancelAtThenPower(..) => self.cancel_beside(&other, true).await,
                _ => self.cancel_beside(&other, false).await,
            }
        });
        // A cancel waits 30 seconds for clean; then it is told what was decided, and no more.
        let patience = match (doing, self.scenario) {
            (Doing::CancelAtThenPower(..), Scenario::Copy) => Duration::from_secs(40),
            _ => Duration::from_secs(2),
        };
        if timeout(patience, others.as_mut()).await.is_err() {
            self.host.sim.release();
            others.await;
        }
        self.host.sim.release();
    }

    async fn cancel_beside(&self, other: &Daemon, then_power: bool) {
        let destination = self.scenario.destination();
        self.oracle().is_asked_at(destination);
        let to = end(DESTINATIONS[destination]);
        match other.engine.cancel_image(&to.region, &to.image).await {
            Ok(reply) => self.oracle().was_answered(&reply),
            // Nothing fails here: all that may come in between is the one who decides.
            Err(error) if error.kind() == ErrorKind::Busy => {}
            Err(error) => self.oracle().violated(told("a cancel", &error)),
        }
        if then_power {
            self.host.sim.lose_power(0);
        }
    }

    async fn start_beside(&self, other: &Daemon) {
        let destination = self.scenario.destination();
        let request = request("s/image", DESTINATIONS[destination], crawling());
        let job = match other.engine.copy(request).await {
            Ok(job) => job,
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::Exists) => return,
            Err(error) => return self.oracle().violated(told("a rival's start", &error)),
        };
        self.oracle().was_started(job.id(), destination);
        self.oracle().look(&self.host);
        let outcome = job.wait().await;
        self.oracle().was_told(job.id(), &outcome);
    }
}

fn run(scenario: Scenario, doing: Doing, dice: u64) -> Done {
    let panicked = panics();
    in_simulation(async {
        let stage = scenario.begin().await;
        let sim = stage.host.sim.clone();
        let from = sim.call_count();
        match doing {
            Doing::At(call, action)
            | Doing::AtThenPower(call, action)
            | Doing::CancelAt(call, action)
            | Doing::CancelAtThenPower(call, action)
            | Doing::RivalAt(call, action)
            | Doing::StrangerAt(call, action)
            | Doing::Twice((call, action), _) => sim.plan(from + call, action),
            Doing::DropAt(call) => sim.plan(from + call, Action::HoldBefore),
            Doing::Nothing | Doing::PollsOnly(_) => {}
        }
        let mut taken = None;
        match doing {
            Doing::CancelAt(..)
            | Doing::CancelAtThenPower(..)
            | Doing::RivalAt(..)
            | Doing::StrangerAt(..) => {
                // A scenario with fewer calls ends the test; what would meet it waits for ever.
                tokio::select! {
                    ((), ()) = async { tokio::join!(stage.act(doing), stage.beside(doing)) } => {}
                    () = sleep(AGES) => {}
                }
            }
            Doing::DropAt(_) => tokio::select! {
                () = stage.act(doing) => {}
                () = sim.taken() => {}
            },
            Doing::PollsOnly(polls) => taken = Some(!poll_only(stage.act(doing), polls).await),
            _ => {
                let acted = timeout(AGES, stage.act(doing)).await;
                if acted.is_err() {
                    stage.oracle().violated("it hangs".to_owned());
                }
                if matches!(doing, Doing::AtThenPower(..)) {
                    sim.lose_power(0);
                }
            }
        }
        let (calls, taken) =
            (sim.call_count() - from, taken.unwrap_or_else(|| sim.taken_count() > 0));
        stage.oracle().look(&stage.host);
        let verdict = stage.end(doing, dice).await;
        let verdict = match panics() - panicked {
            0 => verdict,
            count => verdict.and(Err(format!("{count} panics"))),
        };
        Done { verdict, calls: (calls, sim.call_count() - from - calls), taken }
    })
}

impl Stage {
    async fn end(self, doing: Doing, dice: u64) -> Result<(), String> {
        let Self { host, oracle, daemon, .. } = self;
        let process = daemon.process.clone();
        if let Doing::DropAt(_) | Doing::PollsOnly(_) = doing {
            // The process lives on without its engine; what it was in the middle of runs on.
            drop(daemon);
            host.sim.release();
            sleep(Duration::from_secs(100)).await;
        }
        process.kill();
        host.sim.heal();
        sleep(Duration::from_secs(100)).await;
        oracle.lock().unwrap().look(&host);
        if let Doing::Twice(_, (call, action)) = doing {
            host.sim.plan(host.sim.call_count() + call, action);
            if let Ok(recoverer) = host.daemon(true).await {
                for name in TARGETS {
                    recoverer.engine.recover(&region(name)).await.ok();
                }
                recoverer.process.kill();
            }
            host.sim.heal();
            sleep(Duration::from_secs(100)).await;
            oracle.lock().unwrap().look(&host);
        }
        let ended = settle(&host, &oracle, dice).await;
        oracle.lock().unwrap().look(&host);
        oracle.lock().unwrap().verdict().and(ended)
    }
}

/// Polls a future so often at most; whether it was ready.
async fn poll_only(future: impl Future<Output = ()>, polls: u64) -> bool {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        future.as_mut().poll(context).map(|()| true)
    })
    .await
}

/// Runs all points on all cores, or until enough of them have broken a promise.
fn all(points: &[(Scenario, Doing)]) -> BTreeMap<String, usize> {
    let next = AtomicUsize::new(0);
    let (broken, counts) = (Mutex::new(Vec::new()), Mutex::new(BTreeMap::new()));
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while broken.lock().unwrap().len() < BROKEN_MAX {
                    let n = next.fetch_add(1, Relaxed);
                    let Some((scenario, doing)) = points.get(n) else { break };
                    let done = run(*scenario, *doing, u64::try_from(n / 2).unwrap());
                    if let Err(what) = done.verdict {
                        broken.lock().unwrap().push(format!("{scenario:?}, {doing:?}: {what}"));
                    }
                    assert!(done.taken, "{scenario:?}, {doing:?}: it did not happen");
                    *counts.lock().unwrap().entry(format!("{scenario:?}")).or_default() += 1;
                }
            });
        }
    });
    let broken = broken.into_inner().unwrap();
    assert!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
    counts.into_inner().unwrap()
}

fn calls_of(scenario: Scenario) -> (u64, u64) {
    let done = run(scenario, Doing::Nothing, 0);
    assert_eq!(done.verdict, Ok(()), "{scenario:?} by itself");
    // One that is refused at once would have next to no calls to try anything at.
    assert!(done.calls.0 >= 20, "{scenario:?} by itself: {} calls", done.calls.0);
    done.calls
}

fn count_told(what: &str, counts: &BTreeMap<String, usize>) {
    let sum: usize = counts.values().sum();
    eprintln!("enumeration, {what}: {sum} of {sum} points {counts:?}");
}

#[test]
fn a_crash_or_a_failure_at_any_call_breaks_no_promise() {
    let mut points = Vec::new();
    for &scenario in SCENARIOS {
        for call in 0..calls_of(scenario).0 {
            for action in KILLS.into_iter().chain(POWER).chain(FAILURES) {
                points.push((scenario, Doing::At(call, action)));
            }
            points.extend(FAILURES.map(|failure| (scenario, Doing::AtThenPower(call, failure))));
        }
    }
    count_told("crash or failure at every call", &all(&points));
}

#[test]
fn a_cancel_or_a_drop_at_any_call_breaks_no_promise() {
    let mut points = Vec::new();
    for &scenario in SCENARIOS {
        for call in 0..calls_of(scenario).0 {
            for hold in HOLDS {
                points.push((scenario, Doing::CancelAt(call, hold)));
                points.push((scenario, Doing::CancelAtThenPower(call, hold)));
            }
            points.push((scenario, Doing::DropAt(call)));
        }
        let polls = (1..).take_while(|polls| run(scenario, Doing::PollsOnly(*polls), 0).taken);
        points.extend(polls.map(|polls| (scenario, Doing::PollsOnly(polls))));
    }
    count_told("cancel, and drop, at every call and poll", &all(&points));
}

#[test]
fn a_rival_or_a_stranger_at_any_call_breaks_no_promise() {
    let mut points = Vec::new();
    for &scenario in SCENARIOS {
        for call in 0..calls_of(scenario).0 {
            points.extend(HOLDS.map(|hold| (scenario, Doing::RivalAt(call, hold))));
            if scenario.destination() == FILE {
                points.extend(HOLDS.map(|hold| (scenario, Doing::StrangerAt(call, hold))));
            }
        }
    }
    count_told("rival, and stranger, at every call", &all(&points));
}

#[test]
fn a_crash_during_the_recovery_from_any_crash_breaks_no_promise() {
    let mut points = Vec::new();
    for &scenario in SCENARIOS {
        for call in 0..calls_of(scenario).0 {
            for first in CRASHES {
                let calls = recovery_calls(scenario, (call, first));
                let seconds = (0..calls).map(|second| (second, first));
                points
                    .extend(seconds.map(|second| (scenario, Doing::Twice((call, first), second))));
            }
        }
    }
    let pairs = points.len();
    if env::var("BLOCKFERRY_SIM_PAIRS").is_err() {
        points = points.into_iter().step_by(PAIR_STEP).collect();
    }
    eprintln!("enumeration, pairs: {} of {pairs}", points.len());
    count_told("crash during the recovery from a crash", &all(&points));
}

/// How many calls it takes to open an engine and recover after that crash.
fn recovery_calls(scenario: Scenario, (call, action): (u64, Action)) -> u64 {
    in_simulation(async {
        let stage = scenario.begin().await;
        let sim = stage.host.sim.clone();
        sim.plan(sim.call_count() + call, action);
        timeout(AGES, stage.act(Doing::Nothing)).await.ok();
        stage.daemon.process.kill();
        sim.heal();
        sleep(Duration::from_secs(100)).await;
        let from = sim.call_count();
        let recoverer = stage.host.daemon(true).await.unwrap();
        for name in TARGETS {
            recoverer.engine.recover(&region(name)).await.ok();
        }
        sim.call_count() - from
    })
}
