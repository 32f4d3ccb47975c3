//! One life of the simulated host: what happens to it is drawn from a seed, or given.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use blockferry::ErrorKind;
use blockferry::engine::{CancelReply, Job, Shutdown};
use blockferry::options::Limits;
use blockferry::testing::{Action, Failure, Faults, Rng};
use tokio::time::{sleep, timeout};

use super::host::{
    AGES, DESTINATIONS, Daemon, Host, TARGETS, bytes_of, encrypted, in_simulation, panics, request,
    verified,
};
use super::oracle::Oracle;
use super::settle::{all_ended, settle, told};
use crate::world::{end, image, region};

/// Everything that a life follows from.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) seed: u64,
    pub(crate) source_len: usize,
    pub(crate) file_system: &'static str,
    /// The source is an image with digests of its own.
    pub(crate) vouched: bool,
    /// The source is an image in memory.
    pub(crate) in_memory: bool,
    /// Copies to the region with folders have a base there, whose reads may be wrong.
    pub(crate) based: bool,
    /// Extents may be shared.
    pub(crate) share: bool,
    pub(crate) often: bool,
    pub(crate) verify: bool,
    /// Images in folders are encrypted.
    pub(crate) encrypted: bool,
    /// What has become durable stays in the page cache.
    pub(crate) keep_pages: bool,
    /// Pages of room, if it is scarce.
    pub(crate) room: Option<u64>,
    pub(crate) faults: Faults,
    pub(crate) steps: Vec<Step>,
}

/// Something that happens. Engines, destinations and tokens are told by number.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Start { engine: usize, to: usize, token: Option<u8>, slow: bool },
    Cancel { engine: usize, nth: usize },
    CancelImage { engine: usize, to: usize },
    Suspend { engine: usize, nth: usize },
    Resume { engine: usize, nth: usize },
    Limit { engine: usize, nth: usize, slow: bool },
    Recover { engine: usize },
    Kill { engine: usize },
    Drop { engine: usize },
    Shutdown { engine: usize, cancel: bool },
    Power { keep: u64 },
    Plan { ahead: u64, action: Action },
    Wait { ms: u64 },
    Clock { ms: i64 },
    Touch,
    Stranger,
}

/// What a life came to.
#[derive(Debug)]
pub(crate) struct Lived {
    pub(crate) verdict: Result<(), String>,
    pub(crate) trace: u64,
    pub(crate) calls: u64,
    pub(crate) log: Vec<String>,
}

impl Case {
    /// Half of what could happen is left out of each life: so rare things meet each other.
    pub(crate) fn draw(seed: u64) -> Self {
        let rng = &mut Rng::new(seed);
        let rate = |rng: &mut Rng, rates: &[u64]| match rng.chance(1, 2) {
            true => rng.pick(rates).unwrap(),
            false => 0,
        };
        let crashes = rng.chance(1, 2);
        let mut faults = Faults::default();
        faults.io = rate(rng, &[0, 0, 500, 5_000]);
        faults.no_space = rate(rng, &[0, 0, 500, 5_000]);
        faults.interrupted = rate(rng, &[1_000, 20_000]);
        faults.short = rate(rng, &[1_000, 50_000]);
        faults.delayed = rate(rng, &[500, 5_000]);
        faults.hung = rate(rng, &[0, 200]);
        faults.interleaved = rate(rng, &[5_000, 50_000, 200_000]);
        faults.written_back = rate(rng, &[5_000, 50_000]);
        faults.killed = rate(rng, &[0, 0, 1_000]);
        faults.power_lost = if crashes { rate(rng, &[0, 1_000]) } else { 0 };
        let vouched = rng.chance(1, 4);
        let verify = rng.chance(1, 3);
        faults.flipped_reads =
            if vouched || rng.chance(1, 4) { rate(rng, &[0, 50_000]) } else { 0 };
        faults.rotten_syncs = if verify { rate(rng, &[0, 200_000]) } else { 0 };
        faults.misdirected = if verify { rate(rng, &[0, 200_000]) } else { 0 };
        let mut case = Self {
            seed,
            source_len: rng.pick(&[0, 1, 5_000, 65_536, 70_001, 140_000, 262_144]).unwrap(),
            file_system: rng.pick(&["ext4", "ext4", "xfs", "tmpfs", "other"]).unwrap(),
            vouched,
            in_memory: !vouched && rng.chance(1, 6),
            based: rng.chance(1, 4),
            share: rng.chance(3, 4),
            often: rng.chance(1, 2),
            verify,
            encrypted: false,
            keep_pages: false,
            room: rng.chance(1, 8).then(|| 20 + rng.below(150)),
            faults,
            steps: Vec::new(),
        };
        let kinds: Vec<u64> = (0..KINDS).filter(|_| rng.chance(1, 2)).collect();
        let count = 2 + rng.below(8);
        case.steps.push(Step::start(rng));
        for _ in 0..count {
            case.steps.push(Step::draw(rng, &kinds));
            if rng.chance(1, 2) {
                case.steps.push(Step::Wait { ms: rng.pick(&[0, 1, 20, 100, 700, 5000]).unwrap() });
            }
        }
        // Last, so that all else is as it was drawn before there was any of this. An encrypted image
        // takes no base.
        case.encrypted = rng.chance(1, 4) && cfg!(feature = "encrypt") && !case.based;
        case.keep_pages = rng.chance(1, 2);
        case
    }

    /// Whether a call can be made to fail so, and not only for want of room.
    fn fails_with(&self, failure: Failure) -> bool {
        let (at_random, planned) =
            (&self.faults, [Action::Fail(failure), Action::FailFrom(failure)]);
        let rate = if failure == Failure::Io { at_random.io } else { at_random.no_space };
        let is_planned =
            |step: &Step| matches!(step, Step::Plan { action, .. } if planned.contains(action));
        rate > 0 || self.steps.iter().any(is_planned)
    }
}

const KINDS: u64 = 16;

impl Step {
    fn start(rng: &mut Rng) -> Self {
        Self::Start {
            engine: small(rng, 2),
            to: small(rng, 4),
            token: rng.chance(1, 2).then(|| u8::try_from(rng.below(2)).unwrap()),
            slow: rng.chance(1, 4),
        }
    }

    fn draw(rng: &mut Rng, kinds: &[u64]) -> Self {
        let engine = small(rng, 2);
        let nth = small(rng, 3);
        match rng.pick(kinds).unwrap_or(0) {
            0 => Self::start(rng),
            1 => Self::Cancel { engine, nth },
            2 => Self::CancelImage { engine, to: small(rng, 4) },
            3 => Self::Suspend { engine, nth },
            4 => Self::Resume { engine, nth },
            5 => Self::Limit { engine, nth, slow: rng.chance(1, 2) },
            6 => Self::Recover { engine },
            7 => Self::Kill { engine },
            8 => Self::Drop { engine },
            9 => Self::Shutdown { engine, cancel: rng.chance(1, 2) },
            10 => Self::Power { keep: rng.pick(&[0, 50, 100]).unwrap() },
            11 => Self::Clock {
                ms: 31_536_000 * i64::try_from(rng.below(2001)).unwrap() - 31_536_000_000,
            },
            12 => Self::Touch,
            13 => Self::Stranger,
            _ => Self::Plan { ahead: rng.below(300), action: action(rng) },
        }
    }
}

fn small(rng: &mut Rng, below: u64) -> usize {
    usize::try_from(rng.below(below)).unwrap()
}

fn action(rng: &mut Rng) -> Action {
    let failure = rng.pick(&[Failure::Io, Failure::NoSpace, Failure::Short]).unwrap();
    let keep = rng.pick(&[0, 50, 100]).unwrap();
    let all = [
        Action::KillBefore,
        Action::KillAfter,
        Action::PowerBefore(keep),
        Action::PowerAfter(keep),
        Action::Fail(failure),
        Action::FailFrom(failure),
        Action::Full,
    ];
    rng.pick(&all).unwrap()
}

pub(crate) fn live(case: &Case, keep_log: bool) -> Lived {
    let panicked = panics();
    in_simulation(async {
        let life = Life::new(case, keep_log).await;
        let lived = timeout(100 * AGES, life.run(case)).await;
        if lived.is_err() {
            life.oracle().violated("it hangs".to_owned());
        }
        if panics() > panicked {
            life.oracle().violated("something panicked".to_owned());
        }
        Lived {
            verdict: life.oracle().verdict(),
            trace: life.host.sim.trace(),
            calls: life.host.sim.call_count(),
            log: life.host.sim.log(),
        }
    })
}

struct Life {
    host: Host,
    oracle: Arc<Mutex<Oracle>>,
    daemons: Mutex<[Option<Daemon>; 2]>,
    often: bool,
}

impl Life {
    async fn new(case: &Case, keep_log: bool) -> Self {
        let source = bytes_of(0, case.source_len);
        let mut host = Host::new(case.seed, &source, case.share);
        if case.keep_pages {
            host.keep_pages();
        }
        host.sim.use_file_system(case.file_system);
        if keep_log {
            host.sim.keep_log();
        }
        let mut oracle = Oracle::default();
        oracle.knows_source(source.clone());
        oracle.may_overlook = case.fails_with(Failure::Io);
        if case.based {
            host.put_base(&source).await;
            host.sim.make_flaky("b/base/data");
        }
        if case.vouched {
            host.put_image().await;
            host.sim.make_flaky("a/image/data");
        }
        if let Some(pages) = case.room {
            host.sim.limit_room(pages);
        }
        host.sim.set_faults(case.faults);
        let oracle = Arc::new(Mutex::new(oracle));
        Self { host, oracle, daemons: Mutex::default(), often: case.often }
    }

    fn oracle(&self) -> MutexGuard<'_, Oracle> {
        self.oracle.lock().unwrap()
    }

    async fn run(&self, case: &Case) {
        let mut version = 0;
        for step in &case.steps {
            if let Step::Touch = step {
                version += 1;
                let bytes = bytes_of(version, case.source_len);
                self.host.change_source(&bytes);
                self.oracle().knows_source(bytes);
            }
            self.step(step, case).await;
            self.oracle().look(&self.host);
        }
        self.end(case).await;
    }

    /// The engine of that number, started anew where its process has died.
    async fn daemon(&self, number: usize) -> Option<Daemon> {
        let there = self.daemons.lock().unwrap()[number].clone();
        if let Some(daemon) = there {
            if daemon.process.is_alive() {
                return Some(daemon);
            }
            self.daemons.lock().unwrap()[number] = None;
        }
        let opened = timeout(Duration::from_secs(100), self.host.daemon(self.often)).await;
        let daemon = opened.ok()?.ok()?;
        self.daemons.lock().unwrap()[number] = Some(daemon.clone());
        Some(daemon)
    }

    async fn step(&self, step: &Step, case: &Case) {
        match *step {
            Step::Wait { ms } => sleep(Duration::from_millis(ms)).await,
            Step::Clock { ms } => {
                self.host.sim.jump_wall_clock(ms);
                self.oracle().may_forget = true;
            }
            Step::Touch => {}
            Step::Stranger => self.oracle().knows_stranger(self.host.put_stranger()),
            Step::Plan { ahead, action } => {
                self.host.sim.plan(self.host.sim.call_count() + ahead, action);
            }
            Step::Power { keep } => self.host.sim.lose_power(keep),
            Step::Kill { engine } => {
                if let Some(daemon) = self.daemons.lock().unwrap()[engine].take() {
                    daemon.process.kill();
                }
            }
            Step::Drop { engine } => drop(self.daemons.lock().unwrap()[engine].take()),
            Step::Start { engine, .. }
            | Step::Cancel { engine, .. }
            | Step::CancelImage { engine, .. }
            | Step::Suspend { engine, .. }
            | Step::Resume { engine, .. }
            | Step::Limit { engine, .. }
            | Step::Recover { engine }
            | Step::Shutdown { engine, .. } => {
                let Some(daemon) = self.daemon(engine).await else { return };
                let asked = ask(daemon, self.oracle.clone(), step.clone(), case.clone());
                tokio::spawn(asked);
                tokio::task::yield_now().await;
            }
        }
    }

    /// All faults end: every job must come to its end, and nothing may be left of it.
    async fn end(&self, case: &Case) {
        self.host.sim.heal();
        if case.seed.is_multiple_of(3) {
            self.host.sim.lose_power(50);
        }
        for daemon in std::mem::take(&mut *self.daemons.lock().unwrap()).into_iter().flatten() {
            daemon.process.kill();
        }
        sleep(Duration::from_secs(200)).await;
        self.oracle().look(&self.host);
        let ended = settle(&self.host, &self.oracle, case.seed).await;
        if let Err(what) = ended {
            self.oracle().violated(what);
        }
        self.oracle().look(&self.host);
    }
}

/// Makes a call to an engine, and tells the oracle what was answered while its process lived.
async fn ask(daemon: Daemon, oracle: Arc<Mutex<Oracle>>, step: Step, case: Case) {
    let Daemon { process, engine } = &daemon;
    let tell = |told: &dyn Fn(&mut Oracle)| {
        if process.is_alive() {
            told(&mut oracle.lock().unwrap());
        }
    };
    let nth_job = |nth: usize| {
        let started = oracle.lock().unwrap().started();
        (!started.is_empty()).then(|| started[nth % started.len()])
    };
    let answered = |reply: blockferry::Result<CancelReply>| match reply {
        Ok(reply) => tell(&|oracle| oracle.was_answered(&reply)),
        Err(error) if error.kind() == ErrorKind::NoSpace && !case.fails_with(Failure::NoSpace) => {
            tell(&|oracle| oracle.violated(told("a cancel needs no room", &error)));
        }
        Err(_) => {}
    };
    let limits = |slow| if slow { Limits::NONE.with_bytes_per_sec(32 << 10) } else { Limits::NONE };
    match step {
        Step::Start { to, token, slow, .. } => {
            let from = match (case.vouched, case.in_memory) {
                (true, _) => "a/image",
                (_, true) => "m/image",
                _ => "s/image",
            };
            let mut options = verified(case.verify).with_limits(limits(slow));
            if case.based && DESTINATIONS[to].starts_with("b/") {
                options = options.with_base(image("base"));
            }
            if let Some(token) = token {
                options = options.with_token(format!("{token}-{to}-{slow}"));
            }
            if case.encrypted && DESTINATIONS[to].starts_with("b/") {
                options = encrypted(options);
            }
            if let Ok(job) = engine.copy(request(from, DESTINATIONS[to], options)).await {
                tell(&|oracle| oracle.was_started(job.id(), to));
                follow(&daemon, &oracle, &job).await;
            }
        }
        Step::Resume { nth, .. } => {
            let Some((job, _)) = nth_job(nth) else { return };
            if let Ok(job) = engine.resume(job).await {
                follow(&daemon, &oracle, &job).await;
            }
        }
        Step::Cancel { nth, .. } => {
            let Some((job, _)) = nth_job(nth) else { return };
            oracle.lock().unwrap().is_asked(job);
            let reply = engine.cancel(job).await;
            if let Ok(reply) = &reply {
                tell(&|oracle| oracle.was_answered_of(job, reply));
            }
            answered(reply);
        }
        Step::CancelImage { to, .. } => {
            oracle.lock().unwrap().is_asked_at(to);
            let to = end(DESTINATIONS[to]);
            answered(engine.cancel_image(&to.region, &to.image).await);
        }
        Step::Suspend { nth, .. } => {
            let Some((job, _)) = nth_job(nth) else { return };
            engine.suspend(job).await.ok();
        }
        Step::Limit { nth, slow, .. } => {
            let Some((job, _)) = nth_job(nth) else { return };
            engine.limit(job, limits(slow)).await.ok();
        }
        Step::Recover { .. } => {
            for name in TARGETS {
                engine.recover(&region(name)).await.ok();
            }
        }
        Step::Shutdown { cancel, .. } => {
            let mode = if cancel { Shutdown::Cancel } else { Shutdown::Suspend };
            if cancel {
                (0..DESTINATIONS.len()).for_each(|to| oracle.lock().unwrap().is_asked_at(to));
            }
            engine.shutdown(mode, Duration::from_secs(10)).await;
            process.kill();
        }
        _ => {}
    }
}

async fn follow(daemon: &Daemon, oracle: &Mutex<Oracle>, job: &Job) {
    let outcome = job.wait().await;
    if daemon.process.is_alive() {
        oracle.lock().unwrap().was_told(job.id(), &outcome);
        if let Err(what) = all_ended(&daemon.engine) {
            oracle.lock().unwrap().violated(what);
        }
    }
}
