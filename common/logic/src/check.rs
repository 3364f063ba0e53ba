//! Comparison of a pair: what differs between a master and one replica, typed, with what mends it.
//!
//! Nothing here decides what to do about a difference: [`Repair`] says what could be done, and is
//! [`Repair::None`] where a human has to decide.

mod compare;
mod local;
mod settle;
mod tree;
mod undo;

use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    ids::{Account, Guid, MailboxId, Uid},
    mailbox::{MailboxName, MailboxState},
};

pub use compare::{Listed, listing, records};
pub use local::{Local, is_meant};
pub use settle::{Looked, Settle, may_be_back};
pub use tree::{BRANCHES, branch, differing};
pub use undo::{Octets, Taken, at_stake};

/// Parts that the messages of a store fall into, whichever there are: a sample reads some of them.
pub const SLOTS: u16 = 1000;

/// Which part a message belongs to: the same on every node, and for as long as it keeps its UID.
pub fn slot(mailbox: MailboxId, uid: Uid) -> u16 {
    let seed = mailbox.0.iter().fold(0_u64, |sum, &octet| sum.rotate_left(8) ^ u64::from(octet));
    // The finish of SplitMix64: neighbouring UIDs fall far apart.
    let mut hash = seed ^ u64::from(uid.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    let part = (hash ^ hash >> 31) % u64::from(SLOTS);
    u16::try_from(part).unwrap_or(0)
}

/// Some of the parts: `count` of them from `from` on, counted round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    /// The first, below [`SLOTS`].
    pub from: u16,
    /// How many, at most [`SLOTS`].
    pub count: u16,
}

impl Slots {
    /// All parts.
    pub const ALL: Self = Self { from: 0, count: SLOTS };

    /// Whether `slot` is one of them.
    pub fn has(self, slot: u16) -> bool {
        let after = (u32::from(slot) + u32::from(SLOTS)).saturating_sub(self.from.into());
        after % u32::from(SLOTS) < u32::from(self.count)
    }
}

/// How closely a store looks at its own messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Depth {
    /// Opens each file; compares its size and date with what was recorded.
    Files,
    /// Reads each file; compares its SHA-1 as well.
    Octets,
    /// As [`Depth::Octets`], of the chosen messages only: the others are not even opened.
    Sample,
}

/// What a store is to look at in one of its mailboxes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspect {
    /// Whose.
    pub account: Account,
    /// Which.
    pub mailbox: MailboxId,
    /// How closely.
    pub depth: Depth,
    /// Messages from this UID on.
    pub from: Uid,
    /// Where to stop, in octets read; the message that exceeds it is still looked at.
    pub octets_max: u64,
    /// Which messages are read, at [`Depth::Octets`] and [`Depth::Sample`].
    pub slots: Slots,
    /// Only these, if there are any, in order.
    pub only: alloc::vec::Vec<Uid>,
}

/// What a store found in one of its mailboxes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspected {
    /// The mailbox as it was found.
    pub state: Option<MailboxState>,
    /// Sum over the records looked at, made anew from each.
    pub digest: Digest,
    /// How many they are.
    pub messages: u32,
    /// Octets they have.
    pub octets: u64,
    /// Messages that were read.
    pub read: u32,
    /// Octets that were read.
    pub octets_read: u64,
    /// Where to go on, if this is not the end.
    pub next: Option<Uid>,
    /// What is wrong.
    pub flaws: alloc::vec::Vec<Flaw>,
}

/// Something wrong in one store, seen without the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flaw {
    /// Which message, if it is one's.
    pub uid: Option<Uid>,
    /// Of which kind.
    pub kind: FlawKind,
    /// For humans.
    pub detail: String,
}

/// Kinds of [`Flaw`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FlawKind {
    /// Other octets than when it was first seen.
    Octets,
    /// Another size than when it was first seen.
    Size,
    /// Another modification time, which is the INTERNALDATE.
    Date,
    /// Cannot be opened or read.
    Unreadable,
    /// The mail server's list of UIDs is damaged.
    List,
    /// The mail server's list would give out UIDs that were given before.
    UidNext,
    /// Files that have no UID.
    Unnumbered,
}

/// Which side is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The master.
    Master,
    /// The replica.
    Replica,
    /// It cannot be told.
    Unknown,
}

/// Kinds of difference, worst first. Their names in output and documents are kebab-case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A message's octets are not what they were.
    Corrupt,
    /// A message's file has another size than it had.
    Size,
    /// A message that cannot be read.
    Unreadable,
    /// A message that the replica lacks.
    Missing,
    /// One UID means two messages.
    Clash,
    /// An account that the replica lacks.
    AccountMissing,
    /// A mailbox that the replica lacks.
    MailboxMissing,
    /// A mailbox that cannot be read.
    MailboxUnreadable,
    /// A mailbox has another identity.
    MailboxId,
    /// UIDVALIDITY differs.
    UidValidity,
    /// UIDNEXT differs.
    UidNext,
    /// The mail server's list of UIDs is damaged.
    List,
    /// A mailbox's messages differ; a closer look tells which.
    Contents,
    /// A message that only the replica has.
    Extra,
    /// Files without a UID.
    Unnumbered,
    /// System flags differ.
    Flags,
    /// Keywords differ.
    Keywords,
    /// INTERNALDATE differs.
    Date,
    /// A mailbox stands under another name.
    MailboxName,
    /// A mailbox that only the replica has.
    MailboxExtra,
    /// Subscriptions, access rights or a Sieve script differ.
    File,
    /// An account that only the replica has.
    AccountExtra,
}

impl Kind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Corrupt => "corrupt",
            Self::Size => "size",
            Self::Unreadable => "unreadable",
            Self::Missing => "missing",
            Self::Clash => "clash",
            Self::AccountMissing => "account-missing",
            Self::MailboxMissing => "mailbox-missing",
            Self::MailboxUnreadable => "mailbox-unreadable",
            Self::MailboxId => "mailbox-id",
            Self::UidValidity => "uid-validity",
            Self::UidNext => "uid-next",
            Self::List => "list",
            Self::Contents => "contents",
            Self::Extra => "extra",
            Self::Unnumbered => "unnumbered",
            Self::Flags => "flags",
            Self::Keywords => "keywords",
            Self::Date => "date",
            Self::MailboxName => "mailbox-name",
            Self::MailboxExtra => "mailbox-extra",
            Self::File => "file",
            Self::AccountExtra => "account-extra",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What mends a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repair {
    /// The replica takes over what the master has, as after any change.
    Replay,
    /// The message's file is replaced by one with the recorded octets and date.
    Replace,
    /// The mail server's list of UIDs is written anew from what is known.
    Rewrite,
    /// What only the replica has goes to its graveyard, then the master's state is replayed.
    Bury,
    /// The master's UIDNEXT is raised to the replica's, since none ever falls.
    Raise,
    /// Nothing: a human decides.
    None,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Whose.
    pub account: Account,
    /// In which mailbox, by identity.
    pub mailbox: Option<MailboxId>,
    /// Its name, where that is known.
    pub name: Option<MailboxName>,
    /// Of which message.
    pub uid: Option<Uid>,
    /// Of which kind.
    pub kind: Kind,
    /// Which side is wrong.
    pub side: Side,
    /// For humans.
    pub detail: String,
    /// What mends it.
    pub repair: Repair,
    /// What was seen on each side, boiled down: a difference that is seen again with other marks is
    /// another one, and something is under way.
    pub marks: (u64, u64),
}

impl Difference {
    /// The difference that a flaw of `side` in `state` is.
    pub fn of_flaw(account: &Account, state: &MailboxState, side: Side, flaw: Flaw) -> Self {
        let (kind, repair) = match flaw.kind {
            FlawKind::Octets => (Kind::Corrupt, Repair::Replace),
            FlawKind::Size => (Kind::Size, Repair::Replace),
            FlawKind::Date => (Kind::Date, Repair::Replace),
            FlawKind::Unreadable => (Kind::Unreadable, Repair::Replace),
            FlawKind::List => (Kind::List, Repair::Rewrite),
            FlawKind::UidNext => (Kind::UidNext, Repair::Rewrite),
            FlawKind::Unnumbered => (Kind::Unnumbered, Repair::None),
        };
        Self {
            account: account.clone(),
            mailbox: Some(state.id),
            name: Some(state.name.clone()),
            uid: flaw.uid,
            kind,
            side,
            detail: flaw.detail,
            repair,
            marks: (0, 0),
        }
    }

    /// Orders differences, worst first, then by place.
    pub fn rank(&self) -> (Kind, &Account, Option<&MailboxName>, Option<Uid>) {
        (self.kind, &self.account, self.name.as_ref(), self.uid)
    }
}

/// The first 64 bits of a digest-like value.
fn mark_of(guid: Guid) -> u64 {
    guid.0.iter().take(8).fold(0, |sum, &octet| sum << 8 | u64::from(octet))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_cover_everything_once() {
        let mailbox = MailboxId([7; 16]);
        let mut seen = alloc::vec![0_u32; SLOTS.into()];
        for uid in 1..100_000 {
            seen[usize::from(slot(mailbox, Uid(uid)))] += 1;
        }
        // A hundred each on the average.
        assert!(seen.iter().all(|&count| (40..200).contains(&count)));
        let nights = (0..20).map(|night| Slots { from: night * 50, count: 50 });
        for slot in 0..SLOTS {
            assert_eq!(nights.clone().filter(|slots| slots.has(slot)).count(), 1, "{slot}");
            assert!(Slots::ALL.has(slot));
        }
        let round = Slots { from: 990, count: 20 };
        assert!(round.has(995) && round.has(9) && !round.has(10) && !round.has(989));
        assert!(!Slots { from: 3, count: 0 }.has(3));
    }
}
