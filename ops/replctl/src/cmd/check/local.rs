//! `replctl check --local`: whether index, list of UIDs and files of this node agree, and with
//! `--doveadm` whether the mail server sees the same.

use std::collections::BTreeMap;

use mailtwin_disk::clock::SystemClock;
use mailtwin_host::admin::{
    CheckDifference, CheckReport, LocalAsk, LocalMailbox, LocalPart, Request, Response,
    SCHEMA_VERSION,
};
use mailtwin_host::codes::CheckResult;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::{Daemons, show, unexpected};
use crate::{args, output::Output};

/// How often what differs is looked at again: mail arrives between two looks.
const LOOKS: usize = 4;

/// What the mail server says of a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    messages: u32,
    uid_next: u32,
    uid_validity: u32,
}

pub(super) async fn run(
    args: &args::check::Check,
    daemons: &Daemons,
    output: &Output,
    stop: &CancellationToken,
) -> anyhow::Result<u8> {
    let ask =
        LocalAsk { targets: args.targets.clone(), level: super::ask(args).level, after: None };
    let report = tokio::select! {
        () = stop.cancelled() => anyhow::bail!("interrupted"),
        report = look(ask, args.doveadm.as_deref(), daemons) => report?,
    };
    if args.nagios {
        return show::nagios(&report, output);
    }
    show::report(&report, output)
}

async fn look(
    ask: LocalAsk,
    doveadm: Option<&str>,
    daemons: &Daemons,
) -> anyhow::Result<CheckReport> {
    let clock = SystemClock::shared();
    let began = clock.monotonic();
    let mut report = CheckReport {
        schema_version: SCHEMA_VERSION,
        targets: ask.targets.clone(),
        level: ask.level,
        ..CheckReport::default()
    };
    let mut next = ask;
    loop {
        let part = part(&next, daemons).await?;
        if let Some(doveadm) = doveadm {
            let differing = beside(doveadm, &part, daemons, &mut report.incomplete).await?;
            report.found += differing.len() as u64;
            report.differences.extend(differing);
        }
        report.found += part.found;
        report.accounts += part.accounts;
        report.mailboxes += part.mailboxes.len() as u64;
        report.messages += part.messages;
        report.bytes += part.bytes;
        report.messages_read += part.messages_read;
        report.bytes_read += part.bytes_read;
        report.differences.extend(part.differences);
        report.incomplete.extend(part.incomplete);
        (report.node, report.began) = (part.node, report.began.max(part.began));
        match part.next {
            Some(after) => next.after = Some(after),
            None => break,
        }
    }
    if report.accounts == 0 && !report.targets.is_empty() {
        report.incomplete.push("none of these accounts is here".to_owned());
    }
    report.seconds = clock.monotonic().saturating_sub(began).as_secs_f64();
    let result = CheckResult::of(report.found, report.incomplete.is_empty());
    result.as_str().clone_into(&mut report.result);
    Ok(report)
}

async fn part(ask: &LocalAsk, daemons: &Daemons) -> anyhow::Result<LocalPart> {
    match daemons.ask_working(&Request::CheckLocal(ask.clone())).await? {
        Response::Local(part) => Ok(part),
        other => Err(unexpected(&other)),
    }
}

/// Compares what the daemon found with what the mail server says, mailbox by mailbox.
async fn beside(
    doveadm: &str,
    part: &LocalPart,
    daemons: &Daemons,
    incomplete: &mut Vec<String>,
) -> anyhow::Result<Vec<CheckDifference>> {
    let mut accounts: BTreeMap<&str, Vec<&LocalMailbox>> = BTreeMap::new();
    for mailbox in &part.mailboxes {
        accounts.entry(&mailbox.account).or_default().push(mailbox);
    }
    let mut found = Vec::new();
    for (account, mailboxes) in accounts {
        let mut differing = match seen(doveadm, account).await {
            Ok(seen) => compared(&mailboxes, &seen),
            Err(why) => {
                incomplete.push(format!("{account}: {why}"));
                continue;
            }
        };
        for _ in 1..LOOKS {
            if differing.is_empty() {
                break;
            }
            let targets = vec![account.to_owned()];
            let ask = LocalAsk { targets, ..LocalAsk::default() };
            let now = self::part(&ask, daemons).await?;
            let asked =
                |one: &&LocalMailbox| mailboxes.iter().any(|m| m.mailbox_id == one.mailbox_id);
            let now: Vec<&LocalMailbox> = now.mailboxes.iter().filter(asked).collect();
            let Ok(seen) = seen(doveadm, account).await else { break };
            let again = compared(&now, &seen);
            differing.retain(|found| again.contains(found));
        }
        found.extend(differing);
    }
    Ok(found)
}

/// What the mail server says of an account's mailboxes, by their identities.
async fn seen(doveadm: &str, account: &str) -> Result<BTreeMap<String, Seen>, String> {
    let command = format!(
        "{doveadm} -f tab mailbox status -u \"$MAILTWIN_ACCOUNT\" 'messages uidnext uidvalidity guid' '*'"
    );
    let mut run = Command::new("/bin/sh");
    run.args(["-c", &command]).env("MAILTWIN_ACCOUNT", account).kill_on_drop(true);
    let output = run.output().await;
    let output = output.map_err(|error| format!("run /bin/sh: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next().unwrap_or_default();
        return Err(format!("doveadm ended with {}: {said}", output.status));
    }
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// Reads a table with a head; a mailbox's name may hold anything, and comes first.
fn parse(text: &str) -> Result<BTreeMap<String, Seen>, String> {
    let mut lines = text.lines();
    let head: Vec<&str> = lines.next().unwrap_or_default().split('\t').collect();
    let place = |name: &str| {
        let place = head.iter().rposition(|&column| column == name);
        place.map(|at| head.len() - at).ok_or_else(|| format!("doveadm tells of no {name:?}"))
    };
    let places = [place("messages")?, place("uidnext")?, place("uidvalidity")?, place("guid")?];
    let mut all = BTreeMap::new();
    for line in lines {
        let fields: Vec<&str> = line.split('\t').collect();
        let field = |at: usize| Some(*fields.get(fields.len().checked_sub(at)?)?);
        let number = |at: usize| field(at)?.parse().ok();
        let [messages, uid_next, uid_validity, guid] = places;
        let seen = || {
            Some(Seen {
                messages: number(messages)?,
                uid_next: number(uid_next)?,
                uid_validity: number(uid_validity)?,
            })
        };
        match (field(guid), seen()) {
            (Some(guid), Some(seen)) => drop(all.insert(guid.to_owned(), seen)),
            _ => return Err(format!("doveadm says what makes no sense: {line:?}")),
        }
    }
    Ok(all)
}

fn compared(ours: &[&LocalMailbox], seen: &BTreeMap<String, Seen>) -> Vec<CheckDifference> {
    let mut found = Vec::new();
    for one in ours {
        let mut differs = |kind: &str, detail: String| {
            found.push(CheckDifference {
                account: one.account.clone(),
                mailbox: Some(one.mailbox.clone()),
                mailbox_id: Some(one.mailbox_id.clone()),
                kind: kind.to_owned(),
                side: "unknown".to_owned(),
                detail,
                repair: "none".to_owned(),
                ..CheckDifference::default()
            });
        };
        let Some(theirs) = seen.get(&one.mailbox_id) else {
            differs("mailbox-missing", "the mail server does not tell of it".to_owned());
            continue;
        };
        let numbers = [
            ("uid-validity", one.uid_validity, theirs.uid_validity),
            ("uid-next", one.uid_next, theirs.uid_next),
            ("contents", one.messages, theirs.messages),
        ];
        for (kind, ours, theirs) in numbers.into_iter().filter(|(_, a, b)| a != b) {
            differs(kind, format!("files {ours}, mail server {theirs}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_doveadm_says_is_compared_by_identity() {
        let text = "mailbox\tmessages\tuidnext\tuidvalidity\tguid\nINBOX\t3\t8\t5\tab\na\tb\t0\t1\t6\tcd\n";
        let seen = parse(text).unwrap();
        let inbox = LocalMailbox {
            account: "ann".into(),
            mailbox: "INBOX".into(),
            mailbox_id: "ab".into(),
            uid_validity: 5,
            uid_next: 8,
            messages: 3,
        };
        assert!(compared(&[&inbox], &seen).is_empty());
        let kinds = |one: LocalMailbox| {
            let found = compared(&[&one], &seen).into_iter().map(|found| found.kind);
            found.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            kinds(LocalMailbox { uid_next: 7, messages: 2, ..inbox.clone() }),
            "uid-next contents"
        );
        assert_eq!(kinds(LocalMailbox { uid_validity: 6, ..inbox.clone() }), "uid-validity");
        assert_eq!(kinds(LocalMailbox { mailbox_id: "ef".into(), ..inbox }), "mailbox-missing");
        for bad in [
            "",
            "mailbox\tmessages\tuidnext\tguid\n",
            "messages\tuidnext\tuidvalidity\tguid\nx\t1\t1\ta\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
