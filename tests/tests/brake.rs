//! The brake: what users do is replayed, a mass disappearance waits for an admin.

use std::fs;

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::{AGENT, Node, Pair},
    dovecot::{Dovecot, Version},
    files,
    lab::Lab,
    oracle::Account,
};

/// Messages in each mailbox of the account that loses its mail.
const EACH: usize = 40;

fn metric(pair: &Pair) -> anyhow::Result<Option<u64>> {
    let page = Node::page(pair.agent.metrics.0, "/metrics")?;
    let name = format!("mailtwin_brake_engaged{{replica=\"{}\"}} ", pair.copy.name());
    Ok(page.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok()))
}

fn fill(pair: &Pair) -> anyhow::Result<()> {
    let mut imap = pair.master.imap("u1")?;
    for name in ["INBOX", "Sent", "Work", "Trash"] {
        if name != "INBOX" {
            imap.create(name)?;
        }
        for n in 0..EACH * if name == "Trash" { 10 } else { 1 } {
            imap.append(name, &corpus::short(&format!("{name}-{n}"))).finish()?;
        }
    }
    pair.master.deliver("u2", &corpus::short("other"))
}

fn empty_trash(pair: &Pair) -> anyhow::Result<()> {
    let mut imap = pair.master.imap("u1")?;
    imap.select("Trash")?;
    imap.command("UID STORE 1:* +FLAGS.SILENT (\\Deleted)")?;
    imap.command("EXPUNGE")?;
    imap.select("INBOX")?;
    Ok(imap.delete("Trash")?)
}

#[test]
fn mail_that_vanishes_from_the_disk_stays_on_the_replica_until_it_is_released() -> anyhow::Result<()>
{
    Lab::run(|lab| {
        let master = Dovecot::start(lab, "master", Version::V23)?;
        let replica = Dovecot::start(lab, "replica", Version::V23)?;
        let mut pair = Pair::around(lab, master, replica, &["u1", "u2"])?;
        let config = pair.agent.config_text()?;
        let brake = "[brake]\nmessages = 50\nshare = \"25%\"\n\n[replica]\n";
        pair.agent.write_config(&config.replace("[replica]\n", brake))?;
        fill(&pair)?;
        pair.copy.start(lab)?;
        pair.agent.start(lab)?;
        pair.wait_equal(lab)?;
        // A user empties the Trash, most of all there is, and deletes a folder.
        empty_trash(&pair)?;
        pair.wait_equal(lab).context("after the Trash was emptied")?;
        ensure!(metric(&pair)? == Some(0), "nothing is held");
        // Then the disk loses everything of that account, while mail goes on arriving.
        pair.agent.stop()?;
        for path in files::messages(&pair.master.maildir("u1"))? {
            fs::remove_file(path)?;
        }
        fs::remove_dir_all(pair.master.mailbox_dir("u1", "Work"))?;
        pair.agent.start(lab)?;
        for account in ["u1", "u2"] {
            pair.master.deliver(account, &corpus::short(&format!("{account}-after")))?;
        }
        let arrived = || -> anyhow::Result<Result<(), String>> {
            let (one, two) =
                (Account::read(&pair.replica, "u1")?, Account::read(&pair.replica, "u2")?);
            let (one, two) = (one.serials(), two.serials());
            let there = one.contains_key("u1-after") && two.contains_key("u2-after");
            let kept = one.keys().filter(|serial| serial.contains('-')).count();
            Ok(if there && kept == 3 * EACH + 1 { Ok(()) } else { Err(format!("{kept} kept")) })
        };
        lab.wait("what arrives is replicated", arrived)?;
        lab.wait("the brake says that it holds", || {
            let said = metric(&pair)? == Some(1);
            Ok(if said { Ok(()) } else { Err("the metric does not say so".into()) })
        })?;
        let show = pair.agent.replctl(lab, &["brake", "show"])?.expect(1)?.stdout;
        ensure!(show.contains("BRAKE") && show.contains("u1"), "{show}");
        let status = pair.agent.ask(lab, &["status"])?;
        let link = &status["replicas"][0];
        ensure!(link["state"] == "degraded" && link["brake"][0]["account"] == "u1", "{link}");
        // A restart lets nothing go.
        pair.agent.stop()?;
        pair.agent.start(lab)?;
        lab.wait("the agent is back and has compared everything", || {
            let Ok(shown) = pair.agent.ask(lab, &["brake", "show"]) else {
                return Ok(Err("nobody answers yet".into()));
            };
            let held = &shown["held"][0];
            let all = held["messages"] == 3 * EACH && held["mailboxes"] == 1;
            Ok(if all { Ok(()) } else { Err(held.to_string()) })
        })?;
        ensure!(arrived()?.is_ok(), "{:?}", arrived()?);
        let log = pair.agent.log_text(AGENT)?;
        let lines = log.lines().filter(|line| line.contains("the brake holds deletions"));
        ensure!(lines.count() == 1, "one line: {log}");
        let rehearsed = pair.agent.replctl(lab, &["brake", "release", "--dry-run"])?.expect(1)?;
        ensure!(rehearsed.stdout.contains("120 messages and 1 mailboxes"), "{rehearsed:?}");
        ensure!(arrived()?.is_ok(), "a rehearsal lets nothing go");
        pair.agent.replctl(lab, &["brake", "release", "u1"])?.expect(0)?;
        pair.wait_equal(lab).context("after the release")?;
        lab.wait("the brake holds nothing", || {
            let none = metric(&pair)? == Some(0);
            Ok(if none { Ok(()) } else { Err("the metric does not say so".into()) })
        })?;
        pair.agent.replctl(lab, &["brake", "show"])?.expect(0)?;
        Ok(())
    })
}
