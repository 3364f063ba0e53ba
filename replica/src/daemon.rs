//! Puts the replica daemon together, front to back, and takes it apart again.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use mailtwin_disk::lock::DirLock;
use mailtwin_host::{
    admin::{self, Request},
    clock::{Clock, SystemClock},
    config::Config,
    gate::Gate,
    keys::NodeKey,
    metrics as http,
    node::{Node, NodeFile, Role},
    pins::Pins,
    signals::Signal,
    systemd,
    tasks::Tasks,
    workers::Workers,
};
use mailtwin_logic::chain::Chain;
use prometheus::Registry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Answers,
    commit::Committer,
    fence::Fence,
    handover,
    heard::Heard,
    listener::{self, Doorkeeper},
    metrics::Metrics,
    session::{Context, Readiness, Work},
};

/// Threads for the store's blocking calls.
const WORKERS: usize = 8;
/// How long tasks may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// How often the graveyard is gone through.
const BURY_EVERY: Duration = Duration::from_hours(1);

/// Runs until `stop`, a signal to stop, or a disk that does not sync.
pub async fn run(
    config: Config,
    mut signals: mpsc::Receiver<Signal>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let state = &config.node.state_dir;
    let file = Arc::new(NodeFile::open(state, &config.node.name)?);
    let _lock = DirLock::take(&state.join("replica"))?;
    let lasting = Tasks::new(stop.child_token());
    file.spawn_watch(&lasting, lasting.stop().clone());
    systemd::spawn_alive(&lasting, lasting.stop().clone());
    let key = Arc::new(NodeKey::load(state)?);
    let pins = Arc::new(Pins::open(state, key.public(), &config.peers)?);
    let mut daemon = Daemon { config, file, key, pins };
    let ended = loop {
        match daemon.hold_role(&mut signals, &stop).await {
            Ok(End::Role) => tracing::info!("this node's role has changed: starting anew in it"),
            Ok(End::Stop) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    systemd::stopping();
    if let Err(hanging) = lasting.shutdown(GRACE).await {
        tracing::warn!(%hanging, "ending anyway");
    }
    ended?;
    tracing::info!("stopped");
    Ok(())
}

/// Why a role's work ended.
enum End {
    Stop,
    Role,
}

/// What stays over a change of role.
struct Daemon {
    config: Config,
    file: Arc<NodeFile>,
    key: Arc<NodeKey>,
    pins: Arc<Pins>,
}

impl Daemon {
    /// Does what the node's role asks for until that changes or the daemon ends.
    async fn hold_role(
        &mut self,
        signals: &mut mpsc::Receiver<Signal>,
        stop: &CancellationToken,
    ) -> anyhow::Result<End> {
        let (node, mut nodes) = (self.file.now(), self.file.subscribe());
        let tasks = Tasks::new(stop.child_token());
        let fatal = CancellationToken::new();
        let started = self.start(&node, &tasks, &fatal).await;
        let end = match &started {
            Ok(answers) => loop {
                tokio::select! {
                    () = stop.cancelled() => break End::Stop,
                    () = fatal.cancelled() => break End::Stop,
                    Ok(_) = nodes.wait_for(|now| now.role != node.role) => break End::Role,
                    Some(signal) = signals.recv() => match signal {
                        Signal::Stop => break End::Stop,
                        Signal::Reload => self.reload(),
                        Signal::Report => {
                            tracing::info!(status = ?answers.status(), tasks = ?tasks.running(), "running");
                        }
                    },
                }
            },
            Err(_) => End::Stop,
        };
        if let Err(hanging) = tasks.shutdown(GRACE).await {
            tracing::warn!(%hanging, "ending anyway");
        }
        started?;
        anyhow::ensure!(!fatal.is_cancelled(), "the disk failed to sync; see the log");
        Ok(end)
    }

    async fn start(
        &self,
        node: &Node,
        tasks: &Tasks,
        fatal: &CancellationToken,
    ) -> anyhow::Result<Arc<Answers>> {
        let (config, stop) = (&self.config, tasks.stop());
        let clock = SystemClock::shared();
        let registry = Registry::new();
        http::build_info(&registry, "replica")?;
        let metrics = Metrics::register(&registry)?;
        metrics.publish_role(node.role);
        metrics.epoch.set(i64::try_from(node.epoch.0).unwrap_or(i64::MAX));
        let fence = Fence::new(Arc::clone(&self.file));
        let work = if node.role == Role::Master {
            tracing::info!("this node is the master: agents are refused until that changes");
            None
        } else {
            Some(work(config, &clock, &metrics, fatal)?)
        };
        if let Some(work) = &work {
            handover::mark(work, &self.file, &config.node.state_dir).await?;
            tasks.spawn("graveyard", bury(work.clone(), stop.child_token()));
        }
        let heard = Heard::default();
        let answers = self.serve(Serving { fence, work, metrics, heard, registry }, tasks).await?;
        tracing::info!(listen = %answers.listen, role = %node.role, "ready");
        systemd::ready();
        Ok(answers)
    }

    /// Begins to listen: to agents, to scrapers, to `replctl`.
    async fn serve(
        &self,
        Serving { fence, work, metrics, heard, registry }: Serving,
        tasks: &Tasks,
    ) -> anyhow::Result<Arc<Answers>> {
        let (config, stop) = (&self.config, tasks.stop());
        let (ours, state_dir) = (work.clone(), config.node.state_dir.clone());
        let context = Context {
            node: config.node.name.clone(),
            work,
            fence: fence.clone(),
            readiness: readiness(config),
            metrics,
            heard: heard.clone(),
            tasks: tasks.clone(),
        };
        let doorkeeper = Doorkeeper { key: Arc::clone(&self.key), pins: Arc::clone(&self.pins) };
        let at = config.replica.listen;
        let listen = listener::listen(at, doorkeeper, context, tasks, stop.child_token())
            .await
            .with_context(|| {
                format!("listen on {at}; replica.listen in {}", config.file.display())
            })?;
        if let Some(at) = config.metrics.replica {
            http::serve(at, registry, tasks, stop.child_token())
                .await
                .with_context(|| format!("serve metrics on {at}; metrics.replica"))?;
        }
        let (node, clock) = (config.node.name.clone(), SystemClock::shared());
        let (key, pins) = (self.key.public(), Arc::clone(&self.pins));
        let answers = Arc::new(Answers {
            node,
            key,
            pins,
            fence,
            heard,
            listen,
            clock,
            work: ours,
            state_dir,
        });
        serve_admin(&config.node.run_dir, Arc::clone(&answers), tasks, stop.child_token())?;
        Ok(answers)
    }

    /// Takes over what can change while the daemon runs: keys and peers.
    fn reload(&mut self) {
        match Config::load(&self.config.file) {
            Ok(new) => {
                let changed = self.config.changed_keys(&new);
                tracing::info!(
                    ?changed,
                    "configuration read again; peers and their keys count at once, the rest at the next start"
                );
                self.pins.reload(&new.peers);
                self.config = new;
            }
            Err(error) => {
                tracing::error!(error = %Chain(&error), "configuration not taken over: the old one stays");
            }
        }
    }
}

/// What the daemon serves with.
struct Serving {
    fence: Fence,
    work: Option<Work>,
    metrics: Metrics,
    heard: Heard,
    registry: Registry,
}

/// What would keep this node from being a good master, as far as its configuration tells.
fn readiness(config: &Config) -> Readiness {
    let (has_gate, run_dir) = (Gate::new(config).is_there(), config.node.run_dir.clone());
    let has_peers = !config.peers.is_empty();
    Arc::new(move || {
        let mut blockers = Vec::new();
        if !admin::is_served(&admin::agent_socket(&run_dir)) {
            blockers.push(
                "mailtwin-agent does not run: start it, for it will replay from there".into(),
            );
        }
        if !has_gate {
            tracing::debug!("no gate is configured here: it will not be opened by a promotion");
        }
        if !has_peers {
            blockers.push("no [[peer]] is configured: it would replay to nobody".into());
        }
        blockers
    })
}

/// Opens the store and starts what writes to it.
fn work(
    config: &Config,
    clock: &Arc<dyn Clock>,
    metrics: &Metrics,
    fatal: &CancellationToken,
) -> anyhow::Result<Work> {
    let index = mailtwin_host::state::open_index(&config.node.state_dir)?;
    let store = crate::store::open(config, index, Arc::clone(clock))?;
    let committer = Committer::start(Arc::clone(&store), metrics.clone(), fatal.clone())?;
    Ok(Work { store, workers: Workers::start("store", WORKERS)?, committer })
}

/// Empties the graveyard of what has been there for long enough.
async fn bury(work: Work, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(BURY_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let store = Arc::clone(&work.store);
        match work.workers.run(move || store.bury()).await {
            Ok(Ok(0)) => {}
            Ok(Ok(messages)) => tracing::info!(messages, "removed from the graveyard"),
            Ok(Err(error)) => tracing::warn!(error = %Chain(&error), "cannot empty the graveyard"),
            Err(error) => tracing::error!(error = %Chain(&error), "cannot empty the graveyard"),
        }
    }
}

fn serve_admin(
    run_dir: &Path,
    answers: Arc<Answers>,
    tasks: &Tasks,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let socket = admin::replica_socket(run_dir);
    let handler: admin::Handler = Arc::new(move |request: Request| {
        let answers = Arc::clone(&answers);
        Box::pin(async move { answers.answer(request).await })
    });
    admin::serve(&socket, handler, tasks, stop)
        .with_context(|| format!("serve the admin socket {}", socket.display()))
}
