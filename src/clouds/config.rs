//! The daemon's configuration file, parsed and checked as a whole before anything is opened. Pure.
//!
//! ```toml
//! state_dir = "/var/lib/blockferry"
//! keyring = "/etc/blockferry/keyring"
//!
//! [[region]]
//! name = "cn-hangzhou"
//! location = "dir:///srv/hangzhou"
//! copies_max = 5
//! encryption_keys = ["images-2026"]
//!
//! [[key]]
//! id = "AKIDEXAMPLE"
//! secret_file = "/etc/blockferry/akidexample.secret"
//! project = "project-1"
//! regions = ["cn-*"]
//! images = ["*"]
//!
//! [[listen]]
//! cloud = "alibaba"
//! address = "127.0.0.1:8080"
//!
//! [[image]]
//! region = "cn-hangzhou"
//! id = "m-base"
//! project = "project-1"
//! name = "base"
//! ```

use core::net::{IpAddr, SocketAddr};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;

use crate::clouds::api::{ApiOptions, Face};
use crate::clouds::keys::Secret;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{KeyId, RegionName, shown};
use crate::options::{Limits, parse_rate};
use crate::service::{Image, ImageKind};

/// What the daemon is to do.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Where the engine's index and the service's database live.
    pub state_dir: PathBuf,
    /// The file with the keys of encrypted images.
    #[serde(default)]
    pub keyring: Option<PathBuf>,
    /// The regions.
    #[serde(rename = "region")]
    pub regions: Vec<RegionConfig>,
    /// Who may call.
    #[serde(rename = "key", default)]
    pub keys: Vec<KeyConfig>,
    /// Where calls come in.
    #[serde(rename = "listen")]
    pub listeners: Vec<ListenConfig>,
    /// Images that regions hold already.
    #[serde(rename = "image", default)]
    pub images: Vec<ImageConfig>,
    /// Where `/metrics` and `/healthz` are; nowhere without it.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    /// A file that events are appended to, as JSON lines.
    #[serde(default)]
    pub events_file: Option<PathBuf>,
    /// A Unix socket on which whoever connects is told events, as JSON lines.
    #[serde(default)]
    pub events_socket: Option<PathBuf>,
    /// Requests a second of one access key.
    #[serde(default)]
    pub requests_per_sec: Option<u32>,
    /// Connections of one listener at once.
    #[serde(default)]
    pub connections_max: Option<usize>,
    /// Bytes of a request's body.
    #[serde(default)]
    pub body_bytes_max: Option<usize>,
    /// Whether copies may share blocks with their source where the file system can; they may,
    /// unless this says otherwise.
    #[serde(default)]
    pub share_extents: Option<bool>,
    /// How many days ended copies and their tokens are remembered.
    #[serde(default)]
    pub keep_days: Option<u32>,
}

/// One region.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RegionConfig {
    /// The name that clients use.
    pub name: String,
    /// Where it is: `dir:///srv/region-a`.
    pub location: String,
    /// Copies to it that run at once.
    #[serde(default)]
    pub copies_max: Option<usize>,
    /// Copies to it that may wait.
    #[serde(default)]
    pub queue_max: Option<usize>,
    /// Images that one project may have in it.
    #[serde(default)]
    pub images_max: Option<usize>,
    /// A ceiling on all copies from and to it: `100MiB/s`.
    #[serde(default)]
    pub rate: Option<String>,
    /// Keys of the keyring that images can be encrypted under there, the one that is meant by
    /// default first.
    #[serde(default)]
    pub encryption_keys: Vec<String>,
}

impl RegionConfig {
    /// The ceiling.
    ///
    /// # Errors
    /// `Invalid` for what is no rate.
    pub fn limits(&self) -> Result<Limits> {
        let rate = self.rate.as_deref().map(parse_rate).transpose()?;
        Ok(rate.map_or(Limits::NONE, |rate| Limits::NONE.with_bytes_per_sec(rate)))
    }

    /// The keys.
    ///
    /// # Errors
    /// `Invalid` for what is no key id.
    pub fn key_ids(&self) -> Result<Vec<KeyId>> {
        self.encryption_keys.iter().map(|key| key.parse()).collect()
    }
}

/// One access key.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct KeyConfig {
    /// Its id.
    pub id: String,
    /// Its secret, here.
    #[serde(default)]
    pub secret: Option<SecretText>,
    /// Its secret, on the first line of that file.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// The project that it acts for.
    pub project: String,
    /// Names of regions that it may use; `*` at the end stands for any rest.
    #[serde(default)]
    pub regions: Vec<String>,
    /// Ids or names of images that it may touch, likewise.
    #[serde(default)]
    pub images: Vec<String>,
}

/// A secret in a file: shown by nothing.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// The secret.
    pub fn secret(&self) -> Secret {
        Secret::new(self.0.clone())
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText(…)")
    }
}

/// One listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ListenConfig {
    /// Which cloud it is: `alibaba`, `baidu`, `huawei`.
    pub cloud: String,
    /// The address, with a port; 0: any that is free.
    pub address: SocketAddr,
    /// The region that it is, where the host is the region.
    #[serde(default)]
    pub region: Option<String>,
    /// Our certificate, in PEM: then it speaks TLS.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// Its private key, in PEM.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// Listens without TLS also where others can listen.
    #[serde(default)]
    pub plain: bool,
}

impl ListenConfig {
    /// Which cloud it is.
    ///
    /// # Errors
    /// `Invalid` for one that is not known, and for a region too many or too few.
    pub fn face(&self) -> Result<Face> {
        let refuse = |why: &'static str| {
            let what = format!("listen as {}", shown(&self.cloud));
            Error::new(ErrorKind::Invalid, what).hint(why)
        };
        match (&*self.cloud, &self.region) {
            ("alibaba", None) => Ok(Face::Alibaba),
            ("alibaba", Some(_)) => Err(refuse("alibaba takes no region: a parameter names it")),
            ("baidu", Some(region)) => Ok(Face::Baidu(region.parse()?)),
            ("huawei", Some(region)) => Ok(Face::Huawei(region.parse()?)),
            ("baidu" | "huawei", None) => Err(refuse("name the region that this listener is")),
            _ => Err(refuse("the clouds are: alibaba, baidu, huawei")),
        }
    }
}

/// An image that a region holds already.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ImageConfig {
    /// Where it is.
    pub region: String,
    /// Its id there.
    pub id: String,
    /// Whose it is.
    pub project: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its description.
    #[serde(default)]
    pub description: String,
    /// Its labels.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// `custom`, `system`, `whole-instance`, `iso`.
    #[serde(default)]
    pub kind: Option<String>,
    /// Projects that may read it beside its own.
    #[serde(default)]
    pub shared_with: BTreeSet<String>,
}

impl ImageConfig {
    /// The image.
    ///
    /// # Errors
    /// `Invalid` for names that are none.
    pub fn image(&self) -> Result<Image> {
        let mut image = Image::new(self.region.parse()?, self.id.parse()?, &*self.project);
        image.name = self.name.clone();
        image.description = self.description.clone();
        image.tags = self.tags.clone();
        image.shared_with = self.shared_with.clone();
        if let Some(kind) = &self.kind {
            image.kind = ImageKind::from_name(kind).ok_or_else(|| {
                Error::new(ErrorKind::Invalid, format!("use image kind {}", shown(kind)))
                    .hint("the kinds are: custom, system, whole-instance, iso")
            })?;
        }
        Ok(image)
    }
}

impl Config {
    /// The most bytes that a configuration file has.
    pub const BYTES_MAX: u64 = 1 << 20;

    /// Reads a configuration file.
    ///
    /// # Errors
    /// `Invalid`, with the line where there is one, for what is no TOML, a field that is not known
    /// or missing, a name that is none, a listener without TLS where others can listen.
    pub fn parse(text: &str) -> Result<Self> {
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > Self::BYTES_MAX {
            return Err(invalid("it is over 1 MiB".into()));
        }
        let config: Self = toml::from_str(text).map_err(|error| {
            // The whole message shows lines of the file, which may hold a secret.
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            invalid(format!("line {line}: {}", error.message()))
        })?;
        config.check()?;
        Ok(config)
    }

    /// Bounds of the API.
    pub fn api_options(&self) -> ApiOptions {
        let options = ApiOptions::default();
        self.requests_per_sec.map_or(options, |most| options.with_requests_per_sec(most))
    }

    fn check(&self) -> Result<()> {
        let mut names = BTreeSet::new();
        for region in &self.regions {
            region.name.parse::<RegionName>()?;
            region.limits()?;
            if !region.key_ids()?.is_empty() && self.keyring.is_none() {
                let what = format!("region {} has keys: give the keyring", shown(&region.name));
                return Err(invalid(what));
            }
            if !names.insert(&region.name) {
                return Err(invalid(format!("region {} comes twice", shown(&region.name))));
            }
        }
        for key in &self.keys {
            if key.secret.is_some() == key.secret_file.is_some() {
                let what = format!("key {}: give secret or secret_file", shown(&key.id));
                return Err(invalid(what));
            }
        }
        for listen in &self.listeners {
            listen.face()?;
            let tls = listen.cert.is_some();
            if tls != listen.key.is_some() {
                return Err(invalid(format!(
                    "listen {}: cert and key go together",
                    listen.address
                )));
            }
            if !tls && !listen.plain && !is_local(listen.address.ip()) {
                let what = format!(
                    "listen {}: others can listen: give cert and key, or plain = true",
                    listen.address
                );
                return Err(invalid(what));
            }
            if let Some(region) = listen.region.as_ref().filter(|name| !names.contains(name)) {
                return Err(invalid(format!("there is no region {}", shown(region))));
            }
        }
        for image in &self.images {
            image.image()?;
            if !names.contains(&image.region) {
                return Err(invalid(format!("there is no region {}", shown(&image.region))));
            }
        }
        Ok(())
    }
}

fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback()
}

fn invalid(what: String) -> Error {
    Error::new(ErrorKind::Invalid, format!("read the configuration: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
state_dir = "/var/lib/ferry"
keyring = "/etc/ferry/keyring"
admin = "127.0.0.1:9100"
[[region]]
name = "r-1"
location = "dir:///srv/r-1"
rate = "100MiB/s"
encryption_keys = ["k-1", "alias/k-2"]
[[key]]
id = "AK"
secret = "hush-hush"
project = "p"
regions = ["r-*"]
images = ["*"]
[[listen]]
cloud = "alibaba"
address = "127.0.0.1:0"
[[image]]
region = "r-1"
id = "m-1"
project = "p"
kind = "iso"
tags = { k = "v" }
"#;

    #[test]
    fn a_whole_configuration_is_read() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!(config.listeners[0].face().unwrap(), Face::Alibaba);
        assert_eq!(config.images[0].image().unwrap().kind, ImageKind::Iso);
        assert!(config.regions[0].limits().unwrap().bytes_per_sec.is_some());
        let keys = config.regions[0].key_ids().unwrap();
        assert_eq!(keys.iter().map(KeyId::as_str).collect::<Vec<_>>(), ["k-1", "alias/k-2"]);
        assert!(!format!("{config:?}").contains("hush"), "a secret is never shown");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_named() {
        for (from, to, told) in [
            ("state_dir =", "state_dri =", "line 2"),
            ("name = \"r-1\"\n", "", "missing field"),
            ("rate = \"100MiB/s\"", "rate = \"fast\"", "rate"),
            ("\"alias/k-2\"", "\"../k 2\"", "key id"),
            ("keyring = \"/etc/ferry/keyring\"\n", "", "give the keyring"),
            ("cloud = \"alibaba\"", "cloud = \"azure\"", "listen as"),
            ("cloud = \"alibaba\"", "cloud = \"baidu\"", "name the region"),
            ("cloud = \"alibaba\"", "cloud = \"huawei\"\nregion = \"r-2\"", "no region"),
            ("127.0.0.1:0", "0.0.0.0:80", "others can listen"),
            ("127.0.0.1:0\"", "127.0.0.1:0\"\ncert = \"c\"", "cert and key"),
            ("region = \"r-1\"\nid", "region = \"r-2\"\nid", "no region"),
            ("kind = \"iso\"", "kind = \"floppy\"", "image kind"),
            ("secret = \"hush-hush\"", "", "secret or secret_file"),
            ("id = \"m-1\"", "id = \"../m\"", "image id"),
            (
                "[[region]]",
                "[[region]]\nname = \"r-1\"\nlocation = \"dir:///x\"\n[[region]]",
                "twice",
            ),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let error = Config::parse(&text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(told), "{told}: {error}");
            assert!(!error.report().contains("hush"), "{error}");
        }
        let broken = GOOD.replace("secret = \"hush-hush\"", "secret = \"hush-hush");
        assert!(!Config::parse(&broken).unwrap_err().report().contains("hush"));
    }
}
