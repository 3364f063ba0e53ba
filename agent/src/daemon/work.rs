//! The working half of an agent, on a master: store, log, links, source.

use std::{sync::Arc, time::Duration};

use mailtwin_host::{
    clock::Clock,
    config::{self, Config},
    graveyard,
    node::Node,
    retry::Retry,
    state,
    tasks::Tasks,
    workers::Workers,
};
use mailtwin_logic::brake::Limits;
use mailtwin_store::MailStore;
use prometheus::IntCounter;
use tokio_util::sync::CancellationToken;

use crate::{
    Agent, AgentParts, Replica,
    admin::Working,
    canary::Canary,
    check::{self, Bench, Jobs, Scrub},
    link::Dialers,
    log::{self, Health, Log},
    metrics::Metrics,
    source::{self, Source},
};

/// Threads for the store's blocking calls.
const WORKERS: usize = 8;
/// How often what the log counts is published.
const PUBLISH_EVERY: Duration = Duration::from_secs(5);

/// What the working half of an agent is made of.
pub(super) struct Start<'a> {
    pub(super) config: &'a Config,
    pub(super) node: &'a Node,
    pub(super) dialers: &'a Dialers,
    pub(super) metrics: Metrics,
    pub(super) tasks: &'a Tasks,
    pub(super) clock: Arc<dyn Clock>,
}

pub(super) fn start(
    parts: Start<'_>,
    fatal: &CancellationToken,
    stop: &CancellationToken,
) -> anyhow::Result<Working> {
    let Start { config, node, dialers, metrics, tasks, clock } = parts;
    let state_dir = &config.node.state_dir;
    let index = state::open_index(state_dir, node.role, fatal)?;
    let store = crate::store::open(config, index, Arc::clone(&clock))?;
    let options = log::Options::bound(config.log.bound);
    let (log, recovery) = Log::open(&state_dir.join("log"), options, Arc::clone(&clock))?;
    for damage in &recovery.damaged {
        tracing::error!(
            code = "log-damaged",
            ?damage,
            "a part of the sync log is damaged: everything is compared instead"
        );
    }
    let log = Arc::new(log);
    let agent_parts = AgentParts {
        node: node.name.clone(),
        epoch: node.epoch,
        forced: node.forced,
        state_dir: state_dir.clone(),
        store: Arc::clone(&store) as Arc<dyn MailStore>,
        workers: Workers::start("store", WORKERS)?,
        log: Arc::clone(&log),
        tasks: tasks.clone(),
        clock: Arc::clone(&clock),
        metrics: metrics.clone(),
        retry: Retry::new(),
        brake: limits(&config.brake),
    };
    let replicas = dialers.peers.all()?.into_iter().map(|peer| {
        let dialer = dialers.to(&peer.name);
        Replica { name: peer.name, dialer }
    });
    let agent = Arc::new(Agent::start(agent_parts, replicas.collect(), stop)?);
    let options = source::Options { rescan: config.scan.interval, ..source::Options::default() };
    let feed = Arc::clone(&clock);
    let source = Source::start(Arc::clone(&store), Arc::clone(&log), options, feed)?;
    let counters = Counters { log, source: source.counts(), metrics: metrics.clone() };
    tasks.spawn("counters", counters.publish(fatal.clone(), stop.child_token()));
    let bench = Bench {
        node: node.name.clone(),
        agent: Arc::clone(&agent),
        only: None,
        barrier: Some(source.barrier()),
        clock,
        metrics,
        key: Arc::clone(&dialers.key),
        reports: state_dir.join("reports"),
        repairs: state_dir.join("repairs"),
        store: Arc::clone(&store),
        workers: agent.workers().clone(),
    };
    bench.show_past();
    if !config.check.scrub.is_zero() {
        let scrub = Scrub { every: config.check.scrub, rate: config.check.rate };
        tasks.spawn("scrub", check::scrub(bench.clone(), scrub, stop.child_token()));
    }
    let buried = Arc::clone(&store);
    let workers = agent.workers().clone();
    let graveyard = graveyard::keep(workers, stop.child_token(), move || buried.bury());
    tasks.spawn("graveyard", graveyard);
    let checks = Jobs::new(tasks.clone());
    let canary = config.canary.clone().map(|wanted| {
        let (store, clock) = (Arc::clone(&store), Arc::clone(&bench.clock));
        let metrics = bench.metrics.canary.clone();
        let whose = (wanted, node.name.clone());
        let canary = Arc::new(Canary::new(whose, Arc::clone(&agent), store, clock, metrics));
        tasks.spawn("canary", Arc::clone(&canary).run(stop.child_token()));
        canary
    });
    Ok(Working { agent, store, source, bench, checks, canary })
}

fn limits(brake: &config::Brake) -> Limits {
    Limits {
        messages: brake.messages,
        mailboxes: brake.mailboxes,
        accounts: brake.accounts,
        share: brake.share,
        within_ms: u64::try_from(brake.within.as_millis()).unwrap_or(u64::MAX),
    }
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
                    code = "log-not-durable",
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
