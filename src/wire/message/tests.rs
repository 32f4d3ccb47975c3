//! Golden bytes of every message, and whatever is not one. Pure.

use std::collections::{BTreeMap, BTreeSet};

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::chunk::Digest;
use crate::geometry::{ByteRange, ChunkIndex, ChunkSize, Geometry};
use crate::id::{ImageId, JobId, RegionName};
use crate::job::{Endpoint, JobSpec};
use crate::plan::ExtentKind;
use crate::wire::frame::{Expect, HEADER_LEN, VERSION, VERSION_NONE};

const CHUNK_BYTES_MAX: u32 = 1 << 20;

fn run(first: u32, count: u32) -> ChunkRun {
    ChunkRun::new(ChunkIndex::new(first), count)
}

fn digest(byte: u8) -> Digest {
    Digest::from_bytes([byte; 32])
}

fn name() -> Name {
    Name { job: JobId::from_bytes([7; 16]), region: region(), image: image() }
}

fn region() -> RegionName {
    RegionName::try_from("b").unwrap()
}

fn image() -> ImageId {
    ImageId::try_from("m-1").unwrap()
}

fn geometry() -> Geometry {
    Geometry::new(200_000, ChunkSize::MIN).unwrap()
}

fn spec() -> JobSpec {
    let facts = Fingerprint::new().with("size", 200_000);
    let end = || Endpoint::new(region(), image());
    let mut spec = JobSpec::new(JobId::from_bytes([7; 16]), end(), end(), geometry(), facts);
    spec.attributes = BTreeMap::from([("os".to_owned(), "linux".to_owned())]);
    spec
}

fn piece() -> Piece {
    let digests = vec![digest(1), digest(2)];
    let data = PieceRun::Data { first: ChunkIndex::new(5), digests };
    Piece { runs: vec![PieceRun::Zero(run(0, 5)), data] }
}

/// One message of each kind, or more where it has several shapes.
fn samples() -> Vec<Message> {
    let session = Session::new(JobId::from_bytes([7; 16]), 3);
    let token = Token::from_bytes([9; 32]);
    let root = Some(digest(4));
    let refusal = Refusal {
        kind: ErrorKind::NoSpace,
        retryable: true,
        offset: Some(65536),
        action: "w".into(),
    };
    let mut begin = Begin { epoch: 3, root, spec: spec() };
    begin.spec.base = Some(image());
    let facts = Fingerprint::new().with("size", 1);
    let data = Extent { range: ByteRange::new(0, 4096), kind: ExtentKind::Data };
    let zero = Extent { range: ByteRange::new(4096, 1), kind: ExtentKind::Zero };
    let bytes = Bytes::from_static(b"chunk");
    let chunk = Chunk { index: ChunkIndex::new(2), codec: Codec::Zstd, digest: digest(1), bytes };
    vec![
        Message::Hello(Hello::new(4 << 20)),
        Message::Error(refusal),
        Message::Ping,
        Message::Pong,
        Message::Query(name()),
        Message::Answer(Standing::Staged { epoch: 3, owned: true }),
        Message::Answer(Standing::Decided(Decision::Unknown)),
        Message::Cancel(name()),
        Message::Decision(Decision::Committed { root }),
        Message::Decision(Decision::Cancelled { first: true, clean: false }),
        Message::Call(Bytes::from_static(b"call")),
        Message::Told(Bytes::from_static(b"told")),
        Message::Begin(Box::new(begin)),
        Message::Fetch(Fetch { session, region: region(), image: image(), table: true }),
        Message::Offer(Offer { token, geometry: geometry(), root: None, facts: facts.clone() }),
        Message::Begun(Begun { token, base: false }),
        Message::Join(Join { session, token }),
        Message::Joined,
        Message::Held(piece()),
        Message::Ready { data_bytes: 77 },
        Message::Chunk(chunk),
        Message::Zeroes(vec![run(0, 1), run(3, 2)]),
        Message::Same(vec![run(9, 1)]),
        Message::Written,
        Message::Credit { bytes: 65536 },
        Message::Durable(vec![run(0, 4)]),
        Message::Sync,
        Message::Synced,
        Message::Seal { root: digest(4) },
        Message::Want(run(1, 2)),
        Message::Ask(Ask::Extents(ByteRange::new(65536, 4096))),
        Message::Ask(Ask::Facts),
        Message::Extents(vec![data, zero]),
        Message::Facts(facts),
        Message::Table(piece()),
    ]
}

fn version_of(message: &Message) -> u16 {
    if message.kind() == Kind::Hello { VERSION_NONE } else { VERSION }
}

fn expect_of(message: &Message) -> Expect {
    match message.kind() {
        Kind::Hello => Expect::hello(),
        _ => Expect::agreed(VERSION, CHUNK_BYTES_MAX),
    }
}

fn id_of(message: &Message) -> u64 {
    if message.kind().role() == Role::Notice { 0 } else { 0x0102 }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `golden.txt` was written from what this code says, and then checked against what the manual
/// says: a second encoder, of some eighty lines of Python over `struct` and the `blake3` package,
/// was written from the tables of `manual/protocol.md` and the job spec of `manual/formats.md`
/// alone, for the messages of [`samples`]. All lines but those of calls, whose bodies are any
/// bytes, were equal to the byte, the checksums of their headers among them. Whoever adds a line
/// does the same.
#[test]
fn every_message_has_its_golden_bytes() {
    let golden = include_str!("golden.txt");
    let drawn: Vec<String> = samples()
        .iter()
        .map(|message| {
            let bytes = message.packet(version_of(message), id_of(message)).to_bytes();
            let (header, body) = bytes.split_at(HEADER_LEN);
            format!("{:?} {} {}", message.kind(), hex(header), hex(body))
        })
        .collect();
    let golden: Vec<&str> = golden.lines().map(str::trim_end).collect();
    let drawn: Vec<&str> = drawn.iter().map(|line| line.trim_end()).collect();
    assert_eq!(drawn, golden, "these bytes are out in the world:\n{}", drawn.join("\n"));
    let kinds: BTreeSet<Kind> = samples().iter().map(Message::kind).collect();
    assert_eq!(kinds.len(), Kind::ALL.len(), "a kind has no golden bytes");
}

#[test]
fn every_message_comes_back_as_it_went_in() {
    for message in samples() {
        let mut bytes = message.packet(version_of(&message), id_of(&message)).to_bytes();
        let frame = Frame::decode(&mut bytes, expect_of(&message)).unwrap().unwrap();
        assert!(bytes.is_empty());
        assert_eq!(Message::decode(&frame).unwrap(), message);
    }
}

#[test]
fn the_bytes_of_a_chunk_are_never_copied() {
    let bytes = Bytes::from(vec![7; 5000]);
    let chunk = Chunk {
        index: ChunkIndex::new(0),
        codec: Codec::Raw,
        digest: digest(1),
        bytes: bytes.clone(),
    };
    let packet = Message::Chunk(chunk).packet(VERSION, 1);
    assert_eq!(packet.body.as_ptr(), bytes.as_ptr(), "copied on the way out");
    let mut wire = packet.to_bytes();
    let place = wire[HEADER_LEN + CHUNK_PREFIX..].as_ptr();
    let frame = Frame::decode(&mut wire, Expect::agreed(VERSION, 5000)).unwrap().unwrap();
    let Message::Chunk(chunk) = Message::decode(&frame).unwrap() else { panic!("no chunk") };
    assert_eq!(chunk.bytes.as_ptr(), place, "copied on the way in");
}

#[test]
fn a_message_that_is_cut_short_or_goes_on_is_refused() {
    for message in samples() {
        let packet = message.packet(version_of(&message), id_of(&message));
        let body = packet.to_bytes().split_off(HEADER_LEN).freeze();
        let decode = |body: Bytes| {
            Message::decode(&Frame { kind: message.kind(), id: id_of(&message), body })
        };
        let kind = message.kind();
        // Any bytes are a chunk's, as long as there are some, and a call's.
        let least = match kind {
            Kind::Chunk => CHUNK_PREFIX + 1,
            Kind::Call | Kind::Told => 0,
            _ => body.len(),
        };
        for len in 0..least {
            let error = decode(body.slice(..len)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{kind:?} of {len} bytes");
        }
        if !matches!(kind, Kind::Chunk | Kind::Call | Kind::Told) {
            let mut longer = body.to_vec();
            longer.push(0);
            assert_eq!(decode(longer.into()).unwrap_err().kind(), ErrorKind::Corrupt, "{kind:?}");
        }
    }
}

#[test]
fn what_no_side_would_say_is_refused() {
    let decode = |kind, body: &[u8]| {
        Message::decode(&Frame {
            kind,
            id: u64::from(kind.role() != Role::Notice),
            body: Bytes::copy_from_slice(body),
        })
    };
    let runs = |runs: &[(u32, u32)]| {
        let mut body = u16::try_from(runs.len()).unwrap().to_le_bytes().to_vec();
        for (first, count) in runs {
            body.extend(first.to_le_bytes());
            body.extend(count.to_le_bytes());
        }
        body
    };
    let hostile: [(Kind, Vec<u8>, &str); 12] = [
        (Kind::Durable, runs(&[]), "no runs"),
        (Kind::Durable, runs(&[(0, 0)]), "an empty run"),
        (Kind::Durable, runs(&[(u32::MAX, 2)]), "a run past the end of numbers"),
        (Kind::Durable, runs(&[(0, 1 << 21)]), "a run past any image"),
        (Kind::Durable, runs(&[(5, 1), (0, 1)]), "runs out of order"),
        (Kind::Durable, runs(&[(0, 2), (1, 2)]), "runs that overlap"),
        (Kind::Durable, runs(&[(0, 2), (2, 2)]), "runs that are not maximal"),
        (Kind::Held, [&1_u16.to_le_bytes()[..], &[2], &[0; 8]].concat(), "a run of no known kind"),
        (Kind::Ask, [&[0][..], &[255; 16]].concat(), "a range past the end of numbers"),
        (Kind::Hello, vec![0; 16], "version 0"),
        (Kind::Answer, vec![9], "a standing that nobody knows"),
        (Kind::Error, vec![0, 0, 0, 0, 0, 0, 0], "an error of no kind"),
    ];
    for (kind, body, what) in hostile {
        assert_eq!(decode(kind, &body).unwrap_err().kind(), ErrorKind::Corrupt, "{what}");
    }
    let claim =
        [&1_u16.to_le_bytes()[..], &[1], &0_u32.to_le_bytes(), &1_000_000_u32.to_le_bytes()];
    assert!(decode(Kind::Table, &claim.concat()).is_err(), "a million digests in no bytes");
}

#[test]
fn a_request_has_an_id_and_a_notice_has_none() {
    for (kind, id) in [(Kind::Ping, 0), (Kind::Pong, 0), (Kind::Credit, 1), (Kind::Hello, 1)] {
        let body = Bytes::from_static(&[0; 8]);
        let error = Message::decode(&Frame { kind, id, body }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{kind:?}");
    }
}

#[test]
fn codes_are_one_to_one() {
    for (kind, code) in Kind::ALL {
        assert_eq!((Kind::from_code(code), kind.code()), (Some(kind), code));
    }
    assert_eq!(Kind::from_code(0), None);
    for kind in ErrorKind::ALL {
        let refusal = Refusal::new(&Error::new(kind, "x").at("a secret place", 9));
        assert_eq!(refusal.action, "x", "the place stays at home");
        assert_eq!(refusal.into_error().kind(), kind);
    }
}

#[test]
fn tokens_fit_one_identity_one_job_and_one_epoch() {
    let session = Session::new(JobId::from_bytes([7; 16]), 3);
    let token = Token::derive(&[1; 32], "alpha", session);
    assert_eq!(token, Token::derive(&[1; 32], "alpha", session));
    let later = Session::new(session.job, 4);
    let other = Session::new(JobId::from_bytes([8; 16]), 3);
    assert_ne!(token, Token::derive(&[1; 32], "beta", session));
    assert_ne!(token, Token::derive(&[1; 32], "alpha", later));
    assert_ne!(token, Token::derive(&[1; 32], "alpha", other));
    assert_ne!(token, Token::derive(&[2; 32], "alpha", session));
    assert_eq!(format!("{token:?}"), "Token(…)");
}

proptest! {
    #[test]
    fn a_stream_cut_anywhere_gives_the_same_messages(
        order in prop::collection::vec(0_usize..samples().len(), 1..12),
        cuts in prop::collection::vec(1_usize..200, 1..40),
    ) {
        let all: Vec<Message> = samples();
        let picked: Vec<&Message> =
            order.iter().map(|at| &all[*at]).filter(|m| m.kind() != Kind::Hello).collect();
        let mut wire = Vec::new();
        for message in &picked {
            wire.extend_from_slice(&message.packet(VERSION, id_of(message)).to_bytes());
        }
        let (mut buffer, mut heard, mut at) = (BytesMut::new(), Vec::new(), 0);
        let mut cuts = cuts.iter().cycle();
        while at < wire.len() {
            let end = (at + cuts.next().unwrap()).min(wire.len());
            buffer.extend_from_slice(&wire[at..end]);
            at = end;
            loop {
                let before = buffer.clone();
                let expect = Expect::agreed(VERSION, CHUNK_BYTES_MAX);
                match Frame::decode(&mut buffer, expect).unwrap() {
                    Some(frame) => heard.push(Message::decode(&frame).unwrap()),
                    None => {
                        prop_assert_eq!(&buffer, &before, "touched without a frame");
                        break;
                    }
                }
            }
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(heard.iter().collect::<Vec<_>>(), picked);
    }

    #[test]
    fn any_bytes_decode_to_what_encodes_to_the_same_or_to_an_error(
        code in 0_usize..Kind::ALL.len(),
        body in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let (kind, _) = Kind::ALL[code];
        let id = u64::from(kind.role() != Role::Notice);
        let frame = Frame { kind, id, body: body.into() };
        if let Ok(message) = Message::decode(&frame) {
            let later = matches!(message, Message::Hello(hello) if hello.version_max > VERSION);
            let back = message.packet(VERSION, id).to_bytes().split_off(HEADER_LEN);
            // The orders of map keys in a specification have one spelling only when written.
            let many = matches!(kind, Kind::Begin | Kind::Offer | Kind::Facts);
            prop_assert!(later || many || back == frame.body, "{message:?}");
        }
    }
}
