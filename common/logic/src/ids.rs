//! Identifiers: one type for each thing that is numbered or named, so that none is taken for another.

use alloc::string::{String, ToString};
use core::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! octets {
    ($(#[$doc:meta])* $name:ident($len:literal)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut octets = [0; $len];
                parse_hex(text, &mut octets).map(|()| Self(octets))
            }
        }
    };
}

number! {
    /// RFC 9051 UID: 1 to 2^32 - 2. Zero only where "none yet" is meant and said.
    Uid(u32)
}
number! {
    /// RFC 9051 UIDVALIDITY.
    UidValidity(u32)
}
number! {
    /// Version of a record within one mailbox of one store. Engines whose server has RFC 7162
    /// MODSEQs give those; others count their own. Never compared between stores.
    ModSeq(u64)
}
number! {
    /// Position in the sync log. The first entry is 1; 0 is "before everything".
    LogSeq(u64)
}
number! {
    /// Reign of one master. Grows by one at each failover.
    Epoch(u64)
}
octets! {
    /// SHA-1 of a message's octets as stored: what Cyrus calls the message GUID.
    Guid(20)
}
octets! {
    /// A mailbox's lasting identity: Dovecot's mailbox GUID, Cyrus' UNIQUEID, RFC 8474 MAILBOXID.
    MailboxId(16)
}
octets! {
    /// Identity of one sync log; a cursor names the log it counts in.
    LogId(16)
}

impl Uid {
    /// The largest UID that may be given to a message (RFC 9051 leaves 2^32 - 1 to UIDNEXT).
    pub const MAX: Self = Self(u32::MAX - 1);

    /// The UID after this one; saturates.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl ModSeq {
    /// The next one; saturates.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl LogSeq {
    /// The position after this one; saturates.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Text that is not the hexadecimal form of an identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {want} hexadecimal digits")]
pub struct ParseIdError {
    want: usize,
}

fn parse_hex(text: &str, octets: &mut [u8]) -> Result<(), ParseIdError> {
    let error = ParseIdError { want: octets.len() * 2 };
    let digits = text.as_bytes();
    if digits.len() != error.want {
        return Err(error);
    }
    for (octet, pair) in octets.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        match (digit(pair[0]), digit(pair[1])) {
            (Some(high), Some(low)) => *octet = high << 4 | low,
            _ => return Err(error),
        }
    }
    Ok(())
}

/// An account, by the name that stands in logs, on the command line and on the wire.
///
/// Engines derive it from where the account's mail lies. It is UTF-8 of 0 to 512 octets without
/// control characters; a store octet that does not fit is written `%XX` (and `%` is `%25`), so
/// that the name is printable and can be turned back. Parts between `/` are never empty, `.` or
/// `..`. The empty name is the account of a store that is one single account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Account(String);

impl Account {
    /// Longest name, in octets.
    pub const OCTETS_MAX: usize = 512;

    /// Checks a name.
    pub fn new(name: &str) -> Result<Self, NameError> {
        if name.len() > Self::OCTETS_MAX {
            return Err(NameError::TooLong);
        }
        if name.chars().any(char::is_control) {
            return Err(NameError::Control);
        }
        if !name.is_empty() && name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(NameError::Part);
        }
        Ok(Self(name.to_string()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Account {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Self::new(&name)
    }
}

impl From<Account> for String {
    fn from(account: Account) -> Self {
        account.0
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str(".") } else { f.write_str(&self.0) }
    }
}

/// Why a name cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Over the limit of its kind.
    #[error("the name is too long")]
    TooLong,
    /// Has a control character.
    #[error("the name has a control character")]
    Control,
    /// A part is empty, `.` or `..`, or has a slash or NUL in it.
    #[error("a part of the name is empty, `.` or `..`, or holds a slash or NUL")]
    Part,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trip() {
        let guid = Guid([0xa5; 20]);
        assert_eq!(guid.to_string().parse(), Ok(guid));
        assert!("a5".parse::<Guid>().is_err());
        assert!("zz".repeat(20).parse::<Guid>().is_err());
    }

    #[test]
    fn account_names() {
        for good in ["", "ann", "ann@example.org", "lists/2024/q1", "%FF"] {
            assert!(Account::new(good).is_ok(), "{good:?}");
        }
        for bad in ["..", "a/../b", "/a", "a/", "a//b", "a\nb", "."] {
            assert!(Account::new(bad).is_err(), "{bad:?}");
        }
    }
}
