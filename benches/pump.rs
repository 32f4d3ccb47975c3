//! Bytes through TLS and nothing else: the limit that a copy between daemons is held against.
//!
//! ```text
//! cargo bench --all-features --bench pump -- take CERT KEY CA SINK
//! cargo bench --all-features --bench pump -- send CERT KEY CA ADDRESS SOURCE
//! ```
//!
//! `take` says `listening ADDRESS`, takes one stream and writes it to SINK; `send` sends SOURCE,
//! and ends when the other side has all of it, flushed. A sink of `-` takes the bytes and drops
//! them; a source of `-:MIB` is so much noise out of one buffer. Nothing is hashed, compressed or
//! put on record. The TLS is that of `peer`. `benches/peers/run --wire` calls both; without these
//! words a few bytes are pumped once, which proves that it still pumps right.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops")]
#![expect(clippy::print_stdout, reason = "whoever started it has to learn the address")]

#[path = "made/noise.rs"]
mod noise;

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use blockferry::peer::Tls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What is read, written and given to TLS at a time.
const PIECE: usize = 256 << 10;
const MIB: usize = 1 << 20;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match words[..] {
        ["take", cert, key, ca, sink] => runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            println!("listening {}", listener.local_addr().unwrap());
            take(&listener, &tls([cert, key, ca]), sink).await;
        }),
        ["send", cert, key, ca, address, source] => {
            runtime.block_on(send(&tls([cert, key, ca]), address, source));
        }
        _ => runtime.block_on(check()),
    }
}

fn tls(files: [&str; 3]) -> Tls {
    let [cert, key, ca] = files.map(Path::new);
    Tls::load(cert, key, ca).unwrap()
}

async fn take(listener: &TcpListener, tls: &Tls, sink: &str) {
    let (stream, _) = listener.accept().await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut stream, _) = tls.accept(stream).await.unwrap();
    let mut file = (sink != "-").then(|| File::create(sink).unwrap());
    let mut piece = vec![0; PIECE];
    loop {
        let count = stream.read(&mut piece).await.unwrap();
        if count == 0 {
            break;
        }
        if let Some(file) = &mut file {
            file.write_all(&piece[..count]).unwrap();
        }
    }
    if let Some(file) = file {
        file.sync_all().unwrap();
    }
    stream.write_all(&[1]).await.unwrap();
    stream.shutdown().await.unwrap();
}

async fn send(tls: &Tls, address: &str, source: &str) {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (host, _) = address.rsplit_once(':').unwrap();
    let (mut stream, _) = tls.dial(stream, host).await.unwrap();
    if let Some(mib) = source.strip_prefix("-:") {
        let piece = noise::noise(PIECE);
        for _ in 0..mib.parse::<usize>().unwrap() * MIB / PIECE {
            stream.write_all(&piece).await.unwrap();
        }
    } else {
        let (mut file, mut piece) = (File::open(source).unwrap(), vec![0; PIECE]);
        loop {
            let count = file.read(&mut piece).unwrap();
            if count == 0 {
                break;
            }
            stream.write_all(&piece[..count]).await.unwrap();
        }
    }
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), 1, "the other side has all of it");
}

/// What was sent is what is taken.
async fn check() {
    let dir = tempfile::tempdir().unwrap();
    let cert = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockferry"));
        let made = command.current_dir(&dir).arg("cert").args(words).output().unwrap();
        assert!(made.status.success(), "{made:?}");
    };
    cert(&["init", "ca"]);
    cert(&["issue", "ca", "alpha"]);
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (at("ca/alpha.pem"), at("ca/alpha.key"), at("ca/ca.pem"));
    let tls = tls([&cert, &key, &ca]);
    let (source, sink) = (at("source"), at("sink"));
    std::fs::write(&source, noise::noise(3 * MIB + 7)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::join!(take(&listener, &tls, &sink), send(&tls, &address, &source));
    assert!(std::fs::read(&sink).unwrap() == std::fs::read(&source).unwrap(), "it differs");
    tokio::join!(take(&listener, &tls, "-"), send(&tls, &address, "-:1"));
}
