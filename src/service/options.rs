//! What a daemon gives the service: regions with their ceilings, where its database lives.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::id::{KeyId, RegionName};
use crate::region::Region;

/// A region that the service may use.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServiceRegion {
    /// The place.
    pub region: Arc<dyn Region>,
    /// Copies to it that run at once; the others wait.
    pub copies_max: usize,
    /// Copies to it that may wait.
    pub queue_max: usize,
    /// Images that one project may have in it.
    pub images_max: usize,
    /// Keys that images can be encrypted under there. The first is meant where a caller asks for
    /// encryption and names no key.
    pub keys: Vec<KeyId>,
}

impl ServiceRegion {
    /// With five copies at once, 1,000 waiting, 10,000 images for each project, and no keys.
    pub fn new(region: Arc<dyn Region>) -> Self {
        Self { region, copies_max: 5, queue_max: 1000, images_max: 10_000, keys: Vec::new() }
    }

    /// With that many copies at once; at least one.
    #[must_use]
    pub fn with_copies_max(mut self, copies: usize) -> Self {
        self.copies_max = copies.max(1);
        self
    }

    /// With that many copies waiting; at least one.
    #[must_use]
    pub fn with_queue_max(mut self, copies: usize) -> Self {
        self.queue_max = copies.max(1);
        self
    }

    /// With that many images for each project.
    #[must_use]
    pub fn with_images_max(mut self, images: usize) -> Self {
        self.images_max = images;
        self
    }

    /// With those keys to encrypt under, which the region's own provider holds.
    #[must_use]
    pub fn with_keys(mut self, keys: impl IntoIterator<Item = KeyId>) -> Self {
        self.keys = keys.into_iter().collect();
        self
    }
}

/// What a daemon gives the service.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServiceOptions {
    /// Where the database lives; the engine's state folder will do. It must exist.
    pub state_dir: PathBuf,
    /// The regions by name.
    pub regions: BTreeMap<RegionName, ServiceRegion>,
    /// How long ended copies, and the tokens that started them, are remembered.
    pub keep_ended: Duration,
}

impl ServiceOptions {
    /// Without a region; ended copies are remembered for 30 days.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        let keep_ended = Duration::from_secs(30 * 24 * 3600);
        Self { state_dir: state_dir.into(), regions: BTreeMap::new(), keep_ended }
    }

    /// With one more region.
    #[must_use]
    pub fn with_region(mut self, name: RegionName, region: ServiceRegion) -> Self {
        self.regions.insert(name, region);
        self
    }

    /// With ended copies remembered that long; never less than a day, for the sake of tokens.
    #[must_use]
    pub fn with_keep_ended(mut self, keep: Duration) -> Self {
        self.keep_ended = keep.max(Duration::from_secs(24 * 3600));
        self
    }
}
