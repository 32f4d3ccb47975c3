//! The protocol of heads, explored to its last state: two daemons, one image, requests that are
//! late, lost, or land when nobody waits for them any more.
//!
//! What the daemons decide, they decide by the very tables that the region uses.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use blockferry::id::JobId;
use blockferry::region::Outcome;
use blockferry::region::object::rules::{
    Cancel, Decide, Landed, Life, Owner, Phase, Settle, Sight, Start, Txn, Wanted, cancel, decide,
    landed, settle, start, wanted,
};

const DAEMONS: usize = 2;
const CHUNKS: usize = 1;
const EPOCHS: usize = 4;
const JOB: JobId = JobId::from_bytes([1; 16]);

/// How heads are kept.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Mode {
    /// One object, swapped if it is what it was.
    Swap,
    /// One object a head, each made only if it is not there.
    Numbered,
}

/// The protocol, or what it would be without one of its guards.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Variant {
    Good,
    BlindSwap,
    BlindClaim,
    EarlyAck,
    SharedKeys,
    NoReadBack,
    SweepBlindly,
    CollectHeads,
}

/// A head, and what else it says: where the chunks of a committed image are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Head {
    sight: Sight,
    refs: [u8; CHUNKS],
    /// Counts claims of the image.
    life: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Swap {
    from: Option<Head>,
    to: Head,
    then: Then,
    /// The answer was lost, and it is to be looked what came of it.
    unclear: bool,
}

/// What a swap is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Then {
    Own,
    Run,
    Commit,
    /// It is cancelled; who cancelled may believe that the owner lives, and leave the rest to it.
    Cancel,
    Clean,
}

/// A request that somebody has given up, and that may land at any time, or never.
#[expect(clippy::large_enum_variant, reason = "a copy of it is what makes a state")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Late {
    Swap { from: Option<Head>, to: Head },
    Put { epoch: u8, chunk: u8 },
    Delete { epoch: u8, chunk: u8 },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Doing {
    Nothing,
    /// It owns the claim and has not begun.
    Owning,
    /// It copies; a put may be under way.
    Running {
        put: Option<u8>,
    },
    /// It removes what attempts up to that head's have written.
    Cleaning,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Daemon {
    doing: Doing,
    /// The head that it last wrote or read.
    held: Option<Head>,
    swap: Option<Swap>,
    /// Which attempt has written each chunk; 0: none that it knows of.
    book: [u8; CHUNKS],
    lives: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    /// By number, from 1; a store that swaps has only the last.
    heads: Vec<Option<Head>>,
    /// Who wrote it, by epoch and chunk: the attempt, or 0.
    data: [[u8; CHUNKS]; EPOCHS],
    daemons: [Daemon; DAEMONS],
    late: Vec<Late>,
    crashes: u8,
    commits: u8,
    acked_commit: bool,
    /// The lives whose cancel was told as decided.
    acked_cancel: Vec<u8>,
}

struct Bounds {
    mode: Mode,
    variant: Variant,
    epochs: u8,
    crashes: u8,
    late: usize,
}

impl State {
    fn new() -> Self {
        let daemon =
            Daemon { doing: Doing::Nothing, held: None, swap: None, book: [0; CHUNKS], lives: 0 };
        Self {
            heads: Vec::new(),
            data: [[0; CHUNKS]; EPOCHS],
            daemons: [daemon.clone(), daemon],
            late: Vec::new(),
            crashes: 0,
            commits: 0,
            acked_commit: false,
            acked_cancel: Vec::new(),
        }
    }

    fn read(&self) -> Option<Head> {
        self.heads.last().copied().flatten()
    }

    fn sight(&self) -> Option<Sight> {
        self.read().map(|head| head.sight)
    }
}

impl Bounds {
    /// The store carries out a swap, if it may.
    fn carry_out(&self, state: &mut State, from: Option<Head>, to: Head) -> bool {
        let blind = self.variant == Variant::BlindSwap
            || self.variant == Variant::BlindClaim && to.sight.phase == Phase::Active;
        let slot = usize::try_from(to.sight.seq).unwrap();
        let may = match self.mode {
            Mode::Swap => state.sight().map(|now| now.txn) == from.map(|from| from.sight.txn),
            Mode::Numbered => state.heads.get(slot).copied().flatten().is_none(),
        };
        if !may && !blind {
            return false;
        }
        if self.mode == Mode::Swap {
            state.heads = vec![Some(to)];
        } else {
            state.heads.resize(state.heads.len().max(slot + 1), None);
            state.heads[slot] = Some(to);
        }
        state.commits += u8::from(to.sight.phase == Phase::Committed);
        true
    }

    fn key(&self, epoch: u8) -> usize {
        if self.variant == Variant::SharedKeys { 1 } else { usize::from(epoch) }
    }

    fn put(&self, state: &mut State, epoch: u8, chunk: u8) {
        state.data[self.key(epoch)][usize::from(chunk)] = epoch;
    }

    fn delete(&self, state: &mut State, epoch: u8, chunk: u8) {
        state.data[self.key(epoch)][usize::from(chunk)] = 0;
    }

    fn next(&self, state: &State, out: &mut Vec<(String, State)>) {
        self.land_late(state, out);
        self.sweep(state, out);
        for i in 0..DAEMONS {
            let daemon = &state.daemons[i];
            let mut push = |name: String, next: State| out.push((format!("D{i} {name}"), next));
            if daemon.doing != Doing::Nothing || daemon.swap.is_some() {
                self.crash(state, i, &mut push);
            }
            if let Some(swap) = daemon.swap {
                self.swap(state, i, swap, &mut push);
                continue;
            }
            match daemon.doing {
                Doing::Nothing => self.look(state, i, &mut push),
                Doing::Owning => self.begin(state, i, &mut push),
                Doing::Running { put } => self.run(state, i, put, &mut push),
                Doing::Cleaning => self.clean(state, i, &mut push),
            }
        }
    }

    fn land_late(&self, state: &State, out: &mut Vec<(String, State)>) {
        for n in 0..state.late.len() {
            let mut lands = state.clone();
            let late = lands.late.remove(n);
            out.push((format!("{late:?} is lost"), lands.clone()));
            match late {
                Late::Swap { from, to } => {
                    self.carry_out(&mut lands, from, to);
                }
                Late::Put { epoch, chunk } => self.put(&mut lands, epoch, chunk),
                Late::Delete { epoch, chunk } => self.delete(&mut lands, epoch, chunk),
            }
            out.push((format!("{late:?} lands"), lands));
        }
    }

    /// Somebody sweeps: lists, then reads the head, then deletes; each delete may be late.
    fn sweep(&self, state: &State, out: &mut Vec<(String, State)>) {
        let found = state.read();
        let mut swept = state.clone();
        let mut stale = Vec::new();
        for epoch in 1..u8::try_from(EPOCHS).unwrap() {
            for chunk in 0..u8::try_from(CHUNKS).unwrap() {
                if state.data[self.key(epoch)][usize::from(chunk)] == 0 {
                    continue;
                }
                let named = found.is_some_and(|head| head.refs[usize::from(chunk)] == epoch);
                let kept = match wanted(found.map(|head| head.sight).as_ref(), JOB, epoch.into()) {
                    Wanted::All => true,
                    Wanted::Named => named,
                    Wanted::Nothing => false,
                };
                let active = found.is_some_and(|head| head.sight.phase == Phase::Active);
                let kept = kept && (self.variant != Variant::SweepBlindly || active);
                if !kept && self.variant != Variant::SharedKeys {
                    self.delete(&mut swept, epoch, chunk);
                    stale.push(Late::Delete { epoch, chunk });
                }
            }
        }
        if self.variant == Variant::CollectHeads && swept.heads.len() > 2 {
            let last = swept.heads.len() - 1;
            swept.heads[..last].fill(None);
        }
        if swept != *state {
            out.push(("sweep".into(), swept));
        }
        if let Some(late) = stale.first().filter(|_| state.late.len() < self.late) {
            let mut delayed = state.clone();
            self.give_up(&mut delayed, *late);
            out.push(("sweep, late".into(), delayed));
        }
    }

    fn give_up(&self, state: &mut State, late: Late) {
        if state.late.len() < self.late && !state.late.contains(&late) {
            state.late.push(late);
            state.late.sort_by_key(fingerprint);
        }
    }

    fn crash(&self, state: &State, i: usize, push: &mut impl FnMut(String, State)) {
        if state.crashes >= self.crashes {
            return;
        }
        let mut next = state.clone();
        next.crashes += 1;
        let daemon = &state.daemons[i];
        if let Some(Swap { from, to, unclear: false, .. }) = daemon.swap {
            self.give_up(&mut next, Late::Swap { from, to });
        }
        if let (Doing::Running { put: Some(chunk) }, Some(held)) = (daemon.doing, daemon.held) {
            let epoch = u8::try_from(held.sight.epoch).unwrap();
            self.give_up(&mut next, Late::Put { epoch, chunk });
        }
        let lives = daemon.lives + 1;
        next.daemons[i] = Daemon { lives, ..State::new().daemons[0].clone() };
        push("crashes".into(), next);
    }

    /// A swap under way: carried out, its answer lost, or itself late; then looked after.
    fn swap(&self, state: &State, i: usize, swap: Swap, push: &mut impl FnMut(String, State)) {
        let what = format!("{:?} {:?}", swap.then, swap.to.sight.phase);
        if !swap.unclear {
            let mut next = state.clone();
            let done = self.carry_out(&mut next, swap.from, swap.to);
            let mut lost = next.clone();
            self.settle(&mut next, i, swap, done);
            push(format!("{what}: {done}"), next);
            lost.daemons[i].swap = Some(Swap { unclear: true, ..swap });
            push(format!("{what}: answer lost"), lost);
            if state.late.len() < self.late {
                let mut travels = state.clone();
                self.give_up(&mut travels, Late::Swap { from: swap.from, to: swap.to });
                travels.daemons[i].swap = Some(Swap { unclear: true, ..swap });
                push(format!("{what}: given up, under way"), travels);
            }
            return;
        }
        let mut next = state.clone();
        if self.variant == Variant::NoReadBack {
            self.settle(&mut next, i, swap, false);
            return push(format!("{what}: taken for failed"), next);
        }
        let from = swap.from.map(|from| from.sight);
        match landed(from.as_ref(), state.sight().as_ref(), swap.to.sight.txn) {
            Landed::Mine => self.settle(&mut next, i, swap, true),
            Landed::Passed | Landed::Others => self.settle(&mut next, i, swap, false),
            Landed::Unchanged => next.daemons[i].swap = Some(Swap { unclear: false, ..swap }),
        }
        push(format!("{what}: looked after"), next);
    }

    /// What a daemon does when it knows how its swap went.
    fn settle(&self, state: &mut State, i: usize, swap: Swap, done: bool) {
        state.daemons[i].swap = None;
        if !done {
            return self.lost(state, i, swap);
        }
        state.daemons[i].held = Some(swap.to);
        match swap.then {
            Then::Own => state.daemons[i].doing = Doing::Owning,
            Then::Run => {
                state.daemons[i].doing = Doing::Running { put: None };
                state.daemons[i].book = self.restored(state, swap.to.sight);
            }
            Then::Commit => {
                state.acked_commit = true;
                state.daemons[i].doing = Doing::Nothing;
            }
            Then::Cancel => {
                state.acked_cancel.push(swap.to.life);
                state.daemons[i].doing = Doing::Cleaning;
            }
            Then::Clean => state.daemons[i].doing = Doing::Nothing,
        }
    }

    /// Its swap failed: the head says what came instead.
    fn lost(&self, state: &mut State, i: usize, swap: Swap) {
        let now = state.sight();
        state.daemons[i].doing = Doing::Nothing;
        let told = match swap.then {
            Then::Commit | Then::Cancel => decide(now.as_ref(), JOB, swap.to.sight.owner),
            Then::Own | Then::Run | Then::Clean => return,
        };
        match told {
            Decide::Decided(Outcome::Committed) => state.acked_commit = true,
            Decide::Decided(Outcome::Cancelled) => {
                if let Some(head) = state.read().filter(|head| head.life == swap.to.life) {
                    state.acked_cancel.push(head.life);
                }
            }
            Decide::Swap if self.variant == Variant::NoReadBack => {
                // It believes that nothing was decided, and undoes what it did.
                state.daemons[i].doing = Doing::Cleaning;
            }
            Decide::Swap | Decide::Fenced => {}
        }
        if self.variant == Variant::NoReadBack && swap.then == Then::Commit {
            state.daemons[i].doing = Doing::Cleaning;
            state.acked_commit = false;
        }
    }

    /// What a resume finds: of each chunk what the latest attempt has written.
    fn restored(&self, state: &State, sight: Sight) -> [u8; CHUNKS] {
        let mut book = [0; CHUNKS];
        for epoch in 1..u8::try_from(EPOCHS).unwrap() {
            if sight.holds_epoch(epoch.into()) {
                for (chunk, found) in book.iter_mut().enumerate() {
                    if state.data[self.key(epoch)][chunk] != 0 {
                        *found = epoch;
                    }
                }
            }
        }
        book
    }

    fn send(&self, state: &mut State, i: usize, to: Head, from: Option<Head>, then: Then) {
        if self.variant == Variant::EarlyAck && then == Then::Cancel {
            state.acked_cancel.push(to.life);
        }
        state.daemons[i].swap = Some(Swap { from, to, then, unclear: false });
    }

    /// A daemon with nothing to do reads the head, and starts, cancels or recovers.
    fn look(&self, state: &State, i: usize, push: &mut impl FnMut(String, State)) {
        let found = state.read();
        let sight = found.map(|head| head.sight);
        // Whether the owner lives is anybody's guess, at any time.
        for life in [Life::Alive, Life::Dead] {
            let mut next = state.clone();
            match start(sight.as_ref(), JOB, life) {
                Start::Claim => {
                    let claimed = Sight::claimed(
                        sight.as_ref(),
                        JOB,
                        self.owner(state, i),
                        self.txn(state, i, sight, 1),
                    );
                    let life = found.map_or(0, |head| head.life + 1);
                    if life < 2 {
                        let head = Head { sight: claimed, refs: [0; CHUNKS], life };
                        self.send(&mut next, i, head, found, Then::Own);
                        push("claims".into(), next);
                    }
                }
                Start::TakeOver => {
                    // Nobody takes over for ever.
                    let Some(head) = found.filter(|head| head.sight.seq < 3) else { continue };
                    let txn = self.txn(state, i, sight, 2);
                    let sight = head.sight.taken_over(self.owner(state, i), txn);
                    self.send(&mut next, i, Head { sight, ..head }, found, Then::Own);
                    push("takes over".into(), next);
                }
                _ => {}
            }
            let mut next = state.clone();
            if settle(sight.as_ref(), JOB, life) == Settle::Clean {
                (next.daemons[i].doing, next.daemons[i].held) = (Doing::Cleaning, found);
                push("recovers".into(), next);
            }
        }
        if cancel(sight.as_ref(), JOB) == Cancel::Decide {
            self.send_cancel(state, i, found, push);
        }
    }

    fn send_cancel(
        &self,
        state: &State,
        i: usize,
        found: Option<Head>,
        push: &mut impl FnMut(String, State),
    ) {
        let Some(head) = found else { return };
        let mut next = state.clone();
        let txn = self.txn(state, i, Some(head.sight), 3);
        let to = Head { sight: head.sight.moved(Phase::Aborting, txn), ..head };
        self.send(&mut next, i, to, found, Then::Cancel);
        push("cancels".into(), next);
    }

    fn begin(&self, state: &State, i: usize, push: &mut impl FnMut(String, State)) {
        let Some(head) = state.daemons[i].held else { return };
        if head.sight.epoch >= self.epochs.into() {
            return;
        }
        let mut next = state.clone();
        let txn = self.txn(state, i, Some(head.sight), 4);
        let to = Head { sight: head.sight.begun(txn), ..head };
        self.send(&mut next, i, to, Some(head), Then::Run);
        push("begins".into(), next);
    }

    fn run(&self, state: &State, i: usize, put: Option<u8>, push: &mut impl FnMut(String, State)) {
        let Some(head) = state.daemons[i].held else { return };
        let epoch = u8::try_from(head.sight.epoch).unwrap();
        if let Some(chunk) = put {
            let mut next = state.clone();
            self.put(&mut next, epoch, chunk);
            next.daemons[i].book[usize::from(chunk)] = epoch;
            next.daemons[i].doing = Doing::Running { put: None };
            push(format!("has put {chunk}"), next);
            if state.late.len() < self.late {
                let mut next = state.clone();
                self.give_up(&mut next, Late::Put { epoch, chunk });
                next.daemons[i].doing = Doing::Running { put: None };
                push(format!("gives up putting {chunk}"), next);
            }
            return;
        }
        let missing = (0..CHUNKS).find(|chunk| state.daemons[i].book[*chunk] == 0);
        if let Some(chunk) = missing {
            let mut next = state.clone();
            let chunk = u8::try_from(chunk).unwrap();
            next.daemons[i].doing = Doing::Running { put: Some(chunk) };
            push(format!("puts {chunk}"), next);
        } else {
            let mut next = state.clone();
            let txn = self.txn(state, i, Some(head.sight), 5);
            let sight = head.sight.moved(Phase::Committed, txn);
            let to = Head { sight, refs: state.daemons[i].book, ..head };
            self.send(&mut next, i, to, Some(head), Then::Commit);
            push("commits".into(), next);
        }
        self.send_cancel(state, i, Some(head), push);
        // It looks at its head now and then, and finds that it was cancelled.
        let found = state.read().filter(|found| found.sight.phase == Phase::Aborting);
        if let Some(found) = found.filter(|found| found.life == head.life) {
            let mut next = state.clone();
            (next.daemons[i].doing, next.daemons[i].held) = (Doing::Cleaning, Some(found));
            push("hears of the cancel".into(), next);
        }
    }

    /// Deletes everything that the cancelled job's attempts have written, all of them or, late, all
    /// but one; when nothing is listed any more, writes the tombstone.
    fn clean(&self, state: &State, i: usize, push: &mut impl FnMut(String, State)) {
        let Some(head) = state.daemons[i].held else { return };
        let mut left = Vec::new();
        for epoch in 1..u8::try_from(EPOCHS).unwrap() {
            let bounded = head.sight.holds_epoch(epoch.into());
            if bounded {
                let there = |chunk: &u8| state.data[self.key(epoch)][usize::from(*chunk)] != 0;
                let chunks = (0..u8::try_from(CHUNKS).unwrap()).filter(there);
                left.extend(chunks.map(|chunk| (epoch, chunk)));
            }
        }
        let Some((epoch, chunk)) = left.first().copied() else {
            let mut next = state.clone();
            if head.sight.phase != Phase::Aborting {
                next.daemons[i].doing = Doing::Nothing;
                return push("has cleaned".into(), next);
            }
            let txn = self.txn(state, i, Some(head.sight), 6);
            let to = Head { sight: head.sight.moved(Phase::Aborted, txn), ..head };
            self.send(&mut next, i, to, Some(head), Then::Clean);
            return push("has cleaned".into(), next);
        };
        let mut next = state.clone();
        left.iter().for_each(|(epoch, chunk)| self.delete(&mut next, *epoch, *chunk));
        push("cleans".into(), next.clone());
        if next.late.len() < self.late {
            // The same delete was sent twice, and one of them is under way still.
            self.give_up(&mut next, Late::Delete { epoch, chunk });
            push("cleans, one delete twice".into(), next);
        }
    }

    fn owner(&self, state: &State, i: usize) -> Owner {
        let daemon = u8::try_from(i).unwrap() + 1;
        let seq = state.sight().map_or(0, |sight| sight.seq.to_le_bytes()[0]);
        let mut claim = [0; 16];
        claim[..3].copy_from_slice(&[daemon, state.daemons[i].lives, seq]);
        Owner { process: [daemon; 16], claim }
    }

    /// As good as random: no daemon writes the same one twice, but when it sends a swap again.
    fn txn(&self, state: &State, i: usize, from: Option<Sight>, what: u8) -> Txn {
        let seq = from.map_or(0, |sight| sight.seq.to_le_bytes()[0]);
        let mut txn = [0; 16];
        let daemon = u8::try_from(i).unwrap() + 1;
        txn[..4].copy_from_slice(&[daemon, state.daemons[i].lives, seq, what]);
        txn
    }

    fn violation(&self, state: &State) -> Option<&'static str> {
        let found = state.read();
        let committed = found.filter(|head| head.sight.phase == Phase::Committed);
        if let Some(head) = committed {
            let whole = (0..CHUNKS).all(|chunk| {
                let epoch = head.refs[chunk];
                state.data[self.key(epoch)][chunk] == epoch
            });
            if !whole {
                return Some("a committed image misses a chunk, or has another's");
            }
            if state.acked_cancel.contains(&head.life) {
                return Some("a cancel was acknowledged, and the image is committed");
            }
        }
        if state.commits > 1 {
            return Some("two commits were decided");
        }
        if state.acked_commit && committed.is_none() {
            return Some("a commit was acknowledged, and the image is not there");
        }
        None
    }

    /// Every state that can be reached, or the shortest way to a violation.
    fn explore(&self, states_max: usize) -> Found {
        let (mut seen, mut queue) = (HashSet::new(), VecDeque::new());
        let mut parents: Vec<(usize, String)> = vec![(0, "start".into())];
        queue.push_back((State::new(), 0));
        seen.insert(fingerprint(&State::new()));
        let (mut committed, mut tombs, mut orphans, mut next) = (0_u64, 0_u64, 0_u64, Vec::new());
        while let Some((mut state, id)) = queue.pop_front() {
            state.acked_cancel.sort_unstable();
            state.acked_cancel.dedup();
            if let Some(what) = self.violation(&state) {
                let mut trace = Vec::new();
                let mut at = id;
                while at != 0 {
                    trace.push(parents[at].1.clone());
                    at = parents[at].0;
                }
                trace.reverse();
                return Found::Violation(what, trace);
            }
            match state.sight().map(|sight| sight.phase) {
                Some(Phase::Committed) => committed += 1,
                Some(Phase::Aborted) => {
                    tombs += 1;
                    orphans += u64::from(state.data != [[0; CHUNKS]; EPOCHS]);
                }
                _ => {}
            }
            self.next(&state, &mut next);
            for (name, mut state) in next.drain(..) {
                state.acked_cancel.sort_unstable();
                state.acked_cancel.dedup();
                if seen.insert(fingerprint(&state)) {
                    parents.push((id, name));
                    queue.push_back((state, parents.len() - 1));
                }
            }
            assert!(seen.len() <= states_max, "more than {states_max} states: {self:?}");
        }
        Found::Nothing { states: seen.len(), committed, tombs, orphans }
    }
}

impl std::fmt::Debug for Bounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { mode, variant, epochs, crashes, late } = self;
        write!(f, "{mode:?} {variant:?}, {epochs} epochs, {crashes} crashes, {late} late")
    }
}

#[derive(Debug)]
enum Found {
    Nothing { states: usize, committed: u64, tombs: u64, orphans: u64 },
    Violation(&'static str, Vec<String>),
}

/// 128 bits of a state: two that differ are taken for one in no run anybody will live to see.
fn fingerprint(state: &impl Hash) -> (u64, u64) {
    let mut one = DefaultHasher::new();
    state.hash(&mut one);
    let mut two = DefaultHasher::new();
    (0x9e37_79b9_7f4a_7c15_u64, state).hash(&mut two);
    (one.finish(), two.finish())
}

fn check(mode: Mode, epochs: u8, crashes: u8, late: usize, states_max: usize) {
    let bounds = Bounds { mode, variant: Variant::Good, epochs, crashes, late };
    let found = bounds.explore(states_max);
    if let Found::Nothing { states, orphans, .. } = &found {
        eprintln!("{bounds:?}: {states} states; in {orphans} a tombstone and late writes");
    }
    let holds =
        matches!(&found, Found::Nothing { committed, tombs, .. } if *committed.min(tombs) > 0);
    assert!(holds, "{found:#?}");
}

#[test]
fn swapped_heads_hold_in_every_state() {
    check(Mode::Swap, 2, 0, 0, 1_000_000);
}

#[test]
fn numbered_heads_hold_in_every_state() {
    check(Mode::Numbered, 2, 0, 0, 1_000_000);
}

#[test]
fn without_any_one_guard_something_breaks() {
    for (mode, variant) in [
        (Mode::Swap, Variant::BlindSwap),
        (Mode::Swap, Variant::BlindClaim),
        (Mode::Swap, Variant::EarlyAck),
        (Mode::Swap, Variant::SharedKeys),
        (Mode::Swap, Variant::NoReadBack),
        (Mode::Swap, Variant::SweepBlindly),
        (Mode::Numbered, Variant::CollectHeads),
    ] {
        let bounds = Bounds { mode, variant, epochs: 2, crashes: 1, late: 1 };
        let found = bounds.explore(3_000_000);
        assert!(matches!(found, Found::Violation(..)), "{bounds:?} breaks nothing: {found:?}");
        if let Found::Violation(what, trace) = found {
            eprintln!("{bounds:?}: {what}, in {} steps", trace.len());
        }
    }
}
