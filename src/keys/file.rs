//! A keyring in a file: read anew for each use, changed by one rename.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::disk::{Dir, File, Kind};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::to_usize;
use crate::host;
use crate::id::KeyId;
use crate::keys::ring::{RING_LEN_MAX, Ring};
use crate::keys::{BoxFuture, DataKey, KeyInfo, KeyProvider};

/// Nobody but its owner may read or write it.
const MODE: u32 = 0o600;
/// What the names of unfinished files begin with, and no keyring's.
const UNFINISHED: &str = ".blockferry-";

/// Keys in a file of mode 0600: whoever can read it can read every image they wrap.
///
/// Put it on another device than the images. It is read anew at each use, so that a change by
/// another process holds at once, and secrets stay in memory only while they are used. Its methods
/// block shortly.
#[derive(Clone, Debug)]
pub struct FileKeyring {
    path: PathBuf,
}

impl FileKeyring {
    /// Makes an empty keyring in a file that is not there yet.
    ///
    /// # Errors
    /// `Exists` when something is there; `NotFound` when its folder is missing; `Invalid` for a
    /// name that begins with `.blockferry-`; `Unsupported` on a file system that can neither rename
    /// without replacing nor link.
    ///
    /// # Durability
    /// It survives power loss when this returns.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let ring = Self { path: path.into() };
        let made = ring.folder().and_then(|(dir, name)| {
            // Order: claim → temporary file → sync → rename → sync folder. Whoever finds it under
            // its name finds all of it.
            let _claim = dir.claim()?;
            if dir.facts_of(&name)?.is_some() {
                return Err(Error::new(ErrorKind::Exists, "create keyring"));
            }
            let temporary = write_temporary(&dir, &name, &Ring::default())?;
            match dir.rename_no_replace(&temporary, &dir, &name) {
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    link_in_place(&dir, &temporary, &name)?;
                }
                renamed => renamed?,
            }
            dir.sync()
        });
        made.map_err(|error| ring.named(error))?;
        Ok(ring)
    }

    /// Opens the keyring in that file, and looks whether it is one.
    ///
    /// # Errors
    /// `NotFound` when it is missing, `Denied` when others than its owner may read or write it or
    /// it is another user's, `Corrupt` when it is damaged, `Unsupported` when it was written by a
    /// newer version.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let ring = Self { path: path.into() };
        ring.read()?;
        Ok(ring)
    }

    /// Makes a key of that id.
    ///
    /// # Errors
    /// `Exists` when there is one; otherwise as [`FileKeyring::open`].
    ///
    /// # Durability
    /// It survives power loss when this returns; a crash leaves the old keyring or the new one.
    pub fn add(&self, key: &KeyId) -> Result<()> {
        let secret = DataKey::random()?;
        self.change(|ring| ring.add(key, secret, host::unix_ms()))
    }

    /// Gives the key a new version, which wraps from now on; returns its number. What older ones
    /// wrapped is read as before.
    ///
    /// # Errors
    /// `NotFound` for an unknown key; otherwise as [`FileKeyring::open`].
    ///
    /// # Durability
    /// As [`FileKeyring::add`].
    pub fn rotate(&self, key: &KeyId) -> Result<u32> {
        let secret = DataKey::random()?;
        self.change(|ring| ring.rotate(key, secret, host::unix_ms()))
    }

    /// Removes a version, or all of a key. What they wrapped can never be read again.
    ///
    /// # Errors
    /// `NotFound` for an unknown key or version; otherwise as [`FileKeyring::open`].
    ///
    /// # Durability
    /// As [`FileKeyring::add`]. What the device keeps of the old file is beyond this.
    pub fn remove(&self, key: &KeyId, version: Option<u32>) -> Result<()> {
        self.change(|ring| ring.remove(key, version))
    }

    /// Every version of every key.
    ///
    /// # Errors
    /// As [`FileKeyring::open`].
    pub fn list(&self) -> Result<Vec<KeyInfo>> {
        Ok(self.read()?.list())
    }

    fn read(&self) -> Result<Ring> {
        read(&self.path).map_err(|error| self.named(error))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Ring) -> Result<T>) -> Result<T> {
        let changed = self.folder().and_then(|(dir, name)| {
            // Order: claim → read → temporary file → sync → rename → sync folder.
            let _claim = dir.claim()?;
            let mut ring = read(&self.path)?;
            let told = change(&mut ring)?;
            let temporary = write_temporary(&dir, &name, &ring)?;
            dir.rename_over(&temporary, &name)?;
            dir.sync()?;
            Ok(told)
        });
        changed.map_err(|error| self.named(error))
    }

    fn folder(&self) -> Result<(Dir, String)> {
        let name = self.path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "use that path as a keyring").hint("name a file")
        })?;
        // Some file systems do not tell cases apart.
        let begins = name.get(..UNFINISHED.len());
        if begins.is_some_and(|begins| begins.eq_ignore_ascii_case(UNFINISHED)) {
            return Err(Error::new(ErrorKind::Invalid, "use that path as a keyring")
                .hint("unfinished files are called so: choose another name"));
        }
        let above = match self.path.parent() {
            Some(above) if !above.as_os_str().is_empty() => above,
            _ => Path::new("."),
        };
        Ok((Dir::open_path(above)?, name.to_owned()))
    }

    fn named(&self, error: Error) -> Error {
        error.within(self.path.display().to_string())
    }
}

/// Writes a keyring that is to be renamed, durable; the caller holds the claim on the folder.
fn write_temporary(dir: &Dir, name: &str, ring: &Ring) -> Result<String> {
    // Order: no keyring is called so, or it would be gone here.
    let temporary = format!("{UNFINISHED}{name}.new");
    dir.remove_file(&temporary)?;
    let file = dir.create_file(&temporary, MODE)?;
    file.write_at(0, &ring.encode())?;
    file.sync_all()?;
    Ok(temporary)
}

/// As a rename that replaces nothing, where the file system has none: NFS, 9p, FUSE.
fn link_in_place(dir: &Dir, temporary: &str, name: &str) -> Result<()> {
    let linked = dir.link(temporary, name);
    dir.remove_file(temporary)?;
    linked.map_err(|error| match error.kind() {
        ErrorKind::Unsupported => Error::new(ErrorKind::Unsupported, "create keyring")
            .hint("its file system can neither rename without replacing nor link: use another one")
            .because(error),
        _ => error,
    })
}

fn read(path: &Path) -> Result<Ring> {
    let file = File::open_path(path)?;
    let facts = file.facts()?;
    if facts.kind != Kind::File || facts.size_bytes > RING_LEN_MAX {
        return Err(Error::new(ErrorKind::Corrupt, "read keyring: it is no file of that kind"));
    }
    if facts.mode & 0o077 != 0 {
        return Err(Error::new(ErrorKind::Denied, "use a keyring that others may read or write")
            .hint("only its owner may: chmod 600 it, and rotate its keys if it was read"));
    }
    if !facts.is_ours() {
        let whose = format!("use a keyring of another user, uid {}", facts.owner);
        return Err(Error::new(ErrorKind::Denied, whose).hint(
            "run this as that user; or, if it should be yours, chown it and rotate its keys",
        ));
    }
    let mut bytes = Zeroizing::new(vec![0; to_usize(facts.size_bytes)]);
    let count = file.read_at(0, &mut bytes)?;
    Ring::decode(&bytes[..count])
}

impl KeyProvider for FileKeyring {
    fn wrap_key<'a>(
        &'a self,
        key: &'a KeyId,
        data_key: &'a DataKey,
        context: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>>> {
        let (ring, key) = (self.clone(), key.clone());
        let (data_key, context) = (data_key.clone(), context.to_vec());
        blocking(move || {
            let mut nonce = [0; 12];
            host::fill_random(&mut nonce)?;
            let wrapped = ring.read()?.wrap(&key, &data_key, &context, nonce);
            wrapped.map_err(|error| ring.named(error))
        })
    }

    fn unwrap_key<'a>(
        &'a self,
        key: &'a KeyId,
        wrapped: &'a [u8],
        context: &'a [u8],
    ) -> BoxFuture<'a, Result<DataKey>> {
        let (ring, key) = (self.clone(), key.clone());
        let (wrapped, context) = (wrapped.to_vec(), context.to_vec());
        blocking(move || {
            let opened = ring.read()?.open(&key, &wrapped, &context);
            opened.map_err(|error| ring.named(error))
        })
    }
}

fn blocking<'a, T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> BoxFuture<'a, Result<T>> {
    Box::pin(async move {
        match host::spawn_blocking(work).await {
            Ok(done) => done,
            Err(error) => Err(Error::new(ErrorKind::Io, "use a keyring").because(error)),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn keys_are_kept_across_handles_and_wrap_what_they_unwrap() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("keys");
        let key: KeyId = "k".parse().unwrap();
        let ring = FileKeyring::create(&path).unwrap();
        assert_eq!(FileKeyring::create(&path).unwrap_err().kind(), ErrorKind::Exists);
        ring.add(&key).unwrap();
        assert_eq!(ring.add(&key).unwrap_err().kind(), ErrorKind::Exists);
        let data = DataKey::random().unwrap();
        let wrapped = ring.wrap_key(&key, &data, b"c").await.unwrap();
        let again = FileKeyring::open(&path).unwrap();
        assert_eq!(again.rotate(&key).unwrap(), 2);
        assert_eq!(ring.list().unwrap().len(), 2, "a change by another handle holds at once");
        assert_eq!(again.unwrap_key(&key, &wrapped, b"c").await.unwrap(), data);
        again.remove(&key, Some(1)).unwrap();
        let gone = ring.unwrap_key(&key, &wrapped, b"c").await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
        let names: Vec<_> = std::fs::read_dir(temp.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing temporary is left");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
    }

    #[test]
    fn a_keyring_that_others_may_read_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("keys");
        let ring = FileKeyring::create(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o644] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(FileKeyring::open(&path).unwrap_err().kind(), ErrorKind::Denied, "{mode:o}");
            assert!(ring.list().is_err() && ring.add(&"k".parse().unwrap()).is_err());
        }
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a skipped test says why")]
    fn a_keyring_of_another_user_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("keys");
        let ring = FileKeyring::create(&path).unwrap();
        if let Err(error) = std::os::unix::fs::chown(&path, Some(65_534), None) {
            eprintln!("skipped: a file cannot be given away: {error}");
            return;
        }
        let refused = FileKeyring::open(&path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Denied);
        assert!(refused.to_string().contains("65534"), "{refused}");
        assert!(ring.list().is_err() && ring.add(&"k".parse().unwrap()).is_err());
    }

    #[test]
    fn no_keyring_is_taken_for_an_unfinished_one() {
        let temp = tempfile::tempdir().unwrap();
        let (first, second) = (temp.path().join("ring.new"), temp.path().join("ring"));
        let key: KeyId = "k".parse().unwrap();
        let ring = FileKeyring::create(&first).unwrap();
        ring.add(&key).unwrap();
        FileKeyring::create(&second).unwrap().add(&key).unwrap();
        assert_eq!(ring.list().unwrap().len(), 1);
        // What a crash has left is in nobody's way.
        std::fs::write(temp.path().join(".blockferry-ring.new"), b"half").unwrap();
        FileKeyring::open(&second).unwrap().rotate(&key).unwrap();
        for name in [".blockferry-ring.new", ".Blockferry-x"] {
            let refused = FileKeyring::create(temp.path().join(name)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
        }
        let mut names: Vec<_> = std::fs::read_dir(temp.path()).unwrap().collect();
        names.sort_by_key(|name| name.as_ref().unwrap().file_name());
        let names: Vec<_> = names.into_iter().map(|name| name.unwrap().file_name()).collect();
        assert_eq!(names, ["ring", "ring.new"]);
    }

    #[test]
    fn a_keyring_is_linked_into_place_and_replaces_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_path(temp.path()).unwrap();
        let path = temp.path().join("ring");
        for expected in [None, Some(ErrorKind::Exists)] {
            let temporary = write_temporary(&dir, "ring", &Ring::default()).unwrap();
            let told = link_in_place(&dir, &temporary, "ring").err();
            assert_eq!(told.map(|error| error.kind()), expected);
            assert_eq!(dir.names(|_| true).unwrap(), ["ring"]);
            let ring = FileKeyring::open(&path).unwrap();
            if expected.is_none() {
                ring.add(&"k".parse().unwrap()).unwrap();
            }
            assert_eq!(ring.list().unwrap().len(), 1);
        }
    }

    #[cfg(feature = "testing")]
    #[test]
    fn a_file_system_that_cannot_put_a_keyring_into_place_is_told() {
        use crate::testing::{Action, Failure, Simulation};
        let mut refused_count = 0;
        for call in 0.. {
            let sim = Simulation::new(call);
            let _entered = sim.enter();
            sim.make_dir("keys").unwrap();
            let process = sim.process();
            sim.plan(sim.call_count() + call, Action::Fail(Failure::Invalid));
            let made = FileKeyring::create(process.path("keys/ring"));
            if sim.taken_count() == 0 {
                break;
            }
            let Some(error) = made.err().filter(|it| it.kind() == ErrorKind::Unsupported) else {
                continue;
            };
            assert!(error.report().contains("nor link"), "{}", error.report());
            assert_eq!(sim.paths("keys"), [""; 0]);
            refused_count += 1;
        }
        assert_eq!(refused_count, 1, "the rename alone");
    }

    #[test]
    fn what_is_no_keyring_is_refused_and_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("keys");
        assert_eq!(FileKeyring::open(&path).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(FileKeyring::open(temp.path()).unwrap_err().kind(), ErrorKind::Corrupt);
        let ring = FileKeyring::create(&path).unwrap();
        std::fs::write(&path, b"not one").unwrap();
        assert_eq!(FileKeyring::open(&path).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(ring.add(&"k".parse().unwrap()).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(std::fs::read(&path).unwrap(), b"not one");
    }
}
