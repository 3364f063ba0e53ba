//! `replctl check`: asks the agent to compare, shows how far it is and what it found.

mod local;
mod plan;
mod show;
mod undo;
mod verify;

use std::{io::IsTerminal as _, time::Duration};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use mailtwin_host::admin::{
    CheckAsk, CheckDifference, CheckLevel, CheckProgress, CheckReport, CheckState, Request,
    Response,
};
use tokio_util::sync::CancellationToken;

use super::ask::{Daemons, unexpected};
use crate::{args, exit, output::Output};

/// How often the agent is asked how far it is; at first more often, for checks that take no time.
const EVERY: Duration = Duration::from_millis(200);
const FIRST: Duration = Duration::from_millis(5);
/// Repairs in one request: it has to fit a line.
const PLAN_PART: usize = 1000;

/// Runs the verb.
pub(super) async fn run(
    args: &args::check::Check,
    daemons: &Daemons,
    output: &Output,
    stop: &CancellationToken,
) -> anyhow::Result<u8> {
    if let Some(args::check::CheckVerb::VerifyReport { file }) = &args.verb {
        return verify::run(file, daemons, output).await;
    }
    if let Some(id) = args.undo {
        return undo::run(id, args, daemons, output).await;
    }
    if args.local {
        return match local::run(args, daemons, output, stop).await {
            Err(error) if args.nagios => show::unknown(&error, output),
            result => result,
        };
    }
    let ask = ask(args);
    let mut undo = None;
    if let Some(file) = &args.apply {
        let plan = plan::read(file)?;
        undo = repair(plan, daemons, output, stop).await?;
    }
    let first = compare(ask.clone(), daemons, stop).await;
    let last = match first {
        Ok(report) if args.repair && report.found > 0 => {
            undo = repair(report.differences, daemons, output, stop).await?;
            compare(ask, daemons, stop).await
        }
        other => other,
    };
    let last = last.map(|report| CheckReport { undo, ..report });
    if let (Some(file), Ok(report)) = (&args.plan, &last) {
        plan::write(file, report)?;
    }
    match last {
        Ok(report) if args.nagios => show::nagios(&report, output),
        Ok(report) => show::report(&report, output),
        Err(error) if args.nagios => show::unknown(&error, output),
        Err(error) => Err(error),
    }
}

/// Has the agent repair; says what it left alone, and returns the number by which it is undone.
async fn repair(
    plan: Vec<CheckDifference>,
    daemons: &Daemons,
    output: &Output,
    stop: &CancellationToken,
) -> anyhow::Result<Option<u64>> {
    let mut part_of = None;
    for plan in plan.chunks(PLAN_PART) {
        let request = Request::CheckRepair { plan: plan.to_vec(), part_of };
        let report = finish(started(daemons, &request).await?, daemons, stop).await?;
        part_of = report.undo.or(part_of);
        show::repaired(&report, output);
    }
    Ok(part_of)
}

fn ask(args: &args::check::Check) -> CheckAsk {
    let level = match args.level {
        args::check::Level::Quick => CheckLevel::Quick,
        args::check::Level::Full => CheckLevel::Full,
        args::check::Level::Deep => CheckLevel::Deep,
    };
    CheckAsk {
        targets: args.targets.clone(),
        replica: args.replica.clone(),
        level,
        sample: args.sample,
        rate: args.rate,
        settle_ms: Some(u64::try_from(args.settle.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// Has the agent compare; returns its report, with every difference that is listed.
async fn compare(
    ask: CheckAsk,
    daemons: &Daemons,
    stop: &CancellationToken,
) -> anyhow::Result<CheckReport> {
    finish(started(daemons, &Request::Check(ask)).await?, daemons, stop).await
}

async fn started(daemons: &Daemons, request: &Request) -> anyhow::Result<u64> {
    match daemons.ask(request).await? {
        Response::CheckStarted { id } => Ok(id),
        other => Err(unexpected(&other)),
    }
}

/// Waits for the end of what was started, and fetches its whole report.
async fn finish(
    id: u64,
    daemons: &Daemons,
    stop: &CancellationToken,
) -> anyhow::Result<CheckReport> {
    let progress = Progress::new();
    let mut pause = FIRST;
    let mut report = loop {
        let state = state(daemons, id, 0).await?;
        if let Some(report) = state.report {
            break report;
        }
        progress.show(&state.progress);
        tokio::select! {
            // The agent gives up what nobody asks about.
            () = stop.cancelled() => anyhow::bail!("interrupted"),
            () = tokio::time::sleep(pause) => pause = EVERY.min(pause * 2),
        }
    };
    progress.end();
    loop {
        let known = report.differences.len();
        let more = state(daemons, id, known).await?.report;
        let more = more.map(|report| report.differences).unwrap_or_default();
        if known == 0 || more.is_empty() {
            return Ok(report);
        }
        report.differences.extend(more);
    }
}

async fn state(daemons: &Daemons, id: u64, from: usize) -> anyhow::Result<CheckState> {
    match daemons.ask(&Request::CheckState { id, from }).await? {
        Response::Check(state) => Ok(state),
        other => Err(unexpected(&other)),
    }
}

/// What a report means for whoever called.
fn code_of(report: &CheckReport) -> u8 {
    if report.found > 0 {
        exit::FOUND
    } else if report.result == "equal" {
        0
    } else {
        exit::UNREACHABLE
    }
}

/// How far it is, on a terminal.
struct Progress(ProgressBar);

impl Progress {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let style = "{bar:30} {pos}/{len} messages  {msg}  {per_sec}  {eta} left";
        let style = ProgressStyle::with_template(style).expect("the template is well-formed");
        Self(ProgressBar::new(0).with_style(style))
    }

    fn show(&self, progress: &CheckProgress) {
        self.0.set_length(progress.messages_total);
        self.0.set_position(progress.messages);
        let octets = HumanBytes(progress.octets);
        let settling = match progress.settling {
            0 => String::new(),
            places => format!(", {places} places looked at again"),
        };
        self.0.set_message(format!("{octets}{settling}"));
    }

    fn end(&self) {
        self.0.finish_and_clear();
    }
}
