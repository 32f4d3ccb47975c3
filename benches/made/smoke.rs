//! Whether a bench is run to be timed, or once to prove that it still checks out.

/// What criterion goes by: `cargo bench` passes `--bench`, `cargo test` does not, and `--test`
/// means one run in any case.
pub(crate) fn is_smoke() -> bool {
    let has = |word: &str| std::env::args().any(|given| given == word);
    has("--test") || !has("--bench")
}
