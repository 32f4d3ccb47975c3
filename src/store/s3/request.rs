//! One signed request to an S3 server, and its reply: bounded, checked, told apart from a failure.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpError, HttpErrorKind, HttpRequestBody, HttpResponse};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{to_u64, to_usize};
use crate::store::{Class, Trouble, checksum_of};

use super::{times, xml};

/// Everything but what RFC 3986 calls unreserved, as signatures want it.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const ENCODED_PATH: &AsciiSet = &ENCODED.remove(b'/');
/// The most bytes of an error, or of a reply that has nothing to say.
const SMALL_BYTES_MAX: u64 = 64 << 10;
/// The most bytes of a listing.
pub(super) const LIST_BYTES_MAX: u64 = 8 << 20;
/// How long a store may ask to wait.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// How much of a store's words is shown.
const WORDS_CHARS_MAX: usize = 300;

pub(super) const CHECKSUM: &str = "x-amz-checksum-crc64nvme";

/// One service, account and bucket.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) http: HttpClient,
    /// `None`: requests are not signed.
    pub(super) credentials: Option<AwsCredentialProvider>,
    pub(super) region: String,
    /// The URL of the bucket, without a slash at its end.
    pub(super) bucket_url: String,
    /// The same for messages.
    pub(super) location: String,
    /// Whether the connection keeps bodies safe, so that they need not be signed as well.
    pub(super) is_private: bool,
    /// Whether the store has answered a checksum with the same: from then on it has to.
    pub(super) vouches: AtomicBool,
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Ask<'a> {
    method: Method,
    /// What is being done, for messages.
    action: &'static str,
    /// The whole key; `None`: the bucket.
    key: Option<&'a str>,
    query: Vec<(&'static str, String)>,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    reply_bytes_max: u64,
    checksum: Option<String>,
}

/// What a success said.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Why there is no success.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    /// The status, where the store answered.
    pub(super) status: Option<u16>,
    /// Whether the request may have been carried out all the same.
    pub(super) is_unclear: bool,
}

impl Failure {
    /// The store's code, if it gave one.
    pub(super) fn code(&self) -> &str {
        Trouble::of(&self.error).map_or("", |trouble| trouble.code.as_str())
    }

    /// Whether the store says that it has no such thing, and not that the bucket is missing.
    pub(super) fn is_missing(&self) -> bool {
        self.status == Some(404) && self.code() != "NoSuchBucket"
    }
}

impl<'a> Ask<'a> {
    pub(super) fn new(method: Method, action: &'static str, key: Option<&'a str>) -> Self {
        Self {
            method,
            action,
            key,
            query: Vec::new(),
            headers: Vec::new(),
            body: Bytes::new(),
            reply_bytes_max: SMALL_BYTES_MAX,
            checksum: None,
        }
    }

    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Sends bytes along that the store need not vouch for.
    pub(super) fn text(mut self, body: String) -> Self {
        self.body = Bytes::from(body);
        self
    }

    /// Sends bytes along with their checksum, which a store that has checksums must answer.
    pub(super) fn body(mut self, body: Bytes) -> Self {
        self.checksum = Some(checksum_of(&body));
        self.body = body;
        self
    }

    pub(super) fn reply_bytes_max(mut self, bytes: u64) -> Self {
        self.reply_bytes_max = bytes;
        self
    }

    fn url(&self, bucket_url: &str) -> String {
        let mut url = bucket_url.to_owned();
        if let Some(key) = self.key {
            url.push('/');
            url.push_str(&encoded_path(key));
        }
        for (at, (name, value)) in self.query.iter().enumerate() {
            url.push(if at == 0 { '?' } else { '&' });
            url.push_str(name);
            url.push('=');
            url.extend(utf8_percent_encode(value, ENCODED));
        }
        url
    }
}

impl Client {
    /// Sends one request, once, of which nothing but a success will do.
    pub(super) async fn ask(&self, ask: Ask<'_>) -> Result<Reply> {
        self.send(ask).await.map_err(|failure| failure.error)
    }

    /// Sends one request, once.
    pub(super) async fn send(&self, ask: Ask<'_>) -> std::result::Result<Reply, Failure> {
        let request = self.request(&ask).await.map_err(|error| Failure {
            error,
            status: None,
            is_unclear: false,
        })?;
        let is_head = ask.method == Method::HEAD;
        let response = match self.http.execute(request).await {
            Ok(response) => response,
            Err(error) => return Err(self.unanswered(&ask, error)),
        };
        let status = response.status().as_u16();
        if !response.status().is_success() {
            return Err(self.refused(&ask, status, response).await);
        }
        let headers = response.headers().clone();
        let body = match collect(response, ask.reply_bytes_max).await {
            Ok(body) => body,
            Err(fault) => return Err(self.broken(&ask, status, fault)),
        };
        // A success whose body is an error: only a read of an object may look like that.
        let is_listing = ask.key.is_none() || ask.query.iter().any(|(name, _)| *name == "uploadId");
        let is_object = ask.method == Method::GET && !is_listing;
        if !is_head
            && !is_object
            && let Some(error) = xml::error_of(&body)
        {
            return Err(self.told(&ask, status, &headers, error));
        }
        self.check_sum(&ask, &headers)?;
        Ok(Reply { headers, body })
    }

    async fn request(&self, ask: &Ask<'_>) -> Result<Request<HttpRequestBody>> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorKind::Invalid, format!("make a request to {}", ask.action))
                .within(self.place(ask))
                .because(error)
        };
        let mut builder =
            Request::builder().method(ask.method.clone()).uri(ask.url(&self.bucket_url));
        for (name, value) in &ask.headers {
            builder = builder.header(*name, value);
        }
        if let Some(checksum) = &ask.checksum {
            builder = builder.header(CHECKSUM, checksum);
        }
        // Asked for by RFC 9110, 8.6, and by Ceph's gateway; the HTTP client leaves it out.
        if ask.body.is_empty() && matches!(ask.method, Method::PUT | Method::POST) {
            builder = builder.header(CONTENT_LENGTH, 0);
        }
        let mut request = builder
            .body(HttpRequestBody::from(ask.body.clone()))
            .map_err(|error| failed(Box::new(error)))?;
        let Some(provider) = &self.credentials else { return Ok(request) };
        let credentials = provider.get_credential().await.map_err(|error| {
            Error::new(ErrorKind::Denied, "find credentials")
                .within(self.place(ask))
                .hint("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
                .because(error)
        })?;
        let vouched = ask.checksum.is_some() && self.vouches.load(Relaxed);
        AwsAuthorizer::new(&credentials, "s3", &self.region)
            .with_sign_payload(!(vouched && self.is_private))
            .try_authorize(&mut request, None)
            .map_err(|error| failed(Box::new(error)))?;
        Ok(request)
    }

    /// A store that has once answered a checksum must go on to do so.
    fn check_sum(&self, ask: &Ask<'_>, headers: &HeaderMap) -> std::result::Result<(), Failure> {
        let Some(sent) = &ask.checksum else { return Ok(()) };
        let why = match text(headers, CHECKSUM) {
            Some(told) if told == *sent => {
                self.vouches.store(true, Relaxed);
                return Ok(());
            }
            // What is vouched for may be all the parts of an upload: then it is no part's.
            None if !self.vouches.load(Relaxed) => return Ok(()),
            None => "the store did not vouch for what it got",
            Some(_) => "the store got other bytes than were sent",
        };
        Err(Failure {
            error: Error::new(ErrorKind::Unavailable, format!("{}: {why}", ask.action))
                .within(self.place(ask)),
            status: None,
            is_unclear: true,
        })
    }

    fn place(&self, ask: &Ask<'_>) -> String {
        match ask.key {
            Some(key) => format!("{}/{key}", self.location),
            None => self.location.clone(),
        }
    }

    fn unanswered(&self, ask: &Ask<'_>, error: HttpError) -> Failure {
        // Not even a connection: nobody can have carried it out.
        let is_unclear = error.kind() != HttpErrorKind::Connect;
        let what = if is_unclear { "no answer" } else { "cannot connect" };
        Failure {
            error: Error::new(ErrorKind::Unavailable, format!("{}: {what}", ask.action))
                .within(self.place(ask))
                .because(error),
            status: None,
            is_unclear,
        }
    }

    /// A success that breaks off.
    fn broken(&self, ask: &Ask<'_>, status: u16, fault: Fault) -> Failure {
        let error = match fault {
            Fault::Http(error) => {
                Error::new(ErrorKind::Unavailable, format!("{}: the reply broke off", ask.action))
                    .because(error)
            }
            Fault::TooLong => {
                Error::new(ErrorKind::Corrupt, format!("{}: the reply is too long", ask.action))
            }
        };
        Failure { error: error.within(self.place(ask)), status: Some(status), is_unclear: true }
    }

    async fn refused(&self, ask: &Ask<'_>, status: u16, response: HttpResponse) -> Failure {
        let headers = response.headers().clone();
        // Its words are a courtesy: the status is what counts.
        let body = collect(response, SMALL_BYTES_MAX).await.unwrap_or_default();
        let error = xml::error_of(&body).unwrap_or_default();
        self.told(ask, status, &headers, error)
    }

    fn told(
        &self,
        ask: &Ask<'_>,
        status: u16,
        headers: &HeaderMap,
        error: xml::ErrorBody,
    ) -> Failure {
        let class = Trouble::class_of(status, &error.code);
        let wait =
            text(headers, "retry-after").and_then(|wait| times::wait(wait, text(headers, "date")));
        let id = text(headers, "x-amz-request-id")
            .or_else(|| (!error.request_id.is_empty()).then_some(error.request_id.as_str()));
        let trouble = Trouble {
            class,
            status,
            code: cut(&error.code),
            message: cut(&error.message),
            request_id: id.map(cut),
            retry_after: wait.map(|wait| wait.min(RETRY_AFTER_MAX)),
        };
        // A server that failed in the middle, or one whose success turned out to be none, may have
        // done it. One that refuses, or wants to be left alone, has not.
        let is_unclear = class == Class::Transient && !(400..500).contains(&status);
        let error = trouble.error(ask.action, self.place(ask));
        Failure { error, status: Some(status), is_unclear }
    }
}

/// A path as it stands in a URL.
pub(super) fn encoded_path(path: &str) -> String {
    utf8_percent_encode(path, ENCODED_PATH).to_string()
}

/// A header's text, if it is text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Words from outside: short, and on one line.
fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(WORDS_CHARS_MAX).collect()
}

enum Fault {
    Http(HttpError),
    TooLong,
}

/// All of a body, if it is no longer than that.
async fn collect(response: HttpResponse, bytes_max: u64) -> std::result::Result<Bytes, Fault> {
    let announced = text(response.headers(), "content-length").and_then(|len| len.parse().ok());
    let announced: u64 = announced.unwrap_or(0);
    if announced > bytes_max {
        return Err(Fault::TooLong);
    }
    let mut body = response.into_body();
    let mut whole = BytesMut::new();
    let mut first = Bytes::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Fault::Http)?.into_data() else { continue };
        if to_u64(first.len()) + to_u64(whole.len()) + to_u64(data.len()) > bytes_max {
            return Err(Fault::TooLong);
        }
        if first.is_empty() && whole.is_empty() {
            // Most replies come in one piece, which needs no copy.
            first = data;
            continue;
        }
        if whole.is_empty() {
            whole.reserve(to_usize(announced.min(bytes_max)).max(first.len() + data.len()));
            whole.extend_from_slice(&first);
            first = Bytes::new();
        }
        whole.extend_from_slice(&data);
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}
