//! Trouble stays where it is: five broken mailboxes among five hundred, each broken in another way,
//! while mail goes on arriving in the others.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::{AGENT, Node, Pair},
    dovecot::{Dovecot, Version},
    files,
    lab::Lab,
    oracle::Mailbox,
};
use serde_json::Value;

const ACCOUNTS: [&str; 10] = ["u0", "u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8", "u9"];
/// Mailboxes of each account beside its INBOX.
const MAILBOXES: usize = 49;

/// A broken mailbox: whose, where, and the code it is set aside with.
const BROKEN: [(&str, &str, &str); 5] = [
    ("u0", "m7", "denied"),     // its directory cannot be listed on the master
    ("u1", "m7", "unreadable"), // one of its messages cannot be read on the master
    ("u2", "m7", "denied"),     // nothing can be written to it on the replica
    ("u3", "m7", "corrupt"),    // its list of UIDs is damaged on the replica
    ("u4", "m7", "conflict"),   // somebody delivered into it on the replica
];

fn broken_dirs(server: &Dovecot) -> [PathBuf; 5] {
    BROKEN.map(|(account, mailbox, _)| server.mailbox_dir(account, mailbox))
}

fn fill(pair: &Pair) -> anyhow::Result<()> {
    for account in ACCOUNTS {
        pair.master.deliver(account, &corpus::short("inbox"))?;
        let mut imap = pair.master.imap(account)?;
        for n in 0..MAILBOXES {
            let name = format!("m{n}");
            imap.create(&name)?;
            imap.append(&name, &corpus::short(&format!("{account}-{name}"))).finish()?;
        }
    }
    Ok(())
}

/// Breaks the five, and brings mail into each.
fn break_five(pair: &Pair) -> anyhow::Result<()> {
    let (ours, theirs) = (broken_dirs(&pair.master), broken_dirs(&pair.replica));
    for (account, mailbox, _) in &BROKEN[2..] {
        let mut imap = pair.master.imap(account)?;
        imap.select(mailbox)?; // known to the server before anything is broken
    }
    pair.replica.imap("u4")?.append("m7", &corpus::short("own")).finish()?;
    let list = theirs[3].join("dovecot-uidlist");
    files::write_mail(&list, "this is no list of UIDs\n")?;
    files::chmod(&theirs[2].join("cur"), 0o500)?;
    files::chmod(&theirs[2], 0o500)?;
    let unread = ours[1].join("cur/1700000002.unread.host:2,S");
    let aside = ours[1].join("tmp/unread");
    files::write_mail(&aside, corpus::short("unread"))?;
    files::chmod(&aside, 0)?;
    fs::rename(&aside, &unread)?;
    files::chmod(&ours[0].join("cur"), 0)?;
    files::write_mail(&ours[0].join("new/1700000003.unseen.host"), corpus::short("unseen"))?;
    for (account, mailbox, _) in &BROKEN[1..] {
        let mut imap = pair.master.imap(account)?;
        imap.append(mailbox, &corpus::short(&format!("{account}-late"))).finish()?;
    }
    Ok(())
}

fn mend_five(pair: &Pair) -> anyhow::Result<()> {
    let (ours, theirs) = (broken_dirs(&pair.master), broken_dirs(&pair.replica));
    files::chmod(&ours[0].join("cur"), 0o700)?;
    files::chmod(&ours[1].join("cur/1700000002.unread.host:2,S"), 0o600)?;
    files::chmod(&theirs[2], 0o700)?;
    files::chmod(&theirs[2].join("cur"), 0o700)?;
    fs::copy(ours[3].join("dovecot-uidlist"), theirs[3].join("dovecot-uidlist"))?;
    let mut imap = pair.replica.imap("u4")?;
    imap.select("m7")?;
    imap.command("UID STORE 2 +FLAGS.SILENT (\\Deleted)")?;
    imap.command("EXPUNGE")?;
    Ok(())
}

/// What is set aside, as `ACCOUNT/MAILBOX: reason`. An account of which one mailbox cannot be read is
/// set aside as well once its list was compared: what was deleted of it cannot be told.
fn set_aside(lab: &Lab, node: &Node) -> anyhow::Result<Vec<String>> {
    let report = node.ask(lab, &["quarantine", "list"])?;
    let entries = report["entries"].as_array().context("entries")?;
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or("?").to_owned();
    let mut all: Vec<String> = entries
        .iter()
        .map(|entry| format!("{}: {}", text(entry, "object"), text(entry, "reason")))
        .collect();
    let hidden = ["u0: denied", "u3: corrupt"];
    all.retain(|entry| !hidden.contains(&entry.as_str()));
    all.sort();
    Ok(all)
}

/// Compares all mailboxes of an account but the broken one.
fn compare_others(pair: &Pair, account: &str) -> anyhow::Result<Result<(), String>> {
    let (mut ours, mut theirs) = (pair.master.imap(account)?, pair.replica.imap(account)?);
    let broken = BROKEN.iter().any(|(broken, ..)| *broken == account);
    let names = (0..MAILBOXES).filter(|n| !broken || *n != 7).map(|n| format!("m{n}"));
    for name in names.chain(["INBOX".to_owned()]) {
        let (left, right) = (Mailbox::read(&mut ours, &name)?, Mailbox::read(&mut theirs, &name)?);
        if left != right {
            return Ok(Err(format!("{account}/{name}: {left:?}, on the replica {right:?}")));
        }
    }
    Ok(Ok(()))
}

#[test]
fn five_broken_mailboxes_among_five_hundred() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let master = Dovecot::start(lab, "master", Version::V23)?;
        let replica = Dovecot::start(lab, "replica", Version::V23)?;
        let mut pair = Pair::around(lab, master, replica, &ACCOUNTS)?;
        fill(&pair)?;
        pair.copy.start(lab)?;
        pair.agent.start(lab)?;
        pair.wait_equal(lab)?;
        break_five(&pair)?;
        // Live traffic beside them: three rounds over all accounts, in other mailboxes.
        for round in 0..3 {
            for account in ACCOUNTS {
                pair.master.deliver(account, &corpus::short(&format!("{account}-in-{round}")))?;
                let mut imap = pair.master.imap(account)?;
                for n in (0..MAILBOXES).filter(|n| n % 8 == round) {
                    let subject = format!("{account}-m{n}-{round}");
                    imap.append(&format!("m{n}"), &corpus::short(&subject)).finish()?;
                }
            }
        }
        let want: Vec<String> = BROKEN
            .iter()
            .map(|(account, mailbox, reason)| format!("{account}/{mailbox}: {reason}"))
            .collect();
        lab.wait("the five are set aside, and nothing else", || {
            let found = set_aside(lab, &pair.agent)?;
            Ok(if found == want { Ok(()) } else { Err(format!("{found:?}")) })
        })?;
        lab.wait("everything else has come, and the neighbours of the bad message", || {
            for account in ACCOUNTS {
                if let Err(why) = compare_others(&pair, account)? {
                    return Ok(Err(why));
                }
            }
            let neighbour = Mailbox::read(&mut pair.replica.imap("u1")?, "m7")?;
            let mut serials = neighbour.messages.values().map(|message| message.serial.as_deref());
            let there = serials.any(|serial| serial == Some("u1-late"));
            Ok(if there { Ok(()) } else { Err("u1-late is not there".into()) })
        })?;
        // What came last is on the replica before the agent has heard so.
        lab.wait("nothing is behind but these", || {
            let status = pair.agent.ask(lab, &["status"])?;
            let link = &status["replicas"][0];
            let told = link["state"] == "degraded" && link["lag_entries"] == 0;
            Ok(if told { Ok(()) } else { Err(link.to_string()) })
        })?;
        tell_of_it(lab, &pair)?;
        // A restart forgets nothing.
        pair.agent.stop()?;
        pair.agent.start(lab)?;
        lab.wait("the five are still set aside", || {
            let found = set_aside(lab, &pair.agent);
            Ok(if found.as_ref().is_ok_and(|found| *found == want) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            })
        })?;
        mend_five(&pair)?;
        pair.agent.replctl(lab, &["quarantine", "retry"])?.expect(0)?;
        pair.wait_equal(lab)?;
        lab.wait("nothing is set aside any more", || {
            let report = pair.agent.ask(lab, &["quarantine", "list"])?;
            Ok(if report["count"] == 0 { Ok(()) } else { Err(report.to_string()) })
        })
    })
}

/// Metrics, one line in the log for each cause, `show`, and rehearsals that change nothing.
fn tell_of_it(lab: &Lab, pair: &Pair) -> anyhow::Result<()> {
    let name = pair.copy.name();
    for (reason, count) in [("denied", 2), ("unreadable", 1), ("corrupt", 1), ("conflict", 1)] {
        let sample = format!(
            "mailtwin_quarantined_mailboxes{{reason=\"{reason}\",replica=\"{name}\"}} {count}"
        );
        lab.wait("the metrics say so", || {
            let page = Node::page(pair.agent.metrics.0, "/metrics")?;
            Ok(if page.contains(&sample) { Ok(()) } else { Err(sample.clone()) })
        })?;
    }
    lab.wait("each was tried again", || {
        let report = pair.agent.ask(lab, &["quarantine", "list"])?;
        let entries = report["entries"].as_array().context("entries")?.clone();
        let all = entries.iter().all(|entry| entry["tries"].as_u64() > Some(3));
        Ok(if all { Ok(()) } else { Err(report.to_string()) })
    })?;
    let log = pair.agent.log_text(AGENT)?;
    for (account, mailbox, _) in BROKEN {
        let about = format!("{account}/{mailbox}");
        let lines = log.lines().filter(|line| line.contains("set aside") && line.contains(&about));
        ensure!(lines.count() == 1, "one line about {about}: {log}");
    }
    let shown = pair.agent.replctl(lab, &["quarantine", "show", "u1/m7"])?.expect(1)?.stdout;
    for words in ["unreadable", "1700000002.unread.host", "next trial", "2 messages"] {
        ensure!(shown.contains(words), "{words}: {shown}");
    }
    for verb in ["retry", "release"] {
        let rehearsed = ["quarantine", verb, "--dry-run", "u2"];
        let said = pair.agent.replctl(lab, &rehearsed)?.expect(1)?.stdout;
        ensure!(said.contains("1 mailboxes and accounts would be"), "{said}");
    }
    let none = ["quarantine", "list", "--replica", "nobody"];
    pair.agent.replctl(lab, &none)?.expect(2)?;
    let nothing = pair.agent.replctl(lab, &["quarantine", "list", "u9"])?.expect(0)?.stdout;
    ensure!(nothing.contains("nothing is set aside"), "{nothing}");
    // Forgotten, it is set aside again as something new.
    let before = pair.agent.ask(lab, &["quarantine", "show", "u4"])?;
    let tries = before["entries"][0]["tries"].as_u64().context("tries")?;
    pair.agent.replctl(lab, &["quarantine", "release", "u4/m7"])?.expect(0)?;
    lab.wait("it is set aside anew", || {
        let after = pair.agent.ask(lab, &["quarantine", "show", "u4"])?;
        let now = after["entries"][0]["tries"].as_u64();
        Ok(if now.is_some_and(|now| now < tries) { Ok(()) } else { Err(after.to_string()) })
    })
}
