//! Writes the inputs that fuzzing begins with: those that the bodies make, and files of real jobs.
//!
//! `cargo run --manifest-path fuzz/Cargo.toml --example seeds` from the top of the repository. Names
//! are hashes, so that what is there already is not written twice.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blockferry::engine::{CopyRequest, Engine, Shutdown};
use blockferry::geometry::ChunkSize;
use blockferry::job::Endpoint;
use blockferry::options::{CopyOptions, EngineOptions, Limits, Verify};
use blockferry::region::{DirRegion, MemoryRegion};
use blockferry::testing::fuzz::BODIES;

fn main() -> Result<(), Box<dyn Error>> {
    for body in BODIES {
        for bytes in (body.seeds)() {
            keep(body.name, &bytes)?;
        }
    }
    tokio::runtime::Runtime::new()?.block_on(real_jobs())
}

/// One job that commits, and one that is suspended half-way with a limit that was changed.
async fn real_jobs() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let (state, root) = (folder.path().join("state"), folder.path().join("root"));
    fs::create_dir(&root)?;
    let checkpoint = (1, Duration::from_millis(1));
    let options = EngineOptions::new(&state).with_checkpoint(checkpoint.0, checkpoint.1);
    let engine = Engine::open(options).await?;
    let memory = MemoryRegion::new("m");
    let mut image = vec![7; 900_000];
    image[200_000..600_000].fill(0);
    memory.insert(&"a".parse()?, image);
    engine.register("m".parse()?, Arc::new(memory)).await?;
    engine.register("d".parse()?, Arc::new(DirRegion::open_root(&root)?)).await?;
    let request = |target: &str, limits: Limits| -> Result<CopyRequest, Box<dyn Error>> {
        let options = CopyOptions::new()
            .with_chunk_size(ChunkSize::MIN)
            .with_verify(Verify::Full)
            .with_token(target)
            .with_attribute("os", "linux")
            .with_limits(limits);
        let source = Endpoint::new("m".parse()?, "a".parse()?);
        Ok(CopyRequest::new(source, Endpoint::new("d".parse()?, target.parse()?), options))
    };
    engine.copy(request("whole", Limits::NONE)?).await?.wait().await;
    keep("manifest", &fs::read(root.join("whole/manifest"))?)?;
    let half = engine.copy(request("half", Limits::NONE.with_bytes_per_sec(300_000))?).await?;
    while half.progress().written_bytes < 100_000 {
        tokio::task::yield_now().await;
    }
    engine.limit(half.id(), Limits::NONE.with_bytes_per_sec(250_000)).await?;
    engine.suspend(half.id()).await?;
    for entry in fs::read_dir(root.join(".blockferry/stage"))? {
        let journal = fs::read(entry?.path().join("journal"))?;
        for at in [32 << 10, 36 << 10, 40 << 10] {
            keep("slot", &journal[at..at + 512])?;
        }
        let zeros = journal.iter().rev().take_while(|byte| **byte == 0).count();
        let log_end = (journal.len() - zeros).next_multiple_of(512);
        let header_len =
            (72 + u32::from_le_bytes(journal[8..12].try_into()?)).next_multiple_of(512);
        let log = &journal[48 << 10..log_end];
        keep("journal", &[&journal[..usize::try_from(header_len)?], log].concat())?;
    }
    for entry in fs::read_dir(state.join("jobs"))? {
        keep("job_record", &fs::read(entry?.path())?)?;
    }
    engine.shutdown(Shutdown::Suspend, Duration::from_secs(5)).await;
    Ok(())
}

fn keep(name: &str, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    fs::create_dir_all(&folder)?;
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    Ok(fs::write(folder.join(format!("seed-{hash:016x}")), bytes)?)
}
