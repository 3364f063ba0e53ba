//! `replctl status`: one screen, the worst first, with the next command to type.

mod issues;

use std::time::Duration;

use mailtwin_host::{
    admin::{
        AdminError, AgentStatus, AtRisk, CopyStatus, HistoryEntry, LastCheck, ReplicaDaemonStatus,
        ReplicaStatus, Request, Response,
    },
    node::Role,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    ask::{Daemons, unexpected},
    canary,
};
use issues::{Issue, LAG_CRITICAL, LAG_WARN, Rank};

use crate::{
    args, exit,
    output::{Output, when},
};

/// Head of a table of replicas.
pub(super) const REPLICA_HEAD: [&str; 7] =
    ["replica", "state", "cursor", "lag", "age", "set aside", "claim"];

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
        let shown = show(daemons, output, args.watch).await;
        if !args.watch {
            return shown;
        }
        // A daemon that is started anew is back in a moment.
        let code = shown.or_else(|error| {
            Output::clear()?;
            output.say(&format!("{error:#}"))?;
            anyhow::Ok(exit::UNREACHABLE)
        })?;
        tokio::select! {
            () = stop.cancelled() => return Ok(code),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
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

async fn show(daemons: &Daemons, output: &Output, redraw: bool) -> anyhow::Result<u8> {
    let found = find(daemons).await?;
    let issues = match &found {
        Found::Agent(status) => issues::of_agent(status),
        Found::Replica(status) => issues::of_replica_daemon(status),
    };
    let code = if issues.is_empty() { 0 } else { exit::FOUND };
    if output.is_json() {
        let mut value = match &found {
            Found::Agent(status) => serde_json::to_value(status)?,
            Found::Replica(status) => serde_json::to_value(status)?,
        };
        value["issues"] = serde_json::to_value(&issues)?;
        Output::json(&value)?;
        return Ok(code);
    }
    if redraw {
        Output::clear()?;
    }
    match &found {
        Found::Agent(status) => show_agent(status, &issues, output)?,
        Found::Replica(status) => show_replica(status, &issues, output)?,
    }
    Ok(code)
}

/// Who this is, and what is wrong, the worst first.
fn head(
    (node, role, epoch): (&str, Role, u64),
    issues: &[Issue],
    output: &Output,
) -> anyhow::Result<()> {
    let word = match issues {
        [] => "nothing needs you".to_owned(),
        [_] => "1 thing needs you".to_owned(),
        all => format!("{} things need you", all.len()),
    };
    output.say(&format!("{node}: {role}, epoch {epoch}: {word}"))?;
    for Issue { level, what, next, .. } in issues {
        let mark = if *level == Rank::Critical { "!!" } else { " !" };
        output.say(&format!("{mark} {what}"))?;
        output.say(&format!("     {next}"))?;
    }
    Ok(())
}

fn show_agent(status: &AgentStatus, issues: &[Issue], output: &Output) -> anyhow::Result<()> {
    head((&status.node, status.role, status.epoch), issues, output)?;
    if status.role == Role::Master {
        output.say(&at_risk(status.at_risk.as_ref()))?;
    }
    if let Some(log) = &status.log {
        output.say(&format!("sync log: at entry {}, {} octets", log.head, log.bytes))?;
    }
    if status.role == Role::Master && !status.gate_open {
        output.say("the gate is not open: clients are kept out (replctl failover status)")?;
    }
    let rows: Vec<_> = status.replicas.iter().map(replica_row).collect();
    Output::table(REPLICA_HEAD, &rows)?;
    for replica in &status.replicas {
        if let Some(copy) = &replica.copy {
            output.say(&format!("{}: {}", replica.name, describe_copy(copy)))?;
        }
        output.say(&check_line(replica))?;
        for aside in &replica.set_aside {
            output.say(&format!(
                "{}: set aside: {} ({}, {} tries): {}",
                replica.name, aside.object, aside.reason, aside.tries, aside.detail
            ))?;
        }
    }
    if let Some(report) = &status.canary {
        output.say(&canary::line(report))?;
    }
    last_failover(status.last_failover.as_ref(), output)
}

/// What would be lost with the master, in one sentence.
fn at_risk(at_risk: Option<&AtRisk>) -> String {
    let Some(AtRisk { replica, entries, seconds, known }) = at_risk else {
        return "if this master died now: there is no other copy".to_owned();
    };
    let lacks = match entries {
        0 => "would have everything".to_owned(),
        1 => format!("would lack 1 change, {seconds:.1} s old"),
        many => format!("would lack {many} changes, the oldest {seconds:.1} s old"),
    };
    let more = if *known { "" } else { ", and what has not been compared yet" };
    match (entries, known) {
        (0, false) => {
            format!("if this master died now: it is not known what {replica} would lack")
        }
        (_, _) => format!("if this master died now: {replica} {lacks}{more}"),
    }
}

fn show_replica(
    status: &ReplicaDaemonStatus,
    issues: &[Issue],
    output: &Output,
) -> anyhow::Result<()> {
    head((&status.node, status.role, status.epoch), issues, output)?;
    if status.role == Role::Replica {
        output.say(&match (status.complete_at, status.lag_seconds) {
            (Some(_), Some(0.0)) => "if the master died now: everything is here".to_owned(),
            (Some(at), Some(lag)) => {
                let at = when(at);
                format!("if the master died now: everything up to {at} is here, {lag:.0} s ago")
            }
            (_, _) => "if the master died now: it is not known what is missing here".to_owned(),
        })?;
    }
    if !status.agents.is_empty() {
        let (lag, age) = (status.lag_entries.unwrap_or(0), status.heartbeat_seconds.unwrap_or(0.0));
        let agents = status.agents.join(", ");
        output.say(&format!("master {agents}: heard {age:.0} s ago, lag {lag} entries"))?;
    }
    output.say(&format!("listens on {}", status.listen))?;
    last_failover(status.last_failover.as_ref(), output)
}

fn last_failover(entry: Option<&HistoryEntry>, output: &Output) -> anyhow::Result<()> {
    let Some(HistoryEntry { at, kind, outcome, epoch, detail, .. }) = entry else { return Ok(()) };
    let at = when(*at);
    Ok(output
        .say(&format!("last change of role: {at}, {kind} ({outcome}), epoch {epoch}: {detail}"))?)
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
        Ok(Found::Replica(status)) => judge_replica(&status),
        Ok(Found::Agent(status)) => judge(&status),
    };
    if output.is_json() {
        Output::json(&json!({ "code": code, "text": text }))?;
    } else {
        output.say(&text)?;
    }
    Ok(code)
}

const WORDS: [&str; 3] = ["OK", "WARNING", "CRITICAL"];

fn judge_replica(status: &ReplicaDaemonStatus) -> (u8, String) {
    let node = &status.node;
    if status.agents.is_empty() {
        return (2, format!("CRITICAL - {node} hears no master"));
    }
    let code = match status.lag_seconds {
        Some(lag) if lag > LAG_CRITICAL => 2,
        Some(lag) if lag > LAG_WARN => 1,
        Some(_) | None => 0,
    };
    let lag = status.lag_seconds.map_or_else(String::new, |lag| format!(" (lag {lag:.0} s)"));
    (code, format!("{} - {node} follows{lag}", WORDS[usize::from(code)]))
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
    let word = WORDS[usize::from(code)];
    let texts: Vec<String> = judged.into_iter().map(|(_, text)| text).collect();
    (code, format!("{word} - {}", texts.join(", ")))
}
