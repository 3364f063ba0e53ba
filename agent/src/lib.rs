//! The daemon on the master: notices changes, logs them durably, replays them to each replica.
//!
//! ```text
//! source ──▶ log (durable) ──▶ link, one per replica ──▶ visits ──▶ wire
//! ```
#![forbid(unsafe_code)]

pub mod admin;
pub mod brake;
mod canary;
mod check;
pub mod cursor;
pub mod daemon;
mod failover;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod link;
mod links;
pub mod log;
pub mod metrics;
mod passed;
mod pause;
mod progress;
pub mod quarantine;
pub mod source;
mod store;
mod visit;

use std::{path::PathBuf, sync::Arc, time::Duration};

use mailtwin_host::{clock::Clock, retry::Retry, tasks::Tasks, workers::Workers};
use mailtwin_logic::{
    brake::{Limits, Scope},
    entry::Target,
    ids::{Epoch, LogSeq},
    link::Phase,
};
use mailtwin_store::MailStore;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use links::News;
pub use progress::Copied;

use crate::{
    brake::BrakeFile,
    check::Coverage,
    cursor::CursorFile,
    link::{Dial, LinkParts, LinkStatus, Order, What},
    links::{Links, Running},
    log::Log,
    metrics::Metrics,
    passed::Passed,
    pause::Pauses,
    quarantine::Quarantine,
    visit::Visitor,
};

/// What an agent works with.
pub struct AgentParts {
    /// This node's name.
    pub node: String,
    /// The epoch it is master in.
    pub epoch: Epoch,
    /// The last epoch that began without the master before it.
    pub forced: Option<Epoch>,
    /// Where cursors and quarantine lie.
    pub state_dir: PathBuf,
    /// The master's mail.
    pub store: Arc<dyn MailStore>,
    /// Threads for its calls.
    pub workers: Workers,
    /// The sync log.
    pub log: Arc<Log>,
    /// Where tasks run.
    pub tasks: Tasks,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Counters.
    pub metrics: Metrics,
    /// How long links wait between attempts.
    pub retry: Retry,
    /// What may vanish without an admin's leave.
    pub brake: Limits,
}

/// One replica to replay to.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Its node name.
    pub name: String,
    /// How to reach it.
    pub dialer: Arc<dyn Dial>,
}

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file in the state directory.
    #[error("open the state of replica {replica}")]
    State {
        /// Whose.
        replica: String,
        /// Cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StartError {
    fn of<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        replica: &str,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let replica = replica.to_owned();
        |source| Self::State { replica, source: source.into() }
    }
}

/// A running agent: one link per replica, over one log.
pub struct Agent {
    parts: AgentParts,
    links: Links,
    pauses: Pauses,
    passed: Arc<Passed>,
    stop: CancellationToken,
}

/// Orders that wait for a link; whoever gives more waits.
const ORDERS: usize = 4;

impl Agent {
    /// Starts a link to each replica; they run until `stop`.
    pub fn start(
        parts: AgentParts,
        replicas: Vec<Replica>,
        stop: &CancellationToken,
    ) -> Result<Self, StartError> {
        let pauses = Pauses::open(&parts.state_dir).map_err(StartError::of("list"))?;
        let names = replicas.iter().map(|replica| replica.name.clone());
        let passed = Arc::new(Passed::new(Arc::clone(&parts.log), names));
        let agent = Self { parts, links: Links::new(), pauses, passed, stop: stop.clone() };
        for replica in replicas {
            agent.begin(replica)?;
        }
        Ok(agent)
    }

    /// Takes a place in the log for a replica that is new, durably, before anything is copied to it:
    /// what changes from now on is there to be replayed, and all else is compared. What an earlier
    /// replica of that name has left is forgotten.
    pub fn claim(&self, replica: &str) -> Result<LogSeq, StartError> {
        self.forget(replica).map_err(StartError::of(replica))?;
        let place = self.passed.join(replica);
        let cursor = CursorFile::open(&self.parts.state_dir, replica, self.parts.log.id());
        let mut cursor = cursor.map_err(StartError::of(replica))?;
        cursor.reset(place).map_err(StartError::of(replica))?;
        Ok(place)
    }

    /// Starts the link to a replica that has its place, or gives that up.
    pub fn join(&self, replica: Replica) -> Result<(), StartError> {
        let name = replica.name.clone();
        self.begin(replica).inspect_err(|_| self.passed.leave(&name))
    }

    /// Ends the link to a replica, gives up its place in the log, and forgets what was kept of it.
    pub async fn leave(&self, replica: &str) -> Result<(), mailtwin_disk::DiskError> {
        let metrics = self.links.named(replica).map(|link| link.metrics.clone());
        let _ = self.links.end(replica).await;
        self.passed.leave(replica);
        if let Some(metrics) = metrics {
            self.parts.metrics.forget(&metrics);
        }
        self.forget(replica)
    }

    /// Octets of the log that are kept for this replica alone.
    pub fn kept_for(&self, replica: &str) -> u64 {
        self.passed.kept_for(replica)
    }

    fn begin(&self, Replica { name, dialer }: Replica) -> Result<(), StartError> {
        let parts = &self.parts;
        let cursor = CursorFile::open(&parts.state_dir, &name, parts.log.id());
        let mut cursor = cursor.map_err(StartError::of(&name))?;
        let head = *parts.log.tail().borrow();
        if cursor.seq() > head {
            // The log was restored from before: its next entries must not count as replayed.
            // The greeting has everything compared.
            cursor.reset(head).map_err(StartError::of(&name))?;
        }
        let quarantine =
            Quarantine::open(&parts.state_dir, &name).map_err(StartError::of(&name))?;
        let brake = BrakeFile::open(&parts.state_dir, &name, parts.brake, Arc::clone(&parts.clock))
            .map_err(StartError::of(&name))?;
        let status = watch::Sender::new(LinkStatus::new(&name));
        let metrics = parts.metrics.link(&name);
        let visitor = watch::Sender::new(None);
        let (orders, queue) = mpsc::channel(ORDERS);
        let stop = self.stop.child_token();
        self.links.join(Running {
            name: name.clone(),
            status: status.subscribe(),
            visitor: visitor.subscribe(),
            coverage: Arc::new(Coverage::open(&parts.state_dir, &name)),
            metrics: metrics.clone(),
            orders,
            stop: stop.clone(),
        });
        self.passed.up_to(&name, cursor.seq());
        let link = LinkParts {
            paused: self.pauses.watch(&name),
            replica: name,
            node: parts.node.clone(),
            epoch: parts.epoch,
            forced: parts.forced,
            state_dir: parts.state_dir.clone(),
            dialer,
            store: Arc::clone(&parts.store),
            workers: parts.workers.clone(),
            reader: parts.log.reader(cursor.seq()),
            log: Arc::clone(&parts.log),
            passed: Arc::clone(&self.passed),
            cursor,
            quarantine,
            brake: Arc::new(brake),
            tasks: parts.tasks.clone(),
            clock: Arc::clone(&parts.clock),
            metrics,
            retry: parts.retry.clone(),
            status,
            visitor,
        };
        parts.tasks.spawn("link", link::run(link, queue, stop));
        Ok(())
    }

    /// Removes every file about a replica.
    fn forget(&self, replica: &str) -> Result<(), mailtwin_disk::DiskError> {
        self.pauses.set(replica, false)?;
        for kind in ["cursors", "quarantine", "brake", "check"] {
            let dir = self.parts.state_dir.join(kind);
            let path = dir.join(format!("{replica}.json"));
            match std::fs::remove_file(&path) {
                Ok(()) => mailtwin_disk::dir::sync(&dir)?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(mailtwin_disk::DiskError::during("remove", &path)(error)),
            }
        }
        Ok(())
    }

    /// The sync log.
    pub fn log(&self) -> &Arc<Log> {
        &self.parts.log
    }

    /// Every link, in the order in which they began.
    pub fn links(&self) -> Vec<LinkStatus> {
        self.links.all().iter().map(|link| link.status.borrow().clone()).collect()
    }

    /// Every link, with the number of messages its replica acked since the start.
    pub fn links_with_totals(&self) -> Vec<(LinkStatus, u64)> {
        let one = |link: Arc<Running>| (link.status.borrow().clone(), link.metrics.totals().0);
        self.links.all().into_iter().map(one).collect()
    }

    /// Messages, octets sent and octets saved so far, over all links.
    pub fn totals(&self) -> (u64, u64, u64) {
        self.links
            .all()
            .iter()
            .map(|link| link.metrics.totals())
            .fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2))
    }

    /// What checks of each link need.
    pub(crate) fn check_links(&self) -> Vec<check::CheckLink> {
        let link = |link: &Arc<Running>| check::CheckLink {
            status: link.status.clone(),
            visitor: link.visitor.clone(),
            log: Arc::clone(&self.parts.log),
            coverage: Arc::clone(&link.coverage),
        };
        self.links.all().iter().map(link).collect()
    }

    /// Stops or resumes replaying to one replica, also over a restart; `None` if there is no such.
    pub fn pause(
        &self,
        replica: &str,
        pause: bool,
    ) -> Option<Result<(), mailtwin_disk::DiskError>> {
        self.running(replica)?;
        Some(self.pauses.set(replica, pause))
    }

    /// Has targets that are set aside for `replica` tried now; returns once that is noted.
    pub async fn retry(&self, replica: &str, targets: Vec<Target>) {
        self.order(replica, What::Retry(targets)).await;
    }

    /// Sets targets aside for `replica` no longer: they are compared as if nothing had happened.
    pub async fn forgive(&self, replica: &str, targets: Vec<Target>) {
        self.order(replica, What::Forgive(targets)).await;
    }

    /// Lets deletions go that the brake holds; returns once that is durable.
    pub async fn release(
        &self,
        replica: &str,
        scopes: Vec<Scope>,
    ) -> Result<(), mailtwin_disk::DiskError> {
        self.order(replica, What::Release(scopes)).await.unwrap_or(Ok(()))
    }

    async fn order(
        &self,
        replica: &str,
        what: What,
    ) -> Option<Result<(), mailtwin_disk::DiskError>> {
        let link = self.running(replica)?;
        let (done, answer) = oneshot::channel();
        // A link that has ended has nothing to do any more.
        link.orders.send(Order { what, done }).await.ok()?;
        answer.await.ok()
    }

    /// Logs `targets` and returns the position of the last.
    pub async fn append(&self, targets: Vec<Target>) -> Result<LogSeq, log::LogError> {
        self.parts.log.append(targets).await
    }

    /// Waits until every link, or `only` one, that is not paused has replayed up to `upto` and has
    /// nothing else to do; `false` if that took longer than `within`.
    pub async fn drained(&self, upto: LogSeq, within: Duration, only: Option<&str>) -> bool {
        let all = async {
            for link in self.links.all() {
                let mut status = link.status.clone();
                if only.is_some_and(|name| name != status.borrow().name) {
                    continue;
                }
                let there = |status: &LinkStatus| {
                    let quiet = matches!(status.phase, Phase::InSync | Phase::Degraded);
                    status.cursor >= upto && quiet || status.phase == Phase::Paused
                };
                if status.wait_for(there).await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(within, all).await.unwrap_or(false)
    }

    /// One link.
    pub fn link(&self, replica: &str) -> Option<LinkStatus> {
        self.running(replica).map(|link| link.status.borrow().clone())
    }

    /// Waits until a link's status is as `wanted`; `None` if there is no such link any more.
    pub(crate) async fn wait_for(
        &self,
        replica: &str,
        wanted: impl FnMut(&LinkStatus) -> bool,
    ) -> Option<LinkStatus> {
        let mut status = self.running(replica)?.status.clone();
        let there = status.wait_for(wanted).await;
        there.ok().map(|status| status.clone())
    }

    /// What visits a replica with, while it is connected.
    pub(crate) fn visitor(&self, replica: &str) -> Option<Visitor> {
        self.running(replica)?.visitor.borrow().clone()
    }

    /// Threads for calls of the store.
    pub(crate) fn workers(&self) -> &Workers {
        &self.parts.workers
    }

    fn running(&self, replica: &str) -> Option<Arc<Running>> {
        self.links.named(replica)
    }

    /// Tells of every change of a link's status from now on, of links that begin later, too.
    pub fn news(&self) -> News {
        self.links.news()
    }

    /// Milliseconds since 1970.
    pub fn now(&self) -> u64 {
        self.parts.clock.unix_ms()
    }
}
