//! What sealing costs: looking for zeros, hashing a chunk, both of them as `seal` does.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a bench that cannot go on stops")]

#[path = "made/noise.rs"]
mod noise;

use std::hint::black_box;

use blockferry::chunk::Digest;
use blockferry::geometry::{ChunkIndex, ChunkSize, Geometry};
use blockferry::seal::{Seal, content_digest, digest_of, is_zero, seal};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const SIZES: [(&str, usize); 3] = [("64KiB", 64 << 10), ("1MiB", 1 << 20), ("4MiB", 4 << 20)];

fn zero_scan(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("zero scan");
    for (name, len) in SIZES {
        let mut zeros = vec![0; len];
        assert!(is_zero(&zeros));
        for at in [0, len / 2, len - 1] {
            zeros[at] = 1;
            assert!(!is_zero(&zeros), "byte {at}");
            zeros[at] = 0;
        }
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |timer| {
            timer.iter(|| is_zero(black_box(&zeros)));
        });
    }
    group.finish();
}

fn sealing(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("seal");
    for (name, len) in SIZES {
        let size = ChunkSize::from_bytes(len as u64).unwrap();
        let geometry = Geometry::new(2 * len as u64, size).unwrap();
        let noise = Bytes::from(noise::noise(len));
        let digest = |index| digest_of(geometry, index, &noise);
        let sealed = |index| match seal(geometry, index, noise.clone()) {
            Seal::Data(chunk) => chunk,
            Seal::Zero(index) => panic!("chunk {index} of the noise is zero"),
        };

        let whole = *blake3::hash(&noise.repeat(2)).as_bytes();
        let merged = |digest: &dyn Fn(ChunkIndex) -> Digest| content_digest(geometry, digest);
        assert_eq!(*merged(&digest).as_bytes(), whole);
        assert_eq!(*merged(&|index| sealed(index).digest()).as_bytes(), whole);

        let last = ChunkIndex::new(1);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("digest", name), |timer| {
            timer.iter(|| digest(black_box(last)));
        });
        group.bench_function(BenchmarkId::new("chunk", name), |timer| {
            timer.iter(|| sealed(black_box(last)));
        });
    }
    group.finish();
}

criterion_group!(benches, zero_scan, sealing);
criterion_main!(benches);
