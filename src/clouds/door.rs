//! The sockets: connections let in within bounds, TLS, requests read in time, an orderly end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use axum::routing::get;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clouds::api::{Api, Face};
use crate::clouds::metrics;
use crate::clouds::reply::{Reply, Trouble};
use crate::clouds::request::Request;
use crate::error::{Error, ErrorKind, Result};
use crate::host;

/// How long a handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// After an accept that failed, for want of descriptors as a rule.
const ACCEPT_DELAY: Duration = Duration::from_millis(50);
/// Room for a request's head on the wire; more than [`DoorLimits::header_bytes_max`], so that one
/// that is too long is answered in the dialect's words.
const HEAD_BYTES_MAX: usize = 256 << 10;
/// Connections to `/metrics` and `/healthz` at once.
const ADMIN_CONNECTIONS_MAX: usize = 16;

/// Bounds of one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DoorLimits {
    /// Connections at once; the others wait to be accepted.
    pub connections_max: usize,
    /// Bytes of a body.
    pub body_bytes_max: usize,
    /// Bytes of target and headers.
    pub header_bytes_max: usize,
    /// How long the head of a request may take, also while a connection is idle.
    pub head_time: Duration,
    /// How long its body may take.
    pub body_time: Duration,
}

impl Default for DoorLimits {
    /// 512 connections, 64 KiB of body, 32 KiB of head, 30 s for a head, 10 s for a body.
    fn default() -> Self {
        Self {
            connections_max: 512,
            body_bytes_max: 64 << 10,
            header_bytes_max: 32 << 10,
            head_time: Duration::from_secs(30),
            body_time: Duration::from_secs(10),
        }
    }
}

impl DoorLimits {
    /// With that many connections at once; at least one.
    #[must_use]
    pub fn with_connections_max(mut self, connections: usize) -> Self {
        self.connections_max = connections.max(1);
        self
    }

    /// With bodies of up to that many bytes.
    #[must_use]
    pub fn with_body_bytes_max(mut self, bytes: usize) -> Self {
        self.body_bytes_max = bytes;
        self
    }

    /// With that long for the head and for the body of a request.
    #[must_use]
    pub fn with_times(mut self, head: Duration, body: Duration) -> Self {
        (self.head_time, self.body_time) = (head, body);
        self
    }
}

/// A certificate and its key, for a listener. Clients need none: their requests are signed.
#[derive(Clone)]
pub struct ServerTls(TlsAcceptor);

impl ServerTls {
    /// Reads both from PEM. TLS 1.3 and nothing older.
    ///
    /// # Errors
    /// `Invalid` for text without a certificate or a key, and for a key of another certificate.
    pub fn from_pem(cert: &[u8], key: &[u8]) -> Result<Self> {
        let refuse = |what: &'static str| Error::new(ErrorKind::Invalid, what);
        let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
        let chain = chain.map_err(|e| refuse("read the listener's certificate").because(e))?;
        if chain.is_empty() {
            return Err(refuse("read the listener's certificate: there is none"));
        }
        // The cause would show what it failed to read.
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| refuse("read the listener's private key: there is none"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            // Also where some other crate of the build has asked for the older one.
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| refuse("set up TLS").because(e))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|e| refuse("use the listener's certificate").because(e))?;
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls")
    }
}

/// One listener of one cloud.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    tls: Option<ServerTls>,
    limits: DoorLimits,
    desk: Arc<Desk>,
}

/// What every connection of a listener shares.
#[derive(Debug)]
struct Desk {
    api: Arc<Api>,
    face: Face,
    limits: DoorLimits,
    log: Option<mpsc::Sender<String>>,
    connections: Arc<AtomicU64>,
}

impl Door {
    /// Binds a listener. `log` is told one line of JSON for each request; lines that it does not
    /// take at once are dropped. `connections` counts what is open.
    ///
    /// # Errors
    /// That the address cannot be bound.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn bind(
        address: SocketAddr,
        tls: Option<ServerTls>,
        face: Face,
        api: Arc<Api>,
        limits: DoorLimits,
        log: Option<mpsc::Sender<String>>,
        connections: Arc<AtomicU64>,
    ) -> Result<Self> {
        let listener = bind(address).await?;
        let desk = Arc::new(Desk { api, face, limits, log, connections });
        Ok(Self { listener, tls, limits, desk })
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().map_err(|error| Error::io("tell the listener's address", error))
    }

    /// Serves until `closing`; then requests that have begun are answered, and no more are taken.
    /// Returns when the last connection is closed.
    ///
    /// # Cancel safety
    /// Lossy: connections are torn off.
    pub async fn serve(self, closing: CancellationToken) {
        let router = Router::new().fallback(receive).with_state(self.desk.clone());
        let connections = self.desk.connections.clone();
        let most = self.limits.connections_max;
        let head = self.limits.head_time;
        run(self.listener, self.tls, router, most, head, connections, closing).await;
    }
}

/// Serves `/metrics` and `/healthz` until `closing`.
///
/// # Errors
/// That the address cannot be bound.
///
/// # Cancel safety
/// Lossy: connections are torn off.
pub async fn serve_admin(
    address: SocketAddr,
    api: Arc<Api>,
    connections: Arc<AtomicU64>,
    closing: CancellationToken,
) -> Result<(SocketAddr, impl Future<Output = ()> + Send)> {
    let listener = bind(address).await?;
    let bound = listener.local_addr().map_err(|e| Error::io("tell the address", e))?;
    let counted = connections.clone();
    let page = move || {
        let api = api.clone();
        let open = counted.load(Ordering::Relaxed);
        async move {
            let engine = api.service().engine().metrics();
            let body = metrics::page(&engine, &api.service().counts(), &api.tally(), open);
            ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], body)
        }
    };
    let ending = closing.clone();
    let health = move || {
        let ending = ending.is_cancelled();
        async move {
            if ending {
                (StatusCode::SERVICE_UNAVAILABLE, "ending\n")
            } else {
                (StatusCode::OK, "ok\n")
            }
        }
    };
    let router = Router::new().route("/metrics", get(page)).route("/healthz", get(health));
    let head = DoorLimits::default().head_time;
    let uncounted = Arc::default();
    let serving = run(listener, None, router, ADMIN_CONNECTIONS_MAX, head, uncounted, closing);
    Ok((bound, serving))
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| Error::io("listen", error).within(address.to_string()))
}

async fn run(
    listener: TcpListener,
    tls: Option<ServerTls>,
    router: Router,
    connections_max: usize,
    head_time: Duration,
    connections: Arc<AtomicU64>,
    closing: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(connections_max));
    let tasks = TaskTracker::new();
    loop {
        // Order: room first, so that whoever cannot be served waits in the system's queue.
        let accepted = tokio::select! {
            biased;
            () = closing.cancelled() => break,
            accepted = async {
                let permit = room.clone().acquire_owned().await.ok()?;
                let stream = listener.accept().await.ok().map(|(stream, _)| stream);
                Some((permit, stream))
            } => accepted,
        };
        let Some((permit, stream)) = accepted else { break };
        let Some(stream) = stream else {
            tokio::time::sleep(ACCEPT_DELAY).await;
            continue;
        };
        let (tls, router) = (tls.clone(), router.clone());
        let (closing, connections) = (closing.clone(), connections.clone());
        tasks.spawn(async move {
            connections.fetch_add(1, Ordering::Relaxed);
            greet(stream, tls, router, head_time, closing).await;
            connections.fetch_sub(1, Ordering::Relaxed);
            drop(permit);
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

async fn greet(
    stream: TcpStream,
    tls: Option<ServerTls>,
    router: Router,
    head_time: Duration,
    closing: CancellationToken,
) {
    // Answers are small, and written whole.
    stream.set_nodelay(true).ok();
    match tls {
        None => attend(stream, router, head_time, closing).await,
        Some(tls) => {
            if let Ok(Ok(stream)) = timeout(HANDSHAKE_TIME, tls.0.accept(stream)).await {
                attend(stream, router, head_time, closing).await;
            }
        }
    }
}

async fn attend<S>(stream: S, router: Router, head_time: Duration, closing: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_time)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    // How a connection ends is its peer's affair.
    tokio::select! {
        _ended = connection.as_mut() => return,
        () = closing.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await.ok();
}

/// Reads one request within the bounds, has it answered, and says so in the log.
async fn receive(
    State(desk): State<Arc<Desk>>,
    request: axum::extract::Request,
) -> std::result::Result<Response<Body>, Infallible> {
    let began = Instant::now();
    let reply = match read(&desk.limits, request).await {
        Ok(request) => desk.api.answer(&desk.face, &request).await,
        Err(trouble) => desk.api.turn_away(&desk.face, trouble),
    };
    if let Some(log) = &desk.log {
        // A reader that cannot keep up loses lines; a request never waits for it.
        log.try_send(line(&desk.face, &reply, began.elapsed())).ok();
    }
    Ok(response(reply))
}

async fn read(
    limits: &DoorLimits,
    request: axum::extract::Request,
) -> std::result::Result<Request, Trouble> {
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let headers: usize = head.headers.iter().map(|(n, v)| n.as_str().len() + v.len() + 4).sum();
    if target + headers > limits.header_bytes_max {
        return Err(Trouble::HeadersTooLong);
    }
    let mut read = Request {
        method: head.method.as_str().to_owned(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        ..Request::default()
    };
    for (name, value) in &head.headers {
        let value = std::str::from_utf8(value.as_bytes()).map_err(|_| Trouble::Malformed)?;
        read.headers.push((name.as_str().to_owned(), value.to_owned()));
    }
    let body = Limited::new(body, limits.body_bytes_max).collect();
    let body = timeout(limits.body_time, body).await.map_err(|_| Trouble::TooSlow)?;
    match body {
        Ok(body) => read.body = body.to_bytes().to_vec(),
        Err(error) if error.is::<LengthLimitError>() => return Err(Trouble::BodyTooLong),
        Err(_) => return Err(Trouble::Malformed),
    }
    Ok(read)
}

fn response(reply: Reply) -> Response<Body> {
    let mut response = Response::new(Body::from(reply.body));
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in reply.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().append(HeaderName::from_static(name), value);
        }
    }
    response
}

/// What the log is told of a request: never a header, a parameter or a body.
fn line(face: &Face, reply: &Reply, took: Duration) -> String {
    json!({
        "unix_ms": host::unix_ms(),
        "cloud": face.name(),
        "call": reply.call,
        "status": reply.status,
        "code": reply.code,
        "access_key": reply.access_key,
        "request_id": reply.request_id,
        "took_us": u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
    })
    .to_string()
}
