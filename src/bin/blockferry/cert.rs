//! `cert`: a private authority, and the certificates that daemons show each other.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use blockferry::peer::Identity;
use blockferry::{Error, ErrorKind, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use time::{Duration, OffsetDateTime};

use crate::output::Report;

const EXAMPLES: &str = "\
Examples:
  blockferry cert init ca/
  blockferry cert issue ca/ alpha
  blockferry cert issue ca/ beta --host beta.example --host 192.0.2.7 --days 90

What is in ca/ca.key can sign for anybody: keep it where only you can read it, and carry to a
daemon's host only ca.pem and its own NAME.pem and NAME.key. No file is ever overwritten.";

/// Make a private authority, and certificates that daemons show each other
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
    /// Print one JSON object on one line on stdout, also on failure
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Make an authority: DIR/ca.pem and DIR/ca.key
    Init {
        /// The folder, made when it is missing
        dir: PathBuf,
        /// How long the authority is valid
        #[arg(long, value_name = "N", default_value_t = 3650)]
        #[arg(value_parser = clap::value_parser!(u16).range(1..=DAYS_MAX))]
        days: u16,
    },
    /// Issue a certificate: DIR/NAME.pem and DIR/NAME.key
    Issue {
        /// The folder with the authority
        dir: PathBuf,
        /// Whose it is: the name by which a policy knows the daemon
        name: String,
        /// A name or an address that others dial the daemon by; may be repeated
        /// [default: localhost, 127.0.0.1 and ::1]
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        /// How long it is valid, though never longer than the authority
        #[arg(long, value_name = "N", default_value_t = 365)]
        #[arg(value_parser = clap::value_parser!(u16).range(1..=DAYS_MAX))]
        days: u16,
    },
}

pub(crate) fn run(args: &Args) -> Result<Report> {
    match &args.what {
        What::Init { dir, days } => init(dir, *days),
        What::Issue { dir, name, hosts, days } => issue(dir, &name.parse()?, hosts, *days),
    }
}

fn init(dir: &Path, days: u16) -> Result<Report> {
    let key = KeyPair::generate().map_err(|e| failed("make a key", e))?;
    let mark = blake3::hash(&key.subject_public_key_info()).to_hex();
    let mut params = lasting(days, None);
    // Two authorities of one name would be taken for each other until the signature is checked.
    params.distinguished_name = named(&format!("Blockferry authority {}", &mark.as_str()[..8]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let made = params.self_signed(&key).map_err(|e| failed("make an authority", e))?;
    if !dir.is_dir() {
        let made = DirBuilder::new().mode(0o700).create(dir);
        made.map_err(|e| Error::io("make a folder", e).within(shown(dir)))?;
    }
    let files = put_pair(dir, "ca", &made.pem(), &key)?;
    let until = moment(params.not_after);
    let line = format!("{} is a private authority until {until}", files.certificate);
    let next = format!("keep {} to yourself; next: `blockferry cert issue DIR NAME`", files.key);
    Ok(files.report(None, &[], &until).with_lines(vec![line, next]))
}

fn issue(dir: &Path, name: &Identity, hosts: &[String], days: u16) -> Result<Report> {
    let authority = Authority::load(dir)?;
    let hosts: Vec<String> = match hosts {
        [] => ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec(),
        given => given.to_vec(),
    };
    let mut params = lasting(days, Some(authority.ends));
    // The name is for people alone, and X.509 bounds it; what counts is the URI.
    params.distinguished_name = named(&name.as_str()[..name.as_str().len().min(64)]);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let uri = name.uri()?.as_str().try_into().map_err(|e| failed("name the identity", e))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    for host in &hosts {
        params.subject_alt_names.push(alternative_name(host)?);
    }
    let key = KeyPair::generate().map_err(|e| failed("make a key", e))?;
    let made = params.signed_by(&key, &authority.issuer).map_err(|e| failed("sign", e))?;
    let files = put_pair(dir, name.as_str(), &made.pem(), &key)?;
    let until = moment(params.not_after);
    let line = format!(
        "{} is {name}, at {}, until {until}; its key is {}",
        files.certificate,
        hosts.join(", "),
        files.key
    );
    Ok(files.report(Some(name), &hosts, &until).with_lines(vec![line]))
}

/// The authority in a folder, fit to sign.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ends: OffsetDateTime,
}

impl Authority {
    fn load(dir: &Path) -> Result<Self> {
        let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        let pem = read(&cert_path)?;
        let wrong = |action: &'static str, path: &Path| {
            Error::new(ErrorKind::Invalid, action).within(shown(path))
        };
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| wrong("read the authority's certificate", &cert_path).because(e))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)
            .map_err(|e| wrong("read the authority's certificate", &cert_path).because(e))?;
        let validity = parsed.validity();
        let (starts, ends) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
        let now = OffsetDateTime::now_utc();
        let denied = |what: String| {
            Error::new(ErrorKind::Denied, what)
                .within(shown(&cert_path))
                .hint("make another one with `blockferry cert init`, and let both sides know it")
        };
        if now > ends {
            return Err(denied(format!("sign: the authority has expired at {}", moment(ends))));
        }
        if now < starts {
            return Err(denied(format!("sign: the authority begins at {}", moment(starts))));
        }
        if !parsed.is_ca() {
            return Err(wrong("sign: this is no authority's certificate", &cert_path));
        }
        // The cause is left out: it may quote the key.
        let key = KeyPair::from_pem(&read(&key_path)?)
            .map_err(|_| wrong("read the authority's key", &key_path))?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            return Err(wrong("sign: the key is not that of ca.pem", &key_path));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .map_err(|e| wrong("use the authority's certificate", &cert_path).because(e))?;
        Ok(Self { issuer, ends })
    }
}

/// What was made.
struct Files {
    certificate: String,
    key: String,
}

impl Files {
    fn report(&self, identity: Option<&Identity>, hosts: &[String], until: &str) -> Report {
        let fields = json!({
            "identity": identity.map(Identity::as_str),
            "certificate": self.certificate,
            "key": self.key,
            "hosts": hosts,
            "not_after": until,
        });
        Report::done(fields, Vec::new())
    }
}

/// Writes a certificate and its key where there is neither; both or none.
fn put_pair(dir: &Path, name: &str, pem: &str, key: &KeyPair) -> Result<Files> {
    let (cert_path, key_path) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    put(&key_path, &key.serialize_pem(), 0o600)?;
    if let Err(error) = put(&cert_path, pem, 0o644) {
        // A key that nobody has a certificate for would stand in the way of the next try.
        return match std::fs::remove_file(&key_path) {
            Ok(()) => Err(error),
            Err(e) => Err(error.and(Error::io("remove the key", e).within(shown(&key_path)))),
        };
    }
    Ok(Files { certificate: shown(&cert_path), key: shown(&key_path) })
}

fn put(path: &Path, text: &str, mode: u32) -> Result<()> {
    let create = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    create().map_err(|e| {
        Error::io("write a new file", e).within(shown(path)).hint("nothing is ever overwritten")
    })
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| {
        Error::io("read the authority", e)
            .within(shown(path))
            .hint("`blockferry cert init DIR` makes one")
    })
}

/// From now, less what clocks of two hosts may differ by, for that many days; no longer than until
/// `end`.
fn lasting(days: u16, end: Option<OffsetDateTime>) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - Duration::minutes(5);
    params.not_after = now + Duration::days(i64::from(days));
    params.not_after = end.map_or(params.not_after, |end| end.min(params.not_after));
    params
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn alternative_name(host: &str) -> Result<SanType> {
    let refuse = || {
        Error::new(ErrorKind::Invalid, format!("use {host:?} as a host"))
            .hint("give a DNS name or an IP address, as it stands in the URL, without a port")
    };
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    match ServerName::try_from(host).map_err(|e| refuse().because(e))? {
        ServerName::DnsName(name) => {
            Ok(SanType::DnsName(name.as_ref().try_into().map_err(|e| refuse().because(e))?))
        }
        _ => Err(refuse()),
    }
}

fn failed(action: &'static str, cause: rcgen::Error) -> Error {
    Error::new(ErrorKind::Io, action).because(cause)
}

/// As in RFC 3339, in UTC, to the second.
fn moment(at: OffsetDateTime) -> String {
    let (date, time) = (at.date(), at.time());
    let (year, month, day) = date.to_calendar_date();
    let (hour, minute, second) = time.as_hms();
    format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z", u8::from(month))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A hundred years.
const DAYS_MAX: i64 = 36_500;
