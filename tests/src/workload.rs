//! Random work of several mail clients at once on one server: whatever a mailbox can go through. A
//! seed repeats what each client does, though not how their steps fall between each other.

mod client;
mod ledger;

use std::sync::{
    RwLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use anyhow::{Context as _, anyhow, ensure};
use mailtwin_disk::clock::Clock;

use crate::{
    files,
    lab::Lab,
    oracle,
    random::{self, Random},
    server::Server,
};
use client::Client;
pub use ledger::Ledger;

/// Operations of a run, unless `OPS` says otherwise.
pub const OPERATIONS: usize = 2_000;

/// What to do.
#[derive(Debug)]
pub struct Workload<'a> {
    /// Where mail lives.
    pub server: &'a dyn Server,
    /// Whose mail; all clients of an account share its mailboxes.
    pub accounts: &'a [String],
    /// Clients of each account.
    pub clients: usize,
    /// Operations of all clients together.
    pub operations: usize,
    /// What repeats a run.
    pub seed: u64,
}

/// What a run came to.
#[derive(Debug)]
pub struct Tally {
    /// Operations that the server accepted.
    pub done: usize,
    /// Operations that it refused, mostly because another client had been there first.
    pub refused: usize,
    /// Sessions that it ended, for instance because their mailbox was deleted.
    pub dropped: usize,
    /// What became of each message, by account in the order given.
    pub ledgers: Vec<Ledger>,
}

/// What all clients of a run share.
struct Shared<'a> {
    server: &'a dyn Server,
    clock: &'a dyn Clock,
    left: AtomicUsize,
    accounts: Vec<SharedAccount>,
}

/// What the clients of one account share.
struct SharedAccount {
    name: String,
    ledger: Ledger,
    /// Held for writing while mailboxes are renamed or deleted, for reading by everything else. So
    /// the ledger knows what went with a mailbox.
    structure: RwLock<()>,
}

impl<'a> Workload<'a> {
    /// The usual run: two clients of each account, seed and size from the environment.
    pub fn usual(lab: &Lab, server: &'a dyn Server, accounts: &'a [String]) -> Self {
        let operations = random::number("OPS").and_then(|count| usize::try_from(count).ok());
        Self {
            server,
            accounts,
            clients: 2,
            operations: operations.unwrap_or(OPERATIONS),
            seed: random::seed(lab.clock()),
        }
    }

    /// Runs it; ends when all operations were tried and `go_on` is no longer set.
    /// Clients that are past their number work slowly. The history is in the lab's folder.
    pub fn run(&self, lab: &Lab, go_on: &AtomicBool) -> anyhow::Result<Tally> {
        let account = |name: &String| SharedAccount {
            name: name.clone(),
            ledger: Ledger::default(),
            structure: RwLock::new(()),
        };
        let shared = Shared {
            server: self.server,
            clock: lab.clock(),
            left: AtomicUsize::new(self.operations),
            accounts: self.accounts.iter().map(account).collect(),
        };
        let root = Random::new(self.seed);
        let outcomes = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (number, name) in
                (0..self.clients).flat_map(|n| shared.accounts.iter().map(move |a| (n, a)))
            {
                let seed = u64::try_from(threads.len()).unwrap_or(0) + 1;
                let client =
                    Client::new(&shared, name, format!("{}-{number}", name.name), root.fork(seed));
                threads.push(scope.spawn(move || client.run(go_on)));
            }
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().map_err(|_| anyhow!("a client panicked"))
            };
            threads.into_iter().map(join).collect::<anyhow::Result<Vec<_>>>()
        });
        let mut history = format!("seed {}, {} operations\n", self.seed, self.operations);
        let (mut done, mut refused, mut dropped) = (0, 0, 0);
        let mut failure = Ok(());
        for (outcome, ended) in outcomes? {
            history.push_str(&outcome.history);
            done += outcome.done;
            refused += outcome.refused;
            dropped += outcome.dropped;
            failure = failure.and(ended);
        }
        let path = lab.dir().join("history.log");
        files::write(&path, history)?;
        lab.watch_log(&path);
        failure.with_context(|| format!("workload, SEED={} repeats it", self.seed))?;
        let ledgers = shared.accounts.into_iter().map(|account| account.ledger).collect();
        let tally = Tally { done, refused, dropped, ledgers };
        ensure!(tally.done * 2 >= self.operations, "most operations did nothing: {tally:?}");
        Ok(tally)
    }
}

impl Tally {
    /// Fails if a message that nobody removed is no longer on the server.
    pub fn expect_no_loss(&self, server: &dyn Server, accounts: &[String]) -> anyhow::Result<()> {
        for (account, ledger) in accounts.iter().zip(&self.ledgers) {
            let there = oracle::Account::read(server, account)?.serials();
            let lost: Vec<String> =
                ledger.kept().into_iter().filter(|serial| !there.contains_key(serial)).collect();
            ensure!(lost.is_empty(), "{} lost mail of {account}: {lost:?}", server.name());
        }
        Ok(())
    }
}

/// Clients that only look, until `go_on` is cleared: they keep sessions open on a replica while it
/// changes. Sessions that end because their mailbox went are opened anew.
pub fn browse(lab: &Lab, server: &dyn Server, accounts: &[String], go_on: &AtomicBool, seed: u64) {
    let root = Random::new(seed);
    std::thread::scope(|scope| {
        for (number, account) in (1_000_u64..).zip(accounts) {
            let mut random = root.fork(number);
            scope.spawn(move || {
                while go_on.load(Ordering::Relaxed) {
                    // An error is the end of a session and no more: the log is what counts.
                    let _ = look_around(server, account, &mut random, go_on);
                    lab.clock().pause(std::time::Duration::from_millis(50));
                }
            });
        }
    });
}

fn look_around(
    server: &dyn Server,
    account: &str,
    random: &mut Random,
    go_on: &AtomicBool,
) -> anyhow::Result<()> {
    let mut imap = server.imap(account)?;
    while go_on.load(Ordering::Relaxed) {
        let names: Vec<String> =
            imap.list(None, Some("*"))?.iter().map(|name| name.name().to_owned()).collect();
        let Some(name) = random.pick(&names) else { continue };
        if random.once_in(2) {
            imap.select(name)?;
        } else {
            imap.examine(name)?;
        }
        for _ in 0..random.below(6) {
            imap.noop()?;
            imap.uid_fetch("1:*", "(UID FLAGS INTERNALDATE)")?;
        }
    }
    imap.logout()?;
    Ok(())
}
