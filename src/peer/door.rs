//! The door of a daemon: connections that knock, and seats for those whose peers are known.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::admission::{Admission, DoorCaps, Number, turned_out};
use super::credits::Credits;
use super::identity::Identity;
use super::policy::Ceilings;
use crate::error::Result;
use crate::options::Limits;
use crate::throttle::Throttle;

/// Lets connections in, up to a number; a cheap handle, all clones of which are one door.
///
/// ```
/// use blockferry::peer::{Ceilings, Door, DoorCaps};
///
/// # fn main() -> blockferry::Result<()> {
/// let door = Door::new(DoorCaps::default());
/// let knock = door.knock()?; // A connection was accepted; the handshake follows.
/// let seat = knock.admit(&"alpha".parse()?, &Ceilings::default())?;
/// assert_eq!(seat.credits().free_bytes(), 256 << 20);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Door(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    admission: Admission,
    /// How those who knock are told that they must make room.
    pending: BTreeMap<Number, CancellationToken>,
    shares: BTreeMap<Identity, Share>,
}

/// What the seats of one identity have in common.
#[derive(Clone, Debug)]
struct Share {
    credits: Credits,
    read_back: Credits,
    throttle: Throttle,
}

impl Share {
    fn new(ceilings: &Ceilings) -> Self {
        let mut limits = Limits::NONE;
        limits.bytes_per_sec = ceilings.rate_max;
        let in_time = |time: Duration| match ceilings.rate_max {
            Some(rate) => rate.get().saturating_mul(time.as_secs()),
            None => u64::MAX,
        };
        // What is under way waits for the rate, and whoever sent it for an answer: so much at most
        // that the last of it is answered in time.
        let window_bytes = ceilings.window_bytes_max.min(in_time(WINDOW_TIME));
        let piece_bytes = READ_BACK_BYTES.min(in_time(READ_BACK_TIME)).max(READ_BACK_BYTES_LEAST);
        Self {
            credits: Credits::new(window_bytes),
            read_back: Credits::new(piece_bytes * READ_BACK_COUNT),
            throttle: Throttle::new(limits),
        }
    }

    /// Bytes of an identity that has gone may still be on their way to the disk: as long as they
    /// are, it has the same budget when it comes back.
    fn is_whole(&self) -> bool {
        let free = |credits: &Credits| credits.free_bytes() == credits.all_bytes();
        free(&self.credits) && free(&self.read_back)
    }
}

/// The window of an identity with a ceiling of its rate is what passes in so long.
const WINDOW_TIME: Duration = Duration::from_secs(60);
/// Staged bytes that are read back for their owner in one piece, if its rate lets them pass in
/// [`READ_BACK_TIME`], and how many such pieces are under way to one identity.
const READ_BACK_BYTES: u64 = 4 << 20;
const READ_BACK_BYTES_LEAST: u64 = 64 << 10;
const READ_BACK_TIME: Duration = Duration::from_secs(5);
const READ_BACK_COUNT: u64 = 4;

impl Door {
    /// A door that nobody has passed.
    pub fn new(caps: DoorCaps) -> Self {
        Self(Arc::new(Mutex::new(State {
            admission: Admission::new(caps),
            pending: BTreeMap::new(),
            shares: BTreeMap::new(),
        })))
    }

    /// A connection was accepted, and its peer is not known yet. Where too many are in that state,
    /// the one that has been longest is turned out.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`](crate::ErrorKind::Busy) when all connections are taken by peers that are
    /// known: close it.
    pub fn knock(&self) -> Result<Knock> {
        let mut state = self.lock();
        let (number, oldest) = state.admission.knock()?;
        if let Some(token) = oldest.and_then(|oldest| state.pending.remove(&oldest)) {
            token.cancel();
        }
        let token = CancellationToken::new();
        state.pending.insert(number, token.clone());
        Ok(Knock { door: self.clone(), number, turned_out: token })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection whose peer is not known yet. Dropped, it is out of the count.
#[derive(Debug)]
#[must_use = "a connection that is not held is not counted"]
pub struct Knock {
    door: Door,
    number: Number,
    turned_out: CancellationToken,
}

impl Knock {
    /// Runs the handshake for as long as this connection need not make room for others.
    ///
    /// # Errors
    /// Those of the handshake; [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) when it is
    /// turned out.
    ///
    /// # Cancel safety
    /// That of the handshake.
    pub async fn until_turned_out<T>(
        &self,
        handshake: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let done = self.turned_out.run_until_cancelled(handshake).await;
        done.unwrap_or_else(|| Err(turned_out()))
    }

    /// The peer has proved who it is: gives it a seat.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`](crate::ErrorKind::Busy) when it has as many as it may;
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) when this connection was turned
    /// out.
    pub fn admit(self, identity: &Identity, ceilings: &Ceilings) -> Result<Seat> {
        let mut state = self.door.lock();
        let State { admission, shares, .. } = &mut *state;
        admission.seat(self.number, identity, ceilings.connections_max)?;
        shares.retain(|other, share| admission.seats_of(other) > 0 || !share.is_whole());
        let share = shares.entry(identity.clone()).or_insert_with(|| Share::new(ceilings)).clone();
        drop(state);
        Ok(Seat { door: self.door.clone(), identity: identity.clone(), share })
    }
}

impl Drop for Knock {
    fn drop(&mut self) {
        let mut state = self.door.lock();
        state.admission.forget(self.number);
        state.pending.remove(&self.number);
    }
}

/// A connection of a known peer, for as long as it lives. Dropped, its seat is free.
#[derive(Debug)]
#[must_use = "a connection that is not held is not counted"]
pub struct Seat {
    door: Door,
    identity: Identity,
    share: Share,
}

impl Seat {
    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The window that all connections of that identity share: what the policy says, and no more
    /// than its rate lets pass in a minute.
    pub fn credits(&self) -> &Credits {
        &self.share.credits
    }

    /// The room for staged bytes that are read back to that identity, which is not that of its
    /// window: a session whose window holds all there is verifies all the same.
    pub fn read_back(&self) -> &Credits {
        &self.share.read_back
    }

    /// How many staged bytes are read back at once: a quarter of that room.
    pub fn read_back_bytes_max(&self) -> u64 {
        self.share.read_back.all_bytes() / READ_BACK_COUNT
    }

    /// The rate that all connections of that identity share.
    pub fn throttle(&self) -> &Throttle {
        &self.share.throttle
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.door.lock().admission.leave(&self.identity);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::error::ErrorKind;

    fn door(handshakes_max: usize, connections_max: usize) -> Door {
        Door::new(DoorCaps { handshakes_max, connections_max })
    }

    fn who(name: &str) -> Identity {
        name.parse().unwrap()
    }

    fn enter(door: &Door, name: &str) -> Result<Seat> {
        door.knock()?.admit(&who(name), &Ceilings::default())
    }

    #[tokio::test]
    async fn a_thousand_who_only_sit_there_keep_nobody_out() {
        let door = door(64, 1024);
        let idle: Vec<_> = (0..1000).map(|_| door.knock().unwrap()).collect();
        let seat = enter(&door, "alpha").unwrap();
        assert_eq!(seat.identity(), &who("alpha"));
        let turned = idle.iter().filter(|knock| knock.turned_out.is_cancelled()).count();
        assert_eq!(turned, 1000 - 63);
        // The first of them learns it while it waits for its peer.
        let error = idle[0].until_turned_out(std::future::pending::<Result<()>>()).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Unavailable);
        let late = idle.into_iter().next().unwrap().admit(&who("a"), &Ceilings::default());
        assert_eq!(late.unwrap_err().kind(), ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn a_handshake_gives_what_it_gives() {
        let door = door(1, 2);
        let knock = door.knock().unwrap();
        assert_eq!(knock.until_turned_out(async { Ok(7) }).await.unwrap(), 7);
        let failed = knock.until_turned_out(async { Err::<(), _>(turned_out()) }).await;
        assert!(failed.is_err());
        drop(knock.admit(&who("a"), &Ceilings::default()).unwrap());
    }

    #[test]
    fn whoever_is_dropped_is_out_of_the_count() {
        let door = door(1, 2);
        drop(door.knock().unwrap());
        let (one, two) = (enter(&door, "a").unwrap(), enter(&door, "b").unwrap());
        assert_eq!(enter(&door, "c").unwrap_err().kind(), ErrorKind::Busy);
        drop(one);
        let three = enter(&door, "c").unwrap();
        drop((two, three));
        let state = door.lock();
        assert!(state.pending.is_empty());
        assert_eq!(state.admission.seats_of(&who("c")), 0);
    }

    #[test]
    fn a_refused_identity_takes_no_seat() {
        let door = door(4, 4);
        let ceilings = Ceilings { connections_max: 1, ..Ceilings::default() };
        let admit = |name: &str| door.knock().unwrap().admit(&who(name), &ceilings);
        let first = admit("a").unwrap();
        assert_eq!(admit("a").unwrap_err().kind(), ErrorKind::Busy);
        let second = admit("b").unwrap();
        drop(first);
        let third = admit("a").unwrap();
        drop((second, third));
    }

    #[test]
    fn seats_of_one_identity_share_window_and_rate_and_others_have_their_own() {
        let door = door(4, 8);
        let rate_max = NonZeroU64::new(7);
        let ceilings = Ceilings { window_bytes_max: 100, rate_max, ..Ceilings::default() };
        let admit = |name: &str| door.knock().unwrap().admit(&who(name), &ceilings).unwrap();
        let (one, two, other) = (admit("a"), admit("a"), admit("b"));
        let lease = one.credits().try_take(60).unwrap();
        assert_eq!((two.credits().free_bytes(), other.credits().free_bytes()), (40, 100));
        assert_eq!(one.throttle().limits().bytes_per_sec, NonZeroU64::new(7));
        two.throttle().set_limits(Limits::NONE, std::time::Instant::now());
        assert_eq!(one.throttle().limits().bytes_per_sec, None);
        assert_eq!(other.throttle().limits().bytes_per_sec, NonZeroU64::new(7));

        // Whoever hangs up and comes back does not get what is still under way once more.
        drop((one, two));
        // Somebody else comes in between: that is when those who have gone are forgotten.
        drop(admit("c"));
        let again = admit("a");
        assert_eq!(again.credits().free_bytes(), 40);
        drop((again, lease));
        assert_eq!(admit("a").credits().free_bytes(), 100);
    }

    #[test]
    fn a_window_is_no_more_than_its_rate_lets_pass_in_a_minute() {
        let door = door(4, 8);
        let seat = |name: &str, rate: u64| {
            let ceilings = Ceilings { rate_max: NonZeroU64::new(rate), ..Ceilings::default() };
            let seat = door.knock().unwrap().admit(&who(name), &ceilings).unwrap();
            (seat.credits().all_bytes(), seat.read_back_bytes_max(), seat.read_back().all_bytes())
        };
        assert_eq!(seat("none", 0), (256 << 20, 4 << 20, 16 << 20));
        assert_eq!(seat("fast", 1 << 30), (256 << 20, 4 << 20, 16 << 20));
        assert_eq!(seat("slow", 100 << 10), (6000 << 10, 500 << 10, 2000 << 10));
        assert_eq!(seat("slowest", 1 << 10), (60 << 10, 64 << 10, 256 << 10));
    }

    #[test]
    fn nothing_is_kept_of_those_who_have_gone() {
        let door = door(4, 8);
        for number in 0..100 {
            drop(enter(&door, &format!("peer-{number}")).unwrap());
        }
        assert_eq!(door.lock().shares.len(), 1);
    }
}
