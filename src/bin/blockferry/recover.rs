//! `recover`: settles what is staged in a region and has no live process.

use blockferry::region::{Recovered, Settled};
use blockferry::{Error, Result};
use serde_json::{Value, json};

use crate::context::{Common, Context};
use crate::output::{Report, error_value, object};

const EXAMPLES: &str = "\
Examples:
  blockferry recover dir:///srv/region-a
  blockferry recover /var/lib/images
  blockferry recover s3://bucket/region-a --apply

Finishes commits and cancels that were decided, lists what can be resumed, and brings the index up
to date. It may be repeated, and interrupted, at any time. What could not be settled is listed with
the reason; the exit code is that of the first.

In an object store a request that was given up may land much later, where no reader looks. What is
found of that is listed, and removed with --apply once it is older than --grace-hours by the store's
own clock.";

/// Settle what a crash has left in a region
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A directory region, a folder of plain files, a block device, or a region in an object store
    region: String,
    /// Remove what landed late in an object store; otherwise it is only listed
    #[cfg(feature = "object")]
    #[arg(long)]
    apply: bool,
    /// How old it must be
    #[cfg(feature = "object")]
    #[arg(long, value_name = "N", default_value_t = 24)]
    grace_hours: u32,
    #[command(flatten)]
    pub(crate) common: Common,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let context = Context::new(&args.common)?;
    let (name, region) = context.open_region(&args.region).await?;
    let engine = context.engine().await?;
    engine.register(name.clone(), region).await?;
    let recovered = engine.recover(&name).await?;
    let recovered_fields: Vec<_> = recovered.iter().map(fields_of).collect();
    let mut lines: Vec<String> = recovered.iter().map(line_of).collect();
    if lines.is_empty() {
        lines.push(format!("{name}: nothing is staged there"));
    }
    #[cfg(feature = "object")]
    let late = swept(&context, &args, &mut lines).await?;
    #[cfg(not(feature = "object"))]
    let late = json!([]);
    let fields = json!({"recovered": recovered_fields, "late": late});
    Ok(match recovered.iter().find_map(failure) {
        Some(first) => Report::failed(object(fields), first).with_lines(lines),
        None => Report::done(fields, lines),
    })
}

/// What landed late in an object store, and whether it is gone now.
#[cfg(feature = "object")]
async fn swept(context: &Context, args: &Args, lines: &mut Vec<String>) -> Result<Value> {
    use blockferry::location::BucketAddress;
    let address = match BucketAddress::parse(&args.region) {
        Ok(address) if !address.plain => address,
        _ => return Ok(json!([])),
    };
    let grace = std::time::Duration::from_secs(u64::from(args.grace_hours) * 3600);
    let swept = context.object(&address)?.sweep(args.apply, grace).await?;
    let told = if args.apply { "removed" } else { "would be removed by --apply" };
    lines.extend(swept.iter().map(|late| format!("{} ({} bytes): {told}", late.key, late.bytes)));
    let fields = swept
        .iter()
        .map(|late| json!({"key": late.key, "bytes": late.bytes, "removed": args.apply}));
    Ok(fields.collect())
}

fn failure(found: &Recovered) -> Option<&Error> {
    match &found.settled {
        Settled::Failed(error) => Some(error),
        _ => None,
    }
}

fn fields_of(found: &Recovered) -> Value {
    json!({
        "job": found.job.to_string(),
        "settled": name_of(&found.settled),
        "source": found.spec.as_ref().map(|spec| spec.source.to_string()),
        "destination": found.spec.as_ref().map(|spec| spec.target.to_string()),
        "error": failure(found).map(error_value),
    })
}

fn name_of(settled: &Settled) -> &'static str {
    match settled {
        Settled::Running => "running",
        Settled::Committed => "committed",
        Settled::RolledBack => "rolled_back",
        Settled::Forgotten => "forgotten",
        Settled::Kept => "kept",
        _ => "failed",
    }
}

fn line_of(found: &Recovered) -> String {
    let said = match &found.settled {
        Settled::Running => "a live process runs it".to_owned(),
        Settled::Committed => "its commit is finished".to_owned(),
        Settled::RolledBack => "its cancel is finished: nothing of it is left".to_owned(),
        Settled::Forgotten => "it had never been acknowledged: removed".to_owned(),
        Settled::Kept => "it waits for resume or cancel".to_owned(),
        Settled::Failed(error) => error.report(),
        _ => "settled".to_owned(),
    };
    let target = found.spec.as_ref().map(|spec| format!(" to {}", spec.target));
    format!("job {}{}: {said}", found.job, target.unwrap_or_default())
}
