//! Hard failovers at random moments, one after the other, with clients at work on both sides of the
//! split. What is left, and what the ledger says, is held against the test's own record.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    cluster::Cluster,
    corpus,
    daemon::{AGENT, REPLICA},
    imap::Imap,
    lab::Lab,
    random::{self, Random},
    server::Server,
    split::{Side, Split, Uids},
};
use serde_json::Value;

/// Failovers of a run, unless `FAILOVERS` says otherwise.
const ROUNDS: u64 = 12;
const MAILBOXES: [&str; 5] = ["A", "B", "C", "A.x", "B.y"];
const FLAGS: [&str; 5] = ["\\Seen", "\\Answered", "\\Flagged", "$Junk", "later"];

/// Somebody who works on whichever server is there.
struct Client {
    random: Random,
    serial: u64,
    history: Vec<String>,
}

impl Client {
    /// Does some random things to one account; what the server refuses changes nothing.
    fn work(&mut self, server: &dyn Server, account: &str, times: usize) -> anyhow::Result<()> {
        let mut imap = server.imap(account)?;
        for _ in 0..times {
            let done = self.step(server, account, &mut imap);
            let done = match done {
                Ok(done) => done,
                Err(error) => match error.downcast_ref::<imap::Error>() {
                    Some(imap::Error::No(_)) => format!("refused: {error}"),
                    // Cyrus may say something else before it asks for the message: what comes next
                    // would be taken for that.
                    Some(imap::Error::Append) => {
                        imap = server.imap(account)?;
                        "refused: APPEND".to_owned()
                    }
                    // The mailbox that it had open is gone.
                    Some(imap::Error::ConnectionLost | imap::Error::Io(_)) => {
                        imap = server.imap(account)?;
                        "a new session".to_owned()
                    }
                    _ => return Err(error.context(format!("work on {account}"))),
                },
            };
            self.history.push(format!("{} {account}: {done}", server.name()));
        }
        // Nothing more is wanted of a session that the server may have ended already.
        let _ = imap.logout();
        Ok(())
    }

    fn step(
        &mut self,
        server: &dyn Server,
        account: &str,
        imap: &mut Imap,
    ) -> anyhow::Result<String> {
        let pick = |random: &mut Random| MAILBOXES[random.below(MAILBOXES.len())];
        let (one, other) = (pick(&mut self.random), pick(&mut self.random));
        match self.random.below(20) {
            0..6 => {
                let serial = self.next();
                server.deliver(account, &corpus::short(&serial))?;
                Ok(format!("deliver {serial}"))
            }
            6..9 => {
                let serial = self.next();
                imap.append(one, &corpus::short(&serial)).finish()?;
                Ok(format!("append {serial} to {one}"))
            }
            9 | 10 => imap.create(one).map(|()| format!("create {one}")).map_err(Into::into),
            11 => imap
                .rename(one, other)
                .map(|()| format!("rename {one} {other}"))
                .map_err(Into::into),
            12 => imap.delete(one).map(|()| format!("delete {one}")).map_err(Into::into),
            what => self.change(imap, (if what.is_multiple_of(2) { "INBOX" } else { one }, other)),
        }
    }

    /// Flags, moves or expunges a message.
    fn change(&mut self, imap: &mut Imap, (from, to): (&str, &str)) -> anyhow::Result<String> {
        imap.select(from)?;
        let mut uids: Vec<u32> = imap.uid_search("ALL")?.into_iter().collect();
        uids.sort_unstable();
        let Some(uid) = self.random.pick(&uids).copied() else {
            return Ok(format!("{from} is empty"));
        };
        match self.random.below(5) {
            0 => {
                imap.uid_store(uid.to_string(), "+FLAGS.SILENT (\\Deleted)")?;
                imap.uid_expunge(uid.to_string())?;
                Ok(format!("expunge {from} {uid}"))
            }
            1 => {
                imap.uid_mv(uid.to_string(), to)?;
                Ok(format!("move {from} {uid} to {to}"))
            }
            _ => {
                let flag = self.random.pick(&FLAGS).context("there are flags")?;
                let sign = if self.random.once_in(3) { '-' } else { '+' };
                imap.uid_store(uid.to_string(), format!("{sign}FLAGS.SILENT ({flag})"))?;
                Ok(format!("{sign}{flag} on {from} {uid}"))
            }
        }
    }

    fn next(&mut self) -> String {
        self.serial += 1;
        format!("s{}", self.serial)
    }
}

/// Everything that goes from round to round.
struct Story<'a, S> {
    lab: &'a Lab,
    cluster: Cluster<S>,
    client: Client,
    uids: Uids,
    master: usize,
}

impl<S: Server> Story<'_, S> {
    /// One failover, from both sides equal to both sides equal.
    fn round(&mut self) -> anyhow::Result<()> {
        let (old, new) = (self.master, 1 - self.master);
        self.work(old)?;
        if self.client.random.once_in(2) {
            let node = &self.cluster.nodes[old];
            // A mailbox that somebody deletes just now is set aside for a moment.
            self.lab.wait("everything is replicated", || {
                let output = node.replctl(self.lab, &["drain"])?;
                Ok(if output.code == Some(0) { Ok(()) } else { Err(output.stdout) })
            })?;
        } else {
            let wait = self.client.random.draw() % 300;
            self.lab.clock().pause(Duration::from_millis(wait));
        }
        self.cluster.nodes[old].kill_both()?;
        self.work(old)?;
        let past = self.deliver_past_the_gate(new)?;
        let theirs = self.read(old)?;
        let mut known = Vec::new();
        for account in &self.cluster.accounts {
            known.push(self.cluster.servers[old].serials_by_guid(account)?);
        }
        self.cluster.servers[old].stop()?;
        self.cluster.force(self.lab, new)?;
        let status = self.cluster.nodes[new].ask(self.lab, &["status"])?;
        let epoch = status["epoch"].as_u64().context("an epoch")?;
        let base = self.read(new)?.into_iter().map(|base| base.without(&past));
        let base: Vec<Side> = base.collect();
        self.work(new)?;
        let ours = self.read(new)?;
        self.come_back(old, new)?;
        let splits: Vec<Split> = base
            .into_iter()
            .zip(ours)
            .zip(theirs)
            .map(|((base, ours), theirs)| Split { base, ours, theirs })
            .collect();
        self.expect_merged((old, new), &splits)?;
        self.expect_ledger(new, epoch, &splits, &known)?;
        self.master = new;
        self.cluster.gates[old].close_by_hand()
    }

    fn work(&mut self, place: usize) -> anyhow::Result<()> {
        for account in &self.cluster.accounts {
            let times = self.client.random.below(12);
            self.client.work(&self.cluster.servers[place], account, times)?;
        }
        Ok(())
    }

    /// Every other time a replica gets a message of its own: its UID means another one on each side.
    fn deliver_past_the_gate(&mut self, new: usize) -> anyhow::Result<String> {
        let serial = self.client.next();
        if self.client.random.once_in(2) {
            return Ok(serial);
        }
        self.cluster.gates[new].open_by_hand()?;
        let (server, message) = (&self.cluster.servers[new], corpus::short(&serial));
        if self.client.random.once_in(2) {
            server.deliver("u1", &message)?;
        } else {
            let to = self.client.random.pick(&MAILBOXES).context("there are mailboxes")?;
            // Refused where there is no such mailbox.
            let _ = server.imap("u1")?.append(to, &message).finish();
        }
        self.client.history.push(format!("{serial} past the gate"));
        Ok(serial)
    }

    /// Reads all accounts of a node, and notes which UIDs clients have seen there.
    fn read(&mut self, place: usize) -> anyhow::Result<Vec<Side>> {
        let mut sides = Vec::new();
        for account in &self.cluster.accounts {
            let side = Side::read(self.lab, &self.cluster.servers[place], account)?;
            self.uids.see(&side.presented(account));
            sides.push(side);
        }
        Ok(sides)
    }

    /// The old master is there again; now and then a daemon dies while its mail is copied back.
    fn come_back(&mut self, old: usize, new: usize) -> anyhow::Result<()> {
        let lab = self.lab;
        self.cluster.rise(lab, old)?;
        if self.client.random.once_in(2) {
            let wait = self.client.random.draw() % 1_200;
            lab.clock().pause(Duration::from_millis(wait));
            let (victim, daemon) =
                if self.client.random.once_in(2) { (new, AGENT) } else { (old, REPLICA) };
            self.client.history.push(format!("after {wait} ms {daemon} dies on {victim}"));
            self.cluster.nodes[victim].crash(lab, daemon)?;
        }
        self.cluster.wait_merged(lab, new)
    }

    fn expect_merged(
        &mut self,
        (old, new): (usize, usize),
        splits: &[Split],
    ) -> anyhow::Result<()> {
        for place in [new, old] {
            for (account, split) in self.cluster.accounts.iter().zip(splits) {
                let merged = Side::read(self.lab, &self.cluster.servers[place], account)?;
                split
                    .check(&merged)
                    .with_context(|| format!("{account}: {split:#?} {merged:#?}"))?;
                self.uids.see_merged(&merged.presented(account))?;
            }
        }
        Ok(())
    }

    /// The ledger names exactly what was accepted and not there at the promotion.
    fn expect_ledger(
        &self,
        new: usize,
        epoch: u64,
        splits: &[Split],
        known: &[BTreeMap<String, String>],
    ) -> anyhow::Result<()> {
        let answer = self.cluster.nodes[new].ask(self.lab, &["ledger"])?;
        let lines = answer["ledger"].as_array().context("a ledger")?;
        let named_in = |line: &Value, account: &str| {
            let kind = ["tail", "clash"].iter().any(|kind| line["kind"] == *kind);
            kind && line["epoch"] == epoch && line["account"] == account
        };
        for ((account, split), known) in self.cluster.accounts.iter().zip(splits).zip(known) {
            let mut named: BTreeSet<String> = BTreeSet::new();
            for line in lines.iter().filter(|line| named_in(line, account)) {
                let guid = line["guid"].as_str().context("a GUID")?;
                let serial = known.get(guid).context("a message of the old master's")?;
                let again = !named.insert(serial.clone());
                ensure!(!again || !split.tail().contains(serial), "{serial} is named twice");
            }
            let (tail, moved) = (split.tail(), split.moved_there());
            let missing: Vec<_> = tail.difference(&named).collect();
            let strange: Vec<_> = named.difference(&moved).collect();
            ensure!(
                missing.is_empty() && strange.is_empty(),
                "the ledger of {account} lacks {missing:?} and has {strange:?}: {answer:#}"
            );
        }
        Ok(())
    }
}

/// Fails over again and again.
fn fail_over<S: Server>(lab: &Lab, cluster: Cluster<S>, usual: u64) -> anyhow::Result<()> {
    let seed = random::seed(lab.clock());
    let rounds = random::number("FAILOVERS").unwrap_or(usual);
    let client = Client { random: Random::new(seed), serial: 0, history: Vec::new() };
    let mut story = Story { lab, cluster, client, uids: Uids::default(), master: 0 };
    for round in 1..=rounds {
        let outcome = story.round();
        let history = &story.client.history;
        outcome
            .with_context(|| format!("SEED={seed}, failover {round} of {rounds}: {history:#?}"))?;
        story.client.history.clear();
    }
    Ok(())
}

#[test]
fn after_random_hard_failovers_nothing_is_lost_and_the_ledger_is_right() -> anyhow::Result<()> {
    Lab::run(|lab| fail_over(lab, Cluster::start(lab, &["one", "two"])?, ROUNDS))
}

#[test]
fn the_same_between_cyruses() -> anyhow::Result<()> {
    Lab::run(|lab| fail_over(lab, Cluster::of_cyrus(lab, &["one", "two"])?, ROUNDS / 2))
}
