//! Copies between daemons as scripts see them: real processes over TLS, killed and resumed.
#![cfg(all(feature = "cli", feature = "peer"))]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail the test that calls them"
)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_blockferry");
const MIB: usize = 1 << 20;
const POLICY: &str = r#"
[[peer]]
identity = "alpha"
connections_max = 32
[[peer.grant]]
operations = ["push", "pull", "list", "cancel", "remove", "control", "recover"]
regions = ["b"]

[[peer]]
identity = "gamma"
[[peer.grant]]
operations = ["pull"]
regions = ["b"]
"#;

/// Folders, certificates, and a server process.
struct World {
    temp: TempDir,
    server: Option<Child>,
    /// What the server says.
    said: Option<BufReader<ChildStdout>>,
    port: u16,
}

impl World {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut world = Self { temp, server: None, said: None, port: 0 };
        fs::create_dir(world.path("b")).unwrap();
        fs::write(world.path("policy.toml"), POLICY).unwrap();
        for args in [
            &["init", "ca"][..],
            &["issue", "ca", "alpha"],
            &["issue", "ca", "beta"],
            &["issue", "ca", "gamma"],
        ] {
            let status = world.command("cert").args(args).stdout(Stdio::null()).status().unwrap();
            assert!(status.success(), "cert {args:?}");
        }
        crate::tls::revoke(&world.path("ca"), &[]);
        world.serve();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(BINARY);
        command.arg(verb).current_dir(self.temp.path()).stdin(Stdio::null());
        command.env("BLOCKFERRY_STATE_DIR", self.path("state"));
        command
    }

    /// A command that shows the certificate of that name.
    fn peer(&self, verb: &str, name: &str) -> Command {
        let mut command = self.command(verb);
        command.env("BLOCKFERRY_CERT", self.path(&format!("ca/{name}.pem")));
        command.env("BLOCKFERRY_KEY", self.path(&format!("ca/{name}.key")));
        command.env("BLOCKFERRY_CA", self.path("ca/ca.pem")).arg("--json");
        command
    }

    /// Starts a server, at the port of the one before.
    fn serve(&mut self) {
        let mut command = self.command("serve");
        command.args(["--listen", &format!("127.0.0.1:{}", self.port), "--root", "b=b", "--json"]);
        command.args(["--cert", "ca/beta.pem", "--key", "ca/beta.key", "--client-ca", "ca/ca.pem"]);
        command.args(["--policy", "policy.toml", "--crl", "ca/ca.crl"]).stdout(Stdio::piped());
        let mut server = command.spawn().unwrap();
        self.said = server.stdout.take().map(BufReader::new);
        self.server = Some(server);
        let told = self.told();
        let address = told["listening"][0].as_str().unwrap_or_else(|| panic!("{told}"));
        self.port = address.rsplit_once(':').unwrap().1.parse().unwrap();
    }

    /// The next line of the server.
    fn told(&mut self) -> Value {
        let mut line = String::new();
        self.said.as_mut().unwrap().read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}"))
    }

    /// Has the server read its files again.
    fn hang_up(&mut self) -> Value {
        let process = self.server.as_ref().unwrap().id().to_string();
        let status = Command::new("kill").args(["-HUP", &process]).status().unwrap();
        assert!(status.success());
        self.told()
    }

    /// Puts a file in place whole.
    fn put(&self, name: &str, text: &str) {
        fs::write(self.path("half"), text).unwrap();
        fs::rename(self.path("half"), self.path(name)).unwrap();
    }

    fn kill_server(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    fn url(&self, image: &str) -> String {
        format!("ferrys://127.0.0.1:{}/b/{image}", self.port)
    }

    fn image(&self, name: &str, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
        // A hole, and zeros that are none.
        bytes[len / 4..len / 2].fill(0);
        fs::write(self.path(name), &bytes).unwrap();
        bytes
    }

    fn data(&self, image: &str) -> Vec<u8> {
        fs::read(self.path("b").join(image).join("data")).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().ok();
            server.wait().ok();
        }
    }
}

fn ran(command: &mut Command) -> (Option<i32>, Value) {
    let output = command.output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let json = serde_json::from_str(stdout.trim()).unwrap_or_else(|_| panic!("{stdout} {stderr}"));
    (output.status.code(), json)
}

fn good(command: &mut Command) -> Value {
    let (code, json) = ran(command);
    assert_eq!((code, &json["error"]), (Some(0), &Value::Null), "{json}");
    json
}

/// Waits until that copy has written so many bytes, and gives its number.
fn written(world: &World, bytes: u64) -> String {
    loop {
        let (_, json) = ran(&mut world.peer("jobs", "alpha"));
        let Some(job) = json["jobs"][0]["job"].as_str() else { continue };
        let (_, shown) = ran(world.peer("show", "alpha").arg(job));
        if shown["progress"]["written_bytes"].as_u64().unwrap_or(0) >= bytes {
            return job.to_owned();
        }
    }
}

#[test]
fn an_image_goes_there_and_comes_back() {
    let world = World::new();
    let bytes = world.image("disk.raw", 9 * MIB + 77);
    let pushed = good(world.peer("copy", "alpha").args(["disk.raw", &world.url("m-1")]));
    assert_eq!(pushed["outcome"], "committed");
    assert!(world.data("m-1") == bytes);
    good(world.peer("copy", "alpha").args([&world.url("m-1"), "back.raw"]));
    assert!(fs::read(world.path("back.raw")).unwrap() == bytes);
    let there = good(world.peer("digest", "alpha").arg(world.url("m-1")));
    let here = good(world.command("digest").args(["disk.raw", "--json"]));
    assert_eq!(there["content_blake3"], here["content_blake3"]);
    let verified = good(world.peer("verify", "alpha").arg(world.url("m-1")));
    assert_eq!(verified["bad_chunks"], 0);
    let again = ran(world.peer("copy", "alpha").args(["disk.raw", &world.url("m-1")]));
    assert_eq!((again.0, &again.1["error"]["kind"]), (Some(5), &Value::from("exists")));
    let late = ran(world.peer("cancel", "alpha").arg(world.url("m-1")));
    assert_eq!((late.0, &late.1["answer"]), (Some(5), &Value::from("already_committed")));
    let record = fs::read_dir(world.path("state/jobs")).unwrap().next().unwrap().unwrap().path();
    let record = String::from_utf8_lossy(&fs::read(record).unwrap()).into_owned();
    assert!(!record.contains("ca/"), "a job's record names no key");
}

#[test]
fn who_is_not_let_in_is_told_so() {
    let world = World::new();
    world.image("disk.raw", MIB);
    let mut bare = world.command("copy");
    let (code, json) = ran(bare.args(["disk.raw", &world.url("m-1"), "--json"]));
    assert_eq!((code, &json["error"]["kind"]), (Some(2), &Value::from("invalid")), "{json}");
    for name in ["gamma", "beta"] {
        let (code, json) = ran(world.peer("copy", name).args(["disk.raw", &world.url("m-1")]));
        let kind = &json["error"]["kind"];
        assert_eq!((code, kind), (Some(1), &Value::from("denied")), "{name}: {json}");
    }
}

#[test]
fn what_says_who_is_let_in_is_read_again() {
    let mut world = World::new();
    world.image("disk.raw", MIB);
    let push = |world: &World, name: &str, image: &str| {
        let (code, json) = ran(world.peer("copy", name).args(["disk.raw", &world.url(image)]));
        (code, json["error"]["kind"].as_str().map(str::to_owned))
    };
    let denied = (Some(1), Some("denied".to_owned()));
    assert_eq!(push(&world, "gamma", "m-1"), denied, "it may only pull");
    // Without a word, by the change alone.
    let swapped = POLICY.replace("alpha", "delta").replace("gamma", "alpha");
    world.put("policy.toml", &swapped.replace("delta", "gamma"));
    let told = world.told();
    assert_eq!((&told["reloaded"], &told["error"]), (&Value::Bool(true), &Value::Null), "{told}");
    assert_eq!(push(&world, "gamma", "m-1"), (Some(0), None));
    assert_eq!(push(&world, "alpha", "m-2"), denied);
    // What is wrong changes nothing.
    world.put("policy.toml", "[[peer]]\n");
    let told = loop {
        let told = world.hang_up();
        if told["reloaded"] == false {
            break told;
        }
    };
    assert_eq!(told["error"]["kind"], "invalid", "{told}");
    assert_eq!(push(&world, "gamma", "m-3"), (Some(0), None));
    world.put("policy.toml", &swapped.replace("delta", "gamma"));
    crate::tls::revoke(&world.path("ca"), &["gamma"]);
    while world.hang_up()["reloaded"] == false {}
    assert_eq!(push(&world, "gamma", "m-4"), denied, "its certificate is revoked");
    let pulled = ran(world.peer("copy", "alpha").args([&world.url("m-1"), "back.raw"]));
    assert_eq!(pulled.0, Some(0), "{}", pulled.1);
}

#[test]
fn a_copy_outlives_the_death_of_either_side() {
    let mut world = World::new();
    let bytes = world.image("disk.raw", 24 * MIB);
    let args = |world: &World, image: &str| {
        let rate = ["--chunk-size", "256KiB", "--rate", "6MiB/s"].map(str::to_owned);
        [vec!["disk.raw".to_owned(), world.url(image)], rate.to_vec()].concat()
    };
    // The side that dials dies.
    let mut copy = world.peer("copy", "alpha");
    let mut copy = copy.args(args(&world, "m-1")).stdout(Stdio::null()).spawn().unwrap();
    let job = written(&world, 8 << 20);
    copy.kill().unwrap();
    copy.wait().unwrap();
    let resumed = good(world.peer("resume", "alpha").arg(&job));
    assert!(resumed["resumed_bytes"].as_u64().unwrap() > 0, "{resumed}");
    assert!(world.data("m-1") == bytes);
    good(world.peer("forget", "alpha").arg(&job));
    // The side that stages dies.
    let mut copy = world.peer("copy", "alpha");
    copy.args(args(&world, "m-2")).stdout(Stdio::piped());
    let copy = copy.stderr(Stdio::null()).spawn().unwrap();
    let job = written(&world, 8 << 20);
    world.kill_server();
    world.serve();
    let output = copy.wait_with_output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    if told["outcome"] != "committed" {
        // What it had accepted and not recorded is gone: only this side can bring it again.
        assert_eq!(told["error"]["kind"], "unavailable", "{told}");
        let resumed = good(world.peer("resume", "alpha").arg(&job));
        assert!(resumed["resumed_bytes"].as_u64().unwrap() > 0, "{resumed}");
    }
    assert!(world.data("m-2") == bytes);
}

#[test]
fn a_copy_with_a_base_moves_what_differs_and_outlives_the_death_of_either_side() {
    const CHUNK: u64 = 256 << 10;
    let mut world = World::new();
    let mut bytes = world.image("disk.raw", 24 * MIB);
    let cut = ["--chunk-size", "256KiB"];
    good(world.peer("copy", "alpha").args(["disk.raw", &world.url("base")]).args(cut));
    bytes[MIB] ^= 1;
    bytes[20 * MIB] ^= 1;
    fs::write(world.path("next.raw"), &bytes).unwrap();
    fs::create_dir(world.path("a")).unwrap();
    let here = |image: &str| format!("dir://{}/{image}", world.path("a").display());
    good(world.command("copy").args(["next.raw", &here("next"), "--json"]).args(cut));
    let pushed = world
        .peer("copy", "alpha")
        .args([&here("next"), &world.url("m-1")])
        .args(["--base", "base"])
        .output();
    let pushed: Value = serde_json::from_slice(&pushed.unwrap().stdout).unwrap();
    assert_eq!(
        (&pushed["outcome"], &pushed["read_bytes"]),
        (&"committed".into(), &(2 * CHUNK).into())
    );
    assert!(pushed["reused_bytes"].as_u64().unwrap() > 17 << 20, "{pushed}");
    assert!(world.data("m-1") == bytes);
    // What comes from there has its base here; it can be named by where it is.
    let mut pull = world.peer("copy", "alpha");
    let pulled = good(pull.args([&world.url("m-1"), &here("back"), "--base", &here("next")]));
    assert_eq!(pulled["read_bytes"], 0);
    assert!(fs::read(world.path("a/back/data")).unwrap() == bytes);
    for (base, code, kind) in
        [("none", 5, "not_found"), (&here("next")[..], 2, "invalid"), ("../x", 2, "invalid")]
    {
        let mut copy = world.peer("copy", "alpha");
        let (told, json) = ran(copy.args(["next.raw", &world.url("m-2"), "--base", base]));
        assert_eq!((told, &json["error"]["kind"]), (Some(code), &kind.into()), "{base}: {json}");
    }
    // Either side dies while chunks of a plain file, which is read here, are taken over there.
    for (image, server_dies) in [("m-3", false), ("m-4", true)] {
        let mut copy = world.peer("copy", "alpha");
        copy.args(["next.raw", &world.url(image), "--base", "base", "--rate", "3MiB/s"]).args(cut);
        let mut copy = copy.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let job = taken_over(&world, 4 << 20);
        if server_dies {
            world.kill_server();
            world.serve();
        } else {
            copy.kill().unwrap();
        }
        let output = copy.wait_with_output().unwrap();
        let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if told["outcome"] != "committed" {
            let resumed = good(world.peer("resume", "alpha").arg(&job));
            assert!(resumed["resumed_bytes"].as_u64().unwrap() > 0, "{resumed}");
            let (_, shown) = ran(world.peer("show", "alpha").arg(&job));
            assert_eq!(shown["base"], "base");
        }
        assert!(world.data(image) == bytes);
        good(world.peer("forget", "alpha").arg(&job));
    }
}

/// Waits until the running copy has had so many bytes taken over, and gives its number.
fn taken_over(world: &World, bytes: u64) -> String {
    loop {
        let (_, json) = ran(&mut world.peer("jobs", "alpha"));
        let jobs = json["jobs"].as_array().cloned().unwrap_or_default();
        for job in jobs.iter().filter(|job| job["state"] == "copying") {
            let job = job["job"].as_str().unwrap();
            let (_, shown) = ran(world.peer("show", "alpha").arg(job));
            if shown["progress"]["reused_bytes"].as_u64().unwrap_or(0) >= bytes {
                return job.to_owned();
            }
        }
    }
}
