//! Puts the agent together, front to back, and takes it apart again: once for each role it holds.

mod work;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use mailtwin_disk::lock::DirLock;
use mailtwin_host::{
    admin::{self, Request},
    clock::SystemClock,
    config::{Config, Peer},
    gate::Gate,
    keys::NodeKey,
    metrics as http,
    node::{ChangeError, Node, NodeFile, Role},
    pins::Pins,
    signals::Signal,
    systemd,
    tasks::Tasks,
};
use mailtwin_logic::{chain::Chain, ids::Epoch, link::Phase};
use prometheus::Registry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Agent,
    admin::{Answers, Working},
    failover::{self, Failover, Operations},
    link::{Dial, TlsDialer},
    metrics::Metrics,
};

/// How long tasks may take to end.
const GRACE: Duration = Duration::from_secs(10);

/// Runs until `stop`, a signal to stop, or a log that cannot be made durable.
pub async fn run(
    config: Config,
    mut signals: mpsc::Receiver<Signal>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let state_dir = &config.node.state_dir;
    let file = Arc::new(NodeFile::open(state_dir, &config.node.name)?);
    let _lock = DirLock::take(&state_dir.join("agent"))?;
    let lasting = Tasks::new(stop.child_token());
    file.spawn_watch(&lasting, lasting.stop().clone());
    systemd::spawn_alive(&lasting, lasting.stop().clone());
    let key = Arc::new(NodeKey::load(state_dir)?);
    let pins = Arc::new(Pins::open(state_dir, key.public(), &config.peers)?);
    let dialers = dialers(&config.peers, &key, &pins);
    let failover = Failover {
        state_dir: state_dir.clone(),
        file,
        gate: Gate::new(&config),
        operations: Operations::new(),
        clock: SystemClock::shared(),
    };
    let mut daemon = Daemon { config, key, pins, dialers, failover };
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
    key: Arc<NodeKey>,
    pins: Arc<Pins>,
    dialers: BTreeMap<String, Arc<TlsDialer>>,
    failover: Failover,
}

impl Daemon {
    /// Does what the node's role asks for until that changes or the daemon ends.
    async fn hold_role(
        &mut self,
        signals: &mut mpsc::Receiver<Signal>,
        stop: &CancellationToken,
    ) -> anyhow::Result<End> {
        let (node, mut nodes) = (self.failover.file.now(), self.failover.file.subscribe());
        let (tasks, fatal) = (Tasks::new(stop.child_token()), CancellationToken::new());
        let started = self.start(&node, &tasks, &fatal).await;
        let end = match &started {
            Ok(answers) => loop {
                // A master of a new epoch has another name to show to its replicas.
                let moved = |now: &Node| {
                    now.role != node.role || now.role == Role::Master && now.epoch != node.epoch
                };
                tokio::select! {
                    () = stop.cancelled() => break End::Stop,
                    () = fatal.cancelled() => break End::Stop,
                    Ok(_) = nodes.wait_for(moved) => break End::Role,
                    Some(signal) = signals.recv() => match signal {
                        Signal::Stop => break End::Stop,
                        Signal::Reload => self.reload(),
                        Signal::Report => {
                            answers.report();
                            tracing::info!(tasks = ?tasks.running(), "running");
                        }
                    },
                }
            },
            Err(_) => End::Stop,
        };
        // What it holds has to go before the tasks that wait for it end.
        let started = started.map(drop);
        if let Err(hanging) = tasks.shutdown(GRACE).await {
            tracing::warn!(%hanging, "ending anyway");
        }
        started?;
        anyhow::ensure!(!fatal.is_cancelled(), "the sync log cannot be made durable; see above");
        Ok(end)
    }

    async fn start(
        &self,
        node: &Node,
        tasks: &Tasks,
        fatal: &CancellationToken,
    ) -> anyhow::Result<Arc<Answers>> {
        let (config, stop) = (&self.config, tasks.stop());
        let registry = Registry::new();
        http::build_info(&registry, "agent")?;
        let metrics = Metrics::register(&registry)?;
        publish_role(&metrics, node);
        let working = if node.role == Role::Master {
            let (dialers, clock) = (&self.dialers, SystemClock::shared());
            let key = Arc::clone(&self.key);
            let parts = work::Start { config, node, dialers, metrics, tasks, clock, key };
            let working = work::start(parts, fatal, stop)?;
            self.watch_fences(&working, tasks);
            Some(working)
        } else {
            tracing::info!("this node is a replica: the agent idles until that changes");
            self.finish_handover(node, tasks);
            None
        };
        if let Some(at) = config.metrics.agent {
            http::serve(at, registry, tasks, stop.child_token())
                .await
                .with_context(|| format!("serve metrics on {at}; metrics.agent"))?;
        }
        let answers = Answers {
            node: node.clone(),
            key: self.key.public(),
            pins: Arc::clone(&self.pins),
            working,
            failover: self.failover.clone(),
            tasks: tasks.clone(),
            thaw: std::sync::Mutex::default(),
        };
        let answers = Arc::new(answers);
        serve_admin(&config.node.run_dir, Arc::clone(&answers), tasks, stop.child_token())?;
        failover::follow_role(&self.failover, node, tasks);
        tracing::info!(key = %self.key.public(), role = %node.role, epoch = %node.epoch, "ready");
        systemd::ready();
        Ok(answers)
    }

    /// A hand-over that this node recorded and the new master may not know of.
    fn finish_handover(&self, node: &Node, tasks: &Tasks) {
        let Some(handover) = node.handover.clone().filter(|handover| handover.untold) else {
            return;
        };
        let Some(dialer) = self.dialers.get(&handover.to) else {
            let to = &handover.to;
            tracing::error!(%to, "the new master is no [[peer]] any more: nobody can tell it; put it back and restart");
            return;
        };
        let dialer = Arc::clone(dialer) as Arc<dyn Dial>;
        let (failover, node, inner) = (self.failover.clone(), node.clone(), tasks.clone());
        tasks.spawn("hand over", failover::tell(failover, node, handover, dialer, inner));
    }

    /// A replica that knows a newer epoch makes this node one, too: its time as a master is over.
    fn watch_fences(&self, working: &Working, tasks: &Tasks) {
        let (agent, file) = (Arc::clone(&working.agent), Arc::clone(&self.failover.file));
        let (mut news, stop) = (agent.news(), tasks.stop().clone());
        tasks.spawn("fences", async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = news.changed() => {}
                }
                let Some(by) = newest_fence(&agent) else { continue };
                if let Err(error) = step_down(&file, by) {
                    tracing::error!(error = %Chain(&error), "cannot note that this node is no longer the master");
                }
            }
        });
    }

    /// Takes over what can change while the daemon runs: addresses and keys of known peers.
    fn reload(&mut self) {
        match Config::load(&self.config.file) {
            Ok(new) => {
                let changed = self.config.changed_keys(&new);
                tracing::info!(
                    ?changed,
                    "configuration read again; addresses and keys of peers count at once, the rest at the next start"
                );
                self.pins.reload(&new.peers);
                for peer in &new.peers {
                    if let Some(dialer) = self.dialers.get(&peer.name) {
                        dialer.readdress(&peer.address);
                    }
                }
                self.config = new;
            }
            Err(error) => {
                tracing::error!(error = %Chain(&error), "configuration not taken over: the old one stays");
            }
        }
    }
}

fn newest_fence(agent: &Agent) -> Option<Epoch> {
    let by = |phase| if let Phase::Fenced(by) = phase { Some(by) } else { None };
    agent.links().into_iter().filter_map(|link| by(link.phase)).max()
}

fn step_down(file: &NodeFile, by: Epoch) -> Result<(), ChangeError> {
    file.change::<ChangeError>(|node| {
        if by > node.epoch {
            tracing::error!(epoch = %by, "a newer epoch has begun: this node is no longer the master");
            node.role = Role::Replica;
            node.epoch = by;
            node.master = None;
        }
        Ok(())
    })?;
    Ok(())
}

fn publish_role(metrics: &Metrics, node: &Node) {
    for role in [Role::Master, Role::Replica] {
        let gauge = metrics.role.with_label_values(&[role.to_string()]);
        gauge.set((role == node.role).into());
    }
    metrics.epoch.set(i64::try_from(node.epoch.0).unwrap_or(i64::MAX));
}

fn dialers(
    peers: &[Peer],
    key: &Arc<NodeKey>,
    pins: &Arc<Pins>,
) -> BTreeMap<String, Arc<TlsDialer>> {
    let dialer =
        |peer: &Peer| TlsDialer::new(&peer.name, &peer.address, Arc::clone(key), Arc::clone(pins));
    peers.iter().map(|peer| (peer.name.clone(), Arc::new(dialer(peer)))).collect()
}

fn serve_admin(
    run_dir: &Path,
    answers: Arc<Answers>,
    tasks: &Tasks,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let socket = admin::agent_socket(run_dir);
    let handler: admin::Handler = Arc::new(move |request: Request| {
        let answers = Arc::clone(&answers);
        Box::pin(async move { answers.answer(request).await })
    });
    admin::serve(&socket, handler, tasks, stop)
        .with_context(|| format!("serve the admin socket {}", socket.display()))
}
