//! What a push has written and not recorded yet, and how it gets on record: sync, then checkpoint.

use std::sync::PoisonError;

use crate::chunk::{AwaitingSync, Durable, Written};
use crate::error::Result;
use crate::geometry::to_u64;
use crate::region::Target;
use crate::sync::{Mutex, MutexGuard};

/// Chunks of one record.
const RECORD_COUNT_MAX: usize = 8 << 10;

/// Chunks on their way from written to recorded.
#[derive(Debug, Default)]
pub(super) struct Book {
    pages: Mutex<Pages>,
    /// One sync or checkpoint at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Pages {
    written: Vec<Written>,
    written_bytes: u64,
    durable: Vec<Durable>,
    /// A sync or a checkpoint has failed: nothing is recorded any more.
    broken: bool,
}

impl Book {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the target accepted; gives how many bytes wait for a sync.
    pub(super) fn enter(&self, written: &[Written], bytes: u64) -> u64 {
        let mut pages = self.pages();
        pages.written.extend_from_slice(written);
        pages.written_bytes += bytes;
        pages.written_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        let pages = self.pages();
        pages.written.is_empty() && pages.durable.is_empty()
    }

    /// Makes durable what was written before this was called.
    pub(super) async fn sync(&self, target: &dyn Target) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.sync_now(target).await
    }

    /// Puts on record what is durable, as far as `admit` lets it.
    pub(super) async fn record(
        &self,
        target: &dyn Target,
        admit: impl Fn(Vec<Durable>) -> Vec<Durable>,
        recorded: impl Fn(&[Durable]) -> Result<()>,
    ) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.record_now(target, admit, recorded).await
    }

    /// Both, one after the other.
    pub(super) async fn keep(
        &self,
        target: &dyn Target,
        admit: impl Fn(Vec<Durable>) -> Vec<Durable>,
        recorded: impl Fn(&[Durable]) -> Result<()>,
    ) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.sync_now(target).await?;
        self.record_now(target, admit, recorded).await
    }

    async fn sync_now(&self, target: &dyn Target) -> Result<()> {
        self.check()?;
        let mut written = {
            let mut pages = self.pages();
            pages.written_bytes = 0;
            std::mem::take(&mut pages.written)
        };
        if written.is_empty() {
            return Ok(());
        }
        written.sort_by_key(|chunk| chunk.run().first);
        let awaiting = AwaitingSync::new(written);
        // Order: data first, then the record that it is durable.
        if let Err(error) = target.sync().await {
            self.pages().broken = true;
            return Err(error);
        }
        self.pages().durable.extend(awaiting.synced());
        Ok(())
    }

    async fn record_now(
        &self,
        target: &dyn Target,
        admit: impl Fn(Vec<Durable>) -> Vec<Durable>,
        recorded: impl Fn(&[Durable]) -> Result<()>,
    ) -> Result<()> {
        self.check()?;
        let durable = std::mem::take(&mut self.pages().durable);
        let durable = admit(durable);
        for chunks in durable.chunks(RECORD_COUNT_MAX) {
            if let Err(error) = target.checkpoint(chunks).await {
                self.pages().broken = true;
                return Err(error);
            }
            recorded(chunks)?;
        }
        Ok(())
    }

    /// A sync that failed is never tried again as if it were harmless.
    fn check(&self) -> Result<()> {
        use crate::error::{Error, ErrorKind};
        match self.pages().broken {
            true => Err(Error::new(ErrorKind::Io, "record chunks after a sync that failed")),
            false => Ok(()),
        }
    }
}

/// How many bytes these chunks may hold.
pub(super) fn bytes_of(written: &[Written]) -> u64 {
    use crate::chunk::Content;
    let data = |chunk: &Written| match chunk.content() {
        Content::Data { data_bytes, .. } => u64::from(data_bytes),
        Content::Zero => 0,
    };
    debug_assert!(to_u64(written.len()) < u64::from(u32::MAX));
    written.iter().map(data).sum()
}
