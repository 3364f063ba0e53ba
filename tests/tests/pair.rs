//! One kind of change after the other, on a master with a live Dovecot, seen at the replica's.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, ensure};
use imap::types::{Flag, UnsolicitedResponse};
use mailtwin_tests::{
    corpus,
    daemon::Pair,
    dovecot::{Dovecot, Layout, Version},
    faults, files,
    imap::Imap,
    lab::Lab,
    oracle::Account,
};

#[test]
fn mail_by_lmtp_is_readable_at_the_replica() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = Pair::start(lab, &["u1", "u2"])?;
        for (number, sample) in corpus::samples()?.iter().take(10).enumerate() {
            pair.master.deliver(["u1", "u2"][number % 2], sample)?;
        }
        pair.master.deliver("u1", &corpus::short("last"))?;
        pair.wait_equal(lab)?;
        let copy = Account::read(&pair.replica, "u1")?;
        let inbox = copy.mailboxes.get("INBOX").context("an INBOX")?;
        ensure!(inbox.messages.len() == 6 && inbox.uid_next == 7, "six messages: {inbox:?}");
        ensure!(copy.serials().contains_key("last"), "the last one is there");
        pair.expect_quiet_logs()
    })
}

#[test]
fn every_change_of_messages_is_replayed() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = Pair::start(lab, &["u1"])?;
        let mut imap = pair.master.imap("u1")?;
        imap.create("Work")?;
        let date = chrono::DateTime::parse_from_rfc3339("1999-12-31T23:59:58+02:00")?;
        for n in 0..6 {
            let flags = [Flag::Seen, Flag::from("$Forwarded")];
            imap.append("INBOX", &corpus::short(&format!("m{n}")))
                .flags(flags)
                .internal_date(date)
                .finish()?;
        }
        for (what, command) in [
            ("a flag", "UID STORE 1 +FLAGS (\\Answered \\Flagged)"),
            ("a flag taken away", "UID STORE 1 -FLAGS (\\Seen)"),
            ("a keyword", "UID STORE 2:3 +FLAGS ($Junk later)"),
            ("a keyword taken away", "UID STORE 2 -FLAGS (later)"),
            ("all flags replaced", "UID STORE 3 FLAGS (\\Draft work)"),
            ("COPY", "UID COPY 1:3 Work"),
            ("MOVE", "UID MOVE 4 Work"),
            ("\\Deleted", "UID STORE 2,5 +FLAGS (\\Deleted)"),
            ("EXPUNGE", "EXPUNGE"),
            ("COPY into the same mailbox", "UID COPY 1 INBOX"),
        ] {
            imap.select("INBOX")?;
            imap.command(command)?;
            pair.wait_equal(lab).context(what)?;
        }
        let copy = Account::read(&pair.replica, "u1")?;
        let work = copy.mailboxes.get("Work").context("Work is there")?;
        ensure!(work.messages.len() == 4, "four in Work: {work:?}");
        let dates: Vec<i64> = work.messages.values().map(|m| m.internal_date).collect();
        ensure!(dates.iter().all(|&d| d == date.timestamp()), "dates stay: {dates:?}");
        pair.expect_quiet_logs()
    })
}

#[test]
fn a_message_that_is_moved_away_and_back_is_there_once() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = Pair::start(lab, &["u1"])?;
        let mut imap = pair.master.imap("u1")?;
        imap.create("Work")?;
        for n in 0..3 {
            imap.append("INBOX", &corpus::short(&format!("m{n}"))).finish()?;
        }
        // Its file comes back under its old name, with another UID.
        for _ in 0..3 {
            for (from, to) in [("INBOX", "Work"), ("Work", "INBOX")] {
                imap.select(from)?;
                let first = imap.uid_search("ALL")?.into_iter().min().context("a message")?;
                imap.command(&format!("UID MOVE {first} {to}"))?;
                pair.wait_equal(lab)?;
            }
        }
        pair.replica.expect_quiet_log()
    })
}

/// Dovecot rewrites its list without what is gone, into a file with the inode that it had before.
#[test]
fn the_uid_of_what_came_and_went_unseen_is_spent_on_the_replica() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = Pair::start(lab, &["u1"])?;
        let mut imap = pair.master.imap("u1")?;
        imap.create("Work")?;
        imap.append("Work", &corpus::short("stays")).finish()?;
        pair.wait_equal(lab)?;
        for uid in 2..6 {
            pair.agent.stop()?;
            imap.append("Work", &corpus::short(&format!("goes-{uid}"))).finish()?;
            let mut other = pair.master.imap("u1")?;
            other.select("Work")?;
            other.uid_store(uid.to_string(), "+FLAGS.SILENT (\\Deleted)")?;
            other.uid_expunge(uid.to_string())?;
            pair.agent.start(lab)?;
            pair.wait_equal(lab).with_context(|| format!("UID {uid}"))?;
        }
        pair.expect_quiet_logs()
    })
}

#[test]
fn every_change_of_mailboxes_is_replayed() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = Pair::start(lab, &["u1"])?;
        change_mailboxes(lab, &pair, '.')?;
        pair.expect_quiet_logs()
    })
}

#[test]
fn the_fs_layout_works_as_well() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let master = Dovecot::with_layout(lab, "master", Version::V23, Layout::Fs)?;
        let replica = Dovecot::with_layout(lab, "replica", Version::V23, Layout::Fs)?;
        let mut pair = Pair::around(lab, master, replica, &["u1"])?;
        pair.agent.start(lab)?;
        pair.copy.start(lab)?;
        pair.master.deliver("u1", &corpus::short("inbox"))?;
        change_mailboxes(lab, &pair, '/')?;
        pair.expect_quiet_logs()
    })
}

fn change_mailboxes(lab: &Lab, pair: &Pair, separator: char) -> anyhow::Result<()> {
    let named = |name: &str| name.replace('/', &separator.to_string());
    let mut imap = pair.master.imap("u1")?;
    let create = |imap: &mut Imap, name: &str| -> anyhow::Result<()> {
        imap.create(named(name))?;
        imap.append(&named(name), &corpus::short(&name.replace('/', "-"))).finish()?;
        Ok(())
    };
    for name in ["A", "B", "B/child", "B/child/deep", "Entw&APw-rfe", "two words", "it's ~quoted~"]
    {
        create(&mut imap, name)?;
    }
    pair.wait_equal(lab).context("CREATE")?;
    imap.rename(named("B/child"), named("Moved"))?;
    pair.wait_equal(lab).context("RENAME with a child")?;
    imap.rename("B", "C")?;
    imap.rename("A", "B")?;
    pair.wait_equal(lab).context("B to C, A to B")?;
    imap.rename(named("Moved"), named("C/back"))?;
    imap.rename("C", "D")?;
    pair.wait_equal(lab).context("RENAME of a tree")?;
    imap.delete("B")?;
    pair.wait_equal(lab).context("DELETE")?;
    imap.delete("two words")?;
    create(&mut imap, "two words")?;
    imap.append("two words", &corpus::short("another")).finish()?;
    pair.wait_equal(lab).context("DELETE and CREATE")?;
    imap.rename("D", "E")?;
    create(&mut imap, "D")?;
    pair.wait_equal(lab).context("RENAME and CREATE")?;
    let copy = Account::read(&pair.replica, "u1")?;
    let deep = named("E/back/deep");
    ensure!(copy.mailboxes.contains_key(&deep), "{deep} is in {:?}", copy.list);
    Ok(())
}

#[test]
fn subscriptions_scripts_rights_and_quota_follow() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = Pair::start(lab, &["u1"])?;
        let mut imap = pair.master.imap("u1")?;
        imap.create("Work.Sub")?;
        imap.subscribe("Work.Sub")?;
        imap.subscribe("INBOX")?;
        pair.wait_equal(lab).context("SUBSCRIBE")?;
        imap.unsubscribe("INBOX")?;
        pair.wait_equal(lab).context("UNSUBSCRIBE")?;

        let home = pair.master.home("u1");
        files::make_mail_dir(&home.join("sieve"))?;
        files::write_mail(&home.join("sieve/main.sieve"), "keep;\n")?;
        files::write_mail(&home.join("sieve/other.sieve"), "discard;\n")?;
        files::link_mail("sieve/main.sieve", &home.join(".dovecot.sieve"))?;
        pair.wait_equal(lab).context("Sieve scripts")?;
        files::write_mail(&home.join("sieve/main.sieve"), "# changed\nkeep;\n")?;
        files::link_mail("sieve/other.sieve", &home.join(".dovecot.sieve"))?;
        pair.wait_equal(lab).context("another script is active")?;
        fs::remove_file(home.join("sieve/main.sieve"))?;
        pair.wait_equal(lab).context("a script is gone")?;
        fs::remove_file(home.join(".dovecot.sieve"))?;
        pair.wait_equal(lab).context("no script is active")?;

        imap.command("SETACL Work.Sub friend lr")?;
        pair.wait_equal(lab).context("SETACL")?;
        imap.command("DELETEACL Work.Sub friend")?;
        pair.wait_equal(lab).context("DELETEACL")?;

        for n in 0..20 {
            imap.append("INBOX", &corpus::short(&format!("m{n}"))).finish()?;
        }
        lab.wait("both count the same quota", || {
            let used = |server: &Dovecot| -> anyhow::Result<String> {
                Ok(format!("{:?}", server.imap("u1")?.get_quota_root("INBOX")?.quotas()))
            };
            let (here, there) = (used(&pair.master)?, used(&pair.replica)?);
            Ok(if here == there { Ok(()) } else { Err(format!("{here} and {there}")) })
        })?;
        pair.wait_equal(lab)?;
        pair.expect_quiet_logs()
    })
}

#[test]
fn a_client_that_idles_at_the_replica_sees_each_change() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = Pair::start(lab, &["u1"])?;
        let mut imap = pair.master.imap("u1")?;
        for n in 0..3 {
            pair.master.deliver("u1", &corpus::short(&format!("m{n}")))?;
        }
        pair.wait_equal(lab)?;
        let mut reader = pair.replica.imap("u1")?;
        reader.enable_qresync()?;
        reader.select("INBOX")?;
        idle(
            &mut reader,
            "EXISTS",
            |seen| matches!(seen, UnsolicitedResponse::Exists(4)),
            || pair.master.deliver("u1", &corpus::short("new")),
        )?;
        imap.select("INBOX")?;
        idle(
            &mut reader,
            "FETCH",
            |seen| matches!(seen, UnsolicitedResponse::Fetch { id: 2, .. }),
            || imap.command("UID STORE 2 +FLAGS (\\Flagged)").map(drop),
        )?;
        let gone = |seen: &UnsolicitedResponse| {
            let UnsolicitedResponse::Vanished { uids, .. } = seen else { return false };
            uids.iter().any(|range| range.contains(&1))
        };
        idle(&mut reader, "VANISHED", gone, || {
            imap.command("UID STORE 1 +FLAGS (\\Deleted)")?;
            imap.command("EXPUNGE").map(drop)
        })?;
        pair.wait_equal(lab)?;
        pair.expect_quiet_logs()
    })
}

/// Lets a client idle while `act` is done elsewhere, until it has seen the change.
fn idle(
    reader: &mut Imap,
    what: &str,
    seen: impl Fn(&UnsolicitedResponse) -> bool + Send,
    act: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| reader.idle_until(what, seen));
        act()?;
        waiting.join().map_err(|_| anyhow::anyhow!("the idling client panicked"))?
    })
}

#[test]
fn start_order_does_not_matter_and_a_late_replica_catches_up() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let master = Dovecot::start(lab, "master", Version::V23)?;
        let replica = Dovecot::start(lab, "replica", Version::V23)?;
        master.deliver("u1", &corpus::short("before-all"))?;
        let mut pair = Pair::around(lab, master, replica, &["u1"])?;
        pair.agent.start(lab)?;
        pair.master.deliver("u1", &corpus::short("before-the-replica"))?;
        pair.copy.start(lab)?;
        pair.wait_equal(lab).context("replica second")?;
        pair.copy.stop()?;
        pair.master.deliver("u1", &corpus::short("while-the-replica-is-away"))?;
        let mut imap = pair.master.imap("u1")?;
        imap.select("INBOX")?;
        imap.command("UID STORE 1 +FLAGS (\\Deleted)")?;
        imap.expunge()?;
        pair.copy.start(lab)?;
        pair.wait_equal(lab).context("replica back")?;
        pair.agent.stop()?;
        pair.master.deliver("u1", &corpus::short("while-the-agent-is-away"))?;
        imap.command("UID STORE 2 +FLAGS (\\Seen)")?;
        imap.create("Away")?;
        pair.agent.start(lab)?;
        pair.wait_equal(lab).context("agent back")?;
        pair.expect_quiet_logs()
    })
}

#[test]
fn octets_that_no_mail_program_writes_arrive_as_they_are() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = Pair::start(lab, &["u1"])?;
        pair.first_copy(lab)?;
        // As a delivery agent puts them there, not through a mail server that would mend them.
        let mut wanted = BTreeSet::new();
        for (name, octets) in corpus::nasty() {
            wanted.insert(octets.clone());
            let path = pair.master.maildir("u1").join(format!("new/1700000000.{name}.host"));
            files::write_mail(&path, octets)?;
        }
        lab.wait("all of them are there", || {
            let mut there = BTreeSet::new();
            for path in files::messages(&pair.replica.maildir("u1"))? {
                there.insert(fs::read(path)?);
            }
            let lacking = wanted.difference(&there).count();
            Ok(if lacking == 0 { Ok(()) } else { Err(format!("{lacking} are not there")) })
        })?;
        pair.agent.sync(lab)?;
        pair.agent.replctl(lab, &["check", "--level", "deep"])?.expect(0)?;
        pair.wait_equal(lab)
    })
}

#[test]
fn a_restarted_agent_sends_only_what_changed_meanwhile() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = Pair::start(lab, &["u1", "u2"])?;
        for number in 0..20 {
            pair.master.deliver(["u1", "u2"][number % 2], &corpus::short(&format!("m{number}")))?;
        }
        pair.wait_equal(lab)?;
        let before = faults::metric(pair.copy.metrics.1, "mailtwin_applied_messages_total")?;
        pair.agent.stop()?;
        pair.master.deliver("u2", &corpus::short("while-the-agent-is-away"))?;
        pair.agent.start(lab)?;
        pair.wait_equal(lab)?;
        let sent = faults::metric(pair.agent.metrics.0, "mailtwin_octets_sent_total")?;
        let size = fs::metadata(newest(&pair)?)?.len();
        ensure!(format!("{sent}") == size.to_string(), "{sent} octets for a message of {size}");
        let after = faults::metric(pair.copy.metrics.1, "mailtwin_applied_messages_total")?;
        ensure!((after - before - 1.0).abs() < f64::EPSILON, "{before} messages, then {after}");
        Ok(())
    })
}

/// The message that lies in `u2`'s INBOX on the master and has `away` in its subject.
fn newest(pair: &Pair) -> anyhow::Result<std::path::PathBuf> {
    for path in files::messages(&pair.master.maildir("u2"))? {
        if String::from_utf8_lossy(&fs::read(&path)?).contains("while-the-agent-is-away") {
            return Ok(path);
        }
    }
    anyhow::bail!("it is not there")
}
