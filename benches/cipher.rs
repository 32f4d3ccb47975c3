//! What encryption costs beside hashing: a chunk encrypted and decrypted, keys and records included.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops")]

#[path = "made/noise.rs"]
mod noise;

use std::hint::black_box;

use blockferry::testing::Cells;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const SIZES: [(&str, u64); 3] = [("64KiB", 64 << 10), ("1MiB", 1 << 20), ("4MiB", 4 << 20)];

fn cells(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("cipher");
    for (name, len) in SIZES {
        let mut cells = Cells::new(len).unwrap();
        let text = noise::noise(cells.chunk_len());
        let mut sealed = text.clone();
        let record = cells.seal(&mut sealed).unwrap();
        assert!(sealed != text);
        let mut back = sealed.clone();
        cells.open(&record, &mut back).unwrap();
        assert!(back == text, "it comes back as it went in");

        group.throughput(Throughput::Bytes(len));
        let mut bytes = text;
        group.bench_function(BenchmarkId::new("seal", name), |timer| {
            timer.iter(|| cells.seal(black_box(&mut bytes)).unwrap());
        });
        // Decrypted where it lies: another copy each time, as a read is.
        group.bench_function(BenchmarkId::new("open", name), |timer| {
            timer.iter(|| {
                bytes.copy_from_slice(&sealed);
                cells.open(black_box(&record), &mut bytes).unwrap();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, cells);
criterion_main!(benches);
