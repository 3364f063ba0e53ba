//! One entry of the sync log: which account or mailbox is dirty, never how.

use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{Account, LogSeq},
    mailbox::MailboxName,
};

/// What needs a visit. An account's visit covers its list of mailboxes, its files, and every
/// mailbox whose head differs; a mailbox's visit covers its messages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// Everything: after an overflow, a bad record, or a restore.
    Store,
    /// One account.
    Account(Account),
    /// The messages of one mailbox, by its name when it was noticed.
    Mailbox(Account, MailboxName),
}

impl Target {
    /// Whose mail it is about, if not everybody's.
    pub fn account(&self) -> Option<&Account> {
        match self {
            Self::Store => None,
            Self::Account(account) | Self::Mailbox(account, _) => Some(account),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store => f.write_str("everything"),
            Self::Account(account) => write!(f, "{account}"),
            Self::Mailbox(account, mailbox) => write!(f, "{account}/{mailbox}"),
        }
    }
}

/// An entry as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Position; grows by one, or by more where damage was cut away. Never used twice.
    pub seq: LogSeq,
    /// When it was appended, in milliseconds since 1970.
    pub at: u64,
    /// What is dirty.
    pub target: Target,
}

impl Entry {
    /// Octets of one record's payload; the log adds length and checksum.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a buffer that grows takes every entry")
    }

    /// Reads a payload; `None` if it is no entry, whole and nothing behind it.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        match postcard::take_from_bytes(payload) {
            Ok((entry, [])) => Some(entry),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let account = Account::new("ann@example.org").unwrap();
        let target = Target::Mailbox(account, MailboxName::new(b"Work").unwrap());
        let entry = Entry { seq: LogSeq(7), at: 1_700_000_000_000, target };
        let octets = entry.encode();
        assert_eq!(Entry::decode(&octets), Some(entry));
        assert_eq!(Entry::decode(&octets[..octets.len() - 1]), None);
        assert_eq!(Entry::decode(&[&octets[..], b"x"].concat()), None);
        assert_eq!(Entry::decode(&[]), None);
    }
}
