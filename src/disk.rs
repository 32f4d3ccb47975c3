//! Every system call on files and folders, in one place, so that a test disk can stand in for the host's.

use std::ffi::OsStr;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{
    Advice, AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RawDir, RenameFlags,
    ResolveFlags, SeekFrom,
};
use rustix::io::{Errno, retry_on_intr};

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, to_u64, to_usize};

/// What identifies a file and tells that it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size_bytes: u64,
    pub(crate) mode: u32,
    pub(crate) mtime_ns: i128,
    pub(crate) ctime_ns: i128,
    pub(crate) kind: Kind,
}

/// What sort of thing a name refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    BlockDevice,
    Other,
}

impl Facts {
    /// Whether both are of the same file: a name that still leads where a handle does.
    pub(crate) fn same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    fn of(stat: &rustix::fs::Stat) -> Self {
        let ns = |sec: i64, nsec: u64| i128::from(sec) * 1_000_000_000 + i128::from(nsec);
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode,
            mtime_ns: ns(stat.st_mtime, stat.st_mtime_nsec),
            ctime_ns: ns(stat.st_ctime, stat.st_ctime_nsec),
            kind: match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => Kind::File,
                FileType::Directory => Kind::Dir,
                FileType::BlockDevice => Kind::BlockDevice,
                _ => Kind::Other,
            },
        }
    }
}

/// An open folder. Names are resolved beneath it and never through a symbolic link.
#[derive(Debug)]
pub(crate) struct Dir(OwnedFd);

const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

impl Dir {
    /// Opens a folder by the path that a person gave; symbolic links are followed, as the shell does.
    pub(crate) fn open_path(path: &Path) -> Result<Self> {
        let open = || rustix::fs::open(path, DIR_FLAGS, Mode::empty());
        retry_on_intr(open).map(Self).map_err(|errno| match errno {
            Errno::NOTDIR => Error::new(ErrorKind::Invalid, "open folder").because(io(errno)),
            _ => Error::io("open folder", errno),
        })
    }

    /// Opens a folder by path, and makes it, and those above it, with mode 0700 where they are missing.
    pub(crate) fn open_or_create_path(path: &Path) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| Error::io("create folder", error))?;
        Self::open_path(path)
    }

    fn open(&self, name: &str, flags: OFlags, mode: u32) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        retry_on_intr(|| {
            rustix::fs::openat2(&self.0, name, flags, Mode::from_raw_mode(mode), BENEATH)
        })
    }

    /// Opens a folder in this one.
    pub(crate) fn open_dir(&self, name: &str) -> Result<Self> {
        self.open(name, DIR_FLAGS, 0).map(Self).map_err(|errno| hostile("open folder", errno))
    }

    /// As [`Dir::open_dir`], but `None` where there is nothing of that name.
    pub(crate) fn find_dir(&self, name: &str) -> Result<Option<Self>> {
        absent_is_none(self.open_dir(name))
    }

    /// Makes a folder; one that is there already is [`ErrorKind::Exists`].
    pub(crate) fn make_dir(&self, name: &str, mode: u32) -> Result<Self> {
        retry_on_intr(|| rustix::fs::mkdirat(&self.0, name, Mode::from_raw_mode(mode)))
            .map_err(|errno| Error::io("make folder", errno))?;
        self.open_dir(name)
    }

    /// Opens a folder in this one and makes it where it is missing; tells whether it did.
    pub(crate) fn open_or_make_dir(&self, name: &str, mode: u32) -> Result<(Self, bool)> {
        if let Some(dir) = self.find_dir(name)? {
            return Ok((dir, false));
        }
        match self.make_dir(name, mode) {
            Ok(dir) => Ok((dir, true)),
            Err(error) if error.kind() == ErrorKind::Exists => Ok((self.open_dir(name)?, false)),
            Err(error) => Err(error),
        }
    }

    /// Makes a file that must not exist yet.
    pub(crate) fn create_file(&self, name: &str, mode: u32) -> Result<File> {
        self.open(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, mode)
            .map(File)
            .map_err(|errno| hostile("create file", errno))
    }

    /// Opens a file for reading.
    pub(crate) fn open_file(&self, name: &str) -> Result<File> {
        // O_NONBLOCK: a FIFO under that name must not hang us. It changes nothing for regular files.
        self.open(name, OFlags::RDONLY | OFlags::NONBLOCK, 0)
            .map(File)
            .map_err(|errno| hostile("open file", errno))
    }

    /// Opens a file for reading and writing.
    pub(crate) fn open_file_rw(&self, name: &str) -> Result<File> {
        self.open(name, OFlags::RDWR | OFlags::NONBLOCK, 0)
            .map(File)
            .map_err(|errno| hostile("open file", errno))
    }

    /// As [`Dir::open_file_rw`], but `None` where there is nothing of that name.
    pub(crate) fn find_file_rw(&self, name: &str) -> Result<Option<File>> {
        absent_is_none(self.open_file_rw(name))
    }

    /// As [`Dir::open_file`], but `None` where there is nothing of that name.
    pub(crate) fn find_file(&self, name: &str) -> Result<Option<File>> {
        absent_is_none(self.open_file(name))
    }

    /// Facts of what that name refers to, not following a symbolic link; `None` where there is nothing.
    pub(crate) fn facts_of(&self, name: &str) -> Result<Option<Facts>> {
        let stat = retry_on_intr(|| rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW));
        match stat {
            Ok(stat) => Ok(Some(Facts::of(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::io("look up name", errno)),
        }
    }

    /// Facts of this folder.
    pub(crate) fn facts(&self) -> Result<Facts> {
        facts_of_fd(&self.0)
    }

    /// The folder above; that of the root of a file system is itself.
    pub(crate) fn parent(&self) -> Result<Self> {
        retry_on_intr(|| rustix::fs::openat(&self.0, "..", DIR_FLAGS, Mode::empty()))
            .map(Self)
            .map_err(|errno| Error::io("open parent folder", errno))
    }

    /// The names in this folder for which `wanted` is true. Names that are not UTF-8 are none of ours and are left out.
    pub(crate) fn names(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        // A handle of its own: a folder's read position belongs to the open file description.
        let again = self.reopen()?;
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut entries = RawDir::new(&again.0, &mut buffer);
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|errno| Error::io("list folder", errno))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if let Some(name) = name.to_str()
                && !matches!(name, "." | "..")
                && wanted(name)
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Renames `from` here to `to` in `to_dir`; a name that is taken is [`ErrorKind::Exists`] and is never replaced.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] on file systems without `RENAME_NOREPLACE`.
    pub(crate) fn rename_no_replace(&self, from: &str, to_dir: &Dir, to: &str) -> Result<()> {
        let rename =
            || rustix::fs::renameat_with(&self.0, from, &to_dir.0, to, RenameFlags::NOREPLACE);
        retry_on_intr(rename).map_err(|errno| match errno {
            Errno::INVAL => Error::new(ErrorKind::Unsupported, "rename without replacing")
                .hint("the file system cannot commit atomically")
                .because(io(errno)),
            _ => Error::io("rename without replacing", errno),
        })
    }

    /// Renames `from` over `to` in this folder.
    pub(crate) fn rename_over(&self, from: &str, to: &str) -> Result<()> {
        retry_on_intr(|| rustix::fs::renameat(&self.0, from, &self.0, to))
            .map_err(|errno| Error::io("rename file", errno))
    }

    /// Removes a file; one that is not there is fine.
    pub(crate) fn remove_file(&self, name: &str) -> Result<()> {
        self.unlink(name, AtFlags::empty(), "remove file")
    }

    /// Removes an empty folder; one that is not there is fine.
    pub(crate) fn remove_dir(&self, name: &str) -> Result<()> {
        self.unlink(name, AtFlags::REMOVEDIR, "remove folder")
    }

    fn unlink(&self, name: &str, flags: AtFlags, action: &'static str) -> Result<()> {
        match retry_on_intr(|| rustix::fs::unlinkat(&self.0, name, flags)) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::io(action, errno)),
        }
    }

    pub(crate) fn set_mode(&self, mode: u32) -> Result<()> {
        retry_on_intr(|| rustix::fs::fchmod(&self.0, Mode::from_raw_mode(mode)))
            .map_err(|errno| Error::io("set folder mode", errno))
    }

    /// Makes the entries of this folder durable.
    pub(crate) fn sync(&self) -> Result<()> {
        retry_on_intr(|| rustix::fs::fsync(&self.0))
            .map_err(|errno| Error::io("sync folder", errno))
    }

    /// Waits for the exclusive claim on this folder; it ends when the value is dropped, or its process is gone.
    pub(crate) fn claim(&self) -> Result<DirClaim> {
        // A handle of its own: two claims over one open file description would not exclude each other.
        let own = self.reopen()?;
        retry_on_intr(|| rustix::fs::flock(&own.0, FlockOperation::LockExclusive))
            .map_err(|errno| Error::io("lock folder", errno))?;
        Ok(DirClaim { _held: own })
    }

    /// Another handle to the same folder.
    pub(crate) fn reopen(&self) -> Result<Self> {
        self.open_dir(".")
    }
}

/// The exclusive claim on a folder, held until dropped.
#[derive(Debug)]
pub(crate) struct DirClaim {
    _held: Dir,
}

/// A byte of a file that stands for a right; see [`File::try_lock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LockByte(pub(crate) u64);

/// An open file or block device. Reads and writes name their offset; there is no position.
#[derive(Debug)]
pub(crate) struct File(OwnedFd);

impl File {
    /// Opens a file or device for reading by the path that a person gave; symbolic links are followed.
    pub(crate) fn open_path(path: &Path) -> Result<Self> {
        let open = |flags: OFlags| {
            retry_on_intr(|| {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | flags;
                rustix::fs::open(path, flags, Mode::empty())
            })
        };
        // O_NOATIME leaves the source's times alone; only its owner may ask for it.
        open(OFlags::NOATIME)
            .or_else(|_| open(OFlags::empty()))
            .map(Self)
            .map_err(|errno| Error::io("open file", errno))
    }

    /// Opens a block device for reading and writing, alone: one that is mounted or in use so is [`ErrorKind::Busy`].
    pub(crate) fn open_device(path: &Path) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))
            .map(Self)
            .map_err(|errno| Error::io("open block device", errno))
    }

    /// Wraps a file that the caller opened.
    pub(crate) fn from_std(file: fs::File) -> Self {
        Self(file.into())
    }

    /// A reader from the start of the file to its end.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { file: self, offset: 0 }
    }

    /// A writer from the start of the file.
    pub(crate) fn writer(&self) -> Writer<'_> {
        Writer { file: self, offset: 0 }
    }

    pub(crate) fn facts(&self) -> Result<Facts> {
        facts_of_fd(&self.0)
    }

    /// The length in bytes, of a file or a block device.
    pub(crate) fn len(&self) -> Result<u64> {
        let facts = self.facts()?;
        if facts.kind != Kind::BlockDevice {
            return Ok(facts.size_bytes);
        }
        rustix::fs::seek(&self.0, SeekFrom::End(0))
            .map_err(|errno| Error::io("measure block device", errno))
    }

    /// Reads until the buffer is full or the file ends; tells how many bytes it read.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + to_u64(done);
            match rustix::io::pread(&self.0, &mut buffer[done..], at) {
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
            match rustix::io::pwrite(&self.0, &bytes[done..], at) {
                Ok(0) => return Err(Error::new(ErrorKind::Io, "write file: nothing was taken")),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::io("write file", errno)),
            }
        }
        Ok(())
    }

    pub(crate) fn set_len(&self, len: u64) -> Result<()> {
        retry_on_intr(|| rustix::fs::ftruncate(&self.0, len))
            .map_err(|errno| Error::io("set file length", errno))
    }

    pub(crate) fn set_mode(&self, mode: u32) -> Result<()> {
        retry_on_intr(|| rustix::fs::fchmod(&self.0, Mode::from_raw_mode(mode)))
            .map_err(|errno| Error::io("set file mode", errno))
    }

    /// Makes the bytes durable, and what is needed to read them back.
    pub(crate) fn sync_data(&self) -> Result<()> {
        retry_on_intr(|| rustix::fs::fdatasync(&self.0))
            .map_err(|errno| Error::io("sync file data", errno))
    }

    /// Makes the bytes and all metadata durable.
    pub(crate) fn sync_all(&self) -> Result<()> {
        retry_on_intr(|| rustix::fs::fsync(&self.0)).map_err(|errno| Error::io("sync file", errno))
    }

    /// Reserves room for the range without changing what reads give. File systems that cannot are left as they are.
    pub(crate) fn reserve(&self, range: ByteRange) -> Result<()> {
        self.fallocate(FallocateFlags::KEEP_SIZE, range, "reserve space")
            .or_else(|error| ignore_unsupported(error).map(drop))
    }

    /// Makes the range read as zeros and gives its room back; tells whether the file system could.
    pub(crate) fn punch(&self, range: ByteRange) -> Result<bool> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.fallocate(flags, range, "punch hole").map(|()| true).or_else(ignore_unsupported)
    }

    /// Makes the range read as zeros and keeps its room; tells whether the file system or device could.
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
        retry_on_intr(|| rustix::fs::fallocate(&self.0, flags, range.offset, range.len)).map_err(
            |errno| match errno {
                // A device refuses ranges that are not whole sectors with EINVAL.
                Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL => {
                    Error::new(ErrorKind::Unsupported, action).because(io(errno))
                }
                _ => Error::io(action, errno),
            },
        )
    }

    /// Whether the file system's word on holes can be trusted: ext4, XFS, Btrfs and tmpfs.
    pub(crate) fn holes_are_trusted(&self) -> Result<bool> {
        const EXT4: u64 = 0xEF53;
        const XFS: u64 = 0x5846_5342;
        const BTRFS: u64 = 0x9123_683E;
        const TMPFS: u64 = 0x0102_1994;
        let stat = retry_on_intr(|| rustix::fs::fstatfs(&self.0))
            .map_err(|errno| Error::io("look up file system", errno))?;
        let magic = u64::try_from(stat.f_type).unwrap_or(0);
        Ok(self.facts()?.kind == Kind::File && [EXT4, XFS, BTRFS, TMPFS].contains(&magic))
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
        match retry_on_intr(|| rustix::fs::seek(&self.0, to)) {
            Ok(offset) => Ok(Some(offset)),
            Err(Errno::NXIO) => Ok(None),
            Err(errno) => Err(Error::io("look up extents", errno)),
        }
    }

    /// Drops clean pages of the range from the page cache, so that the next read comes from the device.
    pub(crate) fn evict(&self, range: ByteRange) -> Result<()> {
        let len = std::num::NonZeroU64::new(range.len);
        retry_on_intr(|| rustix::fs::fadvise(&self.0, range.offset, len, Advice::DontNeed))
            .map_err(|errno| Error::io("evict cached pages", errno))
    }

    /// Tries to take the right that this byte stands for. Rights belong to the open file description: they end when the last
    /// handle to it is closed, so also when the process dies, and two handles of one process exclude each other.
    pub(crate) fn try_lock(&self, byte: LockByte) -> Result<bool> {
        match fcntl(&self.0, FcntlArg::F_OFD_SETLK(&lock_record(libc::F_WRLCK, byte)?)) {
            Ok(_) => Ok(true),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
            Err(errno) => Err(Error::io("lock file", errno)),
        }
    }

    /// Gives the right back.
    pub(crate) fn unlock(&self, byte: LockByte) -> Result<()> {
        fcntl(&self.0, FcntlArg::F_OFD_SETLK(&lock_record(libc::F_UNLCK, byte)?))
            .map(drop)
            .map_err(|errno| Error::io("unlock file", errno))
    }

    /// Whether somebody else holds the right now.
    pub(crate) fn is_locked(&self, byte: LockByte) -> Result<bool> {
        let mut record = lock_record(libc::F_WRLCK, byte)?;
        fcntl(&self.0, FcntlArg::F_OFD_GETLK(&mut record))
            .map_err(|errno| Error::io("look up lock", errno))?;
        Ok(i32::from(record.l_type) != libc::F_UNLCK)
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

/// What a new plain file's permission bits are when nobody says otherwise: 0666 less the process's umask.
pub(crate) fn default_file_mode() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = umask.and_then(|text| u32::from_str_radix(text.trim(), 8).ok());
    0o666 & !umask.unwrap_or(0o077)
}

/// Whether that path leads to a block device. A path that leads nowhere does not.
pub(crate) fn is_block_device(path: &Path) -> bool {
    rustix::fs::stat(path).is_ok_and(|stat| Facts::of(&stat).kind == Kind::BlockDevice)
}

/// The number of a block device, of its file.
pub(crate) fn device_number(file: &File) -> Result<u64> {
    rustix::fs::fstat(&file.0)
        .map(|stat| stat.st_rdev)
        .map_err(|errno| Error::io("look up device number", errno))
}

/// Facts of what that path leads to, symbolic links followed; `None` where there is nothing.
pub(crate) fn facts_of_path(path: &Path) -> Result<Option<Facts>> {
    match retry_on_intr(|| rustix::fs::stat(path)) {
        Ok(stat) => Ok(Some(Facts::of(&stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(Error::io("look up path", errno)),
    }
}

fn facts_of_fd(fd: &OwnedFd) -> Result<Facts> {
    retry_on_intr(|| rustix::fs::fstat(fd))
        .map(|stat| Facts::of(&stat))
        .map_err(|errno| Error::io("look up file facts", errno))
}

fn lock_record(kind: libc::c_int, byte: LockByte) -> Result<libc::flock> {
    let narrow = |value: libc::c_int| {
        i16::try_from(value).map_err(|error| Error::new(ErrorKind::Io, "lock file").because(error))
    };
    let start = i64::try_from(byte.0)
        .map_err(|error| Error::new(ErrorKind::Io, "lock file").because(error))?;
    Ok(libc::flock {
        l_type: narrow(kind)?,
        l_whence: narrow(libc::SEEK_SET)?,
        l_start: start,
        l_len: 1,
        // Open-file-description locks ask for zero here.
        l_pid: 0,
    })
}

fn absent_is_none<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn ignore_unsupported(error: Error) -> Result<bool> {
    if error.kind() == ErrorKind::Unsupported { Ok(false) } else { Err(error) }
}

/// A symbolic link, a mount point or an escape where a plain name was expected is an attack or a mistake: say which.
fn hostile(action: &'static str, errno: Errno) -> Error {
    match errno {
        Errno::LOOP => Error::new(ErrorKind::Denied, action)
            .hint("a symbolic link is in the way; regions are opened without following any")
            .because(io(errno)),
        Errno::XDEV => Error::new(ErrorKind::Denied, action)
            .hint("a region may not lead out of its root or to another file system")
            .because(io(errno)),
        Errno::NOTDIR => Error::new(ErrorKind::Invalid, action)
            .hint("a file is where a folder should be")
            .because(io(errno)),
        Errno::ISDIR => Error::new(ErrorKind::Invalid, action)
            .hint("a folder is where a file should be")
            .because(io(errno)),
        _ => Error::io(action, errno),
    }
}

fn io(errno: Errno) -> std::io::Error {
    errno.into()
}

/// What is written where a device cannot zero a range by itself.
const ZEROS: [u8; 64 << 10] = [0; 64 << 10];

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_path(temp.path()).unwrap();
        (temp, dir)
    }

    #[test]
    fn names_that_lead_out_or_through_links_are_refused() {
        let (temp, dir) = folder();
        std::os::unix::fs::symlink("/etc", temp.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", temp.path().join("file")).unwrap();
        assert_eq!(dir.open_dir("link").unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(dir.open_file("file").unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(dir.open_dir("..").unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(dir.open_file("link/passwd").unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(dir.open_file("/etc/passwd").unwrap_err().kind(), ErrorKind::Denied);
    }

    #[test]
    fn rename_never_replaces() {
        let (_temp, dir) = folder();
        dir.create_file("a", 0o600).unwrap().write_at(0, b"a").unwrap();
        dir.create_file("b", 0o600).unwrap();
        assert_eq!(dir.rename_no_replace("a", &dir, "b").unwrap_err().kind(), ErrorKind::Exists);
        dir.rename_no_replace("a", &dir, "c").unwrap();
        assert_eq!(dir.names(|_| true).unwrap(), ["b", "c"]);
    }

    #[test]
    fn locks_of_two_handles_of_one_process_exclude_each_other() {
        let (_temp, dir) = folder();
        let one = dir.create_file("f", 0o600).unwrap();
        let two = dir.open_file_rw("f").unwrap();
        assert!(one.try_lock(LockByte(0)).unwrap());
        assert!(!two.try_lock(LockByte(0)).unwrap());
        assert!(two.try_lock(LockByte(1)).unwrap());
        assert!(two.is_locked(LockByte(0)).unwrap());
        drop(one);
        assert!(two.try_lock(LockByte(0)).unwrap());
    }

    #[test]
    fn holes_are_found_and_made() {
        let (_temp, dir) = folder();
        let file = dir.create_file("f", 0o600).unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(file.next_data(0).unwrap(), None);
        file.write_at(512 << 10, &[1; 4096]).unwrap();
        assert_eq!(file.next_data(0).unwrap(), Some(512 << 10));
        assert_eq!(file.next_hole(512 << 10).unwrap(), Some((512 << 10) + 4096));
        file.write_zeroes(ByteRange::new(512 << 10, 4096)).unwrap();
        let mut byte = [9];
        assert_eq!(file.read_at(512 << 10, &mut byte).unwrap(), 1);
        assert_eq!(byte, [0]);
    }
}
