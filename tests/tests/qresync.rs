//! A client that keeps a copy of its mailbox moves from the master to the replica, and need not
//! fetch everything anew: QRESYNC (RFC 7162) tells it all that it missed, and nothing wrong.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::Pair,
    dovecot::{Dovecot, Version},
    imap::{Imap, Resynced},
    lab::Lab,
    oracle::Account,
};

/// What such a client knows of a mailbox.
#[derive(Debug, Default)]
struct Client {
    uid_validity: u32,
    highest_modseq: u64,
    flags: BTreeMap<u32, Vec<String>>,
}

impl Client {
    /// Opens INBOX at a server, and takes in what it says.
    fn visit(&mut self, server: &Dovecot) -> anyhow::Result<Resynced> {
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
    fn expect_truth(&self, server: &Dovecot) -> anyhow::Result<()> {
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
    Lab::run(|lab| {
        let master = Dovecot::start(lab, "master", Version::V23)?;
        let replica = Dovecot::start(lab, "replica", Version::V23)?;
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
        pair.expect_quiet_logs()
    })
}

fn change(imap: &mut Imap, commands: &[&str]) -> anyhow::Result<()> {
    imap.select("INBOX")?;
    for command in commands {
        imap.command(command)?;
    }
    Ok(())
}
