//! The system calls of a simulated disk, one function each.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, OFlags, RenameFlags, SeekFrom};
use rustix::io::{Errno, Result};

use super::calls::Call;
use super::{Shared, World, entered, fiber};
use crate::disk::{Facts, FileSystem, Kind, LockByte};
use crate::geometry::{ByteRange, to_u64, to_usize};

/// An open file description of a simulated disk.
#[derive(Debug)]
pub(in crate::disk) struct Fd {
    shared: Arc<Shared>,
    number: u64,
    inode: u64,
    process: u32,
}

/// The process whose path it is, and the path on the disk.
fn split(path: &Path) -> Result<(u32, &str)> {
    let path = path.to_str().and_then(|path| path.strip_prefix("/p")).ok_or(Errno::NOENT)?;
    let (process, path) = path.split_once('/').unwrap_or((path, ""));
    Ok((process.parse().map_err(|_| Errno::NOENT)?, path))
}

fn here() -> Result<Arc<Shared>> {
    entered().map(|simulation| simulation.shared).ok_or(Errno::NOSYS)
}

pub(in crate::disk) fn open(path: &Path, flags: OFlags) -> Result<Fd> {
    let ((process, text), shared) = (split(path)?, here()?);
    let call = Call { name: "open", process, inode: 0, at: 0, len: 0, text };
    let (number, inode) = shared.call(call, |world| {
        let inode = world.volume.walk(text)?;
        world.open(inode, process, flags)
    })?;
    Ok(Fd { shared, number, inode, process })
}

pub(in crate::disk) fn stat(path: &Path) -> Result<Facts> {
    let ((process, text), shared) = (split(path)?, here()?);
    let call = Call { name: "stat", process, inode: 0, at: 0, len: 0, text };
    shared.call(call, |world| world.facts(world.volume.walk(text)?))
}

pub(in crate::disk) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    let ((process, text), shared) = (split(path)?, here()?);
    let call = Call { name: "mkdir", process, inode: 0, at: 0, len: 0, text };
    let (folder, name) = text.rsplit_once('/').unwrap_or(("", text));
    shared.call(call, |world| {
        let dir = world.volume.walk(folder)?;
        world.create(dir, name, Kind::Dir, mode).map(drop)
    })
}

pub(in crate::disk) fn umask() -> Option<u32> {
    Some(0o022)
}

pub(in crate::disk) fn pause(time: Duration) {
    fiber::pause(time);
}

impl Fd {
    fn named<'a>(&self, name: &'static str, text: &'a str) -> Call<'a> {
        Call { name, process: self.process, inode: self.inode, at: 0, len: 0, text }
    }

    fn ranged(&self, name: &'static str, at: u64, len: u64) -> Call<'static> {
        Call { name, process: self.process, inode: self.inode, at, len, text: "" }
    }

    fn call<T>(
        &self,
        name: &'static str,
        effect: impl FnOnce(&mut World) -> Result<T>,
    ) -> Result<T> {
        self.shared.call(self.named(name, ""), effect)
    }

    fn with(&self, (number, inode): (u64, u64)) -> Self {
        Self { shared: self.shared.clone(), number, inode, process: self.process }
    }

    pub(in crate::disk) fn open(&self, name: &str, flags: OFlags, mode: u32) -> Result<Self> {
        let creates = flags.contains(OFlags::CREATE);
        let call = self.named(if creates { "create" } else { "open" }, name);
        let opened = self.shared.call(call, |world| {
            let inode = match name {
                "." => self.inode,
                _ if creates => world.create(self.inode, name, Kind::File, mode)?,
                _ => world.volume.find(self.inode, name)?,
            };
            world.open(inode, self.process, flags)
        })?;
        Ok(self.with(opened))
    }

    pub(in crate::disk) fn reopen(&self, flags: OFlags) -> Result<Self> {
        let opened = self.call("open", |world| {
            if flags.contains(OFlags::DIRECT) && world.volume.file_system == FileSystem::Tmpfs {
                return Err(Errno::INVAL);
            }
            world.open(self.inode, self.process, flags)
        })?;
        Ok(self.with(opened))
    }

    pub(in crate::disk) fn make_dir(&self, name: &str, mode: u32) -> Result<()> {
        let call = self.named("mkdir", name);
        self.shared.call(call, |world| world.create(self.inode, name, Kind::Dir, mode).map(drop))
    }

    pub(in crate::disk) fn unlink(&self, name: &str, flags: AtFlags) -> Result<()> {
        let is_dir = flags.contains(AtFlags::REMOVEDIR);
        let call = self.named("unlink", name);
        self.shared.call(call, |world| world.volume.unlink(self.inode, name, is_dir))
    }

    pub(in crate::disk) fn rename(
        &self,
        from: &str,
        to_dir: &Self,
        to: &str,
        flags: RenameFlags,
    ) -> Result<()> {
        let replaces = !flags.contains(RenameFlags::NOREPLACE);
        let call = Call { at: to_dir.inode, ..self.named("rename", to) };
        self.shared.call(call, |world| {
            world.volume.rename((self.inode, from), (to_dir.inode, to), replaces)
        })
    }

    /// A file of this disk has one name.
    #[cfg(feature = "encrypt")]
    pub(in crate::disk) fn link(&self, _from: &str, to: &str) -> Result<()> {
        self.shared.call(self.named("link", to), |_| Err(Errno::OPNOTSUPP))
    }

    pub(in crate::disk) fn stat(&self) -> Result<Facts> {
        self.call("stat", |world| world.facts(self.inode))
    }

    pub(in crate::disk) fn stat_at(&self, name: &str) -> Result<Facts> {
        let call = self.named("stat", name);
        self.shared.call(call, |world| world.facts(world.volume.find(self.inode, name)?))
    }

    pub(in crate::disk) fn list(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        self.call("list", |world| {
            let names = world.volume.inode(self.inode)?.entries.keys();
            Ok(names.filter(|name| wanted(name)).cloned().collect())
        })
    }

    pub(in crate::disk) fn set_mode(&self, mode: u32) -> Result<()> {
        self.call("set_mode", |world| {
            world.volume.inode_mut(self.inode)?.set_mode(mode);
            world.touch(self.inode)
        })
    }

    pub(in crate::disk) fn sync(&self) -> Result<()> {
        self.call("sync", |world| world.sync(self.inode, false))
    }

    pub(in crate::disk) fn sync_data(&self) -> Result<()> {
        self.call("sync", |world| world.sync(self.inode, true))
    }

    pub(in crate::disk) fn lock_whole(&self, operation: FlockOperation) -> Result<()> {
        self.call("flock", |world| {
            let inode = world.volume.inode_mut(self.inode)?;
            match (operation, inode.flock) {
                (FlockOperation::Unlock, holder) => {
                    inode.flock = holder.filter(|holder| *holder != self.number);
                }
                (_, Some(holder)) if holder != self.number => return Err(Errno::WOULDBLOCK),
                _ => inode.flock = Some(self.number),
            }
            Ok(())
        })
    }

    pub(in crate::disk) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let call = self.ranged("read", offset, to_u64(buffer.len()));
        self.shared.call_bytes(call, |world, len| {
            let part = &mut buffer[..to_usize(len)];
            let count = world.volume.inode(self.inode)?.read(offset, part);
            let World { rng, faults, flaky, .. } = world;
            if count > 0
                && flaky.contains(&self.inode)
                && rng.chance(faults.flipped_reads, 1_000_000)
            {
                part[to_usize(rng.below(to_u64(count)))] ^= 1;
            }
            Ok(count)
        })
    }

    pub(in crate::disk) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<usize> {
        let call = self.ranged("write", offset, to_u64(bytes.len()));
        self.shared.call_bytes(call, |world, len| {
            world.touch(self.inode)?;
            let (file, room) = world.volume.file(self.inode)?;
            file.write(offset, &bytes[..to_usize(len)], room)
        })
    }

    pub(in crate::disk) fn set_len(&self, len: u64) -> Result<()> {
        self.shared.call(self.ranged("set_len", len, 0), |world| {
            world.touch(self.inode)?;
            let (file, room) = world.volume.file(self.inode)?;
            file.set_len(len, room);
            Ok(())
        })
    }

    pub(in crate::disk) fn allocate(&self, flags: FallocateFlags, range: ByteRange) -> Result<()> {
        self.shared.call(self.ranged("allocate", range.offset, range.len), |world| {
            world.touch(self.inode)?;
            let is_other = world.volume.file_system == FileSystem::Other;
            let (file, room) = world.volume.file(self.inode)?;
            if is_other {
                Err(Errno::OPNOTSUPP)
            } else if flags.contains(FallocateFlags::PUNCH_HOLE) {
                file.zero(range, false, room)
            } else if flags.contains(FallocateFlags::ZERO_RANGE) {
                file.zero(range, true, room)
            } else {
                file.reserve(range, room)
            }
        })
    }

    pub(in crate::disk) fn file_system(&self) -> Result<FileSystem> {
        self.call("file_system", |world| Ok(world.volume.file_system))
    }

    pub(in crate::disk) fn share_bytes_of(&self, source: &Self) -> Result<()> {
        self.call("share", |world| world.share(source.inode, self.inode))
    }

    pub(in crate::disk) fn copy_range_of(&self, source: &Self, range: ByteRange) -> Result<usize> {
        let call = self.ranged("copy", range.offset, range.len);
        self.shared.call_bytes(call, |world, len| {
            if world.volume.file_system != FileSystem::Xfs {
                return Err(Errno::OPNOTSUPP);
            }
            let mut bytes = vec![0; to_usize(len)];
            let count = world.volume.inode(source.inode)?.read(range.offset, &mut bytes);
            world.touch(self.inode)?;
            let (file, room) = world.volume.file(self.inode)?;
            file.write(range.offset, &bytes[..count], room)
        })
    }

    pub(in crate::disk) fn seek(&self, to: SeekFrom) -> Result<u64> {
        self.call("seek", |world| {
            let lies = world.volume.file_system == FileSystem::Other;
            let inode = world.volume.inode(self.inode)?;
            match to {
                // Whoever trusts a file system that is not known takes data for a hole.
                SeekFrom::Data(_) if lies => Err(Errno::NXIO),
                SeekFrom::Data(offset) => inode.next_data(offset),
                SeekFrom::Hole(offset) => inode.next_hole(offset),
                _ => Ok(inode.size()),
            }
        })
    }

    pub(in crate::disk) fn evict(&self, range: ByteRange) -> Result<()> {
        self.shared.call(self.ranged("evict", range.offset, range.len), |world| {
            let (file, room) = world.volume.file(self.inode)?;
            file.evict(range, room);
            Ok(())
        })
    }

    /// Nothing is ever slow to read here.
    pub(in crate::disk) fn prefetch(&self, range: ByteRange) -> Result<()> {
        self.shared.call(self.ranged("prefetch", range.offset, range.len), |_| Ok(()))
    }

    pub(in crate::disk) fn lock(&self, byte: LockByte) -> Result<()> {
        self.shared.call(self.ranged("lock", byte.0, 1), |world| {
            let locks = &mut world.volume.inode_mut(self.inode)?.locks;
            match locks.get(&byte.0) {
                Some(holder) if *holder != self.number => return Err(Errno::AGAIN),
                _ => locks.insert(byte.0, self.number),
            };
            Ok(())
        })
    }

    pub(in crate::disk) fn unlock(&self, byte: LockByte) -> Result<()> {
        self.shared.call(self.ranged("unlock", byte.0, 1), |world| {
            let locks = &mut world.volume.inode_mut(self.inode)?.locks;
            if locks.get(&byte.0) == Some(&self.number) {
                locks.remove(&byte.0);
            }
            Ok(())
        })
    }

    pub(in crate::disk) fn is_locked(&self, byte: LockByte) -> Result<bool> {
        self.shared.call(self.ranged("is_locked", byte.0, 1), |world| {
            let holder = world.volume.inode(self.inode)?.locks.get(&byte.0);
            Ok(holder.is_some_and(|holder| *holder != self.number))
        })
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        self.shared.world().close(self.number);
    }
}
