//! The `blockferry` command: the face of the library for people and scripts.

#[cfg(feature = "clouds")]
mod api;
mod cancel;
#[cfg(feature = "peer")]
mod cert;
mod completions;
mod context;
mod copy;
mod demo;
mod digest;
mod follow;
mod forget;
mod jobs;
#[cfg(feature = "encrypt")]
mod keyring;
mod limit;
mod out;
mod output;
#[cfg(feature = "object")]
mod probe;
mod progress;
mod recover;
mod resume;
#[cfg(feature = "encrypt")]
mod rewrap;
mod scan;
#[cfg(feature = "peer")]
mod serve;
mod show;
mod suspend;
mod usage;
mod verify;

use std::process::ExitCode;

use blockferry::{Error, Result};
use clap::{Parser, Subcommand};
use tokio::runtime::Builder;

use crate::output::{Report, Shape};

const EXIT_CODES: &str = "\
Locations:
  disk.raw, file:///abs/disk.raw   a plain file or a block device
  dir:///srv/region-a/IMAGE        an image of a directory region; its root must exist
  ferrys://HOST:PORT/REGION/IMAGE  an image of a region that a daemon serves, over TLS
  ferry+unix:///SOCKET/REGION/IMAGE  the same over a Unix socket
  s3://BUCKET/PREFIX/IMAGE?endpoint=…  an image of a region in an object store
  s3+raw://BUCKET/KEY?endpoint=…   a plain object of an object store

Exit codes:
  0    done
  1    failed: the source changed, no space, no permission, corrupt data, I/O
  2    usage: the request can never succeed as given
  3    suspended: `resume` goes on with it
  4    the copy was cancelled and rolled back
  5    refused: not found, exists, busy, not made by a copy
  130  a second interrupt: the copy was left as by a crash, `resume` goes on with it

State is kept in --state-dir, else $BLOCKFERRY_STATE_DIR, else $XDG_STATE_HOME/blockferry, else
~/.local/state/blockferry. Journals live with the destination.

Try `blockferry demo` to see it at work.";

/// Copies disk images between regions: resumable, verified, cancellable from anywhere.
#[derive(Debug, Parser)]
#[command(name = "blockferry", version, after_help = EXIT_CODES, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Copy(copy::Args),
    Resume(resume::Args),
    Suspend(suspend::Args),
    Cancel(cancel::Args),
    Limit(limit::Args),
    Jobs(jobs::Args),
    Show(show::Args),
    Forget(forget::Args),
    Digest(digest::Args),
    Verify(verify::Args),
    Recover(recover::Args),
    #[cfg(feature = "object")]
    Probe(probe::Args),
    #[cfg(feature = "encrypt")]
    Keyring(keyring::Args),
    #[cfg(feature = "encrypt")]
    Rewrap(rewrap::Args),
    #[cfg(feature = "peer")]
    Serve(serve::Args),
    #[cfg(feature = "peer")]
    Cert(cert::Args),
    #[cfg(feature = "clouds")]
    Api(api::Args),
    Demo(demo::Args),
    Completions(completions::Args),
}

impl Verb {
    /// Whether the caller wants JSON, and what it looks like when the verb fails.
    fn shape(&self) -> (bool, Shape) {
        match self {
            Self::Copy(args) => (args.common.json, Shape::Copy),
            Self::Resume(args) => (args.common.json, Shape::Copy),
            Self::Suspend(args) => (args.common.json, Shape::Job),
            Self::Cancel(args) => (args.common.json, Shape::Cancel),
            Self::Limit(args) => (args.common.json, Shape::Job),
            Self::Jobs(args) => (args.common.json, Shape::Jobs),
            Self::Show(args) => (args.common.json, Shape::Job),
            Self::Forget(args) => (args.common.json, Shape::Job),
            Self::Digest(args) => (args.common.json, Shape::Digest),
            Self::Verify(args) => (args.common.json, Shape::Verify),
            Self::Recover(args) => (args.common.json, Shape::Recover),
            #[cfg(feature = "object")]
            Self::Probe(args) => (args.json, Shape::Probe),
            #[cfg(feature = "encrypt")]
            Self::Keyring(args) => (args.json, Shape::Keyring),
            #[cfg(feature = "encrypt")]
            Self::Rewrap(args) => (args.common.json, Shape::Rewrap),
            #[cfg(feature = "peer")]
            Self::Serve(args) => (args.json, Shape::Serve),
            #[cfg(feature = "peer")]
            Self::Cert(args) => (args.json, Shape::Cert),
            #[cfg(feature = "clouds")]
            Self::Api(args) => (args.json, Shape::Api),
            Self::Demo(_) | Self::Completions(_) => (false, Shape::Job),
        }
    }

    /// Whether it changes nothing, so that what it prints is all there is to it.
    fn only_tells(&self) -> bool {
        matches!(
            self,
            Self::Jobs(_)
                | Self::Show(_)
                | Self::Digest(_)
                | Self::Verify(_)
                | Self::Completions(_)
        )
    }

    async fn run(self) -> Result<Report> {
        match self {
            Self::Copy(args) => Box::pin(copy::run(args)).await,
            Self::Resume(args) => Box::pin(resume::run(args)).await,
            Self::Suspend(args) => Box::pin(suspend::run(args)).await,
            Self::Cancel(args) => Box::pin(cancel::run(args)).await,
            Self::Limit(args) => Box::pin(limit::run(args)).await,
            Self::Jobs(args) => Box::pin(jobs::run(args)).await,
            Self::Show(args) => Box::pin(show::run(args)).await,
            Self::Forget(args) => Box::pin(forget::run(args)).await,
            Self::Digest(args) => Box::pin(digest::run(args)).await,
            Self::Verify(args) => Box::pin(verify::run(args)).await,
            Self::Recover(args) => Box::pin(recover::run(args)).await,
            #[cfg(feature = "object")]
            Self::Probe(args) => Box::pin(probe::run(args)).await,
            #[cfg(feature = "encrypt")]
            Self::Keyring(args) => keyring::run(&args),
            #[cfg(feature = "encrypt")]
            Self::Rewrap(args) => Box::pin(rewrap::run(args)).await,
            #[cfg(feature = "peer")]
            Self::Serve(args) => Box::pin(serve::run(args)).await,
            #[cfg(feature = "peer")]
            Self::Cert(args) => cert::run(&args),
            #[cfg(feature = "clouds")]
            Self::Api(args) => Box::pin(api::run(args)).await,
            Self::Demo(args) => demo::run(&args),
            Self::Completions(args) => Ok(completions::run(&args)),
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::refuse(&error),
    };
    let (json, shape) = cli.verb.shape();
    let only_tells = cli.verb.only_tells();
    let report = match Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Err(error) => Err(Error::io("start a runtime", error)),
        Ok(runtime) => {
            let report = runtime.block_on(cli.verb.run());
            // What still blocks, such as a read of a device that hangs, is left to the system.
            runtime.shutdown_background();
            report
        }
    };
    let report = report.unwrap_or_else(|error| Report::failed(shape.blank(), &error));
    report.only_tells(only_tells).print(json)
}
