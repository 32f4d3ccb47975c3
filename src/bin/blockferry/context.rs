//! What verbs share: the state folder, locations as typed, regions by name, jobs by number.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockferry::engine::Engine;
use blockferry::id::{JobId, RegionName};
use blockferry::job::{Endpoint, JobSpec};
use blockferry::location::{Location, RegionLocation};
use blockferry::options::EngineOptions;
use blockferry::region::{DirRegion, FileRegion, Located, Region};
use blockferry::{Error, ErrorKind, Result};

/// Options of every verb that knows jobs.
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    /// Where the job index is kept [default: $BLOCKFERRY_STATE_DIR, else the XDG state folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Print one JSON object on one line on stdout, also on failure
    #[arg(long)]
    pub(crate) json: bool,
    #[cfg(feature = "encrypt")]
    #[command(flatten)]
    keys: KeyArgs,
    #[cfg(feature = "peer")]
    #[command(flatten)]
    peer: PeerArgs,
}

/// Where the keys of encrypted images are. Never kept anywhere.
#[cfg(feature = "encrypt")]
#[derive(Debug, clap::Args)]
struct KeyArgs {
    /// The keyring of encrypted images [default: $BLOCKFERRY_KEYRING]
    #[arg(long, value_name = "FILE")]
    keyring: Option<PathBuf>,
}

#[cfg(feature = "encrypt")]
impl KeyArgs {
    fn open(&self) -> Result<Option<blockferry::keys::FileKeyring>> {
        let set = || std::env::var_os("BLOCKFERRY_KEYRING").filter(|v| !v.is_empty());
        let path = self.keyring.clone().or_else(|| set().map(PathBuf::from));
        path.map(blockferry::keys::FileKeyring::open).transpose()
    }

    fn words(&self) -> Vec<String> {
        let path = self.keyring.iter().map(|path| shown(path));
        path.flat_map(|path| ["--keyring".to_owned(), path]).collect()
    }
}

/// What is shown to other daemons, for `ferrys://` locations. Never kept anywhere.
#[cfg(feature = "peer")]
#[derive(Debug, clap::Args)]
struct PeerArgs {
    /// Our certificate, for ferrys:// [default: $BLOCKFERRY_CERT]
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its private key [default: $BLOCKFERRY_KEY]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The authority of the other side [default: $BLOCKFERRY_CA]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Lists of certificates that it has revoked [default: $BLOCKFERRY_CRL]
    #[arg(long, value_name = "FILE")]
    crl: Option<PathBuf>,
    /// Whether chunks travel compressed to and from another daemon
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Compression::Auto)]
    compression: Compression,
}

#[cfg(feature = "peer")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Compression {
    /// Where that is found to be faster
    Auto,
    /// Never
    None,
}

#[cfg(feature = "clouds")]
impl Common {
    /// Those of a verb that has its state folder and its keyring from a file.
    pub(crate) fn of_config(state_dir: PathBuf, keyring: Option<&PathBuf>) -> Result<Self> {
        if let (Some(file), false) = (keyring, cfg!(feature = "encrypt")) {
            return Err(Error::new(ErrorKind::Unsupported, "use a keyring")
                .within(shown(file))
                .hint("this blockferry was built without the feature `encrypt`"));
        }
        Ok(Self {
            state_dir: Some(state_dir),
            json: false,
            #[cfg(feature = "encrypt")]
            keys: KeyArgs { keyring: keyring.cloned() },
            #[cfg(feature = "peer")]
            peer: PeerArgs {
                cert: None,
                key: None,
                ca: None,
                crl: None,
                compression: Compression::Auto,
            },
        })
    }
}

#[cfg(feature = "peer")]
impl PeerArgs {
    fn words(&self) -> Vec<String> {
        let own = [("--cert", &self.cert), ("--key", &self.key)];
        let given = own.into_iter().chain([("--ca", &self.ca), ("--crl", &self.crl)]);
        let given = given.filter_map(|(name, path)| Some((name, path.as_ref()?)));
        let mut words: Vec<_> =
            given.flat_map(|(name, path)| [name.to_owned(), shown(path)]).collect();
        if self.compression == Compression::None {
            words.push("--compression=none".to_owned());
        }
        words
    }

    fn tls(&self) -> Result<Option<blockferry::peer::Tls>> {
        use blockferry::peer::{Tls, TlsFiles};
        let given = |option: &Option<PathBuf>, name| {
            let set = || std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
            option.clone().or_else(set)
        };
        let cert = given(&self.cert, "BLOCKFERRY_CERT");
        let key = given(&self.key, "BLOCKFERRY_KEY");
        let ca = given(&self.ca, "BLOCKFERRY_CA");
        let crl = given(&self.crl, "BLOCKFERRY_CRL");
        match (cert, key, ca) {
            // A list in the environment is of no use to those who talk to no daemon.
            (None, None, None) if self.crl.is_none() => Ok(None),
            (Some(cert), Some(key), Some(ca)) => {
                Tls::open(&TlsFiles::new(cert, key, ca).with_crl(crl)).map(Some)
            }
            _ => Err(Error::new(ErrorKind::Invalid, "show a certificate to the other side")
                .hint("--cert, --key and --ca belong together, and --crl to them")),
        }
    }
}

impl Common {
    /// The files that were given, as options.
    fn file_words(&self) -> Vec<String> {
        let words = Vec::new();
        #[cfg(feature = "encrypt")]
        let words = [words, self.keys.words()].concat();
        #[cfg(feature = "peer")]
        let words = [words, self.peer.words()].concat();
        words
    }
}

/// The state folder, and whether it was given.
#[derive(Debug)]
pub(crate) struct Context {
    state_dir: PathBuf,
    given: bool,
    #[cfg(feature = "peer")]
    tls: Option<blockferry::peer::Tls>,
    #[cfg(feature = "peer")]
    peer_options: blockferry::region::PeerOptions,
    #[cfg(feature = "encrypt")]
    keyring: Option<blockferry::keys::FileKeyring>,
    /// The files that were given for other daemons and for keys, as options.
    file_words: Vec<String>,
}

/// What a verb is about: a job by its number, or the copy to a destination.
#[derive(Debug)]
pub(crate) enum Subject {
    Job(JobId),
    Destination(Endpoint),
}

impl Context {
    pub(crate) fn new(common: &Common) -> Result<Self> {
        let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        // As XDG has it, a path that is not absolute is ignored.
        let folder = |name| set(name).filter(|path| path.is_absolute());
        let given = common.state_dir.is_some();
        let state_dir = common
            .state_dir
            .clone()
            .or_else(|| set("BLOCKFERRY_STATE_DIR"))
            .or_else(|| folder("XDG_STATE_HOME").map(|dir| dir.join("blockferry")))
            .or_else(|| folder("HOME").map(|dir| dir.join(".local/state/blockferry")));
        let state_dir = state_dir.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "find the state folder: HOME is not set")
                .hint("give --state-dir DIR or set BLOCKFERRY_STATE_DIR")
        })?;
        let state_dir = std::path::absolute(&state_dir)
            .map_err(|e| Error::io("use the state folder", e).within(shown(&state_dir)))?;
        Ok(Self {
            state_dir,
            given,
            #[cfg(feature = "peer")]
            tls: common.peer.tls()?,
            #[cfg(feature = "peer")]
            peer_options: blockferry::region::PeerOptions::default()
                .with_compression(common.peer.compression == Compression::Auto),
            #[cfg(feature = "encrypt")]
            keyring: common.keys.open()?,
            file_words: common.file_words(),
        })
    }

    /// The line that goes on with `verb` on a job, to paste into a shell.
    pub(crate) fn line(&self, verb: &str, job: JobId) -> String {
        let mut line = format!("blockferry {verb} {job}");
        if self.given {
            line.push_str(&format!(" --state-dir {}", quoted(&shown(&self.state_dir))));
        }
        for word in &self.file_words {
            line.push(' ');
            line.push_str(&quoted(word));
        }
        line
    }

    pub(crate) async fn engine(&self) -> Result<Engine> {
        self.engine_with(|options| options).await
    }

    pub(crate) async fn engine_with(
        &self,
        change: impl FnOnce(EngineOptions) -> EngineOptions,
    ) -> Result<Engine> {
        Engine::open(change(EngineOptions::new(&self.state_dir))).await
    }

    /// The region that an endpoint names.
    pub(crate) async fn open(&self, endpoint: &Endpoint) -> Result<Arc<dyn Region>> {
        match Location::of_endpoint(endpoint)? {
            Location::Dir { root, .. } => Ok(Arc::new(self.dir_region(&root)?)),
            Location::File(path) => FileRegion::open_path(path, &self.state_dir),
            #[cfg(feature = "object")]
            Location::Object { address, .. } => Ok(Arc::new(self.object(&address)?)),
            #[cfg(feature = "object")]
            Location::PlainObject(address) => self.plain_object(&address),
            #[cfg(feature = "peer")]
            Location::Peer { address, .. } => Ok(Arc::new(self.connect(&address).await?)),
            _ => Err(Error::new(ErrorKind::Unsupported, "open this kind of location")),
        }
    }

    /// The region that an endpoint names, if it is another daemon's.
    #[cfg(feature = "peer")]
    pub(crate) async fn open_peer(
        &self,
        endpoint: &Endpoint,
    ) -> Result<Option<blockferry::region::PeerRegion>> {
        match Location::of_endpoint(endpoint)? {
            Location::Peer { address, .. } => self.connect(&address).await.map(Some),
            _ => Ok(None),
        }
    }

    /// The region below a prefix of an object store.
    #[cfg(feature = "object")]
    pub(crate) fn object(
        &self,
        address: &blockferry::location::BucketAddress,
    ) -> Result<blockferry::region::object::ObjectRegion> {
        use blockferry::region::object::{ObjectOptions, ObjectRegion};
        use blockferry::store::{S3Options, S3Store};
        let store = S3Store::open(address, &S3Options::default())?;
        let options = ObjectOptions::default();
        if !address.unfenced {
            return ObjectRegion::open(store, options).map(|region| self.with_keys(region));
        }
        // However the place is spelled, the same heads decide there.
        let place = store.address("");
        let place = blake3::hash(format!("{}/{}", place.bucket, place.key).as_bytes()).to_hex();
        let heads = self.state_dir.join("heads").join(place.as_str());
        ObjectRegion::unfenced(store, heads, options).map(|region| self.with_keys(region))
    }

    /// The region with the keys that were given.
    #[cfg(all(feature = "object", feature = "encrypt"))]
    fn with_keys(
        &self,
        region: blockferry::region::object::ObjectRegion,
    ) -> blockferry::region::object::ObjectRegion {
        match &self.keyring {
            Some(keyring) => region.with_keys(Arc::new(keyring.clone())),
            None => region,
        }
    }

    /// As with the feature.
    #[cfg(all(feature = "object", not(feature = "encrypt")))]
    fn with_keys(
        &self,
        region: blockferry::region::object::ObjectRegion,
    ) -> blockferry::region::object::ObjectRegion {
        region
    }

    #[cfg(feature = "object")]
    fn plain_object(
        &self,
        address: &blockferry::location::BucketAddress,
    ) -> Result<Arc<dyn Region>> {
        use blockferry::region::PlainObjectRegion;
        use blockferry::store::S3Options;
        let options = S3Options::default();
        Ok(Arc::new(PlainObjectRegion::open(address, &options, &self.state_dir)?))
    }

    /// A directory region, with the keys that were given.
    pub(crate) fn dir_region(&self, root: &str) -> Result<DirRegion> {
        let region = DirRegion::open_root(root)?;
        #[cfg(feature = "encrypt")]
        if let Some(keyring) = &self.keyring {
            return Ok(region.with_keys(Arc::new(keyring.clone())));
        }
        Ok(region)
    }

    #[cfg(feature = "peer")]
    async fn connect(
        &self,
        address: &blockferry::location::PeerAddress,
    ) -> Result<blockferry::region::PeerRegion> {
        use blockferry::region::PeerRegion;
        if self.tls.is_none() && matches!(address, blockferry::location::PeerAddress::Tcp { .. }) {
            return Err(Error::new(ErrorKind::Invalid, "connect without a certificate")
                .within(address.to_string())
                .hint("give --cert, --key and --ca, or set BLOCKFERRY_CERT, _KEY and _CA"));
        }
        let options = self.peer_options.clone();
        PeerRegion::connect(address, self.tls.clone(), options).await
    }

    /// Makes the endpoint's region known to the engine, once.
    pub(crate) async fn register(&self, engine: &Engine, endpoint: &Endpoint) -> Result<()> {
        if engine.region(&endpoint.region).is_ok() {
            return Ok(());
        }
        engine.register(endpoint.region.clone(), self.open(endpoint).await?).await
    }

    /// A region as typed, with the name it goes by.
    pub(crate) async fn open_region(&self, text: &str) -> Result<(RegionName, Arc<dyn Region>)> {
        let location = match RegionLocation::parse(text, &cwd()?)? {
            RegionLocation::Dir(root) => RegionLocation::Dir(canonical(&root)),
            RegionLocation::Files(folder) => RegionLocation::Files(canonical(&folder)),
            other => other,
        };
        let region: Arc<dyn Region> = match &location {
            RegionLocation::Dir(root) => Arc::new(self.dir_region(root)?),
            RegionLocation::Files(path) if Path::new(path).is_dir() => FileRegion::in_folder(path)?,
            // A block device, or one file: the jobs that write to it.
            RegionLocation::Files(path) => FileRegion::open_path(path, &self.state_dir)?,
            #[cfg(feature = "object")]
            RegionLocation::Object(address) if address.plain => self.plain_object(address)?,
            #[cfg(feature = "object")]
            RegionLocation::Object(address) => Arc::new(self.object(address)?),
            #[cfg(feature = "peer")]
            RegionLocation::Peer(address) => Arc::new(self.connect(address).await?),
            _ => return Err(Error::new(ErrorKind::Unsupported, "open this kind of region")),
        };
        Ok((location.name()?, region))
    }

    /// The spec of the job in question. One that the index does not know is looked for in `region`.
    pub(crate) async fn find(
        &self,
        engine: &Engine,
        subject: &Subject,
        region: Option<&str>,
    ) -> Result<JobSpec> {
        match subject {
            Subject::Destination(endpoint) => self.find_by_target(engine, endpoint).await,
            Subject::Job(job) => match (engine.show(*job).await, region) {
                (Ok(info), _) => Ok(info.spec),
                (Err(error), Some(region)) if error.kind() == ErrorKind::NotFound => {
                    self.find_in(engine, *job, region, error).await
                }
                (Err(error), _) => Err(error),
            },
        }
    }

    /// The job as it is staged in that region. A region that was moved counts as the job's own.
    async fn find_in(
        &self,
        engine: &Engine,
        job: JobId,
        region: &str,
        unknown: Error,
    ) -> Result<JobSpec> {
        let (name, place) = self.open_region(region).await?;
        let mut staged = place.job(job).await?.ok_or_else(|| unknown.within(place.location()))?;
        let target = &mut staged.spec.target.region;
        if !target.as_str().contains("://") {
            // It came from another daemon, and is on record by the name that this region has there.
            *target = name;
        }
        let kept = ["dir://", "s3://"].iter().any(|scheme| target.as_str().starts_with(scheme));
        if kept && engine.region(target).is_err() {
            engine.register(target.clone(), place).await?;
        }
        Ok(staged.spec)
    }

    /// The copy to that destination: the one staged, the one that made the image, or the latest.
    async fn find_by_target(&self, engine: &Engine, endpoint: &Endpoint) -> Result<JobSpec> {
        self.register(engine, endpoint).await?;
        let region = engine.region(&endpoint.region)?;
        match region.locate(&endpoint.image).await? {
            Located::Staged(job) => {
                if let Some(staged) = region.job(job).await? {
                    return Ok(staged.spec);
                }
            }
            Located::Committed(Some(job)) => {
                if let Ok(info) = engine.show(job).await {
                    return Ok(info.spec);
                }
            }
            _ => {}
        }
        let jobs = engine.jobs().await?;
        let latest = jobs.into_iter().rev().find(|info| info.spec.target == *endpoint);
        latest.map(|info| info.spec).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "find a copy to that destination")
                .within(endpoint.to_string())
                .hint("`blockferry jobs` lists the known ones; a job has 32 hexadecimal digits")
        })
    }
}

/// A source or destination as typed.
pub(crate) fn endpoint(text: &str) -> Result<Endpoint> {
    match Location::parse(text, &cwd()?)? {
        Location::File(path) => Location::File(canonical_file(&path)).endpoint(),
        Location::Dir { root, image } => Location::Dir { root: canonical(&root), image }.endpoint(),
        other => other.endpoint(),
    }
}

/// A job's number, or else a destination.
pub(crate) fn subject(text: &str) -> Result<Subject> {
    if text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(Subject::Job(text.to_ascii_lowercase().parse()?));
    }
    endpoint(text).map(Subject::Destination)
}

/// The one spelling of a folder, so that its region has one name. What is missing keeps its own:
/// opening it will tell.
fn canonical(path: &str) -> String {
    let found = std::fs::canonicalize(path).ok();
    found.and_then(|path| path.to_str().map(str::to_owned)).unwrap_or_else(|| path.to_owned())
}

/// The one spelling of a file's folder; the file itself need not exist, nor is it followed.
fn canonical_file(path: &str) -> String {
    let file = Path::new(path);
    let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
        return canonical(path);
    };
    let folder = canonical(&shown(folder));
    format!("{}/{}", folder.trim_end_matches('/'), name.to_string_lossy())
}

fn cwd() -> Result<String> {
    let cwd = std::env::current_dir().map_err(|e| Error::io("find the current folder", e))?;
    let named = cwd.to_str().map(str::to_owned);
    named.ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "use the current folder: its name is not UTF-8")
    })
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A word for a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
