//! Jobs that no engine runs: they stage images in a region, one after the other.

use blockferry::geometry::Geometry;
use blockferry::id::JobId;
use blockferry::job::{Endpoint, Fingerprint, JobSpec};

/// Job `number`, which makes the image `image` of a region.
pub(crate) fn spec(number: u64, geometry: Geometry) -> JobSpec {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_le_bytes());
    let source = Endpoint::new("bench".parse().unwrap(), "source".parse().unwrap());
    let target = Endpoint::new("region".parse().unwrap(), "image".parse().unwrap());
    JobSpec::new(JobId::from_bytes(id), source, target, geometry, Fingerprint::new())
}
