//! Chunks that the source holds in another region of the bucket: the store copies them by itself.
//!
//! The objects are the same on both sides: sealed, immutable, and named by index and digest.
//! Nothing of them is read here, so that what proves them is the digest that the source vouches
//! for, as where extents are shared; whoever reads them checks it.

use std::sync::Arc;

use crate::chunk::Written;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun};
use crate::id::{ImageId, JobId};
use crate::location::BucketAddress;
use crate::manifest::TableBuilder;
use crate::region::base::in_common;
use crate::region::{Base, BoxFuture};
use crate::store::{Address, Store};

use super::image::{Epochs, Image};
use super::names;
use super::register::Register;
use super::rules::Phase;
use super::stage::Stage;
use super::sweep::made;

/// The source of a stage's job, beside it in the bucket.
#[derive(Debug)]
struct Alike {
    stage: Arc<Stage>,
    store: Arc<dyn Store>,
    image: ImageId,
    job: JobId,
    epochs: Epochs,
    table: TableBuilder,
}

/// The source of the job, if its region and this one are told by their names to be prefixes of one
/// bucket, and it is cut as the new image is.
///
/// Why it is not, or cannot be read, does not matter here: then its bytes go through us.
pub(super) async fn find(stage: &Arc<Stage>) -> Option<Arc<dyn Base>> {
    let address = |name: &str| BucketAddress::parse(name).ok().filter(|address| !address.plain);
    let spec = &stage.spec;
    // What is encrypted has a key of its own, and shares no chunk with anything.
    if spec.key.is_some() {
        return None;
    }
    let from = address(spec.source.region.as_str())?;
    let to = address(spec.target.region.as_str())?;
    let ours = stage.shared.store.address("").key;
    if !from.shares_bucket(&to) || ours.trim_end_matches('/') != to.key {
        return None;
    }
    let (store, image) = (stage.shared.store.beside(&from.key), spec.source.image.clone());
    let held = Register::new(store.clone(), None).read(&image).await.ok()?;
    let sight = *held.sight().filter(|sight| sight.phase == Phase::Committed)?;
    let Image::Plain { epochs, manifest } = made(&*store, &held).await.ok()? else { return None };
    let table = in_common(manifest.table(), spec.geometry).ok()?;
    let stage = stage.clone();
    Some(Arc::new(Alike { stage, store, image, job: sight.job, epochs, table }))
}

impl Alike {
    async fn copy(&self, run: ChunkRun) -> Result<Vec<Written>> {
        let Some(attempt) = self.stage.attempt()? else { return Ok(Vec::new()) };
        let chunks = run.iter().filter_map(|index| {
            let digest = self.table.digest(index).flatten()?;
            let from = names::attempt(&self.image, self.job, self.epochs.of(index)?);
            let from = self.store.address(&names::chunk(&from, index, &digest));
            Some((index, digest, from, names::chunk(&attempt.prefix, index, &digest)))
        });
        let copied = self.stage.shared.each(chunks.collect(), |shared, chunk| async move {
            let (index, digest, from, to): (ChunkIndex, _, Address, String) = chunk;
            match shared.store.copy(&from, &to).await {
                Ok(()) => Ok(Some((index, digest))),
                // Gone meanwhile, or a store that does not copy: whoever reads it will tell.
                Err(error) if is_elsewhere(&error) => Ok(None),
                Err(error) => Err(error.within(format!("{}/{to}", shared.location()))),
            }
        });
        let mut copied: Vec<_> = copied.await?.into_iter().flatten().collect();
        copied.sort_by_key(|(index, _)| *index);
        let written = copied.into_iter().map(|(index, digest)| {
            self.stage.set(index, attempt.epoch, None);
            let len = self.stage.spec.geometry.range(index).len;
            Written::data(index, digest, u32::try_from(len).unwrap_or(u32::MAX))
        });
        Ok(written.collect())
    }
}

fn is_elsewhere(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::Denied)
}

impl Base for Alike {
    fn table(&self) -> &TableBuilder {
        &self.table
    }

    fn take(&self, run: ChunkRun, _share: bool) -> BoxFuture<'_, Result<Vec<Written>>> {
        Box::pin(self.copy(run))
    }
}
