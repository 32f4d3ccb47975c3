//! `resume`: goes on with a copy that was suspended, failed or lost its process.

use blockferry::Result;

use crate::context::{Common, Context, subject};
use crate::follow::{Interrupts, Running, follow};
use crate::output::Report;

const EXAMPLES: &str = "\
Examples:
  blockferry resume 0123456789abcdef0123456789abcdef
  blockferry resume dir:///srv/region-a/disk-1
  blockferry resume 0123456789abcdef0123456789abcdef --region dir:///srv/region-a

What a checkpoint covers is not copied again. A job that has ended gives its outcome.";

/// Go on with a copy
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The job, or the destination it copies to
    #[arg(value_name = "JOB")]
    job: String,
    /// Where to look for a job that the index does not know
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    #[command(flatten)]
    running: Running,
    #[command(flatten)]
    pub(crate) common: Common,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let interrupts = Interrupts::catch()?;
    let subject = subject(&args.job)?;
    let context = Context::new(&args.common)?;
    let engine = context.engine_with(|options| args.running.of_engine(options)).await?;
    let spec = context.find(&engine, &subject, args.region.as_deref()).await?;
    context.register(&engine, &spec.target).await?;
    // A job that has ended gives its outcome, also when its source is gone.
    let source = context.register(&engine, &spec.source).await;
    let job = match (engine.resume(spec.job).await, source) {
        (Ok(job), _) => job,
        (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(error),
    };
    Ok(follow(&job, &args.running, interrupts, &context, args.common.json).await)
}
