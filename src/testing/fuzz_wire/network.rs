//! Connections between two daemons: latency, bandwidth, and an end that each side learns of in its
//! own time.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::wire::frame::Packet;

/// One end of every connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Dials.
    North,
    /// Listens.
    South,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::North, Self::South];

    pub(super) fn other(self) -> Self {
        match self {
            Self::North => Self::South,
            Self::South => Self::North,
        }
    }

    fn slot(self) -> usize {
        match self {
            Self::North => 0,
            Self::South => 1,
        }
    }
}

/// Every connection that either side still holds.
#[derive(Debug, Default)]
pub(super) struct Network {
    connections: BTreeMap<u32, Connection>,
    last: u32,
}

#[derive(Debug)]
struct Connection {
    is_cut: bool,
    latency: Duration,
    bytes_per_ms: usize,
    /// What is on its way to each side, and when it arrives.
    lanes: [VecDeque<(Instant, BytesMut)>; 2],
    free_at: [Instant; 2],
    held: [bool; 2],
}

impl Network {
    /// A new connection, with that latency and bandwidth.
    pub(super) fn dial(&mut self, now: Instant, latency_ms: u64, bytes_per_ms: usize) -> u32 {
        self.last += 1;
        let latency = Duration::from_millis(latency_ms);
        let connection = Connection {
            is_cut: false,
            latency,
            bytes_per_ms,
            lanes: [VecDeque::new(), VecDeque::new()],
            free_at: [now; 2],
            held: [true; 2],
        };
        self.connections.insert(self.last, connection);
        self.last
    }

    /// How many connections there are.
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// The `nth` of them, in the order in which they were made.
    pub(super) fn nth(&self, nth: usize) -> Option<u32> {
        self.connections.keys().nth(nth).copied()
    }

    pub(super) fn send(&mut self, id: u32, from: Side, packet: &Packet, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let slot = from.other().slot();
        let took = packet.len() / connection.bytes_per_ms;
        let took = Duration::from_millis(crate::geometry::to_u64(took));
        let sent = connection.free_at[slot].max(now) + took;
        connection.free_at[slot] = sent;
        if !connection.is_cut {
            connection.lanes[slot].push_back((sent + connection.latency, packet.to_bytes()));
        }
    }

    /// The next bytes for that side, and when they are there.
    pub(super) fn receive(&mut self, id: u32, side: Side) -> Option<(Instant, BytesMut)> {
        self.connections.get_mut(&id)?.lanes[side.slot()].pop_front()
    }

    /// The last frame on its way to that side comes twice.
    pub(super) fn duplicate(&mut self, id: u32, side: Side) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let lane = &mut connection.lanes[side.slot()];
        if let Some(last) = lane.back().cloned() {
            lane.push_back(last);
        }
    }

    /// Cuts it: what is on its way is lost.
    pub(super) fn cut(&mut self, id: u32) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.is_cut = true;
            connection.lanes.iter_mut().for_each(VecDeque::clear);
        }
    }

    /// That side hangs up: what it sent still arrives.
    pub(super) fn hang_up(&mut self, id: u32, side: Side) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.held[side.slot()] = false;
        connection.lanes[side.slot()].clear();
        if connection.held == [false; 2] {
            self.connections.remove(&id);
        }
    }

    /// Whether that side would find, if it looked, that nothing more will come.
    pub(super) fn is_over(&self, id: u32, side: Side) -> bool {
        self.connections.get(&id).is_none_or(|connection| {
            let other_gone = !connection.held[side.other().slot()];
            connection.is_cut || (other_gone && connection.lanes[side.slot()].is_empty())
        })
    }
}
