//! The first copy to a new replica: it shows how far it is, survives kills, and sends only what the
//! replica lacks.

use std::{fs, path::Path, sync::atomic::Ordering};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::{AGENT, Node, Pair, REPLICA},
    dovecot::{Dovecot, Version},
    files,
    lab::Lab,
    oracle,
    proxy::Proxy,
    volume::tool,
};
use serde_json::Value;

/// What an account of [`fill`] has: so many mailboxes with so many messages.
const MAILBOXES: usize = 80;
const MESSAGES: usize = 6;
/// Octets of one of them, roughly.
const OCTETS: usize = 10_000;
const ACCOUNTS: [&str; 3] = ["u1", "u2", "u3"];

/// Mail enough for a copy that takes a while, put there as a restored backup would be.
fn fill(server: &Dovecot) -> anyhow::Result<u64> {
    let mut octets = 0;
    let filler = format!("{}\n", "x".repeat(70)).repeat(OCTETS / 71);
    for account in ACCOUNTS {
        for mailbox in 0..MAILBOXES {
            let dir = server.maildir(account).join(format!(".Box-{mailbox}"));
            for part in ["cur", "new", "tmp"] {
                files::make_mail_dir(&dir.join(part))?;
            }
            files::write_mail(&dir.join("maildirfolder"), "")?;
            for number in 0..MESSAGES {
                let serial = format!("{account}-{mailbox}-{number}");
                let message = [corpus::short(&serial), filler.clone().into_bytes()].concat();
                octets += message.len() as u64;
                let name = format!("{}.{number}.test:2,", 1_700_000_000 + mailbox);
                files::write_mail(&dir.join("cur").join(name), message)?;
            }
        }
    }
    Ok(octets)
}

fn accounts() -> Vec<String> {
    ACCOUNTS.map(str::to_owned).to_vec()
}

/// A master that knows of no replica, and the node that is to become one; nothing runs.
fn apart(lab: &Lab) -> anyhow::Result<Pair> {
    let master = Dovecot::start(lab, "master", Version::V23)?;
    let replica = Dovecot::start(lab, "replica", Version::V23)?;
    let pair = Pair::around(lab, master, replica, &ACCOUNTS)?;
    let text = pair.agent.config_text()?;
    let (config, _) = text.split_once("\n[[peer]]").context("a peer")?;
    pair.agent.write_config(config)?;
    Ok(pair)
}

/// A counter of the agent, about its only replica.
fn counter(pair: &Pair, metric: &str) -> anyhow::Result<u64> {
    let page = Node::page(pair.agent.metrics.0, "/metrics")?;
    let line = page.lines().find(|line| line.starts_with(&format!("{metric}{{")));
    let value = line.and_then(|line| line.rsplit(' ').next()).unwrap_or("0");
    Ok(value.parse()?)
}

fn replica(lab: &Lab, pair: &Pair) -> anyhow::Result<Value> {
    Ok(pair.agent.ask(lab, &["replica", "list"])?["replicas"][0].clone())
}

/// Waits until the copy has brought so many messages to the replica, and a status that says so.
fn wait_copied(lab: &Lab, pair: &Pair, messages: u64) -> anyhow::Result<Value> {
    lab.wait(&format!("{messages} messages are copied"), || {
        // A daemon that was just started does not answer yet.
        let Ok(now) = replica(lab, pair) else { return Ok(Err("no answer".into())) };
        let enough = now["copy"]["messages"].as_u64() >= Some(messages);
        Ok(if enough { Ok(now) } else { Err(now.to_string()) })
    })
}

/// Starts both daemons and adds the replica, by way of a path of so many octets a second.
fn add_slowly(lab: &Lab, pair: &mut Pair, rate: u64) -> anyhow::Result<Proxy> {
    let path = Proxy::start(lab, pair.copy.port)?;
    path.faults.rate.store(rate, Ordering::SeqCst);
    pair.copy.start(lab)?;
    pair.agent.start(lab)?;
    let (name, address) = (pair.copy.name().to_owned(), format!("127.0.0.1:{}", path.port));
    lab.wait("the agent answers", || {
        let words = ["replica", "add", name.as_str(), address.as_str()];
        let output = pair.agent.replctl(lab, &words)?;
        Ok(if output.code == Some(0) { Ok(()) } else { Err(output.stderr) })
    })?;
    Ok(path)
}

#[test]
fn a_copy_goes_on_where_it_was_killed_and_shows_how_far_it_is() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = apart(lab)?;
        let octets = fill(&pair.master)?;
        let all = (ACCOUNTS.len() * MAILBOXES * MESSAGES) as u64;
        let path = add_slowly(lab, &mut pair, octets / 20)?;

        let now = wait_copied(lab, &pair, all / 4)?;
        let copy = &now["copy"];
        ensure!(now["state"] == "replaying", "{now}");
        ensure!(copy["of"] == all && copy["counted"] == true, "{now}");
        let pace = copy["per_second"].as_f64().context("a pace")?;
        let left = copy["eta_seconds"].as_f64().context("an estimate")?;
        let more =
            copy["of"].as_f64().context("all")? - copy["messages"].as_f64().context("some")?;
        ensure!(pace > 0.0 && (left * pace - more).abs() <= pace + 1.0, "{now}");
        for verb in [&["replica", "list"][..], &["status"]] {
            let text = pair.agent.replctl(lab, verb)?.expect(0)?.stdout;
            let said = text.contains("copying: ") && text.contains(" s left");
            ensure!(said, "{verb:?}: {text}");
        }

        // Whatever is in the middle of being sent is sent again, and nothing else.
        wait_copied(lab, &pair, all / 2)?;
        let mut sent = counter(&pair, "mailtwin_octets_sent_total")?;
        pair.agent.crash(lab, AGENT)?;
        wait_copied(lab, &pair, all * 5 / 8)?;
        pair.copy.crash(lab, REPLICA)?;
        wait_copied(lab, &pair, all * 6 / 8)?;
        path.faults.rate.store(0, Ordering::SeqCst);
        oracle::wait_equal(lab, &pair.master, &pair.replica, &accounts())?;
        sent += counter(&pair, "mailtwin_octets_sent_total")?;
        // At most so many mailboxes are copied at once, and a new one is sent whole.
        let under_way = octets / (ACCOUNTS.len() * MAILBOXES) as u64 * 32;
        ensure!(sent >= octets, "{sent} of {octets} octets were sent");
        ensure!(sent <= octets + 2 * under_way, "{sent} octets were sent for {octets}");
        lab.wait("the copy is over", || {
            let now = replica(lab, &pair)?;
            let over = now["copy"].is_null() && now["state"] == "in-sync";
            Ok(if over { Ok(()) } else { Err(now.to_string()) })
        })?;
        pair.replica.expect_quiet_log()
    })
}

#[test]
fn a_very_large_mailbox_does_not_begin_anew() -> anyhow::Result<()> {
    const MANY: u64 = 12_000;
    Lab::run(|lab| {
        let mut pair = apart(lab)?;
        let dir = pair.master.maildir("u1");
        for part in ["cur", "new", "tmp"] {
            files::make_mail_dir(&dir.join(part))?;
        }
        let mut octets = 0;
        for number in 0..MANY {
            let message = corpus::short(&format!("many-{number:05}"));
            octets += message.len() as u64;
            let name = format!("{}.{number}.test:2,", 1_700_000_000 + number);
            files::write_mail(&dir.join("cur").join(name), message)?;
        }
        let _path = add_slowly(lab, &mut pair, octets / 10)?;
        wait_copied(lab, &pair, 10_500)?;
        let mut sent = counter(&pair, "mailtwin_octets_sent_total")?;
        pair.agent.crash(lab, AGENT)?;
        lab.wait("the copy is over", || {
            let Ok(now) = replica(lab, &pair) else { return Ok(Err("no answer".into())) };
            let over = now["copy"].is_null() && now["state"] == "in-sync";
            Ok(if over { Ok(()) } else { Err(now.to_string()) })
        })?;
        sent += counter(&pair, "mailtwin_octets_sent_total")?;
        ensure!(sent >= octets, "{sent} of {octets} octets were sent");
        ensure!(sent <= octets + octets / 5, "{sent} octets were sent for {octets}");
        oracle::wait_equal(lab, &pair.master, &pair.replica, &["u1".to_owned()])?;
        pair.replica.expect_quiet_log()
    })
}

/// Copies a tree as an admin would before the first contact.
fn rsync(from: &Path, to: &Path) -> anyhow::Result<()> {
    let (from, to) = (format!("{}/", from.display()), format!("{}/", to.display()));
    tool(&["rsync".as_ref(), "-a".as_ref(), from.as_ref(), to.as_ref()])
}

#[test]
fn a_tree_that_was_copied_beforehand_is_verified_and_only_the_difference_sent() -> anyhow::Result<()>
{
    Lab::run(|lab| {
        let mut pair = apart(lab)?;
        let octets = fill(&pair.master)?;
        let all = (ACCOUNTS.len() * MAILBOXES * MESSAGES) as u64;
        let mut imap = pair.master.imap("u1")?;
        imap.select("Box-0")?;
        imap.command("UID STORE 1 +FLAGS (\\Seen $Junk)")?;
        imap.logout()?;
        pair.agent.start(lab)?;
        // The master gives a UID to each message before anybody copies them.
        lab.wait("the master has looked at all", || {
            let log = pair.agent.log_text(AGENT)?;
            Ok(if log.contains("ready") { Ok(()) } else { Err("not yet".into()) })
        })?;
        oracle::Account::read(&pair.master, "u1")?;
        oracle::Account::read(&pair.master, "u2")?;
        oracle::Account::read(&pair.master, "u3")?;
        pair.replica.stop()?;
        rsync(&pair.master.mail_root(), &pair.replica.mail_root())?;

        // The difference: three new, one with another flag.
        for number in 0..3 {
            pair.master.deliver("u2", &corpus::short(&format!("later-{number}")))?;
        }
        let mut imap = pair.master.imap("u1")?;
        imap.select("Box-1")?;
        imap.command("UID STORE 2 +FLAGS (\\Flagged)")?;
        imap.logout()?;
        // What did not come over whole is another message, and told.
        pair.replica.resume(lab)?;
        pair.copy.start(lab)?;
        let address = format!("127.0.0.1:{}", pair.copy.port);
        let words = ["replica", "add", pair.copy.name(), address.as_str()];
        pair.agent.replctl(lab, &words)?.expect(0)?;
        oracle::wait_equal(lab, &pair.master, &pair.replica, &accounts())?;
        let (sent, acked) = (
            counter(&pair, "mailtwin_octets_sent_total")?,
            counter(&pair, "mailtwin_messages_replicated_total")?,
        );
        ensure!(acked == 3, "three messages of {all} were sent: {acked}");
        ensure!(sent < 10_000, "{sent} octets were sent for a tree of {octets}");
        let now = replica(lab, &pair)?;
        ensure!(now["quarantined"] == 0, "{now}");
        let deep = pair.agent.ask(lab, &["check", "--level", "deep"])?;
        ensure!(deep["result"] == "equal" && deep["messages"].as_u64() > Some(all), "{deep}");
        Ok(())
    })
}

#[test]
fn what_was_expunged_or_damaged_since_the_tree_was_copied_is_told_and_nothing_lost()
-> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = apart(lab)?;
        fill(&pair.master)?;
        for account in ACCOUNTS {
            oracle::Account::read(&pair.master, account)?;
        }
        pair.replica.stop()?;
        rsync(&pair.master.mail_root(), &pair.replica.mail_root())?;
        let damaged = pair.replica.maildir("u3").join(".Box-7/cur");
        let damaged = files::messages(&damaged)?.into_iter().next().context("a message")?;
        let mut content = fs::read(&damaged)?;
        content.iter_mut().rev().take(10).for_each(|octet| *octet = b'?');
        files::overwrite(&damaged, &content)?;
        pair.agent.start(lab)?;
        pair.copy.start(lab)?;
        pair.replica.resume(lab)?;
        let mut imap = pair.master.imap("u1")?;
        imap.select("Box-1")?;
        imap.command("UID STORE 2 +FLAGS (\\Deleted)")?;
        imap.command("EXPUNGE")?;
        imap.logout()?;
        let address = format!("127.0.0.1:{}", pair.copy.port);
        let words = ["replica", "add", pair.copy.name(), address.as_str()];
        lab.wait("the agent answers", || {
            let output = pair.agent.replctl(lab, &words)?;
            Ok(if output.code == Some(0) { Ok(()) } else { Err(output.stderr) })
        })?;
        let now = lab.wait("both are told", || {
            let now = replica(lab, &pair)?;
            let told = now["state"] == "degraded" && now["quarantined"] == 2;
            Ok(if told { Ok(now) } else { Err(now.to_string()) })
        })?;
        for aside in now["set_aside"].as_array().context("what is set aside")? {
            ensure!(aside["reason"] == "conflict", "{now}");
        }
        Ok(())
    })
}
