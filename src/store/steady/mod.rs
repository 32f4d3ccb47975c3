//! A store that is asked again: the one layer of retries; deadlines, a window, second sendings.
//!
//! Every request of a call runs as a task of its own, to its end or its deadline: a call that is
//! dropped leaves no request half way, and [`Store::settle`] waits for them all.

mod calls;
mod pace;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::{Notify, oneshot, watch};

use crate::error::{Error, ErrorKind, Result};
use crate::host;
use crate::store::{BoxFuture, Class, Condition, Put, Store, Trouble};
use crate::sync::Mutex;
use crate::sync::time::{Instant, sleep, timeout};

use pace::{Budget, Latency, Window};

pub use pace::SteadyOptions;

/// A store whose requests are made again when that may help.
///
/// Throttled requests wait as the store asks, with fewer at a time; what may pass is tried again
/// within a budget; what will not is told at once. A conditional write is tried again only while
/// the store has surely not carried it out: otherwise the answer is [`Put::Unknown`].
pub struct Steady {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Arc<dyn Store>,
    options: SteadyOptions,
    window: Mutex<Window>,
    /// A place in the window has become free.
    freed: Notify,
    budget: Mutex<Budget>,
    latencies: Mutex<HashMap<Kind, Latency>>,
    /// How many requests are under way.
    live: watch::Sender<Live>,
    counts: [AtomicU64; 4],
}

/// What a [`Steady`] store has sent so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Requests, each try counted.
    pub requests: u64,
    /// Tries beyond the first.
    pub retries: u64,
    /// Times that the store asked for fewer.
    pub throttled: u64,
    /// Second sendings of stragglers.
    pub hedges: u64,
}

/// Which requests take about the same time.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    verb: &'static str,
    /// The base-two logarithm of the bytes that it moves.
    size: u32,
}

/// What is asked: a name, how many bytes it moves, whether it may be sent a second time, whether it
/// minds its own deadline.
#[derive(Clone, Copy)]
struct Task {
    verb: &'static str,
    bytes: u64,
    may_repeat: bool,
    is_conditional: bool,
}

impl fmt::Debug for Steady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steady")
            .field("inner", &self.shared.inner)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

/// Sends the request once; called again for each try.
type Sending<T> = Arc<dyn Fn(Arc<dyn Store>) -> BoxFuture<'static, Result<T>> + Send + Sync>;

impl Steady {
    /// That store, asked again as the options say. It must be used within a tokio runtime.
    pub fn new(inner: Arc<dyn Store>, options: SteadyOptions) -> Self {
        let shared = Shared {
            window: Mutex::new(Window::new(&options)),
            inner,
            options,
            freed: Notify::new(),
            budget: Mutex::new(Budget::new()),
            latencies: Mutex::default(),
            live: watch::Sender::new(Live::default()),
            counts: Default::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What it has sent so far.
    pub fn counts(&self) -> Counts {
        let [requests, retries, throttled, hedges] =
            self.shared.counts.each_ref().map(|count| count.load(Relaxed));
        Counts { requests, retries, throttled, hedges }
    }

    /// How many requests may be under way at this moment.
    pub fn window(&self) -> usize {
        locked(&self.shared.window).limit()
    }

    /// Asks until there is an answer, or no more hope.
    async fn call<T: Send + 'static>(
        &self,
        task: Task,
        send: impl Fn(Arc<dyn Store>) -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
    ) -> Result<T> {
        self.tried(task, Arc::new(send)).await.map(|(answer, _)| answer)
    }

    /// The answer, and how often it was asked for.
    async fn tried<T: Send + 'static>(&self, task: Task, send: Sending<T>) -> Result<(T, u32)> {
        let shared = &self.shared;
        let begun = Instant::now();
        let mut held_up = std::time::Duration::ZERO;
        let mut attempt = 1;
        loop {
            let error = match shared.hedged(task, &send).await {
                Ok(answer) => {
                    locked(&shared.budget).refill();
                    return Ok((answer, attempt));
                }
                Err(error) => error,
            };
            let class = Trouble::class(&error);
            if class == Class::Throttled {
                shared.count(2);
            }
            let asked = Trouble::of(&error).and_then(|trouble| trouble.retry_after);
            let dice = host::random()?;
            let dice = u64::from_le_bytes(*dice.first_chunk().unwrap_or(&[0; 8]));
            let spent = begun.elapsed().saturating_sub(held_up);
            let wait = pace::delay(&shared.options, attempt, class, asked, spent, dice);
            // Who waits because the store asked for it adds no load.
            let may = class == Class::Throttled || locked(&shared.budget).spend();
            let Some(wait) = wait.filter(|_| may) else { return Err(error) };
            sleep(wait).await;
            // A limit is one on what is sent, and not on what arrives. Nobody's patience runs out
            // by it.
            let stopped = Instant::now();
            host::pass_toll(task.bytes).await;
            held_up += stopped.elapsed();
            shared.count(1);
            attempt += 1;
        }
    }

    /// A write with a condition: never again once it may have been carried out.
    async fn conditionally(&self, task: Task, when: &Condition, send: Sending<Put>) -> Result<Put> {
        if *when == Condition::Any {
            return self.tried(Task { may_repeat: true, ..task }, send).await.map(|(put, _)| put);
        }
        match self.tried(task, send).await? {
            // A try before this one said that it was not carried out. Some say so wrongly.
            (Put::Refused, 2..) => Ok(Put::Unknown(
                Error::new(
                    ErrorKind::Unavailable,
                    format!("{}: refused at a second try", task.verb),
                )
                .within(self.location()),
            )),
            (put, _) => Ok(put),
        }
    }
}

impl Shared {
    fn count(&self, which: usize) {
        self.counts[which].fetch_add(1, Relaxed);
    }

    /// Sends a request; and a second time when it straggles. The first answer counts.
    async fn hedged<T: Send + 'static>(
        self: &Arc<Self>,
        task: Task,
        send: &Sending<T>,
    ) -> Result<T> {
        self.enter().await;
        let mut first = self.start(task, send);
        let patience = self.straggles_after(task);
        let Some(patience) = patience else { return answer_of(task, first.await) };
        let early = timeout(patience, &mut first).await;
        if let Ok(early) = early {
            return answer_of(task, early);
        }
        let may = locked(&self.latencies).get_mut(&task.kind()).is_some_and(Latency::spend);
        if !may {
            return answer_of(task, first.await);
        }
        tokio::select! {
            biased;
            answer = &mut first => return answer_of(task, answer),
            // What has passed a limit is not given back when the answer comes meanwhile, or the
            // window is full then: there are few of these, and it errs on the side of the limit.
            () = host::pass_toll(task.bytes) => {}
        }
        if !locked(&self.window).enter() {
            return answer_of(task, first.await);
        }
        self.count(3);
        let mut second = self.start(task, send);
        let (answer, other) = tokio::select! {
            answer = &mut first => (answer_of(task, answer), second),
            answer = &mut second => (answer_of(task, answer), first),
        };
        match answer {
            Ok(answer) => Ok(answer),
            // The other one may still do it.
            Err(error) => answer_of(task, other.await).map_err(|_| error),
        }
    }

    fn straggles_after(&self, task: Task) -> Option<std::time::Duration> {
        if !(task.may_repeat && self.options.hedge) {
            return None;
        }
        locked(&self.latencies).get(&task.kind()).and_then(Latency::straggles_after)
    }

    /// Waits for a place in the window.
    async fn enter(&self) {
        loop {
            let freed = self.freed.notified();
            if locked(&self.window).enter() {
                return;
            }
            freed.await;
        }
    }

    /// Starts one request, whose place in the window is taken, as a task of its own.
    fn start<T: Send + 'static>(
        self: &Arc<Self>,
        task: Task,
        send: &Sending<T>,
    ) -> oneshot::Receiver<Result<T>> {
        self.count(0);
        let mut number = 0;
        self.live.send_modify(|live| number = live.begin());
        let (tell, told) = oneshot::channel();
        let (shared, request) = (Arc::clone(self), send(Arc::clone(&self.inner)));
        let begun = Instant::now();
        let place = Place { shared, task, number, begun, verdict: Some(Class::Fatal) };
        tokio::spawn(async move {
            let mut place = place;
            let deadline = place.shared.options.deadline_of(task.bytes);
            let bounded = async {
                match task.is_conditional {
                    true => Ok(request.await),
                    false => timeout(deadline, request).await,
                }
            };
            let answer = match bounded.await {
                Ok(answer) => answer,
                Err(_) => Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("{}: no answer in {} s", task.verb, deadline.as_secs()),
                )
                .within(place.shared.inner.location())),
            };
            place.verdict = answer.as_ref().err().map(Trouble::class);
            drop(place);
            // Nobody may want to know any more.
            drop(tell.send(answer));
        });
        told
    }
}

/// What a request that was started has told. It always tells, unless its task came to grief.
fn answer_of<T>(
    task: Task,
    told: std::result::Result<Result<T>, oneshot::error::RecvError>,
) -> Result<T> {
    told.unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Io, format!("{}: its task is gone", task.verb)).because(error))
    })
}

/// The requests under way, by when they began.
#[derive(Debug, Default)]
struct Live {
    next: u64,
    under_way: BTreeSet<u64>,
}

impl Live {
    fn begin(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.under_way.insert(number);
        number
    }

    fn end(&mut self, number: u64) {
        self.under_way.remove(&number);
    }

    /// Whether none is left of those before that number.
    fn are_over(&self, before: u64) -> bool {
        self.under_way.first().is_none_or(|first| *first >= before)
    }
}

/// A request under way: its place in the window, given back whatever becomes of it.
struct Place {
    shared: Arc<Shared>,
    task: Task,
    number: u64,
    begun: Instant,
    /// `None`: it went well.
    verdict: Option<Class>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = Instant::now();
        if self.verdict.is_none() {
            let took = self.begun.elapsed();
            locked(&self.shared.latencies).entry(self.task.kind()).or_default().note(took);
        }
        let (begun, now) = (self.begun.into_std(), now.into_std());
        locked(&self.shared.window).leave(self.verdict, begun, now);
        self.shared.live.send_modify(|live| live.end(self.number));
        // The window may have grown by one: two can enter then.
        self.shared.freed.notify_one();
        self.shared.freed.notify_one();
    }
}

impl Task {
    fn new(verb: &'static str) -> Self {
        Self { verb, bytes: 0, may_repeat: false, is_conditional: false }
    }

    fn bytes(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }

    fn under(self, when: &Condition) -> Self {
        Self { is_conditional: *when != Condition::Any, ..self }
    }

    fn repeatable(self) -> Self {
        Self { may_repeat: true, ..self }
    }

    fn kind(self) -> Kind {
        Kind { verb: self.verb, size: self.bytes.max(1).ilog2() }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> crate::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(all(test, feature = "testing", not(races)))]
mod tests {
    use std::future::Future;
    use std::pin::Pin;

    use bytes::Bytes;

    use super::*;
    use crate::host::Toll;
    use crate::store::model::{Fate, Model};

    #[derive(Default)]
    struct Counted(Mutex<Vec<u64>>);

    impl Toll for Counted {
        fn pass(&self, bytes: u64) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
            Box::pin(async move { locked(&self.0).push(bytes) })
        }
    }

    impl Counted {
        fn told(&self) -> Vec<u64> {
            std::mem::take(&mut *locked(&self.0))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_sending_but_the_first_passes_the_toll_of_whoever_asked() {
        let client = Model::new().client("");
        let store = Steady::new(Arc::new(client.clone()), SteadyOptions::default());
        let toll = Arc::new(Counted::default());
        client.hook(|call| if call.number < 2 { Fate::Fails } else { Fate::Answered });
        let bytes = Bytes::from_static(b"12345");
        host::tolled(toll.clone(), store.put("k", bytes, &Condition::Any)).await.unwrap();
        assert_eq!((toll.told(), store.counts().requests), (vec![5, 5], 3));

        // Nobody asks for it to be charged.
        client.fate_at(client.request_count(), Fate::Fails);
        store.get("k", 10).await.unwrap();
        assert_eq!((toll.told(), store.counts().retries), (vec![], 3));

        // A straggler is sent a second time.
        for _ in 0..40 {
            store.get("k", 10).await.unwrap();
        }
        client.fate_at(client.request_count(), Fate::Hangs);
        let read = host::tolled(toll.clone(), store.get("k", 10)).await.unwrap().unwrap();
        assert_eq!((read.bytes, toll.told()), (Bytes::from_static(b"12345"), vec![10]));
        assert_eq!(store.counts().hedges, 1);
    }
}
