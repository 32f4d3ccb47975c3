//! `show`: everything that is known of one job.

use blockferry::Result;
use blockferry::engine::JobInfo;
use blockferry::job::Receipt;
use indicatif::HumanBytes;
use serde_json::{Map, Value, json};

use crate::context::{Common, Context, subject};
use crate::output::{Report, ms, progress_value};

const EXAMPLES: &str = "\
Examples:
  blockferry show 0123456789abcdef0123456789abcdef
  blockferry show dir:///srv/region-a/disk-1 --json";

/// Show all that is known of a copy
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
    pub(crate) common: Common,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let subject = subject(&args.job)?;
    let context = Context::new(&args.common)?;
    let engine = context.engine().await?;
    let spec = context.find(&engine, &subject, args.region.as_deref()).await?;
    // Without its region the index still knows something.
    context.register(&engine, &spec.target).await.ok();
    let info = engine.show(spec.job).await?;
    Ok(Report::done(fields(&info), lines(&info)))
}

fn fields(info: &JobInfo) -> Value {
    let spec = &info.spec;
    let facts: Map<_, _> =
        spec.fingerprint.facts().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let stopped = info.error.as_ref();
    json!({
        "job": spec.job.to_string(),
        "state": info.state.name(),
        "running": info.running,
        "source": spec.source.to_string(),
        "destination": spec.target.to_string(),
        "image_bytes": spec.geometry.image_bytes(),
        "chunk_bytes": spec.geometry.chunk_size().bytes(),
        "chunks": spec.geometry.chunk_count(),
        "verify": spec.verify.to_string(),
        "limits": {
            "bytes_per_sec": info.limits.bytes_per_sec,
            "ops_per_sec": info.limits.ops_per_sec,
        },
        "key": spec.key.as_ref().map(ToString::to_string),
        "destructive": spec.destructive,
        "base": spec.base.as_ref().map(ToString::to_string),
        "has_token": spec.token.is_some(),
        "attributes": spec.attributes,
        "fingerprint": facts,
        "created_unix_ms": spec.created_unix_ms,
        "progress": info.progress.as_ref().map(progress_value),
        "receipt": info.receipt.as_ref().map(receipt_value),
        "last_error":
            stopped.map(|(kind, message)| json!({"kind": kind.name(), "message": message})),
    })
}

fn receipt_value(receipt: &Receipt) -> Value {
    json!({
        "root": root_of(receipt),
        "data_bytes": receipt.data_bytes,
        "zero_bytes": receipt.zero_bytes,
        "read_bytes": receipt.read_bytes,
        "written_bytes": receipt.written_bytes,
        "resumed_bytes": receipt.resumed_bytes,
        "reused_bytes": receipt.reused_bytes,
        "elapsed_ms": ms(receipt.elapsed),
        "verified_bytes": receipt.verified.bytes,
        "rewritten_chunks": receipt.verified.rewritten_chunks,
        "warnings": receipt.warnings,
    })
}

/// That of an encrypted image is known to those alone who have its key.
fn root_of(receipt: &Receipt) -> Option<String> {
    (receipt.root.as_bytes() != &[0; 32]).then(|| receipt.root.to_string())
}

fn lines(info: &JobInfo) -> Vec<String> {
    let spec = &info.spec;
    let running = if info.running { ", running" } else { "" };
    let (size, chunk) = (spec.geometry.image_bytes(), spec.geometry.chunk_size());
    let row = |name: &str, value: String| format!("{name:<12} {value}");
    let mut lines = vec![
        row("job", spec.job.to_string()),
        row("state", format!("{}{running}", info.state)),
        row("source", spec.source.to_string()),
        row("destination", spec.target.to_string()),
        row("image", format!("{} in chunks of {chunk}", HumanBytes(size))),
        row("verify", spec.verify.to_string()),
        row("fingerprint", spec.fingerprint.to_string()),
    ];
    lines.extend(spec.base.iter().map(|base| row("base", base.to_string())));
    if let Some(rate) = info.limits.bytes_per_sec {
        lines.push(row("rate", format!("at most {}/s", HumanBytes(rate.get()))));
    }
    lines.extend(spec.key.iter().map(|key| row("key", key.to_string())));
    let attributes = spec.attributes.iter();
    lines.extend(attributes.map(|(key, value)| row("attribute", format!("{key}={value}"))));
    if let Some(progress) = &info.progress {
        let (written, left) = (progress.written_bytes, progress.remaining_bytes);
        let told = format!("{} written, {} left", HumanBytes(written), HumanBytes(left));
        lines.push(row("progress", told));
    }
    if let Some(receipt) = &info.receipt {
        let hidden = || "known to those who have its key: give --keyring".to_owned();
        lines.push(row("root", root_of(receipt).unwrap_or_else(hidden)));
        let (data, zero) = (HumanBytes(receipt.data_bytes), HumanBytes(receipt.zero_bytes));
        lines.push(row("content", format!("{data} data, {zero} zeros")));
    }
    if let Some((_, message)) = &info.error {
        lines.push(row("error", message.clone()));
    }
    lines
}
