//! `verify`: reads a committed image again and compares every chunk with its manifest.

use blockferry::chunk::Digest;
use blockferry::geometry::{ChunkIndex, Geometry};
use blockferry::{Error, ErrorKind, Result};
use indicatif::HumanBytes;
use serde_json::{Value, json};

use crate::context::{Common, Context, endpoint};
use crate::digest::digests_of;
use crate::output::{Report, object};
use crate::scan::scan;

const EXAMPLES: &str = "\
Examples:
  blockferry verify dir:///srv/region-a/disk-1
  blockferry verify dir:///srv/region-a/disk-1 --json

Exit code 0 when every chunk is as its manifest says, 1 (corrupt) when one is not. Bytes are read
through the page cache; drop it first to test the disk. An image of another daemon is read there,
and its bytes do not travel.";

/// Read an image again and compare it with its manifest
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The image
    image: String,
    #[command(flatten)]
    pub(crate) common: Common,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let endpoint = endpoint(&args.image)?;
    let context = Context::new(&args.common)?;
    #[cfg(feature = "peer")]
    if let Some(region) = context.open_peer(&endpoint).await? {
        use blockferry::region::Region;
        let image = format!("{}/{}", region.location(), endpoint.image);
        let found = region.verify(&endpoint.image).await?;
        return Ok(told(&Compared {
            image,
            root: found.root,
            geometry: found.geometry,
            read_bytes: found.read_bytes,
            bad_count: found.bad_count,
            first_bad: found.first_bad,
        }));
    }
    let source = context.open(&endpoint).await?.open(&endpoint.image).await?;
    let manifest = source.manifest().ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "verify an image without manifest")
            .within(source.location())
            .hint("only images of a region have one; `blockferry digest` hashes a plain file")
    })?;
    let geometry = manifest.geometry();
    let scan = scan(&source, geometry).await?;
    let is_bad = |(found, expected): (&_, &_)| found != expected;
    let expected = digests_of(&manifest);
    let bad = scan.digests.iter().zip(&expected).map(is_bad);
    let mut chunks = geometry.chunks().iter().zip(bad).filter(|(_, bad)| *bad);
    let first_bad = chunks.next().map(|(index, _)| index);
    let bad_count = to_u64(chunks.count()) + u64::from(first_bad.is_some());
    Ok(told(&Compared {
        image: source.location(),
        root: manifest.root(),
        geometry,
        read_bytes: scan.read_bytes,
        bad_count,
        first_bad,
    }))
}

/// What the image turned out to be.
struct Compared {
    image: String,
    root: Digest,
    geometry: Geometry,
    read_bytes: u64,
    bad_count: u64,
    first_bad: Option<ChunkIndex>,
}

fn told(compared: &Compared) -> Report {
    let Compared { image, root, geometry, read_bytes, bad_count, first_bad } = compared;
    let fields = json!({
        "image": image,
        "root": root.to_string(),
        "image_bytes": geometry.image_bytes(),
        "chunks": geometry.chunk_count(),
        "verified_bytes": read_bytes,
        "bad_chunks": bad_count,
        "first_bad_chunk": first_bad.map(|index| json!({
            "index": index.get(),
            "offset": geometry.range(index).offset,
            "len": geometry.range(index).len,
        })),
    });
    match *first_bad {
        None => {
            let holes = geometry.image_bytes() > *read_bytes;
            Report::done(fields, vec![good_line(image, *read_bytes, holes)])
        }
        Some(index) => {
            let (chunks, do_not) =
                if *bad_count == 1 { ("chunk", "does not") } else { ("chunks", "do not") };
            let what = format!("verify image: {bad_count} {chunks} {do_not} match the manifest");
            let error = Error::new(ErrorKind::Corrupt, format!("{what}, first chunk {index}"))
                .at(image.clone(), geometry.range(index).offset)
                .hint("the image is damaged where it lies: copy it anew");
            failed(fields, &error)
        }
    }
}

fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn failed(fields: Value, error: &Error) -> Report {
    Report::failed(object(fields), error)
}

fn good_line(image: &str, read_bytes: u64, holes: bool) -> String {
    let read = HumanBytes(read_bytes);
    let rest = if holes { ", the rest are holes" } else { "" };
    format!("{image}: every chunk is as its manifest says; {read} read{rest}")
}
