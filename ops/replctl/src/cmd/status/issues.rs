//! What a status complains of, the worst first, each with the next command: decided from what the
//! daemons said, and from nothing else.

use mailtwin_host::{
    admin::{AgentStatus, Problem, ReplicaDaemonStatus, ReplicaStatus},
    codes::{CheckResult, KeyTrouble},
    lines::LogLine,
    node::Role,
};
use serde::Serialize;

/// Lag beyond which users notice, in seconds.
pub(super) const LAG_WARN: f64 = 60.0;
/// Lag beyond which much is at stake.
pub(super) const LAG_CRITICAL: f64 = 600.0;

/// How bad it is; the worst is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Rank {
    /// Nothing is replicated to somebody, or mail is at stake.
    Critical,
    /// A human should look.
    Warning,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Issue {
    pub(super) level: Rank,
    /// For `replctl explain`; empty if there is nothing to explain.
    pub(super) code: String,
    pub(super) what: String,
    /// What to type.
    pub(super) next: String,
}

impl Issue {
    fn critical(code: &str, what: String, next: impl Into<String>) -> Self {
        Self { level: Rank::Critical, code: code.to_owned(), what, next: next.into() }
    }

    fn warning(code: &str, what: String, next: impl Into<String>) -> Self {
        Self { level: Rank::Warning, ..Self::critical(code, what, next) }
    }
}

/// Of what the agent said.
pub(super) fn of_agent(status: &AgentStatus) -> Vec<Issue> {
    let mut issues = Vec::new();
    if status.role == Role::Replica {
        let what = format!("{} is a replica, and mailtwin-replica does not run", status.node);
        let next = "systemctl start mailtwin-replica";
        issues.push(Issue::critical("daemons", what, next));
    }
    if let Some(error) = status.log.as_ref().and_then(|log| log.error.as_ref()) {
        let what = format!("sync log: CANNOT BE WRITTEN: {error}");
        issues.push(Issue::critical("preflight-log", what, "replctl doctor"));
    }
    if status.role == Role::Master && status.replicas.is_empty() {
        let what = "there is no replica: nothing is replicated".to_owned();
        issues.push(Issue::warning("peers", what, "replctl replica add NAME HOST:PORT"));
    }
    for replica in &status.replicas {
        of_replica(replica, &status.node, &mut issues);
    }
    issues.extend(status.problems.iter().map(problem));
    if let Some(canary) = status.canary.as_ref().filter(|canary| !canary.is_well()) {
        let what = format!("the last canary did not arrive: {}", canary.summary());
        issues.push(Issue::warning(LogLine::CanaryMissing.as_str(), what, "replctl canary"));
    }
    issues.sort_by_key(|issue| issue.level);
    issues
}

fn of_replica(replica: &ReplicaStatus, node: &str, issues: &mut Vec<Issue>) {
    let ReplicaStatus { name, state, last_error, .. } = replica;
    let why = last_error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
    if let Some(key) = replica.key_trouble.as_deref().and_then(KeyTrouble::of_code) {
        issues.push(over_a_key(key, name, node, &why));
    }
    match state.as_str() {
        _ if replica.key_trouble.is_some() => {}
        "fenced" => {
            let what = format!("{name} knows a newer master{why}");
            issues.push(Issue::critical(state, what, "replctl failover history"));
        }
        "waiting" | "connecting" => {
            let what = format!("{name} is not connected{why}");
            issues.push(Issue::critical(state, what, "replctl doctor"));
        }
        "paused" => {
            let (what, next) =
                (format!("{name} is paused"), format!("replctl replica resume {name}"));
            issues.push(Issue::warning(state, what, next));
        }
        "merging" => {
            let what = format!("what only {name} has is being copied back");
            issues.push(Issue::warning(state, what, "replctl ledger"));
        }
        _ => {}
    }
    match replica.claim.as_str() {
        "lost" => {
            let what = format!(
                "{name}: LOST: the sync log no longer has all that it lacks; it is compared with \
                 everything when it is back"
            );
            issues.push(Issue::critical("lost", what, "replctl explain lost"));
        }
        "at-risk" => {
            let what = format!(
                "{name}: AT RISK: what it lacks fills most of the sync log; bring it back soon, or \
                 raise log.bound"
            );
            issues.push(Issue::warning("at-risk", what, "replctl log stat"));
        }
        _ => {}
    }
    issues.extend(lag(name, Some(replica.lag_seconds), "replctl status --watch"));
    let (aside, next) = (replica.quarantined, "replctl quarantine list".to_owned());
    if aside > 0 {
        let what = format!("{name}: {aside} mailboxes or accounts are set aside");
        issues.push(Issue::warning("degraded", what, next));
    }
    if let Some(held) = replica.brake.first() {
        issues.push(Issue::warning("brake", super::super::brake::line(held), "replctl brake show"));
    }
    let different = CheckResult::Different.as_str();
    if let Some(check) = replica.check.as_ref().filter(|check| check.result == different) {
        let what = format!("{name}: the last check found {} differences", check.found);
        issues.push(Issue::warning(different, what, format!("replctl check --replica {name}")));
    }
}

fn over_a_key(key: KeyTrouble, name: &str, node: &str, why: &str) -> Issue {
    let (what, next) = match key {
        KeyTrouble::PeerKeyChanged => (
            format!("{name} is REFUSED, for it shows another key than its own{why}"),
            format!(
                "replctl keys show, on {name}; if that is the key it showed: replctl keys pin {name} KEY"
            ),
        ),
        KeyTrouble::OwnKeyRefused => (
            format!("{name} REFUSES this node for its key{why}"),
            format!("replctl keys show; on {name}: replctl keys pin {node} KEY"),
        ),
    };
    Issue::critical(key.as_str(), what, next)
}

fn lag(name: &str, seconds: Option<f64>, next: &str) -> Option<Issue> {
    let lag = seconds.filter(|lag| *lag > LAG_WARN)?;
    let what = format!("{name} lags by {lag:.0} s");
    let issue = Issue::warning("replaying", what, next);
    Some(if lag > LAG_CRITICAL { Issue { level: Rank::Critical, ..issue } } else { issue })
}

fn problem(problem: &Problem) -> Issue {
    let Problem { object, detail, code } = problem;
    let next = if code.is_empty() { "replctl explain".into() } else { explain(code) };
    Issue::warning(code, format!("problem: {object}: {detail}"), next)
}

fn explain(code: &str) -> String {
    format!("replctl explain {code}")
}

/// Of what the replica daemon said.
pub(super) fn of_replica_daemon(status: &ReplicaDaemonStatus) -> Vec<Issue> {
    let mut issues = Vec::new();
    let node = &status.node;
    if status.role == Role::Master {
        let what = format!("{node} is the master, and mailtwin-agent does not run");
        issues.push(Issue::critical("daemons", what, "systemctl start mailtwin-agent"));
    } else if status.agents.is_empty() {
        let what = match (&status.master, status.heartbeat_seconds) {
            (Some(master), Some(age)) => {
                format!("NOT CONNECTED: {master} was heard last {age:.0} s ago")
            }
            (_, _) => "no master has been heard of yet".to_owned(),
        };
        let next = "replctl status, on the master; if it is dead: replctl failover force --dry-run";
        issues.push(Issue::critical("peer-link", what, next));
    } else {
        issues.extend(lag(node, status.lag_seconds, "replctl status, on the master"));
    }
    issues.extend(status.problems.iter().map(problem));
    issues.sort_by_key(|issue| issue.level);
    issues
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn replica(changes: &Value) -> ReplicaStatus {
        let mut replica = json!({
            "name": "mx2", "state": "in-sync", "cursor": 1, "lag_entries": 0, "lag_seconds": 0.0,
            "quarantined": 0, "claim": "ok", "messages": 0, "last_error": null, "set_aside": [],
        });
        for (key, value) in changes.as_object().unwrap() {
            replica[key] = value.clone();
        }
        serde_json::from_value(replica).unwrap()
    }

    fn agent(replicas: Vec<ReplicaStatus>) -> AgentStatus {
        let base = json!({
            "schema_version": 1, "node": "mx1", "role": "master", "epoch": 1,
            "log": { "id": "x", "head": 1, "bytes": 1, "error": null }, "replicas": [],
            "problems": [],
        });
        AgentStatus { replicas, ..serde_json::from_value(base).unwrap() }
    }

    #[test]
    fn each_trouble_of_a_replica_has_its_next_command() {
        use Rank::{Critical, Warning};
        let held = json!([{ "replica": "mx2", "account": null, "since": 1, "why": "gone",
                            "messages": 1, "mailboxes": 0 }]);
        let check = json!({ "at": 1, "level": "full", "result": "different", "found": 3 });
        let cases = [
            (json!({ "state": "waiting", "last_error": "refused" }), Critical, "replctl doctor"),
            (
                json!({ "state": "waiting", "key_trouble": "peer-key-changed" }),
                Critical,
                "replctl keys show, on mx2; if that is the key it showed: replctl keys pin mx2 KEY",
            ),
            (
                json!({ "state": "waiting", "key_trouble": "own-key-refused" }),
                Critical,
                "replctl keys show; on mx2: replctl keys pin mx1 KEY",
            ),
            (json!({ "state": "fenced" }), Critical, "replctl failover history"),
            (json!({ "state": "paused" }), Warning, "replctl replica resume mx2"),
            (json!({ "state": "merging" }), Warning, "replctl ledger"),
            (json!({ "claim": "lost" }), Critical, "replctl explain lost"),
            (json!({ "claim": "at-risk" }), Warning, "replctl log stat"),
            (json!({ "lag_seconds": 61.0 }), Warning, "replctl status --watch"),
            (json!({ "lag_seconds": 601.0 }), Critical, "replctl status --watch"),
            (json!({ "state": "degraded", "quarantined": 2 }), Warning, "replctl quarantine list"),
            (json!({ "brake": held }), Warning, "replctl brake show"),
            (json!({ "check": check }), Warning, "replctl check --replica mx2"),
        ];
        assert_eq!(of_agent(&agent(vec![replica(&json!({}))])), []);
        for (changes, level, next) in cases {
            let found = of_agent(&agent(vec![replica(&changes)]));
            assert_eq!(found.len(), 1, "{changes}: {found:?}");
            assert_eq!((found[0].level, found[0].next.as_str()), (level, next), "{changes}");
        }
    }

    #[test]
    fn the_worst_comes_first() {
        let paused = replica(&json!({ "state": "paused" }));
        let gone = replica(&json!({ "state": "waiting" }));
        let mut status = agent(vec![paused, gone]);
        status.problems.push(Problem {
            object: "u1".into(),
            detail: "x".into(),
            code: "name".into(),
        });
        let ranks: Vec<Rank> = of_agent(&status).iter().map(|issue| issue.level).collect();
        assert_eq!(ranks, [Rank::Critical, Rank::Warning, Rank::Warning]);
        assert_eq!(of_agent(&agent(Vec::new()))[0].level, Rank::Warning, "no replica");
    }

    #[test]
    fn a_replica_misses_its_master() {
        let status = |changes: &Value| {
            let mut status = json!({
                "schema_version": 1, "node": "mx2", "role": "replica", "epoch": 1, "listen": "x",
                "agents": ["mx1"], "heartbeat_seconds": 1.0, "lag_entries": 0, "problems": [],
                "master": "mx1", "lag_seconds": 0.0,
            });
            for (key, value) in changes.as_object().unwrap() {
                status[key] = value.clone();
            }
            serde_json::from_value::<ReplicaDaemonStatus>(status).unwrap()
        };
        let cases = [
            (json!({}), None),
            (json!({ "agents": [] }), Some(Rank::Critical)),
            (json!({ "agents": [], "heartbeat_seconds": null }), Some(Rank::Critical)),
            (json!({ "lag_seconds": 100.0 }), Some(Rank::Warning)),
            (json!({ "role": "master" }), Some(Rank::Critical)),
        ];
        for (changes, want) in cases {
            let found = of_replica_daemon(&status(&changes));
            assert_eq!(found.first().map(|issue| issue.level), want, "{changes}: {found:?}");
        }
    }
}
