//! What a plan costs before its first byte: walking the extents that a sparse file claims.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops")]

#[path = "made/noise.rs"]
mod noise;
#[path = "made/smoke.rs"]
mod smoke;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use blockferry::geometry::ByteRange;
use blockferry::plan::{Extent, ExtentKind};
use blockferry::region::{FileRegion, Region, Source};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;

/// Data, then a hole of the same length, and so on.
const PIECE: usize = 64 << 10;

fn survey(bench: &mut Criterion) {
    let piece_count: usize = if smoke::is_smoke() { 64 } else { 4096 };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("source.raw");
    make_sparse(&path, piece_count);
    let runtime = Runtime::new().unwrap();
    let region = FileRegion::open_path(&path, folder.path()).unwrap();
    let image = "image".parse().unwrap();
    let source = runtime.block_on(Region::open(&*region, &image)).unwrap();
    check(&runtime.block_on(walked(&*source)), &path, piece_count);

    let mut group = bench.benchmark_group("plan");
    group.throughput(Throughput::Elements(piece_count as u64));
    group.bench_function("survey", |timer| {
        timer.iter(|| runtime.block_on(walked(&*source)));
    });
    group.finish();
}

fn make_sparse(path: &Path, piece_count: usize) {
    let file = File::create(path).unwrap();
    file.set_len((piece_count * PIECE) as u64).unwrap();
    let data = noise::noise(PIECE);
    for at in (0..piece_count).step_by(2) {
        file.write_all_at(&data, (at * PIECE) as u64).unwrap();
    }
    // Where blocks are allocated late, they are told apart from holes all the same; on disk they
    // also lie still.
    file.sync_all().unwrap();
}

/// All extents of the image, as an engine asks for them.
async fn walked(source: &dyn Source) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut offset = 0;
    while offset < source.size_bytes() {
        let rest = ByteRange::new(offset, source.size_bytes() - offset);
        extents.extend(source.extents(rest).await.unwrap());
        offset = extents.last().unwrap().range.end();
    }
    extents
}

/// They cover the image once, in order, and none of them passes data off as zeros. How fine they
/// are is the file system's affair.
fn check(extents: &[Extent], path: &Path, piece_count: usize) {
    let bytes = std::fs::read(path).unwrap();
    assert!(bytes.iter().any(|byte| *byte != 0));
    let mut end = 0;
    for Extent { range, kind } in extents {
        assert_eq!(range.offset, end);
        end = range.end();
        let claimed = usize::try_from(range.offset).unwrap()..usize::try_from(end).unwrap();
        if *kind == ExtentKind::Zero {
            assert!(bytes[claimed].iter().all(|byte| *byte == 0), "{range:?}");
        }
    }
    assert_eq!(end, bytes.len() as u64);
    assert!(extents.len() <= piece_count);
}

criterion_group!(benches, survey);
criterion_main!(benches);
