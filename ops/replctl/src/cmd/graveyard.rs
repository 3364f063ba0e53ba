//! `replctl graveyard`.

use std::{
    fs::File,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context as _;
use mailtwin_disk::clock::SystemClock;
use mailtwin_host::{
    admin::{GraveyardAsk, GraveyardReport, Request, Response},
    config::parse_duration,
};
use mailtwin_logic::graveyard::GraveReport;
use serde::Deserialize;

use super::ask::{Daemons, unexpected};
use crate::{args, exit, output::Output, output::when};

/// Head of the list.
const HEAD: [&str; 6] = ["expunged", "account", "mailbox", "uid", "octets", "message"];

/// A line of what was exported.
#[derive(Debug, Deserialize)]
struct Exported {
    file: String,
    account: String,
    mailbox: String,
}

/// Lists, restores.
pub(super) async fn run(
    args: &args::Graveyard,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    let (graves, to, deliver, dry_run) = match args {
        args::Graveyard::List(graves) => (graves, None, None, false),
        args::Graveyard::Restore { graves, to, deliver, dry_run } => {
            (graves, Some(std::path::absolute(to)?), deliver.as_deref(), *dry_run)
        }
    };
    let (account, mailbox) = match graves.target.as_deref().map(|text| text.split_once('/')) {
        Some(Some((account, mailbox))) => (Some(account.to_owned()), Some(mailbox.to_owned())),
        Some(None) => (graves.target.clone(), None),
        None => (None, None),
    };
    let request = Request::Graveyard(GraveyardAsk {
        account,
        mailbox,
        uid: graves.uid,
        guid: graves.guid.clone(),
        message_id: graves.message_id.clone(),
        since_ms: graves.since.as_deref().map_or(Ok(0), since)?,
        export_to: to.clone(),
        dry_run,
    });
    let report = match daemons.ask_working(&request).await? {
        Response::Graveyard(report) => report,
        other => return Err(unexpected(&other)),
    };
    if output.is_json() {
        Output::json(&report)?;
    } else {
        show(&report, to.as_deref(), deliver, output)?;
    }
    if let Some((to, command)) = to.zip(deliver).filter(|_| report.done) {
        let delivered = hand_over(&to, command)?;
        output.say(&format!("{delivered} messages handed to the command"))?;
    }
    Ok(if report.count == 0 { exit::FOUND } else { 0 })
}

pub(super) fn show(
    report: &GraveyardReport,
    to: Option<&Path>,
    deliver: Option<&str>,
    output: &Output,
) -> anyhow::Result<()> {
    let row = |grave: &GraveReport| {
        [
            when(grave.at_ms),
            grave.account.clone(),
            grave.mailbox.clone(),
            grave.uid.map_or_else(|| "?".to_owned(), |uid| uid.to_string()),
            grave.octets.to_string(),
            grave.about.clone(),
        ]
    };
    let rows: Vec<_> = report.entries.iter().map(row).collect();
    if !rows.is_empty() {
        Output::table(HEAD, &rows)?;
    }
    let GraveyardReport { count, octets, done, .. } = report;
    let rest = count.saturating_sub(report.entries.len() as u64);
    if rest > 0 {
        output.say(&format!("and {rest} more: name an account or a time to see them"))?;
    }
    let amount = format!("{count} messages, {octets} octets");
    let handed = if deliver.is_some() { ", then handed to the command" } else { "" };
    match to {
        None => output.say(&amount)?,
        Some(to) if *done => output.say(&format!("{amount}: written to {}", to.display()))?,
        Some(to) => {
            output.say(&format!("{amount}: would be written to {}{handed}", to.display()))?;
        }
    }
    Ok(())
}

/// Runs the command for each message of the manifest; ends with the first that is not taken.
pub(super) fn hand_over(to: &Path, command: &str) -> anyhow::Result<u64> {
    let manifest = to.join("manifest.jsonl");
    let text = std::fs::read_to_string(&manifest)
        .with_context(|| format!("read {}", manifest.display()))?;
    let mut count = 0;
    for line in text.lines() {
        let Exported { file, account, mailbox } =
            serde_json::from_str(line).with_context(|| format!("read {}", manifest.display()))?;
        let path = to.join(&file);
        let input = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let status = Command::new("/bin/sh")
            .args(["-c", command])
            .env("MAILTWIN_ACCOUNT", account)
            .env("MAILTWIN_MAILBOX", mailbox)
            .env("MAILTWIN_FILE", &path)
            .stdin(Stdio::from(input))
            .status()
            .context("run /bin/sh")?;
        anyhow::ensure!(
            status.success(),
            "after {count} messages the command ended with {status} for {}; those that were taken \
             are delivered",
            path.display()
        );
        count += 1;
    }
    Ok(count)
}

/// A moment in milliseconds since 1970: a time, or so long ago.
fn since(text: &str) -> anyhow::Result<u64> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(u64::try_from(at.as_millisecond()).unwrap_or(0));
    }
    let ago = parse_duration(text).with_context(|| format!("--since {text}"))?;
    let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
    Ok(SystemClock::shared().unix_ms().saturating_sub(ago))
}
