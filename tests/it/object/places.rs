//! Buckets in memory as places that hold images.

use std::sync::Arc;
use std::time::Duration;

use blockferry::error::Result;
use blockferry::geometry::{ByteRange, ChunkRun, ChunkSize, Geometry};
use blockferry::id::{ImageId, JobId};
use blockferry::job::{Endpoint, Fingerprint, JobSpec};
use blockferry::manifest::Manifest;
use blockferry::region::object::head::Head;
use blockferry::region::object::rules::Phase;
use blockferry::region::object::{ObjectOptions, ObjectRegion};
use blockferry::region::{Region, Target};
use blockferry::seal::{Seal, seal};
use blockferry::store::Fencing;
use blockferry::store::model::{Lie, Model, ModelStore};
use blockferry::testing::{Fixture, Place};
use bytes::Bytes;

/// Buckets of one kind.
pub(super) struct Bucket(pub(super) Fencing);

impl Fixture for Bucket {
    fn place(&self) -> Box<dyn Place> {
        Box::new(Cloud::new(self.0))
    }
}

/// One bucket, and how its heads are kept.
#[derive(Clone, Debug)]
pub(super) struct Cloud {
    pub(super) model: Model,
    pub(super) fencing: Fencing,
    /// Where the store fences nothing.
    pub(super) local: Arc<tempfile::TempDir>,
    /// Where every image is encrypted.
    #[cfg(feature = "encrypt")]
    pub(super) keys: Option<Arc<blockferry::keys::MemoryKeyring>>,
}

/// One daemon: its region, and the same as others see it.
pub(super) struct Daemon {
    pub(super) objects: Arc<ObjectRegion>,
    region: Arc<dyn Region>,
}

impl std::ops::Deref for Daemon {
    type Target = dyn Region;

    fn deref(&self) -> &Self::Target {
        &*self.region
    }
}

impl Cloud {
    pub(super) fn new(fencing: Fencing) -> Self {
        let model = Model::new();
        if fencing == Fencing::None {
            model.lie(Lie::Ignores);
        }
        Self {
            model,
            fencing,
            local: Arc::new(tempfile::tempdir().unwrap()),
            #[cfg(feature = "encrypt")]
            keys: None,
        }
    }

    /// One in which every image is encrypted under `k1`.
    #[cfg(feature = "encrypt")]
    pub(super) fn encrypted(fencing: Fencing) -> Self {
        Self { keys: Some(crate::encrypt::keys()), ..Self::new(fencing) }
    }

    /// As it is seen from within a bucket that others write to.
    #[cfg(feature = "encrypt")]
    pub(super) fn over(model: Model) -> Self {
        Self { model, ..Self::new(Fencing::Swap) }
    }

    /// A region with the keys of this cloud, if it has any.
    fn daemon_of(&self, region: ObjectRegion) -> Daemon {
        #[cfg(feature = "encrypt")]
        if let Some(keys) = &self.keys {
            let objects = Arc::new(region.with_keys(keys.clone()));
            let region = Arc::new(crate::encrypt::Keyed(objects.clone()));
            return Daemon { objects, region };
        }
        let objects = Arc::new(region);
        Daemon { region: objects.clone(), objects }
    }

    /// A daemon that knows nothing of the others but what the store says, and its requests.
    pub(super) fn daemon(&self) -> (ObjectRegion, ModelStore) {
        let store = self.model.client("north");
        let options = ObjectOptions::default();
        let region =
            ObjectRegion::as_another_process(Arc::new(store.clone()), self.fencing, options);
        (region.unwrap(), store)
    }

    /// The same, and what it stages is encrypted where all images are.
    pub(super) fn member(&self) -> (Daemon, ModelStore) {
        let (region, store) = self.daemon();
        (self.daemon_of(region), store)
    }

    /// What is here besides heads and what committed images are made of.
    pub(super) fn strays(&self) -> Vec<String> {
        let kept = |key: &String| {
            // Which way heads are kept.
            if key == "north/way" {
                return true;
            }
            let Some(name) = key.strip_prefix("north/images/") else { return false };
            let Some((image, name)) = name.split_once('/') else { return false };
            let visible = self.phase(image) == Some(Phase::Committed);
            let of_image = name.ends_with("/manifest") || name.contains('-');
            name.starts_with("head") || visible && of_image
        };
        let mut keys = self.model.keys();
        keys.retain(|key| !kept(key));
        keys
    }

    /// The last head of an image.
    pub(super) fn head(&self, image: &str) -> Option<Head> {
        let heads = format!("north/images/{image}/head");
        let last = self.model.keys().into_iter().rfind(|key| key.starts_with(&heads))?;
        Head::decode(&image.parse().unwrap(), &self.model.bytes(&last)?).ok()
    }

    pub(super) fn phase(&self, image: &str) -> Option<Phase> {
        self.head(image).map(|head| head.sight.phase)
    }
}

impl Place for Cloud {
    fn region(&self) -> Arc<dyn Region> {
        // Of this process: who owns what is known, as it is to a daemon that opens a region twice.
        let (store, options) = (Arc::new(self.model.client("north")), ObjectOptions::default());
        let region = match self.fencing {
            Fencing::None => ObjectRegion::unfenced(store, self.local.path(), options),
            fencing => ObjectRegion::with_fencing(store, fencing, options),
        };
        self.daemon_of(region.unwrap()).region
    }

    fn image(&self, number: u8) -> Option<ImageId> {
        format!("image-{number}").parse().ok()
    }

    fn put(&self, _image: &ImageId, _bytes: &[u8]) -> bool {
        false
    }

    fn leftovers(&self) -> Vec<String> {
        self.strays()
    }
}

pub(super) const CHUNK: u64 = 64 << 10;
const IMAGE_BYTES: u64 = 3 * CHUNK + 77;

pub(super) fn image() -> ImageId {
    "m-1".parse().unwrap()
}

/// Four chunks, the second of zeros, the first one that packs well.
pub(super) fn bytes() -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut bytes: Vec<u8> = (0..IMAGE_BYTES)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect();
    let chunk = usize::try_from(CHUNK).unwrap();
    bytes[..chunk].fill(7);
    bytes[chunk..2 * chunk].fill(0);
    bytes
}

/// Job `number`, which copies [`bytes`].
pub(super) fn spec(number: u8) -> JobSpec {
    JobSpec::new(
        JobId::from_bytes([number; 16]),
        Endpoint::new("memory://source".parse().unwrap(), "source".parse().unwrap()),
        Endpoint::new("s3://bucket/north".parse().unwrap(), image()),
        Geometry::new(IMAGE_BYTES, ChunkSize::MIN).unwrap(),
        Fingerprint::new().with("size", IMAGE_BYTES),
    )
}

/// Begins an attempt, writes what is missing, and tells what is to be committed.
pub(super) async fn write(target: &dyn Target, spec: &JobSpec) -> Result<Manifest> {
    let (geometry, bytes) = (spec.geometry, bytes());
    let mut restored = target.begin().await?;
    let mut done = Vec::new();
    for index in geometry.chunks().iter() {
        if restored.table.holds(index) {
            continue;
        }
        let range = geometry.range(index);
        let (from, to) = (usize::try_from(range.offset), usize::try_from(range.end()));
        let piece = Bytes::copy_from_slice(&bytes[from.unwrap()..to.unwrap()]);
        let written = match seal(geometry, index, piece) {
            Seal::Zero(index) => target.write_zeroes(ChunkRun::new(index, 1)).await?,
            Seal::Data(chunk) => target.write(chunk).await?,
        };
        done.push(blockferry::chunk::Durable::recorded(written.run(), written.content()));
    }
    target.sync().await?;
    target.checkpoint(&done).await?;
    done.iter().try_for_each(|chunk| restored.record(chunk))?;
    let table = restored.table.finish().unwrap();
    Manifest::new(table, Some(spec.job), spec.attributes.clone())
}

/// The bytes of the image, if it is there.
pub(super) async fn read(region: &dyn Region) -> Option<Vec<u8>> {
    let source = region.open(&image()).await.ok()?;
    let whole = ByteRange::new(0, source.size_bytes());
    Some(source.read_at(whole).await.unwrap().to_vec())
}

/// Long past every sign of life, and every grace.
pub(super) const LONG: Duration = Duration::from_secs(100_000);
