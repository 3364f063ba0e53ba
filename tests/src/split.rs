//! A test's own record of a split: what both sides of a hard failover hold, and what must be left of it
//! when they are one again. Written from the table in docs/failover.md, and knows nothing of the
//! code that decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use anyhow::ensure;

use crate::{lab::Lab, oracle, server::Server};

/// One account on one node at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// Mailboxes by the identity that the server gave them.
    pub mailboxes: BTreeMap<String, Mailbox>,
}

/// One mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// Its name.
    pub name: String,
    /// What IMAP shows.
    pub seen: oracle::Mailbox,
}

/// A message as a mail client knows it: account, mailbox, UIDVALIDITY and UID.
pub type Presented = (String, String, u32, u32);

impl Side {
    /// Reads an account that nobody changes, by IMAP.
    pub fn read(lab: &Lab, server: &dyn Server, account: &str) -> anyhow::Result<Self> {
        lab.wait("IMAP shows all that is on disk", || {
            let seen = oracle::Account::read(server, account)?;
            let shown: usize = seen.mailboxes.values().map(|m| m.messages.len()).sum();
            if !server.shows_all(account, shown)? {
                return Ok(Err(format!("{shown} messages")));
            }
            let mut side = Self::default();
            for (name, seen) in seen.mailboxes {
                let id = server.identity(account, &name)?;
                let twice = side.mailboxes.insert(id.clone(), Mailbox { name, seen });
                ensure!(twice.is_none(), "two mailboxes of {account} are {id}");
            }
            Ok(Ok(side))
        })
    }

    fn at(&self, id: &str, uid: u32) -> Option<&oracle::Message> {
        self.mailboxes.get(id)?.seen.messages.get(&uid)
    }

    /// Every message: its mailbox's identity, UID, and what it is.
    fn all(&self) -> impl Iterator<Item = (&str, u32, &oracle::Message)> {
        self.mailboxes.iter().flat_map(|(id, mailbox)| {
            mailbox.seen.messages.iter().map(|(&uid, message)| (id.as_str(), uid, message))
        })
    }

    /// The same without a message that came past the gate: the other side never had that.
    #[must_use]
    pub fn without(mut self, serial: &str) -> Self {
        for mailbox in self.mailboxes.values_mut() {
            mailbox.seen.messages.retain(|_, message| message.serial.as_deref() != Some(serial));
        }
        self
    }

    /// How often each message is there, by serial number.
    pub fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (_, _, message) in self.all() {
            *counts.entry(serial(message)).or_insert(0) += 1;
        }
        counts
    }

    /// Every message as clients know it.
    pub fn presented(&self, account: &str) -> BTreeMap<Presented, String> {
        let mailboxes = self.mailboxes.values();
        let all = mailboxes.flat_map(|Mailbox { name, seen }| {
            seen.messages.iter().map(move |(&uid, message)| {
                let place = (account.to_owned(), name.clone(), seen.uid_validity, uid);
                (place, serial(message))
            })
        });
        all.collect()
    }
}

fn serial(message: &oracle::Message) -> String {
    message.serial.clone().unwrap_or_else(|| message.sha1.clone())
}

/// What one account went through, from the promotion to the old master's return.
#[derive(Debug)]
pub struct Split {
    /// What the new master held when it was promoted.
    pub base: Side,
    /// What it holds when the old one comes back.
    pub ours: Side,
    /// What the old one holds then.
    pub theirs: Side,
}

impl Split {
    /// Messages of the old master's that the new one lacked when it was promoted.
    pub fn tail(&self) -> BTreeSet<String> {
        let had = self.base.counts();
        self.theirs.counts().into_keys().filter(|serial| !had.contains_key(serial)).collect()
    }

    /// Messages that the old master's clients moved: not lost, and copied back where they are now.
    pub fn moved_there(&self) -> BTreeSet<String> {
        let new = self.theirs.all().filter(|&(id, uid, message)| {
            self.base.at(id, uid).is_none_or(|base| base.sha1 != message.sha1)
        });
        new.map(|(_, _, message)| serial(message)).collect()
    }

    /// How often each message must be there when all is merged. What both sides moved may be where
    /// either put it.
    pub fn expected(&self) -> BTreeMap<String, RangeInclusive<usize>> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let mut ours_moved: BTreeMap<String, usize> = BTreeMap::new();
        for (id, uid, message) in self.ours.all() {
            let base = self.base.at(id, uid).filter(|base| base.sha1 == message.sha1);
            if base.is_none() {
                *ours_moved.entry(serial(message)).or_insert(0) += 1;
            }
            if !base.is_some_and(|base| self.went_there(id, uid, base, message)) {
                *counts.entry(serial(message)).or_insert(0) += 1;
            }
        }
        let mut loose = BTreeSet::new();
        for (id, uid, message) in self.theirs.all() {
            if self.ours.at(id, uid).is_some_and(|ours| ours.sha1 == message.sha1) {
                continue;
            }
            let base = self.base.at(id, uid).filter(|base| base.sha1 == message.sha1);
            if base.is_some_and(|base| base.flags == message.flags) {
                continue; // gone on the new master, and nobody touched it here
            }
            *counts.entry(serial(message)).or_insert(0) += 1;
            if ours_moved.contains_key(&serial(message)) {
                loose.insert(serial(message));
            }
        }
        let range = |(serial, count): (String, usize)| {
            let least = if loose.contains(&serial) { 1 } else { count };
            (serial, least..=count)
        };
        counts.into_iter().map(range).collect()
    }

    /// Whether the old master's clients removed a message that nobody touched on the new one since.
    fn went_there(
        &self,
        id: &str,
        uid: u32,
        base: &oracle::Message,
        ours: &oracle::Message,
    ) -> bool {
        if let Some(there) = self.theirs.mailboxes.get(id) {
            // A UID that it never gave out, or gave to another message, says nothing of this one.
            let knew = uid < there.seen.uid_next && !there.seen.messages.contains_key(&uid);
            return knew && base.flags == ours.flags;
        }
        // The whole mailbox went, if nothing in it changed.
        let messages = |side: &Side| side.mailboxes.get(id).map(|m| m.seen.messages.clone());
        let next = |side: &Side| side.mailboxes.get(id).map(|m| m.seen.uid_next);
        messages(&self.base) == messages(&self.ours) && next(&self.base) == next(&self.ours)
    }

    /// Flags that a message must have which all three have in one place: whoever changed one since
    /// has it his way.
    pub fn flags(&self) -> Vec<(String, u32, BTreeSet<String>)> {
        let mut merged = Vec::new();
        for (id, uid, base) in self.base.all() {
            let same = |side: &'_ Side| side.at(id, uid).filter(|m| m.sha1 == base.sha1).cloned();
            let (Some(ours), Some(theirs)) = (same(&self.ours), same(&self.theirs)) else {
                continue;
            };
            let all = ours.flags.union(&theirs.flags).chain(&base.flags);
            let kept = all.filter(|flag| {
                let (was, here) = (base.flags.contains(*flag), ours.flags.contains(*flag));
                if was == here { theirs.flags.contains(*flag) } else { here }
            });
            merged.push((id.to_owned(), uid, kept.cloned().collect()));
        }
        merged
    }

    /// Fails unless `merged` is what the record says.
    pub fn check(&self, merged: &Side) -> anyhow::Result<()> {
        let (expected, counts) = (self.expected(), merged.counts());
        for (serial, range) in &expected {
            let count = counts.get(serial).copied().unwrap_or(0);
            ensure!(range.contains(&count), "{serial} is there {count} times, not {range:?}");
        }
        let strange: Vec<_> = counts.keys().filter(|s| !expected.contains_key(*s)).collect();
        ensure!(strange.is_empty(), "removed, and there again: {strange:?}");
        for (id, uid, flags) in self.flags() {
            let Some(message) = merged.at(&id, uid) else { continue };
            ensure!(message.flags == flags, "flags of {id} {uid}: {message:?}, not {flags:?}");
        }
        Ok(())
    }
}

/// Which message every UID ever meant.
#[derive(Debug, Default)]
pub struct Uids {
    meant: BTreeMap<Presented, String>,
    /// UIDs that meant one message on one side and another on the other.
    spent: BTreeSet<Presented>,
}

impl Uids {
    /// Clients of one side of a split have seen this.
    pub fn see(&mut self, presented: &BTreeMap<Presented, String>) {
        for (place, serial) in presented {
            let meant = self.meant.entry(place.clone()).or_insert_with(|| serial.clone());
            if meant != serial {
                self.spent.insert(place.clone());
            }
        }
    }

    /// Clients see this now that both sides are one again: no UID means another message than
    /// before.
    pub fn see_merged(&mut self, presented: &BTreeMap<Presented, String>) -> anyhow::Result<()> {
        for (place, serial) in presented {
            ensure!(
                !self.spent.contains(place),
                "{place:?} meant two messages, and means {serial}"
            );
            let meant = self.meant.entry(place.clone()).or_insert_with(|| serial.clone());
            ensure!(meant == serial, "{place:?} meant {meant} and means {serial}");
        }
        Ok(())
    }
}
