//! Order-independent digest of a mailbox's records: kept incrementally, equal when mailboxes are.
//!
//! A record's share is the first 16 octets of the SHA-1 over its replicated fields; the digest is
//! the sum of all shares modulo 2^128, so that a record is added or taken out in one step.

use core::fmt;

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

use crate::{
    ids::{Account, Guid},
    mailbox::{AccountState, FileKey, Record},
};

/// Sum of shares. The default is the digest of nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(u128);

impl Digest {
    /// Stands for what is there and cannot be read: of nothing that can be.
    pub const UNREADABLE: Self = Self(u128::MAX);

    /// Digest of all of `records`.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut digest = Self::default();
        records.into_iter().for_each(|record| digest.add(record));
        digest
    }

    /// Counts `record` in.
    pub fn add(&mut self, record: &Record) {
        self.0 = self.0.wrapping_add(share(record));
    }

    /// Counts in everything that `other` has counted.
    pub fn merge(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }

    /// Takes `record` out; it must be as it was when it was counted in.
    pub fn remove(&mut self, record: &Record) {
        self.0 = self.0.wrapping_sub(share(record));
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// MODSEQ, hint and provenance stay out: they are one store's own.
fn share(record: &Record) -> u128 {
    let mut hash = Sha1::new();
    hash.update(record.uid.0.to_le_bytes());
    hash.update(record.guid.0);
    hash.update(record.internal_date.to_le_bytes());
    hash.update([record.flags.0]);
    for keyword in record.keywords.iter() {
        hash.update([0]);
        hash.update(keyword.as_bytes());
    }
    leading(&hash)
}

fn leading(hash: &Sha1) -> u128 {
    let octets: [u8; 20] = hash.clone().finalize().into();
    octets.iter().take(16).fold(0, |sum, &octet| sum << 8 | u128::from(octet))
}

/// Digest of a whole account: names, identities and heads of its mailboxes, and its files.
pub fn account(state: &AccountState) -> Digest {
    let mut sum = 0_u128;
    for mailbox in &state.mailboxes {
        let mut hash = Sha1::new();
        hash.update(b"mailbox");
        hash.update(mailbox.id.0);
        hash.update(mailbox.head.uid_validity.0.to_le_bytes());
        hash.update(mailbox.head.uid_next.0.to_le_bytes());
        hash.update(mailbox.head.messages.to_le_bytes());
        hash.update(mailbox.head.digest.0.to_le_bytes());
        hash.update(mailbox.name.as_octets());
        sum = sum.wrapping_add(leading(&hash));
    }
    for file in &state.files {
        sum = sum.wrapping_add(file_share(&file.key, file.guid));
    }
    Digest(sum)
}

/// Digest of a whole store: its accounts and what each one's digest is.
pub fn store<'a>(accounts: impl IntoIterator<Item = (&'a Account, Digest)>) -> Digest {
    let mut sum = Digest::default();
    accounts.into_iter().for_each(|(account, digest)| sum.merge(twig(account, digest)));
    sum
}

/// An account's share in the digest of its branch.
pub fn twig(account: &Account, digest: Digest) -> Digest {
    let mut hash = Sha1::new();
    hash.update(b"account");
    hash.update(digest.0.to_le_bytes());
    hash.update(account.as_str().as_bytes());
    Digest(leading(&hash))
}

fn file_share(key: &FileKey, guid: Guid) -> u128 {
    let mut hash = Sha1::new();
    hash.update(b"file");
    hash.update(guid.0);
    match key {
        FileKey::Subscriptions => hash.update(b"s"),
        FileKey::SieveActive => hash.update(b"v"),
        FileKey::Acl(name) => {
            hash.update(b"a");
            hash.update(name.as_octets());
        }
        FileKey::Sieve(name) => {
            hash.update(b"w");
            hash.update(name.as_octets());
        }
        FileKey::Annotations(name) => {
            hash.update(b"n");
            hash.update(name.as_octets());
        }
        FileKey::Quota => hash.update(b"q"),
        FileKey::Seen => hash.update(b"e"),
        FileKey::SubscribedOfOthers => hash.update(b"o"),
    }
    leading(&hash)
}

#[cfg(test)]
mod tests {
    use crate::{
        ids::{ModSeq, Uid},
        mailbox::{Flags, Keywords},
    };

    use super::*;

    fn record(uid: u32, flags: u8) -> Record {
        Record {
            uid: Uid(uid),
            guid: Guid([1; 20]),
            octets: 3,
            internal_date: 9,
            flags: Flags(flags),
            keywords: Keywords::default(),
            modseq: ModSeq(uid.into()),
            replicated: false,
            hint: [].into(),
        }
    }

    #[test]
    fn order_does_not_matter_and_removal_undoes() {
        let (a, b) = (record(1, 0), record(2, 8));
        assert_eq!(Digest::of([&a, &b]), Digest::of([&b, &a]));
        let mut digest = Digest::of([&a, &b]);
        digest.remove(&b);
        assert_eq!(digest, Digest::of([&a]));
        assert_ne!(Digest::of([&record(1, 0)]), Digest::of([&record(1, 8)]));
    }

    #[test]
    fn a_store_own_fields_stay_out() {
        let mut other = record(1, 0);
        other.modseq = ModSeq(77);
        other.replicated = true;
        other.hint = b":x".as_slice().into();
        assert_eq!(Digest::of([&record(1, 0)]), Digest::of([&other]));
    }
}
