//! A peer that was let in: what it may do, how much it may take, and when it has to go.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::ChunkSize;
use crate::id::{ImageId, RegionName};
use crate::peer::{Grant, Identity, Lease, Operation, Policy, Seat};
use crate::pump::Socket;

use super::House;
use super::push::stopping;

/// A peer that was let in.
pub(super) struct Visitor {
    pub(super) house: Arc<House>,
    pub(super) policy: watch::Receiver<Policy>,
    pub(super) identity: Identity,
    pub(super) seat: Seat,
    pub(super) socket: Socket,
    /// It has to go: the daemon stops, or the policy does not name it any more.
    pub(super) closing: CancellationToken,
}

impl Visitor {
    /// Waits until the policy no longer names it, and then has it go.
    pub(super) async fn watch(&self) {
        let mut policy = self.policy.clone();
        loop {
            if policy.borrow_and_update().ceilings(&self.identity).is_err() {
                self.closing.cancel();
            }
            if policy.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Why it has to go.
    pub(super) fn parting(&self) -> Error {
        match self.policy.borrow().ceilings(&self.identity) {
            Err(error) if !self.house.closing.is_cancelled() => error,
            _ => stopping(),
        }
    }

    /// To which images of the region it may do that.
    pub(super) fn check(&self, operation: Operation, region: &RegionName) -> Result<Grant> {
        self.policy.borrow().check(&self.identity, operation, region, None)
    }

    /// To which images of the region it may do any of that.
    pub(super) fn check_any(&self, operations: &[Operation], region: &RegionName) -> Result<Grant> {
        self.policy.borrow().check_any(&self.identity, operations, region, None)
    }

    /// Whether it may do that to the image.
    pub(super) fn may(
        &self,
        operation: Operation,
        region: &RegionName,
        image: &ImageId,
    ) -> Result<()> {
        self.policy.borrow().check(&self.identity, operation, region, Some(image)).map(drop)
    }
}

/// Room for the bytes of one session, out of what its identity has: half of what is left, so that
/// the sessions that come after it find some, and at least for one chunk. Never waits.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a chunk that never fits; [`ErrorKind::Busy`], retryable, while
/// other sessions of that identity have it all.
pub(super) fn lease(visitor: &Visitor, chunk_size: ChunkSize) -> Result<Lease> {
    let (credits, chunk_bytes) = (visitor.seat.credits(), chunk_size.bytes());
    if chunk_bytes > credits.all_bytes() {
        let action = format!("take chunks of {chunk_size} from {}", visitor.identity);
        let all = credits.all_bytes();
        return Err(Error::new(ErrorKind::Unsupported, action).hint(format!(
            "its window is {all} bytes, by the policy or by its rate: choose a smaller chunk size"
        )));
    }
    let take = |bytes: u64| u32::try_from(bytes).ok().and_then(|bytes| credits.try_take(bytes));
    let half = (credits.free_bytes() / 2).min(u64::from(u32::MAX));
    let wanted = visitor.house.options.window_bytes.min(half).max(chunk_bytes);
    take(wanted).or_else(|| take(chunk_bytes)).ok_or_else(|| {
        let action = format!("give another session of {} room", visitor.identity);
        Error::new(ErrorKind::Busy, action).retryable(true)
    })
}
