//! The links of one session: the first is its control link. Pure.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};

use super::{Link, LinkId};

/// Links by number, each with what a machine keeps beside it.
#[derive(Debug)]
pub(super) struct Links<T> {
    map: BTreeMap<LinkId, (Link, T)>,
    control: LinkId,
}

impl<T> Links<T> {
    pub(super) fn new(control: Link, beside: T) -> Self {
        let id = control.id();
        Self { map: BTreeMap::from([(id, (control, beside))]), control: id }
    }

    pub(super) fn control_id(&self) -> LinkId {
        self.control
    }

    /// The control link; an error once it is lost, which no live session outlives.
    pub(super) fn control(&mut self) -> Result<&mut Link> {
        self.link(self.control)
    }

    pub(super) fn link(&mut self, id: LinkId) -> Result<&mut Link> {
        self.get(id).map(|(link, _)| link).ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, "use a connection: it is lost").retryable(true)
        })
    }

    pub(super) fn get(&mut self, id: LinkId) -> Option<(&mut Link, &mut T)> {
        self.map.get_mut(&id).map(|(link, beside)| (link, beside))
    }

    /// # Errors
    /// [`ErrorKind::Invalid`] for a number in use, [`ErrorKind::Busy`] for too many.
    pub(super) fn add(&mut self, link: Link, beside: T) -> Result<()> {
        if self.map.contains_key(&link.id()) {
            return Err(Error::new(ErrorKind::Invalid, "add a connection twice"));
        }
        if self.map.len() >= link.bounds().links_max {
            return Err(Error::new(ErrorKind::Busy, "add a connection: the session has enough"));
        }
        self.map.insert(link.id(), (link, beside));
        Ok(())
    }

    pub(super) fn remove(&mut self, id: LinkId) -> Option<(Link, T)> {
        self.map.remove(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Link, &T)> {
        self.map.values().map(|(link, beside)| (link, beside))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&mut Link, &mut T)> {
        self.map.values_mut().map(|(link, beside)| (link, beside))
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.map.values().map(|(link, _)| link.poll_timeout()).min()
    }

    /// Lets time pass on each link; gives those that are to be given up, and why.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Vec<(LinkId, Error)> {
        let due = |(link, _): &mut (Link, T)| {
            link.handle_timeout(now).err().map(|error| (link.id(), error))
        };
        self.map.values_mut().filter_map(due).collect()
    }
}
