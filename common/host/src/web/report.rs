//! What the status page shows of a node, as `/status.json` has it. Fields are only ever added. Nothing
//! here names an account or a mailbox.

use serde::Serialize;

use crate::{
    admin::{AtRisk, HistoryEntry, LastCheck},
    node::Role,
};

/// How bad it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    #[default]
    Ok,
    /// A human should look.
    Warning,
    /// Something is not replicated.
    Critical,
}

/// One node, as one of its daemons sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Version of this shape.
    pub schema_version: u32,
    /// `agent` or `replica`.
    pub daemon: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Node name.
    pub node: String,
    /// Its role.
    pub role: Role,
    /// Its epoch.
    pub epoch: u64,
    /// The worst there is.
    pub level: Level,
    /// That, in a few words.
    pub headline: String,
    /// Whether the gate is open; only the agent knows.
    pub gate_open: bool,
    /// The sync log, on a master.
    pub log: Option<LogLine>,
    /// Every replica, on a master.
    pub replicas: Vec<ReplicaLine>,
    /// The master, on a replica that has heard of one.
    pub master: Option<MasterLine>,
    /// What would be missing if the master died now.
    pub at_risk: Option<AtRisk>,
    /// How much is set aside, by reason, over all replicas.
    pub quarantine: Vec<ReasonLine>,
    /// How many problems there are in the store.
    pub problems: usize,
    /// The last change of this node's role.
    pub last_failover: Option<FailoverLine>,
}

/// The sync log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// Newest entry.
    pub head: u64,
    /// Size on disk.
    pub bytes: u64,
    /// Whether it cannot be written.
    pub failing: bool,
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReplicaLine {
    /// Node name.
    pub name: String,
    /// As in `replctl status`.
    pub state: String,
    /// How bad that is.
    pub level: Level,
    /// Entries it lacks.
    pub lag_entries: u64,
    /// Age of the oldest of them.
    pub lag_seconds: f64,
    /// Mailboxes and accounts set aside.
    pub quarantined: usize,
    /// Whether the brake holds deletions.
    pub brake: bool,
    /// Its place in the sync log.
    pub claim: String,
    /// A copy of everything, while there is one.
    pub copy: Option<CopyLine>,
    /// The last check of everything.
    pub check: Option<CheckLine>,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CopyLine {
    /// Messages that are there.
    pub messages: u64,
    /// Of so many, as far as they are counted.
    pub of: u64,
}

/// The last check of everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckLine {
    /// When it began, in milliseconds since 1970.
    pub at: u64,
    /// How closely it looked.
    pub level: &'static str,
    /// `equal`, `different` or `incomplete`.
    pub result: String,
    /// Differences.
    pub found: u64,
}

/// The master, as a replica knows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MasterLine {
    /// Node name.
    pub name: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Age of its last heartbeat.
    pub heard_seconds: f64,
    /// How long ago this node had everything; absent if that is not known.
    pub lag_seconds: Option<f64>,
    /// When that was, in milliseconds since 1970.
    pub complete_at: Option<u64>,
}

/// What is set aside for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReasonLine {
    /// Code.
    pub reason: String,
    /// How many mailboxes and accounts.
    pub count: usize,
}

/// A change of role. Its sentence stays out: it may name what it likes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailoverLine {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// As in `replctl failover history`.
    pub kind: String,
    /// How it ended.
    pub outcome: String,
    /// The epoch that it began, or would have.
    pub epoch: u64,
}

impl From<&HistoryEntry> for FailoverLine {
    fn from(entry: &HistoryEntry) -> Self {
        let HistoryEntry { at, kind, outcome, epoch, .. } = entry;
        Self { at: *at, kind: kind.clone(), outcome: outcome.clone(), epoch: *epoch }
    }
}

impl From<&LastCheck> for CheckLine {
    fn from(check: &LastCheck) -> Self {
        let LastCheck { at, level, result, found } = check;
        Self { at: *at, level: level.name(), result: result.clone(), found: *found }
    }
}
