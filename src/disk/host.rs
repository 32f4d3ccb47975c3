//! The system calls themselves, one function each: nothing is tried again and nothing explained
//! here.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;
use std::{fs, thread};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{
    Advice, AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RawDir, RenameFlags,
    ResolveFlags, SeekFrom,
};
use rustix::io::{Errno, Result};

use super::{Facts, FileSystem, Kind, LockByte};
use crate::geometry::{ByteRange, to_usize};
use crate::sabotage;

/// An open file description. A clone does not exist: locks belong to it.
#[derive(Debug)]
pub(super) struct Fd(OwnedFd);

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens by path, as the shell would.
pub(super) fn open(path: &Path, flags: OFlags) -> Result<Fd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map(Fd)
}

/// Facts of what that path leads to, symbolic links followed.
pub(super) fn stat(path: &Path) -> Result<Facts> {
    rustix::fs::stat(path).map(|stat| facts_of(&stat))
}

pub(super) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    rustix::fs::mkdir(path, Mode::from_raw_mode(mode))
}

/// The process's umask; `None` where it cannot be read.
pub(super) fn umask() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(umask.trim(), 8).ok()
}

/// Lets others have the processor for that long.
pub(super) fn pause(time: Duration) {
    thread::park_timeout(time);
}

impl Fd {
    pub(super) fn of(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Opens a name beneath this folder, never through a symbolic link.
    pub(super) fn open(&self, name: &str, flags: OFlags, mode: u32) -> Result<Self> {
        let (flags, mode) = (flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode));
        let beneath = if sabotage::is("M26") { ResolveFlags::empty() } else { BENEATH };
        rustix::fs::openat2(&self.0, name, flags, mode, beneath).map(Self)
    }

    /// Another open file description of the same file.
    pub(super) fn reopen(&self, flags: OFlags) -> Result<Self> {
        // By its own descriptor: no path has to be remembered, and none can lead elsewhere.
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }

    pub(super) fn make_dir(&self, name: &str, mode: u32) -> Result<()> {
        rustix::fs::mkdirat(&self.0, name, Mode::from_raw_mode(mode))
    }

    pub(super) fn unlink(&self, name: &str, flags: AtFlags) -> Result<()> {
        rustix::fs::unlinkat(&self.0, name, flags)
    }

    pub(super) fn rename(
        &self,
        from: &str,
        to_dir: &Self,
        to: &str,
        flags: RenameFlags,
    ) -> Result<()> {
        if flags.is_empty() {
            // The call that every file system and every kernel knows.
            return rustix::fs::renameat(&self.0, from, &to_dir.0, to);
        }
        rustix::fs::renameat_with(&self.0, from, &to_dir.0, to, flags)
    }

    /// Another name in this folder for the same file.
    #[cfg(feature = "encrypt")]
    pub(super) fn link(&self, from: &str, to: &str) -> Result<()> {
        rustix::fs::linkat(&self.0, from, &self.0, to, AtFlags::empty())
    }

    pub(super) fn stat(&self) -> Result<Facts> {
        rustix::fs::fstat(&self.0).map(|stat| facts_of(&stat))
    }

    /// Facts of what that name refers to, not following a symbolic link.
    pub(super) fn stat_at(&self, name: &str) -> Result<Facts> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::statat(&self.0, name, flags).map(|stat| facts_of(&stat))
    }

    /// The names in this folder for which `wanted` is true, but for those that are not UTF-8. Moves
    /// the read position: to be called once only.
    pub(super) fn list(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut entries = RawDir::new(&self.0, &mut buffer);
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if let Some(name) = name.to_str()
                && !matches!(name, "." | "..")
                && wanted(name)
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    pub(super) fn set_mode(&self, mode: u32) -> Result<()> {
        rustix::fs::fchmod(&self.0, Mode::from_raw_mode(mode))
    }

    pub(super) fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.0)
    }

    pub(super) fn sync_data(&self) -> Result<()> {
        rustix::fs::fdatasync(&self.0)
    }

    pub(super) fn lock_whole(&self, operation: FlockOperation) -> Result<()> {
        rustix::fs::flock(&self.0, operation)
    }

    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        rustix::io::pread(&self.0, buffer, offset)
    }

    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<usize> {
        rustix::io::pwrite(&self.0, bytes, offset)
    }

    pub(super) fn set_len(&self, len: u64) -> Result<()> {
        rustix::fs::ftruncate(&self.0, len)
    }

    pub(super) fn allocate(&self, flags: FallocateFlags, range: ByteRange) -> Result<()> {
        rustix::fs::fallocate(&self.0, flags, range.offset, range.len)
    }

    /// The file system that the file lies on.
    pub(super) fn file_system(&self) -> Result<FileSystem> {
        rustix::fs::fstatfs(&self.0).map(|stat| FileSystem::of_magic(stat.f_type))
    }

    /// Makes this file a clone of `source`.
    pub(super) fn share_bytes_of(&self, source: &Self) -> Result<()> {
        rustix::fs::ioctl_ficlone(&self.0, &source.0)
    }

    /// Copies bytes of `source` to the same place of this file, inside the kernel; tells how many.
    /// Where both lie on one file system that can, they come to share their extents.
    pub(super) fn copy_range_of(&self, source: &Self, range: ByteRange) -> Result<usize> {
        let (mut from, mut to) = (range.offset, range.offset);
        let len = to_usize(range.len);
        rustix::fs::copy_file_range(&source.0, Some(&mut from), &self.0, Some(&mut to), len)
    }

    pub(super) fn seek(&self, to: SeekFrom) -> Result<u64> {
        rustix::fs::seek(&self.0, to)
    }

    /// Drops clean pages of the range from the page cache, and begins the write-back of others.
    pub(super) fn evict(&self, range: ByteRange) -> Result<()> {
        let len = NonZeroU64::new(range.len);
        rustix::fs::fadvise(&self.0, range.offset, len, Advice::DontNeed)
    }

    /// Begins to read the range into the page cache.
    pub(super) fn prefetch(&self, range: ByteRange) -> Result<()> {
        let len = NonZeroU64::new(range.len);
        rustix::fs::fadvise(&self.0, range.offset, len, Advice::WillNeed)
    }

    /// Takes the lock on that byte; `EAGAIN` while another open file description has it.
    pub(super) fn lock(&self, byte: LockByte) -> Result<()> {
        match fcntl(&self.0, FcntlArg::F_OFD_SETLK(&lock_record(libc::F_WRLCK, byte)?)) {
            Ok(_) => Ok(()),
            Err(nix::Error::EACCES) => Err(Errno::AGAIN),
            Err(errno) => Err(of_nix(errno)),
        }
    }

    pub(super) fn unlock(&self, byte: LockByte) -> Result<()> {
        let record = lock_record(libc::F_UNLCK, byte)?;
        fcntl(&self.0, FcntlArg::F_OFD_SETLK(&record)).map(drop).map_err(of_nix)
    }

    /// Whether another open file description has that lock.
    pub(super) fn is_locked(&self, byte: LockByte) -> Result<bool> {
        let mut record = lock_record(libc::F_WRLCK, byte)?;
        fcntl(&self.0, FcntlArg::F_OFD_GETLK(&mut record)).map_err(of_nix)?;
        Ok(i32::from(record.l_type) != libc::F_UNLCK)
    }
}

fn facts_of(stat: &rustix::fs::Stat) -> Facts {
    let ns = |sec: i64, nsec: u64| i128::from(sec) * 1_000_000_000 + i128::from(nsec);
    Facts {
        device: stat.st_dev,
        inode: stat.st_ino,
        device_number: stat.st_rdev,
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode,
        owner: stat.st_uid,
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

fn lock_record(kind: libc::c_int, byte: LockByte) -> Result<libc::flock> {
    let narrow = |value: libc::c_int| i16::try_from(value).map_err(|_| Errno::OVERFLOW);
    Ok(libc::flock {
        l_type: narrow(kind)?,
        l_whence: narrow(libc::SEEK_SET)?,
        l_start: i64::try_from(byte.0).map_err(|_| Errno::OVERFLOW)?,
        l_len: 1,
        // Open-file-description locks ask for zero here.
        l_pid: 0,
    })
}

fn of_nix(errno: nix::Error) -> Errno {
    Errno::from_io_error(&errno.into()).unwrap_or(Errno::IO)
}
