//! How a check's report is shown.

use indicatif::HumanBytes;
use mailtwin_host::admin::{CheckDifference, CheckReport};
use serde_json::json;

use super::code_of;
use crate::output::Output;

const HEAD: [&str; 7] = ["kind", "side", "account", "mailbox", "uid", "repair", "detail"];
/// Rows of a table: JSON has all.
const ROWS_MAX: usize = 200;

pub(super) fn report(report: &CheckReport, output: &Output) -> anyhow::Result<u8> {
    let code = code_of(report);
    if output.is_json() {
        Output::json(report)?;
        return Ok(code);
    }
    if !report.differences.is_empty() {
        let rows: Vec<_> = report.differences.iter().take(ROWS_MAX).map(row).collect();
        Output::table(HEAD, &rows)?;
        let more = report.found.saturating_sub(rows.len() as u64);
        if more > 0 {
            output.say(&format!("and {more} more"))?;
        }
    }
    for why in &report.incomplete {
        output.say(&format!("not compared: {why}"))?;
    }
    output.say(&summary(report))?;
    Ok(code)
}

/// What repairing came to.
pub(super) fn repaired(report: &CheckReport, output: &Output) {
    for left in &report.differences {
        let mailbox = left.mailbox.as_deref().unwrap_or_default();
        let uid = left.uid.map(|uid| uid.to_string()).unwrap_or_default();
        let CheckDifference { kind, account, detail, .. } = left;
        Output::note(&format!("left: {kind} {account} {mailbox} {uid}: {detail}"));
    }
    for why in &report.incomplete {
        Output::note(&format!("not repaired: {why}"));
    }
    let CheckReport { repaired, seconds, .. } = report;
    if let Some(id) = report.undo {
        Output::note(&format!("`replctl check --undo {id}` brings back what is replaced"));
    }
    if !output.is_json() {
        Output::note(&format!("{repaired} repairs in {seconds:.2} s; comparing again"));
    }
}

fn row(found: &CheckDifference) -> [String; 7] {
    [
        found.kind.clone(),
        if found.side == "replica" { found.replica.clone() } else { found.side.clone() },
        found.account.clone(),
        found.mailbox.clone().unwrap_or_default(),
        found.uid.map(|uid| uid.to_string()).unwrap_or_default(),
        found.repair.clone(),
        found.detail.clone(),
    ]
}

fn summary(report: &CheckReport) -> String {
    let CheckReport { accounts, mailboxes, messages, found, seconds, .. } = report;
    let result = match report.result.as_str() {
        "equal" => "equal".to_owned(),
        "different" => format!("{found} DIFFERENCES"),
        _ => "NOT COMPARED".to_owned(),
    };
    let read = match report.messages_read {
        0 => String::new(),
        read => format!(", {read} of them read ({})", HumanBytes(report.bytes_read)),
    };
    let with = match report.replicas.as_slice() {
        [] => "by itself".to_owned(),
        replicas => format!("with {}", replicas.join(", ")),
    };
    let level = report.level.name();
    format!(
        "{level} check of {} {with}: {result}; {accounts} accounts, {mailboxes} mailboxes, \
         {messages} messages{read} in {seconds:.2} s",
        report.node
    )
}

/// One line for Nagios and its like: 0 equal, 1 differences that can be repaired, 2 others, 3 not
/// compared.
pub(super) fn nagios(report: &CheckReport, output: &Output) -> anyhow::Result<u8> {
    let lost = report.differences.iter().any(|found| found.repair == "none");
    let (code, word) = match (report.result.as_str(), lost) {
        ("equal", _) => (0, "OK"),
        ("different", false) => (1, "WARNING"),
        ("different", true) => (2, "CRITICAL"),
        (_, _) => (3, "UNKNOWN"),
    };
    let why = report.incomplete.first().map(|why| format!("; {why}")).unwrap_or_default();
    let CheckReport { found, messages, seconds, accounts, mailboxes, .. } = report;
    let text = format!(
        "{word} - {}{why} | differences={found};0;0;0 messages={messages} mailboxes={mailboxes} \
         accounts={accounts} time={seconds:.3}s",
        summary(report)
    );
    say(code, &text, output)
}

/// The line when there is no report.
pub(super) fn unknown(error: &anyhow::Error, output: &Output) -> anyhow::Result<u8> {
    say(3, &format!("UNKNOWN - {error:#}"), output)
}

fn say(code: u8, text: &str, output: &Output) -> anyhow::Result<u8> {
    if output.is_json() {
        Output::json(&json!({ "code": code, "text": text }))?;
    } else {
        output.say(text)?;
    }
    Ok(code)
}
