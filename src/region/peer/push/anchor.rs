//! Stages at another daemon, on a connection that from then on stands for the stage.

use crate::error::{Error, ErrorKind, Result};
use crate::job::JobSpec;
use crate::wire::message::{FEATURE_DELTA, Token};
use crate::wire::session::Greeting;

use super::super::Far;
use super::super::call::{Call, Told, astray};
use super::super::net::{Answer, Desk, Question, Spoken};

/// A connection that stands for a stage.
pub(super) struct Anchored {
    pub(super) desk: Desk,
    pub(super) token: Token,
    pub(super) epoch: u32,
}

/// Stages on a connection, which from then on stands for the stage. `instead`: of the owner with
/// that token, if it lives.
pub(super) async fn anchor(
    far: &Far,
    spec: &mut JobSpec,
    reopen: bool,
    instead: Option<Token>,
) -> Result<Anchored> {
    let location = far.location_of(&spec.target.image);
    let within = |error: Error| error.within(location.clone());
    crate::region::refuse_key(spec).map_err(within)?;
    let asked = spec.clone();
    let call = |greeting: &Greeting, reopen| {
        let mut spec = asked.clone();
        if !takes_base(greeting) {
            // The other side would not understand it: everything travels.
            spec.base = None;
        }
        Call::Stage { reopen, instead, spec: Box::new(spec) }
    };
    let spoken = far.net.speak(|greeting| Question::Call(call(greeting, reopen))).await;
    let Spoken { mut desk, answer, again } = spoken.map_err(within)?;
    let staged = match answer.and_then(Answer::into_told) {
        // It may be its own: staged by the first asking, whose answer was lost.
        Err(error) if again && matches!(error.kind(), ErrorKind::Busy | ErrorKind::Exists) => {
            let own = desk.call(call(&desk.greeting, true)).await;
            own.map_err(|_| error)
        }
        staged => staged,
    };
    match staged.map_err(within)? {
        Told::Staged { token, epoch } => {
            if !takes_base(&desk.greeting) {
                spec.base = None;
            }
            desk.greeting.keep();
            Ok(Anchored { desk, token, epoch })
        }
        told => Err(within(astray(&told))),
    }
}

fn takes_base(greeting: &Greeting) -> bool {
    greeting.agreed().is_some_and(|agreed| agreed.features & FEATURE_DELTA != 0)
}
