//! Guards that can be taken out on purpose, to see that a test notices.
//!
//! Only a build with `--cfg sabotage` has any of it: there, the environment variable
//! `BLOCKFERRY_SABOTAGE` names the one guard that is missing. `tests/sabotage` builds that, and
//! asks for a red test for each. In every other build the answer is a constant, and nothing is left
//! of the question.

/// Whether the guard of that name is to be missing.
#[cfg(not(sabotage))]
pub(crate) const fn is(_mutant: &str) -> bool {
    false
}

/// Whether the guard of that name is to be missing.
#[cfg(sabotage)]
pub(crate) fn is(mutant: &str) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("BLOCKFERRY_SABOTAGE").ok());
    CHOSEN.as_deref() == Some(mutant)
}

/// Takes a step, unless just that is to be missing.
pub(crate) fn unless<E>(mutant: &str, step: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
    if is(mutant) { Ok(()) } else { step() }
}
