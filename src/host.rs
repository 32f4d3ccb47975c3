//! What the crate takes from its host beside the disk: threads that may block, wall time, random
//! numbers, for all of which a simulation stands in; and what a task carries along.

use std::future::Future;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::task::JoinHandle;

#[cfg(feature = "testing")]
use crate::disk::sim;
use crate::error::{Error, Result};

/// Whether a simulation stands in for the host.
pub(crate) fn is_simulated() -> bool {
    #[cfg(feature = "testing")]
    return sim::is_entered();
    #[cfg(not(feature = "testing"))]
    false
}

/// Runs work that may block off the runtime's threads. It runs to its end even when nobody waits
/// for it.
pub(crate) fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    #[cfg(feature = "testing")]
    let work = match sim::spawn_blocking(work) {
        Ok(spawned) => return spawned,
        Err(work) => work,
    };
    tokio::task::spawn_blocking(work)
}

/// Locks what is kept locked during calls to the disk: a simulation, which has one thread, lets the
/// holder go on.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    #[cfg(feature = "testing")]
    while mutex.try_lock().is_err_and(|error| matches!(error, std::sync::TryLockError::WouldBlock))
        && sim::give_way()
    {}
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What holds back whoever moves bytes: a limit, as those see it who know of no limits.
pub(crate) trait Toll: Send + Sync {
    /// Waits until so many bytes may move.
    fn pass(&self, bytes: u64) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

tokio::task_local! {
    static TOLL: Arc<dyn Toll>;
}

/// Does the work. It was let pass once: what it moves a second time, in this task, passes the toll.
pub(crate) async fn tolled<T>(toll: Arc<dyn Toll>, work: impl Future<Output = T>) -> T {
    TOLL.scope(toll, work).await
}

/// Passes the toll before bytes are moved once more, if the work at hand has one.
pub(crate) async fn pass_toll(bytes: u64) {
    if let Ok(toll) = TOLL.try_with(Arc::clone) {
        toll.pass(bytes).await;
    }
}

/// Milliseconds since 1970: a label on records, and what the times in certificates are held
/// against.
#[expect(clippy::disallowed_methods, reason = "the one place that reads wall time")]
pub(crate) fn unix_ms() -> u64 {
    #[cfg(feature = "testing")]
    if let Some(ms) = sim::unix_ms() {
        return ms;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Bytes nobody can guess.
pub(crate) fn random() -> Result<[u8; 16]> {
    #[cfg(feature = "testing")]
    if let Some(bytes) = sim::random() {
        return Ok(bytes);
    }
    let mut room = [MaybeUninit::uninit(); 16];
    let flags = rustix::rand::GetRandomFlags::empty();
    // Requests of up to 256 bytes are never cut short.
    let (filled, _) = rustix::rand::getrandom(&mut room, flags)
        .map_err(|errno| Error::io("draw random bytes", errno))?;
    let mut bytes = [0; 16];
    bytes.copy_from_slice(filled);
    Ok(bytes)
}

/// Fills bytes with some that nobody can guess.
#[cfg(feature = "encrypt")]
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<()> {
    for piece in bytes.chunks_mut(16) {
        piece.copy_from_slice(&random()?[..piece.len()]);
    }
    Ok(())
}
