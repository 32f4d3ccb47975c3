//! S3 and its kin: each call of a store as one signed request, or as few as the protocol allows.
//!
//! Requests are signed, and credentials found, by `object_store`. Its own client is not used: it
//! hides what has to be seen here (status, code and request id, checksums that come back, whether a
//! condition was answered), reads replies of any length, and lists neither uploads nor parts.

mod calls;
mod connect;
mod credentials;
mod request;
mod times;
mod uploads;
mod xml;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method};
use md5::{Digest, Md5};

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, to_u64};
use crate::location::BucketAddress;
use crate::store::{
    Address, Condition, DELETE_KEYS_MAX, Entry, Meta, Object, PAGE_ENTRIES_MAX, Page, Put, Steady,
    SteadyOptions, Store, Trouble, Version, check_key, check_prefix,
};

use request::{Ask, Client, LIST_BYTES_MAX, Reply, text};
use xml::{DeleteResult, ListBucketResult};

pub use credentials::{Credentials, S3Options};

/// Where an object bears the label of its upload.
const LABEL: &str = "x-amz-meta-blockferry";
/// The most pages of a listing that is returned whole.
const PAGE_COUNT_MAX: usize = 1000;

/// One prefix of one bucket of an S3 server: single requests, without retries.
///
/// Wrap it in a [`Steady`](crate::store::Steady), as [`S3Store::open`] does.
pub struct S3Store {
    client: Arc<Client>,
    /// Service and bucket, as in an [`Address`].
    bucket: String,
    bucket_name: String,
    /// Empty, or ending in a slash.
    prefix: String,
    location: String,
    /// Whether the server wants the versions in conditions without quotes (old Ceph).
    wants_bare_tags: AtomicBool,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store").field("location", &self.location).finish_non_exhaustive()
    }
}

impl S3Store {
    /// The store at that address, for single requests. Nothing is asked of it yet.
    ///
    /// What the address leaves open is taken from the environment and the profile, as other tools
    /// do: see [`S3Options`].
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the settings contradict each other or a file with them cannot be
    /// read.
    pub fn new(address: &BucketAddress, options: &S3Options) -> Result<Self> {
        let client = Arc::new(options.open(address)?);
        let prefix = if address.plain { "" } else { address.key.as_str() };
        let location = address.to_string();
        Ok(Self {
            bucket: client.bucket_url.clone(),
            bucket_name: address.bucket.clone(),
            client,
            prefix: folder(prefix),
            location: location.split('?').next().unwrap_or_default().to_owned(),
            wants_bare_tags: AtomicBool::new(false),
        })
    }

    /// The store at that address, asked again as [`Steady`] does.
    ///
    /// # Errors
    /// As [`S3Store::new`].
    pub fn open(address: &BucketAddress, options: &S3Options) -> Result<Arc<dyn Store>> {
        let store: Arc<dyn Store> = Arc::new(Self::new(address, options)?);
        Ok(Arc::new(Steady::new(store, SteadyOptions::default())))
    }

    fn whole(&self, key: &str) -> Result<String> {
        check_key(key)?;
        Ok(format!("{}{key}", self.prefix))
    }

    fn whole_prefix(&self, prefix: &str) -> Result<String> {
        check_prefix(prefix)?;
        Ok(format!("{}{prefix}", self.prefix))
    }

    /// The key below the prefix, if it is one that somebody here could have made.
    fn below(&self, key: &str) -> Option<String> {
        let key = key.strip_prefix(&self.prefix)?;
        check_key(key).is_ok().then(|| key.to_owned())
    }

    async fn get(&self, key: &str, len_max: u64) -> Result<Option<Object>> {
        let whole = self.whole(key)?;
        let ask = Ask::new(Method::GET, "read an object", Some(&whole)).reply_bytes_max(len_max);
        match self.client.send(ask).await {
            Ok(Reply { headers, body }) => {
                Ok(Some(Object { bytes: body, version: version(&headers) }))
            }
            Err(failure) if failure.is_missing() => Ok(None),
            Err(failure) => Err(failure.error),
        }
    }

    async fn head(&self, key: &str) -> Result<Option<Meta>> {
        let whole = self.whole(key)?;
        let ask = Ask::new(Method::HEAD, "look at an object", Some(&whole));
        let headers = match self.client.send(ask.reply_bytes_max(u64::MAX)).await {
            Ok(Reply { headers, .. }) => headers,
            Err(failure) if failure.is_missing() => return Ok(None),
            Err(failure) => return Err(failure.error),
        };
        let len = text(&headers, "content-length").and_then(|len| len.parse().ok());
        let len = len.ok_or_else(|| self.odd("look at an object: no length", key))?;
        let modified = text(&headers, "last-modified").unwrap_or_default();
        let modified_ms = times::http_ms(modified).unwrap_or(0);
        let label = text(&headers, LABEL).map(str::to_owned);
        Ok(Some(Meta { len, version: version(&headers), modified_ms, label }))
    }

    async fn get_range(
        &self,
        key: &str,
        range: ByteRange,
        pinned: Option<&Version>,
    ) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let whole = self.whole(key)?;
        let span = format!("bytes={}-{}", range.offset, range.end() - 1);
        let mut ask = Ask::new(Method::GET, "read a part of an object", Some(&whole))
            .header("range", span)
            .reply_bytes_max(range.len);
        if let Some(tag) = pinned.and_then(|version| version.tag.as_ref()) {
            ask = ask.header("if-match", tag);
        }
        if let Some(id) = pinned.and_then(|version| version.id.as_ref()) {
            ask = ask.query("versionId", id);
        }
        let reply = match self.client.send(ask).await {
            // It was there when it was pinned.
            Err(failure) if pinned.is_some() && failure.is_missing() => {
                return Err(self.changed(key).because(failure.error));
            }
            other => other.map_err(|failure| failure.error)?,
        };
        // Some servers ignore conditions, and some ignore ranges.
        let tag = text(&reply.headers, "etag");
        if pinned.is_some_and(|pinned| pinned.tag.is_some() && pinned.tag.as_deref() != tag) {
            return Err(self.changed(key));
        }
        match text(&reply.headers, "content-range").and_then(start_of) {
            Some(start) if start == range.offset && to_u64(reply.body.len()) == range.len => {
                Ok(reply.body)
            }
            Some(start) if start == range.offset => Err(self.changed(key)),
            _ => Err(self.odd("read a part of an object: it sent another", key)),
        }
    }

    fn changed(&self, key: &str) -> Error {
        Error::new(ErrorKind::SourceChanged, "read the object that was opened")
            .within(format!("{}/{key}", self.location))
    }

    fn odd(&self, what: &'static str, key: &str) -> Error {
        Error::new(ErrorKind::Io, what).within(format!("{}/{key}", self.location))
    }

    async fn put(&self, key: &str, bytes: Bytes, when: &Condition) -> Result<Put> {
        let whole = self.whole(key)?;
        let ask = Ask::new(Method::PUT, "write an object", Some(&whole)).body(bytes);
        match self.conditionally(ask, when, key).await? {
            Ok(reply) => {
                let version = version(&reply.headers);
                if version.is_none() && *when != Condition::Any {
                    return Err(Error::new(ErrorKind::Unsupported, "write under a condition")
                        .within(format!("{}/{key}", self.location))
                        .hint("the store gives no ETag to what was written"));
                }
                Ok(Put::Done(version))
            }
            Err(put) => Ok(put),
        }
    }

    /// Sends a write under a condition: its reply, or what has come of it instead.
    async fn conditionally(
        &self,
        ask: Ask<'_>,
        when: &Condition,
        key: &str,
    ) -> Result<std::result::Result<Reply, Put>> {
        let bare = self.wants_bare_tags.load(Relaxed);
        let failure = match self.client.send(conditional(ask.clone(), when, bare)?).await {
            Ok(reply) => return Ok(Ok(reply)),
            Err(failure) => failure,
        };
        let is_conditional = *when != Condition::Any;
        // A swap of what is not there is answered as not found by some.
        let missing = matches!(when, Condition::Match(_)) && failure.code() == "NoSuchKey";
        if is_conditional && (failure.status == Some(412) || missing) {
            return match when {
                Condition::Match(version) if !missing => {
                    self.otherwise_quoted(ask, when, version, key).await
                }
                _ => Ok(Err(Put::Refused)),
            };
        }
        if is_conditional && failure.is_unclear {
            return Ok(Err(Put::Unknown(failure.error)));
        }
        Err(failure.error)
    }

    /// A refusal may be about the quotes of the version only: then it is the one that is there.
    async fn otherwise_quoted(
        &self,
        ask: Ask<'_>,
        when: &Condition,
        version: &Version,
        key: &str,
    ) -> Result<std::result::Result<Reply, Put>> {
        let there = self.head(key).await;
        if !there.is_ok_and(|meta| meta.is_some_and(|meta| meta.version.as_ref() == Some(version)))
        {
            return Ok(Err(Put::Refused));
        }
        let bare = !self.wants_bare_tags.load(Relaxed);
        match self.client.send(conditional(ask, when, bare)?).await {
            Ok(reply) => {
                self.wants_bare_tags.store(bare, Relaxed);
                Ok(Ok(reply))
            }
            Err(failure) if failure.is_unclear => Ok(Err(Put::Unknown(failure.error))),
            Err(_) => Ok(Err(Put::Refused)),
        }
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        let whole = keys.iter().map(|key| self.whole(key)).collect::<Result<Vec<_>>>()?;
        if let [key] = whole.as_slice() {
            return self.delete_one(key).await;
        }
        if whole.is_empty() {
            return Ok(());
        }
        if whole.len() > DELETE_KEYS_MAX {
            return Err(Error::new(ErrorKind::Invalid, "delete more than 1000 objects at once"));
        }
        let body = xml::delete(&whole);
        let sum = BASE64_STANDARD.encode(Md5::digest(body.as_bytes()));
        let ask = Ask::new(Method::POST, "delete objects", None)
            .query("delete", "")
            .header("content-md5", sum)
            .header("content-type", "application/xml")
            .text(body)
            .reply_bytes_max(LIST_BYTES_MAX);
        let reply = match self.client.send(ask).await {
            Ok(reply) => reply,
            Err(failure) if failure.error.kind() == ErrorKind::Unsupported => {
                for key in &whole {
                    self.delete_one(key).await?;
                }
                return Ok(());
            }
            Err(failure) => return Err(failure.error),
        };
        let result: DeleteResult = self.parse("DeleteResult", &reply.body)?;
        let failed = result.error.into_iter().find(|error| error.code != "NoSuchKey");
        failed.map_or(Ok(()), |error| {
            let trouble = Trouble {
                class: Trouble::class_of(200, &error.code),
                status: 200,
                code: error.code,
                message: error.message,
                request_id: text(&reply.headers, "x-amz-request-id").map(str::to_owned),
                retry_after: None,
            };
            let key = self.below(&error.key).unwrap_or_default();
            Err(trouble.error("delete an object", format!("{}/{key}", self.location)))
        })
    }

    async fn delete_one(&self, whole: &str) -> Result<()> {
        let ask = Ask::new(Method::DELETE, "delete an object", Some(whole));
        match self.client.send(ask).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.is_missing() => Ok(()),
            Err(failure) => Err(failure.error),
        }
    }

    async fn list_page(
        &self,
        prefix: &str,
        words: Vec<(&'static str, String)>,
    ) -> Result<ListBucketResult> {
        let mut ask = Ask::new(Method::GET, "list objects", None)
            .query("list-type", "2")
            .query("encoding-type", "url")
            .query("prefix", prefix)
            .reply_bytes_max(LIST_BYTES_MAX);
        for (name, value) in words {
            ask = ask.query(name, value);
        }
        let reply = self.client.ask(ask).await?;
        self.parse("ListBucketResult", &reply.body)
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, root: &str, body: &[u8]) -> Result<T> {
        xml::parse(root, body).map_err(|error| error.within(self.location.clone()))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page> {
        let whole = self.whole_prefix(prefix)?;
        let mut after = after.map(|after| self.whole(after)).transpose()?;
        let limit = limit.clamp(1, PAGE_ENTRIES_MAX);
        let mut passed = after.clone();
        loop {
            let mut words = vec![("max-keys", limit.to_string())];
            words.extend(after.take().map(|after| ("start-after", after)));
            let listed = self.list_page(&whole, words).await?;
            let coding = listed.encoding_type.as_deref();
            let (mut entries, mut last) = (Vec::new(), None);
            // Some servers send more than was asked for: the rest comes with the next page.
            let is_over = listed.contents.len() > limit;
            for content in listed.contents.iter().take(limit) {
                let Some(key) = xml::listed(&content.key, coding) else { continue };
                // What was not asked for is nobody's here: whoever lists may be about to delete.
                if !key.starts_with(&whole) || passed.as_ref().is_some_and(|passed| key <= *passed)
                {
                    continue;
                }
                let version = Version::new(content.e_tag.clone(), None);
                let modified_ms = times::iso_ms(&content.last_modified).unwrap_or(0);
                if let Some(key) = self.below(&key) {
                    let meta = Meta { len: content.size, version, modified_ms, label: None };
                    entries.push(Entry { key, meta });
                }
                last = Some(key);
            }
            let more = listed.is_truncated || is_over;
            if !more || !entries.is_empty() {
                return Ok(Page { entries, more });
            }
            // A page of strangers only: behind it there may be some of ours. Each page begins
            // behind the one before, so that a server that goes in circles comes to an end.
            let Some(last) = last else { return Err(self.endless("list objects")) };
            passed = Some(last.clone());
            after = Some(last);
        }
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let whole = self.whole_prefix(folder)?;
        let (mut names, mut token) = (Vec::new(), None::<String>);
        for _ in 0..PAGE_COUNT_MAX {
            // Some stores send more than a page unless they are told.
            let limit = PAGE_ENTRIES_MAX.to_string();
            let mut words = vec![("delimiter", "/".to_owned()), ("max-keys", limit)];
            words.extend(token.take().map(|token| ("continuation-token", token)));
            let listed = self.list_page(&whole, words).await?;
            // A million names at most, then: a page has no more of them than of objects.
            if listed.common_prefixes.len() > PAGE_ENTRIES_MAX {
                return Err(self.endless("list folders"));
            }
            for common in &listed.common_prefixes {
                let prefix = xml::listed(&common.prefix, listed.encoding_type.as_deref());
                let name = prefix.as_deref().and_then(|prefix| prefix.strip_prefix(&whole));
                let name = name.and_then(|name| name.strip_suffix('/'));
                names.extend(name.filter(|name| check_key(name).is_ok()).map(str::to_owned));
            }
            match listed.next_continuation_token.filter(|_| listed.is_truncated) {
                Some(next) => token = Some(next),
                None => {
                    names.sort_unstable();
                    names.dedup();
                    return Ok(names);
                }
            }
        }
        Err(self.endless("list folders"))
    }

    fn endless(&self, action: &str) -> Error {
        Error::new(ErrorKind::Unsupported, format!("{action}: the store's pages have no end"))
            .within(self.location.clone())
    }

    async fn copy(&self, from: &Address, to: &str) -> Result<()> {
        if from.bucket != self.bucket {
            return Err(Error::new(ErrorKind::Unsupported, "copy from another store or bucket")
                .within(self.location.clone()));
        }
        let whole = self.whole(to)?;
        let source = request::encoded_path(&format!("{}/{}", self.bucket_name, from.key));
        let ask = Ask::new(Method::PUT, "copy an object", Some(&whole))
            .header("x-amz-copy-source", source);
        let reply = self.client.ask(ask).await?;
        self.parse::<xml::CopyObjectResult>("CopyObjectResult", &reply.body).map(drop)
    }
}

/// What keys below that prefix begin with.
fn folder(prefix: &str) -> String {
    if prefix.is_empty() { String::new() } else { format!("{prefix}/") }
}

/// The request with its condition. `bare`: the version without quotes.
fn conditional<'a>(ask: Ask<'a>, when: &Condition, bare: bool) -> Result<Ask<'a>> {
    match when {
        Condition::Any => Ok(ask),
        Condition::Absent => Ok(ask.header("if-none-match", "*")),
        Condition::Match(version) => {
            let tag = version.tag.as_deref().ok_or_else(|| {
                Error::new(ErrorKind::Invalid, "write over a version that has no ETag")
            })?;
            Ok(ask.header("if-match", if bare { tag.trim_matches('"') } else { tag }))
        }
    }
}

fn version(headers: &HeaderMap) -> Option<Version> {
    let owned = |name| text(headers, name).filter(|text| !text.is_empty()).map(str::to_owned);
    // What a bucket without versions calls one.
    let id = owned("x-amz-version-id").filter(|id| id != "null");
    Version::new(owned("etag"), id)
}

/// Where a reply to a ranged read begins: `bytes 0-9/100`.
fn start_of(content_range: &str) -> Option<u64> {
    content_range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}
