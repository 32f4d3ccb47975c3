//! Changes to a catalog, and what they do to it. Pure.

use std::sync::Arc;

use super::Catalog;
use crate::id::JobId;
use crate::job::Endpoint;
use crate::service::model::{Copy, CopyState, Image, TokenUse};

/// One change, as it is stored.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Image(Arc<Image>),
    NoImage(Endpoint),
    Copy(Arc<Copy>),
    NoCopy(JobId),
    Token(TokenKey, Arc<TokenUse>),
    NoToken(TokenKey),
}

/// Scope and text of a token.
pub(crate) type TokenKey = (String, String);

impl Catalog {
    /// The changes since this was last called.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    pub(super) fn change(&mut self, change: Change) {
        self.apply(&change);
        self.changes.push(change);
    }

    /// Takes in a change that somebody else has decided.
    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::Image(image) => {
                let images = self.images.entry(image.region.clone()).or_default();
                images.insert(image.id.clone(), image.clone());
            }
            Change::NoImage(end) => {
                if let Some(images) = self.images.get_mut(&end.region) {
                    images.remove(&end.image);
                }
            }
            Change::Copy(copy) => {
                self.leave_line(copy.job);
                self.order_next = self.order_next.max(copy.order + 1);
                self.enter_line(copy);
                self.copies.insert(copy.job, copy.clone());
            }
            Change::NoCopy(job) => {
                self.leave_line(*job);
                self.copies.remove(job);
            }
            Change::Token(key, used) => {
                self.tokens.insert(key.clone(), used.clone());
            }
            Change::NoToken(key) => {
                self.tokens.remove(key);
            }
        }
    }

    fn enter_line(&mut self, copy: &Copy) {
        if copy.state.is_final() {
            return;
        }
        let line = self.lines.entry(copy.target.region.clone()).or_default();
        if copy.state == CopyState::Waiting {
            line.waiting.insert(copy.order, copy.job);
        } else {
            line.running.insert(copy.job);
        }
        let source = (copy.source.region.clone(), copy.source.image.clone());
        *self.readers.entry(source).or_default() += 1;
    }

    fn leave_line(&mut self, job: JobId) {
        let Some(copy) = self.copies.get(&job).filter(|copy| !copy.state.is_final()) else {
            return;
        };
        if let Some(line) = self.lines.get_mut(&copy.target.region) {
            line.waiting.remove(&copy.order);
            line.running.remove(&job);
        }
        let source = (copy.source.region.clone(), copy.source.image.clone());
        if let Some(count) = self.readers.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.readers.remove(&source);
            }
        }
    }
}
