//! The passive side of copies between daemons: serves a set of regions to peers that dial.
//!
//! A peer proves who it is, a [`Policy`] says what it may do, and then it stages images here and
//! pushes them, or pulls images that are here. This side owns the decision: its region's journal
//! and rename say whether an image is committed, whatever becomes of the peer.

mod calls;
mod connection;
mod holds;
mod keep;
mod pull;
mod push;
mod verify;
mod visitor;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, ErrorKind, Result};
use crate::host;
use crate::id::RegionName;
use crate::peer::{Door, DoorCaps, Identity, Policy, Tls};
use crate::pump::Pump;
use crate::region::Region;
use crate::sync::time::{sleep, timeout};
use crate::sync::{Mutex, MutexGuard};
use crate::wire::message::{Join, Session, Token};
use crate::wire::session::{LinkId, Pace, Receiver, Sender};

use holds::Holds;

/// How a [`Server`] uses its host.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Bytes of an image that may be under way to this side in one session.
    pub window_bytes: u64,
    /// A checkpoint is due after that many bytes.
    pub checkpoint_bytes: u64,
    /// A checkpoint is due after that long.
    pub checkpoint_interval: Duration,
    /// How many connections there may be.
    pub caps: DoorCaps,
    /// How long everything may take.
    pub pace: Pace,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            window_bytes: 64 << 20,
            checkpoint_bytes: 256 << 20,
            checkpoint_interval: Duration::from_secs(1),
            caps: DoorCaps::default(),
            pace: Pace::default(),
        }
    }
}

impl ServerOptions {
    /// With a window of that many bytes. A chunk must fit.
    #[must_use]
    pub fn with_window_bytes(mut self, bytes: u64) -> Self {
        self.window_bytes = bytes;
        self
    }

    /// With a checkpoint after that many bytes or that long, whichever comes first.
    #[must_use]
    pub fn with_checkpoint(mut self, bytes: u64, interval: Duration) -> Self {
        self.checkpoint_bytes = bytes.max(1);
        self.checkpoint_interval = interval;
        self
    }

    /// With at most so many connections.
    #[must_use]
    pub fn with_caps(mut self, caps: DoorCaps) -> Self {
        self.caps = caps;
        self
    }

    /// With other deadlines.
    #[must_use]
    pub fn with_pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }
}

/// Where a [`Server`] listens.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener, Tls),
    Unix(UnixListener, String),
}

/// A connection that was accepted.
enum Incoming {
    Tcp(TcpStream, Tls),
    Unix(UnixStream),
}

impl Listener {
    /// Listens on a TCP address. Every connection is TLS 1.3 with certificates on both sides.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] for an address in use, otherwise the system's failure.
    ///
    /// # Cancel safety
    /// Safe: a listener that nobody takes is closed.
    pub async fn tcp(address: &str, tls: Tls) -> Result<Self> {
        let bound = TcpListener::bind(address).await;
        let bound = bound.map_err(|error| refused_address(error).within(address))?;
        Ok(Self(Kind::Tcp(bound, tls)))
    }

    /// Listens on a Unix socket, which is made; its folder's permissions say who may connect. Not
    /// encrypted. A peer is known by its user id.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when something is there already, otherwise the system's failure.
    pub fn unix(path: impl AsRef<Path>) -> Result<Self> {
        let shown = path.as_ref().display().to_string();
        let bound = UnixListener::bind(path.as_ref());
        let bound = bound.map_err(|error| refused_address(error).within(shown.clone()))?;
        Ok(Self(Kind::Unix(bound, shown)))
    }

    /// Where it listens: `127.0.0.1:7443`, also where port 0 was asked for, or `unix:/PATH`.
    ///
    /// # Errors
    /// The system's failure.
    pub fn address(&self) -> Result<String> {
        match &self.0 {
            Kind::Unix(_, path) => Ok(format!("unix:{path}")),
            Kind::Tcp(listener, _) => {
                let address: std::io::Result<SocketAddr> = listener.local_addr();
                Ok(address.map_err(|error| Error::io("find the bound address", error))?.to_string())
            }
        }
    }

    async fn accept(&self) -> std::io::Result<Incoming> {
        match &self.0 {
            Kind::Tcp(listener, tls) => {
                let (stream, _) = listener.accept().await?;
                Ok(Incoming::Tcp(stream, tls.clone()))
            }
            Kind::Unix(listener, _) => Ok(Incoming::Unix(listener.accept().await?.0)),
        }
    }
}

fn refused_address(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            Error::new(ErrorKind::Busy, "listen").because(error).hint("something else does")
        }
        _ => Error::io("listen", error),
    }
}

/// Serves regions to peers. A cheap handle; all clones are one server.
#[derive(Clone)]
pub struct Server(Arc<House>);

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.0.regions.keys()).finish()
    }
}

/// What all connections share.
struct House {
    regions: BTreeMap<RegionName, Arc<dyn Region>>,
    options: ServerOptions,
    /// What tokens are derived from; of this process.
    secret: [u8; 32],
    door: Door,
    holds: Holds,
    sessions: Mutex<HashMap<(Identity, Session), Joinable>>,
    closing: CancellationToken,
    tasks: TaskTracker,
    last_link: AtomicU32,
}

/// A session that takes further links.
#[derive(Clone)]
enum Joinable {
    Push(Arc<Pump<Receiver>>),
    Pull(Arc<Pump<Sender>>),
}

impl Joinable {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Push(one), Self::Push(other)) => Arc::ptr_eq(one, other),
            (Self::Pull(one), Self::Pull(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Server {
    /// Serves these regions, by these names.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the system gives no random numbers.
    pub fn new(
        regions: impl IntoIterator<Item = (RegionName, Arc<dyn Region>)>,
        options: ServerOptions,
    ) -> Result<Self> {
        let (one, two) = (host::random()?, host::random()?);
        let mut secret = [0; 32];
        secret[..16].copy_from_slice(&one);
        secret[16..].copy_from_slice(&two);
        Ok(Self(Arc::new(House {
            regions: regions.into_iter().collect(),
            door: Door::new(options.caps),
            options,
            secret,
            holds: Holds::default(),
            sessions: Mutex::default(),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
            last_link: AtomicU32::new(0),
        })))
    }

    /// Serves whoever connects, as far as the policy lets them, until [`Server::shutdown`].
    ///
    /// A server may listen in several places at once.
    ///
    /// # Cancel safety
    /// Safe: nobody else is let in, and those who are inside stay.
    pub async fn serve(&self, listener: Listener, policy: Policy) {
        let (_keep, policy) = watch::channel(policy);
        self.serve_by(listener, policy).await;
    }

    /// As [`Server::serve`], by a policy that may change meanwhile. Each request is held against
    /// what it is then. A peer that it no longer names is told so and hung up on; what it pushed is
    /// put on record, and its stages are let go.
    ///
    /// # Cancel safety
    /// As [`Server::serve`].
    pub async fn serve_by(&self, listener: Listener, policy: watch::Receiver<Policy>) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.0.closing.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(incoming) => {
                    let run = connection::run(self.0.clone(), policy.clone(), incoming);
                    self.0.tasks.spawn(run);
                }
                // Out of descriptors, say: those who are inside give some back.
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    /// Ends every session: what was written is put on record, stages are kept and let go. Returns
    /// when all of it is done; `false` when that took longer than `deadline`.
    ///
    /// # Cancel safety
    /// Safe: the end goes on.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        self.0.closing.cancel();
        self.0.tasks.close();
        timeout(deadline, self.0.tasks.wait()).await.is_ok()
    }
}

/// How long nobody is let in after that has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl House {
    fn region(&self, name: &RegionName) -> Result<&Arc<dyn Region>> {
        self.regions.get(name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("use region {name}: it is not served here"))
        })
    }

    fn next_link(&self) -> LinkId {
        LinkId(self.last_link.fetch_add(1, Relaxed))
    }

    fn token(&self, identity: &Identity, session: Session) -> Token {
        Token::derive(&self.secret, identity.as_str(), session)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<(Identity, Session), Joinable>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session that a join belongs to: its token, and who it is, must fit.
    fn find_session(&self, identity: &Identity, join: &Join) -> Option<Joinable> {
        let sessions = self.sessions();
        let session = sessions.get(&(identity.clone(), join.session))?;
        let admits = match session {
            Joinable::Push(pump) => pump.look(|receiver| receiver.admits(join)),
            Joinable::Pull(pump) => pump.look(|sender| sender.admits(join)),
        };
        (admits == Some(true)).then(|| session.clone())
    }
}
