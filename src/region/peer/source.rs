//! An image of another daemon, as a source: what the engine calls.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkIndex, ChunkRun, Geometry, to_u64, to_usize};
use crate::id::{ImageId, KeyId};
use crate::job::Fingerprint;
use crate::manifest::{ChunkTable, Manifest};
use crate::plan::Extent;
use crate::pump::Pump;
use crate::region::{BoxFuture, LocalFile, Source};
use crate::sync::{Mutex, MutexGuard};
use crate::wire::message::Offer;
use crate::wire::session::Receiver;

use super::Far;
use super::call::{Call, Told};
use super::pull;

/// Bytes of chunks that are kept for the next read: it may want the rest of one.
const CACHE_BYTES: u64 = 16 << 20;

/// Opens an image of the other daemon.
pub(super) async fn open(far: Far, image: ImageId) -> Result<Arc<dyn Source>> {
    let location = far.location_of(&image);
    let within = |error: Error| error.within(location.clone());
    let fetched = pull::fetch_first(&far, &image).await.map_err(within)?;
    let (offer, table) = (fetched.offer.clone(), fetched.table.clone());
    let manifest = match table {
        Some(table) => Some(Arc::new(manifest_of(&far, &image, table).await.map_err(within)?)),
        None => None,
    };
    let state = State {
        pump: None,
        chunks: BTreeMap::new(),
        wants: HashMap::new(),
        asks: HashMap::new(),
        cache: VecDeque::new(),
        failed: None,
    };
    let view = Arc::new(View { far, image, location, offer, state: Mutex::new(state) });
    let mut tasks = JoinSet::new();
    tasks.spawn(pull::drive(view.clone(), fetched));
    Ok(Arc::new(PeerSource { view, manifest, _tasks: tasks }))
}

/// What the table does not say comes by a call. It must be of the same image.
async fn manifest_of(far: &Far, image: &ImageId, table: ChunkTable) -> Result<Manifest> {
    let about = far.told(Call::About(far.name.clone(), image.clone()), |told| match told {
        Told::About(about) => Ok(about),
        told => Err(told),
    });
    let about = about.await?.filter(|about| about.root == table.root()).ok_or_else(|| {
        Error::new(ErrorKind::SourceChanged, "open image: it was replaced meanwhile")
            .retryable(true)
    })?;
    Manifest::new(table, about.job, about.attributes)
}

struct PeerSource {
    view: Arc<View>,
    manifest: Option<Arc<Manifest>>,
    /// Ends with the source.
    _tasks: JoinSet<()>,
}

impl fmt::Debug for PeerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PeerSource").field(&self.view.location).finish()
    }
}

/// What the source and its driver share.
#[derive(Debug)]
pub(super) struct View {
    pub(super) far: Far,
    pub(super) image: ImageId,
    pub(super) location: String,
    pub(super) offer: Offer,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) pump: Option<Arc<Pump<Receiver>>>,
    /// The chunks that are waited for.
    pub(super) chunks: BTreeMap<u32, Awaited>,
    /// Chunks by the request that asks for them.
    pub(super) wants: HashMap<u64, u32>,
    asks: HashMap<u64, oneshot::Sender<Result<Facts>>>,
    /// The latest chunks.
    cache: VecDeque<(u32, Bytes)>,
    failed: Option<Error>,
}

#[derive(Debug, Default)]
pub(super) struct Awaited {
    asked: bool,
    waiting: Vec<oneshot::Sender<Result<Bytes>>>,
}

/// The answer to a question about the image.
#[derive(Debug)]
pub(super) enum Facts {
    Extents(Vec<Extent>),
    Print(Fingerprint),
}

impl View {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.offer.geometry
    }

    fn within(&self, error: Error) -> Error {
        error.within(self.location.clone())
    }

    /// Asks for what is waited for and was not asked for yet, as far as requests are left.
    pub(super) fn ask_for_chunks(&self) {
        let mut state = self.state();
        let State { pump, chunks, wants, .. } = &mut *state;
        let Some(pump) = pump.clone() else { return };
        pump.act(|receiver, now| {
            for (index, awaited) in chunks.iter_mut().filter(|(_, awaited)| !awaited.asked) {
                let run = ChunkRun::new(ChunkIndex::new(*index), 1);
                // Too many under way, or over: it is asked for when one is answered, or again.
                let Ok(id) = receiver.want(run, now) else { break };
                wants.insert(id, *index);
                awaited.asked = true;
            }
        });
    }

    /// A chunk is here.
    pub(super) fn arrived(&self, index: ChunkIndex, bytes: &Bytes) {
        let mut state = self.state();
        let Some(awaited) = state.chunks.remove(&index.get()) else { return };
        for waiting in awaited.waiting {
            // Who does not wait any more has been stopped.
            waiting.send(Ok(bytes.clone())).ok();
        }
        let kept = to_usize(CACHE_BYTES / self.geometry().chunk_size().bytes()).max(1);
        state.cache.push_back((index.get(), bytes.clone()));
        while state.cache.len() > kept {
            state.cache.pop_front();
        }
    }

    /// That request was declined.
    pub(super) fn declined(&self, id: u64, error: Error) {
        let mut state = self.state();
        if let Some(ask) = state.asks.remove(&id) {
            ask.send(Err(error)).ok();
            return;
        }
        let Some(index) = state.wants.remove(&id) else { return };
        let Some(awaited) = state.chunks.remove(&index) else { return };
        for waiting in awaited.waiting {
            waiting.send(Err(copy_of(&error))).ok();
        }
    }

    pub(super) fn answered(&self, id: u64, facts: Facts) {
        if let Some(ask) = self.state().asks.remove(&id) {
            ask.send(Ok(facts)).ok();
        }
    }

    /// The connection is lost: whatever is still waited for is asked for on the next.
    pub(super) fn disconnected(&self) {
        let mut state = self.state();
        state.pump = None;
        state.wants.clear();
        state.chunks.values_mut().for_each(|awaited| awaited.asked = false);
        // Dropped, they are asked again by those who wait.
        state.asks.clear();
    }

    pub(super) fn fail(&self, error: Error) {
        let mut state = self.state();
        state.pump = None;
        state.asks.clear();
        for awaited in std::mem::take(&mut state.chunks).into_values() {
            for waiting in awaited.waiting {
                waiting.send(Err(copy_of(&error))).ok();
            }
        }
        state.failed = Some(error);
    }

    async fn chunk(&self, index: ChunkIndex) -> Result<Bytes> {
        let wait = {
            let mut state = self.state();
            if let Some((_, bytes)) = state.cache.iter().find(|(kept, _)| *kept == index.get()) {
                return Ok(bytes.clone());
            }
            if let Some(error) = &state.failed {
                return Err(copy_of(error));
            }
            let (done, wait) = oneshot::channel();
            state.chunks.entry(index.get()).or_default().waiting.push(done);
            wait
        };
        self.ask_for_chunks();
        wait.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "read image")))
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes> {
        let geometry = self.geometry();
        let read = async {
            if range.end() > geometry.image_bytes() {
                return Err(Error::new(ErrorKind::Invalid, "read past the end of the image"));
            }
            let size = geometry.chunk_size().bytes();
            let mut parts = Vec::new();
            let (first, end) = (range.offset / size, range.end().div_ceil(size));
            for index in first..end.max(first) {
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                parts.push(self.chunk(ChunkIndex::new(index)));
            }
            let mut whole = BytesMut::new();
            for (index, part) in (first..).zip(join_all(parts).await) {
                let (part, offset) = (part?, index * size);
                let here = range.intersect(ByteRange::new(offset, to_u64(part.len())));
                let from = to_usize(here.offset - offset);
                let slice = part.slice(from..from + to_usize(here.len));
                if here == range {
                    return Ok(slice);
                }
                whole.extend_from_slice(&slice);
            }
            Ok(whole.freeze())
        };
        read.await.map_err(|error| self.within(error).at(self.location.clone(), range.offset))
    }

    /// Asks about the image, again if the connection is lost meanwhile.
    async fn ask(
        &self,
        put: impl Fn(&mut Receiver, std::time::Instant) -> Result<u64>,
    ) -> Result<Facts> {
        for attempt in 1..=self.far.net.options.attempts_max {
            let wait = {
                let mut state = self.state();
                if let Some(error) = &state.failed {
                    return Err(copy_of(error));
                }
                let State { pump, asks, .. } = &mut *state;
                let asked =
                    pump.clone().and_then(|pump| pump.act(|receiver, now| put(receiver, now)));
                match asked {
                    Some(Ok(id)) => {
                        let (done, wait) = oneshot::channel();
                        asks.insert(id, done);
                        Some(wait)
                    }
                    _ => None,
                }
            };
            if let Some(wait) = wait
                && let Ok(answer) = wait.await
            {
                return answer;
            }
            crate::sync::time::sleep(super::net::backoff(attempt)).await;
        }
        Err(Error::new(ErrorKind::Unavailable, "ask about the image"))
    }
}

/// All of them at once: their requests are under way together.
async fn join_all<F: Future<Output = Result<Bytes>>>(parts: Vec<F>) -> Vec<Result<Bytes>> {
    let mut parts: Vec<_> = parts.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<Result<Bytes>>> = parts.iter().map(|_| None).collect();
    std::future::poll_fn(move |cx| {
        for (part, done) in parts.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            if let std::task::Poll::Ready(read) = part.as_mut().poll(cx) {
                *done = Some(read);
            }
        }
        match done.iter().all(Option::is_some) {
            true => std::task::Poll::Ready(done.iter_mut().filter_map(Option::take).collect()),
            false => std::task::Poll::Pending,
        }
    })
    .await
}

fn copy_of(error: &Error) -> Error {
    Error::new(error.kind(), error.action().to_owned()).retryable(error.is_retryable())
}

impl Source for PeerSource {
    fn location(&self) -> String {
        self.view.location.clone()
    }

    fn size_bytes(&self) -> u64 {
        self.view.geometry().image_bytes()
    }

    fn fingerprint(&self) -> BoxFuture<'_, Result<Fingerprint>> {
        Box::pin(async move {
            let facts = self.view.ask(|receiver, now| receiver.ask_facts(now)).await;
            match facts.map_err(|error| self.view.within(error))? {
                Facts::Print(print) => Ok(print),
                Facts::Extents(_) => Err(astray()),
            }
        })
    }

    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>> {
        Box::pin(async move {
            if range.is_empty() {
                return Ok(Vec::new());
            }
            let facts = self.view.ask(|receiver, now| receiver.ask_extents(range, now)).await;
            match facts.map_err(|error| self.view.within(error))? {
                Facts::Extents(extents) => Ok(extents),
                Facts::Print(_) => Err(astray()),
            }
        })
    }

    fn manifest(&self) -> Option<Arc<Manifest>> {
        self.manifest.clone()
    }

    fn key(&self) -> Option<KeyId> {
        None
    }

    fn read_at(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(self.view.read(range))
    }

    fn local(&self) -> Option<LocalFile> {
        None
    }
}

fn astray() -> Error {
    Error::new(ErrorKind::Invalid, "take the answer to another question")
}
