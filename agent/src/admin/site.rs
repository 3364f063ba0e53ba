//! What the agent says over HTTP: to load balancers, and on the status page.

use std::{collections::BTreeMap, time::Duration};

use mailtwin_host::{
    admin::{AgentStatus, ReplicaStatus, SCHEMA_VERSION},
    node::Role,
    web::{CopyLine, Level, LogLine, ReasonLine, ReplicaLine, Report, Site},
};

use super::{Answers, Working};
use crate::log::Health;

impl Site for Answers {
    fn ready(&self) -> Result<(), String> {
        let Some(working) = &self.working else { return Ok(()) };
        match &*working.agent.log().health().borrow() {
            Health::Good => Ok(()),
            Health::Failing(_) | Health::Stopped(_) => Err("the sync log cannot be written".into()),
        }
    }

    fn master(&self) -> Result<(), String> {
        // The file counts, not what this daemon began as: it may be about to start anew.
        let is_master = self.failover.file.now().role == Role::Master && self.working.is_some();
        match (is_master, self.failover.gate.is_open()) {
            (true, true) => Ok(()),
            (true, false) => Err("the master, but its gate is not open".into()),
            (false, _) => Err("a replica".into()),
        }
    }

    fn lag(&self) -> Result<Duration, String> {
        Err("ask the replica daemon: [metrics] replica".into())
    }

    fn lags(&self) -> Vec<(String, f64)> {
        let Some(Working { agent, .. }) = &self.working else { return Vec::new() };
        let now = agent.now();
        let lag = |ms: u64| Duration::from_millis(ms).as_secs_f64();
        agent.links().into_iter().map(|link| (link.name.clone(), lag(link.lag_ms(now)))).collect()
    }

    fn report(&self) -> Report {
        report(&self.status())
    }
}

fn report(status: &AgentStatus) -> Report {
    let log = status.log.as_ref().map(|log| LogLine {
        head: log.head,
        bytes: log.bytes,
        failing: log.error.is_some(),
    });
    let replicas: Vec<ReplicaLine> = status.replicas.iter().map(line).collect();
    let (level, headline) = worst(status, log, &replicas);
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for aside in status.replicas.iter().flat_map(|replica| &replica.set_aside) {
        *reasons.entry(&aside.reason).or_default() += 1;
    }
    let reason = |(reason, count): (&str, usize)| ReasonLine { reason: reason.to_owned(), count };
    Report {
        schema_version: SCHEMA_VERSION,
        daemon: "agent",
        version: env!("CARGO_PKG_VERSION"),
        node: status.node.clone(),
        role: status.role,
        epoch: status.epoch,
        level,
        headline,
        gate_open: status.gate_open,
        log,
        replicas,
        master: None,
        at_risk: status.at_risk.clone(),
        quarantine: reasons.into_iter().map(reason).collect(),
        problems: status.problems.len(),
        last_failover: status.last_failover.as_ref().map(Into::into),
    }
}

fn line(replica: &ReplicaStatus) -> ReplicaLine {
    let level = match replica.state.as_str() {
        "in-sync" | "replaying" => Level::Ok,
        "degraded" | "paused" | "merging" => Level::Warning,
        _ => Level::Critical,
    };
    ReplicaLine {
        name: replica.name.clone(),
        state: replica.state.clone(),
        level,
        lag_entries: replica.lag_entries,
        lag_seconds: replica.lag_seconds,
        quarantined: replica.quarantined,
        brake: !replica.brake.is_empty(),
        claim: replica.claim.clone(),
        copy: replica.copy.as_ref().map(|it| CopyLine { messages: it.messages, of: it.of }),
        check: replica.check.as_ref().map(Into::into),
    }
}

/// The worst there is, and what that is.
fn worst(status: &AgentStatus, log: Option<LogLine>, replicas: &[ReplicaLine]) -> (Level, String) {
    if status.role == Role::Replica {
        return (Level::Ok, "a replica; its replica daemon knows more".into());
    }
    if log.is_some_and(|log| log.failing) {
        return (Level::Critical, "the sync log cannot be written".into());
    }
    let worst = replicas.iter().max_by_key(|replica| replica.level);
    let of_replica = match worst {
        None => (Level::Warning, "there is no replica: nothing is replicated".into()),
        Some(replica) if replica.level == Level::Ok => (Level::Ok, String::new()),
        Some(replica) => (replica.level, format!("{} is {}", replica.name, replica.state)),
    };
    if of_replica.0 == Level::Critical {
        return of_replica;
    }
    let braked = replicas.iter().find(|replica| replica.brake);
    let is_unsafe = |replica: &&ReplicaLine| replica.claim != "ok";
    match (braked, replicas.iter().find(is_unsafe)) {
        (Some(replica), _) => {
            (Level::Warning, format!("deletions for {} are held by the brake", replica.name))
        }
        (None, Some(replica)) => {
            let (name, claim) = (&replica.name, &replica.claim);
            (Level::Warning, format!("the place of {name} in the sync log is {claim}"))
        }
        (None, None) if of_replica.0 == Level::Warning => of_replica,
        (None, None) if !status.problems.is_empty() => {
            let count = status.problems.len();
            (Level::Warning, format!("problems in the store: {count}"))
        }
        (None, None) => (Level::Ok, "all replicas follow".into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(replicas: &[Value]) -> AgentStatus {
        let mut all = Vec::new();
        for changes in replicas {
            let mut replica = json!({
                "name": "mx2", "state": "in-sync", "cursor": 1, "lag_entries": 0,
                "lag_seconds": 0.0, "quarantined": 0, "claim": "ok", "messages": 0,
                "last_error": "u1@example.org: secret", "set_aside": [],
            });
            for (key, value) in changes.as_object().unwrap() {
                replica[key] = value.clone();
            }
            all.push(replica);
        }
        serde_json::from_value(json!({
            "schema_version": 1, "node": "mx1", "role": "master", "epoch": 1,
            "log": { "id": "x", "head": 1, "bytes": 1, "error": null }, "replicas": all,
            "problems": [],
        }))
        .unwrap()
    }

    #[test]
    fn the_worst_is_the_headline() {
        use Level::{Critical, Ok, Warning};
        let held = json!([{ "replica": "mx2", "account": "u1@example.org", "since": 1,
                            "why": "secret", "messages": 1, "mailboxes": 0 }]);
        let cases = [
            (vec![json!({})], Ok, "all replicas follow"),
            (vec![], Warning, "no replica"),
            (vec![json!({ "state": "degraded" })], Warning, "mx2 is degraded"),
            (vec![json!({ "brake": held })], Warning, "held by the brake"),
            (vec![json!({ "claim": "at-risk" })], Warning, "at-risk"),
            (
                vec![json!({ "state": "paused" }), json!({ "name": "mx3", "state": "waiting" })],
                Critical,
                "mx3 is waiting",
            ),
        ];
        for (replicas, level, says) in cases {
            let report = report(&status(&replicas));
            assert_eq!(report.level, level, "{report:?}");
            assert!(report.headline.contains(says), "{report:?}");
        }
    }

    #[test]
    fn nobodys_mail_is_named() {
        let aside = json!([{ "object": "u1@example.org/Secret", "reason": "denied",
                             "detail": "secret", "tries": 1, "since": 1 }]);
        let held = json!([{ "replica": "mx2", "account": "u1@example.org", "since": 1,
                            "why": "secret", "messages": 1, "mailboxes": 0 }]);
        let mut status = status(&[json!({ "set_aside": aside, "brake": held })]);
        let problem = json!({ "object": "u1@example.org", "detail": "secret" });
        status.problems.push(serde_json::from_value(problem).unwrap());
        let text = serde_json::to_string(&report(&status)).unwrap().to_lowercase();
        assert!(text.contains("\"reason\":\"denied\",\"count\":1"), "{text}");
        assert!(!text.contains("u1@") && !text.contains("secret"), "{text}");
    }
}
