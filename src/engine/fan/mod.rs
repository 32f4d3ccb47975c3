//! Copies of one image that are made together: what one of them reads and hashes, the others take.
//!
//! Whoever comes to a chunk first reads it for all who will need it, and it waits in memory until
//! they have come. There is leave for a few such chunks only; where it is used up, those in front
//! wait for those behind, but not for long: then they part from a leg that is slow or hangs. It
//! reads for itself, or with those who are as slow, until it is near again.
//!
//! A leg takes only what was begun to be read after it had joined, so it never gets bytes from
//! before it was asked for.

mod table;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::engine::memory::{Memory, Room};
use crate::engine::patience::Patience;
use crate::geometry::{ChunkIndex, ChunkRun, Geometry};
use crate::job::{Endpoint, Fingerprint, JobSpec};
use crate::plan::ChunkSet;
use crate::seal::Seal;

use table::{Asked, Table};

/// How long the legs of one fan-out wait for each other at the start.
const GATHER_TIME: Duration = Duration::from_secs(5);
/// How long one waits for a chunk that another is reading, before one of those who wait reads it
/// once more: so long, and for its bytes, and those read beside it, as long as a slow source takes.
const HANDING_TIME: Duration = Duration::from_secs(10);
const SLOW_BYTES_PER_SEC: u64 = 256 << 10;
/// For a leg that is further behind nothing is kept.
const NEAR_BYTES: u64 = 64 << 20;
const NEAR_CHUNKS_MIN: u64 = 16;

/// A chunk that was read and hashed, with the room that it takes.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) seal: Seal,
    _room: Room,
}

impl Chunk {
    pub(crate) fn new(seal: Seal, room: Room) -> Arc<Self> {
        Arc::new(Self { seal, _room: room })
    }
}

/// The fan-outs of an engine.
#[derive(Debug, Default)]
pub(crate) struct Fans(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    fans: Vec<Weak<Fan>>,
    /// Those that a leg has come to of late: it is known to have come, also when it is gone again.
    fresh: Vec<(Instant, Arc<Fan>)>,
}

/// What makes bytes the same: the image, as it was when it was looked at, and how it is cut.
#[derive(Debug, PartialEq, Eq)]
struct Key {
    source: Endpoint,
    fingerprint: Fingerprint,
    geometry: Geometry,
}

#[derive(Debug)]
struct Fan {
    key: Key,
    memory: Arc<Memory>,
    table: Mutex<Table>,
    changed: Notify,
}

impl Fans {
    /// Joins those who copy the same image, as one of so many legs, with these chunks to copy.
    pub(crate) fn join(
        &self,
        spec: &JobSpec,
        memory: &Arc<Memory>,
        legs: u32,
        needs: ChunkSet,
    ) -> Hand {
        let fan = self.find(spec, memory);
        let (id, group) = fan.table().join(legs, needs);
        fan.changed.notify_waiters();
        Hand { fan, id, group, began: Instant::now(), patience: Mutex::default() }
    }

    /// Tells them not to wait for a leg that copies without them.
    pub(crate) fn pass(&self, spec: &JobSpec, memory: &Arc<Memory>, legs: u32) {
        let fan = self.find(spec, memory);
        fan.table().came(legs);
        fan.changed.notify_waiters();
    }

    fn find(&self, spec: &JobSpec, memory: &Arc<Memory>) -> Arc<Fan> {
        let key = Key {
            source: spec.source.clone(),
            fingerprint: spec.fingerprint.clone(),
            geometry: spec.geometry,
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        known.fresh.retain(|(came, _)| *came + GATHER_TIME >= now);
        known.fans.retain(|fan| fan.strong_count() > 0);
        let found = known.fans.iter().filter_map(Weak::upgrade).find(|fan| fan.key == key);
        let fan = found.unwrap_or_else(|| {
            let fan = Arc::new(Fan::new(key, memory.clone()));
            known.fans.push(Arc::downgrade(&fan));
            fan
        });
        known.fresh.push((now, fan.clone()));
        fan
    }
}

impl Fan {
    fn new(key: Key, memory: Arc<Memory>) -> Self {
        let near = NEAR_BYTES / key.geometry.chunk_size().bytes();
        let near = u32::try_from(near.max(NEAR_CHUNKS_MIN)).unwrap_or(u32::MAX);
        Self { key, memory, table: Mutex::new(Table::new(near)), changed: Notify::new() }
    }

    fn done(&self, id: u64, index: u32) {
        self.table().done(id, index);
        self.changed.notify_waiters();
    }

    fn give_up(&self, index: u32, number: u64) {
        self.table().give_up(index, number);
        self.changed.notify_waiters();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One leg's part in a fan-out, from its first chunk to its last.
#[derive(Debug)]
pub(crate) struct Hand {
    fan: Arc<Fan>,
    id: u64,
    /// With whom it waits at the start.
    group: u64,
    began: Instant,
    patience: Mutex<Patience>,
}

/// How a leg comes by a chunk.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Another has it, or is reading it.
    Take(Taking),
    /// It is to be read, and shown to those who wait for it.
    Read(Claim),
}

impl Hand {
    /// Waits for the legs that are still to come, for a moment.
    pub(crate) async fn gather(&self, halt: &CancellationToken) {
        let all_here = async {
            loop {
                let changed = self.fan.changed.notified();
                if self.fan.table().has_gathered(self.group) {
                    return;
                }
                changed.await;
            }
        };
        tokio::select! {
            biased;
            () = halt.cancelled() => {}
            _late = timeout(GATHER_TIME, all_here) => {}
        }
    }

    /// Whether no other leg has these chunks or will want them from us: then they are ours to copy
    /// as if we were alone, and we never ask for them.
    pub(crate) fn goes_alone(&self, chunks: ChunkRun) -> bool {
        self.fan.table().goes_alone(self.id, chunks)
    }

    /// How to come by that chunk; `None`: halted first.
    pub(crate) async fn turn(&self, index: ChunkIndex, halt: &CancellationToken) -> Option<Turn> {
        let bytes = self.fan.key.geometry.range(index).len;
        loop {
            let changed = self.fan.changed.notified();
            let asked = self.fan.table().ask(self.id, index.get(), || self.fan.memory.keep(bytes));
            match asked {
                Asked::Take(number, chunk) => {
                    self.fan.changed.notify_waiters();
                    let (fan, id, index) = (self.fan.clone(), self.id, index.get());
                    return Some(Turn::Take(Taking { fan, id, index, number, chunk }));
                }
                Asked::Read(show) => {
                    self.fan.changed.notify_waiters();
                    let (fan, id) = (self.fan.clone(), self.id);
                    return Some(Turn::Read(Claim { fan, id, index: index.get(), show }));
                }
                Asked::Full => {}
            }
            let left = self.patience().begin(self.began, Instant::now());
            if left.is_zero() {
                self.fan.table().part(self.id);
                self.fan.changed.notify_waiters();
            }
            let halted = tokio::select! {
                biased;
                () = halt.cancelled() => true,
                () = changed => false,
                () = sleep(left) => false,
            };
            self.patience().end(Instant::now());
            if halted {
                return None;
            }
        }
    }

    /// Waits for room as long as patience lasts; after that nothing that takes room is kept for
    /// anybody.
    pub(crate) async fn wait<T>(&self, room: impl Future<Output = T>) -> Option<T> {
        let left = self.patience().begin(self.began, Instant::now());
        let found = timeout(left, room).await.ok();
        self.patience().end(Instant::now());
        if found.is_none() {
            self.fan.table().let_go(self.id);
            self.fan.changed.notify_waiters();
        }
        found
    }

    fn patience(&self) -> MutexGuard<'_, Patience> {
        self.patience.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.fan.table().leave(self.id);
        self.fan.changed.notify_waiters();
    }
}

/// A chunk that another leg has read or is reading.
#[derive(Debug)]
pub(crate) struct Taking {
    fan: Arc<Fan>,
    id: u64,
    index: u32,
    number: u64,
    chunk: watch::Receiver<Option<Arc<Chunk>>>,
}

impl Taking {
    /// The chunk; `None`: who was reading it has failed, or takes too long. Then one asks again.
    pub(crate) async fn taken(mut self) -> Option<Arc<Chunk>> {
        // All that are being read share what the source gives.
        let under_way = self.fan.table().under_way(self.number);
        let bytes = self.fan.key.geometry.chunk_size().bytes() * under_way;
        let patience = HANDING_TIME + Duration::from_millis(bytes * 1000 / SLOW_BYTES_PER_SEC);
        let taken = match timeout(patience, self.chunk.wait_for(Option::is_some)).await {
            Ok(Ok(chunk)) => chunk.clone(),
            Ok(Err(_)) | Err(_) => None,
        };
        match &taken {
            Some(_) => self.fan.done(self.id, self.index),
            // Whoever asks first reads it for the others.
            None => self.fan.give_up(self.index, self.number),
        }
        taken
    }
}

/// A chunk that is being read, perhaps for others too. Dropped, they look for themselves.
#[derive(Debug)]
pub(crate) struct Claim {
    fan: Arc<Fan>,
    id: u64,
    index: u32,
    show: Option<(u64, watch::Sender<Option<Arc<Chunk>>>)>,
}

impl Claim {
    /// Shows the chunk to those who will need it.
    pub(crate) fn show(mut self, chunk: &Arc<Chunk>) {
        if let Some((_, show)) = self.show.take() {
            show.send_replace(Some(chunk.clone()));
            self.fan.done(self.id, self.index);
        }
    }

    /// Leaves it to the others to read it for themselves; we come by it without them.
    pub(crate) fn withdraw(self) {
        let (fan, id, index) = (self.fan.clone(), self.id, self.index);
        drop(self);
        fan.done(id, index);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some((number, _)) = self.show.take() {
            self.fan.give_up(self.index, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::engine::patience::FIRST as PATIENCE_FIRST;
    use crate::job::sample_spec;
    use crate::plan::Plan;
    use crate::seal::seal;

    pub(super) const CHUNKS: u32 = 8;

    pub(super) fn all(count: u32) -> ChunkSet {
        let spec = JobSpec { geometry: cut(count), ..sample_spec() };
        Plan::only(spec.geometry, (0..count).map(ChunkIndex::new)).to_copy()
    }

    fn cut(count: u32) -> Geometry {
        let chunk_size = crate::geometry::ChunkSize::MIN;
        Geometry::new(u64::from(count) * chunk_size.bytes(), chunk_size).unwrap()
    }

    /// Legs of one fan-out, with that much memory: a quarter of it may wait.
    fn legs(count: usize, memory_chunks: u64) -> (Arc<Memory>, Vec<Hand>) {
        let spec = JobSpec { geometry: cut(CHUNKS), ..sample_spec() };
        let memory = Arc::new(Memory::new(memory_chunks * spec.geometry.chunk_size().bytes()));
        let fans = Fans::default();
        let legs = u32::try_from(count).unwrap();
        let join = |_| fans.join(&spec, &memory, legs, all(CHUNKS));
        let hands = (0..count).map(join).collect();
        (memory, hands)
    }

    async fn chunk(memory: &Memory, index: u32) -> Arc<Chunk> {
        let room = memory.reserve(1).await.unwrap();
        let bytes = Bytes::from(vec![1; 64 << 10]);
        Chunk::new(seal(cut(CHUNKS), ChunkIndex::new(index), bytes), room)
    }

    async fn turn(hand: &Hand, index: u32) -> Turn {
        hand.turn(ChunkIndex::new(index), &CancellationToken::new()).await.unwrap()
    }

    /// Copies that chunk as a leg does; whether it had to read it.
    async fn copies(memory: &Memory, hand: &Hand, index: u32) -> bool {
        match turn(hand, index).await {
            Turn::Read(claim) => {
                claim.show(&chunk(memory, index).await);
                true
            }
            Turn::Take(taking) => {
                let taken = taking.taken().await;
                assert!(taken.is_some(), "chunk {index} is lost");
                false
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_reads_the_others_take_and_then_nothing_waits() {
        let (memory, hands) = legs(3, 64);
        for index in 0..CHUNKS {
            for (n, hand) in hands.iter().enumerate() {
                assert_eq!(copies(&memory, hand, index).await, n == 0, "chunk {index}, leg {n}");
            }
        }
        assert!(hands[0].fan.table().slots.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_fails_is_made_by_those_who_wait_for_it() {
        let (memory, hands) = legs(2, 64);
        let Turn::Read(claim) = turn(&hands[0], 0).await else { panic!("nobody has read it") };
        let Turn::Take(taking) = turn(&hands[1], 0).await else { panic!("it is being read") };
        drop(claim);
        assert!(taking.taken().await.is_none());
        assert!(copies(&memory, &hands[1], 0).await);
        // One that never ends is not waited for without end either.
        let Turn::Read(_claim) = turn(&hands[0], 1).await else { panic!("nobody has read it") };
        let Turn::Take(taking) = turn(&hands[1], 1).await else { panic!("it is being read") };
        assert!(taking.taken().await.is_none());
        assert!(copies(&memory, &hands[1], 1).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leg_that_stands_still_is_waited_for_a_moment_and_parted_from() {
        let (memory, hands) = legs(3, 8);
        let began = Instant::now();
        for index in 0..CHUNKS {
            assert!(copies(&memory, &hands[0], index).await);
            assert!(!copies(&memory, &hands[1], index).await, "the two are together still");
        }
        assert!(began.elapsed() <= PATIENCE_FIRST * 2, "{:?}", began.elapsed());
        assert!(began.elapsed() >= PATIENCE_FIRST, "it was not waited for");
        assert!(copies(&memory, &hands[2], 0).await, "it reads for itself");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leg_that_goes_without_the_others_or_has_left_is_not_waited_for() {
        let spec = JobSpec { geometry: cut(CHUNKS), ..sample_spec() };
        let (memory, fans) = (Arc::new(Memory::new(1 << 30)), Fans::default());
        let halt = CancellationToken::new();
        let join = |legs| fans.join(&spec, &memory, legs, all(CHUNKS));
        let began = Instant::now();
        drop(join(3));
        fans.pass(&spec, &memory, 3);
        let hand = join(3);
        hand.gather(&halt).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        drop(hand);
        // The same once more: these wait for each other, and not for those.
        let one = join(3);
        one.gather(&halt).await;
        assert_eq!(began.elapsed(), GATHER_TIME, "two are still to come");
        // One is here and has waited its time, one goes alone.
        sleep(Duration::from_secs(1)).await;
        fans.pass(&spec, &memory, 3);
        join(3).gather(&halt).await;
        assert_eq!(began.elapsed(), GATHER_TIME + Duration::from_secs(1));
    }

    /// Three read beside each other from a slow source, each three times as long.
    #[tokio::test(start_paused = true)]
    async fn reads_beside_each_other_are_given_the_time_of_all() {
        let (memory, hands) = legs(2, 64);
        let mut claims = Vec::new();
        for index in 0..3 {
            let Turn::Read(claim) = turn(&hands[0], index).await else { panic!("nobody has it") };
            claims.push(claim);
        }
        assert!(copies(&memory, &hands[0], 3).await, "what was read takes no time");
        let Turn::Take(taking) = turn(&hands[1], 0).await else { panic!("it is being read") };
        let began = Instant::now();
        assert!(taking.taken().await.is_none());
        let (took, three) = (began.elapsed(), 3 * cut(CHUNKS).chunk_size().bytes());
        assert_eq!(took, HANDING_TIME + Duration::from_millis(three * 1000 / SLOW_BYTES_PER_SEC));
        drop((memory, claims));
    }

    /// One in front, two behind that keep pace with each other.
    #[tokio::test(start_paused = true)]
    async fn a_read_that_fails_is_still_made_once_for_all() {
        let (memory, hands) = legs(3, 64);
        let Turn::Read(claim) = turn(&hands[0], 0).await else { panic!("nobody has read it") };
        let Turn::Take(taking) = turn(&hands[1], 0).await else { panic!("it is being read") };
        drop(claim);
        assert!(taking.taken().await.is_none());
        let again = [&hands[1], &hands[0], &hands[2]];
        for (n, hand) in again.into_iter().enumerate() {
            assert_eq!(copies(&memory, hand, 0).await, n == 0, "leg {n}");
        }
        assert!(hands[0].fan.table().slots.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn where_memory_is_short_only_what_takes_memory_is_let_go() {
        let (memory, hands) = legs(2, 64);
        let Turn::Read(reading) = turn(&hands[0], 0).await else { panic!("nobody has it") };
        assert!(copies(&memory, &hands[0], 1).await);
        assert!(hands[0].wait(std::future::pending::<()>()).await.is_none());
        assert!(copies(&memory, &hands[1], 1).await, "it is read again");
        assert!(hands[1].fan.table().slots[&0].takers.contains(&1));
        // Who waits itself does not wait for what would then take memory for it.
        assert!(hands[1].wait(std::future::pending::<()>()).await.is_none());
        assert!(hands[1].fan.table().slots.is_empty());
        reading.show(&chunk(&memory, 0).await);
        assert!(copies(&memory, &hands[1], 0).await);
    }

    #[tokio::test(start_paused = true)]
    async fn legs_wait_for_each_other_at_the_start_and_not_for_ever() {
        let (_memory, hands) = legs(2, 8);
        let halt = CancellationToken::new();
        let began = Instant::now();
        hands[0].gather(&halt).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        let spec = JobSpec { geometry: cut(CHUNKS), ..sample_spec() };
        let (memory, fans) = (Arc::new(Memory::new(1 << 30)), Fans::default());
        let one = fans.join(&spec, &memory, 2, all(CHUNKS));
        one.gather(&halt).await;
        assert_eq!(began.elapsed(), GATHER_TIME);
        halt.cancel();
        one.gather(&halt).await;
        assert_eq!(began.elapsed(), GATHER_TIME, "halted");
    }
}
