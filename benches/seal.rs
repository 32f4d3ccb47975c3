//! What sealing costs: looking for zeros, hashing a chunk, merging digests, reading a manifest.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops")]

#[path = "made/manifest.rs"]
mod manifest;
#[path = "made/noise.rs"]
mod noise;

use std::hint::black_box;

use blockferry::chunk::Digest;
use blockferry::geometry::{ChunkIndex, ChunkSize, Geometry};
use blockferry::id::JobId;
use blockferry::manifest::Manifest;
use blockferry::seal::{content_digest, digest_of, is_zero};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const CHUNK_COUNT: u32 = 1 << 18;

fn chunks(bench: &mut Criterion) {
    for (name, len) in [("64KiB", 64 << 10), ("4MiB", 4 << 20)] {
        let size = ChunkSize::from_bytes(len as u64).unwrap();
        let geometry = Geometry::new(2 * len as u64, size).unwrap();
        let (zeros, noise) = (vec![0; len], noise::noise(len));
        let digest = |n, bytes: &[u8]| digest_of(geometry, ChunkIndex::new(n), bytes);

        assert!(is_zero(&zeros) && !is_zero(&noise));
        let whole = content_digest(geometry, |index| digest(index.get(), &noise));
        assert_eq!(*whole.as_bytes(), *blake3::hash(&noise.repeat(2)).as_bytes());

        let mut group = bench.benchmark_group("chunk");
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("is_zero", name), |timer| {
            timer.iter(|| is_zero(black_box(&zeros)));
        });
        group.bench_function(BenchmarkId::new("digest", name), |timer| {
            timer.iter(|| digest(1, black_box(&noise)));
        });
        group.finish();
    }
}

fn tables(bench: &mut Criterion) {
    let size = ChunkSize::MIN;
    let geometry = Geometry::new(u64::from(CHUNK_COUNT) * size.bytes(), size).unwrap();
    let bytes = manifest::manifest_bytes(geometry, JobId::from_bytes([7; 16]));
    let manifest = Manifest::decode_from(&mut &bytes[..]).unwrap();
    let digest = |index: ChunkIndex| -> Digest { manifest.table().digest(index).unwrap() };

    let mut again = Vec::new();
    manifest.encode_to(&mut again).unwrap();
    assert_eq!(again, bytes);
    // The same tree, merged level by level.
    let mut level: Vec<_> = (0..CHUNK_COUNT).map(manifest::digest).collect();
    while level.len() > 2 {
        let pair = |pair: &[[u8; 32]]| {
            blake3::hazmat::merge_subtrees_non_root(&pair[0], &pair[1], blake3::hazmat::Mode::Hash)
        };
        level = level.chunks(2).map(pair).collect();
    }
    let root =
        blake3::hazmat::merge_subtrees_root(&level[0], &level[1], blake3::hazmat::Mode::Hash);
    assert_eq!(content_digest(geometry, digest).as_bytes(), root.as_bytes());

    let mut group = bench.benchmark_group("table of 2^18 chunks");
    group.throughput(Throughput::Elements(u64::from(CHUNK_COUNT)));
    group.sample_size(20);
    group.bench_function("content digest", |timer| {
        timer.iter(|| content_digest(geometry, digest));
    });
    group.bench_function("root", |timer| timer.iter(|| manifest.table().root()));
    group.bench_function("manifest encode", |timer| {
        timer.iter(|| manifest.encode_to(&mut std::io::sink()).unwrap());
    });
    group.bench_function("manifest decode", |timer| {
        timer.iter(|| Manifest::decode_from(&mut &bytes[..]).unwrap());
    });
    group.finish();
}

criterion_group!(benches, chunks, tables);
criterion_main!(benches);
