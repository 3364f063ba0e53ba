//! What is decided for one account: written to `ledger.jsonl` before it is carried out. What is decided
//! otherwise after all, because the mailbox changed or a crash came between, is withdrawn.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use mailtwin_disk::DiskError;
use mailtwin_host::{admin::LedgerEntry, codes::LedgerKind, ledger};
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
    /// Decided, and not written yet.
    waiting: Vec<LedgerEntry>,
    /// In the ledger, by id: of this merge, or of an earlier one that broke off.
    written: BTreeMap<String, LedgerEntry>,
    is_old_master: bool,
}

/// What the ledger has of a merge that broke off, by account.
pub(super) struct Earlier(BTreeMap<String, BTreeMap<String, LedgerEntry>>);

impl Earlier {
    pub(super) fn read(merging: &Merging) -> Result<Self, DiskError> {
        let mut accounts: BTreeMap<String, BTreeMap<String, LedgerEntry>> = BTreeMap::new();
        let of_this =
            |entry: &LedgerEntry| entry.epoch == merging.epoch.0 && entry.node == merging.node;
        for entry in ledger::read(&merging.state_dir)?.into_iter().filter(of_this) {
            accounts.entry(entry.account.clone()).or_default().insert(entry.id.clone(), entry);
        }
        Ok(Self(accounts))
    }
}

impl Journal {
    pub(super) fn new(
        merging: &Merging,
        earlier: &mut Earlier,
        account: &Account,
        is_old_master: bool,
    ) -> Self {
        Self {
            is_old_master,
            state_dir: merging.state_dir.clone(),
            node: merging.node.clone(),
            epoch: merging.epoch,
            account: account.clone(),
            at: merging.clock.unix_ms(),
            waiting: Vec::new(),
            written: earlier.0.remove(&account.to_string()).unwrap_or_default(),
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
    pub(super) fn mailbox(&mut self, kind: LedgerKind, name: &MailboxName, detail: &str) {
        let entry = self.entry(kind, name, detail);
        self.decide(entry);
    }

    /// Notes one about a message that is, or was, `record`.
    pub(super) fn message(
        &mut self,
        kind: LedgerKind,
        name: &MailboxName,
        record: &Record,
        new: Option<Uid>,
        detail: &str,
    ) {
        let entry = self.entry(kind, name, detail);
        self.decide(LedgerEntry {
            uid: Some(record.uid.0),
            new_uid: new.map(|uid| uid.0),
            guid: Some(record.guid.to_string()),
            ..entry
        });
    }

    fn decide(&mut self, entry: LedgerEntry) {
        self.waiting.push(LedgerEntry { id: ledger::id(&entry), ..entry });
    }

    fn entry(&self, kind: LedgerKind, name: &MailboxName, detail: &str) -> LedgerEntry {
        LedgerEntry {
            at: self.at,
            epoch: self.epoch.0,
            node: self.node.clone(),
            account: self.account.to_string(),
            mailbox: name.to_string(),
            kind: kind.as_str().to_owned(),
            uid: None,
            new_uid: None,
            guid: None,
            detail: detail.to_owned(),
            id: String::new(),
            acked_at: None,
        }
    }

    /// Forgets decisions that were taken on what is no longer so.
    pub(super) fn drop_waiting(&mut self) {
        self.waiting.clear();
    }

    /// Writes what was decided for the messages of `name`, of which the master holds `records`, and
    /// withdraws what was written for them and neither carried out nor decided again. Durable on
    /// return.
    pub(super) fn write_for(
        &mut self,
        name: &MailboxName,
        records: &[Record],
    ) -> Result<(), DiskError> {
        let again: BTreeSet<&String> = self.waiting.iter().map(|entry| &entry.id).collect();
        let void: Vec<_> = self
            .written
            .values()
            .filter(|entry| entry.mailbox == name.to_string() && !again.contains(&entry.id))
            .filter(|entry| !is_done(entry, records))
            .cloned()
            .collect();
        ledger::withdraw(&self.state_dir, &void)?;
        for entry in void {
            self.written.remove(&entry.id);
        }
        self.write()
    }

    /// Writes what was decided; durable on return.
    pub(super) fn write(&mut self) -> Result<(), DiskError> {
        ledger::append(&self.state_dir, &self.waiting)?;
        let written = self.waiting.drain(..).map(|entry| (entry.id.clone(), entry));
        self.written.extend(written);
        Ok(())
    }
}

/// Whether the master's messages show that a decision was carried out. What they cannot show was.
fn is_done(entry: &LedgerEntry, records: &[Record]) -> bool {
    let has = |uid: Option<u32>| {
        let mut records = records.iter().filter(|record| Some(record.uid.0) == uid);
        records.any(|record| Some(record.guid.to_string()) == entry.guid)
    };
    match entry.kind() {
        Some(LedgerKind::Tail | LedgerKind::Clash | LedgerKind::Changed) => has(entry.new_uid),
        Some(LedgerKind::Moved | LedgerKind::Expunged) => !has(entry.uid),
        Some(
            LedgerKind::Flags | LedgerKind::Renamed | LedgerKind::Deleted | LedgerKind::Copied,
        )
        | None => true,
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
        for entry in journal.written.values() {
            *self.0.entry(entry.kind.clone()).or_default() += 1;
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
