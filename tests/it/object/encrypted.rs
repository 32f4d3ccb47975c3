//! Encrypted images in object stores: nothing in clear in the bucket, nothing altered unseen, the
//! key gone before anything else, and another key without touching a chunk.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use blockferry::chunk::{Digest, Sealed};
use blockferry::engine::{CancelAnswer, Engine};
use blockferry::geometry::{ByteRange, ChunkIndex};
use blockferry::id::{ImageId, KeyId};
use blockferry::keys::{BoxFuture as KeyFuture, DataKey, KeyProvider, MemoryKeyring};
use blockferry::options::{CopyOptions, Encryption, EngineOptions, Limits, Verify};
use blockferry::region::object::head::MadeKey;
use blockferry::region::object::rules::Phase;
use blockferry::region::object::{ObjectOptions, ObjectRegion};
use blockferry::region::{DirRegion, MemoryRegion, Outcome, Region, Settled, Vote};
use blockferry::seal::{Seal, seal};
use blockferry::store::model::{Fate, Model, ModelStore};
use blockferry::store::{Fencing, S3Store};
use blockferry::testing::{Fixture, Place, conformance};
use blockferry::{ErrorKind, Result};
use bytes::Bytes;

use super::places::{CHUNK, Cloud, bytes, image, read, spec, write};
use crate::encrypt::{digests_of, key, keys, marked, secrets, under};
use crate::store::server::S3Server;
use crate::world::{
    KIB, World, committed, ended, image as named, kind, noise, region, request, rolled_back, small,
    standing, suspended, until,
};

/// Buckets of one kind in which every image is encrypted.
struct Encrypted(Fencing);

impl Fixture for Encrypted {
    fn place(&self) -> Box<dyn Place> {
        Box::new(Cloud::encrypted(self.0))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_images_conform_where_heads_are_swapped() {
    conformance(&Encrypted(Fencing::Swap)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_images_conform_where_heads_are_numbered() {
    conformance(&Encrypted(Fencing::Numbered)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_images_conform_where_one_daemon_decides_alone() {
    conformance(&Encrypted(Fencing::None)).await;
}

/// A region of its own in the bucket, as another machine opens it.
fn opened(model: &Model, prefix: &str, ring: Option<&Arc<MemoryKeyring>>) -> ObjectRegion {
    let mut options = ObjectOptions::default();
    (options.beat, options.silence) = (Duration::from_millis(20), Duration::from_millis(400));
    let store = Arc::new(model.client(prefix));
    let region = ObjectRegion::as_another_process(store, Fencing::Swap, options).unwrap();
    match ring {
        Some(ring) => region.with_keys(ring.clone()),
        None => region,
    }
}

/// One machine: an engine at two prefixes of the bucket, an encrypting folder, and memory.
pub(super) struct Machine {
    pub(super) engine: Engine,
    pub(super) memory: MemoryRegion,
    _world: World,
    _state: tempfile::TempDir,
}

pub(super) async fn machine(model: &Model, ring: Option<&Arc<MemoryKeyring>>) -> Machine {
    let (world, state) = (World::in_memory(), tempfile::tempdir().unwrap());
    let engine = Engine::open(EngineOptions::new(state.path()).with_threads(2)).await.unwrap();
    for name in ["north", "south"] {
        engine.register(region(name), Arc::new(opened(model, name, ring))).await.unwrap();
    }
    let mut dir = DirRegion::open_root(world.path("a")).unwrap();
    if let Some(ring) = ring {
        dir = dir.with_keys(ring.clone());
    }
    engine.register(region("a"), Arc::new(dir)).await.unwrap();
    let memory = MemoryRegion::new("m");
    engine.register(region("m"), Arc::new(memory.clone())).await.unwrap();
    Machine { engine, memory, _world: world, _state: state }
}

impl Machine {
    pub(super) async fn copy(&self, from: &str, to: &str, options: CopyOptions) -> Digest {
        let job = self.engine.copy(request(from, to, options)).await.unwrap();
        committed(ended(&job).await).root
    }
}

fn plain() -> CopyOptions {
    small().with_encryption(Encryption::Plain)
}

/// Nothing in the bucket, names of objects included, tells one of those.
#[track_caller]
fn assert_none_told(model: &Model, prefix: &str, secrets: &[Vec<u8>]) {
    let keys: Vec<String> = model.keys().into_iter().filter(|k| k.starts_with(prefix)).collect();
    assert!(keys.iter().any(|key| key.contains("/key-")), "nothing encrypted below {prefix}");
    for key in keys {
        let told = [key.as_bytes(), &model.bytes(&key).unwrap()].concat();
        for secret in secrets {
            let found = told.windows(secret.len()).any(|window| window == &secret[..]);
            assert!(!found, "{key} tells {:?}", String::from_utf8_lossy(secret));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_from_clear_to_key_to_key_to_clear_through_the_bucket() {
    let (model, ring) = (Model::new(), keys());
    let here = machine(&model, Some(&ring)).await;
    let bytes = marked(900 * KIB + 77);
    here.memory.insert(&named("raw"), bytes.clone());
    let full = |options: CopyOptions| options.with_verify(Verify::Full);
    let first = here.copy("m/raw", "north/one", full(under("k1"))).await;
    let roots = [
        // Another key in the bucket, a folder, the bucket again; kept without being asked for.
        here.copy("north/one", "south/two", under("k2")).await,
        here.copy("south/two", "a/three", under("k1")).await,
        here.copy("a/three", "north/four", full(under("k2"))).await,
        here.copy("north/four", "south/five", small()).await,
        here.copy("south/five", "m/clear", plain()).await,
    ];
    assert_eq!(roots, [first; 5], "the root is that of the text, whatever the key");
    assert!(here.memory.bytes(&named("clear")).unwrap() == bytes);
    for (at, expected) in
        [("north", [("four", "k2"), ("one", "k1")]), ("south", [("five", "k2"), ("two", "k2")])]
    {
        let images = here.engine.images(&region(at)).await.unwrap();
        let told: Vec<_> =
            images.iter().map(|i| (i.image.as_str(), i.key.as_ref().unwrap().as_str())).collect();
        assert_eq!(told, expected);
        assert!(images.iter().all(|image| image.root.is_none()), "the root is not for all");
    }
    let found = here.engine.region(&region("north")).unwrap().open(&named("four")).await.unwrap();
    assert_eq!(found.key(), Some(key("k2")));
    let secrets = secrets(&bytes, digests_of(&here.engine, "north/one").await);
    assert_none_told(&model, "north/", &secrets);
    assert_none_told(&model, "south/", &secrets);
    // One in clear, to see that the search finds what there is.
    here.copy("m/raw", "north/open", small()).await;
    let told = |secret: &Vec<u8>| {
        model.keys().iter().any(|key| {
            let all = [key.as_bytes(), &model.bytes(key).unwrap()].concat();
            all.windows(secret.len()).any(|window| window == &secret[..])
        })
    };
    assert!(told(&first.as_bytes().to_vec()));
    // To where it cannot be encrypted only if it is said that it may lie in clear.
    let refused = here.engine.copy(request("north/one", "m/kept", small())).await;
    assert_eq!(kind(refused), Some(ErrorKind::Unsupported));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_packed_is_packed_before_it_is_encrypted() {
    let (model, ring) = (Model::new(), keys());
    let here = machine(&model, Some(&ring)).await;
    // A chunk that packs well, one that does not, one of zeros, and a short one.
    let mut bytes = noise(4, 3 * 64 * KIB + 999);
    bytes[..64 << 10].fill(7);
    blake3::Hasher::new().finalize_xof().fill(&mut bytes[64 << 10..128 << 10]);
    bytes[128 << 10..192 << 10].fill(0);
    here.memory.insert(&named("raw"), bytes.clone());
    here.copy("m/raw", "north/one", under("k1")).await;
    let chunks: Vec<usize> = model
        .keys()
        .iter()
        .filter(|key| key.rsplit('/').next().unwrap().len() == 9 + 144)
        .map(|key| model.bytes(key).unwrap().len())
        .collect();
    assert_eq!(chunks.len(), 3, "nothing is stored of zeros: {:?}", model.keys());
    assert!(chunks[0] < 1000, "packed: {chunks:?}");
    assert_eq!(chunks[1..], [(64 << 10) + 16, 999 + 16], "as long as the text and a tag");
    here.copy("north/one", "m/back", plain()).await;
    assert!(here.memory.bytes(&named("back")).unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_text_is_never_encrypted_alike() {
    let (model, ring) = (Model::new(), keys());
    let here = machine(&model, Some(&ring)).await;
    here.memory.insert(&named("raw"), vec![7; (4 * 64) << 10]);
    for to in ["north/one", "north/two"] {
        here.copy("m/raw", to, under("k1")).await;
    }
    let mut seen = std::collections::HashSet::new();
    for key in model.keys().iter().filter(|key| key.contains("-")) {
        let bytes = model.bytes(key).unwrap();
        assert!(seen.insert(bytes.slice(..16)), "{key} begins like another");
        assert!(seen.insert(bytes.slice(bytes.len() - 16..)), "{key} ends like another");
    }
    assert_eq!(seen.len(), 2 * (8 + 2), "eight chunks, two keys");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_machine_with_the_same_keys_goes_on_where_one_stopped() {
    let (model, ring) = (Model::new(), keys());
    let (one, two) = (machine(&model, Some(&ring)).await, machine(&model, Some(&ring)).await);
    let bytes = marked(2 << 20);
    for machine in [&one, &two] {
        machine.memory.insert(&named("raw"), bytes.clone());
    }
    let slow = under("k1").with_limits(Limits::NONE.with_bytes_per_sec(1 << 20));
    let job = one.engine.copy(request("m/raw", "north/one", slow)).await.unwrap();
    let marks = || model.keys().iter().filter(|key| key.len() > 200).count();
    until("some chunks are there", async || marks() > 6).await;
    suspended(&job.suspend().await);
    let there = marks();
    // Who has no keys finds the job and cannot go on with it.
    let bare = machine(&model, None).await;
    bare.memory.insert(&named("raw"), bytes.clone());
    let found = bare.engine.recover(&region("north")).await.unwrap();
    assert!(matches!(found[0].settled, Settled::Kept), "{found:?}");
    assert_eq!(kind(bare.engine.resume(job.id()).await), Some(ErrorKind::Unsupported));

    two.engine.recover(&region("north")).await.unwrap();
    two.engine.limit(job.id(), Limits::NONE).await.unwrap();
    let resumed = two.engine.resume(job.id()).await.unwrap();
    let receipt = committed(ended(&resumed).await);
    assert!(receipt.resumed_bytes >= (there as u64 - 2) * CHUNK, "{receipt:?}");
    two.copy("north/one", "m/back", plain()).await;
    assert!(two.memory.bytes(&named("back")).unwrap() == bytes);
    let secrets = secrets(&bytes, digests_of(&two.engine, "north/one").await);
    assert_none_told(&model, "north/", &secrets);
    let wrapped = model.keys().into_iter().filter(|key| key.contains("/key-"));
    assert_eq!(wrapped.count(), 1, "the wrapped key of the first attempt is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_puts_among_staged_chunks_is_not_taken() {
    let (model, ring) = (Model::new(), keys());
    let here = machine(&model, Some(&ring)).await;
    let bytes = marked(2 << 20);
    here.memory.insert(&named("raw"), bytes.clone());
    let slow = under("k1").with_limits(Limits::NONE.with_bytes_per_sec(1 << 20));
    let job = here.engine.copy(request("m/raw", "north/one", slow.clone())).await.unwrap();
    let marks = || {
        let keys = model.keys().into_iter();
        keys.filter(|key| key.starts_with("north/images/one") && key.len() > 200)
            .collect::<Vec<_>>()
    };
    until("some chunks are there", async || marks().len() > 6).await;
    suspended(&job.suspend().await);
    let folder = marks()[0].rsplit_once('/').unwrap().0.to_owned();
    // Another image's zeros, chunks in clear, chunks of another place, of another image.
    let note = [&b"BFZEROS\0\x01\0"[..], &[1, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0]].concat();
    let sum = blake3::derive_key("blockferry 2026-11-26 object zeros v1", &note);
    let note = [&note[..], &sum].concat();
    model.insert(&format!("{folder}/zeros.000000ff"), note);
    let there = marks();
    // What is named like a wrapped key, and listed before the one there is.
    let kept = model.keys().into_iter().find(|key| key.starts_with(&format!("{folder}/key-")));
    let forged = (0_u32..).map(|n| n.to_le_bytes()).find_map(|bytes| {
        let name = format!("{folder}/key-{}", blake3::hash(&bytes));
        (name < *kept.as_ref().unwrap()).then_some((name, bytes))
    });
    let (name, garbage) = forged.unwrap();
    model.insert(&name, garbage.to_vec());
    for index in 20..24 {
        let name = format!("{folder}/{index:08x}-{}", "5c".repeat(32));
        model.insert(&name, vec![7; 64 << 10]);
    }
    let mark = there[0].rsplit_once('-').unwrap().1;
    model.insert(&format!("{folder}/0000001e-{mark}"), model.bytes(&there[0]).unwrap());
    model.insert(&format!("{folder}/0000001f-{}", "5c".repeat(72)), vec![7; 64 << 10]);
    here.engine.limit(job.id(), Limits::NONE).await.unwrap();
    let resumed = here.engine.resume(job.id()).await.unwrap();
    let receipt = committed(ended(&resumed).await);
    assert!(receipt.resumed_bytes > 0, "the key that was kept is not passed over: {receipt:?}");
    here.copy("north/one", "m/back", plain()).await;
    assert!(here.memory.bytes(&named("back")).unwrap() == bytes, "what was forged came through");
    assert!(model.bytes(&name).is_none(), "what was forged is gone");
    assert_eq!(model.keys().iter().filter(|key| key.contains("5c5c5c5c")).count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_key_is_gone_can_be_cancelled_and_not_resumed() {
    let (model, ring) = (Model::new(), keys());
    let here = machine(&model, Some(&ring)).await;
    here.memory.insert(&named("raw"), noise(2, 900 * KIB));
    let options = standing().with_encryption(Encryption::Key(key("k1")));
    let job = here.engine.copy(request("m/raw", "north/one", options)).await.unwrap();
    suspended(&job.suspend().await);
    ring.remove(&key("k1"), None).unwrap();
    assert_eq!(kind(here.engine.resume(job.id()).await), Some(ErrorKind::NotFound));
    let reply = here.engine.cancel(job.id()).await.unwrap();
    assert!(matches!(reply.answer, CancelAnswer::Cancelled { clean: true }), "{reply:?}");
    assert_eq!(model.keys(), ["north/images/one/head", "north/way"]);
}

// ---- The key goes first ----

/// Where the first key and the first chunk are among what was deleted.
fn first_of(deleted: &[String]) -> (Option<usize>, Option<usize>) {
    let is_key = |key: &String| key.contains("/key-");
    let is_chunk = |key: &String| key.rsplit('/').next().is_some_and(|name| name.len() == 9 + 144);
    (deleted.iter().position(is_key), deleted.iter().position(is_chunk))
}

#[track_caller]
fn assert_key_first(deleted: &[String]) {
    let (key, chunk) = first_of(deleted);
    assert!(key.is_some() && chunk.is_some(), "no key or no chunk was deleted: {deleted:?}");
    assert!(key < chunk, "a chunk went before the key: {deleted:?}");
    let last_key = deleted.iter().rposition(|key| key.contains("/key-"));
    assert!(last_key < chunk, "a chunk went before the last key: {deleted:?}");
}

/// Through a real server, in whose log the order stands.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_and_a_removal_delete_the_wrapped_key_before_anything_else() {
    let (server, ring) = (S3Server::start().await, keys());
    let open = || {
        let store = S3Store::open(&server.address("north"), &S3Server::options()).unwrap();
        let options = ObjectOptions::default();
        let region = ObjectRegion::with_fencing(store, Fencing::Swap, options).unwrap();
        region.with_keys(ring.clone())
    };
    let world = World::in_memory();
    let engine = Engine::open(world.options()).await.unwrap();
    engine.register(region("m"), world.region("m")).await.unwrap();
    engine.register(region("north"), Arc::new(open())).await.unwrap();
    world.m.insert(&named("raw"), noise(2, 4 << 20));
    // Several attempts, each with its copy of the key.
    let slow = under("k1").with_limits(Limits::NONE.with_bytes_per_sec(1 << 20));
    let mut job = engine.copy(request("m/raw", "north/one", slow)).await.unwrap();
    for chunks in [2, 4] {
        until("chunks are there", async || {
            server.model.keys().iter().filter(|key| key.len() > 200).count() > chunks
        })
        .await;
        suspended(&job.suspend().await);
        job = engine.resume(job.id()).await.unwrap();
    }
    let keys = || server.model.keys().into_iter().filter(|key| key.contains("/key-")).count();
    until("three attempts have begun", async || keys() == 3).await;
    let reply = engine.cancel(job.id()).await.unwrap();
    assert!(matches!(reply.answer, CancelAnswer::Cancelled { clean: true }), "{reply:?}");
    rolled_back(&ended(&job).await);
    assert_key_first(&server.deleted());
    assert_eq!(server.model.keys(), ["north/images/one/head", "north/way"]);

    let before = server.deleted().len();
    let job = engine.copy(request("m/raw", "north/one", under("k2"))).await.unwrap();
    committed(ended(&job).await);
    open().remove(&named("one")).await.unwrap();
    assert_key_first(&server.deleted()[before..]);
    assert_eq!(server.model.keys(), ["north/images/one/head", "north/way"]);
}

#[tokio::test(start_paused = true)]
async fn a_sweep_deletes_the_wrapped_key_of_what_was_left_before_the_rest() {
    let cloud = Cloud::encrypted(Fencing::Swap);
    let (daemon, store) = cloud.member();
    let target = daemon.stage(&spec(1)).await.unwrap();
    write(&*target, &spec(1)).await.unwrap();
    // Everything lands once more behind the clean-up.
    let named = |key: &String| key.rsplit('/').next().is_some_and(|name| name.contains('-'));
    let late: Vec<(String, Bytes)> = cloud
        .model
        .keys()
        .into_iter()
        .filter(named)
        .map(|key| (key.clone(), cloud.model.bytes(&key).unwrap()))
        .collect();
    assert_eq!(target.discard().await.unwrap(), Outcome::Cancelled);
    assert!(late.len() > 3, "{late:?}");
    for (key, bytes) in late {
        cloud.model.insert(&key, bytes);
    }
    cloud.model.advance_ms(10_000);
    let log = Arc::new(Mutex::new(Vec::new()));
    let logged = log.clone();
    store.hook(move |call| {
        if call.verb == "delete" {
            logged.lock().unwrap().push(call.key.to_owned());
        }
        Fate::Answered
    });
    let told = daemon.objects.sweep(false, Duration::from_secs(1)).await.unwrap();
    let swept = daemon.objects.sweep(true, Duration::from_secs(1)).await.unwrap();
    let sorted = |mut swept: Vec<_>| {
        swept.sort_by(|one: &blockferry::region::object::Swept, other| one.key.cmp(&other.key));
        swept
    };
    assert_eq!(sorted(swept), sorted(told), "what is told is what goes");
    let first = log.lock().unwrap().iter().find(|key| key.contains("images/")).cloned();
    assert!(first.as_ref().is_some_and(|key| key.contains("/key-")), "{first:?} went first");
    assert_eq!(cloud.strays(), Vec::<String>::new());
}

// ---- Tampering ----

/// An image of one short chunk in a bucket, and what is read of it.
struct Tiny {
    model: Model,
    ring: Arc<MemoryKeyring>,
    bytes: Vec<u8>,
}

impl Tiny {
    async fn new(names: &[&str]) -> Self {
        let tiny = Self { model: Model::new(), ring: keys(), bytes: marked(100) };
        let here = machine(&tiny.model, Some(&tiny.ring)).await;
        here.memory.insert(&named("raw"), tiny.bytes.clone());
        for name in names {
            here.copy("m/raw", &format!("north/{name}"), under("k1")).await;
        }
        tiny
    }

    async fn read(&self, id: &str) -> Result<Vec<u8>> {
        let region = opened(&self.model, "north", Some(&self.ring));
        let source = region.open(&named(id)).await?;
        Ok(source.read_at(ByteRange::new(0, source.size_bytes())).await?.to_vec())
    }

    /// The object of an image whose key holds that.
    fn object(&self, id: &str, part: &str) -> String {
        let folder = format!("north/images/{id}/");
        let mut keys = self.model.keys().into_iter();
        keys.find(|key| key.starts_with(&folder) && key[folder.len()..].contains(part)).unwrap()
    }

    /// Puts other bytes in the place of an object, reads, and puts it back.
    async fn with(&self, id: &str, key: &str, bytes: Option<Vec<u8>>) -> Option<ErrorKind> {
        let before = self.model.bytes(key).unwrap();
        match bytes {
            Some(bytes) => self.model.insert(key, bytes),
            None => self.model.remove(key),
        }
        let read = self.read(id).await;
        self.model.insert(key, before);
        if let Ok(read) = &read {
            assert!(*read == self.bytes, "{key}: altered bytes came out");
        }
        kind(read)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_byte_of_a_tiny_image_is_vouched_for() {
    let tiny = Tiny::new(&["one"]).await;
    assert_eq!(tiny.read("one").await.unwrap(), tiny.bytes);
    let keys = tiny.model.keys().into_iter().filter(|key| key.contains("/images/"));
    let keys: Vec<String> = keys.collect();
    assert_eq!(keys.len(), 4, "head, key, chunk, manifest: {keys:?}");
    for key in keys {
        let bytes = tiny.model.bytes(&key).unwrap().to_vec();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            let told = tiny.with("one", &key, Some(flipped)).await;
            assert!(told.is_some(), "byte {at} of {key} may be another");
        }
        for len in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            let told = tiny.with("one", &key, Some(bytes[..len].to_vec())).await;
            assert!(told.is_some(), "{key} may be cut to {len} bytes");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(tiny.with("one", &key, Some(longer)).await.is_some(), "{key} may be longer");
        assert!(tiny.with("one", &key, None).await.is_some(), "{key} may be gone");
    }
    assert_eq!(tiny.read("one").await.unwrap(), tiny.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_in_each_others_place_are_refused() {
    let tiny = Tiny::new(&["one", "two"]).await;
    for part in ["00000000-", "key-", "manifest", "head"] {
        let (one, two) = (tiny.object("one", part), tiny.object("two", part));
        let other = tiny.model.bytes(&two).unwrap().to_vec();
        assert_eq!(tiny.with("one", &one, Some(other)).await, Some(ErrorKind::Corrupt), "{part}");
    }
    // Under the names that they have there, and with a head that names them.
    let mut head = Cloud::over(tiny.model.clone()).head("one").unwrap();
    let two = Cloud::over(tiny.model.clone()).head("two").unwrap();
    let folder = tiny.object("one", "manifest").rsplit_once('/').unwrap().0.to_owned();
    let put = |part: &str, bytes: Bytes| {
        let name = tiny.object("two", part).rsplit_once('/').unwrap().1.to_owned();
        tiny.model.insert(&format!("{folder}/{name}"), bytes);
    };
    let place = tiny.object("one", "head");
    let before = tiny.model.bytes(&place).unwrap();
    put("key-", tiny.model.bytes(&tiny.object("two", "key-")).unwrap());
    head.made.as_mut().unwrap().key = two.made.as_ref().unwrap().key.clone();
    tiny.model.insert(&place, head.encode());
    assert_eq!(kind(tiny.read("one").await), Some(ErrorKind::Denied), "the other image's key");
    // All of it: but it was wrapped for an image of another name.
    put("00000000-", tiny.model.bytes(&tiny.object("two", "00000000-")).unwrap());
    put("manifest", tiny.model.bytes(&tiny.object("two", "manifest")).unwrap());
    head.made.clone_from(&two.made);
    tiny.model.insert(&place, head.encode());
    assert_eq!(kind(tiny.read("one").await), Some(ErrorKind::Denied), "another image renamed");
    // Said to be in clear.
    head.made.as_mut().unwrap().key = None;
    head.encrypted = false;
    head.spec.as_mut().unwrap().key = None;
    tiny.model.insert(&place, head.encode());
    assert_eq!(kind(tiny.read("one").await), Some(ErrorKind::Corrupt));
    tiny.model.insert(&place, before);
}

/// The third chunk of the image: a full one, that does not pack.
fn third() -> Sealed {
    let (geometry, index) = (spec(1).geometry, ChunkIndex::new(2));
    let range = geometry.range(index);
    let (from, to) = (usize::try_from(range.offset), usize::try_from(range.end()));
    let piece = Bytes::copy_from_slice(&bytes()[from.unwrap()..to.unwrap()]);
    let Seal::Data(chunk) = seal(geometry, index, piece) else { unreachable!("it is not zero") };
    chunk
}

/// Chunks of one image: swapped, of an earlier write, of an earlier attempt.
#[tokio::test(flavor = "multi_thread")]
async fn chunks_in_each_others_place_are_refused() {
    let cloud = Cloud::encrypted(Fencing::Swap);
    let (daemon, _) = cloud.member();
    let target = daemon.stage(&spec(1)).await.unwrap();
    let manifest = write(&*target, &spec(1)).await.unwrap();
    // The last full chunk is written a second time: same text, same attempt.
    let marks = || {
        let keys = cloud.model.keys().into_iter();
        keys.filter(|key| key.contains("/00000002-")).collect::<Vec<_>>()
    };
    let first = marks()[0].clone();
    let replayed = cloud.model.bytes(&first).unwrap();
    assert_eq!(target.write(third()).await.unwrap().run().first, ChunkIndex::new(2));
    assert_eq!(marks().len(), 2, "each write is another object");
    assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
    target.finish().await.unwrap();
    drop(target);
    let kept = marks();
    assert!(kept.len() == 1 && kept[0] != first, "the image is made of the last write");
    assert_eq!(read(&*daemon).await, Some(bytes()));
    let at = |index: u32| {
        let part = format!("/{index:08x}-");
        cloud.model.keys().into_iter().find(|key| key.contains(&part)).unwrap()
    };
    let fails = async |what: &str| {
        let source = daemon.open(&image()).await.unwrap();
        let told = source.read_at(ByteRange::new(0, source.size_bytes())).await;
        assert_eq!(kind(told), Some(ErrorKind::Corrupt), "{what}");
    };
    let (zero, two) = (cloud.model.bytes(&at(0)).unwrap(), cloud.model.bytes(&at(2)).unwrap());
    cloud.model.insert(&at(2), replayed);
    fails("an earlier write of the chunk").await;
    cloud.model.insert(&at(2), zero);
    fails("another chunk").await;
    cloud.model.insert(&at(2), two.slice(..two.len() - 1));
    fails("a chunk cut short").await;
    cloud.model.insert(&at(2), third().data().to_vec());
    fails("the chunk in clear").await;
    cloud.model.insert(&at(2), two);
    assert_eq!(read(&*daemon).await, Some(bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrapped_key_that_is_gone_when_the_image_is_committed_is_put_there_again() {
    let cloud = Cloud::encrypted(Fencing::Swap);
    let (daemon, _) = cloud.member();
    let target = daemon.stage(&spec(1)).await.unwrap();
    let manifest = write(&*target, &spec(1)).await.unwrap();
    let key = cloud.model.keys().into_iter().find(|key| key.contains("/key-")).unwrap();
    cloud.model.remove(&key);
    assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
    assert_eq!(read(&*daemon).await, Some(bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staged_chunk_that_does_not_decrypt_does_not_verify() {
    let cloud = Cloud::encrypted(Fencing::Swap);
    let (daemon, _) = cloud.member();
    let target = daemon.stage(&spec(1)).await.unwrap();
    write(&*target, &spec(1)).await.unwrap();
    let whole = ByteRange::new(0, spec(1).geometry.image_bytes());
    assert!(target.read_back(whole).await.unwrap() == bytes());
    // Each retry of a write is an object of its own; the last one counts, wherever it is listed.
    for _ in 0..100 {
        let written = target.write(third()).await.unwrap();
        assert_eq!(written.run().first, ChunkIndex::new(2));
    }
    assert!(target.read_back(whole).await.unwrap() == bytes());
    for key in cloud.model.keys().into_iter().filter(|key| key.contains("/00000002-")) {
        let mut stored = cloud.model.bytes(&key).unwrap().to_vec();
        stored[1000] ^= 1;
        cloud.model.insert(&key, stored);
    }
    assert!(target.read_back(whole).await.unwrap().len() < bytes().len());
}

// ---- Keys ----

#[tokio::test(flavor = "multi_thread")]
async fn no_key_another_one_and_an_unknown_one_are_refused() {
    let tiny = Tiny::new(&["one"]).await;
    let refused = async |ring: Option<&Arc<MemoryKeyring>>| {
        kind(opened(&tiny.model, "north", ring).open(&named("one")).await)
    };
    assert_eq!(refused(None).await, Some(ErrorKind::Denied));
    // The same names, other secrets.
    assert_eq!(refused(Some(&keys())).await, Some(ErrorKind::Denied));
    let other = MemoryKeyring::new();
    other.add(&key("k2")).unwrap();
    assert_eq!(refused(Some(&Arc::new(other))).await, Some(ErrorKind::NotFound));
    assert_eq!(refused(Some(&tiny.ring)).await, None);
    // Nothing is staged under a key that is not there, and none in a region without keys.
    let (model, ring) = (Model::new(), keys());
    let here = machine(&model, Some(&ring)).await;
    here.memory.insert(&named("raw"), marked(100));
    let unknown = here.engine.copy(request("m/raw", "north/one", under("k9"))).await;
    assert_eq!(kind(unknown), Some(ErrorKind::NotFound));
    let bare = machine(&model, None).await;
    bare.memory.insert(&named("raw"), marked(100));
    let refused = bare.engine.copy(request("m/raw", "north/one", under("k1"))).await;
    assert_eq!(kind(refused), Some(ErrorKind::Unsupported));
    assert_eq!(model.keys(), Vec::<String>::new());
    let mut based = spec(1);
    (based.key, based.base) = (Some(key("k1")), Some(named("base")));
    let refused = opened(&model, "north", Some(&ring)).stage(&based).await;
    assert_eq!(kind(refused), Some(ErrorKind::Unsupported));
}

/// Whoever has no keys can still list, verify nothing, remove and sweep.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_keys_can_tidy_up_after_others() {
    let (model, ring) = (Model::new(), keys());
    let keyed = opened(&model, "north", Some(&ring));
    let mut job = spec(1);
    job.key = Some(key("k1"));
    let target = keyed.stage(&job).await.unwrap();
    let manifest = write(&*target, &job).await.unwrap();
    assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
    // It dies before it has tidied up.
    drop((target, keyed));
    let bare = opened(&model, "north", None);
    until("it is settled", async || {
        let found = bare.recover(None).await.unwrap();
        found.iter().all(|found| matches!(found.settled, Settled::Committed)) && !found.is_empty()
    })
    .await;
    assert!(!model.keys().iter().any(|key| key.contains("/zeros.") || key.contains("jobs/")));
    bare.sweep(true, Duration::ZERO).await.unwrap();
    let keyed = opened(&model, "north", Some(&ring));
    assert_eq!(read(&keyed).await, Some(bytes()));
    bare.remove(&image()).await.unwrap();
    assert_eq!(model.keys(), ["north/images/m-1/head", "north/way"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rewrap_changes_head_and_wrapped_key_and_nothing_else() {
    for fencing in [Fencing::Swap, Fencing::Numbered, Fencing::None] {
        let cloud = Cloud::encrypted(fencing);
        let ring = cloud.keys.clone().unwrap();
        let region = || {
            let (store, options) =
                (Arc::new(cloud.model.client("north")), ObjectOptions::default());
            let region = match fencing {
                Fencing::None => ObjectRegion::unfenced(store, cloud.local.path(), options),
                fencing => ObjectRegion::with_fencing(store, fencing, options),
            };
            region.unwrap().with_keys(ring.clone())
        };
        let daemon = region();
        let mut job = spec(1);
        job.key = Some(key("k1"));
        let target = daemon.stage(&job).await.unwrap();
        let manifest = write(&*target, &job).await.unwrap();
        assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
        target.finish().await.unwrap();
        drop(target);
        let rest = || {
            let keys = cloud.model.keys().into_iter();
            let rest = keys.filter(|key| !key.contains("/head") && !key.contains("/key-"));
            rest.map(|key| (cloud.model.bytes(&key), key)).collect::<Vec<_>>()
        };
        let wrapped = || {
            let keys = cloud.model.keys().into_iter();
            keys.filter(|key| key.contains("/key-")).collect::<Vec<_>>()
        };
        let (before, keys_before) = (rest(), wrapped());
        // One that is open goes on, and looks the same.
        let opened = daemon.open(&image()).await.unwrap();
        let print = opened.fingerprint().await.unwrap();
        assert_eq!(region().rewrap(&image(), &key("k2")).await.unwrap(), key("k1"));
        assert_eq!(rest(), before, "{fencing:?}");
        assert!(wrapped().len() == 1 && wrapped() != keys_before, "the old one is gone");
        ring.remove(&key("k1"), None).unwrap();
        assert_eq!(opened.fingerprint().await.unwrap(), print, "another key is no other image");
        let whole = ByteRange::new(0, opened.size_bytes());
        assert!(opened.read_at(whole).await.unwrap() == bytes());
        assert_eq!(read(&region()).await, Some(bytes()));
        assert_eq!(region().list().await.unwrap()[0].key, Some(key("k2")));
        // To the newest version of the same key.
        ring.rotate(&key("k2")).unwrap();
        assert_eq!(region().rewrap(&image(), &key("k2")).await.unwrap(), key("k2"));
        ring.remove(&key("k2"), Some(1)).unwrap();
        assert_eq!(read(&region()).await, Some(bytes()));
        let refused = async |id: &str, to: &str| {
            kind(region().rewrap(&id.parse::<ImageId>().unwrap(), &key(to)).await)
        };
        assert_eq!(refused("m-1", "k1").await, Some(ErrorKind::NotFound));
        assert_eq!(refused("m-2", "k2").await, Some(ErrorKind::NotFound));
        let mut open = spec(2);
        open.target.image = named("open");
        let target = daemon.stage(&open).await.unwrap();
        let manifest = write(&*target, &open).await.unwrap();
        assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
        target.finish().await.unwrap();
        drop(target);
        assert_eq!(refused("open", "k2").await, Some(ErrorKind::Unsupported));
        assert_eq!(wrapped().len(), 1, "a refused rewrap leaves nothing");
        region().remove(&image()).await.unwrap();
        assert_eq!(wrapped(), Vec::<String>::new());
    }
}

/// Somebody who wraps a key alike each time, as keys that wrap keys in hardware often do.
#[derive(Debug)]
struct Constant;

impl Constant {
    /// What hides a data key, and what proves it.
    fn pads(key: &KeyId, context: &[u8]) -> [[u8; 32]; 2] {
        let of =
            |n: &[u8]| *blake3::hash(&[key.as_str().as_bytes(), n, context].concat()).as_bytes();
        [of(b"hide"), of(b"prove")]
    }
}

impl KeyProvider for Constant {
    fn wrap_key<'a>(
        &'a self,
        key: &'a KeyId,
        data_key: &'a DataKey,
        context: &'a [u8],
    ) -> KeyFuture<'a, Result<Vec<u8>>> {
        let [hide, prove] = Self::pads(key, context);
        let hidden = data_key.as_bytes().iter().zip(hide).map(|(byte, pad)| byte ^ pad);
        let proof = *blake3::keyed_hash(&prove, data_key.as_bytes()).as_bytes();
        Box::pin(std::future::ready(Ok(hidden.chain(proof).collect())))
    }

    fn unwrap_key<'a>(
        &'a self,
        key: &'a KeyId,
        wrapped: &'a [u8],
        context: &'a [u8],
    ) -> KeyFuture<'a, Result<DataKey>> {
        let [hide, prove] = Self::pads(key, context);
        let mut bytes = hide;
        bytes.iter_mut().zip(wrapped).for_each(|(byte, hidden)| *byte ^= hidden);
        let fits = wrapped[32..] == *blake3::keyed_hash(&prove, &bytes).as_bytes();
        let denied = || blockferry::Error::new(ErrorKind::Denied, "unwrap a data key");
        Box::pin(std::future::ready(fits.then(|| DataKey::from_bytes(bytes)).ok_or_else(denied)))
    }
}

/// A bucket with one image under `k1`.
pub(super) struct Made {
    pub(super) cloud: Cloud,
    pub(super) keys: Arc<dyn KeyProvider>,
}

impl Made {
    pub(super) async fn new(keys: Arc<dyn KeyProvider>) -> Self {
        let made = Self { cloud: Cloud::new(Fencing::Swap), keys };
        let (region, _) = made.daemon();
        let mut job = spec(1);
        job.key = Some(key("k1"));
        let target = region.stage(&job).await.unwrap();
        let manifest = write(&*target, &job).await.unwrap();
        assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
        target.finish().await.unwrap();
        drop(target);
        made
    }

    pub(super) fn daemon(&self) -> (ObjectRegion, ModelStore) {
        let (region, store) = self.cloud.daemon();
        (region.with_keys(self.keys.clone()), store)
    }

    pub(super) fn wrapped(&self) -> usize {
        self.cloud.model.keys().into_iter().filter(|key| key.contains("/key-")).count()
    }
}

/// Takes the first so many steps of the one, then all of the other, then the rest; or, `abreast`,
/// the other begins so many steps later, and both go on in turns.
async fn meet<A, B>(
    one: impl Future<Output = A>,
    other: impl Future<Output = B>,
    later: usize,
    abreast: bool,
) -> (A, B) {
    let mut one = pin!(one);
    if abreast {
        let other = async {
            for _ in 0..later {
                tokio::task::yield_now().await;
            }
            other.await
        };
        return tokio::join!(one, other);
    }
    let mut done = None;
    for _ in 0..later {
        if done.is_none() {
            let step = poll_fn(|context| Poll::Ready(one.as_mut().poll(context)));
            if let Poll::Ready(ended) = step.await {
                done = Some(ended);
            }
            tokio::task::yield_now().await;
        }
    }
    let other = other.await;
    match done {
        Some(done) => (done, other),
        None => (one.await, other),
    }
}

/// Who rewraps, and who does something else meanwhile; `unheard`: the first swap of the one is
/// carried out, and the answer lost.
async fn rewrap_beside(keys: Arc<dyn KeyProvider>, rival: Option<&str>, unheard: bool) -> usize {
    let made = Made::new(keys).await;
    let (mut gone, turns) = (0, ["k1", "k2"].into_iter().cycle());
    for (step, to) in (0..120).zip(turns) {
        let (later, abreast) = (step / 4, step % 4 < 2);
        let what = format!("{rival:?} {later} steps later, {abreast}, unheard: {unheard}");
        let ((slow, store), (other, _)) = (made.daemon(), made.daemon());
        let lost = AtomicBool::new(!unheard);
        store.hook(move |call| {
            let swaps = call.verb == "put" && call.key.ends_with("/head");
            if swaps && !lost.swap(true, Relaxed) { Fate::LostAfter } else { Fate::Answered }
        });
        let (to, id) = (key(to), image());
        let beside = async {
            match rival {
                None => other.sweep(true, Duration::ZERO).await.map(|swept| swept.len()),
                Some(to) => other.rewrap(&image(), &key(to)).await.map(|_| 0),
            }
        };
        let rewrap = Box::pin(slow.rewrap(&id, &to));
        let (rewrapped, beside) = meet(rewrap, Box::pin(beside), later, abreast).await;
        rewrapped.unwrap();
        gone += beside.unwrap();
        assert_eq!(read(&other).await, Some(bytes()), "{what}");
        assert_eq!(made.wrapped(), 1, "{what}");
        let named = made.cloud.head("m-1").unwrap().made.unwrap().key.unwrap().id;
        assert!(named == to || rival.is_some_and(|rival| named == key(rival)), "{what}: {named}");
    }
    gone
}

#[tokio::test(start_paused = true)]
async fn a_sweep_and_a_rewrap_at_once_never_lose_the_key() {
    let gone = rewrap_beside(keys(), None, false).await;
    assert!(gone > 0, "no sweep has met a key that was about to be named");
    rewrap_beside(keys(), None, true).await;
    rewrap_beside(Arc::new(Constant), None, false).await;
    rewrap_beside(Arc::new(Constant), None, true).await;
}

#[tokio::test(start_paused = true)]
async fn two_rewraps_at_once_never_lose_the_key() {
    for rival in ["k1", "k2"] {
        for unheard in [false, true] {
            rewrap_beside(keys(), Some(rival), unheard).await;
            rewrap_beside(Arc::new(Constant), Some(rival), unheard).await;
        }
    }
}

/// Who removes an image while another rewraps it; in the end nothing is left but the tombstone.
#[tokio::test(start_paused = true)]
async fn a_removal_and_a_rewrap_at_once_leave_no_key() {
    for unheard in [false, true] {
        for step in 0..80 {
            let (later, abreast) = (step / 2, step % 2 == 0);
            let made = Made::new(keys()).await;
            let ((slow, store), (other, _)) = (made.daemon(), made.daemon());
            let lost = AtomicBool::new(!unheard);
            store.hook(move |call| {
                let swaps = call.verb == "put" && call.key.ends_with("/head");
                if swaps && !lost.swap(true, Relaxed) { Fate::LostAfter } else { Fate::Answered }
            });
            let (to, id) = (key("k2"), image());
            let remove = other.remove(&id);
            let (rewrapped, removed) =
                meet(Box::pin(slow.rewrap(&id, &to)), remove, later, abreast).await;
            removed.unwrap();
            assert!(matches!(kind(rewrapped), None | Some(ErrorKind::NotFound)));
            assert_eq!(read(&other).await, None);
            assert_eq!(made.cloud.strays(), Vec::<String>::new(), "{later} steps later");
        }
    }
}

/// Who asked for an image to be removed did not ask for the one that has come since.
#[tokio::test(start_paused = true)]
async fn a_removal_takes_no_image_that_has_come_since() {
    for later in 2..20 {
        let made = Made::new(keys()).await;
        let ((slow, _), (other, _)) = (made.daemon(), made.daemon());
        let mut job = spec(2);
        job.key = Some(key("k2"));
        let replaced = async {
            other.rewrap(&image(), &key("k2")).await?;
            other.remove(&image()).await?;
            let target = other.stage(&job).await?;
            let manifest = write(&*target, &job).await?;
            assert_eq!(target.commit(&manifest).await?, Outcome::Committed);
            target.finish().await
        };
        let id = image();
        let (removed, replaced) = meet(slow.remove(&id), Box::pin(replaced), later, false).await;
        let told = (kind(removed), kind(replaced));
        // It had just been removed when the other one came to it.
        let gone = told.1 == Some(ErrorKind::NotFound);
        assert!(gone || told.1.is_none(), "{later} steps later: {told:?}");
        assert!(matches!(told.0, None | Some(ErrorKind::NotFound)), "{later}: {told:?}");
        let there = made.cloud.head("m-1").unwrap();
        let stands = there.sight.phase == Phase::Committed && there.sight.job == job.job;
        assert!(gone || stands, "{later} steps later: {:?}", there.sight);
        assert!(gone || read(&other).await == Some(bytes()), "{later} steps later");
    }
}

/// The delete of an old wrapped key comes late, when the image is under that key once more.
#[tokio::test(start_paused = true)]
async fn a_late_delete_hits_no_later_key_also_if_it_is_wrapped_alike() {
    let made = Made::new(Arc::new(Constant)).await;
    let (slow, store) = made.daemon();
    store.hook(|call| if call.verb == "delete" { Fate::Late } else { Fate::Answered });
    assert_eq!(kind(slow.rewrap(&image(), &key("k2")).await), Some(ErrorKind::Unavailable));
    let (other, _) = made.daemon();
    assert_eq!(other.list().await.unwrap()[0].key, Some(key("k2")), "it counts all the same");
    assert_eq!(other.rewrap(&image(), &key("k1")).await.unwrap(), key("k2"));
    assert_eq!(other.rewrap(&image(), &key("k1")).await.unwrap(), key("k1"));
    made.cloud.model.land_all();
    assert_eq!(read(&other).await, Some(bytes()));
    assert_eq!(made.wrapped(), 1);
}

/// A head is no more than what somebody has put there: how many attempts it speaks of bounds nothing.
#[tokio::test(start_paused = true)]
async fn a_head_that_speaks_of_very_many_attempts_costs_no_more_than_another() {
    let made = Made { cloud: Cloud::new(Fencing::Swap), keys: keys() };
    let mut job = spec(1);
    job.key = Some(key("k1"));
    let target = made.daemon().0.stage(&job).await.unwrap();
    write(&*target, &job).await.unwrap();
    drop(target);
    let mut head = made.cloud.head("m-1").unwrap();
    head.sight.epoch = u32::MAX - 10;
    made.cloud.model.insert("north/images/m-1/head", head.encode());
    let (region, store) = made.daemon();
    store.fate_from(1000, Fate::Denied);
    let target = region.reopen(&job).await.unwrap();
    let restored = target.begin().await.unwrap();
    assert_eq!(restored.data_bytes, 2 * CHUNK + 77, "with the key of the first attempt");
    drop(target);
    until("it is cancelled and cleaned", async || {
        let vote = region.cancel(job.job, &image()).await.unwrap();
        matches!(vote, Vote::Cancelled { clean: true, .. })
    })
    .await;
    assert_eq!(made.cloud.model.keys(), ["north/images/m-1/head", "north/way"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_names_a_key_elsewhere_is_told_from_one_that_moved_on() {
    let tiny = Tiny::new(&["one"]).await;
    let place = tiny.object("one", "head");
    let mut head = Cloud::over(tiny.model.clone()).head("one").unwrap();
    assert_eq!(head.sight.phase, Phase::Committed);
    head.made.as_mut().unwrap().key =
        Some(MadeKey { digest: Digest::from_bytes([9; 32]), id: key("k1") });
    tiny.model.insert(&place, head.encode());
    assert_eq!(kind(tiny.read("one").await), Some(ErrorKind::Corrupt));
    let region = opened(&tiny.model, "north", Some(&tiny.ring));
    let rewrapped = region.rewrap(&named("one"), &key("k2")).await;
    assert_eq!(kind(rewrapped), Some(ErrorKind::Corrupt));
    let vote = opened(&tiny.model, "north", None).cancel(head.sight.job, &named("one")).await;
    assert!(matches!(vote, Ok(Vote::Committed)), "{vote:?}");
}
