//! `jobs`: the jobs of the index, or those staged in a region.

use blockferry::Result;
use blockferry::engine::JobInfo;
use blockferry::job::{JobSpec, JobState, Progress};
use blockferry::region::StagedJob;
use indicatif::HumanBytes;
use serde_json::{Value, json};

use crate::context::{Common, Context};
use crate::output::Report;

const EXAMPLES: &str = "\
Examples:
  blockferry jobs
  blockferry jobs dir:///srv/region-a
  blockferry jobs /var/lib/images --json

Without a region: what the index knows, ended jobs for 30 days. With one: what is staged there,
which is the truth; a folder stands for the plain files in it.";

/// List copies
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A region, to list what is staged there
    region: Option<String>,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// One line of the list.
struct Row {
    spec: JobSpec,
    state: JobState,
    running: bool,
    progress: Option<Progress>,
}

pub(crate) async fn run(args: Args) -> Result<Report> {
    let context = Context::new(&args.common)?;
    let mut rows: Vec<Row> = match &args.region {
        Some(region) => {
            let (_, region) = context.open_region(region).await?;
            region.jobs().await?.into_iter().map(Row::staged).collect()
        }
        None => known(&context).await?.into_iter().map(Row::known).collect(),
    };
    rows.sort_by_key(|row| (row.spec.created_unix_ms, row.spec.job));
    let fields = json!({"jobs": rows.iter().map(Row::fields).collect::<Vec<_>>()});
    Ok(Report::done(fields, table(&rows)))
}

/// The jobs of the index, with what their regions tell of those that go on.
async fn known(context: &Context) -> Result<Vec<JobInfo>> {
    let engine = context.engine().await?;
    for info in engine.jobs().await?.iter().filter(|info| !info.state.is_final()) {
        // A region that cannot be opened now leaves its jobs as the index has them.
        context.register(&engine, &info.spec.target).await.ok();
    }
    engine.jobs().await
}

impl Row {
    fn known(info: JobInfo) -> Self {
        let receipt = info.receipt.as_ref().map(|receipt| {
            let mut progress = Progress::new(info.state, receipt.image_bytes);
            progress.data_bytes = receipt.data_bytes;
            progress.zero_bytes = receipt.zero_bytes;
            progress.written_bytes = receipt.written_bytes;
            progress.resumed_bytes = receipt.resumed_bytes;
            progress.reused_bytes = receipt.reused_bytes;
            progress
        });
        let progress = receipt.or(info.progress);
        Self { spec: info.spec, state: info.state, running: info.running, progress }
    }

    fn staged(job: StagedJob) -> Self {
        let told = job.progress.as_ref().map(|progress| progress.state);
        let state = match told {
            _ if job.cancelled => JobState::Cancelling,
            Some(state) if job.owned || !state.is_running() => state,
            None if job.owned => JobState::Queued,
            // Its process is gone: it waits for a resume.
            _ => JobState::Suspended,
        };
        Self { spec: job.spec, state, running: job.owned, progress: job.progress }
    }

    fn fields(&self) -> Value {
        let count = |of: fn(&Progress) -> u64| self.progress.as_ref().map_or(0, of);
        json!({
            "job": self.spec.job.to_string(),
            "state": self.state.name(),
            "source": self.spec.source.to_string(),
            "destination": self.spec.target.to_string(),
            "image_bytes": self.spec.geometry.image_bytes(),
            "data_bytes": count(|p| p.data_bytes),
            "zero_bytes": count(|p| p.zero_bytes),
            "written_bytes": count(|p| p.written_bytes),
            "resumed_bytes": count(|p| p.resumed_bytes),
            "reused_bytes": count(|p| p.reused_bytes),
            "remaining_bytes": count(|p| p.remaining_bytes),
            "running": self.running,
            "created_unix_ms": self.spec.created_unix_ms,
        })
    }
}

fn table(rows: &[Row]) -> Vec<String> {
    if rows.is_empty() {
        return vec!["no jobs".to_owned()];
    }
    let mut lines = vec![format!("{:<32}  {:<16}  {:>11}  {}", "JOB", "STATE", "IMAGE", "COPY")];
    lines.extend(rows.iter().map(|row| {
        let spec = &row.spec;
        let image = HumanBytes(spec.geometry.image_bytes()).to_string();
        let state = row.state.name();
        format!("{}  {state:<16}  {image:>11}  {} to {}", spec.job, spec.source, spec.target)
    }));
    lines
}
