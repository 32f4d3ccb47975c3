//! Arguments that were not understood: help and version as clap prints them, errors on one line.

use std::process::ExitCode;

use blockferry::{Error, ErrorKind};
use clap::CommandFactory;
use clap::error::ErrorKind as Clap;

use crate::out;
use crate::output::{Report, Shape, USAGE};

/// Prints what clap has to say.
pub(crate) fn refuse(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    let args: Vec<String> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let wants_json = args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json");
    match error.kind() {
        Clap::DisplayHelp | Clap::DisplayVersion => {
            return Report::text(text).only_tells(true).print(false);
        }
        Clap::DisplayHelpOnMissingArgumentOrSubcommand if !wants_json => {
            out::note(&text);
            return ExitCode::from(USAGE);
        }
        _ => {}
    }
    let verb = args.iter().find(|arg| !arg.starts_with('-')).map_or("", String::as_str);
    let verb = if crate::Cli::command().find_subcommand(verb).is_some() { verb } else { "" };
    let refusal = Error::new(ErrorKind::Invalid, one_line(&text));
    let help = format!("try `blockferry {verb} --help`").replace("  ", " ");
    Report::failed(Shape::of_verb(verb).blank(), &refusal.hint(help)).print(wants_json)
}

/// What clap says before it shows the usage, its paragraphs on one line.
fn one_line(text: &str) -> String {
    let said = text.split("\nUsage:").next().unwrap_or(text);
    let said = said.split("\nFor more information").next().unwrap_or(said);
    let said = said.strip_prefix("error: ").unwrap_or(said);
    let words = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let said: Vec<_> = said.split("\n\n").map(words).filter(|said| !said.is_empty()).collect();
    format!("read the arguments: {}", said.join("; "))
}
