//! Locks, the clock and the moments between system calls, behind one door, so that a checker of
//! schedules can stand in for the host's.
//!
//! A build with `--cfg races` is for the checker alone; `tests/races` makes and runs it. In every
//! other build these are the host's own, and nothing is left of the door.

#[cfg(not(races))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(races))]
pub(crate) use tokio::time;

#[cfg(races)]
pub(crate) use loom::sync::atomic;
#[cfg(races)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard};

/// Others may come in between here: a system call follows.
#[cfg(not(races))]
pub(crate) const fn point() {}

/// Others may come in between here: a system call follows.
#[cfg(races)]
pub(crate) fn point() {
    shuttle::thread::yield_now();
}

/// A clock that stands still while anybody works, and jumps when somebody sleeps. So a sleep may
/// end before or after anything that others do meanwhile.
#[cfg(all(test, races))]
pub(crate) mod time {
    use std::cell::Cell;
    use std::future::Future;
    use std::pin::pin;
    use std::time::Duration;

    thread_local! {
        // All tasks of a schedule share one thread of the host.
        static NOW: Cell<std::time::Instant> = Cell::new(std::time::Instant::now());
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) struct Instant(std::time::Instant);

    impl Instant {
        pub(crate) fn now() -> Self {
            Self(NOW.get())
        }

        pub(crate) fn into_std(self) -> std::time::Instant {
            self.0
        }

        pub(crate) fn elapsed(self) -> Duration {
            NOW.get().duration_since(self.0)
        }
    }

    impl From<std::time::Instant> for Instant {
        fn from(at: std::time::Instant) -> Self {
            Self(at)
        }
    }

    pub(crate) async fn sleep_until(when: Instant) {
        shuttle::future::yield_now().await;
        NOW.set(NOW.get().max(when.0));
    }

    pub(crate) async fn timeout<T>(
        after: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, ()> {
        let mut work = pin!(work);
        let end = Instant(NOW.get() + after);
        tokio::select! {
            biased;
            done = &mut work => Ok(done),
            () = sleep_until(end) => Err(()),
        }
    }
}

/// How a test is run under many schedules.
#[cfg(all(test, races))]
pub(crate) mod races {
    use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
    use shuttle::{Config, Runner};

    /// How many places of a schedule PCT gives another priority at.
    const DEPTH: usize = 3;

    /// Runs `body` under its share, in percent, of the schedules that `tests/races` asks for: half
    /// of them random, half by priority (PCT). Or under the one that it names, to repeat a failure.
    pub(crate) fn check(percent: usize, body: impl Fn() + Clone + Send + Sync + 'static) {
        if let Ok(schedule) = std::env::var("BLOCKFERRY_SCHEDULE") {
            return shuttle::replay(body, schedule.trim());
        }
        let all = std::env::var("BLOCKFERRY_SCHEDULES").ok().and_then(|text| text.parse().ok());
        let half = (all.unwrap_or(1_000) * percent / 100).div_ceil(2);
        run(RandomScheduler::new(half), body.clone());
        run(PctScheduler::new(DEPTH, half), body);
        println!("{} schedules", 2 * half);
    }

    fn run(scheduler: impl Scheduler + 'static, body: impl Fn() + Send + Sync + 'static) {
        Runner::new(scheduler, Config::new()).run(body);
    }
}
