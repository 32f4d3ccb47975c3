//! Locations: where an image or a region is, as typed by a person or a script. Pure.

mod bucket;

use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{ImageId, RegionName, shown};
use crate::job::Endpoint;

pub use bucket::BucketAddress;

/// The id of the only image of a `file:` or `s3+raw:` region.
pub const FILE_IMAGE: &str = "image";

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Location {
    /// A plain file or a block device, by absolute path.
    File(String),
    /// An image of a directory region.
    Dir {
        /// Absolute path of the region's root.
        root: String,
        /// The image in it.
        image: ImageId,
    },
    /// An image of a region that another daemon serves.
    Peer {
        /// The region.
        address: PeerAddress,
        /// The image in it.
        image: ImageId,
    },
    /// An image of a region in an object store.
    Object {
        /// The region.
        address: BucketAddress,
        /// The image in it.
        image: ImageId,
    },
    /// One plain object of an object store.
    PlainObject(BucketAddress),
}

/// Where another daemon serves a region, and what it calls it. Its text is a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PeerAddress {
    /// `ferrys://HOST:PORT/REGION`: over TLS, with certificates on both sides.
    Tcp {
        /// A DNS name or an IP address, one of version 6 in brackets.
        host: String,
        /// The port.
        port: u16,
        /// The region's name there: as an image id.
        region: RegionName,
    },
    /// `ferry+unix:///PATH/TO/SOCKET/REGION`: a Unix socket of this host, not encrypted.
    Unix {
        /// The socket's absolute path.
        socket: String,
        /// The region's name there: as an image id.
        region: RegionName,
    },
}

impl PeerAddress {
    /// Reads `ferrys://HOST:PORT/REGION` or `ferry+unix:///SOCKET/REGION`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let hint = "write ferrys://HOST:PORT/REGION or ferry+unix:///SOCKET/REGION";
        let (scheme, rest) = scheme(text).ok_or_else(|| refuse(text, hint))?;
        let (place, region) = rest.rsplit_once('/').ok_or_else(|| refuse(text, hint))?;
        // One grammar for both parts, so that none of them can hold a slash.
        let region: ImageId = region.parse().map_err(|_| refuse(text, REGION_HINT))?;
        let region: RegionName = region.as_str().parse()?;
        match scheme {
            "ferry+unix" => Ok(Self::Unix { socket: checked(text, place)?.to_owned(), region }),
            "ferrys" => {
                let (host, port) = place.rsplit_once(':').ok_or_else(|| refuse(text, hint))?;
                // One spelling each: no sign, no leading zero.
                let spelt = |number: &u16| *number > 0 && number.to_string() == port;
                let port = port.parse().ok().filter(spelt);
                let port = port.ok_or_else(|| refuse(text, "a port is 1 to 65535"))?;
                if !is_host(host) {
                    return Err(refuse(text, "the host is a name, an address or [an address]"));
                }
                Ok(Self::Tcp { host: host.to_owned(), port, region })
            }
            other => Err(unknown(text, other)),
        }
    }

    /// The region's name there.
    pub fn region(&self) -> &RegionName {
        match self {
            Self::Tcp { region, .. } | Self::Unix { region, .. } => region,
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, region } => write!(f, "ferrys://{host}:{port}/{region}"),
            Self::Unix { socket, region } => write!(f, "ferry+unix://{socket}/{region}"),
        }
    }
}

const REGION_HINT: &str = "a region there is named by letters, digits, '.', '_' and '-'";

fn is_host(host: &str) -> bool {
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let in_brackets = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match in_brackets {
        Some(inner) => inner.parse::<core::net::Ipv6Addr>().is_ok(),
        None => (1..=253).contains(&host.len()) && host.bytes().all(named),
    }
}

fn is_peer(scheme: &str) -> bool {
    matches!(scheme, "ferrys" | "ferry+unix")
}

/// Where a region is: what `jobs` and `recover` take.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegionLocation {
    /// The folder whose plain files are copied to.
    Files(String),
    /// A directory region's root.
    Dir(String),
    /// A region that another daemon serves.
    Peer(PeerAddress),
    /// A region in an object store, or one plain object: the jobs that write to it.
    Object(BucketAddress),
}

impl Location {
    /// Reads `disk.raw`, `/abs/disk.raw`, `file:///abs/disk.raw`, `dir:///srv/region-a/IMAGE`,
    /// `ferrys://HOST:PORT/REGION/IMAGE`, `ferry+unix:///SOCKET/REGION/IMAGE`,
    /// `s3://BUCKET/PREFIX/IMAGE` or `s3+raw://BUCKET/KEY`.
    ///
    /// A plain path is what the shell means by it, relative to `cwd`. In URL forms no component may
    /// be `.`, `..` or empty and nothing is percent-decoded.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an unknown scheme, a malformed path or image id.
    pub fn parse(text: &str, cwd: &str) -> Result<Self> {
        match scheme(text) {
            None => Ok(Self::File(absolute(text, cwd)?)),
            Some(("file", path)) => Ok(Self::File(checked(text, path)?.to_owned())),
            Some(("dir", path)) => {
                let path = checked(text, path)?;
                let (root, image) = path.rsplit_once('/').unwrap_or(("", path));
                let image = image.parse().map_err(|e: Error| e.within(shown(text)))?;
                if root.is_empty() {
                    return Err(refuse(text, "write dir:///FOLDER/IMAGE"));
                }
                Ok(Self::Dir { root: root.to_owned(), image })
            }
            Some((scheme, _)) if is_peer(scheme) => {
                let (address, image) = text.rsplit_once('/').unwrap_or((text, ""));
                let image = image.parse().map_err(|e: Error| e.within(shown(text)))?;
                Ok(Self::Peer { address: PeerAddress::parse(address)?, image })
            }
            Some(("s3", _)) => {
                let whole = BucketAddress::parse(text)?;
                let (prefix, image) = whole.key.rsplit_once('/').unwrap_or(("", &whole.key));
                let image = image.parse().map_err(|e: Error| e.within(shown(text)))?;
                Ok(Self::Object { address: whole.with_key(prefix), image })
            }
            Some(("s3+raw", _)) => BucketAddress::parse(text).map(Self::PlainObject),
            Some((other, _)) => Err(unknown(text, other)),
        }
    }

    /// The region's name and the image in it, as jobs record them.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the path is too long for a region name.
    pub fn endpoint(&self) -> Result<Endpoint> {
        match self {
            Self::File(path) => {
                Ok(Endpoint::new(format!("file://{path}").parse()?, FILE_IMAGE.parse()?))
            }
            Self::Dir { root, image } => {
                Ok(Endpoint::new(format!("dir://{root}").parse()?, image.clone()))
            }
            Self::Peer { address, image } => {
                Ok(Endpoint::new(address.to_string().parse()?, image.clone()))
            }
            Self::Object { address, image } => {
                Ok(Endpoint::new(address.to_string().parse()?, image.clone()))
            }
            Self::PlainObject(address) => {
                Ok(Endpoint::new(address.to_string().parse()?, FILE_IMAGE.parse()?))
            }
        }
    }

    /// The location that an endpoint names, if the command line made it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the region's name is not a location.
    pub fn of_endpoint(endpoint: &Endpoint) -> Result<Self> {
        let name = endpoint.region.as_str();
        if let Some(path) = name.strip_prefix("file://") {
            return Ok(Self::File(path.to_owned()));
        }
        if scheme(name).is_some_and(|(scheme, _)| is_peer(scheme)) {
            let address = PeerAddress::parse(name)?;
            return Ok(Self::Peer { address, image: endpoint.image.clone() });
        }
        match scheme(name) {
            Some(("s3", _)) => {
                let address = BucketAddress::parse(name)?;
                return Ok(Self::Object { address, image: endpoint.image.clone() });
            }
            Some(("s3+raw", _)) => return BucketAddress::parse(name).map(Self::PlainObject),
            _ => {}
        }
        let root = name.strip_prefix("dir://").ok_or_else(|| {
            refuse(name, "this job belongs to a daemon that names its regions otherwise")
        })?;
        Ok(Self::Dir { root: root.to_owned(), image: endpoint.image.clone() })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file://{path}"),
            Self::Dir { root, image } => write!(f, "dir://{root}/{image}"),
            Self::Peer { address, image } => write!(f, "{address}/{image}"),
            Self::Object { address, image } => {
                let (place, words) = address.parts();
                write!(f, "{place}/{image}{words}")
            }
            Self::PlainObject(address) => write!(f, "{address}"),
        }
    }
}

impl RegionLocation {
    /// Reads `FOLDER`, `file:///FOLDER`, `dir:///ROOT`, a [`PeerAddress`] or a [`BucketAddress`].
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an unknown scheme or a malformed path.
    pub fn parse(text: &str, cwd: &str) -> Result<Self> {
        match scheme(text) {
            None => Ok(Self::Files(absolute(text, cwd)?)),
            Some(("file", path)) => Ok(Self::Files(checked(text, path)?.to_owned())),
            Some(("dir", path)) => Ok(Self::Dir(checked(text, path)?.to_owned())),
            Some((scheme, _)) if is_peer(scheme) => PeerAddress::parse(text).map(Self::Peer),
            Some(("s3" | "s3+raw", _)) => BucketAddress::parse(text).map(Self::Object),
            Some((other, _)) => Err(unknown(text, other)),
        }
    }

    /// The name under which the command line registers the region.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the path is too long for a region name.
    pub fn name(&self) -> Result<RegionName> {
        match self {
            Self::Files(path) => format!("file://{path}").parse(),
            Self::Dir(root) => format!("dir://{root}").parse(),
            Self::Peer(address) => address.to_string().parse(),
            Self::Object(address) => address.to_string().parse(),
        }
    }
}

fn scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let named = scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    (named && !scheme.is_empty()).then_some((scheme, rest))
}

fn absolute(text: &str, cwd: &str) -> Result<String> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(refuse(text, "a path has at least one character and no control character"));
    }
    if text.starts_with('/') {
        return Ok(text.to_owned());
    }
    Ok(format!("{}/{text}", cwd.trim_end_matches('/')))
}

/// The absolute path of a URL: no empty, `.` or `..` component, no control character.
fn checked<'a>(text: &str, path: &'a str) -> Result<&'a str> {
    let Some(inner) = path.strip_prefix('/') else {
        return Err(refuse(
            text,
            "after :// an absolute path must follow, with three slashes in all",
        ));
    };
    if inner.split('/').any(|part| matches!(part, "" | "." | ".."))
        || path.chars().any(char::is_control)
    {
        return Err(refuse(text, "no part of the path may be empty, '.' or '..'"));
    }
    Ok(path)
}

fn unknown(text: &str, scheme: &str) -> Error {
    let what = format!("use {} as location: unknown scheme {}", shown(text), shown(scheme));
    Error::new(ErrorKind::Invalid, what)
        .hint("known schemes are file://, dir://, ferrys://, ferry+unix://, s3:// and s3+raw://")
}

fn refuse(text: &str, hint: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, format!("use {} as location", shown(text))).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_as_written() {
        let file = |path: &str| Location::File(path.into());
        let parse = |text| Location::parse(text, "/home/me");
        assert_eq!(parse("disk.raw").unwrap(), file("/home/me/disk.raw"));
        assert_eq!(parse("../a b").unwrap(), file("/home/me/../a b"));
        assert_eq!(parse("/x/%20").unwrap(), file("/x/%20"));
        assert_eq!(parse("file:///x/y").unwrap(), file("/x/y"));
        let dir = parse("dir:///srv/region-a/m-1").unwrap();
        assert_eq!(
            dir,
            Location::Dir { root: "/srv/region-a".into(), image: "m-1".parse().unwrap() }
        );
        assert_eq!(dir.to_string(), "dir:///srv/region-a/m-1");
        assert_eq!(Location::of_endpoint(&dir.endpoint().unwrap()).unwrap(), dir);
        let plain = parse("disk.raw").unwrap();
        assert_eq!(Location::of_endpoint(&plain.endpoint().unwrap()).unwrap(), plain);
    }

    #[test]
    fn peers_are_read_as_written() {
        for text in [
            "ferrys://b.example:7443/b/m-1",
            "ferrys://127.0.0.1:1/region.b/m-1",
            "ferrys://[::1]:65535/b/m-1",
            "ferry+unix:///run/ferry.sock/b/m-1",
        ] {
            let location = Location::parse(text, "/").unwrap();
            assert_eq!(location.to_string(), text);
            assert_eq!(Location::of_endpoint(&location.endpoint().unwrap()).unwrap(), location);
            let region = text.strip_suffix("/m-1").unwrap();
            let parsed = RegionLocation::parse(region, "/").unwrap();
            assert_eq!(parsed.name().unwrap(), location.endpoint().unwrap().region);
        }
        for text in [
            "ferrys://host/b/m-1",
            "ferrys://host:0/b/m-1",
            "ferrys://host:65536/b/m-1",
            "ferrys://:1/b/m-1",
            "ferrys://host:+1/b/m-1",
            "ferrys://host:01/b/m-1",
            "ferrys://me@host:1/b/m-1",
            "ferrys://[::g]:1/b/m-1",
            "ferrys://host:1/b",
            "ferrys://host:1/b/",
            "ferrys://host:1/../m-1",
            "ferrys://host:1/a/b/m-1",
            "ferry+unix://run/ferry.sock/b/m-1",
            "ferry+unix:///run/../ferry.sock/b/m-1",
            "ferry+unix:///b/m-1",
        ] {
            let error = Location::parse(text, "/").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text:?}");
        }
    }

    #[test]
    fn objects_are_read_as_written() {
        let words = "?endpoint=http://127.0.0.1:9000&region=r&allow_http=true";
        for text in [
            "s3://bucket/m-1".to_owned(),
            format!("s3://bucket/a/b/m-1{words}"),
            format!("s3+raw://bucket/a/disk 1.raw{words}"),
        ] {
            let location = Location::parse(&text, "/").unwrap();
            assert_eq!(location.to_string(), text);
            let end = location.endpoint().unwrap();
            assert_eq!(Location::of_endpoint(&end).unwrap(), location);
            let region = RegionLocation::parse(end.region.as_str(), "/").unwrap();
            assert_eq!(region.name().unwrap(), end.region);
        }
        for text in ["s3://bucket", "s3://bucket/a/.m", "s3+raw://bucket"] {
            let error = Location::parse(text, "/").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text:?}");
        }
    }

    #[test]
    fn hostile_locations_are_refused() {
        for text in [
            "",
            "a\0b",
            "s4://x/y",
            "file://host/x",
            "file:///a/../b",
            "dir:///a//b",
            "dir:///a/./b",
            "dir:///../m-1",
            "dir:///m-1",
            "dir://",
            "dir:///srv/a/..",
            "dir:///srv/a/.hidden",
            "dir:///srv/a/x\ny",
            "dir:///srv/a/",
        ] {
            let error = Location::parse(text, "/").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text:?}");
        }
    }
}
