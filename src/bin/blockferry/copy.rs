//! `copy`: one image from here to there.

use blockferry::engine::CopyRequest;
use blockferry::geometry::ChunkSize;
use blockferry::id::ImageId;
use blockferry::job::Endpoint;
use blockferry::options::{CopyOptions, Limits, Verify, parse_bytes, parse_rate};
use blockferry::{Error, ErrorKind, Result};

use crate::context::{Common, Context, endpoint};
use crate::follow::{Interrupts, Running, follow};
use crate::output::Report;

const EXAMPLES: &str = "\
Examples:
  blockferry copy disk.raw dir:///srv/region-a/disk-1
  blockferry copy dir:///srv/region-a/disk-1 dir:///srv/region-b/disk-1 --verify full
  blockferry copy disk.raw dir:///srv/region-a/disk-1 --rate 100MiB/s --on-interrupt cancel
  blockferry copy dir:///srv/region-a/disk-1 /dev/vdb --destructive
  blockferry copy disk.raw dir:///srv/region-a/disk-1 --token order-4711 --json
  blockferry copy disk-v2.raw dir:///srv/region-a/disk-2 --base disk-1
  blockferry copy disk.raw 's3://bucket/region-b/disk-1?endpoint=https://s3.example'

A copy of an encrypted image is encrypted under the same key, unless --encrypt or --decrypt says
otherwise. The image appears at the destination whole, and durable, or not at all. Ctrl-C suspends
the copy and prints how to go on; from elsewhere, `blockferry cancel DST` cancels it.";

/// Copy an image
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The image to copy; it is never written
    #[arg(value_name = "SRC")]
    source: String,
    /// Where it is to be; nothing that is there is replaced
    #[arg(value_name = "DST")]
    target: String,
    /// Size of chunks: a power of two from 64KiB to 64MiB [default: the source's, else 4MiB]
    #[arg(long, value_name = "SIZE")]
    chunk_size: Option<String>,
    /// Copy at most that fast, such as 100MiB/s; 0 or none: no limit [default: none]
    #[arg(long, value_name = "RATE")]
    rate: Option<String>,
    /// Read back before commit: none, sample:5% or full
    #[arg(long, value_name = "HOW", default_value = "none")]
    verify: String,
    /// The same token with the same request is the same job, however often it is asked for
    #[arg(long)]
    token: Option<String>,
    /// Overwrite a block device; what it holds is lost
    #[arg(long)]
    destructive: bool,
    /// An image of the destination's region that is much the same: what both have alike is taken
    /// over there, and does not travel. Its id, or where it is
    #[arg(long, value_name = "IMAGE")]
    base: Option<String>,
    /// Encrypt the new image where it lies, under that key of --keyring
    #[cfg(feature = "encrypt")]
    #[arg(long, value_name = "KEY-ID")]
    encrypt: Option<String>,
    /// Put the new image in clear although the source is encrypted where it lies
    #[cfg(feature = "encrypt")]
    #[arg(long, conflicts_with = "encrypt")]
    decrypt: bool,
    /// An attribute of the new image; may be repeated
    #[arg(long = "attribute", value_name = "K=V")]
    attributes: Vec<String>,
    #[command(flatten)]
    running: Running,
    #[command(flatten)]
    pub(crate) common: Common,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let interrupts = Interrupts::catch()?;
    let (source, target) = (endpoint(&args.source)?, endpoint(&args.target)?);
    let options = options_of(&args, &target)?;
    refuse_ours(&target)?;
    let context = Context::new(&args.common)?;
    let engine = context.engine_with(|options| args.running.of_engine(options)).await?;
    context.register(&engine, &source).await?;
    context.register(&engine, &target).await?;
    let job = engine.copy(CopyRequest::new(source, target, options)).await?;
    Ok(follow(&job, &args.running, interrupts, &context, args.common.json).await)
}

/// An image of the destination's region, by its id or by its location.
fn base_of(text: &str, target: &Endpoint) -> Result<ImageId> {
    if !text.contains('/') {
        return text.parse();
    }
    let base = endpoint(text)?;
    match base.region == target.region {
        true => Ok(base.image),
        false => Err(Error::new(ErrorKind::Invalid, "take an image of another region as base")
            .within(base.to_string())
            .hint("the base lies beside the destination, where chunks are taken over from it")),
    }
}

/// What lies among stages is taken for one, and removed as one.
fn refuse_ours(target: &Endpoint) -> Result<()> {
    let is_ours = |part: &str| part == ".blockferry" || part.starts_with(".blockferry-");
    if !target.region.as_str().split('/').any(is_ours) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, "copy into a folder that holds stages")
        .within(target.to_string())
        .hint("no part of the path may be .blockferry or begin with .blockferry-"))
}

fn options_of(args: &Args, target: &Endpoint) -> Result<CopyOptions> {
    let mut options = CopyOptions::new()
        .with_verify(Verify::parse(&args.verify)?)
        .with_destructive(args.destructive);
    if let Some(size) = &args.chunk_size {
        options = options.with_chunk_size(ChunkSize::from_bytes(parse_bytes(size)?)?);
    }
    if let Some(rate) = &args.rate {
        options = options.with_limits(Limits::NONE.with_bytes_per_sec(parse_rate(rate)?));
    }
    if let Some(token) = &args.token {
        options = options.with_token(token);
    }
    if let Some(base) = &args.base {
        options = options.with_base(base_of(base, target)?);
    }
    #[cfg(feature = "encrypt")]
    {
        use blockferry::options::Encryption;
        let encryption = match (&args.encrypt, args.decrypt) {
            (Some(key), _) => Encryption::Key(key.parse()?),
            (None, true) => Encryption::Plain,
            (None, false) => Encryption::Keep,
        };
        options = options.with_encryption(encryption);
    }
    for attribute in &args.attributes {
        let (key, value) = attribute.split_once('=').ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("use {attribute:?} as attribute"))
                .hint("write KEY=VALUE")
        })?;
        options = options.with_attribute(key, value);
    }
    Ok(options)
}
