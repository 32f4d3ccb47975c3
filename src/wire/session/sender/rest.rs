//! What an attempt leaves to the next one. Pure.

use std::collections::BTreeMap;

use crate::chunk::Digest;
use crate::geometry::ChunkRun;
use crate::manifest::TableBuilder;

use super::super::chunks::ChunkSet;
use super::{Item, Load, Sender, SenderEvent};

/// What a closed sender still had in hand: give it to the sender of the next attempt.
#[derive(Debug, Default)]
pub struct Rest {
    /// Given and not acknowledged, with their bytes: no more than the credits were.
    loads: BTreeMap<Item, Load>,
    /// Acknowledged as written, and not as durable.
    written: Option<ChunkSet>,
    last_item: u64,
}

impl Rest {
    pub(super) fn last_item(&self) -> u64 {
        self.last_item
    }

    /// The items that were given and not acknowledged.
    pub fn items(&self) -> impl Iterator<Item = Item> {
        self.loads.keys().copied()
    }
}

impl Sender {
    /// What is left of a closed session. Items that the receiver turns out to hold are reported
    /// `Written` by the next sender, the others are sent again; syncs have to be asked for again.
    pub fn into_rest(mut self) -> Rest {
        let mut rest = self.rest.take().unwrap_or_default();
        for (_, flow) in self.links.iter_mut() {
            rest.loads.extend(std::mem::take(&mut flow.in_flight).into_values());
        }
        rest.loads.extend(self.queue);
        rest.written.get_or_insert(self.written);
        rest.last_item = self.last_item;
        rest
    }

    /// The receiver has told what it holds: what of the last attempt is left to do?
    pub(super) fn settle_rest(&mut self) {
        let Some(rest) = self.rest.take() else { return };
        for (item, load) in rest.loads {
            if self.holds(&load) {
                self.events.push_back(SenderEvent::Written(item));
            } else {
                self.queue.push_back((item, load));
            }
        }
        let Some(mut written) = rest.written else { return };
        let mut lost = ChunkSet::new(self.geometry.chunk_count());
        for run in std::iter::from_fn(|| written.take_runs(1).pop()) {
            for index in run.iter().filter(|index| self.held.digest(*index).is_none()) {
                lost.insert(ChunkRun::new(index, 1));
            }
        }
        for runs in std::iter::from_fn(|| Some(lost.take_runs(LOST_RUNS_MAX))) {
            if runs.is_empty() {
                break;
            }
            self.events.push_back(SenderEvent::Lost(runs));
        }
    }

    fn holds(&self, load: &Load) -> bool {
        let same = |run: &ChunkRun, digest: Option<Option<Digest>>| {
            run.iter().all(|index| match (self.held.digest(index), digest) {
                (Some(held), Some(digest)) => held == digest,
                (held, None) => held.is_some(),
                (None, _) => false,
            })
        };
        match load {
            Load::Chunk(chunk) => same(&ChunkRun::new(chunk.index, 1), Some(Some(chunk.digest))),
            Load::Zeroes(runs) => runs.iter().all(|run| same(run, Some(None))),
            // The base is immutable: what is held of it is the same still.
            Load::Same(runs) => runs.iter().all(|run| same(run, None)),
        }
    }

    /// Held by the receiver and told by it.
    pub(super) fn held_table(&mut self) -> TableBuilder {
        std::mem::replace(&mut self.held, TableBuilder::new(self.geometry))
    }
}

const LOST_RUNS_MAX: usize = 4096;
