//! Status queries of Alibaba's, signed and answered: how many a second one core does, through the
//! whole of the API but the socket.

#![expect(
    clippy::unwrap_used,
    reason = "a bench that cannot go on, or that does not know the answer, stops"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use blockferry::clouds::{
    AccessKey, Api, ApiOptions, Claim, Door, DoorLimits, Face, Keys, Request, Scheme, Secret,
};
use blockferry::engine::Engine;
use blockferry::options::EngineOptions;
use blockferry::region::MemoryRegion;
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
        let mut keys = Keys::new();
        let star = vec!["*".to_owned()];
        let (project, key) = ("p".into(), "AK".into());
        let caller = Caller { project, key, regions: star.clone(), images: star };
        keys.add(AccessKey { secret: Secret::new(SECRET), caller }).unwrap();
        let options = ApiOptions::default().with_requests_per_sec(u32::MAX);
        Api::new(Arc::new(service), keys, options)
    })
}

/// Signed with this nonce.
fn query(nonce: u64, stamp: &str) -> Request {
    let query = format!(
        "AccessKeyId=AK&Action=DescribeImages&Format=JSON&ImageId=m-500&RegionId=r&\
         SignatureMethod=HMAC-SHA1&SignatureNonce={nonce}&SignatureVersion=1.0&Timestamp={stamp}"
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

criterion_group!(benches, status_queries, status_queries_over_a_socket);
criterion_main!(benches);
