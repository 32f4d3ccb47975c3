//! The command line as scripts see it: the real binary, its exit codes, its JSON, its one line of
//! error.
#![cfg(feature = "cli")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail the test that calls them"
)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_blockferry");
const MIB: u64 = 1 << 20;
/// Slow enough to be caught in the middle of [`DATA_BYTES`].
const RATE: &str = "8MiB/s";
const DATA_BYTES: u64 = 24 * MIB;
const DEADLINE: Duration = Duration::from_secs(60);
const COPY_FIELDS: [&str; 14] = [
    "job",
    "outcome",
    "image_bytes",
    "data_bytes",
    "zero_bytes",
    "read_bytes",
    "written_bytes",
    "resumed_bytes",
    "reused_bytes",
    "chunks",
    "root",
    "elapsed_ms",
    "stalls",
    "error",
];

// ---- A world to run it in ----

/// A folder with two regions, a state folder and a sparse source image.
struct World {
    temp: TempDir,
}

/// What one run gave.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    json: Value,
    stdout: String,
    stderr: String,
}

impl World {
    fn new() -> Self {
        let world = Self { temp: tempfile::tempdir().unwrap() };
        for folder in ["a", "b", "files"] {
            fs::create_dir(world.path(folder)).unwrap();
        }
        make_image(&world.path("disk.raw"));
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().canonicalize().unwrap().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn image(&self, region: &str, image: &str) -> String {
        format!("dir://{}/{image}", self.text(region))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(args).arg("--json").env("BLOCKFERRY_STATE_DIR", self.path("state"));
        command.current_dir(self.temp.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        ran(self.command(args))
    }

    /// Runs it and expects success.
    fn good(&self, args: &[&str]) -> Value {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
        assert_eq!(ran.json["error"], Value::Null, "{args:?}");
        ran.json
    }

    /// Runs it and expects that refusal, and that nothing is changed by it.
    fn refused(&self, args: &[&str], code: i32, kind: &str) -> Ran {
        let before = self.listing();
        let ran = self.run(args);
        check_refusal(&ran, code, kind);
        assert_eq!(self.listing(), before, "{args:?} changed something");
        ran
    }

    /// Every file and its size, but for the state folder.
    fn listing(&self) -> Vec<(PathBuf, u64)> {
        let mut all = files_below(self.temp.path());
        all.retain(|(path, _)| !path.components().any(|part| part.as_os_str() == "state"));
        all
    }

    /// A copy at a low rate, caught when some of it is durable and most is not done.
    fn caught(&self, source: &str, target: &str, more: &[&str]) -> (Child, String) {
        let mut args = vec!["copy", source, target, "--rate", RATE, "--chunk-size", "1MiB"];
        args.extend(["--progress", "json"]);
        args.extend(more);
        let mut command = self.command(&args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.as_mut().unwrap()).lines();
        let durable = |line: &Value| {
            line["stalls"]["sync"].as_f64() > Some(0.0) && line["written_bytes"].as_u64() > Some(0)
        };
        let line = lines.by_ref().map(|line| parse(&line.unwrap())).find(durable);
        let line = line.expect("the copy ended before it was caught");
        let job = line["job"].as_str().unwrap().to_owned();
        (child, job)
    }
}

fn ran(mut command: Command) -> Ran {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
    Ran { code: output.status.code(), json: parse(&stdout), stdout, stderr }
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or(Value::Null)
}

/// The end of a copy that runs beside us.
fn ended(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    Ran { code: output.status.code(), json: parse(&stdout), stdout, stderr }
}

fn check_refusal(ran: &Ran, code: i32, kind: &str) {
    assert_eq!(ran.code, Some(code), "{ran:?}");
    assert_eq!(ran.json["error"]["kind"], kind, "{ran:?}");
    assert_eq!(ran.stdout.lines().count(), 1, "one object on one line: {ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "one line of error: {ran:?}");
    assert!(ran.stderr.starts_with("blockferry: "), "{ran:?}");
    let message = ran.json["error"]["message"].as_str().unwrap();
    assert!(ran.stderr.contains(message), "{ran:?}");
}

/// 64 MiB: data, written zeros and holes.
fn make_image(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(64 * MIB).unwrap();
    let mut state = 1_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()
    };
    for piece in 0..DATA_BYTES / MIB {
        let bytes: Vec<u8> = (0..MIB / 8).flat_map(|_| noise()).collect();
        file.write_all_at(&bytes, piece * 2 * MIB).unwrap();
    }
    file.write_all_at(&vec![0; 1 << 20], 60 * MIB).unwrap();
}

fn files_below(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let facts = fs::symlink_metadata(&path).unwrap();
        if facts.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push((path, facts.len()));
        }
    }
    files.sort();
    files
}

fn regular_files(folder: &Path) -> usize {
    files_below(folder).len()
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").arg(name).arg(child.id().to_string()).status().unwrap();
    assert!(status.success());
}

/// Asks again until it is so.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < DEADLINE, "waited in vain: {what}");
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "waits for another process")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

/// Whether a tool is there; tells when a test is left out for want of it.
fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    if !found {
        skip(&format!("{tool} is not installed"));
    }
    found
}

#[expect(clippy::print_stdout, reason = "a test that is left out says so")]
fn skip(why: &str) {
    let required = std::env::var_os("BLOCKFERRY_REQUIRE_ALL").is_some_and(|set| set == "1");
    assert!(!required, "may not be skipped: {why}");
    println!("skipped: {why}");
}

fn count(json: &Value, field: &str) -> u64 {
    json[field].as_u64().unwrap_or_else(|| panic!("{field} in {json}"))
}

// ---- Bad input ----

#[test]
fn bad_sources_and_destinations_are_refused_and_nothing_changes() {
    let world = World::new();
    let target = world.image("a", "m-1");
    fs::write(world.path("there.raw"), "x").unwrap();
    world.good(&["copy", "disk.raw", &world.image("b", "taken")]);

    world.refused(&["copy", "missing.raw", &target], 5, "not_found");
    world.refused(&["copy", "missing/disk.raw", &target], 5, "not_found");
    world.refused(&["copy", &world.image("a", "missing"), &target], 5, "not_found");
    world.refused(&["copy", "a", &target], 2, "invalid");
    world.refused(&["copy", ".", &target], 2, "invalid");
    world.refused(&["copy", "disk.raw", "there.raw"], 5, "exists");
    world.refused(&["copy", "disk.raw", "a"], 5, "exists");
    world.refused(&["copy", "disk.raw", &world.image("b", "taken")], 5, "exists");
    world.refused(&["copy", "disk.raw", "nowhere/x.raw"], 5, "not_found");
    fs::create_dir_all(world.path("b/.blockferry/stage")).unwrap();
    world.refused(&["copy", "disk.raw", "b/.blockferry/stage/x.raw"], 2, "invalid");
    world.refused(&["copy", "disk.raw", &world.image("b/.blockferry", "x")], 2, "invalid");
    world.refused(&["copy", "disk.raw", &world.image("nowhere", "m-1")], 5, "not_found");
    world.refused(&["copy", "disk.raw", "disk.raw"], 2, "invalid");
    let inside = world.text("b/taken/inside.raw");
    world.refused(&["copy", &world.image("b", "taken"), &inside], 2, "invalid");
    let nested = format!("dir://{}/inside", world.text("b/taken"));
    world.refused(&["copy", &world.image("b", "taken"), &nested], 2, "invalid");
}

#[test]
fn malformed_arguments_are_usage_errors() {
    let world = World::new();
    let target = world.image("a", "m-1");
    let copy = |more: &[&str]| {
        let mut args = vec!["copy", "disk.raw", target.as_str()];
        args.extend(more);
        world.refused(&args, 2, "invalid")
    };
    for size in ["0", "3MiB", "32KiB", "128MiB", "x", ""] {
        copy(&["--chunk-size", size]);
    }
    for rate in ["fast", "-1", ""] {
        copy(&[&format!("--rate={rate}")]);
    }
    copy(&["--verify", "sample:0%"]);
    copy(&["--attribute", "no-value"]);
    copy(&["--token", ""]);
    let blank = copy(&["--frobnicate"]);
    let fields: Vec<&String> = blank.json.as_object().unwrap().keys().collect();
    COPY_FIELDS.iter().for_each(|field| assert!(fields.iter().any(|f| f == field), "{field}"));
    assert_eq!((&blank.json["job"], &blank.json["outcome"]), (&Value::Null, &"failed".into()));

    for id in ["", "x/../y", "..", ".", "x\u{1}y", "-x", "%2e%2e", &"x".repeat(129)] {
        world.refused(&["copy", "disk.raw", &world.image("a", id)], 2, "invalid");
    }
    for bad in ["s4://x/y", "dir://relative/m-1", "file://host/x", "", "dir:///m-1"] {
        world.refused(&["copy", "disk.raw", bad], 2, "invalid");
    }
    world.refused(&["frobnicate"], 2, "invalid");
    world.refused(&["verify", "disk.raw"], 2, "invalid");
}

#[test]
fn unknown_jobs_are_not_found() {
    let world = World::new();
    let job = "0123456789abcdef0123456789abcdef";
    for verb in ["resume", "suspend", "show", "forget"] {
        world.refused(&[verb, job], 5, "not_found");
    }
    world.refused(&["limit", job, "--rate", "1MiB/s"], 5, "not_found");
    let answer = world.refused(&["cancel", job], 5, "not_found").json;
    assert_eq!((&answer["answer"], &answer["decided"]), (&"not_found".into(), &false.into()));
    let answer = world.refused(&["cancel", &world.image("a", "none")], 5, "not_found").json;
    assert_eq!((&answer["answer"], &answer["decided"]), (&"not_found".into(), &false.into()));
    // The beginning of a job's number is taken for a file: the answer says how long a number is.
    let answer = world.refused(&["cancel", "0123456789abcdef"], 5, "not_found");
    assert!(answer.stderr.contains("32 hexadecimal digits"), "{}", answer.stderr);
    let answer = world.run(&["cancel", "disk.raw"]);
    assert_eq!((answer.code, &answer.json["answer"]), (Some(5), &"not_a_copy".into()));
}

#[test]
fn what_may_not_be_read_or_written_is_denied() {
    let world = World::new();
    // Root may do everything, so another user runs a binary that it may reach.
    let binary = world.path("blockferry");
    fs::copy(BINARY, &binary).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(world.temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(world.path("other")).unwrap();
    fs::set_permissions(world.path("other"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(world.path("disk.raw"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::write(world.path("open.raw"), "x").unwrap();
    fs::set_permissions(world.path("open.raw"), fs::Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(world.path("b"), fs::Permissions::from_mode(0o555)).unwrap();
    let is_root = fs::metadata("/proc/self").is_ok_and(|facts| {
        use std::os::unix::fs::MetadataExt;
        facts.uid() == 0
    });
    let run = |args: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(args).arg("--json").arg("--state-dir").arg(world.path("other/state"));
        command.current_dir(world.temp.path());
        if is_root {
            command.uid(65534).gid(65534);
        }
        ran(command)
    };
    check_refusal(&run(&["copy", "disk.raw", "other/x.raw"]), 1, "denied");
    check_refusal(&run(&["copy", "open.raw", "b/x.raw"]), 1, "denied");
    check_refusal(&run(&["copy", "open.raw", &world.image("b", "m-1")]), 1, "denied");
    assert_eq!(regular_files(&world.path("b")), 0);
}

#[test]
fn a_manifest_of_a_newer_version_is_unsupported() {
    let world = World::new();
    let image = world.image("a", "m-1");
    world.good(&["copy", "disk.raw", &image]);
    patch(&world.path("a/m-1/manifest"), 8, &[2, 0]);
    for verb in ["digest", "verify"] {
        world.refused(&[verb, &image], 1, "unsupported");
    }
    world.refused(&["copy", &image, "out.raw"], 1, "unsupported");
}

#[test]
fn a_damaged_journal_is_corrupt_and_left_alone_until_cancelled() {
    let world = World::new();
    let (child, job) = world.caught("disk.raw", &world.image("a", "m-1"), &[]);
    signal(&child, "-INT");
    assert_eq!(ended(child).code, Some(3));
    let journal = world.path(&format!("a/.blockferry/stage/{job}/journal"));
    // The first record of the log; a valid one follows it.
    patch(&journal, (48 << 10) + 40, &[0xff, 0xff]);
    world.refused(&["resume", &job], 1, "corrupt");
    let region = format!("dir://{}", world.text("a"));
    let found = world.refused(&["recover", &region], 1, "corrupt");
    assert_eq!(found.json["recovered"][0]["error"]["kind"], "corrupt");
    assert_eq!(world.good(&["cancel", &job])["clean"], true);
    assert_eq!(regular_files(&world.path("a")), 0);
}

fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    let mode = fs::metadata(path).unwrap().permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

// ---- Copies ----

#[test]
fn a_copy_tells_what_it_did_and_the_digests_are_those_of_b3sum() {
    let world = World::new();
    let image = world.image("a", "m-1");
    let told = world.good(&["copy", "disk.raw", &image, "--attribute", "os=linux"]);
    COPY_FIELDS.iter().for_each(|field| assert!(told.get(field).is_some(), "{field}"));
    assert_eq!(told["outcome"], "committed");
    assert_eq!(count(&told, "image_bytes"), 64 * MIB);
    assert_eq!(count(&told, "data_bytes") + count(&told, "zero_bytes"), 64 * MIB);
    assert_eq!(count(&told, "data_bytes"), DATA_BYTES);
    assert_eq!(count(&told, "written_bytes"), DATA_BYTES);
    assert_eq!(count(&told, "chunks"), 16);
    assert_eq!(count(&told, "resumed_bytes"), 0);
    let stalls = told["stalls"].as_object().unwrap();
    let sum: f64 = stalls.values().map(|share| share.as_f64().unwrap()).sum();
    assert!(stalls.len() == 5 && (sum - 1.0).abs() < 0.001, "{told}");

    let back = world.good(&["copy", &image, "files/back.raw", "--verify", "full"]);
    assert_eq!((&back["root"], &back["verified"]["mode"]), (&told["root"], &"full".into()));
    let digest = world.good(&["digest", &image]);
    assert_eq!(digest["root"], told["root"]);
    assert_eq!(count(&digest, "image_bytes"), 64 * MIB);
    for plain in ["disk.raw", "files/back.raw"] {
        let plain = world.good(&["digest", plain]);
        assert_eq!(plain["content_blake3"], digest["content_blake3"]);
        assert_eq!(plain["root"], digest["root"]);
    }
    let short = world.good(&["digest", &image, "--root-only"]);
    assert_eq!((&short["root"], &short["content_blake3"]), (&told["root"], &Value::Null));
    let other_cut = world.good(&["digest", &image, "--chunk-size", "64KiB"]);
    assert_eq!(other_cut["content_blake3"], digest["content_blake3"]);
    assert_ne!(other_cut["root"], digest["root"]);
    let equal = fs::read(world.path("disk.raw")).unwrap()
        == fs::read(world.path("files/back.raw")).unwrap();
    assert!(equal, "the bytes come back as they went in");
    if has("b3sum") {
        let printed = Command::new("b3sum").arg(world.path("disk.raw")).output().unwrap();
        let printed = String::from_utf8(printed.stdout).unwrap();
        let expected = digest["content_blake3"].as_str().unwrap();
        assert_eq!(printed.split_whitespace().next(), Some(expected));
    }
}

#[test]
fn small_and_odd_images_survive_the_round_trip() {
    let world = World::new();
    for len in [0, 1, 65_535, 65_536, 65_537, 1_000_003] {
        let (name, id) = (format!("odd-{len}.raw"), format!("odd-{len}"));
        let bytes: Vec<u8> = (0..len).map(|at: u32| at.to_le_bytes()[1] ^ 0x5a).collect();
        fs::write(world.path(&name), &bytes).unwrap();
        let image = world.image("a", &id);
        world.good(&["copy", &name, &image, "--chunk-size", "64KiB"]);
        let back = format!("files/{id}");
        world.good(&["copy", &image, &back, "--verify", "full"]);
        assert_eq!(fs::read(world.path(&back)).unwrap(), bytes, "{len} bytes");
        let content = world.good(&["digest", &image])["content_blake3"].clone();
        assert_eq!(world.good(&["digest", &back])["content_blake3"], content, "{len} bytes");
        world.good(&["verify", &image]);
    }
}

#[test]
fn a_killed_copy_goes_on_from_its_last_checkpoint() {
    let world = World::new();
    for target in [world.image("a", "m-1"), world.text("files/copy.raw")] {
        let (mut child, job) = world.caught("disk.raw", &target, &[]);
        child.kill().unwrap();
        child.wait().unwrap();
        let shown = world.good(&["show", &job]);
        assert_eq!((&shown["state"], &shown["running"]), (&"suspended".into(), &false.into()));
        world.good(&["limit", &target, "--rate", "none"]);
        let told = world.good(&["resume", &job]);
        assert_eq!(told["job"], job);
        let (resumed, written) = (count(&told, "resumed_bytes"), count(&told, "written_bytes"));
        assert!(resumed > 0 && written < DATA_BYTES, "{told}");
        assert!(resumed + written >= count(&told, "data_bytes"), "{told}");
        let digest = world.good(&["digest", &target])["content_blake3"].clone();
        assert_eq!(digest, world.good(&["digest", "disk.raw"])["content_blake3"]);
        // Asked again, it tells the same end.
        assert_eq!(world.good(&["resume", &job])["root"], told["root"]);
    }
}

#[test]
fn a_commit_that_failed_is_resumed_or_cancelled_by_who_is_not_root() {
    const NOBODY: u32 = 65_534;
    for verb in ["resume", "cancel"] {
        let world = World::new();
        fs::set_permissions(world.temp.path(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(world.path("a"), fs::Permissions::from_mode(0o777)).unwrap();
        let image = world.image("a", "m-1");
        let run = |args: &[&str]| {
            let mut command = world.command(args);
            // Only root may become somebody else; anybody else is not root already.
            if std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap()) == 0 {
                command.uid(NOBODY);
            }
            command
        };
        let copy = ["copy", "disk.raw", &image, "--rate", RATE, "--chunk-size", "1MiB"];
        let child = run(&copy).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The name is taken before the commit.
        let stages = world.path("a/.blockferry/stage");
        wait_until("it is staged", || fs::read_dir(&stages).is_ok_and(|dir| dir.count() > 0));
        fs::create_dir(world.path("a/m-1")).unwrap();
        let failed = ended(child);
        assert_eq!(failed.code, Some(5), "{failed:?}");
        let job = failed.json["job"].as_str().unwrap().to_owned();
        fs::remove_dir(world.path("a/m-1")).unwrap();
        let done = ran(run(&[verb, &job]));
        assert_eq!(done.code, Some(0), "{verb}: {done:?}");
        assert_eq!(regular_files(&world.path("a")), if verb == "resume" { 2 } else { 0 });
    }
}

#[test]
fn an_unindexed_job_is_found_in_its_region() {
    let world = World::new();
    let (child, job) = world.caught("disk.raw", &world.image("a", "m-1"), &[]);
    signal(&child, "-INT");
    assert_eq!(ended(child).code, Some(3));
    fs::remove_dir_all(world.path("state")).unwrap();
    let region = format!("dir://{}", world.text("a"));
    world.refused(&["resume", &job], 5, "not_found");
    let listed = world.good(&["jobs", &region]);
    assert_eq!(listed["jobs"][0]["job"], job);
    assert_eq!(listed["jobs"][0]["state"], "suspended");
    assert_eq!(world.good(&["show", &job, "--region", &region])["state"], "suspended");
    let found = world.good(&["recover", &region]);
    assert_eq!(found["recovered"][0]["settled"], "kept");
    fs::remove_dir_all(world.path("state")).unwrap();
    world.good(&["resume", &job, "--region", &region]);
    assert_eq!(world.good(&["jobs", &region])["jobs"], Value::Array(Vec::new()));
}

#[test]
fn the_same_token_is_the_same_job() {
    let world = World::new();
    let image = world.image("a", "m-1");
    let first = world.good(&["copy", "disk.raw", &image, "--token", "t-1"]);
    let second = world.good(&["copy", "disk.raw", &image, "--token", "t-1"]);
    assert_eq!((&first["job"], &first["root"]), (&second["job"], &second["root"]));
    let other = world.image("a", "m-2");
    world.refused(&["copy", "disk.raw", &other, "--token", "t-1"], 2, "invalid");
    // However the paths are spelled.
    let respelled = format!("dir://{}/m-1", world.text("a"));
    let third = world.good(&["copy", "./a/../disk.raw", &respelled, "--token", "t-1"]);
    assert_eq!(third["job"], first["job"]);
}

#[test]
fn a_flipped_byte_is_caught() {
    let world = World::new();
    let image = world.image("a", "m-1");
    world.good(&["copy", "disk.raw", &image]);
    let good = world.good(&["verify", &image]);
    assert_eq!((count(&good, "bad_chunks"), count(&good, "chunks")), (0, 16));
    patch(&world.path("a/m-1/data"), 8 * MIB + 5, &[0xa5, 0x5a, 0xa5]);
    let bad = world.refused(&["verify", &image], 1, "corrupt").json;
    assert_eq!(count(&bad, "bad_chunks"), 1);
    assert_eq!(count(&bad["first_bad_chunk"], "index"), 2);
    let copied = world.run(&["copy", &image, "out.raw"]);
    assert_eq!((copied.code, &copied.json["error"]["kind"]), (Some(1), &"corrupt".into()));
    assert!(!world.path("out.raw").exists());
}

// ---- Suspend, cancel, limit ----

#[test]
fn an_interrupt_suspends_and_prints_how_to_go_on() {
    let world = World::new();
    let target = world.image("a", "m-1");
    let state = world.text("state");
    let (child, job) = world.caught("disk.raw", &target, &["--state-dir", &state]);
    signal(&child, "-TERM");
    let told = ended(child);
    assert_eq!((told.code, &told.json["outcome"]), (Some(3), &"suspended".into()));
    for verb in ["resume", "cancel"] {
        let line = format!("{verb}: blockferry {verb} {job} --state-dir {state}");
        assert!(told.stderr.contains(&line), "{}", told.stderr);
    }
    assert!(!world.path("a/m-1").exists());
    world.good(&["limit", &job, "--rate", "none"]);
    let resumed = world.good(&["resume", &job]);
    let (kept, written) = (count(&resumed, "resumed_bytes"), count(&resumed, "written_bytes"));
    assert!(kept > 0 && kept + written >= DATA_BYTES, "{resumed}");
}

#[test]
fn an_interrupt_cancels_where_that_was_asked_for() {
    let world = World::new();
    let (child, _) =
        world.caught("disk.raw", &world.image("a", "m-1"), &["--on-interrupt", "cancel"]);
    signal(&child, "-INT");
    let told = ended(child);
    assert_eq!((told.code, &told.json["outcome"]), (Some(4), &"rolled_back".into()));
    assert_eq!(regular_files(&world.path("a")), 0);
}

#[test]
fn a_cancel_from_another_process_is_decided_and_clean() {
    let world = World::new();
    for (place, target) in [("a", world.image("a", "m-1")), ("files", world.text("files/x.raw"))] {
        let (child, job) = world.caught("disk.raw", &target, &[]);
        let answer = world.good(&["cancel", &target]);
        assert_eq!(
            (&answer["job"], &answer["answer"]),
            (&job.as_str().into(), &"cancelled".into())
        );
        assert_eq!((&answer["decided"], &answer["clean"]), (&true.into(), &true.into()));
        let decided_ms = answer["decided_ms"].as_u64().unwrap();
        assert!(decided_ms <= answer["clean_ms"].as_u64().unwrap(), "{answer}");
        let told = ended(child);
        assert_eq!((told.code, &told.json["outcome"]), (Some(4), &"rolled_back".into()));
        assert_eq!(regular_files(&world.path(place)), 0);
        for again in [&job, &target] {
            let answer = world.good(&["cancel", again]);
            assert_eq!(answer["answer"], "already_cancelled", "{answer}");
        }
        assert_eq!(world.run(&["resume", &job]).code, Some(4));
        // The destination is free again.
        world.good(&["copy", "disk.raw", &target]);
    }
}

#[test]
fn a_cancel_of_a_suspended_job_needs_no_process_and_no_source() {
    let world = World::new();
    let (child, job) = world.caught("disk.raw", &world.image("a", "m-1"), &[]);
    signal(&child, "-INT");
    assert_eq!(ended(child).code, Some(3));
    fs::remove_file(world.path("disk.raw")).unwrap();
    world.good(&["limit", &job, "--rate", "1MiB/s"]);
    assert_eq!(world.good(&["suspend", &job])["state"], "suspended");
    assert_eq!(world.good(&["cancel", &job])["clean"], true);
    assert_eq!(regular_files(&world.path("a")), 0);
}

#[test]
fn a_cancel_that_comes_too_late_is_told_so() {
    let world = World::new();
    for target in [world.image("a", "m-1"), world.text("files/x.raw")] {
        let job = world.good(&["copy", "disk.raw", &target])["job"].clone();
        for what in [job.as_str().unwrap(), &target] {
            let answer = world.run(&["cancel", what]);
            assert_eq!(answer.code, Some(5), "{answer:?}");
            assert_eq!(answer.json["answer"], "already_committed");
            assert_eq!(answer.json["decided"], false);
            assert!(answer.json["decided_ms"].is_null() && answer.json["clean_ms"].is_null());
        }
        world.good(&["forget", job.as_str().unwrap()]);
        world.refused(&["show", job.as_str().unwrap()], 5, "not_found");
    }
    // The image knows who made it; no index is needed.
    let answer = world.run(&["cancel", &world.image("a", "m-1")]);
    assert_eq!(answer.json["answer"], "already_committed");
}

#[test]
fn another_process_suspends_and_limits_a_running_copy() {
    let world = World::new();
    let target = world.image("a", "m-1");
    let (child, job) = world.caught("disk.raw", &target, &[]);
    let shown = world.good(&["show", &job]);
    assert_eq!((&shown["state"], &shown["running"]), (&"copying".into(), &true.into()));
    world.refused_while_busy(&["resume", &job]);
    world.refused_while_busy(&["copy", "disk.raw", &target]);
    assert_eq!(world.good(&["suspend", &job])["state"], "suspended");
    assert_eq!(ended(child).code, Some(3));

    let args = ["resume", &job, "--progress", "none"];
    let mut slow = world.command(&args);
    let child = slow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the copy runs again", || world.good(&["show", &job])["running"] == true);
    let began = Instant::now();
    let limited = world.good(&["limit", &job, "--rate", "0"]);
    assert_eq!(limited["rate_bytes_per_sec"], Value::Null);
    let told = ended(child);
    assert_eq!((told.code, &told.json["outcome"]), (Some(0), &"committed".into()));
    assert!(began.elapsed() < DEADLINE);
    let listed = world.good(&["jobs"]);
    assert_eq!(listed["jobs"][0]["state"], "committed");
    assert_eq!(listed["jobs"][0]["destination"], target);
}

impl World {
    /// Refused because somebody runs it; sizes of the stage go on changing meanwhile.
    fn refused_while_busy(&self, args: &[&str]) {
        check_refusal(&self.run(args), 5, "busy");
    }
}

// ---- The rest ----

#[test]
fn memory_does_not_grow_with_the_image() {
    let world = World::new();
    File::options().write(true).open(world.path("disk.raw")).unwrap().set_len(1 << 40).unwrap();
    // What a process may write to at all: its heap, and 2 MiB of stack for each thread.
    let script = "ulimit -d $((96 * 1024)) && exec \"$0\" \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, BINARY, "copy", "disk.raw", &world.image("a", "m-1")]);
    command.args(["--threads", "2", "--chunk-size", "1MiB", "--verify", "sample:10%", "--json"]);
    command.env("BLOCKFERRY_STATE_DIR", world.path("state")).current_dir(world.temp.path());
    let told = ran(command);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert_eq!(count(&told.json, "image_bytes"), 1 << 40);
    assert_eq!(count(&told.json, "chunks"), 1 << 20);
}

#[test]
fn a_token_is_kept_nowhere() {
    let world = World::new();
    let token = "order-4711-and-not-a-letter-of-it";
    let more = ["--token", token];
    let (child, job) = world.caught("disk.raw", &world.image("a", "m-1"), &more);
    signal(&child, "-INT");
    let told = ended(child);
    assert_eq!(told.code, Some(3), "{told:?}");
    let shown = world.good(&["show", &job]).to_string();
    assert!(shown.contains("\"has_token\":true"), "{shown}");
    assert!(![told.stdout, told.stderr, shown].iter().any(|text| text.contains(token)));
    let kept = files_below(world.temp.path()).into_iter().filter(|(_, len)| *len < MIB);
    let kept: Vec<_> = kept.map(|(path, _)| path).collect();
    assert!(kept.len() >= 2, "a journal and a job record: {kept:?}");
    for path in kept {
        let bytes = fs::read(&path).unwrap();
        assert!(!bytes.windows(token.len()).any(|found| found == token.as_bytes()), "{path:?}");
    }
}

#[test]
fn a_reader_that_went_away_is_no_panic() {
    let mut command = Command::new(BINARY);
    command.args(["completions", "bash"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let told = ended(child);
    assert_eq!((told.code, told.stderr.as_str()), (Some(0), ""));
}

#[test]
fn an_answer_that_cannot_be_printed_is_a_failure_of_those_who_only_tell() {
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Command::new(BINARY).args(["completions", "bash"]).stdout(full()).output();
    let output = output.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("write to stdout"), "{said}");
}

#[test]
fn every_verb_has_help_with_examples() {
    let verbs = [
        "copy",
        "resume",
        "suspend",
        "cancel",
        "limit",
        "jobs",
        "show",
        "forget",
        "digest",
        "verify",
        "recover",
        "demo",
        "completions",
    ];
    let of_peers: &[&str] = if cfg!(feature = "peer") { &["cert"] } else { &[] };
    for verb in verbs.iter().chain(of_peers) {
        let output = Command::new(BINARY).args([verb, "--help"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("Examples:\n"), "{verb}: {text}");
        assert!(text.contains(&format!("blockferry {verb}")), "{verb}");
    }
    let top = Command::new(BINARY).arg("--help").output().unwrap();
    assert!(String::from_utf8(top.stdout).unwrap().contains("Exit codes:"));
}

#[test]
fn the_demo_proves_what_it_shows() {
    let temp = tempfile::tempdir().unwrap();
    let output = Command::new(BINARY).arg("demo").env("TMPDIR", temp.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(!text.contains('✗') && text.contains("proofs held"), "{text}");
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0, "it cleans up");
}
