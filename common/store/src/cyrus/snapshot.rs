//! What was last seen of a mailbox, and what changed since earlier looks.

use std::collections::{BTreeMap, BTreeSet};

use mailtwin_cyrus::{
    Value,
    mailbox::{Mailbox, Message},
    names,
};
use mailtwin_logic::{
    digest::Digest,
    ids::{Guid, MailboxId, ModSeq, Uid, UidValidity},
    mailbox::{Flags, Head, Keyword, Keywords, MailboxName, MailboxState, Record},
};

use crate::{Delta, guid_of};

/// Stands in Cyrus for the flag "passed", which IMAP does not have.
const PASSED: &str = "$MailtwinPassed";

/// Expunged UIDs remembered; further back only a complete delta helps.
const TOMBSTONES_MAX: usize = 10_000;

const SYSTEM: [(&str, Flags); 5] = [
    (r"\Answered", Flags::ANSWERED),
    (r"\Flagged", Flags::FLAGGED),
    (r"\Deleted", Flags::DELETED),
    (r"\Seen", Flags::SEEN),
    (r"\Draft", Flags::DRAFT),
];

/// One mailbox.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) mailbox: Mailbox,
    pub(super) name: MailboxName,
    records: BTreeMap<Uid, Record>,
    /// Annotations that have to be sent with each change of their message, or they are lost.
    annotations: BTreeMap<Uid, Value>,
    digest: Digest,
    version: ModSeq,
    /// Changes up to here are not known one by one.
    floor: ModSeq,
    tombstones: BTreeMap<Uid, ModSeq>,
    /// Whether its messages have been read at all.
    is_read: bool,
}

impl Snapshot {
    /// The first look at a mailbox.
    pub(super) fn new(mailbox: Mailbox, name: MailboxName) -> Self {
        let version = ModSeq(mailbox.highest_modseq.max(1));
        Self {
            mailbox,
            name,
            records: BTreeMap::new(),
            annotations: BTreeMap::new(),
            digest: Digest::default(),
            version,
            floor: version,
            tombstones: BTreeMap::new(),
            is_read: false,
        }
    }

    /// Whether nothing of its messages can have changed since it looked like `header`.
    pub(super) fn is_of(&self, header: &Mailbox) -> bool {
        let key = |mailbox: &Mailbox| {
            let Mailbox { uid_validity, last_uid, highest_modseq, crc, .. } = mailbox;
            (*uid_validity, *last_uid, *highest_modseq, *crc)
        };
        key(&self.mailbox) == key(header) && self.mailbox.unique_id == header.unique_id
    }

    /// Takes in all messages of another look; `held` tells which of them replication put there.
    pub(super) fn learn(
        &mut self,
        mailbox: Mailbox,
        messages: Vec<Message>,
        held: &BTreeMap<Uid, Guid>,
    ) {
        let is_first = !std::mem::replace(&mut self.is_read, true);
        let version = if is_first { self.version } else { self.next_version(&mailbox) };
        if self.mailbox.uid_validity != mailbox.uid_validity {
            self.floor = version;
        }
        let mut gone: BTreeSet<Uid> = self.records.keys().copied().collect();
        self.annotations.clear();
        for message in messages {
            let mut record = record_of(&message);
            record.replicated = held.get(&record.uid) == Some(&record.guid);
            gone.remove(&record.uid);
            let known = self.records.get(&record.uid);
            record.modseq = known.map_or(version, |known| known.modseq);
            if known.is_some_and(|known| *known != record) {
                record.modseq = version;
            }
            if let Some(annotations) = message.annotations {
                self.annotations.insert(record.uid, annotations);
            }
            self.records.insert(record.uid, record);
        }
        for uid in gone {
            self.records.remove(&uid);
            self.tombstones.insert(uid, version);
        }
        (self.mailbox, self.version) = (mailbox, version);
        self.settle();
    }

    /// Takes in what was just changed: messages that are new or other than before, and UIDs expunged.
    pub(super) fn advance(&mut self, mailbox: Mailbox, changed: Vec<Record>, expunged: &[Uid]) {
        let version = self.next_version(&mailbox);
        for mut record in changed {
            record.modseq = version;
            self.records.insert(record.uid, record);
        }
        for uid in expunged {
            if self.records.remove(uid).is_some() {
                self.tombstones.insert(*uid, version);
            }
        }
        (self.mailbox, self.version) = (mailbox, version);
        self.settle();
    }

    fn next_version(&self, mailbox: &Mailbox) -> ModSeq {
        ModSeq(self.version.next().0.max(mailbox.highest_modseq))
    }

    fn settle(&mut self) {
        self.digest = Digest::of(self.records.values());
        if self.tombstones.len() > TOMBSTONES_MAX {
            self.tombstones.clear();
            self.floor = self.version;
        }
    }

    pub(super) fn id(&self) -> MailboxId {
        id_of(&self.mailbox)
    }

    pub(super) fn head(&self) -> Head {
        Head {
            uid_validity: UidValidity(self.mailbox.uid_validity),
            uid_next: Uid(self.mailbox.last_uid).next(),
            messages: count(self.records.len()),
            digest: self.digest,
        }
    }

    pub(super) fn state(&self) -> MailboxState {
        MailboxState {
            id: self.id(),
            name: self.name.clone(),
            head: self.head(),
            highest_modseq: self.version,
            foreign: count(self.records.values().filter(|record| !record.replicated).count()),
        }
    }

    pub(super) fn records(&self) -> impl DoubleEndedIterator<Item = &Record> {
        self.records.values()
    }

    pub(super) fn from(&self, uid: Uid) -> impl Iterator<Item = &Record> {
        self.records.range(uid..).map(|(_, record)| record)
    }

    pub(super) fn get(&self, uid: Uid) -> Option<&Record> {
        self.records.get(&uid)
    }

    /// Whether there can be something in [`super::extras::annotations`].
    pub(super) fn is_annotated(&self) -> bool {
        let mailbox = &self.mailbox;
        mailbox.annotated || mailbox.options() != b"P" || !self.annotations.is_empty()
    }

    /// Messages with annotations.
    pub(super) fn annotations(&self) -> impl Iterator<Item = (Uid, &Value)> {
        self.annotations.iter().map(|(uid, list)| (*uid, list))
    }

    /// Sets who put a message here; tells whether that is news.
    pub(super) fn mark(&mut self, uid: Uid, replicated: bool) -> bool {
        let record = self.records.get_mut(&uid).filter(|record| record.replicated != replicated);
        record.map(|record| record.replicated = replicated).is_some()
    }

    pub(super) fn delta(&self, since: ModSeq) -> Delta {
        let complete = since == ModSeq(0) || since < self.floor || since > self.version;
        let changed = |record: &&Record| complete || record.modseq > since;
        let gone = |(uid, at): (&Uid, &ModSeq)| (!complete && *at > since).then_some(*uid);
        let all = self.records.values().flat_map(|record| record.keywords.iter());
        let keywords: BTreeSet<Keyword> = all.map(str::to_owned).collect();
        let records: Vec<Record> = self.records.values().filter(changed).cloned().collect();
        Delta {
            state: self.state(),
            keywords: keywords.into_iter().collect(),
            annotated: records.iter().any(|record| self.annotations.contains_key(&record.uid)),
            complete,
            records,
            expunged: self.tombstones.iter().filter_map(gone).collect(),
        }
    }

    /// The message that Cyrus is to have for `record`.
    pub(super) fn message(&self, record: &Record, modseq: u64) -> Message {
        let annotations = self.annotations.get(&record.uid).cloned();
        Message { annotations, ..message_of(record, modseq) }
    }
}

/// The message that Cyrus is to have for a new record.
pub(super) fn message_of(record: &Record, modseq: u64) -> Message {
    let system = SYSTEM.iter().filter(|(_, flag)| record.flags.contains(*flag));
    let passed = record.flags.contains(Flags::PASSED).then_some(PASSED);
    let names = system.map(|(name, _)| *name).chain(record.keywords.iter()).chain(passed);
    Message {
        uid: record.uid.0,
        modseq,
        guid: record.guid.0,
        octets: record.octets,
        internal_date: record.internal_date,
        flags: names.map(|name| name.as_bytes().to_vec()).collect(),
        annotations: None,
    }
}

fn record_of(message: &Message) -> Record {
    let (mut flags, mut keywords) = (Flags::default(), Vec::new());
    for name in &message.flags {
        let system = SYSTEM.iter().find(|(text, _)| name.eq_ignore_ascii_case(text.as_bytes()));
        if let Some((_, flag)) = system {
            flags = flags.with(*flag);
        } else if name == PASSED.as_bytes() {
            flags = flags.with(Flags::PASSED);
        } else {
            keywords.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Record {
        uid: Uid(message.uid),
        guid: Guid(message.guid),
        octets: message.octets,
        internal_date: message.internal_date,
        flags,
        keywords: keywords.into_iter().collect::<Keywords>(),
        modseq: ModSeq(message.modseq),
        replicated: false,
        hint: Box::default(),
    }
}

/// A mailbox's identity: its UNIQUEID, or what that hashes to where it is in a form of its own.
pub(super) fn id_of(mailbox: &Mailbox) -> MailboxId {
    let told = names::identity(&mailbox.unique_id).map(MailboxId);
    told.unwrap_or_else(|| {
        let Guid(hash) = guid_of(mailbox.unique_id.as_bytes());
        let mut id = MailboxId::default();
        id.0.iter_mut().zip(hash).for_each(|(octet, hashed)| *octet = hashed);
        id
    })
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(last_uid: u32, modseq: u64) -> Mailbox {
        let new = Mailbox::new(b"user.ann".to_vec(), "0".repeat(24), 7, Vec::new());
        Mailbox { last_uid, highest_modseq: modseq, ..new }
    }

    fn message(uid: u32, modseq: u64, flags: &[&str]) -> Message {
        let flags = flags.iter().map(|flag| flag.as_bytes().to_vec()).collect();
        let guid = [u8::try_from(uid).unwrap(); 20];
        Message { uid, modseq, guid, octets: 1, internal_date: 0, flags, annotations: None }
    }

    #[test]
    fn flags_come_back_as_they_went() {
        for bits in 0..64 {
            let flags = Flags(bits);
            let keywords = ["todo", "$Junk"].iter().collect();
            let record = Record { flags, keywords, ..record_of(&message(1, 1, &[])) };
            assert_eq!(record_of(&message_of(&record, 1)), record, "{flags:?}");
        }
    }

    #[test]
    fn what_changed_between_looks_is_told() {
        let mut snapshot = Snapshot::new(header(3, 5), MailboxName::inbox());
        let all = |flags: &[&str]| vec![message(1, 4, &[]), message(2, 5, flags)];
        let replicated = BTreeMap::from([(Uid(1), Guid([1; 20])), (Uid(2), Guid([9; 20]))]);
        snapshot.learn(header(3, 5), all(&[]), &replicated);
        let since = snapshot.state().highest_modseq;
        assert_eq!(snapshot.state().foreign, 1, "another message had UID 2 then");
        assert!(snapshot.delta(ModSeq(1)).complete);
        snapshot.learn(header(4, 6), all(&["\\Seen"])[1..].to_vec(), &replicated);
        let delta = snapshot.delta(since);
        assert_eq!((delta.complete, &delta.expunged[..]), (false, &[Uid(1)][..]));
        assert_eq!(delta.records.iter().map(|record| record.uid.0).collect::<Vec<_>>(), [2]);
        assert_eq!(snapshot.head().digest, Digest::of(snapshot.records()));
        // A change that raises no MODSEQ of the server's raises ours.
        let since = snapshot.state().highest_modseq;
        snapshot.learn(header(4, 6), Vec::new(), &replicated);
        assert_eq!(snapshot.delta(since).expunged, [Uid(2)]);
        snapshot.learn(Mailbox { uid_validity: 8, ..header(4, 9) }, Vec::new(), &replicated);
        assert!(snapshot.delta(since).complete);
    }
}
