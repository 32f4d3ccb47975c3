//! Random lives of the simulated host, by the hundred thousand.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{env, thread};

use super::life::{Case, live};

/// How long the default suite looks at most, on a machine that is slower than most.
const DEFAULT_TIME: Duration = Duration::from_secs(300);
/// So many it lives at least, however slow the machine.
const LIVES_MIN: u64 = 1_000;
const DEFAULT_SEEDS: u64 = 100_000;
/// How many lives finding a smaller one may take.
const SHRINK_LIVES_MAX: usize = 400;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn whatever_happens_what_was_promised_holds() {
    if let Some(seed) = number("BLOCKFERRY_SIM_SEED") {
        return repeat(seed);
    }
    let count = number("BLOCKFERRY_SIM_SEEDS").unwrap_or(DEFAULT_SEEDS);
    let time = number("BLOCKFERRY_SIM_SECONDS").map_or(DEFAULT_TIME, Duration::from_secs);
    let first = number("BLOCKFERRY_SIM_FIRST").unwrap_or(0);
    let (next, calls, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let began = Instant::now();
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while failed.load(Relaxed) == u64::MAX && began.elapsed() < time {
                    let n = next.fetch_add(1, Relaxed);
                    if n >= count {
                        break;
                    }
                    let seed = first + n;
                    let case = Case::draw(seed);
                    let lived = live(&case, false);
                    calls.fetch_add(lived.calls, Relaxed);
                    let same = !n.is_multiple_of(100) || live(&case, false).trace == lived.trace;
                    if lived.verdict.is_err() || !same {
                        failed.fetch_min(seed, Relaxed);
                    }
                }
            });
        }
    });
    let lived = next.load(Relaxed).min(count);
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap().max(1);
    let rate = lived * 1000 / ms;
    eprintln!(
        "simulation: {lived} of {count} seeds from {first}, {} calls, {rate} seeds/s",
        calls.load(Relaxed)
    );
    let is_limited = env::var("BLOCKFERRY_SIM_SECONDS").is_ok();
    assert!(
        is_limited || failed.load(Relaxed) != u64::MAX || lived >= count.min(LIVES_MIN),
        "too few lives in {time:?}: {lived}"
    );
    if failed.load(Relaxed) != u64::MAX {
        let seed = failed.load(Relaxed);
        repeat(seed);
        panic!(
            "seed {seed} has failed, or went another way when it was lived again; not this time"
        );
    }
}

/// Lives one life again, and makes it smaller for as long as it fails.
fn repeat(seed: u64) {
    let case = Case::draw(seed);
    let lived = live(&case, true);
    let again = live(&case, true);
    for (line, other) in lived.log.iter().zip(&again.log) {
        assert_eq!(line, other, "seed {seed}: the same seed went another way");
    }
    assert_eq!(lived.log.len(), again.log.len(), "seed {seed}: the same seed went another way");
    let Err(what) = lived.verdict else { return };
    let small = shrink(case);
    let lived = live(&small, true);
    if number("BLOCKFERRY_SIM_LOG").is_some() {
        lived.log.iter().for_each(|line| eprintln!("{line}"));
    }
    eprintln!("smallest: {small:#?}");
    eprintln!("it says: {:?}", lived.verdict);
    eprintln!(
        "repeat: BLOCKFERRY_SIM_SEED={seed} cargo test --all-features --test it -- \
         whatever_happens --nocapture"
    );
    assert_eq!(what, "", "seed {seed}");
}

/// Leaves out steps and faults while it still fails.
fn shrink(case: Case) -> Case {
    let (mut small, mut lives) = (case, 0);
    loop {
        let mut candidates = Vec::new();
        for n in 0..small.steps.len() {
            let mut fewer = small.clone();
            fewer.steps.remove(n);
            candidates.push(fewer);
        }
        candidates.extend(without_faults(&small));
        let next = candidates.into_iter().find(|candidate| {
            lives += 1;
            lives < SHRINK_LIVES_MAX && live(candidate, false).verdict.is_err()
        });
        match next {
            Some(next) => small = next,
            None => return small,
        }
    }
}

fn without_faults(case: &Case) -> Vec<Case> {
    let mut fewer = Vec::new();
    let mut push = |change: &dyn Fn(&mut Case)| {
        let mut other = case.clone();
        change(&mut other);
        if format!("{other:?}") != format!("{case:?}") {
            fewer.push(other);
        }
    };
    push(&|case| case.faults.io = 0);
    push(&|case| case.faults.no_space = 0);
    push(&|case| case.faults.interrupted = 0);
    push(&|case| case.faults.short = 0);
    push(&|case| case.faults.delayed = 0);
    push(&|case| case.faults.hung = 0);
    push(&|case| case.faults.interleaved = 0);
    push(&|case| case.faults.written_back = 0);
    push(&|case| case.faults.rotten_syncs = 0);
    push(&|case| case.faults.misdirected = 0);
    push(&|case| case.faults.flipped_reads = 0);
    push(&|case| case.faults.killed = 0);
    push(&|case| case.faults.power_lost = 0);
    push(&|case| case.room = None);
    push(&|case| case.verify = false);
    push(&|case| case.vouched = false);
    push(&|case| case.in_memory = false);
    push(&|case| case.based = false);
    push(&|case| case.encrypted = false);
    push(&|case| case.keep_pages = false);
    push(&|case| case.share = true);
    push(&|case| case.often = false);
    push(&|case| case.source_len = 5_000);
    push(&|case| case.file_system = "ext4");
    fewer
}
