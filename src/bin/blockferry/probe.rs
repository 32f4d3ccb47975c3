//! `probe`: finds out what an object store can be relied on for.

use std::sync::Arc;

use blockferry::location::BucketAddress;
use blockferry::store::{Depth, Fencing, Proven, S3Options, S3Store, Store, prove};
use blockferry::{Error, ErrorKind, Result};
use serde_json::json;

use crate::output::Report;

const EXAMPLES: &str = "\
Examples:
  blockferry probe s3://bucket/region-b
  blockferry probe 's3://bucket/region-b?endpoint=http://127.0.0.1:9000&allow_http=true' --json

Sends real requests: a few small objects are written, raced for, read, listed and deleted again.
Credentials come from the environment or the profile, as for other tools.";

/// Find out what an object store can be relied on for
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A region in an object store: s3://BUCKET/PREFIX
    region: String,
    /// Let nobody race: fewer requests, and stores whose conditions race are not found out
    #[arg(long)]
    quick: bool,
    /// Print one JSON object on one line
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let address = BucketAddress::parse(&args.region)?;
    if address.plain {
        return Err(Error::new(ErrorKind::Invalid, "probe one object")
            .within(args.region)
            .hint("name the bucket and a prefix: s3://BUCKET/PREFIX"));
    }
    let store: Arc<dyn Store> = S3Store::open(&address, &S3Options::default())?;
    let depth = if args.quick { Depth::Quick } else { Depth::Races };
    let proven = prove(&store, depth).await?;
    let capabilities = capabilities(&proven, store.has_checksums());
    let fencing = proven.fencing();
    let shown: serde_json::Map<_, _> =
        capabilities.iter().map(|(name, is, _)| ((*name).to_owned(), json!(is))).collect();
    let fields = json!({
        "location": address.to_string(),
        "fencing": fencing.name(),
        "raced": depth == Depth::Races,
        "proven": shown,
        "remarks": proven.remarks,
    });
    let mut lines = vec![format!("{address}")];
    for (_, is, what) in capabilities {
        lines.push(format!("  {}  {what}", if is { "yes" } else { "no " }));
    }
    lines.extend(proven.remarks.iter().map(|remark| format!("  - {remark}")));
    lines.push(format!("fencing: {} ({})", fencing.name(), meaning(fencing)));
    Ok(Report::done(fields, lines))
}

fn capabilities(proven: &Proven, checksums: bool) -> [(&'static str, bool, &'static str); 9] {
    [
        ("create", proven.create, "a create over an object is refused (If-None-Match: *)"),
        ("swap", proven.swap, "a write over a stale version is refused (If-Match)"),
        ("read_after_write", proven.read_after_write, "reads see writes and deletes at once"),
        ("list_after_write", proven.list_after_write, "listings show writes and deletes at once"),
        ("list_parts", proven.list_parts, "the parts of an upload are listed"),
        ("list_uploads", proven.list_uploads, "unfinished uploads are listed"),
        (
            "complete_if_absent",
            proven.complete_if_absent,
            "completing an upload over an object is refused (If-None-Match: *)",
        ),
        ("copy", proven.copy, "the store copies objects by itself"),
        ("checksums", checksums, "it vouches for what it got by CRC64NVME"),
    ]
}

fn meaning(fencing: Fencing) -> &'static str {
    match fencing {
        Fencing::Swap => "heads are swapped: two daemons cannot both decide",
        Fencing::Numbered => "heads are numbered, each is created once: two cannot both decide",
        Fencing::None => "the store ignores conditions: only one daemon may write here",
    }
}
