//! Files and block devices: positioned reads and writes, room, extents, durability, and locks on
//! bytes.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};

use super::sys::{self, Fd};
use super::{Facts, FileSystem, Kind, io};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, to_u64, to_usize};

/// A byte of a file that stands for a right; see [`File::try_lock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LockByte(pub(crate) u64);

/// How long a child that was forked takes at most to begin its program.
const FORK_TIME: Duration = Duration::from_millis(100);

/// An open file or block device. Reads and writes name their offset; there is no position.
#[derive(Debug)]
pub(crate) struct File(Fd);

impl File {
    /// Opens a file or device for reading by the path that a person gave; symbolic links are
    /// followed.
    pub(crate) fn open_path(path: &Path) -> Result<Self> {
        let open = |flags: OFlags| {
            retry_on_intr(|| sys::open(path, OFlags::RDONLY | OFlags::NONBLOCK | flags))
        };
        // O_NOATIME leaves the source's times alone; only its owner may ask for it.
        open(OFlags::NOATIME)
            .or_else(|_| open(OFlags::empty()))
            .map(Self)
            .map_err(|errno| Error::io("open file", errno))
    }

    /// Opens a block device for reading and writing, alone: one that is mounted or in use so is
    /// [`ErrorKind::Busy`].
    ///
    /// Blocks: one that seems to be in use is tried again for a moment, since a child of this
    /// process that was forked while the device was open has it open too, until it begins its
    /// program.
    pub(crate) fn open_device(path: &Path) -> Result<Self> {
        let until = Instant::now() + FORK_TIME;
        loop {
            match retry_on_intr(|| sys::open(path, OFlags::RDWR | OFlags::EXCL)) {
                Err(Errno::BUSY) if Instant::now() < until => thread::park_timeout(FORK_TIME / 100),
                opened => {
                    let opened = opened.map(Self);
                    return opened.map_err(|errno| Error::io("open block device", errno));
                }
            }
        }
    }

    /// Wraps a file that the caller opened.
    pub(crate) fn of_fd(fd: OwnedFd) -> Self {
        Self(Fd::of(fd))
    }

    pub(super) fn of(fd: Fd) -> Self {
        Self(fd)
    }

    /// Whether both handles are of the same bytes: the same file, or the same block device by
    /// whatever name.
    pub(crate) fn is_same_as(&self, other: &Self) -> Result<bool> {
        let (ours, theirs) = (self.facts()?, other.facts()?);
        let both_devices = ours.kind == Kind::BlockDevice && theirs.kind == Kind::BlockDevice;
        Ok(ours.same_file(&theirs) || (both_devices && ours.device_number == theirs.device_number))
    }

    /// A reader from the start of the file to its end.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { file: self, offset: 0 }
    }

    /// A reader from that offset to the end of the file.
    #[cfg(feature = "encrypt")]
    pub(crate) fn reader_from(&self, offset: u64) -> Reader<'_> {
        Reader { file: self, offset }
    }

    /// A writer from the start of the file.
    pub(crate) fn writer(&self) -> Writer<'_> {
        Writer { file: self, offset: 0 }
    }

    pub(crate) fn facts(&self) -> Result<Facts> {
        super::facts_of(&self.0)
    }

    /// The length in bytes, of a file or a block device.
    pub(crate) fn len(&self) -> Result<u64> {
        let facts = self.facts()?;
        if facts.kind != Kind::BlockDevice {
            return Ok(facts.size_bytes);
        }
        retry_on_intr(|| self.0.seek(SeekFrom::End(0)))
            .map_err(|errno| Error::io("measure block device", errno))
    }

    /// Reads until the buffer is full or the file ends; tells how many bytes it read.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + to_u64(done);
            match self.0.read_at(at, &mut buffer[done..]) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::io("read file", errno)),
            }
        }
        Ok(done)
    }

    /// Writes all bytes at `offset`.
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + to_u64(done);
            match self.0.write_at(at, &bytes[done..]) {
                Ok(0) => return Err(Error::new(ErrorKind::Io, "write file: nothing was taken")),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::io("write file", errno)),
            }
        }
        Ok(())
    }

    /// As [`File::write_at`], past the page cache; `false` where the file system asks for another
    /// alignment than that of these bytes. Some of them may be written.
    pub(crate) fn write_direct_at(&self, offset: u64, bytes: &[u8]) -> Result<bool> {
        let refused = |cause: &std::io::Error| {
            let errno = cause.raw_os_error().map(Errno::from_raw_os_error);
            matches!(errno, Some(Errno::INVAL | Errno::OPNOTSUPP))
        };
        match self.write_at(offset, bytes) {
            Ok(()) => Ok(true),
            Err(error) => {
                let cause = std::error::Error::source(&error);
                let cause = cause.and_then(|cause| cause.downcast_ref::<std::io::Error>());
                if cause.is_some_and(refused) { Ok(false) } else { Err(error) }
            }
        }
    }

    pub(crate) fn set_len(&self, len: u64) -> Result<()> {
        retry_on_intr(|| self.0.set_len(len)).map_err(|errno| Error::io("set file length", errno))
    }

    pub(crate) fn set_mode(&self, mode: u32) -> Result<()> {
        retry_on_intr(|| self.0.set_mode(mode)).map_err(|errno| Error::io("set file mode", errno))
    }

    /// Makes the bytes durable, and what is needed to read them back.
    pub(crate) fn sync_data(&self) -> Result<()> {
        retry_on_intr(|| self.0.sync_data()).map_err(|errno| Error::io("sync file data", errno))
    }

    /// Makes the bytes and all metadata durable.
    pub(crate) fn sync_all(&self) -> Result<()> {
        retry_on_intr(|| self.0.sync()).map_err(|errno| Error::io("sync file", errno))
    }

    /// Reserves room for the range without changing what reads give; tells whether the file system
    /// could.
    pub(crate) fn reserve(&self, range: ByteRange) -> Result<bool> {
        self.fallocate(FallocateFlags::KEEP_SIZE, range, "reserve space")
            .map(|()| true)
            .or_else(ignore_unsupported)
    }

    /// Makes the range read as zeros and gives its room back; tells whether the file system could.
    pub(crate) fn punch(&self, range: ByteRange) -> Result<bool> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.fallocate(flags, range, "punch hole").map(|()| true).or_else(ignore_unsupported)
    }

    /// Makes the range read as zeros and keeps its room; tells whether the file system or device
    /// could.
    pub(crate) fn zero(&self, range: ByteRange) -> Result<bool> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        self.fallocate(flags, range, "zero range").map(|()| true).or_else(ignore_unsupported)
    }

    /// Makes the range read as zeros by whatever means there is; in the end by writing them.
    pub(crate) fn write_zeroes(&self, range: ByteRange) -> Result<()> {
        if self.zero(range)? {
            return Ok(());
        }
        let mut offset = range.offset;
        while offset < range.end() {
            let len = to_usize(range.end() - offset).min(ZEROS.len());
            self.write_at(offset, &ZEROS[..len])?;
            offset += to_u64(len);
        }
        Ok(())
    }

    fn fallocate(
        &self,
        flags: FallocateFlags,
        range: ByteRange,
        action: &'static str,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        retry_on_intr(|| self.0.allocate(flags, range)).map_err(|errno| match errno {
            // A device refuses ranges that are not whole sectors with EINVAL.
            Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL => {
                Error::new(ErrorKind::Unsupported, action).because(io(errno))
            }
            _ => Error::io(action, errno),
        })
    }

    /// The file system that the file lies on.
    pub(crate) fn file_system(&self) -> Result<FileSystem> {
        let file_system = retry_on_intr(|| self.0.file_system())
            .map_err(|errno| Error::io("look up file system", errno))?;
        let is_file = self.facts()?.kind == Kind::File;
        Ok(if is_file { file_system } else { FileSystem::Other })
    }

    /// Another handle to the same file, whose writes go past the page cache; `None` where the file
    /// system has no such writes, or the file may no longer be written.
    pub(crate) fn reopen_direct(&self) -> Option<Self> {
        retry_on_intr(|| self.0.reopen(OFlags::WRONLY | OFlags::DIRECT)).ok().map(Self)
    }

    /// Makes this file share all bytes of `source`, without moving any; tells whether the file
    /// system could. What the file held before is gone.
    pub(crate) fn share_bytes_of(&self, source: &Self) -> Result<bool> {
        match retry_on_intr(|| self.0.share_bytes_of(&source.0)) {
            Ok(()) => Ok(true),
            // Two file systems, one that cannot share, or files that may not share with each other.
            Err(
                Errno::XDEV
                | Errno::OPNOTSUPP
                | Errno::NOTTY
                | Errno::INVAL
                | Errno::NOSYS
                | Errno::PERM
                | Errno::TXTBSY,
            ) => Ok(false),
            Err(errno) => Err(Error::io("share extents", errno)),
        }
    }

    /// Copies a range of `source` to the same place of this file, inside the kernel: where the file
    /// system can, both share its extents then, and no byte is moved. Tells whether all of it was
    /// copied; if not, some of it may be.
    pub(crate) fn copy_range_of(&self, source: &Self, range: ByteRange) -> Result<bool> {
        let mut offset = range.offset;
        while offset < range.end() {
            let rest = ByteRange::new(offset, range.end() - offset);
            match self.0.copy_range_of(&source.0, rest) {
                // The source has become shorter.
                Ok(0) => return Ok(false),
                Ok(count) => offset += to_u64(count),
                Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
                    return Ok(false);
                }
                Err(errno) => return Err(Error::io("copy a range of a file", errno)),
            }
        }
        Ok(true)
    }

    /// Where the data run at or after `offset` begins; `None` when only holes follow.
    pub(crate) fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        self.seek(SeekFrom::Data(offset))
    }

    /// Where the hole at or after `offset` begins; the end of the file is one.
    pub(crate) fn next_hole(&self, offset: u64) -> Result<Option<u64>> {
        self.seek(SeekFrom::Hole(offset))
    }

    fn seek(&self, to: SeekFrom) -> Result<Option<u64>> {
        match retry_on_intr(|| self.0.seek(to)) {
            Ok(offset) => Ok(Some(offset)),
            Err(Errno::NXIO) => Ok(None),
            Err(errno) => Err(Error::io("look up extents", errno)),
        }
    }

    /// Drops clean pages of the range from the page cache, so that the next read comes from the
    /// device. Of pages that are not clean, Linux begins the write-back and does not wait for it.
    pub(crate) fn evict(&self, range: ByteRange) -> Result<()> {
        retry_on_intr(|| self.0.evict(range))
            .map_err(|errno| Error::io("evict cached pages", errno))
    }

    /// Has the range read into the page cache, and does not wait for it. Linux takes no more at a
    /// time than the device takes in one request, and passes over the rest.
    pub(crate) fn prefetch(&self, range: ByteRange) -> Result<()> {
        retry_on_intr(|| self.0.prefetch(range))
            .map_err(|errno| Error::io("read ahead in a file", errno))
    }

    /// Tries to take the right that this byte stands for. Rights belong to the open file
    /// description: they end when the last handle to it is closed, so also when the process dies,
    /// and two handles of one process exclude each other.
    pub(crate) fn try_lock(&self, byte: LockByte) -> Result<bool> {
        match retry_on_intr(|| self.0.lock(byte)) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(errno) => Err(Error::io("lock file", errno)),
        }
    }

    /// Gives the right back.
    pub(crate) fn unlock(&self, byte: LockByte) -> Result<()> {
        retry_on_intr(|| self.0.unlock(byte)).map_err(|errno| Error::io("unlock file", errno))
    }

    /// Whether somebody else holds the right now.
    pub(crate) fn is_locked(&self, byte: LockByte) -> Result<bool> {
        retry_on_intr(|| self.0.is_locked(byte)).map_err(|errno| Error::io("look up lock", errno))
    }
}

/// Reads a file from its start, for those who take a stream.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    file: &'a File,
    offset: u64,
}

impl std::io::Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read_at(self.offset, buffer).map_err(std::io::Error::other)?;
        self.offset += to_u64(count);
        Ok(count)
    }
}

/// Writes a file from its start, for those who give a stream.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    file: &'a File,
    offset: u64,
}

impl std::io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write_at(self.offset, bytes).map_err(std::io::Error::other)?;
        self.offset += to_u64(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn ignore_unsupported(error: Error) -> Result<bool> {
    if error.kind() == ErrorKind::Unsupported { Ok(false) } else { Err(error) }
}

/// What is written where a device cannot zero a range by itself.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
