//! Regions in a real S3 server: through the contract of regions, and through the real binary.

use std::sync::Arc;

use blockferry::id::ImageId;
use blockferry::region::Region;
use blockferry::region::object::{ObjectOptions, ObjectRegion};
use blockferry::store::model::Model;
use blockferry::store::{Fencing, S3Store};
use blockferry::testing::{Fixture, Place, conformance};
use tokio::runtime::Handle;
use tokio::task::block_in_place;

use super::places::Cloud;
use crate::store::server::S3Server;

/// Buckets behind servers of their own.
struct Servers;

/// One server, and the bucket behind it as it looks from within.
#[derive(Debug)]
struct Served {
    server: S3Server,
    cloud: Cloud,
}

impl Fixture for Servers {
    fn place(&self) -> Box<dyn Place> {
        let cloud = Cloud::new(Fencing::Swap);
        let starting = S3Server::over(cloud.model.clone());
        let server = block_in_place(|| Handle::current().block_on(starting));
        Box::new(Served { server, cloud })
    }
}

impl Place for Served {
    fn region(&self) -> Arc<dyn Region> {
        let store = S3Store::open(&self.server.address("north"), &S3Server::options()).unwrap();
        let options = ObjectOptions::default();
        Arc::new(ObjectRegion::with_fencing(store, Fencing::Swap, options).unwrap())
    }

    fn image(&self, number: u8) -> Option<ImageId> {
        self.cloud.image(number)
    }

    fn put(&self, _image: &ImageId, _bytes: &[u8]) -> bool {
        false
    }

    fn leftovers(&self) -> Vec<String> {
        self.cloud.strays()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_region_conforms_over_http() {
    conformance(&Servers).await;
}

#[cfg(feature = "cli")]
mod command {
    use std::io::{BufRead, BufReader};
    use std::path::PathBuf;
    use std::process::{Child, Command, Output, Stdio};

    use serde_json::Value;

    use super::*;
    use crate::store::server::Fault;

    const MIB: usize = 1 << 20;

    /// One bucket, and machines that share nothing but it.
    struct World {
        server: S3Server,
        temp: tempfile::TempDir,
    }

    /// The end of a command: its exit code, and what it says.
    type Told = (Option<i32>, Value);

    fn told(output: &Output) -> Told {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("panicked"), "{stderr}");
        let json = serde_json::from_slice(&output.stdout);
        (output.status.code(), json.unwrap_or_else(|_| Value::from(stderr.as_ref())))
    }

    impl World {
        async fn new() -> Self {
            let world =
                Self { server: S3Server::start().await, temp: tempfile::tempdir().unwrap() };
            std::fs::write(world.path("disk.raw"), world.bytes()).unwrap();
            world
        }

        /// Data, zeros in the middle, and an odd end.
        fn bytes(&self) -> Vec<u8> {
            let mut bytes = crate::world::noise(3, (12 * MIB + 4321) as u64);
            bytes[5 * MIB..7 * MIB].fill(0);
            bytes
        }

        fn path(&self, name: &str) -> PathBuf {
            self.temp.path().join(name)
        }

        fn url(&self, path: &str) -> String {
            self.server.url("s3", path)
        }

        /// A command on that machine.
        fn on(&self, machine: &str, args: &[&str]) -> Command {
            let mut command = Command::new(env!("CARGO_BIN_EXE_blockferry"));
            command.args(args).arg("--json").current_dir(self.temp.path()).stdin(Stdio::null());
            command.env("BLOCKFERRY_STATE_DIR", self.path(machine)).env("HOME", self.path(machine));
            command.envs(S3Server::environment());
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        }

        async fn run(&self, machine: &str, args: &[&str]) -> Told {
            let mut command = self.on(machine, args);
            let ended = tokio::task::spawn_blocking(move || command.output().unwrap());
            told(&ended.await.unwrap())
        }

        async fn good(&self, machine: &str, args: &[&str]) -> Value {
            let (code, json) = self.run(machine, args).await;
            assert_eq!(code, Some(0), "{args:?}: {json}");
            json
        }

        /// A copy to `image`, caught when some of it is there and most is not.
        async fn caught(&self, image: &str) -> (Child, String) {
            let target = self.url(image);
            let args = ["copy", "disk.raw", &target, "--rate", "4MiB/s", "--chunk-size", "1MiB"];
            let mut child = self.on("one", &args).args(["--progress", "json"]).spawn().unwrap();
            let stderr = child.stderr.take().unwrap();
            let caught = tokio::task::spawn_blocking(move || {
                let mut lines = BufReader::new(stderr).lines().map(|line| line.unwrap());
                let written = |line: &Value| line["written_bytes"].as_u64() > Some(2 << 20);
                let mut progress =
                    lines.by_ref().filter_map(|line| serde_json::from_str(&line).ok());
                let job =
                    progress.find(written).map(|line| line["job"].as_str().unwrap().to_owned());
                // The rest is read by nobody, and must not stop the copy.
                std::thread::spawn(move || lines.for_each(drop));
                job
            });
            (child, caught.await.unwrap().unwrap())
        }

        /// What is in the bucket besides heads, how they are kept, and what committed images are
        /// made of.
        fn strays(&self, kept: &[&str]) -> Vec<String> {
            let mut keys = self.server.model.keys();
            keys.retain(|key| !key.ends_with("/head") && key != "north/way");
            keys.retain(|key| !kept.iter().any(|image| key.contains(&format!("images/{image}/"))));
            keys
        }
    }

    async fn kill(mut child: Child) {
        child.kill().unwrap();
        tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_image_goes_up_and_another_machine_reads_it() {
        let world = World::new().await;
        let image = world.url("north/m-1");
        let up = world.good("one", &["copy", "disk.raw", &image, "--verify", "full"]).await;
        assert_eq!(
            (&up["outcome"], &up["destination"]),
            (&"committed".into(), &image.as_str().into())
        );
        let down = world.good("two", &["copy", &image, "back.raw"]).await;
        assert_eq!(down["root"], up["root"]);
        assert_eq!(std::fs::read(world.path("back.raw")).unwrap(), world.bytes());
        let verified = world.good("two", &["verify", &image]).await;
        assert_eq!((&verified["bad_chunks"], &verified["root"]), (&0.into(), &up["root"]));
        let digest = world.good("two", &["digest", &image]).await;
        let content = blake3::hash(&world.bytes()).to_hex();
        assert_eq!(digest["content_blake3"], content.as_str());
        let (code, late) = world.run("two", &["cancel", &image]).await;
        assert_eq!((code, &late["answer"]), (Some(5), &"already_committed".into()));
        let (code, again) = world.run("two", &["copy", "disk.raw", &image]).await;
        assert_eq!((code, &again["error"]["kind"]), (Some(5), &"exists".into()));
        assert_eq!(world.strays(&["m-1"]), Vec::<String>::new());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_killed_copy_goes_on_on_another_machine_with_nothing_but_the_bucket() {
        let world = World::new().await;
        let (region, image) = (world.url("north"), world.url("north/m-1"));
        let (child, job) = world.caught("north/m-1").await;
        kill(child).await;
        let chunks = |model: &Model| model.keys().iter().filter(|key| key.contains('-')).count();
        assert!(chunks(&world.server.model) > 1);

        let listed = world.good("two", &["jobs", &region]).await;
        assert_eq!(
            (&listed["jobs"][0]["job"], &listed["jobs"][0]["state"]),
            (&job.as_str().into(), &"suspended".into())
        );
        world.good("two", &["limit", &image, "--rate", "none"]).await;
        let puts = world.server.count("PutObject");
        let resumed = world.good("two", &["resume", &job, "--region", &region]).await;
        assert_eq!(
            (&resumed["outcome"], &resumed["job"]),
            (&"committed".into(), &job.as_str().into())
        );
        let kept = resumed["resumed_bytes"].as_u64().unwrap();
        assert!(kept >= 2 * MIB as u64, "{resumed}");
        assert!(world.server.count("PutObject") > puts);
        world.good("three", &["copy", &image, "back.raw"]).await;
        assert_eq!(std::fs::read(world.path("back.raw")).unwrap(), world.bytes());
        assert_eq!(world.strays(&["m-1"]), Vec::<String>::new());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cancel_from_another_machine_ends_a_live_copy_and_one_whose_process_died() {
        let world = World::new().await;
        let (child, job) = world.caught("north/m-1").await;
        let image = world.url("north/m-1");
        let answer = world.good("two", &["cancel", &image]).await;
        assert_eq!(
            (&answer["job"], &answer["answer"]),
            (&job.as_str().into(), &"cancelled".into())
        );
        assert_eq!((&answer["decided"], &answer["clean"]), (&true.into(), &true.into()));
        let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await;
        let (code, json) = told(&ended.unwrap());
        assert_eq!((code, &json["outcome"]), (Some(4), &"rolled_back".into()));
        assert_eq!(world.strays(&[]), Vec::<String>::new());
        for machine in ["one", "two", "three"] {
            let again = world.good(machine, &["cancel", &image]).await;
            assert_eq!(
                (&again["job"], &again["answer"]),
                (&job.as_str().into(), &"already_cancelled".into()),
                "{machine}"
            );
        }

        let (child, _) = world.caught("north/m-1").await;
        kill(child).await;
        let answer = world.good("two", &["cancel", &image]).await;
        assert_eq!((&answer["answer"], &answer["clean"]), (&"cancelled".into(), &true.into()));
        assert_eq!(world.strays(&[]), Vec::<String>::new());
    }

    #[cfg(feature = "encrypt")]
    #[tokio::test(flavor = "multi_thread")]
    async fn an_image_goes_from_key_to_key_and_the_store_copies_none_of_it_by_itself() {
        let world = World::new().await;
        for args in [&["init", "keys"][..], &["add", "keys", "k1"], &["add", "keys", "k2"]] {
            world.good("one", &[&["keyring"], args].concat()).await;
        }
        let copied = || {
            let seen = world.server.seen().into_iter();
            let copied = seen.filter(|seen| seen.operation == "CopyObject");
            copied.filter(|seen| seen.path.contains("/images/")).count()
        };
        let with = async |machine: &str, args: &[&str]| {
            world.good(machine, &[args, &["--keyring", "keys"]].concat()).await
        };
        let (open, one) = (world.url("north/open"), world.url("north/one"));
        let (two, kept) = (world.url("south/two"), world.url("south/kept"));
        let first = with("one", &["copy", "disk.raw", &open]).await;
        let sealed = ["copy", "disk.raw", &one, "--encrypt", "k1", "--verify", "full"];
        assert_eq!(with("one", &sealed).await["key"], "k1");
        for (from, to, how) in [
            (&open, &world.url("south/three"), &["--encrypt", "k1"][..]),
            (&one, &two, &["--encrypt", "k2"]),
            (&one, &kept, &[]),
            (&two, &world.url("north/clear"), &["--decrypt"]),
        ] {
            let told = with("two", &[&["copy", from, to], how].concat()).await;
            assert_eq!(told["root"], first["root"], "{from} to {to}");
        }
        assert_eq!(copied(), 0, "the store copied what is encrypted, or is to be");
        with("two", &["copy", &open, &world.url("south/open")]).await;
        assert!(copied() > 0, "it copies what lies in clear");
        let part = &world.bytes()[..64];
        for key in world.server.model.keys() {
            let lies_open = key.contains("/open/") || key.contains("/clear/");
            let bytes = world.server.model.bytes(&key).unwrap();
            let found = bytes.windows(part.len()).any(|window| window == part);
            assert!(lies_open || !found, "{key} holds the image in clear");
        }
        let again = with("three", &["rewrap", &two, "--to", "k1"]).await;
        assert_eq!(
            (&again["from"], &again["to"], &again["image"]),
            (&"k2".into(), &"k1".into(), &two.as_str().into())
        );
        let down = with("three", &["copy", &two, "back.raw", "--decrypt"]).await;
        assert_eq!(down["root"], first["root"]);
        assert_eq!(std::fs::read(world.path("back.raw")).unwrap(), world.bytes());
        let verified = with("three", &["verify", &kept]).await;
        assert_eq!((&verified["bad_chunks"], &verified["root"]), (&0.into(), &first["root"]));
        let refused = async |args: &[&str]| {
            let (code, json) = world.run("three", args).await;
            (code, json["error"]["kind"].as_str().unwrap().to_owned())
        };
        let denied = (Some(1), "denied".to_owned());
        assert_eq!(refused(&["copy", &two, "no.raw", "--decrypt"]).await, denied);
        assert_eq!(refused(&["rewrap", &two, "--to", "k2"]).await, denied);
        let unsupported = (Some(1), "unsupported".to_owned());
        let bare = ["copy", "disk.raw", &world.url("north/new"), "--encrypt", "k1"];
        assert_eq!(refused(&bare).await, unsupported);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_that_lets_nobody_in_or_ignores_conditions_is_refused_in_its_own_words() {
        let world = World::new().await;
        let image = world.url("north/m-1");
        let mut stranger = world.on("one", &["copy", "disk.raw", &image]);
        stranger.env("AWS_SECRET_ACCESS_KEY", "another");
        let ended = tokio::task::spawn_blocking(move || stranger.output().unwrap()).await.unwrap();
        let (code, json) = told(&ended);
        assert_eq!((code, &json["error"]["kind"]), (Some(1), &"denied".into()), "{json}");
        assert!(
            json["error"]["message"].as_str().unwrap().contains("SignatureDoesNotMatch"),
            "{json}"
        );

        world.server.fault_always("PutObject", Fault::Status(403, "AccessDenied"));
        let (code, json) = world.run("one", &["copy", "disk.raw", &image]).await;
        assert_eq!((code, &json["error"]["kind"]), (Some(1), &"denied".into()), "{json}");
        let message = json["error"]["message"].as_str().unwrap();
        assert!(message.contains("AccessDenied") && message.contains("TESTREQUEST"), "{message}");
        world.server.heal();

        world.server.model.lie(blockferry::store::model::Lie::Ignores);
        let (code, json) = world.run("one", &["copy", "disk.raw", &image]).await;
        assert_eq!((code, &json["error"]["kind"]), (Some(1), &"unsupported".into()), "{json}");
        assert_eq!(world.strays(&[]), Vec::<String>::new());
        // Unless one daemon alone writes there, and says so.
        let alone = format!("{image}&fencing=none");
        world.good("one", &["copy", "disk.raw", &alone]).await;
        world.good("one", &["copy", &alone, "back.raw"]).await;
        assert_eq!(std::fs::read(world.path("back.raw")).unwrap(), world.bytes());
    }
}
