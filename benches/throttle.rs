//! What asking the throttle costs: an engine, a region and a job, as a lane asks for every piece.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops")]

use std::time::{Duration, Instant};

use blockferry::options::Limits;
use blockferry::testing::Taker;
use blockferry::throttle::Throttle;
use criterion::{Criterion, criterion_group, criterion_main};

const MIB: u64 = 1 << 20;

/// A taker at three nodes, the last of which has these ceilings and the others far higher ones.
fn taker(limits: Limits) -> Taker {
    let wide = || Throttle::new(Limits::NONE.with_bytes_per_sec(1 << 50).with_ops_per_sec(1 << 40));
    Taker::new([wide(), wide(), Throttle::new(limits)])
}

fn takes(bench: &mut Criterion) {
    check();
    let start = Instant::now();
    let mut group = bench.benchmark_group("throttle");

    let free = Taker::new([(); 3].map(|()| Throttle::new(Limits::NONE)));
    group.bench_function("no ceiling", |timer| {
        timer.iter(|| assert_eq!(free.take(start, MIB, 1), None));
    });

    // More than the 1 MiB a microsecond that is asked for.
    let fast = taker(Limits::NONE.with_bytes_per_sec(1 << 41).with_ops_per_sec(1 << 30));
    let mut now = start;
    group.bench_function("granted", |timer| {
        timer.iter(|| {
            now += Duration::from_micros(1);
            assert_eq!(fast.take(now, MIB, 1), None);
        });
    });

    let slow = taker(Limits::NONE.with_bytes_per_sec(1));
    assert_eq!(slow.take(start, MIB, 1), None);
    group.bench_function("refused", |timer| {
        timer.iter(|| assert!(slow.take(start, MIB, 1).is_some()));
    });
    group.finish();
}

/// What is granted when, reckoned by hand: 4 MiB at 1 MiB/s are paid after 4 s, less the tenth of a
/// second that the full bucket held.
fn check() {
    let start = Instant::now();
    let after = |ns: u64| start.checked_add(Duration::from_nanos(ns)).unwrap();
    let slow = taker(Limits::NONE.with_bytes_per_sec(MIB));
    assert_eq!(slow.take(start, 4 * MIB, 1), None);
    assert_eq!(slow.take(start, 1, 1), Some(after(100_000_000)), "nobody waits longer in one go");
    assert_eq!(slow.take(after(3_899_999_999), 1, 1), Some(after(3_900_000_000)));
    assert_eq!(slow.take(after(3_900_000_000), 1, 1), None);
}

criterion_group!(benches, takes);
criterion_main!(benches);
