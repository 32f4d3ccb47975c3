//! Every system call on files and folders, in one place, so that a test disk can stand in for the
//! host's.

mod dir;
#[cfg(feature = "testing")]
mod either;
mod file;
mod host;
#[cfg(feature = "testing")]
pub(crate) mod sim;

use std::path::Path;

use rustix::io::{Errno, retry_on_intr};

use crate::error::{Error, ErrorKind, Result};
use crate::sabotage;

// The seam: `Dir` and `File` are written in terms of these calls alone.
#[cfg(feature = "testing")]
use either as sys;
#[cfg(not(feature = "testing"))]
use host as sys;

pub(crate) use dir::{Dir, DirClaim};
pub(crate) use file::{File, LockByte};

/// What identifies a file and tells that it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Of a block device: which one.
    pub(crate) device_number: u64,
    pub(crate) size_bytes: u64,
    pub(crate) mode: u32,
    /// The user whose it is.
    pub(crate) owner: u32,
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

/// The file systems whose ways are known; all others are trusted with nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
    /// In memory.
    Tmpfs,
    Other,
}

impl FileSystem {
    fn of_magic(magic: impl TryInto<u64>) -> Self {
        match magic.try_into().unwrap_or(0) {
            0xEF53 => Self::Ext4,
            0x5846_5342 => Self::Xfs,
            0x9123_683E => Self::Btrfs,
            0x0102_1994 => Self::Tmpfs,
            _ => Self::Other,
        }
    }

    /// Whether its word on holes can be trusted.
    pub(crate) fn trusts_holes(self) -> bool {
        self != Self::Other || sabotage::is("M17")
    }

    /// Whether reserving room before writing to it saves work: reserved extents are whole, and
    /// writes into them need no lock of their own. A file system in memory would have to clear what
    /// it reserves, and one that never overwrites cannot use it.
    pub(crate) fn gains_by_reserving(self) -> bool {
        matches!(self, Self::Ext4 | Self::Xfs)
    }

    /// Whether files on it may come to share extents, if it was made so.
    pub(crate) fn shares_extents(self) -> bool {
        matches!(self, Self::Xfs | Self::Btrfs)
    }

    /// Whether writes past the page cache reach a device that way.
    pub(crate) fn writes_directly(self) -> bool {
        matches!(self, Self::Ext4 | Self::Xfs)
    }
}

impl Facts {
    /// Whether both are of the same file: a name that still leads where a handle does.
    pub(crate) fn same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Whether it belongs to the user we are, or to root, who can do anything to it anyway.
    #[cfg(feature = "encrypt")]
    pub(crate) fn is_ours(&self) -> bool {
        self.owner == 0 || self.owner == rustix::process::geteuid().as_raw()
    }
}

/// What a new plain file's permission bits are when nobody says otherwise: 0666 less the process's
/// umask.
pub(crate) fn default_file_mode() -> u32 {
    0o666 & !sys::umask().unwrap_or(0o077)
}

/// Whether that path leads to a block device. A path that leads nowhere does not.
pub(crate) fn is_block_device(path: &Path) -> bool {
    sys::stat(path).is_ok_and(|facts| facts.kind == Kind::BlockDevice)
}

/// Facts of what that path leads to, symbolic links followed; `None` where there is nothing.
pub(crate) fn facts_of_path(path: &Path) -> Result<Option<Facts>> {
    match retry_on_intr(|| sys::stat(path)) {
        Ok(facts) => Ok(Some(facts)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(Error::io("look up path", errno)),
    }
}

fn facts_of(fd: &sys::Fd) -> Result<Facts> {
    retry_on_intr(|| fd.stat()).map_err(|errno| Error::io("look up file facts", errno))
}

/// A symbolic link, a mount point or an escape where a plain name was expected is an attack or a
/// mistake: say which.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ByteRange;

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
    fn names_that_lead_elsewhere_are_refused_where_the_kernel_would_follow_them() {
        let (_temp, dir) = folder();
        dir.create_file("a", 0o600).unwrap();
        for name in ["../b", "/tmp/b", "..", ".", "", "x/y", "a\0b"] {
            let kinds = [
                dir.rename_no_replace("a", &dir, name).unwrap_err().kind(),
                dir.facts_of(name).unwrap_err().kind(),
                dir.remove_file(name).unwrap_err().kind(),
                dir.make_dir(name, 0o700).unwrap_err().kind(),
            ];
            assert_eq!(kinds, [ErrorKind::Invalid; 4], "{name:?}");
        }
        assert_eq!(dir.names(|_| true).unwrap(), ["a"]);
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

    #[cfg(feature = "encrypt")]
    #[test]
    fn a_second_name_never_replaces() {
        let (_temp, dir) = folder();
        dir.create_file("a", 0o600).unwrap().write_at(0, b"a").unwrap();
        dir.create_file("b", 0o600).unwrap();
        assert_eq!(dir.link("a", "b").unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(dir.link("a", "../c").unwrap_err().kind(), ErrorKind::Invalid);
        dir.link("a", "c").unwrap();
        dir.remove_file("a").unwrap();
        assert_eq!(dir.names(|_| true).unwrap(), ["b", "c"]);
        assert_eq!(dir.open_file("c").unwrap().len().unwrap(), 1);
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
    fn a_file_system_that_is_not_on_the_list_is_trusted_with_nothing() {
        // FUSE, NFS, SMB, overlayfs, ZFS.
        for magic in [0x6573_5546_u64, 0x6969, 0xff53_4d42, 0x794c_7630, 0x2fc1_2fc1] {
            let unknown = FileSystem::of_magic(magic);
            assert!(!unknown.trusts_holes(), "{magic:#x}");
            assert!(!unknown.shares_extents(), "{magic:#x}");
            assert!(!unknown.gains_by_reserving() && !unknown.writes_directly(), "{magic:#x}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_looked_at_is_not_taken_for_missing() {
        let (temp, _dir) = folder();
        // Looking fails for another reason than that nothing is there.
        let path = temp.path().join("x".repeat(300)).join("jobs");
        let error = Dir::open_or_create_path(&path).unwrap_err();
        assert!(error.to_string().contains("open folder"), "{error}");
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

    #[test]
    #[expect(clippy::print_stderr, reason = "a skipped test says why")]
    fn reading_ahead_reads_from_the_device() {
        let (_temp, dir) = folder();
        let file = dir.create_file("f", 0o600).unwrap();
        let range = ByteRange::new(0, 64 << 10);
        file.write_at(0, &[1; 64 << 10]).unwrap();
        file.sync_data().unwrap();
        file.evict(range).unwrap();
        // What this thread has had read from devices, as the kernel counts.
        let count = || {
            let counts = std::fs::read_to_string("/proc/thread-self/io").ok()?;
            let bytes = counts.lines().find_map(|line| line.strip_prefix("read_bytes: "))?;
            bytes.parse::<u64>().ok()
        };
        let before = count();
        file.prefetch(range).unwrap();
        match (before, count()) {
            (Some(before), Some(after)) if file.file_system().unwrap().writes_directly() => {
                assert_eq!(after - before, range.len);
            }
            _ => eprintln!("skipped: no device below, or no counts in /proc/thread-self/io"),
        }
    }
}
