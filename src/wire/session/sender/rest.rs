//! What an attempt leaves to the next one. Pure.

use std::collections::BTreeMap;

use crate::chunk::{Content, Digest};
use crate::error::{Error, ErrorKind};
use crate::geometry::{ChunkIndex, ChunkRun};
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
    /// What the base held when the first of these was given: by now another image may have its
    /// name.
    base: Option<TableBuilder>,
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
        let unsettled = self.rest.take();
        let base = self.base.take().or(self.earlier_base).filter(|_| unsettled.is_none());
        let mut rest = unsettled.unwrap_or_default();
        rest.base = rest.base.or(base);
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
        if let (Some(base), Some(earlier)) = (&self.base, &rest.base) {
            self.base = Some(in_both(base, earlier));
        }
        self.earlier_base = rest.base;
        for (item, load) in rest.loads {
            if self.holds(&load) {
                self.events.push_back(SenderEvent::Written(item));
            } else if matches!(&load, Load::Same(runs) if !self.base_holds(runs)) {
                let gone = Error::new(ErrorKind::NotFound, "send chunks of a base that is gone");
                self.events.push_back(SenderEvent::Refused(item, gone));
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
        let same = |index, digest: Option<Digest>| self.held.digest(index) == Some(digest);
        let all = |runs: &[ChunkRun], is_held: &dyn Fn(ChunkIndex) -> bool| {
            runs.iter().flat_map(|run| run.iter()).all(is_held)
        };
        let base = |index| self.earlier_base.as_ref().and_then(|base| base.digest(index));
        match load {
            Load::Chunk(chunk) => same(chunk.index, Some(chunk.digest)),
            Load::Zeroes(runs) => all(runs, &|index| same(index, None)),
            Load::Same(runs) => {
                all(runs, &|index| base(index).is_some_and(|held| same(index, held)))
            }
        }
    }

    /// Whether the receiver has told that the base holds these chunks.
    pub(super) fn base_holds(&self, runs: &[ChunkRun]) -> bool {
        let told = |index| self.base.as_ref().is_some_and(|base| base.holds(index));
        runs.iter().flat_map(|run| run.iter()).all(told)
    }

    /// Held by the receiver and told by it.
    pub(super) fn held_table(&mut self) -> TableBuilder {
        std::mem::replace(&mut self.held, TableBuilder::new(self.geometry))
    }
}

/// What two bases have alike.
fn in_both(one: &TableBuilder, other: &TableBuilder) -> TableBuilder {
    let mut both = TableBuilder::new(one.geometry());
    for index in one.geometry().chunks().iter() {
        let Some(found) = one.digest(index).filter(|found| other.digest(index) == Some(*found))
        else {
            continue;
        };
        let content = match found {
            Some(digest) => Content::Data { digest, data_bytes: 0 },
            None => Content::Zero,
        };
        both.put(ChunkRun::new(index, 1), content);
    }
    both
}

const LOST_RUNS_MAX: usize = 4096;
