//! One request in, one answer out: who calls, whether it may now, and which dialect answers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::clouds::keys::{AccessKey, Keys};
use crate::clouds::nonce::{NonceFault, Nonces, WhenFull};
use crate::clouds::rate::Rates;
use crate::clouds::reply::{Reply, Trouble};
use crate::clouds::request::Request;
use crate::clouds::sign::{Claim, Scheme, SignFault};
use crate::clouds::{alibaba, baidu, huawei};
use crate::host;
use crate::id::RegionName;
use crate::service::{ImageService, uuid};

/// Which cloud a listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Face {
    /// Alibaba ECS, for all regions.
    Alibaba,
    /// Baidu BCC, one region.
    Baidu(RegionName),
    /// Huawei IMS, one region.
    Huawei(RegionName),
}

impl Face {
    /// The stable name, as in the configuration, in logs and in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Alibaba => "alibaba",
            Self::Baidu(_) => "baidu",
            Self::Huawei(_) => "huawei",
        }
    }
}

/// Bounds of an [`Api`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ApiOptions {
    /// Requests a second of one access key, and as many at once.
    pub requests_per_sec: u32,
    /// Nonces of calls that change something that are remembered; beyond, such calls are throttled.
    pub nonces_max: usize,
}

impl Default for ApiOptions {
    /// 10,000 requests a second; 262,144 nonces, of 16 bytes each.
    fn default() -> Self {
        Self { requests_per_sec: 10_000, nonces_max: 1 << 18 }
    }
}

impl ApiOptions {
    /// With that many requests a second for each access key.
    #[must_use]
    pub fn with_requests_per_sec(mut self, requests: u32) -> Self {
        self.requests_per_sec = requests.max(1);
        self
    }
}

/// Answers requests of all dialects.
#[derive(Debug)]
pub struct Api {
    pub(crate) service: Arc<ImageService>,
    keys: Keys,
    changes: Mutex<Nonces>,
    looks: Mutex<Nonces>,
    rates: Mutex<Rates>,
    tally: Mutex<Tally>,
}

/// Answers given, by dialect, call and error code: all of them words of ours.
pub(crate) type Tally = BTreeMap<(&'static str, &'static str, &'static str), u64>;

/// A caller that was let in.
pub(crate) type Entry = Arc<AccessKey>;

/// Why one was not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Sign(SignFault),
    NoKey(String),
    NonceUsed,
    TooMany,
}

impl Api {
    /// An API over that service, for holders of those keys.
    pub fn new(service: Arc<ImageService>, keys: Keys, options: ApiOptions) -> Self {
        Self {
            service,
            keys,
            changes: Mutex::new(Nonces::new(options.nonces_max, WhenFull::Refuse)),
            looks: Mutex::new(Nonces::new(options.nonces_max / 4, WhenFull::Forget)),
            rates: Mutex::new(Rates::new(options.requests_per_sec)),
            tally: Mutex::default(),
        }
    }

    /// The service behind it.
    pub fn service(&self) -> &Arc<ImageService> {
        &self.service
    }

    /// Answers one request. Never fails: what goes wrong is an answer, too.
    ///
    /// # Cancel safety
    /// Restartable: what it asks may have been done.
    pub async fn answer(&self, face: &Face, request: &Request) -> Reply {
        let id = request_id();
        let reply = match face {
            Face::Alibaba => alibaba::answer(self, request, &id.to_uppercase()).await,
            Face::Baidu(region) => baidu::answer(self, region, request, &id).await,
            Face::Huawei(region) => huawei::answer(self, region, request, &id).await,
        };
        self.count(face, &reply);
        reply
    }

    /// Answers a request that was never looked at.
    pub fn turn_away(&self, face: &Face, trouble: Trouble) -> Reply {
        let id = request_id();
        let reply = match face {
            Face::Alibaba => alibaba::trouble(trouble, &id.to_uppercase()),
            Face::Baidu(_) => baidu::trouble(trouble, &id),
            Face::Huawei(_) => huawei::trouble(trouble, &id),
        };
        self.count(face, &reply);
        reply
    }

    /// Lets a signed request in: known key, right signature, in time, for the first time, not too
    /// often. `changes`: it asks for more than a look.
    pub(crate) fn admit(
        &self,
        scheme: Scheme,
        request: &Request,
        changes: bool,
    ) -> Result<Entry, Refused> {
        let claim = Claim::read(scheme, request).map_err(Refused::Sign)?;
        let key = self.keys.find(&claim.access_key);
        let key = key.ok_or_else(|| Refused::NoKey(claim.access_key.clone()))?;
        let now_sec = i64::try_from(host::unix_ms() / 1000).unwrap_or(i64::MAX);
        claim.check(key.secret.as_str(), now_sec).map_err(Refused::Sign)?;
        // Order: verified first, so that strangers fill neither memory nor another's allowance.
        if !lock(&self.rates).admit(&claim.access_key, Instant::now()) {
            return Err(Refused::TooMany);
        }
        if let Some(nonce) = &claim.nonce {
            let nonces = if changes { &self.changes } else { &self.looks };
            let told = lock(nonces).admit(&claim.access_key, nonce, claim.end_sec(), now_sec);
            told.map_err(|fault| match fault {
                NonceFault::Used => Refused::NonceUsed,
                NonceFault::Full => Refused::TooMany,
            })?;
        }
        Ok(key)
    }

    pub(crate) fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    fn count(&self, face: &Face, reply: &Reply) {
        *lock(&self.tally).entry((face.name(), reply.call, reply.code)).or_default() += 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number for a request, for whoever asks about it later. Nothing rests on it.
fn request_id() -> String {
    uuid(host::random().unwrap_or_default())
}
