//! Answers `replctl` for the replica daemon.

mod site;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mailtwin_host::{
    admin::{
        Answer, FailureCode, PeerReport, Problem, ReplicaDaemonStatus, Request, Response,
        SCHEMA_VERSION, answer,
    },
    clock::Clock,
    config::Peer,
    history,
    keyring::KeyRing,
    node::Role,
    peers::Peers,
    pins::Pins,
};
use mailtwin_logic::{check::Side, entry::Target, graveyard::Wanted, ids::Account};
use mailtwin_store::{graves, local};

use crate::{
    fence::Fence,
    force::{Force, Order},
    heard::{Agent, Heard},
    session::Work,
};

/// Problems listed in a status.
const LISTED_MAX: usize = 50;

/// What answers need.
pub(crate) struct Answers {
    pub(crate) node: String,
    pub(crate) key: Arc<KeyRing>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) pins: Arc<Pins>,
    pub(crate) fence: Fence,
    pub(crate) heard: Heard,
    pub(crate) listen: SocketAddr,
    pub(crate) clock: Arc<dyn Clock>,
    /// Absent while this node is the master.
    pub(crate) work: Option<Work>,
    pub(crate) state_dir: PathBuf,
}

impl Answer for Answers {
    async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Force { accept_loss, dry_run } => match self.work.clone() {
                Some(work) => {
                    let order = Order { accept_loss, dry_run };
                    Response::Operation(self.force(work).run(order).await)
                }
                None => answer::failed(
                    FailureCode::Refused,
                    format!("{} is the master already", self.node),
                ),
            },
            Request::Graveyard(ask) => match &self.work {
                Some(work) => {
                    let store = Arc::clone(&work.store);
                    let look =
                        move |wanted: &Wanted, to: Option<&Path>| graves::tell(&*store, wanted, to);
                    answer::graveyard(ask, &work.workers, look).await
                }
                None => self.not_here(),
            },
            Request::CheckLocal(ask) => match &self.work {
                Some(work) => {
                    let (store, workers) = (Arc::clone(&work.store), &work.workers);
                    let look = move |targets: &[Target], depth, after: Option<&Account>| {
                        local::look(&*store, Side::Replica, targets, depth, after)
                    };
                    answer::local(&self.node, self.clock.unix_ms(), ask, workers, look).await
                }
                None => self.not_here(),
            },
            Request::Status => Response::ReplicaDaemon(self.status()),
            Request::Peers => Response::Peers(self.peers()),
            Request::KeysShow => answer::keys(&self.node, &self.key, &self.pins),
            Request::KeysPin { peer, key } => answer::done(self.pins.pin(&peer, key)),
            Request::KeysUnpin { peer, key } => answer::done(self.pins.unpin(&peer, key)),
            Request::ReplicaAdd { name, address, keys, dry_run } if self.work.is_some() => {
                answer::peer_added(&self.peers, &Peer { name, address, keys }, dry_run)
            }
            Request::Sync { .. }
            | Request::Canary
            | Request::KeysRotate { .. }
            | Request::LogTail { .. }
            | Request::LogStat
            | Request::LogAppend { .. }
            | Request::Quarantine { .. }
            | Request::Brake { .. }
            | Request::ReplicaAdd { .. }
            | Request::ReplicaRemove { .. }
            | Request::ReplicaPause { .. }
            | Request::Switch { .. }
            | Request::Freeze { .. }
            | Request::Thaw
            | Request::Operation
            | Request::History
            | Request::Ledger
            | Request::ConflictsAck { .. }
            | Request::Check(_)
            | Request::CheckState { .. }
            | Request::CheckRepair { .. }
            | Request::CheckUndo { .. } => {
                let message = format!("{}: that is the master's agent to ask", self.node);
                answer::failed(FailureCode::Refused, message)
            }
        }
    }
}

impl Answers {
    fn force(&self, work: Work) -> Force {
        Force {
            fence: self.fence.clone(),
            work,
            heard: self.heard.clone(),
            state_dir: self.state_dir.clone(),
            clock: Arc::clone(&self.clock),
        }
    }

    fn not_here(&self) -> Response {
        let message = format!("{} is the master: ask its agent", self.node);
        answer::failed(FailureCode::Refused, message)
    }

    /// One line: role, epoch, and when the master was heard of.
    pub(crate) fn summary(&self) -> String {
        let status = self.status();
        let heard = match (status.role, status.heartbeat_seconds) {
            (Role::Master, _) => "agents are refused".to_owned(),
            (Role::Replica, None) => "no master was heard of yet".to_owned(),
            (Role::Replica, Some(ago)) => format!("the master was heard of {ago:.0} s ago"),
        };
        format!("{}, epoch {}; {heard}", status.role, status.epoch)
    }

    /// How this daemon is.
    pub(crate) fn status(&self) -> ReplicaDaemonStatus {
        let (agents, now) = (self.heard.agents(), self.clock.unix_ms());
        let (master, last) = self.heard.last().unzip();
        let beat = last.as_ref().and_then(|agent| agent.beat);
        let lag_ms = last.as_ref().and_then(|agent| agent.lag_ms(now));
        let history = history::read(&self.state_dir).unwrap_or_default();
        let problems = self.work.as_ref().map(|work| work.store.problems()).unwrap_or_default();
        let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
        ReplicaDaemonStatus {
            schema_version: SCHEMA_VERSION,
            node: self.node.clone(),
            role: if self.fence.is_master() { Role::Master } else { Role::Replica },
            epoch: self.fence.epoch().0,
            listen: self.listen.to_string(),
            agents: agents
                .iter()
                .filter(|(_, agent)| agent.connections > 0)
                .map(|(name, _)| name.clone())
                .collect(),
            heartbeat_seconds: last.as_ref().map(|agent| seconds(now.saturating_sub(agent.at))),
            lag_entries: beat.map(|beat| beat.head.0.saturating_sub(beat.cursor.0)),
            problems: problems
                .into_iter()
                .take(LISTED_MAX)
                .map(|problem| Problem {
                    object: problem.place(),
                    detail: problem.detail,
                    code: problem.kind.as_str().to_owned(),
                })
                .collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            master,
            lag_seconds: lag_ms.map(seconds),
            complete_at: last.and_then(|agent| agent.complete_to),
            last_failover: history.into_iter().next_back(),
        }
    }

    /// The masters that were heard of since the start.
    fn peers(&self) -> Vec<PeerReport> {
        let report = |(name, agent): (String, Agent)| PeerReport {
            name,
            connected: agent.connections > 0,
            clock_ahead_ms: agent.clock_ahead_ms(),
            version: agent.version,
            blockers: Vec::new(),
            last_error: None,
        };
        self.heard.agents().into_iter().map(report).collect()
    }
}
