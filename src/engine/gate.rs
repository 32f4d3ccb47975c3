//! A ceiling on the way of many jobs, which they pass one after the other, in the order of coming.

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::options::Limits;
use crate::sync::time::{Instant, sleep_until};
use crate::throttle::{Take, Throttle, ThrottlePath};

/// A throttle with a queue before it; a cheap handle, all clones of which are one gate.
///
/// A throttle alone gives to whoever asks first, and that is the one who has just been served: the
/// others are still asleep. In a queue, those who wait share evenly.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    throttle: Throttle,
    path: ThrottlePath,
    turn: Arc<Mutex<()>>,
}

impl Gate {
    pub(crate) fn new(limits: Limits) -> Self {
        let throttle = Throttle::new(limits);
        let path = ThrottlePath::new([throttle.clone()]);
        Self { throttle, path, turn: Arc::default() }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.throttle.limits()
    }

    /// Changes the ceilings for everybody who passes from now on; those who wait see it within 100
    /// ms.
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.throttle.set_limits(limits, Instant::now().into_std());
    }

    /// Waits for its turn, and until the ceilings let that much pass; `false`: halted first.
    async fn pass(&self, bytes: u64, ops: u64, halt: &CancellationToken) -> bool {
        let _turn = tokio::select! {
            biased;
            () = halt.cancelled() => return false,
            turn = self.turn.lock() => turn,
        };
        while !halt.is_cancelled() {
            match self.path.take(Instant::now().into_std(), bytes, ops) {
                Take::Granted => return true,
                Take::At(when) => tokio::select! {
                    biased;
                    () = halt.cancelled() => {}
                    () = sleep_until(when.into()) => {}
                },
            }
        }
        false
    }
}

/// The gates on the way of one job: its own first, those that it shares with more and more others
/// behind. So nobody stands in a shared queue whose own ceiling holds it back.
#[derive(Debug)]
pub(crate) struct Gates {
    gates: Vec<Gate>,
    all: ThrottlePath,
}

impl Gates {
    /// A gate that is named twice (both ends in one region) is passed once.
    pub(crate) fn new(gates: impl IntoIterator<Item = Gate>) -> Self {
        let mut distinct: Vec<Gate> = Vec::new();
        for gate in gates {
            if !distinct.iter().any(|known| Arc::ptr_eq(&known.turn, &gate.turn)) {
                distinct.push(gate);
            }
        }
        let all = ThrottlePath::new(distinct.iter().map(|gate| gate.throttle.clone()));
        Self { gates: distinct, all }
    }

    /// How many of the `wanted` bytes to take in one go so that traffic is smooth.
    pub(crate) fn grant_bytes(&self, wanted: u64) -> u64 {
        self.all.grant_bytes(wanted)
    }

    /// Returns bytes that were let pass and were not used.
    pub(crate) fn give_back(&self, bytes: u64) {
        self.all.give_back(bytes);
    }

    /// Waits until every gate has let that much pass; `false`: halted first.
    pub(crate) async fn pass(&self, bytes: u64, ops: u64, halt: &CancellationToken) -> bool {
        for (passed, gate) in self.gates.iter().enumerate() {
            if !gate.pass(bytes, ops, halt).await {
                self.gates[..passed].iter().for_each(|gate| gate.path.give_back(bytes));
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Takes a grant again and again, for one second; how many it was given.
    async fn taken(gates: Gates, halt: CancellationToken) -> u32 {
        let mut count = 0;
        while gates.pass(64 << 10, 1, &halt).await {
            count += 1;
        }
        count
    }

    async fn shares(own: &[Limits], shared: Limits, time: Duration) -> Vec<u32> {
        let (halt, shared) = (CancellationToken::new(), Gate::new(shared));
        // A bucket that is full would go to whoever is spawned first.
        assert!(shared.pass(8 << 20, 1, &halt).await);
        let of = |limits: &Limits| Gates::new([Gate::new(*limits), shared.clone()]);
        let takers: Vec<_> =
            own.iter().map(|limits| tokio::spawn(taken(of(limits), halt.clone()))).collect();
        tokio::time::sleep(time).await;
        halt.cancel();
        let mut shares = Vec::new();
        for taker in takers {
            shares.push(taker.await.unwrap());
        }
        shares
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_at_one_gate_share_evenly() {
        let rate = Limits::NONE.with_bytes_per_sec(64 << 20);
        let shares = shares(&[Limits::NONE; 32], rate, Duration::from_secs(1)).await;
        let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        assert!(most - least <= 1, "{shares:?}");
        let all: u32 = shares.iter().sum();
        // A second's worth, and the tenth that the bucket held, less what was taken first.
        let expected = (1024 + 102 - 128)..=(1024 + 102 - 128 + 2);
        assert!(expected.contains(&all), "{all} of 64 KiB in a second of 64 MiB/s");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_held_back_by_its_own_ceiling_holds_nobody_up() {
        let slow = Limits::NONE.with_bytes_per_sec(1);
        let rate = Limits::NONE.with_bytes_per_sec(64 << 20);
        let shares = shares(&[slow, Limits::NONE], rate, Duration::from_secs(1)).await;
        assert_eq!(shares[0], 1, "a first grant on debt");
        assert!(shares[1] >= 1024 + 102 - 128 - 1, "{shares:?}");
    }
}

#[cfg(all(test, races))]
mod races {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::time::Duration;

    use super::*;
    use crate::sync::races::check;

    const RATE: u64 = 1 << 20;
    const GRANT: u64 = 64 << 10;

    #[test]
    fn everybody_passes_or_is_halted_and_the_ceiling_holds() {
        check(20, || {
            let shared = Gate::new(Limits::NONE.with_bytes_per_sec(RATE));
            let own = Gate::new(Limits::NONE.with_bytes_per_sec(2 * RATE));
            let (began, granted) = (Instant::now(), Arc::new(AtomicU64::new(0)));
            let halt = CancellationToken::new();
            let pass = |gates: [Gate; 2], halt: CancellationToken| {
                let (gates, granted) = (Gates::new(gates), granted.clone());
                shuttle::future::spawn(async move {
                    for _ in 0..3 {
                        if !gates.pass(GRANT, 1, &halt).await {
                            return false;
                        }
                        let all = granted.fetch_add(GRANT, Relaxed) + GRANT;
                        let most = (began.elapsed() + Duration::from_millis(100)).as_nanos()
                            * u128::from(RATE)
                            / 1_000_000_000;
                        assert!(u128::from(all) <= most + u128::from(GRANT), "{all} of {most}");
                    }
                    true
                })
            };
            let never = CancellationToken::new();
            let one = pass([own.clone(), shared.clone()], never.clone());
            let two = pass([shared.clone(), shared.clone()], never);
            let halted = pass([own, shared.clone()], halt.clone());
            shuttle::future::block_on(async move {
                halt.cancel();
                assert!(one.await.unwrap() && two.await.unwrap(), "halted by nobody");
                halted.await.unwrap();
                assert!(shared.turn.try_lock().is_ok(), "the queue is left behind");
            });
        });
    }
}
