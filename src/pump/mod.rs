//! Drives the machines of `wire` over real connections: reads, writes, and lets time pass.
//!
//! A machine is locked for as long as it takes a frame in or gives one out. Bytes are read, hashed
//! and written outside of that, so the links of a session do not wait for each other.

mod conn;
mod pack;

use std::fmt::Debug;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use crate::error::{Error, Result};
use crate::sync::time::{Instant, sleep_until, timeout};
use crate::sync::{Mutex, MutexGuard};
use crate::wire::frame::{Expect, Frame, Packet};
use crate::wire::session::{
    Greeting, GreetingEvent, LinkId, Receiver, ReceiverEvent, Sender, SenderEvent,
};

pub(crate) use conn::{Conn, Duplex, Socket};
pub(crate) use pack::Packing;

/// What [`Pump`] asks of a machine: both kinds have it.
pub(crate) trait Machine: Debug + Send + 'static {
    type Event: Debug + Send;

    fn expects(&self, link: LinkId) -> Option<Expect>;
    fn handle_frame(&mut self, link: LinkId, frame: &Frame, now: std::time::Instant);
    fn handle_timeout(&mut self, now: std::time::Instant);
    fn poll_event(&mut self) -> Option<Self::Event>;
    fn poll_transmit(&mut self, link: LinkId, now: std::time::Instant) -> Option<Packet>;
    fn poll_timeout(&self) -> Option<std::time::Instant>;
    fn link_lost(&mut self, link: LinkId, error: Error);
    fn is_over(&self) -> bool;
}

macro_rules! machine {
    ($machine:ident, $event:ident, $($now:ident)?) => {
        impl Machine for $machine {
            type Event = $event;

            fn expects(&self, link: LinkId) -> Option<Expect> {
                $machine::expects(self, link)
            }

            fn handle_frame(&mut self, link: LinkId, frame: &Frame, now: std::time::Instant) {
                $machine::handle_frame(self, link, frame, now);
            }

            fn handle_timeout(&mut self, now: std::time::Instant) {
                $machine::handle_timeout(self, now);
            }

            fn poll_event(&mut self) -> Option<$event> {
                $machine::poll_event(self)
            }

            fn poll_transmit(
                &mut self,
                link: LinkId,
                _now: std::time::Instant,
            ) -> Option<Packet> {
                $machine::poll_transmit(self, link $(, { let $now = _now; $now })?)
            }

            fn poll_timeout(&self) -> Option<std::time::Instant> {
                $machine::poll_timeout(self)
            }

            fn link_lost(&mut self, link: LinkId, error: Error) {
                $machine::link_lost(self, link, error);
            }

            fn is_over(&self) -> bool {
                self.state().is_final()
            }
        }
    };
}
machine!(Receiver, ReceiverEvent,);
machine!(Sender, SenderEvent, now);

/// One machine and whoever works on it: a task for each of its links, one for its timer, and the
/// driver, which takes the events.
#[derive(Debug)]
pub(crate) struct Pump<M: Machine> {
    machine: Mutex<Option<M>>,
    /// Something may have to be written.
    changed: Notify,
    events: mpsc::UnboundedSender<M::Event>,
}

/// Events of one machine. How many wait is bounded by what the machine lets under way: credits,
/// and requests.
pub(crate) type Events<E> = mpsc::UnboundedReceiver<E>;

impl<M: Machine> Pump<M> {
    pub(crate) fn new(machine: M) -> (Self, Events<M::Event>) {
        let (events, taken) = mpsc::unbounded_channel();
        let pump = Self { machine: Mutex::new(Some(machine)), changed: Notify::new(), events };
        (pump, taken)
    }

    /// Does something with the machine, passes its events on, and has written what it says.
    /// `None`: it was taken.
    pub(crate) fn act<T>(&self, work: impl FnOnce(&mut M, std::time::Instant) -> T) -> Option<T> {
        let done = {
            let mut machine = self.lock();
            let machine = machine.as_mut()?;
            let done = work(machine, Instant::now().into_std());
            while let Some(event) = machine.poll_event() {
                // Nobody takes events any more when the driver is gone: then it is over.
                self.events.send(event).ok();
            }
            done
        };
        self.changed.notify_waiters();
        Some(done)
    }

    /// Takes the machine out, and ends all tasks.
    pub(crate) fn take(&self) -> Option<M> {
        let machine = self.lock().take();
        self.changed.notify_waiters();
        machine
    }

    fn lock(&self) -> MutexGuard<'_, Option<M>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one link, until it is lost (`false`), or the machine wants it no more: then its last
    /// words are written.
    pub(crate) async fn serve(&self, id: LinkId, conn: &mut Conn) -> bool {
        let Conn { reader, writer, .. } = conn;
        let read = async {
            while let Some(expect) = self.look(|machine| machine.expects(id)).flatten() {
                let frame = reader.frame(expect).await?;
                if self.act(|machine, now| machine.handle_frame(id, &frame, now)).is_none() {
                    break;
                }
            }
            Ok(())
        };
        let write = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                // Order: listening before looking, or what comes in between is missed.
                changed.as_mut().enable();
                while let Some(packet) = self.transmit(id) {
                    if writer.put(&packet) {
                        writer.drain().await?;
                    }
                }
                writer.flush().await?;
                if self.is_over_for(id) {
                    return Ok(());
                }
                changed.await;
            }
        };
        let served: Result<()> = tokio::select! {
            ended = write => ended,
            Err(error) = read => Err(error),
        };
        match served {
            Ok(()) => true,
            Err(error) => {
                self.act(|machine, _| machine.link_lost(id, error));
                false
            }
        }
    }

    fn transmit(&self, id: LinkId) -> Option<Packet> {
        self.lock().as_mut()?.poll_transmit(id, Instant::now().into_std())
    }

    fn is_over_for(&self, id: LinkId) -> bool {
        let live = |machine: &M| !machine.is_over() && machine.expects(id).is_some();
        !self.look(live).unwrap_or(false)
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&M) -> T) -> Option<T> {
        self.lock().as_ref().map(look)
    }

    /// Lets time pass for the machine, until it is over.
    pub(crate) async fn pass_time(&self) {
        while let Some(at) = self.look(Machine::poll_timeout).flatten() {
            // What is asked later may be due sooner.
            let soon = Instant::now() + TICK;
            sleep_until(soon.min(at.into())).await;
            if Instant::now().into_std() >= at {
                self.act(|machine, now| machine.handle_timeout(now));
            }
        }
    }
}

/// How long a machine's timer sleeps at most.
const TICK: Duration = Duration::from_secs(1);

/// Which side of a connection this is: who listens takes nothing as long as a chunk before there is
/// a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Dials,
    Listens,
}

/// The next event of a connection that belongs to no session yet.
///
/// Dropped, it loses nothing but what was half written.
pub(crate) async fn greet(conn: &mut Conn, greeting: &mut Greeting, side: Side) -> GreetingEvent {
    loop {
        if let Err(error) = say(conn, greeting).await {
            return GreetingEvent::Closed(error);
        }
        if let Some(event) = greeting.poll_event() {
            return event;
        }
        let expect = match side {
            Side::Dials => greeting.expects(),
            Side::Listens => greeting.expects().brief(),
        };
        let at = greeting.poll_timeout().unwrap_or_else(|| Instant::now().into_std());
        let left = at.saturating_duration_since(Instant::now().into_std());
        match timeout(left, conn.reader.frame(expect)).await {
            Ok(Ok(frame)) => greeting.handle_frame(&frame, Instant::now().into_std()),
            Ok(Err(error)) => return GreetingEvent::Closed(error),
            Err(_) => greeting.handle_timeout(Instant::now().into_std()),
        }
    }
}

/// Writes what a greeting has to say.
pub(crate) async fn say(conn: &mut Conn, greeting: &mut Greeting) -> Result<()> {
    let mut silent = true;
    while let Some(packet) = greeting.poll_transmit() {
        conn.writer.put(&packet);
        silent = false;
    }
    if silent { Ok(()) } else { conn.writer.flush().await }
}
