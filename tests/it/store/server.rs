//! A real S3 server in this process: the protocol by `s3s`, what it holds by the model, and between
//! them a layer that loses, delays, falsifies and refuses what a test asks for.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockferry::location::BucketAddress;
use blockferry::store::model::Model;
use blockferry::store::{Credentials, S3Options};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;

use super::backend::{Backend, Deleted};

pub(crate) const BUCKET: &str = "bucket";
const KEY_ID: &str = "TESTKEY";
const SECRET: &str = "test-secret";

/// What happens to one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Not carried out; answered with that status and code.
    Status(u16, &'static str),
    /// As `Status`, with so many seconds of `Retry-After`.
    RetryAfter(u16, &'static str, u64),
    /// Not carried out; answered with 200 and an error of that code in the body.
    ErrorInSuccess(&'static str),
    /// The connection ends before it is carried out.
    LostBefore,
    /// It is carried out; the connection ends without an answer.
    LostAfter,
    /// The connection ends; it is carried out when [`S3Server::land`] says so.
    Late,
    /// Carried out; half of the body of the answer comes, then the connection ends.
    Truncated,
    /// Carried out; one byte of the body of the answer is another.
    Corrupted,
    /// Carried out; the body of the answer comes a byte at a time, with a pause after each.
    Drips,
    /// One byte of its body is another when it arrives.
    CorruptedRequest,
    /// Carried out; the answer does not vouch for the bytes.
    WithoutChecksum,
    /// Carried out after so many milliseconds.
    Slow(u64),
    /// Answered as done, with nothing in the body; not carried out.
    Feigned,
    /// Not carried out; answered as done, with that body.
    Says(&'static str),
    /// Not carried out; answered with that status, and that it is to be asked at that place.
    SendsTo(u16, &'static str),
    /// Never answered.
    Hangs,
}

/// A request, as the fault layer sees it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Which one of its operation, counted from 0.
    pub(crate) nth: usize,
    /// `PutObject`, `ListParts`, …
    pub(crate) operation: &'static str,
    pub(crate) path: String,
    pub(crate) query: String,
}

type Hook = dyn Fn(&Seen) -> Fault + Send + Sync;
type Failure = std::io::Error;
type ReplyBody = UnsyncBoxBody<Bytes, Failure>;

pub(crate) struct S3Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    pub(crate) model: Model,
    accept: tokio::task::JoinHandle<()>,
}

struct Shared {
    service: S3Service,
    hook: Mutex<Arc<Hook>>,
    seen: Mutex<Vec<Seen>>,
    deleted: Deleted,
    late: Mutex<Vec<Request<s3s::Body>>>,
}

impl std::fmt::Debug for S3Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        #[expect(clippy::disallowed_methods, reason = "it only accepts, and writes nothing")]
        self.accept.abort();
    }
}

impl S3Server {
    /// A server with one empty bucket, on a port of its own.
    pub(crate) async fn start() -> Self {
        Self::over(Model::new()).await
    }

    pub(crate) async fn over(model: Model) -> Self {
        let deleted = Deleted::default();
        let mut builder = S3ServiceBuilder::new(Backend::new(&model, deleted.clone()));
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let shared = Arc::new(Shared {
            service: builder.build(),
            hook: Mutex::new(Arc::new(|_: &Seen| Fault::None)),
            seen: Mutex::default(),
            deleted,
            late: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = Arc::clone(&shared);
        let accept = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&accepting);
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let shared = Arc::clone(&shared);
                        async move { shared.answer(request).await }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    // A connection that a fault has ended ends with an error.
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { shared, address, model, accept }
    }

    /// Where it listens.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Words behind `?` that lead here.
    pub(crate) fn words(&self) -> String {
        format!("?endpoint=http://{}&region=us-east-1&allow_http=true", self.address)
    }

    /// The URL of a place in the bucket: a region's prefix, an image, or with `s3+raw` an object.
    pub(crate) fn url(&self, scheme: &str, path: &str) -> String {
        format!("{scheme}://{BUCKET}/{path}{}", self.words())
    }

    pub(crate) fn address(&self, prefix: &str) -> BucketAddress {
        BucketAddress::parse(&self.url("s3", prefix)).unwrap()
    }

    pub(crate) fn options() -> S3Options {
        let key = Credentials::Key { id: KEY_ID.into(), secret: SECRET.into(), token: None };
        S3Options::default().with_credentials(key)
    }

    /// What the environment of a command must hold to be let in.
    pub(crate) fn environment() -> [(&'static str, &'static str); 2] {
        [("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET)]
    }

    /// Decides from now on what happens to requests.
    pub(crate) fn hook(&self, hook: impl Fn(&Seen) -> Fault + Send + Sync + 'static) {
        *self.shared.hook.lock().unwrap() = Arc::new(hook);
    }

    /// The `nth` request (counted from 0) of that operation meets that fault, of those to come.
    pub(crate) fn fault_at(&self, operation: &'static str, nth: usize, fault: Fault) {
        let before = self.count(operation);
        self.hook(move |seen| {
            let is_it = seen.operation == operation && seen.nth == before + nth;
            if is_it { fault } else { Fault::None }
        });
    }

    /// Every request of that operation meets that fault.
    pub(crate) fn fault_always(&self, operation: &'static str, fault: Fault) {
        self.hook(move |seen| if seen.operation == operation { fault } else { Fault::None });
    }

    pub(crate) fn heal(&self) {
        self.hook(|_| Fault::None);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The keys that were deleted, in order.
    pub(crate) fn deleted(&self) -> Vec<String> {
        self.shared.deleted.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, operation: &str) -> usize {
        self.seen().iter().filter(|seen| seen.operation == operation).count()
    }

    /// Lets late requests arrive, oldest first; how many.
    pub(crate) async fn land(&self) -> usize {
        let late = std::mem::take(&mut *self.shared.late.lock().unwrap());
        let count = late.len();
        for request in late {
            drop(self.shared.service.call(request).await);
        }
        count
    }
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<ReplyBody>, Failure> {
        let seen = self.note(&request);
        let hook = Arc::clone(&*self.hook.lock().unwrap());
        let fault = hook(&seen);
        match fault {
            Fault::Status(status, code) => {
                // The client may not look at the answer before its body is taken.
                request.into_body().collect().await.map_err(Failure::other)?;
                return Ok(refusal(status, code, None));
            }
            Fault::RetryAfter(status, code, secs) => {
                request.into_body().collect().await.map_err(Failure::other)?;
                return Ok(refusal(status, code, Some(secs)));
            }
            Fault::ErrorInSuccess(code) => {
                request.into_body().collect().await.map_err(Failure::other)?;
                return Ok(refusal(200, code, None));
            }
            Fault::Feigned => {
                request.into_body().collect().await.map_err(Failure::other)?;
                return Ok(Response::builder().status(204).body(whole(Bytes::new())).unwrap());
            }
            Fault::Says(text) => {
                request.into_body().collect().await.map_err(Failure::other)?;
                return Ok(Response::new(whole(Bytes::from_static(text.as_bytes()))));
            }
            Fault::SendsTo(status, place) => {
                request.into_body().collect().await.map_err(Failure::other)?;
                let builder = Response::builder().status(status).header("location", place);
                return Ok(builder.body(whole(Bytes::new())).unwrap());
            }
            Fault::LostBefore => return Err(lost("lost before")),
            Fault::Hangs => std::future::pending().await,
            Fault::Slow(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            _ => {}
        }
        if lacks_length(&request) {
            return Ok(refusal(411, "MissingContentLength", None));
        }
        let (parts, body) = request.into_parts();
        let mut body = body.collect().await.map_err(Failure::other)?.to_bytes();
        if fault == Fault::CorruptedRequest {
            body = flipped(&body);
        }
        let request = Request::from_parts(parts, s3s::Body::from(body));
        if fault == Fault::Late {
            self.late.lock().unwrap().push(request);
            return Err(lost("late"));
        }
        let response =
            self.service.call(request).await.map_err(|error| lost(&format!("{error:?}")))?;
        if fault == Fault::LostAfter {
            return Err(lost("lost after"));
        }
        let (mut parts, body) = response.into_parts();
        if fault == Fault::WithoutChecksum {
            parts.headers.remove("x-amz-checksum-crc64nvme");
        }
        let body = body.collect().await.map_err(|error| lost(&format!("{error:?}")))?.to_bytes();
        Ok(Response::from_parts(parts, falsified(body, fault)))
    }

    fn note(&self, request: &Request<Incoming>) -> Seen {
        let operation = operation(request.method(), request.uri().path(), request.uri().query());
        let operation = match request.headers().contains_key("x-amz-copy-source") {
            true => "CopyObject",
            false => operation,
        };
        let mut all = self.seen.lock().unwrap();
        let nth = all.iter().filter(|seen| seen.operation == operation).count();
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let seen = Seen { nth, operation, path, query };
        all.push(seen.clone());
        seen
    }
}

fn operation(method: &Method, path: &str, query: Option<&str>) -> &'static str {
    let words: HashMap<&str, &str> = query
        .unwrap_or_default()
        .split('&')
        .map(|word| word.split_once('=').unwrap_or((word, "")))
        .collect();
    let has = |name| words.contains_key(name);
    let is_bucket = path.trim_matches('/').split('/').count() == 1;
    match (method.as_str(), is_bucket) {
        ("POST", true) => "DeleteObjects",
        ("GET", true) if has("uploads") => "ListMultipartUploads",
        ("GET", true) => "ListObjectsV2",
        ("GET", false) if has("uploadId") => "ListParts",
        ("GET", false) => "GetObject",
        ("HEAD", _) => "HeadObject",
        ("PUT", _) if has("partNumber") => "UploadPart",
        ("PUT", _) => "PutObject",
        ("POST", _) if has("uploads") => "CreateMultipartUpload",
        ("POST", _) => "CompleteMultipartUpload",
        ("DELETE", _) if has("uploadId") => "AbortMultipartUpload",
        ("DELETE", _) => "DeleteObject",
        _ => "Other",
    }
}

/// Whether a request does not tell how long it is, as it must: Ceph's gateway insists on it.
fn lacks_length(request: &Request<Incoming>) -> bool {
    let may_have_body = matches!(*request.method(), Method::PUT | Method::POST);
    may_have_body && !request.headers().contains_key("content-length")
}

fn refusal(status: u16, code: &str, retry_after: Option<u64>) -> Response<ReplyBody> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
         <Message>as the test asks</Message><RequestId>TESTREQUEST</RequestId></Error>"
    );
    let mut builder = Response::builder().status(status).header("x-amz-request-id", "TESTREQUEST");
    if let Some(secs) = retry_after {
        builder = builder.header("retry-after", secs.to_string());
    }
    builder.body(whole(Bytes::from(body))).unwrap()
}

/// Ends the connection.
fn lost(why: &str) -> Failure {
    Failure::other(why.to_owned())
}

/// With one byte in the middle changed.
fn flipped(body: &Bytes) -> Bytes {
    let mut bytes = body.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 0x20;
    }
    Bytes::from(bytes)
}

fn whole(bytes: Bytes) -> ReplyBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn falsified(body: Bytes, fault: Fault) -> ReplyBody {
    match fault {
        Fault::Corrupted => whole(flipped(&body)),
        Fault::Truncated => {
            let half = body.slice(..body.len() / 2);
            let frames: [Result<Frame<Bytes>, Failure>; 2] =
                [Ok(Frame::data(half)), Err(lost("truncated"))];
            StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
        }
        Fault::Drips => {
            let drops = futures_util::stream::unfold(0, move |at| {
                let drop = body.get(at..at + 1).map(Bytes::copy_from_slice);
                async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    drop.map(|drop| (Ok(Frame::data(drop)), at + 1))
                }
            });
            StreamBody::new(drops).boxed_unsync()
        }
        _ => whole(body),
    }
}
