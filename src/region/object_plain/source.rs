//! A plain object as a source: ranged reads, all of the one version that was opened.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::ByteRange;
use crate::id::KeyId;
use crate::job::Fingerprint;
use crate::manifest::Manifest;
use crate::plan::{Extent, ExtentKind};
use crate::region::{BoxFuture, LocalFile, Source};
use crate::store::{Meta, Store, Version};

#[derive(Debug)]
pub(super) struct PlainSource {
    store: Arc<dyn Store>,
    key: String,
    location: String,
    size_bytes: u64,
    version: Version,
}

impl PlainSource {
    pub(super) async fn open(store: Arc<dyn Store>, key: &str, location: &str) -> Result<Self> {
        let place = |error: Error| error.within(location.to_owned());
        let meta = store.head(key).await.map_err(place)?;
        let Meta { len, version, .. } =
            meta.ok_or_else(|| place(Error::new(ErrorKind::NotFound, "open an object")))?;
        let version = version.ok_or_else(|| {
            place(Error::new(ErrorKind::Unsupported, "read an object without a version"))
                .hint("the store gives it no ETag, so that a change could not be seen")
        })?;
        let (key, location) = (key.to_owned(), location.to_owned());
        Ok(Self { store, key, location, size_bytes: len, version })
    }
}

impl Source for PlainSource {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn fingerprint(&self) -> BoxFuture<'_, Result<Fingerprint>> {
        Box::pin(async move {
            let meta = self.store.head(&self.key).await?;
            let meta = meta.ok_or_else(|| {
                Error::new(ErrorKind::SourceChanged, "look at the source")
                    .within(self.location.clone())
                    .hint("it has been deleted")
            })?;
            let facts =
                Fingerprint::new().with("size", meta.len).with("modified", meta.modified_ms);
            let Some(Version { tag, id }) = meta.version else { return Ok(facts) };
            let facts =
                tag.iter().fold(facts, |facts, tag| facts.with("etag", tag.trim_matches('"')));
            Ok(id.into_iter().fold(facts, |facts, id| facts.with("version", id)))
        })
    }

    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>> {
        Box::pin(std::future::ready(Ok(vec![Extent { range, kind: ExtentKind::Data }])))
    }

    fn manifest(&self) -> Option<Arc<Manifest>> {
        None
    }

    fn key(&self) -> Option<KeyId> {
        None
    }

    fn read_at(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(self.store.get_range(&self.key, range, Some(&self.version)))
    }

    fn local(&self) -> Option<LocalFile> {
        None
    }
}
