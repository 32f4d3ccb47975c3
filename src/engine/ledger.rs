//! The ledger of a run: what is written, what waits for a sync, what the image's table will be.

use std::sync::PoisonError;

use tokio::sync::Notify;

use crate::chunk::{AwaitingSync, Content, Digest, Written};
use crate::geometry::{ChunkIndex, ChunkSize, Geometry};
use crate::manifest::{ChunkTable, TableBuilder};
use crate::region::Restored;
use crate::sync::{Mutex, MutexGuard};

/// Takes `Written` chunks from the lanes and gives them to the checkpointer in batches.
#[derive(Debug)]
pub(crate) struct Ledger {
    geometry: Geometry,
    checkpoint_bytes: u64,
    book: Mutex<Book>,
    due: Notify,
    synced: Notify,
}

#[derive(Debug)]
struct Book {
    table: TableBuilder,
    /// Written, and not yet taken for a sync.
    pending: Vec<Written>,
    pending_bytes: u64,
    /// Bytes taken for a sync that has not returned yet.
    syncing_bytes: u64,
    data_bytes: u64,
    held_bytes: u64,
    closed: bool,
}

impl Book {
    fn has_room(&self, checkpoint_bytes: u64) -> bool {
        self.pending_bytes + self.syncing_bytes < checkpoint_bytes
            && self.pending.len() < 2 * PENDING_COUNT_MAX
    }
}

/// How many chunks may wait, whatever their size: a bound on memory, and on the length of a record.
const PENDING_COUNT_MAX: usize = 16 << 10;

impl Ledger {
    pub(crate) fn new(geometry: Geometry, restored: Restored, checkpoint_bytes: u64) -> Self {
        let missing: u64 =
            restored.table.missing_runs().map(|run| geometry.run_range(run).len).sum();
        let book = Book {
            table: restored.table,
            pending: Vec::new(),
            pending_bytes: 0,
            syncing_bytes: 0,
            data_bytes: restored.data_bytes,
            held_bytes: geometry.image_bytes() - missing,
            closed: false,
        };
        Self {
            geometry,
            checkpoint_bytes,
            book: Mutex::new(book),
            due: Notify::new(),
            synced: Notify::new(),
        }
    }

    /// Takes in what a target accepted.
    pub(crate) fn accept(&self, written: Written) {
        self.enter(written, true);
    }

    /// Takes in what a target already held: nothing of it waits for the device.
    pub(crate) fn accept_shared(&self, shared: Written) {
        self.enter(shared, false);
    }

    fn enter(&self, written: Written, moved: bool) {
        let mut book = self.book();
        let run = written.run();
        let known = book.table.holds(run.first);
        if !known {
            book.held_bytes += self.geometry.run_range(run).len;
        }
        if let Content::Data { data_bytes, .. } = written.content() {
            book.data_bytes += if known { 0 } else { u64::from(data_bytes) };
            book.pending_bytes += if moved { u64::from(data_bytes) } else { 0 };
        }
        book.table.put(run, written.content());
        book.pending.push(written);
        // Half way: while that is being synced, the other half is written.
        if book.pending_bytes >= self.checkpoint_bytes / 2
            || book.pending.len() >= PENDING_COUNT_MAX
        {
            self.due.notify_one();
        }
    }

    /// Waits until so little is not durable that more may be written: what a kill can cost is one
    /// checkpoint interval and what is in flight, however slow the device is; a power cut also what
    /// was synced and is not on record yet. Lanes wait here for the device. For the journal they do
    /// only when it takes longer than they take to write half an interval.
    pub(crate) async fn room(&self) {
        loop {
            let synced = self.synced.notified();
            tokio::pin!(synced);
            // Order: listening before looking, or a sync that ends in between is missed.
            synced.as_mut().enable();
            if self.book().has_room(self.checkpoint_bytes) {
                return;
            }
            synced.await;
        }
    }

    /// What was taken last is durable.
    pub(crate) fn synced(&self) {
        self.book().syncing_bytes = 0;
        self.synced.notify_waiters();
    }

    /// What waits for a sync, in the order of the image. Only a sync that begins now or later
    /// proves it.
    pub(crate) fn take(&self) -> AwaitingSync {
        let mut book = self.book();
        book.syncing_bytes += std::mem::take(&mut book.pending_bytes);
        let mut taken = std::mem::take(&mut book.pending);
        drop(book);
        taken.sort_unstable_by_key(|written| written.run().first);
        AwaitingSync::new(taken)
    }

    /// Completes when enough is waiting, or the ledger is closed.
    pub(crate) async fn due(&self) {
        self.due.notified().await;
    }

    /// No more chunks will come.
    pub(crate) fn close(&self) {
        self.book().closed = true;
        self.due.notify_one();
    }

    /// More chunks will come: chunks that did not verify are written again.
    pub(crate) fn reopen(&self) {
        self.book().closed = false;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.book().closed
    }

    /// Bytes found to be data, and bytes found to be zero.
    pub(crate) fn data_and_zero_bytes(&self) -> (u64, u64) {
        let book = self.book();
        (book.data_bytes, book.held_bytes.saturating_sub(book.data_bytes))
    }

    /// What is known of that chunk: a digest, or none for zeros.
    pub(crate) fn digest(&self, index: ChunkIndex) -> Option<Option<Digest>> {
        self.book().table.digest(index)
    }

    /// Takes the whole table out; `None` while chunks are missing. The ledger is of no use
    /// afterwards.
    pub(crate) fn take_table(&self) -> Option<ChunkTable> {
        let mut book = self.book();
        if book.table.missing() > 0 {
            return None;
        }
        let empty = Geometry::new(0, ChunkSize::MIN).ok()?;
        std::mem::replace(&mut book.table, TableBuilder::new(empty)).finish()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
