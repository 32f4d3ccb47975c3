//! What a caller may ask of a copy and of an engine, checked once at the door. Pure.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::ChunkSize;
use crate::id::{ImageId, KeyId, shown};

/// The most attributes an image carries.
pub const ATTRIBUTE_COUNT_MAX: usize = 64;
/// The most bytes of an attribute's key.
pub const ATTRIBUTE_KEY_LEN_MAX: usize = 128;
/// The most bytes of an attribute's value.
pub const ATTRIBUTE_VALUE_LEN_MAX: usize = 1024;
/// The most bytes of all keys and values together: they travel in every journal header and
/// manifest.
pub const ATTRIBUTE_BYTES_MAX: usize = 8192;
/// The most bytes of an idempotency token.
pub const TOKEN_LEN_MAX: usize = 256;

/// Ceilings on the speed of an engine, a region or a job; `None` is no ceiling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes per second, counted where they are read.
    pub bytes_per_sec: Option<NonZeroU64>,
    /// Operations per second: reads issued to the source.
    pub ops_per_sec: Option<NonZeroU64>,
}

impl Limits {
    /// No ceiling at all.
    pub const NONE: Self = Self { bytes_per_sec: None, ops_per_sec: None };

    /// With that many bytes per second; zero lifts the ceiling.
    #[must_use]
    pub fn with_bytes_per_sec(mut self, rate: u64) -> Self {
        self.bytes_per_sec = NonZeroU64::new(rate);
        self
    }

    /// With that many operations per second; zero lifts the ceiling.
    #[must_use]
    pub fn with_ops_per_sec(mut self, rate: u64) -> Self {
        self.ops_per_sec = NonZeroU64::new(rate);
        self
    }
}

/// How much of the staged image is read back, past the page cache, and compared before it is
/// committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verify {
    /// Nothing: completions and syncs are checked, bytes are not read back.
    #[default]
    None,
    /// That share of the data chunks, in millionths, chosen evenly by chunk number.
    Sample {
        /// 1 to 1,000,000.
        per_million: u32,
    },
    /// Every data chunk, and every zero chunk; also those that a resume did not copy again.
    Full,
}

impl Verify {
    /// Reads `none`, `full` or `sample:5%` (a percentage above 0 and up to 100, with up to four
    /// decimals).
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = || {
            Error::new(ErrorKind::Invalid, format!("use {} as verify mode", shown(text)))
                .hint("give none, full, or a share such as sample:5%")
        };
        match text {
            "none" => return Ok(Self::None),
            "full" => return Ok(Self::Full),
            _ => {}
        }
        let percent =
            text.strip_prefix("sample:").and_then(|t| t.strip_suffix('%')).ok_or_else(refuse)?;
        let (whole, fraction) = percent.split_once('.').unwrap_or((percent, "0"));
        let digits =
            |t: &str| !t.is_empty() && t.len() <= 4 && t.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) {
            return Err(refuse());
        }
        let whole: u32 = whole.parse().map_err(|_| refuse())?;
        let fraction: u32 = format!("{fraction:0<4}").parse().map_err(|_| refuse())?;
        let per_million = whole * 10_000 + fraction;
        if (1..=1_000_000).contains(&per_million) {
            Ok(Self::Sample { per_million })
        } else {
            Err(refuse())
        }
    }
}

impl std::fmt::Display for Verify {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Full => f.write_str("full"),
            Self::Sample { per_million } => {
                let fraction = format!("{:04}", per_million % 10_000);
                let fraction = fraction.trim_end_matches('0');
                let point = if fraction.is_empty() { "" } else { "." };
                write!(f, "sample:{}{point}{fraction}%", per_million / 10_000)
            }
        }
    }
}

/// Whether the new image is encrypted where it lies, and under which key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encryption {
    /// As the source: under the same key where that is encrypted, and in clear where it is not.
    #[default]
    Keep,
    /// In clear, whatever the source is.
    Plain,
    /// Encrypted under that key, with a data key of its own, whatever the source is.
    Key(KeyId),
}

/// What a caller asks of one copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyOptions {
    /// The chunk size; `None`: that of the source's manifest, else 4 MiB, grown so that the image
    /// has at most 2^20 chunks.
    pub chunk_size: Option<ChunkSize>,
    /// Ceilings for this job.
    pub limits: Limits,
    /// How much is read back before commit.
    pub verify: Verify,
    /// An idempotency token: the same token with the same request is the same job.
    pub token: Option<String>,
    /// Consent to overwrite a target that holds bytes already (a block device).
    pub destructive: bool,
    /// A committed image of the target's region that holds much the same already, in chunks of the
    /// same size: chunks that both have alike are taken over from it where it lies, and do not
    /// travel. Only the start needs it: a base that is lost or damaged later costs time, no more.
    /// Neither it nor the new image may be encrypted.
    pub base: Option<ImageId>,
    /// Attributes of the new image, over those of the source.
    pub attributes: BTreeMap<String, String>,
    /// Whether the new image is encrypted where it lies.
    pub encryption: Encryption,
    /// How many copies of the same image are started together, this one among them; 0 and 1: it is
    /// alone. What one of them reads and hashes, the others take from memory, where they are cut in
    /// chunks of the same size; each commits, lags, fails or is cancelled on its own. Between files
    /// on this host only where the memory budget holds 32 chunks: with fewer, reading once more is
    /// faster. At the start they wait for each other, five seconds at most. It is no part of the
    /// request that a token stands for, nor of what a job records: a resume without the token goes
    /// alone.
    pub legs: u32,
}

impl CopyOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// With chunks of exactly that size.
    #[must_use]
    pub fn with_chunk_size(mut self, chunk_size: ChunkSize) -> Self {
        self.chunk_size = Some(chunk_size);
        self
    }

    /// With ceilings for this job.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// With that much read back before commit.
    #[must_use]
    pub fn with_verify(mut self, verify: Verify) -> Self {
        self.verify = verify;
        self
    }

    /// With an idempotency token of 1 to 256 bytes.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// With consent to overwrite a target that holds bytes already.
    #[must_use]
    pub fn with_destructive(mut self, destructive: bool) -> Self {
        self.destructive = destructive;
        self
    }

    /// With an image of the target's region as base.
    #[must_use]
    pub fn with_base(mut self, base: ImageId) -> Self {
        self.base = Some(base);
        self
    }

    /// With one attribute of the new image.
    #[must_use]
    pub fn with_attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.insert(key.into(), value.into());
        self
    }

    /// With the new image encrypted so.
    #[must_use]
    pub fn with_encryption(mut self, encryption: Encryption) -> Self {
        self.encryption = encryption;
        self
    }

    /// As one of that many copies of the same image that are started together.
    #[must_use]
    pub fn with_legs(mut self, legs: u32) -> Self {
        self.legs = legs;
        self
    }

    /// Checks what the types cannot.
    pub(crate) fn check(&self) -> Result<()> {
        let token_fits = |token: &String| (1..=TOKEN_LEN_MAX).contains(&token.len());
        if !self.token.as_ref().is_none_or(token_fits) {
            return Err(Error::new(ErrorKind::Invalid, "use that idempotency token")
                .hint("a token has 1 to 256 bytes"));
        }
        if let Verify::Sample { per_million } = self.verify
            && !(1..=1_000_000).contains(&per_million)
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("verify {per_million} in a million"),
            )
            .hint("give 1 to 1000000"));
        }
        check_attributes(&self.attributes)
    }
}

/// Attributes are bounded: they are stored in every manifest and journal.
pub(crate) fn check_attributes(attributes: &BTreeMap<String, String>) -> Result<()> {
    let fits = |(key, value): (&String, &String)| {
        (1..=ATTRIBUTE_KEY_LEN_MAX).contains(&key.len()) && value.len() <= ATTRIBUTE_VALUE_LEN_MAX
    };
    let bytes: usize = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    if attributes.len() > ATTRIBUTE_COUNT_MAX
        || bytes > ATTRIBUTE_BYTES_MAX
        || !attributes.iter().all(fits)
    {
        return Err(Error::new(ErrorKind::Invalid, "use these attributes")
            .hint("at most 64, keys of 1 to 128 bytes, values of up to 1024, 8192 in all"));
    }
    Ok(())
}

/// What a daemon gives an engine: its budgets and where it keeps its index.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Where the job index lives. It is created when missing, with mode 0700.
    pub state_dir: PathBuf,
    /// Worker threads for reading, hashing and writing, which all jobs share; 0: one a core, and at
    /// least four, so that a device is kept busy while others hash.
    pub threads: usize,
    /// How many jobs move bytes at once; the others wait their turn.
    pub jobs_running_max: usize,
    /// The most bytes of image data that all jobs together hold in memory.
    pub memory_bytes_max: u64,
    /// Ceilings for all jobs together.
    pub limits: Limits,
    /// A checkpoint is due after that many bytes.
    pub checkpoint_bytes: u64,
    /// A checkpoint is due after that long.
    pub checkpoint_interval: Duration,
    /// Whether a copy may share extents with its source where the file system can (reflinks), so
    /// that no byte is moved. Both images then depend on the same blocks of the device.
    pub share_extents: bool,
    /// Whether pages of a staged file leave the page cache once they are durable, so that a copy
    /// does not push out what others keep there.
    pub drop_behind: bool,
}

impl EngineOptions {
    /// The defaults, with the index in `state_dir`: a thread per core and at least four, 16 jobs at
    /// once, 32 MiB of image data in memory, a checkpoint every 256 MiB or second, extents shared
    /// where they can be, no ceiling.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            threads: 0,
            jobs_running_max: 16,
            memory_bytes_max: 32 << 20,
            limits: Limits::NONE,
            checkpoint_bytes: 256 << 20,
            checkpoint_interval: Duration::from_secs(1),
            share_extents: true,
            drop_behind: true,
        }
    }

    /// With that many worker threads; 0: one a core, and at least four.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// With that many jobs at once; at least one.
    #[must_use]
    pub fn with_jobs_running_max(mut self, jobs: usize) -> Self {
        self.jobs_running_max = jobs.max(1);
        self
    }

    /// With at most that many bytes of image data in memory. One chunk per job always fits.
    #[must_use]
    pub fn with_memory_bytes_max(mut self, bytes: u64) -> Self {
        self.memory_bytes_max = bytes;
        self
    }

    /// With ceilings for all jobs together.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// With copies that share extents with their source, or never do.
    #[must_use]
    pub fn with_share_extents(mut self, share: bool) -> Self {
        self.share_extents = share;
        self
    }

    /// With what was written dropped from the page cache, or kept there for whoever reads it next.
    /// Where writes go past the page cache there is nothing to keep.
    #[must_use]
    pub fn with_drop_behind(mut self, drop: bool) -> Self {
        self.drop_behind = drop;
        self
    }

    /// With a checkpoint after that many bytes or that long, whichever comes first.
    #[must_use]
    pub fn with_checkpoint(mut self, bytes: u64, interval: Duration) -> Self {
        self.checkpoint_bytes = bytes.max(1);
        self.checkpoint_interval = interval;
        self
    }
}

/// Reads a number of bytes: `65536`, `64KiB`, `4MiB`, `1.5GiB`, `2TiB`, or decimal `500MB`. `K`,
/// `M`, `G`, `T` alone are binary.
///
/// # Errors
/// [`ErrorKind::Invalid`] for anything else, and for more than 2^64 - 1 bytes.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let refuse = || {
        Error::new(ErrorKind::Invalid, format!("use {} as a number of bytes", shown(text)))
            .hint("give a number such as 65536, 4MiB or 500MB")
    };
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(refuse()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.is_empty() || fraction.len() > 6 || fraction.contains('.') {
        return Err(refuse());
    }
    let whole: u128 = whole.parse::<u64>().map_err(|_| refuse())?.into();
    let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| refuse())?);
    let fraction: u128 = fraction.parse::<u32>().map_err(|_| refuse())?.into();
    let bytes = whole * u128::from(unit) + fraction * u128::from(unit) / scale;
    u64::try_from(bytes).map_err(|_| refuse())
}

/// Reads a rate: a number of bytes as [`parse_bytes`] takes it, with or without `/s`; `0`, `none`
/// and `unlimited` are no ceiling (0).
///
/// # Errors
/// [`ErrorKind::Invalid`] for anything else.
pub fn parse_rate(text: &str) -> Result<u64> {
    if matches!(text, "none" | "unlimited") {
        return Ok(0);
    }
    parse_bytes(text.strip_suffix("/s").unwrap_or(text)).map_err(|_| {
        Error::new(ErrorKind::Invalid, format!("use {} as a rate", shown(text)))
            .hint("give bytes per second such as 100MiB/s, or none")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_nonsense_is_refused() {
        let good = [
            ("0", 0),
            ("65536", 65536),
            ("64KiB", 65536),
            ("4MiB", 4 << 20),
            ("4m", 4 << 20),
            ("1.5GiB", 3 << 29),
            ("2TiB", 2 << 40),
            ("500MB", 500_000_000),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in good {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "MiB", "-1", "1e3", "1.MiB", "1..2", "1 MiB", "16EiB", "99999999TiB", "½"]
        {
            assert_eq!(parse_bytes(text).unwrap_err().kind(), ErrorKind::Invalid, "{text}");
        }
        assert_eq!(parse_rate("100MiB/s").unwrap(), 100 << 20);
        assert_eq!(parse_rate("none").unwrap(), 0);
        assert!(parse_rate("/s").is_err());
    }

    #[test]
    fn verify_modes_are_read_and_written_alike() {
        for text in ["none", "full", "sample:5%", "sample:0.5%", "sample:100%", "sample:0.0001%"] {
            assert_eq!(Verify::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "some", "sample:0%", "sample:101%", "sample:-1%", "sample:5", "sample:%"] {
            assert!(Verify::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn options_out_of_bounds_are_refused_at_the_door() {
        assert!(CopyOptions::new().check().is_ok());
        assert!(CopyOptions::new().with_token("").check().is_err());
        assert!(CopyOptions::new().with_token("x".repeat(257)).check().is_err());
        assert!(CopyOptions::new().with_attribute("", "v").check().is_err());
        assert!(CopyOptions::new().with_attribute("k", "v".repeat(1025)).check().is_err());
        assert!(CopyOptions::new().with_attribute("k", "v").check().is_ok());
    }
}
