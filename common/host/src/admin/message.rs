//! What `replctl` and the daemons say to each other. Fields are only ever added.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    AddedReport, AtRisk, CanaryReport, CheckAsk, CheckDifference, CheckState, GraveyardAsk,
    GraveyardReport, KeyList, LocalAsk, LocalPart, PeerReport, RemovedReport, ReplicaStatus,
    RotateReport,
};
use crate::{codes::LedgerKind, keys::PublicKey, node::Role};

/// Version of every answer's shape.
pub const SCHEMA_VERSION: u32 = 1;

/// What `replctl` asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// How are you?
    Status,
    /// Replay now; answer when every replica has done so.
    Sync {
        /// `account` or `account/mailbox`; none: everything.
        targets: Vec<String>,
        /// Longest wait in milliseconds; five minutes if absent.
        timeout_ms: Option<u64>,
        /// Only this replica; all that are not paused if absent.
        #[serde(default)]
        replica: Option<String>,
    },
    /// Send a canary; answer when it is everywhere, or was waited for long enough.
    Canary,
    /// The newest entries of the sync log.
    LogTail {
        /// How many at most.
        entries: usize,
    },
    /// Identity and size of the sync log.
    LogStat,
    /// Something may have changed.
    LogAppend {
        /// `account` or `account/mailbox`.
        targets: Vec<String>,
    },
    /// This node's key and its peers'.
    KeysShow,
    /// Trust a key.
    KeysPin {
        /// The peer's node name.
        peer: String,
        /// Its key.
        key: PublicKey,
    },
    /// Trust it no more.
    KeysUnpin {
        /// The peer's node name.
        peer: String,
        /// Its key.
        key: PublicKey,
    },
    /// The next step of a rotation of this node's own key.
    KeysRotate {
        /// Change to the next key, instead of making it and telling the peers.
        switch: bool,
        /// Peers that need not know.
        without: Vec<String>,
        /// Only say what would be done.
        dry_run: bool,
    },
    /// Replicate to one more node.
    ReplicaAdd {
        /// Its node name.
        name: String,
        /// `host:port`.
        address: String,
        /// Its keys; none: pinned at first contact.
        keys: Vec<PublicKey>,
        /// Only say what would be done.
        dry_run: bool,
    },
    /// Replicate to a node no longer.
    ReplicaRemove {
        /// Its node name.
        name: String,
        /// Only say what would be done.
        dry_run: bool,
    },
    /// Stop or resume replaying to one replica.
    ReplicaPause {
        /// Its node name.
        name: String,
        /// Whether to stop.
        pause: bool,
    },
    /// Begin to hand this node's role over. Answered by [`Response::Operation`]; what comes of it
    /// is asked for by [`Request::Operation`].
    Switch {
        /// The new master's node name.
        to: String,
        /// How long clients may take to finish before their sessions are ended, in milliseconds.
        kick_after_ms: u64,
        /// How long the drain and the proof may take, in milliseconds.
        max_wait_ms: u64,
        /// When to take everything back if it is not done by then, in milliseconds.
        expire_ms: u64,
        /// Whether the admin keeps clients out, so that there need be no gate.
        no_gate: bool,
        /// Only say what stands against it.
        dry_run: bool,
        /// Do everything but the hand-over.
        #[serde(default)]
        rehearse: bool,
    },
    /// Make this replica the master, without the old one. Answered by [`Response::Operation`] at
    /// its end.
    Force {
        /// Entries of the old master's log that may be missing here; absent: any number.
        accept_loss: Option<u64>,
        /// Only say what is at risk.
        dry_run: bool,
    },
    /// What became of the mail that a returning node had and the master lacked.
    Ledger,
    /// An admin has seen these conflicts; absent: all. Answered by [`Response::Ledger`] with those
    /// that nobody had seen before.
    ConflictsAck {
        /// Their ids.
        ids: Option<Vec<String>>,
    },
    /// Close the gate, to reopen it after a time. Answered by [`Response::Operation`].
    Freeze {
        /// How long sessions may take to finish, in milliseconds.
        wait_ms: u64,
        /// When to reopen it, in milliseconds.
        expire_ms: u64,
    },
    /// Reopen the gate.
    Thaw,
    /// What is going on.
    Operation,
    /// Past changes of roles, oldest first.
    History,
    /// What is set aside, and what shall become of it.
    Quarantine {
        /// What to do.
        what: QuarantineVerb,
        /// For which replica; all if absent.
        replica: Option<String>,
        /// `account` or `account/mailbox`; none: everything.
        targets: Vec<String>,
        /// Only say what would be done.
        dry_run: bool,
    },
    /// What lies in this node's graveyard.
    Graveyard(GraveyardAsk),
    /// What the brake holds, and whether it shall let go.
    Brake {
        /// Whether to let go.
        release: bool,
        /// For which replica; all if absent.
        replica: Option<String>,
        /// Accounts; none: everything that is held.
        accounts: Vec<String>,
        /// Only say what would be done.
        dry_run: bool,
    },
    /// Compare with replicas. Answered by `CheckStarted`.
    Check(CheckAsk),
    /// How does a check do? Answered by `Check`.
    CheckState {
        /// Its number.
        id: u64,
        /// Differences before this one are known already.
        from: usize,
    },
    /// Carry out the repairs that these differences name. Answered by `CheckStarted`; what is left
    /// is reported as differences.
    CheckRepair {
        /// As a check reported them, or as an admin changed that.
        plan: Vec<CheckDifference>,
        /// The repair that this is a further part of, by [`CheckReport::undo`](super::CheckReport::undo).
        part_of: Option<u64>,
    },
    /// What is known of the other nodes: those that are connected are asked.
    Peers,
    /// Look at this node by itself. Answered by `Local`.
    CheckLocal(LocalAsk),
    /// Give out what a repair replaced or took away. Answered by `Graveyard`.
    CheckUndo {
        /// The repair's number.
        id: u64,
        /// Write it into files below this directory.
        export_to: Option<PathBuf>,
    },
}

/// What to do with what is set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuarantineVerb {
    /// Tell of it.
    List,
    /// Try it now.
    Retry,
    /// Forget that it failed, and compare it anew.
    Release,
}

/// What a daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// Of the agent.
    Status(AgentStatus),
    /// Of the replica daemon.
    ReplicaDaemon(ReplicaDaemonStatus),
    /// Every replica that is not paused has replayed.
    Synced {
        /// Up to here.
        upto: u64,
        /// What is set aside, over all replicas.
        set_aside: usize,
    },
    /// What became of a canary.
    Canary(CanaryReport),
    /// Entries, oldest first.
    Entries(Vec<Entry>),
    /// The sync log.
    LogStat(LogStat),
    /// Appended, durably.
    Appended {
        /// The entry that covers it.
        seq: u64,
    },
    /// What is set aside.
    Quarantine(QuarantineReport),
    /// What lies in the graveyard.
    Graveyard(GraveyardReport),
    /// What the brake holds.
    Brake(BrakeReport),
    /// A replica was added.
    ReplicaAdded(AddedReport),
    /// A replica was removed.
    ReplicaRemoved(RemovedReport),
    /// Keys.
    Keys(KeyList),
    /// What a step of a rotation came to.
    Rotated(RotateReport),
    /// A failover or a freeze, running or the last one.
    Operation(OperationStatus),
    /// Past changes of roles.
    History(Vec<HistoryEntry>),
    /// What was merged, oldest first.
    Ledger(Vec<LedgerEntry>),
    /// It is done.
    Done,
    /// It is not done.
    Failed {
        /// Of which kind.
        code: FailureCode,
        /// What, and what to do next.
        message: String,
    },
    /// A check runs.
    CheckStarted {
        /// Its number.
        id: u64,
    },
    /// A check.
    Check(CheckState),
    /// Some of this node's accounts.
    Local(LocalPart),
    /// The other nodes.
    Peers(Vec<PeerReport>),
}

/// Kinds of failure, for exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The request makes no sense.
    Usage,
    /// Wrong role, fenced, or otherwise not allowed now.
    Refused,
    /// It was tried and did not work, or not in time.
    Failed,
}

/// The agent's status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Version of this shape.
    pub schema_version: u32,
    /// Node name.
    pub node: String,
    /// Its role.
    pub role: Role,
    /// Its epoch.
    pub epoch: u64,
    /// The sync log; absent while the agent idles.
    pub log: Option<LogStatus>,
    /// Every replica, worst first.
    pub replicas: Vec<ReplicaStatus>,
    /// What is wrong in the store.
    pub problems: Vec<Problem>,
    /// The agent's version.
    #[serde(default)]
    pub version: String,
    /// Whether the gate is open, as far as the agent has moved it since it was started.
    #[serde(default)]
    pub gate_open: bool,
    /// What would be missing if this master died now; absent on a replica, and without replicas.
    #[serde(default)]
    pub at_risk: Option<AtRisk>,
    /// The last change of this node's role.
    #[serde(default)]
    pub last_failover: Option<HistoryEntry>,
    /// The last canary since the agent was started.
    #[serde(default)]
    pub canary: Option<CanaryReport>,
}

/// The sync log in a status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Identity.
    pub id: String,
    /// Newest entry.
    pub head: u64,
    /// Size on disk.
    pub bytes: u64,
    /// Why the last append failed, if it did.
    pub error: Option<String>,
}

/// What the brake holds, of what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrakeReport {
    /// Version of this shape.
    pub schema_version: u32,
    /// Whether it was let go.
    pub done: bool,
    /// What is held; before it was let go.
    pub held: Vec<HeldReport>,
}

/// Something the brake holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldReport {
    /// For which replica.
    pub replica: String,
    /// Whose deletions; absent if all accounts' are held.
    pub account: Option<String>,
    /// Since when, in milliseconds since 1970.
    pub since: u64,
    /// What was found.
    pub why: String,
    /// Messages that were not removed on the replica so far, those of deleted mailboxes included.
    pub messages: u64,
    /// Mailboxes that were not deleted on the replica so far.
    pub mailboxes: u64,
}

/// What is set aside, of what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineReport {
    /// Version of this shape.
    pub schema_version: u32,
    /// How many.
    pub count: usize,
    /// Whether it was done what was asked for.
    pub done: bool,
    /// The first of them.
    pub entries: Vec<AsideReport>,
}

/// One mailbox or account set aside, in full. Times are in milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsideReport {
    /// For which replica.
    pub replica: String,
    /// Account and mailbox.
    pub object: String,
    /// Code.
    pub reason: String,
    /// What the next trial does: `retry`, `compare`, `reseed` or `human`.
    pub step: String,
    /// How often it was tried.
    pub tries: u32,
    /// When it failed first.
    pub first_at: u64,
    /// With which error.
    pub first: String,
    /// When it failed last.
    pub last_at: u64,
    /// With which error.
    pub last: String,
    /// When it is tried next; absent while it is.
    pub next_at: Option<u64>,
    /// Messages in the mailbox, if they could be counted.
    pub messages: Option<u32>,
    /// Their octets.
    pub octets: Option<u64>,
    /// The messages that are the cause, if the rest of the mailbox is replicated.
    pub bad: Vec<BadMessageReport>,
}

/// A message that cannot be replicated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadMessageReport {
    /// Its UID, if it has one.
    pub uid: Option<u32>,
    /// Its file.
    pub name: String,
    /// Subject, date, Message-ID.
    pub about: String,
    /// Code.
    pub reason: String,
    /// For humans.
    pub detail: String,
}

/// Something wrong in a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Where.
    pub object: String,
    /// What, and what to do.
    pub detail: String,
    /// Code.
    #[serde(default)]
    pub code: String,
}

/// The replica daemon's status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaDaemonStatus {
    /// Version of this shape.
    pub schema_version: u32,
    /// Node name.
    pub node: String,
    /// Its role.
    pub role: Role,
    /// The highest epoch it knows.
    pub epoch: u64,
    /// Where it listens.
    pub listen: String,
    /// Agents that are connected.
    pub agents: Vec<String>,
    /// Age of the master's last heartbeat; absent before the first.
    pub heartbeat_seconds: Option<f64>,
    /// Lag as the master told it last, in entries.
    pub lag_entries: Option<u64>,
    /// What is wrong in the store.
    pub problems: Vec<Problem>,
    /// The replica daemon's version.
    #[serde(default)]
    pub version: String,
    /// The master that was heard last.
    #[serde(default)]
    pub master: Option<String>,
    /// How long ago this node had everything that the master had noticed, in seconds, counted here:
    /// it grows while the master is dead. Absent while this is not known.
    #[serde(default)]
    pub lag_seconds: Option<f64>,
    /// When that was, by this node's clock, in milliseconds since 1970.
    #[serde(default)]
    pub complete_at: Option<u64>,
    /// The last change of this node's role.
    #[serde(default)]
    pub last_failover: Option<HistoryEntry>,
}

/// One log entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Position.
    pub seq: u64,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// What is dirty.
    pub target: String,
}

/// The sync log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStat {
    /// Identity.
    pub id: String,
    /// Oldest entry that is kept.
    pub oldest: u64,
    /// Newest.
    pub head: u64,
    /// Size on disk.
    pub bytes: u64,
    /// The size at which the oldest entries go.
    pub bound: u64,
    /// Appends that failed since the start.
    pub append_errors: u64,
    /// Every replica's cursor.
    pub cursors: Vec<(String, u64)>,
}

/// Something that takes a while and can be followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationStatus {
    /// Counts operations of this process; 0 if there was none.
    pub id: u64,
    /// What has been done, in order.
    pub steps: Vec<OperationStep>,
    /// How it ended; absent while it runs.
    pub outcome: Option<OperationOutcome>,
}

/// One step that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationStep {
    /// Milliseconds since the operation began.
    pub at_ms: u64,
    /// What.
    pub text: String,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationOutcome {
    /// `done`, `refused` (nothing was touched) or `undone` (everything is as before).
    pub state: String,
    /// For humans.
    pub message: String,
}

/// One line of `failover.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// `switch`, `drill`, `force`, `promoted`, `stepped-down` or `merged`.
    pub kind: String,
    /// `done`, `refused` or `undone`.
    pub outcome: String,
    /// The epoch that it began, or would have.
    pub epoch: u64,
    /// The old master, as far as known.
    pub from: Option<String>,
    /// The new one.
    pub to: Option<String>,
    /// For how long this node's gate was closed, in milliseconds, if that is known.
    pub gate_closed_ms: Option<u64>,
    /// For humans.
    pub detail: String,
}

/// One line of `ledger.jsonl`: a decision about one message or mailbox of a node that came back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// In which epoch.
    pub epoch: u64,
    /// The node that came back.
    pub node: String,
    /// Whose.
    pub account: String,
    /// Where it stood on that node.
    pub mailbox: String,
    /// Code of a [`LedgerKind`].
    pub kind: String,
    /// Its UID on that node; absent for a mailbox.
    pub uid: Option<u32>,
    /// Its UID on the master now, if it has one.
    pub new_uid: Option<u32>,
    /// SHA-1 of its octets.
    pub guid: Option<String>,
    /// For humans.
    pub detail: String,
    /// The same for the same decision.
    #[serde(default)]
    pub id: String,
    /// When an admin said that it was seen, if it is a conflict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked_at: Option<u64>,
}

impl LedgerEntry {
    /// Its kind; `None` of a later version's.
    pub fn kind(&self) -> Option<LedgerKind> {
        LedgerKind::of_code(&self.kind)
    }

    /// [`LedgerKind::is_conflict`].
    pub fn is_conflict(&self) -> bool {
        self.kind().is_some_and(LedgerKind::is_conflict)
    }
}
