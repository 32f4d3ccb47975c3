//! How often is a daemon dialled, and what becomes of a connection that has gone stale?

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use blockferry::chunk::Sealed;
use blockferry::error::ErrorKind;
use blockferry::geometry::{ByteRange, ChunkIndex, ChunkSize, Geometry};
use blockferry::id::JobId;
use blockferry::job::{Endpoint, Fingerprint, JobSpec};
use blockferry::location::PeerAddress;
use blockferry::peer::Policy;
use blockferry::region::{MemoryRegion, Outcome, PeerOptions, PeerRegion, Region};
use blockferry::seal::{Seal, seal};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::peer::{House, bytes_of, id, kind, name};

/// A server over images in memory, behind a relay that counts who dials it.
struct Place {
    region: MemoryRegion,
    house: House,
    dials: Arc<AtomicUsize>,
    /// The next answer is lost, and its connection with it.
    loses: Arc<AtomicBool>,
    dir: tempfile::TempDir,
    _relaying: JoinSet<()>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let region = MemoryRegion::new("b");
        region.insert(&id("m-1"), bytes());
        let socket = dir.path().join("ferry.sock");
        let house = House::open(&socket, Arc::new(region.clone()), Policy::everything());
        let (dials, loses) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let listener = UnixListener::bind(dir.path().join("relay.sock")).unwrap();
        let mut relaying = JoinSet::new();
        relaying.spawn(relay(listener, socket, dials.clone(), loses.clone()));
        Self { region, house, dials, loses, dir, _relaying: relaying }
    }

    fn dials(&self) -> usize {
        self.dials.load(SeqCst)
    }

    /// The region, reached over one connection at a time.
    async fn there(&self) -> PeerRegion {
        let socket = self.dir.path().join("relay.sock");
        let address = PeerAddress::parse(&format!("ferry+unix://{}/b", socket.display())).unwrap();
        let options = PeerOptions::default().with_connections(1);
        PeerRegion::connect(&address, None, options).await.unwrap()
    }
}

/// Passes connections on, and loses an answer where it is told to.
async fn relay(
    listener: UnixListener,
    to: PathBuf,
    dials: Arc<AtomicUsize>,
    loses: Arc<AtomicBool>,
) {
    let mut links = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        dials.fetch_add(1, SeqCst);
        links.spawn(link(near, to.clone(), loses.clone()));
    }
}

async fn link(near: UnixStream, to: PathBuf, loses: Arc<AtomicBool>) {
    let Ok(far) = UnixStream::connect(&to).await else { return };
    let ((mut near_in, mut near_out), (mut far_in, mut far_out)) =
        (near.into_split(), far.into_split());
    let back = async {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(len) = far_in.read(&mut bytes).await
            && len > 0
            && !loses.swap(false, SeqCst)
            && near_out.write_all(&bytes[..len]).await.is_ok()
        {}
    };
    tokio::select! {
        () = back => {}
        _ = copy(&mut near_in, &mut far_out) => {}
    }
}

fn bytes() -> Vec<u8> {
    bytes_of(50_000, 1)
}

fn spec(image: &str) -> JobSpec {
    JobSpec::new(
        JobId::from_bytes([1; 16]),
        Endpoint::new(name("here"), id("m")),
        Endpoint::new(name("there"), id(image)),
        Geometry::new(50_000, ChunkSize::MIN).unwrap(),
        Fingerprint::new(),
    )
}

fn sealed() -> Option<Sealed> {
    match seal(spec("m").geometry, ChunkIndex::new(0), bytes().into()) {
        Seal::Data(sealed) => Some(sealed),
        Seal::Zero(_) => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_dialled_to_ask_serves_the_session_that_follows() {
    let place = Place::new();
    let there = place.there().await;
    assert_eq!(place.dials(), 1);
    let source = there.open(&id("m-1")).await.unwrap();
    let read = source.read_at(ByteRange::new(0, 50_000)).await.unwrap();
    assert!(read == bytes());
    assert_eq!(place.dials(), 1, "an image is read on the connection that asked after its region");
    drop(source);

    let there = place.there().await;
    assert_eq!(place.dials(), 2);
    let target = there.stage(&spec("m-2")).await.unwrap();
    target.begin().await.unwrap();
    assert!(target.write(sealed().unwrap()).await.is_ok());
    assert_eq!(place.dials(), 2, "and one is written on it");
    target.sync().await.unwrap();
    target.sync().await.unwrap();
    assert_eq!(place.dials(), 3, "what is asked beside a session has another, every time");
    drop(target);
    place.house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_when_it_is_used_again_costs_one_more() {
    let place = Place::new();
    let there = place.there().await;
    place.loses.store(true, SeqCst);
    let source = there.open(&id("m-1")).await.unwrap();
    assert_eq!(place.dials(), 2);
    assert!(source.read_at(ByteRange::new(0, 50_000)).await.unwrap() == bytes());
    drop(source);

    // The stage was made, and nobody heard so: it is its own all the same.
    let there = place.there().await;
    place.loses.store(true, SeqCst);
    let target = there.stage(&spec("m-2")).await.unwrap();
    assert_eq!(place.dials(), 4);
    let jobs = place.region.jobs().await.unwrap();
    assert_eq!((jobs.len(), jobs[0].owned), (1, true), "{jobs:?}");
    // Of somebody else's it makes nothing, whatever was lost.
    let other = place.there().await;
    place.loses.store(true, SeqCst);
    let mut theirs = spec("m-2");
    theirs.job = JobId::from_bytes([2; 16]);
    assert_eq!(kind(other.stage(&theirs).await), Some(ErrorKind::Busy));
    assert_eq!(target.discard().await.unwrap(), Outcome::Cancelled);
    drop(target);
    place.house.close().await;
}
