//! `limit`: changes the rate of a copy, in whatever process it runs.

use std::num::NonZeroU64;

use blockferry::Result;
use blockferry::options::parse_rate;
use serde_json::json;

use crate::context::{Common, Context, subject};
use crate::output::Report;

const EXAMPLES: &str = "\
Examples:
  blockferry limit 0123456789abcdef0123456789abcdef --rate 50MiB/s
  blockferry limit dir:///srv/region-a/disk-1 --rate none

It holds from now on, also after a resume.";

/// Change the rate of a copy
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The job, or the destination it copies to
    #[arg(value_name = "JOB")]
    job: String,
    /// The new ceiling, such as 50MiB/s; 0 or none lifts it
    #[arg(long, value_name = "RATE")]
    rate: String,
    #[command(flatten)]
    pub(crate) common: Common,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let rate = parse_rate(&args.rate)?;
    let subject = subject(&args.job)?;
    let context = Context::new(&args.common)?;
    let engine = context.engine().await?;
    let spec = context.find(&engine, &subject, None).await?;
    context.register(&engine, &spec.target).await?;
    let limits = engine.show(spec.job).await?.limits.with_bytes_per_sec(rate);
    engine.limit(spec.job, limits).await?;
    let per_sec = limits.bytes_per_sec.map(NonZeroU64::get);
    let fields = json!({"job": spec.job.to_string(), "rate_bytes_per_sec": per_sec});
    let line = match per_sec {
        Some(rate) => format!("job {} copies at most {rate} bytes per second", spec.job),
        None => format!("job {} copies as fast as it can", spec.job),
    };
    Ok(Report::done(fields, vec![line]))
}
