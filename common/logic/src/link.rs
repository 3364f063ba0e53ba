//! One master→replica link: when to dial, what to visit next, how far the cursor may move.
//!
//! ```text
//! Idle ──tick──▶ Dialing ──connected──▶ Greeting ──welcome──▶ Live ⇄ (visits)
//!   ▲               │                      │                    │
//!   └───────────────┴──── lost / timeout ──┴────────────────────┘
//!                   refused for a higher epoch ──▶ Fenced, for good
//! ```
//!
//! While live, log entries become *visits*, one for each dirty target however often it was
//! logged. The cursor stands before the oldest entry whose visit is not done. A visit that fails
//! is set aside by the driver, durably, *before* it is reported here; it then counts as handled,
//! and is tried again later, so that one broken mailbox holds up no other (I5).

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::time::Duration;

use crate::{
    entry::{Entry, Target},
    evidence::Acked,
    ids::{Account, Epoch, LogSeq},
    limits::{IN_FLIGHT, PENDING_MAX},
};

/// How long a peer may take to accept a connection, and to greet.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// First wait before a failed visit is tried again; doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest wait before a failed visit is tried again.
const RETRY_MAX: Duration = Duration::from_mins(5);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The log's tail moved.
    Appended(LogSeq),
    /// What [`Action::Read`] found, and how far it read.
    Entries(Vec<Entry>, LogSeq),
    /// The connection stands.
    Connected,
    /// The replica greeted, and has mail that the master may lack: that comes first.
    Merging,
    /// The replica greeted, and has nothing that the master lacks.
    Welcome,
    /// The replica knows a higher epoch.
    Fenced(Epoch),
    /// The connection broke, could not be made, or was refused; do not dial before the given time.
    Lost(Duration),
    /// The visit of everything, which goes on, found these to differ.
    Found(Vec<Target>),
    /// A visit ended.
    Visited(Target, Outcome),
    /// Targets set aside by an earlier run, to be tried again.
    Aside(Vec<Target>),
    /// An admin wants these, which are set aside, to be tried now.
    Retry(Vec<Target>),
    /// An admin wants these to be set aside no longer, but compared as if nothing had happened.
    Forgive(Vec<Target>),
    /// Stop working on this replica, or go on.
    Paused(bool),
    /// Time has passed.
    Tick,
}

/// How a visit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Equal, durably, when it was looked at. What else turned out to be dirty must be visited
    /// before the entry counts as done.
    Done(Vec<Target>),
    /// Failed, at least in part, and durably set aside. What else turned out to be dirty as before.
    SetAside(Vec<Target>),
}

/// What the driver shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a connection.
    Dial,
    /// Greet.
    Greet,
    /// Read entries after this position, and report them as [`Input::Entries`].
    Read(LogSeq),
    /// Visit.
    Visit(Target),
    /// Take it off the list of what is set aside, durably: it is equal again.
    Release(Target),
    /// Remember the cursor.
    Save(Acked),
    /// Drop the connection and every visit on it.
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle {
        retry_at: Duration,
    },
    Dialing {
        deadline: Duration,
    },
    Greeting {
        deadline: Duration,
    },
    /// What the replica has and the master lacks is copied back. As long as that takes.
    Merging,
    Live,
    Paused,
    Fenced {
        by: Epoch,
    },
}

/// For status and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting to dial again.
    Waiting,
    /// Dialing or greeting.
    Connecting,
    /// Copying back what the replica has and the master lacks, after a failover.
    Merging,
    /// Connected and catching up.
    Replaying,
    /// Connected, nothing left to do.
    InSync,
    /// Connected, equal but for what is set aside.
    Degraded,
    /// Stopped by the admin.
    Paused,
    /// Stopped for good by a higher epoch.
    Fenced(Epoch),
}

impl Phase {
    /// One word for it, as in status and docs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Connecting => "connecting",
            Self::Merging => "merging",
            Self::Replaying => "replaying",
            Self::InSync => "in-sync",
            Self::Degraded => "degraded",
            Self::Paused => "paused",
            Self::Fenced(_) => "fenced",
        }
    }
}

/// Oldest and newest log entry that a visit stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Covers {
    first: LogSeq,
    at: u64,
}

/// A target that is set aside.
#[derive(Clone, Debug)]
struct Retry {
    tries: u32,
    due: Duration,
    /// It was tried and these differed: until they are done, only the list of what is set aside
    /// says that they may differ, for the cursor has passed them.
    left: Option<BTreeSet<Target>>,
}

/// The machine. One owner, no locks.
#[derive(Debug)]
pub struct Link {
    state: State,
    tail: LogSeq,
    /// Entries up to here have become visits.
    taken: LogSeq,
    reading: bool,
    saved: LogSeq,
    pending: BTreeMap<Target, Covers>,
    /// The same targets in the order in which they are to be visited.
    order: BTreeSet<(LogSeq, Target)>,
    running: BTreeMap<Target, Covers>,
    aside: BTreeMap<Target, Retry>,
}

impl Link {
    /// A link whose replica has everything up to `cursor`, in a log that ends at `tail`.
    pub fn new(cursor: LogSeq, tail: LogSeq) -> Self {
        Self {
            state: State::Idle { retry_at: Duration::ZERO },
            tail,
            taken: cursor,
            reading: false,
            saved: cursor,
            pending: BTreeMap::new(),
            order: BTreeSet::new(),
            running: BTreeMap::new(),
            aside: BTreeMap::new(),
        }
    }

    /// When [`Input::Tick`] is due, in the driver's monotonic time.
    pub fn deadline(&self) -> Option<Duration> {
        match self.state {
            State::Idle { retry_at } => Some(retry_at),
            State::Dialing { deadline } | State::Greeting { deadline } => Some(deadline),
            State::Live => self.aside.values().map(|retry| retry.due).min(),
            State::Merging | State::Paused | State::Fenced { .. } => None,
        }
    }

    /// Advances by one input. `now` is the driver's monotonic time.
    pub fn on(&mut self, now: Duration, input: Input, out: &mut Vec<Action>) {
        match input {
            Input::Appended(tail) => self.tail = self.tail.max(tail),
            Input::Entries(entries, upto) => self.take(entries, upto),
            Input::Connected => {
                if matches!(self.state, State::Dialing { .. }) {
                    self.state = State::Greeting { deadline: now + ANSWER_WITHIN };
                    out.push(Action::Greet);
                }
            }
            Input::Merging => {
                if matches!(self.state, State::Greeting { .. }) {
                    self.state = State::Merging;
                }
            }
            Input::Welcome => self.on_welcome(),
            Input::Fenced(by) => {
                self.put_back();
                self.state = State::Fenced { by };
                out.push(Action::Close);
            }
            Input::Lost(retry_at) => self.lose(retry_at),
            Input::Found(dirty) => {
                if let Some(&covers) = self.running.get(&Target::Store) {
                    for target in dirty {
                        self.add(target, covers);
                    }
                }
            }
            Input::Visited(target, outcome) => self.on_visited(now, &target, outcome, out),
            Input::Aside(targets) => {
                let retry = Retry { tries: 0, due: now, left: None };
                self.aside.extend(targets.into_iter().map(|target| (target, retry.clone())));
            }
            Input::Retry(targets) => {
                for target in targets {
                    if let Some(retry) = self.aside.get_mut(&target) {
                        retry.due = now;
                    }
                }
                self.on_tick(now, out);
            }
            Input::Forgive(targets) => self.forgive(targets, out),
            Input::Paused(pause) => self.on_paused(now, pause, out),
            Input::Tick => self.on_tick(now, out),
        }
        self.proceed(out);
    }

    /// What is going on, for humans and metrics.
    pub fn phase(&self) -> Phase {
        let idle = self.pending.is_empty() && self.running.is_empty();
        match self.state {
            State::Idle { .. } => Phase::Waiting,
            State::Dialing { .. } | State::Greeting { .. } => Phase::Connecting,
            State::Merging => Phase::Merging,
            State::Live if !idle || self.taken < self.tail => Phase::Replaying,
            State::Live if !self.aside.is_empty() => Phase::Degraded,
            State::Live => Phase::InSync,
            State::Paused => Phase::Paused,
            State::Fenced { by } => Phase::Fenced(by),
        }
    }

    /// Everything up to here is on the replica, or durably set aside.
    pub fn cursor(&self) -> LogSeq {
        let waiting = self.order.first().map(|(first, _)| *first);
        let oldest = self.running.values().map(|covers| covers.first).chain(waiting).min();
        LogSeq(oldest.map_or(self.taken.0, |first| first.0.saturating_sub(1).min(self.taken.0)))
    }

    /// Time of the oldest entry that is not done, in milliseconds since 1970.
    pub fn oldest_at(&self) -> Option<u64> {
        let covers = self.pending.values().chain(self.running.values());
        covers.map(|covers| covers.at).min().filter(|&at| at != u64::MAX)
    }

    /// Every change that was logged before then is on the replica, or durably set aside, in
    /// milliseconds since 1970; `now` if it has everything. `None` while that is not known: there is
    /// no connection, or everything is being compared.
    pub fn complete_to(&self, now: u64) -> Option<u64> {
        match self.phase() {
            Phase::InSync | Phase::Degraded => Some(now),
            Phase::Replaying => {
                let times = || self.pending.values().chain(self.running.values()).map(|it| it.at);
                let is_comparing = times().any(|at| at == u64::MAX);
                times().min().filter(|_| !is_comparing)
            }
            Phase::Waiting
            | Phase::Connecting
            | Phase::Merging
            | Phase::Paused
            | Phase::Fenced(_) => None,
        }
    }

    /// Entries that have become visits: later changes to their targets need entries of their own.
    pub fn taken(&self) -> LogSeq {
        self.taken
    }

    /// When the oldest entry behind a running visit was appended, in milliseconds since 1970;
    /// `None` for a visit that no entry asked for.
    pub fn since(&self, target: &Target) -> Option<u64> {
        self.running.get(target).map(|covers| covers.at).filter(|&at| at != u64::MAX)
    }

    /// When something that is set aside is tried next, in the driver's monotonic time; `None` while
    /// it is not set aside, or its trial is under way.
    pub fn retry_due(&self, target: &Target) -> Option<Duration> {
        self.aside.get(target).filter(|_| !self.is_visiting(target)).map(|retry| retry.due)
    }

    /// Whether a visit of `target` is due or under way.
    pub fn is_visiting(&self, target: &Target) -> bool {
        self.pending.contains_key(target) || self.running.contains_key(target)
    }

    fn on_welcome(&mut self) {
        if matches!(self.state, State::Greeting { .. } | State::Merging) {
            self.state = State::Live;
            // What the replica holds may be less than our cursor says, for instance after a
            // restore: look at everything once. Equal accounts cost one digest each.
            self.add(Target::Store, Covers { first: self.saved.next(), at: u64::MAX });
        }
    }

    fn on_visited(
        &mut self,
        now: Duration,
        target: &Target,
        outcome: Outcome,
        out: &mut Vec<Action>,
    ) {
        let Some(covers) = self.running.remove(target) else {
            return; // of a connection that is gone
        };
        let dirty = match outcome {
            Outcome::Done(mut dirty) => {
                if let Some(retry) = self.aside.get_mut(target)
                    && retry.left.is_none()
                {
                    // Another mailbox may have the name by now: only the account's list tells where
                    // the one is that was set aside.
                    let account =
                        target.account().filter(|_| matches!(target, Target::Mailbox(..)));
                    dirty.extend(account.cloned().map(Target::Account));
                    retry.left = Some(dirty.iter().cloned().collect());
                }
                dirty
            }
            Outcome::SetAside(dirty) => {
                let new = Retry { tries: 0, due: now, left: None };
                let retry = self.aside.entry(target.clone()).or_insert(new);
                let wait = RETRY_FIRST.saturating_mul(1 << retry.tries.min(16)).min(RETRY_MAX);
                retry.tries = retry.tries.saturating_add(1);
                retry.due = now + wait;
                retry.left = None;
                dirty
            }
        };
        self.release(target, &dirty, out);
        for target in dirty {
            self.add(target, covers);
        }
    }

    /// Turns what is set aside into visits that hold the cursor where it is: from then on that, and
    /// no longer the list of what is set aside, says that they may differ.
    fn forgive(&mut self, targets: Vec<Target>, out: &mut Vec<Action>) {
        for target in targets {
            if self.aside.remove(&target).is_some() {
                self.add(target.clone(), Covers { first: self.saved.next(), at: u64::MAX });
                out.push(Action::Release(target));
            }
        }
    }

    /// Releases what has nothing left that differs, now that `done` is done but for `dirty`.
    fn release(&mut self, done: &Target, dirty: &[Target], out: &mut Vec<Action>) {
        self.aside.retain(|target, retry| {
            let Some(left) = &mut retry.left else { return true };
            if !dirty.contains(done) && left.remove(done) {
                left.extend(dirty.iter().cloned());
            }
            if left.is_empty() {
                out.push(Action::Release(target.clone()));
            }
            !left.is_empty()
        });
    }

    fn on_tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        match self.state {
            State::Idle { retry_at } if retry_at <= now => {
                self.state = State::Dialing { deadline: now + ANSWER_WITHIN };
                out.push(Action::Dial);
            }
            State::Dialing { deadline } | State::Greeting { deadline } if deadline <= now => {
                out.push(Action::Close);
                self.lose(now + ANSWER_WITHIN);
            }
            State::Live => {
                let due: Vec<Target> = self.due(now);
                for target in due {
                    self.add(target, Covers { first: LogSeq(u64::MAX), at: u64::MAX });
                }
            }
            State::Idle { .. }
            | State::Dialing { .. }
            | State::Greeting { .. }
            | State::Merging
            | State::Paused
            | State::Fenced { .. } => {}
        }
    }

    /// Targets to try again, with their next trial pushed out of the way of this one.
    fn due(&mut self, now: Duration) -> Vec<Target> {
        let mut due = Vec::new();
        for (target, retry) in &mut self.aside {
            if retry.due <= now {
                retry.due = now + RETRY_MAX;
                due.push(target.clone());
            }
        }
        due
    }

    fn on_paused(&mut self, now: Duration, pause: bool, out: &mut Vec<Action>) {
        match (pause, self.state) {
            (_, State::Fenced { .. }) => {}
            (true, _) => {
                self.put_back();
                self.state = State::Paused;
                out.push(Action::Close);
            }
            (false, State::Paused) => self.state = State::Idle { retry_at: now },
            (false, _) => {}
        }
    }

    fn lose(&mut self, retry_at: Duration) {
        self.put_back();
        if !matches!(self.state, State::Paused | State::Fenced { .. }) {
            self.state = State::Idle { retry_at };
        }
    }

    fn put_back(&mut self) {
        for (target, covers) in core::mem::take(&mut self.running) {
            self.add(target, covers);
        }
    }

    fn take(&mut self, entries: Vec<Entry>, upto: LogSeq) {
        self.reading = false;
        for entry in entries {
            self.add(entry.target, Covers { first: entry.seq, at: entry.at });
        }
        self.taken = self.taken.max(upto);
    }

    /// Adds a visit, or widens the one that is waiting. One that is running may have looked
    /// already, so it does not count.
    fn add(&mut self, target: Target, covers: Covers) {
        let entry = self.pending.entry(target.clone()).or_insert(covers);
        self.order.remove(&(entry.first, target.clone()));
        entry.first = entry.first.min(covers.first);
        entry.at = entry.at.min(covers.at);
        self.order.insert((entry.first, target));
    }

    /// Starts what may be started, and moves the cursor.
    fn proceed(&mut self, out: &mut Vec<Action>) {
        if self.state == State::Live {
            if !self.reading && self.taken < self.tail && self.pending.len() < PENDING_MAX {
                self.reading = true;
                out.push(Action::Read(self.taken));
            }
            self.start(out);
        }
        let cursor = self.cursor();
        if cursor > self.saved {
            self.saved = cursor;
            out.push(Action::Save(Acked::new(cursor)));
        }
    }

    fn start(&mut self, out: &mut Vec<Action>) {
        if self.running.len() >= IN_FLIGHT {
            return;
        }
        let mut accounts: BTreeSet<&Account> = BTreeSet::new();
        let mut chosen = Vec::new();
        for (_, target) in &self.order {
            if self.running.len() + chosen.len() >= IN_FLIGHT {
                break;
            }
            // An account's visit changes which mailboxes there are: it runs alone, and what was
            // logged after it waits for it.
            let account = target.account();
            if account.is_some_and(|account| accounts.contains(account)) {
                continue;
            }
            let clashes = |other: &Target| overlaps(target, other);
            if self.running.keys().any(clashes) || chosen.iter().any(clashes) {
                if matches!(target, Target::Account(_)) {
                    accounts.extend(account);
                }
                continue;
            }
            chosen.push(target.clone());
        }
        for target in chosen {
            if let Some(covers) = self.pending.remove(&target) {
                self.order.remove(&(covers.first, target.clone()));
                self.running.insert(target.clone(), covers);
                out.push(Action::Visit(target));
            }
        }
    }
}

/// Whether two visits may not run at once.
fn overlaps(a: &Target, b: &Target) -> bool {
    match (a, b) {
        (Target::Store, Target::Store) => true,
        (Target::Store, _) | (_, Target::Store) => false,
        (Target::Mailbox(..), Target::Mailbox(..)) => a == b,
        (
            Target::Account(one) | Target::Mailbox(one, _),
            Target::Account(other) | Target::Mailbox(other, _),
        ) => one == other,
    }
}

#[cfg(test)]
mod tests;
