//! Mailboxes and messages as every engine, the planner and the wire see them.

use alloc::{
    boxed::Box,
    collections::BTreeSet,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::{
    digest::Digest,
    ids::{Guid, MailboxId, ModSeq, NameError, Uid, UidValidity},
    limits::WIRE_KEYWORDS_MAX,
    wire::bounded::at_most,
};

/// A mailbox's place in its account's hierarchy: parts from the top, joined by `/`.
///
/// Parts are octets as the store has them (for Dovecot: modified UTF-7, never interpreted).
/// The empty name is the INBOX. A part is never empty, `.` or `..`, and holds no slash or NUL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct MailboxName(Vec<u8>);

impl MailboxName {
    /// Longest name, in octets, slashes included.
    pub const OCTETS_MAX: usize = 1024;

    /// The INBOX, which is the root of an account's hierarchy.
    pub fn inbox() -> Self {
        Self(Vec::new())
    }

    /// Checks a name given as parts joined by `/`.
    pub fn new(octets: &[u8]) -> Result<Self, NameError> {
        if octets.len() > Self::OCTETS_MAX {
            return Err(NameError::TooLong);
        }
        let bad = |part: &[u8]| matches!(part, b"" | b"." | b"..") || part.contains(&0);
        if !octets.is_empty() && octets.split(|&octet| octet == b'/').any(bad) {
            return Err(NameError::Part);
        }
        Ok(Self(octets.to_vec()))
    }

    /// Whether this is the INBOX.
    pub fn is_inbox(&self) -> bool {
        self.0.is_empty()
    }

    /// Parts from the top; none for the INBOX.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&octet| octet == b'/').filter(|part| !part.is_empty())
    }

    /// The name as parts joined by `/`.
    pub fn as_octets(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for MailboxName {
    type Error = NameError;

    fn try_from(octets: Vec<u8>) -> Result<Self, NameError> {
        Self::new(&octets)
    }
}

impl From<MailboxName> for Vec<u8> {
    fn from(name: MailboxName) -> Self {
        name.0
    }
}

impl fmt::Display for MailboxName {
    /// Printable on one line whatever the octets are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_inbox() {
            return f.write_str("INBOX");
        }
        fmt::Display::fmt(&self.0.escape_ascii(), f)
    }
}

impl fmt::Debug for MailboxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// System flags of a message (RFC 9051 section 2.3.2; `\Recent` belongs to sessions, not messages).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Flags(pub u8);

impl Flags {
    /// `\Answered`.
    pub const ANSWERED: Self = Self(1);
    /// `\Flagged`.
    pub const FLAGGED: Self = Self(2);
    /// `\Deleted`.
    pub const DELETED: Self = Self(4);
    /// `\Seen`.
    pub const SEEN: Self = Self(8);
    /// `\Draft`.
    pub const DRAFT: Self = Self(16);
    /// Maildir's `P`: resent, forwarded or bounced. IMAP has no such system flag.
    pub const PASSED: Self = Self(32);

    /// Whether all of `flags` are set.
    pub fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Both sets together.
    #[must_use]
    pub fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [r"\Answered", r"\Flagged", r"\Deleted", r"\Seen", r"\Draft", "passed"];
        let set = names.iter().enumerate().filter(|(bit, _)| self.0 >> bit & 1 == 1);
        f.write_str("(")?;
        for (i, (_, name)) in set.enumerate() {
            write!(f, "{}{name}", if i > 0 { " " } else { "" })?;
        }
        f.write_str(")")
    }
}

/// A user-defined flag, without backslash.
pub type Keyword = String;

/// The keywords of one message, in order, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Keywords(Vec<Keyword>);

impl<'de> Deserialize<'de> for Keywords {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let names: Vec<Keyword> = at_most::<_, _, WIRE_KEYWORDS_MAX>(input)?;
        // Two ways to say the same would be two digests of it.
        if names.is_sorted_by(|a, b| a < b) {
            Ok(Self(names))
        } else {
            Err(D::Error::custom("keywords are not in order, each once"))
        }
    }
}

impl Keywords {
    /// Names in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<S: ToString> FromIterator<S> for Keywords {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        let names: BTreeSet<String> = names.into_iter().map(|name| name.to_string()).collect();
        Self(names.into_iter().collect())
    }
}

/// One message in a mailbox: everything about it but its octets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// UID within the mailbox's UIDVALIDITY.
    pub uid: Uid,
    /// SHA-1 of the octets.
    pub guid: Guid,
    /// Number of octets as stored (RFC822.SIZE may count line ends otherwise).
    pub octets: u64,
    /// INTERNALDATE in seconds since 1970.
    pub internal_date: i64,
    /// System flags.
    pub flags: Flags,
    /// User-defined flags.
    pub keywords: Keywords,
    /// When this record last changed, in this store's own count.
    pub modseq: ModSeq,
    /// Whether replication put the message here (replica side): only then may replication take
    /// it away again. False on a master and after the state was lost.
    pub replicated: bool,
    /// What an engine of the same kind needs to keep the message's own name: for Maildir, a
    /// `dovecot-uidlist` line without its UID. Others ignore it. Not part of the digest.
    pub hint: Box<[u8]>,
}

impl Record {
    /// Octets this record takes on the wire, at most.
    pub fn weight(&self) -> usize {
        let keywords: usize = self.keywords.iter().map(|keyword| keyword.len() + 5).sum();
        128 + self.hint.len() + keywords
    }
}

/// What two sides compare first: equal heads mean equal mailboxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// UIDVALIDITY.
    pub uid_validity: UidValidity,
    /// UIDNEXT.
    pub uid_next: Uid,
    /// Number of messages.
    pub messages: u32,
    /// Sum over all records.
    pub digest: Digest,
}

/// A mailbox as a store shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailboxState {
    /// Survives a rename.
    pub id: MailboxId,
    /// Where it stands now.
    pub name: MailboxName,
    /// What it holds.
    pub head: Head,
    /// Highest [`Record::modseq`] ever, in this store's count.
    pub highest_modseq: ModSeq,
    /// Messages that replication did not put here (replica side): while there are any,
    /// replication neither deletes the mailbox nor takes them away. On a master: all.
    pub foreign: u32,
}

/// Which of an account's files beside its mailboxes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FileKey {
    /// The list of subscribed mailboxes.
    Subscriptions,
    /// Access rights of one mailbox (`dovecot-acl`).
    Acl(MailboxName),
    /// A Sieve script, by its path below the account's script directory.
    Sieve(MailboxName),
    /// Which Sieve script is active: the target of the link.
    SieveActive,
    /// Annotations of one mailbox and its messages, as Cyrus has them (RFC 5464, RFC 5257).
    Annotations(MailboxName),
    /// Quota limits, as Cyrus has them.
    Quota,
    /// What the user has seen in mailboxes of others, as Cyrus has it.
    Seen,
    /// To which mailboxes of others the user has subscribed, as Cyrus has it.
    SubscribedOfOthers,
}

impl FileKey {
    /// The mailbox that it belongs to; `None` for what belongs to the account.
    pub fn mailbox(&self) -> Option<&MailboxName> {
        match self {
            Self::Acl(name) | Self::Annotations(name) => Some(name),
            Self::Subscriptions
            | Self::Sieve(_)
            | Self::SieveActive
            | Self::Quota
            | Self::Seen
            | Self::SubscribedOfOthers => None,
        }
    }
}

/// One such file: what it holds, by SHA-1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileState {
    /// Which.
    pub key: FileKey,
    /// SHA-1 of its content.
    pub guid: Guid,
}

/// All of an account but its messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountState {
    /// In order of their names.
    pub mailboxes: Vec<MailboxState>,
    /// In order of their keys.
    pub files: Vec<FileState>,
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    #[test]
    fn names() {
        let name = MailboxName::new(b"Work/Sub").unwrap();
        assert_eq!(name.parts().collect::<Vec<_>>(), [&b"Work"[..], b"Sub"]);
        assert_eq!(MailboxName::inbox().parts().count(), 0);
        assert_eq!(format!("{}", MailboxName::new(b"a\nb\xff").unwrap()), r"a\nb\xff");
        for bad in [&b"../x"[..], b"a//b", b"/a", b"a/", b"a\0b", b"."] {
            assert!(MailboxName::new(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn flags_and_keywords() {
        let flags = Flags::SEEN.with(Flags::DRAFT);
        assert!(flags.contains(Flags::SEEN) && !flags.contains(Flags::FLAGGED));
        assert_eq!(format!("{flags:?}"), r"(\Seen \Draft)");
        let keywords: Keywords = ["b", "a", "b"].into_iter().collect();
        assert_eq!(keywords.iter().collect::<Vec<_>>(), ["a", "b"]);
    }
}
