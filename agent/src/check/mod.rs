//! Compares this node's store with a replica's, while both are in use.
//!
//! Both sides are asked afresh, over the link's connection; nothing that the link remembers of the
//! replica is looked at. What differs is looked at again, until it is equal or stays different
//! with nothing in flight.
#![expect(clippy::wildcard_enum_match_arm, reason = "whatever reply was not asked for is an error")]

mod ask;
mod coverage;
mod file;
mod jobs;
mod journal;
mod look;
mod pace;
mod repair;
mod report;
mod scope;
mod scrub;
mod settle;
mod undo;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mailtwin_host::admin::{CheckLevel, CheckProgress};
use mailtwin_logic::check::{Difference, Slots};
use tokio::sync::watch;

use crate::{
    link::LinkStatus,
    log::Log,
    source::Barrier,
    visit::{Trouble, VisitError, Visitor},
};

pub(crate) use coverage::Coverage;
pub(crate) use jobs::Jobs;
use pace::Pace;
pub(crate) use report::{Bench, repair, run};
pub(crate) use scope::Scope;
pub(crate) use scrub::{Scrub, run as scrub};
pub(crate) use undo::undo;

/// Differences listed of one replica; the rest is counted.
const LISTED_MAX: usize = 10_000;

/// What is to be compared.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) scope: Scope,
    pub(crate) level: CheckLevel,
    /// Whether only the messages that are read are compared.
    pub(crate) sparse: bool,
    /// Which messages are read, at level deep.
    pub(crate) slots: Slots,
    /// Octets per second and side.
    pub(crate) rate: Option<u64>,
    /// How long changes under way may take.
    pub(crate) settle: Duration,
}

/// Why two sides could not be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CheckError {
    /// There is no connection.
    #[error("{0} is not connected")]
    NotConnected(String),
    /// It broke.
    #[error("the connection to {0} broke")]
    Lost(String),
    /// The replica's version is too old.
    #[error("{0} cannot be checked: upgrade the replica")]
    TooOld(String),
    /// A whole side cannot be read.
    #[error("{0}")]
    Unreadable(String),
}

/// What a check of one replica came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The worst first.
    pub(crate) differences: Vec<Difference>,
    /// All there are, also those not listed.
    pub(crate) found: u64,
    /// What could not be compared, and why.
    pub(crate) incomplete: Vec<String>,
}

/// What has been compared so far; grows while a check runs.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) accounts: AtomicU64,
    pub(crate) mailboxes: AtomicU64,
    pub(crate) total: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) octets: AtomicU64,
    pub(crate) messages_read: AtomicU64,
    pub(crate) octets_read: AtomicU64,
    pub(crate) settling: AtomicU64,
}

impl Tally {
    fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> CheckProgress {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let settling = get(&self.settling);
        let phase = if settling > 0 { "settling" } else { "comparing" };
        CheckProgress {
            phase: phase.to_owned(),
            messages_total: get(&self.total),
            messages: get(&self.messages),
            octets: get(&self.octets),
            settling,
        }
    }
}

/// Compares with one replica.
pub(crate) struct Checker {
    replica: String,
    visitor: Visitor,
    status: watch::Receiver<LinkStatus>,
    log: Arc<Log>,
    barrier: Option<Barrier>,
    tally: Arc<Tally>,
    paces: (Pace, Pace),
}

/// What a checker needs of its agent.
#[derive(Clone)]
pub(crate) struct CheckLink {
    pub(crate) status: watch::Receiver<LinkStatus>,
    pub(crate) visitor: watch::Receiver<Option<Visitor>>,
    pub(crate) log: Arc<Log>,
    pub(crate) coverage: Arc<Coverage>,
}

impl Checker {
    /// Over the link's present connection.
    pub(crate) fn new(
        link: CheckLink,
        barrier: Option<Barrier>,
        tally: Arc<Tally>,
        rate: Option<u64>,
    ) -> Result<Self, CheckError> {
        let replica = link.status.borrow().name.clone();
        let visitor = link.visitor.borrow().clone();
        let visitor = visitor.filter(|visitor| !visitor.connection.is_lost());
        let visitor = visitor.ok_or_else(|| CheckError::NotConnected(replica.clone()))?;
        if !visitor.connection.has(mailtwin_logic::wire::message::FEATURE_CHECK) {
            return Err(CheckError::TooOld(replica));
        }
        let paces = (Pace::new(rate), Pace::new(rate));
        let CheckLink { status, log, .. } = link;
        Ok(Self { replica, visitor, status, log, barrier, tally, paces })
    }

    /// Compares, and waits until what differs stays different.
    pub(crate) async fn run(&self, wanted: &Wanted) -> Result<Outcome, CheckError> {
        let since = *self.log.tail().borrow();
        let found = self.first_look(wanted).await.map_err(|error| self.why(error))?;
        let mut outcome = self.settle(wanted, found, since).await?;
        outcome.found = u64::try_from(outcome.differences.len()).unwrap_or(u64::MAX);
        outcome.differences.sort_by(|a, b| a.rank().cmp(&b.rank()));
        outcome.differences.truncate(LISTED_MAX);
        Ok(outcome)
    }

    fn why(&self, error: VisitError) -> CheckError {
        match error {
            VisitError::Gone => CheckError::Lost(self.replica.clone()),
            VisitError::Replica(Trouble { detail, .. })
            | VisitError::Target(Trouble { detail, .. })
            | VisitError::Message(_, Trouble { detail, .. }) => CheckError::Unreadable(detail),
        }
    }
}
