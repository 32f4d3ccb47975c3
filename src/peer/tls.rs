//! TLS between daemons: version 1.3 alone, certificates on both sides, who the other side is.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, RootCertStore, ServerConfig,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::identity::Identity;
use super::pem::{certificates, nothing_in, place, private_key, revocations};
use crate::error::{Error, ErrorKind, Result};
use crate::host;
use crate::id::shown;

/// This side's certificate and key, and the authorities that must have signed the other side's; a
/// cheap handle, all clones of which are one: [`Tls::reload`] changes them all.
///
/// TLS 1.3 from the first byte, application protocol `blockferry/1`, no session is ever resumed and
/// no byte sent before the handshake ends. Both sides show a certificate. The authorities are
/// private: those of the system count for nothing.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    identity: Identity,
    ends: Mutex<Ends>,
}

/// What handshakes are made with, on either side.
#[derive(Clone)]
struct Ends {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

/// Where a [`Tls`] comes from: PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsFiles {
    /// This side's certificate, followed by those between it and its authority if there are any.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of the other side.
    pub ca: PathBuf,
    /// The lists of certificates that those authorities have revoked, if there are any.
    pub crl: Option<PathBuf>,
}

impl TlsFiles {
    /// These files, and no list of revoked certificates.
    pub fn new(cert: impl Into<PathBuf>, key: impl Into<PathBuf>, ca: impl Into<PathBuf>) -> Self {
        Self { cert: cert.into(), key: key.into(), ca: ca.into(), crl: None }
    }

    /// With a file of lists of revoked certificates. A certificate on one of them is refused, on
    /// either side. An authority without a list there has revoked nothing, and a list counts also
    /// after the time at which it says that there will be a next one.
    #[must_use]
    pub fn with_crl(mut self, crl: Option<PathBuf>) -> Self {
        self.crl = crl;
        self
    }

    fn read(&self) -> Result<(Identity, Ends)> {
        let Self { cert, key, ca, crl } = self;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let authorities = certificates(ca)?;
        let roots = roots(&authorities).map_err(|error| error.within(place(ca)))?;
        let crls = crl.as_deref().map(revocations).transpose()?.unwrap_or_default();
        // Which of the two files a verifier that cannot be made complains of.
        let of = crl.as_ref().filter(|_| !crls.is_empty()).unwrap_or(ca);
        let verifier = client_verifier(&roots, &crls, &provider);
        let verifier = verifier.map_err(|error| error.within(place(of)))?;
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
        let connector = client(own, roots, crls, &provider)?;
        Ok((identity, Ends { connector, acceptor }))
    }
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
        Self::open(&TlsFiles::new(cert, key, ca))
    }

    /// Reads these files, as [`Tls::load`] does.
    ///
    /// # Errors
    /// Those of [`Tls::load`]; [`ErrorKind::Invalid`] for a list of revoked certificates that is
    /// none.
    pub fn open(files: &TlsFiles) -> Result<Self> {
        let (identity, ends) = files.read()?;
        Ok(Self(Arc::new(Inner { identity, ends: Mutex::new(ends) })))
    }

    /// Reads files again. Every handshake after this, of any clone, is made with what they hold;
    /// connections that are open stay. Where it fails, everything stays as it was.
    ///
    /// Blocks for as long as the files take to read.
    ///
    /// # Errors
    /// Those of [`Tls::open`]; [`ErrorKind::Invalid`] for a certificate of another identity.
    pub fn reload(&self, files: &TlsFiles) -> Result<()> {
        let (identity, ends) = files.read()?;
        if identity != self.0.identity {
            let action = format!("go on as {identity}: this side is {}", self.0.identity);
            let error = Error::new(ErrorKind::Invalid, action).within(place(&files.cert));
            return Err(error.hint("start anew to be somebody else"));
        }
        *self.ends() = ends;
        Ok(())
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.ends.lock().unwrap_or_else(PoisonError::into_inner)
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
        let connector = self.ends().connector.clone();
        let handshake = connector.connect(name, stream);
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
        let acceptor = self.ends().acceptor.clone();
        let handshake = acceptor.accept(stream);
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
    crls: Vec<CertificateRevocationListDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<TlsConnector> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
        .with_crls(crls)
        .allow_unknown_revocation_status()
        .build()
        .map_err(unverifiable)?;
    let mut config = ClientConfig::builder_with_details(provider.clone(), Arc::new(HostTime))
        .with_protocol_versions(&[&TLS13])
        .map_err(unprepared)?
        .with_webpki_verifier(verifier)
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
    crls: &[CertificateRevocationListDer<'static>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>> {
    WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .with_crls(crls.iter().cloned())
        .allow_unknown_revocation_status()
        .build()
        .map_err(unverifiable)
}

fn unverifiable(cause: VerifierBuilderError) -> Error {
    let action = match cause {
        VerifierBuilderError::InvalidCrl(_) => "use a list of revoked certificates",
        _ => "use the authority's certificate",
    };
    Error::new(ErrorKind::Invalid, action).because(cause)
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

/// The time that certificates are held against: the host's, or that of a simulation.
#[derive(Debug)]
struct HostTime;

impl TimeProvider for HostTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(host::unix_ms())))
    }
}

const PROTOCOL: &[u8] = b"blockferry/1";
