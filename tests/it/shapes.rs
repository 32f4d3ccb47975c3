//! Images of every size, sparseness and chunk size, from every kind of place to every other.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use blockferry::engine::Engine;
use blockferry::geometry::{ByteRange, ChunkSize};
use blockferry::job::Receipt;
use blockferry::options::{CopyOptions, Verify};
use blockferry::region::FileRegion;
use tokio::time::Instant;

use crate::places::{LOOP_DEVICES, LoopDevice, skipped};
use crate::world::{
    KIB, MIB, World, allocated, assert_same, b3sum, committed, content, ended, image, noise,
    region, request,
};

const CHUNK_SIZES: [u64; 3] = [64 * KIB, 256 * KIB, 4 * MIB];

/// Where the data lies in an image.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pattern {
    Data,
    Hole,
    AllocatedZeros,
    Alternating(u64),
    LastByte,
    ZeroHead,
}

const PATTERNS: [Pattern; 9] = [
    Pattern::Data,
    Pattern::Hole,
    Pattern::AllocatedZeros,
    Pattern::Alternating(4 * KIB),
    Pattern::Alternating(64 * KIB),
    Pattern::Alternating(256 * KIB),
    Pattern::Alternating(4 * MIB),
    Pattern::LastByte,
    Pattern::ZeroHead,
];

fn sizes(chunk: u64) -> Vec<u64> {
    let mut sizes = vec![0, 1, 511, 512, 4095, 65_535, 65_536, 65_537];
    if chunk < 4 * MIB {
        sizes.extend([3 * chunk, 5 * chunk + 1]);
    } else {
        sizes.extend([3 * chunk, 17 * MIB + 3]);
    }
    sizes
}

impl Pattern {
    /// Writes the image as a file: what is zero and not asked to be allocated is a hole.
    fn make(self, path: &Path, size: u64, seed: u64) {
        let file = File::create(path).unwrap();
        file.set_len(size).unwrap();
        let bytes = noise(seed, size);
        let part = |from: u64, to: u64| {
            let (from_at, to_at) = (usize::try_from(from).unwrap(), usize::try_from(to).unwrap());
            file.write_all_at(&bytes[from_at..to_at], from).unwrap();
        };
        match self {
            Self::Data => part(0, size),
            Self::Hole => {}
            Self::AllocatedZeros => {
                file.write_all_at(&vec![0; usize::try_from(size).unwrap()], 0).unwrap();
            }
            Self::Alternating(step) => {
                // A hole comes first.
                for at in (step..size).step_by(usize::try_from(2 * step).unwrap()) {
                    part(at, (at + step).min(size));
                }
            }
            Self::LastByte => part(size.saturating_sub(1), size),
            Self::ZeroHead => part(size / 2, size),
        }
    }
}

fn cut(chunk: u64) -> CopyOptions {
    CopyOptions::new().with_chunk_size(ChunkSize::from_bytes(chunk).unwrap())
}

async fn copy(engine: &Engine, from: &str, to: &str, options: CopyOptions) -> Receipt {
    let job = engine.copy(request(from, to, options)).await.unwrap();
    let receipt = committed(ended(&job).await);
    assert_eq!(receipt.data_bytes + receipt.zero_bytes, receipt.image_bytes, "{from} to {to}");
    assert_eq!(receipt.resumed_bytes + receipt.written_bytes, receipt.data_bytes, "{from} to {to}");
    assert!(receipt.read_bytes <= receipt.image_bytes, "{from} to {to}");
    assert_eq!(receipt.warnings, Vec::<String>::new());
    receipt
}

/// Not more is allocated than that, but for the blocks in which a hole begins and ends.
fn assert_as_sparse(may: u64, target: &Path, what: &str) {
    let has = allocated(target).unwrap();
    assert!(has <= may + 16 * KIB, "{what}: {has} bytes are allocated for {may}");
}

/// The bytes of the blocks that are not zero. What comes without extents is looked at by blocks.
fn non_zero_blocks(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    let blocks = bytes.chunks(64 << 10).filter(|block| block.iter().any(|byte| *byte != 0));
    blocks.map(|block| u64::try_from(block.len()).unwrap()).sum()
}

async fn every_shape(chunk: u64) {
    let world = World::in_memory();
    let engine = world.engine().await;
    let mut seed = chunk;
    for size in sizes(chunk) {
        for pattern in PATTERNS {
            seed += 1;
            let what = format!("{pattern:?} of {size} bytes in chunks of {chunk}, seed {seed}");
            let source = world.source();
            pattern.make(&source, size, seed);
            let may = allocated(&source).unwrap();
            let sum = b3sum(&source);
            let there = |name: &str| world.data_of(name, "disk");

            // file -> dir -> dir -> file, file -> file, file -> memory -> dir
            let first = copy(&engine, "source/image", "a/disk", cut(chunk)).await;
            assert_as_sparse(may, &there("a"), &what);
            assert_same(&source, &there("a"));
            let manifest = world.region("a").open(&image("disk")).await.unwrap().manifest();
            let manifest = manifest.unwrap();
            assert_eq!(manifest.root(), first.root, "{what}");
            assert_eq!(content(&manifest).to_string(), sum, "{what}");
            assert_eq!(manifest.geometry().chunk_size().bytes(), chunk, "{what}");

            let second = copy(&engine, "a/disk", "b/disk", CopyOptions::new()).await;
            assert_as_sparse(may, &there("b"), &what);
            assert_same(&source, &there("b"));
            let third = copy(&engine, "b/disk", "target/image", CopyOptions::new()).await;
            assert_as_sparse(may, &world.target(), &what);
            assert_same(&source, &world.target());
            fs::remove_file(world.target()).unwrap();
            let full = cut(chunk).with_verify(Verify::Full);
            let fourth = copy(&engine, "source/image", "target/image", full).await;
            assert_as_sparse(may, &world.target(), &what);
            assert_same(&source, &world.target());

            let fifth = copy(&engine, "source/image", "n/disk", cut(chunk)).await;
            assert!(world.n.bytes(&image("disk")).unwrap() == fs::read(&source).unwrap(), "{what}");
            engine.region(&region("a")).unwrap().remove(&image("disk")).await.unwrap();
            let sixth = copy(&engine, "n/disk", "a/disk", CopyOptions::new()).await;
            assert_as_sparse(non_zero_blocks(&source), &there("a"), &what);
            assert_same(&source, &there("a"));
            for receipt in [&second, &third, &fourth, &fifth, &sixth] {
                assert_eq!(receipt.root, first.root, "{what}");
                assert_eq!(receipt.image_bytes, size, "{what}");
            }

            for name in ["a", "b", "n"] {
                engine.region(&region(name)).unwrap().remove(&image("disk")).await.unwrap();
            }
            fs::remove_file(world.target()).unwrap();
            fs::remove_file(&source).unwrap();
        }
    }
    world.assert_empty("a");
    world.assert_empty("b");
    assert!(world.n.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_shape_arrives_in_small_chunks() {
    every_shape(CHUNK_SIZES[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_shape_arrives_in_medium_chunks() {
    every_shape(CHUNK_SIZES[1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_shape_arrives_in_large_chunks() {
    every_shape(CHUNK_SIZES[2]).await;
}

/// The device holds 0xaa from end to end: a zero that is not written shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stale_byte_stays_on_a_device_where_the_source_has_zeros() {
    let _alone = LOOP_DEVICES.lock().await;
    for pattern in PATTERNS {
        let folder = tempfile::tempdir().unwrap();
        let device = match LoopDevice::over(&folder) {
            Ok(device) => device,
            Err(why) => return skipped(why),
        };
        let world = World::in_memory();
        let engine = world.engine().await;
        let target = FileRegion::open_path(device.path(), folder.path().join("state")).unwrap();
        engine.register(region("device"), target).await.unwrap();
        pattern.make(&world.source(), MIB, 3);
        world.m.insert(&image("disk"), fs::read(world.source()).unwrap());
        // By the local lane, and by the remote one over what that has left.
        for from in ["source/image", "m/disk"] {
            fs::write(device.path(), vec![0xaa; 1 << 20]).unwrap();
            let options = cut(256 * KIB).with_destructive(true);
            let receipt = copy(&engine, from, "device/image", options).await;
            assert_eq!(receipt.image_bytes, MIB);
            let (is, should) = (fs::read(device.path()), fs::read(world.source()));
            assert!(is.unwrap() == should.unwrap(), "{pattern:?} from {from}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sparse_and_an_allocated_copy_have_one_root() {
    let world = World::in_memory();
    let engine = world.engine().await;
    Pattern::Alternating(64 * KIB).make(&world.source(), 3 * MIB, 1);
    let may = allocated(&world.source()).unwrap();
    let sparse = copy(&engine, "source/image", "a/sparse", cut(256 * KIB)).await;
    // Every byte written, also the zeros.
    let bytes = fs::read(world.source()).unwrap();
    fs::remove_file(world.source()).unwrap();
    fs::write(world.source(), bytes).unwrap();
    let full = copy(&engine, "source/image", "b/full", cut(256 * KIB)).await;
    assert_eq!(sparse.root, full.root);
    assert_as_sparse(may, &world.data_of("b", "full"), "zeros");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tebibyte_of_holes_is_copied_in_seconds() {
    const TIB: u64 = 1 << 40;
    let world = World::in_memory();
    let engine = world.engine().await;
    let file = File::create(world.source()).unwrap();
    file.set_len(TIB).unwrap();
    let data = noise(1, MIB);
    file.write_all_at(&data, TIB / 3).unwrap();
    let began = Instant::now();
    let receipt = copy(&engine, "source/image", "b/disk", CopyOptions::new()).await;
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    assert_eq!(receipt.image_bytes, TIB);
    assert!(receipt.read_bytes <= 9 * MIB, "{receipt:?}");
    let copied = world.data_of("b", "disk");
    assert!(allocated(&copied).unwrap() <= allocated(&world.source()).unwrap() + 16 * KIB);
    let source = world.region("b").open(&image("disk")).await.unwrap();
    let range = ByteRange::new(TIB / 3 - 10, MIB + 20);
    let read = source.read_at(range).await.unwrap();
    assert!(read[10..10 + data.len()] == data[..] && read[..10] == [0; 10]);
    assert!(read[10 + data.len()..] == [0; 10]);
}
