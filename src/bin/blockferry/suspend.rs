//! `suspend`: brings a copy to rest, in whatever process it runs.

use blockferry::Result;
use blockferry::job::JobState;
use serde_json::json;

use crate::context::{Common, Context, subject};
use crate::output::{REFUSED, Report};

const EXAMPLES: &str = "\
Examples:
  blockferry suspend 0123456789abcdef0123456789abcdef
  blockferry suspend dir:///srv/region-a/disk-1

The process that runs the copy makes a checkpoint and exits with code 3. This waits for it, up to 30
seconds. A copy that has committed meanwhile is answered with exit code 5.";

/// Stop a copy so that it can be resumed
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The job, or the destination it copies to
    #[arg(value_name = "JOB")]
    job: String,
    #[command(flatten)]
    pub(crate) common: Common,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let subject = subject(&args.job)?;
    let context = Context::new(&args.common)?;
    let engine = context.engine().await?;
    let spec = context.find(&engine, &subject, None).await?;
    context.register(&engine, &spec.target).await?;
    let state = engine.suspend(spec.job).await?;
    let fields = json!({"job": spec.job.to_string(), "state": state.name()});
    let line = format!("job {} is {state}; {}", spec.job, context.line("resume", spec.job));
    let report = Report::done(fields, vec![line]);
    let resumable = matches!(state, JobState::Suspended | JobState::Failed { resumable: true });
    Ok(if resumable { report } else { report.with_code(REFUSED) })
}
