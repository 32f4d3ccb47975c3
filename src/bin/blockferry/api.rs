//! `api`: a daemon that answers the copy calls of clouds, as their own SDKs make them.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use blockferry::clouds::{
    AccessKey, Api, Config, Door, DoorLimits, KeyConfig, Keys, ListenConfig, Secret, ServerTls,
    serve_admin,
};
use blockferry::engine::Engine;
use blockferry::options::EngineOptions;
use blockferry::service::{Caller, Event, ImageService, ServiceOptions, ServiceRegion};
use blockferry::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::context::{Common, Context};
use crate::follow::Interrupts;
use crate::out;
use crate::output::Report;

const EXAMPLES: &str = "\
Examples:
  blockferry api --config api.toml

The file names the regions, the access keys and what they may touch, the listeners (a cloud each)
and the images that regions hold already; the manual shows it whole. It listens on loopback unless
told otherwise, and elsewhere only with TLS. One line of JSON a request goes to stderr. SIGTERM ends
it: copies that run are suspended, and go on when it is started again.";

/// How long running copies may take to come to rest.
const END_TIME: Duration = Duration::from_secs(60);
/// How long requests that have begun may take to be answered, and events to be told.
const CLOSE_TIME: Duration = Duration::from_secs(20);
/// Log lines that may wait to be written.
const LOG_LINES_MAX: usize = 4096;
/// Readers of events at once.
const EVENT_READERS_MAX: usize = 64;
/// How long one of them may take to read a line.
const EVENT_TIME: Duration = Duration::from_secs(10);

/// Answer the copy calls of clouds, as their own SDKs make them
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", required = true)]
    config: PathBuf,
    /// Log nothing of single requests
    #[arg(long)]
    quiet: bool,
    /// Print one JSON object on a line when it listens, and one when it has ended
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let mut interrupts = Interrupts::catch()?;
    let config = read_config(&args.config)?;
    let mut keys = Keys::new();
    for key in &config.keys {
        keys.add(access_key(key)?)?;
    }
    let service = Arc::new(open_service(&config).await?);
    let (no_events, mut telling) = (CancellationToken::new(), JoinSet::new());
    tell_events(&config, &service, &no_events, &mut telling)?;
    make_known(&config, &service).await?;
    let api = Arc::new(Api::new(service.clone(), keys, config.api_options()));
    let (closing, mut serving) = (CancellationToken::new(), JoinSet::new());
    let (log, writer) = log(args.quiet);
    let listening = listen(&config, &api, log, &closing, &mut serving).await?;
    out::line(&told(&args, &listening))?;
    interrupts.first().await;

    // Order: what was asked is answered, then copies rest, then the last is told of it.
    closing.cancel();
    let closed = async { while serving.join_next().await.is_some() {} };
    let closed = timeout(CLOSE_TIME, closed).await.is_ok();
    serving.shutdown().await;
    let ended = service.shutdown(END_TIME).await && closed;
    no_events.cancel();
    let all_told = async { while telling.join_next().await.is_some() {} };
    timeout(CLOSE_TIME, all_told).await.ok();
    telling.shutdown().await;
    timeout(CLOSE_TIME, writer).await.ok();
    if let Some(socket) = &config.events_socket {
        // One that stays is taken for stale the next time.
        std::fs::remove_file(socket).ok();
    }
    let line = if ended { "ended" } else { "ended, with copies that did not come to rest" };
    let fields = json!({"listening": Value::Null, "admin": Value::Null, "ended": ended});
    Ok(Report::done(fields, vec![line.to_owned()]))
}

/// Makes images known that regions hold already.
async fn make_known(config: &Config, service: &ImageService) -> Result<()> {
    for image in &config.images {
        match service.put_image(image.image()?).await {
            // It was deleted by a call, or is about to be.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Busy) => {
                out::note(&format!("blockferry: {}", error.report()));
            }
            put => put?,
        }
    }
    Ok(())
}

/// Where requests are told of, if anywhere, and what writes it until nobody tells any more.
fn log(quiet: bool) -> (Option<mpsc::Sender<String>>, JoinHandle<()>) {
    let (log, mut lines) = mpsc::channel::<String>(LOG_LINES_MAX);
    let writer = tokio::task::spawn_blocking(move || {
        while let Some(line) = lines.blocking_recv() {
            out::note(&line);
        }
    });
    ((!quiet).then_some(log), writer)
}

/// What listens where, for whoever starts the daemon.
#[derive(Debug)]
struct Listening {
    doors: Vec<Value>,
    admin: Value,
}

async fn listen(
    config: &Config,
    api: &Arc<Api>,
    log: Option<mpsc::Sender<String>>,
    closing: &CancellationToken,
    serving: &mut JoinSet<()>,
) -> Result<Listening> {
    let connections = Arc::new(AtomicU64::new(0));
    let mut listening = Listening { doors: Vec::new(), admin: Value::Null };
    for listen in &config.listeners {
        let door = Door::bind(
            listen.address,
            tls(listen)?,
            listen.face()?,
            api.clone(),
            limits(config),
            log.clone(),
            connections.clone(),
        );
        let door = door.await?;
        let address = door.address()?.to_string();
        listening.doors.push(json!({
            "cloud": listen.cloud, "region": listen.region, "address": address,
            "tls": listen.cert.is_some(),
        }));
        serving.spawn(door.serve(closing.clone()));
    }
    if let Some(address) = config.admin {
        let (bound, task) = serve_admin(address, api.clone(), connections, closing.clone()).await?;
        listening.admin = bound.to_string().into();
        serving.spawn(task);
    }
    Ok(listening)
}

fn told(args: &Args, listening: &Listening) -> String {
    let Listening { doors, admin } = listening;
    if args.json {
        let line = json!({"listening": doors, "admin": admin, "ended": false, "error": null});
        return line.to_string();
    }
    let words = |entry: &Value| {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        format!("{} {}", text("cloud"), text("address"))
    };
    format!("listening: {}", doors.iter().map(words).collect::<Vec<_>>().join(", "))
}

fn read_config(path: &Path) -> Result<Config> {
    let text = read_text(path, Config::BYTES_MAX)?;
    Config::parse(&text).map_err(|error| error.within(path.display().to_string()))
}

fn read_text(path: &Path, bytes_max: u64) -> Result<String> {
    let within = |error: std::io::Error| {
        Error::io("read the configuration", error).within(path.display().to_string())
    };
    let facts = std::fs::metadata(path).map_err(within)?;
    if facts.len() > bytes_max {
        let error = Error::new(ErrorKind::Invalid, "read the configuration: it is too long");
        return Err(error.within(path.display().to_string()));
    }
    std::fs::read_to_string(path).map_err(within)
}

async fn open_service(config: &Config) -> Result<ImageService> {
    let common = Common::of_config(config.state_dir.clone(), config.keyring.as_ref())?;
    let context = Context::new(&common)?;
    check_keys(config)?;
    let mut options = ServiceOptions::new(&config.state_dir);
    let mut running = 0;
    for entry in &config.regions {
        let (_, place) = context.open_region(&entry.location).await?;
        let mut region = ServiceRegion::new(place).with_keys(entry.key_ids()?);
        region = entry.copies_max.map_or(region.clone(), |most| region.with_copies_max(most));
        region = entry.queue_max.map_or(region.clone(), |most| region.with_queue_max(most));
        region = entry.images_max.map_or(region.clone(), |most| region.with_images_max(most));
        running += region.copies_max;
        options = options.with_region(entry.name.parse()?, region);
    }
    if let Some(days) = config.keep_days {
        options = options.with_keep_ended(Duration::from_secs(u64::from(days) * 24 * 3600));
    }
    // Regions say how many run at once; the engine has a turn for each.
    let engine = EngineOptions::new(&config.state_dir)
        .with_jobs_running_max(running.max(1))
        .with_share_extents(config.share_extents.unwrap_or(true));
    let service = ImageService::open(Engine::open(engine).await?, options).await?;
    for entry in &config.regions {
        service.engine().limit_region(&entry.name.parse()?, entry.limits()?)?;
    }
    Ok(service)
}

/// A key that is not in the keyring is found now, and not by the first copy that needs it.
#[cfg(feature = "encrypt")]
fn check_keys(config: &Config) -> Result<()> {
    let Some(file) = &config.keyring else { return Ok(()) };
    let held = blockferry::keys::FileKeyring::open(file)?.list()?;
    for region in &config.regions {
        for key in region.key_ids()? {
            if held.iter().all(|info| info.key != key) {
                let what = format!("use key {key} in region {}", region.name);
                return Err(Error::new(ErrorKind::NotFound, what)
                    .within(file.display().to_string())
                    .hint("make it with: blockferry keyring add"));
            }
        }
    }
    Ok(())
}

#[cfg(not(feature = "encrypt"))]
fn check_keys(_config: &Config) -> Result<()> {
    Ok(())
}

fn access_key(key: &KeyConfig) -> Result<AccessKey> {
    const SECRET_BYTES_MAX: u64 = 4096;
    let secret = match (&key.secret, &key.secret_file) {
        (Some(secret), _) => secret.secret(),
        (None, Some(path)) => {
            let text = read_text(path, SECRET_BYTES_MAX)?;
            Secret::new(text.lines().next().unwrap_or_default().trim())
        }
        (None, None) => Secret::new(""),
    };
    let caller = Caller {
        project: key.project.clone(),
        key: key.id.clone(),
        regions: key.regions.clone(),
        images: key.images.clone(),
    };
    Ok(AccessKey { secret, caller })
}

fn tls(listen: &ListenConfig) -> Result<Option<ServerTls>> {
    const PEM_BYTES_MAX: u64 = 1 << 20;
    let (Some(cert), Some(key)) = (&listen.cert, &listen.key) else { return Ok(None) };
    let cert = read_text(cert, PEM_BYTES_MAX)?;
    let key = read_text(key, PEM_BYTES_MAX)?;
    ServerTls::from_pem(cert.as_bytes(), key.as_bytes()).map(Some)
}

fn limits(config: &Config) -> DoorLimits {
    let mut limits = DoorLimits::default();
    if let Some(most) = config.connections_max {
        limits = limits.with_connections_max(most);
    }
    if let Some(most) = config.body_bytes_max {
        limits = limits.with_body_bytes_max(most);
    }
    limits
}

/// Tells events to a file and to whoever connects to a socket, where they are configured.
fn tell_events(
    config: &Config,
    service: &ImageService,
    closing: &CancellationToken,
    serving: &mut JoinSet<()>,
) -> Result<()> {
    if let Some(path) = &config.events_file {
        let opened = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        let file = opened.map_err(|error| {
            Error::io("open the file of events", error).within(path.display().to_string())
        })?;
        let events = service.events();
        let closing = closing.clone();
        serving.spawn(append_events(file, events, closing));
    }
    if let Some(path) = &config.events_socket {
        let within = |error| {
            Error::io("open the socket of events", error).within(path.display().to_string())
        };
        remove_stale(path);
        let listener = UnixListener::bind(path).map_err(within)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(within)?;
        serving.spawn(publish_events(listener, service.events(), closing.clone()));
    }
    Ok(())
}

/// A socket that nobody listens on any more is what a daemon that was killed has left.
fn remove_stale(path: &Path) {
    let refused = std::os::unix::net::UnixStream::connect(path)
        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
    if refused {
        // If it cannot be removed, listening tells.
        std::fs::remove_file(path).ok();
    }
}

/// The next line to tell; `None` at the end. Who was too slow is told how many were lost.
async fn next_line(
    events: &mut broadcast::Receiver<Arc<Event>>,
    closing: &CancellationToken,
) -> Option<String> {
    let told = tokio::select! {
        biased;
        told = events.recv() => told,
        // What is there already is told before the end.
        () = closing.cancelled() => events.try_recv().map_err(|_| RecvError::Closed),
    };
    match told {
        Ok(event) => Some(event.line()),
        Err(RecvError::Lagged(count)) => Some(json!({"event": "lost", "count": count}).to_string()),
        Err(RecvError::Closed) => None,
    }
}

async fn append_events(
    file: std::fs::File,
    mut events: broadcast::Receiver<Arc<Event>>,
    closing: CancellationToken,
) {
    while let Some(line) = next_line(&mut events, &closing).await {
        if let Err(error) = writeln!(&file, "{line}") {
            out::note(&format!("blockferry: events are lost: {error}"));
        }
    }
}

async fn publish_events(
    listener: UnixListener,
    events: broadcast::Receiver<Arc<Event>>,
    closing: CancellationToken,
) {
    let mut readers = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = closing.cancelled() => break,
            Some(_) = readers.join_next() => {}
            accepted = listener.accept(), if readers.len() < EVENT_READERS_MAX => {
                let Ok((mut stream, _)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let (mut events, closing) = (events.resubscribe(), closing.clone());
                readers.spawn(async move {
                    while let Some(line) = next_line(&mut events, &closing).await {
                        let line = line + "\n";
                        let sent = stream.write_all(line.as_bytes());
                        match timeout(EVENT_TIME, sent).await {
                            Ok(Ok(())) => {}
                            // Gone, or too slow to be waited for.
                            _ => return,
                        }
                    }
                });
            }
        }
    }
    while readers.join_next().await.is_some() {}
}
