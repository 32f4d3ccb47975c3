//! How many connections knock and how many are inside, and who must make room. Pure.
//!
//! ```text
//! knock ──► pending ──► seated ──► gone
//!              │ turned out: the oldest of too many, or dropped
//!              └──────────────────► gone
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::identity::Identity;
use crate::error::{Error, ErrorKind, Result};

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DoorCaps {
    /// Connections whose peer has not proved who it is.
    pub handshakes_max: usize,
    /// Connections in all, also those.
    pub connections_max: usize,
}

impl Default for DoorCaps {
    fn default() -> Self {
        Self { handshakes_max: 64, connections_max: 1024 }
    }
}

/// The number of one that knocked; later ones have greater numbers.
pub(super) type Number = u64;

/// The counts. Whoever holds them sees to it that each entry ends.
#[derive(Debug)]
pub(super) struct Admission {
    caps: DoorCaps,
    next: Number,
    pending: BTreeSet<Number>,
    seated: BTreeMap<Identity, usize>,
    seated_all: usize,
}

impl Admission {
    pub(super) fn new(caps: DoorCaps) -> Self {
        Self { caps, next: 0, pending: BTreeSet::new(), seated: BTreeMap::new(), seated_all: 0 }
    }

    /// One more knocks. Tells its number, and who must go to make room for it: the one that has
    /// been pending longest, because whoever means well is through in a few round trips. So many
    /// who only sit there keep nobody out.
    pub(super) fn knock(&mut self) -> Result<(Number, Option<Number>)> {
        let all = self.pending.len() + self.seated_all;
        let full =
            self.pending.len() >= self.caps.handshakes_max || all >= self.caps.connections_max;
        let turned_out = if full {
            let oldest = self.pending.pop_first().ok_or_else(|| {
                Error::new(ErrorKind::Busy, "let another connection in")
                    .hint(format!("{} are open", self.seated_all))
                    .retryable(true)
            })?;
            Some(oldest)
        } else {
            None
        };
        let number = self.next;
        self.next += 1;
        self.pending.insert(number);
        Ok((number, turned_out))
    }

    /// One that knocked goes away. Nothing happens when it is no longer pending.
    pub(super) fn forget(&mut self, number: Number) {
        self.pending.remove(&number);
    }

    /// One that knocked has proved who it is, and takes a seat.
    pub(super) fn seat(
        &mut self,
        number: Number,
        identity: &Identity,
        connections_max: usize,
    ) -> Result<()> {
        if !self.pending.contains(&number) {
            return Err(turned_out());
        }
        let own = self.seats_of(identity);
        if own >= connections_max {
            // One of them may end at any time.
            return Err(Error::new(
                ErrorKind::Busy,
                format!("let another connection of {identity} in"),
            )
            .hint(format!("{own} are open"))
            .retryable(true));
        }
        self.pending.remove(&number);
        self.seated.insert(identity.clone(), own + 1);
        self.seated_all += 1;
        Ok(())
    }

    /// One that was seated goes away.
    pub(super) fn leave(&mut self, identity: &Identity) {
        let Some(own) = self.seated.get_mut(identity) else {
            debug_assert!(false, "who leaves had a seat");
            return;
        };
        *own -= 1;
        if *own == 0 {
            self.seated.remove(identity);
        }
        self.seated_all -= 1;
    }

    pub(super) fn seats_of(&self, identity: &Identity) -> usize {
        self.seated.get(identity).copied().unwrap_or(0)
    }
}

/// What one is told that had to make room.
pub(super) fn turned_out() -> Error {
    Error::new(ErrorKind::Unavailable, "let the connection in")
        .hint("it made room for later ones before its peer had proved who it is")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn admission(handshakes_max: usize, connections_max: usize) -> Admission {
        Admission::new(DoorCaps { handshakes_max, connections_max })
    }

    fn who(name: &str) -> Identity {
        name.parse().unwrap()
    }

    #[test]
    fn the_oldest_pending_makes_room_for_the_newest() {
        let mut door = admission(2, 10);
        let knocks: Vec<_> = (0..4).map(|_| door.knock().unwrap()).collect();
        assert_eq!(knocks, [(0, None), (1, None), (2, Some(0)), (3, Some(1))]);
        assert_eq!(door.seat(0, &who("a"), 8).unwrap_err().kind(), ErrorKind::Unavailable);
        door.seat(2, &who("a"), 8).unwrap();
        assert_eq!(door.knock().unwrap(), (4, None));
        // One that left by itself makes room, and is not turned out.
        door.forget(3);
        assert_eq!(door.knock().unwrap(), (5, None));
        assert_eq!(door.knock().unwrap(), (6, Some(4)));
    }

    #[test]
    fn those_inside_are_never_turned_out() {
        let mut door = admission(64, 3);
        for number in 0..3 {
            door.knock().unwrap();
            door.seat(number, &who("a"), 8).unwrap();
        }
        assert_eq!(door.knock().unwrap_err().kind(), ErrorKind::Busy);
        door.leave(&who("a"));
        assert_eq!(door.knock().unwrap(), (3, None));
        // All are taken, one of them by a pending one.
        assert_eq!(door.knock().unwrap(), (4, Some(3)));
    }

    #[test]
    fn an_identity_has_its_own_ceiling_and_does_not_eat_into_others() {
        let mut door = admission(64, 100);
        let mut enter = |name: &str| {
            let (number, _) = door.knock().unwrap();
            let seated = door.seat(number, &who(name), 2);
            door.forget(number);
            (seated.map_err(|error| error.kind()), door.pending.len())
        };
        assert_eq!(enter("a"), (Ok(()), 0));
        assert_eq!(enter("a"), (Ok(()), 0));
        assert_eq!(enter("a"), (Err(ErrorKind::Busy), 0));
        assert_eq!(enter("b"), (Ok(()), 0));
        door.leave(&who("a"));
        assert_eq!((door.seats_of(&who("a")), door.seats_of(&who("b"))), (1, 1));
        assert_eq!(door.seats_of(&who("c")), 0);
    }

    proptest! {
        /// Against a naive twin that keeps a list of everything that is there.
        #[test]
        fn the_counts_agree_with_a_list(
            steps in prop::collection::vec((0..4_u8, 0..8_usize, 0..3_usize), 1..200),
        ) {
            let names = ["a", "b", "c"].map(who);
            let mut door = admission(3, 6);
            let (mut pending, mut seated) = (Vec::<Number>::new(), Vec::<usize>::new());
            for (step, at, name) in steps {
                match step {
                    0 => match door.knock() {
                        Ok((number, turned_out)) => {
                            let full = pending.len() == 3 || pending.len() + seated.len() == 6;
                            prop_assert_eq!(turned_out, full.then(|| pending.remove(0)));
                            pending.push(number);
                        }
                        Err(_) => prop_assert!(pending.is_empty() && seated.len() == 6),
                    },
                    1 if at < pending.len() => {
                        let own = seated.iter().filter(|other| **other == name).count();
                        let done = door.seat(pending[at], &names[name], 2);
                        prop_assert_eq!(done.is_ok(), own < 2);
                        if done.is_ok() {
                            pending.remove(at);
                            seated.push(name);
                        }
                    }
                    2 if at < pending.len() => door.forget(pending.remove(at)),
                    3 if at < seated.len() => door.leave(&names[seated.remove(at)]),
                    _ => {}
                }
                prop_assert!(pending.len() <= 3 && pending.len() + seated.len() <= 6);
                prop_assert_eq!(door.pending.len(), pending.len());
                prop_assert_eq!(door.seated_all, seated.len());
                for (index, name) in names.iter().enumerate() {
                    let own = seated.iter().filter(|other| **other == index).count();
                    prop_assert_eq!(door.seats_of(name), own);
                }
            }
        }
    }
}
