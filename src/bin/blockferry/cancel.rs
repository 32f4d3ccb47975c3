//! `cancel`: decides that a copy shall never commit, and sees its stage removed.

use blockferry::engine::{CancelAnswer, CancelReply, Engine};
use blockferry::{Error, ErrorKind, Result};
use serde_json::json;

use crate::context::{Common, Context, Subject, subject};
use crate::output::{DONE, Fields, REFUSED, Report, Shape, ms};

const EXAMPLES: &str = "\
Examples:
  blockferry cancel 0123456789abcdef0123456789abcdef
  blockferry cancel dir:///srv/region-a/disk-1
  blockferry cancel disk-copy.raw --json

It does not matter in which process the copy runs, or whether any does. The answer is the same on
every repeat. Decided: the copy can never commit. Clean: nothing of it is left; this waits for that,
up to 30 seconds. Exit code 0 for cancelled and already_cancelled, else 5.";

/// Cancel a copy and roll it back
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The job, or the destination it copies to
    #[arg(value_name = "JOB-OR-DST")]
    what: String,
    /// Where to look for a job that the index does not know
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    #[command(flatten)]
    pub(crate) common: Common,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let subject = subject(&args.what)?;
    let context = Context::new(&args.common)?;
    let engine = context.engine().await?;
    match cancel(&context, &engine, &subject, args.region.as_deref()).await {
        Ok(reply) if reply.answer == CancelAnswer::NotFound => {
            Ok(failed(&subject, &unknown(&subject)))
        }
        Ok(reply) => Ok(report(&subject, reply)),
        Err(error) => Ok(failed(&subject, &error)),
    }
}

fn failed(subject: &Subject, error: &Error) -> Report {
    let mut fields = Shape::Cancel.blank();
    note_job(&mut fields, subject, None);
    if error.kind() == ErrorKind::NotFound {
        fields.insert("answer".into(), CancelAnswer::NotFound.name().into());
    }
    Report::failed(fields, error)
}

fn unknown(subject: &Subject) -> Error {
    match subject {
        Subject::Job(job) => Error::new(ErrorKind::NotFound, format!("find job {job}"))
            .hint("`blockferry jobs` lists the known ones"),
        Subject::Destination(endpoint) => {
            Error::new(ErrorKind::NotFound, "find a copy or an image to cancel")
                .within(endpoint.to_string())
                .hint("`blockferry jobs` lists the known ones; a job has 32 hexadecimal digits")
        }
    }
}

async fn cancel(
    context: &Context,
    engine: &Engine,
    subject: &Subject,
    region: Option<&str>,
) -> Result<CancelReply> {
    let job = match subject {
        Subject::Destination(endpoint) => {
            context.register(engine, endpoint).await?;
            return engine.cancel_image(&endpoint.region, &endpoint.image).await;
        }
        Subject::Job(job) => *job,
    };
    let target = context.find(engine, subject, region).await?.target;
    // The index may have the answer for a region that cannot be opened any more.
    match (context.register(engine, &target).await, engine.cancel(job).await) {
        (_, Ok(reply)) => Ok(reply),
        (Err(error), Err(_)) | (Ok(()), Err(error)) => Err(error),
    }
}

fn report(subject: &Subject, reply: CancelReply) -> Report {
    let answer = reply.answer;
    let fields = json!({
        "job": null,
        "answer": answer.name(),
        "decided": answer.is_decided(),
        "clean": answer.is_clean(),
        "decided_ms": reply.decided_after.map(ms),
        "clean_ms": reply.clean_after.map(ms),
    });
    let mut fields = crate::output::object(fields);
    note_job(&mut fields, subject, reply.job.map(|job| job.to_string()));
    let code = if answer.is_decided() { DONE } else { REFUSED };
    let line = words(subject, reply);
    Report::done(fields.into(), vec![line]).with_code(code)
}

/// The job that was found, else the one that was asked for.
fn note_job(fields: &mut Fields, subject: &Subject, found: Option<String>) {
    let asked = match subject {
        Subject::Job(job) => Some(job.to_string()),
        Subject::Destination(_) => None,
    };
    fields.insert("job".into(), found.or(asked).into());
}

fn words(subject: &Subject, reply: CancelReply) -> String {
    let what = match (reply.job, subject) {
        (Some(job), _) => format!("job {job}"),
        (None, Subject::Job(job)) => format!("job {job}"),
        (None, Subject::Destination(endpoint)) => endpoint.to_string(),
    };
    let rest = |clean| if clean { "nothing of it is left" } else { "its clean-up goes on" };
    match reply.answer {
        CancelAnswer::Cancelled { clean } => format!("{what}: cancelled; {}", rest(clean)),
        CancelAnswer::AlreadyCancelled { clean } => {
            format!("{what}: had been cancelled before; {}", rest(clean))
        }
        CancelAnswer::AlreadyCommitted => format!("{what}: it has committed; the image stays"),
        CancelAnswer::NotACopy => format!("{what}: the image there was not made by a copy"),
        _ => format!("{what}: it has failed and left nothing to cancel"),
    }
}
