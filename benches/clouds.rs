//! Status queries of Alibaba's, signed and answered: how many a second one core does, through the
//! whole of the API but the socket; what they cost a copy that runs meanwhile; how soon a cancel is
//! acknowledged.
//!
//! The last two are printed, for criterion knows neither ratios nor a rate that is kept. The image
//! that is copied has `BLOCKFERRY_BENCH_MIB` MiB (1024; once, to see that it works, 16). It is
//! copied alone and beside 5,000 queries a second in turns, so that the ratio is what the queries
//! cost and not what the disk did meanwhile.

#![expect(
    clippy::unwrap_used,
    reason = "a bench that cannot go on, or that does not know the answer, stops"
)]
#![expect(clippy::print_stdout, reason = "criterion knows no ratios, so we print ours beside it")]

#[path = "made/noise.rs"]
mod noise;
#[path = "made/smoke.rs"]
mod smoke;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blockferry::clouds::{
    AccessKey, Api, ApiOptions, Claim, Door, DoorLimits, Face, Keys, Request, Scheme, Secret,
};
use blockferry::engine::Engine;
use blockferry::options::EngineOptions;
use blockferry::region::{DirRegion, MemoryRegion, Region};
use blockferry::service::{Caller, Image, ImageService, ServiceOptions, ServiceRegion};
use criterion::{Criterion, criterion_group, criterion_main};
use tokio_util::sync::CancellationToken;

const SECRET: &str = "a-secret";

/// A region with a thousand images.
fn api(runtime: &tokio::runtime::Runtime, state: &std::path::Path) -> Api {
    runtime.block_on(async {
        let memory = MemoryRegion::new("r");
        let engine = Engine::open(EngineOptions::new(state)).await.unwrap();
        let region = ServiceRegion::new(Arc::new(memory.clone()));
        let options = ServiceOptions::new(state).with_region("r".parse().unwrap(), region);
        let service = ImageService::open(engine, options).await.unwrap();
        for number in 0..1000 {
            let id = format!("m-{number}").parse().unwrap();
            memory.insert(&id, vec![7; 4096]);
            service.put_image(Image::new("r".parse().unwrap(), id, "p")).await.unwrap();
        }
        let options = ApiOptions::default().with_requests_per_sec(u32::MAX);
        Api::new(Arc::new(service), keys(), options)
    })
}

fn keys() -> Keys {
    let mut keys = Keys::new();
    let star = vec!["*".to_owned()];
    let (project, key) = ("p".into(), "AK".into());
    let caller = Caller { project, key, regions: star.clone(), images: star };
    keys.add(AccessKey { secret: Secret::new(SECRET), caller }).unwrap();
    keys
}

/// Signed with this nonce.
fn query(nonce: u64, stamp: &str) -> Request {
    signed("Action=DescribeImages&ImageId=m-500&RegionId=r", nonce, stamp)
}

/// A call with those words, signed with this nonce.
fn signed(words: &str, nonce: u64, stamp: &str) -> Request {
    let query = format!(
        "AccessKeyId=AK&{words}&Format=JSON&SignatureMethod=HMAC-SHA1&SignatureNonce={nonce}&\
         SignatureVersion=1.0&Timestamp={stamp}"
    );
    let mut request = Request {
        method: "POST".into(),
        path: "/".into(),
        query: format!("{query}&Signature=x"),
        headers: vec![("host".into(), "h".into())],
        body: Vec::new(),
    };
    let signature = Claim::read(Scheme::AlibabaRpc, &request).unwrap().signature(SECRET);
    let signature = signature.replace('+', "%2B").replace('=', "%3D").replace('/', "%2F");
    request.query = format!("{query}&Signature={signature}");
    request
}

#[expect(clippy::disallowed_methods, reason = "a client signs with the time of day")]
fn stamp() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let days = i64::try_from(now / 86_400).unwrap() + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = (month + 2) % 12 + 1;
    let year = era * 400 + year + i64::from(month <= 2);
    let (h, m, s) = (now / 3600 % 24, now / 60 % 60, now % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}%3A{m:02}%3A{s:02}Z")
}

fn status_queries(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let state = tempfile::tempdir().unwrap();
    let api = api(&runtime, state.path());
    let mut nonce = 0;
    let first = runtime.block_on(api.answer(&Face::Alibaba, &query(u64::MAX, &stamp())));
    let told = String::from_utf8(first.body).unwrap();
    assert!(first.status == 200 && told.contains("\"TotalCount\":1"), "{told}");
    criterion.bench_function("clouds/describe one of 1000 images", |bench| {
        bench.iter_batched(
            || {
                nonce += 1;
                query(nonce, &stamp())
            },
            |request| {
                let reply = runtime.block_on(api.answer(&Face::Alibaba, &request));
                assert_eq!(reply.status, 200);
            },
            criterion::BatchSize::SmallInput,
        );
    });
}

/// The same over a socket: one connection that is kept, one request at a time.
fn status_queries_over_a_socket(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let state = tempfile::tempdir().unwrap();
    let api = Arc::new(api(&runtime, state.path()));
    let closing = CancellationToken::new();
    let address = runtime.block_on(async {
        let limits = DoorLimits::default();
        let any = "127.0.0.1:0".parse().unwrap();
        let door = Door::bind(any, None, Face::Alibaba, api, limits, None, Arc::default());
        let door = door.await.unwrap();
        let address = door.address().unwrap();
        tokio::spawn(door.serve(closing.clone()));
        address
    });
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut nonce = 0;
    let mut told = vec![0; 16 << 10];
    criterion.bench_function("clouds/describe over a socket", |bench| {
        bench.iter_batched(
            || {
                nonce += 1;
                let request = query(nonce, &stamp());
                format!("POST /?{} HTTP/1.1\r\nhost: h\r\n\r\n", request.query)
            },
            |request| {
                stream.write_all(request.as_bytes()).unwrap();
                let len = stream.read(&mut told).unwrap();
                assert!(told[..len].starts_with(b"HTTP/1.1 200"));
            },
            criterion::BatchSize::SmallInput,
        );
    });
    closing.cancel();
}

/// How many status queries a second there are beside a copy.
const RATE: u32 = 5_000;

/// Two regions behind the API: an image in memory, and a folder that it is copied to.
struct Yard {
    api: Arc<Api>,
    target: Arc<DirRegion>,
    nonce: std::sync::atomic::AtomicU64,
    _folder: tempfile::TempDir,
}

impl Yard {
    async fn new(image_bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("d")).unwrap();
        let target = Arc::new(DirRegion::open_root(folder.path().join("d")).unwrap());
        let memory = MemoryRegion::new("r");
        let engine = Engine::open(EngineOptions::new(folder.path())).await.unwrap();
        let options = ServiceOptions::new(folder.path())
            .with_region("r".parse().unwrap(), ServiceRegion::new(Arc::new(memory.clone())))
            .with_region("d".parse().unwrap(), ServiceRegion::new(target.clone()));
        let service = ImageService::open(engine, options).await.unwrap();
        memory.insert(&"m-500".parse().unwrap(), noise::noise(image_bytes));
        let image = Image::new("r".parse().unwrap(), "m-500".parse().unwrap(), "p");
        service.put_image(image).await.unwrap();
        let options = ApiOptions::default().with_requests_per_sec(u32::MAX);
        let api = Arc::new(Api::new(Arc::new(service), keys(), options));
        Self { api, target, nonce: 0.into(), _folder: folder }
    }

    /// The answer to a call that must succeed.
    async fn call(&self, words: &str) -> serde_json::Value {
        let nonce = self.nonce.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let reply = self.api.answer(&Face::Alibaba, &signed(words, nonce, &stamp())).await;
        let told = String::from_utf8(reply.body).unwrap();
        assert_eq!(reply.status, 200, "{words}: {told}");
        serde_json::from_str(&told).unwrap()
    }

    async fn start(&self) -> String {
        let words = "Action=CopyImage&RegionId=r&DestinationRegionId=d&ImageId=m-500";
        self.call(words).await["ImageId"].as_str().unwrap().to_owned()
    }

    async fn is_there(&self, image: &str) -> bool {
        let words = format!("Action=DescribeImages&RegionId=d&ImageId={image}");
        self.call(&words).await["TotalCount"] == 1
    }

    async fn delete(&self, image: &str) {
        self.call(&format!("Action=DeleteImage&RegionId=d&ImageId={image}")).await;
    }

    /// How long one copy takes, which is then removed.
    async fn copy(&self) -> Duration {
        let begun = Instant::now();
        let image = self.start().await;
        while !self.is_there(&image).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = begun.elapsed();
        self.delete(&image).await;
        assert!(self.target.list().await.unwrap().is_empty(), "the image is still there");
        took
    }

    /// How many status queries were answered until `closing`, at no more than [`RATE`] a second.
    async fn ask(&self, closing: CancellationToken) -> u64 {
        let (begun, mut count) = (Instant::now(), 0_u64);
        while !closing.is_cancelled() {
            let due = begun.elapsed().as_secs_f64() * f64::from(RATE);
            while f64::from(u32::try_from(count).unwrap()) < due {
                self.call("Action=DescribeImages&ImageId=m-500&RegionId=r").await;
                count += 1;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        count
    }
}

/// Each sorted, the one in the middle.
fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

fn beside_a_copy(_: &mut Criterion) {
    let (rounds, mib) = match smoke::is_smoke() {
        true => (1, 16),
        false => (7, 1024),
    };
    let mib =
        std::env::var("BLOCKFERRY_BENCH_MIB").ok().and_then(|n| n.parse().ok()).unwrap_or(mib);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let yard = Arc::new(Yard::new(mib << 20).await);
        yard.copy().await;
        let (mut shares, mut rates) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let alone = yard.copy().await;
            let closing = CancellationToken::new();
            let (asked, until) = (yard.clone(), closing.clone());
            let asking = tokio::spawn(async move { asked.ask(until).await });
            let beside = yard.copy().await;
            closing.cancel();
            let count = asking.await.unwrap();
            shares.push(alone.as_secs_f64() / beside.as_secs_f64());
            rates.push(f64::from(u32::try_from(count).unwrap()) / beside.as_secs_f64());
        }
        let (share, rate) = (median(shares) * 100.0, median(rates));
        println!("clouds/beside a copy: {rate:.0} status queries/s");
        println!("clouds/beside them: the copy at {share:.0} % of its speed alone");
        let mut waits = Vec::new();
        for _ in 0..rounds * 3 {
            let image = yard.start().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            let begun = Instant::now();
            let words = format!("Action=CancelCopyImage&RegionId=d&ImageId={image}");
            let nonce = yard.nonce.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let reply = yard.api.answer(&Face::Alibaba, &signed(&words, nonce, &stamp())).await;
            match reply.status {
                200 => waits.push(begun.elapsed().as_secs_f64() * 1000.0),
                // It was faster than that.
                _ => yard.delete(&image).await,
            }
        }
        let most = waits.iter().copied().fold(0.0, f64::max);
        let count = waits.len();
        let ms = median(waits);
        println!("clouds/cancel: acknowledged in {ms:.1} ms, at most {most:.1} ms, of {count}");
    });
}

criterion_group!(benches, status_queries, status_queries_over_a_socket, beside_a_copy);
criterion_main!(benches);
