//! A region of another daemon: images are pulled from it and pushed to it by the chunk protocol.

pub(crate) mod call;
mod net;
pub(crate) mod page;
mod pull;
mod push;
mod source;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::chunk::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, Geometry};
use crate::id::{ImageId, JobId, RegionName};
use crate::job::{Endpoint, JobSpec};
use crate::location::PeerAddress;
use crate::peer::Tls;
use crate::region::{
    BoxFuture, Capabilities, ImageInfo, Located, Recovered, Region, Settled, Source, StagedJob,
    Target, Vote, Wish,
};
use crate::sync::time::{Instant, sleep};
use crate::wire::message::{Decision, Name};

use call::{Call, Told, astray};
use net::{Address, Answer, Net, Question, backoff};
use page::Pages;

pub(crate) use net::CHUNK_BYTES_MAX;
pub use net::PeerOptions;

/// A region that another daemon serves (`blockferry serve`, [`Server`](crate::serve::Server)).
///
/// What is pulled is checked against its digests as it arrives, where the far side has them. What
/// is pushed is staged, checked, put on record and committed by the far side: its journal and its
/// rename decide. A lost connection costs time: this side dials again, asks how the job stands, and
/// sends again what the other side does not hold.
#[derive(Debug)]
pub struct PeerRegion {
    far: Far,
    capabilities: Capabilities,
}

/// A region of another daemon, and how its name here and there are told apart.
#[derive(Clone, Debug)]
pub(crate) struct Far {
    net: Arc<Net>,
    /// What the other daemon calls it.
    name: RegionName,
    /// What it is called here.
    location: String,
}

impl PeerRegion {
    /// Reaches a daemon's region. `tls` is needed for `ferrys://`, and not used for a Unix socket.
    /// A daemon that is just being started is waited for, about a second.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the daemon cannot be reached; `Denied` when either side does
    /// not accept the other's certificate, or the other side's policy does not let this one in;
    /// `Invalid` for `ferrys://` without `tls`.
    ///
    /// # Cancel safety
    /// Safe: a region that nobody takes is dropped.
    pub async fn connect(
        address: &PeerAddress,
        tls: Option<Tls>,
        options: PeerOptions,
    ) -> Result<Self> {
        let (to, name) = match address {
            PeerAddress::Tcp { host, port, region } => {
                (Address::Tcp { host: host.clone(), port: *port }, region)
            }
            PeerAddress::Unix { socket, region } => (Address::Unix(socket.into()), region),
        };
        let far = Far {
            net: Arc::new(Net::new(to, tls, options)),
            name: name.clone(),
            location: address.to_string(),
        };
        match far.describe().await? {
            Told::Capabilities(capabilities) => Ok(Self { far, capabilities }),
            told => Err(far.within(astray(&told))),
        }
    }
}

/// How long a daemon that cannot be reached is tried again at first.
const START_TIME: Duration = Duration::from_secs(1);

/// How an image compares with its manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification {
    /// What the manifest says the image is.
    pub root: Digest,
    /// How it is cut.
    pub geometry: Geometry,
    /// Bytes that were read: all but holes.
    pub read_bytes: u64,
    /// Chunks that are not as the manifest says.
    pub bad_count: u64,
    /// The first of them.
    pub first_bad: Option<ChunkIndex>,
}

impl PeerRegion {
    /// Has the other daemon read an image, and compare every chunk with the image's manifest. No
    /// byte of the image travels; what is read counts for this side's rate there.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an image without manifest; [`ErrorKind::SourceChanged`] when it
    /// was replaced meanwhile; otherwise as reading the image.
    ///
    /// # Cancel safety
    /// Safe: the other side stops within seconds.
    pub async fn verify(&self, image: &ImageId) -> Result<Verification> {
        let mut sum: Option<Verification> = None;
        let (mut next, mut attempt) = (0, 0);
        loop {
            let call = Call::Verify(self.far.name.clone(), image.clone(), next);
            let told = self.far.told(call, |told| match told {
                Told::Verified(verified) => Ok(verified),
                told => Err(told),
            });
            let told = match told.await {
                Err(error)
                    if error.is_retryable() && attempt < self.far.net.options.attempts_max =>
                {
                    attempt += 1;
                    sleep(backoff(attempt)).await;
                    continue;
                }
                told => told?,
            };
            attempt = 0;
            let sum = sum.get_or_insert(Verification {
                root: told.root,
                geometry: told.geometry,
                read_bytes: 0,
                bad_count: 0,
                first_bad: None,
            });
            if (sum.root, sum.geometry) != (told.root, told.geometry) {
                let error = Error::new(ErrorKind::SourceChanged, "verify image: it was replaced");
                return Err(self.far.within(error));
            }
            sum.read_bytes += told.read_bytes;
            sum.bad_count += u64::from(told.bad);
            sum.first_bad = sum.first_bad.or(told.first_bad.map(ChunkIndex::new));
            if told.next >= told.geometry.chunk_count() {
                return Ok(*sum);
            }
            if told.next <= next {
                let error = Error::new(ErrorKind::Corrupt, "verify image: it does not go on");
                return Err(self.far.within(error));
            }
            next = told.next;
        }
    }
}

impl Far {
    async fn describe(&self) -> Result<Told> {
        let (began, mut attempt) = (Instant::now(), 0);
        loop {
            match self.call(Call::Describe(self.name.clone())).await {
                Err(error) if error.is_retryable() && began.elapsed() < START_TIME => {
                    attempt += 1;
                    sleep(net::backoff(attempt)).await;
                }
                told => return told,
            }
        }
    }

    async fn call(&self, call: Call) -> Result<Told> {
        self.net.call(call).await.map_err(|error| self.within(error))
    }

    async fn ask(&self, question: Question) -> Result<Answer> {
        self.net.ask(question).await.map_err(|error| self.within(error))
    }

    fn within(&self, error: Error) -> Error {
        error.within(self.location.clone())
    }

    fn location_of(&self, image: &ImageId) -> String {
        format!("{}/{image}", self.location)
    }

    fn name_of(&self, job: JobId, image: &ImageId) -> Name {
        Name { job, region: self.name.clone(), image: image.clone() }
    }

    /// The job as the other daemon knows it: by its own name of the region.
    fn spec_there(&self, spec: &JobSpec) -> JobSpec {
        let mut there = spec.clone();
        there.target = Endpoint::new(self.name.clone(), spec.target.image.clone());
        there
    }

    /// The job as it is known here.
    fn spec_here(&self, mut spec: JobSpec) -> Result<JobSpec> {
        if spec.target.region == self.name {
            spec.target.region = self.location.parse()?;
        }
        Ok(spec)
    }

    fn job_here(&self, mut job: StagedJob) -> Result<StagedJob> {
        job.spec = self.spec_here(job.spec)?;
        Ok(job)
    }

    async fn jobs(&self) -> Result<Vec<StagedJob>> {
        let (mut all, mut after, mut pages) = (Vec::new(), None, Pages::default());
        loop {
            pages.turn().map_err(|error| self.within(error))?;
            let (jobs, more) = match self.call(Call::Jobs(self.name.clone(), after)).await? {
                Told::Jobs { jobs, more } => (jobs, more),
                told => return Err(self.within(astray(&told))),
            };
            let last = jobs.last().map(|job| job.spec.job);
            for job in jobs {
                all.push(self.job_here(job)?);
            }
            match last.filter(|last| more && Some(*last) > after) {
                Some(last) => after = Some(last),
                None => return Ok(all),
            }
        }
    }

    async fn list(&self) -> Result<Vec<ImageInfo>> {
        let (mut all, mut after): (Vec<ImageInfo>, Option<ImageId>) = (Vec::new(), None);
        let mut pages = Pages::default();
        loop {
            pages.turn().map_err(|error| self.within(error))?;
            let call = Call::List(self.name.clone(), after.clone());
            let (images, more) = match self.call(call).await? {
                Told::Images { images, more } => (images, more),
                told => return Err(self.within(astray(&told))),
            };
            let last = images.last().map(|info| info.image.clone());
            all.extend(images);
            match last.filter(|last| more && after.as_ref().is_none_or(|after| last > after)) {
                Some(last) => after = Some(last),
                None => return Ok(all),
            }
        }
    }

    async fn recover(&self, only: Option<JobId>) -> Result<Vec<Recovered>> {
        let (mut all, mut after): (Vec<Recovered>, Option<JobId>) = (Vec::new(), None);
        let mut pages = Pages::default();
        loop {
            pages.turn().map_err(|error| self.within(error))?;
            let call = Call::Recover { region: self.name.clone(), only, after };
            let (settled, more) = match self.call(call).await? {
                Told::Recovered { settled, more } => (settled, more),
                told => return Err(self.within(astray(&told))),
            };
            let last = settled.last().map(|found| found.job);
            for mut found in settled {
                found.spec = found.spec.map(|spec| self.spec_here(spec)).transpose()?;
                if let Settled::Failed(error) = found.settled {
                    found.settled = Settled::Failed(self.within(error));
                }
                all.push(found);
            }
            match last.filter(|last| more && Some(*last) > after) {
                Some(last) => after = Some(last),
                None => break,
            }
        }
        debug_assert_eq!(all.iter().map(|f| f.job).collect::<BTreeSet<_>>().len(), all.len());
        Ok(all)
    }

    async fn cancel(&self, job: JobId, image: &ImageId) -> Result<Vote> {
        match self.ask(Question::Cancel(self.name_of(job, image))).await? {
            Answer::Decided(Decision::Committed { .. }) => Ok(Vote::Committed),
            Answer::Decided(Decision::Cancelled { first, clean }) => {
                Ok(Vote::Cancelled { first, clean })
            }
            Answer::Decided(Decision::Unknown) => Ok(Vote::Unknown),
            _ => Err(self.within(Error::new(ErrorKind::Invalid, "hear an answer to a cancel"))),
        }
    }

    /// Calls, and expects that answer.
    async fn told<T>(&self, call: Call, take: impl FnOnce(Told) -> Result<T, Told>) -> Result<T> {
        let told = self.call(call).await?;
        take(told).map_err(|told| self.within(astray(&told)))
    }
}

impl Region for PeerRegion {
    fn location(&self) -> String {
        self.far.location.clone()
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn open<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Arc<dyn Source>>> {
        Box::pin(source::open(self.far.clone(), image.clone()))
    }

    fn stage<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        Box::pin(push::stage(self.far.clone(), spec, false))
    }

    fn reopen<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        Box::pin(push::stage(self.far.clone(), spec, true))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>>> {
        Box::pin(self.far.list())
    }

    fn remove<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<()>> {
        let call = Call::Remove(self.far.name.clone(), image.clone());
        Box::pin(self.far.told(call, |told| match told {
            Told::Done => Ok(()),
            told => Err(told),
        }))
    }

    fn locate<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Located>> {
        let call = Call::Locate(self.far.name.clone(), image.clone());
        Box::pin(self.far.told(call, |told| match told {
            Told::Located(located) => Ok(located),
            told => Err(told),
        }))
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<StagedJob>>> {
        Box::pin(self.far.jobs())
    }

    fn job(&self, job: JobId) -> BoxFuture<'_, Result<Option<StagedJob>>> {
        Box::pin(async move {
            let call = Call::Job(self.far.name.clone(), job);
            let jobs = self.far.told(call, |told| match told {
                Told::Jobs { jobs, .. } => Ok(jobs),
                told => Err(told),
            });
            let found = jobs.await?.into_iter().find(|found| found.spec.job == job);
            found.map(|job| self.far.job_here(job)).transpose()
        })
    }

    fn cancel<'a>(&'a self, job: JobId, image: &'a ImageId) -> BoxFuture<'a, Result<Vote>> {
        Box::pin(self.far.cancel(job, image))
    }

    fn wish(&self, job: JobId, wish: Wish) -> BoxFuture<'_, Result<bool>> {
        let call = Call::Wish(self.far.name.clone(), job, wish);
        Box::pin(self.far.told(call, |told| match told {
            Told::Wished(found) => Ok(found),
            told => Err(told),
        }))
    }

    fn recover(&self, only: Option<JobId>) -> BoxFuture<'_, Result<Vec<Recovered>>> {
        Box::pin(self.far.recover(only))
    }
}
