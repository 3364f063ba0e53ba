//! Puts the replica daemon together, front to back, and takes it apart again.

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use anyhow::Context as _;
use mailtwin_host::{
    accept, admin,
    clock::{Clock, SystemClock},
    config::Config,
    daemon::{self, Lasting},
    gate::Gate,
    graveyard, metrics as http,
    node::{Node, Role},
    peers::Peers,
    signals::Signal,
    systemd,
    tasks::Tasks,
    web,
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

/// Runs until `stop`, a signal to stop, or a disk that does not sync. It listens on `opened`, or else
/// where the configuration says.
pub async fn run(
    config: Config,
    signals: mpsc::Receiver<Signal>,
    stop: CancellationToken,
    opened: Option<TcpListener>,
) -> anyhow::Result<()> {
    if let Some(opened) = &opened {
        let (listens, listen) = (opened.local_addr()?, config.replica.listen);
        if !is_at(listens, listen) {
            tracing::warn!(
                code = "listen-differs",
                %listens,
                %listen,
                "replica.listen does not count: the socket unit listens elsewhere"
            );
        }
    }
    daemon::run(config, signals, stop, |lasting| Daemon { lasting, opened }).await
}

/// Whether a socket is where it is to be. Both unspecified addresses are every address.
fn is_at(listens: SocketAddr, listen: SocketAddr) -> bool {
    let are_all = listens.ip().is_unspecified() && listen.ip().is_unspecified();
    listens == listen || (are_all && listens.port() == listen.port())
}

/// What stays over a change of role.
struct Daemon {
    lasting: Lasting,
    /// What systemd holds open for it.
    opened: Option<TcpListener>,
}

impl daemon::Daemon for Daemon {
    const LOCK: &'static str = "replica";
    type Working = Arc<Answers>;

    fn lasting(&self) -> &Lasting {
        &self.lasting
    }

    fn lasting_mut(&mut self) -> &mut Lasting {
        &mut self.lasting
    }

    fn has_moved(before: &Node, now: &Node) -> bool {
        now.role != before.role
    }

    fn report(&self, answers: &Arc<Answers>) {
        tracing::info!(status = ?answers.status(), "replica");
    }

    fn summary(&self, answers: &Arc<Answers>) -> String {
        answers.summary()
    }

    async fn start(
        &self,
        node: &Node,
        tasks: &Tasks,
        fatal: &CancellationToken,
    ) -> anyhow::Result<Arc<Answers>> {
        let Lasting { config, file, .. } = &self.lasting;
        let stop = tasks.stop();
        let clock = SystemClock::shared();
        let registry = Registry::new();
        http::build_info(&registry, "replica")?;
        let metrics = Metrics::register(&registry)?;
        metrics.publish_role(node.role);
        metrics.epoch.set(i64::try_from(node.epoch.0).unwrap_or(i64::MAX));
        let fence = Fence::new(Arc::clone(file));
        let work = if node.role == Role::Master {
            tracing::info!("this node is the master: agents are refused until that changes");
            None
        } else {
            Some(work(config, &clock, &metrics, fatal)?)
        };
        if let Some(work) = &work {
            handover::mark(work, file, &config.node.state_dir).await?;
            let (store, workers) = (Arc::clone(&work.store), work.workers.clone());
            let graveyard = graveyard::keep(workers, stop.child_token(), move || store.bury());
            tasks.spawn("graveyard", graveyard);
        }
        let heard = Heard::default();
        let answers = self.serve(Serving { fence, work, metrics, heard, registry }, tasks).await?;
        tracing::info!(listen = %answers.listen, role = %node.role, "ready");
        systemd::ready();
        Ok(answers)
    }
}

impl Daemon {
    /// Begins to listen: to agents, to scrapers, to `replctl`.
    async fn serve(
        &self,
        Serving { fence, work, metrics, heard, registry }: Serving,
        tasks: &Tasks,
    ) -> anyhow::Result<Arc<Answers>> {
        let Lasting { config, key, peers, pins, .. } = &self.lasting;
        let stop = tasks.stop();
        let (ours, state_dir) = (work.clone(), config.node.state_dir.clone());
        let context = Context {
            node: config.node.name.clone(),
            work,
            fence: fence.clone(),
            readiness: readiness(config, Arc::clone(peers)),
            metrics,
            heard: heard.clone(),
            tasks: tasks.clone(),
            clock: SystemClock::shared(),
        };
        let doorkeeper = Doorkeeper { key: Arc::clone(key), pins: Arc::clone(pins) };
        let listener = self.listener().await?;
        let listen = listener::listen(listener, doorkeeper, context, tasks, stop.child_token())?;
        let (node, clock) = (config.node.name.clone(), SystemClock::shared());
        let (key, peers, pins) = (Arc::clone(key), Arc::clone(peers), Arc::clone(pins));
        let answers = Arc::new(Answers {
            node,
            key,
            peers,
            pins,
            fence,
            heard,
            listen,
            clock,
            work: ours,
            state_dir,
        });
        if let Some(at) = config.metrics.replica {
            let site = Arc::clone(&answers) as Arc<dyn web::Site>;
            web::serve(at, registry, site, tasks, stop.child_token())
                .await
                .with_context(|| format!("serve metrics on {at}; metrics.replica"))?;
        }
        let socket = admin::replica_socket(&config.node.run_dir);
        admin::serve(&socket, Arc::clone(&answers), tasks, stop.child_token())
            .with_context(|| format!("serve the admin socket {}", socket.display()))?;
        Ok(answers)
    }

    /// Where agents connect to.
    async fn listener(&self) -> anyhow::Result<tokio::net::TcpListener> {
        if let Some(opened) = &self.opened {
            return accept::share(opened).context("listen on the socket from systemd");
        }
        let Config { replica, file, .. } = &self.lasting.config;
        let at = replica.listen;
        let bound = accept::bind(at).await;
        bound.with_context(|| format!("listen on {at}; replica.listen in {}", file.display()))
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
fn readiness(config: &Config, peers: Arc<Peers>) -> Readiness {
    let (has_gate, run_dir) = (Gate::new(config).is_there(), config.node.run_dir.clone());
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
        match peers.all() {
            Ok(peers) if peers.is_empty() => {
                blockers.push("no peer is configured: it would replay to nobody".into());
            }
            Ok(_) => {}
            Err(error) => blockers.push(Chain(&error).to_string()),
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
    let index = mailtwin_host::state::open_index(&config.node.state_dir, Role::Replica, fatal)?;
    let store = crate::store::open(config, index, Arc::clone(clock))?;
    let committer = Committer::start(Arc::clone(&store), metrics.clone(), fatal.clone())?;
    Ok(Work { store, workers: Workers::start("store", WORKERS)?, committer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_are_where_they_are_to_be() {
        let cases = [
            ("[::]:4710", "[::]:4710", true),
            ("[::]:4710", "0.0.0.0:4710", true),
            ("[::]:4710", "[::]:4711", false),
            ("[::]:4710", "192.0.2.2:4710", false),
            ("192.0.2.2:4710", "192.0.2.2:4710", true),
        ];
        for (listens, listen, want) in cases {
            let got = is_at(listens.parse().unwrap(), listen.parse().unwrap());
            assert_eq!(got, want, "{listens} {listen}");
        }
    }
}
