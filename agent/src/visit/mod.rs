//! Visits: one target compared between the master's store and one replica, and made equal.
//!
//! A visit looks at the store as it is now; what the log said only made it look. It ends when both
//! sides were equal, durably, or when it knows why they cannot be.
#![expect(clippy::wildcard_enum_match_arm, reason = "whatever reply was not asked for is an error")]

mod account;
mod bodies;
mod brake;
mod everything;
mod held;
mod mailbox;
mod merge;
mod messages;
mod prove;

use std::sync::Arc;

use mailtwin_host::workers::Workers;
use mailtwin_logic::{
    chain::Chain,
    entry::Target,
    ids::Uid,
    limits::LISTED_PARTS_MAX,
    mailbox::MailboxName,
    quarantine::Step,
    wire::message::{FEATURE_MODSEQ, Failure, Remedy, Reply, told},
};
use mailtwin_store::{MailStore, Reason, StoreError};

use crate::{
    brake::BrakeFile,
    link::{
        Finds,
        connection::{Connection, Gone},
    },
    metrics::LinkMetrics,
    progress::Progress,
    quarantine::BadMessage,
};

pub(crate) use bodies::Bodies;
pub(crate) use held::Held;
pub(crate) use merge::{Merging, Unmerged};
pub(crate) use prove::Proved;

/// What a visit works with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Visitor {
    pub(crate) store: Arc<dyn MailStore>,
    pub(crate) workers: Workers,
    pub(crate) connection: Connection,
    pub(crate) held: Arc<Held>,
    pub(crate) brake: Arc<BrakeFile>,
    pub(crate) metrics: LinkMetrics,
    pub(crate) progress: Arc<Progress>,
    pub(crate) unmerged: Arc<Unmerged>,
}

/// A visit that ended well.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Visited {
    /// What else turned out to differ.
    pub(crate) dirty: Vec<Target>,
    /// Why it could not be made equal altogether.
    pub(crate) trouble: Option<Trouble>,
}

/// Why something is set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// The code.
    pub(crate) reason: Reason,
    /// For humans.
    pub(crate) detail: String,
    /// Messages of the mailbox on the master, as far as they were counted.
    pub(crate) messages: Option<u32>,
    /// Their octets.
    pub(crate) octets: Option<u64>,
    /// The messages that are the cause, if everything else was replicated.
    pub(crate) bad: Vec<BadMessage>,
    /// Messages and mailboxes whose deletion the brake holds.
    pub(crate) held: (u64, u64),
}

impl Trouble {
    /// Of unknown size, and not of single messages.
    pub(crate) fn new(reason: Reason, detail: String) -> Self {
        Self { reason, detail, messages: None, octets: None, bad: Vec::new(), held: (0, 0) }
    }

    /// Both: the code of the first, the words and messages of both.
    fn with(mut self, other: Self) -> Self {
        self.detail = format!("{}; {}", self.detail, other.detail);
        self.bad.extend(other.bad);
        self
    }
}

/// A visit that did not end well.
#[derive(Debug)]
pub(crate) enum VisitError {
    /// The connection is gone; the next one visits again.
    Gone,
    /// The whole replica has trouble: drop the connection and back off.
    Replica(Trouble),
    /// The target has trouble.
    Target(Trouble),
    /// One message of it has: without that one, the rest may work.
    Message(Uid, Trouble),
}

impl From<Gone> for VisitError {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl From<StoreError> for VisitError {
    /// An error of the master's own store.
    fn from(error: StoreError) -> Self {
        let reason = error.reason();
        let trouble = Trouble::new(reason, format!("master: {}", Chain(&error)));
        match error {
            _ if error.is_away() => Self::Replica(trouble),
            // A store that is not the one it was has nothing to say about any mailbox (I2).
            _ if reason == Reason::WrongStore => Self::Replica(trouble),
            StoreError::Message { uid, .. } => Self::Message(uid, trouble),
            _ => Self::Target(trouble),
        }
    }
}

impl Visitor {
    /// Whether MODSEQs of both sides are the mail servers' own.
    pub(crate) fn shares_modseq(&self) -> bool {
        self.connection.has(FEATURE_MODSEQ)
    }

    /// Visits one target. What a long visit finds is told to `finds` meanwhile. `step` says how hard
    /// to try with what is set aside.
    pub(crate) async fn visit(
        &self,
        target: &Target,
        step: Step,
        finds: &Finds,
    ) -> Result<Visited, VisitError> {
        match target {
            Target::Store => self.everything(finds).await,
            Target::Account(account) => {
                self.merge_first(account).await?;
                self.account(account).await
            }
            // Its account's visit merges it.
            Target::Mailbox(account, _) if self.unmerged.has(account) => {
                Ok(Visited { dirty: vec![Target::Account(account.clone())], trouble: None })
            }
            Target::Mailbox(account, name) => self.mailbox(account, name, step).await,
        }
    }

    /// Makes a blocking call of the store.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn MailStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, VisitError> {
        let store = Arc::clone(&self.store);
        match self.workers.run(move || call(&*store)).await {
            Ok(result) => result.map_err(VisitError::from),
            Err(error) => {
                let detail = format!("master: {}", Chain(&error));
                Err(VisitError::Target(Trouble::new(Reason::Io, detail)))
            }
        }
    }
}

/// What a reply that ends a visit says.
pub(crate) fn refused(reply: Reply) -> VisitError {
    let (uid, Failure { remedy, reason, detail }) = match reply {
        Reply::Failed(failure) => (None, failure),
        Reply::FailedMessage(uid, failure) => (Some(uid), failure),
        Reply::Accounts { .. }
        | Reply::Account { .. }
        | Reply::Records { .. }
        | Reply::Done
        | Reply::Need(_)
        | Reply::Applied(_)
        | Reply::Ready { .. }
        | Reply::Octets { .. }
        | Reply::Tree(_)
        | Reply::Inspected(_)
        | Reply::Grave { .. }
        | Reply::About { .. }
        | Reply::Stale(_) => {
            let detail = "replica: answered something else than was asked".into();
            return VisitError::Replica(Trouble::new(Reason::Refused, detail));
        }
    };
    let trouble = Trouble::new(Reason::of_peer(&reason), format!("replica: {}", told(&detail)));
    match (remedy, uid) {
        (Remedy::Reconnect | Remedy::Stop, _) => VisitError::Replica(trouble),
        (Remedy::SetAside, Some(uid)) => VisitError::Message(uid, trouble),
        (Remedy::SetAside, None) => VisitError::Target(trouble),
    }
}

/// Counts what a replica lists, so that a list that never ends ends the visit.
#[derive(Debug)]
struct Listed {
    items_left: usize,
    parts_left: usize,
}

impl Listed {
    fn of_at_most(items: usize) -> Self {
        Self { items_left: items, parts_left: LISTED_PARTS_MAX }
    }

    /// One more part, with `items`.
    fn take(&mut self, items: usize) -> Result<(), VisitError> {
        let items = self.items_left.checked_sub(items);
        match (items, self.parts_left.checked_sub(1)) {
            (Some(items_left), Some(parts_left)) => {
                *self = Self { items_left, parts_left };
                Ok(())
            }
            _ => Err(VisitError::Replica(Trouble::new(
                Reason::Refused,
                "replica: what it lists is longer than any list may be".into(),
            ))),
        }
    }
}

/// Why two sides could not be made equal, of several reasons the first, with the others' words.
fn trouble(reasons: Vec<(Reason, String)>) -> Option<Trouble> {
    let reason = reasons.first()?.0;
    let details: Vec<String> = reasons.into_iter().map(|(_, detail)| detail).collect();
    Some(Trouble::new(reason, details.join("; ")))
}

/// Names for a sentence: the first few, and how many more.
fn name_some(names: &[MailboxName]) -> String {
    const SOME: usize = 3;
    let some: Vec<String> = names.iter().take(SOME).map(ToString::to_string).collect();
    match names.len().saturating_sub(SOME) {
        0 => some.join(", "),
        more => format!("{} and {more} more", some.join(", ")),
    }
}
