//! `serve`: lets other daemons push images here and pull them from here.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockferry::id::{ImageId, RegionName};
use blockferry::peer::{Policy, Tls, TlsFiles};
use blockferry::region::{DirRegion, Region};
use blockferry::serve::{Listener, Server, ServerOptions};
use blockferry::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::follow::Interrupts;
use crate::out;
use crate::output::{Report, error_value};

const EXAMPLES: &str = "\
Examples:
  blockferry serve --listen 0.0.0.0:7443 --root b=/srv/region-b \\
      --cert ca/beta.pem --key ca/beta.key --client-ca ca/ca.pem --policy policy.toml
  blockferry serve --listen unix:/run/ferry.sock --root b=/srv/region-b

Over TCP everything is TLS 1.3 with certificates on both sides, and what the policy does not grant
is denied. A Unix socket is not encrypted: its folder's permissions say who may connect, and without
a policy whoever can may do everything. SIGTERM ends it: what was written is put on record, and
copies that were under way can be resumed. SIGHUP, and a change of one of them, has it read its
certificate, key, authority, revocation list and policy again.";

/// How long a graceful end may take.
const END_TIME: Duration = Duration::from_secs(60);

/// Serve directory regions to other daemons
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where to listen: HOST:PORT (port 0: any that is free) or unix:PATH; may be repeated
    #[arg(long, value_name = "ADDR", required = true)]
    listen: Vec<String>,
    /// A directory region to serve, by the name that others use for it; may be repeated
    #[arg(long = "root", value_name = "NAME=DIR", required = true)]
    roots: Vec<String>,
    /// Our certificate
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The authority that must have signed the certificates of others
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// Lists of certificates that the authority has revoked
    #[arg(long, value_name = "FILE")]
    crl: Option<PathBuf>,
    /// Who may do what
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The keyring of encrypted images: others are sent their bytes in clear, over TLS
    #[cfg(feature = "encrypt")]
    #[arg(long, value_name = "FILE")]
    keyring: Option<PathBuf>,
    /// Print one JSON object on a line when it listens, and one when it has ended
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let mut interrupts = Interrupts::catch()?;
    let mut hangups = signal(SignalKind::hangup()).map_err(|e| Error::io("catch signals", e))?;
    let papers = Papers::read(&args)?;
    let mut regions: Vec<(RegionName, Arc<dyn Region>)> = Vec::new();
    for root in &args.roots {
        let (name, dir) = root.split_once('=').ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("serve {root:?}")).hint("write NAME=DIR")
        })?;
        // As in locations, so that it can be named there.
        let name: ImageId = name.parse()?;
        let dir = std::fs::canonicalize(dir)
            .map_err(|error| Error::io("serve a region", error).within(dir.to_owned()))?;
        let region = DirRegion::open_root(dir)?;
        #[cfg(feature = "encrypt")]
        let region = match &args.keyring {
            Some(file) => region.with_keys(Arc::new(blockferry::keys::FileKeyring::open(file)?)),
            None => region,
        };
        // What an earlier server left undecided is kept; what was decided is finished.
        region.recover(None).await?;
        regions.push((name.as_str().parse()?, Arc::new(region)));
    }
    let mut listeners = Vec::new();
    for listen in &args.listen {
        listeners.push(bind(listen, &papers).await?);
    }
    let addresses: Vec<String> =
        listeners.iter().map(|(listener, _)| listener.address()).collect::<Result<_>>()?;
    let server = Server::new(regions, ServerOptions::default())?;
    let mut serving = JoinSet::new();
    for (listener, policy) in listeners {
        let server = server.clone();
        serving.spawn(async move { server.serve_by(listener, policy).await });
    }
    out::line(&told(&args, &addresses))?;
    tokio::select! {
        () = interrupts.first() => {}
        () = keep_up(&args, &papers, &mut hangups, &addresses) => {}
    }
    let ended = server.shutdown(END_TIME).await;
    while serving.join_next().await.is_some() {}
    remove_sockets(&args);
    let line = if ended { "ended" } else { "ended, with sessions that did not" };
    Ok(Report::done(json!({"listening": Value::Null, "ended": ended}), vec![line.to_owned()]))
}

fn told(args: &Args, addresses: &[String]) -> String {
    match args.json {
        true => json!({"listening": addresses, "ended": false, "error": null}).to_string(),
        false => format!("listening on {}", addresses.join(", ")),
    }
}

/// What says who is let in, and who may do what: it can be read again.
struct Papers {
    tls: Option<(TlsFiles, Tls)>,
    policy: Option<(PathBuf, watch::Sender<Policy>)>,
    /// Of sockets without a policy.
    everything: watch::Sender<Policy>,
}

impl Papers {
    fn read(args: &Args) -> Result<Self> {
        let policy = args
            .policy
            .as_ref()
            .map(|path| Ok::<_, Error>((path.clone(), watch::Sender::new(read_policy(path)?))));
        let tls = match (&args.cert, &args.key, &args.client_ca) {
            (Some(cert), Some(key), Some(ca)) => {
                let files = TlsFiles::new(cert, key, ca).with_crl(args.crl.clone());
                let tls = Tls::open(&files)?;
                Some((files, tls))
            }
            _ => None,
        };
        let everything = watch::Sender::new(Policy::everything());
        Ok(Self { tls, policy: policy.transpose()?, everything })
    }

    /// Reads all of it again. What is wrong changes nothing.
    fn read_again(&self) -> Result<()> {
        let policy = self.policy.as_ref().map(|(path, _)| read_policy(path)).transpose()?;
        if let Some((files, tls)) = &self.tls {
            tls.reload(files)?;
        }
        if let (Some(read), Some((_, policy))) = (policy, &self.policy) {
            policy.send_replace(read);
        }
        Ok(())
    }

    /// Which files there are, and when each was changed last.
    fn stamps(&self) -> Vec<Option<(u64, i64, i64, u64)>> {
        let tls = self.tls.iter().flat_map(|(files, _)| {
            [Some(&files.cert), Some(&files.key), Some(&files.ca), files.crl.as_ref()]
        });
        let policy = self.policy.iter().map(|(path, _)| Some(path));
        let stamp = |path: &PathBuf| {
            let facts = std::fs::metadata(path).ok()?;
            Some((facts.ino(), facts.mtime(), facts.mtime_nsec(), facts.len()))
        };
        tls.chain(policy).flatten().map(stamp).collect()
    }
}

/// Reads what says who is let in again, on SIGHUP and when one of its files has changed.
async fn keep_up(args: &Args, papers: &Papers, hangups: &mut Signal, addresses: &[String]) {
    let mut stamps = papers.stamps();
    loop {
        let asked = tokio::select! {
            _ = hangups.recv() => true,
            () = tokio::time::sleep(LOOK_INTERVAL) => false,
        };
        let now = papers.stamps();
        if !asked && now == stamps {
            continue;
        }
        // Order: looked at first, so that a change while they are read is seen the next time.
        stamps = now;
        let read = papers.read_again();
        let error = read.as_ref().err();
        let text = match (args.json, error) {
            (true, error) => {
                let reloaded = error.is_none();
                let error = error.map_or(Value::Null, error_value);
                let mut line = json!({"listening": addresses, "ended": false, "error": error});
                line["reloaded"] = reloaded.into();
                line.to_string()
            }
            (false, None) => "certificates and policy were read again".to_owned(),
            (false, Some(error)) => {
                let why = error.report();
                out::note(&format!("certificates and policy stay as they were: {why}"));
                continue;
            }
        };
        // A server goes on also when nobody takes what it says.
        out::line(&text).ok();
    }
}

/// How often this looks whether a file has changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

async fn bind(listen: &str, papers: &Papers) -> Result<(Listener, watch::Receiver<Policy>)> {
    if let Some(path) = listen.strip_prefix("unix:") {
        remove_stale(Path::new(path));
        let policy = papers.policy.as_ref().map_or(&papers.everything, |(_, policy)| policy);
        return Ok((Listener::unix(path)?, policy.subscribe()));
    }
    let (Some((_, tls)), Some((_, policy))) = (&papers.tls, &papers.policy) else {
        return Err(Error::new(ErrorKind::Invalid, "listen without certificates and a policy")
            .within(listen.to_owned())
            .hint("give --cert, --key, --client-ca and --policy; only unix:PATH needs none"));
    };
    Ok((Listener::tcp(listen, tls.clone()).await?, policy.subscribe()))
}

fn read_policy(path: &Path) -> Result<Policy> {
    let shown = path.display().to_string();
    let within = |error: Error| error.within(shown.clone());
    let facts = std::fs::metadata(path).map_err(|e| within(Error::io("read the policy", e)))?;
    if facts.len() > Policy::BYTES_MAX {
        return Err(within(Error::new(ErrorKind::Invalid, "read the policy: it is too long")));
    }
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| within(Error::io("read the policy", error)))?;
    Policy::parse(&text).map_err(within)
}

/// A socket that nobody listens on any more is what a server that was killed has left.
fn remove_stale(path: &Path) {
    let refused = UnixStream::connect(path)
        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
    if refused {
        // If it cannot be removed, listening tells.
        std::fs::remove_file(path).ok();
    }
}

fn remove_sockets(args: &Args) {
    for path in args.listen.iter().filter_map(|listen| listen.strip_prefix("unix:")) {
        // One that stays is taken for stale by the next server.
        std::fs::remove_file(path).ok();
    }
}
