//! Folders: names resolved beneath one, listed, renamed, removed and made durable.

use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, OFlags, RenameFlags};
use rustix::io::{Errno, retry_on_intr};
use tokio::time::Instant;

use super::sys::{self, Fd};
use super::{Facts, File, hostile, io};
use crate::error::{Error, ErrorKind, Result};
use crate::sabotage;

/// An open folder. Names are resolved beneath it and never through a symbolic link.
#[derive(Debug)]
pub(crate) struct Dir(Fd);

const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

impl Dir {
    /// Opens a folder by the path that a person gave; symbolic links are followed, as the shell
    /// does.
    pub(crate) fn open_path(path: &Path) -> Result<Self> {
        retry_on_intr(|| sys::open(path, DIR_FLAGS)).map(Self).map_err(|errno| match errno {
            Errno::NOTDIR => Error::new(ErrorKind::Invalid, "open folder").because(io(errno)),
            _ => Error::io("open folder", errno),
        })
    }

    /// Opens a folder by path, and makes it, and those above it, with mode 0700 where they are
    /// missing. The names of those that it makes are durable when it returns.
    pub(crate) fn open_or_create_path(path: &Path) -> Result<Self> {
        // What cannot be looked at may well be there: opening it tells what is wrong.
        let is_missing = |above: &Path| {
            let there = || retry_on_intr(|| sys::stat(above));
            !above.as_os_str().is_empty() && there().is_err_and(|errno| errno == Errno::NOENT)
        };
        let missing: Vec<&Path> = path.ancestors().take_while(|above| is_missing(above)).collect();
        // Whoever made the last one that is there may have died before its sync.
        let last = path.ancestors().nth(missing.len()).and_then(folder_of);
        if let Some(above) = last
            && let Ok(above) = Self::open_path(above)
        {
            above.sync()?;
        }
        // Order: from the top, so that what is durable hangs on what is.
        for made in missing.into_iter().rev() {
            match retry_on_intr(|| sys::make_dir(made, 0o700)) {
                // Others may be making it at this moment.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::io("create folder", errno)),
            }
            Self::open_path(folder_of(made).unwrap_or(Path::new(".")))?.sync()?;
        }
        Self::open_path(path)
    }

    fn open(&self, name: &str, flags: OFlags, mode: u32) -> rustix::io::Result<Fd> {
        // Not O_NOFOLLOW: it would let the link itself be opened, and blame what is not a folder
        // instead of the link. Names are resolved such that every link is refused, the last one
        // too.
        retry_on_intr(|| self.0.open(name, flags, mode))
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
        let name = Self::plain(name)?;
        retry_on_intr(|| self.0.make_dir(name, mode))
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
            .map(File::of)
            .map_err(|errno| hostile("create file", errno))
    }

    /// Opens a file for reading.
    pub(crate) fn open_file(&self, name: &str) -> Result<File> {
        // O_NONBLOCK: a FIFO under that name must not hang us. It changes nothing for regular
        // files.
        self.open(name, OFlags::RDONLY | OFlags::NONBLOCK, 0)
            .map(File::of)
            .map_err(|errno| hostile("open file", errno))
    }

    /// Opens a file for reading and writing.
    pub(crate) fn open_file_rw(&self, name: &str) -> Result<File> {
        self.open(name, OFlags::RDWR | OFlags::NONBLOCK, 0)
            .map(File::of)
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

    /// Calls that the kernel does not resolve beneath the folder take one plain name only, whatever
    /// a journal or a caller says.
    fn plain(name: &str) -> Result<&str> {
        if name.is_empty() || name.contains(['/', '\0']) || matches!(name, "." | "..") {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("use {name:?} as a name in a folder"),
            )
            .hint("it leads elsewhere"));
        }
        Ok(name)
    }

    /// Facts of what that name refers to, not following a symbolic link; `None` where there is
    /// nothing.
    pub(crate) fn facts_of(&self, name: &str) -> Result<Option<Facts>> {
        let name = Self::plain(name)?;
        match retry_on_intr(|| self.0.stat_at(name)) {
            Ok(facts) => Ok(Some(facts)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::io("look up name", errno)),
        }
    }

    /// Whether that name leads to what these are the facts of.
    pub(crate) fn leads_to(&self, name: &str, facts: &Facts) -> Result<bool> {
        Ok(self.facts_of(name)?.is_some_and(|named| named.same_file(facts)))
    }

    /// Facts of this folder.
    pub(crate) fn facts(&self) -> Result<Facts> {
        super::facts_of(&self.0)
    }

    /// The names in this folder for which `wanted` is true. Names that are not UTF-8 are none of
    /// ours and are left out.
    pub(crate) fn names(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        // A handle of its own: a folder's read position belongs to the open file description.
        let again = self.reopen()?;
        let listed = again.0.list(wanted);
        let mut names = listed.map_err(|errno| Error::io("list folder", errno))?;
        names.sort_unstable();
        Ok(names)
    }

    /// Renames `from` here to `to` in `to_dir`; a name that is taken is [`ErrorKind::Exists`] and
    /// is never replaced.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] on file systems without `RENAME_NOREPLACE`.
    pub(crate) fn rename_no_replace(&self, from: &str, to_dir: &Dir, to: &str) -> Result<()> {
        let (from, to) = (Self::plain(from)?, Self::plain(to)?);
        let sabotaged = sabotage::is("M6");
        let flags = if sabotaged { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let rename = || self.0.rename(from, &to_dir.0, to, flags);
        retry_on_intr(rename).map_err(|errno| match errno {
            Errno::INVAL => Error::new(ErrorKind::Unsupported, "rename without replacing")
                .hint("the file system cannot commit atomically")
                .because(io(errno)),
            _ => Error::io("rename without replacing", errno),
        })
    }

    /// Gives the file `from` the name `to` as well; a name that is taken is [`ErrorKind::Exists`].
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] on file systems where a file has one name.
    #[cfg(feature = "encrypt")]
    pub(crate) fn link(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (Self::plain(from)?, Self::plain(to)?);
        retry_on_intr(|| self.0.link(from, to)).map_err(|errno| match errno {
            Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK => {
                Error::new(ErrorKind::Unsupported, "give a file a second name").because(io(errno))
            }
            _ => Error::io("give a file a second name", errno),
        })
    }

    /// Renames `from` over `to` in this folder.
    pub(crate) fn rename_over(&self, from: &str, to: &str) -> Result<()> {
        retry_on_intr(|| self.0.rename(from, &self.0, to, RenameFlags::empty()))
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
        let name = Self::plain(name)?;
        match retry_on_intr(|| self.0.unlink(name, flags)) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::io(action, errno)),
        }
    }

    pub(crate) fn set_mode(&self, mode: u32) -> Result<()> {
        retry_on_intr(|| self.0.set_mode(mode)).map_err(|errno| Error::io("set folder mode", errno))
    }

    /// Makes the entries of this folder durable.
    pub(crate) fn sync(&self) -> Result<()> {
        retry_on_intr(|| self.0.sync()).map_err(|errno| Error::io("sync folder", errno))
    }

    /// Waits for the exclusive claim on this folder, at most 30 seconds; it ends when the value is
    /// dropped, or its process is gone.
    pub(crate) fn claim(&self) -> Result<DirClaim> {
        // A handle of its own: two claims over one open file description would not exclude each
        // other.
        let own = self.reopen()?;
        let began = Instant::now();
        loop {
            let lock = FlockOperation::NonBlockingLockExclusive;
            match retry_on_intr(|| own.0.lock_whole(lock)) {
                Ok(()) => return Ok(DirClaim { held: own }),
                Err(_) if sabotage::is("M29") => return Ok(DirClaim { held: own }),
                Err(Errno::WOULDBLOCK) if began.elapsed() < CLAIM_TIMEOUT => sys::pause(CLAIM_POLL),
                Err(Errno::WOULDBLOCK) => {
                    return Err(Error::new(ErrorKind::Busy, "claim the folder of the stages")
                        .hint("another process has held it for 30 seconds; is it stopped?")
                        .retryable(true));
                }
                Err(errno) => return Err(Error::io("lock folder", errno)),
            }
        }
    }

    /// Another handle to the same folder.
    pub(crate) fn reopen(&self) -> Result<Self> {
        self.open_dir(".")
    }
}

/// How long one waits for a claim: those who hold one are soon done, or stopped.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(30);
const CLAIM_POLL: Duration = Duration::from_millis(2);

/// The exclusive claim on a folder, held until dropped.
#[derive(Debug)]
pub(crate) struct DirClaim {
    held: Dir,
}

impl Drop for DirClaim {
    fn drop(&mut self) {
        // By hand: a child that was forked at this moment would keep the claim for a while.
        retry_on_intr(|| self.held.0.lock_whole(FlockOperation::Unlock)).ok();
    }
}

/// The folder that a path's last name is in: the present one where the path is that name alone.
fn folder_of(path: &Path) -> Option<&Path> {
    let above = path.parent()?;
    Some(if above.as_os_str().is_empty() { Path::new(".") } else { above })
}

fn absent_is_none<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
