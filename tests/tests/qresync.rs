//! A client that keeps a copy of its mailbox moves from the master to the replica, and need not
//! fetch everything anew: QRESYNC (RFC 7162) tells it all that it missed, and nothing wrong.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    cyrus::Cyrus,
    daemon::{Node, Pair},
    dovecot::{Dovecot, Layout, Version},
    imap::{Imap, Resynced},
    lab::Lab,
    oracle::Account,
    server::Server,
};

/// What such a client knows of a mailbox.
#[derive(Clone, Debug, Default)]
struct Client {
    uid_validity: u32,
    highest_modseq: u64,
    flags: BTreeMap<u32, Vec<String>>,
}

impl Client {
    /// Opens INBOX at a server, and takes in what it says.
    fn visit(&mut self, server: &dyn Server) -> anyhow::Result<Resynced> {
        let mut imap = server.imap("u1")?;
        imap.enable_qresync()?;
        let news = imap.resync("INBOX", (self.uid_validity, self.highest_modseq))?;
        ensure!(
            self.uid_validity == 0 || self.uid_validity == news.uid_validity,
            "UIDVALIDITY stays: {self:?} {news:?}"
        );
        if self.uid_validity == 0 {
            let all = imap.uid_fetch("1:*", "(UID FLAGS)")?;
            for fetch in all.iter() {
                self.take(fetch.uid.context("a UID")?, fetch.flags());
            }
        }
        self.uid_validity = news.uid_validity;
        self.highest_modseq = news.highest_modseq;
        self.flags.retain(|&uid, _| !news.has_vanished(uid));
        for (uid, flags) in &news.fetched {
            self.flags.insert(*uid, kept(flags.iter().map(String::as_str)));
        }
        imap.logout()?;
        Ok(news)
    }

    fn take(&mut self, uid: u32, flags: &[imap::types::Flag<'_>]) {
        let names: Vec<String> = flags.iter().map(ToString::to_string).collect();
        self.flags.insert(uid, kept(names.iter().map(String::as_str)));
    }

    /// Fails unless its copy is what the server has.
    fn expect_truth(&self, server: &dyn Server) -> anyhow::Result<()> {
        let account = Account::read(server, "u1")?;
        let inbox = account.mailboxes.get("INBOX").context("an INBOX")?;
        let truth: BTreeMap<u32, Vec<String>> = inbox
            .messages
            .iter()
            .map(|(&uid, message)| (uid, message.flags.iter().cloned().collect()))
            .collect();
        ensure!(self.flags == truth, "the client has {:?}, the server {truth:?}", self.flags);
        Ok(())
    }
}

fn kept<'a>(flags: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut flags: Vec<String> =
        flags.map(str::to_ascii_lowercase).filter(|flag| flag != "\\recent").collect();
    flags.sort();
    flags
}

#[test]
fn a_qresync_client_moves_without_missing_anything() -> anyhow::Result<()> {
    moves(false)
}

/// An INBOX that is there already, because somebody has logged in, is filled in its place.
#[test]
fn a_qresync_client_moves_to_where_an_empty_inbox_is_open() -> anyhow::Result<()> {
    moves(true)
}

fn moves(is_open: bool) -> anyhow::Result<()> {
    Lab::run(|lab| {
        let master = Dovecot::start(lab, "master", Version::V23)?;
        let replica = Dovecot::start(lab, "replica", Version::V23)?;
        let mut open = replica.imap("u1")?;
        if is_open {
            open.select("INBOX")?;
        }
        for n in 0..8 {
            master.deliver("u1", &corpus::short(&format!("m{n}")))?;
        }
        let mut early = Client::default();
        early.visit(&master)?;
        let mut imap = master.imap("u1")?;
        change(&mut imap, &["UID STORE 2 +FLAGS (\\Deleted)", "EXPUNGE"])?;
        let mut middle = Client::default();
        middle.visit(&master)?;

        let mut pair = Pair::around(lab, master, replica, &["u1"])?;
        pair.agent.start(lab)?;
        pair.copy.start(lab)?;
        pair.wait_equal(lab)?;
        // Dovecot ends a session whose mailbox has become another.
        let _ = open.command("NOOP");
        if is_open {
            repair_below_a_client(lab, &pair)?;
        }
        change(
            &mut imap,
            &[
                "UID STORE 5 +FLAGS (\\Deleted)",
                "EXPUNGE",
                "UID STORE 1 +FLAGS (\\Seen)",
                "UID STORE 3 +FLAGS ($Junk)",
            ],
        )?;
        pair.master.deliver("u1", &corpus::short("late"))?;
        pair.wait_equal(lab)?;

        let news = early.visit(&pair.replica).context("a client from before the replica")?;
        ensure!(news.has_vanished(2) && news.has_vanished(5), "2 and 5 vanished: {news:?}");
        early.expect_truth(&pair.replica)?;
        let news = middle.visit(&pair.replica).context("a client from in between")?;
        ensure!(news.has_vanished(5), "5 vanished: {news:?}");
        middle.expect_truth(&pair.replica)?;

        // It stays there: from now on it learns only what is new.
        change(&mut imap, &["UID STORE 7 +FLAGS (\\Flagged \\Deleted)", "UID EXPUNGE 7"])?;
        change(&mut imap, &["UID STORE 8 +FLAGS (\\Answered)"])?;
        pair.wait_equal(lab)?;
        let news = middle.visit(&pair.replica).context("the same client again")?;
        ensure!(news.has_vanished(7), "7 vanished: {news:?}");
        let told: Vec<u32> = news.fetched.iter().map(|(uid, _)| *uid).collect();
        ensure!(told == [8], "only 8 changed: {news:?}");
        middle.expect_truth(&pair.replica)?;
        pair.master.expect_quiet_log()?;
        let ended = ["reset, view is now inconsistent"];
        pair.replica.expect_quiet_log_but(if is_open { &ended } else { &[] })
    })
}

/// Has a message that was lost on the replica come back under its old UID, for which its index is
/// begun anew while a client has it open.
fn repair_below_a_client(lab: &Lab, pair: &Pair) -> anyhow::Result<()> {
    let mut open = pair.replica.imap("u1")?;
    open.select("INBOX")?;
    let messages = fs::read_dir(pair.replica.maildir("u1").join("cur"))?;
    let messages = messages.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    fs::remove_file(messages.iter().min().context("a message")?)?;
    pair.agent.replctl(lab, &["check", "--level", "full", "--repair"])?.expect(0)?;
    pair.wait_equal(lab)?;
    let _ = open.command("NOOP");
    Ok(())
}

/// Between servers that count differently, and where the agent looks only when much has happened.
/// Returns clients that saw the master before the replica was there, in between, and last.
fn move_all(
    lab: &Lab,
    (master, master_store): (&dyn Server, String),
    (replica, replica_store): (&dyn Server, String),
) -> anyhow::Result<[Client; 3]> {
    master.add_account("u1", true)?;
    replica.add_account("u1", false)?;
    for n in 0..8 {
        master.deliver("u1", &corpus::short(&format!("m{n}")))?;
    }
    let mut early = Client::default();
    early.visit(master)?;
    let mut imap = master.imap("u1")?;
    change(&mut imap, &["UID STORE 4 +FLAGS (\\Flagged)"])?;
    change(&mut imap, &["UID STORE 2 +FLAGS (\\Deleted)", "EXPUNGE"])?;
    let mut middle = Client::default();
    middle.visit(master)?;
    let mut nodes = Node::start_beside(lab, &[("a", master_store), ("b", replica_store)])?;
    sync(lab, &nodes[0])?;
    early.visit(replica).context("a client from before the replica")?;
    early.expect_truth(replica)?;

    // The agent looks only when all is over: 9 comes and goes in between.
    nodes[0].stop()?;
    change(&mut imap, &["UID STORE 5 +FLAGS (\\Deleted)", "EXPUNGE"])?;
    change(&mut imap, &["UID STORE 1 +FLAGS (\\Seen)", "UID STORE 3 +FLAGS ($Junk)"])?;
    master.deliver("u1", &corpus::short("short-lived"))?;
    let mut late = Client::default();
    late.visit(master)?;
    ensure!(late.flags.contains_key(&9), "{late:?}");
    change(&mut imap, &["UID STORE 9 +FLAGS (\\Deleted)", "UID EXPUNGE 9"])?;
    nodes[0].start(lab)?;
    sync(lab, &nodes[0])?;
    nodes.iter_mut().try_for_each(Node::stop)?;
    let clients = [early, middle, late];
    all_hear(&clients, replica)?;
    Ok(clients)
}

/// Waits until an agent that has just been started answers, and has replayed everything.
fn sync(lab: &Lab, agent: &Node) -> anyhow::Result<()> {
    agent.ask(lab, &["status"])?;
    agent.sync(lab)
}

fn all_hear(clients: &[Client], server: &dyn Server) -> anyhow::Result<()> {
    clients.iter().cloned().zip(["early", "middle", "late"]).try_for_each(|(mut client, who)| {
        let news = client.visit(server).with_context(|| format!("the {who} client"))?;
        client.expect_truth(server).with_context(|| format!("the {who} client: {news:?}"))
    })
}

/// A Cyrus tells only of what was changed, so that what the replica never had must be told, too.
#[test]
fn a_qresync_client_moves_between_cyruses_without_missing_anything() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (master, replica) = (Cyrus::start(lab, "a")?, Cyrus::start(lab, "b")?);
        let (from, to) = (master.store_config(), replica.store_config());
        let clients = move_all(lab, (&master, from), (&replica, to))?;
        ensure!(replica.expunged("user.u1")? == 3, "2, 5 and 9 are known to be gone");
        replica.expire()?;
        ensure!(replica.expunged("user.u1")? == 0, "cyr_expire had nothing to do");
        all_hear(&clients, &replica).context("once Cyrus has forgotten what was expunged")
    })
}

#[test]
fn a_qresync_client_moves_from_dovecot_to_cyrus_without_missing_anything() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let extra = "mail_save_crlf = yes";
        let dovecot = Dovecot::with_extra(lab, "a", Version::V23, Layout::Fs, extra)?;
        let cyrus = Cyrus::start(lab, "b")?;
        let (from, to) = (dovecot.store_config(), cyrus.store_config());
        move_all(lab, (&dovecot, from), (&cyrus, to)).map(drop)
    })
}

#[test]
fn a_qresync_client_moves_from_cyrus_to_dovecot_without_missing_anything() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let cyrus = Cyrus::start(lab, "a")?;
        let dovecot = Dovecot::with_extra(lab, "b", Version::V23, Layout::Fs, "")?;
        let (from, to) = (cyrus.store_config(), dovecot.store_config());
        let mut clients = move_all(lab, (&cyrus, from), (&dovecot, to))?;

        // And on to a Cyrus: such a Dovecot's MODSEQs are higher than any that a Cyrus ever has.
        clients.iter_mut().try_for_each(|client| client.visit(&dovecot).map(drop))?;
        let mut imap = dovecot.imap("u1")?;
        change(&mut imap, &["UID STORE 6 +FLAGS (\\Answered)"])?;
        change(&mut imap, &["UID STORE 7 +FLAGS (\\Deleted)", "EXPUNGE"])?;
        let next = Cyrus::start(lab, "c")?;
        next.set_password("u1")?;
        let stores = [("b2", dovecot.store_config()), ("c", next.store_config())];
        let nodes = Node::start_beside(lab, &stores)?;
        sync(lab, &nodes[0])?;
        all_hear(&clients, &next)
    })
}

fn change(imap: &mut Imap, commands: &[&str]) -> anyhow::Result<()> {
    imap.select("INBOX")?;
    for command in commands {
        imap.command(command)?;
    }
    Ok(())
}
