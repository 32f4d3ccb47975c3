//! A block device in the hands of its owner: written in place, committed by a record, undone by
//! zeros.

use std::sync::Arc;

use crate::disk::File;
use crate::error::Result;
use crate::geometry::ByteRange;
use crate::journal::{Journal, Prepared, Settlement, settle};
use crate::manifest::Manifest;
use crate::region::journals::Stage;
use crate::region::stage::{Held, JournaledTarget, Owned};
use crate::region::{Outcome, Restored, Target};

use super::{clean_up, found};

/// A device in the hands of its owner.
#[derive(Debug)]
pub(super) struct DeviceStage {
    stage: Stage,
    held: Held,
}

impl DeviceStage {
    pub(super) fn new(stage: Stage, journal: Journal, device: File, restored: Restored) -> Self {
        Self { stage, held: Held::new(device, journal, restored) }
    }

    pub(super) fn into_target(self, location: String) -> Result<Arc<dyn Target>> {
        JournaledTarget::of(self, location)
    }
}

impl Owned for DeviceStage {
    fn held(&self) -> &Held {
        &self.held
    }

    fn write_zeroes(&self, range: ByteRange) -> Result<()> {
        self.held.data.write_zeroes(range)
    }

    fn prepare(&self, manifest: &Manifest) -> Result<()> {
        self.held.data.sync_all()?;
        let facts = self.held.data.facts()?;
        let root = manifest.root();
        let (device, inode) = (facts.device, facts.inode);
        self.held.journal.append_prepared(Prepared { device, inode, root })
    }

    fn try_publish(&self) -> Result<Option<Outcome>> {
        let Some(decision) = self.held.journal.try_decide()? else { return Ok(None) };
        match settle(found(&self.held.journal)?) {
            Settlement::FinishCommit => {}
            Settlement::FinishCancel => {
                decision.cancel()?;
                return Ok(Some(Outcome::Cancelled));
            }
            Settlement::Keep | Settlement::Lost | Settlement::Forget => {
                // The decision: every byte is durable, and this record says so for good.
                self.held.journal.append_done(&decision)?;
            }
        }
        Ok(Some(Outcome::Committed))
    }

    fn finish(&self) -> Result<()> {
        self.stage.remove()
    }

    fn try_discard(&self) -> Result<Option<Outcome>> {
        if !self.held.journal.is_still_in(&self.stage.dir)? {
            let committed = self.held.journal.is_done();
            return Ok(Some(if committed { Outcome::Committed } else { Outcome::Cancelled }));
        }
        let Some(decision) = self.held.journal.try_decide()? else { return Ok(None) };
        match settle(found(&self.held.journal)?) {
            Settlement::FinishCommit => return Ok(Some(Outcome::Committed)),
            // Order: durable before it is acted on; who wrote it may have died before its sync.
            Settlement::FinishCancel | Settlement::Keep | Settlement::Lost | Settlement::Forget => {
                decision.cancel()?;
            }
        }
        drop(decision);
        clean_up(&self.stage, &self.held.journal, &self.held.data)?;
        Ok(Some(Outcome::Cancelled))
    }
}
