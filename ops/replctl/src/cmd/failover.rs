//! `replctl failover`, `freeze` and `thaw`: begins an operation of the agent's and follows it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use mailtwin_host::{
    admin::{AdminError, HistoryEntry, OperationOutcome, OperationStatus, Request, Response},
    config::parse_duration,
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::ask::{Daemons, unexpected};
use crate::{
    args, exit,
    output::{Output, when},
};

/// How often an operation is asked for.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// For how long the agent may be unreachable: it starts anew when the node's role changes.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// `replctl failover`.
pub(super) async fn run(
    args: &args::failover::Failover,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    let request = match args {
        args::failover::Failover::Switch(args::failover::Switch { handing, no_gate, dry_run }) => {
            hand_over(handing, *no_gate, *dry_run, false)?
        }
        args::failover::Failover::Drill(args::failover::Drill { handing, with_gate }) => {
            hand_over(handing, !with_gate, false, true)?
        }
        args::failover::Failover::Force(args) => return force(args, daemons, output).await,
        args::failover::Failover::Status => Request::Operation,
        args::failover::Failover::History => return history(daemons, output).await,
    };
    let begun = begin(daemons, &request).await?;
    if begun.id == 0 && output.is_json() {
        return ended(&begun, output);
    }
    if begun.id == 0 {
        output.say("no operation has been begun since mailtwin-agent was started")?;
        return Ok(0);
    }
    follow(begun.id, daemons, output).await
}

fn hand_over(
    handing: &args::failover::Handing,
    no_gate: bool,
    dry_run: bool,
    rehearse: bool,
) -> anyhow::Result<Request> {
    Ok(Request::Switch {
        to: handing.to.clone(),
        kick_after_ms: millis("--kick-after", &handing.kick_after)?,
        max_wait_ms: millis("--max-wait", &handing.max_wait)?,
        expire_ms: millis("--expire", &handing.expire)?,
        no_gate,
        dry_run,
        rehearse,
    })
}

/// `replctl failover force`.
async fn force(
    args: &args::failover::Force,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    let accept_loss = match args.accept_loss.as_str() {
        "all" => None,
        number => {
            let usage = || format!("--accept-loss {number}: say a number, or all");
            Some(number.parse().with_context(usage)?)
        }
    };
    let request = Request::Force { accept_loss, dry_run: args.dry_run };
    match daemons.ask_replica(&request).await? {
        Response::Operation(ended) => show(&ended, output),
        other => Err(unexpected(&other)),
    }
}

/// `replctl freeze`: ends when the gate is closed.
pub(super) async fn freeze(
    args: &args::Freeze,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    let wait_ms = millis("--wait", &args.wait)?;
    let expire_ms = millis("--expire", &args.expire)?;
    let begun = begin(daemons, &Request::Freeze { wait_ms, expire_ms }).await?;
    let mut now = begun;
    while now.steps.is_empty() && now.outcome.is_none() {
        sleep(ASK_EVERY).await;
        now = begin(daemons, &Request::Operation).await?;
    }
    show(&now, output)
}

/// `replctl thaw`.
pub(super) async fn thaw(daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    let now = begin(daemons, &Request::Thaw).await?;
    if now.id == 0 {
        output.say("the gate was not frozen")?;
        return Ok(0);
    }
    follow(now.id, daemons, output).await
}

fn millis(option: &str, text: &str) -> anyhow::Result<u64> {
    let duration = parse_duration(text).with_context(|| format!("{option} {text}"))?;
    Ok(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

async fn begin(daemons: &Daemons, request: &Request) -> anyhow::Result<OperationStatus> {
    match daemons.ask(request).await? {
        Response::Operation(status) => Ok(status),
        other => Err(unexpected(&other)),
    }
}

/// Shows steps as they are done, until the operation has ended.
async fn follow(id: u64, daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    let (mut shown, mut heard) = (0, Instant::now());
    loop {
        let now = match begin(daemons, &Request::Operation).await {
            Ok(now) => now,
            Err(error) if is_starting_anew(&error) && heard.elapsed() < SILENT_MAX => {
                sleep(ASK_EVERY).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        heard = Instant::now();
        if now.id != id {
            bail!(
                "mailtwin-agent was restarted meanwhile: `replctl status` and `replctl failover \
                 history` tell how it ended"
            );
        }
        if !output.is_json() {
            for step in now.steps.iter().skip(shown) {
                output.say(&format!("{:>8.3} s  {}", seconds(step.at_ms), step.text))?;
            }
        }
        shown = now.steps.len();
        if now.outcome.is_some() {
            return ended(&now, output);
        }
        sleep(ASK_EVERY).await;
    }
}

fn is_starting_anew(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<AdminError>(),
        Some(AdminError::NoDaemon { .. } | AdminError::Io { .. })
    )
}

fn show(now: &OperationStatus, output: &Output) -> anyhow::Result<u8> {
    for step in now.steps.iter().filter(|_| !output.is_json()) {
        output.say(&step.text)?;
    }
    ended(now, output)
}

/// Says how it ended, if it has.
fn ended(now: &OperationStatus, output: &Output) -> anyhow::Result<u8> {
    if output.is_json() {
        Output::json(&json!({ "operation": now }))?;
    }
    let Some(OperationOutcome { state, message }) = &now.outcome else { return Ok(0) };
    if !output.is_json() {
        output.say(&format!("{state}: {message}"))?;
    }
    Ok(match state.as_str() {
        "done" => 0,
        "refused" => exit::REFUSED,
        _ => exit::FOUND,
    })
}

async fn history(daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    let entries = match daemons.ask(&Request::History).await? {
        Response::History(entries) => entries,
        other => return Err(unexpected(&other)),
    };
    if output.is_json() {
        Output::json(&json!({ "history": entries }))?;
        return Ok(0);
    }
    let rows: Vec<_> = entries.iter().map(row).collect();
    Output::table(
        ["when", "kind", "outcome", "epoch", "from", "to", "gate closed", "detail"],
        &rows,
    )?;
    Ok(0)
}

fn row(entry: &HistoryEntry) -> [String; 8] {
    let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "?".into());
    let closed =
        entry.gate_closed_ms.map_or_else(String::new, |ms| format!("{:.1} s", seconds(ms)));
    [
        when(entry.at),
        entry.kind.clone(),
        entry.outcome.clone(),
        entry.epoch.to_string(),
        name(&entry.from),
        name(&entry.to),
        closed,
        entry.detail.clone(),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "for humans")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
