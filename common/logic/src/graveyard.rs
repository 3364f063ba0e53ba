//! What is asked of a graveyard, and what is told of it.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{Account, Guid, Uid},
    mailbox::MailboxName,
};

/// Which messages of a graveyard are meant; what is absent restricts nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Whose.
    pub account: Option<Account>,
    /// Of which mailbox.
    pub mailbox: Option<MailboxName>,
    /// With which UID.
    pub uid: Option<Uid>,
    /// With which octets.
    pub guid: Option<Guid>,
    /// With which Message-ID, without angle brackets.
    pub message_id: Option<String>,
    /// Expunged here then or later, in milliseconds since 1970.
    pub since_ms: u64,
}

/// What lies in a graveyard, of what was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// How many messages.
    pub count: u64,
    /// Their octets.
    pub octets: u64,
    /// The first of them.
    pub entries: Vec<GraveReport>,
}

/// A message in the graveyard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraveReport {
    /// When it was expunged here, in milliseconds since 1970.
    pub at_ms: u64,
    /// Whose it was.
    pub account: String,
    /// Where it was, printable.
    pub mailbox: String,
    /// Under which UIDVALIDITY.
    pub uid_validity: u32,
    /// Under which UID, if that is known.
    pub uid: Option<u32>,
    /// SHA-1 of its octets, if it was noted.
    pub guid: Option<String>,
    /// How many octets it has.
    pub octets: u64,
    /// INTERNALDATE in seconds since 1970.
    pub internal_date: i64,
    /// Subject, date, Message-ID.
    pub about: String,
}
