//! Answers `replctl` for the agent.

use std::{sync::Arc, time::Duration};

use mailtwin_host::admin::{
    AgentStatus, AsideStatus, Entry, FailureCode, LogStat, LogStatus, Problem, ReplicaStatus,
    Request, Response, SCHEMA_VERSION, answer,
};
use mailtwin_host::{keys::PublicKey, node::Role, pins::Pins};
use mailtwin_logic::{
    chain::Chain,
    cursor::{Claim, Cursor},
    entry::Target,
    ids::{Account, Epoch, LogSeq},
    link::Phase,
    mailbox::MailboxName,
};
use mailtwin_store::MailStore;

use crate::{
    Agent,
    link::LinkStatus,
    log::{Health, LogError},
    source::Source,
};

/// What is set aside and what is wrong in the store: so much of it is listed in a status.
const LISTED_MAX: usize = 50;
/// How long a sync waits unless it is told.
const SYNC_WITHIN: Duration = Duration::from_mins(5);

/// What answers need.
pub(crate) struct Answers {
    pub(crate) node: String,
    pub(crate) role: Role,
    pub(crate) epoch: Epoch,
    pub(crate) key: PublicKey,
    pub(crate) pins: Arc<Pins>,
    /// Absent while this node is a replica.
    pub(crate) working: Option<Working>,
}

/// What an agent that works has.
pub(crate) struct Working {
    pub(crate) agent: Agent,
    pub(crate) store: Arc<dyn MailStore>,
    /// Ends with the agent.
    pub(crate) _source: Source,
}

impl Answers {
    /// Answers one request.
    pub(crate) async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Status => Response::Status(self.status()),
            Request::KeysShow => answer::keys(&self.node, self.key, &self.pins),
            Request::KeysPin { peer, key } => answer::done(self.pins.pin(&peer, key)),
            Request::KeysUnpin { peer, key } => answer::done(self.pins.unpin(&peer, key)),
            Request::Sync { .. }
            | Request::LogTail { .. }
            | Request::LogStat
            | Request::LogAppend { .. }
            | Request::ReplicaPause { .. } => match &self.working {
                Some(working) => working.answer(request).await,
                None => answer::failed(
                    FailureCode::Refused,
                    format!("{} is a replica: ask the master", self.node),
                ),
            },
        }
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

    fn status(&self) -> AgentStatus {
        let working = self.working.as_ref();
        AgentStatus {
            schema_version: SCHEMA_VERSION,
            node: self.node.clone(),
            role: self.role,
            epoch: self.epoch.0,
            log: working.map(Working::log_status),
            replicas: working.map(Working::replicas).unwrap_or_default(),
            problems: working.map(|working| problems(&*working.store)).unwrap_or_default(),
        }
    }
}

impl Working {
    async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Sync { targets, timeout_ms } => self.sync(&targets, timeout_ms).await,
            Request::LogTail { entries } => self.log_tail(entries),
            Request::LogStat => Response::LogStat(self.log_stat()),
            Request::LogAppend { targets } => match self.append(&targets).await {
                Ok(seq) => Response::Appended { seq: seq.0 },
                Err((code, message)) => answer::failed(code, message),
            },
            Request::ReplicaPause { name, pause } => match self.agent.pause(&name, pause) {
                Some(result) => answer::done(result),
                None => {
                    answer::failed(FailureCode::Usage, format!("no replica is called {name:?}"))
                }
            },
            Request::Status
            | Request::KeysShow
            | Request::KeysPin { .. }
            | Request::KeysUnpin { .. } => Response::Done,
        }
    }

    async fn append(&self, targets: &[String]) -> Result<LogSeq, (FailureCode, String)> {
        let targets: Result<_, String> = targets.iter().map(|text| parse_target(text)).collect();
        let targets = targets.map_err(|message| (FailureCode::Usage, message))?;
        let append = self.agent.append(targets).await;
        append.map_err(|error: LogError| (FailureCode::Failed, Chain(&error).to_string()))
    }

    async fn sync(&self, targets: &[String], timeout_ms: Option<u64>) -> Response {
        let targets = if targets.is_empty() { vec![String::new()] } else { targets.to_vec() };
        let upto = match self.append(&targets).await {
            Ok(upto) => upto,
            Err((code, message)) => return answer::failed(code, message),
        };
        let within = timeout_ms.map_or(SYNC_WITHIN, Duration::from_millis);
        if self.agent.drained(upto, within).await {
            let set_aside = self.agent.links().iter().map(|link| link.aside.len()).sum();
            return Response::Synced { upto: upto.0, set_aside };
        }
        let behind = self.agent.links().into_iter().filter(|link| link.cursor < upto);
        let behind: Vec<String> = behind.map(|link| describe(&link)).collect();
        answer::failed(FailureCode::Failed, format!("not in time: {}", behind.join("; ")))
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

    fn replicas(&self) -> Vec<ReplicaStatus> {
        let (extent, now) = (self.agent.log().extent(), self.agent.now());
        let mut links = self.agent.links_with_totals();
        links.sort_by_key(|(link, _)| std::cmp::Reverse(badness(link.phase)));
        links
            .into_iter()
            .map(|(link, messages)| {
                let claim = extent.claim(Cursor { log: extent.id, seq: link.cursor });
                replica(&link, messages, claim, now)
            })
            .collect()
    }
}

fn replica(link: &LinkStatus, messages: u64, claim: Claim, now: u64) -> ReplicaStatus {
    let claim = match claim {
        Claim::Ok => "ok",
        Claim::AtRisk => "at-risk",
        Claim::Lost => "lost",
    };
    ReplicaStatus {
        name: link.name.clone(),
        state: state(link.phase).to_owned(),
        cursor: link.cursor.0,
        lag_entries: link.lag_entries,
        lag_seconds: Duration::from_millis(link.lag_ms(now)).as_secs_f64(),
        quarantined: link.aside.len(),
        claim: claim.to_owned(),
        messages,
        last_error: link.last_error.clone(),
        set_aside: link
            .aside
            .iter()
            .take(LISTED_MAX)
            .map(|aside| AsideStatus {
                object: aside.object.clone(),
                reason: aside.reason.clone(),
                detail: aside.last.clone(),
                tries: aside.tries,
                since: aside.since,
            })
            .collect(),
    }
}

/// One word for a phase, as in status and docs.
fn state(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waiting",
        Phase::Connecting => "connecting",
        Phase::Replaying => "replaying",
        Phase::InSync => "in-sync",
        Phase::Degraded => "degraded",
        Phase::Paused => "paused",
        Phase::Fenced(_) => "fenced",
    }
}

/// Orders a status: worst first.
fn badness(phase: Phase) -> u8 {
    match phase {
        Phase::InSync => 0,
        Phase::Replaying => 1,
        Phase::Connecting => 2,
        Phase::Paused => 3,
        Phase::Degraded => 4,
        Phase::Waiting => 5,
        Phase::Fenced(_) => 6,
    }
}

fn describe(link: &LinkStatus) -> String {
    let why = link.last_error.as_deref().unwrap_or("still replaying");
    format!("{} is {} at {}: {why}", link.name, state(link.phase), link.cursor)
}

/// `account` or `account/mailbox`; empty text is everything. Account names may hold slashes
/// themselves in trees, where only whole accounts are named.
fn parse_target(text: &str) -> Result<Target, String> {
    let usage =
        |error: &dyn std::error::Error| format!("{text:?} names no account or mailbox: {error}");
    if text.is_empty() {
        return Ok(Target::Store);
    }
    let Some((account, mailbox)) = text.split_once('/') else {
        return Ok(Target::Account(Account::new(text).map_err(|error| usage(&error))?));
    };
    let account = Account::new(account).map_err(|error| usage(&error))?;
    let mailbox = if mailbox.eq_ignore_ascii_case("inbox") { "" } else { mailbox };
    let mailbox = MailboxName::new(mailbox.as_bytes()).map_err(|error| usage(&error))?;
    Ok(Target::Mailbox(account, mailbox))
}

fn entry(entry: &mailtwin_logic::entry::Entry) -> Entry {
    Entry { seq: entry.seq.0, at: entry.at, target: entry.target.to_string() }
}

fn problems(store: &dyn MailStore) -> Vec<Problem> {
    let lost = store.verify().err().map(|error| Problem {
        object: "the store".to_owned(),
        detail: format!("{}; nothing is taken for deleted", Chain(&error)),
    });
    let all = store.problems().into_iter();
    let all = all.map(|problem| Problem { object: problem.object, detail: problem.detail });
    lost.into_iter().chain(all).take(LISTED_MAX).collect()
}
