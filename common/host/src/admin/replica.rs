//! One replica: how it does, and what adding and removing it comes to.

use serde::{Deserialize, Serialize};

use super::{HeldReport, LastCheck, SCHEMA_VERSION};

/// One replica in a status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Node name.
    pub name: String,
    /// `in-sync`, `degraded`, `replaying`, `merging`, `connecting`, `waiting`, `paused` or `fenced`.
    pub state: String,
    /// Everything up to here is there.
    pub cursor: u64,
    /// Entries it lacks.
    pub lag_entries: u64,
    /// Age of the oldest of them.
    pub lag_seconds: f64,
    /// Mailboxes and accounts set aside.
    pub quarantined: usize,
    /// `ok`, `at-risk` or `lost`.
    pub claim: String,
    /// How far a copy of everything is, while there is one.
    #[serde(default)]
    pub copy: Option<CopyStatus>,
    /// Messages sent since the agent started.
    pub messages: u64,
    /// Why it is not connected.
    pub last_error: Option<String>,
    /// Code of a [`KeyTrouble`](crate::codes::KeyTrouble), if that is why.
    #[serde(default)]
    pub key_trouble: Option<String>,
    /// The first of what is set aside.
    pub set_aside: Vec<AsideStatus>,
    /// What the brake holds; nothing as a rule.
    #[serde(default)]
    pub brake: Vec<HeldReport>,
    /// The last check of everything; absent if there was none.
    #[serde(default)]
    pub check: Option<LastCheck>,
}

/// A copy of everything to a replica, under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Messages that the replica has.
    pub messages: u64,
    /// Of so many on the master, as far as they are counted.
    pub of: u64,
    /// Whether all are counted.
    pub counted: bool,
    /// Messages that were copied in a second, lately.
    pub per_second: Option<f64>,
    /// What the rest takes at that pace; absent while nothing moves.
    pub eta_seconds: Option<f64>,
}

/// One mailbox or account set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsideStatus {
    /// Account and mailbox.
    pub object: String,
    /// One-word code.
    pub reason: String,
    /// The last error.
    pub detail: String,
    /// How often it was tried.
    pub tries: u32,
    /// When it was set aside, in milliseconds since 1970.
    pub since: u64,
}

/// A replica that is new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedReport {
    /// Version of this shape.
    pub schema_version: u32,
    /// Whether it was done; otherwise this is what would be.
    pub done: bool,
    /// Its node name.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// Its place in the sync log: what comes after is replayed to it. Absent if this node is not the
    /// master; then it is only noted.
    pub place: Option<u64>,
    /// Accounts that are compared with it, and copied as far as it lacks them.
    pub accounts: Option<u64>,
}

impl AddedReport {
    /// Of a peer that is noted, or would be.
    pub fn noted(name: &str, address: &str, done: bool) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            done,
            name: name.to_owned(),
            address: address.to_owned(),
            place: None,
            accounts: None,
        }
    }
}

/// A replica that is none any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedReport {
    /// Version of this shape.
    pub schema_version: u32,
    /// Whether it was done; otherwise this is what would be.
    pub done: bool,
    /// Its node name.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// Whether it stands in the configuration.
    pub configured: bool,
    /// What its link was doing; absent if this node is not the master.
    pub state: Option<String>,
    /// Entries that it lacked.
    pub lag_entries: u64,
    /// Mailboxes and accounts that were set aside for it.
    pub quarantined: usize,
    /// Octets of the sync log that were kept for it alone.
    pub freed_bytes: u64,
    /// Replicas that stay.
    pub replicas_left: usize,
}
