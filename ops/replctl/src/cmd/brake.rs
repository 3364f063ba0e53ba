//! `replctl brake`.

use mailtwin_host::admin::{HeldReport, Request, Response};

use super::ask::{Daemons, unexpected};
use crate::{args, exit, output::Output, output::when};

/// Shows, releases.
pub(super) async fn run(
    args: &args::Brake,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    let (held, release, dry_run) = match args {
        args::Brake::Show(held) => (held, false, false),
        args::Brake::Release { held, dry_run } => (held, true, *dry_run),
    };
    let (replica, accounts) = (held.replica.clone(), held.accounts.clone());
    let request = Request::Brake { release, replica, accounts, dry_run };
    let report = match daemons.ask(&request).await? {
        Response::Brake(report) => report,
        other => return Err(unexpected(&other)),
    };
    let code = if report.held.is_empty() || report.done { 0 } else { exit::FOUND };
    if output.is_json() {
        Output::json(&report)?;
        return Ok(code);
    }
    for held in &report.held {
        output.say(&line(held))?;
    }
    let messages: u64 = report.held.iter().map(|held| held.messages).sum();
    let mailboxes: u64 = report.held.iter().map(|held| held.mailboxes).sum();
    let amount = format!("{messages} messages and {mailboxes} mailboxes");
    if report.held.is_empty() {
        output.say("the brake holds nothing")?;
    } else if report.done {
        output.say(&format!("released: {amount} go to the replicas' graveyards now"))?;
    } else if release {
        output.say(&format!("would be released: {amount} would go to the replicas' graveyards"))?;
    } else {
        output.say("look at the master first; then `replctl brake release`")?;
    }
    Ok(code)
}

/// One line about something that is held.
pub(super) fn line(held: &HeldReport) -> String {
    let HeldReport { replica, account, since, why, messages, mailboxes } = held;
    let whose = account.as_deref().unwrap_or("all accounts");
    let since = when(*since);
    format!(
        "{replica}: BRAKE: deletions of {whose} are held since {since}: {why}; {messages} messages \
         and {mailboxes} mailboxes are kept"
    )
}
