//! One client of the model: its prefix, its count of requests, and what happens to each of them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use tokio::task::yield_now;

use super::state::{Answer, Request};
use super::{Call, Fate, Hook, Model};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, to_u64};
use crate::store::{
    Address, Begun, BoxFuture, Condition, Meta, Object, Page, Part, Put, Store, Upload, UploadId,
    Version, check_key, check_prefix,
};

/// A client of a [`Model`]. Clones share the count and the hook.
#[derive(Clone)]
pub struct ModelStore {
    model: Model,
    /// Empty, or ending in a slash.
    prefix: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    request_count: AtomicU64,
    hook: RwLock<Option<Arc<Hook>>>,
}

impl fmt::Debug for ModelStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelStore").field("location", &self.location()).finish_non_exhaustive()
    }
}

/// Why there is no answer to take.
enum Silence {
    /// Nobody can say what came of it.
    Unknown(Error),
    /// It was not carried out.
    Failed(Error),
}

impl Silence {
    fn error(self) -> Error {
        match self {
            Self::Unknown(error) | Self::Failed(error) => error,
        }
    }
}

impl ModelStore {
    pub(super) fn new(model: Model, prefix: &str) -> Self {
        Self { model, prefix: folder(prefix), shared: Arc::default() }
    }

    /// The server behind it.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How many requests it has made.
    pub fn request_count(&self) -> u64 {
        self.shared.request_count.load(SeqCst)
    }

    /// Decides from now on what happens to its requests.
    pub fn hook(&self, hook: impl Fn(Call<'_>) -> Fate + Send + Sync + 'static) {
        let mut place = self.shared.hook.write().unwrap_or_else(PoisonError::into_inner);
        *place = Some(Arc::new(hook));
    }

    /// Request `number` (counted from 0) meets that fate; the others are answered.
    pub fn fate_at(&self, number: u64, fate: Fate) {
        self.hook(move |call| if call.number == number { fate } else { Fate::Answered });
    }

    /// Request `number` (counted from 0) and all behind it meet that fate.
    pub fn fate_from(&self, number: u64, fate: Fate) {
        self.hook(move |call| if call.number >= number { fate } else { Fate::Answered });
    }

    fn whole(&self, key: &str) -> Result<String> {
        check_key(key)?;
        Ok(format!("{}{key}", self.prefix))
    }

    fn whole_prefix(&self, prefix: &str) -> Result<String> {
        check_prefix(prefix)?;
        Ok(format!("{}{prefix}", self.prefix))
    }

    fn below(&self, key: &str) -> String {
        key.strip_prefix(&self.prefix).unwrap_or(key).to_owned()
    }

    fn fate(&self, request: &Request, key: &str) -> Fate {
        let number = self.shared.request_count.fetch_add(1, SeqCst);
        let hook = self.shared.hook.read().unwrap_or_else(PoisonError::into_inner).clone();
        let call = Call { number, verb: request.verb(), key };
        hook.map_or(Fate::Answered, |hook| hook(call))
    }

    /// Sends one request. `key` is what the hook is shown.
    async fn send(&self, request: Request, key: &str) -> std::result::Result<Answer, Silence> {
        let fate = self.fate(&request, key);
        yield_now().await;
        let error =
            |kind, what| Error::new(kind, what).within(format!("{}/{key}", self.location()));
        let unknown = || {
            let what = format!("{}: no answer", request.verb());
            Silence::Unknown(error(ErrorKind::Unavailable, what))
        };
        match fate {
            Fate::LostBefore => return Err(unknown()),
            Fate::Late => {
                self.model.delay(request.clone());
                return Err(unknown());
            }
            Fate::Fails => {
                let what = format!("{}: the store is busy", request.verb());
                return Err(Silence::Failed(error(ErrorKind::Unavailable, what)));
            }
            Fate::Denied => {
                let what = format!("{}: access denied", request.verb());
                return Err(Silence::Failed(error(ErrorKind::Denied, what)));
            }
            Fate::Hangs => return std::future::pending().await,
            Fate::Answered | Fate::LostAfter => {}
        }
        let answer = self.carry_out(&request).await;
        yield_now().await;
        match (fate, answer) {
            (Fate::LostAfter, _) => Err(unknown()),
            (_, Answer::Bad(why)) => {
                let what = format!("{}: the request {why}", request.verb());
                Err(Silence::Failed(error(ErrorKind::Invalid, what)))
            }
            (_, answer) => Ok(answer),
        }
    }

    async fn carry_out(&self, request: &Request) -> Answer {
        if !self.model.is_racy() {
            return self.model.lock().carry_out(request);
        }
        let refused = self.model.lock().refuses(request);
        for _ in 0..16 {
            yield_now().await;
        }
        if refused {
            return Answer::Refused;
        }
        self.model.lock().carry_out(&request.unconditional())
    }

    /// What came of a write with a condition, or without.
    fn put_of(
        &self,
        answer: std::result::Result<Answer, Silence>,
        when: &Condition,
        key: &str,
    ) -> Result<Put> {
        match answer {
            Ok(Answer::Written(version)) => Ok(Put::Done(Some(version))),
            Ok(Answer::Refused) => Ok(Put::Refused),
            Ok(other) => Err(self.astray(&other, key)),
            Err(Silence::Unknown(error)) if *when != Condition::Any => Ok(Put::Unknown(error)),
            Err(silence) => Err(silence.error()),
        }
    }

    fn astray(&self, answer: &Answer, key: &str) -> Error {
        let (kind, what) = match answer {
            Answer::Nothing => (ErrorKind::NotFound, "find it in the store"),
            Answer::Changed => (ErrorKind::SourceChanged, "read the object that was opened"),
            _ => (ErrorKind::Io, "understand the store"),
        };
        Error::new(kind, what).within(format!("{}/{key}", self.location()))
    }
}

/// Takes the one answer that fits, or makes an error of the others.
macro_rules! take {
    ($self:ident, $request:expr, $key:expr, $($answer:pat => $value:expr),+) => {{
        let key: &str = $key;
        match $self.send($request, key).await.map_err(Silence::error)? {
            $($answer => Ok($value),)+
            other => Err($self.astray(&other, key)),
        }
    }};
}

/// What keys below that prefix begin with.
fn folder(prefix: &str) -> String {
    if prefix.is_empty() { String::new() } else { format!("{prefix}/") }
}

impl Store for ModelStore {
    fn location(&self) -> String {
        format!("model://bucket/{}", self.prefix).trim_end_matches('/').to_owned()
    }

    fn address(&self, key: &str) -> Address {
        let bucket = format!("model-{:p}", Arc::as_ptr(&self.model.shared));
        Address { bucket, key: format!("{}{key}", self.prefix) }
    }

    fn beside(&self, prefix: &str) -> Arc<dyn Store> {
        Arc::new(Self { prefix: folder(prefix), ..self.clone() })
    }

    fn get<'a>(&'a self, key: &'a str, len_max: u64) -> BoxFuture<'a, Result<Option<Object>>> {
        Box::pin(async move {
            let request = Request::Get { key: self.whole(key)? };
            let found = take!(self, request, key,
                Answer::Object(bytes, meta) => Some(Object { bytes, version: meta.version }),
                Answer::Nothing => None)?;
            match found {
                Some(found) if to_u64(found.bytes.len()) > len_max => {
                    Err(Error::new(ErrorKind::Corrupt, "read an object: it is too long")
                        .within(format!("{}/{key}", self.location())))
                }
                found => Ok(found),
            }
        })
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Meta>>> {
        Box::pin(async move {
            let request = Request::Head { key: self.whole(key)? };
            take!(self, request, key, Answer::Meta(meta) => Some(meta), Answer::Nothing => None)
        })
    }

    fn get_range<'a>(
        &'a self,
        key: &'a str,
        range: ByteRange,
        pinned: Option<&'a Version>,
    ) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(async move {
            let key_whole = self.whole(key)?;
            let request = Request::Range { key: key_whole, range, pinned: pinned.cloned() };
            take!(self, request, key, Answer::Bytes(bytes) => bytes)
        })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        bytes: Bytes,
        when: &'a Condition,
    ) -> BoxFuture<'a, Result<Put>> {
        Box::pin(async move {
            let request = Request::Put { key: self.whole(key)?, bytes, when: when.clone() };
            self.put_of(self.send(request, key).await, when, key)
        })
    }

    fn delete<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let first = keys.first().map_or("", String::as_str);
            let keys = keys.iter().map(|key| self.whole(key)).collect::<Result<_>>()?;
            take!(self, Request::Delete { keys }, first, Answer::Done => ())
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            let after = after.map(|after| self.whole(after)).transpose()?;
            let request = Request::List { prefix: self.whole_prefix(prefix)?, after, limit };
            let mut page = take!(self, request, prefix, Answer::Page(page) => page)?;
            for entry in &mut page.entries {
                entry.key = self.below(&entry.key);
            }
            Ok(page)
        })
    }

    fn folders<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        Box::pin(async move {
            let request = Request::Folders { folder: self.whole_prefix(folder)? };
            take!(self, request, folder, Answer::Names(names) => names)
        })
    }

    fn copy<'a>(&'a self, from: &'a Address, to: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if from.bucket != self.address(to).bucket {
                return Err(Error::new(ErrorKind::Unsupported, "copy from another store")
                    .within(self.location()));
            }
            let request = Request::Copy { from: from.key.clone(), to: self.whole(to)? };
            take!(self, request, to, Answer::Done => ())
        })
    }

    fn upload_begin<'a>(&'a self, key: &'a str, label: &'a str) -> BoxFuture<'a, Result<Begun>> {
        Box::pin(async move {
            let request = Request::Begin { key: self.whole(key)?, label: label.to_owned() };
            take!(self, request, key, Answer::Upload(id) => Begun::new(id))
        })
    }

    fn upload_part<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
        number: u32,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<Part>> {
        Box::pin(async move {
            let request = Request::UploadPart { id: upload.clone(), number, bytes };
            take!(self, request, key, Answer::Part(part) => part)
        })
    }

    fn upload_complete<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
        parts: &'a [Part],
        when: &'a Condition,
    ) -> BoxFuture<'a, Result<Put>> {
        Box::pin(async move {
            let (id, parts) = (upload.clone(), parts.to_vec());
            let request = Request::Complete { id, parts, when: when.clone() };
            self.put_of(self.send(request, key).await, when, key)
        })
    }

    fn upload_abort<'a>(&'a self, key: &'a str, upload: &'a UploadId) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            take!(self, Request::Abort { id: upload.clone() }, key, Answer::Done => ())
        })
    }

    fn uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Upload>>> {
        Box::pin(async move {
            let request = Request::Uploads { prefix: self.whole_prefix(prefix)? };
            let mut uploads = take!(self, request, prefix, Answer::Uploads(uploads) => uploads)?;
            for upload in &mut uploads {
                upload.key = self.below(&upload.key);
            }
            Ok(uploads)
        })
    }

    fn parts<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
    ) -> BoxFuture<'a, Result<Option<Vec<Part>>>> {
        Box::pin(async move {
            let request = Request::Parts { id: upload.clone() };
            take!(self, request, key,
                Answer::Parts(parts) => Some(parts), Answer::Nothing => None)
        })
    }

    fn has_checksums(&self) -> bool {
        // What is in memory is what was sent.
        true
    }

    fn settle(&self) -> BoxFuture<'_, ()> {
        // A request here ends with the call that makes it.
        Box::pin(async {})
    }
}
