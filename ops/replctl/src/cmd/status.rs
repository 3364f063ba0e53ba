//! `replctl status`: worst first.

use std::time::Duration;

use mailtwin_host::{
    admin::{
        AdminError, AgentStatus, CopyStatus, LastCheck, ReplicaDaemonStatus, ReplicaStatus,
        Request, Response,
    },
    node::Role,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::ask::{Daemons, unexpected};
use crate::{
    args, exit,
    output::{Output, when},
};

/// Head of a table of replicas.
pub(super) const REPLICA_HEAD: [&str; 7] =
    ["replica", "state", "cursor", "lag", "age", "set aside", "claim"];
/// Lag beyond which a check of Nagios warns, and is critical.
const LAG_WARN: f64 = 60.0;
const LAG_CRITICAL: f64 = 600.0;

/// Runs the verb.
pub(super) async fn run(
    args: &args::Status,
    daemons: &Daemons,
    output: &Output,
    stop: &CancellationToken,
) -> anyhow::Result<u8> {
    if args.nagios {
        return nagios(daemons, output).await;
    }
    loop {
        let code = show(daemons, output).await?;
        if !args.watch {
            return Ok(code);
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(code),
            () = tokio::time::sleep(Duration::from_secs(1)) => output.say("")?,
        }
    }
}

/// What the daemon that works on this node says.
enum Found {
    Agent(AgentStatus),
    Replica(ReplicaDaemonStatus),
}

/// Asks both: the one whose role it is has something to say, the other idles.
async fn find(daemons: &Daemons) -> anyhow::Result<Found> {
    let agent = daemons.agent.call(&Request::Status).await;
    if let Ok(Response::Status(status)) = &agent
        && status.role == Role::Master
    {
        return Ok(Found::Agent(status.clone()));
    }
    match (daemons.replica.call(&Request::Status).await, agent) {
        (Ok(Response::ReplicaDaemon(status)), _) => Ok(Found::Replica(status)),
        (Err(AdminError::NoDaemon { .. }), Ok(Response::Status(status))) => {
            Ok(Found::Agent(status))
        }
        (Err(AdminError::NoDaemon { .. }), Err(error)) | (Err(error), _) => Err(error.into()),
        (Ok(other), _) => Err(unexpected(&other)),
    }
}

async fn show(daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    match find(daemons).await? {
        Found::Agent(status) => show_agent(&status, output),
        Found::Replica(status) => show_replica(&status, output),
    }
}

fn show_agent(status: &AgentStatus, output: &Output) -> anyhow::Result<u8> {
    let ill = |replica: &ReplicaStatus| {
        !matches!(replica.state.as_str(), "in-sync" | "replaying") || replica.claim != "ok"
    };
    let ill_log = status.log.as_ref().is_some_and(|log| log.error.is_some());
    let found = ill_log || status.replicas.iter().any(ill) || !status.problems.is_empty();
    if output.is_json() {
        Output::json(status)?;
        return Ok(if found { exit::FOUND } else { 0 });
    }
    output.say(&format!("{}: {}, epoch {}", status.node, status.role, status.epoch))?;
    if let Some(log) = &status.log {
        output.say(&format!("sync log: at entry {}, {} octets", log.head, log.bytes))?;
        if let Some(error) = &log.error {
            output.say(&format!("sync log: CANNOT BE WRITTEN: {error}"))?;
        }
    }
    let rows: Vec<_> = status.replicas.iter().map(replica_row).collect();
    Output::table(REPLICA_HEAD, &rows)?;
    for replica in &status.replicas {
        standing(replica, output)?;
        if let Some(error) = &replica.last_error {
            output.say(&format!("{}: {error}", replica.name))?;
        }
        output.say(&check_line(replica))?;
        for held in &replica.brake {
            output.say(&super::brake::line(held))?;
        }
        for aside in &replica.set_aside {
            output.say(&format!(
                "{}: set aside: {} ({}, {} tries): {}",
                replica.name, aside.object, aside.reason, aside.tries, aside.detail
            ))?;
        }
    }
    for problem in &status.problems {
        output.say(&format!("problem: {}: {}", problem.object, problem.detail))?;
    }
    Ok(if found { exit::FOUND } else { 0 })
}

fn show_replica(status: &ReplicaDaemonStatus, output: &Output) -> anyhow::Result<u8> {
    let found = status.agents.is_empty() || !status.problems.is_empty();
    let code = if found { exit::FOUND } else { 0 };
    if output.is_json() {
        Output::json(status)?;
        return Ok(code);
    }
    output.say(&format!("{}: {}, epoch {}", status.node, status.role, status.epoch))?;
    output.say(&format!("listens on {}", status.listen))?;
    match (status.agents.as_slice(), status.heartbeat_seconds) {
        ([], None) => output.say("no master has been heard of yet")?,
        ([], Some(age)) => output.say(&format!("NOT CONNECTED: last heard {age:.0} s ago"))?,
        (agents, age) => {
            let lag = status.lag_entries.unwrap_or(0);
            let age = age.unwrap_or(0.0);
            let agents = agents.join(", ");
            output.say(&format!("master {agents}: heard {age:.0} s ago, lag {lag} entries"))?;
        }
    }
    for problem in &status.problems {
        output.say(&format!("problem: {}: {}", problem.object, problem.detail))?;
    }
    Ok(code)
}

/// What there is to say of a copy under way, and of a place in the log that is not safe.
pub(super) fn standing(replica: &ReplicaStatus, output: &Output) -> anyhow::Result<()> {
    let name = &replica.name;
    if let Some(copy) = &replica.copy {
        output.say(&format!("{name}: {}", describe_copy(copy)))?;
    }
    match replica.claim.as_str() {
        "at-risk" => output.say(&format!(
            "{name}: AT RISK: what it lacks fills most of the sync log; bring it back soon, or raise \
             log.bound"
        ))?,
        "lost" => output.say(&format!(
            "{name}: LOST: the sync log no longer has all that it lacks; it is compared with \
             everything when it is back"
        ))?,
        _ => {}
    }
    Ok(())
}

fn describe_copy(copy: &CopyStatus) -> String {
    let CopyStatus { messages, of, counted, .. } = copy;
    let percent = messages * 100 / (*of).max(1);
    let so_far = if *counted { "" } else { " counted so far" };
    let pace = copy.per_second.map_or_else(String::new, |pace| format!(", {pace:.0} a second"));
    let left = match copy.eta_seconds {
        Some(left) if *counted => format!(", about {left:.0} s left"),
        _ => String::new(),
    };
    format!("copying: {messages} of {of} messages{so_far} ({percent} %){pace}{left}")
}

/// What the last check said of a replica.
fn check_line(replica: &ReplicaStatus) -> String {
    let ReplicaStatus { name, check, .. } = replica;
    let Some(LastCheck { at, level, result, found }) = check else {
        return format!("{name}: never checked");
    };
    let result = match result.as_str() {
        "different" => format!("{found} DIFFERENCES"),
        "incomplete" => "NOT COMPARED".to_owned(),
        result => result.to_owned(),
    };
    format!("{name}: last check {}, level {}: {result}", when(*at), level.name())
}

/// One replica in a table.
pub(super) fn replica_row(replica: &ReplicaStatus) -> [String; 7] {
    [
        replica.name.clone(),
        replica.state.clone(),
        replica.cursor.to_string(),
        replica.lag_entries.to_string(),
        format!("{:.1} s", replica.lag_seconds),
        replica.quarantined.to_string(),
        replica.claim.clone(),
    ]
}

async fn nagios(daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    let (code, text) = match find(daemons).await {
        Err(error) => (3, format!("UNKNOWN - {error:#}")),
        Ok(Found::Replica(status)) if status.agents.is_empty() => {
            (2, format!("CRITICAL - {} hears no master", status.node))
        }
        Ok(Found::Replica(status)) => (0, format!("OK - {} follows", status.node)),
        Ok(Found::Agent(status)) => judge(&status),
    };
    if output.is_json() {
        Output::json(&json!({ "code": code, "text": text }))?;
    } else {
        output.say(&text)?;
    }
    Ok(code)
}

/// Worst replica, worst word.
fn judge(status: &AgentStatus) -> (u8, String) {
    let judged = status.replicas.iter().map(|replica| {
        let lag = replica.lag_seconds;
        let text = format!("{} {} (lag {lag:.0} s)", replica.name, replica.state);
        let connected = !matches!(replica.state.as_str(), "waiting" | "connecting" | "fenced");
        let code = match replica.state.as_str() {
            _ if lag > LAG_CRITICAL || !connected || replica.claim == "lost" => 2,
            "degraded" | "paused" => 1,
            _ if replica.claim == "at-risk" => 1,
            _ if lag > LAG_WARN => 1,
            _ => 0,
        };
        (code, text)
    });
    let log = status.log.as_ref().and_then(|log| log.error.as_ref());
    let log = log.map(|error| (2, format!("the sync log cannot be written: {error}")));
    let judged: Vec<(u8, String)> = log.into_iter().chain(judged).collect();
    let code = judged.iter().map(|(code, _)| *code).max().unwrap_or(0);
    let word = ["OK", "WARNING", "CRITICAL"][usize::from(code)];
    let texts: Vec<String> = judged.into_iter().map(|(_, text)| text).collect();
    (code, format!("{word} - {}", texts.join(", ")))
}
