//! `rewrap`: gives an encrypted image another key, without touching its bytes.

use blockferry::id::KeyId;
use blockferry::location::Location;
use blockferry::{Error, ErrorKind, Result};
use serde_json::json;

use crate::context::{Common, Context, endpoint};
use crate::output::Report;

const EXAMPLES: &str = "\
Examples:
  blockferry rewrap dir:///srv/region-a/disk-1 --keyring FILE --to images-2027
  blockferry rewrap s3://bucket/north/disk-1 --keyring FILE --to images-2027

Only what holds the wrapped key is replaced, at once and durably, however large the image is: a
small file, or in an object store a small object and the head that names it. With --to the key it
is under already, it is brought to that key's newest version.";

/// Give an encrypted image another key
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The image, in a directory region or an object store
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The key it is to be under from now on
    #[arg(long, value_name = "KEY-ID")]
    to: String,
    #[command(flatten)]
    pub(crate) common: Common,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let to: KeyId = args.to.parse()?;
    let image = endpoint(&args.image)?;
    let context = Context::new(&args.common)?;
    let (from, name) = match Location::of_endpoint(&image)? {
        Location::Dir { root, image } => {
            (context.dir_region(&root)?.rewrap(&image, &to).await?, image)
        }
        #[cfg(feature = "object")]
        Location::Object { address, image } => {
            (context.object(&address)?.rewrap(&image, &to).await?, image)
        }
        _ => {
            return Err(Error::new(ErrorKind::Unsupported, "give this kind of image another key")
                .within(image.to_string())
                .hint("only images of directory regions and of object stores are encrypted"));
        }
    };
    let fields = json!({
        "image": image.to_string(), "from": from.to_string(), "to": to.to_string(),
    });
    Ok(Report::done(fields, vec![format!("{name} was under key {from}, and is under {to}")]))
}
