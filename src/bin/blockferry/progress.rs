//! Progress on stderr: a bar on a terminal, lines where asked for, JSON for programs.

use std::io::IsTerminal;
use std::time::Duration;

use blockferry::engine::Job;
use blockferry::job::{Progress as Figures, Stall};
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::out;
use crate::output::{object, progress_value};

const BAR: &str = "{wide_bar} {percent:>3}% {msg}";
const BAR_INTERVAL: Duration = Duration::from_millis(100);
const JSON_INTERVAL: Duration = Duration::from_millis(500);
const LINE_INTERVAL: Duration = Duration::from_secs(1);
/// For those who show nothing.
const IDLE_INTERVAL: Duration = Duration::from_secs(3600);

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Display {
    /// A bar on a terminal, else nothing
    Auto,
    /// A bar; a line a second where stderr is no terminal
    Bar,
    /// A JSON object a line, about two a second
    Json,
    /// Nothing
    None,
}

/// Shows how far a job is.
#[derive(Debug)]
pub(crate) struct Progress {
    shown: Shown,
    /// The most that was ever to be done: the length of the bar.
    total_bytes: u64,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines,
    Json,
    Nothing,
}

impl Progress {
    pub(crate) fn new(display: Display, job: &Job) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let shown = match display {
            _ if job.outcome().is_some() => Shown::Nothing,
            Display::Auto | Display::Bar if on_terminal => Shown::Bar(bar()),
            Display::Bar => Shown::Lines,
            Display::Json => Shown::Json,
            Display::Auto | Display::None => Shown::Nothing,
        };
        Self { shown, total_bytes: 0 }
    }

    pub(crate) fn interval(&self) -> Duration {
        match self.shown {
            Shown::Bar(_) => BAR_INTERVAL,
            Shown::Lines => LINE_INTERVAL,
            Shown::Json => JSON_INTERVAL,
            Shown::Nothing => IDLE_INTERVAL,
        }
    }

    pub(crate) fn show(&mut self, job: &Job) {
        let now = job.progress();
        self.total_bytes = self.total_bytes.max(now.remaining_bytes);
        let done = self.total_bytes.saturating_sub(now.remaining_bytes);
        match &self.shown {
            Shown::Bar(bar) => {
                bar.set_length(self.total_bytes.max(1));
                bar.set_position(done);
                bar.set_message(words(&now));
            }
            Shown::Lines => {
                let percent = (done * 100).checked_div(self.total_bytes).unwrap_or(0);
                out::note(&format!("{percent:>3}% {}", words(&now)));
            }
            Shown::Json => {
                let mut fields = object(progress_value(&now));
                fields.shift_insert(0, "job".into(), job.id().to_string().into());
                out::note(&Value::Object(fields).to_string());
            }
            Shown::Nothing => {}
        }
    }

    /// Shows it for the last time, and clears the bar away.
    pub(crate) fn end(mut self, job: &Job) {
        match &self.shown {
            Shown::Bar(bar) => bar.finish_and_clear(),
            _ => self.show(job),
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(1);
    match ProgressStyle::with_template(BAR) {
        Ok(style) => bar.with_style(style),
        // The template is a constant; the default style does as well.
        Err(_) => bar,
    }
}

/// Rate, time to the end, and what holds it up.
fn words(now: &Figures) -> String {
    let mut words =
        format!("{} {}/s", HumanBytes(now.written_bytes), HumanBytes(now.rate_bytes_per_sec));
    if let Some(eta) = now.eta {
        words.push_str(&format!(", {} left", HumanDuration(eta)));
    }
    if let Some(stall) = now.stalls.bottleneck() {
        words.push_str(&format!(", limited by {}", Stall::name(stall)));
    }
    words
}
