//! Two machines hand in hand, and what a peer that breaks the rules is told. Pure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::chunk::{Content, Digest, Durable, Written};
use crate::error::{Error, ErrorKind};
use crate::geometry::{ByteRange, ChunkIndex, ChunkRun, ChunkSize, Geometry};
use crate::id::{ImageId, JobId, RegionName};
use crate::job::{Endpoint, Fingerprint, JobSpec};
use crate::manifest::{Manifest, TableBuilder};
use crate::plan::{Extent, ExtentKind};
use crate::seal::digest_of;
use crate::wire::frame::{Expect, Frame, Packet, VERSION, VERSION_NONE};
use crate::wire::message::{
    Begin, Chunk, Codec, Decision, Fetch, Hello, Message, Name, Offer, Role, Session, Standing,
    Token,
};

const CHUNK: u64 = 64 << 10;
const CONTROL: LinkId = LinkId(0);
const DATA: LinkId = LinkId(1);

fn geometry() -> Geometry {
    Geometry::new(4 * CHUNK, ChunkSize::MIN).unwrap()
}

fn index(at: u32) -> ChunkIndex {
    ChunkIndex::new(at)
}

fn run(first: u32, count: u32) -> ChunkRun {
    ChunkRun::new(index(first), count)
}

fn bytes(at: u32) -> Bytes {
    Bytes::from(vec![u8::try_from(at).unwrap() + 1; 64 << 10])
}

fn digest(at: u32) -> Digest {
    digest_of(geometry(), index(at), &bytes(at))
}

fn manifest() -> Arc<Manifest> {
    let mut table = TableBuilder::new(geometry());
    for at in 0..4 {
        table.put(run(at, 1), Content::Data { digest: digest(at), data_bytes: 0 });
    }
    let attributes = std::collections::BTreeMap::new();
    Arc::new(Manifest::new(table.finish().unwrap(), None, attributes).unwrap())
}

fn begin(root: Option<Digest>) -> Begin {
    let end = || {
        let (region, image) = (RegionName::try_from("b").unwrap(), ImageId::try_from("m").unwrap());
        Endpoint::new(region, image)
    };
    let job = JobId::from_bytes([5; 16]);
    let spec = JobSpec::new(job, end(), end(), geometry(), Fingerprint::new());
    Begin { epoch: 1, root, spec }
}

fn name() -> Name {
    let spec = begin(None).spec;
    Name { job: spec.job, region: spec.target.region, image: spec.target.image }
}

fn bounds() -> Bounds {
    Bounds { link_bytes: 2 * CHUNK, session_bytes: 3 * CHUNK, ..Bounds::default() }
}

fn frame(packet: &Packet) -> Frame {
    let version = u16::from_le_bytes([packet.head[4], packet.head[5]]);
    let expect = match version {
        VERSION_NONE => Expect::hello(),
        version => Expect::agreed(version, 64 << 10),
    };
    Frame::decode(&mut packet.to_bytes(), expect).unwrap().unwrap()
}

fn greeted(id: LinkId, now: Instant) -> (Greeting, Greeting) {
    let hello = Hello::new(64 << 10);
    let mut north = Greeting::dial(id, hello, bounds(), Pace::default(), now);
    let mut south = Greeting::listen(id, hello, bounds(), Pace::default(), now);
    south.handle_frame(&frame(&north.poll_transmit().unwrap()), now);
    north.handle_frame(&frame(&south.poll_transmit().unwrap()), now);
    assert!(matches!(north.poll_event(), Some(GreetingEvent::Agreed)));
    assert!(matches!(south.poll_event(), Some(GreetingEvent::Agreed)));
    (north, south)
}

fn opened(south: &mut Greeting, packet: &Packet, now: Instant) -> (u64, Opener) {
    south.handle_frame(&frame(packet), now);
    match south.poll_event() {
        Some(GreetingEvent::Opened { id, opener }) => (id, opener),
        other => panic!("{other:?}"),
    }
}

/// A push whose receiver has accepted, after as many frames as both have to say.
fn pushing(root: bool) -> (Sender, Receiver, Instant) {
    let now = Instant::now();
    let (north, mut south) = greeted(CONTROL, now);
    let manifest = root.then(manifest);
    let begin = begin(manifest.as_ref().map(|manifest| manifest.root()));
    let link = north.into_link().unwrap();
    let mut sender = Sender::push(link, begin, manifest.as_ref(), Rest::default(), now).unwrap();
    let packet = sender.poll_transmit(CONTROL, now).unwrap();
    let (id, Opener::Begin(begin)) = opened(&mut south, &packet, now) else { panic!("no begin") };
    let mut receiver = Receiver::answer(south.into_link().unwrap(), id, begin).unwrap();
    let held = TableBuilder::new(geometry());
    let token = Token::from_bytes([9; 32]);
    receiver.accept(Accepted { held, data_bytes: 0, base: None, token }).unwrap();
    exchange(&mut sender, &mut receiver, now);
    assert!(matches!(sender.poll_event(), Some(SenderEvent::Ready { .. })));
    (sender, receiver, now)
}

/// Carries frames both ways until nobody has more to say.
fn exchange(sender: &mut Sender, receiver: &mut Receiver, now: Instant) {
    let mut talking = true;
    while talking {
        talking = false;
        for link in [CONTROL, DATA] {
            while let Some(packet) = sender.poll_transmit(link, now) {
                receiver.handle_frame(link, &frame(&packet), now);
                talking = true;
            }
            while let Some(packet) = receiver.poll_transmit(link) {
                sender.handle_frame(link, &frame(&packet), now);
                talking = true;
            }
        }
    }
}

/// Writes whatever arrived.
fn write(receiver: &mut Receiver) -> Vec<ReceiverEvent> {
    let mut others = Vec::new();
    while let Some(event) = receiver.poll_event() {
        match event {
            ReceiverEvent::Arrived(arrived) => match arrived.open() {
                (ticket, Ok(sealed)) => receiver.written(ticket, &[sealed.written()]).unwrap(),
                (ticket, Err(error)) => receiver.refused(ticket, error),
            },
            ReceiverEvent::Zeroes(ticket) => {
                let zeroes: Vec<Written> =
                    ticket.runs().iter().map(|run| Written::zeroes(*run)).collect();
                receiver.written(ticket, &zeroes).unwrap();
            }
            other => others.push(other),
        }
    }
    others
}

fn send_all(sender: &mut Sender, receiver: &mut Receiver, now: Instant) {
    for at in 0..4 {
        sender.send_chunk(index(at), digest(at), Codec::Raw, bytes(at)).unwrap();
        exchange(sender, receiver, now);
        write(receiver);
        exchange(sender, receiver, now);
    }
}

/// What the receiver says to a frame that an honest sender would not send.
fn told(receiver: &mut Receiver, message: &Message, id: u64, now: Instant) -> ErrorKind {
    receiver.handle_frame(CONTROL, &frame(&message.packet(VERSION, id)), now);
    write(receiver)
        .into_iter()
        .find_map(|event| match event {
            ReceiverEvent::Closed(error) => Some(error.kind()),
            _ => None,
        })
        .unwrap_or_else(|| panic!("{message:?} is taken"))
}

#[test]
fn a_pushed_image_is_committed_and_its_sender_told() {
    for root in [false, true] {
        let (mut sender, mut receiver, now) = pushing(root);
        send_all(&mut sender, &mut receiver, now);
        sender.seal(manifest().root(), now).unwrap();
        exchange(&mut sender, &mut receiver, now);
        let events = write(&mut receiver);
        let commit = events.iter().find_map(|event| match event {
            ReceiverEvent::Commit(manifest) => Some(manifest.root()),
            _ => None,
        });
        assert_eq!(commit, Some(manifest().root()));
        receiver.decided(Decision::Committed { root: commit }).unwrap();
        exchange(&mut sender, &mut receiver, now);
        assert_eq!(sender.state(), SenderState::Decided);
        assert_eq!(receiver.state(), ReceiverState::Decided);
    }
}

#[test]
fn a_version_1_peer_and_a_version_2_hello_part_cleanly() {
    let now = Instant::now();
    let later = Hello { version_min: 2, version_max: 3, ..Hello::new(64 << 10) };
    let mut north = Greeting::dial(CONTROL, later, bounds(), Pace::default(), now);
    let mut south = Greeting::listen(CONTROL, Hello::new(64 << 10), bounds(), Pace::default(), now);
    south.handle_frame(&frame(&north.poll_transmit().unwrap()), now);
    let Some(GreetingEvent::Closed(error)) = south.poll_event() else { panic!("it went on") };
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    // The hello tells the later side what the earlier one speaks; the error is for people.
    north.handle_frame(&frame(&south.poll_transmit().unwrap()), now);
    let Some(GreetingEvent::Closed(error)) = north.poll_event() else { panic!("it went on") };
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(frame(&south.poll_transmit().unwrap()).kind, crate::wire::message::Kind::Error);
    assert!(south.poll_transmit().is_none() && south.poll_timeout().is_none());
}

#[test]
fn what_later_versions_append_to_a_hello_is_passed_over() {
    let hello = Hello { version_max: 7, features: u64::MAX, ..Hello::new(1 << 20) };
    let mut body = Message::Hello(hello).packet(VERSION_NONE, 0).head.split_off(32).to_vec();
    body.extend_from_slice(b"more");
    let frame = Frame { kind: crate::wire::message::Kind::Hello, id: 0, body: body.into() };
    let Ok(Message::Hello(heard)) = Message::decode(&frame) else { panic!("refused") };
    let agreed = Hello::new(64 << 10).agree(heard).unwrap();
    assert_eq!((agreed.version, agreed.features, agreed.chunk_bytes_max), (1, 3, 64 << 10));
}

#[test]
fn a_peer_that_breaks_the_rules_is_told_one_typed_error() {
    let chunk = |at: u32, len: usize, of: Digest| Chunk {
        index: index(at),
        codec: Codec::Raw,
        digest: of,
        bytes: Bytes::from(vec![1; len]),
    };
    let full = 64 << 10;
    let lie = Chunk { bytes: bytes(1), ..chunk(0, full, digest(0)) };
    let zeros = Chunk { bytes: Bytes::from(vec![0; full]), ..chunk(0, full, digest(0)) };
    let bomb = Chunk { codec: Codec::Zstd, ..chunk(0, 100, digest(0)) };
    let cases = [
        (Message::Chunk(chunk(4, full, digest(0))), ErrorKind::Invalid, "out of range"),
        (Message::Chunk(chunk(0, 100, digest(0))), ErrorKind::Invalid, "too short"),
        (Message::Chunk(lie), ErrorKind::Corrupt, "another digest"),
        (Message::Chunk(zeros), ErrorKind::Corrupt, "zeros as bytes"),
        (Message::Chunk(bomb), ErrorKind::Corrupt, "no zstd frame"),
        (Message::Chunk(chunk(1, full, digest(0))), ErrorKind::Corrupt, "another place"),
        (Message::Zeroes(vec![run(3, 2)]), ErrorKind::Invalid, "zeroes out of range"),
        (Message::Same(vec![run(0, 1)]), ErrorKind::Invalid, "no base"),
        (Message::Seal { root: digest(0) }, ErrorKind::Invalid, "chunks are missing"),
        (Message::Want(run(0, 1)), ErrorKind::Invalid, "wants what it pushes"),
        (Message::Begin(Box::new(begin(None))), ErrorKind::Invalid, "begins twice"),
        (Message::Query(name()), ErrorKind::Invalid, "a query in a session"),
        (Message::Synced, ErrorKind::Invalid, "answers nothing"),
        (Message::Credit { bytes: CHUNK }, ErrorKind::Invalid, "credit for the receiver"),
    ];
    for (message, kind, what) in cases {
        let (_, mut receiver, now) = pushing(false);
        let id = if message.kind().role() == Role::Notice { 0 } else { 100 };
        assert_eq!(told(&mut receiver, &message, id, now), kind, "{what}");
        let last = Message::decode(&frame(&receiver.poll_transmit(CONTROL).unwrap())).unwrap();
        assert!(matches!(last, Message::Error(refusal) if refusal.kind == kind), "{what}");
        assert!(receiver.poll_transmit(CONTROL).is_none(), "{what}: one error, and no more");
    }
}

#[test]
fn ids_that_do_not_ascend_are_refused() {
    let (_, mut receiver, now) = pushing(false);
    receiver.handle_frame(CONTROL, &frame(&Message::Ping.packet(VERSION, 50)), now);
    assert_eq!(told(&mut receiver, &Message::Ping, 50, now), ErrorKind::Invalid);
}

#[test]
fn more_than_the_credit_is_refused_before_it_is_kept() {
    let (_, mut receiver, now) = pushing(false);
    let chunk = |at: u32| {
        let (digest, bytes) = (digest(at), bytes(at));
        Message::Chunk(Chunk { index: index(at), codec: Codec::Raw, digest, bytes })
    };
    let mut arrived = Vec::new();
    for at in 0..2 {
        receiver.handle_frame(
            CONTROL,
            &frame(&chunk(at).packet(VERSION, 100 + u64::from(at))),
            now,
        );
        arrived.extend(receiver.poll_event());
    }
    assert_eq!((arrived.len(), receiver.committed_bytes()), (2, 2 * CHUNK));
    assert_eq!(told(&mut receiver, &chunk(2), 102, now), ErrorKind::Invalid);
}

#[test]
fn a_chunk_that_contradicts_the_announced_digests_is_refused() {
    let (_, mut receiver, now) = pushing(true);
    let zeroes = Message::Zeroes(vec![run(0, 1)]);
    assert_eq!(told(&mut receiver, &zeroes, 100, now), ErrorKind::Corrupt);
}

#[test]
fn a_seal_of_another_root_commits_nothing() {
    let (mut sender, mut receiver, now) = pushing(false);
    send_all(&mut sender, &mut receiver, now);
    assert_eq!(
        told(&mut receiver, &Message::Seal { root: digest(0) }, 100, now),
        ErrorKind::Corrupt
    );
}

#[test]
fn a_seal_waits_for_chunks_that_are_still_being_written() {
    let (mut sender, mut receiver, now) = pushing(false);
    for at in 0..3 {
        sender.send_chunk(index(at), digest(at), Codec::Raw, bytes(at)).unwrap();
        exchange(&mut sender, &mut receiver, now);
        write(&mut receiver);
        exchange(&mut sender, &mut receiver, now);
    }
    // The last chunk comes twice, as it does when its first link is lost.
    let (digest, bytes) = (digest(3), bytes(3));
    let chunk = Message::Chunk(Chunk { index: index(3), codec: Codec::Raw, digest, bytes });
    let mut arrived = Vec::new();
    for id in [100, 101] {
        receiver.handle_frame(CONTROL, &frame(&chunk.packet(VERSION, id)), now);
        match receiver.poll_event() {
            Some(ReceiverEvent::Arrived(chunk)) => arrived.push(chunk.open()),
            other => panic!("{other:?}"),
        }
    }
    let (second, first) = (arrived.pop().unwrap(), arrived.pop().unwrap());
    receiver.written(first.0, &[first.1.unwrap().written()]).unwrap();
    let seal = Message::Seal { root: manifest().root() };
    receiver.handle_frame(CONTROL, &frame(&seal.packet(VERSION, 102)), now);
    assert_eq!(receiver.state(), ReceiverState::Deciding);
    assert!(receiver.poll_event().is_none(), "it commits while a chunk is being written");
    receiver.written(second.0, &[second.1.unwrap().written()]).unwrap();
    assert!(matches!(receiver.poll_event(), Some(ReceiverEvent::Commit(_))));
}

/// Adds a data connection to both.
fn joined(sender: &mut Sender, receiver: &mut Receiver, now: Instant) {
    let (north, mut south) = greeted(DATA, now);
    sender.attach(north.into_link().unwrap(), None, now).unwrap();
    let packet = sender.poll_transmit(DATA, now).unwrap();
    let (id, Opener::Join(join)) = opened(&mut south, &packet, now) else { panic!("no join") };
    assert!(receiver.admits(&join));
    for wrong in [
        crate::wire::message::Join { token: Token::from_bytes([8; 32]), ..join },
        crate::wire::message::Join { session: Session::new(join.session.job, 2), ..join },
    ] {
        assert!(!receiver.admits(&wrong), "{wrong:?}");
    }
    receiver.attach(south.into_link().unwrap(), Some(id), now).unwrap();
    exchange(sender, receiver, now);
}

#[test]
fn what_was_in_flight_on_a_lost_data_link_travels_again_on_another() {
    let (mut sender, mut receiver, now) = pushing(false);
    joined(&mut sender, &mut receiver, now);
    assert_eq!(sender.room(), 3, "the session's credit, shared by both links");
    let item = sender.send_chunk(index(0), digest(0), Codec::Raw, bytes(0)).unwrap();
    let lost = sender.poll_transmit(DATA, now).unwrap();
    assert_eq!(lost.body, bytes(0));
    let cut = || Error::new(ErrorKind::Unavailable, "read connection");
    sender.link_lost(DATA, cut());
    receiver.link_lost(DATA, cut());
    exchange(&mut sender, &mut receiver, now);
    write(&mut receiver);
    exchange(&mut sender, &mut receiver, now);
    let written = std::iter::from_fn(|| sender.poll_event());
    assert!(
        written.into_iter().any(|event| matches!(event, SenderEvent::Written(of) if of == item))
    );
    assert_eq!(receiver.state(), ReceiverState::Receiving);
}

#[test]
fn a_lost_control_link_leaves_what_the_next_attempt_needs() {
    let (mut sender, mut receiver, now) = pushing(false);
    let kept = sender.send_chunk(index(0), digest(0), Codec::Raw, bytes(0)).unwrap();
    let again = sender.send_chunk(index(1), digest(1), Codec::Raw, bytes(1)).unwrap();
    exchange(&mut sender, &mut receiver, now);
    sender.link_lost(CONTROL, Error::new(ErrorKind::Unavailable, "read connection"));
    let Some(SenderEvent::Closed(error)) = std::iter::from_fn(|| sender.poll_event()).last() else {
        panic!("it goes on")
    };
    assert!(error.is_retryable());
    let rest = sender.into_rest();
    assert_eq!(rest.items().collect::<Vec<_>>(), [kept, again]);

    let (north, mut south) = greeted(CONTROL, now);
    let next = Begin { epoch: 2, ..begin(None) };
    let mut sender = Sender::push(north.into_link().unwrap(), next, None, rest, now).unwrap();
    let packet = sender.poll_transmit(CONTROL, now).unwrap();
    let (id, Opener::Begin(begin)) = opened(&mut south, &packet, now) else { panic!("no begin") };
    let mut receiver = Receiver::answer(south.into_link().unwrap(), id, begin).unwrap();
    let mut held = TableBuilder::new(geometry());
    held.put(run(0, 1), Content::Data { digest: digest(0), data_bytes: 0 });
    let token = Token::from_bytes([9; 32]);
    receiver.accept(Accepted { held, data_bytes: CHUNK, base: None, token }).unwrap();
    exchange(&mut sender, &mut receiver, now);
    let arrived = receiver.poll_event();
    assert!(
        matches!(arrived, Some(ReceiverEvent::Arrived(arrived)) if arrived.index() == index(1))
    );
    let events: Vec<SenderEvent> = std::iter::from_fn(|| sender.poll_event()).collect();
    assert!(matches!(&events[0], SenderEvent::Ready { data_bytes: CHUNK, .. }));
    assert!(events.iter().any(|event| matches!(event, SenderEvent::Written(of) if *of == kept)));
}

#[test]
fn an_image_is_pulled_chunk_by_chunk() {
    let now = Instant::now();
    let (north, mut south) = greeted(CONTROL, now);
    let session = Session::new(JobId::from_bytes([6; 16]), 1);
    let name = name();
    let fetch = Fetch { session, region: name.region, image: name.image, table: true };
    let mut receiver = Receiver::fetch(north.into_link().unwrap(), fetch, now);
    let packet = receiver.poll_transmit(CONTROL).unwrap();
    let (id, Opener::Fetch(fetch)) = opened(&mut south, &packet, now) else { panic!("no fetch") };
    let manifest = manifest();
    let facts = Fingerprint::new().with("size", 4 * CHUNK);
    let token = Token::from_bytes([9; 32]);
    let root = Some(manifest.root());
    let offer = Offer { token, geometry: geometry(), root, facts: facts.clone() };
    let link = south.into_link().unwrap();
    let mut sender = Sender::offer(link, id, &fetch, offer, Some(&manifest)).unwrap();
    exchange(&mut sender, &mut receiver, now);
    assert!(
        matches!(receiver.poll_event(), Some(ReceiverEvent::Offered(offer)) if offer.facts == facts)
    );
    let held = TableBuilder::new(geometry());
    receiver.accept(Accepted { held, data_bytes: 0, base: None, token }).unwrap();
    let want = receiver.want(run(1, 2), now).unwrap();
    let ask = receiver.ask_extents(ByteRange::new(0, CHUNK), now).unwrap();
    exchange(&mut sender, &mut receiver, now);

    let mut asked = 0;
    while let Some(event) = sender.poll_event() {
        match event {
            SenderEvent::Wanted { run: wanted, .. } => {
                assert_eq!(wanted, run(1, 2));
                sender.send_chunk(index(1), digest(1), Codec::Raw, bytes(1)).unwrap();
                sender.send_chunk(index(2), digest(2), Codec::Raw, bytes(2)).unwrap();
                assert!(sender.send_zeroes(vec![run(0, 1)]).is_err(), "nobody wants it");
                asked += 1;
            }
            SenderEvent::AskedExtents { id, range } => {
                let extent = Extent { range, kind: ExtentKind::Data };
                sender.tell_extents(id, vec![extent]).unwrap();
                asked += 1;
            }
            _ => {}
        }
    }
    assert_eq!(asked, 2);
    exchange(&mut sender, &mut receiver, now);
    let events = write(&mut receiver);
    let has = |wanted: fn(&ReceiverEvent) -> Option<u64>, id: u64| {
        events.iter().any(|event| wanted(event) == Some(id))
    };
    let fulfilled = |event: &ReceiverEvent| match event {
        ReceiverEvent::Fulfilled { id } => Some(*id),
        _ => None,
    };
    let extents = |event: &ReceiverEvent| match event {
        ReceiverEvent::Extents { id, .. } => Some(*id),
        _ => None,
    };
    assert!(has(fulfilled, want) && has(extents, ask), "{events:?}");
    assert!(events.iter().any(|event| matches!(event, ReceiverEvent::Table(_))));
    assert_eq!(receiver.table().unwrap().missing(), 2);
}

#[test]
fn a_silent_peer_is_asked_and_then_given_up() {
    let (mut sender, _, now) = pushing(false);
    let pace = Pace::default();
    let due = sender.poll_timeout().unwrap();
    assert_eq!(due, now + pace.ping_after);
    sender.handle_timeout(due);
    let ping = Message::decode(&frame(&sender.poll_transmit(CONTROL, due).unwrap())).unwrap();
    assert_eq!(ping, Message::Ping);
    assert_eq!(sender.poll_timeout(), Some(now + pace.silence_max));
    sender.handle_timeout(now + pace.silence_max - Duration::from_nanos(1));
    assert_eq!(sender.state(), SenderState::Sending);
    sender.handle_timeout(now + pace.silence_max);
    assert_eq!((sender.state(), sender.poll_timeout()), (SenderState::Closed, None));
}

#[test]
fn a_query_and_a_cancel_need_no_session() {
    let now = Instant::now();
    let (mut north, mut south) = greeted(CONTROL, now);
    north.query(name(), now).unwrap();
    north.cancel(name(), now).unwrap();
    while let Some(packet) = north.poll_transmit() {
        south.handle_frame(&frame(&packet), now);
    }
    let standing = Standing::Staged { epoch: 4, owned: false };
    let decision = Decision::Cancelled { first: true, clean: false };
    while let Some(event) = south.poll_event() {
        match event {
            GreetingEvent::Queried { id, .. } => south.answer(id, standing).unwrap(),
            GreetingEvent::Cancelled { id, .. } => south.decided(id, decision).unwrap(),
            other => panic!("{other:?}"),
        }
    }
    while let Some(packet) = south.poll_transmit() {
        north.handle_frame(&frame(&packet), now);
    }
    assert!(matches!(north.poll_event(), Some(GreetingEvent::Standing(is)) if is == standing));
    assert!(matches!(north.poll_event(), Some(GreetingEvent::Decided(is)) if is == decision));
}

#[test]
fn a_chunk_may_be_replaced_until_it_is_on_record() {
    let (mut sender, mut receiver, now) = pushing(false);
    send_all(&mut sender, &mut receiver, now);
    let old = |at| Durable::recorded(run(at, 1), content(at));
    // Zeros in place of chunks 0 and 1, then chunk 0 is as it was.
    sender.send_zeroes(vec![run(0, 2)]).unwrap();
    exchange(&mut sender, &mut receiver, now);
    write(&mut receiver);
    sender.send_chunk(index(0), digest(0), Codec::Raw, bytes(0)).unwrap();
    exchange(&mut sender, &mut receiver, now);
    write(&mut receiver);
    let table = receiver.table().unwrap();
    assert_eq!(table.digest(index(0)), Some(Some(digest(0))), "what came last counts");
    assert_eq!(table.digest(index(1)), Some(None));
    let kept = receiver.record(vec![old(0), old(1), old(2)]);
    let runs: Vec<ChunkRun> = kept.iter().map(Durable::run).collect();
    assert_eq!(runs, [run(0, 1), run(2, 1)], "what was replaced since is not recorded");
    receiver.durable(&kept).unwrap();
    assert!(receiver.durable(&[old(3)]).is_err(), "nor what was never let pass");
    let zeroes = Message::Zeroes(vec![run(2, 1)]);
    assert_eq!(told(&mut receiver, &zeroes, 100, now), ErrorKind::Corrupt, "on record it stays");
}

#[test]
fn a_replacement_that_failed_halfway_ends_the_session() {
    let (mut sender, mut receiver, now) = pushing(false);
    send_all(&mut sender, &mut receiver, now);
    sender.send_zeroes(vec![run(0, 1)]).unwrap();
    exchange(&mut sender, &mut receiver, now);
    let Some(ReceiverEvent::Zeroes(ticket)) = receiver.poll_event() else { panic!("no zeroes") };
    receiver.refused(ticket, Error::new(ErrorKind::NoSpace, "write"));
    assert!(receiver.state().is_final(), "what is there now is neither the old nor the new");
    let old = Durable::recorded(run(0, 1), content(0));
    assert!(receiver.durable(&[old]).is_err());
}

fn content(at: u32) -> Content {
    Content::Data { digest: digest(at), data_bytes: 0 }
}

#[test]
fn two_contents_of_a_chunk_are_never_written_at_once() {
    let (mut sender, mut receiver, now) = pushing(false);
    sender.send_chunk(index(0), digest(0), Codec::Raw, bytes(0)).unwrap();
    exchange(&mut sender, &mut receiver, now);
    let in_hand = receiver.poll_event();
    assert!(matches!(in_hand, Some(ReceiverEvent::Arrived(_))), "it is being written");
    let durable = Durable::recorded(run(0, 1), content(0));
    assert!(receiver.record(vec![durable]).is_empty(), "nor recorded meanwhile");
    let zeroes = Message::Zeroes(vec![run(0, 4)]);
    assert_eq!(told(&mut receiver, &zeroes, 100, now), ErrorKind::Invalid);

    let (mut sender, mut receiver, now) = pushing(false);
    sender.send_zeroes(vec![run(0, 2)]).unwrap();
    exchange(&mut sender, &mut receiver, now);
    assert!(matches!(receiver.poll_event(), Some(ReceiverEvent::Zeroes(_))));
    let (index, digest, bytes) = (index(1), digest(1), bytes(1));
    let chunk = Message::Chunk(Chunk { index, codec: Codec::Raw, digest, bytes });
    assert_eq!(told(&mut receiver, &chunk, 100, now), ErrorKind::Invalid);
}

#[test]
fn the_same_chunk_again_is_written_again() {
    let (mut sender, mut receiver, now) = pushing(false);
    send_all(&mut sender, &mut receiver, now);
    // Its bytes may have read back wrong.
    sender.send_chunk(index(3), digest(3), Codec::Raw, bytes(3)).unwrap();
    exchange(&mut sender, &mut receiver, now);
    assert!(matches!(receiver.poll_event(), Some(ReceiverEvent::Arrived(_))));
}

#[test]
fn a_call_is_answered_or_refused_and_a_kept_connection_lives_by_pings() {
    let now = Instant::now();
    let (mut north, mut south) = greeted(CONTROL, now);
    north.call(Bytes::from_static(b"call"), now).unwrap();
    south.handle_frame(&frame(&north.poll_transmit().unwrap()), now);
    let Some(GreetingEvent::Called { id, body }) = south.poll_event() else { panic!("no call") };
    assert_eq!(&body[..], b"call");
    south.tell(id, Bytes::from_static(b"told")).unwrap();
    north.handle_frame(&frame(&south.poll_transmit().unwrap()), now);
    assert!(matches!(north.poll_event(), Some(GreetingEvent::Told(body)) if &body[..] == b"told"));
    south.keep();
    let pace = Pace::default();
    let late = now + pace.greeting_max;
    south.handle_timeout(late);
    assert!(south.poll_event().is_none(), "it stands for something");
    south.handle_timeout(now + pace.ping_after);
    assert_eq!(frame(&south.poll_transmit().unwrap()).kind, crate::wire::message::Kind::Ping);
    south.handle_timeout(now + pace.silence_max);
    assert!(matches!(south.poll_event(), Some(GreetingEvent::Closed(_))), "it is silent");
}

#[test]
fn credit_past_what_a_connection_may_have_ends_the_session() {
    for (grants, fits) in
        [(vec![2], true), (vec![1, 1], true), (vec![3], false), (vec![2, 1], false)]
    {
        let now = Instant::now();
        let (north, mut south) = greeted(CONTROL, now);
        let link = north.into_link().unwrap();
        let mut sender = Sender::push(link, begin(None), None, Rest::default(), now).unwrap();
        let packet = sender.poll_transmit(CONTROL, now).unwrap();
        let (id, _) = opened(&mut south, &packet, now);
        let token = Token::from_bytes([9; 32]);
        let begun = Message::Begun(crate::wire::message::Begun { token, base: false });
        let mut said = vec![(begun, id), (Message::Ready { data_bytes: 0 }, 0)];
        said.extend(grants.iter().map(|count| (Message::Credit { bytes: count * CHUNK }, 0)));
        for (message, id) in said {
            sender.handle_frame(CONTROL, &frame(&message.packet(VERSION, id)), now);
        }
        let closed = std::iter::from_fn(|| sender.poll_event()).find_map(|event| match event {
            SenderEvent::Closed(error) => Some(error.kind()),
            _ => None,
        });
        assert_eq!(closed, (!fits).then_some(ErrorKind::Invalid), "{grants:?}");
        assert!(!fits || sender.room() == 2);
    }
}

/// A pull whose receiver has accepted.
fn pulling() -> (Sender, Receiver, Instant) {
    let now = Instant::now();
    let (north, mut south) = greeted(CONTROL, now);
    let session = Session::new(JobId::from_bytes([6; 16]), 1);
    let name = name();
    let fetch = Fetch { session, region: name.region, image: name.image, table: false };
    let mut receiver = Receiver::fetch(north.into_link().unwrap(), fetch, now);
    let packet = receiver.poll_transmit(CONTROL).unwrap();
    let (id, Opener::Fetch(fetch)) = opened(&mut south, &packet, now) else { panic!("no fetch") };
    let token = Token::from_bytes([9; 32]);
    let facts = Fingerprint::new();
    let offer = Offer { token, geometry: geometry(), root: None, facts };
    let link = south.into_link().unwrap();
    let mut sender = Sender::offer(link, id, &fetch, offer, None).unwrap();
    exchange(&mut sender, &mut receiver, now);
    assert!(matches!(receiver.poll_event(), Some(ReceiverEvent::Offered(_))));
    let held = TableBuilder::new(geometry());
    receiver.accept(Accepted { held, data_bytes: 0, base: None, token }).unwrap();
    exchange(&mut sender, &mut receiver, now);
    (sender, receiver, now)
}

#[test]
fn a_chunk_that_was_fetched_may_come_again_when_its_acknowledgement_was_lost() {
    for still_in_hand in [false, true] {
        let (mut sender, mut receiver, now) = pulling();
        let (north, mut south) = greeted(DATA, now);
        receiver.attach(north.into_link().unwrap(), None, now).unwrap();
        let packet = receiver.poll_transmit(DATA).unwrap();
        let (id, _) = opened(&mut south, &packet, now);
        sender.attach(south.into_link().unwrap(), Some(id), now).unwrap();
        exchange(&mut sender, &mut receiver, now);
        receiver.want(run(1, 2), now).unwrap();
        exchange(&mut sender, &mut receiver, now);
        let first = sender.send_chunk(index(1), digest(1), Codec::Raw, bytes(1)).unwrap();
        let packet = sender.poll_transmit(DATA, now).unwrap();
        receiver.handle_frame(DATA, &frame(&packet), now);
        if !still_in_hand {
            write(&mut receiver);
        }
        // It came, and the connection is lost before the sender hears that.
        let cut = || Error::new(ErrorKind::Unavailable, "read connection");
        sender.link_lost(DATA, cut());
        receiver.link_lost(DATA, cut());
        exchange(&mut sender, &mut receiver, now);
        write(&mut receiver);
        exchange(&mut sender, &mut receiver, now);
        assert_eq!(receiver.state(), ReceiverState::Receiving, "in hand: {still_in_hand}");
        let events: Vec<SenderEvent> = std::iter::from_fn(|| sender.poll_event()).collect();
        let told =
            events.iter().any(|event| matches!(event, SenderEvent::Written(of) if *of == first));
        assert!(told, "{events:?}");
        // What nobody ever wanted is refused as before.
        let chunk =
            Chunk { index: index(3), codec: Codec::Raw, digest: digest(3), bytes: bytes(3) };
        assert_eq!(told_of(&mut receiver, chunk, now), ErrorKind::Invalid);
    }
}

fn told_of(receiver: &mut Receiver, chunk: Chunk, now: Instant) -> ErrorKind {
    told(receiver, &Message::Chunk(chunk), 100, now)
}

/// A push with a base: its receiver tells these chunks of it, each as that of the image so shifted.
fn based(
    epoch: u32,
    told: Option<(&[u32], u32)>,
    rest: Rest,
    features: u64,
) -> (Sender, Receiver, Instant) {
    let now = Instant::now();
    let hello = Hello { features, ..Hello::new(64 << 10) };
    let mut north = Greeting::dial(CONTROL, hello, bounds(), Pace::default(), now);
    let mut south = Greeting::listen(CONTROL, Hello::new(64 << 10), bounds(), Pace::default(), now);
    south.handle_frame(&frame(&north.poll_transmit().unwrap()), now);
    north.handle_frame(&frame(&south.poll_transmit().unwrap()), now);
    assert!(matches!(south.poll_event(), Some(GreetingEvent::Agreed)));
    let mut begin = Begin { epoch, ..begin(None) };
    begin.spec.base = Some("base".parse().unwrap());
    let mut sender = Sender::push(north.into_link().unwrap(), begin, None, rest, now).unwrap();
    let packet = sender.poll_transmit(CONTROL, now).unwrap();
    let (id, Opener::Begin(begin)) = opened(&mut south, &packet, now) else { panic!("no begin") };
    let mut receiver = Receiver::answer(south.into_link().unwrap(), id, begin).unwrap();
    let base = told.map(|(chunks, shift)| {
        let mut base = TableBuilder::new(geometry());
        chunks.iter().for_each(|at| base.put(run(*at, 1), content(at + shift)));
        base
    });
    let (held, token) = (TableBuilder::new(geometry()), Token::from_bytes([9; 32]));
    receiver.accept(Accepted { held, data_bytes: 0, base, token }).unwrap();
    exchange(&mut sender, &mut receiver, now);
    (sender, receiver, now)
}

/// The base that a sender was told of when it became ready.
fn told_base(sender: &mut Sender) -> Option<Box<TableBuilder>> {
    match sender.poll_event() {
        Some(SenderEvent::Ready { base, .. }) => base,
        other => panic!("{other:?}"),
    }
}

fn refusals(sender: &mut Sender) -> Vec<(Item, ErrorKind)> {
    let refused = |event| match event {
        SenderEvent::Refused(item, error) => Some((item, error.kind())),
        _ => None,
    };
    std::iter::from_fn(|| sender.poll_event()).filter_map(refused).collect()
}

#[test]
fn chunks_of_a_base_are_taken_over_as_far_as_it_was_told() {
    let (mut sender, mut receiver, now) = based(1, Some((&[0, 1, 3], 0)), Rest::default(), 3);
    let base = told_base(&mut sender).unwrap();
    assert_eq!(base.missing(), 1);
    assert_eq!(base.digest(index(3)), Some(Some(digest(3))));
    assert!(sender.send_same(vec![run(1, 2)]).is_err(), "the base does not hold chunk 2");
    let same = sender.send_same(vec![run(0, 2), run(3, 1)]).unwrap();
    exchange(&mut sender, &mut receiver, now);
    let Some(ReceiverEvent::Same(ticket)) = receiver.poll_event() else { panic!("not told") };
    let written = |at: u32| Written::data(index(at), digest(at), 0);
    receiver.written(ticket, &[written(0), written(1), written(3)]).unwrap();
    exchange(&mut sender, &mut receiver, now);
    assert!(
        std::iter::from_fn(|| sender.poll_event())
            .any(|event| matches!(event, SenderEvent::Written(of) if of == same))
    );
    sender.send_chunk(index(2), digest(2), Codec::Raw, bytes(2)).unwrap();
    exchange(&mut sender, &mut receiver, now);
    write(&mut receiver);
    exchange(&mut sender, &mut receiver, now);
    sender.seal(manifest().root(), now).unwrap();
    exchange(&mut sender, &mut receiver, now);
    let events = write(&mut receiver);
    assert!(events.iter().any(|event| matches!(event, ReceiverEvent::Commit(_))));
    // A chunk that is being taken over cannot come as bytes meanwhile, nor the other way round.
    let chunk = |at| {
        let (codec, digest, bytes) = (Codec::Raw, digest(at), bytes(at));
        Message::Chunk(Chunk { index: index(at), codec, digest, bytes })
    };
    let same = || Message::Same(vec![run(0, 1)]);
    for (first, then) in [(same(), chunk(0)), (chunk(0), same())] {
        let (_, mut receiver, now) = based(1, Some((&[0], 0)), Rest::default(), 3);
        receiver.handle_frame(CONTROL, &frame(&first.packet(VERSION, 100)), now);
        let in_hand = receiver.poll_event();
        assert!(in_hand.is_some());
        assert_eq!(told(&mut receiver, &then, 101, now), ErrorKind::Invalid);
    }
    // What the base does not hold cannot be asked for by others either.
    let (_, mut receiver, now) = based(1, Some((&[0, 1, 3], 0)), Rest::default(), 3);
    let message = Message::Same(vec![run(1, 2)]);
    assert_eq!(told(&mut receiver, &message, 100, now), ErrorKind::Invalid);
}

#[test]
fn a_base_that_is_damaged_refuses_the_chunks_and_not_the_session() {
    let (mut sender, mut receiver, now) = based(1, Some((&[0, 1, 2, 3], 0)), Rest::default(), 3);
    told_base(&mut sender).unwrap();
    let item = sender.send_same(vec![run(0, 4)]).unwrap();
    exchange(&mut sender, &mut receiver, now);
    let Some(ReceiverEvent::Same(ticket)) = receiver.poll_event() else { panic!("not told") };
    receiver.refused(ticket, Error::new(ErrorKind::Corrupt, "take a chunk over"));
    assert_eq!(receiver.state(), ReceiverState::Receiving);
    exchange(&mut sender, &mut receiver, now);
    assert_eq!(refusals(&mut sender), [(item, ErrorKind::Corrupt)]);
    send_all(&mut sender, &mut receiver, now);
    sender.seal(manifest().root(), now).unwrap();
    exchange(&mut sender, &mut receiver, now);
    let events = write(&mut receiver);
    assert!(events.iter().any(|event| matches!(event, ReceiverEvent::Commit(_))));
}

#[test]
fn of_a_base_only_what_it_was_at_first_is_taken_over_later() {
    for (later, kept) in
        [(None, false), (Some((&[0, 1][..], 1)), false), (Some((&[0][..], 0)), true)]
    {
        let (mut sender, _, _) = based(1, Some((&[0, 1], 0)), Rest::default(), 3);
        told_base(&mut sender).unwrap();
        let item = sender.send_same(vec![run(0, 1)]).unwrap();
        sender.link_lost(CONTROL, Error::new(ErrorKind::Unavailable, "read connection"));
        // An attempt that never came to that has not forgotten it.
        let now = Instant::now();
        let (north, _) = greeted(CONTROL, now);
        let mut next = Begin { epoch: 2, ..begin(None) };
        next.spec.base = Some("base".parse().unwrap());
        let link = north.into_link().unwrap();
        let mut idle = Sender::push(link, next, None, sender.into_rest(), now).unwrap();
        idle.link_lost(CONTROL, Error::new(ErrorKind::Unavailable, "read connection"));
        let (mut sender, mut receiver, now) = based(3, later, idle.into_rest(), 3);
        told_base(&mut sender);
        exchange(&mut sender, &mut receiver, now);
        match kept {
            true => assert!(matches!(receiver.poll_event(), Some(ReceiverEvent::Same(_)))),
            false => assert_eq!(refusals(&mut sender), [(item, ErrorKind::NotFound)], "{later:?}"),
        }
        assert!(sender.send_same(vec![run(1, 1)]).is_err(), "not in both: {later:?}");
    }
}

#[test]
fn who_has_not_agreed_on_it_is_told_of_no_base() {
    let (mut sender, receiver, _) = based(1, Some((&[0, 1], 0)), Rest::default(), 1);
    assert!(told_base(&mut sender).is_none());
    assert!(sender.send_same(vec![run(0, 1)]).is_err());
    assert_eq!(receiver.in_base(index(0)), None);
}
