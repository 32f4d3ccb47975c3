//! What reading costs: a hot file through its source, and the bare file beside it.
//!
//! The source hands out owned bytes from a blocking thread, as the remote lane reads; the bare file
//! fills one buffer again and again, as a worker of the local lane does.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops")]

#[path = "made/noise.rs"]
mod noise;
#[path = "made/smoke.rs"]
mod smoke;

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use blockferry::geometry::ByteRange;
use blockferry::region::{FileRegion, Source};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;

const SIZES: [(&str, usize); 3] = [("256KiB", 256 << 10), ("1MiB", 1 << 20), ("4MiB", 4 << 20)];

fn reads(bench: &mut Criterion) {
    let image_len = if smoke::is_smoke() { 8 << 20 } else { 64 << 20 };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("source.raw");
    let image = noise::noise(image_len);
    std::fs::write(&path, &image).unwrap();
    let runtime = Runtime::new().unwrap();
    let source = runtime.block_on(opened(&path, folder.path()));
    let file = File::open(&path).unwrap();
    assert_eq!(source.size_bytes(), image_len as u64);

    let mut group = bench.benchmark_group("read");
    for (name, len) in SIZES {
        check(&runtime, &*source, &image, len);
        group.throughput(Throughput::Bytes(len as u64));
        let mut offsets = (0..image_len).step_by(len).cycle();
        let mut next = || offsets.next().unwrap() as u64;
        group.bench_function(BenchmarkId::new("source", name), |timer| {
            timer.iter(|| {
                let range = ByteRange::new(next(), len as u64);
                runtime.block_on(source.read_at(range)).unwrap()
            });
        });
        let mut buffer = vec![0; len];
        group.bench_function(BenchmarkId::new("file", name), |timer| {
            timer.iter(|| file.read_exact_at(black_box(&mut buffer), next()).unwrap());
        });
    }
    group.finish();
}

async fn opened(path: &Path, state_dir: &Path) -> Arc<dyn Source> {
    let region = FileRegion::open_path(path, state_dir).unwrap();
    region.open(&"image".parse().unwrap()).await.unwrap()
}

/// Every piece is what was written there, and so is a piece across their borders.
fn check(runtime: &Runtime, source: &dyn Source, image: &[u8], len: usize) {
    for at in (0..image.len()).step_by(len).chain([len / 2 + 1]) {
        let range = ByteRange::new(at as u64, len as u64);
        let bytes = runtime.block_on(source.read_at(range)).unwrap();
        assert!(bytes[..] == image[at..at + len], "{len} bytes at {at}");
    }
}

criterion_group!(benches, reads);
criterion_main!(benches);
