//! What cases are made of: records, batches, and short ways to apply them.

use std::io::Read as _;

use mailtwin_logic::{
    digest::Digest,
    ids::{Account, MailboxId, ModSeq, Uid, UidValidity},
    mailbox::{Flags, Head, Keywords, MailboxName, MailboxState, Record},
    plan::{Change, Mode},
};

use super::Subject;
use crate::{Batch, Destination, MailStore, Staged, StoreError, guid_of};

/// A date that no clock gives by itself.
const DATE: i64 = 1_234_567_890;

pub(super) fn ann() -> Account {
    Account::new("ann").expect("it is a good name")
}

pub(super) fn name(text: &str) -> MailboxName {
    MailboxName::new(text.as_bytes()).expect("it is a good name")
}

pub(super) fn id(n: u8) -> MailboxId {
    MailboxId([n; 16])
}

/// The octets of the message called `text`.
pub(super) fn body(text: &str) -> Vec<u8> {
    format!("Subject: {text}\n\nthis is {text}\n").into_bytes()
}

/// A master's record of the message called `text`.
pub(super) fn record(uid: u32, text: &str) -> Record {
    let octets = body(text);
    Record {
        uid: Uid(uid),
        guid: guid_of(&octets),
        octets: octets.len() as u64,
        internal_date: DATE + i64::from(uid),
        flags: Flags::default(),
        keywords: Keywords::default(),
        modseq: ModSeq(u64::from(uid)),
        replicated: false,
        hint: Box::default(),
    }
}

/// The head of a mailbox that holds `records`.
pub(super) fn head(uid_validity: u32, uid_next: u32, records: &[Record]) -> Head {
    Head {
        uid_validity: UidValidity(uid_validity),
        uid_next: Uid(uid_next),
        messages: u32::try_from(records.len()).expect("cases are small"),
        digest: Digest::of(records),
    }
}

/// A mailbox of ann's that cases work on.
pub(super) struct At<'a> {
    pub(super) subject: &'a dyn Subject,
    pub(super) id: MailboxId,
    pub(super) name: MailboxName,
}

impl<'a> At<'a> {
    pub(super) fn new(subject: &'a dyn Subject, number: u8, at: &str) -> Self {
        Self { subject, id: id(number), name: name(at) }
    }

    pub(super) fn store(&self) -> &'a dyn MailStore {
        self.subject.store()
    }

    pub(super) fn to(&self, mode: Mode) -> Destination {
        Destination { account: ann(), mailbox: self.id, name: self.name.clone(), mode }
    }

    /// Stages the octets of the message called `text`.
    pub(super) fn stage(&self, mode: Mode, record: &Record, text: &str) -> Staged {
        let mut staging = self.store().stage(&self.to(mode), record).expect("it begins");
        // In two parts, as from a wire.
        let octets = body(text);
        let (one, two) = octets.split_at(octets.len() / 3);
        staging.write(one).expect("it fits");
        staging.write(two).expect("it fits");
        staging.finish().expect("it is what was announced")
    }

    /// A batch that adds messages and makes `changes` before.
    pub(super) fn batch(&self, mode: Mode, changes: Vec<Change>, adds: &[(u32, &str)]) -> Batch {
        let records: Vec<Record> = adds.iter().map(|(uid, text)| record(*uid, text)).collect();
        let staged = records.iter().zip(adds).map(|(r, (_, text))| self.stage(mode, r, text));
        let next = adds.last().map_or(1, |(uid, _)| uid + 1);
        Batch {
            to: self.to(mode),
            expect: self.head(),
            target: head(7, next, &[]),
            modseq: ModSeq(0),
            keywords: Vec::new(),
            staged: staged.collect(),
            changes: changes.into_iter().chain(records.into_iter().map(Change::Add)).collect(),
            last: true,
        }
    }

    pub(super) fn apply(&self, batch: Batch) -> Result<Head, StoreError> {
        apply(self.store(), batch)
    }

    /// Builds the mailbox with UIDVALIDITY 7 in one batch.
    pub(super) fn build(&self, adds: &[(u32, &str)]) -> Head {
        self.apply(self.batch(Mode::Build, Vec::new(), adds)).expect("build")
    }

    /// Adds messages above UIDNEXT.
    pub(super) fn add(&self, adds: &[(u32, &str)]) -> Head {
        self.apply(self.batch(Mode::Update, Vec::new(), adds)).expect("add")
    }

    pub(super) fn change(&self, changes: Vec<Change>) -> Head {
        let mut batch = self.batch(Mode::Update, changes, &[]);
        batch.target = self.head().expect("it is there");
        self.apply(batch).expect("change")
    }

    pub(super) fn state(&self) -> Option<MailboxState> {
        let found = self.store().find(&ann(), &self.name).expect("find");
        found.filter(|state| state.id == self.id)
    }

    pub(super) fn head(&self) -> Option<Head> {
        self.state().map(|state| state.head)
    }

    pub(super) fn records(&self) -> Vec<Record> {
        let delta = self.store().delta(&ann(), self.id, ModSeq(0)).expect("delta");
        assert!(delta.complete, "a delta since 0 is complete");
        assert_eq!(delta.state.head.digest, Digest::of(&delta.records), "head and records agree");
        delta.records
    }

    pub(super) fn uids(&self) -> Vec<u32> {
        self.records().iter().map(|record| record.uid.0).collect()
    }

    /// Asserts that a message's octets can be read and are those of `text`.
    pub(super) fn assert_holds(&self, uid: u32, text: &str) {
        let mut octets = self.store().open(&ann(), self.id, Uid(uid)).expect("open");
        let mut read = Vec::new();
        octets.read_to_end(&mut read).expect("read");
        assert_eq!(octets.octets(), read.len() as u64);
        assert_eq!(String::from_utf8_lossy(&read), String::from_utf8_lossy(&body(text)));
    }
}

/// Applies one batch.
pub(super) fn apply(store: &dyn MailStore, batch: Batch) -> Result<Head, StoreError> {
    let mut results = store.apply(vec![batch]);
    assert_eq!(results.len(), 1, "one result for one batch");
    results.remove(0)
}

/// A change of flags and keywords that leaves the date as [`record`] gave it.
pub(super) fn flag(uid: u32, flags: Flags, keywords: &[&str]) -> Change {
    Change::Update {
        uid: Uid(uid),
        internal_date: DATE + i64::from(uid),
        flags,
        keywords: keywords.iter().collect(),
    }
}

impl At<'_> {
    /// The mailbox's name as text.
    pub(super) fn name_text(&self) -> &str {
        std::str::from_utf8(self.name.as_octets()).expect("cases use text")
    }
}
