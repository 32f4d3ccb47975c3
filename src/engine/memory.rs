//! The engine's budget for bytes of images in memory, and what each run may have of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, ErrorKind, Result};

/// The unit in which memory is reserved.
const UNIT_BYTES: u64 = 64 << 10;
const UNIT_COUNT_MAX: u64 = 1 << 24;
/// Of the budget, the part in which chunks may wait for those that will want them.
const KEPT_SHARE: u32 = 4;

/// Room for bytes, until it is dropped.
pub(crate) type Room = OwnedSemaphorePermit;

/// The budget of all runs together.
#[derive(Debug)]
pub(crate) struct Memory {
    units: Arc<Semaphore>,
    unit_count: u32,
    /// How much of that may wait.
    kept: Arc<Semaphore>,
    /// Runs that hold chunks, or are about to.
    runs: Mutex<u32>,
    /// Somebody holds less, or there are fewer runs.
    changed: Notify,
}

impl Memory {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let unit_count = (bytes_max / UNIT_BYTES).clamp(1, UNIT_COUNT_MAX);
        let unit_count = u32::try_from(unit_count).unwrap_or(1);
        let of = |units: u32| Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(1)));
        Self {
            units: of(unit_count),
            unit_count,
            kept: of(unit_count / KEPT_SHARE),
            runs: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// How many chunks the budget holds; at least one.
    pub(crate) fn chunk_count(&self, chunk_bytes: u64) -> u64 {
        (u64::from(self.unit_count) * UNIT_BYTES / chunk_bytes).max(1)
    }

    /// Waits for room for one chunk of that many bytes. One chunk always fits.
    pub(crate) async fn reserve(&self, bytes: u64) -> Result<Room> {
        let room = self.units.clone().acquire_many_owned(self.units_of(bytes)).await;
        room.map_err(|error| Error::new(ErrorKind::Io, "reserve memory").because(error))
    }

    /// Leave for one chunk of that many bytes to wait in memory, if there is any left.
    pub(crate) fn keep(&self, bytes: u64) -> Option<Room> {
        self.kept.clone().try_acquire_many_owned(self.units_of(bytes)).ok()
    }

    /// Whether a chunk of that many bytes may ever wait.
    pub(crate) fn may_keep(&self, bytes: u64) -> bool {
        self.units_of(bytes) <= self.unit_count / KEPT_SHARE
    }

    fn units_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(self.unit_count)
    }

    fn runs(&self) -> MutexGuard<'_, u32> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one run may hold at a time: its even part of the budget. So a run whose target hangs, with
/// all that it may hold, leaves the others theirs.
#[derive(Debug)]
pub(crate) struct Share {
    memory: Arc<Memory>,
    held_units: Mutex<u32>,
    /// How many runs it shares with, where more are expected than there are.
    legs: u32,
}

impl Share {
    pub(crate) fn new(memory: Arc<Memory>, legs: u32) -> Arc<Self> {
        Arc::new(Self { memory, held_units: Mutex::default(), legs })
    }

    /// Counts the run among those that hold chunks, until the answer is dropped.
    pub(crate) fn enrol(&self) -> Enrolled {
        *self.memory.runs() += 1;
        Enrolled(self.memory.clone())
    }

    /// Waits until the run may hold one more chunk of that many bytes. One is always allowed.
    pub(crate) async fn hold(self: &Arc<Self>, bytes: u64) -> Holding {
        let units = self.memory.units_of(bytes);
        loop {
            let changed = self.memory.changed.notified();
            if self.try_hold(units) {
                return Holding { share: self.clone(), units };
            }
            changed.await;
        }
    }

    fn try_hold(&self, units: u32) -> bool {
        let mut held = self.held_units();
        let may = *held == 0 || *held + units <= self.part();
        if may {
            *held += units;
        }
        may
    }

    /// All of it for a run alone; of many, an even part of what is not left to those that wait.
    fn part(&self) -> u32 {
        let memory = &self.memory;
        match (*memory.runs()).max(self.legs) {
            0 | 1 => memory.unit_count,
            runs => (memory.unit_count - memory.unit_count / KEPT_SHARE) / runs,
        }
    }

    fn held_units(&self) -> MutexGuard<'_, u32> {
        self.held_units.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A run that counts.
#[derive(Debug)]
pub(crate) struct Enrolled(Arc<Memory>);

impl Drop for Enrolled {
    fn drop(&mut self) {
        *self.0.runs() -= 1;
        self.0.changed.notify_waiters();
    }
}

/// Leave to hold one chunk, until it is dropped.
#[derive(Debug)]
pub(crate) struct Holding {
    share: Arc<Share>,
    units: u32,
}

impl Drop for Holding {
    fn drop(&mut self) {
        *self.share.held_units() -= self.units;
        self.share.memory.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 4 << 20;

    fn memory(chunks: u64) -> Arc<Memory> {
        Arc::new(Memory::new(chunks * CHUNK))
    }

    fn held_by(share: &Arc<Share>) -> Vec<Holding> {
        let units = share.memory.units_of(CHUNK);
        std::iter::from_fn(|| {
            share.try_hold(units).then(|| Holding { share: share.clone(), units })
        })
        .collect()
    }

    #[test]
    fn a_run_alone_has_everything_and_each_of_many_its_even_part() {
        let memory = memory(8);
        let of = |legs| Share::new(memory.clone(), legs);
        let (one, _one) = (of(1), of(1).enrol());
        assert_eq!(held_by(&one).len(), 8);
        let (two, counts) = (of(1), of(1).enrol());
        assert_eq!(held_by(&two).len(), 3, "and a quarter for those that wait");
        let (three, _three) = (of(1), of(1).enrol());
        assert_eq!(held_by(&three).len(), 2);
        drop(counts);
        assert_eq!(held_by(&three).len(), 3, "one has left");
        assert_eq!(held_by(&of(6)).len(), 1, "its other legs are on their way");
        let many: Vec<_> = (0..20).map(|_| (of(1), of(1).enrol())).collect();
        assert!(many.iter().all(|(share, _)| held_by(share).len() == 1), "one chunk each");
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_it_holds_less_or_another_run_has_ended() {
        for other_ends in [true, false] {
            let memory = memory(2);
            let (one, _one) =
                (Share::new(memory.clone(), 1), Share::new(memory.clone(), 1).enrol());
            let mut held = held_by(&one);
            assert_eq!(held.len(), 2);
            let two = Share::new(memory, 1).enrol();
            held.pop();
            let waiting = tokio::spawn({
                let one = one.clone();
                async move { one.hold(CHUNK).await }
            });
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished());
            match other_ends {
                true => drop(two),
                false => held.clear(),
            }
            waiting.await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_waits_in_memory_is_a_part_of_it_and_one_chunk_always_fits() {
        let memory = memory(8);
        let kept: Vec<_> = std::iter::from_fn(|| memory.keep(CHUNK)).collect();
        assert_eq!(kept.len(), 2);
        assert!(memory.may_keep(2 * CHUNK) && !memory.may_keep(2 * CHUNK + 1));
        assert!(super::Memory::new(CHUNK).keep(CHUNK).is_none());
        drop(super::Memory::new(1).reserve(64 << 20).await.unwrap());
        assert_eq!(super::Memory::new(1).chunk_count(64 << 20), 1);
    }
}
