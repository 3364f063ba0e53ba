//! What only Cyrus has beside messages: annotations, quota limits, what was seen in mailboxes of others.

use std::{collections::BTreeSet, fs};

use anyhow::ensure;
use mailtwin_cyrus::{Command, Value};
use mailtwin_tests::{
    corpus,
    cyrus::{ADMIN, Cyrus},
    daemon::Node,
    dovecot::{Dovecot, Layout, Version},
    lab::Lab,
    server::Server as _,
};

/// One line for each annotation, limit and mark that a Cyrus has of `user`.
fn extras(cyrus: &Cyrus, user: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let text =
        |value: &Value, key| value.text_of(key).unwrap_or_default().escape_ascii().to_string();
    let mut link = cyrus.link()?;
    for answer in cyrus.told(user)? {
        let value = &answer.values[0];
        match &answer.name[..] {
            "QUOTA" => {
                let limits = ["ROOT", "STORAGE", "MESSAGE"].map(|key| text(value, key));
                found.insert(format!("quota {limits:?}"));
            }
            "SEEN" => {
                let marks = ["UNIQUEID", "LASTUID", "SEENUIDS"].map(|key| text(value, key));
                found.insert(format!("seen {marks:?}"));
            }
            "MAILBOX" => {
                let name = text(value, "MBOXNAME");
                let whole = link.run(&Command::Get("FULLMAILBOX", &Value::text(&name)));
                let Ok(whole) = whole else { continue };
                let Some(whole) = whole.first().and_then(|answer| answer.values.first()) else {
                    continue;
                };
                let records = whole.get("RECORD").and_then(Value::as_list).unwrap_or_default();
                for owner in records.iter().chain([whole]) {
                    let uid = text(owner, "UID");
                    let list = owner.get("ANNOTATIONS").and_then(Value::as_list);
                    for note in list.unwrap_or_default() {
                        let [entry, user, value] =
                            ["ENTRY", "USERID", "VALUE"].map(|key| text(note, key));
                        // Fields of the index, which each server makes itself.
                        if !uid.is_empty() && entry.starts_with("/vendor/cmu/cyrus-imapd/") {
                            continue;
                        }
                        found.insert(format!("note {name} {uid} {entry} {user:?} {value:?}"));
                    }
                }
                found.insert(format!("options {name} {}", text(value, "OPTIONS")));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Waits until both tell the same of `user`, among it `wanted`, and nothing with `unwanted` in it.
fn wait_equal(
    lab: &Lab,
    (master, replica): (&Cyrus, &Cyrus),
    user: &str,
    wanted: &[&str],
    unwanted: &[&str],
) -> anyhow::Result<()> {
    lab.wait(&format!("{user} has {wanted:?} on both, and nothing of {unwanted:?}"), || {
        let (ours, theirs) = (extras(master, user)?, extras(replica, user)?);
        let has = |words: &&&str| ours.iter().any(|line| line.contains(**words));
        let is_fine = wanted.iter().all(|words| has(&words)) && !unwanted.iter().any(|w| has(&w));
        let equal = ours == theirs && is_fine;
        Ok(if equal { Ok(()) } else { Err(format!("{ours:#?}\n{theirs:#?}")) })
    })
}

#[test]
fn annotations_limits_and_marks_come_along() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let extra = "annotation_allow_undefined: yes\nspecialusealways: yes";
        let master = Cyrus::with_extra(lab, "a", extra)?;
        let replica = Cyrus::with_extra(lab, "b", extra)?;
        for user in ["ann", "ben"] {
            master.create_user(user)?;
            replica.set_password(user)?;
        }
        master.deliver("ann", &corpus::short("one"))?;
        let mut imap = master.imap("ann")?;
        imap.create("Sent")?;
        imap.create("Work")?;
        imap.command("SETMETADATA Sent (/private/specialuse \"\\\\Sent\")")?;
        imap.select("INBOX")?;
        imap.command("UID STORE 1 ANNOTATION (/comment (value.shared \"before\"))")?;
        let nodes = Node::start_beside(
            lab,
            &[("a", master.store_config()), ("b", replica.store_config())],
        )?;
        let both = (&master, &replica);
        wait_equal(lab, both, "ann", &["/specialuse", "before"], &[])?;

        let mut admin = master.imap(ADMIN)?;
        admin.command("SETQUOTA user/ann (STORAGE 100000 MESSAGE 5000)")?;
        imap.command("SETMETADATA Work (/shared/comment \"for all (of) \\\"us\\\"\")")?;
        master.deliver("ann", &corpus::short("two"))?;
        imap.select("INBOX")?;
        imap.command(
            "UID STORE 2 ANNOTATION (/comment (value.priv \"mine\" value.shared \"ours\"))",
        )?;
        imap.command("UID COPY 1:2 Work")?;
        let wanted =
            ["100000", "5000", "for all", "user.ann 2 /comment", "user.ann.Work 2 /comment"];
        wait_equal(lab, both, "ann", &wanted, &[])?;

        // A copy is a delivery to the log, and has its annotations nevertheless.
        imap.command("UID COPY 2 Sent")?;
        wait_equal(lab, both, "ann", &["user.ann.Sent 1 /comment"], &[])?;

        imap.command("SETACL Work ben lrs")?;
        let mut ben = master.imap("ben")?;
        ben.select("Other Users/ann/Work")?;
        ben.command("UID STORE 1 +FLAGS (\\Seen)")?;
        ben.command("CLOSE")?;
        wait_equal(lab, both, "ben", &["seen "], &[])?;

        // What is taken away goes, and so do limits.
        imap.select("INBOX")?;
        imap.command("UID STORE 1 ANNOTATION (/comment (value.shared NIL))")?;
        imap.command("SETMETADATA Work (/shared/comment NIL)")?;
        admin.command("SETQUOTA user/ann (STORAGE 200000)")?;
        wait_equal(
            lab,
            both,
            "ann",
            &["200000", "ours"],
            &["user.ann 1 /comment", "for all", "5000"],
        )?;
        nodes[0].sync(lab)?;
        nodes[0].replctl(lab, &["check", "--level", "full"])?.expect(0)?;
        let problems = nodes[0].replctl(lab, &["--output", "json", "status"])?.stdout;
        ensure!(!problems.contains("not-carried"), "nothing is left behind: {problems}");
        Ok(())
    })
}

#[test]
fn what_is_too_long_is_said_and_the_rest_goes_on() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let extra = "annotation_allow_undefined: yes";
        let master = Cyrus::with_extra(lab, "a", extra)?;
        let replica = Cyrus::with_extra(lab, "b", extra)?;
        master.create_user("ann")?;
        replica.set_password("ann")?;
        let stores = [("a", master.store_config()), ("b", replica.store_config())];
        let nodes = Node::start_beside(lab, &stores)?;
        let mut imap = master.imap("ann")?;
        imap.create("Work")?;
        imap.create("Long")?;
        let value = "x".repeat(60_000);
        for number in 0..9 {
            let entry = format!("/shared/vendor/example/{number}");
            let literal = format!("{{{}+}}\r\n{value}", value.len());
            imap.command(&format!("SETMETADATA Long ({entry} {literal})"))?;
        }
        imap.command("SETMETADATA Work (/shared/comment \"goes on\")")?;
        lab.wait("the mailbox is named", || {
            let told = nodes[0].replctl(lab, &["status"])?.stdout;
            let is_named = told.contains("not-carried") && told.contains("Long");
            Ok(if is_named { Ok(()) } else { Err(told) })
        })?;
        lab.wait("another mailbox's annotation comes along", || {
            let there = extras(&replica, "ann")?;
            let is_there = there.iter().any(|line| line.contains("goes on"));
            Ok(if is_there { Ok(()) } else { Err(format!("{there:#?}")) })
        })
    })
}

/// A client knows the HIGHESTMODSEQ of the server that it comes from (RFC 7162), and would not hear of a
/// change that has a lower MODSEQ on the one that it goes to.
#[test]
fn a_client_that_moves_to_the_other_cyrus_hears_of_what_comes() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (master, replica) = (Cyrus::start(lab, "a")?, Cyrus::start(lab, "b")?);
        master.create_user("ann")?;
        replica.set_password("ann")?;
        for number in 0..3 {
            master.deliver("ann", &corpus::short(&format!("{number}")))?;
        }
        let mut nodes = Node::start_beside(
            lab,
            &[("a", master.store_config()), ("b", replica.store_config())],
        )?;
        // Changes that are undone before anybody looks leave nothing but a higher MODSEQ.
        let mut imap = master.imap("ann")?;
        imap.select("INBOX")?;
        for _ in 0..40 {
            imap.command("UID STORE 1:3 +FLAGS (\\Flagged)")?;
            imap.command("UID STORE 1:3 -FLAGS (\\Flagged)")?;
        }
        nodes[0].sync(lab)?;
        let mut client = master.imap("ann")?;
        client.enable_qresync()?;
        let known = client.resync("INBOX", (0, 0))?;
        nodes.iter_mut().try_for_each(Node::stop)?;
        let mut other = replica.imap("ann")?;
        other.select("INBOX")?;
        other.command("UID STORE 2 +FLAGS (\\Answered)")?;
        other.command("UID STORE 3 +FLAGS (\\Deleted)")?;
        other.command("EXPUNGE")?;
        let mut client = replica.imap("ann")?;
        client.enable_qresync()?;
        let news = client.resync("INBOX", (known.uid_validity, known.highest_modseq))?;
        ensure!(news.uid_validity == known.uid_validity, "{known:?} {news:?}");
        let told: Vec<u32> = news.fetched.iter().map(|(uid, _)| *uid).collect();
        ensure!(told == [2] && news.has_vanished(3), "known {known:?}, told {news:?}");
        Ok(())
    })
}

/// A Dovecot has no use for them, and keeps them for the next Cyrus.
#[test]
fn a_maildir_keeps_for_a_cyrus_what_dovecot_does_not_know() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let extra = "annotation_allow_undefined: yes";
        let first = Cyrus::with_extra(lab, "a", extra)?;
        let middle =
            Dovecot::with_extra(lab, "b", Version::V23, Layout::Fs, "mail_save_crlf = yes")?;
        let last = Cyrus::with_extra(lab, "c", extra)?;
        first.add_account("ann", true)?;
        middle.add_account("ann", false)?;
        last.add_account("ann", false)?;
        first.deliver("ann", &corpus::short("one"))?;
        first.imap(ADMIN)?.command("SETQUOTA user/ann (STORAGE 100000)")?;
        let mut imap = first.imap("ann")?;
        imap.select("INBOX")?;
        imap.command("UID STORE 1 ANNOTATION (/comment (value.shared \"kept\"))")?;
        let mut nodes =
            Node::start_beside(lab, &[("a", first.store_config()), ("b", middle.store_config())])?;
        let kept = middle.maildir("ann").join("mailtwin-annotations");
        lab.wait("the annotation lies beside the Maildir's mail", || {
            let content = fs::read_to_string(&kept).unwrap_or_default();
            Ok(if content.contains("kept") { Ok(()) } else { Err(content) })
        })?;
        nodes[0].sync(lab)?;
        nodes[0].replctl(lab, &["check", "--level", "full"])?.expect(0)?;
        // What it does not show is said before there is one.
        let told = nodes[0].replctl(lab, &["doctor", "--for", "fs"])?.stdout;
        for words in ["annotations: user.ann", "quota limits: ann"] {
            ensure!(told.contains(words), "{words} in {told}");
        }
        nodes.iter_mut().try_for_each(Node::stop)?;
        drop(nodes);

        let nodes =
            Node::start_beside(lab, &[("b2", middle.store_config()), ("c", last.store_config())])?;
        lab.wait("the other Cyrus has what the first had", || {
            let (ours, theirs) = (extras(&first, "ann")?, extras(&last, "ann")?);
            Ok(if ours == theirs { Ok(()) } else { Err(format!("{ours:#?}\n{theirs:#?}")) })
        })?;
        nodes[0].sync(lab)?;
        nodes[0].replctl(lab, &["check", "--level", "full"])?.expect(0)?;
        Ok(())
    })
}
