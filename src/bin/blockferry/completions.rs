//! `completions`: a completion script for a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::output::Report;

const EXAMPLES: &str = "\
Examples:
  blockferry completions bash > /etc/bash_completion.d/blockferry
  blockferry completions zsh > ~/.zfunc/_blockferry";

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> Report {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "blockferry", &mut script);
    Report::text(String::from_utf8_lossy(&script).into_owned())
}
