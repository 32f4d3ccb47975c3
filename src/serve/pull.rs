//! A pull as this side sees it: chunks are read, hashed and sent as they are wanted.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, PoisonError};

use tokio::task::JoinSet;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun, ChunkSize, Geometry, to_u64, to_usize};
use crate::manifest::Manifest;
use crate::peer::{Lease, Operation};
use crate::pump::{Conn, Events, Packing, Pump};
use crate::region::{Source, blocking};
use crate::seal::{Seal, seal};
use crate::sync::time::{Duration, timeout};
use crate::sync::{Mutex, MutexGuard};
use crate::throttle::ThrottlePath;
use crate::wire::message::{FEATURE_ZSTD, Fetch, Offer, Refusal};
use crate::wire::session::{Greeting, Item, Sender, SenderEvent, SenderState};

use super::Joinable;
use super::connection::Listed;
use super::push::pass;
use super::visitor::{Visitor, lease};

/// Chunks of one session that are being read or hashed at a time.
const READ_COUNT_MAX: usize = 8;
/// Requests that may fail before the session does.
const DECLINED_COUNT_MAX: usize = 1024;
const LAST_WORDS_TIME: Duration = Duration::from_secs(1);

/// What a pull starts from.
pub(super) struct Prepared {
    lease: Lease,
    source: Arc<dyn Source>,
    offer: Offer,
    manifest: Option<Arc<Manifest>>,
}

/// Opens the image for a peer.
pub(super) async fn prepare(visitor: &Visitor, fetch: &Fetch) -> Result<Prepared> {
    visitor.may(Operation::Pull, &fetch.region, &fetch.image)?;
    let source = visitor.house.region(&fetch.region)?.open(&fetch.image).await?;
    let manifest = source.manifest();
    let geometry = match &manifest {
        Some(manifest) => manifest.geometry(),
        None => Geometry::grown(source.size_bytes(), ChunkSize::DEFAULT)?,
    };
    let lease = lease(visitor, geometry.chunk_size())?;
    let root = manifest.as_ref().filter(|_| fetch.table).map(|manifest| manifest.root());
    let token = visitor.house.token(&visitor.identity, fetch.session);
    let facts = source.fingerprint().await?;
    Ok(Prepared { lease, source, offer: Offer { token, geometry, root, facts }, manifest })
}

/// What the tasks of a pull share.
struct Pull {
    pump: Arc<Pump<Sender>>,
    source: Arc<dyn Source>,
    geometry: Geometry,
    /// How many may be read, or on their way, at a time: those its lease has room for.
    chunks_max: usize,
    manifest: Option<Arc<Manifest>>,
    rate: ThrottlePath,
    packing: Arc<Packing>,
    /// How long each chunk under way is as it travels.
    lens: Mutex<HashMap<Item, u64>>,
    /// Requests of which a chunk could not be read.
    declined: Mutex<HashSet<u64>>,
}

/// Serves one session to its end.
pub(super) async fn run(
    visitor: &Visitor,
    conn: &mut Conn,
    greeting: Greeting,
    id: u64,
    fetch: Fetch,
    prepared: Prepared,
) {
    let Prepared { lease, source, offer, manifest } = prepared;
    let Some(link) = greeting.into_link() else { return };
    let (link_id, geometry) = (link.id(), offer.geometry);
    let packing = Arc::new(Packing::new());
    packing.allow(link.agreed().features & FEATURE_ZSTD != 0);
    let told = manifest.as_ref().filter(|_| offer.root.is_some());
    let Ok(sender) = Sender::offer(link, id, &fetch, offer, told) else { return };
    let (pump, mut events) = Pump::new(sender);
    let pump = Arc::new(pump);
    let rate = ThrottlePath::new([visitor.seat.throttle().clone()]);
    let pull = Arc::new(Pull {
        pump: pump.clone(),
        source,
        geometry,
        chunks_max: to_usize(lease.bytes() / geometry.chunk_size().bytes()),
        manifest,
        rate,
        packing,
        lens: Mutex::default(),
        declined: Mutex::default(),
    });
    let _listed = Listed::enter(visitor, fetch.session, Joinable::Pull(pump.clone()));
    let closed = {
        let served = async {
            tokio::join!(pump.serve(link_id, conn), pump.pass_time());
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = attend(&pull, &mut events) => None,
            () = served => None,
            () = visitor.closing.cancelled() => Some(visitor.parting()),
        }
    };
    if let Some(error) = closed {
        pump.act(|sender, _| sender.close(error));
    }
    timeout(LAST_WORDS_TIME, pump.serve(link_id, conn)).await.ok();
    // Order: the chunks on their way go before the room that they had.
    pump.take();
    drop(lease);
    conn.writer.end().await;
}

/// A chunk that was wanted, and by which request.
type Wanted = (u64, ChunkIndex);

async fn attend(pull: &Arc<Pull>, events: &mut Events<SenderEvent>) {
    let mut wanted: VecDeque<Wanted> = VecDeque::new();
    let mut reads: JoinSet<()> = JoinSet::new();
    loop {
        // No more is read than there is credit to send it, and than there is room for here: a peer
        // that grants much and acknowledges nothing has no more than its lease.
        let room = pull.pump.look(Sender::room).unwrap_or(0).min(READ_COUNT_MAX);
        let room = room.min(pull.chunks_max.saturating_sub(pull.lens().len()));
        while reads.len() < room
            && let Some((id, index)) = wanted.pop_front()
        {
            reads.spawn(pull.clone().send(id, index));
        }
        let event = tokio::select! {
            event = events.recv() => event,
            Some(_) = reads.join_next() => continue,
        };
        match event {
            Some(SenderEvent::Wanted { id, run }) => {
                wanted.extend(run.iter().map(|index| (id, index)));
            }
            Some(SenderEvent::AskedExtents { id, range }) => {
                let extents = pull.source.extents(range).await;
                pull.answer(id, extents, |sender, extents| sender.tell_extents(id, extents));
            }
            Some(SenderEvent::AskedFacts { id }) => {
                let facts = pull.source.fingerprint().await;
                pull.answer(id, facts, |sender, facts| sender.tell_facts(id, facts));
            }
            Some(SenderEvent::Written(item)) => pull.arrived(item),
            Some(SenderEvent::Refused(_, error)) => {
                // A receiver that cannot take what it wanted is of no use.
                pull.pump.act(|sender, _| sender.close(error));
            }
            Some(SenderEvent::Closed(_)) | None => return,
            Some(_) => {}
        }
        debug_assert!(to_u64(wanted.len()) <= u64::from(pull.geometry.chunk_count()), "each once");
    }
}

impl Pull {
    fn answer<T>(
        &self,
        id: u64,
        found: Result<T>,
        tell: impl FnOnce(&mut Sender, T) -> Result<()>,
    ) {
        self.pump.act(|sender, _| {
            let told = match found {
                Ok(found) => tell(sender, found),
                Err(error) => sender.decline(id, Refusal::new(&error)),
            };
            if let Err(error) = told {
                sender.close(error);
            }
        });
    }

    async fn send(self: Arc<Self>, id: u64, index: ChunkIndex) {
        let sealed = match self.read(index).await {
            Ok(Seal::Zero(index)) => Ok((ChunkRun::new(index, 1), None)),
            Ok(Seal::Data(sealed)) => {
                let packed = self.packing.clone().pack(sealed.data().clone()).await;
                Ok((ChunkRun::new(index, 1), Some((sealed.digest(), packed))))
            }
            Err(error) => Err(error),
        };
        self.pump.act(|sender, _| {
            let sent = sealed.and_then(|(run, data)| match data {
                None => sender.send_zeroes(vec![run]),
                Some((digest, (codec, bytes))) => {
                    let len = to_u64(bytes.len());
                    let item = sender.send_chunk(index, digest, codec, bytes)?;
                    self.lens().insert(item, len);
                    Ok(item)
                }
            });
            // Once for a request, however many of its chunks fail; those that follow nobody wants.
            if let Err(error) = sent
                && sender.state() == SenderState::Sending
                && self.declined().insert(id)
            {
                let is_hopeless = self.declined().len() > DECLINED_COUNT_MAX;
                let told = sender.decline(id, Refusal::new(&error));
                if is_hopeless || told.is_err() {
                    sender.close(error);
                }
            }
        });
    }

    fn lens(&self) -> MutexGuard<'_, HashMap<Item, u64>> {
        self.lens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn declined(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.declined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrived(&self, item: Item) {
        let len = self.lens().remove(&item);
        self.packing.arrived(len.unwrap_or(0));
    }

    async fn read(&self, index: ChunkIndex) -> Result<Seal> {
        let (geometry, range) = (self.geometry, self.geometry.range(index));
        pass(&self.rate, range.len).await;
        let bytes = self.source.read_at(range).await?;
        let sealed = blocking(move || Ok(seal(geometry, index, bytes))).await?;
        if let Some(manifest) = &self.manifest {
            let digest = match &sealed {
                Seal::Zero(_) => None,
                Seal::Data(sealed) => Some(sealed.digest()),
            };
            if digest != manifest.table().digest(index) {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    "read image: a chunk does not match the image's manifest",
                )
                .at(self.source.location(), range.offset));
            }
        }
        Ok(sealed)
    }
}
