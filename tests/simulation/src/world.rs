//! A master with its agent, and replicas, in one thread.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mailtwin_agent::{
    Agent, AgentParts,
    link::LinkStatus,
    log::{Health, Log, Options},
    metrics::Metrics,
};
use mailtwin_host::{clock::Clock, retry::Retry, tasks::Tasks, workers::Workers};
use mailtwin_logic::{
    brake::Limits,
    entry::Target,
    ids::{Account, Epoch, Guid, LogSeq, MailboxId, Uid},
    link::Phase,
    mailbox::MailboxName,
};
use mailtwin_store::{
    Listing,
    conformance::{
        InMemory,
        replication::{Dice, act},
    },
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::SimClock,
    disk::SimDisk,
    oracle::difference,
    replica::{Dialer, Replica},
};

/// How long anything may take, in simulated time.
pub const PATIENCE: Duration = Duration::from_hours(1);

/// All of it.
pub struct World {
    /// The master's mail.
    pub master: InMemory,
    /// The replicas.
    pub replicas: Vec<Arc<Replica>>,
    /// Who has mail.
    pub accounts: Vec<Account>,
    /// What happened so far.
    pub history: Vec<String>,
    /// Time.
    pub clock: Arc<SimClock>,
    /// Where the sync log lies.
    pub disk: SimDisk,
    /// Messages that the master's clients have taken away.
    pub gone: BTreeSet<Guid>,
    /// Replicas whose mail went back in time, so that the agent may not know yet.
    pub doubted: BTreeSet<String>,
    /// What may vanish without an admin's leave.
    pub limits: Limits,
    /// What the log's entries stand for.
    pub promises: Arc<Mutex<Vec<Promise>>>,
    epoch: Epoch,
    agent: Option<Running>,
    dir: TempDir,
}

/// An entry of the log, and mail that was there when it was asked for.
#[derive(Clone, Debug)]
pub struct Promise {
    /// Where the log has it.
    pub seq: LogSeq,
    /// Whose mail.
    pub account: Account,
    /// The messages.
    pub mail: BTreeSet<Seen>,
}

struct Running {
    agent: Agent,
    tasks: Tasks,
    /// The log's writer; it ends after everything else.
    writer: Tasks,
    /// Changes that no entry covers yet.
    unlogged: Arc<AtomicUsize>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "World({} replicas)", self.replicas.len())
    }
}

/// Counts a change that is not logged yet.
struct Unlogged(Arc<AtomicUsize>);

impl Unlogged {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Unlogged {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where state directories lie: in memory, where there is such a place.
fn state_root() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

impl World {
    /// A master with two replicas; the agent is not started yet.
    pub fn new(epoch: u64) -> Self {
        let dir = tempfile::tempdir_in(state_root()).expect("make a directory for the simulation");
        let replica = |name: &str| {
            let state_dir = dir.path().join(name);
            std::fs::create_dir(&state_dir).expect("make a state directory");
            Replica::new(name, &state_dir, Epoch(1))
        };
        let replicas = vec![replica("mx2"), replica("mx3")];
        let accounts =
            ["ann", "ben", "lists/2024"].map(|name| Account::new(name).expect("it is a good name"));
        let master = InMemory::new("mx1");
        for account in &accounts {
            master.store.create_mailbox(account, &MailboxName::inbox());
        }
        Self {
            master,
            replicas,
            accounts: accounts.into(),
            history: Vec::new(),
            clock: SimClock::shared(),
            disk: SimDisk::default(),
            gone: BTreeSet::new(),
            doubted: BTreeSet::new(),
            limits: Limits::default(),
            promises: Arc::default(),
            epoch: Epoch(epoch),
            agent: None,
            dir,
        }
    }

    /// Notes what happens.
    pub fn tell(&mut self, what: impl Into<String>) {
        let at = self.clock.monotonic();
        self.history.push(format!("{:>10.3} {}", at.as_secs_f64(), what.into()));
    }

    /// Starts the agent on what an earlier one left, with the scan that a start begins with.
    pub fn start(&mut self) {
        let state_dir = self.dir.path().join("mx1");
        let options = Options { segment_octets: 2048, ..Options::default() };
        let clock: Arc<dyn Clock> = self.clock.clone();
        let (tasks, writer) =
            (Tasks::new(CancellationToken::new()), Tasks::new(CancellationToken::new()));
        let disk = Arc::new(self.disk.clone());
        let log_dir = state_dir.join("log");
        let (log, _) = Log::open_simulated(disk, &log_dir, options, clock.clone(), &writer)
            .expect("open the simulated log");
        let promised = hold(&self.promises).iter().map(|promise| promise.seq).max();
        let kept = *log.tail().borrow();
        assert!(promised.is_none_or(|seq| seq <= kept), "I8: the log lost entries it had promised");
        let parts = AgentParts {
            forced: None,
            node: "mx1".into(),
            epoch: self.epoch,
            state_dir,
            store: self.master.store.clone(),
            workers: Workers::inline(),
            log: Arc::new(log),
            tasks: tasks.clone(),
            clock,
            metrics: Metrics::register(&prometheus::Registry::new())
                .expect("register fresh metrics"),
            retry: Retry::new().steady(),
            brake: self.limits,
        };
        let dialers = self.replicas.iter().map(|replica| mailtwin_agent::Replica {
            name: replica.name.clone(),
            dialer: Arc::new(Dialer(Arc::clone(replica))),
        });
        let agent = Agent::start(parts, dialers.collect(), tasks.stop());
        let agent = agent.expect("start the simulated agent");
        self.agent = Some(Running { agent, tasks, writer, unlogged: Arc::default() });
        for account in self.accounts.clone() {
            let (_, mail) = look(&self.master, &account);
            let targets = vec![Target::Account(account.clone())];
            self.log_after(Duration::from_millis(20), targets, (account, mail));
        }
    }

    /// Whether the agent runs.
    pub fn runs(&self) -> bool {
        self.agent.is_some()
    }

    /// Ends the agent as a SIGTERM does.
    pub async fn stop(&mut self) {
        let Some(Running { agent, tasks, writer, .. }) = self.agent.take() else { return };
        tasks.shutdown(PATIENCE).await.expect("the agent ends in order");
        drop(agent);
        writer.shutdown(PATIENCE).await.expect("the log's writer ends in order");
    }

    /// Whether the log has given up, which ends a real agent.
    pub fn log_has_stopped(&self) -> bool {
        let health = |running: &Running| running.agent.log().health().borrow().clone();
        matches!(self.agent.as_ref().map(health), Some(Health::Stopped(_)))
    }

    /// Ends the agent as a power cut does.
    pub async fn kill(&mut self, dice: &mut Dice) {
        let Some(Running { agent, tasks, writer, .. }) = self.agent.take() else { return };
        tasks.abandon().await;
        writer.abandon().await;
        drop(agent);
        self.disk.crash(dice);
    }

    /// Forgets cursors and quarantine, as a lost disk does.
    pub fn lose_state(&self) {
        for part in ["cursors", "quarantine"] {
            // What has never been written cannot be lost.
            let _ = std::fs::remove_dir_all(self.dir.path().join("mx1").join(part));
        }
    }

    /// Damages what is remembered: each file is cut in half.
    pub fn damage_state(&self) {
        for part in ["cursors", "quarantine"] {
            let Ok(files) = std::fs::read_dir(self.dir.path().join("mx1").join(part)) else {
                continue;
            };
            for path in files.flatten().map(|file| file.path()) {
                let file = std::fs::OpenOptions::new().write(true).open(&path);
                let file = file.expect("open a file of the simulation");
                let octets = file.metadata().map_or(0, |file| file.len());
                file.set_len(octets / 2).expect("cut a file of the simulation");
            }
        }
    }

    /// The agent, which runs.
    pub fn agent(&self) -> &Agent {
        &self.agent.as_ref().expect("it runs").agent
    }

    /// The link to the replica at `place`.
    pub fn link(&self, place: usize) -> LinkStatus {
        self.agent().links().swap_remove(place)
    }

    /// Logs what is dirty, as a source does.
    pub async fn log(&self, targets: Vec<Target>) {
        self.agent().append(targets).await.expect("append to the simulated log");
    }

    /// The same, some time later, unless the agent has gone by then.
    fn log_after(
        &self,
        delay: Duration,
        targets: Vec<Target>,
        (account, mail): (Account, BTreeSet<Seen>),
    ) {
        let Some(Running { agent, tasks, unlogged, .. }) = &self.agent else { return };
        let (log, stop) = (Arc::clone(agent.log()), tasks.stop().clone());
        let (unlogged, promises) = (Unlogged::new(unlogged), Arc::clone(&self.promises));
        tasks.spawn("source", async move {
            let _unlogged = unlogged;
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = async {
                    tokio::time::sleep(delay).await;
                    // A log that is closed belongs to an agent that ends.
                    if let Ok(seq) = log.append(targets).await {
                        hold(&promises).push(Promise { seq, account, mail });
                    }
                } => {}
            }
        });
    }

    /// Whether the log covers every change there was.
    pub fn all_logged(&self) -> bool {
        let unlogged = |running: &Running| running.unlogged.load(Ordering::Relaxed) == 0;
        self.agent.as_ref().is_some_and(unlogged)
    }

    /// Does something to the master's mail, and what that made dirty is logged `delay` later.
    pub fn change_slowly<T>(
        &mut self,
        delay: Duration,
        account: &Account,
        what: impl FnOnce(&InMemory) -> T,
    ) -> T {
        let (done, targets, mail) = self.change_only(account, what);
        if !targets.is_empty() {
            self.log_after(delay, targets, (account.clone(), mail));
        }
        done
    }

    /// Does something to the master's mail and logs what that made dirty.
    pub async fn change(&mut self, account: &Account, what: impl FnOnce(&InMemory)) {
        let ((), targets, _) = self.change_only(account, what);
        if self.agent.is_some() && !targets.is_empty() {
            self.log(targets).await;
        }
    }

    fn change_only<T>(
        &mut self,
        account: &Account,
        what: impl FnOnce(&InMemory) -> T,
    ) -> (T, Vec<Target>, BTreeSet<Seen>) {
        let before = look(&self.master, account);
        let done = what(&self.master);
        let after = look(&self.master, account);
        self.gone.extend(before.1.difference(&after.1).map(|(_, _, guid)| *guid));
        let fresh = after.1.difference(&before.1).copied().collect();
        (done, dirty(account, &before.0, &after.0), fresh)
    }

    /// Does random things to the master's mail.
    pub async fn live(&mut self, actions: usize, dice: &mut Dice) {
        for _ in 0..actions {
            let account = dice.pick(&self.accounts).clone();
            let delay = Duration::from_millis(3 + dice.below(250) as u64);
            let done = self.change_slowly(delay, &account, |master| act(master, &account, dice));
            self.tell(format!("{account}: {done}"));
            tokio::time::sleep(Duration::from_millis(dice.below(80) as u64)).await;
        }
    }

    /// Waits until everything is logged, and all links have replayed it and have nothing else to do.
    pub async fn drain(&self) -> Result<(), String> {
        self.wait("everything is logged", Self::all_logged).await?;
        let upto = *self.agent().log().tail().borrow();
        self.wait("all is replayed", |world| {
            let quiet = |link: &LinkStatus| {
                link.cursor >= upto && matches!(link.phase, Phase::InSync | Phase::Degraded)
            };
            world.agent().links().iter().all(|link| quiet(link) || link.phase == Phase::Paused)
        })
        .await
    }

    /// Waits until the link at `place` has replayed what is in the log.
    pub async fn drain_one(&self, place: usize) -> Result<(), String> {
        self.wait("everything is logged", Self::all_logged).await?;
        let upto = *self.agent().log().tail().borrow();
        self.until(place, |link| link.cursor >= upto && link.phase == Phase::InSync).await
    }

    /// Says how the replica at `place` differs from the master, if it does.
    pub fn equal(&self, place: usize) -> Result<(), String> {
        let replica = &self.replicas[place];
        let differences = self.accounts.iter();
        let mut differences =
            differences.filter_map(|account| difference(&self.master, &replica.mail, account));
        differences
            .next()
            .map_or(Ok(()), |difference| Err(format!("{}: {difference}", replica.name)))
    }

    /// Drains; then everybody must be equal, and nothing set aside.
    pub async fn settle(&self) -> Result<(), String> {
        self.drain().await?;
        for place in 0..self.replicas.len() {
            let link = self.link(place);
            if !link.aside.is_empty() {
                return Err(format!("something is set aside: {link:#?}"));
            }
            self.equal(place)?;
        }
        Ok(())
    }

    /// Waits until `is` holds for the link at `place`.
    pub async fn until(
        &self,
        place: usize,
        is: impl Fn(&LinkStatus) -> bool,
    ) -> Result<(), String> {
        self.wait("the link gets there", |world| is(&world.link(place))).await
    }

    /// Waits until `is` holds.
    pub async fn wait(&self, what: &str, is: impl Fn(&Self) -> bool) -> Result<(), String> {
        let wait = async {
            while !is(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let done = tokio::time::timeout(PATIENCE, wait).await;
        done.map_err(|_| format!("waited an hour until {what}: {:#?}", self.agent().links()))
    }
}

/// Where a message is, and which it is.
pub type Seen = (MailboxId, Uid, Guid);

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an account has on a node.
pub(crate) fn look(master: &InMemory, account: &Account) -> (Listing, BTreeSet<Seen>) {
    let listing = master.store.peek(account);
    let mut seen = BTreeSet::new();
    for mailbox in &listing.state.mailboxes {
        let records = master.store.peek_records(account, mailbox.id);
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
