//! What a chunk table costs: its root, the digest of its image, its bytes to and fro.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops")]

#[path = "made/manifest.rs"]
mod manifest;
#[path = "made/smoke.rs"]
mod smoke;

use blockferry::chunk::Digest;
use blockferry::geometry::{ChunkIndex, ChunkSize, Geometry};
use blockferry::id::JobId;
use blockferry::manifest::Manifest;
use blockferry::seal::content_digest;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn tables(bench: &mut Criterion) {
    // 1 TiB in chunks of 4 MiB has so many.
    let chunk_count: u32 = if smoke::is_smoke() { 1 << 12 } else { 1 << 18 };
    let size = ChunkSize::MIN;
    let geometry = Geometry::new(u64::from(chunk_count) * size.bytes(), size).unwrap();
    let bytes = manifest::manifest_bytes(geometry, JobId::from_bytes([7; 16]));
    let manifest = Manifest::decode_from(&mut &bytes[..]).unwrap();
    let digest = |index: ChunkIndex| -> Digest { manifest.table().digest(index).unwrap() };

    let mut again = Vec::new();
    manifest.encode_to(&mut again).unwrap();
    assert_eq!(again, bytes);
    let root_at = bytes.len() - 64;
    assert_eq!(manifest.table().root().as_bytes()[..], bytes[root_at..root_at + 32]);
    assert!(geometry.chunks().iter().all(|n| *digest(n).as_bytes() == manifest::digest(n.get())));
    assert_eq!(*content_digest(geometry, digest).as_bytes(), merged(chunk_count));

    let mut group = bench.benchmark_group("manifest");
    group.throughput(Throughput::Elements(u64::from(chunk_count)));
    group.sample_size(20);
    group.bench_function("encode", |timer| {
        timer.iter(|| manifest.encode_to(&mut std::io::sink()).unwrap());
    });
    group.bench_function("decode", |timer| {
        timer.iter(|| Manifest::decode_from(&mut &bytes[..]).unwrap());
    });
    group.bench_function("root", |timer| timer.iter(|| manifest.table().root()));
    group.bench_function("content digest", |timer| {
        timer.iter(|| content_digest(geometry, digest));
    });
    group.finish();
}

/// The digest of the image, its tree merged level by level.
fn merged(chunk_count: u32) -> [u8; 32] {
    use blake3::hazmat::{Mode, merge_subtrees_non_root, merge_subtrees_root};

    let mut level: Vec<_> = (0..chunk_count).map(manifest::digest).collect();
    while level.len() > 2 {
        let pairs = level.chunks(2);
        level = pairs.map(|two| merge_subtrees_non_root(&two[0], &two[1], Mode::Hash)).collect();
    }
    *merge_subtrees_root(&level[0], &level[1], Mode::Hash).as_bytes()
}

criterion_group!(benches, tables);
criterion_main!(benches);
