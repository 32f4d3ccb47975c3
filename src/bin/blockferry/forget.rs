//! `forget`: drops the record of a job that has ended.

use blockferry::Result;
use serde_json::json;

use crate::context::{Common, Context, Subject, subject};
use crate::output::Report;

const EXAMPLES: &str = "\
Examples:
  blockferry forget 0123456789abcdef0123456789abcdef

Its image stays. A job that has not ended is refused: cancel it first.";

/// Forget a copy that has ended
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The job, or the destination it copied to
    #[arg(value_name = "JOB")]
    job: String,
    #[command(flatten)]
    pub(crate) common: Common,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let subject = subject(&args.job)?;
    let context = Context::new(&args.common)?;
    let engine = context.engine().await?;
    let job = match &subject {
        Subject::Job(job) => *job,
        Subject::Destination(_) => context.find(&engine, &subject, None).await?.job,
    };
    engine.forget(job).await?;
    let fields = json!({"job": job.to_string(), "forgotten": true});
    Ok(Report::done(fields, vec![format!("job {job} is forgotten")]))
}
