//! Drives a pull: fetches an image from another daemon, again when the connection is lost.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::chunk::Written;
use crate::error::{Error, ErrorKind, Result};
use crate::host;
use crate::id::{ImageId, JobId};
use crate::manifest::{ChunkTable, TableBuilder};
use crate::pump::{Conn, Events, Pump};
use crate::region::blocking;
use crate::sync::time::{sleep, timeout};
use crate::wire::message::{Fetch, Offer, Session};
use crate::wire::session::{Accepted, Arrived, LinkId, Receiver, ReceiverEvent, Ticket};

use super::Far;
use super::net::{Desk, backoff};
use super::source::{Facts, View};

/// A session that is open.
pub(super) struct Fetched {
    pub(super) offer: Offer,
    pub(super) table: Option<ChunkTable>,
    conn: Conn,
    link: LinkId,
    pump: Arc<Pump<Receiver>>,
    events: Events<ReceiverEvent>,
}

/// Opens a session for an image, once the other side has room for it.
pub(super) async fn fetch_first(far: &Far, image: &ImageId) -> Result<Fetched> {
    let mut attempt = 0;
    loop {
        let error = match fetch(far, image, true).await {
            Err(error) if error.kind() == ErrorKind::Busy && error.is_retryable() => error,
            fetched => return fetched,
        };
        attempt += 1;
        if attempt >= far.net.options.attempts_max {
            return Err(error);
        }
        sleep(backoff(attempt)).await;
    }
}

/// Opens a session for an image. `table`: with its digests, where the other side has them.
async fn fetch(far: &Far, image: &ImageId, table: bool) -> Result<Fetched> {
    while let Some(desk) = far.net.idle_desk() {
        let socket = desk.conn.socket.clone();
        match fetch_on(desk, far, image, table).await {
            // It had gone stale. One that is silent is not: a new one would be no better.
            Err(error) if error.kind() == ErrorKind::Unavailable && socket.is_hung_up() => {}
            fetched => return fetched,
        }
    }
    fetch_on(far.net.dial().await?, far, image, table).await
}

async fn fetch_on(desk: Desk, far: &Far, image: &ImageId, table: bool) -> Result<Fetched> {
    let Desk { mut conn, greeting } = desk;
    let closed = || Error::new(ErrorKind::Unavailable, "fetch on a connection that is gone");
    let link = greeting.into_link().ok_or_else(closed)?;
    let id = link.id();
    // A name that nobody else uses.
    let session = Session::new(JobId::from_bytes(host::random()?), 1);
    let fetch = Fetch { session, region: far.name.clone(), image: image.clone(), table };
    let now = crate::sync::time::Instant::now().into_std();
    let (pump, mut events) = Pump::new(Receiver::fetch(link, fetch, now));
    let opened = {
        let served = async {
            tokio::join!(pump.serve(id, &mut conn), pump.pass_time());
            std::future::pending::<()>().await;
        };
        tokio::select! {
            opened = timeout(far.net.options.pace.answer_max, open(&pump, &mut events)) => {
                let late = || Error::new(ErrorKind::Unavailable, "hear of an image: it is late");
                opened.unwrap_or_else(|_| Err(late()))
            }
            () = served => Err(closed()),
        }
    };
    let (offer, table) = opened?;
    Ok(Fetched { offer, table, conn, link: id, pump: Arc::new(pump), events })
}

async fn open(
    pump: &Pump<Receiver>,
    events: &mut Events<ReceiverEvent>,
) -> Result<(Offer, Option<ChunkTable>)> {
    let mut offered: Option<Offer> = None;
    while let Some(event) = events.recv().await {
        match event {
            ReceiverEvent::Offered(offer) => {
                let accepted = Accepted {
                    held: TableBuilder::new(offer.geometry),
                    data_bytes: 0,
                    base: None,
                    token: offer.token,
                };
                let accepts = |receiver: &mut Receiver, _| receiver.accept(accepted);
                pump.act(accepts).unwrap_or(Ok(()))?;
                if offer.root.is_none() || offer.geometry.chunk_count() == 0 {
                    let empty = offer.root.and_then(|_| TableBuilder::new(offer.geometry).finish());
                    return Ok((*offer, empty));
                }
                offered = Some(*offer);
            }
            ReceiverEvent::Table(table) => {
                if let Some(offer) = offered {
                    return Ok((offer, Some(*table)));
                }
            }
            ReceiverEvent::Closed(error) => return Err(error),
            _ => {}
        }
    }
    Err(Error::new(ErrorKind::Unavailable, "fetch on a connection that is gone"))
}

/// Serves a source until it is dropped, or cannot be reached any more.
pub(super) async fn drive(view: Arc<View>, fetched: Fetched) {
    let mut fetched = fetched;
    let mut attempt = 0;
    loop {
        let mut last = run(&view, fetched, &mut attempt).await;
        view.disconnected();
        fetched = loop {
            let gives_up = attempt >= view.far.net.options.attempts_max;
            if gives_up || !last.is_retryable() {
                return view.fail(last);
            }
            attempt += 1;
            sleep(backoff(attempt)).await;
            match again(&view).await {
                Ok(fetched) => break fetched,
                Err(error) => last = error,
            }
        };
    }
}

/// Another session for the same image, which must be what it was.
async fn again(view: &View) -> Result<Fetched> {
    let fetched = fetch(&view.far, &view.image, false).await?;
    let (was, is) = (&view.offer, &fetched.offer);
    if was.geometry != is.geometry {
        return Err(Error::new(ErrorKind::SourceChanged, "read image: it is another by now"));
    }
    match was.facts.difference(&is.facts) {
        None => Ok(fetched),
        Some(what) => {
            let what = format!("read image: it changed meanwhile: {what}");
            Err(Error::new(ErrorKind::SourceChanged, what))
        }
    }
}

/// Runs one session to its end, and tells what ended it.
async fn run(view: &Arc<View>, fetched: Fetched, attempt: &mut u32) -> Error {
    let Fetched { mut conn, link, pump, mut events, .. } = fetched;
    view.state().pump = Some(pump.clone());
    let mut tasks = JoinSet::new();
    for _ in 1..view.far.net.options.connections {
        tasks.spawn(view.far.net.clone().lend_link(pump.clone(), Receiver::attach_dialled));
    }
    view.ask_for_chunks();
    let served = async {
        tokio::join!(pump.serve(link, &mut conn), pump.pass_time());
        std::future::pending::<()>().await;
    };
    tokio::select! {
        error = attend(view, &pump, &mut events, &mut tasks, attempt) => error,
        () = served => Error::new(ErrorKind::Unavailable, "read image"),
    }
}

async fn attend(
    view: &Arc<View>,
    pump: &Arc<Pump<Receiver>>,
    events: &mut Events<ReceiverEvent>,
    tasks: &mut JoinSet<()>,
    attempt: &mut u32,
) -> Error {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            Some(_) = tasks.join_next() => continue,
        };
        match event {
            Some(ReceiverEvent::Arrived(arrived)) => {
                *attempt = 0;
                tasks.spawn(take(view.clone(), pump.clone(), arrived));
            }
            Some(ReceiverEvent::Zeroes(ticket)) => take_zeroes(view, pump, ticket),
            Some(ReceiverEvent::Extents { id, extents }) => {
                view.answered(id, Facts::Extents(extents));
            }
            Some(ReceiverEvent::Facts { id, facts }) => view.answered(id, Facts::Print(facts)),
            Some(ReceiverEvent::Declined { id, error }) => view.declined(id, error),
            Some(ReceiverEvent::Fulfilled { id }) => {
                view.state().wants.remove(&id);
                view.ask_for_chunks();
            }
            Some(ReceiverEvent::Closed(error)) => return error,
            None => return Error::new(ErrorKind::Unavailable, "read image"),
            // Links end by themselves; the rest is about what is pushed.
            Some(_) => {}
        }
    }
}

/// Checks a chunk, off the runtime's threads, and hands it to those who wait.
async fn take(view: Arc<View>, pump: Arc<Pump<Receiver>>, arrived: Arrived) {
    let opened = blocking(move || Ok(arrived.open())).await;
    let Ok((ticket, sealed)) = opened else {
        let error = Error::new(ErrorKind::Io, "check a chunk: its thread is gone");
        pump.act(|receiver, _| receiver.close(error));
        return;
    };
    // Order: whoever waits is told without the machine's lock, which is the inner one.
    if let Ok(sealed) = &sealed {
        view.arrived(sealed.index(), sealed.data());
    }
    pump.act(|receiver, _| match sealed {
        Ok(sealed) => {
            let written: [Written; 1] = [sealed.written()];
            if let Err(error) = receiver.written(ticket, &written) {
                receiver.close(error);
            }
        }
        // Closes the session: the other side lies, or its disk does.
        Err(error) => receiver.refused(ticket, error),
    });
}

fn take_zeroes(view: &View, pump: &Pump<Receiver>, ticket: Ticket) {
    let geometry = view.geometry();
    let mut zeroes = bytes::Bytes::new();
    for index in ticket.runs().iter().flat_map(|run| run.iter()) {
        let len = crate::geometry::to_usize(geometry.range(index).len);
        if zeroes.len() < len {
            zeroes = vec![0; len].into();
        }
        view.arrived(index, &zeroes.slice(..len));
    }
    let written: Vec<Written> = ticket.runs().iter().map(|run| Written::zeroes(*run)).collect();
    pump.act(|receiver, _| {
        if let Err(error) = receiver.written(ticket, &written) {
            receiver.close(error);
        }
    });
}
