//! TLS between daemons, with certificates that the real `blockferry cert` made: who gets in, who
//! does not, and what either side is told.
#![cfg(all(feature = "cli", feature = "peer"))]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail the test that calls them"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use blockferry::peer::{
    Ceilings, Door, DoorCaps, Identity, Policy, Tls, TlsFiles, TlsStream, stream_error,
};
use blockferry::region::{MemoryRegion, Region};
use blockferry::serve::{Listener, Server, ServerOptions};
use blockferry::{Error, ErrorKind, Result};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, HandshakeKind, RootCertStore, ServerConfig};
use serde_json::Value;
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const BINARY: &str = env!("CARGO_BIN_EXE_blockferry");
const PROTOCOL: &[u8] = b"blockferry/1";
/// More than any handshake here writes before it waits for an answer.
const PIPE_BYTES: usize = 64 << 10;
/// As the manual promises.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

// ---- A world with authorities ----

/// A folder with an authority `ca` that has issued `alpha` and `beta`.
struct World {
    temp: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { temp: tempfile::tempdir().unwrap() };
        world.good(&["init", "ca"]);
        for name in ["alpha", "beta"] {
            world.good(&["issue", "ca", name]);
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn cert(&self, args: &[&str]) -> (Option<i32>, Value) {
        let mut command = Command::new(BINARY);
        command.arg("cert").args(args).arg("--json").current_dir(self.temp.path());
        let output = command.stdin(Stdio::null()).output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let json = serde_json::from_str(stdout.trim()).unwrap_or_else(|_| panic!("{stdout:?}"));
        (output.status.code(), json)
    }

    fn good(&self, args: &[&str]) -> Value {
        let (code, json) = self.cert(args);
        assert_eq!((code, &json["error"]), (Some(0), &Value::Null), "{args:?}: {json}");
        json
    }

    fn refused(&self, args: &[&str], code: i32, kind: &str) -> String {
        let (found, json) = self.cert(args);
        assert_eq!(found, Some(code), "{args:?}: {json}");
        assert_eq!(json["error"]["kind"], kind, "{args:?}: {json}");
        json["error"]["message"].as_str().unwrap().to_owned()
    }

    /// The certificate of that name, and the authority that the other side must have.
    fn load(&self, name: &str, ca: &str) -> Result<Tls> {
        let file = |end: &str| self.path(&format!("{name}.{end}"));
        Tls::load(&file("pem"), &file("key"), &self.path(&format!("{ca}.pem")))
    }

    fn tls(&self, name: &str) -> Tls {
        self.load(&format!("ca/{name}"), "ca/ca").unwrap()
    }

    /// A certificate that `blockferry cert` would not issue, signed by the authority all the same.
    fn forge(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let ca = CertificateDer::from_pem_file(self.path("ca/ca.pem")).unwrap();
        let ca_key = fs::read_to_string(self.path("ca/ca.key")).unwrap();
        let issuer = Issuer::from_ca_cert_der(&ca, KeyPair::from_pem(&ca_key).unwrap()).unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.subject_alt_names.push(uri(&format!("blockferry:{name}")));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let made = params.signed_by(&key, &issuer).unwrap();
        fs::write(self.path(&format!("ca/{name}.pem")), made.pem()).unwrap();
        fs::write(self.path(&format!("ca/{name}.key")), key.serialize_pem()).unwrap();
    }

    /// A list that says that the authority has revoked these certificates.
    fn revoke(&self, names: &[&str]) {
        revoke(&self.path("ca"), names);
    }

    fn chain(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let cert = CertificateDer::from_pem_file(self.path(&format!("ca/{name}.pem"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.path(&format!("ca/{name}.key"))).unwrap();
        (vec![cert], key)
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca/ca.pem")).unwrap()).unwrap();
        Arc::new(roots)
    }

    /// A client of another make, with that certificate or none, that offers these protocols.
    fn client(&self, name: Option<&str>, protocols: &[&[u8]]) -> Arc<ClientConfig> {
        let config = ClientConfig::builder().with_root_certificates(self.roots());
        let mut config = match name.map(|name| self.chain(name)) {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }

    /// A server of another make, with that certificate.
    fn server(&self, name: &str, protocols: &[&[u8]]) -> TlsAcceptor {
        let (chain, key) = self.chain(name);
        let verifier = WebPkiClientVerifier::builder(self.roots()).build().unwrap();
        let config = ServerConfig::builder().with_client_cert_verifier(verifier);
        let mut config = config.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Writes `ca.crl` into the folder of an authority: it has revoked the certificates of these names.
pub(crate) fn revoke(ca: &Path, names: &[&str]) {
    let issuer = CertificateDer::from_pem_file(ca.join("ca.pem")).unwrap();
    let key = fs::read_to_string(ca.join("ca.key")).unwrap();
    let issuer = Issuer::from_ca_cert_der(&issuer, KeyPair::from_pem(&key).unwrap()).unwrap();
    let now = OffsetDateTime::now_utc();
    let revoked = |name: &&str| {
        let certificate = CertificateDer::from_pem_file(ca.join(format!("{name}.pem"))).unwrap();
        let certificate = webpki::EndEntityCert::try_from(&certificate).unwrap();
        RevokedCertParams {
            serial_number: SerialNumber::from_slice(certificate.serial()),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        }
    };
    let list = CertificateRevocationListParams {
        this_update: now,
        // Overdue at once: it counts all the same.
        next_update: now + time::Duration::seconds(1),
        crl_number: SerialNumber::from(u64::try_from(names.len()).unwrap() + 1),
        issuing_distribution_point: None,
        revoked_certs: names.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&issuer).unwrap().pem().unwrap();
    let half = ca.join("ca.crl.half");
    fs::write(&half, list).unwrap();
    fs::rename(&half, ca.join("ca.crl")).unwrap();
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn years_from_now(years: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + time::Duration::days(365 * years)
}

type Accepted<S> = Result<(TlsStream<S>, Identity)>;

/// A handshake of two of ours over a pipe.
async fn meet(
    dialler: &Tls,
    host: &str,
    acceptor: &Tls,
) -> (Accepted<DuplexStream>, Accepted<DuplexStream>) {
    let (near, far) = duplex(PIPE_BYTES);
    tokio::join!(dialler.dial(near, host), acceptor.accept(far))
}

/// A handshake of a client of another make with one of ours; the client's own first read too.
async fn meet_client(
    config: Arc<ClientConfig>,
    acceptor: &Tls,
) -> (std::io::Result<usize>, Accepted<DuplexStream>) {
    let (near, far) = duplex(PIPE_BYTES);
    let client = async {
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(config).connect(name, near).await?;
        stream.read(&mut [0; 1]).await
    };
    let server = async {
        let accepted = acceptor.accept(far).await;
        // What is refused is closed; what is accepted says a byte.
        match accepted {
            Ok((mut stream, identity)) => {
                stream.write_all(b"!").await.unwrap();
                stream.flush().await.unwrap();
                Ok((stream, identity))
            }
            Err(error) => Err(error),
        }
    };
    tokio::join!(client, server)
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    match result {
        Ok(_) => panic!("it is let in"),
        Err(error) => error.kind(),
    }
}

/// What the dialling side learns at its first read, once the other side has refused it.
async fn first_read<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut TlsStream<S>) -> Error {
    let read = stream.read(&mut [0; 1]).await;
    stream_error("read an answer", read.unwrap_err())
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(one: &mut TlsStream<S>, other: &mut TlsStream<S>) {
    for len in [1, 5, 100_000] {
        let sent = vec![7; len];
        let mut got = vec![0; len];
        let write = async {
            one.write_all(&sent).await.unwrap();
            one.flush().await.unwrap();
        };
        let read = async { other.read_exact(&mut got).await.unwrap() };
        tokio::join!(write, read);
        assert_eq!(got, sent);
    }
}

// ---- Who gets in ----

#[tokio::test]
async fn both_sides_learn_each_other_s_names() {
    let world = World::new();
    let (alpha, beta) = (world.tls("alpha"), world.tls("beta"));
    assert_eq!(alpha.identity().as_str(), "alpha");
    for host in ["localhost", "127.0.0.1", "::1", "[::1]"] {
        let (dialled, accepted) = meet(&alpha, host, &beta).await;
        let ((mut near, far_name), (mut far, near_name)) = (dialled.unwrap(), accepted.unwrap());
        assert_eq!((far_name.as_str(), near_name.as_str()), ("beta", "alpha"));
        talk(&mut near, &mut far).await;
        talk(&mut far, &mut near).await;
    }
}

#[tokio::test]
async fn it_works_over_tcp_and_an_end_without_goodbye_is_no_end_of_data() {
    let world = World::new();
    let (alpha, beta) = (world.tls("alpha"), world.tls("beta"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let dial = async { alpha.dial(TcpStream::connect(address).await.unwrap(), "localhost").await };
    let accept = async { beta.accept(listener.accept().await.unwrap().0).await };
    let (dialled, accepted) = tokio::join!(dial, accept);
    let ((mut near, _), (mut far, near_name)) = (dialled.unwrap(), accepted.unwrap());
    assert_eq!(near_name.as_str(), "alpha");
    talk(&mut near, &mut far).await;
    // As when the process is killed: the socket closes, and nothing is said.
    drop(near);
    assert_eq!(first_read(&mut far).await.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn an_authority_that_is_not_ours_lets_nobody_in() {
    let world = World::new();
    world.good(&["init", "other"]);
    world.good(&["issue", "other", "alpha"]);
    let ours = world.tls("beta");

    // Signed by the other authority, trusts ours.
    let stranger = world.load("other/alpha", "ca/ca").unwrap();
    let (dialled, accepted) = meet(&stranger, "localhost", &ours).await;
    assert_eq!(kind(accepted), ErrorKind::Denied);
    let refusal = first_read(&mut dialled.unwrap().0).await;
    assert_eq!(refusal.kind(), ErrorKind::Denied, "{}", refusal.report());
    assert!(!refusal.is_retryable());
    let (dialled, accepted) = meet(&ours, "localhost", &stranger).await;
    assert_eq!((kind(dialled), kind(accepted)), (ErrorKind::Denied, ErrorKind::Denied));

    // Signed by ours, trusts the other: then it is that side which refuses.
    let sceptic = world.load("ca/alpha", "other/ca").unwrap();
    let (dialled, accepted) = meet(&sceptic, "localhost", &ours).await;
    assert_eq!((kind(dialled), kind(accepted)), (ErrorKind::Denied, ErrorKind::Denied));
    let (dialled, accepted) = meet(&ours, "localhost", &sceptic).await;
    assert_eq!(kind(accepted), ErrorKind::Denied);
    assert_eq!(first_read(&mut dialled.unwrap().0).await.kind(), ErrorKind::Denied);

    // Two authorities can be trusted at once: that is how one is replaced by another.
    let both = [world.path("ca/ca.pem"), world.path("other/ca.pem")];
    let both = both.map(|path| fs::read_to_string(path).unwrap()).concat();
    fs::write(world.path("both.pem"), both).unwrap();
    let host = world.load("ca/beta", "both").unwrap();
    let (dialled, accepted) = meet(&stranger, "localhost", &host).await;
    assert!(dialled.is_ok() && accepted.is_ok());
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let world = World::new();
    let beta = world.tls("beta");
    let (read, accepted) = meet_client(world.client(None, &[PROTOCOL]), &beta).await;
    assert_eq!(kind(accepted), ErrorKind::Denied);
    assert_eq!(stream_error("read", read.unwrap_err()).kind(), ErrorKind::Denied);
    // The same client with a certificate is let in: it was that, and nothing else.
    let (read, accepted) = meet_client(world.client(Some("alpha"), &[PROTOCOL]), &beta).await;
    assert_eq!((read.unwrap(), accepted.unwrap().1.as_str()), (1, "alpha"));
}

#[tokio::test]
async fn certificates_out_of_their_time_are_refused_on_either_side() {
    let world = World::new();
    world.forge("old", |params| params.not_after = years_from_now(-1));
    world.forge("early", |params| params.not_before = years_from_now(1));
    let beta = world.tls("beta");
    for name in ["old", "early"] {
        let (read, accepted) = meet_client(world.client(Some(name), &[PROTOCOL]), &beta).await;
        assert_eq!(kind(accepted), ErrorKind::Denied, "{name}");
        assert_eq!(stream_error("read", read.unwrap_err()).kind(), ErrorKind::Denied);

        let (near, far) = duplex(PIPE_BYTES);
        let host = world.server(name, &[PROTOCOL]);
        let (dialled, accepted) = tokio::join!(beta.dial(near, "localhost"), host.accept(far));
        assert_eq!(kind(dialled), ErrorKind::Denied, "{name}");
        assert!(accepted.is_err());
    }
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_on_either_side_once_the_list_is_read() {
    let world = World::new();
    world.good(&["issue", "ca", "gamma"]);
    let (alpha, gamma) = (world.tls("alpha"), world.tls("gamma"));
    let file = |name: &str| world.path(&format!("ca/{name}"));
    let files = TlsFiles::new(file("beta.pem"), file("beta.key"), file("ca.pem"));
    let beta = Tls::open(&files).unwrap();
    let clone = beta.clone();
    let listed = files.clone().with_crl(Some(file("ca.crl")));
    assert_eq!(kind(beta.reload(&listed)), ErrorKind::NotFound);
    world.revoke(&[]);
    beta.reload(&listed).unwrap();
    for name in [&alpha, &gamma] {
        let (dialled, accepted) = meet(name, "localhost", &beta).await;
        assert!(dialled.is_ok() && accepted.is_ok(), "nothing is revoked yet");
    }
    world.revoke(&["gamma"]);
    let (_, accepted) = meet(&gamma, "localhost", &beta).await;
    assert!(accepted.is_ok(), "nor read");
    beta.reload(&listed).unwrap();
    let (mut dialled, accepted) = meet(&gamma, "localhost", &clone).await;
    assert_eq!(kind(accepted), ErrorKind::Denied, "by a clone of before, too");
    let stream = &mut dialled.as_mut().unwrap().0;
    assert_eq!(first_read(stream).await.kind(), ErrorKind::Denied);
    let (dialled, _) = meet(&beta, "localhost", &gamma).await;
    assert_eq!(kind(dialled), ErrorKind::Denied, "nor is it dialled");
    let (dialled, accepted) = meet(&alpha, "localhost", &beta).await;
    assert!(dialled.is_ok() && accepted.is_ok(), "others are let in as before");
    // What is wrong changes nothing.
    fs::write(file("ca.crl"), "no list at all").unwrap();
    let error = beta.reload(&listed).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("ca.crl"), "{error}");
    let other = TlsFiles::new(file("alpha.pem"), file("alpha.key"), file("ca.pem"));
    assert_eq!(kind(beta.reload(&other)), ErrorKind::Invalid, "it is somebody else");
    let (_, accepted) = meet(&gamma, "localhost", &beta).await;
    assert_eq!(kind(accepted), ErrorKind::Denied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_refuses_a_daemon_whose_certificate_is_on_its_list() {
    let world = World::new();
    let there: Arc<dyn Region> = Arc::new(MemoryRegion::new("b"));
    let server = Server::new([("b".parse().unwrap(), there)], ServerOptions::default()).unwrap();
    let listener = Listener::tcp("127.0.0.1:0", world.tls("beta")).await.unwrap();
    let address = listener.address().unwrap();
    let policy = "[[peer]]\nidentity = \"alpha\"\n[[peer.grant]]\nregions = [\"b\"]\n\
                  operations = [\"push\"]\n";
    let policy = Policy::parse(policy).unwrap();
    let serving = tokio::spawn({
        let server = server.clone();
        async move { server.serve(listener, policy).await }
    });
    fs::write(world.path("disk.raw"), vec![7; 100_000]).unwrap();
    // How it ends, by what it is shown.
    let copy = |image: &str, words: &[&str], set: &str| {
        let mut command = Command::new(BINARY);
        command.args(["copy", "disk.raw", &format!("ferrys://{address}/b/{image}"), "--json"]);
        command.args(words).current_dir(world.temp.path()).stdin(Stdio::null());
        command.env("BLOCKFERRY_STATE_DIR", world.path("state")).env("BLOCKFERRY_CRL", set);
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        json["error"]["kind"].as_str().map(str::to_owned)
    };
    let shown = ["--cert", "ca/alpha.pem", "--key", "ca/alpha.key", "--ca", "ca/ca.pem"];
    let listed = [&shown[..], &["--crl", "ca/ca.crl"]].concat();
    let (denied, invalid) = (Some("denied".to_owned()), Some("invalid".to_owned()));
    world.revoke(&["alpha"]);
    assert_eq!(copy("m-1", &listed, ""), None, "another certificate is on the list");
    world.revoke(&["beta"]);
    assert_eq!(copy("m-2", &listed, ""), denied, "its own is");
    assert_eq!(copy("m-3", &shown, "ca/ca.crl"), denied, "and the environment names the list");
    assert_eq!(copy("m-4", &shown, ""), None, "no list is given");
    assert_eq!(copy("m-5", &["--crl", "ca/ca.crl"], ""), invalid, "a list of no authority");
    assert!(server.shutdown(Duration::from_secs(30)).await);
    serving.await.unwrap();
}

#[tokio::test]
async fn the_name_dialled_must_stand_in_the_certificate() {
    let world = World::new();
    world.good(&["issue", "ca", "gamma", "--host", "gamma.example", "--host", "192.0.2.7"]);
    let (alpha, gamma) = (world.tls("alpha"), world.tls("gamma"));
    for host in ["gamma.example", "GAMMA.example", "192.0.2.7"] {
        let (dialled, accepted) = meet(&alpha, host, &gamma).await;
        assert!(dialled.is_ok() && accepted.is_ok(), "{host}");
    }
    // Its own identity is no host name either.
    for host in ["localhost", "127.0.0.1", "x.gamma.example", "192.0.2.8", "gamma"] {
        let (dialled, accepted) = meet(&alpha, host, &gamma).await;
        assert_eq!((kind(dialled), kind(accepted)), (ErrorKind::Denied, ErrorKind::Denied));
    }
    for host in ["", "a b", "a/b", "[::1", "a..b"] {
        let (near, _far) = duplex(PIPE_BYTES);
        assert_eq!(kind(alpha.dial(near, host).await), ErrorKind::Invalid, "{host:?}");
    }
}

#[tokio::test]
async fn a_certificate_that_names_no_identity_or_two_is_refused() {
    let world = World::new();
    let forge = |name: &str, uris: &[&str]| {
        let uris: Vec<_> = uris.iter().map(|text| uri(text)).collect();
        world.forge(name, |params| {
            params.subject_alt_names.truncate(1);
            params.subject_alt_names.extend(uris);
        });
    };
    forge("none", &[]);
    forge("foreign", &["https://alpha.example"]);
    forge("two", &["blockferry:alpha", "blockferry:beta"]);
    forge("user", &["blockferry:uid:0"]);
    forge("path", &["blockferry:../alpha"]);
    let beta = world.tls("beta");
    for name in ["none", "foreign", "two", "user", "path"] {
        let (_, accepted) = meet_client(world.client(Some(name), &[PROTOCOL]), &beta).await;
        assert_eq!(kind(accepted), ErrorKind::Denied, "{name}");
        let error = world.load(&format!("ca/{name}"), "ca/ca").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().contains(&format!("ca/{name}.pem")), "{error}");
    }
}

// ---- What is no TLS 1.3 of ours ----

#[tokio::test]
async fn a_client_that_does_not_name_the_protocol_is_refused() {
    let world = World::new();
    let beta = world.tls("beta");
    for protocols in [&[][..], &[b"h2".as_slice()], &[b"blockferry/2".as_slice()]] {
        let (_, accepted) = meet_client(world.client(Some("alpha"), protocols), &beta).await;
        assert_eq!(kind(accepted), ErrorKind::Unsupported, "{protocols:?}");

        let (near, far) = duplex(PIPE_BYTES);
        let host = world.server("alpha", protocols);
        let (dialled, _) = tokio::join!(beta.dial(near, "localhost"), host.accept(far));
        assert_eq!(kind(dialled), ErrorKind::Unsupported, "{protocols:?}");
    }
}

#[tokio::test]
async fn what_is_no_tls_1_3_is_refused_at_once() {
    let world = World::new();
    let beta = world.tls("beta");
    let tls_1_2 = client_hello_of_tls_1_2();
    let cases: [&[u8]; 4] = [
        &tls_1_2,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n",
        &[0; 64],
    ];
    for sent in cases {
        let (mut near, far) = duplex(PIPE_BYTES);
        near.write_all(sent).await.unwrap();
        // The other end stays open: it is refused for what it said, not because it went away.
        let error = beta.accept(far).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{sent:?}: {}", error.report());
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        const ALERT: u8 = 21;
        assert!(answer.len() < 16 && answer.first() == Some(&ALERT), "{answer:?}");

        // And so is a server that says such things.
        let (near, mut far) = duplex(PIPE_BYTES);
        far.write_all(sent).await.unwrap();
        assert_eq!(kind(beta.dial(near, "localhost").await), ErrorKind::Unsupported, "{sent:?}");
    }
}

#[tokio::test]
async fn random_bytes_never_get_in() {
    let beta = World::new().tls("beta");
    let mut noise = 0x9E37_79B9_7F4A_7C15_u64;
    for round in 0..300_usize {
        let bytes: Vec<u8> = (0..round * 7)
            .map(|_| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (noise >> 56).to_le_bytes()[0]
            })
            .collect();
        let (mut near, far) = duplex(PIPE_BYTES);
        // Some rounds look like TLS at first.
        let start: &[u8] = if round % 2 == 0 { &[] } else { &[22, 3, 1] };
        near.write_all(&[start, &bytes].concat()).await.unwrap();
        near.shutdown().await.unwrap();
        let found = kind(beta.accept(far).await);
        assert!(matches!(found, ErrorKind::Unsupported | ErrorKind::Unavailable), "{found:?}");
    }
}

/// The first message of a client that knows TLS 1.2 and no later version.
fn client_hello_of_tls_1_2() -> Vec<u8> {
    let extensions = [
        [0, 10, 0, 4, 0, 2, 0, 23].as_slice(), // groups: secp256r1
        &[0, 11, 0, 2, 1, 0],                  // point formats: uncompressed
        &[0, 13, 0, 6, 0, 4, 4, 3, 8, 4],      // signatures: ecdsa_secp256r1_sha256, rsa_pss
    ]
    .concat();
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.push(0); // no session
    hello.extend([0, 4, 0xc0, 0x2b, 0xc0, 0x2f]);
    hello.extend([1, 0]); // no compression
    hello.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    hello.extend(extensions);
    let len = u16::try_from(hello.len()).unwrap();
    let mut record = vec![22, 3, 1];
    record.extend((len + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend(len.to_be_bytes());
    record.extend(hello);
    record
}

#[tokio::test]
async fn no_session_is_resumed_and_nothing_is_sent_before_the_handshake_ends() {
    let world = World::new();
    let beta = world.tls("beta");
    let mut config = Arc::unwrap_or_clone(world.client(Some("alpha"), &[PROTOCOL]));
    config.resumption = Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    let connector = TlsConnector::from(Arc::new(config));
    for _ in 0..3 {
        let (near, far) = duplex(PIPE_BYTES);
        let name = ServerName::try_from("localhost").unwrap();
        let (dialled, accepted) = tokio::join!(connector.connect(name, near), beta.accept(far));
        let (mut dialled, (mut accepted, _)) = (dialled.unwrap(), accepted.unwrap());
        // Tickets would come with the first bytes.
        accepted.write_all(b"!").await.unwrap();
        accepted.flush().await.unwrap();
        assert_eq!(dialled.read(&mut [0; 1]).await.unwrap(), 1);
        assert_eq!(dialled.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(dialled.get_ref().1.tls13_tickets_received(), 0);
        assert!(!dialled.get_ref().1.is_early_data_accepted());
    }
}

// ---- Handshakes that do not end ----

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stops_half_way_ends_in_time() {
    let world = World::new();
    let (alpha, beta) = (world.tls("alpha"), world.tls("beta"));
    let (near, mut far) = duplex(PIPE_BYTES);
    let hello = tokio::select! {
        _ = alpha.dial(near, "localhost") => panic!("nobody answers"),
        hello = read_record(&mut far) => hello,
    };
    for sent in [0, 1, 5, hello.len() / 2, hello.len() - 1, hello.len()] {
        let (mut near, far) = duplex(PIPE_BYTES);
        near.write_all(&hello[..sent]).await.unwrap();
        let start = tokio::time::Instant::now();
        let error = beta.accept(far).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{sent}: {error}");
        let took = start.elapsed();
        assert!(took.abs_diff(HANDSHAKE_TIME) < Duration::from_millis(10), "{took:?}");
    }
    let (near, _far) = duplex(PIPE_BYTES);
    let start = tokio::time::Instant::now();
    assert_eq!(kind(alpha.dial(near, "localhost").await), ErrorKind::Unavailable);
    assert!(start.elapsed().abs_diff(HANDSHAKE_TIME) < Duration::from_millis(10));
}

/// A whole TLS record: five bytes, the last two of which say how many follow.
async fn read_record(stream: &mut DuplexStream) -> Vec<u8> {
    let mut record = vec![0; 5];
    stream.read_exact(&mut record).await.unwrap();
    let len = u16::from_be_bytes([record[3], record[4]]);
    record.resize(5 + usize::from(len), 0);
    stream.read_exact(&mut record[5..]).await.unwrap();
    record
}

#[tokio::test(start_paused = true)]
async fn a_trickle_of_bytes_does_not_prolong_a_handshake() {
    let beta = World::new().tls("beta");
    let (mut near, far) = duplex(PIPE_BYTES);
    let start = tokio::time::Instant::now();
    let trickle = async {
        // A record of 4,000 bytes, one byte a second.
        for byte in [22, 3, 1, 15, 160, 1, 0, 15, 156].into_iter().chain([3; 4000]) {
            if near.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let (accepted, ()) = tokio::join!(beta.accept(far), trickle);
    assert_eq!(kind(accepted), ErrorKind::Unavailable);
    assert!(start.elapsed() < HANDSHAKE_TIME + Duration::from_secs(2));
}

#[tokio::test]
async fn a_handshake_that_is_cut_may_be_tried_again() {
    let world = World::new();
    let (alpha, beta) = (world.tls("alpha"), world.tls("beta"));
    let (near, far) = duplex(PIPE_BYTES);
    drop(far);
    let error = alpha.dial(near, "localhost").await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.is_retryable(), "{error}");
    assert!(std::error::Error::source(&error).is_some());
    let (mut near, far) = duplex(PIPE_BYTES);
    near.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    drop(near);
    let error = beta.accept(far).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.is_retryable(), "{error}");
}

#[tokio::test]
async fn many_who_only_connect_keep_nobody_out() {
    const IDLE: usize = 200;
    let world = World::new();
    let (alpha, beta) = (world.tls("alpha"), world.tls("beta"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut caps = DoorCaps::default();
    caps.handshakes_max = 8;
    let door = Door::new(caps);
    let (seats, mut seated) = tokio::sync::mpsc::channel(1);
    let serve = tokio::spawn(async move {
        for _ in 0..=IDLE {
            let (tcp, _) = listener.accept().await.unwrap();
            let knock = door.knock().unwrap();
            let (beta, seats) = (beta.clone(), seats.clone());
            tokio::spawn(async move {
                if let Ok((stream, name)) = knock.until_turned_out(beta.accept(tcp)).await {
                    let seat = knock.admit(&name, &Ceilings::default()).unwrap();
                    seats.send((stream, seat)).await.unwrap();
                }
            });
        }
    });
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    let tcp = TcpStream::connect(address).await.unwrap();
    let (mut near, _) = alpha.dial(tcp, "localhost").await.unwrap();
    let (mut far, seat) = seated.recv().await.unwrap();
    assert_eq!(seat.identity().as_str(), "alpha");
    talk(&mut near, &mut far).await;
    serve.await.unwrap();
    // Those that had to make room were hung up on.
    assert_eq!(idle[0].read(&mut [0; 1]).await.unwrap(), 0);
}

// ---- Files ----

#[test]
fn files_that_will_not_do_are_refused_by_name() {
    let world = World::new();
    world.good(&["init", "other"]);
    world.forge("old", |params| params.not_after = years_from_now(-1));
    world.forge("early", |params| params.not_before = years_from_now(1));
    fs::write(world.path("empty.pem"), "").unwrap();
    fs::write(world.path("noise.pem"), [255; 100]).unwrap();
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(world.path("broken.pem"), broken).unwrap();
    fs::write(world.path("large.pem"), vec![b'\n'; (1 << 20) + 1]).unwrap();
    let (cert, key, ca) = ("ca/alpha.pem", "ca/alpha.key", "ca/ca.pem");
    let cases = [
        ("gone.pem", key, ca, "gone.pem", ErrorKind::NotFound),
        (cert, "gone.key", ca, "gone.key", ErrorKind::NotFound),
        (cert, key, "gone.pem", "gone.pem", ErrorKind::NotFound),
        ("empty.pem", key, ca, "empty.pem", ErrorKind::Invalid),
        (cert, "empty.pem", ca, "empty.pem", ErrorKind::Invalid),
        (cert, key, "empty.pem", "empty.pem", ErrorKind::Invalid),
        ("noise.pem", key, ca, "noise.pem", ErrorKind::Invalid),
        ("large.pem", key, ca, "large.pem", ErrorKind::Invalid),
        (cert, key, "broken.pem", "broken.pem", ErrorKind::Invalid),
        // A key where a certificate should be, and the other way round.
        (key, key, ca, "ca/alpha.key", ErrorKind::Invalid),
        (cert, cert, ca, "ca/alpha.pem", ErrorKind::Invalid),
        (cert, "ca/beta.key", ca, "ca/beta.key", ErrorKind::Invalid),
        (cert, "ca", ca, "ca", ErrorKind::Invalid),
        ("ca/old.pem", "ca/old.key", ca, "ca/old.pem", ErrorKind::Denied),
        ("ca/early.pem", "ca/early.key", ca, "ca/early.pem", ErrorKind::Denied),
        // Also when it is signed by another authority than the one that the other side has.
        ("ca/old.pem", "ca/old.key", "other/ca.pem", "ca/old.pem", ErrorKind::Denied),
    ];
    for (cert, key, ca, named, kind) in cases {
        let paths = [cert, key, ca].map(|name| world.path(name));
        let error = Tls::load(&paths[0], &paths[1], &paths[2]).unwrap_err();
        let said = error.report();
        assert_eq!(error.kind(), kind, "{cert} {key} {ca}: {said}");
        assert!(said.contains(&format!("{}", world.path(named).display())), "{named}: {said}");
    }
}

#[test]
fn an_authority_that_has_expired_is_refused_at_once() {
    let world = World::new();
    let key = expired_authority(&world.path("past"));
    let [cert, own_key, ca] =
        ["ca/alpha.pem", "ca/alpha.key", "past/ca.pem"].map(|p| world.path(p));
    let error = Tls::load(&cert, &own_key, &ca).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("expired") && error.to_string().contains("past/ca.pem"));
    assert!(!key.is_empty());
}

#[test]
fn keys_are_never_shown() {
    let world = World::new();
    let tls = world.tls("alpha");
    assert_eq!(format!("{tls:?}"), "Tls(alpha)");
    // A key file that is damaged is not quoted.
    let key = fs::read_to_string(world.path("ca/alpha.key")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    for damaged in [key.replace("-----END", "----END"), key.replace(secret, &format!("{secret}!"))]
    {
        fs::write(world.path("damaged.key"), damaged).unwrap();
        let [cert, key, ca] =
            ["ca/alpha.pem", "damaged.key", "ca/ca.pem"].map(|name| world.path(name));
        let error = Tls::load(&cert, &key, &ca).unwrap_err();
        let said = format!("{error:?} {}", error.report());
        assert!(!said.contains(&secret[..16]), "{said}");
        assert!(said.contains("damaged.key"), "{said}");
    }
}

/// An authority as `cert init` makes it, long ago.
fn expired_authority(dir: &Path) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.not_after = years_from_now(-1);
    fs::create_dir(dir).unwrap();
    fs::write(dir.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(dir.join("ca.key"), key.serialize_pem()).unwrap();
    key.serialize_pem()
}

// ---- The command ----

#[test]
fn cert_says_what_it_made_and_keeps_keys_to_the_owner() {
    let world = World { temp: tempfile::tempdir().unwrap() };
    let made = world.good(&["init", "ca"]);
    assert_eq!((&made["identity"], &made["certificate"]), (&Value::Null, &"ca/ca.pem".into()));
    let issued = world.good(&["issue", "ca", "eu-1.north", "--host", "eu.example", "--days", "3"]);
    assert_eq!(issued["identity"], "eu-1.north");
    assert_eq!(issued["key"], "ca/eu-1.north.key");
    assert_eq!(issued["hosts"], serde_json::json!(["eu.example"]));
    let mode = |name: &str| fs::metadata(world.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode("ca"), mode("ca/ca.key"), mode("ca/eu-1.north.key")], [0o700, 0o600, 0o600]);
    assert_eq!([mode("ca/ca.pem") & 0o600, mode("ca/eu-1.north.pem") & 0o600], [0o600, 0o600]);
}

#[test]
fn cert_never_overwrites_anything() {
    let world = World::new();
    let listing = || -> Vec<(PathBuf, Vec<u8>)> {
        let names = fs::read_dir(world.path("ca")).unwrap().map(|entry| entry.unwrap().path());
        let mut all: Vec<_> = names.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        all.sort();
        all
    };
    let before = listing();
    let said = world.refused(&["init", "ca"], 5, "exists");
    assert!(said.contains("ca/ca.key"), "{said}");
    world.refused(&["issue", "ca", "alpha"], 5, "exists");
    world.refused(&["issue", "ca", "ca"], 5, "exists");
    assert_eq!(listing(), before);
    // Of a pair of which one file is there, the other is not left behind.
    fs::write(world.path("ca/gamma.pem"), "mine").unwrap();
    let before = listing();
    world.refused(&["issue", "ca", "gamma"], 5, "exists");
    assert_eq!(listing(), before);
}

#[test]
fn cert_refuses_what_makes_no_sense() {
    let world = World::new();
    world.refused(&["issue", "nowhere", "x"], 5, "not_found");
    world.refused(&["init", "no/such/folder"], 5, "not_found");
    for name in ["", "a/b", "../x", "a b", "uid:0", ".x"] {
        world.refused(&["issue", "ca", name], 2, "invalid");
    }
    for host in ["", "a b", "a:1", "http://a", "*"] {
        world.refused(&["issue", "ca", "x", "--host", host], 2, "invalid");
    }
    for days in ["0", "-1", "36501", "x"] {
        world.refused(&["issue", "ca", "x", "--days", days], 2, "invalid");
    }
    expired_authority(&world.path("past"));
    let said = world.refused(&["issue", "past", "x"], 1, "denied");
    assert!(said.contains("expired") && said.contains("past/ca.pem"), "{said}");
    // The key of another authority, and a certificate that is no authority's.
    world.good(&["init", "mixed"]);
    fs::copy(world.path("ca/ca.key"), world.path("mixed/ca.key")).unwrap();
    world.refused(&["issue", "mixed", "x"], 2, "invalid");
    fs::copy(world.path("ca/alpha.pem"), world.path("mixed/ca.pem")).unwrap();
    fs::copy(world.path("ca/alpha.key"), world.path("mixed/ca.key")).unwrap();
    world.refused(&["issue", "mixed", "x"], 2, "invalid");
    assert!(!world.path("mixed/x.key").exists() && !world.path("ca/x.key").exists());
}

#[test]
fn a_certificate_never_outlives_its_authority() {
    let world = World { temp: tempfile::tempdir().unwrap() };
    let authority = world.good(&["init", "ca", "--days", "10"]);
    let leaf = world.good(&["issue", "ca", "alpha", "--days", "30"]);
    assert_eq!(leaf["not_after"], authority["not_after"]);
    let short = world.good(&["issue", "ca", "beta", "--days", "3"]);
    assert!(short["not_after"].as_str() < authority["not_after"].as_str());
}

// ---- OpenSSL's opinion ----

/// Runs OpenSSL, which closes its input at once; `None` where there is none, said aloud.
fn openssl(world: &World, args: &[&str]) -> Option<(bool, String)> {
    let mut command = Command::new("openssl");
    command.args(args).current_dir(world.path("ca")).stdin(Stdio::null());
    match command.output() {
        Ok(Output { status, stdout, stderr }) => {
            let said = [stdout, stderr].concat();
            Some((status.success(), String::from_utf8_lossy(&said).into_owned()))
        }
        Err(error) => {
            eprintln!("skipped: openssl cannot be run ({error})");
            None
        }
    }
}

#[test]
fn openssl_accepts_the_certificates() {
    let world = World::new();
    world.good(&["issue", "ca", "gamma", "--host", "gamma.example", "--host", "192.0.2.7"]);
    for (purpose, host) in [("sslserver", "gamma.example"), ("sslclient", "gamma.example")] {
        let args = [
            "verify",
            "-x509_strict",
            "-CAfile",
            "ca.pem",
            "-purpose",
            purpose,
            "-verify_hostname",
            host,
            "-verify_ip",
            "192.0.2.7",
            "gamma.pem",
        ];
        let Some((good, said)) = openssl(&world, &args) else { return };
        assert!(good, "{said}");
    }
    let text = ["x509", "-in", "gamma.pem", "-noout", "-text"];
    let Some((_, said)) = openssl(&world, &text) else { return };
    for expected in ["URI:blockferry:gamma", "DNS:gamma.example", "CA:FALSE", "ecdsa-with-SHA256"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_gets_in_with_a_certificate_and_tls_1_3_alone() {
    let world = Arc::new(World::new());
    if openssl(&world, &["version"]).is_none() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let beta = world.tls("beta");
    let own = ["-cert", "alpha.pem", "-key", "alpha.key"];
    let cases: [(&[&str], &[&str], Option<ErrorKind>); 4] = [
        (&own, &["-alpn", "blockferry/1"], None),
        (&[], &["-alpn", "blockferry/1"], Some(ErrorKind::Denied)),
        (&own, &["-alpn", "blockferry/1", "-tls1_2"], Some(ErrorKind::Unsupported)),
        (&own, &["-alpn", "h2"], Some(ErrorKind::Unsupported)),
    ];
    for (own, more, refused) in cases {
        let fixed = ["s_client", "-connect", &address, "-CAfile", "ca.pem", "-brief"];
        let checks = ["-verify_return_error", "-verify_hostname", "localhost"];
        let args = [&fixed[..], &checks, own, more].concat();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let theirs = world.clone();
        let client = tokio::task::spawn_blocking(move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            openssl(&theirs, &args)
        });
        let accepted = beta.accept(listener.accept().await.unwrap().0).await;
        match refused {
            None => {
                let (mut stream, name) = accepted.unwrap();
                assert_eq!(name.as_str(), "alpha");
                // It may have hung up already: it has nothing to say.
                stream.shutdown().await.ok();
                let (good, said) = client.await.unwrap().unwrap();
                assert!(good && said.contains("TLSv1.3"), "{said}");
            }
            Some(expected) => {
                assert_eq!(kind(accepted), expected, "{more:?}");
                client.await.unwrap().unwrap();
            }
        }
    }
}
