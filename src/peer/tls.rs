//! TLS between daemons: version 1.3 alone, certificates on both sides, who the other side is.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, RootCertStore, ServerConfig,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::identity::Identity;
use crate::disk::File;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::to_usize;
use crate::host;
use crate::id::shown;

/// This side's certificate and key, and the authorities that must have signed the other side's; a
/// cheap handle.
///
/// TLS 1.3 from the first byte, application protocol `blockferry/1`, no session is ever resumed and
/// no byte sent before the handshake ends. Both sides show a certificate. The authorities are
/// private: those of the system count for nothing.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    identity: Identity,
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

impl Tls {
    /// How long a handshake may take.
    pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

    /// Reads three PEM files: this side's certificate, followed by those between it and its
    /// authority if there are any; its private key; and the authorities of the other side.
    ///
    /// Blocks for as long as the files take to read.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a file without what it should have, and a key of another
    /// certificate; [`ErrorKind::Denied`] for a certificate or an authority that has expired or is
    /// not valid yet, and for a certificate that names no [`Identity`]; otherwise what reading
    /// gives. All name the file.
    pub fn load(cert: &Path, key: &Path, ca: &Path) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let authorities = certificates(ca)?;
        let roots = roots(&authorities).map_err(|error| error.within(place(ca)))?;
        let verifier = client_verifier(&roots, &provider).map_err(|e| e.within(place(ca)))?;
        for authority in &authorities {
            check_times(&verifier, authority, "use the authority's certificate")
                .map_err(|error| error.within(place(ca)))?;
        }
        let chain = certificates(cert)?;
        let identity = chain
            .first()
            .ok_or_else(|| nothing_in("a certificate"))
            .and_then(|own| {
                check_times(&verifier, own, "use this side's certificate")?;
                identity_of(own)
            })
            .map_err(|error| error.within(place(cert)))?;
        let own = certified(chain, private_key(key)?, &provider)
            .map_err(|error| error.within(place(key)))?;
        let acceptor = server(own.clone(), verifier, &provider)?;
        let connector = client(own, roots, &provider)?;
        Ok(Self(Arc::new(Inner { identity, connector, acceptor })))
    }

    /// Who this side is.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// Opens TLS on a connection that this side dialled; `host` is the name or the address that
    /// the other side's certificate must be for.
    ///
    /// When it returns, the other side may not have looked at this side's certificate yet: that it
    /// refuses it is then seen at the first read. See [`stream_error`].
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] for a certificate that is not accepted; [`ErrorKind::Unsupported`]
    /// when the other side speaks something else; [`ErrorKind::Unavailable`] when the connection
    /// ends, or the handshake takes longer than [`Tls::HANDSHAKE_TIME`]; [`ErrorKind::Invalid`] for
    /// a host that is none.
    ///
    /// # Cancel safety
    /// Lossy: the connection is lost with it.
    pub async fn dial<S>(&self, stream: S, host: &str) -> Result<(TlsStream<S>, Identity)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = server_name(host)?;
        let handshake = self.0.connector.connect(name, stream);
        let stream = TlsStream::Client(in_time("open TLS to the other side", handshake).await?);
        let identity = far_side(stream.get_ref().1)?;
        Ok((stream, identity))
    }

    /// Opens TLS on a connection that the other side dialled.
    ///
    /// # Errors
    /// As [`Tls::dial`].
    ///
    /// # Cancel safety
    /// Lossy: the connection is lost with it.
    pub async fn accept<S>(&self, stream: S) -> Result<(TlsStream<S>, Identity)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = self.0.acceptor.accept(stream);
        let stream = TlsStream::Server(in_time("accept TLS from a peer", handshake).await?);
        let identity = far_side(stream.get_ref().1)?;
        Ok((stream, identity))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({})", self.0.identity)
    }
}

/// What a failed read or write of a TLS stream means: [`ErrorKind::Denied`] when the other side
/// refuses this side's certificate, which the dialling side learns no earlier; otherwise
/// [`ErrorKind::Unavailable`].
pub fn stream_error(action: &'static str, cause: io::Error) -> Error {
    let kind = match tls_cause(&cause).map(kind_of) {
        Some(ErrorKind::Denied) => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    };
    explained(Error::new(kind, action), cause)
}

/// As [`stream_error`], in a handshake: there, what is no TLS 1.3 at all will not be when it is
/// tried again.
fn handshake_error(action: &'static str, cause: io::Error) -> Error {
    let kind = tls_cause(&cause).map_or(ErrorKind::Unavailable, kind_of);
    explained(Error::new(kind, action), cause)
}

fn explained(error: Error, cause: io::Error) -> Error {
    let error = match tls_cause(&cause) {
        Some(rustls::Error::AlertReceived(_)) if error.kind() == ErrorKind::Denied => {
            error.hint("the other side does not accept this side's certificate")
        }
        _ if error.kind() == ErrorKind::Unsupported => {
            error.hint("the other side does not speak TLS 1.3 with blockferry/1 inside")
        }
        _ => error,
    };
    error.because(cause)
}

fn tls_cause(cause: &io::Error) -> Option<&rustls::Error> {
    cause.get_ref()?.downcast_ref()
}

fn kind_of(error: &rustls::Error) -> ErrorKind {
    use rustls::Error as Tls;
    match error {
        Tls::InvalidCertificate(_) | Tls::NoCertificatesPresented => ErrorKind::Denied,
        Tls::AlertReceived(alert) => kind_of_alert(*alert),
        Tls::InvalidMessage(_)
        | Tls::InappropriateMessage { .. }
        | Tls::InappropriateHandshakeMessage { .. }
        | Tls::NoApplicationProtocol
        | Tls::PeerIncompatible(_)
        | Tls::PeerMisbehaved(_)
        | Tls::PeerSentOversizedRecord => ErrorKind::Unsupported,
        _ => ErrorKind::Unavailable,
    }
}

fn kind_of_alert(alert: AlertDescription) -> ErrorKind {
    use AlertDescription as Alert;
    match alert {
        Alert::AccessDenied
        | Alert::BadCertificate
        | Alert::CertificateExpired
        | Alert::CertificateRequired
        | Alert::CertificateRevoked
        | Alert::CertificateUnknown
        | Alert::NoCertificate
        | Alert::UnknownCA
        | Alert::UnsupportedCertificate => ErrorKind::Denied,
        Alert::HandshakeFailure
        | Alert::IllegalParameter
        | Alert::InsufficientSecurity
        | Alert::NoApplicationProtocol
        | Alert::ProtocolVersion
        | Alert::UnexpectedMessage
        | Alert::UnrecognisedName => ErrorKind::Unsupported,
        _ => ErrorKind::Unavailable,
    }
}

async fn in_time<T>(
    action: &'static str,
    handshake: impl Future<Output = io::Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(Tls::HANDSHAKE_TIME, handshake).await {
        Ok(done) => done.map_err(|cause| handshake_error(action, cause)),
        Err(late) => Err(Error::new(ErrorKind::Unavailable, action)
            .hint("the handshake took longer than 10 s")
            .because(late)),
    }
}

/// Who the other side of a finished handshake is.
fn far_side(connection: &CommonState) -> Result<Identity> {
    if connection.alpn_protocol() != Some(PROTOCOL) {
        // rustls lets a peer pass that names no protocol at all.
        return Err(Error::new(ErrorKind::Unsupported, "agree on the protocol inside TLS")
            .hint("the other side does not say that it speaks blockferry/1"));
    }
    let certificate = connection.peer_certificates().and_then(<[_]>::first).ok_or_else(|| {
        Error::new(ErrorKind::Denied, "look at the other side's certificate: it shows none")
    })?;
    identity_of(certificate)
}

fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity> {
    let parsed = webpki::EndEntityCert::try_from(certificate)
        .map_err(|cause| Error::new(ErrorKind::Denied, "read a certificate").because(cause))?;
    Identity::of_uris(parsed.valid_uri_names())
}

/// A host as it stands in a URL, in brackets or not.
fn server_name(host: &str) -> Result<ServerName<'static>> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(bare.to_owned()).map_err(|cause| {
        Error::new(ErrorKind::Invalid, format!("use {} as a host", shown(host))).because(cause)
    })
}

fn client(
    own: Arc<SingleCertAndKey>,
    roots: Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<TlsConnector> {
    let mut config = ClientConfig::builder_with_details(provider.clone(), Arc::new(HostTime))
        .with_protocol_versions(&[&TLS13])
        .map_err(unprepared)?
        .with_root_certificates(roots)
        .with_client_cert_resolver(own);
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(TlsConnector::from(Arc::new(config)))
}

fn server(
    own: Arc<SingleCertAndKey>,
    verifier: Arc<dyn ClientCertVerifier>,
    provider: &Arc<CryptoProvider>,
) -> Result<TlsAcceptor> {
    let mut config = ServerConfig::builder_with_details(provider.clone(), Arc::new(HostTime))
        .with_protocol_versions(&[&TLS13])
        .map_err(unprepared)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(own);
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    // A session that could be resumed would outlive a certificate that expires or is replaced.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn client_verifier(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>> {
    WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build().map_err(
        |cause| Error::new(ErrorKind::Invalid, "use the authority's certificate").because(cause),
    )
}

fn unprepared(cause: rustls::Error) -> Error {
    Error::new(ErrorKind::Unsupported, "prepare TLS 1.3").because(cause)
}

/// Says so early when a certificate's time has passed or has not come. The verifier looks at the
/// times before it looks for who signed it, and that alone is asked here.
fn check_times(
    verifier: &Arc<dyn ClientCertVerifier>,
    certificate: &CertificateDer<'_>,
    action: &'static str,
) -> Result<()> {
    use CertificateError as Why;
    let now = HostTime.current_time().unwrap_or_else(|| UnixTime::since_unix_epoch(Duration::ZERO));
    let Err(cause) = verifier.verify_client_cert(certificate, &[], now) else { return Ok(()) };
    let denied = |hint: &'static str| Error::new(ErrorKind::Denied, action).hint(hint);
    match &cause {
        rustls::Error::InvalidCertificate(Why::Expired | Why::ExpiredContext { .. }) => {
            Err(denied("it has expired").because(cause))
        }
        rustls::Error::InvalidCertificate(Why::NotValidYet | Why::NotValidYetContext { .. }) => {
            Err(denied("it is not valid yet").because(cause))
        }
        rustls::Error::InvalidCertificate(Why::BadEncoding) => {
            Err(Error::new(ErrorKind::Invalid, action).because(cause))
        }
        _ => Ok(()),
    }
}

fn roots(authorities: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|cause| {
            Error::new(ErrorKind::Invalid, "use the authority's certificate").because(cause)
        })?;
    }
    Ok(Arc::new(roots))
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<Arc<SingleCertAndKey>> {
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(|cause| {
        let error = Error::new(ErrorKind::Invalid, "use the private key");
        match cause {
            rustls::Error::InconsistentKeys(_) => error.hint("it is that of another certificate"),
            _ => error,
        }
        .because(cause)
    })?;
    Ok(Arc::new(SingleCertAndKey::from(certified)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = contents(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|cause| {
        Error::new(ErrorKind::Invalid, "read certificates").within(place(path)).because(cause)
    })?;
    if all.is_empty() { Err(nothing_in("a certificate").within(place(path))) } else { Ok(all) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    // The cause is left out: it may quote what it could not read.
    PrivateKeyDer::from_pem_slice(&contents(path)?)
        .map_err(|_| nothing_in("a private key that is not encrypted").within(place(path)))
}

fn nothing_in(what: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("find {what} in PEM form"))
}

fn contents(path: &Path) -> Result<Vec<u8>> {
    let read = || {
        let file = File::open_path(path)?;
        let len = file.len()?;
        if len > FILE_BYTES_MAX {
            return Err(Error::new(ErrorKind::Invalid, "read certificates: it is over 1 MiB"));
        }
        let mut bytes = vec![0; to_usize(len)];
        let read = file.read_at(0, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    };
    read().map_err(|error: Error| error.within(place(path)))
}

fn place(path: &Path) -> String {
    path.display().to_string()
}

/// The time that certificates are held against: the host's, or that of a simulation.
#[derive(Debug)]
struct HostTime;

impl TimeProvider for HostTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(host::unix_ms())))
    }
}

const PROTOCOL: &[u8] = b"blockferry/1";
const FILE_BYTES_MAX: u64 = 1 << 20;
