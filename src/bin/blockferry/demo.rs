//! `demo`: shows what the tool promises, on a real image, with real processes, and proves it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use blockferry::{Error, ErrorKind, Result};
use indicatif::HumanBytes;
use serde_json::{Value, json};

use crate::out;
use crate::output::{FAILED, Report};

const EXAMPLES: &str = "\
Examples:
  blockferry demo
  blockferry demo --keep

Takes some ten seconds and 200 MiB in the temporary folder ($TMPDIR). Exit code 0 when every proof
held.";

const IMAGE_BYTES: u64 = 256 << 20;
const DATA_BYTES: u64 = 48 << 20;
const FILE_BYTES: u64 = 1 << 20;
/// Slow enough to be interrupted in the middle.
const RATE: &str = "16MiB/s";

/// See it at work: copy, kill, resume, cancel, each proven
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Leave the files where they are
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &Args) -> Result<Report> {
    let began = Instant::now();
    let folder = std::env::temp_dir().join(format!("blockferry-demo-{}", std::process::id()));
    fs::create_dir(&folder).map_err(|e| failed("make a folder", &folder, e))?;
    let mut demo = Demo { folder, proofs: 0, broken: 0 };
    let shown = demo.show();
    if args.keep {
        say(&format!("  files are kept in {}", demo.folder.display()));
    } else {
        fs::remove_dir_all(&demo.folder).map_err(|e| failed("remove", &demo.folder, e))?;
    }
    shown?;
    let seconds = began.elapsed().as_secs_f64();
    let held = demo.proofs - demo.broken;
    let summary = format!("{held} of {} proofs held, in {seconds:.1} s", demo.proofs);
    let report = Report::done(json!({}), vec![summary]);
    Ok(if demo.broken == 0 { report } else { report.with_code(FAILED) })
}

/// What it says is there to be seen; the exit code holds also when nobody looks.
fn say(text: &str) {
    out::line(text).ok();
}

/// What a run of the tool gave.
struct Ran {
    code: Option<i32>,
    json: Value,
}

struct Demo {
    folder: PathBuf,
    proofs: u32,
    broken: u32,
}

impl Demo {
    fn show(&mut self) -> Result<()> {
        for region in ["region-a", "region-b"] {
            let root = self.folder.join(region);
            fs::create_dir(&root).map_err(|e| failed("make a region", &root, e))?;
        }
        let source = self.folder.join("disk.raw");
        say("1. An image");
        self.make_image(&source)?;
        say("2. Copy it into a region and back");
        let digest = self.round_trip(&source)?;
        say("3. Kill a copy in the middle, and resume it");
        self.kill_and_resume(&digest)?;
        say("4. Cancel a running copy from another process");
        self.cancel_running(&digest)?;
        say("5. Cancel a copy that has committed");
        self.cancel_committed()
    }

    fn round_trip(&mut self, source: &Path) -> Result<String> {
        let (image, back) = (self.image("region-a", "disk-1"), self.folder.join("back.raw"));
        let there = self.run(&["copy", &path(source), &image])?;
        self.prove(there.code == Some(0), &copied("copied into a region", &there.json));
        let again = self.run(&["copy", &image, &path(&back), "--verify", "full"])?;
        self.prove(again.code == Some(0), &copied("copied back, each byte read back", &again.json));
        let same = same_bytes(source, &back)?;
        self.prove(same, "the copy of the copy is the source, byte by byte");
        let digests = [&path(source), &image, &path(&back)]
            .map(|image| self.run(&["digest", image]).map(|ran| text(&ran.json["content_blake3"])));
        let [first, second, third] = digests;
        let (first, second, third) = (first?, second?, third?);
        let equal = first == second && second == third && first.len() == 64;
        self.prove(equal, &format!("all three have the same BLAKE3, that of b3sum: {first}"));
        let verified = self.run(&["verify", &image])?;
        self.prove(verified.code == Some(0), "the image in the region is as its manifest says");
        Ok(first)
    }

    fn kill_and_resume(&mut self, digest: &str) -> Result<()> {
        let (source, target) = (self.image("region-a", "disk-1"), self.image("region-b", "disk-2"));
        let (mut child, job) = self.start_copy(&source, &target)?;
        child.kill().map_err(|e| Error::io("kill the copy", e))?;
        child.wait().map_err(|e| Error::io("wait for the killed copy", e))?;
        let shown = self.run(&["show", &job])?;
        let waits = shown.json["state"] == "suspended" && shown.json["running"] == false;
        self.prove(waits, &format!("killed by SIGKILL in the middle; job {job} waits"));
        let hidden = !self.folder.join("region-b/disk-2").exists();
        self.prove(hidden, "no half image is to be seen in the region");
        self.run(&["limit", &job, "--rate", "none"])?;
        let resumed = self.run(&["resume", &job])?;
        let [kept, written, data] = ["resumed_bytes", "written_bytes", "data_bytes"]
            .map(|name| resumed.json[name].as_u64().unwrap_or(0));
        let what =
            format!("resumed: {} were kept, {} written", HumanBytes(kept), HumanBytes(written));
        self.prove(resumed.code == Some(0) && kept > 0 && written < data, &what);
        let ran = self.run(&["digest", &target])?;
        self.prove(text(&ran.json["content_blake3"]) == digest, "its BLAKE3 is that of the source");
        Ok(())
    }

    fn cancel_running(&mut self, digest: &str) -> Result<()> {
        let (source, target) = (self.image("region-a", "disk-1"), self.image("region-b", "disk-3"));
        let before = files_below(&self.folder.join("region-b"))?;
        let (mut child, _) = self.start_copy(&source, &target)?;
        let began = Instant::now();
        let answer = self.run(&["cancel", &target])?;
        let ms = began.elapsed().as_millis();
        let (decided, clean) = (&answer.json["decided"], &answer.json["clean"]);
        let what = format!(
            "{} in {ms} ms: decided {decided}, clean {clean}",
            text(&answer.json["answer"])
        );
        self.prove(answer.code == Some(0) && *decided == true && *clean == true, &what);
        let ended = child.wait().map_err(|e| Error::io("wait for the cancelled copy", e))?;
        self.prove(ended.code() == Some(4), "the copying process exited with code 4, rolled back");
        let after = files_below(&self.folder.join("region-b"))?;
        self.prove(before == after, "nothing of it is left in the region");
        let ran = self.run(&["digest", &path(&self.folder.join("disk.raw"))])?;
        self.prove(text(&ran.json["content_blake3"]) == digest, "the source is as it was");
        Ok(())
    }

    fn cancel_committed(&mut self) -> Result<()> {
        let target = self.image("region-b", "disk-2");
        let answer = self.run(&["cancel", &target])?;
        let said = text(&answer.json["answer"]);
        let right = answer.code == Some(5) && said == "already_committed";
        self.prove(right, &format!("the answer is {said}, and the image stays"));
        let kept = self.run(&["verify", &target])?;
        self.prove(kept.code == Some(0), "and it is whole");
        Ok(())
    }

    /// Starts a slow copy, and returns when some of it is durable but not all of it done.
    fn start_copy(&self, source: &str, target: &str) -> Result<(Child, String)> {
        let args = ["copy", source, target, "--rate", RATE, "--progress", "json"];
        let mut child = self.command(&args)?;
        child.stderr(Stdio::piped());
        let mut child = child.spawn().map_err(|e| Error::io("start a copy", e))?;
        let mut job = String::new();
        if let Some(stderr) = child.stderr.take() {
            for line in BufReader::new(stderr).lines() {
                let line = line.map_err(|e| Error::io("read the progress of a copy", e))?;
                let Ok(progress) = serde_json::from_str::<Value>(&line) else { continue };
                job = text(&progress["job"]);
                let synced = progress["stalls"]["sync"].as_f64().unwrap_or(0.0) > 0.0;
                if synced && progress["written_bytes"].as_u64().unwrap_or(0) > 0 {
                    return Ok((child, job));
                }
            }
        }
        let ended = child.wait().map_err(|e| Error::io("wait for a copy", e))?;
        Err(Error::new(ErrorKind::Io, format!("catch copy {job} in the middle: {ended}")))
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let exe = std::env::current_exe().map_err(|e| Error::io("find this program", e))?;
        let mut command = Command::new(exe);
        command.args(args).arg("--json").arg("--state-dir").arg(self.folder.join("state"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        Ok(command)
    }

    fn run(&self, args: &[&str]) -> Result<Ran> {
        let output = self.command(args)?.output().map_err(|e| Error::io("run this program", e))?;
        let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Ok(Ran { code: output.status.code(), json })
    }

    fn prove(&mut self, held: bool, what: &str) {
        self.proofs += 1;
        self.broken += u32::from(!held);
        say(&format!("  {} {what}", if held { "✓" } else { "✗" }));
    }

    fn image(&self, region: &str, image: &str) -> String {
        format!("dir://{}/{image}", path(&self.folder.join(region)))
    }

    /// A sparse image with a file system in it; without mkfs, with data and zeros of our own.
    fn make_image(&mut self, image: &Path) -> Result<()> {
        let file = File::create_new(image).map_err(|e| failed("make an image", image, e))?;
        file.set_len(IMAGE_BYTES).map_err(|e| failed("size an image", image, e))?;
        let size = HumanBytes(IMAGE_BYTES);
        if let Some(mkfs) = find_tool("mkfs.ext4") {
            let tree = self.folder.join("tree");
            make_tree(&tree)?;
            let made = Command::new(mkfs).args(["-q", "-F", "-d"]).arg(&tree).arg(image).output();
            fs::remove_dir_all(&tree).map_err(|e| failed("remove", &tree, e))?;
            if made.is_ok_and(|made| made.status.success()) {
                self.prove(true, &format!("a sparse image of {size} with an ext4 file system"));
                return Ok(());
            }
        }
        let mut noise = Noise(1);
        for offset in (0..DATA_BYTES).step_by(1 << 20) {
            // Data, then a hole, again and again; every eighth piece is written zeros.
            let piece =
                if offset % (8 << 20) == 0 { vec![0; 1 << 20] } else { noise.bytes(1 << 20) };
            file.write_all_at(&piece, offset * 4).map_err(|e| failed("fill", image, e))?;
        }
        self.prove(true, &format!("a sparse image of {size}: data, zeros, holes (no mkfs.ext4)"));
        Ok(())
    }
}

fn make_tree(tree: &Path) -> Result<()> {
    fs::create_dir(tree).map_err(|e| failed("make a folder", tree, e))?;
    let mut noise = Noise(7);
    for number in 0..DATA_BYTES / FILE_BYTES {
        let name = tree.join(format!("file-{number:03}"));
        fs::write(&name, noise.bytes(FILE_BYTES)).map_err(|e| failed("write", &name, e))?;
    }
    Ok(())
}

/// Bytes that do not compress and are the same on every run.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, len: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..len / 8 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes.extend_from_slice(&(self.0 ^ self.0 >> 29).to_le_bytes());
        }
        bytes
    }
}

fn find_tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/sbin".into(), "/usr/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|tool| tool.is_file())
}

fn same_bytes(one: &Path, other: &Path) -> Result<bool> {
    let open = |path: &Path| File::open(path).map_err(|e| failed("open", path, e));
    let (mut one, mut other) = (open(one)?, open(other)?);
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        for (file, buffer) in [(&mut one, &mut left), (&mut other, &mut right)] {
            buffer.clear();
            let read = file.take(1 << 20).read_to_end(buffer);
            read.map_err(|e| Error::io("read an image to compare it", e))?;
        }
        if left != right || left.is_empty() {
            return Ok(left == right);
        }
    }
}

/// Every regular file below a folder, by path.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| failed("list", &folder, e))? {
            let path = entry.map_err(|e| failed("list", &folder, e))?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

fn copied(what: &str, json: &Value) -> String {
    let bytes = |name: &str| HumanBytes(json[name].as_u64().unwrap_or(0));
    let (written, zero) = (bytes("written_bytes"), bytes("zero_bytes"));
    format!("{what}: {written} written, {zero} zeros skipped, {} ms", json["elapsed_ms"])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn failed(action: &'static str, path: &Path, error: std::io::Error) -> Error {
    Error::io(action, error).within(path.display().to_string())
}
