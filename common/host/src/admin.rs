//! The local admin socket: one JSON request per line, one JSON answer per line, both bounded.

pub mod answer;
mod canary;
mod check;
mod client;
mod graveyard;
mod keys;
mod message;
mod peer;
mod replica;
mod server;

use std::path::{Path, PathBuf};

pub use canary::{CanaryArrival, CanaryReport};
pub use check::{
    CheckAsk, CheckDifference, CheckLevel, CheckProgress, CheckReport, CheckState, LastCheck,
    LocalAsk, LocalMailbox, LocalPart,
};
pub use client::{AdminError, Client};
pub use graveyard::{GraveyardAsk, GraveyardReport};
pub use keys::{KeyList, RotatePeer, RotateReport};
pub use message::{
    AgentStatus, AsideReport, BadMessageReport, BrakeReport, Entry, FailureCode, HeldReport,
    HistoryEntry, LedgerEntry, LogStat, LogStatus, OperationOutcome, OperationStatus,
    OperationStep, Problem, QuarantineReport, QuarantineVerb, ReplicaDaemonStatus, Request,
    Response, SCHEMA_VERSION,
};
pub use peer::{AtRisk, PeerReport};
pub use replica::{AddedReport, AsideStatus, CopyStatus, RemovedReport, ReplicaStatus};
pub use server::{Answer, is_served, serve};

/// Longest line in either direction, in octets.
const LINE_MAX: usize = 4 << 20;

/// The agent's socket.
pub fn agent_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

/// The replica daemon's socket.
pub fn replica_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("replica.sock")
}

#[cfg(test)]
mod tests;
