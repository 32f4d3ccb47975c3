//! The system calls of the host, or of the simulated disk where the thread is in a simulation.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, OFlags, RenameFlags, SeekFrom};
use rustix::io::{Errno, Result};

use super::{Facts, FileSystem, LockByte, host, sim};
use crate::geometry::ByteRange;

/// An open file description, of either disk.
#[derive(Debug)]
pub(super) enum Fd {
    Host(host::Fd),
    Sim(sim::Fd),
}

pub(super) fn open(path: &Path, flags: OFlags) -> Result<Fd> {
    match sim::is_entered() {
        true => sim::open(path, flags).map(Fd::Sim),
        false => host::open(path, flags).map(Fd::Host),
    }
}

pub(super) fn stat(path: &Path) -> Result<Facts> {
    if sim::is_entered() { sim::stat(path) } else { host::stat(path) }
}

pub(super) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    if sim::is_entered() { sim::make_dir(path, mode) } else { host::make_dir(path, mode) }
}

pub(super) fn umask() -> Option<u32> {
    if sim::is_entered() { sim::umask() } else { host::umask() }
}

pub(super) fn pause(time: Duration) {
    if sim::is_entered() { sim::pause(time) } else { host::pause(time) }
}

/// Passes calls on to the disk that the file lies on.
macro_rules! pass_on {
    ($($(#[$when:meta])? $name:ident($($arg:ident: $kind:ty),*) -> $done:ty;)*) => {$(
        $(#[$when])?
        pub(super) fn $name(&self, $($arg: $kind),*) -> Result<$done> {
            match self {
                Self::Host(fd) => fd.$name($($arg),*),
                Self::Sim(fd) => fd.$name($($arg),*),
            }
        }
    )*};
}

impl Fd {
    pub(super) fn of(fd: OwnedFd) -> Self {
        Self::Host(host::Fd::of(fd))
    }

    pub(super) fn open(&self, name: &str, flags: OFlags, mode: u32) -> Result<Self> {
        match self {
            Self::Host(fd) => fd.open(name, flags, mode).map(Self::Host),
            Self::Sim(fd) => fd.open(name, flags, mode).map(Self::Sim),
        }
    }

    pub(super) fn reopen(&self, flags: OFlags) -> Result<Self> {
        match self {
            Self::Host(fd) => fd.reopen(flags).map(Self::Host),
            Self::Sim(fd) => fd.reopen(flags).map(Self::Sim),
        }
    }

    pub(super) fn rename(
        &self,
        from: &str,
        to_dir: &Self,
        to: &str,
        flags: RenameFlags,
    ) -> Result<()> {
        match (self, to_dir) {
            (Self::Host(fd), Self::Host(to_dir)) => fd.rename(from, to_dir, to, flags),
            (Self::Sim(fd), Self::Sim(to_dir)) => fd.rename(from, to_dir, to, flags),
            _ => Err(Errno::XDEV),
        }
    }

    pub(super) fn share_bytes_of(&self, source: &Self) -> Result<()> {
        match (self, source) {
            (Self::Host(fd), Self::Host(source)) => fd.share_bytes_of(source),
            (Self::Sim(fd), Self::Sim(source)) => fd.share_bytes_of(source),
            _ => Err(Errno::XDEV),
        }
    }

    pub(super) fn copy_range_of(&self, source: &Self, range: ByteRange) -> Result<usize> {
        match (self, source) {
            (Self::Host(fd), Self::Host(source)) => fd.copy_range_of(source, range),
            (Self::Sim(fd), Self::Sim(source)) => fd.copy_range_of(source, range),
            _ => Err(Errno::XDEV),
        }
    }

    pass_on! {
        make_dir(name: &str, mode: u32) -> ();
        unlink(name: &str, flags: AtFlags) -> ();
        #[cfg(feature = "encrypt")]
        link(from: &str, to: &str) -> ();
        stat() -> Facts;
        stat_at(name: &str) -> Facts;
        list(wanted: impl Fn(&str) -> bool) -> Vec<String>;
        set_mode(mode: u32) -> ();
        sync() -> ();
        sync_data() -> ();
        lock_whole(operation: FlockOperation) -> ();
        read_at(offset: u64, buffer: &mut [u8]) -> usize;
        write_at(offset: u64, bytes: &[u8]) -> usize;
        set_len(len: u64) -> ();
        allocate(flags: FallocateFlags, range: ByteRange) -> ();
        file_system() -> FileSystem;
        seek(to: SeekFrom) -> u64;
        evict(range: ByteRange) -> ();
        prefetch(range: ByteRange) -> ();
        lock(byte: LockByte) -> ();
        unlock(byte: LockByte) -> ();
        is_locked(byte: LockByte) -> bool;
    }
}
