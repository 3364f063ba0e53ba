//! What was decided for one account, in memory until it is carried out, then in `ledger.jsonl`.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use mailtwin_disk::DiskError;
use mailtwin_host::{admin::LedgerEntry, history};
use mailtwin_logic::{
    ids::{Account, Epoch, Uid},
    mailbox::{MailboxName, Record},
};

use super::Merging;

/// Lines about one account.
pub(super) struct Journal {
    state_dir: PathBuf,
    node: String,
    epoch: Epoch,
    account: Account,
    at: u64,
    waiting: Vec<LedgerEntry>,
    counted: BTreeMap<String, usize>,
    is_old_master: bool,
}

impl Journal {
    pub(super) fn new(merging: &Merging, account: &Account, is_old_master: bool) -> Self {
        Self {
            is_old_master,
            state_dir: merging.state_dir.clone(),
            node: merging.node.clone(),
            epoch: merging.epoch,
            account: account.clone(),
            at: merging.clock.unix_ms(),
            waiting: Vec::new(),
            counted: BTreeMap::new(),
        }
    }

    /// Whether the node that comes back was the master when the base was written.
    pub(super) fn is_old_master(&self) -> bool {
        self.is_old_master
    }

    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// Notes a decision about a mailbox.
    pub(super) fn mailbox(&mut self, kind: &str, name: &MailboxName, detail: &str) {
        let entry = self.entry(kind, name, detail);
        self.waiting.push(entry);
    }

    /// Notes one about a message that is, or was, `record`.
    pub(super) fn message(
        &mut self,
        kind: &str,
        name: &MailboxName,
        record: &Record,
        new: Option<Uid>,
        detail: &str,
    ) {
        let entry = self.entry(kind, name, detail);
        self.waiting.push(LedgerEntry {
            uid: Some(record.uid.0),
            new_uid: new.map(|uid| uid.0),
            guid: Some(record.guid.to_string()),
            ..entry
        });
    }

    fn entry(&self, kind: &str, name: &MailboxName, detail: &str) -> LedgerEntry {
        LedgerEntry {
            at: self.at,
            epoch: self.epoch.0,
            node: self.node.clone(),
            account: self.account.to_string(),
            mailbox: name.to_string(),
            kind: kind.to_owned(),
            uid: None,
            new_uid: None,
            guid: None,
            detail: detail.to_owned(),
        }
    }

    /// Forgets what was not carried out after all.
    pub(super) fn drop_waiting(&mut self) {
        self.waiting.clear();
    }

    /// Writes what was carried out; durable on return.
    pub(super) fn write(&mut self) -> Result<(), DiskError> {
        history::append_to_ledger(&self.state_dir, &self.waiting)?;
        for entry in self.waiting.drain(..) {
            *self.counted.entry(entry.kind).or_default() += 1;
        }
        Ok(())
    }
}

/// Decisions of all accounts, by kind.
#[derive(Default)]
pub(super) struct Totals(BTreeMap<String, usize>);

impl Totals {
    pub(super) fn is_nothing(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, journal: &Journal) {
        for (kind, count) in &journal.counted {
            *self.0.entry(kind.clone()).or_default() += count;
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing");
        }
        let all: Vec<String> = self.0.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        f.write_str(&all.join(", "))
    }
}
