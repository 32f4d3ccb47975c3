//! Plain objects as images: copied to and from by the engine, over a real server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blockferry::chunk::Durable;
use blockferry::engine::{CancelAnswer, CopyRequest, Engine, Job, JobOutcome, Shutdown};
use blockferry::geometry::{ChunkIndex, ChunkRun, ChunkSize, Geometry};
use blockferry::id::{ImageId, JobId, RegionName};
use blockferry::job::{Endpoint, Fingerprint, JobSpec};
use blockferry::location::BucketAddress;
use blockferry::manifest::Manifest;
use blockferry::options::{CopyOptions, EngineOptions, Limits};
use blockferry::region::{
    Located, MemoryRegion, Outcome, PlainObjectRegion, Region, Settled, Target, Vote, Wish,
};
use blockferry::seal::{Seal, seal};
use blockferry::store::model::Lie;
use blockferry::{Error, ErrorKind};

use super::server::{Fault, S3Server, Seen};

const CHUNK: usize = 8 << 20;

fn bytes(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut bytes = vec![0; len];
    // A chunk of zeros in the middle.
    for (at, byte) in bytes.iter_mut().enumerate().filter(|(at, _)| at / CHUNK != 1) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(at as u64);
        *byte = u8::try_from(state >> 56).unwrap();
    }
    bytes
}

struct World {
    server: S3Server,
    state: tempfile::TempDir,
    memory: Arc<MemoryRegion>,
}

fn name(text: &str) -> RegionName {
    text.parse().unwrap()
}

fn image(text: &str) -> ImageId {
    text.parse().unwrap()
}

impl World {
    async fn new() -> Self {
        let memory = Arc::new(MemoryRegion::new("memory"));
        Self { server: S3Server::start().await, state: tempfile::tempdir().unwrap(), memory }
    }

    fn region(&self, key: &str) -> PlainObjectRegion {
        let address = BucketAddress::parse(&self.server.url("s3+raw", key)).unwrap();
        PlainObjectRegion::open(&address, &S3Server::options(), self.state.path()).unwrap()
    }

    async fn engine(&self) -> Engine {
        let engine = Engine::open(EngineOptions::new(self.state.path())).await.unwrap();
        engine.register(name("memory"), self.memory.clone()).await.unwrap();
        engine.register(name("object"), Arc::new(self.region("dir/disk.raw"))).await.unwrap();
        engine
    }

    async fn up(&self, engine: &Engine, options: CopyOptions) -> blockferry::Result<Job> {
        let from = Endpoint::new(name("memory"), image("disk"));
        let to = Endpoint::new(name("object"), image("image"));
        engine.copy(CopyRequest::new(from, to, options)).await
    }

    fn object(&self) -> Option<Vec<u8>> {
        self.server.model.bytes("dir/disk.raw").map(|bytes| bytes.to_vec())
    }

    /// Nothing is left of any copy but what was committed.
    fn is_clean(&self) -> bool {
        let jobs = self.state.path().join("in-place");
        let jobs = std::fs::read_dir(jobs).map_or(0, |folder| folder.count());
        jobs == 0 && self.server.model.uploads().is_empty()
    }
}

fn failed(outcome: JobOutcome) -> Arc<Error> {
    match outcome {
        JobOutcome::Failed { error, .. } => error,
        other => unreachable!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_up_and_comes_back_equal() {
    for len in [0, 1, CHUNK, 3 * CHUNK + 5] {
        let world = World::new().await;
        world.memory.insert(&image("disk"), bytes(len));
        let engine = world.engine().await;
        let job = world.up(&engine, CopyOptions::new()).await.unwrap();
        assert_eq!(job.spec().geometry.chunk_size().bytes(), CHUNK as u64);
        let outcome = job.wait().await;
        assert!(matches!(outcome, JobOutcome::Committed(_)), "{outcome:?}");
        assert_eq!(world.object().unwrap(), bytes(len));
        assert!(world.is_clean());

        let from = Endpoint::new(name("object"), image("image"));
        let to = Endpoint::new(name("memory"), image("back"));
        let job = engine.copy(CopyRequest::new(from, to, CopyOptions::new())).await.unwrap();
        assert!(matches!(job.wait().await, JobOutcome::Committed(_)));
        let back = world.memory.open(&image("back")).await.unwrap();
        assert_eq!(back.size_bytes(), len as u64);
        let whole = blockferry::geometry::ByteRange::new(0, len as u64);
        assert_eq!(back.read_at(whole).await.unwrap(), bytes(len));

        let again = world.up(&engine, CopyOptions::new()).await.unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Exists);
        let late = engine.cancel_image(&name("object"), &image("image")).await.unwrap();
        assert_eq!(late.answer, CancelAnswer::AlreadyCommitted);
        engine.shutdown(Shutdown::Suspend, Duration::from_secs(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changes_is_not_committed() {
    let world = World::new().await;
    world.server.model.insert("dir/disk.raw", bytes(3 * CHUNK));
    let engine = world.engine().await;
    let model = world.server.model.clone();
    world.server.hook(move |seen: &Seen| {
        if seen.operation == "GetObject" && seen.nth == 1 {
            model.insert("dir/disk.raw", vec![1; 3 * CHUNK]);
        }
        Fault::None
    });
    let from = Endpoint::new(name("object"), image("image"));
    let to = Endpoint::new(name("memory"), image("copy"));
    let job = engine.copy(CopyRequest::new(from, to, CopyOptions::new())).await.unwrap();
    assert_eq!(failed(job.wait().await).kind(), ErrorKind::SourceChanged);
    assert!(!matches!(world.memory.locate(&image("copy")).await.unwrap(), Located::Committed(_)));
    engine.shutdown(Shutdown::Suspend, Duration::from_secs(10)).await;
}

fn slow() -> CopyOptions {
    CopyOptions::new().with_limits(Limits::NONE.with_bytes_per_sec(8 << 20))
}

/// A copy of four chunks of which some have arrived and some have not.
async fn caught(world: &World, engine: &Engine) -> Job {
    world.memory.insert(&image("disk"), bytes(4 * CHUNK));
    let job = world.up(engine, slow()).await.unwrap();
    let mut progress = job.watch();
    let is_under_way = |now: &blockferry::job::Progress| now.written_bytes > 0;
    progress.wait_for(is_under_way).await.unwrap();
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_leaves_neither_object_nor_upload() {
    let world = World::new().await;
    let engine = world.engine().await;
    let job = caught(&world, &engine).await;
    let reply = engine.cancel(job.id()).await.unwrap();
    assert!(matches!(reply.answer, CancelAnswer::Cancelled { .. }), "{reply:?}");
    assert!(matches!(job.wait().await, JobOutcome::RolledBack { .. }));
    assert!(world.object().is_none() && world.is_clean());
    engine.shutdown(Shutdown::Suspend, Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_sends_no_part_again_that_is_on_record() {
    let world = World::new().await;
    let engine = world.engine().await;
    let job = caught(&world, &engine).await;
    engine.shutdown(Shutdown::Suspend, Duration::from_secs(10)).await;
    let sent = world.server.count("UploadPart");
    assert!((1..4).contains(&sent), "{sent} parts went up before it was suspended");
    let engine = world.engine().await;
    let job = engine.resume(job.id()).await.unwrap();
    engine.limit(job.id(), Limits::NONE).await.unwrap();
    let outcome = job.wait().await;
    assert!(matches!(outcome, JobOutcome::Committed(_)), "{outcome:?}");
    assert_eq!(world.server.count("UploadPart"), 4);
    assert_eq!(world.object().unwrap(), bytes(4 * CHUNK));
    assert!(world.is_clean());
    engine.shutdown(Shutdown::Suspend, Duration::from_secs(10)).await;
}

/// The process dies before a checkpoint tells of what it has sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_resume_sends_no_part_again_that_the_store_holds() {
    let world = World::new().await;
    let (region, other) = (world.region("one"), spec("one"));
    let geometry = Geometry::new(2 * CHUNK as u64 + 1, other.geometry.chunk_size()).unwrap();
    let spec = JobSpec::new(other.job, other.source, other.target, geometry, Fingerprint::new());
    let (whole, wrong) = (bytes(2 * CHUNK + 1), vec![7; CHUNK]);
    let send = async |target: &dyn Target, index: u32, bytes: &[u8]| {
        let piece = bytes::Bytes::copy_from_slice(bytes);
        let written = match seal(geometry, ChunkIndex::new(index), piece) {
            Seal::Zero(index) => target.write_zeroes(ChunkRun::new(index, 1)).await.unwrap(),
            Seal::Data(chunk) => target.write(chunk).await.unwrap(),
        };
        Durable::recorded(written.run(), written.content())
    };
    let target = region.stage(&spec).await.unwrap();
    target.begin().await.unwrap();
    send(&*target, 0, &whole[..CHUNK]).await;
    send(&*target, 1, &wrong).await;
    drop(target);

    let target = region.reopen(&spec).await.unwrap();
    let mut restored = target.begin().await.unwrap();
    assert_eq!(restored.data_bytes, 0, "nothing is on record");
    for (index, piece) in whole.chunks(CHUNK).enumerate() {
        let done = send(&*target, u32::try_from(index).unwrap(), piece).await;
        restored.record(&done).unwrap();
    }
    let sent = world.server.count("UploadPart");
    assert_eq!(sent, 2 + 2, "the first is there; the second was another");
    let table = restored.table.finish().unwrap();
    let manifest = Manifest::new(table, Some(spec.job), spec.attributes.clone()).unwrap();
    assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
    target.finish().await.unwrap();
    assert_eq!(world.server.model.bytes("one").unwrap(), whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_somebody_aborted_is_begun_anew() {
    let world = World::new().await;
    let engine = world.engine().await;
    let job = caught(&world, &engine).await;
    engine.shutdown(Shutdown::Suspend, Duration::from_secs(10)).await;
    let store = world.server.model.client("");
    for upload in blockferry::store::Store::uploads(&store, "").await.unwrap() {
        blockferry::store::Store::upload_abort(&store, &upload.key, &upload.id).await.unwrap();
    }
    let engine = world.engine().await;
    let job = engine.resume(job.id()).await.unwrap();
    engine.limit(job.id(), Limits::NONE).await.unwrap();
    assert!(matches!(job.wait().await, JobOutcome::Committed(_)));
    assert_eq!(world.object().unwrap(), bytes(4 * CHUNK));
    engine.shutdown(Shutdown::Suspend, Duration::from_secs(10)).await;
}

/// Whatever becomes of the request that completes the upload: it is committed whole or not at all,
/// every answer is the same, and nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn the_completion_of_an_upload_has_one_outcome() {
    for (fault, is_there) in [
        (Fault::LostAfter, true),
        (Fault::LostBefore, false),
        (Fault::ErrorInSuccess("InternalError"), false),
        (Fault::Status(403, "AccessDenied"), false),
        (Fault::Status(503, "SlowDown"), true),
    ] {
        let world = World::new().await;
        world.memory.insert(&image("disk"), bytes(CHUNK + 1));
        let engine = world.engine().await;
        world.server.fault_at("CompleteMultipartUpload", 0, fault);
        let job = world.up(&engine, CopyOptions::new()).await.unwrap();
        let outcome = job.wait().await;
        assert_eq!(matches!(outcome, JobOutcome::Committed(_)), is_there, "{fault:?} {outcome:?}");
        assert_eq!(world.object().is_some(), is_there, "{fault:?}");
        engine.shutdown(Shutdown::Suspend, Duration::from_secs(10)).await;
        drop(engine);
        // Another process, which knows nothing but the state folder.
        world.server.heal();
        let engine = world.engine().await;
        let reply = engine.cancel(job.id()).await.unwrap();
        let is_late = reply.answer == CancelAnswer::AlreadyCommitted;
        assert_eq!(is_late, is_there, "{fault:?}: {reply:?}");
        assert_eq!(world.object().is_some(), is_there, "{fault:?}");
        assert!(world.is_clean(), "{fault:?}");
        engine.shutdown(Shutdown::Suspend, Duration::from_secs(10)).await;
    }
}

/// Whoever takes the key while a copy runs keeps it, also where the store does not look at the
/// condition of a completion.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_came_meanwhile_is_not_replaced() {
    for lie in [Lie::None, Lie::Ignores] {
        let world = World::new().await;
        world.server.model.lie(lie);
        world.memory.insert(&image("disk"), bytes(CHUNK + 1));
        let engine = world.engine().await;
        let model = world.server.model.clone();
        world.server.hook(move |seen: &Seen| {
            if seen.operation == "UploadPart" && seen.nth == 0 {
                model.insert("dir/disk.raw", "a stranger's");
            }
            Fault::None
        });
        let job = world.up(&engine, CopyOptions::new()).await.unwrap();
        assert_eq!(failed(job.wait().await).kind(), ErrorKind::Exists, "{lie:?}");
        let reply = engine.cancel(job.id()).await.unwrap();
        assert!(matches!(reply.answer, CancelAnswer::Cancelled { .. }), "{lie:?}: {reply:?}");
        assert_eq!(world.object().unwrap(), b"a stranger's", "{lie:?}");
        assert!(world.is_clean(), "{lie:?}");
        engine.shutdown(Shutdown::Suspend, Duration::from_secs(10)).await;
    }
}

/// A completion that is still on its way when the job is cancelled finds no upload any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_completion_that_lands_after_the_cancel_makes_no_object() {
    let world = World::new().await;
    world.memory.insert(&image("disk"), bytes(CHUNK + 1));
    let engine = world.engine().await;
    world.server.fault_at("CompleteMultipartUpload", 0, Fault::Late);
    let job = world.up(&engine, CopyOptions::new()).await.unwrap();
    failed(job.wait().await);
    let reply = engine.cancel(job.id()).await.unwrap();
    assert!(matches!(reply.answer, CancelAnswer::Cancelled { .. }), "{reply:?}");
    assert_eq!(world.server.land().await, 1);
    assert!(world.object().is_none() && world.is_clean());
    engine.shutdown(Shutdown::Suspend, Duration::from_secs(10)).await;
}

/// A copy to the object of that key, as an engine would stage it.
fn spec(key: &str) -> JobSpec {
    let geometry = Geometry::new(1, ChunkSize::from_bytes(CHUNK as u64).unwrap()).unwrap();
    let [from, to] = ["memory", key].map(|region| Endpoint::new(name(region), image("image")));
    JobSpec::new(JobId::from_bytes([7; 16]), from, to, geometry, Fingerprint::new())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_to_another_object_is_none_of_this_ones() {
    let world = World::new().await;
    let (one, other, spec) = (world.region("one"), world.region("other"), spec("one"));
    let job = spec.job;
    drop(one.stage(&spec).await.unwrap());
    assert_eq!(other.job(job).await.unwrap().map(|staged| staged.spec), None);
    assert!(!other.wish(job, Wish::Suspend).await.unwrap());
    assert!(other.recover(None).await.unwrap().is_empty());
    // Whoever asks by its id has named the wrong place, and must not conclude that it has ended.
    let cancelled = other.cancel(job, &image("image")).await;
    assert_eq!(cancelled.unwrap_err().kind(), ErrorKind::Invalid);
    let [found] = &other.recover(Some(job)).await.unwrap()[..] else { unreachable!() };
    let Settled::Failed(error) = &found.settled else { unreachable!("{found:?}") };
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    for taken in [other.reopen(&spec).await, other.stage(&spec).await] {
        let error = taken.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    let staged = one.job(job).await.unwrap().unwrap();
    assert_eq!((staged.spec, staged.cancelled), (spec, false));
    let vote = one.cancel(job, &image("image")).await.unwrap();
    assert_eq!(vote, Vote::Cancelled { first: true, clean: true });
    assert!(world.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_whose_header_is_damaged_is_no_start_that_nobody_was_told_of() {
    let world = World::new().await;
    let (region, spec) = (world.region("one"), spec("one"));
    let target = region.stage(&spec).await.unwrap();
    target.begin().await.unwrap();
    drop(target);
    let journal = world.state.path().join(format!("in-place/{}/journal", spec.job));
    let whole = std::fs::read(&journal).unwrap();
    let damaged = [&[0; 512], &whole[512..]].concat();
    std::fs::write(&journal, &damaged).unwrap();
    for only in [None, Some(spec.job)] {
        let [found] = &region.recover(only).await.unwrap()[..] else { unreachable!() };
        let Settled::Failed(error) = &found.settled else { unreachable!("{found:?}") };
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    assert_eq!(region.stage(&spec).await.unwrap_err().kind(), ErrorKind::Corrupt);
    let cancelled = region.cancel(spec.job, &image("image")).await;
    assert_eq!(cancelled.unwrap_err().kind(), ErrorKind::Corrupt, "nobody knows of what");
    assert_eq!(std::fs::read(&journal).unwrap(), damaged, "what is left of it is kept");
    // A start that nobody was told of has no header, and no record.
    std::fs::write(&journal, vec![0; whole.len()]).unwrap();
    assert!(region.recover(None).await.unwrap().is_empty());
    assert!(!journal.exists());
}

/// A beginning that got no answer is asked for again; what it began does not stay.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_began_without_an_answer_does_not_stay() {
    for fault in [Fault::LostAfter, Fault::Truncated] {
        let world = World::new().await;
        world.memory.insert(&image("disk"), bytes(CHUNK + 1));
        // Somebody else's, begun before.
        let store = world.server.model.client("");
        let other = blockferry::store::Store::upload_begin(&store, "dir/disk.raw", "other").await;
        let engine = world.engine().await;
        world.server.fault_at("CreateMultipartUpload", 0, fault);
        let job = world.up(&engine, CopyOptions::new()).await.unwrap();
        let outcome = job.wait().await;
        assert!(matches!(outcome, JobOutcome::Committed(_)), "{fault:?} {outcome:?}");
        assert_eq!(world.server.count("CreateMultipartUpload"), 2, "{fault:?}");
        assert_eq!(world.server.model.uploads(), ["dir/disk.raw"], "{fault:?}: only the other's");
        let other = other.unwrap().id;
        let there = blockferry::store::Store::parts(&store, "dir/disk.raw", &other).await.unwrap();
        assert_eq!(there, Some(Vec::new()), "{fault:?}");
        engine.shutdown(Shutdown::Suspend, Duration::from_secs(10)).await;
    }
}

/// Two daemons copy to the same object: one of them fails at its end, and not by the other's hand.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_others_begin_meanwhile_is_left_alone() {
    for fault in [Fault::None, Fault::Status(503, "SlowDown")] {
        let world = World::new().await;
        world.memory.insert(&image("disk"), bytes(CHUNK + 1));
        let engine = world.engine().await;
        // It comes between the look before our own begins, and its answer.
        let (model, runtime) = (world.server.model.clone(), tokio::runtime::Handle::current());
        world.server.hook(move |seen| {
            if seen.operation != "CreateMultipartUpload" || seen.nth > 0 {
                return Fault::None;
            }
            let other = model.client("");
            tokio::task::block_in_place(|| {
                let begun = blockferry::store::Store::upload_begin(&other, "dir/disk.raw", "other");
                runtime.block_on(begun).unwrap();
            });
            fault
        });
        let job = world.up(&engine, CopyOptions::new()).await.unwrap();
        let outcome = job.wait().await;
        assert!(matches!(outcome, JobOutcome::Committed(_)), "{fault:?} {outcome:?}");
        assert_eq!(world.server.model.uploads(), ["dir/disk.raw"], "{fault:?}: the other's");
        assert_eq!(world.server.count("AbortMultipartUpload"), 0, "{fault:?}");
        engine.shutdown(Shutdown::Suspend, Duration::from_secs(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_of_small_chunks_is_refused_before_it_begins() {
    let world = World::new().await;
    world.memory.insert(&image("disk"), bytes(CHUNK));
    let engine = world.engine().await;
    let small = blockferry::geometry::ChunkSize::from_bytes(1 << 20).unwrap();
    let refused = world.up(&engine, CopyOptions::new().with_chunk_size(small)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(refused.report().contains("--chunk-size 8MiB"), "{}", refused.report());
    assert!(world.is_clean() && world.server.count("CreateMultipartUpload") == 0);
    engine.shutdown(Shutdown::Suspend, Duration::from_secs(10)).await;
}

#[cfg(feature = "cli")]
fn command(state: &Path, args: &[&str]) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_blockferry"));
    command.args(args).arg("--json").env("BLOCKFERRY_STATE_DIR", state).env("HOME", state);
    command.envs(S3Server::environment()).output().unwrap()
}

#[cfg(feature = "cli")]
#[tokio::test(flavor = "multi_thread")]
async fn the_command_probes_and_copies() {
    let world = World::new().await;
    let state = world.state.path().to_owned();
    let (file, back) = (state.join("disk.raw"), state.join("back.raw"));
    std::fs::write(&file, bytes(2 * CHUNK + 3)).unwrap();
    let (region, object) = (world.server.url("s3", "r"), world.server.url("s3+raw", "d/x.raw"));
    let (from, to) = (file.to_str().unwrap().to_owned(), back.to_str().unwrap().to_owned());
    let run = tokio::task::spawn_blocking(move || {
        let probed = command(&state, &["probe", &region]);
        assert!(probed.status.success(), "{probed:?}");
        let told: serde_json::Value = serde_json::from_slice(&probed.stdout).unwrap();
        assert_eq!(told["fencing"], "swap");
        assert_eq!(told["proven"]["checksums"], true);
        for (from, to) in [(&from, &object), (&object, &to)] {
            let copied = command(&state, &["copy", from, to]);
            assert!(copied.status.success(), "{copied:?}");
        }
    });
    run.await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(&back).unwrap());
    assert_eq!(world.server.model.keys(), ["d/x.raw"]);
}
