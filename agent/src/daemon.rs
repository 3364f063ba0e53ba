//! Puts the agent together, front to back, and takes it apart again.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use mailtwin_disk::lock::DirLock;
use mailtwin_host::{
    admin::{self, Request},
    clock::{Clock, SystemClock},
    config::{Config, Peer},
    keys::NodeKey,
    metrics as http,
    node::{Node, Role},
    pins::Pins,
    retry::Retry,
    signals::Signal,
    state, systemd,
    tasks::Tasks,
    workers::Workers,
};
use mailtwin_logic::chain::Chain;
use mailtwin_store::MailStore;
use prometheus::{IntCounter, Registry};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Agent, AgentParts, Replica,
    admin::{Answers, Working},
    link::{Dial, TlsDialer},
    log::{self, Health, Log},
    metrics::Metrics,
    source::{self, Source},
};

/// Threads for the store's blocking calls.
const WORKERS: usize = 8;
/// How long tasks may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// How often what the log counts is published.
const PUBLISH_EVERY: Duration = Duration::from_secs(5);

/// Runs until `stop`, a signal to stop, or a log that cannot be made durable.
pub async fn run(
    config: Config,
    mut signals: mpsc::Receiver<Signal>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let state_dir = &config.node.state_dir;
    let node = Node::load_as(state_dir, &config.node.name)?;
    let _lock = DirLock::take(&state_dir.join("agent"))?;
    let clock = SystemClock::shared();
    let tasks = Tasks::new(stop.clone());
    let registry = Registry::new();
    http::build_info(&registry, "agent")?;
    let metrics = Metrics::register(&registry)?;
    publish_role(&metrics, &node);
    let key = Arc::new(NodeKey::load(state_dir)?);
    let pins = Arc::new(Pins::open(state_dir, key.public(), &config.peers)?);
    let dialers = dialers(&config.peers, &key, &pins);
    let fatal = CancellationToken::new();
    let working = if node.role == Role::Master {
        let parts = Start {
            config: &config,
            node: &node,
            dialers: &dialers,
            metrics,
            tasks: &tasks,
            clock,
        };
        Some(start(parts, &fatal, &stop)?)
    } else {
        tracing::info!("this node is a replica: the agent idles until that changes");
        None
    };
    if let Some(at) = config.metrics.agent {
        http::serve(at, registry, &tasks, stop.child_token())
            .await
            .with_context(|| format!("serve metrics on {at}; metrics.agent"))?;
    }
    let answers = Answers {
        node: node.name.clone(),
        role: node.role,
        epoch: node.epoch,
        key: key.public(),
        pins: Arc::clone(&pins),
        working,
    };
    let answers = Arc::new(answers);
    serve_admin(&config.node.run_dir, Arc::clone(&answers), &tasks, stop.child_token())?;
    tracing::info!(key = %key.public(), replicas = dialers.len(), "ready");
    systemd::ready();
    systemd::spawn_alive(&tasks, stop.child_token());

    let mut config = config;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = fatal.cancelled() => break,
            Some(signal) = signals.recv() => match signal {
                Signal::Stop => break,
                Signal::Reload => config = reload(config, &pins, &dialers),
                Signal::Report => {
                    answers.report();
                    tracing::info!(tasks = ?tasks.running(), "running");
                }
            },
        }
    }
    systemd::stopping();
    drop(answers);
    if let Err(hanging) = tasks.shutdown(GRACE).await {
        tracing::warn!(%hanging, "ending anyway");
    }
    anyhow::ensure!(!fatal.is_cancelled(), "the sync log cannot be made durable; see above");
    tracing::info!("stopped");
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

/// What the working half of an agent is made of.
struct Start<'a> {
    config: &'a Config,
    node: &'a Node,
    dialers: &'a BTreeMap<String, Arc<TlsDialer>>,
    metrics: Metrics,
    tasks: &'a Tasks,
    clock: Arc<dyn Clock>,
}

fn start(
    parts: Start<'_>,
    fatal: &CancellationToken,
    stop: &CancellationToken,
) -> anyhow::Result<Working> {
    let Start { config, node, dialers, metrics, tasks, clock } = parts;
    let state_dir = &config.node.state_dir;
    let index = state::open_index(state_dir)?;
    let store = crate::store::open(config, index, Arc::clone(&clock))?;
    let options = log::Options { bound_octets: config.log.bound, ..log::Options::default() };
    let (log, recovery) = Log::open(&state_dir.join("log"), options, Arc::clone(&clock))?;
    for damage in &recovery.damaged {
        tracing::error!(
            ?damage,
            "a part of the sync log is damaged: everything is compared instead"
        );
    }
    let log = Arc::new(log);
    let agent_parts = AgentParts {
        node: node.name.clone(),
        epoch: node.epoch,
        state_dir: state_dir.clone(),
        store: Arc::clone(&store) as Arc<dyn MailStore>,
        workers: Workers::start("store", WORKERS)?,
        log: Arc::clone(&log),
        tasks: tasks.clone(),
        clock: Arc::clone(&clock),
        metrics: metrics.clone(),
        retry: Retry::new(),
    };
    let replicas = dialers.iter().map(|(name, dialer)| {
        let dialer = Arc::clone(dialer) as Arc<dyn Dial>;
        Replica { name: name.clone(), dialer }
    });
    let agent = Agent::start(agent_parts, replicas.collect(), stop)?;
    let options = source::Options { rescan: config.scan.interval, ..source::Options::default() };
    let source = Source::start(Arc::clone(&store), Arc::clone(&log), options, clock)?;
    let counters = Counters { log, source: source.counts(), metrics };
    tasks.spawn("counters", counters.publish(fatal.clone(), stop.child_token()));
    Ok(Working { agent, store, _source: source })
}

/// What counts by itself, and where that is published.
struct Counters {
    log: Arc<Log>,
    source: Arc<source::Counts>,
    metrics: Metrics,
}

impl Counters {
    /// Publishes, and ends the process when the log cannot go on.
    async fn publish(self, fatal: CancellationToken, stop: CancellationToken) {
        let mut health = self.log.health();
        let mut ticks = tokio::time::interval(PUBLISH_EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
                changed = health.changed() => if changed.is_err() { return },
            }
            let (extent, counts) = (self.log.extent(), self.log.counts());
            let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            self.metrics.log_head.set(number(extent.head.0));
            self.metrics.log_bytes.set(number(extent.octets));
            catch_up(&self.metrics.log_append_errors, counts.append_errors);
            catch_up(&self.metrics.watch_overflows, self.source.overflows());
            if let Health::Stopped(why) = &*health.borrow_and_update() {
                tracing::error!(
                    why,
                    "the sync log cannot be made durable: ending, to start anew with a scan"
                );
                fatal.cancel();
            }
        }
    }
}

/// Raises a counter to what was counted elsewhere.
fn catch_up(counter: &IntCounter, counted: u64) {
    counter.inc_by(counted.saturating_sub(counter.get()));
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

/// Takes over what can change while the daemon runs: addresses and keys of known peers.
fn reload(config: Config, pins: &Pins, dialers: &BTreeMap<String, Arc<TlsDialer>>) -> Config {
    match Config::load(&config.file) {
        Ok(new) => {
            let changed = config.changed_keys(&new);
            tracing::info!(
                ?changed,
                "configuration read again; addresses and keys of peers count at once, the rest at the next start"
            );
            pins.reload(&new.peers);
            for peer in &new.peers {
                if let Some(dialer) = dialers.get(&peer.name) {
                    dialer.readdress(&peer.address);
                }
            }
            new
        }
        Err(error) => {
            tracing::error!(error = %Chain(&error), "configuration not taken over: the old one stays");
            config
        }
    }
}
