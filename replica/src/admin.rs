//! Answers `replctl` for the replica daemon.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use mailtwin_host::{
    admin::{
        Answer, FailureCode, Problem, ReplicaDaemonStatus, Request, Response, SCHEMA_VERSION,
        answer,
    },
    clock::Clock,
    keys::PublicKey,
    node::Role,
    pins::Pins,
};
use mailtwin_logic::{check::Side, entry::Target, graveyard::Wanted, ids::Account};
use mailtwin_store::{graves, local};

use crate::{
    fence::Fence,
    force::{Force, Order},
    heard::Heard,
    session::Work,
};

/// Problems listed in a status.
const LISTED_MAX: usize = 50;

/// What answers need.
pub(crate) struct Answers {
    pub(crate) node: String,
    pub(crate) key: PublicKey,
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
            Request::KeysShow => answer::keys(&self.node, self.key, &self.pins),
            Request::KeysPin { peer, key } => answer::done(self.pins.pin(&peer, key)),
            Request::KeysUnpin { peer, key } => answer::done(self.pins.unpin(&peer, key)),
            Request::Sync { .. }
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
        let agents = self.heard.agents();
        let last = agents.values().filter_map(|agent| agent.beat).max_by_key(|beat| beat.at);
        let problems = self.work.as_ref().map(|work| work.store.problems()).unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "for humans")]
        let age = |at: u64| self.clock.unix_ms().saturating_sub(at) as f64 / 1000.0;
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
            heartbeat_seconds: last.map(|beat| age(beat.at)),
            lag_entries: last.map(|beat| beat.head.0.saturating_sub(beat.cursor.0)),
            problems: problems
                .into_iter()
                .take(LISTED_MAX)
                .map(|problem| Problem { object: problem.object, detail: problem.detail })
                .collect(),
        }
    }
}
