//! A master: its mail, its log's disk, its state, and its agent while that runs.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mailtwin_agent::{
    Agent, AgentParts,
    cursor::CursorFile,
    log::{Health, Log, Options},
    metrics::Metrics,
};
use mailtwin_host::{clock::Clock, retry::Retry, tasks::Tasks, workers::Workers};
use mailtwin_logic::{
    brake::Limits,
    entry::Target,
    ids::{Account, Epoch, LogSeq},
};
use mailtwin_store::conformance::{InMemory, replication::Dice};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::SimClock,
    disk::SimDisk,
    replica::{Dialer, Replica},
    world::{PATIENCE, Seen},
};

/// One master.
pub struct Master {
    /// Its node name.
    pub name: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// The last epoch that was forced.
    pub forced: Option<Epoch>,
    /// Its mail.
    pub mail: InMemory,
    /// Where its sync log lies.
    pub disk: SimDisk,
    /// What may vanish without an admin's leave.
    pub limits: Limits,
    /// What the log's entries stand for.
    pub promises: Arc<Mutex<Vec<Promise>>>,
    state_dir: PathBuf,
    running: Option<Running>,
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

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Master({}, epoch {})", self.name, self.epoch)
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

impl Master {
    /// One whose agent has not been started yet; its state goes below `root`.
    pub fn new(name: &str, epoch: Epoch, mail: InMemory, root: &Path) -> Self {
        Self {
            name: name.to_owned(),
            epoch,
            forced: None,
            mail,
            disk: SimDisk::default(),
            limits: Limits::default(),
            promises: Arc::default(),
            state_dir: root.join(name),
            running: None,
        }
    }

    /// Starts the agent on what an earlier one left.
    pub fn start(&mut self, replicas: &[Arc<Replica>], clock: &Arc<SimClock>) {
        let options = Options { segment_octets: 2048, ..Options::default() };
        let clock: Arc<dyn Clock> = clock.clone();
        let (tasks, writer) =
            (Tasks::new(CancellationToken::new()), Tasks::new(CancellationToken::new()));
        let (disk, log_dir) = (Arc::new(self.disk.clone()), self.state_dir.join("log"));
        let (log, _) = Log::open_simulated(disk, &log_dir, options, clock.clone(), &writer)
            .expect("open the simulated log");
        let promised = self.promises().iter().map(|promise| promise.seq).max();
        let kept = *log.tail().borrow();
        assert!(promised.is_none_or(|seq| seq <= kept), "I8: the log lost entries it had promised");
        for replica in replicas {
            let cursor = CursorFile::open(&self.state_dir, &replica.name, log.id());
            let cursor = cursor.expect("read a cursor of the simulation").seq();
            let to = &replica.name;
            assert!(cursor <= kept, "I8: {to} has passed {cursor}, and the log ends at {kept}");
        }
        let parts = AgentParts {
            forced: self.forced,
            node: self.name.clone(),
            epoch: self.epoch,
            state_dir: self.state_dir.clone(),
            store: self.mail.store.clone(),
            workers: Workers::inline(),
            log: Arc::new(log),
            tasks: tasks.clone(),
            clock,
            metrics: Metrics::register(&prometheus::Registry::new())
                .expect("register fresh metrics"),
            retry: Retry::new().steady(),
            brake: self.limits,
        };
        let dialers = replicas.iter().map(|replica| mailtwin_agent::Replica {
            name: replica.name.clone(),
            dialer: Arc::new(Dialer(Arc::clone(replica), self.epoch)),
        });
        let agent = Agent::start(parts, dialers.collect(), tasks.stop());
        let agent = agent.expect("start the simulated agent");
        self.running = Some(Running { agent, tasks, writer, unlogged: Arc::default() });
    }

    /// The agent, while it runs.
    pub fn agent(&self) -> Option<&Agent> {
        Some(&self.running.as_ref()?.agent)
    }

    /// Ends the agent as a SIGTERM does.
    pub async fn stop(&mut self) {
        let Some(Running { agent, tasks, writer, .. }) = self.running.take() else { return };
        tasks.shutdown(PATIENCE).await.expect("the agent ends in order");
        drop(agent);
        writer.shutdown(PATIENCE).await.expect("the log's writer ends in order");
    }

    /// Ends the agent as a power cut does.
    pub async fn kill(&mut self, dice: &mut Dice) {
        let Some(Running { agent, tasks, writer, .. }) = self.running.take() else { return };
        tasks.abandon().await;
        writer.abandon().await;
        drop(agent);
        self.disk.crash(dice);
    }

    /// Whether the log has given up, which ends a real agent.
    pub fn log_has_stopped(&self) -> bool {
        let health = |agent: &Agent| agent.log().health().borrow().clone();
        matches!(self.agent().map(health), Some(Health::Stopped(_)))
    }

    /// Logs `targets`, some time from now, unless the agent has gone by then.
    pub fn log_after(
        &self,
        delay: Duration,
        targets: Vec<Target>,
        (account, mail): (Account, BTreeSet<Seen>),
    ) {
        let Some(Running { agent, tasks, unlogged, .. }) = &self.running else { return };
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
        self.running.as_ref().is_some_and(unlogged)
    }

    /// What the log stands for.
    pub fn promises(&self) -> MutexGuard<'_, Vec<Promise>> {
        hold(&self.promises)
    }

    /// Forgets cursors and quarantine, as a lost disk does.
    pub fn lose_state(&self) {
        for part in ["cursors", "quarantine"] {
            // What has never been written cannot be lost.
            let _ = fs::remove_dir_all(self.state_dir.join(part));
        }
    }

    /// Damages what is remembered: each file is cut in half.
    pub fn damage_state(&self) {
        for part in ["cursors", "quarantine"] {
            let Ok(files) = fs::read_dir(self.state_dir.join(part)) else { continue };
            for path in files.flatten().map(|file| file.path()) {
                let file = fs::OpenOptions::new().write(true).open(&path);
                let file = file.expect("open a file of the simulation");
                let octets = file.metadata().map_or(0, |file| file.len());
                file.set_len(octets / 2).expect("cut a file of the simulation");
            }
        }
    }

    /// Copies log and state aside, as they are.
    pub fn back_state_up(&self) {
        let aside = self.state_dir.with_extension("backup");
        let _ = fs::remove_dir_all(&aside);
        copy_tree(&self.state_dir, &aside);
    }

    /// Puts back what was copied aside; the agent does not run.
    pub fn restore_state(&mut self) {
        let aside = self.state_dir.with_extension("backup");
        fs::remove_dir_all(&self.state_dir).expect("remove a directory of the simulation");
        copy_tree(&aside, &self.state_dir);
        self.promises().clear();
    }
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("make a directory of the simulation");
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_tree(&source, &target);
        } else {
            fs::copy(&source, &target).expect("copy a file of the simulation");
        }
    }
}
