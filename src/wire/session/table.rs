//! A chunk table on its way, piece by piece, drawn up only as the connection takes it. Pure.

use crate::chunk::{Content, Digest};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun, Geometry};
use crate::manifest::{ChunkTable, TableBuilder};
use crate::wire::message::{DIGESTS_PER_PIECE_MAX, PIECE_RUNS_MAX, Piece, PieceRun};

/// What is to be told of a table, and how far that has come.
#[derive(Clone, Debug)]
pub(super) struct Telling {
    table: Told,
    next: u32,
}

#[derive(Clone, Debug)]
enum Told {
    Whole(ChunkTable),
    Part(TableBuilder),
}

impl Telling {
    pub(super) fn whole(table: ChunkTable) -> Self {
        Self { table: Told::Whole(table), next: 0 }
    }

    pub(super) fn part(table: TableBuilder) -> Self {
        Self { table: Told::Part(table), next: 0 }
    }

    fn geometry(&self) -> Geometry {
        match &self.table {
            Told::Whole(table) => table.geometry(),
            Told::Part(table) => table.geometry(),
        }
    }

    fn at(&self, index: u32) -> Option<Option<Digest>> {
        let index = ChunkIndex::new(index);
        match &self.table {
            Told::Whole(table) => Some(table.digest(index)),
            Told::Part(table) => table.digest(index),
        }
    }

    /// The next piece; `None` when all is told.
    pub(super) fn next_piece(&mut self) -> Option<Piece> {
        let chunk_count = self.geometry().chunk_count();
        let mut piece = Piece::default();
        let mut digest_count = 0;
        while self.next < chunk_count {
            let Some(content) = self.at(self.next) else {
                self.next += 1;
                continue;
            };
            let fits = piece.runs.len() < usize::from(PIECE_RUNS_MAX)
                && (content.is_none() || digest_count < DIGESTS_PER_PIECE_MAX);
            if !fits {
                break;
            }
            digest_count += u32::from(content.is_some());
            append(&mut piece.runs, ChunkIndex::new(self.next), content);
            self.next += 1;
        }
        (!piece.runs.is_empty()).then_some(piece)
    }
}

/// Lengthens the last run, or starts another.
fn append(runs: &mut Vec<PieceRun>, index: ChunkIndex, content: Option<Digest>) {
    let follows = runs.last().is_some_and(|last| last.run().end() == index.get());
    match (runs.last_mut().filter(|_| follows), content) {
        (Some(PieceRun::Zero(run)), None) => run.count += 1,
        (Some(PieceRun::Data { digests, .. }), Some(digest)) => digests.push(digest),
        (_, None) => runs.push(PieceRun::Zero(ChunkRun::new(index, 1))),
        (_, Some(digest)) => runs.push(PieceRun::Data { first: index, digests: vec![digest] }),
    }
}

/// Takes a piece into a table. Nothing may be told twice.
///
/// # Errors
/// [`ErrorKind::Invalid`] for chunks outside the image, or that were told before.
pub(super) fn take_piece(table: &mut TableBuilder, piece: &Piece) -> Result<()> {
    for told in &piece.runs {
        let run = told.run();
        if !table.geometry().holds(run) {
            return Err(Error::new(ErrorKind::Invalid, "take digests outside the image"));
        }
        if run.iter().any(|index| table.digest(index).is_some()) {
            return Err(Error::new(ErrorKind::Invalid, "take digests twice"));
        }
        match told {
            PieceRun::Zero(run) => table.put(*run, Content::Zero),
            PieceRun::Data { first, digests } => {
                for (index, digest) in (first.get()..).zip(digests) {
                    let run = ChunkRun::new(ChunkIndex::new(index), 1);
                    table.put(run, Content::Data { digest: *digest, data_bytes: 0 });
                }
            }
        }
    }
    Ok(())
}
