//! Visits: one target compared between the master's store and one replica, and made equal.
//!
//! A visit looks at the store as it is now; what the log said only made it look. It ends when both
//! sides were equal, durably, or when it knows why they cannot be.
#![expect(clippy::wildcard_enum_match_arm, reason = "whatever reply was not asked for is an error")]

mod account;
mod bodies;
mod everything;
mod held;
mod mailbox;
mod merge;
mod prove;

use std::sync::Arc;

use mailtwin_host::workers::Workers;
use mailtwin_logic::{
    chain::Chain,
    entry::Target,
    mailbox::MailboxName,
    wire::message::{Failure, Remedy, Reply},
};
use mailtwin_store::{MailStore, Reason, StoreError};

use crate::{
    link::{
        Finds,
        connection::{Connection, Gone},
    },
    metrics::LinkMetrics,
};

pub(crate) use held::Held;
pub(crate) use merge::Merging;
pub(crate) use prove::Proved;

/// What a visit works with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Visitor {
    pub(crate) store: Arc<dyn MailStore>,
    pub(crate) workers: Workers,
    pub(crate) connection: Connection,
    pub(crate) held: Arc<Held>,
    pub(crate) metrics: LinkMetrics,
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
    /// One-word code.
    pub(crate) reason: String,
    /// For humans.
    pub(crate) detail: String,
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
        let trouble =
            Trouble { reason: reason.to_string(), detail: format!("master: {}", Chain(&error)) };
        // A store that is not the one it was has nothing to say about any mailbox (I2).
        if reason == Reason::WrongStore { Self::Replica(trouble) } else { Self::Target(trouble) }
    }
}

impl Visitor {
    /// Visits one target. What a long visit finds is told to `finds` meanwhile.
    pub(crate) async fn visit(
        &self,
        target: &Target,
        finds: &Finds,
    ) -> Result<Visited, VisitError> {
        match target {
            Target::Store => self.everything(finds).await,
            Target::Account(account) => self.account(account).await,
            Target::Mailbox(account, name) => self.mailbox(account, name).await,
        }
    }

    /// Makes a blocking call of the store.
    async fn work<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn MailStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, VisitError> {
        let store = Arc::clone(&self.store);
        match self.workers.run(move || call(&*store)).await {
            Ok(result) => result.map_err(VisitError::from),
            Err(error) => Err(VisitError::Target(Trouble {
                reason: Reason::Io.to_string(),
                detail: format!("master: {}", Chain(&error)),
            })),
        }
    }
}

/// What a reply that ends a visit says.
fn refused(reply: Reply) -> VisitError {
    match reply {
        Reply::Failed(Failure { remedy, reason, detail }) => {
            let trouble = Trouble { reason, detail: format!("replica: {detail}") };
            match remedy {
                Remedy::Reconnect | Remedy::Stop => VisitError::Replica(trouble),
                Remedy::SetAside => VisitError::Target(trouble),
            }
        }
        Reply::Accounts { .. }
        | Reply::Account { .. }
        | Reply::Records { .. }
        | Reply::Done
        | Reply::Need(_)
        | Reply::Applied(_)
        | Reply::Ready { .. }
        | Reply::Octets { .. }
        | Reply::Stale(_) => VisitError::Replica(Trouble {
            reason: Reason::Refused.to_string(),
            detail: "replica: answered something else than was asked".into(),
        }),
    }
}

/// Why two sides could not be made equal, of several reasons the first, with the others' words.
fn trouble(reasons: Vec<(Reason, String)>) -> Option<Trouble> {
    let reason = reasons.first()?.0.to_string();
    let details: Vec<String> = reasons.into_iter().map(|(_, detail)| detail).collect();
    Some(Trouble { reason, detail: details.join("; ") })
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
