//! Does a copy with a base take over what both images have alike, and nothing else? Through the
//! public API, on this host and between daemons.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use blockferry::ErrorKind;
use blockferry::engine::Engine;
use blockferry::geometry::ChunkSize;
use blockferry::job::Receipt;
use blockferry::options::{CopyOptions, Limits, Verify};

use crate::world::{
    KIB, World, committed, ended, image, kind, noise, rate, request, resumed, suspended, until,
};

const CHUNK: u64 = 64 * KIB;
const CHUNKS: u64 = 40;
/// Chunks in which the new image differs from the base.
const CHANGED: [u64; 3] = [0, 17, 39];

/// A base: noise, with a chunk of zeros, and one that is zero in part.
pub(crate) fn base_bytes() -> Vec<u8> {
    let mut bytes = noise(1, CHUNKS * CHUNK - 77);
    fill(&mut bytes, 5 * CHUNK, CHUNK, 0);
    fill(&mut bytes, 9 * CHUNK + 4096, CHUNK / 2, 0);
    bytes
}

/// The image that is to be copied.
pub(crate) fn next_bytes() -> Vec<u8> {
    let mut bytes = base_bytes();
    for index in CHANGED {
        fill(&mut bytes, index * CHUNK + 99, 1, 7);
        fill(&mut bytes, index * CHUNK + 100, 1, 8);
    }
    // Where the base has data, this one has zeros; and the other way round.
    fill(&mut bytes, 30 * CHUNK, CHUNK, 0);
    fill(&mut bytes, 5 * CHUNK + 5, 1, 1);
    bytes
}

/// Bytes of the chunks that only the new image has.
pub(crate) fn changed_bytes() -> u64 {
    4 * CHUNK - 77
}

fn fill(bytes: &mut [u8], at: u64, len: u64, with: u8) {
    let at = usize::try_from(at).unwrap();
    bytes[at..at + usize::try_from(len).unwrap()].fill(with);
}

fn based() -> CopyOptions {
    CopyOptions::new().with_base(image("base"))
}

/// An engine that moves every byte, a base in `b`, and the new image in `a`, both with digests.
async fn ready(world: &World) -> Engine {
    let engine = world.engine_with(world.options().with_share_extents(false)).await;
    world.put(&engine, &base_bytes(), "b/base").await;
    world.put(&engine, &next_bytes(), "a/next").await;
    engine
}

#[track_caller]
fn assert_holds(world: &World, name: &str, bytes: &[u8]) {
    assert!(std::fs::read(world.data_of("b", name)).unwrap() == bytes, "{name} has other bytes");
}

fn data_of(receipt: &Receipt) -> u64 {
    receipt.written_bytes + receipt.resumed_bytes + receipt.reused_bytes
}

/// Committed images are for nobody to write.
fn open_up(data: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(data, mode).unwrap();
}

/// Changes one byte of a committed image, as a disk that rots does.
pub(crate) fn damage(data: &Path, at: u64) {
    let mut byte = [0];
    open_up(data);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(data).unwrap();
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

#[tokio::test]
async fn what_the_base_has_alike_is_neither_read_nor_written_from_the_source() {
    let world = World::in_memory();
    let engine = ready(&world).await;
    for (name, verify) in [("new", Verify::None), ("checked", Verify::Full)] {
        let how = based().with_verify(verify);
        let to = format!("b/{name}");
        let receipt =
            committed(engine.copy(request("a/next", &to, how)).await.unwrap().wait().await);
        assert_holds(&world, name, &next_bytes());
        assert_eq!(receipt.read_bytes, changed_bytes());
        assert!(receipt.written_bytes <= changed_bytes(), "{receipt:?}");
        assert_eq!(data_of(&receipt), receipt.data_bytes);
        assert!(receipt.reused_bytes >= (CHUNKS - 7) * CHUNK, "{receipt:?}");
        assert_eq!(receipt.root, committed_root(&engine, "a/next").await);
    }
    assert_holds(&world, "base", &base_bytes());
}

async fn committed_root(engine: &Engine, at: &str) -> blockferry::chunk::Digest {
    let end = crate::world::end(at);
    let images = engine.images(&end.region).await.unwrap();
    images.into_iter().find(|info| info.image == end.image).unwrap().root.unwrap()
}

#[tokio::test]
async fn a_source_without_digests_is_cut_as_the_base_is_and_copied_right() {
    let world = World::in_memory();
    let engine = ready(&world).await;
    world.m.insert(&image("plain"), next_bytes());
    std::fs::write(world.source(), next_bytes()).unwrap();
    for (from, name) in [("m/plain", "from-memory"), ("source/image", "from-file")] {
        let to = format!("b/{name}");
        let job = engine.copy(request(from, &to, based())).await.unwrap();
        assert_eq!(job.spec().geometry.chunk_size(), ChunkSize::MIN);
        let receipt = committed(job.wait().await);
        assert_holds(&world, name, &next_bytes());
        assert_eq!(data_of(&receipt), receipt.data_bytes);
    }
}

#[tokio::test]
async fn images_of_other_sizes_have_their_whole_chunks_in_common() {
    let world = World::in_memory();
    let engine = ready(&world).await;
    for (name, chunks) in [("grown", CHUNKS + 9), ("shrunk", CHUNKS - 20), ("one", 1)] {
        let len = usize::try_from(chunks * CHUNK).unwrap();
        let mut bytes = base_bytes();
        bytes.resize(len, 3);
        world.put(&engine, &bytes, &format!("a/{name}")).await;
        let (from, to) = (format!("a/{name}"), format!("b/{name}"));
        let job = engine.copy(request(&from, &to, based())).await.unwrap();
        let receipt = committed(job.wait().await);
        assert_holds(&world, name, &bytes);
        let read = match name {
            "grown" => 10 * CHUNK,
            "shrunk" => 0,
            // The only chunk of an image has a digest of another kind.
            _ => CHUNK,
        };
        assert_eq!(receipt.read_bytes, read, "{name}");
    }
}

#[tokio::test]
async fn a_base_that_cannot_be_one_is_refused_and_nothing_is_staged() {
    let world = World::in_memory();
    let engine = ready(&world).await;
    let missing = CopyOptions::new().with_base(image("none"));
    let coarse = based().with_chunk_size(ChunkSize::DEFAULT);
    for (from, to, how, wrong) in [
        ("a/next", "b/new", missing.clone(), ErrorKind::NotFound),
        ("source/image", "b/new", missing, ErrorKind::NotFound),
        ("a/next", "b/new", coarse, ErrorKind::Invalid),
        ("a/next", "m/new", based(), ErrorKind::Unsupported),
        ("a/next", "target/image", based(), ErrorKind::Unsupported),
    ] {
        std::fs::write(world.source(), b"abc").unwrap();
        let refused = engine.copy(request(from, to, how)).await;
        assert_eq!(kind(refused), Some(wrong), "{from} to {to}");
    }
    assert_eq!(world.leftovers("b"), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_base_that_is_damaged_is_not_believed() {
    let world = World::in_memory();
    let engine = ready(&world).await;
    let data = world.data_of("b", "base");
    // In a chunk that both have alike, in one that differs, and in one that is zero in the new.
    for at in [20 * CHUNK + 7, 17 * CHUNK + 50_000, 30 * CHUNK] {
        damage(&data, at);
    }
    let job = engine.copy(request("a/next", "b/new", based().with_verify(Verify::Full))).await;
    let receipt = committed(job.unwrap().wait().await);
    assert_holds(&world, "new", &next_bytes());
    assert_eq!(
        receipt.read_bytes,
        changed_bytes() + CHUNK,
        "the damaged chunk comes from the source"
    );
    assert_eq!(receipt.verified.rewritten_chunks, 0);
    // Half of it is gone, and nobody has noticed yet.
    let file = std::fs::OpenOptions::new().write(true).open(&data).unwrap();
    let job = engine.copy(request("a/next", "b/slow", based().with_limits(rate(1))));
    let job = job.await.unwrap();
    file.set_len(20 * CHUNK).unwrap();
    engine.limit(job.id(), Limits::NONE).await.unwrap();
    committed(ended(&job).await);
    assert_holds(&world, "slow", &next_bytes());
    // What is plainly damaged is told at once.
    let refused = engine.copy(request("a/next", "b/late", based())).await;
    assert_eq!(kind(refused), Some(ErrorKind::Corrupt));
}

#[tokio::test]
async fn a_base_that_goes_while_it_is_used_costs_only_time() {
    let world = World::in_memory();
    let engine = ready(&world).await;
    for (name, by_crash) in [("suspended", false), ("crashed", true)] {
        let options = world.options().with_share_extents(false);
        let first = world.engine_with(options.with_checkpoint(1, Duration::ZERO)).await;
        let base = image(&format!("{name}-base"));
        world.put(&engine, &base_bytes(), &format!("b/{base}")).await;
        let how = based().with_base(base.clone()).with_limits(rate(4 * CHUNK));
        let job = first.copy(request("a/next", &format!("b/{name}"), how)).await.unwrap();
        until("something is taken over", async || job.progress().reused_bytes > 0).await;
        if !by_crash {
            first.suspend(job.id()).await.unwrap();
            suspended(&ended(&job).await);
        }
        drop(first);
        world.region("b").remove(&base).await.unwrap();
        let job = resumed(&engine, &job).await;
        engine.limit(job.id(), Limits::NONE).await.unwrap();
        let receipt = committed(ended(&job).await);
        assert!(receipt.reused_bytes == 0, "there is no base any more: {receipt:?}");
        assert!(by_crash || receipt.resumed_bytes > 0, "{receipt:?}");
        assert_holds(&world, name, &next_bytes());
    }
}

#[tokio::test]
async fn what_was_taken_over_is_on_record_like_anything_else() {
    let world = World::in_memory();
    let engine = ready(&world).await;
    let how = based().with_verify(Verify::Full).with_limits(rate(8 * CHUNK));
    let job = engine.copy(request("a/next", "b/new", how)).await.unwrap();
    until("something is taken over", async || job.progress().reused_bytes > 0).await;
    engine.suspend(job.id()).await.unwrap();
    suspended(&ended(&job).await);
    let so_far = job.progress();
    let job = resumed(&engine, &job).await;
    engine.limit(job.id(), Limits::NONE).await.unwrap();
    let receipt = committed(ended(&job).await);
    assert_eq!(receipt.resumed_bytes, so_far.reused_bytes + so_far.written_bytes);
    assert_eq!(data_of(&receipt), receipt.data_bytes);
    assert_holds(&world, "new", &next_bytes());
}

#[tokio::test]
async fn another_base_is_another_request_and_a_cancel_leaves_nothing() {
    let world = World::in_memory();
    let engine = ready(&world).await;
    let how = |how: CopyOptions| how.with_token("t").with_limits(rate(1));
    let job = engine.copy(request("a/next", "b/new", how(based()))).await.unwrap();
    let again = engine.copy(request("a/next", "b/new", how(based()))).await.unwrap();
    assert_eq!(again.id(), job.id());
    let other = engine.copy(request("a/next", "b/new", how(CopyOptions::new()))).await;
    assert_eq!(kind(other), Some(ErrorKind::Invalid));
    engine.cancel(job.id()).await.unwrap();
    crate::world::rolled_back(&ended(&job).await);
    assert_eq!(world.leftovers("b"), Vec::<std::path::PathBuf>::new());
    assert_holds(&world, "base", &base_bytes());
}

/// A base at another daemon, or here for what comes from there.
#[cfg(feature = "peer")]
mod between {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use blockferry::peer::Policy;
    use blockferry::region::DirRegion;
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
    use tokio::net::{UnixListener, UnixStream};
    use tokio::sync::watch;
    use tokio::task::JoinSet;

    use super::*;
    use crate::peer::{House, connect};
    use crate::world::region;

    /// What a push or a pull says beside the bytes of chunks: hellos, the job, acknowledgements,
    /// credits, reports.
    const TALK_BYTES: u64 = 40 * KIB;
    /// A digest and its place, for each chunk.
    const TABLE_BYTES: u64 = 48 * CHUNKS;

    /// A world with a daemon that serves its region `b`, which the engine reaches as `there`.
    struct Apart {
        world: World,
        engine: Engine,
        house: Option<House>,
        wire_bytes: Arc<AtomicU64>,
        cutter: watch::Sender<()>,
        _relay: JoinSet<()>,
    }

    impl Apart {
        async fn new(policy: Policy) -> Self {
            let world = World::in_memory();
            let engine = ready(&world).await;
            world.put(&engine, &base_bytes(), "a/base").await;
            world.put(&engine, &next_bytes(), "b/next").await;
            let (wire_bytes, (cutter, cut)) = (Arc::default(), watch::channel(()));
            let mut relay = JoinSet::new();
            let [near, far] = ["near", "far"].map(|name| world.path(name));
            let listener = UnixListener::bind(&near).unwrap();
            relay.spawn(pass_on(listener, far, Arc::clone(&wire_bytes), cut));
            let mut apart = Self { world, engine, house: None, wire_bytes, cutter, _relay: relay };
            apart.serve(policy);
            let there = connect(&near).await.unwrap();
            apart.engine.register(region("there"), Arc::new(there)).await.unwrap();
            apart
        }

        fn serve(&mut self, policy: Policy) {
            let served = Arc::new(DirRegion::open_root(self.world.path("b")).unwrap());
            self.house = Some(House::open(&self.world.path("far"), served, policy));
        }

        /// Copies, and tells how many bytes went over the wire, either way.
        async fn copy(&self, from: &str, to: &str, how: CopyOptions) -> (Receipt, u64) {
            let before = self.wire_bytes.load(Relaxed);
            let job = self.engine.copy(request(from, to, how)).await.unwrap();
            let receipt = committed(ended(&job).await);
            (receipt, self.wire_bytes.load(Relaxed) - before)
        }

        async fn close(mut self) {
            self.house.take().unwrap().close().await;
        }
    }

    /// Passes connections on, counts what they carry, and cuts all of them when it is told.
    async fn pass_on(
        listener: UnixListener,
        far: PathBuf,
        count: Arc<AtomicU64>,
        cut: watch::Receiver<()>,
    ) {
        let mut links = JoinSet::new();
        while let Ok((near, _)) = listener.accept().await {
            let (far, count, mut cut) = (far.clone(), count.clone(), cut.clone());
            cut.mark_unchanged();
            links.spawn(async move {
                let Ok(far) = UnixStream::connect(&far).await else { return };
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                tokio::select! {
                    _ = async { tokio::join!(pump(near_in, far_out, &count), pump(far_in, near_out, &count)) } => {}
                    _ = cut.changed() => {}
                }
            });
        }
    }

    async fn pump(
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        count: &AtomicU64,
    ) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(len @ 1..) = from.read(&mut buffer).await {
            count.fetch_add(u64::try_from(len).unwrap(), Relaxed);
            if to.write_all(&buffer[..len]).await.is_err() {
                return;
            }
        }
        to.shutdown().await.ok();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_chunks_that_differ_travel_to_a_daemon_that_has_a_base() {
        let apart = Apart::new(Policy::everything()).await;
        let most = changed_bytes() + TABLE_BYTES + TALK_BYTES;
        let how = || based().with_verify(Verify::Full);
        let (receipt, wire) = apart.copy("a/next", "there/known", how()).await;
        assert_holds(&apart.world, "known", &next_bytes());
        assert_eq!(receipt.read_bytes, changed_bytes(), "the source vouches for its digests");
        // What is read back to be verified travels, too.
        let verified = receipt.verified.bytes;
        assert!(wire <= most + verified + verified / 16, "{wire} bytes for {most}");
        let (receipt, wire) = apart.copy("a/next", "there/plain", based()).await;
        assert!(wire <= most, "{wire} bytes for {most}");
        assert_eq!(data_of(&receipt), receipt.data_bytes);
        assert!(receipt.reused_bytes >= (CHUNKS - 7) * CHUNK, "{receipt:?}");
        // A source without digests is read here, and only what differs travels all the same. Its
        // chunks are cut as those of the base, whose table comes once more for that.
        apart.world.m.insert(&image("next"), next_bytes());
        let (receipt, wire) = apart.copy("m/next", "there/unknown", based()).await;
        assert_holds(&apart.world, "unknown", &next_bytes());
        assert_eq!(receipt.read_bytes, CHUNKS * CHUNK - 77);
        assert!(wire <= most + TABLE_BYTES + TALK_BYTES, "{wire} bytes for {most}");
        apart.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_chunks_that_differ_come_from_a_daemon_to_a_region_that_has_a_base() {
        let apart = Apart::new(Policy::everything()).await;
        let (receipt, wire) = apart.copy("there/next", "a/new", based()).await;
        let most = changed_bytes() + TABLE_BYTES + TALK_BYTES;
        assert!(wire <= most, "{wire} bytes for {most}");
        assert_eq!(receipt.read_bytes, changed_bytes());
        assert!(std::fs::read(apart.world.data_of("a", "new")).unwrap() == next_bytes());
        apart.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_damaged_base_at_the_daemon_costs_the_damaged_chunks_alone() {
        let apart = Apart::new(Policy::everything()).await;
        let data = apart.world.data_of("b", "base");
        [20 * CHUNK, 34 * CHUNK + 9].into_iter().for_each(|at| damage(&data, at));
        let (receipt, wire) = apart.copy("a/next", "there/new", based()).await;
        assert_holds(&apart.world, "new", &next_bytes());
        assert_eq!(receipt.read_bytes, changed_bytes() + 2 * CHUNK, "{receipt:?}");
        assert!(wire <= receipt.read_bytes + TABLE_BYTES + TALK_BYTES, "{wire} bytes");
        apart.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_daemon_refuses_as_base_is_told_before_anything_is_staged() {
        let uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap());
        let policy = format!(
            "[[peer]]\nidentity = 'uid:{uid}'\nconnections_max = 64\n\
             [[peer.grant]]\noperations = ['push', 'cancel', 'list', 'recover']\nregions = ['b']\n\
             [[peer.grant]]\noperations = ['pull']\nregions = ['b']\nimage_prefix = 'may-'\n"
        );
        let apart = Apart::new(Policy::parse(&policy).unwrap()).await;
        apart.world.put(&apart.engine, &base_bytes(), "b/may-base").await;
        let copy = async |base: &str, how: CopyOptions| {
            let how = how.with_base(image(base));
            kind(apart.engine.copy(request("a/next", "there/new", how)).await)
        };
        let coarse = CopyOptions::new().with_chunk_size(ChunkSize::DEFAULT);
        // Whoever takes chunks of an image over has its bytes: as if it were pulled.
        assert_eq!(copy("base", CopyOptions::new()).await, Some(ErrorKind::Denied));
        assert_eq!(copy("may-not-be-there", CopyOptions::new()).await, Some(ErrorKind::NotFound));
        assert_eq!(copy("may-base", coarse).await, Some(ErrorKind::Invalid));
        assert_eq!(apart.world.leftovers("b"), Vec::<PathBuf>::new());
        let how = based().with_base(image("may-base"));
        let (receipt, _) = apart.copy("a/next", "there/new", how).await;
        assert_eq!(receipt.read_bytes, changed_bytes());
        apart.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn lost_connections_and_a_base_that_goes_meanwhile_cost_only_time() {
        let apart = Apart::new(Policy::everything()).await;
        for (name, what) in [("cut", "stays"), ("gone", "goes"), ("other", "is another")] {
            let base = image(&format!("{name}-base"));
            apart.world.put(&apart.engine, &base_bytes(), &format!("b/{base}")).await;
            let how = CopyOptions::new().with_base(base.clone()).with_limits(rate(16 * CHUNK));
            let to = format!("there/{name}");
            // Every chunk is read, and so limited.
            apart.world.m.insert(&image("next"), next_bytes());
            let job = apart.engine.copy(request("m/next", &to, how)).await.unwrap();
            until("something is taken over", async || job.progress().reused_bytes > 0).await;
            if what != "stays" {
                apart.world.region("b").remove(&base).await.unwrap();
            }
            if what == "is another" {
                let mut bytes = base_bytes();
                bytes.rotate_left(1);
                apart.world.put(&apart.engine, &bytes, &format!("b/{base}")).await;
            }
            apart.cutter.send_replace(());
            apart.engine.limit(job.id(), Limits::NONE).await.unwrap();
            let receipt = committed(ended(&job).await);
            assert_holds(&apart.world, name, &next_bytes());
            assert_eq!(data_of(&receipt), receipt.data_bytes, "{what}");
        }
        apart.close().await;
    }
}
