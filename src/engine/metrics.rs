//! Counters for the daemon's own exporter: a stable snapshot, by region and by job.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use crate::engine::Inner;
use crate::engine::entry::Entry;
use crate::engine::progress::Moves;
use crate::id::{JobId, RegionName};
use crate::job::Progress;

/// What has happened since the engine was opened. Counters never go back.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Metrics {
    /// By region.
    pub regions: BTreeMap<RegionName, RegionMetrics>,
    /// Jobs that live in this engine now.
    pub jobs: BTreeMap<JobId, Progress>,
}

/// Counters of one region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegionMetrics {
    /// Bytes read from it.
    pub read_bytes: u64,
    /// Data bytes written to it.
    pub written_bytes: u64,
    /// Jobs to it that committed.
    pub committed: u64,
    /// Jobs to it that were cancelled and rolled back.
    pub rolled_back: u64,
    /// Jobs to it that failed, resumable or not.
    pub failed: u64,
    /// Moves of the jobs to it.
    pub moves: Moves,
}

impl Inner {
    pub(super) fn metrics(&self) -> Metrics {
        // Order: the living first, as in `retire`; both are held, or a job that comes to rest in
        // between would be counted twice or not at all.
        let living = self.live();
        let live: Vec<_> = living.values().cloned().collect();
        let mut regions: BTreeMap<_, _> = self
            .regions()
            .iter()
            .map(|(name, registered)| (name.clone(), registered.counts))
            .collect();
        for entry in &live {
            add_bytes(&mut regions, entry);
        }
        drop(living);
        let jobs = live.iter().map(|entry| (entry.spec.job, entry.refresh())).collect();
        Metrics { regions, jobs }
    }

    /// Counts an ending for the region that the job wrote to.
    pub(super) fn count(&self, entry: &Entry, count: impl FnOnce(&mut RegionMetrics)) {
        let mut regions = self.regions();
        if let Some(registered) = regions.get_mut(&entry.spec.target.region) {
            count(&mut registered.counts);
        }
    }

    /// Takes a job that has come to rest out of the living, and keeps its counters.
    pub(super) fn retire(&self, job: JobId) {
        let mut living = self.live();
        let Some(entry) = living.remove(&job) else { return };
        let mut regions = self.regions();
        let read = entry.counters.read_bytes.load(Relaxed);
        let written = entry.counters.written_bytes.load(Relaxed);
        if let Some(source) = regions.get_mut(&entry.spec.source.region) {
            source.counts.read_bytes += read;
        }
        if let Some(target) = regions.get_mut(&entry.spec.target.region) {
            target.counts.written_bytes += written;
            target.counts.moves.add(entry.counters.moves());
        }
    }
}

fn add_bytes(regions: &mut BTreeMap<RegionName, RegionMetrics>, entry: &Entry) {
    if let Some(source) = regions.get_mut(&entry.spec.source.region) {
        source.read_bytes += entry.counters.read_bytes.load(Relaxed);
    }
    if let Some(target) = regions.get_mut(&entry.spec.target.region) {
        target.written_bytes += entry.counters.written_bytes.load(Relaxed);
        target.moves.add(entry.counters.moves());
    }
}
