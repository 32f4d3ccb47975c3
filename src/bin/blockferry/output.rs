//! What a verb reports: one JSON object or a few lines of text, an error, an exit code.

use std::process::ExitCode;

use blockferry::chunk::Digest;
use blockferry::engine::{Job, JobOutcome};
use blockferry::job::{Progress, Receipt, Stall, Stalls};
use blockferry::{Error, ErrorKind};
use indicatif::HumanBytes;
use serde_json::{Map, Value, json};

use crate::out;

pub(crate) const DONE: u8 = 0;
pub(crate) const FAILED: u8 = 1;
pub(crate) const USAGE: u8 = 2;
pub(crate) const SUSPENDED: u8 = 3;
pub(crate) const ROLLED_BACK: u8 = 4;
pub(crate) const REFUSED: u8 = 5;

/// A JSON object under construction; its fields keep their order.
pub(crate) type Fields = Map<String, Value>;

/// What a verb has to say in the end.
#[derive(Debug, Default)]
pub(crate) struct Report {
    fields: Fields,
    lines: Vec<String>,
    /// On stderr, in either form.
    notes: Vec<String>,
    code: u8,
    /// What it tells is all that the verb was for.
    only_tells: bool,
}

/// Which fields a verb's JSON has, also when it fails.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    Copy,
    Job,
    Cancel,
    Jobs,
    Digest,
    Verify,
    Recover,
    #[cfg(feature = "object")]
    Probe,
    #[cfg(feature = "encrypt")]
    Keyring,
    #[cfg(feature = "encrypt")]
    Rewrap,
    #[cfg(feature = "peer")]
    Serve,
    #[cfg(feature = "peer")]
    Cert,
    #[cfg(feature = "clouds")]
    Api,
}

impl Shape {
    /// Of the verb of that name, as far as it was understood.
    pub(crate) fn of_verb(verb: &str) -> Self {
        match verb {
            "cancel" => Self::Cancel,
            "suspend" | "limit" | "show" | "forget" => Self::Job,
            "jobs" => Self::Jobs,
            "digest" => Self::Digest,
            "verify" => Self::Verify,
            "recover" => Self::Recover,
            #[cfg(feature = "object")]
            "probe" => Self::Probe,
            #[cfg(feature = "encrypt")]
            "keyring" => Self::Keyring,
            #[cfg(feature = "encrypt")]
            "rewrap" => Self::Rewrap,
            #[cfg(feature = "peer")]
            "serve" => Self::Serve,
            #[cfg(feature = "peer")]
            "cert" => Self::Cert,
            #[cfg(feature = "clouds")]
            "api" => Self::Api,
            _ => Self::Copy,
        }
    }

    /// The fields when nothing was done.
    pub(crate) fn blank(self) -> Fields {
        match self {
            Self::Copy => Account::default().fields(),
            Self::Job => object(json!({"job": null})),
            Self::Cancel => object(json!({
                "job": null, "answer": null, "decided": false, "clean": false,
                "decided_ms": null, "clean_ms": null,
            })),
            Self::Jobs => object(json!({"jobs": []})),
            Self::Digest => object(json!({"root": null, "content_blake3": null, "image_bytes": 0})),
            Self::Verify => object(json!({
                "image": null, "root": null, "image_bytes": 0, "chunks": 0,
                "verified_bytes": 0, "bad_chunks": 0, "first_bad_chunk": null,
            })),
            Self::Recover => object(json!({"recovered": [], "late": []})),
            #[cfg(feature = "object")]
            Self::Probe => object(json!({"location": null, "fencing": null, "proven": {}})),
            #[cfg(feature = "encrypt")]
            Self::Keyring => object(json!({"keyring": null, "keys": []})),
            #[cfg(feature = "encrypt")]
            Self::Rewrap => object(json!({"image": null, "from": null, "to": null})),
            #[cfg(feature = "peer")]
            Self::Serve => object(json!({"listening": null, "ended": true})),
            #[cfg(feature = "peer")]
            Self::Cert => object(json!({
                "identity": null, "certificate": null, "key": null, "hosts": [], "not_after": null,
            })),
            #[cfg(feature = "clouds")]
            Self::Api => object(json!({"listening": null, "admin": null, "ended": true})),
        }
    }
}

impl Report {
    pub(crate) fn done(fields: Value, lines: Vec<String>) -> Self {
        let mut fields = object(fields);
        fields.insert("error".into(), Value::Null);
        Self { fields, lines, code: DONE, ..Self::default() }
    }

    /// Text alone, as it is.
    pub(crate) fn text(text: String) -> Self {
        Self { lines: vec![text], code: DONE, ..Self::default() }
    }

    pub(crate) fn failed(mut fields: Fields, error: &Error) -> Self {
        fields.insert("error".into(), error_value(error));
        let notes = vec![format!("blockferry: {}", error.report())];
        Self { fields, notes, code: code_of(error.kind()), ..Self::default() }
    }

    /// For a verb that changes nothing: an answer that cannot be printed is a failure.
    pub(crate) fn only_tells(mut self, only_tells: bool) -> Self {
        self.only_tells = only_tells;
        self
    }

    pub(crate) fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    pub(crate) fn with_lines(mut self, lines: Vec<String>) -> Self {
        self.lines.extend(lines);
        self
    }

    pub(crate) fn with_notes(mut self, notes: impl IntoIterator<Item = String>) -> Self {
        self.notes.extend(notes);
        self
    }

    /// Prints it, and gives the exit code: what was done counts, not whether it could be told.
    pub(crate) fn print(self, json: bool) -> ExitCode {
        self.notes.iter().for_each(|note| out::note(note));
        let lines = if json { vec![Value::Object(self.fields).to_string()] } else { self.lines };
        match lines.iter().try_for_each(|line| out::line(line)) {
            Ok(()) => ExitCode::from(self.code),
            Err(error) => {
                out::note(&format!("blockferry: {}", error.report()));
                ExitCode::from(if self.only_tells { FAILED } else { self.code })
            }
        }
    }
}

/// The object that `json!` made.
pub(crate) fn object(value: Value) -> Fields {
    match value {
        Value::Object(fields) => fields,
        other => Fields::from_iter([("value".to_owned(), other)]),
    }
}

pub(crate) fn error_value(error: &Error) -> Value {
    json!({"kind": error.kind().name(), "message": error.report()})
}

/// The exit code of a failure: by what the caller can do about it.
pub(crate) fn code_of(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Invalid => USAGE,
        ErrorKind::NotFound
        | ErrorKind::Exists
        | ErrorKind::Busy
        | ErrorKind::Fenced
        | ErrorKind::NotACopy => REFUSED,
        _ => FAILED,
    }
}

/// The account of one run of a copy, as `copy --json` gives it.
#[derive(Debug, Default)]
struct Account {
    job: Option<String>,
    outcome: &'static str,
    image_bytes: u64,
    data_bytes: u64,
    zero_bytes: u64,
    read_bytes: u64,
    written_bytes: u64,
    resumed_bytes: u64,
    reused_bytes: u64,
    chunks: u32,
    root: Option<Digest>,
    elapsed_ms: u64,
    stalls: Stalls,
}

impl Account {
    fn fields(&self) -> Fields {
        let outcome = if self.outcome.is_empty() { "failed" } else { self.outcome };
        object(json!({
            "job": self.job,
            "outcome": outcome,
            "image_bytes": self.image_bytes,
            "data_bytes": self.data_bytes,
            "zero_bytes": self.zero_bytes,
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
            "resumed_bytes": self.resumed_bytes,
            "reused_bytes": self.reused_bytes,
            "chunks": self.chunks,
            "root": self.root.map(|root| root.to_string()),
            "elapsed_ms": self.elapsed_ms,
            "stalls": stalls_value(&self.stalls),
            "error": null,
        }))
    }

    fn of_receipt(receipt: &Receipt) -> Self {
        Self {
            image_bytes: receipt.image_bytes,
            data_bytes: receipt.data_bytes,
            zero_bytes: receipt.zero_bytes,
            read_bytes: receipt.read_bytes,
            written_bytes: receipt.written_bytes,
            resumed_bytes: receipt.resumed_bytes,
            reused_bytes: receipt.reused_bytes,
            chunks: receipt.chunks,
            root: Some(receipt.root),
            elapsed_ms: ms(receipt.elapsed),
            stalls: receipt.stalls,
            ..Self::default()
        }
    }

    fn of_progress(progress: &Progress) -> Self {
        Self {
            image_bytes: progress.image_bytes,
            data_bytes: progress.data_bytes,
            zero_bytes: progress.zero_bytes,
            read_bytes: progress.read_bytes,
            written_bytes: progress.written_bytes,
            resumed_bytes: progress.resumed_bytes,
            reused_bytes: progress.reused_bytes,
            stalls: progress.stalls,
            ..Self::default()
        }
    }
}

/// Shares of the time counted, from 0 to 1, to four decimals.
fn stalls_value(stalls: &Stalls) -> Value {
    let share = |stall: &Stall| (stalls.share(*stall) * 10_000.0).round() / 10_000.0;
    let shares = Stall::ALL.iter().map(|stall| (stall.name().to_owned(), json!(share(stall))));
    Value::Object(shares.collect())
}

pub(crate) fn ms(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How a copy ended. `elapsed` is that of this process.
pub(crate) fn report_copy(job: &Job, outcome: &JobOutcome, elapsed: std::time::Duration) -> Report {
    let spec = job.spec();
    let base = match outcome {
        JobOutcome::Committed(receipt) => Account::of_receipt(receipt),
        _ => Account {
            chunks: spec.geometry.chunk_count(),
            elapsed_ms: ms(elapsed),
            ..Account::of_progress(&job.progress())
        },
    };
    let account = Account { job: Some(job.id().to_string()), outcome: name_of(outcome), ..base };
    let mut fields = account.fields();
    let key = spec.key.as_ref().map(ToString::to_string);
    let (source, destination) = (spec.source.to_string(), spec.target.to_string());
    let ends = json!({"source": source, "destination": destination, "key": key});
    match outcome {
        JobOutcome::Committed(receipt) => {
            let verified = &receipt.verified;
            let mode = verified.mode.to_string();
            let read_back =
                json!({"mode": mode, "chunks": verified.chunks, "bytes": verified.bytes});
            fields.insert("verified".into(), read_back);
            fields.insert("rewritten_chunks".into(), verified.rewritten_chunks.into());
            fields.insert("warnings".into(), json!(receipt.warnings));
            fields.extend(object(ends));
            let lines = vec![committed_line(job, receipt)];
            let warn = |warning: &String| format!("blockferry: warning: {warning}");
            let notes = receipt.warnings.iter().map(warn).collect();
            Report { fields, lines, notes, code: DONE, ..Report::default() }
        }
        JobOutcome::RolledBack { clean } => {
            fields.extend(object(ends));
            fields.insert("clean".into(), (*clean).into());
            let rest = if *clean { "nothing of it is left" } else { "its clean-up goes on" };
            let lines = vec![format!("cancelled {}: {rest}; job {}", spec.target, job.id())];
            Report { fields, lines, code: ROLLED_BACK, ..Report::default() }
        }
        JobOutcome::Failed { error, resumable } => {
            fields.extend(object(ends));
            fields.insert("resumable".into(), (*resumable).into());
            Report::failed(fields, error)
        }
        // Whatever else there may be one day is at rest, and neither committed nor failed.
        _ => {
            fields.extend(object(ends));
            let lines = vec![format!("suspended {}; job {}", spec.target, job.id())];
            Report { fields, lines, code: SUSPENDED, ..Report::default() }
        }
    }
}

fn name_of(outcome: &JobOutcome) -> &'static str {
    match outcome {
        JobOutcome::Committed(_) => "committed",
        JobOutcome::RolledBack { .. } => "rolled_back",
        JobOutcome::Failed { .. } => "failed",
        _ => "suspended",
    }
}

fn committed_line(job: &Job, receipt: &Receipt) -> String {
    let bytes = HumanBytes;
    let mut text = format!(
        "committed {}: {}, of it {} data and {} zeros; {} written",
        job.spec().target,
        bytes(receipt.image_bytes),
        bytes(receipt.data_bytes),
        bytes(receipt.zero_bytes),
        bytes(receipt.written_bytes),
    );
    if receipt.resumed_bytes > 0 {
        text.push_str(&format!(", {} resumed", bytes(receipt.resumed_bytes)));
    }
    if receipt.reused_bytes > 0 {
        text.push_str(&format!(", {} taken over without moving", bytes(receipt.reused_bytes)));
    }
    text.push_str(&format!(" in {:.1} s", receipt.elapsed.as_secs_f64()));
    if let Some(stall) = receipt.stalls.bottleneck() {
        text.push_str(&format!(", most of it in {}", stall.name()));
    }
    if receipt.verified.bytes > 0 {
        text.push_str(&format!("; {} read back", bytes(receipt.verified.bytes)));
    }
    text.push_str(&format!("; root {}", receipt.root));
    text
}

/// How far a job is, for `show`, `jobs` and `--progress json`.
pub(crate) fn progress_value(progress: &Progress) -> Value {
    let shares = Stall::ALL.iter().map(|stall| {
        // Not rounded: that a first sync was done shows in its share.
        (stall.name().to_owned(), json!(progress.stalls.share(*stall)))
    });
    json!({
        "state": progress.state.name(),
        "image_bytes": progress.image_bytes,
        "data_bytes": progress.data_bytes,
        "zero_bytes": progress.zero_bytes,
        "read_bytes": progress.read_bytes,
        "written_bytes": progress.written_bytes,
        "resumed_bytes": progress.resumed_bytes,
        "reused_bytes": progress.reused_bytes,
        "remaining_bytes": progress.remaining_bytes,
        "rate_bytes_per_sec": progress.rate_bytes_per_sec,
        "eta_ms": progress.eta.map(ms),
        "bottleneck": progress.stalls.bottleneck().map(Stall::name),
        "stalls": Value::Object(shares.collect()),
    })
}
