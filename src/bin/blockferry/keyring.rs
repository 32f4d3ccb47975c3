//! `keyring`: the keys that wrap the data keys of encrypted images, in a file.

use std::path::{Path, PathBuf};

use blockferry::Result;
use blockferry::id::KeyId;
use blockferry::keys::{FileKeyring, KeyInfo};
use serde_json::{Value, json};

use crate::output::Report;

const EXAMPLES: &str = "\
Examples:
  blockferry keyring init /etc/blockferry/keyring
  blockferry keyring add /etc/blockferry/keyring images-2026
  blockferry copy disk.raw dir:///srv/region-a/disk-1 --keyring FILE --encrypt images-2026
  blockferry keyring rotate /etc/blockferry/keyring images-2026
  blockferry rewrap dir:///srv/region-a/disk-1 --keyring FILE --to images-2026

Whoever can read the keyring can read every image that its keys wrap; without it nobody can. Keep
it on another device than the images, readable to its owner alone, and keep a copy of it.";

/// Make and change a keyring for encrypted images
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
    /// Make an empty keyring
    Init {
        /// The file; it must not be there
        file: PathBuf,
    },
    /// Make a key
    Add {
        /// The keyring
        file: PathBuf,
        /// The id of the new key
        #[arg(value_name = "KEY-ID")]
        key: String,
    },
    /// Give a key a new version, which wraps from now on
    Rotate {
        /// The keyring
        file: PathBuf,
        /// The key
        #[arg(value_name = "KEY-ID")]
        key: String,
    },
    /// List keys and their versions; never their secrets
    List {
        /// The keyring
        file: PathBuf,
    },
    /// Remove a key for good: what it wrapped can never be read again
    Remove {
        /// The keyring
        file: PathBuf,
        /// The key
        #[arg(value_name = "KEY-ID")]
        key: String,
        /// That version alone
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        version: Option<u32>,
    },
}

pub(crate) fn run(args: &Args) -> Result<Report> {
    match &args.what {
        What::Init { file } => {
            FileKeyring::create(file)?;
            Ok(done(file, &[], format!("made keyring {}", file.display())))
        }
        What::Add { file, key } => {
            let key: KeyId = key.parse()?;
            let ring = FileKeyring::open(file)?;
            ring.add(&key)?;
            Ok(done(file, &ring.list()?, format!("key {key} is made")))
        }
        What::Rotate { file, key } => {
            let key: KeyId = key.parse()?;
            let ring = FileKeyring::open(file)?;
            let version = ring.rotate(&key)?;
            Ok(done(file, &ring.list()?, format!("key {key} is at version {version}")))
        }
        What::List { file } => {
            let keys = FileKeyring::open(file)?.list()?;
            let lines = keys.iter().map(|info| format!("{} version {}", info.key, info.version));
            let lines: Vec<String> = lines.collect();
            Ok(Report::done(fields(file, &keys), lines))
        }
        What::Remove { file, key, version } => {
            let key: KeyId = key.parse()?;
            let ring = FileKeyring::open(file)?;
            ring.remove(&key, *version)?;
            let what = version.map_or(String::new(), |version| format!("version {version} of "));
            Ok(done(file, &ring.list()?, format!("{what}key {key} is removed")))
        }
    }
}

fn done(file: &Path, keys: &[KeyInfo], line: String) -> Report {
    Report::done(fields(file, keys), vec![line])
}

fn fields(file: &Path, keys: &[KeyInfo]) -> Value {
    let told = keys.iter().map(|info| {
        json!({
            "key": info.key.to_string(),
            "version": info.version,
            "created_unix_ms": info.created_unix_ms,
        })
    });
    json!({"keyring": file.display().to_string(), "keys": told.collect::<Vec<Value>>()})
}
