//! Two daemons and the network between them, in simulated time, with faults that the dice choose.
//!
//! In the first phase the dice choose what happens next: a frame is sent or arrives, a daemon does
//! a piece of its work, time passes, a connection is cut, a frame comes twice, a daemon crashes,
//! a disk is full. In the second nothing fails any more, and the job must be decided in bounded
//! steps.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::wire::message::Decision;
use crate::wire::session::Bounds;

use super::dice::Dice;
use super::network::{Network, Side};
use super::picture::{CHUNK_BYTES, Picture};
use super::pusher::Pusher;
use super::server::Server;

/// How a world ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The image is committed.
    Committed,
    /// The job is cancelled.
    Cancelled,
    /// The pusher lied, and was found out.
    Refused,
}

/// One world of that seed.
pub fn session_seed(seed: u64) -> Ended {
    run(Dice::seeded(seed), &format!("seed {seed}"))
}

/// One world whose choices are these bytes.
pub fn session_pair(data: &[u8]) {
    run(Dice::Script(data), "script");
}

fn run(mut dice: Dice<'_>, name: &str) -> Ended {
    let ended = World::new(&mut dice).and_then(|mut world| {
        world.trouble(&mut dice)?;
        world.calm(&mut dice)
    });
    match ended {
        Ok(ended) => ended,
        Err(error) => {
            let report = error.report();
            assert!(report.is_empty(), "{name}: {report}");
            Ended::Refused
        }
    }
}

struct World {
    now: Instant,
    network: Network,
    pusher: Pusher,
    server: Server,
    bounds: Bounds,
}

impl World {
    fn new(dice: &mut Dice<'_>) -> Result<Self> {
        let picture = Picture::draw(dice)?;
        // As long as the image or not: what both have in common counts.
        let base = if dice.one_in(3) { Some(Picture::draw(dice)?) } else { None };
        let window = |chunks: usize| crate::geometry::to_u64(chunks * CHUNK_BYTES);
        let bounds = Bounds {
            link_bytes: window(1 + dice.below(3)),
            session_bytes: window(1 + dice.below(5)),
            links_max: 1 + dice.below(3),
            requests_max: 4 + dice.below(8),
            ..Bounds::default()
        };
        let bounds =
            Bounds { session_bytes: bounds.session_bytes.max(bounds.link_bytes), ..bounds };
        let mut pusher = Pusher::new(picture.clone(), bounds);
        pusher.names_base = base.is_some() || dice.one_in(8);
        if dice.one_in(10) {
            let lies = picture.changed(dice)?;
            let differs = lies.manifest.root() != picture.manifest.root();
            pusher.lies = differs.then_some(lies);
        }
        pusher.names_root = dice.one_in(2);
        let server = Server::new(picture, base, bounds);
        Ok(Self { now: Instant::now(), network: Network::default(), pusher, server, bounds })
    }

    /// The dice choose.
    fn trouble(&mut self, dice: &mut Dice<'_>) -> Result<()> {
        let mut faults = dice.below(5);
        let steps = 20 + dice.below(200);
        for _ in 0..steps {
            if dice.is_over() {
                break;
            }
            let nth = dice.below(self.network.len().clamp(1, 256));
            let id = self.network.nth(nth).unwrap_or(0);
            let side = Side::BOTH[dice.below(2)];
            match dice.below(16) {
                0..=3 => {
                    self.transmit(id, side);
                }
                4..=8 => {
                    self.receive(id, side)?;
                }
                9 | 10 => self.pusher_works(dice)?,
                11 | 12 => self.server.work(dice.below(4), false)?,
                13 => self.dial(dice),
                14 => self.pass(Duration::from_millis(1 << dice.below(15))),
                _ if faults > 0 => {
                    faults -= 1;
                    self.fault(id, side, dice)?;
                }
                _ => self.find_ends(),
            }
            self.check();
        }
        Ok(())
    }

    fn fault(&mut self, id: u32, side: Side, dice: &mut Dice<'_>) -> Result<()> {
        match dice.below(11) {
            0..=2 => self.network.cut(id),
            3 => self.network.duplicate(id, side),
            4 => {
                let cut = self.pusher.crash();
                cut.into_iter().for_each(|id| self.hang_up(id, Side::North));
            }
            5 => {
                let cut = self.server.crash();
                cut.into_iter().for_each(|id| self.hang_up(id, Side::South));
            }
            6 => self.server.work(dice.below(4), true)?,
            7 => self.server.base_rots(dice.below(8)),
            8 => self.server.base = None,
            9 => self.server.base = Some(Picture::draw(dice)?),
            _ => self.pusher.wants_cancel = true,
        }
        Ok(())
    }

    /// Everybody does what there is to do, in turn, until the job is decided.
    fn calm(&mut self, dice: &mut Dice<'_>) -> Result<Ended> {
        for _ in 0..ROUNDS_MAX {
            if let Some(ended) = self.ended() {
                return Ok(ended);
            }
            self.find_ends();
            self.dial(dice);
            for _ in 0..WORKS {
                self.pusher_works(dice)?;
                self.server.work(0, false)?;
            }
            let mut is_quiet = true;
            // What comes up meanwhile is for the next round.
            for nth in 0..self.network.len() {
                let Some(id) = self.network.nth(nth) else { break };
                for side in Side::BOTH {
                    while self.transmit(id, side) {
                        is_quiet = false;
                    }
                    while self.receive(id, side)? {
                        is_quiet = false;
                    }
                }
            }
            self.check();
            self.pass(self.lull(is_quiet));
        }
        let (pusher, server) = (&self.pusher.sender, &self.server.receiver);
        assert!(self.ended().is_some(), "undecided when all is calm: {pusher:?}, {server:?}");
        Ok(Ended::Refused)
    }

    /// A moment a round; and where nobody has anything to say, until somebody's patience ends.
    fn lull(&self, is_quiet: bool) -> Duration {
        let due = [self.pusher.poll_timeout(), self.server.poll_timeout()];
        let due = due.into_iter().flatten().min().filter(|_| is_quiet);
        let left = due.map_or(Duration::ZERO, |due| due.saturating_duration_since(self.now));
        left.max(Duration::from_millis(100))
    }

    fn ended(&self) -> Option<Ended> {
        if self.pusher.refused.is_some() {
            assert!(!matches!(self.server.decision(), Some(Decision::Committed { .. })));
            return Some(Ended::Refused);
        }
        let told = self.pusher.decision?;
        let decided = self.server.decision();
        match (told, decided) {
            (Decision::Committed { .. }, Some(Decision::Committed { .. })) => {
                assert!(self.pusher.lies.is_none(), "a lie is committed");
                Some(Ended::Committed)
            }
            (Decision::Cancelled { .. }, Some(Decision::Cancelled { .. })) => {
                Some(Ended::Cancelled)
            }
            _ => {
                assert!(told == Decision::Unknown, "told {told:?}, and it is {decided:?}");
                None
            }
        }
    }

    /// What always holds.
    fn check(&self) {
        if let Some(receiver) = &self.server.receiver {
            let committed = receiver.committed_bytes();
            assert!(committed <= self.bounds.session_bytes, "{committed} bytes in flight");
        }
    }

    fn pusher_works(&mut self, dice: &mut Dice<'_>) -> Result<()> {
        self.find_ends();
        self.pusher.work(dice, self.now)
    }

    fn dial(&mut self, dice: &mut Dice<'_>) {
        let is_control = self.pusher.wants_control();
        if is_control || self.pusher.wants_data() {
            let latency_ms = 1 << dice.below(8);
            let id = self.network.dial(self.now, latency_ms, 1000 * (1 + dice.below(100)));
            self.pusher.dialled(id, is_control, self.now);
            self.server.dialled(id, self.now);
        }
    }

    /// Whether that side had anything to say.
    fn transmit(&mut self, id: u32, side: Side) -> bool {
        let packet = match side {
            Side::North => self.pusher.poll_transmit(id, self.now),
            Side::South => self.server.poll_transmit(id),
        };
        if let Some(packet) = &packet {
            self.network.send(id, side, packet, self.now);
        }
        packet.is_some()
    }

    /// Whether there was anything to hear.
    fn receive(&mut self, id: u32, side: Side) -> Result<bool> {
        let Some((arrives_at, bytes)) = self.network.receive(id, side) else { return Ok(false) };
        self.now = self.now.max(arrives_at);
        let hung_up = match side {
            Side::North => self.pusher.hear(id, bytes, self.now),
            Side::South => self.server.hear(id, bytes, self.now),
        };
        hung_up?.into_iter().for_each(|id| self.hang_up(id, side));
        Ok(true)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        if self.pusher.poll_timeout().is_some_and(|due| self.now >= due) {
            let ids = self.pusher.handle_timeout(self.now);
            ids.into_iter().for_each(|id| self.hang_up(id, Side::North));
        }
        if self.server.poll_timeout().is_some_and(|due| self.now >= due) {
            let ids = self.server.handle_timeout(self.now);
            ids.into_iter().for_each(|id| self.hang_up(id, Side::South));
        }
    }

    /// Both sides look at their connections: those that ended, and those that are of no use.
    fn find_ends(&mut self) {
        let (pusher, server, network) = (&self.pusher, &self.server, &self.network);
        let over = |id: &u32, side| network.is_over(*id, side);
        let north: Vec<u32> = pusher.connections().filter(|id| over(id, Side::North)).collect();
        let south: Vec<u32> = server.connections().filter(|id| over(id, Side::South)).collect();
        north.into_iter().for_each(|id| self.hang_up(id, Side::North));
        south.into_iter().for_each(|id| self.hang_up(id, Side::South));
        while let Some(id) = self.pusher.idle() {
            self.part(id, Side::North);
        }
        while let Some(id) = self.server.idle() {
            self.part(id, Side::South);
        }
    }

    /// The last words go out first.
    fn part(&mut self, id: u32, side: Side) {
        self.transmit(id, side);
        self.transmit(id, side);
        self.hang_up(id, side);
    }

    fn hang_up(&mut self, id: u32, side: Side) {
        self.network.hang_up(id, side);
        match side {
            Side::North => self.pusher.lost(id),
            Side::South => self.server.lost(id),
        }
    }
}

const ROUNDS_MAX: usize = 5_000;
/// What each side does in a round.
const WORKS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// `SEED=n` runs that world alone; `SEEDS=n` runs so many.
    #[test]
    fn two_daemons_decide_every_job_once_whatever_fails() {
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let seeds = match number("SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..number("SEEDS").unwrap_or(SEEDS),
        };
        let mut counts = [0_u64; 3];
        for seed in seeds.clone() {
            let ended = std::panic::catch_unwind(|| session_seed(seed));
            let Ok(ended) = ended else {
                panic!("SEED={seed} cargo test --all-features --lib two_daemons");
            };
            counts[ended as usize] += 1;
        }
        let all = counts.iter().all(|count| *count > 0);
        assert!(
            seeds.end - seeds.start < 1000 || all,
            "{counts:?} committed, cancelled, refused of {seeds:?}"
        );
    }

    const SEEDS: u64 = 50_000;

    #[test]
    fn the_same_seed_makes_the_same_world() {
        for seed in 0..50 {
            assert_eq!(session_seed(seed), session_seed(seed), "seed {seed}");
        }
    }

    #[test]
    fn any_script_ends_well() {
        for seed in 0..300_u64 {
            let mut script = vec![0; 400];
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut script);
            session_pair(&script);
        }
    }
}
