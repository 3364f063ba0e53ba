//! Puts the agent together, front to back, and takes it apart again: once for each role it holds.

mod work;

use std::sync::Arc;

use anyhow::Context as _;
use mailtwin_host::{
    admin,
    clock::SystemClock,
    config::Config,
    daemon::{self, Lasting},
    gate::Gate,
    incident::Teller,
    metrics as http,
    node::{Node, Role},
    records,
    signals::Signal,
    systemd,
    tasks::Tasks,
    web,
};
use mailtwin_logic::{chain::Chain, ids::Epoch, link::Phase};
use prometheus::Registry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Agent,
    admin::{Answers, Working},
    failover::{self, Failover, Operations},
    link::Dialers,
    metrics::Metrics,
};

/// Runs until `stop`, a signal to stop, or a log that cannot be made durable.
pub async fn run(
    config: Config,
    signals: mpsc::Receiver<Signal>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let new = |lasting: Lasting| {
        let (peers, key) = (Arc::clone(&lasting.peers), Arc::clone(&lasting.key));
        let dialers = Dialers { peers, key, pins: Arc::clone(&lasting.pins) };
        let failover = Failover {
            state_dir: lasting.config.node.state_dir.clone(),
            file: Arc::clone(&lasting.file),
            gate: Gate::new(&lasting.config),
            operations: Operations::new(),
            clock: SystemClock::shared(),
        };
        Daemon { lasting, dialers, failover }
    };
    daemon::run(config, signals, stop, new).await
}

/// What stays over a change of role.
struct Daemon {
    lasting: Lasting,
    dialers: Dialers,
    failover: Failover,
}

impl daemon::Daemon for Daemon {
    const LOCK: &'static str = "agent";
    type Working = Arc<Answers>;

    fn lasting(&self) -> &Lasting {
        &self.lasting
    }

    fn lasting_mut(&mut self) -> &mut Lasting {
        &mut self.lasting
    }

    /// A master of a new epoch has another name to show to its replicas.
    fn has_moved(before: &Node, now: &Node) -> bool {
        now.role != before.role || now.role == Role::Master && now.epoch != before.epoch
    }

    fn report(&self, answers: &Arc<Answers>) {
        answers.report();
    }

    fn summary(&self, answers: &Arc<Answers>) -> String {
        answers.summary()
    }

    fn reloaded(&self) {
        if let Err(error) = self.lasting.peers.settle() {
            tracing::error!(code = "peers-unsaved", error = %Chain(&error), "cannot note which removed peers left the configuration");
        }
    }

    async fn start(
        &self,
        node: &Node,
        tasks: &Tasks,
        fatal: &CancellationToken,
    ) -> anyhow::Result<Arc<Answers>> {
        let Lasting { config, peers, .. } = &self.lasting;
        peers.settle()?;
        let stop = tasks.stop();
        let registry = Registry::new();
        http::build_info(&registry, "agent")?;
        let metrics = Metrics::register(&registry)?;
        records::register(&registry, config.node.state_dir.clone())?;
        publish_role(&metrics, node);
        let working = if node.role == Role::Master {
            let (dialers, clock) = (&self.dialers, SystemClock::shared());
            let parts = work::Start { config, node, dialers, metrics, tasks, clock };
            let working = work::start(parts, fatal, stop)?;
            self.watch_fences(&working, tasks);
            Some(working)
        } else {
            tracing::info!("this node is a replica: the agent idles until that changes");
            self.finish_handover(node, tasks);
            None
        };
        let answers = Answers {
            node: node.clone(),
            working,
            dialers: self.dialers.clone(),
            changing: tokio::sync::Mutex::default(),
            failover: self.failover.clone(),
            tasks: tasks.clone(),
            thaw: std::sync::Mutex::default(),
        };
        let answers = Arc::new(answers);
        if let Some(at) = config.metrics.agent {
            let site = Arc::clone(&answers) as Arc<dyn web::Site>;
            web::serve(at, registry, site, tasks, stop.child_token())
                .await
                .with_context(|| format!("serve metrics on {at}; metrics.agent"))?;
        }
        let socket = admin::agent_socket(&config.node.run_dir);
        admin::serve(&socket, Arc::clone(&answers), tasks, stop.child_token())
            .with_context(|| format!("serve the admin socket {}", socket.display()))?;
        failover::follow_role(&self.failover, node, tasks);
        if let Some(command) = &config.incident {
            Teller::new(&node.name, &config.node.state_dir, command).spawn(tasks);
        }
        tracing::info!(key = %self.dialers.key.now().public(), role = %node.role, epoch = %node.epoch, "ready");
        systemd::ready();
        Ok(answers)
    }
}

impl Daemon {
    /// A hand-over that this node recorded and the new master may not know of.
    fn finish_handover(&self, node: &Node, tasks: &Tasks) {
        let Some(handover) = node.handover.clone().filter(|handover| handover.untold) else {
            return;
        };
        if let Err(error) = self.lasting.peers.get(&handover.to) {
            let to = &handover.to;
            tracing::error!(code = "handover-no-peer", %to, error = %Chain(&error), "the new master is no peer any more: nobody can tell it; put it back and restart");
            return;
        }
        let dialer = self.dialers.to(&handover.to);
        let (failover, node, inner) = (self.failover.clone(), node.clone(), tasks.clone());
        tasks.spawn("hand over", failover::tell(failover, node, handover, dialer, inner));
    }

    /// A replica that knows a newer epoch makes this node one, too: its time as a master is over.
    fn watch_fences(&self, working: &Working, tasks: &Tasks) {
        let (agent, failover) = (Arc::clone(&working.agent), self.failover.clone());
        let (mut news, stop) = (agent.news(), tasks.stop().clone());
        tasks.spawn("fences", async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = news.changed() => {}
                }
                let Some(by) = newest_fence(&agent) else { continue };
                if let Err(error) = failover.step_down(by) {
                    tracing::error!(code = "role-unsaved", error = %Chain(&error), "cannot note that this node is no longer the master");
                }
            }
        });
    }
}

fn newest_fence(agent: &Agent) -> Option<Epoch> {
    let by = |phase| if let Phase::Fenced(by) = phase { Some(by) } else { None };
    agent.links().into_iter().filter_map(|link| by(link.phase)).max()
}

fn publish_role(metrics: &Metrics, node: &Node) {
    for role in [Role::Master, Role::Replica] {
        let gauge = metrics.role.with_label_values(&[role.to_string()]);
        gauge.set((role == node.role).into());
    }
    metrics.epoch.set(i64::try_from(node.epoch.0).unwrap_or(i64::MAX));
}
