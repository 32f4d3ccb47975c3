//! How a call to a simulated disk goes: it waits, fails, or has its effect, as is decided here.

use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::{Errno, Result};

use super::inode::Inode;
use super::{Action, Failure, Handle, Shared, World, fiber};
use crate::disk::{Facts, FileSystem, Kind};

/// A call that is about to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) name: &'static str,
    pub(super) process: u32,
    pub(super) inode: u64,
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) text: &'a str,
}

impl Call<'_> {
    /// Whether it may need room on the disk.
    fn needs_room(&self) -> bool {
        matches!(self.name, "create" | "mkdir" | "write" | "copy" | "allocate" | "rename" | "sync")
    }

    /// Whether it is one of those that a device can fail.
    fn needs_device(&self) -> bool {
        !matches!(self.name, "lock" | "unlock" | "flock" | "is_locked" | "evict" | "file_system")
    }

    fn moves_bytes(&self) -> bool {
        matches!(self.name, "read" | "write" | "copy")
    }
}

/// What the simulation has decided on a call.
enum Verdict {
    Done,
    Short,
    Failed(Errno),
}

impl Shared {
    /// Makes a call.
    pub(super) fn call<T>(
        &self,
        call: Call<'_>,
        effect: impl FnOnce(&mut World) -> Result<T>,
    ) -> Result<T> {
        self.call_bytes(call, |world, _| effect(world))
    }

    /// As [`Shared::call`], for one that may be told to do only so much of its `len`.
    pub(super) fn call_bytes<T>(
        &self,
        call: Call<'_>,
        effect: impl FnOnce(&mut World, u64) -> Result<T>,
    ) -> Result<T> {
        let mut world = self.world();
        let number = world.call_count;
        world.call_count += 1;
        let planned = world.plan.remove(&number);
        drop(world);
        if planned.is_some() {
            self.world().taken_count += 1;
            self.taken.notify_waiters();
        }
        self.stand(planned == Some(Action::HoldBefore));
        let mut world = self.world();
        // What was planned for a process that has died meanwhile must not befall the next one.
        let planned = planned.filter(|_| world.alive.contains(&call.process));
        match planned {
            Some(Action::KillBefore) => world.kill(call.process),
            Some(Action::PowerBefore(keep)) => world.lose_power(keep),
            Some(Action::Full) => world.volume.room.capacity = world.volume.room.used,
            _ => {}
        }
        let (is_alive, verdict) =
            (world.alive.contains(&call.process), world.judge(&call, planned));
        let len = match verdict {
            Verdict::Short if call.moves_bytes() => (call.len / 2).max(call.len.min(1)),
            _ => call.len,
        };
        let result = match verdict {
            _ if !is_alive => Err(Errno::IO),
            Verdict::Done | Verdict::Short => effect(&mut world, len),
            Verdict::Failed(errno) => {
                world.fail(&call, errno, |world| effect(world, call.len / 2).map(drop));
                Err(errno)
            }
        };
        world.end(&call, number, planned, result.as_ref().err());
        drop(world);
        if matches!(planned, Some(Action::KillAfter | Action::PowerAfter(_))) || !is_alive {
            self.told.notify_waiters();
        }
        self.stand(planned == Some(Action::HoldAfter));
        if self.world().alive.contains(&call.process) { result } else { Err(Errno::IO) }
    }

    /// Stands still for as long as the simulation has it.
    fn stand(&self, held: bool) {
        if held {
            self.world().holding = true;
            while self.world().holding && fiber::wait(self.told.clone()) {}
            return;
        }
        let mut world = self.world();
        let World { rng, faults, .. } = &mut *world;
        let faults = *faults;
        let is_hung = rng.chance(faults.hung, 1_000_000);
        let delay = match rng.chance(faults.delayed, 1_000_000) {
            true => Some(Duration::from_millis(rng.below(3000))),
            false => rng.chance(faults.interleaved, 1_000_000).then_some(Duration::ZERO),
        };
        drop(world);
        if is_hung {
            // Until it is killed, or faults end.
            fiber::wait(self.told.clone());
        } else if let Some(delay) = delay {
            fiber::pause(delay);
        }
    }
}

impl World {
    fn judge(&mut self, call: &Call<'_>, planned: Option<Action>) -> Verdict {
        let mut failure = self.lasting;
        match planned {
            Some(Action::Fail(once)) => failure = Some(once),
            Some(Action::FailFrom(lasting)) => {
                failure = Some(lasting);
                self.lasting = Some(lasting);
            }
            _ => {}
        }
        let faults = self.faults;
        let random = [
            (faults.io, Failure::Io),
            (faults.no_space, Failure::NoSpace),
            (faults.interrupted, Failure::Interrupted),
            (faults.short, Failure::Short),
        ];
        for (rate, random) in random {
            if self.rng.chance(rate, 1_000_000) {
                failure = failure.or(Some(random));
            }
        }
        match failure {
            Some(Failure::Io) if !call.needs_device() => Verdict::Done,
            Some(Failure::NoSpace) if !call.needs_room() => Verdict::Done,
            Some(Failure::Short) => Verdict::Short,
            Some(failure) => failure.errno().map_or(Verdict::Done, Verdict::Failed),
            None => Verdict::Done,
        }
    }

    /// A call fails: it may have had its effect, or part of it, all the same, unless it was
    /// interrupted or turned away.
    fn fail(
        &mut self,
        call: &Call<'_>,
        errno: Errno,
        effect: impl FnOnce(&mut Self) -> Result<()>,
    ) {
        if matches!(errno, Errno::INTR | Errno::INVAL) {
            return;
        }
        if call.name == "sync" {
            if let Ok(inode) = self.volume.inode_mut(call.inode) {
                inode.lose_dirty();
            }
        } else if matches!(call.name, "write" | "copy" | "rename" | "unlink" | "mkdir")
            && self.rng.chance(1, 2)
        {
            effect(self).ok();
        }
    }

    /// After a call.
    fn end(
        &mut self,
        call: &Call<'_>,
        number: u64,
        planned: Option<Action>,
        error: Option<&Errno>,
    ) {
        let Call { name, process, inode, at, len, text } = *call;
        let code = error.map(|errno| errno.raw_os_error());
        self.note(
            format_args!(
                "#{number} p{process} {name} {inode} {at}+{len} {text} {error:?} {planned:?}"
            ),
            (number, name, process, inode, at, len, text, code),
        );
        let faults = self.faults;
        if self.rng.chance(faults.written_back, 1_000_000) {
            let Self { volume, rng, .. } = self;
            volume.write_back(rng);
        }
        let dies = self.rng.chance(faults.killed, 1_000_000);
        let keep = [0, 30, 70, 100];
        match planned {
            Some(Action::KillAfter) => self.kill(process),
            Some(Action::PowerAfter(keep)) => self.lose_power(keep),
            _ if dies => self.kill(process),
            _ if self.rng.chance(faults.power_lost, 1_000_000) => {
                let keep = self.rng.pick(&keep).unwrap_or(0);
                self.lose_power(keep);
            }
            _ => {}
        }
    }

    pub(super) fn open(&mut self, inode: u64, process: u32, flags: OFlags) -> Result<(u64, u64)> {
        let found = self.volume.inode_mut(inode)?;
        match found.kind {
            Kind::Dir if flags.intersects(OFlags::RDWR | OFlags::WRONLY) => {
                return Err(Errno::ISDIR);
            }
            kind if flags.contains(OFlags::DIRECTORY) && kind != Kind::Dir => {
                return Err(Errno::NOTDIR);
            }
            _ => {}
        }
        found.open_count += 1;
        self.handle_next += 1;
        self.handles.insert(self.handle_next, Handle { inode, process });
        Ok((self.handle_next, inode))
    }

    pub(super) fn create(&mut self, dir: u64, name: &str, kind: Kind, mode: u32) -> Result<u64> {
        let now = self.now_ns();
        let mut fresh = Inode::new(kind, mode, now);
        fresh.is_data = name == "data";
        let number = self.volume.create(dir, name, fresh, &mut self.rng)?;
        self.volume.inode_mut(dir)?.changed_ns = now;
        Ok(number)
    }

    pub(super) fn facts(&self, number: u64) -> Result<Facts> {
        let inode = self.volume.inode(number)?;
        Ok(Facts {
            device: self.volume.device,
            inode: number,
            device_number: 0,
            size_bytes: inode.size(),
            mode: inode.mode(),
            owner: 0,
            mtime_ns: inode.changed_ns,
            ctime_ns: inode.changed_ns,
            kind: inode.kind,
        })
    }

    pub(super) fn touch(&mut self, number: u64) -> Result<()> {
        let now = self.now_ns();
        self.volume.inode_mut(number)?.changed_ns = now;
        Ok(())
    }

    pub(super) fn sync(&mut self, number: u64, data_only: bool) -> Result<()> {
        let Self { volume, rng, faults, .. } = self;
        if volume.inode(number)?.kind == Kind::Dir {
            volume.sync_names(number);
        }
        let inode = volume.inode_mut(number)?;
        let written = inode.sync(data_only);
        if inode.is_data && rng.chance(faults.rotten_syncs, 1_000_000) {
            inode.rot(&written, rng);
        }
        if inode.is_data && rng.chance(faults.misdirected, 1_000_000) {
            inode.misdirect(&written, rng);
        }
        Ok(())
    }

    pub(super) fn share(&mut self, source: u64, target: u64) -> Result<()> {
        if self.volume.file_system != FileSystem::Xfs {
            return Err(Errno::OPNOTSUPP);
        }
        self.touch(target)?;
        self.volume.share(source, target)
    }
}
