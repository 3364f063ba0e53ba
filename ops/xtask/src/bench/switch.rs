//! How long nobody can work while the master's role moves: from the last moment at which the old
//! master took connections to the first at which the new one does.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use mailtwin_tests::{cluster::Cluster, corpus, lab::Lab};

use super::{
    Bench,
    measure::median,
    report::{Figure, Goal, Row, talk},
};

/// Messages that the other node lacks when the switch is asked for.
const BACKLOGS: [usize; 2] = [0, 1_000];
/// Between two looks at who takes connections.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Measures switches there and back.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let mut times = BACKLOGS.map(|_| Vec::new());
    Lab::run_in(bench.image.path(), |lab| {
        let mut switching = Switching { cluster: Cluster::start(lab, &["one", "two"])?, next: 0 };
        let mut master = 0;
        switching.cluster.wait_master(lab, master)?;
        for _ in 0..bench.runs {
            for (backlog, times) in BACKLOGS.into_iter().zip(&mut times) {
                let time = switching.switch(lab, master, backlog)?;
                talk(&format!("switch with {backlog} messages of backlog: {time:.3?}"));
                times.push(time);
                master = 1 - master;
            }
        }
        Ok(())
    })?;
    let row = |(backlog, times): (usize, &Vec<Duration>)| Row {
        what: format!("failover switch, {backlog} messages of backlog: nobody takes connections"),
        ours: median(times).map(Figure::Time),
        goals: Vec::<Goal>::new(),
        ..Row::default()
    };
    Ok(BACKLOGS.into_iter().zip(&times).map(row).collect())
}

struct Switching {
    cluster: Cluster,
    /// Number of the next message.
    next: usize,
}

impl Switching {
    fn switch(&mut self, lab: &Lab, master: usize, backlog: usize) -> Result<Duration> {
        let (ours, other) = (&self.cluster.nodes[master], 1 - master);
        let to = self.cluster.nodes[other].name();
        ours.replctl(lab, &["drain"])?.expect(0)?;
        if backlog > 0 {
            ours.replctl(lab, &["replica", "pause", to])?.expect(0)?;
            for _ in 0..backlog {
                let message = corpus::short(&format!("b{}", self.next));
                let account = &self.cluster.accounts[self.next % self.cluster.accounts.len()];
                self.cluster.servers[master].deliver(account, &message)?;
                self.next += 1;
            }
            ours.replctl(lab, &["replica", "resume", to])?.expect(0)?;
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| self.watch(lab, master, &done));
            let switched = ours.replctl(lab, &["failover", "switch", "--to", to]);
            let opened = self.cluster.wait_master(lab, other);
            done.store(true, Ordering::Relaxed);
            let closed = watch.join().map_err(|_| anyhow::anyhow!("watching panicked"))?;
            switched?.expect(0)?;
            opened?;
            closed.context("a moment at which each of the two was open")
        })
    }

    /// From the last look that found the old master open to the first that found the new one open.
    fn watch(&self, lab: &Lab, master: usize, done: &AtomicBool) -> Option<Duration> {
        let (mut last, mut first) = (None, None);
        while first.is_none() && !done.load(Ordering::Relaxed) {
            if self.cluster.servers[master].is_open() {
                last = Some(lab.clock().monotonic());
            }
            if self.cluster.servers[1 - master].is_open() {
                first = Some(lab.clock().monotonic());
            }
            lab.clock().pause(LOOK_EVERY);
        }
        Some(first?.saturating_sub(last?))
    }
}
