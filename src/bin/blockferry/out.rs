//! Printing: lines to stdout and stderr, also when nobody reads them any more.

use std::io::{self, Write};

use blockferry::{Error, Result};

/// Prints a line to stdout. A reader that has gone away is no failure: it wanted no more.
///
/// # Errors
/// Those of stdout, such as a full disk.
pub(crate) fn line(text: &str) -> Result<()> {
    match put(&mut io::stdout().lock(), text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("write to stdout", error))
        }
        _ => Ok(()),
    }
}

/// Prints a line to stderr, as far as it takes it: there is nowhere else to complain.
pub(crate) fn note(text: &str) {
    put(&mut io::stderr().lock(), text).ok();
}

/// `println!` would panic on a closed pipe, and so would its like for stderr.
fn put(sink: &mut dyn Write, text: &str) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend_from_slice(text.as_bytes());
    if !text.ends_with('\n') {
        bytes.push(b'\n');
    }
    // One write a line, so that lines of several writers do not mix.
    sink.write_all(&bytes).and_then(|()| sink.flush())
}
