//! What both daemons do alike: open the node's state, hold its role, start anew in another, end.

use std::{sync::Arc, time::Duration};

use mailtwin_disk::lock::DirLock;
use mailtwin_logic::chain::Chain;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    keyring::KeyRing,
    node::{Node, NodeFile},
    peers::Peers,
    pins::Pins,
    signals::Signal,
    systemd::{self, Pulse},
    tasks::Tasks,
};

/// How long tasks may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// How often `systemctl status` is told what the daemon does.
const TOLD_EVERY: Duration = Duration::from_secs(2);

/// What stays over a change of role.
#[derive(Debug)]
pub struct Lasting {
    /// As last read.
    pub config: Config,
    /// The node's role and epoch, and what it does next.
    pub file: Arc<NodeFile>,
    /// The node's identity, also while it is rotated.
    pub key: Arc<KeyRing>,
    /// The other nodes.
    pub peers: Arc<Peers>,
    /// Their keys.
    pub pins: Arc<Pins>,
}

/// A daemon that has other work in each role of its node.
pub trait Daemon {
    /// Its lock under `node.state_dir`: two of one kind never share a node's state.
    const LOCK: &'static str;
    /// What it holds while it has a role.
    type Working: Sync;

    /// What it has of its node.
    fn lasting(&self) -> &Lasting;
    /// The same, to read the configuration again.
    fn lasting_mut(&mut self) -> &mut Lasting;
    /// Begins the work of `node`'s role. It ends with `tasks`; `fatal` is cancelled by whoever finds
    /// that what must be durable cannot be made so, and has logged what that is.
    fn start(
        &self,
        node: &Node,
        tasks: &Tasks,
        fatal: &CancellationToken,
    ) -> impl Future<Output = anyhow::Result<Self::Working>> + Send;
    /// Whether what was begun for `before` is not what `now` asks for.
    fn has_moved(before: &Node, now: &Node) -> bool;
    /// Logs what it is doing.
    fn report(&self, working: &Self::Working);
    /// The same in one short line, the worst first, for `systemctl status`.
    fn summary(&self, working: &Self::Working) -> String;
    /// Takes over what else may change while it runs; [`Lasting`] has the new configuration already.
    fn reloaded(&self) {}
}

/// Why a role's work ended.
enum End {
    Stop,
    Role,
}

/// Runs the daemon that `new` makes until `stop`, a signal to stop, or something fatal.
pub async fn run<D: Daemon>(
    config: Config,
    mut signals: mpsc::Receiver<Signal>,
    stop: CancellationToken,
    new: impl FnOnce(Lasting) -> D,
) -> anyhow::Result<()> {
    let state_dir = &config.node.state_dir;
    let file = Arc::new(NodeFile::open(state_dir, &config.node.name)?);
    let _lock = DirLock::take(&state_dir.join(D::LOCK))?;
    let watchers = Tasks::new(stop.child_token());
    file.spawn_watch(&watchers, watchers.stop().clone());
    let pulse = Pulse::default();
    systemd::spawn_alive(&watchers, watchers.stop().clone(), pulse.clone());
    let key = Arc::new(KeyRing::open(state_dir)?);
    let peers = Arc::new(Peers::open(state_dir, &config.node.name, &config.peers)?);
    let pins = Arc::new(Pins::open(state_dir, key.now().public(), Arc::clone(&peers))?);
    let mut daemon = new(Lasting { config, file, key, peers, pins });
    let ended = loop {
        match hold_role(&mut daemon, &mut signals, &stop, &pulse).await {
            Ok(End::Role) => tracing::info!("this node's role has changed: starting anew in it"),
            Ok(End::Stop) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    systemd::stopping();
    end(&watchers).await;
    ended?;
    tracing::info!("stopped");
    Ok(())
}

/// Does what the node's role asks for until that changes or the daemon ends.
async fn hold_role<D: Daemon>(
    daemon: &mut D,
    signals: &mut mpsc::Receiver<Signal>,
    stop: &CancellationToken,
    pulse: &Pulse,
) -> anyhow::Result<End> {
    pulse.begin();
    let (node, mut nodes) = (daemon.lasting().file.now(), daemon.lasting().file.subscribe());
    let (tasks, fatal) = (Tasks::new(stop.child_token()), CancellationToken::new());
    let started = daemon.start(&node, &tasks, &fatal).await;
    let mut ticks = tokio::time::interval(TOLD_EVERY);
    let ended = match &started {
        Ok(working) => loop {
            tokio::select! {
                () = stop.cancelled() => break End::Stop,
                () = fatal.cancelled() => break End::Stop,
                Ok(_) = nodes.wait_for(|now| D::has_moved(&node, now)) => break End::Role,
                _ = ticks.tick(), if systemd::listens() => {
                    systemd::status(&daemon.summary(working));
                    pulse.beat();
                }
                Some(signal) = signals.recv() => match signal {
                    Signal::Stop => break End::Stop,
                    Signal::Reload => reload(daemon),
                    Signal::Report => {
                        daemon.report(working);
                        tracing::info!(tasks = ?tasks.running(), "running");
                    }
                },
            }
        },
        Err(_) => End::Stop,
    };
    pulse.begin();
    // What it holds has to go before the tasks that wait for it end.
    let started = started.map(drop);
    end(&tasks).await;
    if let Err(error) = started {
        // What it could not have may belong to the role that the node has by now.
        let now = daemon.lasting().file.look();
        if now.is_ok_and(|now| D::has_moved(&node, &now)) {
            tracing::info!(%error, "not begun, for the node's role has changed meanwhile");
            return Ok(End::Role);
        }
        return Err(error);
    }
    anyhow::ensure!(!fatal.is_cancelled(), "the disk under it failed; see the log above");
    Ok(ended)
}

async fn end(tasks: &Tasks) {
    if let Err(hanging) = tasks.shutdown(GRACE).await {
        tracing::warn!(code = "ending-anyway", %hanging, "ending anyway");
    }
}

/// Takes over what can change while the daemon runs: addresses and keys of known peers.
fn reload<D: Daemon>(daemon: &mut D) {
    let lasting = daemon.lasting_mut();
    match Config::load(&lasting.config.file) {
        Ok(new) => {
            let changed = lasting.config.changed_keys(&new);
            tracing::info!(
                ?changed,
                "configuration read again; addresses and keys of peers count at once, the rest at the next start"
            );
            lasting.peers.reload(&new.peers);
            lasting.config = new;
            daemon.reloaded();
        }
        Err(error) => {
            tracing::error!(code = "config-not-taken", error = %Chain(&error), "configuration not taken over: the old one stays");
        }
    }
}
