//! An object store in memory that does exactly what a test asks of it: answers lost, late or false.
//!
//! A [`Model`] is the server. Each [`ModelStore`] is one client of it with a count of its requests
//! and a [`Hook`] that is asked before each of them.

mod client;
mod state;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use state::{Request, State};

pub use client::ModelStore;

/// How the model lies about conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lie {
    /// It does not.
    #[default]
    None,
    /// Every conditional write is carried out.
    Ignores,
    /// What must be refused is answered as a failure of another kind, and not carried out.
    WrongStatus,
    /// Conditions are looked at first, and acted on a moment later.
    Racy,
    /// `Absent` is honoured, `Match` is ignored.
    CreateOnly,
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// It is carried out, and answered.
    #[default]
    Answered,
    /// It never arrives; no answer.
    LostBefore,
    /// It is carried out; the answer is lost.
    LostAfter,
    /// No answer; it is carried out when [`Model::land`] says so.
    Late,
    /// It is not carried out, and the answer says so: worth another try.
    Fails,
    /// It is not carried out, and the answer says that it never will be.
    Denied,
    /// It is not carried out and never answered.
    Hangs,
}

/// One request, before it is carried out.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Call<'a> {
    /// Which request of this client, counted from 0.
    pub number: u64,
    /// What is asked: the name of the method of [`Store`](super::Store).
    pub verb: &'static str,
    /// The key or prefix, below the client's; of a `delete` the first.
    pub key: &'a str,
}

/// Decides what happens to a request.
pub type Hook = dyn Fn(Call<'_>) -> Fate + Send + Sync;

/// An object store in memory.
///
/// Two objects with the same bytes have the same version, as at stores whose ETag is a digest.
#[derive(Clone, Default)]
pub struct Model {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("keys", &self.keys()).finish_non_exhaustive()
    }
}

impl Model {
    /// An empty store that keeps its word.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes it lie from now on.
    pub fn lie(&self, lie: Lie) {
        self.lock().lie = lie;
    }

    /// Lets parts of that length be any but the last one: 5 MiB unless said otherwise.
    pub fn set_part_bytes_min(&self, bytes: u64) {
        self.lock().part_bytes_min = bytes;
    }

    /// A client of it, below that prefix (empty, or without a slash at either end).
    pub fn client(&self, prefix: &str) -> ModelStore {
        ModelStore::new(self.clone(), prefix)
    }

    /// Every key, whole, in order.
    pub fn keys(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    /// The bytes of an object, by its whole key.
    pub fn bytes(&self, key: &str) -> Option<bytes::Bytes> {
        self.lock().objects.get(key).map(|object| object.bytes.clone())
    }

    /// Puts an object there, as a stranger would.
    pub fn insert(&self, key: &str, bytes: impl Into<bytes::Bytes>) {
        self.lock().write(key, bytes.into());
    }

    /// Takes an object away, as a stranger would.
    pub fn remove(&self, key: &str) {
        self.lock().objects.remove(key);
    }

    /// The whole keys of unfinished uploads.
    pub fn uploads(&self) -> Vec<String> {
        self.lock().uploads.values().map(|upload| upload.key.clone()).collect()
    }

    /// Requests without an answer that have not arrived yet, by verb and whole key.
    pub fn late(&self) -> Vec<(&'static str, String)> {
        self.lock().late.iter().map(|late| (late.verb(), late.key())).collect()
    }

    /// Lets the late request of that place in [`Model::late`] arrive; `false` when there is none.
    pub fn land(&self, place: usize) -> bool {
        let mut state = self.lock();
        if place >= state.late.len() {
            return false;
        }
        let request = state.late.remove(place);
        // Nobody waits for the answer any more.
        drop(state.carry_out(&request));
        true
    }

    /// Lets every late request arrive, oldest first.
    pub fn land_all(&self) {
        while self.land(0) {}
    }

    /// From now on listings show what is there at this moment, whatever is written later.
    pub fn freeze_listings(&self) {
        self.lock().freeze();
    }

    /// Listings tell the truth again.
    pub fn thaw_listings(&self) {
        self.lock().frozen = None;
    }

    /// Moves the store's clock on.
    pub fn advance_ms(&self, ms: u64) {
        self.lock().now_ms += ms;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_racy(&self) -> bool {
        self.lock().lie == Lie::Racy
    }

    fn delay(&self, request: Request) {
        self.lock().late.push(request);
    }
}
