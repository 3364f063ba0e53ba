//! Checks that run, and the reports of those that have ended, until they are fetched.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mailtwin_host::{
    admin::{CheckReport, CheckState},
    codes::CheckResult,
    tasks::Tasks,
};
use tokio::time::Instant;

use super::Tally;

/// Checks that run or wait to be fetched, at most.
const JOBS_MAX: usize = 8;
/// A check that nobody has asked about for so long has been given up.
const ABANDONED: Duration = Duration::from_mins(1);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Differences in one answer: it has to fit a line.
const PAGE: usize = 500;

struct Job {
    tally: Arc<Tally>,
    report: Mutex<Option<CheckReport>>,
    asked: Mutex<Instant>,
}

/// All of them.
pub(crate) struct Jobs {
    tasks: Tasks,
    next: AtomicU64,
    held: Mutex<BTreeMap<u64, Arc<Job>>>,
}

impl Jobs {
    /// None yet.
    pub(crate) fn new(tasks: Tasks) -> Self {
        Self { tasks, next: AtomicU64::new(1), held: Mutex::default() }
    }

    /// Starts `work`, which gets what it counts in; `None` if too many run.
    pub(crate) fn start<F>(&self, work: impl FnOnce(Arc<Tally>) -> F) -> Option<u64>
    where
        F: Future<Output = CheckReport> + Send + 'static,
    {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let job = Arc::new(Job {
            tally: Arc::default(),
            report: Mutex::default(),
            asked: Mutex::new(Instant::now()),
        });
        let mut jobs = self.held.lock().expect("no panic while it is held");
        if jobs.len() >= JOBS_MAX {
            let ended = |job: &Arc<Job>| lock(&job.report).is_some();
            let oldest = jobs.iter().find(|(_, job)| ended(job)).map(|(id, _)| *id)?;
            jobs.remove(&oldest);
        }
        jobs.insert(id, Arc::clone(&job));
        drop(jobs);
        let work = work(Arc::clone(&job.tally));
        self.tasks.spawn("check", async move {
            tokio::select! {
                report = work => *lock(&job.report) = Some(report),
                () = abandoned(&job) => {
                    tracing::info!(id, "a check was given up: nobody has asked about it");
                    let result = CheckResult::Incomplete.as_str().to_owned();
                    let report = CheckReport { result, ..CheckReport::default() };
                    *lock(&job.report) = Some(report);
                }
            }
        });
        Some(id)
    }

    /// How check `id` does; of its report, the differences from `from` on.
    pub(crate) fn state(&self, id: u64, from: usize) -> Option<CheckState> {
        let jobs = self.held.lock().expect("no panic while it is held");
        let job = Arc::clone(jobs.get(&id)?);
        drop(jobs);
        *lock(&job.asked) = Instant::now();
        let report = lock(&job.report).as_ref().map(|report| page(report, from));
        Some(CheckState { id, progress: job.tally.progress(), report })
    }
}

fn page(report: &CheckReport, from: usize) -> CheckReport {
    let differences = report.differences.iter().skip(from).take(PAGE).cloned().collect();
    let few = CheckReport { differences: Vec::new(), ..report.clone() };
    CheckReport { differences, ..few }
}

async fn abandoned(job: &Job) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if lock(&job.asked).elapsed() > ABANDONED {
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no panic while it is held")
}
