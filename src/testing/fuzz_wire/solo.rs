//! One machine against a peer whose every frame a fuzzer writes.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::chunk::Written;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun};
use crate::id::{ImageId, JobId, RegionName};
use crate::job::JobSpec;
use crate::manifest::TableBuilder;
use crate::wire::frame::Frame;
use crate::wire::message::{
    Begin, Codec, Fetch, Hello, Kind, Message, Piece, PieceRun, Role, Session, Token,
};
use crate::wire::session::{
    Accepted, Bounds, Greeting, GreetingEvent, Link, LinkId, Opener, Pace, Receiver, ReceiverEvent,
    ReceiverState, Rest, Sender, SenderEvent, SenderState,
};

use super::dice::Dice;
use super::picture::Picture;

const BOUNDS: Bounds = Bounds {
    link_bytes: 256 << 10,
    session_bytes: 512 << 10,
    links_max: 2,
    requests_max: 8,
    chunk_count_max: 64,
};
const PEER: LinkId = LinkId(1);

/// A receiver against a hostile sender: pushed at if the first byte is even, fetching otherwise.
///
/// # Panics
/// When the machine breaks its word; that is the finding.
pub fn session_receiver(data: &[u8]) {
    let mut dice = Dice::Script(data);
    let broken = receive(&mut dice).err();
    assert!(broken.is_none(), "the driver broke the rules itself: {broken:?}");
}

fn receive(dice: &mut Dice<'_>) -> Result<()> {
    let start = Instant::now();
    let is_push = dice.below(2) == 0;
    let picture = Picture::draw(dice)?;
    let mut receiver = if is_push {
        let root = (dice.below(2) == 0).then(|| picture.manifest.root());
        let begin = Begin { epoch: 1, root, spec: with_base(picture.spec()?)? };
        let Some((link, id, begin)) = pushed(begin, start)? else { return Ok(()) };
        let mut receiver = Receiver::answer(link, id, begin)?;
        let base = if dice.below(2) == 0 { None } else { Some(Picture::draw(dice)?) };
        receiver.accept(accepted(&picture, base.as_ref())?)?;
        receiver
    } else {
        let Some(link) = dialled(start)? else { return Ok(()) };
        let session = Session::new(JobId::from_bytes([5; 16]), 1);
        let (region, image) = (RegionName::try_from("b")?, ImageId::try_from("m")?);
        Receiver::fetch(link, Fetch { session, region, image, table: true }, start)
    };
    let mut now = start;
    let mut made = 0;
    while !dice.is_over() && !receiver.state().is_final() {
        while receiver.poll_transmit(PEER).is_some() {}
        now += Duration::from_millis(10);
        receiver.handle_frame(PEER, &frame(dice, &picture, &mut made), now);
        assert!(receiver.committed_bytes() <= BOUNDS.session_bytes, "past the credits");
        while let Some(event) = receiver.poll_event() {
            attend_receiver(&mut receiver, event, &picture, made, now)?;
        }
    }
    Ok(())
}

fn attend_receiver(
    receiver: &mut Receiver,
    event: ReceiverEvent,
    picture: &Picture,
    made: u64,
    now: Instant,
) -> Result<()> {
    match event {
        ReceiverEvent::Offered(offer) => {
            let held = TableBuilder::new(offer.geometry);
            let token = Token::from_bytes([0; 32]);
            receiver.accept(Accepted { held, data_bytes: 0, base: None, token })?;
            if offer.geometry.chunk_count() > 0 {
                receiver.want(ChunkRun::new(ChunkIndex::new(0), 1), now)?;
            }
        }
        ReceiverEvent::Arrived(arrived) => match arrived.open() {
            (ticket, Ok(sealed)) => receiver.written(ticket, &[sealed.written()])?,
            (ticket, Err(error)) => receiver.refused(ticket, error),
        },
        ReceiverEvent::Zeroes(ticket) => {
            let written: Vec<Written> =
                ticket.runs().iter().map(|run| Written::zeroes(*run)).collect();
            receiver.written(ticket, &written)?;
        }
        ReceiverEvent::Same(ticket) if made.is_multiple_of(5) => {
            receiver.refused(ticket, Error::new(ErrorKind::Corrupt, "take a chunk over"));
            assert!(!matches!(receiver.state(), ReceiverState::Decided), "decided by a refusal");
        }
        ReceiverEvent::Same(ticket) => {
            let in_base = |index| receiver.in_base(index);
            let chunks = ticket.runs().iter().flat_map(|run| run.iter());
            let written: Vec<Written> =
                chunks.filter_map(|index| Some(Written::data(index, in_base(index)?, 0))).collect();
            receiver.written(ticket, &written)?;
        }
        ReceiverEvent::Commit(manifest) => {
            assert_eq!(manifest.geometry(), picture.geometry, "another image is committed");
            let held = receiver.table().cloned().and_then(TableBuilder::finish);
            assert_eq!(held.map(|table| table.root()), Some(manifest.root()));
        }
        _ => {}
    }
    Ok(())
}

/// A sender against a hostile receiver.
///
/// # Panics
/// When the machine breaks its word; that is the finding.
pub fn session_sender(data: &[u8]) {
    let mut dice = Dice::Script(data);
    let broken = send(&mut dice).err();
    assert!(broken.is_none(), "the driver broke the rules itself: {broken:?}");
}

fn send(dice: &mut Dice<'_>) -> Result<()> {
    let start = Instant::now();
    let picture = Picture::draw(dice)?;
    let manifest = (dice.below(2) == 0).then_some(&picture.manifest);
    let root = manifest.map(|manifest| manifest.root());
    let begin = Begin { epoch: 1, root, spec: with_base(picture.spec()?)? };
    let Some(link) = dialled(start)? else { return Ok(()) };
    let mut sender = Sender::push(link, begin, manifest, Rest::default(), start)?;
    let (mut now, mut made, mut next) = (start, 0, 0);
    while !dice.is_over() && !sender.state().is_final() {
        let mut flying = 0;
        while let Some(packet) = sender.poll_transmit(PEER, now) {
            flying += crate::geometry::to_u64(packet.body.len());
        }
        assert!(flying <= BOUNDS.link_bytes, "{flying} bytes at once");
        now += Duration::from_millis(10);
        sender.handle_frame(PEER, &frame(dice, &picture, &mut made), now);
        while let Some(event) = sender.poll_event() {
            assert!(!matches!(event, SenderEvent::Wanted { .. }), "asked about a push");
        }
        let count = picture.geometry.chunk_count();
        if sender.state() == SenderState::Sending && sender.room() > 0 && next < count {
            let index = ChunkIndex::new(next);
            let drawn = picture.chunk(index);
            match drawn.digest {
                // Of a base that this receiver told of, or never did.
                Some(_) if sender.send_same(vec![ChunkRun::new(index, 1)]).is_ok() => {}
                Some(digest) => {
                    sender.send_chunk(index, digest, Codec::Raw, drawn.bytes.clone())?;
                }
                None => {
                    sender.send_zeroes(vec![ChunkRun::new(index, 1)])?;
                }
            }
            next += 1;
        }
    }
    Ok(())
}

fn accepted(picture: &Picture, base: Option<&Picture>) -> Result<Accepted> {
    let held = TableBuilder::new(picture.geometry);
    let base = base.map(|base| base.in_common(picture.geometry)).transpose()?;
    Ok(Accepted { held, data_bytes: 0, base, token: Token::from_bytes([3; 32]) })
}

fn with_base(spec: JobSpec) -> Result<JobSpec> {
    let mut spec = spec;
    spec.base = Some(ImageId::try_from("base")?);
    Ok(spec)
}

/// A frame of the fuzzer's: of any kind, most often with a body that means something.
fn frame(dice: &mut Dice<'_>, picture: &Picture, made: &mut u64) -> Frame {
    let (kind, _) = Kind::ALL[dice.below(Kind::ALL.len())];
    *made += 1;
    let id = match kind.role() {
        Role::Notice => 0,
        Role::Request if dice.below(8) != 7 => *made,
        _ => crate::geometry::to_u64(dice.below(16)),
    };
    let index = ChunkIndex::new(u32::try_from(dice.below(9)).unwrap_or(0));
    let run = ChunkRun::new(index, 1 + u32::try_from(dice.below(3)).unwrap_or(0));
    let chunk = picture.chunks.get(index.slot());
    let message = match (kind, chunk) {
        (Kind::Chunk, Some(drawn)) => {
            let digest = drawn.digest.unwrap_or(picture.manifest.root());
            let bytes = drawn.bytes.clone();
            let codec = if dice.below(8) == 7 { Codec::Zstd } else { Codec::Raw };
            Message::Chunk(crate::wire::message::Chunk { index, codec, digest, bytes })
        }
        (Kind::Zeroes, _) => Message::Zeroes(vec![run]),
        (Kind::Same, _) => Message::Same(vec![run]),
        (Kind::Table | Kind::Held, Some(drawn)) => {
            let told = match drawn.digest {
                Some(digest) => PieceRun::Data { first: index, digests: vec![digest] },
                None => PieceRun::Zero(ChunkRun::new(index, 1)),
            };
            let piece = Piece { runs: vec![told] };
            if kind == Kind::Table { Message::Table(piece) } else { Message::Held(piece) }
        }
        (Kind::Durable, _) => Message::Durable(vec![run]),
        (Kind::Want, _) => Message::Want(run),
        (Kind::Seal, _) => Message::Seal { root: picture.manifest.root() },
        (Kind::Ready, _) => Message::Ready { data_bytes: 0 },
        (Kind::Credit, _) => Message::Credit { bytes: 64 << 10 },
        (Kind::Begun, _) => {
            let token = Token::from_bytes([3; 32]);
            Message::Begun(crate::wire::message::Begun { token, base: dice.below(2) == 1 })
        }
        _ => {
            let body: Vec<u8> =
                (0..dice.below(80)).map(|_| u8::try_from(dice.below(256)).unwrap_or(0)).collect();
            return Frame { kind, id, body: Bytes::from(body) };
        }
    };
    let body = message.packet(1, id).to_bytes().split_off(crate::wire::frame::HEADER_LEN);
    Frame { kind, id, body: body.freeze() }
}

/// A link whose other end listens.
fn dialled(now: Instant) -> Result<Option<Link>> {
    let (mut north, _) = greeted(now)?;
    while north.poll_event().is_some() {}
    Ok(north.into_link())
}

/// What a listening side gets when that is pushed at it.
fn pushed(begin: Begin, now: Instant) -> Result<Option<(Link, u64, Box<Begin>)>> {
    let (north, mut south) = greeted(now)?;
    let Some(link) = north.into_link() else { return Ok(None) };
    let mut sender =
        Sender::push(link, Begin { root: None, ..begin.clone() }, None, Rest::default(), now)?;
    while let Some(packet) = sender.poll_transmit(PEER, now) {
        if let Some(frame) = Frame::decode(&mut packet.to_bytes(), south.expects())? {
            south.handle_frame(&frame, now);
        }
    }
    while let Some(event) = south.poll_event() {
        if let GreetingEvent::Opened { id, opener: Opener::Begin(_) } = event {
            return Ok(south.into_link().map(|link| (link, id, Box::new(begin))));
        }
    }
    Ok(None)
}

fn greeted(now: Instant) -> Result<(Greeting, Greeting)> {
    let hello = Hello::new(64 << 10);
    let mut north = Greeting::dial(PEER, hello, BOUNDS, Pace::default(), now);
    let mut south = Greeting::listen(PEER, hello, BOUNDS, Pace::default(), now);
    for _ in 0..2 {
        if let Some(packet) = north.poll_transmit()
            && let Some(frame) = Frame::decode(&mut packet.to_bytes(), south.expects())?
        {
            south.handle_frame(&frame, now);
        }
        if let Some(packet) = south.poll_transmit()
            && let Some(frame) = Frame::decode(&mut packet.to_bytes(), north.expects())?
        {
            north.handle_frame(&frame, now);
        }
    }
    Ok((north, south))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn scripts() -> BTreeMap<u64, Vec<u8>> {
        let script = |seed: u64| {
            let mut bytes = vec![0; 600];
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
            (seed, bytes)
        };
        (0..3000).map(script).collect()
    }

    #[test]
    fn a_hostile_sender_is_refused_or_served() {
        scripts().values().for_each(|script| session_receiver(script));
    }

    #[test]
    fn a_hostile_receiver_is_refused_or_served() {
        scripts().values().for_each(|script| session_sender(script));
    }

    #[test]
    fn hostile_streams_and_frames_are_refused_or_read() {
        for script in scripts().values() {
            super::super::frame_stream(script);
            super::super::zstd_chunk(script);
        }
    }
}
