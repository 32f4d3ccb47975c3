//! What damage to a journal does: it is refused or costs the last record, and invents no chunk.

use std::fs;
use std::path::{Path, PathBuf};

use blockferry::chunk::{Digest, Durable};
use blockferry::error::{ErrorKind, Result};
use blockferry::geometry::{ChunkIndex, ChunkRun, ChunkSize, Geometry};
use blockferry::id::JobId;
use blockferry::job::{Endpoint, Fingerprint, JobSpec};
use blockferry::region::{DirRegion, Region, Settled};
use blockferry::seal::{Seal, seal};

use crate::places::below;

const CHUNKS: u32 = 6;
/// Where the journal's log begins, as its format says.
const LOG_AT: usize = 48 << 10;
const SECTOR: usize = 512;

type Table = Vec<Option<Option<Digest>>>;

/// A job that is staged, with a record for each of its chunks, and nobody to run it.
struct Staged {
    temp: tempfile::TempDir,
    spec: JobSpec,
    journal: Vec<u8>,
    /// What a resume restored when nothing was damaged.
    whole: Table,
}

impl Staged {
    async fn new(number: u8) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let geometry = Geometry::new(u64::from(CHUNKS) << 16, ChunkSize::MIN).unwrap();
        let spec = JobSpec::new(
            JobId::from_bytes([number; 16]),
            Endpoint::new("source".parse().unwrap(), "image".parse().unwrap()),
            Endpoint::new("target".parse().unwrap(), "image".parse().unwrap()),
            geometry,
            Fingerprint::new().with("size", geometry.image_bytes()),
        );
        let mut staged = Self { temp, spec, journal: Vec::new(), whole: Table::new() };
        let target = staged.region().stage(&staged.spec).await.unwrap();
        target.begin().await.unwrap();
        for index in geometry.chunks().iter() {
            let byte = u8::try_from(index.get()).unwrap();
            let bytes = vec![if byte == 3 { 0 } else { byte + 1 }; 64 << 10];
            let written = match seal(geometry, index, bytes.into()) {
                Seal::Data(chunk) => target.write(chunk).await,
                Seal::Zero(index) => target.write_zeroes(ChunkRun::new(index, 1)).await,
            }
            .unwrap();
            target.sync().await.unwrap();
            let durable = Durable::recorded(written.run(), written.content());
            target.checkpoint(&[durable]).await.unwrap();
        }
        drop(target);
        staged.journal = fs::read(staged.journal_path()).unwrap();
        staged.whole = staged.resume().await.unwrap();
        assert!(staged.whole.iter().all(Option::is_some));
        staged.restore();
        staged
    }

    fn region(&self) -> DirRegion {
        DirRegion::open_root(self.temp.path()).unwrap()
    }

    fn journal_path(&self) -> PathBuf {
        self.temp.path().join(".blockferry/stage").join(self.spec.job.to_string()).join("journal")
    }

    /// Puts the journal in place as it was.
    fn restore(&self) {
        fs::write(self.journal_path(), &self.journal).unwrap();
    }

    async fn resume(&self) -> Result<Table> {
        let target = self.region().stage(&self.spec).await?;
        let restored = target.begin().await?;
        let chunks = self.spec.geometry.chunks();
        Ok(chunks.iter().map(|index| restored.table.digest(index)).collect())
    }

    /// Where the last record begins, and where it ends.
    fn last_record(&self) -> (usize, usize) {
        let used = self.journal.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let end = used.next_multiple_of(SECTOR);
        (end - SECTOR, end)
    }

    /// What was restored is a prefix of what was recorded; tells its length.
    fn prefix(&self, table: &Table) -> usize {
        let len = table.iter().take_while(|held| held.is_some()).count();
        assert_eq!(table[..len], self.whole[..len], "what is restored was recorded");
        assert!(table[len..].iter().all(Option::is_none), "nothing is restored past a gap");
        len
    }
}

#[tokio::test]
async fn a_flip_of_any_byte_is_refused_or_costs_the_last_record() {
    let staged = Staged::new(1).await;
    let header = staged.journal[..32 << 10].iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let (last, end) = staged.last_record();
    assert!(LOG_AT < last, "there is more than one record");
    for at in (0..header.next_multiple_of(SECTOR)).chain(LOG_AT..end) {
        let mut journal = staged.journal.clone();
        journal[at] ^= 0x40;
        fs::write(staged.journal_path(), &journal).unwrap();
        match staged.resume().await {
            Ok(table) => {
                assert!(at >= last, "a flip at {at} went unseen");
                assert_eq!(staged.prefix(&table), 5, "a flip at {at} costs the last record");
            }
            Err(error) => {
                let refused = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported);
                assert!(refused, "flip at {at}: {}", error.report());
                let left = fs::read(staged.journal_path()).unwrap();
                assert!(left == journal, "a journal that is refused is not changed");
            }
        }
        // A resume appends, and makes blank what it was not told of: both do not matter here.
        staged.restore();
    }
}

#[tokio::test]
async fn a_journal_cut_anywhere_gives_a_prefix_or_is_refused() {
    let staged = Staged::new(1).await;
    let (_, end) = staged.last_record();
    let cuts = (0..=end).step_by(SECTOR).flat_map(|at| [at.saturating_sub(1), at, at + 1]);
    for len in cuts {
        fs::write(staged.journal_path(), &staged.journal[..len]).unwrap();
        match staged.resume().await {
            Ok(table) => {
                let attempt_and_whole = len.saturating_sub(LOG_AT) / SECTOR;
                // A record whose padding was cut off is whole, as past the end are zeros.
                let most = len.saturating_sub(LOG_AT).div_ceil(SECTOR).saturating_sub(1);
                let held = staged.prefix(&table);
                let least = attempt_and_whole.saturating_sub(1);
                assert!((least..=most).contains(&held), "cut to {len}: {held} chunks");
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "cut to {len}: {}", error.report());
                assert!(len < LOG_AT, "only without its header a cut journal is refused: {len}");
            }
        }
    }
}

#[tokio::test]
async fn a_foreign_journal_is_refused_and_nothing_is_changed() {
    let (staged, other) = (Staged::new(1).await, Staged::new(2).await);
    fs::write(staged.journal_path(), &other.journal).unwrap();
    let before = picture(staged.temp.path());
    let error = staged.resume().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.report());
    let region = staged.region();
    assert_eq!(region.recover(None).await.unwrap().len(), 1);
    assert!(region.job(staged.spec.job).await.unwrap().is_none());
    assert!(region.job(other.spec.job).await.unwrap().is_none());
    assert!(picture(staged.temp.path()) == before, "nothing is changed");
    staged.restore();
    assert_eq!(staged.resume().await.unwrap(), staged.whole, "and nothing is lost");
}

#[tokio::test]
async fn a_file_that_was_never_a_journal_is_not_swept_away() {
    let staged = Staged::new(1).await;
    fs::write(staged.journal_path(), b"notes of mine").unwrap();
    for entry in fs::read_dir(staged.journal_path().with_file_name("image")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let before = picture(staged.temp.path());
    let found = staged.region().recover(None).await.unwrap();
    assert!(matches!(&found[0].settled, Settled::Failed(e) if e.kind() == ErrorKind::Corrupt));
    assert!(picture(staged.temp.path()) == before, "nothing is changed");
}

#[tokio::test]
async fn a_record_of_another_job_is_not_taken_over() {
    let (staged, other) = (Staged::new(1).await, Staged::new(2).await);
    let (last, end) = staged.last_record();
    let mut journal = staged.journal.clone();
    journal[last..end].copy_from_slice(&other.journal[last..end]);
    fs::write(staged.journal_path(), &journal).unwrap();
    let table = staged.resume().await.unwrap();
    assert_eq!(staged.prefix(&table), 5);
    assert!(table[ChunkIndex::new(5).get() as usize].is_none());
}

/// Every file with its bytes.
fn picture(folder: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    below(folder).unwrap().into_iter().map(|path| (path.clone(), fs::read(path).ok())).collect()
}
