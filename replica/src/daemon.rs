//! Puts the replica daemon together, front to back, and takes it apart again.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use mailtwin_disk::lock::DirLock;
use mailtwin_host::{
    admin::{self, Request},
    clock::{Clock, SystemClock},
    config::Config,
    keys::NodeKey,
    metrics as http,
    node::Node,
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
    heard::Heard,
    listener::{self, Doorkeeper},
    metrics::Metrics,
    session::{Context, Work},
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
    let node = Node::load_as(state, &config.node.name)?;
    let _lock = DirLock::take(&state.join("replica"))?;
    let clock = SystemClock::shared();
    let tasks = Tasks::new(stop.clone());
    let fatal = CancellationToken::new();
    let registry = Registry::new();
    http::build_info(&registry, "replica")?;
    let metrics = Metrics::register(&registry)?;
    metrics.publish_role(node.role);
    metrics.epoch.set(i64::try_from(node.epoch.0).unwrap_or(i64::MAX));

    let key = Arc::new(NodeKey::load(state)?);
    let pins = Arc::new(Pins::open(state, key.public(), &config.peers)?);
    let fence = Arc::new(Fence::open(state)?);
    let work = if fence.is_master() {
        tracing::info!("this node is the master: agents are refused until that changes");
        None
    } else {
        Some(work(&config, &clock, &metrics, &fatal)?)
    };
    if let Some(work) = &work {
        tasks.spawn("graveyard", bury(work.clone(), stop.child_token()));
    }
    let parts = Parts { config: &config, key, pins: Arc::clone(&pins), fence, work, metrics };
    let (answers, listen) = serve(parts, registry, &tasks, &stop).await?;
    tracing::info!(%listen, "ready");
    systemd::ready();
    systemd::spawn_alive(&tasks, stop.child_token());

    let mut config = config;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = fatal.cancelled() => break,
            Some(signal) = signals.recv() => match signal {
                Signal::Stop => break,
                Signal::Reload => config = reload(config, &pins),
                Signal::Report => {
                    tracing::info!(status = ?answers.status(), tasks = ?tasks.running(), "running");
                }
            },
        }
    }
    systemd::stopping();
    if let Err(hanging) = tasks.shutdown(GRACE).await {
        tracing::warn!(%hanging, "ending anyway");
    }
    anyhow::ensure!(!fatal.is_cancelled(), "the disk failed to sync; see the log");
    tracing::info!("stopped");
    Ok(())
}

/// What the daemon serves with.
struct Parts<'a> {
    config: &'a Config,
    key: Arc<NodeKey>,
    pins: Arc<Pins>,
    fence: Arc<Fence>,
    work: Option<Work>,
    metrics: Metrics,
}

/// Begins to listen: to agents, to scrapers, to `replctl`.
async fn serve(
    parts: Parts<'_>,
    registry: Registry,
    tasks: &Tasks,
    stop: &CancellationToken,
) -> anyhow::Result<(Arc<Answers>, SocketAddr)> {
    let Parts { config, key, pins, fence, work, metrics } = parts;
    let (heard, store) = (Heard::default(), work.as_ref().map(|work| Arc::clone(&work.store)));
    let context = Context {
        node: config.node.name.clone(),
        work,
        fence: Arc::clone(&fence),
        metrics,
        heard: heard.clone(),
        tasks: tasks.clone(),
    };
    let doorkeeper = Doorkeeper { key: Arc::clone(&key), pins: Arc::clone(&pins) };
    let at = config.replica.listen;
    let listen = listener::listen(at, doorkeeper, context, tasks, stop.child_token())
        .await
        .with_context(|| format!("listen on {at}; replica.listen in {}", config.file.display()))?;
    if let Some(at) = config.metrics.replica {
        http::serve(at, registry, tasks, stop.child_token())
            .await
            .with_context(|| format!("serve metrics on {at}; metrics.replica"))?;
    }
    let (node, clock) = (config.node.name.clone(), SystemClock::shared());
    let answers = Answers { node, key: key.public(), pins, fence, heard, listen, clock, store };
    let answers = Arc::new(answers);
    serve_admin(&config.node.run_dir, Arc::clone(&answers), tasks, stop.child_token())?;
    Ok((answers, listen))
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
        Box::pin(async move { answers.answer(&request) })
    });
    admin::serve(&socket, handler, tasks, stop)
        .with_context(|| format!("serve the admin socket {}", socket.display()))
}

/// Takes over what can change while the daemon runs: keys and peers.
fn reload(config: Config, pins: &Pins) -> Config {
    match Config::load(&config.file) {
        Ok(new) => {
            let changed = config.changed_keys(&new);
            tracing::info!(
                ?changed,
                "configuration read again; peers and their keys count at once, the rest at the next start"
            );
            pins.reload(&new.peers);
            new
        }
        Err(error) => {
            tracing::error!(error = %Chain(&error), "configuration not taken over: the old one stays");
            config
        }
    }
}
