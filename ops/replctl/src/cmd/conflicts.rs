//! `replctl ledger` and `replctl conflicts`: what was decided when nodes came back.

use mailtwin_host::{
    admin::{LedgerEntry, Request, Response},
    codes::LedgerKind,
};
use serde_json::json;

use super::ask::{Daemons, unexpected};
use crate::{args, exit, output::Output, output::when};

/// `replctl ledger`: every decision.
pub(super) async fn ledger(daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    let entries = ask(daemons, &Request::Ledger).await?;
    if output.is_json() {
        Output::json(&json!({ "ledger": entries }))?;
        return Ok(0);
    }
    let rows: Vec<_> = entries
        .iter()
        .map(|entry| {
            let [_, rest @ ..] = row(entry);
            rest
        })
        .collect();
    let [_, head @ ..] = HEAD;
    Output::table(head, &rows)?;
    Ok(0)
}

/// Head of the list.
const HEAD: [&str; 8] = ["id", "when", "node", "mailbox", "kind", "uid", "new uid", "detail"];

fn row(entry: &LedgerEntry) -> [String; 8] {
    let number = |uid: Option<u32>| uid.map_or_else(String::new, |uid| uid.to_string());
    [
        entry.id.clone(),
        when(entry.at),
        entry.node.clone(),
        format!("{}/{}", entry.account, entry.mailbox),
        entry.kind.clone(),
        number(entry.uid),
        number(entry.new_uid),
        entry.detail.clone(),
    ]
}

/// Lists, shows, acknowledges.
pub(super) async fn run(
    args: &args::Conflicts,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    match args {
        args::Conflicts::List { all } => list(*all, daemons, output).await,
        args::Conflicts::Show { ids } => show(ids, daemons, output).await,
        args::Conflicts::Ack { ids, all } => {
            ack((!all).then(|| ids.clone()), daemons, output).await
        }
    }
}

async fn list(all: bool, daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    let entries = ask(daemons, &Request::Ledger).await?;
    let is_meant = |entry: &LedgerEntry| entry.is_conflict() && (all || entry.acked_at.is_none());
    let conflicts: Vec<_> = entries.into_iter().filter(is_meant).collect();
    let open = conflicts.iter().any(|entry| entry.acked_at.is_none());
    if output.is_json() {
        Output::json(&json!({ "conflicts": conflicts }))?;
    } else if conflicts.is_empty() {
        output.say("no conflicts that nobody has acknowledged")?;
    } else {
        Output::table(HEAD, &conflicts.iter().map(row).collect::<Vec<_>>())?;
        output.say(
            "`replctl conflicts show ID` shows both versions, `ack ID` takes it off the list",
        )?;
    }
    Ok(if open { exit::FOUND } else { 0 })
}

async fn show(ids: &[String], daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    let entries = ask(daemons, &Request::Ledger).await?;
    let mut code = 0;
    for id in ids {
        let found = entries.iter().find(|entry| entry.id == *id);
        let Some(entry) = found else {
            output
                .say(&format!("{id}: no such entry; `replctl conflicts list --all` lists them"))?;
            code = exit::USAGE;
            continue;
        };
        // A clash has two versions: the returning node's, and the master's own.
        let is_other = |other: &&LedgerEntry| {
            let place = |e: &LedgerEntry| {
                (e.epoch, e.node.clone(), e.account.clone(), e.mailbox.clone(), e.uid)
            };
            entry.uid.is_some() && other.id != entry.id && place(other) == place(entry)
        };
        let others: Vec<_> = entries.iter().filter(is_other).collect();
        if output.is_json() {
            let next = way_back(entry);
            Output::json(&json!({ "conflict": entry, "with": others, "way_back": next }))?;
            continue;
        }
        for entry in [entry].into_iter().chain(others) {
            tell(entry, output)?;
        }
    }
    Ok(code)
}

fn tell(entry: &LedgerEntry, output: &Output) -> anyhow::Result<()> {
    let place = format!("{}/{}", entry.account, entry.mailbox);
    output.say(&format!("{} {} {place}: {}", entry.id, entry.kind, entry.detail))?;
    output.say(&format!(
        "  when      {}, epoch {}, node {}",
        when(entry.at),
        entry.epoch,
        entry.node
    ))?;
    if let Some(uid) = entry.uid {
        output.say(&format!("  UID       {uid}"))?;
    }
    if let Some(uid) = entry.new_uid {
        output.say(&format!("  new UID   {uid}"))?;
    }
    if let Some(guid) = &entry.guid {
        output.say(&format!("  SHA-1     {guid}"))?;
    }
    if let Some(at) = entry.acked_at {
        output.say(&format!("  seen      {}", when(at)))?;
    }
    if let Some(command) = way_back(entry) {
        output.say(&format!("  way back  {command}"))?;
    }
    Ok(())
}

/// What gives out again what was taken away here, while the graveyard has it.
fn way_back(entry: &LedgerEntry) -> Option<String> {
    let LedgerEntry { account, mailbox, .. } = entry;
    match (entry.kind()?, &entry.guid) {
        (LedgerKind::Expunged, Some(guid)) => {
            Some(format!("replctl graveyard restore {account} --guid {guid} --to DIR"))
        }
        (LedgerKind::Deleted, _) => {
            Some(format!("replctl graveyard restore '{account}/{mailbox}' --to DIR"))
        }
        _ => None,
    }
}

async fn ack(ids: Option<Vec<String>>, daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    let acked = ask(daemons, &Request::ConflictsAck { ids: ids.clone() }).await?;
    let is_left = |id: &&String| !acked.iter().any(|entry| entry.id == **id);
    let left: Vec<&String> = ids.iter().flatten().filter(is_left).collect();
    if output.is_json() {
        Output::json(&json!({ "acked": acked, "left": left }))?;
    } else {
        output.say(&format!("{} conflicts are off the list", acked.len()))?;
        for id in &left {
            output.say(&format!("{id}: no conflict, or acknowledged before"))?;
        }
    }
    Ok(if left.is_empty() { 0 } else { exit::FOUND })
}

async fn ask(daemons: &Daemons, request: &Request) -> anyhow::Result<Vec<LedgerEntry>> {
    match daemons.ask(request).await? {
        Response::Ledger(entries) => Ok(entries),
        other => Err(unexpected(&other)),
    }
}
