//! `replctl quarantine`.

use mailtwin_host::admin::{
    AsideReport, BadMessageReport, QuarantineReport, QuarantineVerb, Request, Response,
};

use super::ask::{Daemons, unexpected};
use crate::{args, exit, output::Output, output::when};

/// Head of the list.
const HEAD: [&str; 7] = ["replica", "object", "reason", "step", "tries", "since", "messages"];

/// Lists, shows, retries, releases.
pub(super) async fn run(
    args: &args::Quarantine,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    let (what, aside, dry_run) = match args {
        args::Quarantine::List(aside) | args::Quarantine::Show(aside) => {
            (QuarantineVerb::List, aside, false)
        }
        args::Quarantine::Retry(change) => (QuarantineVerb::Retry, &change.aside, change.dry_run),
        args::Quarantine::Release(change) => {
            (QuarantineVerb::Release, &change.aside, change.dry_run)
        }
    };
    let (replica, targets) = (aside.replica.clone(), aside.targets.clone());
    let request = Request::Quarantine { what, replica, targets, dry_run };
    let report = match daemons.ask(&request).await? {
        Response::Quarantine(report) => report,
        other => return Err(unexpected(&other)),
    };
    // To have found something is worth an exit code; to have done what was asked for is not.
    let code = if report.count > 0 && !report.done { exit::FOUND } else { 0 };
    if output.is_json() {
        Output::json(&report)?;
        return Ok(code);
    }
    match args {
        args::Quarantine::List(_) => list(&report, output)?,
        args::Quarantine::Show(_) => {
            for entry in &report.entries {
                show(entry, output)?;
            }
            tell_rest(&report, output)?;
        }
        args::Quarantine::Retry(_) => {
            list(&report, output)?;
            let verb = if dry_run { "would be tried now" } else { "are being tried now" };
            output.say(&format!("{} mailboxes and accounts {verb}", report.count))?;
        }
        args::Quarantine::Release(_) => {
            list(&report, output)?;
            let verb = if dry_run { "would be forgotten" } else { "are forgotten" };
            let count = report.count;
            output.say(&format!("{count} mailboxes and accounts {verb}, and compared anew"))?;
        }
    }
    Ok(code)
}

fn list(report: &QuarantineReport, output: &Output) -> anyhow::Result<()> {
    if report.count == 0 {
        return Ok(output.say("nothing is set aside")?);
    }
    let row = |entry: &AsideReport| {
        [
            entry.replica.clone(),
            entry.object.clone(),
            entry.reason.clone(),
            entry.step.clone(),
            entry.tries.to_string(),
            when(entry.first_at),
            entry.messages.map_or_else(|| "?".to_owned(), |messages| messages.to_string()),
        ]
    };
    let rows: Vec<_> = report.entries.iter().map(row).collect();
    Output::table(HEAD, &rows)?;
    tell_rest(report, output)
}

fn tell_rest(report: &QuarantineReport, output: &Output) -> anyhow::Result<()> {
    let rest = report.count.saturating_sub(report.entries.len());
    if rest > 0 {
        output.say(&format!("and {rest} more: name accounts to see them"))?;
    }
    Ok(())
}

fn show(entry: &AsideReport, output: &Output) -> anyhow::Result<()> {
    let unknown = || "unknown".to_owned();
    let messages = entry.messages.map_or_else(unknown, |messages| messages.to_string());
    let octets = entry.octets.map_or_else(unknown, |octets| octets.to_string());
    let next = entry.next_at.map_or_else(|| "now".to_owned(), when);
    output.say(&format!("{}, for replica {}", entry.object, entry.replica))?;
    output.say(&format!("  reason      {}", entry.reason))?;
    output.say(&format!("  next trial  {next}: {}", entry.step))?;
    output.say(&format!("  tried       {} times", entry.tries))?;
    output.say(&format!("  first       {}  {}", when(entry.first_at), entry.first))?;
    output.say(&format!("  last        {}  {}", when(entry.last_at), entry.last))?;
    output.say(&format!("  size        {messages} messages, {octets} octets"))?;
    for BadMessageReport { uid, name, about, reason, detail } in &entry.bad {
        let uid = uid.map_or_else(|| "without UID".to_owned(), |uid| format!("UID {uid}"));
        output.say(&format!("  message     {uid}, file {name} ({reason}): {detail}"))?;
        if !about.is_empty() {
            output.say(&format!("              {about}"))?;
        }
    }
    Ok(())
}
