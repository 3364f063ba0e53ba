//! Runs a check as an admin asked for it, over one replica after the other, and reports.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mailtwin_host::{
    admin::{CheckAsk, CheckDifference, CheckLevel, CheckReport, LastCheck, SCHEMA_VERSION},
    clock::Clock,
    codes::CheckResult,
    keyring::KeyRing,
    workers::Workers,
};
use mailtwin_logic::{chain::Chain, check::Slots};
use mailtwin_store::MailStore;

use super::{CheckLink, Checker, Coverage, Outcome, Scope, Tally, Wanted, file, repair::Mender};
use crate::{Agent, metrics::Metrics, source::Barrier};

/// How long changes under way may take to settle unless it is told.
const SETTLE: Duration = Duration::from_mins(1);

/// What checks work with.
#[derive(Clone)]
pub(crate) struct Bench {
    pub(crate) node: String,
    pub(crate) agent: Arc<Agent>,
    /// One replica; all if absent.
    pub(crate) only: Option<String>,
    pub(crate) barrier: Option<Barrier>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    /// Signs reports.
    pub(crate) key: Arc<KeyRing>,
    /// Where they go.
    pub(crate) reports: PathBuf,
    /// Where it is noted what repairs take.
    pub(crate) repairs: PathBuf,
    pub(crate) store: Arc<dyn MailStore>,
    pub(crate) workers: Workers,
}

/// Carries out what was asked for, to the end, and leaves a signed report.
pub(crate) async fn run(
    bench: Bench,
    ask: CheckAsk,
    scope: Scope,
    tally: Arc<Tally>,
) -> CheckReport {
    let level = ask.level.name();
    let mut report = compare(&bench, ask, scope, false, tally).await;
    if report.targets.is_empty() {
        bench.show(level, &report);
    }
    match file::leave(&bench, &report) {
        Ok(path) => report.file = Some(path.display().to_string()),
        Err(error) => {
            tracing::warn!(code = "check-report-unsaved", error = %Chain(&error), "cannot leave a signed report of the check");
        }
    }
    report
}

/// Reads the messages of a sample, and looks at no others.
pub(crate) async fn scrub(
    bench: Bench,
    ask: CheckAsk,
    scope: Scope,
    tally: Arc<Tally>,
) -> CheckReport {
    let report = compare(&bench, ask, scope, true, tally).await;
    bench.show("scrub", &report);
    report
}

impl Bench {
    /// The replicas that are meant, as they are now.
    pub(super) fn links(&self) -> Vec<CheckLink> {
        let mut links = self.agent.check_links();
        links.retain(|link| {
            self.only.as_ref().is_none_or(|name| *name == link.status.borrow().name)
        });
        links
    }

    fn show(&self, level: &str, report: &CheckReport) {
        self.show_found(level, report.found);
        self.show_oldest();
    }

    fn show_found(&self, level: &str, found: u64) {
        let found = i64::try_from(found).unwrap_or(i64::MAX);
        self.metrics.check.differences.with_label_values(&[level]).set(found);
    }

    /// Remembers and shows what a check of everything came to for one replica.
    fn ended(&self, replica: &str, coverage: &Coverage, check: LastCheck) {
        self.show_last(replica, &check);
        if let Err(error) = coverage.ended(check) {
            tracing::warn!(code = "check-unsaved", error = %Chain(&error), "cannot remember what a check came to");
        }
    }

    fn show_last(&self, replica: &str, check: &LastCheck) {
        if check.result != CheckResult::Incomplete.as_str() {
            let seconds = i64::try_from(check.at / 1000).unwrap_or(i64::MAX);
            let labels = [replica, check.level.name()];
            self.metrics.check.last.with_label_values(&labels).set(seconds);
        }
    }

    /// The last check of everything with `replica`.
    pub(crate) fn last_check(&self, replica: &str) -> Option<LastCheck> {
        let links = self.agent.check_links();
        let link = links.iter().find(|link| link.status.borrow().name == replica)?;
        link.coverage.last()
    }

    /// Shows what is remembered from before this agent started.
    pub(crate) fn show_past(&self) {
        self.show_oldest();
        let mut found = BTreeMap::<_, u64>::new();
        for link in &self.agent.check_links() {
            if let Some(check) = link.coverage.last() {
                self.show_last(&link.status.borrow().name, &check);
                *found.entry(check.level.name()).or_default() += check.found;
            }
        }
        for (level, found) in found {
            self.show_found(level, found);
        }
    }

    /// Shows how old the oldest verification is.
    pub(crate) fn show_oldest(&self) {
        let oldest =
            self.agent.check_links().iter().map(|link| link.coverage.oldest()).min().unwrap_or(0);
        let seconds = i64::try_from(oldest / 1000).unwrap_or(i64::MAX);
        self.metrics.check.oldest_verified.set(seconds);
    }
}

async fn compare(
    bench: &Bench,
    ask: CheckAsk,
    scope: Scope,
    sparse: bool,
    tally: Arc<Tally>,
) -> CheckReport {
    let (began, start) = (bench.clock.unix_ms(), bench.clock.monotonic());
    let settle = ask.settle_ms.map_or(SETTLE, Duration::from_millis);
    let (level, rate, key) = (ask.level, ask.rate, scope.key());
    let mut wanted = Wanted { scope, level, sparse, slots: Slots::ALL, rate, settle };
    let (node, targets) = (bench.node.clone(), ask.targets);
    let schema_version = SCHEMA_VERSION;
    let mut report =
        CheckReport { schema_version, node, targets, level, began, ..CheckReport::default() };
    for link in bench.links() {
        let (name, coverage) = (link.status.borrow().name.clone(), Arc::clone(&link.coverage));
        wanted.slots = coverage.next(&key, ask.sample);
        let before = (report.found, report.incomplete.len());
        let checker = Checker::new(link, bench.barrier.clone(), Arc::clone(&tally), wanted.rate);
        let outcome = match checker {
            Ok(checker) => checker.run(&wanted).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(outcome) => {
                let whole = outcome.incomplete.is_empty() && level == CheckLevel::Deep;
                if whole && let Err(error) = coverage.read(&key, wanted.slots, began) {
                    let error = Chain(&error);
                    tracing::warn!(code = "check-unsaved", %error, "cannot remember which messages were read");
                }
                take(&mut report, &name, outcome);
            }
            Err(error) => report.incomplete.push(error.to_string()),
        }
        let (found, incomplete) = (report.found - before.0, report.incomplete.len() > before.1);
        if report.targets.is_empty() && !sparse {
            let result = CheckResult::of(found, !incomplete).as_str().to_owned();
            bench.ended(&name, &coverage, LastCheck { at: began, level, result, found });
        }
        report.replicas.push(name);
    }
    sum_up(&mut report, &tally);
    report.seconds = bench.clock.monotonic().saturating_sub(start).as_secs_f64();
    report
}

fn sum_up(report: &mut CheckReport, tally: &Tally) {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    report.accounts = get(&tally.accounts);
    report.mailboxes = get(&tally.mailboxes);
    report.messages = get(&tally.messages);
    report.bytes = get(&tally.octets);
    report.messages_read = get(&tally.messages_read);
    report.bytes_read = get(&tally.octets_read);
    let result = CheckResult::of(report.found, report.incomplete.is_empty());
    result.as_str().clone_into(&mut report.result);
}

/// Carries out what a plan says; what is left is reported as differences.
pub(crate) async fn repair(
    bench: Bench,
    plan: Vec<CheckDifference>,
    part_of: Option<u64>,
) -> CheckReport {
    let (began, start) = (bench.clock.unix_ms(), bench.clock.monotonic());
    let (id, node, schema_version) = (part_of.unwrap_or(began), bench.node.clone(), SCHEMA_VERSION);
    let mut report = CheckReport { schema_version, node, began, ..CheckReport::default() };
    let mut plans: BTreeMap<String, Vec<CheckDifference>> = BTreeMap::new();
    for item in plan {
        plans.entry(item.replica.clone()).or_default().push(item);
    }
    for (name, plan) in plans {
        let link = bench.links().into_iter().find(|link| link.status.borrow().name == name);
        match link.and_then(Mender::new) {
            Some(mender) => {
                let taken = mender.will_take(&plan).await;
                if !taken.is_empty() {
                    if let Err(why) = bench.note(id, taken).await {
                        report.incomplete.push(format!("{name}: nothing was repaired: {why}"));
                        continue;
                    }
                    report.undo = Some(id);
                }
                let repaired = mender.carry_out(plan).await;
                report.repaired += repaired.done.len() as u64;
                tracing::info!(replica = %name, differences = repaired.done.len(), "repaired");
                report.found += repaired.left.len() as u64;
                for done in &repaired.done {
                    let CheckDifference { account, mailbox, uid, kind, repair, .. } = done;
                    tracing::debug!(replica = %name, account, ?mailbox, ?uid, kind, repair, "repaired");
                }
                report.differences.extend(repaired.left);
            }
            None => report.incomplete.push(format!("{name} is not connected")),
        }
        report.replicas.push(name);
    }
    report.seconds = bench.clock.monotonic().saturating_sub(start).as_secs_f64();
    report
}

fn take(report: &mut CheckReport, replica: &str, outcome: Outcome) {
    report.found += outcome.found;
    report.incomplete.extend(outcome.incomplete);
    report
        .differences
        .extend(outcome.differences.iter().map(|found| CheckDifference::of(replica, found)));
}
