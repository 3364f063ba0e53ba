//! What a daemon knows of the other nodes, and what this node would lose without its master.

use serde::{Deserialize, Serialize};

/// What would be missing if the master died now: on the replica that has most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AtRisk {
    /// The replica that lacks least.
    pub replica: String,
    /// Changes it lacks, in entries of the sync log: each names one mailbox or account that changed.
    pub entries: u64,
    /// Age of the oldest of them, in seconds.
    pub seconds: f64,
    /// Whether that is all there is to know: it is connected, or nothing has changed since it was.
    /// Otherwise everything is still being compared, and more may be missing.
    pub known: bool,
}

/// A peer, as the daemon that was asked knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Its node name.
    pub name: String,
    /// Whether there is a connection with it.
    pub connected: bool,
    /// Version of its daemon; absent if it does not say.
    pub version: Option<String>,
    /// How far its clock is ahead of this node's, in milliseconds; absent if it does not say.
    pub clock_ahead_ms: Option<i64>,
    /// What would keep it from becoming the master.
    pub blockers: Vec<String>,
    /// Why it is not connected.
    pub last_error: Option<String>,
}
