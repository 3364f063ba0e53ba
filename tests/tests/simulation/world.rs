//! A master's agent and its replicas in one process, on stores in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use mailtwin_agent::{
    Agent, AgentParts,
    link::LinkStatus,
    log::{Log, Options},
    metrics::Metrics,
};
use mailtwin_host::{clock::SystemClock, retry::Retry, tasks::Tasks, workers::Workers};
use mailtwin_logic::{
    entry::Target,
    ids::{Account, Epoch, Guid, MailboxId, ModSeq, Uid},
    link::Phase,
    mailbox::MailboxName,
};
use mailtwin_store::{
    Listing, MailStore, StoreError,
    conformance::{
        InMemory,
        replication::{Dice, act, assert_equal},
    },
    memory::{Call, Fault, MemoryStore},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::wire::{Dialer, Replica};

/// How long anything may take on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Where a message was, and which it was.
type Seen = (MailboxId, Uid, Guid);

pub(crate) fn ann() -> Account {
    Account::new("ann").unwrap()
}

pub(crate) fn name(text: &str) -> MailboxName {
    MailboxName::new(text.as_bytes()).unwrap()
}

fn denied() -> StoreError {
    let source = std::io::ErrorKind::PermissionDenied.into();
    StoreError::Io { op: "list", path: "Work".into(), source }
}

/// Lets every call of a kind fail for one of ann's mailboxes.
pub(crate) fn break_mailbox(store: &MemoryStore, call: Call, at: &MailboxName) {
    let mailbox = store.find(&ann(), at).unwrap().map(|state| state.id);
    let (account, times) = (Some(ann()), u32::MAX);
    store.fail(Fault { call, account, mailbox, times, error: Box::new(denied) });
}

/// All of it.
pub(crate) struct World {
    pub(crate) master: InMemory,
    pub(crate) replicas: Vec<Arc<Replica>>,
    pub(crate) accounts: Vec<Account>,
    /// What happened so far, for a failing test to show.
    pub(crate) story: Vec<String>,
    agent: Option<Running>,
    epoch: Epoch,
    dir: TempDir,
    tasks: Tasks,
    /// Messages that the master's clients have taken away.
    gone: BTreeSet<Guid>,
}

struct Running {
    agent: Agent,
    tasks: Tasks,
}

impl World {
    /// A master with two replicas; the agent is not started yet.
    pub(crate) fn new(epoch: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::new(CancellationToken::new());
        let replica = |name: &str| {
            let state_dir = dir.path().join(name);
            std::fs::create_dir(&state_dir).unwrap();
            Replica::new(name, &state_dir, Epoch(1), &tasks)
        };
        let replicas = vec![replica("mx2"), replica("mx3")];
        let accounts = ["ann", "ben", "lists/2024"].map(|name| Account::new(name).unwrap());
        let master = InMemory::new("mx1");
        for account in &accounts {
            master.store.create_mailbox(account, &MailboxName::inbox());
        }
        Self {
            master,
            replicas,
            accounts: accounts.into(),
            story: Vec::new(),
            agent: None,
            epoch: Epoch(epoch),
            dir,
            tasks,
            gone: BTreeSet::new(),
        }
    }

    /// Starts the agent on what an earlier one left.
    pub(crate) fn start(&mut self) {
        let state_dir = self.dir.path().join("mx1");
        let options = Options { segment_octets: 2048, ..Options::default() };
        let clock = SystemClock::shared();
        let (log, _) = Log::open(&state_dir.join("log"), options, clock.clone()).unwrap();
        let tasks = Tasks::new(CancellationToken::new());
        let parts = AgentParts {
            node: "mx1".into(),
            epoch: self.epoch,
            state_dir,
            store: self.master.store.clone(),
            workers: Workers::start("agent", 2).unwrap(),
            log: Arc::new(log),
            tasks: tasks.clone(),
            clock,
            metrics: Metrics::register(&prometheus::Registry::new()).unwrap(),
            retry: Retry::new(),
        };
        let dialers = self.replicas.iter().map(|replica| mailtwin_agent::Replica {
            name: replica.name.clone(),
            dialer: Arc::new(Dialer(Arc::clone(replica))),
        });
        let agent = Agent::start(parts, dialers.collect(), tasks.stop()).unwrap();
        self.agent = Some(Running { agent, tasks });
    }

    /// Ends the agent as a SIGTERM does.
    pub(crate) async fn stop(&mut self) {
        let Running { agent, tasks } = self.agent.take().expect("it runs");
        tasks.shutdown(PATIENCE).await.unwrap();
        drop(agent);
    }

    /// Forgets cursors and quarantine, as a lost disk does.
    pub(crate) fn lose_state(&self) {
        std::fs::remove_dir_all(self.dir.path().join("mx1/cursors")).unwrap();
        std::fs::remove_dir_all(self.dir.path().join("mx1/quarantine")).unwrap();
    }

    pub(crate) fn agent(&self) -> &Agent {
        &self.agent.as_ref().expect("it runs").agent
    }

    /// The link to the replica at `place`.
    pub(crate) fn link(&self, place: usize) -> LinkStatus {
        self.agent().links().swap_remove(place)
    }

    /// Logs what is dirty, as a source does.
    pub(crate) async fn log(&self, targets: Vec<Target>) {
        self.agent().append(targets).await.unwrap();
    }

    /// Does something to the master's mail and logs what that made dirty.
    pub(crate) async fn change(&mut self, account: &Account, what: impl FnOnce(&InMemory)) {
        let before = look(&self.master, account);
        what(&self.master);
        let after = look(&self.master, account);
        self.gone.extend(before.1.difference(&after.1).map(|(_, _, guid)| *guid));
        let targets = dirty(account, &before.0, &after.0);
        if self.agent.is_some() && !targets.is_empty() {
            self.log(targets).await;
        }
    }

    /// Does random things to the master's mail.
    pub(crate) async fn live(&mut self, actions: usize, dice: &mut Dice) {
        for _ in 0..actions {
            let account = self.accounts[dice.below(self.accounts.len())].clone();
            let mut done = String::new();
            self.change(&account, |master| done = act(master, &account, dice)).await;
            self.story.push(format!("{account}: {done}"));
        }
    }

    /// Waits until all links have replayed what is in the log.
    pub(crate) async fn drain(&self) {
        let upto = *self.agent().log().tail().borrow();
        let drained = self.agent().drained(upto, PATIENCE).await;
        assert!(drained, "{:#?}\nafter {:#?}", self.agent().links(), self.story);
    }

    /// Waits until the link at `place` has replayed what is in the log.
    pub(crate) async fn drain_one(&self, place: usize) {
        let upto = *self.agent().log().tail().borrow();
        let there = |link: &LinkStatus| link.cursor >= upto && link.phase == Phase::InSync;
        self.until(place, there).await;
    }

    /// Waits until `is` holds for the link at `place`.
    pub(crate) async fn until(&self, place: usize, is: impl Fn(&LinkStatus) -> bool) {
        let wait = async {
            while !is(&self.link(place)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let done = tokio::time::timeout(PATIENCE, wait).await;
        assert!(done.is_ok(), "{:#?}\nafter {:#?}", self.link(place), self.story);
    }

    /// Asserts that the replica at `place` is equal, and lost nothing but what the master lost.
    pub(crate) fn assert_equal(&self, place: usize) {
        let replica = &self.replicas[place];
        for account in &self.accounts {
            assert_equal(&*self.master.store, &*replica.mail.store, account, &self.story);
        }
        for (account, name, record) in replica.mail.store.graveyard() {
            let known = self.gone.contains(&record.guid);
            assert!(known, "{account}/{name} {} was expunged, but not on the master", record.uid);
        }
    }

    /// Drains, then asserts that everybody is equal and nothing is set aside.
    pub(crate) async fn settle(&mut self) {
        self.drain().await;
        for place in 0..self.replicas.len() {
            assert!(self.link(place).aside.is_empty(), "{:#?}", self.link(place));
            self.assert_equal(place);
        }
        self.story.push("settled".into());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.stop().cancel();
        if let Some(running) = &self.agent {
            running.tasks.stop().cancel();
        }
    }
}

fn look(master: &InMemory, account: &Account) -> (Listing, BTreeSet<Seen>) {
    let listing = master.store.account(account).unwrap().unwrap_or_default();
    let mut seen = BTreeSet::new();
    for mailbox in &listing.state.mailboxes {
        let records = master.store.delta(account, mailbox.id, ModSeq(0)).unwrap().records;
        seen.extend(records.iter().map(|record| (mailbox.id, record.uid, record.guid)));
    }
    (listing, seen)
}

/// What a watcher would have seen.
fn dirty(account: &Account, before: &Listing, after: &Listing) -> Vec<Target> {
    let named = |listing: &Listing| -> BTreeMap<_, _> {
        listing.state.mailboxes.iter().map(|m| (m.name.clone(), (m.id, m.head))).collect()
    };
    let (old, new) = (named(before), named(after));
    let ids = |named: &BTreeMap<MailboxName, (MailboxId, _)>| -> Vec<_> {
        named.iter().map(|(name, (id, _))| (name.clone(), *id)).collect()
    };
    let mut targets = Vec::new();
    if ids(&old) != ids(&new) || before.state.files != after.state.files {
        targets.push(Target::Account(account.clone()));
    }
    let changed = new.iter().filter(|(name, now)| old.get(*name).is_some_and(|old| old != *now));
    targets.extend(changed.map(|(name, _)| Target::Mailbox(account.clone(), name.clone())));
    targets
}
