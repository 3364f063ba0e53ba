//! What the replica daemon says over HTTP: to load balancers, and on the status page.

use std::time::Duration;

use mailtwin_host::{
    admin::{ReplicaDaemonStatus, SCHEMA_VERSION},
    node::Role,
    web::{Level, MasterLine, Report, Site},
};

use super::Answers;

/// Lag in seconds that users notice.
const LAG_WARN: f64 = 60.0;

impl Site for Answers {
    fn ready(&self) -> Result<(), String> {
        if self.fence.is_master() == self.work.is_none() {
            return Ok(());
        }
        Err("changing its role".into())
    }

    fn master(&self) -> Result<(), String> {
        Err("ask the agent: [metrics] agent".into())
    }

    fn lag(&self) -> Result<Duration, String> {
        if self.fence.is_master() {
            return Err("the master".into());
        }
        let agent = self.heard.last().map(|(_, agent)| agent);
        let lag = agent.and_then(|agent| agent.lag_ms(self.clock.unix_ms()));
        lag.map(Duration::from_millis).ok_or_else(|| "its lag is not known".into())
    }

    fn lags(&self) -> Vec<(String, f64)> {
        let lag = self.lag().ok().map(|lag| (self.node.clone(), lag.as_secs_f64()));
        lag.into_iter().collect()
    }

    fn report(&self) -> Report {
        report(&self.status())
    }
}

fn report(status: &ReplicaDaemonStatus) -> Report {
    let heard = status.heartbeat_seconds;
    let master = status.master.clone().zip(heard).map(|(name, heard_seconds)| MasterLine {
        connected: status.agents.contains(&name),
        name,
        heard_seconds,
        lag_seconds: status.lag_seconds,
        complete_at: status.complete_at,
    });
    let (level, headline) = worst(status, master.as_ref());
    Report {
        schema_version: SCHEMA_VERSION,
        daemon: "replica",
        version: env!("CARGO_PKG_VERSION"),
        node: status.node.clone(),
        role: status.role,
        epoch: status.epoch,
        level,
        headline,
        gate_open: false,
        log: None,
        replicas: Vec::new(),
        master: master.filter(|_| status.role == Role::Replica),
        at_risk: None,
        quarantine: Vec::new(),
        problems: status.problems.len(),
        last_failover: status.last_failover.as_ref().map(Into::into),
    }
}

/// The worst there is, and what that is.
fn worst(status: &ReplicaDaemonStatus, master: Option<&MasterLine>) -> (Level, String) {
    if status.role == Role::Master {
        return (Level::Ok, "the master; its agent knows more".into());
    }
    match (master, status.lag_seconds) {
        (None, _) => (Level::Critical, "no master has been heard of yet".into()),
        (Some(master), _) if !master.connected => {
            (Level::Critical, format!("{} is not connected", master.name))
        }
        (Some(_), Some(lag)) if lag > LAG_WARN => {
            (Level::Warning, format!("{lag:.0} s behind its master"))
        }
        (Some(_), _) if !status.problems.is_empty() => {
            (Level::Warning, format!("problems in the store: {}", status.problems.len()))
        }
        (Some(master), None) => (Level::Warning, format!("being compared with {}", master.name)),
        (Some(master), Some(_)) => (Level::Ok, format!("follows {}", master.name)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_worst_is_the_headline() {
        use Level::{Critical, Ok, Warning};
        let cases = [
            (json!({}), Ok, "follows mx1"),
            (json!({ "agents": [] }), Critical, "mx1 is not connected"),
            (json!({ "agents": [], "master": null }), Critical, "no master"),
            (json!({ "lag_seconds": 61.0 }), Warning, "61 s behind"),
            (json!({ "lag_seconds": null }), Warning, "being compared"),
            (json!({ "role": "master" }), Ok, "the master"),
            (
                json!({ "problems": [{ "object": "u1@example.org", "detail": "x" }] }),
                Warning,
                "problems in the store: 1",
            ),
        ];
        for (changes, level, says) in cases {
            let mut status = json!({
                "schema_version": 1, "node": "mx2", "role": "replica", "epoch": 1, "listen": "x",
                "agents": ["mx1"], "heartbeat_seconds": 1.0, "lag_entries": 0, "problems": [],
                "master": "mx1", "lag_seconds": 0.0,
            });
            for (key, value) in changes.as_object().unwrap() {
                status[key] = Value::clone(value);
            }
            let report = report(&serde_json::from_value(status).unwrap());
            assert_eq!(report.level, level, "{report:?}");
            assert!(report.headline.contains(says), "{report:?}");
            let text = serde_json::to_string(&report).unwrap();
            assert!(!text.contains("u1@"), "{text}");
        }
    }
}
