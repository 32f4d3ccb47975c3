//! Encrypted images on the command line, checked with tools of others: `cmp`, `b3sum`, `kill -9`.
#![cfg(all(feature = "cli", feature = "encrypt"))]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::places::below;
use crate::world::{MIB, assert_same, b3sum};

const BINARY: &str = env!("CARGO_BIN_EXE_blockferry");
const MARK: &str = "IT-IS-IN-CLEAR-HERE:";

/// Two regions, a source in clear, a keyring with `k1` and `k2`.
struct World(tempfile::TempDir);

impl World {
    fn new(bytes: u64) -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        for name in ["a", "b"] {
            fs::create_dir(world.path(name)).unwrap();
        }
        let file = fs::File::create(world.path("disk.raw")).unwrap();
        file.set_len(bytes).unwrap();
        let lines: String = (0..MIB / 32).map(|n| format!("{MARK}{n:011}\n")).collect();
        for at in (0..bytes / MIB).filter(|at| at % 4 != 3) {
            file.write_all_at(lines.as_bytes(), at * MIB).unwrap();
            file.write_all_at(at.to_string().as_bytes(), at * MIB).unwrap();
        }
        world.good(&["keyring", "init", "keys"]);
        world.good(&["keyring", "add", "keys", "k1"]);
        world.good(&["keyring", "add", "keys", "k2"]);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn image(&self, region: &str, image: &str) -> String {
        format!("dir://{}/{image}", self.path(region).display())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(args).arg("--json").env("BLOCKFERRY_STATE_DIR", self.path("state"));
        command.env_remove("BLOCKFERRY_KEYRING").current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> (Option<i32>, Value, String) {
        let done = self.command(args).output().unwrap();
        let shown = [&done.stdout[..], &done.stderr].concat();
        let shown = String::from_utf8(shown).unwrap();
        assert!(!shown.contains("panicked"), "{shown}");
        let json = String::from_utf8(done.stdout).unwrap();
        let json = serde_json::from_str(&json).unwrap_or(Value::Null);
        (done.status.code(), json, shown)
    }

    #[track_caller]
    fn good(&self, args: &[&str]) -> Value {
        let (code, json, shown) = self.run(args);
        assert_eq!(code, Some(0), "{args:?}: {shown}");
        json
    }

    #[track_caller]
    fn refused(&self, args: &[&str], code: i32, kind: &str) {
        let (told, json, shown) = self.run(args);
        assert_eq!(
            (told, &json["error"]["kind"]),
            (Some(code), &Value::from(kind)),
            "{args:?}: {shown}"
        );
    }

    #[track_caller]
    fn assert_nothing_in_clear(&self, folder: &str) {
        for file in below(&self.path(folder)).unwrap() {
            let Ok(bytes) = fs::read(&file) else { continue };
            let found = bytes.windows(MARK.len()).any(|window| window == MARK.as_bytes());
            assert!(!found, "{file:?} holds the image in clear");
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_image_goes_from_clear_to_key_to_key_to_clear() {
    let world = World::new(10 * MIB);
    let (one, two) = (world.image("a", "one"), world.image("b", "two"));
    let with = ["--keyring", "keys"];
    let copy = |args: &[&str]| world.good(&[&["copy"], args, &with[..]].concat());
    let first = copy(&["disk.raw", &one, "--encrypt", "k1", "--verify", "full"]);
    assert_eq!(first["key"], "k1");
    let second = copy(&[&one, &two, "--encrypt", "k2"]);
    let third = copy(&[&two, "again.raw", "--decrypt"]);
    for told in [&second, &third] {
        assert_eq!(told["root"], first["root"], "the root is that of the text");
    }
    assert_same(&world.path("disk.raw"), &world.path("again.raw"));
    world.assert_nothing_in_clear("a");
    world.assert_nothing_in_clear("b");
    let digest = world.good(&["digest", &two, "--keyring", "keys"]);
    assert_eq!(digest["content_blake3"], b3sum(&world.path("disk.raw")).as_str());
    world.good(&["verify", &two, "--keyring", "keys"]);
    let show = world.good(&["show", first["job"].as_str().unwrap(), "--keyring", "keys"]);
    assert_eq!((&show["receipt"]["root"], &show["key"]), (&first["root"], &Value::from("k1")));
    let show = world.good(&["show", first["job"].as_str().unwrap()]);
    assert_eq!(show["receipt"]["root"], Value::Null, "without the key, the root is not known");

    // Without keys, with others, and to where it would lie in clear.
    world.refused(&["digest", &two], 1, "denied");
    world.refused(&["copy", &one, "out.raw"], 1, "denied");
    world.refused(&["copy", &one, "out.raw", "--keyring", "keys"], 1, "unsupported");
    world.refused(
        &["copy", "disk.raw", &world.image("b", "x"), "--encrypt", "k1"],
        1,
        "unsupported",
    );
    world.good(&["keyring", "init", "others"]);
    world.refused(&["digest", &two, "--keyring", "others"], 5, "not_found");
    world.good(&["keyring", "add", "others", "k2"]);
    world.refused(&["digest", &two, "--keyring", "others"], 1, "denied");
    world.refused(&["digest", &two, "--keyring", "missing"], 5, "not_found");

    // One flipped bit.
    let data = world.path("b/two/data");
    fs::set_permissions(&data, PermissionsExt::from_mode(0o600)).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(&data).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, MIB).unwrap();
    file.write_all_at(&[byte[0] ^ 1], MIB).unwrap();
    world.refused(&["verify", &two, "--keyring", "keys"], 1, "corrupt");
    world.refused(&["copy", &two, "bad.raw", "--decrypt", "--keyring", "keys"], 1, "corrupt");
    assert!(!world.path("bad.raw").exists());
}

#[test]
fn keys_are_listed_rotated_and_removed_and_never_shown() {
    let world = World::new(MIB);
    assert_eq!(mode(&world.path("keys")), 0o600);
    let one = world.image("a", "one");
    world.good(&["copy", "disk.raw", &one, "--keyring", "keys", "--encrypt", "k1"]);
    let rotated = world.good(&["keyring", "rotate", "keys", "k1"]);
    let told = |json: &Value| -> Vec<(String, u64)> {
        let keys = json["keys"].as_array().unwrap().iter();
        let one = |k: &Value| (k["key"].as_str().unwrap().into(), k["version"].as_u64().unwrap());
        keys.map(one).collect()
    };
    let expected = [("k1", 1), ("k1", 2), ("k2", 1)].map(|(key, n)| (key.to_owned(), n));
    assert_eq!(told(&rotated), expected);
    let before = fs::read(world.path("a/one/records")).unwrap();
    let rewrapped = world.good(&["rewrap", &one, "--to", "k1", "--keyring", "keys"]);
    assert_eq!((&rewrapped["from"], &rewrapped["to"]), (&Value::from("k1"), &Value::from("k1")));
    world.good(&["keyring", "remove", "keys", "k1", "--version", "1"]);
    world.good(&["verify", &one, "--keyring", "keys"]);
    world.good(&["rewrap", &one, "--to", "k2", "--keyring", "keys"]);
    world.good(&["keyring", "remove", "keys", "k1"]);
    world.good(&["verify", &one, "--keyring", "keys"]);
    assert_eq!(fs::read(world.path("a/one/records")).unwrap(), before, "no chunk is touched");
    world.refused(&["rewrap", &one, "--to", "k1", "--keyring", "keys"], 5, "not_found");
    world.refused(&["keyring", "remove", "keys", "k1"], 5, "not_found");
    world.refused(&["keyring", "add", "keys", "k2"], 5, "exists");
    world.refused(&["keyring", "add", "keys", "/k"], 2, "invalid");
    world.refused(&["keyring", "init", "keys"], 5, "exists");

    // No secret is in anything that is printed.
    let secret = fs::read(world.path("keys")).unwrap();
    let (_, _, shown) = world.run(&["keyring", "list", "keys"]);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for window in secret[14..secret.len() - 32].windows(8).filter(|w| w.iter().all(|b| *b != 0)) {
        assert!(!shown.contains(&hex(window)), "{shown}");
    }
    fs::set_permissions(world.path("keys"), PermissionsExt::from_mode(0o644)).unwrap();
    world.refused(&["keyring", "list", "keys"], 1, "denied");
    world.refused(&["verify", &one, "--keyring", "keys"], 1, "denied");
}

#[test]
fn a_copy_that_is_killed_tells_nothing_and_is_resumed() {
    let world = World::new(32 * MIB);
    let one = world.image("a", "one");
    for _ in 0..2 {
        let args = ["copy", "disk.raw", &one, "--encrypt", "k1", "--keyring", "keys"];
        let more = ["--rate", "8MiB/s", "--chunk-size", "1MiB", "--progress", "json"];
        let mut command = world.command(&[&args[..], &more].concat());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.as_mut().unwrap()).lines();
        let durable = |line: &Value| {
            line["stalls"]["sync"].as_f64() > Some(0.0) && line["written_bytes"].as_u64() > Some(0)
        };
        let parsed = lines.by_ref().map(|line| serde_json::from_str(&line.unwrap()).unwrap());
        let line: Value = { parsed }.find(durable).expect("the copy ended before it was caught");
        let job = line["job"].as_str().unwrap().to_owned();
        child.kill().unwrap();
        child.wait().unwrap();
        world.assert_nothing_in_clear("a");
        world.assert_nothing_in_clear("state");
        world.refused(&["resume", &job], 1, "unsupported");
        world.good(&["limit", &job, "--rate", "none"]);
        let told = world.good(&["resume", &job, "--keyring", "keys"]);
        assert!(told["resumed_bytes"].as_u64() > Some(0), "{told}");
        world.good(&["copy", &one, "again.raw", "--decrypt", "--keyring", "keys"]);
        assert_same(&world.path("disk.raw"), &world.path("again.raw"));
        world.assert_nothing_in_clear("a");
        fs::remove_file(world.path("again.raw")).unwrap();
        fs::remove_dir_all(world.path("a/one")).unwrap();
    }
}
