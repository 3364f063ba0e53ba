//! `replctl sync` and `replctl log`.

use std::time::Duration;

use anyhow::Context as _;
use mailtwin_host::{
    admin::{LogStat, Request, Response},
    config::parse_duration,
};
use serde_json::json;

use super::ask::{Daemons, unexpected};
use crate::{args, exit, output::Output, output::when};

/// `replctl sync`.
pub(super) async fn sync(
    args: &args::Sync,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    replay(args.targets.clone(), None, &args.timeout, daemons, output).await
}

/// `replctl drain`.
pub(super) async fn drain(
    args: &args::Drain,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    replay(Vec::new(), args.replica.clone(), &args.timeout, daemons, output).await
}

async fn replay(
    targets: Vec<String>,
    replica: Option<String>,
    timeout: &str,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    let who = replica.clone().unwrap_or_else(|| "every replica".into());
    let timeout = parse_duration(timeout).with_context(|| format!("--timeout {timeout}"))?;
    let timeout_ms = Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    let request = Request::Sync { targets, timeout_ms, replica };
    // The daemon waits; we wait a little longer, so that it is the daemon who says what is behind.
    let answer = tokio::time::timeout(timeout + Duration::from_secs(10), daemons.ask(&request));
    match answer.await.context("the agent does not answer")?? {
        Response::Synced { upto, set_aside } => {
            if output.is_json() {
                Output::json(&json!({ "upto": upto, "set_aside": set_aside }))?;
            } else if set_aside == 0 {
                output.say(&format!("{who} has everything up to entry {upto}"))?;
            } else {
                output.say(&format!(
                    "replayed up to entry {upto}, but {set_aside} mailboxes are set aside: see \
                     replctl status"
                ))?;
            }
            Ok(if set_aside == 0 { 0 } else { exit::FOUND })
        }
        other => Err(unexpected(&other)),
    }
}

/// `replctl log`.
pub(super) async fn run(
    args: &args::Log,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    let request = match args {
        args::Log::Tail { entries } => Request::LogTail { entries: *entries },
        args::Log::Stat => Request::LogStat,
        args::Log::Append { targets } => Request::LogAppend { targets: targets.clone() },
    };
    match daemons.ask(&request).await? {
        Response::Entries(entries) if output.is_json() => {
            Output::json(&json!({ "entries": entries }))?;
        }
        Response::Entries(entries) => {
            for entry in entries {
                output.say(&format!("{}  {}  {}", entry.seq, when(entry.at), entry.target))?;
            }
        }
        Response::LogStat(stat) if output.is_json() => Output::json(&stat)?,
        Response::LogStat(stat) => show_stat(&stat, output)?,
        Response::Appended { seq } if output.is_json() => Output::json(&json!({ "seq": seq }))?,
        Response::Appended { seq } => output.say(&format!("covered by entry {seq}"))?,
        other => return Err(unexpected(&other)),
    }
    Ok(0)
}

fn show_stat(stat: &LogStat, output: &Output) -> anyhow::Result<()> {
    output.say(&format!("log            {}", stat.id))?;
    output.say(&format!("entries        {} to {}", stat.oldest, stat.head))?;
    output.say(&format!("octets         {} of at most {}", stat.bytes, stat.bound))?;
    output.say(&format!("append errors  {}", stat.append_errors))?;
    for (replica, cursor) in &stat.cursors {
        let behind = stat.head.saturating_sub(*cursor);
        output.say(&format!("replica        {replica} at {cursor}, {behind} behind"))?;
    }
    Ok(())
}
