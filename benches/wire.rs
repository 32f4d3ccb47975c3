//! What the chunk protocol costs by itself: frames cut and put together, and a push through both
//! machines, without a network; each chunk is hashed when it arrives, as it always is.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a bench that cannot go on, or that does not know the answer, stops"
)]

#[path = "made/noise.rs"]
mod noise;
#[path = "made/smoke.rs"]
mod smoke;

use std::time::Instant;

use blockferry::geometry::{ChunkIndex, ChunkSize, Geometry};
use blockferry::id::JobId;
use blockferry::job::{Endpoint, Fingerprint, JobSpec};
use blockferry::manifest::TableBuilder;
use blockferry::seal::{Seal, seal};
use blockferry::wire::frame::{Expect, Frame, Packet, VERSION, VERSION_NONE};
use blockferry::wire::message::{Begin, Chunk, Codec, Hello, Message, Token};
use blockferry::wire::session::{
    Accepted, Bounds, Greeting, GreetingEvent, LinkId, Opener, Pace, Receiver, ReceiverEvent, Rest,
    Sender,
};
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const CHUNK: usize = 64 << 10;
const CHUNK_BYTES_MAX: u32 = 64 << 10;
const LINK: LinkId = LinkId(0);

fn frames(bench: &mut Criterion) {
    let bytes = Bytes::from(noise::noise(CHUNK));
    let geometry = Geometry::new(CHUNK as u64, ChunkSize::MIN).unwrap();
    let index = ChunkIndex::new(0);
    let Seal::Data(sealed) = seal(geometry, index, bytes.clone()) else { panic!("noise") };
    let chunk = Chunk { index, codec: Codec::Raw, digest: sealed.digest(), bytes };
    let message = Message::Chunk(chunk);
    let expect = Expect::agreed(VERSION, CHUNK_BYTES_MAX);
    assert_eq!(there_and_back(&message.packet(VERSION, 1), expect), message);
    let mut group = bench.benchmark_group("wire");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    group.bench_function("frame/put", |timer| timer.iter(|| message.packet(VERSION, 1)));
    let whole = message.packet(VERSION, 1).to_bytes();
    group.bench_function("frame/take", |timer| {
        timer.iter_batched_ref(
            || whole.clone(),
            |buffer| {
                let frame = Frame::decode(buffer, expect).unwrap().unwrap();
                Message::decode(&frame).unwrap()
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn there_and_back(packet: &Packet, expect: Expect) -> Message {
    let frame = Frame::decode(&mut packet.to_bytes(), expect).unwrap().unwrap();
    Message::decode(&frame).unwrap()
}

/// The frame of a packet, without copying its bytes.
fn frame(packet: &Packet) -> Frame {
    let version = u16::from_le_bytes([packet.head[4], packet.head[5]]);
    let expect = match version {
        VERSION_NONE => Expect::hello(),
        version => Expect::agreed(version, CHUNK_BYTES_MAX),
    };
    Frame::decode(&mut packet.to_bytes(), expect).unwrap().unwrap()
}

/// Both sides of a push, ready to send.
fn ready(geometry: Geometry, now: Instant) -> (Sender, Receiver) {
    let hello = Hello::new(CHUNK_BYTES_MAX);
    let (bounds, pace) = (Bounds::default(), Pace::default());
    let mut north = Greeting::dial(LINK, hello, bounds, pace, now);
    let mut south = Greeting::listen(LINK, hello, bounds, pace, now);
    south.handle_frame(&frame(&north.poll_transmit().unwrap()), now);
    north.handle_frame(&frame(&south.poll_transmit().unwrap()), now);
    let end = || Endpoint::new("b".parse().unwrap(), "m".parse().unwrap());
    let job = JobId::from_bytes([5; 16]);
    let spec = JobSpec::new(job, end(), end(), geometry, Fingerprint::new());
    let begin = Begin { epoch: 1, root: None, spec };
    let link = north.into_link().unwrap();
    let mut sender = Sender::push(link, begin, None, Rest::default(), now).unwrap();
    south.handle_frame(&frame(&sender.poll_transmit(LINK, now).unwrap()), now);
    let opened = std::iter::from_fn(|| south.poll_event()).find_map(|event| match event {
        GreetingEvent::Opened { id, opener: Opener::Begin(begin) } => Some((id, begin)),
        _ => None,
    });
    let (id, begin) = opened.unwrap();
    let mut receiver = Receiver::answer(south.into_link().unwrap(), id, begin).unwrap();
    let (held, token) = (TableBuilder::new(geometry), Token::from_bytes([9; 32]));
    receiver.accept(Accepted { held, data_bytes: 0, base: None, token }).unwrap();
    talk(&mut sender, &mut receiver, now);
    (sender, receiver)
}

fn talk(sender: &mut Sender, receiver: &mut Receiver, now: Instant) {
    loop {
        let mut silent = true;
        while let Some(packet) = sender.poll_transmit(LINK, now) {
            receiver.handle_frame(LINK, &frame(&packet), now);
            silent = false;
        }
        while let Some(packet) = receiver.poll_transmit(LINK) {
            sender.handle_frame(LINK, &frame(&packet), now);
            silent = false;
        }
        if silent {
            return;
        }
    }
}

fn pushes(bench: &mut Criterion) {
    let chunk_count: u32 = if smoke::is_smoke() { 8 } else { 256 };
    let image_bytes = u64::from(chunk_count) * CHUNK as u64;
    let geometry = Geometry::new(image_bytes, ChunkSize::MIN).unwrap();
    let now = Instant::now();
    let bytes = Bytes::from(noise::noise(CHUNK));
    let digests: Vec<_> = geometry
        .chunks()
        .iter()
        .map(|index| match seal(geometry, index, bytes.clone()) {
            Seal::Data(sealed) => (index, sealed),
            Seal::Zero(_) => panic!("noise"),
        })
        .collect();
    let push = |(sender, receiver): &mut (Sender, Receiver)| {
        for (index, sealed) in &digests {
            let (digest, bytes) = (sealed.digest(), bytes.clone());
            sender.send_chunk(*index, digest, Codec::Raw, bytes).unwrap();
            talk(sender, receiver, now);
            while let Some(event) = receiver.poll_event() {
                if let ReceiverEvent::Arrived(arrived) = event {
                    let (ticket, opened) = arrived.open();
                    receiver.written(ticket, &[opened.unwrap().written()]).unwrap();
                }
            }
            talk(sender, receiver, now);
        }
    };
    let mut both = ready(geometry, now);
    push(&mut both);
    assert_eq!(both.1.table().unwrap().missing(), 0, "every chunk arrived");
    let mut group = bench.benchmark_group("wire");
    group.throughput(Throughput::Bytes(image_bytes));
    group.bench_function("push", |timer| {
        timer.iter_batched_ref(|| ready(geometry, now), push, BatchSize::LargeInput);
    });
    group.finish();
}

criterion_group!(benches, frames, pushes);
criterion_main!(benches);
