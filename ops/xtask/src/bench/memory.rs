//! How much memory both daemons take at most, how that grows with the mail, and what they do when
//! there is nothing to do.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use mailtwin_tests::{files, lab::Lab};

use super::{
    Bench,
    daemons::Daemons,
    measure::{self, median},
    report::{Figure, Goal, Row, talk},
    tree::{self, Shape},
};

const SMALL: Shape = Shape { accounts: 20, mailboxes: 10, messages: 100, octets: 1000 };
const LARGE: Shape = Shape { accounts: 200, mailboxes: 10, messages: 100, octets: 1000 };

/// How long idling is watched.
const IDLE: Duration = Duration::from_mins(1);

const PEAK_OCTETS_MAX: f64 = 64.0 * 1024.0 * 1024.0;

/// Of both daemons: the agent's, the replica's.
type Pair = [f64; 2];
const NAMES: [&str; 2] = ["agent", "replica"];

#[derive(Clone, Copy, Debug)]
struct Outcome {
    /// Octets.
    peak: Pair,
    /// Percent of one processor.
    idle: Pair,
}

/// Measures first copies of a small and a large tree, and the time after.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let (mut small, mut large) = (Vec::new(), Vec::new());
    Lab::run_in(bench.image.path(), |lab| {
        for (shape, outcomes) in [(SMALL, &mut small), (LARGE, &mut large)] {
            let name = format!("memory-{}", shape.total());
            let master = lab.mail_dir(&name)?;
            talk(&format!("building {} messages", shape.total()));
            tree::build(&master, shape, &bench.samples)?;
            for path in files::walk(&master)? {
                files::give_to_mail_user(&path)?;
            }
            for run in 0..bench.runs {
                let outcome = round(bench, lab, &master, &format!("{name}-{run}"), shape)?;
                talk(&format!("{} messages: {outcome:.3?}", shape.total()));
                outcomes.push(outcome);
            }
        }
        Ok(())
    })?;
    Ok((0..2).flat_map(|which| rows(which, &small, &large)).collect())
}

fn round(bench: &Bench, lab: &Lab, master: &Path, name: &str, shape: Shape) -> Result<Outcome> {
    bench.image.settle()?;
    let replica = lab.mail_dir(&format!("{name}-replica"))?;
    let daemons = Daemons::start(lab, &bench.binaries, name, [master, &replica])?;
    daemons.copied(lab, &replica, shape.total())?;
    let ids = [daemons.agent.id(), daemons.replica.id()];
    let mut outcome = Outcome { peak: [0.0; 2], idle: [0.0; 2] };
    for (peak, id) in outcome.peak.iter_mut().zip(ids) {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        {
            *peak = measure::peak_resident(id)? as f64;
        }
    }
    if shape.total() == LARGE.total() {
        let cpu = || -> Result<Vec<Duration>> {
            ids.iter().map(|id| measure::process_cpu(&id.to_string())).collect()
        };
        let before = cpu()?;
        bench.clock.pause(IDLE);
        for ((idle, after), before) in outcome.idle.iter_mut().zip(cpu()?).zip(before) {
            *idle = after.saturating_sub(before).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
        }
    }
    let Daemons { agent, replica, .. } = daemons;
    agent.terminate().context("stop the agent")?;
    replica.terminate().context("stop the replica daemon")?;
    Ok(outcome)
}

fn rows(which: usize, small: &[Outcome], large: &[Outcome]) -> Vec<Row> {
    let name = NAMES[which];
    let peak = |outcomes: &[Outcome]| {
        let peaks: Vec<f64> = outcomes.iter().map(|outcome| outcome.peak[which]).collect();
        median(&peaks).unwrap_or_default()
    };
    let idle: Vec<f64> = large.iter().map(|outcome| outcome.idle[which]).collect();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let growth = (peak(large) - peak(small)) / (LARGE.total() - SMALL.total()) as f64;
    let row = |what: String, ours, bound| Row {
        what: format!("{name}: {what}"),
        ours: Some(ours),
        goals: vec![Goal::Bound(bound)],
        ..Row::default()
    };
    let bound = Figure::Octets(PEAK_OCTETS_MAX);
    let all = |shape: Shape| {
        let mailboxes = shape.accounts * shape.mailboxes;
        format!("peak memory, {} messages in {mailboxes} mailboxes", shape.total())
    };
    vec![
        row(all(SMALL), Figure::Octets(peak(small)), bound),
        row(all(LARGE), Figure::Octets(peak(large)), bound),
        row("growth for each message".into(), Figure::Octets(growth), Figure::Octets(200.0)),
        row(
            "idle for a minute, 2000 mailboxes, CPU".into(),
            Figure::Percent(median(&idle).unwrap_or_default()),
            Figure::Percent(0.1),
        ),
    ]
}
