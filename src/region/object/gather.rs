//! From a listing of what a job has written to what a resume need not write again. Pure.

use std::collections::BTreeSet;

use crate::chunk::{Content, Digest, Durable};
use crate::error::Result;
use crate::geometry::{ChunkIndex, ChunkRun, Geometry, to_usize};
use crate::region::Restored;

use super::image::{Epochs, SALT_LEN, Salt, Writes};

/// Which attempt has written each chunk, as far as one is known; in 4 bytes a chunk, untouched
/// where nothing was written. Of an encrypted image also with which salt, in 24 more.
#[derive(Debug)]
pub(crate) struct Whereabouts {
    epochs: Vec<u32>,
    salts: Vec<Salt>,
}

impl Whereabouts {
    pub(crate) fn new(geometry: Geometry, encrypted: bool) -> Self {
        // Zero pages: they take no memory until they are written.
        let count = to_usize(u64::from(geometry.chunk_count()));
        let salts = vec![[0; SALT_LEN]; if encrypted { count } else { 0 }];
        Self { epochs: vec![0; count], salts }
    }

    /// The attempt; `None`: the chunk is zero, or not written yet.
    pub(crate) fn of(&self, index: ChunkIndex) -> Option<u32> {
        self.epochs.get(index.slot()).copied().filter(|epoch| *epoch != 0)
    }

    /// Notes the attempt; `None`: its bytes, if there are any, are not the chunk's any more.
    pub(crate) fn set(&mut self, index: ChunkIndex, epoch: Option<u32>) {
        if let Some(slot) = self.epochs.get_mut(index.slot())
            && *slot != epoch.unwrap_or(0)
        {
            *slot = epoch.unwrap_or(0);
        }
    }

    /// The attempt that has written the chunk of an encrypted image, and the salt of that write.
    pub(crate) fn write_of(&self, index: ChunkIndex) -> Option<(u32, Salt)> {
        Some((self.of(index)?, *self.salts.get(index.slot())?))
    }

    /// Notes a write of a chunk of an encrypted image.
    pub(crate) fn set_write(&mut self, index: ChunkIndex, epoch: u32, salt: Salt) {
        self.set(index, Some(epoch));
        if let Some(slot) = self.salts.get_mut(index.slot()) {
            *slot = salt;
        }
    }

    /// The same as [`Self::epochs`] for an encrypted image.
    pub(crate) fn writes(&self, data: impl Iterator<Item = ChunkIndex>) -> Option<Writes> {
        let mut writes = Writes::default();
        for index in data {
            let (epoch, salt) = self.write_of(index)?;
            writes.push(index, epoch, salt);
        }
        Some(writes)
    }

    /// As they stand in a manifest, for the chunks of data there; `None` when one is missing.
    pub(crate) fn epochs(&self, data: impl Iterator<Item = ChunkIndex>) -> Option<Epochs> {
        let mut epochs = Epochs::default();
        for index in data {
            epochs.push(index, self.of(index)?);
        }
        Some(epochs)
    }
}

/// Takes in what a store lists of a job, in any order.
///
/// The latest attempt that says something of a chunk is right: it began when the earlier ones were
/// fenced, and it writes a chunk only when it does not trust what they left. An attempt that says
/// two things of a chunk says nothing: it is copied again.
#[derive(Debug)]
pub(crate) struct Gathered {
    geometry: Geometry,
    restored: Restored,
    whereabouts: Whereabouts,
    /// The attempt that last said something of a chunk, whatever it was.
    heard: Vec<u32>,
    doubtful: BTreeSet<u32>,
}

impl Gathered {
    pub(crate) fn new(geometry: Geometry, encrypted: bool) -> Self {
        Self {
            geometry,
            restored: Restored::new(geometry),
            whereabouts: Whereabouts::new(geometry, encrypted),
            heard: vec![0; to_usize(u64::from(geometry.chunk_count()))],
            doubtful: BTreeSet::new(),
        }
    }

    /// An object that holds a chunk, `len` bytes as stored. One of an impossible length is passed
    /// over.
    pub(crate) fn chunk(&mut self, epoch: u32, index: ChunkIndex, digest: Digest, len: u64) {
        self.found(epoch, index, digest, len, None);
    }

    /// The same of an encrypted image: `len` bytes without what encryption adds, and the salt of
    /// the write.
    pub(crate) fn sealed(
        &mut self,
        epoch: u32,
        index: ChunkIndex,
        digest: Digest,
        len: u64,
        salt: Salt,
    ) {
        self.found(epoch, index, digest, len, Some(salt));
    }

    fn found(
        &mut self,
        epoch: u32,
        index: ChunkIndex,
        digest: Digest,
        len: u64,
        salt: Option<Salt>,
    ) {
        let run = ChunkRun::new(index, 1);
        if !self.geometry.holds(run) || len == 0 || len > self.geometry.range(index).len {
            return;
        }
        let bytes = u32::try_from(self.geometry.range(index).len).unwrap_or(u32::MAX);
        let taken = self.says(epoch, run, Content::Data { digest, data_bytes: bytes });
        if let (true, Some(salt)) = (taken, salt) {
            self.whereabouts.set_write(index, epoch, salt);
        }
    }

    /// A run of chunks that are on record as zeros.
    pub(crate) fn zeros(&mut self, epoch: u32, run: ChunkRun) {
        for index in run.iter() {
            self.says(epoch, ChunkRun::new(index, 1), Content::Zero);
        }
    }

    /// Whether that is what is known of the chunk now.
    fn says(&mut self, epoch: u32, run: ChunkRun, content: Content) -> bool {
        let index = run.first;
        let Some(heard) = self.heard.get_mut(index.slot()) else { return false };
        if epoch == 0 || epoch < *heard {
            return false;
        }
        let said = match content {
            Content::Zero => None,
            Content::Data { digest, .. } => Some(digest),
        };
        let contradicted = epoch == *heard && self.restored.table.digest(index) != Some(said);
        if contradicted {
            self.doubtful.insert(index.get());
            return false;
        }
        if epoch > *heard {
            self.doubtful.remove(&index.get());
        }
        *heard = epoch;
        self.restored.table.put(run, content);
        self.whereabouts.set(index, said.map(|_| epoch));
        true
    }

    /// What need not be written again, and which attempt has written it.
    pub(crate) fn finish(mut self) -> Result<(Restored, Whereabouts)> {
        let geometry = self.geometry;
        // What is doubtful cannot be taken out of a table: then it is filled anew without it.
        let mut sure = match self.doubtful.is_empty() {
            true => None,
            false => Some(Restored::new(geometry)),
        };
        let mut data_bytes = 0;
        for index in geometry.chunks().iter() {
            if self.doubtful.contains(&index.get()) {
                self.whereabouts.set(index, None);
                continue;
            }
            let Some(said) = self.restored.table.digest(index) else { continue };
            let len = said.map_or(0, |_| geometry.range(index).len);
            data_bytes += len;
            if let Some(sure) = &mut sure {
                let data_bytes = u32::try_from(len).unwrap_or(u32::MAX);
                let content =
                    said.map_or(Content::Zero, |digest| Content::Data { digest, data_bytes });
                sure.record(&Durable::recorded(ChunkRun::new(index, 1), content))?;
            }
        }
        let mut restored = sure.unwrap_or(self.restored);
        restored.data_bytes = data_bytes;
        Ok((restored, self.whereabouts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ChunkSize;

    const CHUNK: u64 = 64 << 10;

    fn geometry() -> Geometry {
        Geometry::new(4 * CHUNK + 9, ChunkSize::MIN).unwrap()
    }

    fn digest(seed: u8) -> Digest {
        Digest::from_bytes([seed; 32])
    }

    fn at(index: u32) -> ChunkIndex {
        ChunkIndex::new(index)
    }

    fn gathered(tell: impl FnOnce(&mut Gathered)) -> Vec<Option<(Option<u8>, Option<u32>)>> {
        let mut gathered = Gathered::new(geometry(), false);
        tell(&mut gathered);
        let (restored, whereabouts) = gathered.finish().unwrap();
        let told = |index: ChunkIndex| {
            let said = restored.table.digest(index)?;
            Some((said.map(|digest| digest.as_bytes()[0]), whereabouts.of(index)))
        };
        geometry().chunks().iter().map(told).collect()
    }

    #[test]
    fn what_is_listed_is_there_and_nothing_else() {
        let told = gathered(|gathered| {
            gathered.chunk(1, at(0), digest(5), CHUNK);
            gathered.chunk(1, at(4), digest(6), 9);
            gathered.zeros(1, ChunkRun::new(at(2), 2));
        });
        let (five, six) = (Some((Some(5), Some(1))), Some((Some(6), Some(1))));
        assert_eq!(told, [five, None, Some((None, None)), Some((None, None)), six]);
    }

    #[test]
    fn bytes_of_data_are_counted_as_they_are_in_the_image() {
        let mut gathered = Gathered::new(geometry(), false);
        gathered.chunk(1, at(0), digest(5), 17);
        gathered.chunk(2, at(0), digest(5), 17);
        gathered.chunk(1, at(4), digest(6), 9);
        let (restored, _) = gathered.finish().unwrap();
        assert_eq!(restored.data_bytes, CHUNK + 9);
    }

    #[test]
    fn impossible_objects_are_passed_over() {
        let told = gathered(|gathered| {
            gathered.chunk(1, at(0), digest(1), 0);
            gathered.chunk(1, at(1), digest(1), CHUNK + 1);
            gathered.chunk(1, at(4), digest(1), 10);
            gathered.chunk(1, at(5), digest(1), 1);
            gathered.chunk(0, at(3), digest(1), 1);
        });
        assert_eq!(told, [None; 5]);
    }

    #[test]
    fn the_latest_attempt_is_right_in_whatever_order_they_come() {
        type Said = fn(&mut Gathered);
        let one: Said = |gathered| gathered.chunk(1, at(0), digest(1), CHUNK);
        let two: Said = |gathered| gathered.chunk(2, at(0), digest(2), CHUNK);
        let three: Said = |gathered| gathered.zeros(3, ChunkRun::new(at(0), 1));
        for order in [[one, two], [two, one]] {
            let told = gathered(|gathered| order.iter().for_each(|say| say(gathered)));
            assert_eq!(told[0], Some((Some(2), Some(2))));
        }
        for order in [[one, two, three], [three, two, one], [two, three, one]] {
            let told = gathered(|gathered| order.iter().for_each(|say| say(gathered)));
            assert_eq!(told[0], Some((None, None)));
        }
    }

    #[test]
    fn an_attempt_that_says_two_things_says_nothing_until_a_later_one_speaks() {
        let two = |gathered: &mut Gathered| {
            gathered.chunk(2, at(0), digest(1), CHUNK);
            gathered.chunk(2, at(0), digest(2), CHUNK);
        };
        let early = |gathered: &mut Gathered| gathered.chunk(1, at(0), digest(3), CHUNK);
        let late = |gathered: &mut Gathered| gathered.chunk(3, at(0), digest(4), CHUNK);
        assert_eq!(gathered(two)[0], None);
        assert_eq!(gathered(|g| (two(g), early(g)).1)[0], None, "an earlier one has no say");
        assert_eq!(gathered(|g| (early(g), two(g)).1)[0], None);
        assert_eq!(gathered(|g| (two(g), late(g)).1)[0], Some((Some(4), Some(3))));
        assert_eq!(gathered(|g| (late(g), two(g)).1)[0], Some((Some(4), Some(3))));
        let zero = |gathered: &mut Gathered| {
            gathered.chunk(2, at(0), digest(1), CHUNK);
            gathered.zeros(2, ChunkRun::new(at(0), 1));
        };
        assert_eq!(gathered(zero)[0], None, "zeros over data: which came last is not known");
    }

    #[test]
    fn a_manifest_is_told_who_wrote_what_or_that_something_is_missing() {
        let mut whereabouts = Whereabouts::new(geometry(), false);
        whereabouts.set(at(1), Some(2));
        whereabouts.set(at(3), Some(1));
        let epochs = whereabouts.epochs([at(1), at(3)].into_iter()).unwrap();
        assert_eq!((epochs.of(at(1)), epochs.of(at(3))), (Some(2), Some(1)));
        assert!(whereabouts.epochs([at(1), at(2)].into_iter()).is_none());
        whereabouts.set(at(1), None);
        assert_eq!(whereabouts.of(at(1)), None);
    }
}
