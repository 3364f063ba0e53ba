//! What a replica expunged comes back: out of its graveyard, through the master, under a new UID.

use std::{ffi::OsStr, fs, path::Path};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::{self, Pair},
    files,
    lab::Lab,
    oracle::Account,
};

/// A pair in which one message was expunged, and a mailbox with two deleted.
fn bereaved(lab: &Lab) -> anyhow::Result<Pair> {
    let pair = Pair::start(lab, &["u1"])?;
    pair.first_copy(lab)?;
    let mut imap = pair.master.imap("u1")?;
    for subject in ["kept", "lost", "last"] {
        imap.append("INBOX", &corpus::short(subject)).finish()?;
    }
    imap.create("Old")?;
    for subject in ["old-1", "old-2"] {
        imap.append("Old", &corpus::short(subject)).finish()?;
    }
    pair.wait_equal(lab)?;
    imap.select("INBOX")?;
    imap.command("UID STORE 3 +FLAGS.SILENT (\\Deleted)")?;
    imap.command("EXPUNGE")?;
    imap.delete("Old")?;
    pair.wait_equal(lab)?;
    Ok(pair)
}

#[test]
fn messages_come_back_through_the_master_under_new_uids() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = bereaved(lab)?;
        let all = pair.copy.ask(lab, &["graveyard", "list"])?;
        ensure!(all["count"] == 3 && all["done"] == false, "{all}");
        let uids: Vec<_> = all["entries"].as_array().context("entries")?.iter().collect();
        ensure!(uids.iter().all(|entry| entry["uid"].is_u64()), "all have UIDs: {all}");
        let text = pair.copy.replctl(lab, &["graveyard", "list", "u1/INBOX"])?.expect(0)?.stdout;
        ensure!(text.contains("\"lost\"") && text.contains("1 messages"), "{text}");
        for (words, count) in [
            (&["u1/Old"][..], 2),
            (&["--message-id", "<old-1@example.org>"], 1),
            (&["--uid", "3"], 1),
            (&["--since", "1h"], 3),
            (&["--since", "2100-01-01T00:00:00Z"], 0),
            (&["nobody"], 0),
        ] {
            let words: Vec<&str> = ["graveyard", "list"].iter().chain(words).copied().collect();
            let found = pair.copy.ask(lab, &words)?;
            ensure!(found["count"] == count, "{words:?}: {found}");
        }
        let none = pair.agent.replctl(lab, &["graveyard", "list"])?.expect(1)?.stdout;
        ensure!(none.contains("0 messages"), "the master's own, which took nothing away: {none}");
        let to = lab.mail_dir("given-back")?;
        let dir = to.to_str().context("a path of letters")?;
        let rehearsal = ["graveyard", "restore", "u1", "--to", dir, "--dry-run"];
        let said = pair.copy.replctl(lab, &rehearsal)?.expect(0)?.stdout;
        ensure!(said.contains("3 messages") && said.contains("would be written"), "{said}");
        ensure!(fs::read_dir(&to)?.count() == 0, "a rehearsal writes nothing");
        let exported = ["graveyard", "restore", "u1/Old", "--to", dir];
        pair.copy.replctl(lab, &exported)?.expect(0)?;
        let mails = files::walk(&to.join("u1"))?;
        ensure!(mails.len() == 2, "{mails:?}");
        let octets: Vec<Vec<u8>> = mails.iter().map(fs::read).collect::<Result<_, _>>()?;
        ensure!(octets.iter().any(|octets| corpus::serial(octets) == Some("old-2".into())));
        deliver_to_master(lab, &pair, &to)?;
        pair.wait_equal(lab).context("with the message back")?;
        let inbox = Account::read(&pair.replica, "u1")?;
        let inbox = inbox.mailboxes.get("INBOX").context("INBOX")?;
        let uids: Vec<u32> = inbox.messages.keys().copied().collect();
        ensure!(uids == [1, 2, 4, 5], "a new UID: {uids:?}");
        let back = inbox.messages.get(&5).context("UID 5")?;
        ensure!(back.serial.as_deref() == Some("lost"), "{back:?}");
        // It is in the graveyard still: what was given back can be given back again.
        let left = pair.copy.ask(lab, &["graveyard", "list"])?;
        ensure!(left["count"] == 3, "{left}");
        pair.expect_quiet_logs()
    })
}

/// As an admin would: the mail server of the master takes it in.
fn deliver_to_master(lab: &Lab, pair: &Pair, to: &Path) -> anyhow::Result<()> {
    let mail = pair.master.mail_root();
    let conf = mail.parent().context("above the mail")?.join("etc/dovecot.conf");
    let save = format!(
        "doveadm -c {} save -u \"$MAILTWIN_ACCOUNT\" -m \"$MAILTWIN_MAILBOX\"",
        conf.display()
    );
    let (config, message_id) = (pair.copy.config(), "lost@example.org");
    let words: Vec<&OsStr> = vec![
        "--config".as_ref(),
        config.as_os_str(),
        "graveyard".as_ref(),
        "restore".as_ref(),
        "--message-id".as_ref(),
        message_id.as_ref(),
        "--to".as_ref(),
        to.as_os_str(),
        "--deliver".as_ref(),
        save.as_ref(),
    ];
    let said = daemon::replctl(lab, &words, false)?.expect(0)?;
    ensure!(said.stdout.contains("1 messages handed to the command"), "{said:?}");
    Ok(())
}
