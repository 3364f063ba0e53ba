//! `replctl replica`.

use std::time::Duration;

use mailtwin_host::admin::{AddedReport, RemovedReport, Request, Response};
use serde_json::json;

use super::{
    Failure,
    ask::{Daemons, unexpected},
    status::{replica_row, standing},
};
use crate::{args, exit, output::Output};

/// How long an addition waits for the first word from the new replica.
const FIRST_WORD_WITHIN: Duration = Duration::from_secs(5);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Lists, adds, removes, pauses, resumes.
pub(super) async fn run(
    args: &args::Replica,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    let (name, pause) = match args {
        args::Replica::List => return list(daemons, output).await,
        args::Replica::Add { name, address, key, dry_run } => {
            let keys = key.iter().map(|key| key.parse()).collect::<Result<_, _>>();
            let keys = keys.map_err(|error| Failure {
                code: exit::USAGE,
                message: format!("--key: {error}"),
            })?;
            let (name, address, dry_run) = (name.clone(), address.clone(), *dry_run);
            return add(Request::ReplicaAdd { name, address, keys, dry_run }, daemons, output)
                .await;
        }
        args::Replica::Remove { name, dry_run } => {
            let request = Request::ReplicaRemove { name: name.clone(), dry_run: *dry_run };
            return remove(&request, daemons, output).await;
        }
        args::Replica::Pause { name } => (name, true),
        args::Replica::Resume { name } => (name, false),
    };
    match daemons.ask(&Request::ReplicaPause { name: name.clone(), pause }).await? {
        Response::Done if pause => {
            output.say(&format!("{name} is paused; its place in the log is kept"))?;
        }
        Response::Done => output.say(&format!("{name} goes on"))?,
        other => return Err(unexpected(&other)),
    }
    Ok(0)
}

async fn add(request: Request, daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    let report = match daemons.ask(&request).await? {
        Response::ReplicaAdded(report) => report,
        other => return Err(unexpected(&other)),
    };
    if output.is_json() {
        Output::json(&report)?;
        return Ok(0);
    }
    let AddedReport { done, name, address, place, accounts, .. } = &report;
    let is = if *done { "is" } else { "would be" };
    match (place, accounts) {
        (Some(place), Some(accounts)) => {
            output.say(&format!(
                "{name} at {address} {is} a replica: its place in the sync log is entry {place}; \
                 {accounts} accounts are compared with it, and what it lacks is copied"
            ))?;
            if *done {
                output.say("`replctl replica list` shows how far that is")?;
                output.say(&first_word(name, daemons).await?)?;
            }
        }
        _ => output.say(&format!(
            "{name} at {address} {is} a peer: this node replicates to it once it is the master"
        ))?,
    }
    Ok(0)
}

/// Whether the new replica could be reached; it is tried again by itself if not.
async fn first_word(name: &str, daemons: &Daemons) -> anyhow::Result<String> {
    let last_error = async {
        loop {
            let Response::Status(status) = daemons.ask(&Request::Status).await? else {
                return Ok(None);
            };
            let replica = status.replicas.into_iter().find(|replica| replica.name == name);
            match replica {
                Some(replica) if replica.last_error.is_some() => return Ok(replica.last_error),
                Some(replica) if matches!(replica.state.as_str(), "waiting" | "connecting") => {}
                Some(_) | None => return Ok(None),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    match tokio::time::timeout(FIRST_WORD_WITHIN, last_error).await {
        Ok(Ok(None)) => Ok(format!("{name} is connected")),
        Ok(Ok(Some(error))) => Ok(format!("{name} is not reached yet, and tried again: {error}")),
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(format!("{name} has not answered yet, and is tried again")),
    }
}

async fn remove(request: &Request, daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    let report = match daemons.ask(request).await? {
        Response::ReplicaRemoved(report) => report,
        other => return Err(unexpected(&other)),
    };
    if output.is_json() {
        Output::json(&report)?;
        return Ok(0);
    }
    let RemovedReport { done, name, address, state, lag_entries, quarantined, .. } = &report;
    let is = if *done { "is" } else { "would be" };
    let state = state.as_deref().unwrap_or("not replicated to from here");
    output.say(&format!(
        "{name} at {address} {is} removed: it was {state}, lacked {lag_entries} entries, and \
         {quarantined} mailboxes and accounts were set aside for it; {} octets of the sync log were \
         kept for it alone; {} replicas stay",
        report.freed_bytes, report.replicas_left
    ))?;
    output.say("nothing on that node is touched: its mail stays as it is")?;
    if report.configured {
        output.say(&format!(
            "it stands in the configuration, too: take its [[peer]] out there. Until then it stays \
             removed, and `replctl replica add {name} {address}` brings it back"
        ))?;
    }
    Ok(0)
}

async fn list(daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    match daemons.ask(&Request::Status).await? {
        Response::Status(status) if output.is_json() => {
            Output::json(&json!({ "replicas": status.replicas }))?;
        }
        Response::Status(status) => {
            let rows: Vec<_> = status.replicas.iter().map(replica_row).collect();
            Output::table(super::status::REPLICA_HEAD, &rows)?;
            for replica in &status.replicas {
                standing(replica, output)?;
            }
        }
        other => return Err(unexpected(&other)),
    }
    Ok(0)
}
