//! `digest`: the root of an image, and the BLAKE3 of its content.

use std::sync::Arc;

use blockferry::chunk::{Content, Digest, Durable};
use blockferry::geometry::{ChunkRun, ChunkSize, Geometry};
use blockferry::manifest::Manifest;
use blockferry::options::parse_bytes;
use blockferry::region::{Restored, Source};
use blockferry::{Error, ErrorKind, Result};
use serde_json::json;

use crate::context::{Common, Context, endpoint};
use crate::output::Report;
use crate::scan::{content_of, scan};

const EXAMPLES: &str = "\
Examples:
  blockferry digest dir:///srv/region-a/disk-1
  blockferry digest dir:///srv/region-a/disk-1 --root-only
  blockferry digest disk.raw --chunk-size 1MiB

The content digest is what `b3sum` prints for the raw image. For an image of a region both digests
come from its manifest: only zeros are hashed, no data is read. The root depends on the chunk size,
so compare roots of equal chunk sizes.";

/// Print the digests of an image
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The image
    image: String,
    /// Leave out the content digest
    #[arg(long)]
    root_only: bool,
    /// How a plain file is cut [default: 4MiB]; an image of a region is cut already
    #[arg(long, value_name = "SIZE")]
    chunk_size: Option<String>,
    #[command(flatten)]
    pub(crate) common: Common,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let asked = args.chunk_size.as_deref().map(parse_bytes).transpose()?;
    let asked = asked.map(ChunkSize::from_bytes).transpose()?;
    let endpoint = endpoint(&args.image)?;
    let context = Context::new(&args.common)?;
    let source = context.open(&endpoint).await?.open(&endpoint.image).await?;
    let kept = source.manifest();
    let (geometry, root, digests) = match kept.filter(|m| {
        // Asked for another cut, the digests at hand are of no use.
        asked.is_none_or(|size| size == m.geometry().chunk_size())
    }) {
        Some(manifest) => (manifest.geometry(), manifest.root(), digests_of(&manifest)),
        None => read(&source, asked).await?,
    };
    let content = match args.root_only {
        true => None,
        false => {
            let hashed = tokio::task::spawn_blocking(move || content_of(geometry, &digests)).await;
            let hashed = hashed.map_err(|e| Error::new(ErrorKind::Io, "hash zeros").because(e))?;
            Some(hashed?)
        }
    };
    let content = content.map(|digest| digest.to_string());
    let fields = json!({
        "root": root.to_string(),
        "content_blake3": content,
        "image_bytes": geometry.image_bytes(),
        "chunk_bytes": geometry.chunk_size().bytes(),
    });
    let mut lines = vec![format!("root     {root}")];
    lines.extend(content.map(|digest| format!("content  {digest}")));
    lines.push(format!("bytes    {}", geometry.image_bytes()));
    Ok(Report::done(fields, lines))
}

pub(crate) fn digests_of(manifest: &Manifest) -> Vec<Option<Digest>> {
    let table = manifest.table();
    manifest.geometry().chunks().iter().map(|index| table.digest(index)).collect()
}

/// Reads and cuts an image that has no digests, or none of use.
async fn read(
    source: &Arc<dyn Source>,
    asked: Option<ChunkSize>,
) -> Result<(Geometry, Digest, Vec<Option<Digest>>)> {
    let geometry = match asked {
        Some(size) => Geometry::new(source.size_bytes(), size)?,
        None => Geometry::grown(source.size_bytes(), ChunkSize::DEFAULT)?,
    };
    let digests = scan(source, geometry).await?.digests;
    let mut restored = Restored::new(geometry);
    for (index, digest) in geometry.chunks().iter().zip(&digests) {
        let content = match digest {
            Some(digest) => Content::Data { digest: *digest, data_bytes: 0 },
            None => Content::Zero,
        };
        restored.record(&Durable::recorded(ChunkRun::new(index, 1), content))?;
    }
    let table = restored.table.finish().ok_or_else(|| {
        Error::new(ErrorKind::Io, "read the image: chunks are missing").within(source.location())
    })?;
    Ok((geometry, table.root(), digests))
}
