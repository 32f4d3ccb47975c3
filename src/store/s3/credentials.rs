//! Where an S3 server is and who asks: from the address, the environment and the profile's files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use object_store::aws::{AmazonS3Builder, AwsCredential, AwsCredentialProvider};
use object_store::{RetryConfig, StaticCredentialProvider};

use crate::disk::File;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::to_usize;
use crate::location::BucketAddress;

use super::connect;
use super::request::Client;

/// The longest file of profiles.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Who asks.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Whoever the environment says, in the usual order: `AWS_ACCESS_KEY_ID`, the profile
    /// (`AWS_PROFILE`) in `~/.aws/credentials` and `~/.aws/config`, web identity, the container's
    /// role, the instance's role.
    #[default]
    Environment,
    /// That key.
    Key {
        /// Its id.
        id: String,
        /// Its secret.
        secret: String,
        /// The session's token, for a temporary key.
        token: Option<String>,
    },
    /// Nobody: requests are not signed.
    Anonymous,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str("Environment"),
            Self::Key { id, .. } => f.debug_struct("Key").field("id", id).finish_non_exhaustive(),
            Self::Anonymous => f.write_str("Anonymous"),
        }
    }
}

/// How an S3 server is reached, beside what its address says.
///
/// What neither says comes from the environment: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`,
/// `AWS_REGION` or `AWS_DEFAULT_REGION`, `AWS_ALLOW_HTTP=true`; then from the profile (`region`,
/// `endpoint_url`); then it is AWS itself, `us-east-1`. With an endpoint, buckets are named in the
/// path unless `path_style=false`; without one, in the host name.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct S3Options {
    /// Who asks.
    pub credentials: Credentials,
}

impl S3Options {
    /// With those credentials.
    #[must_use]
    pub fn with_credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = credentials;
        self
    }

    /// A client, ready to ask.
    pub(super) fn open(&self, address: &BucketAddress) -> Result<Client> {
        let place = |error: Error| error.within(address.to_string());
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let settings = Settings::resolve(address, &env, &read).map_err(place)?;
        settings.open(address, &self.credentials).map_err(place)
    }
}

/// What follows from address, environment and files.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    bucket_url: String,
    region: String,
    allow_http: bool,
    profile: BTreeMap<String, String>,
    /// Whether the environment itself names a key or a role that goes before the profile's.
    has_env_key: bool,
}

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;
type Read<'a> = &'a dyn Fn(&Path) -> Result<Option<String>>;

impl Settings {
    fn resolve(address: &BucketAddress, env: Env<'_>, read: Read<'_>) -> Result<Self> {
        let profile = profile(env, read)?;
        let endpoint = address
            .endpoint
            .clone()
            .or_else(|| env("AWS_ENDPOINT_URL_S3"))
            .or_else(|| env("AWS_ENDPOINT_URL"))
            .or_else(|| profile.get("endpoint_url").cloned());
        let region = address
            .region
            .clone()
            .or_else(|| env("AWS_REGION"))
            .or_else(|| env("AWS_DEFAULT_REGION"))
            .or_else(|| profile.get("region").cloned())
            .unwrap_or_else(|| "us-east-1".to_owned());
        let allow_http = address.allow_http || env("AWS_ALLOW_HTTP").is_some_and(|on| on == "true");
        let path_style = address.path_style.unwrap_or(endpoint.is_some());
        let at = endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        let at = at.trim_end_matches('/');
        let (scheme, host) = at.split_once("://").unwrap_or(("", at));
        if !(scheme == "https" || scheme == "http" && allow_http) {
            let hint = "an endpoint begins with https://; http:// needs allow_http=true";
            return Err(Error::new(ErrorKind::Invalid, "use that endpoint").hint(hint));
        }
        let bucket = &address.bucket;
        let bucket_url = if path_style {
            format!("{scheme}://{host}/{bucket}")
        } else {
            format!("{scheme}://{bucket}.{host}")
        };
        let has_env_key = env("AWS_ACCESS_KEY_ID").is_some();
        Ok(Self { bucket_url, region, allow_http, profile, has_env_key })
    }

    fn open(self, address: &BucketAddress, who: &Credentials) -> Result<Client> {
        let failed = |error: object_store::Error| {
            Error::new(ErrorKind::Invalid, "set up a client for the object store").because(error)
        };
        let http = connect::client(self.allow_http)?;
        let from_profile = |name: &str| self.profile.get(name).cloned();
        let key = |id, secret, token| {
            let credential = AwsCredential { key_id: id, secret_key: secret, token };
            Some(Arc::new(StaticCredentialProvider::new(credential)) as AwsCredentialProvider)
        };
        let credentials = match who {
            Credentials::Anonymous => None,
            Credentials::Key { id, secret, token } => {
                key(id.clone(), secret.clone(), token.clone())
            }
            Credentials::Environment => {
                let id = from_profile("aws_access_key_id").filter(|_| !self.has_env_key);
                match (id, from_profile("aws_secret_access_key")) {
                    (Some(id), Some(secret)) => key(id, secret, from_profile("aws_session_token")),
                    _ => Some(self.of_environment(address).map_err(failed)?),
                }
            }
        };
        Ok(Client {
            http,
            credentials,
            region: self.region,
            is_private: self.bucket_url.starts_with("https://"),
            bucket_url: self.bucket_url,
            location: format!("s3://{}", address.bucket),
            vouches: AtomicBool::new(false),
        })
    }

    /// What `object_store` finds: variables, web identity, container, instance.
    fn of_environment(
        &self,
        address: &BucketAddress,
    ) -> std::result::Result<AwsCredentialProvider, object_store::Error> {
        // One retry: somebody waits, and an instance without a role has none later either.
        let retry = RetryConfig { max_retries: 1, ..RetryConfig::default() };
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(&address.bucket)
            .with_region(&self.region)
            .with_retry(retry)
            .build()?;
        Ok(Arc::clone(store.credentials()))
    }
}

/// What the files say about the profile that is asked for: nothing where there are none.
fn profile(env: Env<'_>, read: Read<'_>) -> Result<BTreeMap<String, String>> {
    let named = env("AWS_PROFILE");
    let name = named.clone().unwrap_or_else(|| "default".to_owned());
    let at_home = |file: &str| env("HOME").map(|home| PathBuf::from(home).join(".aws").join(file));
    let given = |variable: &str| env(variable).map(PathBuf::from);
    let files = [
        // What is in the credentials goes before what is in the configuration.
        (given("AWS_CONFIG_FILE").or_else(|| at_home("config")), format!("profile {name}")),
        (given("AWS_SHARED_CREDENTIALS_FILE").or_else(|| at_home("credentials")), name.clone()),
    ];
    let (mut settings, mut is_found) = (BTreeMap::new(), false);
    for (path, section) in files {
        let Some(path) = path else { continue };
        let Some(text) = read(&path)? else { continue };
        for (found, entries) in sections(&text) {
            if found == section || found == "default" && name == "default" {
                is_found = true;
                settings.extend(entries);
            }
        }
    }
    match named {
        Some(name) if !is_found => {
            Err(Error::new(ErrorKind::Invalid, format!("find the profile {name:?}"))
                .hint("AWS_PROFILE names one of ~/.aws/credentials or ~/.aws/config"))
        }
        _ => Ok(settings),
    }
}

/// The sections of such a file, each with its `name = value` lines. Indented lines belong to what
/// is above them, which is never a key.
fn sections(text: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut all: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    for line in text.lines() {
        if line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            let words: Vec<&str> = name.split_whitespace().collect();
            all.push((words.join(" "), BTreeMap::new()));
        } else if let (Some((name, value)), Some((_, entries))) =
            (line.split_once('='), all.last_mut())
        {
            entries.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    all
}

/// A file's text; `None` where there is none.
fn read(path: &Path) -> Result<Option<String>> {
    let place = |error: Error| error.within(path.display().to_string());
    let file = match File::open_path(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(place(error)),
    };
    let len = file.len().map_err(place)?;
    if len > FILE_BYTES_MAX {
        return Err(place(Error::new(ErrorKind::Invalid, "read profiles: over 1 MiB")));
    }
    let mut bytes = vec![0; to_usize(len)];
    let read = file.read_at(0, &mut bytes).map_err(place)?;
    bytes.truncate(read);
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| place(Error::new(ErrorKind::Invalid, "read profiles: not UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str =
        "[default]\nregion = r-config\n[profile  b]\nregion=r-b\ns3 =\n  max = 1\n";
    const KEYS: &str = "# keys\n[default]\naws_access_key_id = ID\naws_secret_access_key=S=\n\
                        [b]\naws_access_key_id = IDB\nendpoint_url = http://localhost:1/\n";

    fn resolve(address: &str, env: &[(&str, &str)]) -> Result<Settings> {
        let address = BucketAddress::parse(address).unwrap();
        let find = |name: &str| {
            let of_home = (name == "HOME").then_some("/h");
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| *value).or(of_home)
        };
        Settings::resolve(&address, &|name| find(name).map(str::to_owned), &|path| {
            Ok(match path.to_str().unwrap() {
                "/h/.aws/config" => Some(CONFIG.to_owned()),
                "/h/.aws/credentials" => Some(KEYS.to_owned()),
                _ => None,
            })
        })
    }

    #[test]
    fn the_address_goes_before_the_environment_and_that_before_the_profile() {
        let plain = resolve("s3://bucket/p", &[]).unwrap();
        assert_eq!(plain.bucket_url, "https://bucket.s3.r-config.amazonaws.com");
        assert_eq!(plain.region, "r-config");
        assert_eq!(plain.profile["aws_access_key_id"], "ID");
        assert_eq!(plain.profile["aws_secret_access_key"], "S=");
        let env = [("AWS_REGION", "r-env"), ("AWS_ENDPOINT_URL", "https://e"), ("HOME", "/none")];
        let settings = resolve("s3://bucket", &env).unwrap();
        assert_eq!(settings.bucket_url, "https://e/bucket");
        assert_eq!((settings.region.as_str(), settings.profile.len()), ("r-env", 0));
        let given = "s3://bucket?endpoint=http://a:9&region=r&path_style=false&allow_http=true";
        let settings = resolve(given, &env).unwrap();
        assert_eq!(settings.bucket_url, "http://bucket.a:9");
        assert_eq!(settings.region, "r");
    }

    #[test]
    fn a_profile_is_found_by_name_or_told_to_be_missing() {
        let env = [("AWS_PROFILE", "b"), ("AWS_ALLOW_HTTP", "true")];
        let settings = resolve("s3://bucket", &env).unwrap();
        assert_eq!(settings.region, "r-b");
        assert_eq!(settings.bucket_url, "http://localhost:1/bucket");
        assert_eq!(settings.profile["aws_access_key_id"], "IDB");
        let missing = resolve("s3://bucket", &[("AWS_PROFILE", "c")]).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn an_endpoint_without_tls_is_asked_for() {
        let env = [("AWS_PROFILE", "b")];
        assert_eq!(resolve("s3://bucket", &env).unwrap_err().kind(), ErrorKind::Invalid);
        let odd = [("AWS_ENDPOINT_URL", "localhost:9000")];
        assert_eq!(resolve("s3://bucket", &odd).unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_secret_is_not_shown() {
        let key = Credentials::Key { id: "ID".into(), secret: "hush".into(), token: None };
        assert_eq!(format!("{:?}", S3Options::default().with_credentials(key)).find("hush"), None);
    }
}
