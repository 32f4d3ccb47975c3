//! Bytes that one identity may have under way, shared among all of its sessions.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{to_u64, to_usize};

/// A budget of bytes; a cheap handle, all clones of which are one budget.
///
/// Who waits is served in the order of asking, so that a session that asks for little does not
/// starve one that asks for a whole chunk.
#[derive(Clone)]
pub struct Credits {
    // A semaphore with one permit a byte: it queues fairly, and gives back by itself.
    free: Arc<Semaphore>,
    all_bytes: u64,
}

impl Credits {
    /// A budget of that many bytes, all of it free.
    pub fn new(all_bytes: u64) -> Self {
        let all_bytes = all_bytes.min(to_u64(Semaphore::MAX_PERMITS));
        Self { free: Arc::new(Semaphore::new(to_usize(all_bytes))), all_bytes }
    }

    /// Takes that many bytes, once they are free.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for more than there are in all.
    ///
    /// # Cancel safety
    /// Safe: a dropped call takes nothing, and loses its place in the queue.
    pub async fn take(&self, bytes: u32) -> Result<Lease> {
        let refuse = |action: &'static str| {
            Error::new(ErrorKind::Invalid, action)
                .hint(format!("{bytes} are asked for, and there are {} in all", self.all_bytes))
        };
        if u64::from(bytes) > self.all_bytes {
            return Err(refuse("take more bytes of window than one peer has"));
        }
        let permit = self.free.clone().acquire_many_owned(bytes).await;
        // Nobody closes the semaphore.
        permit.map(Lease).map_err(|cause| refuse("take bytes of window").because(cause))
    }

    /// Takes that many bytes if they are free now and nobody waits.
    pub fn try_take(&self, bytes: u32) -> Option<Lease> {
        self.free.clone().try_acquire_many_owned(bytes).ok().map(Lease)
    }

    /// The bytes that nobody has taken.
    pub fn free_bytes(&self) -> u64 {
        to_u64(self.free.available_permits())
    }

    /// The bytes that there are.
    pub fn all_bytes(&self) -> u64 {
        self.all_bytes
    }
}

impl fmt::Debug for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credits({} of {} bytes free)", self.free_bytes(), self.all_bytes)
    }
}

/// Bytes taken from a budget, and given back when it is dropped.
#[must_use = "bytes that are not held are given back"]
pub struct Lease(OwnedSemaphorePermit);

impl Lease {
    /// The bytes that it still holds.
    pub fn bytes(&self) -> u64 {
        to_u64(self.0.num_permits())
    }

    /// Gives part of them back; at most all.
    pub fn give_back(&mut self, bytes: u64) {
        drop(self.0.split(to_usize(bytes.min(self.bytes()))));
    }

    /// Takes another lease of the same budget into this one.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a lease of another budget, whose bytes go back to that.
    pub fn join(&mut self, other: Self) -> Result<()> {
        if !Arc::ptr_eq(self.0.semaphore(), other.0.semaphore()) {
            return Err(Error::new(ErrorKind::Invalid, "join bytes of two budgets"));
        }
        self.0.merge(other.0);
        Ok(())
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} bytes)", self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_is_taken_comes_back_in_part_or_when_dropped() {
        let credits = Credits::new(100);
        let mut lease = credits.try_take(80).unwrap();
        assert!(credits.try_take(21).is_none());
        lease.give_back(30);
        assert_eq!((lease.bytes(), credits.free_bytes()), (50, 50));
        lease.join(credits.try_take(20).unwrap()).unwrap();
        assert_eq!((lease.bytes(), credits.free_bytes()), (70, 30));
        lease.give_back(u64::MAX);
        assert_eq!((lease.bytes(), credits.free_bytes()), (0, 100));
        drop(lease);
        assert_eq!((credits.free_bytes(), credits.all_bytes()), (100, 100));
    }

    #[test]
    fn who_waits_is_woken_in_turn_and_not_passed_by() {
        let credits = Credits::new(100);
        let held = credits.try_take(60).unwrap();
        let mut large = pin!(credits.take(70));
        let mut small = pin!(credits.take(10));
        assert!(poll(large.as_mut()).is_pending());
        // 40 are free, but somebody came first.
        assert!(poll(small.as_mut()).is_pending());
        assert!(credits.try_take(1).is_none());
        drop(held);
        let Poll::Ready(Ok(got)) = poll(large.as_mut()) else { panic!("70 are free") };
        let Poll::Ready(Ok(more)) = poll(small.as_mut()) else { panic!("30 are free") };
        assert_eq!((got.bytes(), more.bytes(), credits.free_bytes()), (70, 10, 20));
    }

    #[test]
    fn who_stops_waiting_holds_nothing_up() {
        let credits = Credits::new(100);
        let held = credits.try_take(60).unwrap();
        {
            let mut large = pin!(credits.take(70));
            assert!(poll(large.as_mut()).is_pending());
        }
        assert_eq!(credits.free_bytes(), 40);
        drop(held);
        assert_eq!(credits.free_bytes(), 100);
    }

    #[test]
    fn more_than_there_is_is_refused_instead_of_waited_for() {
        let credits = Credits::new(100);
        let mut take = pin!(credits.take(101));
        let Poll::Ready(Err(error)) = poll(take.as_mut()) else { panic!("it waits for ever") };
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let mut lease = credits.try_take(1).unwrap();
        let other = Credits::new(5);
        let foreign = other.try_take(5).unwrap();
        assert_eq!(lease.join(foreign).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!((other.free_bytes(), credits.free_bytes()), (5, 99));
        assert!(Credits::new(u64::MAX).free_bytes() > u64::from(u32::MAX));
    }
}
