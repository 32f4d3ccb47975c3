//! Is what one peer may take of a daemon bounded, and does it hear in time when it gets none?
#![expect(clippy::panic, reason = "helpers of tests fail the test that calls them")]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blockferry::engine::{CopyRequest, Engine, JobOutcome};
use blockferry::error::{Error, ErrorKind};
use blockferry::geometry::{ByteRange, ChunkIndex, ChunkRun, ChunkSize, Geometry};
use blockferry::id::JobId;
use blockferry::job::{Endpoint, Fingerprint, JobSpec};
use blockferry::location::PeerAddress;
use blockferry::manifest::{Manifest, TableBuilder};
use blockferry::options::{EngineOptions, Verify};
use blockferry::peer::Policy;
use blockferry::region::{DirRegion, MemoryRegion, Outcome, PeerOptions, PeerRegion, Region};
use blockferry::seal::{Seal, seal};
use blockferry::serve::{Listener, Server, ServerOptions};
use blockferry::testing::{Hooked, Point, When};
use blockferry::wire::frame::{Expect, Frame, VERSION};
use blockferry::wire::message::{
    Ask, Begin, Begun, Fetch, Hello, Join, Kind, Message, Offer, Refusal, Session, Standing, Token,
};
use blockferry::wire::session::Pace;
use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::peer::{House, Raw, bytes_of, connect, id, kind, name, small, user_of};

const MIB: u64 = 1 << 20;

/// A job of its own number, whose image has so many chunks of that size.
fn spec(number: u8, image: &str, chunk_mib: u64, chunks: u64) -> JobSpec {
    let chunk_size = ChunkSize::from_bytes(chunk_mib * MIB).unwrap();
    JobSpec::new(
        JobId::from_bytes([number; 16]),
        Endpoint::new(name("here"), id("m")),
        Endpoint::new(name("b"), id(image)),
        Geometry::new(chunks * chunk_mib * MIB, chunk_size).unwrap(),
        Fingerprint::new(),
    )
}

fn begin_of(spec: &JobSpec, epoch: u32) -> Message {
    Message::Begin(Box::new(Begin { epoch, root: None, spec: spec.clone() }))
}

/// A server over a folder, to a peer with these ceilings that may do everything.
struct Place {
    dir: tempfile::TempDir,
    region: Arc<dyn Region>,
    house: House,
}

impl Place {
    fn new(ceilings: &str) -> Self {
        Self::with(ceilings, ServerOptions::default(), |region| region)
    }

    fn with(
        ceilings: &str,
        options: ServerOptions,
        wrap: impl FnOnce(Arc<dyn Region>) -> Arc<dyn Region>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        let region: Arc<dyn Region> = Arc::new(DirRegion::open_root(dir.path().join("b")).unwrap());
        let policy = policy(dir.path(), ceilings, "");
        let served = wrap(region.clone());
        let house = House::with(&dir.path().join("ferry.sock"), served, policy, options);
        Self { dir, region, house }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("ferry.sock")
    }

    async fn staged(&self, number: u8) -> (u32, bool) {
        let staged = self.region.job(JobId::from_bytes([number; 16])).await.unwrap().unwrap();
        (staged.epoch, staged.owned)
    }
}

fn policy(dir: &Path, ceilings: &str, prefix: &str) -> Policy {
    let text = format!(
        "[[peer]]\nidentity = \"uid:{}\"\n{ceilings}\n[[peer.grant]]\nregions = [\"b\"]\n\
         operations = [\"push\", \"pull\", \"list\", \"cancel\", \"remove\", \"control\", \
         \"recover\"]\nimage_prefix = \"{prefix}\"\n",
        user_of(dir)
    );
    Policy::parse(&text).unwrap()
}

/// Says it until there is an answer other than `busy`; tells what the first one was.
async fn until_let_in(raw: &mut Raw, message: &Message) -> Option<Refusal> {
    let mut first = None;
    for request in 1.. {
        raw.say(message, request).await;
        match raw.hear().await {
            Some(Message::Error(refusal)) if refusal.kind == ErrorKind::Busy => {
                first.get_or_insert(refusal);
            }
            Some(Message::Error(refusal)) => panic!("{refusal:?}"),
            Some(_) => break,
            None => panic!("hung up"),
        }
    }
    first
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_never_fits_the_window_is_refused_before_anything_begins() {
    let place = Place::new("window_max = \"1MiB\"");
    let there = place.house.region().await;
    let target = there.stage(&spec(1, "m-1", 4, 1)).await.unwrap();
    assert_eq!(kind(target.begin().await), Some(ErrorKind::Unsupported));
    assert_eq!(place.staged(1).await.0, 0, "no attempt is on record");
    // What failed has hung up, though its target lives: nobody owns the stage any more.
    let jobs = there.jobs().await.unwrap();
    assert_eq!((jobs.len(), jobs[0].owned), (1, false));
    drop(target);
    let region = MemoryRegion::new("b");
    region.insert(&id("m-2"), vec![7; 100]);
    let socket = place.dir.path().join("pull.sock");
    let policy = policy(place.dir.path(), "window_max = \"1MiB\"", "");
    let house = House::open(&socket, Arc::new(region), policy);
    let pulled = house.region().await.open(&id("m-2")).await;
    assert_eq!(kind(pulled), Some(ErrorKind::Unsupported), "chunks of 4 MiB, as none are known");
    house.close().await;
    place.house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_for_which_there_is_no_room_hears_so_at_once_and_comes_in_later() {
    let place = Place::new("window_max = \"1MiB\"");
    let mut first = Raw::dial(&place.socket()).await;
    first.say(&begin_of(&spec(1, "m-1", 1, 2), 1), 1).await;
    first.hear_of(Kind::Ready).await;
    let mut second = Raw::dial(&place.socket()).await;
    second.say(&begin_of(&spec(2, "m-2", 1, 2), 1), 1).await;
    let Some(Message::Error(refusal)) = second.hear().await else { panic!("let in") };
    assert_eq!((refusal.kind, refusal.retryable), (ErrorKind::Busy, true), "{refusal:?}");
    assert_eq!(place.staged(2).await.0, 0, "no attempt is on record");
    // This side of the protocol tries again by itself.
    let there = place.house.region().await;
    let target = there.stage(&spec(3, "m-3", 1, 2)).await.unwrap();
    let begun = tokio::spawn(async move { target.begin().await.map(|_| target) });
    drop(first);
    let target = begun.await.unwrap().unwrap();
    drop(target);
    drop(second);
    place.house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_over_takes_no_room_though_its_connection_stays() {
    let place = Place::new("window_max = \"1MiB\"");
    let there = place.house.region().await;
    let first = spec(1, "m-1", 1, 1);
    let target = there.stage(&first).await.unwrap();
    target.begin().await.unwrap();
    let run = ChunkRun::new(ChunkIndex::new(0), 1);
    let _written = target.write_zeroes(run).await.unwrap();
    let mut table = TableBuilder::new(first.geometry);
    table.put(run, blockferry::chunk::Content::Zero);
    let manifest = Manifest::new(table.finish().unwrap(), Some(first.job), Default::default());
    assert_eq!(target.commit(&manifest.unwrap()).await.unwrap(), Outcome::Committed);
    // The target lives, and with it the connection that stands for the stage.
    let next = there.stage(&spec(2, "m-2", 1, 1)).await.unwrap();
    next.begin().await.unwrap();
    target.finish().await.unwrap();
    drop((target, next));
    place.house.close().await;
}

/// Opens an image of eight chunks at a memory region, and says that this side is ready.
async fn fetch(socket: &Path, number: u8) -> Raw {
    let mut raw = Raw::dial(socket).await;
    let session = Session::new(JobId::from_bytes([number; 16]), 1);
    let fetch = Fetch { session, region: name("b"), image: id("m"), table: false };
    until_let_in(&mut raw, &Message::Fetch(fetch)).await;
    raw.say(&Message::Ready { data_bytes: 0 }, 0).await;
    raw
}

#[tokio::test(flavor = "multi_thread")]
async fn who_pulls_and_acknowledges_nothing_gets_no_more_than_its_window() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ferry.sock");
    let region = MemoryRegion::new("b");
    region.insert(&id("m"), bytes_of(8 << 22, 7));
    let policy = policy(dir.path(), "window_max = \"4MiB\"", "");
    let house = House::open(&socket, Arc::new(region), policy);
    let mut raw = fetch(&socket, 1).await;
    let mut other = Raw::dial(&socket).await;
    let session = Session::new(JobId::from_bytes([2; 16]), 1);
    let again = Fetch { session, region: name("b"), image: id("m"), table: false };
    other.say(&Message::Fetch(again), 1).await;
    let Some(Message::Error(refusal)) = other.hear().await else { panic!("let in") };
    assert_eq!((refusal.kind, refusal.retryable), (ErrorKind::Busy, true), "{refusal:?}");
    raw.say(&Message::Credit { bytes: 32 << 20 }, 0).await;
    raw.say(&Message::Want(ChunkRun::new(ChunkIndex::new(0), 8)), 100).await;
    let mut request = 101;
    for _ in 0..8 {
        let (chunk, _) = raw.hear_numbered(Kind::Chunk).await;
        // Much time passes there, and nothing comes but answers.
        for _ in 0..20 {
            raw.say(&Message::Ask(Ask::Facts), request).await;
            request += 1;
            let message = raw.hear().await;
            assert!(matches!(message, Some(Message::Facts(_))), "another chunk came");
        }
        raw.say(&Message::Written, chunk).await;
    }
    drop((raw, other));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sessions_of_one_number_do_not_end_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ferry.sock");
    let region = MemoryRegion::new("b");
    region.insert(&id("m"), bytes_of(1 << 20, 7));
    let house = House::open(&socket, Arc::new(region), Policy::everything());
    let session = Session::new(JobId::from_bytes([1; 16]), 1);
    let fetch = Fetch { session, region: name("b"), image: id("m"), table: false };
    let mut sessions = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::dial(&socket).await;
        raw.say(&Message::Fetch(fetch.clone()), 1).await;
        let Message::Offer(offer) = raw.hear_of(Kind::Offer).await else { panic!("no offer") };
        raw.say(&Message::Ready { data_bytes: 0 }, 0).await;
        // Once this is answered, the session is open.
        raw.say(&Message::Ask(Ask::Facts), 2).await;
        raw.hear_of(Kind::Facts).await;
        sessions.push((raw, offer.token));
    }
    let (mut earlier, _) = sessions.remove(0);
    // It breaks the rules: its session ends, and says so.
    earlier.say(&Message::Sync, 3).await;
    while earlier.hear().await.is_some() {}
    let token = sessions[0].1;
    let mut further = Raw::dial(&socket).await;
    further.say(&Message::Join(Join { session, token }), 1).await;
    further.hear_of(Kind::Joined).await;
    drop((sessions, further));
    house.close().await;
}

fn chunk_of(spec: &JobSpec, index: u32, seed: u64) -> (blockferry::chunk::Sealed, Bytes) {
    let at = ChunkIndex::new(index);
    let len = usize::try_from(spec.geometry.range(at).len).unwrap();
    let bytes = Bytes::from(bytes_of(len, seed));
    match seal(spec.geometry, at, bytes.clone()) {
        Seal::Data(sealed) => (sealed, bytes),
        Seal::Zero(_) => panic!("random bytes are no zeros"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn staged_bytes_are_read_back_in_pieces_also_when_the_window_is_taken() {
    let place = Place::new("window_max = \"16MiB\"");
    let there = place.house.region().await;
    let job = spec(1, "m-1", 16, 1);
    let target = there.stage(&job).await.unwrap();
    target.begin().await.unwrap();
    let (sealed, bytes) = chunk_of(&job, 0, 3);
    let _written = target.write(sealed).await.unwrap();
    target.sync().await.unwrap();
    let all = ByteRange::new(0, 16 * MIB);
    assert!(target.read_back(all).await.unwrap() == bytes);
    let part = ByteRange::new(5 * MIB + 1, 6 * MIB);
    let range = 5 * (1 << 20) + 1..11 * (1 << 20) + 1;
    assert!(target.read_back(part).await.unwrap() == bytes.slice(range));
    drop(target);
    place.house.close().await;
}

/// A lower bound: a rate that is kept takes its time, however slow the machine is.
#[tokio::test(flavor = "multi_thread")]
async fn pushes_pulls_and_what_is_read_back_share_one_rate() {
    const RATE: u64 = 4 * MIB;
    // What a full bucket holds passes at once, and the last grant on debt.
    let least = |bytes: u64| Duration::from_millis(1000 * (bytes - RATE / 5) / RATE);
    let place = Place::new("rate_max = \"4MiB/s\"");
    let there = place.house.region().await;
    let job = spec(1, "m-1", 1, 2);
    let target = there.stage(&job).await.unwrap();
    target.begin().await.unwrap();
    let start = Instant::now();
    for index in 0..2 {
        let _written = target.write(chunk_of(&job, index, 4).0).await.unwrap();
    }
    assert!(start.elapsed() >= least(2 * MIB), "pushed in {:?}", start.elapsed());
    target.sync().await.unwrap();
    let start = Instant::now();
    target.read_back(ByteRange::new(0, 2 * MIB)).await.unwrap();
    assert!(start.elapsed() >= least(2 * MIB), "read back in {:?}", start.elapsed());
    assert_eq!(target.discard().await.unwrap(), Outcome::Cancelled);
    drop(target);
    let socket = place.dir.path().join("pull.sock");
    let region = MemoryRegion::new("b");
    region.insert(&id("m"), bytes_of(2 << 20, 5));
    let policy = policy(place.dir.path(), "rate_max = \"4MiB/s\"", "");
    let house = House::open(&socket, Arc::new(region), policy);
    let source = house.region().await.open(&id("m")).await.unwrap();
    let start = Instant::now();
    source.read_at(ByteRange::new(0, 2 * MIB)).await.unwrap();
    assert!(start.elapsed() >= least(2 * MIB), "pulled in {:?}", start.elapsed());
    drop(source);
    house.close().await;
    place.house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_connections_are_enough_for_a_copy() {
    let place = Place::new("connections_max = 2");
    let here = MemoryRegion::new("here");
    let bytes = bytes_of(3 << 20, 6);
    here.insert(&id("m"), bytes.clone());
    let state = place.dir.path().join("state");
    let engine = Engine::open(EngineOptions::new(state)).await.unwrap();
    engine.register(name("here"), Arc::new(here.clone())).await.unwrap();
    let there = connect(&place.socket()).await.unwrap();
    engine.register(name("there"), Arc::new(there)).await.unwrap();
    let ends = [
        (Endpoint::new(name("here"), id("m")), Endpoint::new(name("there"), id("m-1"))),
        (Endpoint::new(name("there"), id("m-1")), Endpoint::new(name("here"), id("back"))),
    ];
    for (from, to) in ends {
        let how = small().with_verify(Verify::Full);
        let job = engine.copy(CopyRequest::new(from, to, how)).await.unwrap();
        let outcome = job.wait().await;
        assert!(matches!(outcome, JobOutcome::Committed(_)), "{outcome:?}");
    }
    assert!(here.bytes(&id("back")).unwrap()[..] == bytes[..]);
    place.house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_connection_lets_its_stage_go() {
    let panics = Arc::new(AtomicUsize::new(0));
    let left = panics.clone();
    let hook = Arc::new(move |point: Point| {
        let is_due = point.operation == "wishes" && point.when == When::Before;
        let claimed = |left: usize| left.checked_sub(1);
        if is_due && left.fetch_update(SeqCst, SeqCst, claimed).is_ok() {
            panic!("as planned");
        }
        Ok(())
    });
    let wrap = |inner| -> Arc<dyn Region> { Arc::new(Hooked::new(inner, hook)) };
    let place = Place::with("", ServerOptions::default(), wrap);
    let mut raw = Raw::dial(&place.socket()).await;
    let job = spec(1, "m-1", 1, 1);
    let mut stage = BytesMut::from(&[16, 0, 0][..]);
    stage.extend_from_slice(&encoded(&job));
    raw.say(&Message::Call(stage.freeze()), 1).await;
    let Message::Told(staged) = raw.hear_of(Kind::Told).await else { panic!("not staged") };
    assert_eq!(place.staged(1).await, (0, true));
    panics.store(1, SeqCst);
    let mut wishes = BytesMut::from(&[17, 1, 0, 0, 0, b'b'][..]);
    wishes.extend_from_slice(job.job.as_bytes());
    wishes.extend_from_slice(&staged[1..33]);
    raw.say(&Message::Call(wishes.freeze()), 2).await;
    assert!(raw.hear().await.is_none(), "its connection ends");
    // Without that, nobody could stage it as long as the daemon lives.
    while place.staged(1).await.1 {
        tokio::task::yield_now().await;
    }
    let target = place.house.region().await.reopen(&job).await.unwrap();
    drop(target);
    place.house.close().await;
}

/// The specification as it travels: the tail of a begin's body.
fn encoded(spec: &JobSpec) -> Bytes {
    let packet = begin_of(spec, 1).packet(VERSION, 1);
    let whole = packet.to_bytes().freeze();
    // Header, epoch, no root.
    whole.slice(32 + 4 + 1..)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_touches_only_what_is_granted() {
    let recoveries = Arc::new(AtomicUsize::new(0));
    let counted = recoveries.clone();
    let hook = Arc::new(move |point: Point| {
        if point.operation == "recover" && point.when == When::Before {
            counted.fetch_add(1, SeqCst);
        }
        Ok(())
    });
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ferry.sock");
    let inner: Arc<dyn Region> = Arc::new(MemoryRegion::new("b"));
    let region: Arc<dyn Region> = Arc::new(Hooked::new(inner, hook));
    drop(region.stage(&spec(1, "x-1", 1, 1)).await.unwrap());
    let house = House::open(&socket, region.clone(), policy(dir.path(), "", "m-"));
    let there = house.region().await;
    assert!(there.recover(None).await.unwrap().is_empty());
    assert_eq!(recoveries.load(SeqCst), 0, "the stage of x-1 is nobody's business");
    drop(region.stage(&spec(2, "m-1", 1, 1)).await.unwrap());
    let settled = there.recover(None).await.unwrap();
    assert_eq!((settled.len(), settled[0].job), (1, JobId::from_bytes([2; 16])));
    assert_eq!(recoveries.load(SeqCst), 1);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_of_one_peer_count_together() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ferry.sock");
    let region: Arc<dyn Region> = Arc::new(MemoryRegion::new("b"));
    let text = format!(
        "[[peer]]\nidentity = \"uid:{}\"\n\
         [[peer.grant]]\noperations = [\"list\"]\nregions = [\"b\"]\nimage_prefix = \"x-\"\n\
         [[peer.grant]]\noperations = [\"push\"]\nregions = [\"b\"]\nimage_prefix = \"m-\"\n",
        user_of(dir.path())
    );
    let house = House::open(&socket, region.clone(), Policy::parse(&text).unwrap());
    for (number, image) in [(1, "m-1"), (2, "x-1"), (3, "z-1")] {
        drop(region.stage(&spec(number, image, 1, 1)).await.unwrap());
    }
    let there = house.region().await;
    let mut jobs = Vec::new();
    for job in there.jobs().await.unwrap() {
        jobs.push(job.spec.target.image.to_string());
    }
    jobs.sort();
    assert_eq!(jobs, ["m-1", "x-1"]);
    assert!(there.job(JobId::from_bytes([1; 16])).await.unwrap().is_some());
    assert!(there.job(JobId::from_bytes([3; 16])).await.unwrap().is_none());
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_comes_while_it_commits_waits_for_that() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let told = order.clone();
    let (_hold, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let hook = Arc::new(move |point: Point| {
        if matches!(point.operation, "commit" | "discard") {
            told.lock().unwrap().push((point.operation, point.when));
        }
        if point.operation == "commit" && point.when == When::Before {
            // Long enough for the cancel to be heard, which is on its way already.
            assert!(held.lock().unwrap().recv_timeout(Duration::from_millis(200)).is_err());
        }
        Ok(())
    });
    let wrap = |inner| -> Arc<dyn Region> { Arc::new(Hooked::new(inner, hook)) };
    let place = Place::with("", ServerOptions::default(), wrap);
    let job = spec(1, "m-1", 1, 1);
    let mut raw = Raw::dial(&place.socket()).await;
    raw.say(&begin_of(&job, 1), 1).await;
    raw.hear_of(Kind::Credit).await;
    let run = ChunkRun::new(ChunkIndex::new(0), 1);
    raw.say(&Message::Zeroes(vec![run]), 2).await;
    raw.hear_of(Kind::Written).await;
    let mut table = TableBuilder::new(job.geometry);
    table.put(run, blockferry::chunk::Content::Zero);
    raw.say(&Message::Seal { root: table.finish().unwrap().root() }, 3).await;
    let of = blockferry::wire::message::Name { job: job.job, region: name("b"), image: id("m-1") };
    raw.say(&Message::Cancel(of), 4).await;
    raw.hear_of(Kind::Decision).await;
    // Its connection stands for the stage until it is hung up.
    drop(raw);
    place.house.close().await;
    let order = order.lock().unwrap().clone();
    let beside = |pair: &[(&str, When)]| matches!(pair, [(one, When::Before), (other, When::Before)] if one != other);
    assert!(!order.is_empty() && !order.windows(2).any(beside), "one beside the other: {order:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_up_that_fails_after_a_cancel_ends_the_push() {
    let hook = Arc::new(|point: Point| match (point.operation, point.when) {
        ("discard", When::Before) => Err(Error::new(ErrorKind::Io, "as planned")),
        _ => Ok(()),
    });
    let wrap = |inner| -> Arc<dyn Region> { Arc::new(Hooked::new(inner, hook)) };
    let place = Place::with("", ServerOptions::default(), wrap);
    let job = spec(1, "m-1", 1, 1);
    let mut raw = Raw::dial(&place.socket()).await;
    raw.say(&begin_of(&job, 1), 1).await;
    raw.hear_of(Kind::Credit).await;
    // Somebody else cancels, and the peer does not clean up.
    let cancel = place.region.clone();
    let cancelled = tokio::spawn(async move { cancel.cancel(job.job, &id("m-1")).await });
    let refusal = loop {
        match raw.hear().await {
            Some(Message::Error(refusal)) => break refusal,
            Some(_) => {}
            None => panic!("hung up without a word"),
        }
    };
    assert_eq!(refusal.kind, ErrorKind::Io, "{refusal:?}");
    assert!(raw.hear().await.is_none(), "and lets the stage go");
    cancelled.await.unwrap().unwrap();
    place.house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_taken_out_of_the_policy_has_to_go_and_its_stage_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ferry.sock");
    std::fs::create_dir(dir.path().join("b")).unwrap();
    let region: Arc<dyn Region> = Arc::new(DirRegion::open_root(dir.path().join("b")).unwrap());
    let listener = Listener::unix(&socket).unwrap();
    let options = ServerOptions::default();
    let server = Server::new([(name("b"), region.clone())], options).unwrap();
    let rules = watch::Sender::new(policy(dir.path(), "", ""));
    let (served, by) = (server.clone(), rules.subscribe());
    let serving = tokio::spawn(async move { served.serve_by(listener, by).await });
    let job = spec(1, "m-1", 1, 2);
    let mut pushing = Raw::dial(&socket).await;
    pushing.say(&begin_of(&job, 1), 1).await;
    pushing.hear_of(Kind::Credit).await;
    pushing.say(&Message::Zeroes(vec![ChunkRun::new(ChunkIndex::new(0), 1)]), 2).await;
    pushing.hear_of(Kind::Written).await;
    let mut asking = Raw::dial(&socket).await;
    rules.send_replace(Policy::parse("").unwrap());
    for raw in [&mut pushing, &mut asking] {
        let refusal = loop {
            match raw.hear().await {
                Some(Message::Error(refusal)) => break refusal,
                Some(_) => {}
                None => panic!("hung up without a word"),
            }
        };
        assert_eq!(refusal.kind, ErrorKind::Denied, "{refusal:?}");
        assert!(raw.hear().await.is_none());
    }
    assert_eq!(kind(connect(&socket).await), Some(ErrorKind::Denied));
    rules.send_replace(policy(dir.path(), "", ""));
    let target = connect(&socket).await.unwrap().reopen(&job).await.unwrap();
    let restored = target.begin().await.unwrap();
    assert_eq!(restored.table.missing(), 1, "what was written is on record");
    drop(target);
    assert!(server.shutdown(Duration::from_secs(30)).await);
    serving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_verified_where_it_lies() {
    let place = Place::new("");
    let here = MemoryRegion::new("here");
    let mut bytes = bytes_of(5 << 20, 8);
    bytes[1 << 20..3 << 20].fill(0);
    here.insert(&id("m"), bytes.clone());
    let engine = Engine::open(EngineOptions::new(place.dir.path().join("state"))).await.unwrap();
    engine.register(name("here"), Arc::new(here)).await.unwrap();
    let there = Arc::new(connect(&place.socket()).await.unwrap());
    engine.register(name("there"), there.clone()).await.unwrap();
    let ends = ["here", "there"].map(|region| Endpoint::new(name(region), id("m")));
    let [from, to] = ends;
    let job = engine.copy(CopyRequest::new(from, to, small())).await.unwrap();
    let JobOutcome::Committed(receipt) = job.wait().await else { panic!("not committed") };
    let good = there.verify(&id("m")).await.unwrap();
    assert_eq!((good.bad_count, good.first_bad), (0, None));
    assert_eq!((good.root, good.geometry.image_bytes()), (receipt.root, 5 << 20));
    assert!(good.read_bytes >= 3 << 20, "{good:?}");
    // The disk lies from now on, in the third and the last chunk.
    let data = place.dir.path().join("b/m/data");
    std::fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    bytes[(2 << 16) + 9] ^= 1;
    bytes[(5 << 20) - 1] ^= 1;
    std::fs::write(&data, &bytes).unwrap();
    let bad = there.verify(&id("m")).await.unwrap();
    assert_eq!((bad.bad_count, bad.first_bad), (2, Some(ChunkIndex::new(2))));
    assert_eq!(kind(there.verify(&id("no")).await), Some(ErrorKind::NotFound));
    place.house.close().await;
}

/// Short, and long enough for a machine that is busy with other tests.
fn hurried() -> Pace {
    Pace {
        ping_after: Duration::from_millis(500),
        silence_max: Duration::from_secs(2),
        answer_max: Duration::from_secs(2),
        greeting_max: Duration::from_secs(2),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_hung_up_before_and_in_a_session() {
    let options = ServerOptions::default().with_pace(hurried());
    let place = Place::with("", options, |region| region);
    let socket = place.socket();
    let before_a_hello = async {
        let mut silent = UnixStream::connect(&socket).await.unwrap();
        silent.read_to_end(&mut Vec::new()).await.unwrap();
    };
    let after_it = async {
        let mut greeted = Raw::dial(&socket).await;
        while greeted.hear().await.is_some() {}
    };
    // It is asked whether it lives, and then let go.
    let in_a_session = async {
        let mut raw = Raw::dial(&socket).await;
        raw.say(&begin_of(&spec(1, "m-1", 1, 1), 1), 1).await;
        raw.hear_of(Kind::Ping).await;
        while raw.hear().await.is_some() {}
    };
    tokio::join!(before_a_hello, after_it, in_a_session);
    while place.staged(1).await.1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(place.staged(1).await, (1, false), "its stage is kept, and free");
    place.house.close().await;
}

/// A daemon that answers calls and opens sessions, and then says nothing but that it lives.
async fn empty_promises(listener: UnixListener) {
    let mut tasks = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        tasks.spawn(promise(Raw::of(stream)));
        while tasks.try_join_next().is_some() {}
    }
}

async fn promise(mut raw: Raw) {
    let mut listed = 0_u32;
    while let Some((message, request)) = raw.hear_any().await {
        let answer = match message {
            Message::Hello(_) => {
                raw.say(&Message::Hello(Hello::new(64 << 20)), 0).await;
                raw.expect = Expect::agreed(VERSION, 64 << 20);
                continue;
            }
            Message::Ping => Message::Pong,
            Message::Query(_) => Message::Answer(Standing::Staged { epoch: 0, owned: false }),
            Message::Begin(_) => {
                Message::Begun(Begun { token: Token::from_bytes([7; 32]), base: false })
            }
            Message::Fetch(_) => Message::Offer(Offer {
                token: Token::from_bytes([7; 32]),
                geometry: Geometry::new(MIB, ChunkSize::MIN).unwrap(),
                root: Some(blockferry::chunk::Digest::from_bytes([7; 32])),
                facts: Fingerprint::new(),
            }),
            Message::Call(body) => Message::Told(match body.first() {
                Some(1) => Bytes::from_static(&[1, 1, 1]),
                Some(2) => {
                    listed += 1;
                    let mut page = BytesMut::from(&[2, 1, 1, 0][..]);
                    let image = format!("m-{listed:08}");
                    page.put_u32_le(u32::try_from(image.len()).unwrap());
                    page.extend_from_slice(image.as_bytes());
                    page.put_u64_le(5);
                    page.extend_from_slice(&[0, 0]);
                    page.freeze()
                }
                Some(16) => {
                    let mut staged = BytesMut::from(&[8][..]);
                    staged.extend_from_slice(&[7; 32]);
                    staged.put_u32_le(0);
                    staged.freeze()
                }
                // As long as a chunk, and an answer to nothing.
                _ => Bytes::from(vec![10; 8 << 20]),
            }),
            _ => continue,
        };
        raw.say(&answer, request).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_promises_and_does_not_keep_is_given_up_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ferry.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(empty_promises(listener));
    let address = PeerAddress::parse(&format!("ferry+unix://{}/b", socket.display())).unwrap();
    let mut options = PeerOptions::default().with_attempts_max(1);
    options.pace = hurried();
    options.pace.greeting_max = Duration::from_secs(10);
    let there = PeerRegion::connect(&address, None, options).await.unwrap();
    let target = there.stage(&spec(1, "m-1", 1, 1)).await.unwrap();
    assert_eq!(kind(target.begin().await), Some(ErrorKind::Unavailable), "it never gets ready");
    assert_eq!(kind(there.open(&id("m-1")).await), Some(ErrorKind::Unavailable), "no digests");
    assert_eq!(kind(there.list().await), Some(ErrorKind::Unsupported), "its list has no end");
    let told = there.locate(&id("m-1")).await.unwrap_err();
    assert!(told.to_string().len() < 300, "{told}");
    drop(target);
}

/// What is said and heard of frames, for daemons that a test plays.
impl Raw {
    fn of(stream: UnixStream) -> Self {
        Self { stream, buffer: BytesMut::new(), expect: Expect::hello() }
    }

    async fn hear_any(&mut self) -> Option<(Message, u64)> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer, self.expect).unwrap() {
                return Some((Message::decode(&frame).unwrap(), frame.id));
            }
            if self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// The request's number, too.
    async fn hear_numbered(&mut self, kind: Kind) -> (u64, Message) {
        match self.hear_any().await {
            Some((message, request)) if message.kind() == kind => (request, message),
            other => panic!("{other:?} instead of {kind:?}"),
        }
    }
}
