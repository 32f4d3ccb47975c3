//! What may go wrong on a simulated disk.

use rustix::io::Errno;

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// `EIO`: the device fails.
    Io,
    /// `ENOSPC`: for calls that may need room.
    NoSpace,
    /// `EINTR`.
    Interrupted,
    /// `EINVAL`: as file systems answer that do not know what is asked of them.
    Invalid,
    /// Reads and writes do part of what they were asked for; other calls are done as ever.
    Short,
}

impl Failure {
    pub(super) fn errno(self) -> Option<Errno> {
        match self {
            Self::Io => Some(Errno::IO),
            Self::NoSpace => Some(Errno::NOSPC),
            Self::Interrupted => Some(Errno::INTR),
            Self::Invalid => Some(Errno::INVAL),
            Self::Short => None,
        }
    }
}

/// What is to happen at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The process that makes it dies before, or after.
    KillBefore,
    /// See [`Action::KillBefore`].
    KillAfter,
    /// Power is lost before; of what was not synced, about that share per cent stays.
    PowerBefore(u64),
    /// As [`Action::PowerBefore`], after the call.
    PowerAfter(u64),
    /// It is held until [`Simulation::release`](super::Simulation::release), before it has an
    /// effect.
    HoldBefore,
    /// As [`Action::HoldBefore`], after its effect.
    HoldAfter,
    /// It fails.
    Fail(Failure),
    /// It fails, and so do all calls after it.
    FailFrom(Failure),
    /// From now on the disk is full: what has room keeps it.
    Full,
}

/// What goes wrong at random: how many in a million calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Faults {
    /// Fail with `EIO`.
    pub io: u64,
    /// Fail with `ENOSPC`, where they may need room.
    pub no_space: u64,
    /// Fail with `EINTR`.
    pub interrupted: u64,
    /// Read or write less than they were asked for.
    pub short: u64,
    /// Take up to three seconds.
    pub delayed: u64,
    /// Take until faults end or their process does.
    pub hung: u64,
    /// Let others go first.
    pub interleaved: u64,
    /// Are followed by something written back without being asked for.
    pub written_back: u64,
    /// Of the syncs of image bytes: leave one wrong bit on the device.
    pub rotten_syncs: u64,
    /// Of the syncs of image bytes: put one page into the place of another, within 64 KiB.
    pub misdirected: u64,
    /// Of the reads of files that are flaky: give one wrong bit.
    pub flipped_reads: u64,
    /// Kill the process that makes them.
    pub killed: u64,
    /// Are the last before power is lost.
    pub power_lost: u64,
}
