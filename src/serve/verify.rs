//! Verifies an image where it lies, for a peer: no byte of it travels.

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, Geometry};
use crate::id::{ImageId, RegionName};
use crate::manifest::ChunkTable;
use crate::peer::Operation;
use crate::plan::ExtentKind;
use crate::region::peer::call::Verified;
use crate::region::{Source, blocking};
use crate::seal::{Seal, seal};
use crate::sync::time::{Duration, Instant};
use crate::throttle::ThrottlePath;

use super::push::pass;
use super::visitor::{Visitor, lease};

/// How long one call takes, or little more: the peer asks on from where it ended.
const CALL_TIME: Duration = Duration::from_secs(5);

/// Reads the image from that chunk on, for a while, and compares it with its manifest. What is read
/// counts for the peer's rate and window, as what it pulls does.
pub(super) async fn verify(
    visitor: &Visitor,
    region: &RegionName,
    image: &ImageId,
    first: u32,
) -> Result<Verified> {
    visitor.may(Operation::Pull, region, image)?;
    let source = visitor.house.region(region)?.open(image).await?;
    let manifest = source.manifest().ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "verify an image without manifest").within(source.location())
    })?;
    let (table, geometry) = (manifest.table(), manifest.geometry());
    let _room = lease(visitor, geometry.chunk_size())?;
    let rate = ThrottlePath::new([visitor.seat.throttle().clone()]);
    let end = Instant::now() + CALL_TIME;
    let mut verified = Verified {
        root: manifest.root(),
        geometry,
        next: first.min(geometry.chunk_count()),
        read_bytes: 0,
        bad: 0,
        first_bad: None,
    };
    while verified.next < geometry.chunk_count() {
        let index = ChunkIndex::new(verified.next);
        verified.next += 1;
        if !is_hole(&*source, table, index).await? {
            let range = geometry.range(index);
            pass(&rate, range.len).await;
            verified.read_bytes += range.len;
            if !is_as_told(&*source, geometry, table, index).await? {
                verified.bad += 1;
                verified.first_bad.get_or_insert(index.get());
            }
        }
        if Instant::now() >= end || visitor.closing.is_cancelled() {
            break;
        }
    }
    Ok(verified)
}

/// Whether the chunk holds only zeros by the manifest and by the region's own claim.
async fn is_hole(source: &dyn Source, table: &ChunkTable, index: ChunkIndex) -> Result<bool> {
    if table.digest(index).is_some() {
        return Ok(false);
    }
    let range = table.geometry().range(index);
    let extents = source.extents(range).await?;
    let zero = extents.iter().filter(|extent| extent.kind == ExtentKind::Zero);
    Ok(zero.map(|extent| extent.range.intersect(range).len).sum::<u64>() == range.len)
}

async fn is_as_told(
    source: &dyn Source,
    geometry: Geometry,
    table: &ChunkTable,
    index: ChunkIndex,
) -> Result<bool> {
    let bytes = source.read_at(geometry.range(index)).await?;
    let sealed = blocking(move || Ok(seal(geometry, index, bytes))).await?;
    let digest = match &sealed {
        Seal::Zero(_) => None,
        Seal::Data(sealed) => Some(sealed.digest()),
    };
    Ok(digest == table.digest(index))
}
