//! What the daemons tell of graveyards. Fields are only ever added.

use serde::{Deserialize, Serialize};

/// What lies in the graveyard, of what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraveyardReport {
    /// Version of this shape.
    pub schema_version: u32,
    /// How many messages.
    pub count: u64,
    /// Their octets.
    pub octets: u64,
    /// Whether they were exported.
    pub done: bool,
    /// The first of them.
    pub entries: Vec<GraveReport>,
    /// What cannot be brought back, and why (of an undo only).
    #[serde(default)]
    pub left: Vec<String>,
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
