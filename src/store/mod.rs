//! An object store as this crate sees it: requests on keys, conditions, versions, what was proven.
//!
//! A [`Store`] is one prefix of one bucket. Regions of images are built on it and know nothing else
//! of S3. Each call here is *one* thing asked of the store; wrappers that implement the same trait
//! add what cuts across (retries, pace). Of GCS and Azure only what answers as S3 does can be used:
//! their own interfaces are not spoken.
//!
//! # The contract
//!
//! * **Keys** are relative to the store's prefix, and no other key is ever named to the server. A
//!   key is `/`-separated, each part one to 255 of `A-Z a-z 0-9 . _ - + = @ , :` and space, no part
//!   `.` or `..`, at most 800 bytes in all: see [`check_key`]. Objects with other keys, which
//!   nobody here made, are not listed.
//! * **What an answer says is so.** `Done` is durable at the store. A refused condition left the
//!   object as it was. An error of an unconditional call says nothing about whether it was carried
//!   out: all of them may simply be made again.
//! * **A condition that got no clear answer is told apart**, as [`Put::Unknown`]: the bytes may be
//!   there, may land later, or never. Read the object back to know.
//! * **Writes are seen** by reads and listings that begin later, if [`Proven`] says so.
//! * **Nothing grows without bound**: what is read has a limit given by the caller, a page of a
//!   listing has at most [`PAGE_ENTRIES_MAX`] entries.

mod checksum;
#[cfg(feature = "testing")]
pub mod model;
mod probe;
mod s3;
mod steady;
mod trouble;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::ByteRange;
use crate::sabotage;

pub(crate) use checksum::checksum_of;

pub use probe::{Depth, Fencing, PROBE_FOLDER, Proven, prove};
pub use s3::{Credentials, S3Options, S3Store};
pub use steady::{Counts, Steady, SteadyOptions};
pub use trouble::{Class, Trouble};

/// A boxed future, as every method of a store returns one.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The most entries on one page of a listing.
pub const PAGE_ENTRIES_MAX: usize = 1000;
/// The most parts of one multipart upload, and the highest number of one.
pub const PART_COUNT_MAX: u32 = 10_000;
/// The least bytes of every part but the last.
pub const PART_BYTES_MIN: u64 = 5 << 20;
/// The longest key, in bytes, below the store's prefix.
pub const KEY_BYTES_MAX: usize = 800;
/// The most keys that one [`Store::delete`] takes.
pub const DELETE_KEYS_MAX: usize = 1000;

/// One prefix of one bucket of an object store.
pub trait Store: fmt::Debug + Send + Sync {
    /// Where it is, for messages: a URL without a trailing slash, without secrets.
    fn location(&self) -> String;

    /// Where that key is within the whole service: what [`Store::copy`] of another store takes.
    fn address(&self, key: &str) -> Address;

    /// Another prefix of the same bucket, or all of it: what it asks is of no account here.
    fn beside(&self, prefix: &str) -> Arc<dyn Store>;

    /// Reads an object whole, with its version; `None` where there is none.
    ///
    /// # Errors
    /// [`Corrupt`](ErrorKind::Corrupt) when it is longer than `len_max` bytes, of which nothing is
    /// then read; otherwise the store's own failure.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    fn get<'a>(&'a self, key: &'a str, len_max: u64) -> BoxFuture<'a, Result<Option<Object>>>;

    /// Length and version of an object; `None` where there is none.
    ///
    /// # Errors
    /// The store's own failure.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Meta>>>;

    /// Reads exactly that range of an object; of that very version of it, if one is given.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) where there is none; [`SourceChanged`] when it is not that
    /// version any more, or shorter; otherwise the store's own failure.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    ///
    /// [`SourceChanged`]: ErrorKind::SourceChanged
    fn get_range<'a>(
        &'a self,
        key: &'a str,
        range: ByteRange,
        pinned: Option<&'a Version>,
    ) -> BoxFuture<'a, Result<Bytes>>;

    /// Writes an object whole, if the condition holds.
    ///
    /// Without a condition it may be sent more than once, and an earlier sending may land after a
    /// later one: for keys that are written once, or always with the same bytes, or where that
    /// does not matter.
    ///
    /// # Errors
    /// The store's own failure, by which the object was not written, unless the condition is
    /// [`Condition::Any`]: then it may have been. `Unsupported` when the store gives no version to
    /// a conditional write.
    ///
    /// # Durability
    /// What is `Done` is durable.
    ///
    /// # Cancel safety
    /// Restartable: it may be written, and may still land later.
    fn put<'a>(
        &'a self,
        key: &'a str,
        bytes: Bytes,
        when: &'a Condition,
    ) -> BoxFuture<'a, Result<Put>>;

    /// Deletes objects, at most [`DELETE_KEYS_MAX`]; those that are not there are no error.
    ///
    /// # Errors
    /// The store's own failure for the call or for any one key: some may be gone.
    ///
    /// # Cancel safety
    /// Restartable: some may be gone.
    fn delete<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<()>>;

    /// A page of the objects whose keys begin with `prefix`, in the order of their bytes, behind
    /// the key `after`, at most `limit` of them and at most [`PAGE_ENTRIES_MAX`].
    ///
    /// `prefix` is empty, or any start of a key.
    ///
    /// # Errors
    /// The store's own failure.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page>>;

    /// The names of all folders right below `folder` (empty, or ending in `/`), sorted: the first
    /// part of every longer key there, without slashes. Objects below them are not walked.
    ///
    /// # Errors
    /// [`Unsupported`] when there are over a million; otherwise the store's own failure.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    ///
    /// [`Unsupported`]: ErrorKind::Unsupported
    fn folders<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<String>>>;

    /// Copies an object within the service, over what is at `to`.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) where there is no source; [`Unsupported`] when it is not
    /// of this service and bucket, or too large for the store's one-request copy (5 GiB at S3);
    /// otherwise the store's own failure.
    ///
    /// # Cancel safety
    /// Restartable: it may be copied, and may still land later.
    ///
    /// [`Unsupported`]: ErrorKind::Unsupported
    fn copy<'a>(&'a self, from: &'a Address, to: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Begins a multipart upload, or tells that it may have begun two. The object will bear
    /// `label`, of letters and digits, which [`Store::head`] tells.
    ///
    /// # Errors
    /// The store's own failure: an upload that nobody knows of may have begun.
    ///
    /// # Cancel safety
    /// Lossy: an upload may have begun whose id is lost; [`Store::uploads`] finds it.
    fn upload_begin<'a>(&'a self, key: &'a str, label: &'a str) -> BoxFuture<'a, Result<Begun>>;

    /// Uploads part `number`, from 1 to [`PART_COUNT_MAX`], over an earlier one of that number.
    /// Every part but the last has at least [`PART_BYTES_MIN`] bytes.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is no such upload (any more); otherwise the
    /// store's own failure.
    ///
    /// # Cancel safety
    /// Restartable: the part may be there, and may still land later.
    fn upload_part<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
        number: u32,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<Part>>;

    /// Makes the object out of those parts, in order, if the condition holds.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is no such upload (any more), which also is so
    /// after it was completed; otherwise as [`Store::put`].
    ///
    /// # Durability
    /// What is `Done` is durable.
    ///
    /// # Cancel safety
    /// Restartable: it may be complete; then the same call answers `NotFound`.
    fn upload_complete<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
        parts: &'a [Part],
        when: &'a Condition,
    ) -> BoxFuture<'a, Result<Put>>;

    /// Asks the store to drop an upload and its parts; one that is not there is no error.
    ///
    /// A part on its way may outlive it: see [`abort_until_gone`].
    ///
    /// # Errors
    /// The store's own failure.
    ///
    /// # Cancel safety
    /// Restartable.
    fn upload_abort<'a>(&'a self, key: &'a str, upload: &'a UploadId) -> BoxFuture<'a, Result<()>>;

    /// Every unfinished upload whose key begins with `prefix`.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) where the store cannot list them; otherwise the
    /// store's own failure.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    fn uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Upload>>>;

    /// The parts that the store holds of an upload, by number; `None` when it knows no such upload.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) where the store cannot list them; otherwise the
    /// store's own failure.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    fn parts<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
    ) -> BoxFuture<'a, Result<Option<Vec<Part>>>>;

    /// Whether the store has answered a checksum of what it got with the same one: from then on it
    /// must, or a write is taken as failed.
    fn has_checksums(&self) -> bool;

    /// Waits until no request is under way any more that this handle has begun: also those of
    /// calls that were dropped, or answered by another request that was faster. To be called before
    /// a listing has to show everything that this handle wrote.
    ///
    /// A request that was given up without an answer may still land later: nobody can wait for it.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    fn settle(&self) -> BoxFuture<'_, ()>;
}

/// Which state of an object: opaque, compared whole.
///
/// What a store calls ETag, and its version or generation where it has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// The ETag, as the store wrote it, quotes included.
    pub(crate) tag: Option<String>,
    /// The version or generation.
    pub(crate) id: Option<String>,
}

impl Version {
    /// The version with that ETag, as the store wrote it, and that version number.
    ///
    /// `None` when it has neither.
    pub fn new(tag: Option<String>, id: Option<String>) -> Option<Self> {
        (tag.is_some() || id.is_some()).then_some(Self { tag, id })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tag = self.tag.as_deref().unwrap_or("-").trim_matches('"');
        match &self.id {
            None => f.write_str(tag),
            Some(id) => write!(f, "{tag}@{id}"),
        }
    }
}

/// An object that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// All of its bytes.
    pub bytes: Bytes,
    /// Its version; `None` where the store tells none.
    pub version: Option<Version>,
}

/// What a store tells of an object without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Length in bytes.
    pub len: u64,
    /// Its version; `None` where the store tells none.
    pub version: Option<Version>,
    /// When it was written, by the store's own clock: milliseconds since 1970.
    pub modified_ms: u64,
    /// What [`Store::upload_begin`] was told to write beside it; never known from a listing.
    pub label: Option<String>,
}

/// When a write is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    Any,
    /// While there is no such object.
    Absent,
    /// While the object has that version.
    Match(Version),
}

/// What came of a write.
#[derive(Debug)]
pub enum Put {
    /// It is there; with its version, which is known unless the condition was [`Condition::Any`].
    Done(Option<Version>),
    /// The condition did not hold: nothing was written.
    Refused,
    /// A conditional write without a clear answer: it may be carried out, now or later, or never.
    /// Read the object back; while it is unchanged, the same write may be sent again.
    Unknown(Error),
}

/// Some objects of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The objects, in the order of their keys.
    pub entries: Vec<Entry>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key, below the store's prefix.
    pub key: String,
    /// What the store tells of it.
    pub meta: Meta,
}

/// The name that the store gave to a multipart upload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId(pub String);

/// An upload that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Begun {
    /// Its name.
    pub id: UploadId,
    /// Whether it was asked for again after a request that got no clear answer: that one may have
    /// begun another, whose name nobody knows.
    pub may_be_two: bool,
}

impl Begun {
    /// One that was asked for once.
    pub fn new(id: UploadId) -> Self {
        Self { id, may_be_two: false }
    }
}

/// An unfinished upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// The key it is for, below the store's prefix.
    pub key: String,
    /// Its name.
    pub id: UploadId,
    /// When it began, by the store's own clock: milliseconds since 1970; 0 where it is not told.
    pub begun_ms: u64,
}

/// A part of an upload that the store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 1.
    pub number: u32,
    /// Length in bytes.
    pub len: u64,
    /// What the store calls it.
    pub tag: String,
    /// The checksum that the store vouches for, in its own writing, where it has one.
    pub checksum: Option<String>,
}

/// Where an object is within a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Service, account and bucket: what must be the same for the store to copy by itself.
    pub bucket: String,
    /// The whole key, with every prefix.
    pub key: String,
}

/// Checks a key: see the [contract](self#the-contract).
///
/// # Errors
/// [`ErrorKind::Invalid`] unless it is one.
pub fn check_key(key: &str) -> Result<()> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+=@,: ".contains(&byte);
    let part = |part: &str| {
        (1..=255).contains(&part.len()) && !matches!(part, "." | "..") && part.bytes().all(known)
    };
    if key.len() <= KEY_BYTES_MAX && key.split('/').all(part) {
        return Ok(());
    }
    let shown: String = key.chars().take(80).collect();
    Err(Error::new(ErrorKind::Invalid, format!("use {shown:?} as key of an object")))
}

/// Checks a start of keys: empty, a key, a key and a slash.
///
/// # Errors
/// [`ErrorKind::Invalid`] unless it is one.
pub fn check_prefix(prefix: &str) -> Result<()> {
    match prefix.strip_suffix('/').unwrap_or(prefix) {
        "" if prefix.is_empty() => Ok(()),
        key => check_key(key),
    }
}

/// How often [`abort_until_gone`] asks.
const ABORT_ATTEMPT_COUNT_MAX: u32 = 10;

/// Aborts an upload until the store says that it is gone: parts that were on their way when it was
/// aborted may keep it alive, and their bytes.
///
/// Where the store cannot list parts, one abort that it answered has to do.
///
/// # Errors
/// [`Unavailable`](ErrorKind::Unavailable) when it will not go; otherwise the store's own failure.
///
/// # Cancel safety
/// Restartable.
pub async fn abort_until_gone(store: &dyn Store, key: &str, upload: &UploadId) -> Result<()> {
    for _ in 0..ABORT_ATTEMPT_COUNT_MAX {
        store.upload_abort(key, upload).await?;
        if sabotage::is("M15") {
            return Ok(());
        }
        match store.parts(key, upload).await {
            Ok(None) => return Ok(()),
            Ok(Some(_)) => {}
            Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Err(Error::new(ErrorKind::Unavailable, "abort an upload: the store keeps it")
        .within(format!("{}/{key}", store.location())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_below_the_prefix() {
        for key in ["a", "images/m-1/head", "a/.b/c..d", "x=1/y@2,z: +_-"] {
            check_key(key).unwrap();
            check_prefix(&format!("{key}/")).unwrap();
        }
        let long = "k".repeat(256);
        let deep = "k/".repeat(401);
        let bad =
            ["", "/", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\0", "a\n", "a?b", "\u{e9}"];
        for key in bad.iter().copied().chain([long.as_str(), deep.trim_end_matches('/')]) {
            assert_eq!(check_key(key).unwrap_err().kind(), ErrorKind::Invalid, "{key:?}");
        }
        check_prefix("").unwrap();
        assert!(check_prefix("/").is_err() && check_prefix("a//").is_err());
    }

    #[test]
    fn a_version_is_shown_without_quotes() {
        let version = |tag: Option<&str>, id: Option<&str>| {
            Version::new(tag.map(str::to_owned), id.map(str::to_owned))
        };
        assert_eq!(version(Some("\"a-2\""), None).unwrap().to_string(), "a-2");
        assert_eq!(version(Some("a"), Some("7")).unwrap().to_string(), "a@7");
        assert_eq!(version(None, None), None);
    }
}
