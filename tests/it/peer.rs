//! Does a copy between daemons keep the promises? Over Unix sockets, within one process.
#![expect(clippy::panic, reason = "helpers of tests fail the test that calls them")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockferry::chunk::Digest;
use blockferry::engine::{CancelAnswer, CopyRequest, Engine, JobOutcome};
use blockferry::error::{ErrorKind, Result};
use blockferry::geometry::{ChunkIndex, ChunkSize, Geometry};
use blockferry::id::{ImageId, JobId, RegionName};
use blockferry::job::{Endpoint, Fingerprint, JobSpec};
use blockferry::location::PeerAddress;
use blockferry::options::{CopyOptions, EngineOptions, Verify};
use blockferry::peer::Policy;
use blockferry::region::{DirRegion, MemoryRegion, Outcome, PeerOptions, PeerRegion, Region, Vote};
use blockferry::serve::{Listener, Server, ServerOptions};
use blockferry::testing::{Fixture, Place, conformance};
use blockferry::wire::frame::{Expect, Frame, VERSION};
use blockferry::wire::message::{
    Begin, Chunk, Codec, Decision, Hello, Kind, Message, Name, Standing,
};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::places::{Dir, Memory, below};

/// Runs to its end from code that is not async.
fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(work))
}

/// A server at a Unix socket, over one region that it calls `b`.
#[derive(Debug)]
pub(crate) struct House {
    server: Server,
    socket: PathBuf,
    _serving: JoinSet<()>,
}

impl House {
    pub(crate) fn open(socket: &Path, region: Arc<dyn Region>, policy: Policy) -> Self {
        // A checkpoint that nobody asked for would come in between.
        let options =
            ServerOptions::default().with_checkpoint(256 << 20, Duration::from_secs(3600));
        Self::with(socket, region, policy, options)
    }

    pub(crate) fn with(
        socket: &Path,
        region: Arc<dyn Region>,
        policy: Policy,
        options: ServerOptions,
    ) -> Self {
        std::fs::remove_file(socket).ok();
        let listener = Listener::unix(socket).unwrap();
        let server = Server::new([("b".parse().unwrap(), region)], options).unwrap();
        let mut serving = JoinSet::new();
        let served = server.clone();
        serving.spawn(async move { served.serve(listener, policy).await });
        Self { server, socket: socket.to_owned(), _serving: serving }
    }

    pub(crate) async fn region(&self) -> PeerRegion {
        connect(&self.socket).await.unwrap()
    }

    pub(crate) async fn close(self) {
        assert!(self.server.shutdown(Duration::from_secs(30)).await, "the server ends");
    }
}

pub(crate) async fn connect(socket: &Path) -> Result<PeerRegion> {
    let address = PeerAddress::parse(&format!("ferry+unix://{}/b", socket.display()))?;
    PeerRegion::connect(&address, None, PeerOptions::default()).await
}

/// Places of another kind, behind a server.
struct Served<F>(F);

#[derive(Debug)]
struct ServedPlace {
    place: Box<dyn Place>,
    house: Option<House>,
    dir: tempfile::TempDir,
}

impl<F: Fixture> Fixture for Served<F> {
    fn place(&self) -> Box<dyn Place> {
        let (place, dir) = (self.0.place(), tempfile::tempdir().unwrap());
        let socket = dir.path().join("ferry.sock");
        let house = House::open(&socket, place.region(), Policy::everything());
        Box::new(ServedPlace { place, house: Some(house), dir })
    }
}

impl Place for ServedPlace {
    fn region(&self) -> Arc<dyn Region> {
        Arc::new(wait(connect(&self.dir.path().join("ferry.sock"))).unwrap())
    }

    fn image(&self, number: u8) -> Option<ImageId> {
        self.place.image(number)
    }

    fn put(&self, image: &ImageId, bytes: &[u8]) -> bool {
        self.place.put(image, bytes)
    }

    fn leftovers(&self) -> Vec<String> {
        self.place.leftovers()
    }
}

impl Drop for ServedPlace {
    fn drop(&mut self) {
        if let Some(house) = self.house.take() {
            wait(house.close());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_behind_a_server_conforms() {
    conformance(&Served(Dir)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_behind_a_server_conforms() {
    conformance(&Served(Memory)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_just_being_started_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ferry.sock");
    // In this order: nobody listens yet when it is dialled first.
    let (dialled, house) = tokio::join!(connect(&socket), async {
        House::open(&socket, Arc::new(MemoryRegion::new("there")), Policy::everything())
    });
    dialled.unwrap();
    house.close().await;
}

/// Both ends of copies: memory here, a directory behind a server there.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) here: MemoryRegion,
    pub(crate) engine: Engine,
    pub(crate) house: Option<House>,
}

pub(crate) fn name(text: &str) -> RegionName {
    text.parse().unwrap()
}

pub(crate) fn id(text: &str) -> ImageId {
    text.parse().unwrap()
}

pub(crate) fn bytes_of(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::at("ferry.sock").await
    }

    /// With the engine's connections going to that socket.
    async fn at(dialled: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        let mut world = Self {
            here: MemoryRegion::new("here"),
            engine: Engine::open(EngineOptions::new(dir.path().join("state"))).await.unwrap(),
            house: None,
            dir,
        };
        world.start();
        world.engine.register(name("here"), Arc::new(world.here.clone())).await.unwrap();
        if dialled == "ferry.sock" {
            world.register(dialled).await;
        }
        world
    }

    async fn register(&self, socket: &str) {
        let there = connect(&self.dir.path().join(socket)).await.unwrap();
        self.engine.register(name("there"), Arc::new(there)).await.unwrap();
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("b")
    }

    pub(crate) fn start(&mut self) {
        let region: Arc<dyn Region> = Arc::new(DirRegion::open_root(self.root()).unwrap());
        let socket = self.dir.path().join("ferry.sock");
        let options = ServerOptions::default();
        self.house = Some(House::with(&socket, region, Policy::everything(), options));
    }

    pub(crate) async fn stop(&mut self) {
        self.house.take().unwrap().close().await;
    }

    async fn copy(&self, from: (&str, &str), to: (&str, &str), how: CopyOptions) -> JobOutcome {
        let ends = [from, to].map(|(region, image)| Endpoint::new(name(region), id(image)));
        let [from, to] = ends;
        let job = self.engine.copy(CopyRequest::new(from, to, how)).await.unwrap();
        job.wait().await
    }

    pub(crate) fn file(&self, image: &str) -> Vec<u8> {
        std::fs::read(self.root().join(image).join("data")).unwrap()
    }
}

pub(crate) fn small() -> CopyOptions {
    CopyOptions::new().with_chunk_size(ChunkSize::MIN)
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_pushed_and_pulled_back() {
    let mut world = World::new().await;
    let mut sparse = vec![0; 9 << 20];
    sparse[5 << 20..(5 << 20) + 100].fill(7);
    for (number, bytes) in [Vec::new(), vec![1], bytes_of(5_000_001, 1), sparse].iter().enumerate()
    {
        for (cut, how) in [("small", small()), ("grown", CopyOptions::new())] {
            let (there, back) = (format!("m-{number}-{cut}"), format!("back-{number}-{cut}"));
            world.here.insert(&id("m"), bytes.clone());
            let how = how.with_verify(Verify::Full);
            let pushed = world.copy(("here", "m"), ("there", &there), how.clone()).await;
            assert!(matches!(pushed, JobOutcome::Committed(_)), "{pushed:?}");
            assert!(world.file(&there) == *bytes, "{there} has other bytes");
            let pulled = world.copy(("there", &there), ("here", &back), how).await;
            let JobOutcome::Committed(receipt) = pulled else { panic!("{pulled:?}") };
            assert!(world.here.bytes(&id(&back)).unwrap()[..] == bytes[..], "{back} differs");
            assert_eq!(receipt.image_bytes, bytes.len() as u64);
        }
    }
    let left = below(&world.root()).unwrap();
    let staged =
        left.iter().filter(|path| path.starts_with(world.root().join(".blockferry/stage")));
    assert_eq!(staged.count(), 1, "nothing is left of the stages: {left:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_from_either_side_leaves_nothing() {
    let mut world = World::new().await;
    world.here.insert(&id("m"), bytes_of(8 << 20, 2));
    let slow = small().with_limits(blockferry::options::Limits::NONE.with_bytes_per_sec(1 << 20));
    for from_there in [false, true] {
        let ends = (Endpoint::new(name("here"), id("m")), Endpoint::new(name("there"), id("m")));
        let job = world.engine.copy(CopyRequest::new(ends.0, ends.1, slow.clone())).await.unwrap();
        let mut progress = job.watch();
        while progress.borrow_and_update().written_bytes == 0 {
            progress.changed().await.unwrap();
        }
        match from_there {
            // Another process on the receiving host, say.
            true => {
                let local = DirRegion::open_root(world.root()).unwrap();
                local.cancel(job.id(), &id("m")).await.unwrap();
            }
            false => {
                let reply = world.engine.cancel_image(&name("there"), &id("m")).await.unwrap();
                assert_eq!(reply.answer, CancelAnswer::Cancelled { clean: true });
            }
        }
        let outcome = job.wait().await;
        assert!(matches!(outcome, JobOutcome::RolledBack { clean: true }), "{outcome:?}");
        let jobs = DirRegion::open_root(world.root()).unwrap().jobs().await.unwrap();
        assert!(jobs.is_empty(), "nothing is staged: {jobs:?}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_runs_the_serving_host_cancels_a_push_by_its_job_as_often_as_asked() {
    let mut world = World::new().await;
    world.here.insert(&id("m"), bytes_of(8 << 20, 5));
    let slow = small().with_limits(blockferry::options::Limits::NONE.with_bytes_per_sec(1 << 20));
    let ends = (Endpoint::new(name("here"), id("m")), Endpoint::new(name("there"), id("m")));
    let job = world.engine.copy(CopyRequest::new(ends.0, ends.1, slow)).await.unwrap();
    // The same folder by the name that it has on its own host, which no record of the job knows.
    let state = world.dir.path().join("their.state");
    let theirs = Engine::open(EngineOptions::new(state)).await.unwrap();
    let own = Arc::new(DirRegion::open_root(world.root()).unwrap());
    theirs.register(name("own"), own).await.unwrap();
    let reply = theirs.cancel(job.id()).await.unwrap();
    assert_eq!(reply.answer, CancelAnswer::Cancelled { clean: true });
    let again = CancelAnswer::AlreadyCancelled { clean: true };
    assert_eq!(theirs.cancel(job.id()).await.unwrap().answer, again);
    assert_eq!(theirs.cancel_image(&name("own"), &id("m")).await.unwrap().answer, again);
    let outcome = job.wait().await;
    assert!(matches!(outcome, JobOutcome::RolledBack { clean: true }), "{outcome:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_resumed_after_the_server_was_stopped_and_started() {
    let mut world = World::new().await;
    let bytes = bytes_of(6 << 20, 3);
    world.here.insert(&id("m"), bytes.clone());
    let slow = small().with_limits(blockferry::options::Limits::NONE.with_bytes_per_sec(2 << 20));
    let ends = (Endpoint::new(name("here"), id("m")), Endpoint::new(name("there"), id("m")));
    let job = world.engine.copy(CopyRequest::new(ends.0, ends.1, slow)).await.unwrap();
    let mut progress = job.watch();
    while progress.borrow_and_update().written_bytes < 1 << 20 {
        progress.changed().await.unwrap();
    }
    // What was written is on record when it stops: the copy goes on by itself.
    world.stop().await;
    world.start();
    let outcome = job.wait().await;
    assert!(matches!(outcome, JobOutcome::Committed(_)), "{outcome:?}");
    assert!(world.file("m") == bytes);
    world.stop().await;
}

/// Passes connections on to the server, and cuts all of them whenever it is told.
async fn relay(from: PathBuf, to: PathBuf, cut: watch::Receiver<u64>) {
    let listener = UnixListener::bind(&from).unwrap();
    let mut links = JoinSet::new();
    while let Ok((mut near, _)) = listener.accept().await {
        let (to, mut cut) = (to.clone(), cut.clone());
        cut.mark_unchanged();
        links.spawn(async move {
            let Ok(mut far) = UnixStream::connect(&to).await else { return };
            tokio::select! {
                _ = copy_bidirectional(&mut near, &mut far) => {}
                _ = cut.changed() => {}
            }
        });
        while links.try_join_next().is_some() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_cost_only_time() {
    let mut world = World::at("relay.sock").await;
    let (cutter, cut) = watch::channel(0);
    let [from, to] = ["relay.sock", "ferry.sock"].map(|socket| world.dir.path().join(socket));
    let mut tasks = JoinSet::new();
    tasks.spawn(relay(from.clone(), to, cut));
    while !from.exists() {
        tokio::task::yield_now().await;
    }
    world.register("relay.sock").await;
    let bytes = bytes_of(12 << 20, 4);
    world.here.insert(&id("m"), bytes.clone());
    let slow = small().with_limits(blockferry::options::Limits::NONE.with_bytes_per_sec(8 << 20));
    let rounds = [(("here", "m"), ("there", "m")), (("there", "m"), ("here", "back"))];
    for (from, to) in rounds {
        let ends = [from, to].map(|(region, image)| Endpoint::new(name(region), id(image)));
        let [from, to] = ends;
        let job = world.engine.copy(CopyRequest::new(from, to, slow.clone())).await.unwrap();
        let mut progress = job.watch();
        for step in 1..6_u64 {
            // Cut where it happens to be.
            while progress.borrow_and_update().read_bytes < step * (2 << 20) - step * 1000 {
                // One that has ended goes nowhere any more.
                tokio::select! {
                    changed = progress.changed() => if changed.is_err() { break },
                    _ = job.wait() => break,
                }
            }
            cutter.send_modify(|count| *count += 1);
        }
        let outcome = job.wait().await;
        assert!(matches!(outcome, JobOutcome::Committed(_)), "{outcome:?}");
    }
    assert!(world.file("m") == bytes);
    assert!(world.here.bytes(&id("back")).unwrap()[..] == bytes[..]);
    world.stop().await;
}

fn spec(image: &str) -> JobSpec {
    JobSpec::new(
        JobId::from_bytes([1; 16]),
        Endpoint::new(name("here"), id("m")),
        Endpoint::new(name("there"), id(image)),
        Geometry::new(300_000, ChunkSize::MIN).unwrap(),
        Fingerprint::new(),
    )
}

pub(crate) fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_does_not_grant_is_denied() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ferry.sock");
    let region = MemoryRegion::new("there");
    region.insert(&id("m-1"), vec![7; 100]);
    region.insert(&id("x-1"), vec![7; 100]);
    let user = user_of(dir.path());
    let policy = format!(
        "[[peer]]\nidentity = \"uid:{user}\"\n[[peer.grant]]\noperations = [\"pull\", \"list\"]\n\
         regions = [\"b\"]\nimage_prefix = \"m-\"\n"
    );
    let house = House::open(&socket, Arc::new(region), Policy::parse(&policy).unwrap());
    let there = house.region().await;
    let denied = Some(ErrorKind::Denied);
    assert!(there.open(&id("m-1")).await.is_ok());
    assert_eq!(kind(there.open(&id("x-1")).await), denied);
    assert_eq!(kind(there.open(&id("x-2")).await), denied, "as one that is there");
    assert_eq!(kind(there.stage(&spec("m-2")).await), denied);
    assert_eq!(kind(there.remove(&id("m-1")).await), denied);
    assert_eq!(kind(there.cancel(JobId::from_bytes([1; 16]), &id("m-1")).await), denied);
    assert_eq!(kind(there.recover(None).await), denied);
    let listed = there.list().await.unwrap();
    assert_eq!(listed.len(), 1, "only what is granted is seen: {listed:?}");
    house.close().await;
    let nobody = Policy::parse("[[peer]]\nidentity = \"alpha\"\n").unwrap();
    let house = House::open(&socket, Arc::new(MemoryRegion::new("there")), nobody);
    assert_eq!(kind(connect(&socket).await), denied, "whom the policy does not name");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_cancelled_only_by_the_name_of_its_own_image() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ferry.sock");
    let region: Arc<dyn Region> = Arc::new(DirRegion::open_root(dir.path()).unwrap());
    // By somebody else, for an image that the policy does not grant.
    let theirs = region.stage(&spec("x-1")).await.unwrap();
    drop(theirs);
    let policy = format!(
        "[[peer]]\nidentity = \"uid:{}\"\n[[peer.grant]]\noperations = [\"cancel\", \"list\"]\n\
         regions = [\"b\"]\nimage_prefix = \"m-\"\n",
        user_of(dir.path())
    );
    let house = House::open(&socket, region.clone(), Policy::parse(&policy).unwrap());
    let there = house.region().await;
    let vote = there.cancel(JobId::from_bytes([1; 16]), &id("m-1")).await.unwrap();
    assert_eq!(vote, Vote::Unknown);
    assert_eq!(region.jobs().await.unwrap().len(), 1, "the stage of x-1 is still there");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_has_not_committed_cannot_be_finished() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ferry.sock");
    let region: Arc<dyn Region> = Arc::new(DirRegion::open_root(dir.path()).unwrap());
    let house = House::open(&socket, region.clone(), Policy::everything());
    let there = house.region().await;
    let target = there.stage(&spec("m-1")).await.unwrap();
    assert_eq!(kind(target.finish().await), Some(ErrorKind::Invalid));
    assert_eq!(target.discard().await.unwrap(), Outcome::Cancelled);
    assert!(region.jobs().await.unwrap().is_empty());
    drop(target);
    house.close().await;
}

/// The user who makes files here.
pub(crate) fn user_of(dir: &Path) -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(dir).unwrap().uid()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_sockets_hold_no_copy_up() {
    let mut world = World::new().await;
    world.here.insert(&id("m"), bytes_of(1 << 20, 5));
    let socket = world.dir.path().join("ferry.sock");
    let mut idle = Vec::new();
    for _ in 0..1000 {
        // Those that are turned out, or not let in, are as good.
        idle.extend(UnixStream::connect(&socket).await);
    }
    let pushed = world.copy(("here", "m"), ("there", "m"), small()).await;
    assert!(matches!(pushed, JobOutcome::Committed(_)), "{pushed:?}");
    drop(idle);
    world.stop().await;
}

/// A peer that says whatever the test wants.
pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
    pub(crate) buffer: BytesMut,
    pub(crate) expect: Expect,
}

impl Raw {
    pub(crate) async fn dial(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).await.unwrap();
        let mut raw = Self { stream, buffer: BytesMut::new(), expect: Expect::hello() };
        raw.say(&Message::Hello(Hello::new(64 << 20)), 0).await;
        assert!(matches!(raw.hear().await, Some(Message::Hello(_))));
        raw.expect = Expect::agreed(VERSION, 64 << 20);
        raw
    }

    pub(crate) async fn say(&mut self, message: &Message, id: u64) {
        let version = if self.expect == Expect::hello() { 0 } else { VERSION };
        let bytes = message.packet(version, id).to_bytes();
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// The next message; `None` when the server hangs up.
    pub(crate) async fn hear(&mut self) -> Option<Message> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer, self.expect).unwrap() {
                return Some(Message::decode(&frame).unwrap());
            }
            if self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Hears until the server says something of that kind.
    pub(crate) async fn hear_of(&mut self, kind: Kind) -> Message {
        loop {
            let message = self.hear().await;
            match message {
                Some(message) if message.kind() == kind => return message,
                Some(Message::Error(refusal)) => panic!("{refusal:?} instead of {kind:?}"),
                Some(_) => {}
                None => panic!("hung up instead of {kind:?}"),
            }
        }
    }

    async fn begin(&mut self, epoch: u32, id: u64) {
        let mut spec = spec("m");
        spec.target.region = name("b");
        let begin = Begin { epoch, root: None, spec };
        self.say(&Message::Begin(Box::new(begin)), id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_stage_is_just_being_removed_is_told_as_one() {
    let mut world = World::new().await;
    world.here.insert(&id("m"), bytes_of(100_000, 5));
    let [from, to] = ["here", "there"].map(|region| Endpoint::new(name(region), id("m")));
    let copied = world.engine.copy(CopyRequest::new(from, to, small())).await.unwrap();
    let job = copied.id();
    assert!(matches!(copied.wait().await, JobOutcome::Committed(_)));
    // Where whoever finishes a commit has come to when the journal is removed and its folder is not.
    let stage = world.root().join(".blockferry/stage").join(job.to_string());
    std::fs::create_dir(stage).unwrap();
    let mut raw = Raw::dial(&world.dir.path().join("ferry.sock")).await;
    let query = Name { job, region: name("b"), image: id("m") };
    raw.say(&Message::Query(query), 1).await;
    let told = raw.hear_of(Kind::Answer).await;
    let committed = Standing::Decided(Decision::Committed { root: None });
    assert!(matches!(&told, Message::Answer(standing) if *standing == committed), "{told:?}");
    drop(raw);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_attempt_is_fenced() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ferry.sock");
    let region: Arc<dyn Region> = Arc::new(DirRegion::open_root(dir.path()).unwrap());
    let house = House::open(&socket, region, Policy::everything());
    let mut first = Raw::dial(&socket).await;
    first.begin(1, 1).await;
    first.hear_of(Kind::Ready).await;
    let mut second = Raw::dial(&socket).await;
    for (id, stale) in [(1, 1), (2, 3)] {
        second.begin(stale, id).await;
        let Some(Message::Error(refusal)) = second.hear().await else { panic!("let in") };
        let kind = if stale == 1 { ErrorKind::Fenced } else { ErrorKind::Invalid };
        assert_eq!(refusal.kind, kind, "attempt {stale} after 1");
    }
    second.begin(2, 3).await;
    second.hear_of(Kind::Ready).await;
    loop {
        match first.hear().await {
            Some(Message::Error(refusal)) => {
                assert_eq!(refusal.kind, ErrorKind::Fenced, "the earlier one is told");
                break;
            }
            Some(_) => {}
            None => panic!("the earlier one is hung up without a word"),
        }
    }
    assert!(first.hear().await.is_none(), "and then hung up");
    drop(second);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_lies_is_refused_and_its_stage_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ferry.sock");
    let region = Arc::new(DirRegion::open_root(dir.path()).unwrap());
    let house = House::open(&socket, region.clone(), Policy::everything());
    let mut liar = Raw::dial(&socket).await;
    liar.begin(1, 1).await;
    liar.hear_of(Kind::Credit).await;
    let chunk = |digest: u8| Chunk {
        index: ChunkIndex::new(0),
        codec: Codec::Raw,
        digest: Digest::from_bytes([digest; 32]),
        bytes: bytes_of(64 << 10, 6).into(),
    };
    liar.say(&Message::Chunk(chunk(9)), 2).await;
    loop {
        match liar.hear().await {
            Some(Message::Error(refusal)) => {
                assert_eq!(refusal.kind, ErrorKind::Corrupt, "{refusal:?}");
                break;
            }
            Some(Message::Written) => panic!("it was believed"),
            Some(_) => {}
            None => panic!("hung up without a word"),
        }
    }
    assert!(liar.hear().await.is_none(), "hung up");
    drop(liar);
    house.close().await;
    let staged = region.job(JobId::from_bytes([1; 16])).await.unwrap().unwrap();
    assert_eq!((staged.epoch, staged.owned), (1, false), "the stage is kept, and can be resumed");
}
