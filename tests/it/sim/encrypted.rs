//! Encrypted images of the simulated host, read outside of it.

use std::sync::Arc;
use std::{fs, thread};

use blockferry::geometry::ByteRange;
use blockferry::keys::{DataKey, MemoryKeyring};
use blockferry::region::{DirRegion, Region};

use super::host::Visible;

/// The same in every process and in every life.
pub(crate) fn keys() -> Arc<MemoryKeyring> {
    let keys = MemoryKeyring::new();
    keys.insert(&"key".parse().unwrap(), DataKey::from_bytes([5; 32])).unwrap();
    Arc::new(keys)
}

/// What these files of an image are to somebody who has the key.
pub(crate) fn visible(name: &str, files: [Vec<u8>; 4]) -> Result<Visible, String> {
    let name = name.to_owned();
    // A thread of its own is on the real host.
    thread::spawn(move || {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join(&name)).unwrap();
        for (file, bytes) in ["data", "manifest", "records", "key"].iter().zip(files) {
            fs::write(temp.path().join(&name).join(file), bytes).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.unwrap();
        runtime.block_on(async {
            let dir = DirRegion::open_root(temp.path())?.with_keys(keys());
            let opened = dir.open(&name.parse()?).await?;
            let bytes = opened.read_at(ByteRange::new(0, opened.size_bytes())).await?.to_vec();
            let job = opened.manifest().and_then(|manifest| manifest.job());
            Ok(Visible { bytes, job })
        })
    })
    .join()
    .unwrap()
    .map_err(|error: blockferry::Error| format!("b: {}", error.report()))
}
