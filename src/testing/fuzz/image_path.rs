//! From an image id to a path: the grammar keeps it below its root, and the kernel does so too,
//! also for names that never saw the grammar.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Effort, assert_brief};
use crate::disk::{Dir, facts_of_path};
use crate::error::ErrorKind;
use crate::id::ImageId;

pub(super) fn check(bytes: &[u8], _: Effort) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    check_grammar(text);
    if let Ok(trap) = Trap::set() {
        trap.check(text);
        assert!(trap.remove(), "{text:?} has changed the folders");
    }
}

fn check_grammar(text: &str) {
    let told = text.parse::<ImageId>();
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    assert_eq!(told.is_ok(), first && text.len() <= 128 && text.bytes().all(plain), "{text:?}");
    match told {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert_brief(&error);
        }
        Ok(id) => {
            let path = Path::new("/srv/region").join(id.as_str());
            assert_eq!(path.parent(), Some(Path::new("/srv/region")), "{path:?}");
            let last = path.components().next_back();
            assert_eq!(last, Some(Component::Normal(text.as_ref())), "{path:?}");
        }
    }
}

/// A region's root with ways out of it: links up, across and to the host, absolute and relative.
struct Trap {
    above: PathBuf,
}

impl Trap {
    fn set() -> std::io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("blockferry-trap-{}-{number}", std::process::id());
        let trap = Self { above: std::env::temp_dir().join(name) };
        fs::create_dir_all(trap.above.join("root/m/d"))?;
        fs::write(trap.above.join("secret"), b"s")?;
        fs::write(trap.above.join("root/m/data"), b"d")?;
        symlink("..", trap.above.join("root/u"))?;
        symlink("../secret", trap.above.join("root/s"))?;
        symlink("/", trap.above.join("root/m/h"))?;
        symlink("m", trap.above.join("root/l"))?;
        Ok(trap)
    }

    fn check(&self, text: &str) {
        let Ok(root) = Dir::open_path(&self.above.join("root")) else { return };
        let inside = ["root", "root/m", "root/m/d", "root/m/data"].map(|name| self.inode(name));
        // A file or a folder that opens lies inside, whatever it is called; a link never opens.
        let opened = [
            root.open_file(text).and_then(|file| file.facts()),
            root.open_file_rw(text).and_then(|file| file.facts()),
            root.open_dir(text).and_then(|dir| dir.facts()),
        ];
        for facts in opened {
            match facts {
                Ok(facts) => assert!(inside.contains(&Some(facts.inode)), "{text:?} leads outside"),
                Err(error) => assert_brief(&error),
            }
        }
        // What the kernel does not resolve beneath the root takes a plain name only.
        if text.contains('/') || matches!(text, "" | "." | "..") {
            assert!(root.facts_of(text).is_err() && root.remove_file(text).is_err(), "{text:?}");
            assert!(root.remove_dir(text).is_err() && root.make_dir(text, 0o700).is_err());
            assert!(root.rename_no_replace("m", &root, text).is_err(), "{text:?}");
        }
    }

    fn inode(&self, name: &str) -> Option<u64> {
        facts_of_path(&self.above.join(name)).ok().flatten().map(|facts| facts.inode)
    }

    /// Takes it away, name by name; tells whether everything was as it had been set.
    fn remove(&self) -> bool {
        let files = ["root/m/h", "root/u", "root/s", "root/l", "root/m/data", "secret"];
        let folders = ["root/m/d", "root/m", "root", ""];
        let mut whole = true;
        for name in files {
            whole &= fs::remove_file(self.above.join(name)).is_ok();
        }
        for name in folders {
            whole &= fs::remove_dir(self.above.join(name)).is_ok();
        }
        whole
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "m",
        "m/data",
        "m/d",
        "u",
        "s",
        "l",
        "u/secret",
        "l/data",
        "m/h",
        "m/h/etc/passwd",
        "..",
        "../secret",
        "m/../../secret",
        "m/../m/data",
        ".",
        "",
        "/",
        "/etc/passwd",
        "a\0b",
        "-a",
        "ubuntu_22.04-x86..64",
        ".hidden",
        "ä",
        "%2e%2e",
        "m/./data",
        "m//data",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}
