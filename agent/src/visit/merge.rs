//! Copies back what a node that was away has and the master lacks, account by account, after a failover
//! that nobody prepared. The decisions are `reconcile`'s; only when all of them are durable may the
//! other node's mail be replaced by the master's.

mod carry;
mod journal;
mod unmerged;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use mailtwin_disk::DiskError;
use mailtwin_host::{
    admin::HistoryEntry,
    base::Base,
    clock::Clock,
    codes::{HistoryKind, LedgerKind},
    history,
};
use mailtwin_logic::{
    chain::Chain,
    ids::{Account, Epoch, MailboxId, ModSeq},
    mailbox::{AccountState, MailboxState, Record},
    plan::Step,
    reconcile::{self, BaseMailbox, Fate},
    wire::message::{Reply, Request},
};
use mailtwin_store::{Reason, StoreError};

use super::{Trouble, VisitError, Visitor, refused};
use journal::{Earlier, Journal};

pub(crate) use unmerged::Unmerged;

/// How often a mailbox that changes meanwhile is decided anew.
const TRIES: usize = 6;

/// What merging works with.
#[derive(Clone)]
pub(crate) struct Merging {
    /// The master's state directory.
    pub(crate) state_dir: PathBuf,
    /// The epoch this node is the master of.
    pub(crate) epoch: Epoch,
    /// The last epoch that was forced.
    pub(crate) forced: Epoch,
    /// The node that comes back.
    pub(crate) node: String,
    /// Time.
    pub(crate) clock: Arc<dyn Clock>,
}

impl Merging {
    /// What both nodes had in common.
    fn base(&self) -> Base {
        Base::of(&self.state_dir, self.forced)
    }
}

/// One mailbox on both sides.
pub(super) struct Sides {
    pub(super) ours: MailboxState,
    pub(super) our_records: Vec<Record>,
    /// The mailbox there: another identity than ours if it was made in the same second on both sides.
    pub(super) theirs: MailboxId,
    pub(super) their_records: Vec<Record>,
}

impl Visitor {
    /// Merges what has yet to be merged, and tells the replica once that is all; returns the accounts
    /// that cannot be yet.
    pub(crate) async fn merge(&self, epoch: Epoch) -> Result<BTreeSet<Account>, VisitError> {
        let Some(merging) = self.unmerged.merging() else {
            self.done(&Request::Merged { epoch }).await?;
            return Ok(BTreeSet::new());
        };
        let base = merging.base();
        if base.old_master().is_none() {
            tracing::warn!(code = "merge-no-base", node = %merging.node, "there is no base: everything that is only there is copied, and nothing deleted");
        }
        let left = base.left(&merging.node).map_err(|error| whole(&Chain(&error)))?;
        let accounts = if let Some(left) = left {
            left
        } else {
            let all = self.their_accounts(&Request::Accounts, |_| true).await?;
            all.into_keys().collect()
        };
        tracing::info!(node = %merging.node, accounts = accounts.len(), "copying back what only it has");
        let (mut left, mut totals) = (BTreeSet::new(), journal::Totals::default());
        let mut earlier = Earlier::read(merging).map_err(|error| whole(&Chain(&error)))?;
        for account in accounts {
            match self.merge_account(merging, &account, &mut earlier, &mut totals).await {
                Ok(()) => {}
                Err(VisitError::Target(trouble)) => {
                    tracing::error!(code = "merge-stuck", %account, reason = %trouble.reason, detail = trouble.detail, "cannot be merged yet");
                    left.insert(account);
                }
                Err(error) => return Err(error),
            }
        }
        self.conclude(merging, &left, &totals).await?;
        if base.old_master().as_ref() == Some(&merging.node) || !totals.is_nothing() {
            note_merged(merging, &totals);
        }
        Ok(left)
    }

    /// A visit makes the replica like the master: before that, what only the replica has is copied back.
    pub(super) async fn merge_first(&self, account: &Account) -> Result<(), VisitError> {
        let unmerged = &self.unmerged;
        let Some(merging) = unmerged.merging().filter(|_| unmerged.has(account)) else {
            return Ok(());
        };
        let _turn = unmerged.turn().await;
        let Some(mut left) = unmerged.left_with(account) else {
            return Ok(()); // somebody else had the turn before
        };
        let mut totals = journal::Totals::default();
        let mut earlier = Earlier::read(merging).map_err(|error| whole(&Chain(&error)))?;
        match self.merge_account(merging, account, &mut earlier, &mut totals).await {
            Err(VisitError::Target(trouble)) => {
                let detail = format!("what only it has cannot be copied back: {}", trouble.detail);
                return Err(VisitError::Target(Trouble { detail, ..trouble }));
            }
            other => other?,
        }
        left.remove(account);
        self.conclude(merging, &left, &totals).await?;
        if !totals.is_nothing() {
            note_merged(merging, &totals);
        }
        Ok(())
    }

    /// Notes durably what is left to merge. Nothing is, once the replica is told that all is.
    async fn conclude(
        &self,
        merging: &Merging,
        left: &BTreeSet<Account>,
        totals: &journal::Totals,
    ) -> Result<(), VisitError> {
        if left.is_empty() {
            self.done(&Request::Merged { epoch: merging.epoch }).await?;
        } else {
            let set = merging.base().set_left(&merging.node, left);
            set.map_err(|error| whole(&Chain(&error)))?;
        }
        self.unmerged.set_left(left.clone());
        tracing::info!(node = %merging.node, %totals, left = left.len(), "what only it had is here now");
        Ok(())
    }

    async fn done(&self, request: &Request) -> Result<(), VisitError> {
        match self.connection.ask(request).await?.reply().await? {
            Reply::Done => Ok(()),
            other => Err(refused(other)),
        }
    }

    async fn merge_account(
        &self,
        merging: &Merging,
        account: &Account,
        earlier: &mut Earlier,
        totals: &mut journal::Totals,
    ) -> Result<(), VisitError> {
        let base = merging.base();
        let old_master = base.old_master();
        let is_old_master = old_master.as_ref() == Some(&merging.node);
        let mut journal = Journal::new(merging, earlier, account, is_old_master);
        let base = old_master.is_some().then_some(&base);
        self.merge_based(account, base, &mut journal).await?;
        totals.add(&journal);
        Ok(())
    }

    async fn merge_based(
        &self,
        account: &Account,
        base: Option<&Base>,
        journal: &mut Journal,
    ) -> Result<(), VisitError> {
        let based = match base.map(|base| base.load(account)).transpose() {
            Ok(based) => based,
            Err(error) => return Err(local(&Chain(&error))),
        };
        let (theirs, unread) = self.their_account(account).await?;
        if let Some((name, why)) = unread.first_key_value() {
            return Err(local(&format!("{name} cannot be read there: {why}")));
        }
        let ours = self.our_account(account).await?;
        // Nor does an account that is gone say anything.
        let says = journal.is_old_master() && based.is_some() && !theirs.mailboxes.is_empty();
        let base = based.as_deref().unwrap_or_default();
        for fate in reconcile::account(base, says, &ours, &theirs) {
            self.carry_fate(account, base, &theirs, fate, journal).await?;
        }
        let marks = theirs.mailboxes.iter().map(|mailbox| (mailbox.id, mailbox.head.uid_next));
        self.done(&Request::Adopt { account: account.clone(), marks: marks.collect() }).await
    }

    pub(super) async fn our_account(&self, account: &Account) -> Result<AccountState, VisitError> {
        let name = account.clone();
        let listing = self.work(move |store| store.account(&name)).await?.unwrap_or_default();
        match listing.unread.first() {
            Some((name, _, why)) => Err(local(&format!("{name} cannot be read here: {why}"))),
            None => Ok(listing.state),
        }
    }

    async fn carry_fate(
        &self,
        account: &Account,
        base: &[BaseMailbox],
        theirs: &AccountState,
        fate: Fate,
        journal: &mut Journal,
    ) -> Result<(), VisitError> {
        let based = |id: MailboxId| {
            let found = base.iter().find(|mailbox| mailbox.state.id == id);
            found.map_or(&[][..], |mailbox| &mailbox.records[..])
        };
        let their = |id: MailboxId| theirs.mailboxes.iter().find(|mailbox| mailbox.id == id);
        match fate {
            Fate::Rename { id, from, to } => {
                let detail = format!("to {to}, as on {}", journal.node());
                journal.mailbox(LedgerKind::Renamed, &from, &detail);
                written(journal.write())?;
                self.restructure_here(account, Step::Rename { id, from, to }).await?;
            }
            Fate::Delete { id, name } => {
                journal.mailbox(LedgerKind::Deleted, &name, "as there; it is in the graveyard");
                written(journal.write())?;
                self.restructure_here(account, Step::Delete { id, name }).await?;
            }
            Fate::Merge { id } => {
                if let Some(their) = their(id) {
                    self.merge_mailbox(account, based(id), (id, their), journal).await?;
                }
            }
            Fate::Copy { id } => {
                if let Some(their) = their(id) {
                    self.copy_mailbox(account, their, journal).await?;
                }
            }
            Fate::Pour { id, name } => {
                if let Some(their) = their(id) {
                    self.pour_mailbox(account, based(id), their, &name, journal).await?;
                }
            }
        }
        Ok(())
    }

    async fn restructure_here(&self, account: &Account, step: Step) -> Result<(), VisitError> {
        let name = account.clone();
        self.work(move |store| store.restructure(&name, &[step])).await
    }

    /// Both sides of a mailbox, ours by `ours`.
    async fn sides(
        &self,
        account: &Account,
        ours: MailboxId,
        their: &MailboxState,
    ) -> Result<Sides, VisitError> {
        let name = account.clone();
        let delta = self.work(move |store| store.delta(&name, ours, ModSeq(0))).await?;
        let their_records = self.records_of(account, their.id).await?;
        Ok(Sides { ours: delta.state, our_records: delta.records, theirs: their.id, their_records })
    }

    async fn records_of(
        &self,
        account: &Account,
        mailbox: MailboxId,
    ) -> Result<Vec<Record>, VisitError> {
        Ok(self.their_records_of(account, mailbox).await?.1)
    }
}

/// Writes a line into the node's history; what cannot be written is logged.
fn note_merged(merging: &Merging, totals: &journal::Totals) {
    let entry = HistoryEntry {
        at: merging.clock.unix_ms(),
        kind: HistoryKind::Merged.as_str().to_owned(),
        outcome: "done".to_owned(),
        epoch: merging.epoch.0,
        from: Some(merging.node.clone()),
        to: None,
        gate_closed_ms: None,
        detail: totals.to_string(),
    };
    if let Err(error) = history::append(&merging.state_dir, &entry) {
        tracing::error!(code = "history-unwritten", error = %Chain(&error), ?entry, "cannot write the history of failovers");
    }
}

/// Without its line in the ledger nothing is carried out.
fn written(result: Result<(), DiskError>) -> Result<(), VisitError> {
    result.map_err(|error| local(&Chain(&error)))
}

/// Trouble with the merge as such.
fn whole(detail: &dyn std::fmt::Display) -> VisitError {
    let detail = format!("copy back what only it has: {detail}");
    VisitError::Replica(Trouble::new(Reason::Io, detail))
}

/// Trouble with one account.
fn local(detail: &dyn std::fmt::Display) -> VisitError {
    VisitError::Target(Trouble::new(Reason::Conflict, detail.to_string()))
}

/// Whether it is worth deciding anew.
pub(super) fn is_stale(error: &StoreError) -> bool {
    matches!(error, StoreError::Stale(_) | StoreError::UidTaken(_) | StoreError::NotFound { .. })
}
