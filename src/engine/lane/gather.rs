//! Neighbouring bytes that were read and hashed, gathered so that they are written in one go.

use std::ops::Range;

use tokio::time::Instant;

use crate::engine::progress::Counters;
use crate::error::{Error, Result};
use crate::geometry::{ByteRange, to_u64};
use crate::job::Stall;
use crate::region::{CELL_BYTES, ChunkSealer};
use crate::sabotage;
use crate::seal::is_zero;

use super::writer::Writer;

/// Zeros among data are skipped in blocks of this many bytes.
const BLOCK_BYTES: usize = 64 << 10;
const _: () = assert!(BLOCK_BYTES == CELL_BYTES, "zeros are left out cell by cell");

/// Where a strip's bytes go.
#[derive(Debug)]
pub(super) struct Sink<'a> {
    /// `None`: nothing is to be written.
    pub(super) writer: Option<&'a Writer>,
    /// The target shares its bytes with the source.
    pub(super) is_shared: bool,
    pub(super) counters: &'a Counters,
    /// Where it is, for messages.
    pub(super) place: &'a str,
    /// The target reads as zeros wherever nothing was written.
    pub(super) blank: bool,
}

/// Bytes in a thread's window that are to be written next. They must be flushed before the window
/// is given up, and before anybody is told that they are written.
#[derive(Debug)]
pub(super) struct Gather<'a> {
    sink: Sink<'a>,
    window: &'a mut [u8],
    /// Which bytes of the window wait, and where in the image they belong.
    start: usize,
    len: usize,
    offset: u64,
    /// From the first to the last byte written in this turn.
    written: Option<ByteRange>,
    room: &'a mut Room,
}

/// Encrypts what a chunk of an encrypted target keeps, cell by cell.
pub(super) struct Sealing<'a> {
    pub(super) sealer: &'a mut ChunkSealer,
    /// The cell of the chunk with which the bytes begin.
    pub(super) first: usize,
}

/// What a strip has reserved, and what of that proved to be zero.
#[derive(Debug, Default)]
pub(super) struct Room {
    reserved_end: u64,
    zeros: Vec<ByteRange>,
}

impl<'a> Gather<'a> {
    pub(super) fn new(sink: Sink<'a>, window: &'a mut [u8], room: &'a mut Room) -> Self {
        Self { sink, window, start: 0, len: 0, offset: 0, written: None, room }
    }

    /// Free space for the next `len` bytes, behind those that wait.
    pub(super) fn space(&mut self, len: usize) -> &mut [u8] {
        let end = self.start + self.len;
        debug_assert!(end + len <= self.window.len(), "flushed too late");
        &mut self.window[end..end + len]
    }

    /// Makes sure that there is space for `len` more bytes. `data_end`: up to there the source has
    /// data without a hole.
    pub(super) fn make_space(&mut self, len: usize, data_end: u64) -> Result<()> {
        let block_bytes = self.sink.writer.map_or(self.window.len(), Writer::block_bytes);
        let full = self.start + self.len + len > self.window.len() || self.len + len > block_bytes;
        if full && self.len > 0 {
            self.flush(data_end)?;
        }
        if self.len == 0 {
            self.start = 0;
        }
        Ok(())
    }

    /// Keeps the bytes last put into `space`, which belong at `offset`; returns how many of them
    /// are data. Where the target is blank, blocks of zeros among them are left out.
    pub(super) fn keep(
        &mut self,
        offset: u64,
        len: usize,
        data_end: u64,
        mut sealing: Option<Sealing<'_>>,
    ) -> Result<u32> {
        let from = self.start + self.len;
        let mut kept = 0;
        let mut at = 0;
        while at < len {
            let block = BLOCK_BYTES.min(len - at);
            let bytes = from + at..from + at + block;
            if self.sink.blank && is_zero(&self.window[bytes.clone()]) {
                self.skip(ByteRange::new(offset + to_u64(at), to_u64(block)), data_end)?;
            } else {
                kept += u32::try_from(block).unwrap_or(u32::MAX);
                if let Some(Sealing { sealer, first }) = &mut sealing {
                    let began = Instant::now();
                    let sealed = sealer
                        .seal_cell(*first + at / BLOCK_BYTES, &mut self.window[bytes.clone()]);
                    sealed.map_err(|error| self.at(error, offset + to_u64(at)))?;
                    self.sink.counters.stalled(Stall::Seal, began.elapsed());
                }
                self.take(offset + to_u64(at), bytes, data_end)?;
            }
            at += block;
        }
        Ok(kept)
    }

    fn take(&mut self, offset: u64, bytes: Range<usize>, data_end: u64) -> Result<()> {
        if self.sink.writer.is_none() {
            if self.sink.is_shared {
                Counters::add(&self.sink.counters.reused_bytes, to_u64(bytes.len()));
            }
            return Ok(());
        }
        // Neighbours in the window need not be neighbours in the image: zeros may lie between them.
        let follows = self.offset + to_u64(self.len) == offset || sabotage::is("D5");
        if self.len > 0 && !follows {
            self.flush(data_end)?;
        }
        if self.len == 0 {
            (self.start, self.offset) = (bytes.start, offset);
        }
        debug_assert_eq!(self.start + self.len, bytes.start, "a gap among what waits");
        self.len += bytes.len();
        Ok(())
    }

    /// A range that is zero and that a blank target need not be told of.
    pub(super) fn skip(&mut self, range: ByteRange, data_end: u64) -> Result<()> {
        self.flush(data_end)?;
        if range.offset < self.room.reserved_end {
            match self.room.zeros.last_mut() {
                Some(last) if last.end() == range.offset => last.len += range.len,
                _ => self.room.zeros.push(range),
            }
        }
        Ok(())
    }

    /// Zeros that must be written, because the target may hold something else there.
    pub(super) fn write_zeroes(&mut self, range: ByteRange) -> Result<()> {
        // Order: that of the image, so that all before what waits is written.
        self.flush(range.offset)?;
        let Some(writer) = self.sink.writer else { return Ok(()) };
        let began = Instant::now();
        let written = writer.write_zeroes(range);
        self.sink.counters.stalled(Stall::Write, began.elapsed());
        written.map_err(|error| self.at(error, range.offset))
    }

    /// Where in the image the first byte that waits belongs; all before it is written.
    pub(super) fn waiting_from(&self) -> Option<u64> {
        (self.len > 0).then_some(self.offset)
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self, data_end: u64) -> Result<()> {
        let Some(writer) = self.sink.writer.filter(|_| self.len > 0) else { return Ok(()) };
        let began = Instant::now();
        let bytes = &self.window[self.start..self.start + self.len];
        let range = ByteRange::new(self.offset, to_u64(bytes.len()));
        if self.sink.blank && writer.gains_by_reserving() {
            self.room.reserve(writer, range, data_end);
        }
        let written = writer.write(range.offset, bytes);
        self.sink.counters.stalled(Stall::Write, began.elapsed());
        if !sabotage::is("M16") {
            written.map_err(|error| self.at(error, range.offset))?;
        }
        Counters::add(&self.sink.counters.written_bytes, range.len);
        // What has just been read behind these bytes stays where it is.
        (self.start, self.len) = (self.start + self.len, 0);
        let from = self.written.map_or(range.offset, |written| written.offset);
        self.written = Some(ByteRange::new(from, range.end() - from));
        Ok(())
    }

    /// Ends a turn of work: everything is written, and room that was reserved for nothing is given
    /// back.
    pub(super) fn finish(mut self) -> Result<()> {
        self.flush(0)?;
        let Some(writer) = self.sink.writer else { return Ok(()) };
        let began = Instant::now();
        if let Some(range) = self.written.filter(|range| !range.is_empty()) {
            writer.send_on(range);
        }
        for range in std::mem::take(&mut self.room.zeros) {
            let given = writer.give_back(range);
            given.map_err(|error| self.at(error, range.offset))?;
        }
        self.sink.counters.stalled(Stall::Write, began.elapsed());
        Ok(())
    }

    fn at(&self, error: Error, offset: u64) -> Error {
        error.at(self.sink.place, offset)
    }
}

impl Room {
    /// Reserves room from a range that is about to be written to the end of the data around it, in
    /// one piece: one call to the file system, and extents that are whole.
    fn reserve(&mut self, writer: &Writer, range: ByteRange, data_end: u64) {
        if range.end() <= self.reserved_end {
            return;
        }
        let (from, end) = (range.offset.max(self.reserved_end), data_end.max(range.end()));
        // Where it fails, as on a full disk, the write itself tells what is wrong, if anything is.
        if writer.reserve(ByteRange::new(from, end - from)).is_ok() {
            self.reserved_end = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::disk::Dir;
    use crate::engine::pool::{Scratch, WINDOW_BYTES};
    use crate::geometry::to_usize;
    use crate::region::LocalFile;

    const KIB: u64 = 1 << 10;

    /// Whoever calls it may leave out what it knows to be there already.
    #[test]
    fn neighbours_in_the_window_that_are_none_in_the_image_are_not_joined() {
        let temp = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let dir = Dir::open_path(temp.path()).unwrap();
        let file = Arc::new(dir.create_file("f", 0o600).unwrap());
        let writer = Writer::new(LocalFile::of(file.clone()).unwrap(), 1);
        let (counters, mut room, mut scratch) =
            (Counters::default(), Room::default(), Scratch::new());
        let sink = Sink {
            writer: Some(&writer),
            is_shared: false,
            counters: &counters,
            place: "f",
            blank: true,
        };
        let mut gather = Gather::new(sink, scratch.window(), &mut room);
        for (fill, offset) in [(1, 0), (2, 64 * KIB)] {
            gather.make_space(4096, 0).unwrap();
            gather.space(4096).fill(fill);
            gather.keep(offset, 4096, 0, None).unwrap();
        }
        gather.finish().unwrap();
        let mut back = vec![9; to_usize(68 * KIB)];
        assert_eq!(file.read_at(0, &mut back).unwrap(), back.len());
        let wrong = back.iter().enumerate().find(|&(at, byte)| {
            *byte != if at < 4096 { 1 } else { 2 * u8::from(at >= to_usize(64 * KIB)) }
        });
        assert_eq!(wrong, None);
    }

    /// A target that held something before: every byte must end up where it belongs.
    #[test]
    fn bytes_with_zeros_between_them_keep_their_places_on_a_target_that_is_not_blank() {
        for gaps_are_written_first in [true, false] {
            let temp = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
            let dir = Dir::open_path(temp.path()).unwrap();
            let file = Arc::new(dir.create_file("f", 0o600).unwrap());
            let mut naive = vec![0xaa; WINDOW_BYTES];
            file.write_at(0, &naive).unwrap();
            let writer = Writer::new(LocalFile::of(file.clone()).unwrap(), 1);
            let (counters, mut room, mut scratch) =
                (Counters::default(), Room::default(), Scratch::new());
            let sink = Sink {
                writer: Some(&writer),
                is_shared: false,
                counters: &counters,
                place: "f",
                blank: false,
            };
            let mut gather = Gather::new(sink, scratch.window(), &mut room);
            // Data, then zeros, in turns; what is left between was not touched.
            for (n, offset) in [0, 128, 192, 320, 324, 512].map(|kib| kib * KIB).iter().enumerate()
            {
                let (fill, len) = (u8::try_from(n).unwrap() + 1, 4 * KIB);
                let zeros = ByteRange::new(offset + len, 32 * KIB);
                gather.make_space(to_usize(len), 0).unwrap();
                gather.space(to_usize(len)).fill(fill);
                if gaps_are_written_first {
                    gather.write_zeroes(zeros).unwrap();
                }
                assert_eq!(u64::from(gather.keep(*offset, to_usize(len), 0, None).unwrap()), len);
                if !gaps_are_written_first && n != 3 {
                    gather.write_zeroes(zeros).unwrap();
                }
                if gaps_are_written_first || n != 3 {
                    naive[to_usize(zeros.offset)..to_usize(zeros.end())].fill(0);
                }
                naive[to_usize(*offset)..to_usize(offset + len)].fill(fill);
            }
            gather.finish().unwrap();
            let mut back = vec![0; WINDOW_BYTES];
            assert_eq!(file.read_at(0, &mut back).unwrap(), WINDOW_BYTES);
            assert!(back == naive, "gaps first: {gaps_are_written_first}");
        }
    }
}
