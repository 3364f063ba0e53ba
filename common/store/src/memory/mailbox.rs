//! One mailbox in memory: records, their versions, and what went.

use std::{collections::BTreeMap, sync::Arc};

use mailtwin_logic::{
    check::{Depth, Flaw, FlawKind, Inspect, Inspected, slot},
    digest::Digest,
    ids::{MailboxId, ModSeq, Uid, UidValidity},
    mailbox::{Head, Keyword, MailboxName, MailboxState, Record},
};

use crate::{Delta, guid_of};

/// Expunged UIDs remembered; further back only a complete delta helps.
const TOMBSTONES_MAX: usize = 1000;

#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) record: Record,
    pub(super) octets: Arc<[u8]>,
}

#[derive(Clone, Debug)]
pub(super) struct Mailbox {
    pub(super) id: MailboxId,
    pub(super) uid_validity: UidValidity,
    pub(super) uid_next: Uid,
    pub(super) keywords: Vec<Keyword>,
    messages: BTreeMap<Uid, Message>,
    digest: Digest,
    highest: ModSeq,
    /// Expunged UIDs by the version in which they went.
    tombstones: BTreeMap<ModSeq, Uid>,
    /// Tombstones up to here are forgotten.
    forgotten: ModSeq,
}

impl Mailbox {
    pub(super) fn new(id: MailboxId, uid_validity: UidValidity) -> Self {
        Self {
            id,
            uid_validity,
            uid_next: Uid(1),
            keywords: Vec::new(),
            messages: BTreeMap::new(),
            digest: Digest::default(),
            highest: ModSeq(0),
            tombstones: BTreeMap::new(),
            forgotten: ModSeq(0),
        }
    }

    pub(super) fn head(&self) -> Head {
        Head {
            uid_validity: self.uid_validity,
            uid_next: self.uid_next,
            messages: count(self.messages.len()),
            digest: self.digest,
        }
    }

    pub(super) fn state(&self, name: &MailboxName) -> MailboxState {
        MailboxState {
            id: self.id,
            name: name.clone(),
            head: self.head(),
            highest_modseq: self.highest,
            foreign: count(self.messages.values().filter(|m| !m.record.replicated).count()),
        }
    }

    pub(super) fn adopt(&mut self, below: Uid) -> u64 {
        let records = self.messages.range_mut(..below).map(|(_, message)| &mut message.record);
        let own = records.filter(|record| !record.replicated);
        own.map(|record| record.replicated = true).count() as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn get(&self, uid: Uid) -> Option<&Message> {
        self.messages.get(&uid)
    }

    pub(super) fn messages(&self) -> impl Iterator<Item = &Message> {
        self.messages.values()
    }

    pub(super) fn last_uid(&self) -> Option<Uid> {
        self.messages.last_key_value().map(|(uid, _)| *uid)
    }

    /// Adds a message; its UID is not taken.
    pub(super) fn put(&mut self, mut record: Record, octets: Arc<[u8]>) {
        record.modseq = self.version();
        self.learn(&record);
        self.digest.add(&record);
        self.uid_next = self.uid_next.max(record.uid.next());
        self.messages.insert(record.uid, Message { record, octets });
    }

    /// Changes a message's record; tells whether it is there.
    pub(super) fn update(&mut self, uid: Uid, change: impl FnOnce(&mut Record)) -> bool {
        let modseq = self.version();
        let Some(message) = self.messages.get_mut(&uid) else { return false };
        self.digest.remove(&message.record);
        change(&mut message.record);
        message.record.modseq = modseq;
        self.digest.add(&message.record);
        let record = message.record.clone();
        self.learn(&record);
        true
    }

    /// Looks at every message: what is wrong with one here is that a test changed its octets.
    pub(super) fn inspect(&self, name: &MailboxName, wanted: &Inspect) -> Inspected {
        let mut found = Inspected { state: Some(self.state(name)), ..Inspected::default() };
        for (&uid, message) in self.messages.range(wanted.from..) {
            if !wanted.only.is_empty() && !wanted.only.contains(&uid) {
                continue;
            }
            let chosen = wanted.slots.has(slot(self.id, uid));
            if wanted.depth == Depth::Sample && !chosen {
                continue;
            }
            if found.octets_read >= wanted.octets_max {
                found.next = Some(uid);
                break;
            }
            found.digest.add(&message.record);
            found.messages += 1;
            found.octets += message.record.octets;
            let (held, octets) = (message.octets.len() as u64, message.record.octets);
            if wanted.depth >= Depth::Octets && chosen {
                found.read += 1;
                found.octets_read += octets;
            }
            if held != octets {
                let detail = format!("{held} octets, {octets} when first seen");
                found.flaws.push(Flaw { uid: Some(uid), kind: FlawKind::Size, detail });
            } else if wanted.depth >= Depth::Octets && chosen {
                let guid = guid_of(&message.octets);
                if guid != message.record.guid {
                    let detail = format!("GUID {guid}, {} when first seen", message.record.guid);
                    found.flaws.push(Flaw { uid: Some(uid), kind: FlawKind::Octets, detail });
                }
            }
        }
        found
    }

    /// Puts other octets in a message's place.
    pub(super) fn replace(&mut self, uid: Uid, octets: Arc<[u8]>) {
        if let Some(message) = self.messages.get_mut(&uid) {
            message.octets = octets;
        }
    }

    /// Takes a message out.
    pub(super) fn expunge(&mut self, uid: Uid) -> Option<Message> {
        let message = self.messages.remove(&uid)?;
        self.digest.remove(&message.record);
        let modseq = self.version();
        self.tombstones.insert(modseq, uid);
        if self.tombstones.len() > TOMBSTONES_MAX
            && let Some((modseq, _)) = self.tombstones.pop_first()
        {
            self.forgotten = modseq;
        }
        Some(message)
    }

    /// Takes UIDVALIDITY, UIDNEXT and the order of keywords from the master. Within a UIDVALIDITY
    /// UIDNEXT never falls.
    pub(super) fn become_like(&mut self, target: Head, modseq: ModSeq, keywords: &[Keyword]) {
        let floor = if target.uid_validity == self.uid_validity {
            self.uid_next
        } else {
            self.last_uid().map_or(Uid(1), Uid::next)
        };
        self.uid_validity = target.uid_validity;
        self.uid_next = target.uid_next.max(floor);
        let own = std::mem::replace(&mut self.keywords, keywords.to_vec());
        let own = own.into_iter().filter(|keyword| !keywords.contains(keyword));
        self.keywords.extend(own);
        self.version();
        self.highest = self.highest.max(modseq);
    }

    pub(super) fn delta(&self, name: &MailboxName, since: ModSeq) -> Delta {
        let complete = since == ModSeq(0) || since < self.forgotten || since > self.highest;
        let changed = |m: &&Message| complete || m.record.modseq > since;
        let records = self.messages().filter(changed).map(|m| m.record.clone()).collect();
        let mut expunged: Vec<Uid> = if complete {
            Vec::new()
        } else {
            self.tombstones.range(since.after()..).map(|(_, uid)| *uid).collect()
        };
        expunged.sort_unstable();
        let (state, keywords) = (self.state(name), self.keywords.clone());
        Delta { state, keywords, annotated: false, complete, records, expunged }
    }

    fn version(&mut self) -> ModSeq {
        self.highest = self.highest.after();
        self.highest
    }

    fn learn(&mut self, record: &Record) {
        for keyword in record.keywords.iter() {
            if !self.keywords.iter().any(|known| known == keyword) {
                self.keywords.push(keyword.to_owned());
            }
        }
    }
}

trait After {
    fn after(self) -> Self;
}

impl After for ModSeq {
    fn after(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
