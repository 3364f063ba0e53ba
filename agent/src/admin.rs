//! Answers `replctl` for the agent.

mod brake;
mod peers;
mod quarantine;
mod replicas;
mod rotate;
mod site;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use mailtwin_disk::DiskError;
use mailtwin_host::admin::{
    AgentStatus, Answer, AsideStatus, AtRisk, CheckAsk, CopyStatus, Entry, FailureCode, LogStat,
    LogStatus, Problem, ReplicaStatus, Request, Response, SCHEMA_VERSION, answer,
};
use mailtwin_host::{config::Peer, history, ledger, node::Node, tasks::Tasks};
use mailtwin_logic::{
    chain::Chain,
    check::Side,
    entry::Target,
    graveyard::Wanted,
    ids::{Account, LogSeq},
    link::Phase,
};
use mailtwin_store::{MailStore, ProblemKind, graves, local};
use tokio_util::sync::CancellationToken;

use crate::{
    Agent,
    canary::{self, Canary},
    check::{self, Bench, Jobs, Scope},
    failover::{self, Ended, Failover, Order},
    link::{Copying, Dialers, LinkStatus},
    log::{Health, LogError},
    source::Source,
};

use rotate::Rotation;

/// What is set aside and what is wrong in the store: so much of it is listed in a status.
const LISTED_MAX: usize = 50;
/// How long a sync waits unless it is told.
const SYNC_WITHIN: Duration = Duration::from_mins(5);

/// What answers need.
pub(crate) struct Answers {
    pub(crate) node: Node,
    /// Absent while this node is a replica.
    pub(crate) working: Option<Working>,
    /// How peers are reached, and who they are.
    pub(crate) dialers: Dialers,
    /// Held while a replica is added or removed.
    pub(crate) changing: tokio::sync::Mutex<()>,
    pub(crate) failover: Failover,
    pub(crate) tasks: Tasks,
    /// Ends the freeze that was begun last.
    pub(crate) thaw: Mutex<CancellationToken>,
}

/// What an agent that works has.
pub(crate) struct Working {
    pub(crate) agent: Arc<Agent>,
    pub(crate) store: Arc<dyn MailStore>,
    /// Ends with the agent.
    pub(crate) source: Source,
    /// What checks work with, over all links.
    pub(crate) bench: Bench,
    pub(crate) checks: Jobs,
    pub(crate) canary: Option<Arc<Canary>>,
}

/// What was read from a file, or why it could not be.
fn told<T>(read: Result<Vec<T>, DiskError>, into: impl FnOnce(Vec<T>) -> Response) -> Response {
    match read {
        Ok(entries) => into(entries),
        Err(error) => answer::failed(FailureCode::Failed, Chain(&error).to_string()),
    }
}

impl Answer for Answers {
    async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Status => Response::Status(self.status()),
            Request::Peers => Response::Peers(self.peers().await),
            Request::KeysShow => {
                answer::keys(&self.node.name, &self.dialers.key, &self.dialers.pins)
            }
            Request::KeysPin { peer, key } => answer::done(self.dialers.pins.pin(&peer, key)),
            Request::KeysUnpin { peer, key } => answer::done(self.dialers.pins.unpin(&peer, key)),
            Request::KeysRotate { switch, without, dry_run } => {
                self.rotate(Rotation { switch, without, dry_run }).await
            }
            Request::Operation => Response::Operation(self.failover.operations.status()),
            Request::History => told(history::read(&self.failover.state_dir), Response::History),
            Request::Ledger => told(ledger::newest(&self.failover.state_dir), Response::Ledger),
            Request::ConflictsAck { ids } => {
                let now = self.failover.clock.unix_ms();
                let acked = ledger::ack(&self.failover.state_dir, ids.as_deref(), now);
                told(acked, Response::Ledger)
            }
            Request::Force { .. } => answer::failed(
                FailureCode::Usage,
                "that is the replica daemon's to do: is this replctl of the same version?".into(),
            ),
            Request::Thaw => {
                self.thaw.lock().expect("no panic while it is held").cancel();
                Response::Operation(self.failover.operations.status())
            }
            Request::ReplicaAdd { name, address, keys, dry_run } => {
                self.add(Peer { name, address, keys }, dry_run).await
            }
            Request::ReplicaRemove { name, dry_run } => self.remove(&name, dry_run).await,
            Request::Sync { .. }
            | Request::Canary
            | Request::LogTail { .. }
            | Request::LogStat
            | Request::LogAppend { .. }
            | Request::Quarantine { .. }
            | Request::Brake { .. }
            | Request::ReplicaPause { .. }
            | Request::Switch { .. }
            | Request::Freeze { .. }
            | Request::Check(_)
            | Request::CheckState { .. }
            | Request::CheckRepair { .. }
            | Request::CheckLocal(_)
            | Request::Graveyard(_)
            | Request::CheckUndo { .. } => match &self.working {
                Some(working) => self.work(working, request).await,
                None => answer::failed(FailureCode::Refused, self.not_the_master()),
            },
        }
    }
}

impl Answers {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are the working half's")]
    async fn work(&self, working: &Working, request: Request) -> Response {
        match request {
            Request::Switch {
                to,
                kick_after_ms,
                max_wait_ms,
                expire_ms,
                no_gate,
                dry_run,
                rehearse,
            } => {
                let order = Order {
                    to,
                    kick_after: Duration::from_millis(kick_after_ms),
                    max_wait: Duration::from_millis(max_wait_ms),
                    expire: Duration::from_millis(expire_ms),
                    no_gate,
                    dry_run,
                    rehearse,
                };
                self.switch(working, order)
            }
            Request::Freeze { wait_ms, expire_ms } => {
                self.freeze(Duration::from_millis(wait_ms), Duration::from_millis(expire_ms))
            }
            request => working.answer(request).await,
        }
    }

    /// Who is, and what this node knows of how that came.
    fn not_the_master(&self) -> String {
        let (node, epoch) = (&self.node.name, self.node.epoch);
        match (&self.node.handover, &self.node.master) {
            (Some(handover), _) if handover.untold => format!(
                "{node} has handed epoch {epoch} over to {}, and tells it until it answers: \
                 `replctl failover status` follows that",
                handover.to
            ),
            (_, Some(master)) => {
                format!("{node} is a replica: ask {master}, the master of epoch {epoch}")
            }
            (_, None) => format!("{node} is a replica: ask the master"),
        }
    }

    /// Begins what is followed by asking for the operation.
    fn begin(
        &self,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Response {
        let Some(begun) = self.failover.operations.begin() else {
            let message = "another operation is under way: `replctl failover status` follows it";
            return answer::failed(FailureCode::Refused, message.to_owned());
        };
        let (failover, stop) = (self.failover.clone(), self.tasks.stop().clone());
        self.tasks.spawn(name, async move {
            tokio::select! {
                biased;
                // What follows a recorded hand-over goes on in the next role.
                () = stop.cancelled() => if failover.file.now().handover.is_none() {
                    let message = "interrupted; the gate is where this node's role wants it";
                    failover.operations.end(Ended::Undone, message.to_owned());
                },
                () = work => {}
            }
        });
        Response::Operation(begun)
    }

    fn switch(&self, working: &Working, order: Order) -> Response {
        let (failover, agent) = (self.failover.clone(), Arc::clone(&working.agent));
        let (store, canary) = (Arc::clone(&working.store), working.canary.clone());
        let work = async move {
            failover::switch(&failover, &agent, (store, canary.as_deref()), order).await;
        };
        self.begin("switch", work)
    }

    fn freeze(&self, wait: Duration, expire: Duration) -> Response {
        if !self.failover.gate.is_there() {
            let message = "no gate: configure gate.close and gate.open, and restart mailtwin-agent";
            return answer::failed(FailureCode::Refused, message.to_owned());
        }
        let (failover, thaw) = (self.failover.clone(), CancellationToken::new());
        let token = thaw.clone();
        let begun = self.begin("freeze", async move { failover.freeze(wait, expire, token).await });
        if matches!(begun, Response::Operation(_)) {
            *self.thaw.lock().expect("no panic while it is held") = thaw;
        }
        begun
    }

    /// Logs what a status shows.
    pub(crate) fn report(&self) {
        let status = self.status();
        if let Some(LogStatus { head, bytes, error, .. }) = &status.log {
            tracing::info!(head, bytes, ?error, "sync log");
        }
        for replica in &status.replicas {
            let ReplicaStatus { name, state, cursor, lag_entries, lag_seconds, .. } = replica;
            let (quarantined, error) = (replica.quarantined, &replica.last_error);
            tracing::info!(
                replica = %name, %state, cursor, lag_entries, lag_seconds, quarantined, ?error,
                "replica"
            );
        }
        tracing::info!(problems = status.problems.len(), "store");
    }

    /// One line: role, epoch, each replica's state and lag, the worst first.
    pub(crate) fn summary(&self) -> String {
        let status = self.status();
        let mut text = format!("{}, epoch {}", status.role, status.epoch);
        if status.log.is_some_and(|log| log.error.is_some()) {
            text.push_str("; the sync log CANNOT BE WRITTEN");
        }
        for ReplicaStatus { name, state, lag_seconds, quarantined, .. } in &status.replicas {
            // Writing to a string cannot fail.
            let _ = write!(text, "; {name} {state}, lag {lag_seconds:.0} s");
            if *quarantined > 0 {
                let _ = write!(text, ", {quarantined} set aside");
            }
        }
        text
    }

    pub(crate) fn status(&self) -> AgentStatus {
        let working = self.working.as_ref();
        let history = history::read(&self.failover.state_dir).unwrap_or_default();
        AgentStatus {
            schema_version: SCHEMA_VERSION,
            node: self.node.name.clone(),
            role: self.node.role,
            epoch: self.node.epoch.0,
            log: working.map(Working::log_status),
            replicas: working.map(Working::replicas).unwrap_or_default(),
            problems: working.map(|working| problems(&*working.store)).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            gate_open: self.failover.gate.is_open(),
            at_risk: working.and_then(Working::at_risk),
            last_failover: history.into_iter().next_back(),
            canary: working.and_then(|working| working.canary.as_ref()?.last()),
        }
    }
}

impl Working {
    async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Sync { targets, timeout_ms, replica } => {
                self.sync(&targets, timeout_ms, replica.as_deref()).await
            }
            Request::Canary => canary::answer(self.canary.as_deref()).await,
            Request::LogTail { entries } => self.log_tail(entries),
            Request::LogStat => Response::LogStat(self.log_stat()),
            Request::LogAppend { targets } => self.append_told(&targets).await,
            Request::ReplicaPause { name, pause } => match self.agent.pause(&name, pause) {
                Some(result) => answer::done(result),
                None => {
                    answer::failed(FailureCode::Usage, format!("no replica is called {name:?}"))
                }
            },
            Request::Quarantine { what, replica, targets, dry_run } => {
                let wanted = quarantine::Wanted::parse(replica, &targets);
                match wanted.and_then(|wanted| wanted.check(&self.agent)) {
                    Ok(wanted) => quarantine::answer(&self.agent, what, &wanted, dry_run).await,
                    Err(message) => answer::failed(FailureCode::Usage, message),
                }
            }
            Request::Brake { release, replica, accounts, dry_run } => {
                let wanted = quarantine::Wanted::parse(replica, &accounts);
                match wanted.and_then(|wanted| wanted.check(&self.agent)) {
                    Ok(wanted) => brake::answer(&self.agent, &wanted, release, dry_run).await,
                    Err(message) => answer::failed(FailureCode::Usage, message),
                }
            }
            Request::Check(ask) => self.check(ask),
            Request::CheckRepair { plan, part_of } => {
                let bench = self.bench.clone();
                Self::started(self.checks.start(|_| check::repair(bench, plan, part_of)))
            }
            Request::CheckLocal(ask) => {
                let (store, workers) = (Arc::clone(&self.store), self.agent.workers());
                let look = move |targets: &[Target], depth, after: Option<&Account>| {
                    local::look(&*store, Side::Master, targets, depth, after)
                };
                answer::local(&self.bench.node, self.agent.now(), ask, workers, look).await
            }
            Request::Graveyard(ask) => {
                let store = Arc::clone(&self.store);
                let look =
                    move |wanted: &Wanted, to: Option<&Path>| graves::tell(&*store, wanted, to);
                answer::graveyard(ask, self.agent.workers(), look).await
            }
            Request::CheckUndo { id, export_to } => self.undo(id, export_to).await,
            Request::CheckState { id, from } => match self.checks.state(id, from) {
                Some(state) => Response::Check(state),
                None => answer::failed(FailureCode::Usage, format!("no check has number {id}")),
            },
            Request::Status
            | Request::Peers
            | Request::KeysShow
            | Request::KeysPin { .. }
            | Request::KeysUnpin { .. }
            | Request::KeysRotate { .. }
            | Request::ReplicaAdd { .. }
            | Request::ReplicaRemove { .. }
            | Request::Switch { .. }
            | Request::Freeze { .. }
            | Request::Thaw
            | Request::Operation
            | Request::History
            | Request::Force { .. }
            | Request::Ledger
            | Request::ConflictsAck { .. } => Response::Done,
        }
    }

    async fn append_told(&self, targets: &[String]) -> Response {
        match self.append(targets).await {
            Ok(seq) => Response::Appended { seq: seq.0 },
            Err((code, message)) => answer::failed(code, message),
        }
    }

    async fn undo(&self, id: u64, export_to: Option<PathBuf>) -> Response {
        match check::undo(&self.bench, id, export_to).await {
            Ok(Some(report)) => Response::Graveyard(report),
            Ok(None) => answer::failed(FailureCode::Usage, format!("no repair has number {id}")),
            Err(message) => answer::failed(FailureCode::Failed, message),
        }
    }

    fn check(&self, ask: CheckAsk) -> Response {
        let usage = |message| answer::failed(FailureCode::Usage, message);
        let targets: Result<_, String> =
            ask.targets.iter().map(|text| answer::target(text)).collect();
        let scope = match targets {
            Ok(targets) => Scope::new(targets),
            Err(message) => return usage(message),
        };
        if let Some(name) = ask.replica.as_ref().filter(|name| self.agent.link(name).is_none()) {
            return usage(format!("no replica is called {name:?}"));
        }
        let bench = Bench { only: ask.replica.clone(), ..self.bench.clone() };
        Self::started(self.checks.start(|tally| check::run(bench, ask, scope, tally)))
    }

    fn started(id: Option<u64>) -> Response {
        match id {
            Some(id) => Response::CheckStarted { id },
            None => {
                answer::failed(FailureCode::Failed, "too many checks run: try again later".into())
            }
        }
    }

    async fn append(&self, targets: &[String]) -> Result<LogSeq, (FailureCode, String)> {
        let targets: Result<_, String> = targets.iter().map(|text| answer::target(text)).collect();
        let targets = targets.map_err(|message| (FailureCode::Usage, message))?;
        let append = self.agent.append(targets).await;
        append.map_err(|error: LogError| (FailureCode::Failed, Chain(&error).to_string()))
    }

    async fn sync(
        &self,
        targets: &[String],
        timeout_ms: Option<u64>,
        only: Option<&str>,
    ) -> Response {
        if let Some(name) = only.filter(|name| self.agent.link(name).is_none()) {
            return answer::failed(FailureCode::Usage, format!("no replica is called {name:?}"));
        }
        if let Some(account) = self.unknown_of(targets).await {
            let message = format!("no account is called {account}: look at the name");
            return answer::failed(FailureCode::Usage, message);
        }
        let within = timeout_ms.map_or(SYNC_WITHIN, Duration::from_millis);
        // What waits for its turn comes before: nothing that happened until now is visited after the
        // answer. If it takes too long, that shows below.
        let deadline = tokio::time::Instant::now() + within;
        let _ = tokio::time::timeout_at(deadline, self.source.barrier().seen_passed()).await;
        let targets = if targets.is_empty() { vec![String::new()] } else { targets.to_vec() };
        let upto = match self.append(&targets).await {
            Ok(upto) => upto,
            Err((code, message)) => return answer::failed(code, message),
        };
        let is_meant = |link: &LinkStatus| only.is_none_or(|name| name == link.name);
        let meant = || self.agent.links().into_iter().filter(is_meant);
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        if self.agent.drained(upto, left, only).await {
            let set_aside = meant().map(|link| link.aside.len()).sum();
            return Response::Synced { upto: upto.0, set_aside };
        }
        let behind = meant().filter(|link| link.cursor < upto);
        let behind: Vec<String> = behind.map(|link| describe(&link)).collect();
        answer::failed(FailureCode::Failed, format!("not in time: {}", behind.join("; ")))
    }

    /// The first account among `targets` that the store does not have. What cannot be looked up is
    /// told when it is replayed.
    async fn unknown_of(&self, targets: &[String]) -> Option<Account> {
        for text in targets {
            let Some(account) = answer::target(text).ok()?.account().cloned() else { continue };
            let (store, whose) = (Arc::clone(&self.store), account.clone());
            let found = self.agent.workers().run(move || store.account(&whose)).await;
            if matches!(found, Ok(Ok(None))) {
                return Some(account);
            }
        }
        None
    }

    fn log_tail(&self, entries: usize) -> Response {
        let extent = self.agent.log().extent();
        let back = u64::try_from(entries).unwrap_or(u64::MAX);
        let after = LogSeq(extent.head.0.saturating_sub(back).max(extent.oldest.0 - 1));
        // A reader of its own: what it reads is taken by nobody.
        match self.agent.log().reader(extent.head).read(after, entries) {
            Ok(taken) => Response::Entries(taken.entries.iter().map(entry).collect()),
            Err(error) => answer::failed(FailureCode::Failed, Chain(&error).to_string()),
        }
    }

    fn log_stat(&self) -> LogStat {
        let (extent, counts) = (self.agent.log().extent(), self.agent.log().counts());
        let cursors = self.agent.links().into_iter().map(|link| (link.name, link.cursor.0));
        LogStat {
            id: extent.id.to_string(),
            oldest: extent.oldest.0,
            head: extent.head.0,
            bytes: extent.octets,
            bound: extent.bound_octets,
            append_errors: counts.append_errors,
            cursors: cursors.collect(),
        }
    }

    fn log_status(&self) -> LogStatus {
        let extent = self.agent.log().extent();
        let error = match &*self.agent.log().health().borrow() {
            Health::Good => None,
            Health::Failing(why) | Health::Stopped(why) => Some(why.clone()),
        };
        LogStatus { id: extent.id.to_string(), head: extent.head.0, bytes: extent.octets, error }
    }

    fn at_risk(&self) -> Option<AtRisk> {
        peers::at_risk(&self.agent.links(), self.agent.now())
    }

    fn replicas(&self) -> Vec<ReplicaStatus> {
        let now = self.agent.now();
        let mut links = self.agent.links_with_totals();
        links.sort_by_key(|(link, _)| std::cmp::Reverse(badness(link.phase)));
        links
            .into_iter()
            .map(|(link, messages)| {
                let check = self.bench.last_check(&link.name);
                ReplicaStatus { check, ..replica(&link, messages, now) }
            })
            .collect()
    }
}

fn replica(link: &LinkStatus, messages: u64, now: u64) -> ReplicaStatus {
    ReplicaStatus {
        name: link.name.clone(),
        state: link.phase.as_str().to_owned(),
        cursor: link.cursor.0,
        lag_entries: link.lag_entries,
        lag_seconds: Duration::from_millis(link.lag_ms(now)).as_secs_f64(),
        quarantined: link.aside.len(),
        claim: link.claim.as_str().to_owned(),
        copy: link.copy.map(copy),
        messages,
        last_error: link.last_error.clone(),
        key_trouble: link.key_trouble.map(|key| key.as_str().to_owned()),
        set_aside: link
            .aside
            .iter()
            .take(LISTED_MAX)
            .map(|aside| AsideStatus {
                object: aside.object.clone(),
                reason: aside.reason.to_string(),
                detail: aside.last.clone(),
                tries: aside.tries,
                since: aside.since,
            })
            .collect(),
        brake: brake::held(link),
        check: None,
    }
}

fn copy(copy: Copying) -> CopyStatus {
    CopyStatus {
        messages: copy.copied.there,
        of: copy.copied.of,
        counted: copy.copied.whole,
        per_second: copy.per_kilosecond.map(|pace| Duration::from_millis(pace).as_secs_f64()),
        eta_seconds: copy.left_ms().map(|ms| Duration::from_millis(ms).as_secs_f64()),
    }
}

/// Orders a status: worst first.
fn badness(phase: Phase) -> u8 {
    match phase {
        Phase::InSync => 0,
        Phase::Replaying => 1,
        Phase::Connecting | Phase::Merging => 2,
        Phase::Paused => 3,
        Phase::Degraded => 4,
        Phase::Waiting => 5,
        Phase::Fenced(_) => 6,
    }
}

fn describe(link: &LinkStatus) -> String {
    let why = link.last_error.as_deref().unwrap_or("still replaying");
    format!("{} is {} at {}: {why}", link.name, link.phase.as_str(), link.cursor)
}

fn entry(entry: &mailtwin_logic::entry::Entry) -> Entry {
    Entry { seq: entry.seq.0, at: entry.at, target: entry.target.to_string() }
}

fn problems(store: &dyn MailStore) -> Vec<Problem> {
    let lost = store.verify().err().map(|error| Problem {
        object: "the store".to_owned(),
        detail: format!("{}; nothing is taken for deleted", Chain(&error)),
        code: ProblemKind::WrongStore.as_str().to_owned(),
    });
    let all = store.problems().into_iter();
    let all = all.map(|problem| Problem {
        object: problem.place(),
        detail: problem.detail,
        code: problem.kind.as_str().to_owned(),
    });
    lost.into_iter().chain(all).take(LISTED_MAX).collect()
}
