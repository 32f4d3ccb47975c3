//! Every call of a store, as S3 answers it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;

use crate::error::Result;
use crate::geometry::ByteRange;
use crate::store::{
    Address, Begun, BoxFuture, Condition, Meta, Object, Page, Part, Put, Store, Upload, UploadId,
    Version,
};

use super::{S3Store, folder};

impl Store for S3Store {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn address(&self, key: &str) -> Address {
        Address { bucket: self.bucket.clone(), key: format!("{}{key}", self.prefix) }
    }

    fn beside(&self, prefix: &str) -> Arc<dyn Store> {
        let place = format!("s3://{}/{prefix}", self.bucket_name);
        Arc::new(Self {
            client: self.client.clone(),
            bucket: self.bucket.clone(),
            bucket_name: self.bucket_name.clone(),
            prefix: folder(prefix),
            location: place.trim_end_matches('/').to_owned(),
            wants_bare_tags: AtomicBool::new(self.wants_bare_tags.load(Relaxed)),
        })
    }

    fn get<'a>(&'a self, key: &'a str, len_max: u64) -> BoxFuture<'a, Result<Option<Object>>> {
        Box::pin(self.get(key, len_max))
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Meta>>> {
        Box::pin(self.head(key))
    }

    fn get_range<'a>(
        &'a self,
        key: &'a str,
        range: ByteRange,
        pinned: Option<&'a Version>,
    ) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(self.get_range(key, range, pinned))
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        bytes: Bytes,
        when: &'a Condition,
    ) -> BoxFuture<'a, Result<Put>> {
        Box::pin(self.put(key, bytes, when))
    }

    fn delete<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.delete(keys))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.list(prefix, after, limit))
    }

    fn folders<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        Box::pin(self.folders(folder))
    }

    fn copy<'a>(&'a self, from: &'a Address, to: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.copy(from, to))
    }

    fn upload_begin<'a>(&'a self, key: &'a str, label: &'a str) -> BoxFuture<'a, Result<Begun>> {
        Box::pin(self.begin(key, label))
    }

    fn upload_part<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
        number: u32,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<Part>> {
        Box::pin(self.part(key, upload, number, bytes))
    }

    fn upload_complete<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
        parts: &'a [Part],
        when: &'a Condition,
    ) -> BoxFuture<'a, Result<Put>> {
        Box::pin(self.complete(key, upload, parts, when))
    }

    fn upload_abort<'a>(&'a self, key: &'a str, upload: &'a UploadId) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.abort(key, upload))
    }

    fn uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Upload>>> {
        Box::pin(self.unfinished(prefix))
    }

    fn parts<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
    ) -> BoxFuture<'a, Result<Option<Vec<Part>>>> {
        Box::pin(self.held(key, upload))
    }

    fn has_checksums(&self) -> bool {
        self.client.vouches.load(Relaxed)
    }

    fn settle(&self) -> BoxFuture<'_, ()> {
        // A request here ends with the call that makes it.
        Box::pin(std::future::ready(()))
    }
}
