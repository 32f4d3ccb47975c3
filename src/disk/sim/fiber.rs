//! Blocking work on the thread of a runtime: a fiber stands still at a system call and lets
//! everything else go on.

use std::cell::RefCell;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use generator::{Generator, Gn};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

type Work = Box<dyn FnOnce() + Send>;
type Fiber = Generator<'static, Work, Turn>;

/// In words; only pages that are touched take memory.
const STACK_WORDS: usize = 64 << 10;
const IDLE_MAX: usize = 32;

/// Why a fiber stands still.
enum Turn {
    /// Its work is done.
    Idle,
    /// It waits for that long; not at all means that others have their turn.
    Pause(Duration),
    /// It waits to be told.
    Told(Arc<Notify>),
}

thread_local! {
    static IDLE: RefCell<Vec<Fiber>> = const { RefCell::new(Vec::new()) };
}

fn idle() -> Fiber {
    if let Some(idle) = IDLE.with_borrow_mut(Vec::pop) {
        return idle;
    }
    let mut fresh = Gn::<Work>::new_opt(STACK_WORDS, || {
        while let Some(work) = next() {
            work();
        }
        Turn::Idle
    });
    fresh.raw_send(None);
    fresh
}

/// Runs blocking work in a fiber, as a task of the runtime.
pub(super) fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let done = Arc::new(Mutex::new(None));
    let slot = done.clone();
    let run = run(Box::new(move || {
        let ended = catch_unwind(AssertUnwindSafe(work));
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
    }));
    tokio::spawn(async move {
        run.await;
        let ended = done.lock().unwrap_or_else(PoisonError::into_inner).take();
        match ended {
            Some(Ok(done)) => done,
            Some(Err(panic)) => resume_unwind(panic),
            None => resume_unwind(Box::new("the fiber ended without its work")),
        }
    })
}

/// Lets a fiber do that work; ready when it is done.
fn run(work: Work) -> impl Future<Output = ()> + Send {
    let (mut work, mut fiber) = (Some(work), None);
    let mut standing: Option<Pin<Box<dyn Future<Output = ()> + Send>>> = None;
    poll_fn(move |context| {
        loop {
            if let Some(standing) = &mut standing {
                ready!(standing.as_mut().poll(context));
            }
            standing = match fiber.get_or_insert_with(idle).raw_send(work.take()) {
                Some(Turn::Pause(Duration::ZERO)) => Some(Box::pin(tokio::task::yield_now())),
                Some(Turn::Pause(time)) => Some(Box::pin(tokio::time::sleep(time))),
                Some(Turn::Told(told)) => Some(Box::pin(told.notified_owned())),
                Some(Turn::Idle) | None => break,
            };
        }
        IDLE.with_borrow_mut(|idle| {
            idle.extend(fiber.take().filter(|_| idle.len() < IDLE_MAX));
        });
        Poll::Ready(())
    })
}

/// Stands idle until there is work.
#[expect(deprecated, reason = "only a fiber without a scope can stand still deep in its work")]
fn next() -> Option<Work> {
    generator::yield_(Turn::Idle)
}

/// Lets others go on for that long; false where that cannot be, outside of a fiber.
pub(super) fn pause(time: Duration) -> bool {
    stand(Turn::Pause(time))
}

/// Waits until told; false where that cannot be.
pub(super) fn wait(told: Arc<Notify>) -> bool {
    stand(Turn::Told(told))
}

#[expect(deprecated, reason = "only a fiber without a scope can stand still deep in its work")]
fn stand(turn: Turn) -> bool {
    let is_fiber = generator::is_generator();
    if is_fiber {
        generator::yield_with(turn);
    }
    is_fiber
}
