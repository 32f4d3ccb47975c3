//! Are images encrypted at rest what is promised: nothing in clear, nothing altered unseen, and
//! copies between keys that never lie open?
#![cfg(feature = "encrypt")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockferry::chunk::Digest;
use blockferry::engine::{CancelAnswer, Engine};
use blockferry::geometry::{ByteRange, ChunkSize};
use blockferry::id::{ImageId, KeyId};
use blockferry::job::JobSpec;
use blockferry::keys::{BoxFuture as KeyFuture, DataKey, KeyProvider, MemoryKeyring};
use blockferry::options::{CopyOptions, Encryption, Limits, Verify};
use blockferry::region::{
    BoxFuture, Capabilities, DirRegion, ImageInfo, Located, Recovered, Region, Settled, Source,
    StagedJob, Target, Vote, Wish,
};
use blockferry::testing::{Fixture, Place, conformance};
use blockferry::{Error, ErrorKind, Result};

use crate::places::below;
use crate::world::{
    Dice, KIB, World, allocated, committed, content, end, ended, failed, image, kind, noise,
    region, request, resumed, rolled_back, small, standing, suspended, until_read,
};

pub(crate) fn key(id: &str) -> KeyId {
    id.parse().unwrap()
}

/// Keys `k1` and `k2`.
pub(crate) fn keys() -> Arc<MemoryKeyring> {
    let keys = MemoryKeyring::new();
    keys.add(&key("k1")).unwrap();
    keys.add(&key("k2")).unwrap();
    Arc::new(keys)
}

pub(crate) fn under(id: &str) -> CopyOptions {
    small().with_encryption(Encryption::Key(key(id)))
}

/// A handle of its own to that folder, with these keys.
fn keyed(world: &World, name: &str, keys: &Arc<MemoryKeyring>) -> DirRegion {
    DirRegion::open_root(world.path(name)).unwrap().with_keys(keys.clone())
}

/// An engine whose folders have keys.
pub(crate) async fn engine(world: &World, keys: &Arc<MemoryKeyring>) -> Engine {
    let engine = Engine::open(world.options()).await.unwrap();
    for name in ["m", "source", "target"] {
        engine.register(region(name), world.region(name)).await.unwrap();
    }
    for name in ["a", "b"] {
        engine.register(region(name), Arc::new(keyed(world, name, keys))).await.unwrap();
    }
    engine
}

/// Text that is told from anything else, no two lines alike, with zeros in between.
pub(crate) fn marked(len: u64) -> Vec<u8> {
    let lines = (0..len / 32).map(|n| format!("{MARK}{n:011}\n"));
    let mut bytes = lines.collect::<String>().into_bytes();
    bytes.resize(usize::try_from(len).unwrap(), b'.');
    if len > 512 * KIB {
        // Chunks 2 and 3 of 64 KiB, and a stretch within one.
        bytes[128 << 10..256 << 10].fill(0);
        bytes[270 << 10..300 << 10].fill(0);
    }
    bytes
}

pub(crate) const MARK: &str = "IT-IS-IN-CLEAR-HERE:";

/// Everything that must not be found: the text, and the digests of it.
pub(crate) fn secrets(bytes: &[u8], digests: impl IntoIterator<Item = Digest>) -> Vec<Vec<u8>> {
    let mut secrets = vec![MARK.as_bytes().to_vec()];
    let whole = Digest::from_bytes(*blake3::hash(bytes).as_bytes());
    for digest in digests.into_iter().chain([whole]) {
        secrets.push(digest.as_bytes().to_vec());
        secrets.push(digest.to_string().into_bytes());
        // Half of one is as telling.
        secrets.push(digest.as_bytes()[..16].to_vec());
    }
    secrets
}

#[track_caller]
fn assert_none_in(folders: &[PathBuf], secrets: &[Vec<u8>]) {
    // One pass over a file, however many secrets there are.
    let start = |bytes: &[u8]| usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    let mut by_start = vec![Vec::new(); 1 << 16];
    secrets.iter().for_each(|secret| by_start[start(secret)].push(secret));
    let mut looked = 0;
    for file in folders.iter().flat_map(|folder| below(folder).unwrap()) {
        let Ok(bytes) = fs::read(&file) else { continue };
        looked += 1;
        for (at, pair) in bytes.windows(2).enumerate() {
            let told = by_start[start(pair)].iter().find(|secret| bytes[at..].starts_with(secret));
            assert_eq!(told, None, "{file:?} tells a secret at byte {at}");
        }
    }
    assert!(looked > 0, "nothing was looked at in {folders:?}");
}

/// The chunk digests and the root, from a copy in clear.
pub(crate) async fn digests_of(engine: &Engine, to: &str) -> Vec<Digest> {
    let opened = engine.region(&end(to).region).unwrap().open(&end(to).image).await.unwrap();
    let manifest = opened.manifest().unwrap();
    let chunks = manifest.geometry().chunks().iter().filter_map(|n| manifest.table().digest(n));
    chunks.chain([manifest.root(), content(&manifest)]).collect()
}

async fn bytes_of(engine: &Engine, to: &str) -> Result<Vec<u8>> {
    let opened = engine.region(&end(to).region).unwrap().open(&end(to).image).await?;
    let whole = ByteRange::new(0, opened.size_bytes());
    Ok(opened.read_at(whole).await?.to_vec())
}

// ---- What is promised of any region ----

/// Folders in which every image is encrypted under `k1`.
struct Encrypted;

#[derive(Debug)]
struct EncryptedPlace(tempfile::TempDir, Arc<MemoryKeyring>);

impl Fixture for Encrypted {
    fn place(&self) -> Box<dyn Place> {
        Box::new(EncryptedPlace(tempfile::tempdir().unwrap(), keys()))
    }
}

impl Place for EncryptedPlace {
    fn region(&self) -> Arc<dyn Region> {
        let dir = DirRegion::open_root(self.0.path()).unwrap().with_keys(self.1.clone());
        Arc::new(Keyed(Arc::new(dir)))
    }

    fn image(&self, number: u8) -> Option<ImageId> {
        format!("image-{number}").parse().ok()
    }

    fn put(&self, _image: &ImageId, _bytes: &[u8]) -> bool {
        false
    }

    fn leftovers(&self) -> Vec<String> {
        let ours = |path: &Path| {
            let path = path.strip_prefix(self.0.path()).unwrap().to_str().unwrap().to_owned();
            let in_image = path.strip_prefix("image-").map(|rest| rest.split_once('/'));
            let files = ["data", "manifest", "key", "records"];
            let kept = matches!(path.as_str(), ".blockferry" | ".blockferry/stage")
                || in_image.is_some_and(|at| at.is_none_or(|(_, name)| files.contains(&name)));
            (!kept).then_some(path)
        };
        below(self.0.path()).unwrap().iter().filter_map(|path| ours(path)).collect()
    }
}

/// A region that encrypts whatever is staged in it.
#[derive(Debug)]
pub(crate) struct Keyed(pub(crate) Arc<dyn Region>);

impl Keyed {
    fn spec(spec: &JobSpec) -> JobSpec {
        let mut spec = spec.clone();
        spec.key = Some(key("k1"));
        spec
    }

    fn clear(mut job: StagedJob) -> StagedJob {
        job.spec = Self::clear_spec(job.spec);
        job
    }

    fn clear_spec(mut spec: JobSpec) -> JobSpec {
        spec.key = None;
        spec
    }
}

impl Region for Keyed {
    fn location(&self) -> String {
        self.0.location()
    }

    fn capabilities(&self) -> Capabilities {
        let mut all = self.0.capabilities();
        // A region of nothing but encrypted images has no base to give.
        all.takes_base = false;
        all
    }

    fn open<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Arc<dyn Source>>> {
        self.0.open(image)
    }

    fn stage<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        Box::pin(async move { self.0.stage(&Self::spec(spec)).await })
    }

    fn reopen<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        Box::pin(async move { self.0.reopen(&Self::spec(spec)).await })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>>> {
        self.0.list()
    }

    fn remove<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<()>> {
        self.0.remove(image)
    }

    fn locate<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Located>> {
        self.0.locate(image)
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<StagedJob>>> {
        Box::pin(async { Ok(self.0.jobs().await?.into_iter().map(Self::clear).collect()) })
    }

    fn job(&self, job: blockferry::id::JobId) -> BoxFuture<'_, Result<Option<StagedJob>>> {
        Box::pin(async move { Ok(self.0.job(job).await?.map(Self::clear)) })
    }

    fn cancel<'a>(
        &'a self,
        job: blockferry::id::JobId,
        image: &'a ImageId,
    ) -> BoxFuture<'a, Result<Vote>> {
        self.0.cancel(job, image)
    }

    fn wish(&self, job: blockferry::id::JobId, wish: Wish) -> BoxFuture<'_, Result<bool>> {
        self.0.wish(job, wish)
    }

    fn recover(
        &self,
        only: Option<blockferry::id::JobId>,
    ) -> BoxFuture<'_, Result<Vec<Recovered>>> {
        let clear = |mut told: Recovered| {
            told.spec.iter_mut().for_each(|spec| spec.key = None);
            told
        };
        Box::pin(async move { Ok(self.0.recover(only).await?.into_iter().map(clear).collect()) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_dir_region_conforms() {
    conformance(&Encrypted).await;
}

/// A region of somebody else's, which has never heard of keys.
#[derive(Debug)]
struct Ignorant(Arc<dyn Region>);

impl Region for Ignorant {
    fn location(&self) -> String {
        self.0.location()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::staged()
    }

    fn open<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Arc<dyn Source>>> {
        self.0.open(image)
    }

    fn stage<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        let plain = Keyed::clear_spec(spec.clone());
        Box::pin(async move { self.0.stage(&plain).await })
    }

    fn reopen<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        let plain = Keyed::clear_spec(spec.clone());
        Box::pin(async move { self.0.reopen(&plain).await })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>>> {
        self.0.list()
    }

    fn remove<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<()>> {
        self.0.remove(image)
    }

    fn locate<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Located>> {
        self.0.locate(image)
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<StagedJob>>> {
        self.0.jobs()
    }

    fn job(&self, job: blockferry::id::JobId) -> BoxFuture<'_, Result<Option<StagedJob>>> {
        self.0.job(job)
    }

    fn cancel<'a>(
        &'a self,
        job: blockferry::id::JobId,
        image: &'a ImageId,
    ) -> BoxFuture<'a, Result<Vote>> {
        self.0.cancel(job, image)
    }

    fn wish(&self, job: blockferry::id::JobId, wish: Wish) -> BoxFuture<'_, Result<bool>> {
        self.0.wish(job, wish)
    }

    fn recover(
        &self,
        only: Option<blockferry::id::JobId>,
    ) -> BoxFuture<'_, Result<Vec<Recovered>>> {
        self.0.recover(only)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_has_a_key_goes_to_a_region_that_knows_nothing_of_keys() {
    let (world, keys) = (World::in_memory(), keys());
    let engine = engine(&world, &keys).await;
    world.m.insert(&image("raw"), marked(200 * KIB));
    committed(ended(&engine.copy(request("m/raw", "a/one", under("k1"))).await.unwrap()).await);
    let other = Arc::new(Ignorant(world.region("b")));
    engine.register(region("other"), other).await.unwrap();
    for (from, how) in [("m/raw", under("k1")), ("a/one", small())] {
        let refused = engine.copy(request(from, "other/new", how)).await;
        assert_eq!(kind(refused), Some(ErrorKind::Unsupported), "{from} would lie in clear");
    }
    assert!(world.leftovers("b").is_empty(), "nothing is staged");
}

// ---- From key to key ----

#[tokio::test(flavor = "multi_thread")]
async fn images_go_from_clear_to_key_to_key_to_clear_and_are_the_same() {
    let (world, keys) = (World::in_memory(), keys());
    let engine = engine(&world, &keys).await;
    let bytes = marked(900 * KIB + 77);
    fs::write(world.source(), &bytes).unwrap();
    let copy = async |from: &str, to: &str, options: CopyOptions| {
        committed(ended(&engine.copy(request(from, to, options)).await.unwrap()).await)
    };
    // Local lane and remote lane, with and without reading back.
    let full = |options: CopyOptions| options.with_verify(Verify::Full);
    let first = copy("source/image", "a/one", full(under("k1"))).await;
    let second = copy("a/one", "b/two", under("k2")).await;
    let third = copy("b/two", "target/image", small().with_encryption(Encryption::Plain)).await;
    world.m.insert(&image("raw"), bytes.clone());
    let fourth = copy("m/raw", "b/four", full(under("k1"))).await;
    // Cut otherwise than its source is.
    let larger = ChunkSize::from_bytes(256 * KIB).unwrap();
    copy("a/one", "b/five", full(under("k2").with_chunk_size(larger))).await;
    copy("b/five", "b/six", under("k1")).await;
    for receipt in [&second, &third, &fourth] {
        assert_eq!(receipt.root, first.root, "the root is that of the text, whatever the key");
    }
    assert!(fs::read(world.target()).unwrap() == bytes);
    for to in ["a/one", "b/two", "b/four", "b/five", "b/six"] {
        assert!(bytes_of(&engine, to).await.unwrap() == bytes, "{to}");
    }
    let info = engine.images(&region("b")).await.unwrap();
    let under: Vec<_> = info.iter().map(|i| (i.image.as_str(), i.key.clone().unwrap())).collect();
    let expected = [("five", "k2"), ("four", "k1"), ("six", "k1"), ("two", "k2")];
    assert_eq!(under, expected.map(|(image, id)| (image, key(id))));
    let digests = digests_of(&engine, "a/one").await;
    let secrets = secrets(&bytes, digests);
    assert_none_in(&[world.path("a"), world.path("b")], &secrets);
    // The one in clear was wanted so: its record alone tells a root.
    let tells = |file: &PathBuf| {
        let bytes = fs::read(file).unwrap();
        bytes.windows(32).any(|window| window == third.root.as_bytes())
    };
    assert_eq!(below(&world.path("state/jobs")).unwrap().iter().filter(|f| tells(f)).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_encryption_is_another() {
    let (world, keys) = (World::in_memory(), keys());
    let engine = engine(&world, &keys).await;
    world.m.insert(&image("raw"), noise(3, 300 * KIB));
    for to in ["a/one", "b/one"] {
        let job = engine.copy(request("m/raw", to, under("k1"))).await.unwrap();
        committed(ended(&job).await);
    }
    let (one, other) = (fs::read(world.data_of("a", "one")), fs::read(world.data_of("b", "one")));
    let (one, other) = (one.unwrap(), other.unwrap());
    let same = one.chunks(16).zip(other.chunks(16)).filter(|(a, b)| a == b).count();
    assert_eq!(same, 0, "the same text under the same key encrypts alike");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_an_encrypted_image_stays_encrypted_unless_it_is_told_otherwise() {
    let (world, keys) = (World::in_memory(), keys());
    let engine = engine(&world, &keys).await;
    world.m.insert(&image("raw"), marked(200 * KIB));
    committed(ended(&engine.copy(request("m/raw", "a/one", under("k2"))).await.unwrap()).await);
    let job = engine.copy(request("a/one", "b/kept", small())).await.unwrap();
    committed(ended(&job).await);
    assert_eq!(engine.images(&region("b")).await.unwrap()[0].key, Some(key("k2")));
    for to in ["target/image", "m/copy"] {
        let refused = engine.copy(request("a/one", to, small())).await;
        assert_eq!(kind(refused), Some(ErrorKind::Unsupported), "{to} would hold it in clear");
    }
    // A region without keys neither encrypts nor reads.
    let bare = world.region("b");
    assert_eq!(kind(bare.open(&image("kept")).await), Some(ErrorKind::Denied));
    assert!(matches!(bare.locate(&image("kept")).await.unwrap(), Located::Committed(Some(_))));
    let mut spec = job.spec().clone();
    spec.target.image = image("new");
    assert_eq!(kind(bare.stage(&spec).await), Some(ErrorKind::Unsupported));
    // An unknown key is known before anything is staged.
    let unknown = engine.copy(request("m/raw", "b/new", under("k9"))).await;
    assert_eq!(kind(unknown), Some(ErrorKind::NotFound));
    assert!(world.leftovers("b").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sparse_image_stays_sparse() {
    let (world, keys) = (World::in_memory(), keys());
    let engine = engine(&world, &keys).await;
    let file = fs::File::create(world.source()).unwrap();
    file.set_len(256 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &marked(100 * KIB), 77 << 20).unwrap();
    let options = CopyOptions::new().with_encryption(Encryption::Key(key("k1")));
    let job = engine.copy(request("source/image", "a/one", options.clone())).await.unwrap();
    let receipt = committed(ended(&job).await);
    let job = engine.copy(request("a/one", "b/two", options)).await.unwrap();
    let again = committed(ended(&job).await);
    assert_eq!((receipt.root, receipt.data_bytes), (again.root, again.data_bytes));
    assert!(again.read_bytes <= 256 * KIB, "cells of zeros are not read: {}", again.read_bytes);
    for (name, id) in [("a", "one"), ("b", "two")] {
        let files = ["data", "records"].map(|file| world.path(name).join(id).join(file));
        let sizes = files.map(|file| allocated(&file).unwrap());
        assert!(sizes[0] <= 256 * KIB && sizes[1] <= 64 * KIB, "{sizes:?} bytes are allocated");
    }
}

// ---- Bases ----

#[tokio::test(flavor = "multi_thread")]
async fn no_base_lends_to_an_encrypted_image_and_none_that_is_encrypted_lends() {
    let (world, keys) = (World::in_memory(), keys());
    let engine = engine(&world, &keys).await;
    world.m.insert(&image("raw"), marked(900 * KIB));
    for (to, how) in [("b/plain", small()), ("b/locked", under("k1")), ("a/locked", under("k1"))] {
        committed(ended(&engine.copy(request("m/raw", to, how)).await.unwrap()).await);
    }
    // Also under the key of the base, and where nobody asks for a key and the source has one.
    for (from, base, how) in [
        ("m/raw", "plain", under("k1")),
        ("m/raw", "locked", small()),
        ("m/raw", "locked", under("k1")),
        ("m/raw", "locked", under("k2")),
        ("a/locked", "plain", small()),
        ("a/locked", "locked", small()),
        ("a/locked", "locked", small().with_encryption(Encryption::Plain)),
    ] {
        let refused = engine.copy(request(from, "b/new", how.with_base(image(base)))).await;
        assert_eq!(kind(refused), Some(ErrorKind::Unsupported), "{base} lends to {from}");
        assert!(world.leftovers("b").is_empty(), "nothing is staged");
    }
    // What is to lie in clear may take over from what lies in clear.
    let plain = small().with_encryption(Encryption::Plain).with_base(image("plain"));
    let receipt =
        committed(ended(&engine.copy(request("a/locked", "b/new", plain)).await.unwrap()).await);
    assert!(fs::read(world.data_of("b", "new")).unwrap() == marked(900 * KIB));
    assert_eq!((receipt.read_bytes, receipt.reused_bytes), (0, receipt.data_bytes));
}

/// A region is asked by others than the engine.
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_is_to_be_encrypted_refuses_a_base_by_itself() {
    let (world, keys) = (World::in_memory(), keys());
    let engine = engine(&world, &keys).await;
    world.m.insert(&image("raw"), marked(200 * KIB));
    for (to, how) in [("b/plain", small()), ("b/locked", under("k1"))] {
        committed(ended(&engine.copy(request("m/raw", to, how)).await.unwrap()).await);
    }
    let job = engine.copy(request("m/raw", "b/other", under("k1"))).await.unwrap();
    committed(ended(&job).await);
    let dir = keyed(&world, "b", &keys);
    for (base, under) in [("plain", Some("k1")), ("locked", Some("k1")), ("locked", None)] {
        let mut spec = job.spec().clone();
        spec.job = blockferry::id::JobId::from_bytes([7; 16]);
        spec.target.image = image("new");
        (spec.base, spec.key) = (Some(image(base)), under.map(key));
        assert_eq!(kind(dir.stage(&spec).await), Some(ErrorKind::Unsupported));
        assert!(dir.jobs().await.unwrap().is_empty(), "nothing is staged");
    }
}

/// A name is given to another image while a copy rests.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_is_encrypted_by_the_time_of_a_resume_lends_nothing() {
    let (world, keys) = (World::in_memory(), keys());
    let engine = engine(&world, &keys).await;
    let bytes = marked(900 * KIB);
    world.m.insert(&image("raw"), bytes.clone());
    for (to, how) in [("b/base", small()), ("a/raw", small())] {
        committed(ended(&engine.copy(request("m/raw", to, how)).await.unwrap()).await);
    }
    let job = engine.copy(request("a/raw", "b/new", standing().with_base(image("base")))).await;
    let job = job.unwrap();
    engine.suspend(job.id()).await.unwrap();
    suspended(&ended(&job).await);
    let dir = keyed(&world, "b", &keys);
    dir.remove(&image("base")).await.unwrap();
    committed(ended(&engine.copy(request("m/raw", "b/base", under("k1"))).await.unwrap()).await);
    engine.limit(job.id(), Limits::NONE).await.unwrap();
    let receipt = committed(ended(&resumed(&engine, &job).await).await);
    assert_eq!(receipt.reused_bytes, 0, "{receipt:?}");
    assert!(receipt.written_bytes > 0, "there was something left to take over: {receipt:?}");
    assert!(bytes_of(&engine, "b/new").await.unwrap() == bytes);
}

// ---- Between daemons ----

#[cfg(feature = "peer")]
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_sends_an_encrypted_image_in_clear_and_lends_nothing_of_it() {
    let (world, keys) = (World::in_memory(), keys());
    let engine = engine(&world, &keys).await;
    let bytes = marked(900 * KIB);
    world.m.insert(&image("raw"), bytes.clone());
    committed(ended(&engine.copy(request("m/raw", "b/locked", under("k1"))).await.unwrap()).await);
    let socket = world.path("ferry.sock");
    let served = Arc::new(keyed(&world, "b", &keys));
    let everything = blockferry::peer::Policy::everything();
    let house = crate::peer::House::open(&socket, served, everything);
    engine.register(region("there"), Arc::new(house.region().await)).await.unwrap();
    // Which key it is under there is no business of ours: how it is to lie here has to be said.
    let untold = engine.copy(request("there/locked", "a/new", small())).await;
    assert_eq!(kind(untold), Some(ErrorKind::Invalid));
    let plain = small().with_encryption(Encryption::Plain);
    for (to, how) in [("a/clear", plain), ("a/mine", under("k2"))] {
        committed(ended(&engine.copy(request("there/locked", to, how)).await.unwrap()).await);
        assert!(bytes_of(&engine, to).await.unwrap() == bytes, "{to}");
    }
    let digests = digests_of(&engine, "a/clear").await;
    assert_none_in(&[world.path("a/mine"), world.path("b")], &secrets(&bytes, digests));
    for how in [small().with_base(image("locked")), under("k1")] {
        let refused = engine.copy(request("m/raw", "there/new", how)).await;
        assert_eq!(kind(refused), Some(ErrorKind::Unsupported));
    }
    assert!(world.leftovers("b").is_empty(), "nothing is staged there");
    house.close().await;
}

// ---- Keys ----

/// Unwraps to another key than the one that was wrapped.
#[derive(Debug)]
struct Liar(Arc<MemoryKeyring>);

impl KeyProvider for Liar {
    fn wrap_key<'a>(
        &'a self,
        key: &'a KeyId,
        data_key: &'a DataKey,
        context: &'a [u8],
    ) -> KeyFuture<'a, Result<Vec<u8>>> {
        self.0.wrap_key(key, data_key, context)
    }

    fn unwrap_key<'a>(
        &'a self,
        key: &'a KeyId,
        wrapped: &'a [u8],
        context: &'a [u8],
    ) -> KeyFuture<'a, Result<DataKey>> {
        Box::pin(async move {
            let mut bytes = *self.0.unwrap_key(key, wrapped, context).await?.as_bytes();
            bytes[0] ^= 1;
            Ok(DataKey::from_bytes(bytes))
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_a_missing_one_and_another_data_key_are_refused() {
    let (world, ring) = (World::in_memory(), keys());
    let engine = engine(&world, &ring).await;
    world.m.insert(&image("raw"), marked(100 * KIB));
    committed(ended(&engine.copy(request("m/raw", "a/one", under("k1"))).await.unwrap()).await);
    let open = async |provider: Arc<dyn KeyProvider>| {
        let dir = DirRegion::open_root(world.path("a")).unwrap().with_keys(provider);
        kind(dir.open(&image("one")).await)
    };
    assert_eq!(open(ring.clone()).await, None);
    assert_eq!(open(keys()).await, Some(ErrorKind::Denied), "other keys of the same names");
    assert_eq!(open(Arc::new(MemoryKeyring::new())).await, Some(ErrorKind::NotFound));
    assert_eq!(open(Arc::new(Liar(ring.clone()))).await, Some(ErrorKind::Denied), "no commitment");
    // A newer version of any of the files is told, and not taken for damage.
    for file in ["manifest", "key"] {
        let path = world.path("a/one").join(file);
        let before = fs::read(&path).unwrap();
        let mut newer = before.clone();
        newer[8] = 9;
        rewrite(&path, &newer);
        assert_eq!(open(ring.clone()).await, Some(ErrorKind::Unsupported), "{file}");
        rewrite(&path, &before);
    }
    assert_eq!(open(ring).await, None);
}

fn rewrite(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rewrap_changes_the_key_file_and_nothing_else() {
    let (world, ring) = (World::in_memory(), keys());
    let engine = engine(&world, &ring).await;
    let bytes = marked(700 * KIB);
    world.m.insert(&image("raw"), bytes.clone());
    committed(ended(&engine.copy(request("m/raw", "a/one", under("k1"))).await.unwrap()).await);
    let files = |names: &[&str]| -> Vec<Vec<u8>> {
        names.iter().map(|name| fs::read(world.path("a/one").join(name)).unwrap()).collect()
    };
    let rest = ["data", "records", "manifest"];
    let (before, key_before) = (files(&rest), files(&["key"]));
    // One that is open goes on.
    let dir = keyed(&world, "a", &ring);
    let opened = dir.open(&image("one")).await.unwrap();
    // A crash may have left the beginning of one.
    fs::write(world.path("a/one/key.new"), b"half").unwrap();
    assert_eq!(dir.rewrap(&image("one"), &key("k2")).await.unwrap(), key("k1"));
    assert_eq!(files(&rest), before);
    assert_ne!(files(&["key"]), key_before);
    assert!(!world.path("a/one/key.new").exists());
    ring.remove(&key("k1"), None).unwrap();
    assert!(bytes_of(&engine, "a/one").await.unwrap() == bytes);
    assert!(opened.read_at(ByteRange::new(0, 700 * KIB)).await.unwrap() == bytes);
    // To the newest version of the same key.
    assert_eq!(ring.rotate(&key("k2")).unwrap(), 2);
    dir.rewrap(&image("one"), &key("k2")).await.unwrap();
    ring.remove(&key("k2"), Some(1)).unwrap();
    assert!(bytes_of(&engine, "a/one").await.unwrap() == bytes);
    assert_eq!(kind(dir.rewrap(&image("one"), &key("k1")).await), Some(ErrorKind::NotFound));
    assert_eq!(kind(dir.rewrap(&image("two"), &key("k2")).await), Some(ErrorKind::NotFound));
    let plain = small().with_encryption(Encryption::Plain);
    committed(ended(&engine.copy(request("m/raw", "a/plain", plain)).await.unwrap()).await);
    let refused = dir.rewrap(&image("plain"), &key("k2")).await;
    assert_eq!(kind(refused), Some(ErrorKind::Unsupported));
    dir.remove(&image("one")).await.unwrap();
    assert!(!world.path("a/one").exists());
}

/// Somebody who holds keys, and never answers.
#[derive(Debug)]
struct Silent;

impl KeyProvider for Silent {
    fn wrap_key<'a>(
        &'a self,
        _key: &'a KeyId,
        _data_key: &'a DataKey,
        _context: &'a [u8],
    ) -> KeyFuture<'a, Result<Vec<u8>>> {
        Box::pin(std::future::pending())
    }

    fn unwrap_key<'a>(
        &'a self,
        _key: &'a KeyId,
        _wrapped: &'a [u8],
        _context: &'a [u8],
    ) -> KeyFuture<'a, Result<DataKey>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn who_holds_keys_and_does_not_answer_is_not_waited_for_without_end() {
    let (world, ring) = (World::in_memory(), keys());
    let silent = || DirRegion::open_root(world.path("a")).unwrap().with_keys(Arc::new(Silent));
    let engine = Engine::open(world.options()).await.unwrap();
    engine.register(region("m"), world.region("m")).await.unwrap();
    engine.register(region("a"), Arc::new(silent())).await.unwrap();
    engine.register(region("b"), Arc::new(keyed(&world, "b", &ring))).await.unwrap();
    world.m.insert(&image("raw"), marked(200 * KIB));
    let refused = engine.copy(request("m/raw", "a/one", under("k1"))).await;
    assert_eq!(kind(refused), Some(ErrorKind::Unavailable));
    // Whoever waited behind it gets its turn.
    committed(ended(&engine.copy(request("m/raw", "b/one", under("k1"))).await.unwrap()).await);
    let other = keyed(&world, "a", &ring);
    engine.register(region("other"), Arc::new(other)).await.unwrap();
    committed(ended(&engine.copy(request("m/raw", "other/one", under("k1"))).await.unwrap()).await);
    assert_eq!(kind(silent().open(&image("one")).await), Some(ErrorKind::Unavailable));
    let rewrapped = silent().rewrap(&image("one"), &key("k2")).await;
    assert_eq!(kind(rewrapped), Some(ErrorKind::Unavailable));
}

// ---- Tampering ----

/// Opens and reads the whole image: what is given must be the text, to the last byte.
async fn read(dir: &DirRegion, id: &str) -> Result<Vec<u8>> {
    let opened = dir.open(&image(id)).await?;
    Ok(opened.read_at(ByteRange::new(0, opened.size_bytes())).await?.to_vec())
}

const FILES: [&str; 4] = ["data", "records", "manifest", "key"];

#[tokio::test(flavor = "multi_thread")]
async fn each_flipped_bit_and_each_cut_of_a_tiny_image_is_refused() {
    let (world, ring) = (World::in_memory(), keys());
    let engine = engine(&world, &ring).await;
    world.m.insert(&image("raw"), noise(5, 40));
    committed(ended(&engine.copy(request("m/raw", "a/one", under("k1"))).await.unwrap()).await);
    let dir = keyed(&world, "a", &ring);
    assert!(read(&dir, "one").await.unwrap() == noise(5, 40));
    let mut tried = 0;
    for file in FILES {
        let path = world.path("a/one").join(file);
        let right = fs::read(&path).unwrap();
        for bit in 0..right.len() * 8 {
            let mut wrong = right.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            rewrite(&path, &wrong);
            let told = read(&dir, "one").await;
            assert!(told.is_err(), "bit {bit} of {file} is not noticed");
            tried += 1;
        }
        for len in (0..right.len()).chain([right.len() + 1]) {
            let mut wrong = right.clone();
            wrong.resize(len, 0);
            rewrite(&path, &wrong);
            assert!(read(&dir, "one").await.is_err(), "{file} of {len} bytes is not noticed");
            tried += 1;
        }
        rewrite(&path, &right);
    }
    assert!(tried > 5000, "{tried} tampered images were tried");
    assert!(read(&dir, "one").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn images_cells_and_files_put_in_each_others_place_are_refused() {
    let (world, ring) = (World::in_memory(), keys());
    let engine = engine(&world, &ring).await;
    let bytes = noise(7, 5 * 64 * KIB);
    world.m.insert(&image("raw"), bytes.clone());
    for to in ["a/one", "a/two"] {
        committed(ended(&engine.copy(request("m/raw", to, under("k1"))).await.unwrap()).await);
    }
    let dir = keyed(&world, "a", &ring);
    // Every set of files of the other image: the same text, the same key, the same shape.
    let files = |id: &str| FILES.map(|f| fs::read(world.path("a").join(id).join(f)).unwrap());
    let (one, two) = (files("one"), files("two"));
    let put = |files: &[Vec<u8>; 4]| {
        for (name, bytes) in FILES.iter().zip(files) {
            rewrite(&world.path("a/one").join(name), bytes);
        }
    };
    for set in 1..16 {
        let mixed =
            [0, 1, 2, 3].map(|n| if set & (1 << n) > 0 { &two[n] } else { &one[n] }.clone());
        put(&mixed);
        assert!(read(&dir, "one").await.is_err(), "files {set:#b} of another image");
    }
    put(&one);
    // Every cell, and every record, in every place where it does not belong.
    let (cell, record) = (64 << 10, one[1].len() / 5);
    for from in 0..5 {
        for to in (0..5).filter(|to| *to != from) {
            for (file, len) in [(0, cell), (1, record)] {
                let mut moved = one.clone();
                moved[file].copy_within(from * len..(from + 1) * len, to * len);
                put(&moved);
                assert!(read(&dir, "one").await.is_err(), "{} {from} at {to}", FILES[file]);
            }
            let mut both = one.clone();
            both[0].copy_within(from * cell..(from + 1) * cell, to * cell);
            both[1].copy_within(from * record..(from + 1) * record, to * record);
            put(&both);
            assert!(read(&dir, "one").await.is_err(), "chunk {from} with its record at {to}");
        }
    }
    put(&one);
    assert!(read(&dir, "one").await.unwrap() == bytes);
    // A hole tells nothing: anybody can punch one.
    let data = world.path("a/one/data");
    rewrite(&data, b"");
    let file = fs::OpenOptions::new().write(true).open(&data).unwrap();
    file.set_len(5 * 64 * KIB).unwrap();
    let job = engine.copy(request("a/one", "b/holes", small())).await.unwrap();
    failed(&ended(&job).await, ErrorKind::Corrupt, true);
    engine.cancel(job.id()).await.unwrap();
    // An image under another's name is another image.
    put(&one);
    fs::rename(world.path("a/one"), world.path("a/three")).unwrap();
    assert_eq!(kind(read(&dir, "three").await), Some(ErrorKind::Denied));
}

// ---- Crash, resume, cancel ----

#[tokio::test(flavor = "multi_thread")]
async fn nothing_lies_in_clear_after_a_crash_at_any_moment_and_the_copy_goes_on() {
    let (world, ring) = (World::in_memory(), keys());
    let bytes = marked(3 << 20);
    fs::write(world.source(), &bytes).unwrap();
    let secrets = {
        let engine = engine(&world, &ring).await;
        // Digests to look for, and a source in clear that has some of its own.
        let job = engine.copy(request("source/image", "a/plain", small())).await.unwrap();
        committed(ended(&job).await);
        secrets(&bytes, digests_of(&engine, "a/plain").await)
    };
    let seed = 0x5eed;
    let mut dice = Dice::new(seed);
    for round in 0..12 {
        let from = ["source/image", "a/plain"][round % 2];
        let to = format!("b/round-{round}");
        let options =
            world.options().with_checkpoint(128 * KIB, std::time::Duration::from_millis(1));
        let engine = Engine::open(options).await.unwrap();
        engine.register(region("source"), world.region("source")).await.unwrap();
        for name in ["a", "b"] {
            engine.register(region(name), Arc::new(keyed(&world, name, &ring))).await.unwrap();
        }
        let rate = Limits::NONE.with_bytes_per_sec(8 << 20);
        let options = under("k1").with_limits(rate).with_verify(Verify::Full);
        let job = engine.copy(request(from, &to, options)).await.unwrap();
        until_read(&job, dice.roll(2 << 20)).await;
        // As a crash: what is under way stops where it is.
        drop(engine);
        let folders = [world.path("b"), world.path("state")];
        assert_none_in(&folders, &secrets[..1]);
        // The plain copy's own record is in the state folder: its digests are known there.
        assert_none_in(&folders[..1], &secrets);
        let engine = self::engine(&world, &ring).await;
        let job = resumed(&engine, &job).await;
        engine.limit(job.id(), Limits::NONE).await.ok();
        let receipt = committed(ended(&job).await);
        assert!(bytes_of(&engine, &to).await.unwrap() == bytes, "round {round}, seed {seed:#x}");
        assert_none_in(&folders[..1], &secrets);
        let told = engine.show(job.id()).await.unwrap().receipt.unwrap();
        assert_eq!(told.root, receipt.root, "whoever has the key is told the root again");
        assert!(world.leftovers("b").is_empty());
        // What was searched once need not be searched in every round that follows.
        engine.region(&region("b")).unwrap().remove(&end(&to).image).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_does_not_know_the_root_of_an_encrypted_image() {
    let (world, ring) = (World::in_memory(), keys());
    let engine = engine(&world, &ring).await;
    let bytes = marked(300 * KIB);
    fs::write(world.source(), &bytes).unwrap();
    let job = engine.copy(request("source/image", "a/one", under("k1"))).await.unwrap();
    let first = committed(ended(&job).await);
    let job = engine.copy(request("a/one", "b/two", under("k2"))).await.unwrap();
    let second = committed(ended(&job).await);
    assert_eq!(first.root, second.root);
    let secrets = secrets(&bytes, digests_of(&engine, "a/one").await);
    assert_none_in(&[world.path("state"), world.path("a"), world.path("b")], &secrets);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_redoes_no_more_than_what_no_record_covers() {
    let (world, ring) = (World::in_memory(), keys());
    let bytes = noise(9, 4 << 20);
    fs::write(world.source(), &bytes).unwrap();
    let engine = engine(&world, &ring).await;
    let options = under("k1").with_limits(Limits::NONE.with_bytes_per_sec(4 << 20));
    let job = engine.copy(request("source/image", "a/one", options)).await.unwrap();
    until_read(&job, 1 << 20).await;
    engine.suspend(job.id()).await.unwrap();
    suspended(&ended(&job).await);
    let done = job.progress().written_bytes;
    engine.limit(job.id(), Limits::NONE).await.unwrap();
    let receipt = committed(ended(&resumed(&engine, &job).await).await);
    assert!(receipt.resumed_bytes >= 1 << 20, "{receipt:?}");
    assert!(receipt.resumed_bytes <= done, "{receipt:?}, {done} written");
    assert_eq!(receipt.resumed_bytes + receipt.written_bytes, 4 << 20);
    assert!(bytes_of(&engine, "a/one").await.unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_key_is_gone_can_be_cancelled_and_not_resumed() {
    let (world, ring) = (World::in_memory(), keys());
    let engine = engine(&world, &ring).await;
    world.m.insert(&image("raw"), noise(2, 900 * KIB));
    let options = standing().with_encryption(Encryption::Key(key("k1")));
    let job = engine.copy(request("m/raw", "b/one", options)).await.unwrap();
    engine.suspend(job.id()).await.unwrap();
    suspended(&ended(&job).await);
    ring.remove(&key("k1"), None).unwrap();
    assert_eq!(kind(engine.resume(job.id()).await), Some(ErrorKind::NotFound));
    // By a process that has no keys at all.
    let bare = world.region("b");
    assert!(matches!(bare.recover(None).await.unwrap()[0].settled, Settled::Kept));
    let reply = engine.cancel(job.id()).await.unwrap();
    assert!(matches!(reply.answer, CancelAnswer::Cancelled { clean: true }), "{reply:?}");
    world.assert_empty("b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_destroys_the_key_before_anything_else() {
    let (world, ring) = (World::in_memory(), keys());
    let engine = engine(&world, &ring).await;
    world.m.insert(&image("raw"), noise(2, 900 * KIB));
    let options = standing().with_encryption(Encryption::Key(key("k1")));
    let job = engine.copy(request("m/raw", "b/one", options)).await.unwrap();
    engine.suspend(job.id()).await.unwrap();
    suspended(&ended(&job).await);
    let stage = world.path(&format!("b/.blockferry/stage/{}/image", job.id()));
    let key_file = stage.join("key");
    assert!(key_file.exists());
    // A second name of it shows what became of its bytes.
    fs::hard_link(&key_file, world.path("kept")).unwrap();
    // The data cannot be removed: a folder is in its place.
    fs::rename(stage.join("data"), world.path("data")).unwrap();
    fs::create_dir(stage.join("data")).unwrap();
    assert!(keyed(&world, "b", &ring).cancel(job.id(), &image("one")).await.is_err());
    assert!(!key_file.exists(), "the rest could not be removed, and the key is still there");
    let kept = fs::read(world.path("kept")).unwrap();
    assert!(kept.iter().all(|byte| *byte == 0), "its bytes were not written over");
    fs::remove_dir(stage.join("data")).unwrap();
    let vote = keyed(&world, "b", &ring).cancel(job.id(), &image("one")).await.unwrap();
    assert!(matches!(vote, Vote::Cancelled { clean: true, .. }), "{vote:?}");
    world.assert_empty("b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_encrypted_copy_leaves_nothing() {
    let (world, ring) = (World::in_memory(), keys());
    let engine = engine(&world, &ring).await;
    world.m.insert(&image("raw"), noise(2, 900 * KIB));
    let options = standing().with_encryption(Encryption::Key(key("k1")));
    let job = engine.copy(request("m/raw", "b/one", options)).await.unwrap();
    engine.cancel(job.id()).await.unwrap();
    rolled_back(&ended(&job).await);
    world.assert_empty("b");
}

/// A crash between the data and the key file of a stage that was never told of.
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_without_its_key_file_is_taken_up_only_while_it_is_empty() {
    let (world, ring) = (World::in_memory(), keys());
    let engine = engine(&world, &ring).await;
    world.m.insert(&image("raw"), noise(2, 300 * KIB));
    let options = standing().with_encryption(Encryption::Key(key("k1")));
    let job = engine.copy(request("m/raw", "b/one", options)).await.unwrap();
    engine.suspend(job.id()).await.unwrap();
    suspended(&ended(&job).await);
    let done = job.progress().written_bytes;
    let stage = world.path(&format!("b/.blockferry/stage/{}/image", job.id()));
    fs::remove_file(stage.join("key")).unwrap();
    engine.limit(job.id(), Limits::NONE).await.unwrap();
    match (done, engine.resume(job.id()).await) {
        (0, job) => drop(committed(ended(&job.unwrap()).await)),
        (_, refused) => assert_eq!(kind(refused), Some(ErrorKind::Corrupt)),
    }
    // Nothing of it was ever written: it begins anew, under a new data key.
    let mut spec = job.spec().clone();
    spec.job = blockferry::id::JobId::from_bytes([7; 16]);
    spec.target.image = image("two");
    let dir = keyed(&world, "b", &ring);
    drop(dir.stage(&spec).await.unwrap());
    fs::remove_file(world.path(&format!("b/.blockferry/stage/{}/image/key", spec.job))).unwrap();
    drop(dir.reopen(&spec).await.unwrap());
    assert!(world.path(&format!("b/.blockferry/stage/{}/image/key", spec.job)).exists());
}

/// Staged cells that rot are found by reading them back, and written again.
#[tokio::test(flavor = "multi_thread")]
async fn staged_cells_that_do_not_decrypt_do_not_verify() {
    let (world, ring) = (World::in_memory(), keys());
    let dir = keyed(&world, "b", &ring);
    let mut spec = JobSpec::new(
        blockferry::id::JobId::from_bytes([3; 16]),
        end("m/raw"),
        end("b/one"),
        blockferry::geometry::Geometry::new(70 * KIB, ChunkSize::MIN).unwrap(),
        blockferry::job::Fingerprint::new(),
    );
    spec.key = Some(key("k1"));
    let target = dir.stage(&spec).await.unwrap();
    target.begin().await.unwrap();
    let bytes = noise(4, 64 * KIB);
    let index = blockferry::geometry::ChunkIndex::new(0);
    let sealed = blockferry::seal::seal(spec.geometry, index, bytes.clone().into());
    let chunk = match sealed {
        blockferry::seal::Seal::Data(chunk) => Some(chunk),
        blockferry::seal::Seal::Zero(_) => None,
    }
    .unwrap();
    let written = target.write(chunk).await.unwrap();
    target.sync().await.unwrap();
    let range = ByteRange::new(0, 64 * KIB);
    assert!(target.read_back(range).await.unwrap() == bytes);
    let data = world.path(&format!("b/.blockferry/stage/{}/image/data", spec.job));
    let file = fs::OpenOptions::new().write(true).open(&data).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0], 5).unwrap();
    assert!(target.read_back(range).await.unwrap().is_empty(), "it does not verify");
    assert_eq!(written.run().count, 1);
    let refused: Option<Error> = target.read_back(ByteRange::new(64 * KIB, 10)).await.err();
    assert!(refused.is_none(), "what was never written reads as zeros");
}
