//! A pull as this side sees it: chunks are read, hashed and sent as they are wanted.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun, ChunkSize, Geometry, to_u64};
use crate::manifest::Manifest;
use crate::peer::Operation;
use crate::pump::{Conn, Events, Pump};
use crate::region::{Source, blocking};
use crate::seal::{Seal, seal};
use crate::sync::time::{Duration, timeout};
use crate::throttle::ThrottlePath;
use crate::wire::message::{Codec, Fetch, Offer, Refusal};
use crate::wire::session::{Greeting, Sender, SenderEvent};

use super::Joinable;
use super::connection::{Listed, Visitor};
use super::push::{pass, stopping};

/// Chunks of one session that are being read or hashed at a time.
const READ_COUNT_MAX: usize = 8;
const LAST_WORDS_TIME: Duration = Duration::from_secs(1);

/// What a pull starts from.
pub(super) struct Prepared {
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
    let root = manifest.as_ref().filter(|_| fetch.table).map(|manifest| manifest.root());
    let token = visitor.house.token(&visitor.identity, fetch.session);
    let facts = source.fingerprint().await?;
    Ok(Prepared { source, offer: Offer { token, geometry, root, facts }, manifest })
}

/// What the tasks of a pull share.
struct Pull {
    pump: Arc<Pump<Sender>>,
    source: Arc<dyn Source>,
    geometry: Geometry,
    manifest: Option<Arc<Manifest>>,
    rate: ThrottlePath,
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
    let Prepared { source, offer, manifest } = prepared;
    let Some(link) = greeting.into_link() else { return };
    let (link_id, geometry) = (link.id(), offer.geometry);
    let told = manifest.as_ref().filter(|_| offer.root.is_some());
    let Ok(sender) = Sender::offer(link, id, &fetch, offer, told) else { return };
    let (pump, mut events) = Pump::new(sender);
    let pump = Arc::new(pump);
    let rate = ThrottlePath::new([visitor.seat.throttle().clone()]);
    let pull = Arc::new(Pull { pump: pump.clone(), source, geometry, manifest, rate });
    let _listed = Listed::enter(visitor, fetch.session, Joinable::Pull(pump.clone()));
    let closed = {
        let served = async {
            tokio::join!(pump.serve(link_id, conn), pump.pass_time());
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = attend(&pull, &mut events) => None,
            () = served => None,
            () = visitor.house.closing.cancelled() => Some(stopping()),
        }
    };
    if let Some(error) = closed {
        pump.act(|sender, _| sender.close(error));
    }
    timeout(LAST_WORDS_TIME, pump.serve(link_id, conn)).await.ok();
    conn.writer.end().await;
}

/// A chunk that was wanted, and by which request.
type Wanted = (u64, ChunkIndex);

async fn attend(pull: &Arc<Pull>, events: &mut Events<SenderEvent>) {
    let mut wanted: VecDeque<Wanted> = VecDeque::new();
    let mut reads: JoinSet<()> = JoinSet::new();
    loop {
        // No more is read than there is credit to send it: that is what bounds the memory.
        let room = pull.pump.look(Sender::room).unwrap_or(0).min(READ_COUNT_MAX);
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
        let sealed = self.read(index).await;
        self.pump.act(|sender, _| {
            let sent = match sealed {
                Ok(Seal::Zero(index)) => sender.send_zeroes(vec![ChunkRun::new(index, 1)]),
                Ok(Seal::Data(sealed)) => {
                    let (digest, bytes) = (sealed.digest(), sealed.data().clone());
                    sender.send_chunk(index, digest, Codec::Raw, bytes)
                }
                Err(error) => {
                    // Declined or not: a session that is over has no more to say.
                    sender.decline(id, Refusal::new(&error)).ok();
                    return;
                }
            };
            if let Err(error) = sent
                && error.kind() != ErrorKind::Unavailable
            {
                sender.decline(id, Refusal::new(&error)).ok();
            }
        });
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
