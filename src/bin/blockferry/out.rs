//! Printing: lines to stdout and stderr, also when nobody reads them any more.

use std::io::Write;

/// Prints a line to stdout. A reader that has gone away is no failure: the work is done.
pub(crate) fn line(text: &str) {
    put(&mut std::io::stdout().lock(), text);
}

/// Prints a line to stderr.
pub(crate) fn note(text: &str) {
    put(&mut std::io::stderr().lock(), text);
}

/// `println!` would panic on a closed pipe, and so would its like for stderr.
fn put(sink: &mut dyn Write, text: &str) {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend_from_slice(text.as_bytes());
    if !text.ends_with('\n') {
        bytes.push(b'\n');
    }
    // One write a line, so that lines of several writers do not mix.
    sink.write_all(&bytes).and_then(|()| sink.flush()).ok();
}
