//! Looks again at what differs, with everything replayed in between that had happened before.

use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

use mailtwin_logic::{
    check::{Difference, Looked, Settle, may_be_back},
    entry::Target,
    ids::LogSeq,
    link::Phase,
};
use tokio::time::{Instant, timeout_at};

use super::{CheckError, Checker, Outcome, Wanted, scope::suspects};

/// Least time between two looks: what changes all the time is not looked at all the time.
const BETWEEN: Duration = Duration::from_millis(50);

/// Entries read of the log at once.
const READ: usize = 1_000;

/// What the log says has changed.
type Changed = BTreeSet<Target>;

impl Checker {
    pub(super) async fn settle(
        &self,
        wanted: &Wanted,
        found: Vec<Difference>,
        mut since: LogSeq,
    ) -> Result<Outcome, CheckError> {
        let (mut settle, mut outcome) = (Settle::default(), Outcome::default());
        let deadline = Instant::now() + wanted.settle;
        let before = self.status.borrow().cursor;
        let mut moving = settle.look(found).moving;
        while !moving.is_empty() {
            let suspects = suspects(&moving);
            let places = suspects.values().map(|suspect| suspect.mailboxes.len().max(1) as u64);
            self.tally.settling.store(places.sum(), Ordering::Relaxed);
            let Ok(looked_from) = timeout_at(deadline, self.quiet(before)).await else {
                outcome.incomplete.push(self.unsettled(&moving));
                return Ok(outcome);
            };
            if self.visitor.connection.is_lost() {
                return Err(CheckError::Lost(self.replica.clone()));
            }
            let accounts = suspects.keys().cloned().collect();
            let again = self.accounts(accounts, wanted, Some(&suspects)).await;
            let Looked { stays, moving: still } =
                settle.look(again.map_err(|error| self.why(error))?);
            moving = still;
            if !stays.is_empty() {
                let changed = timeout_at(deadline, self.changed(since)).await.ok();
                let may_be_back = |found: &Difference| {
                    let any = |of: &Changed| of.iter().any(|entry| may_be_back(found, entry));
                    changed.as_ref().is_none_or(any)
                };
                let (back, stays): (Vec<_>, Vec<_>) = stays.into_iter().partition(may_be_back);
                moving.extend(back);
                outcome.differences.extend(stays);
            }
            since = looked_from;
        }
        Ok(outcome)
    }

    /// What has happened in the store since the log stood at `since`.
    async fn changed(&self, since: LogSeq) -> Changed {
        let upto = self.noted().await;
        // A reader of its own: what it reads is taken by nobody.
        let reader = self.log.reader(upto);
        let (mut changed, mut at) = (Changed::new(), since);
        while at < upto {
            match reader.read(at, READ) {
                Ok(taken) if taken.upto > at => {
                    at = taken.upto;
                    changed.extend(taken.entries.into_iter().map(|entry| entry.target));
                }
                // It has been trimmed meanwhile, or is damaged: anything may have happened.
                _ => return Changed::from([Target::Store]),
            }
        }
        changed
    }

    /// Waits until everything that has happened in the store before now is in the log; says up to
    /// where.
    async fn noted(&self) -> LogSeq {
        if let Some(barrier) = &self.barrier {
            barrier.passed().await;
        }
        // Nothing is appended, but what was submitted before has then been.
        match self.log.append(Vec::new()).await {
            Ok(upto) => upto,
            Err(_) => std::future::pending().await, // the agent is ending
        }
    }

    /// Waits until everything that has happened in the store before now is replayed, or set aside;
    /// says up to where in the log.
    async fn quiet(&self, before: LogSeq) -> LogSeq {
        tokio::time::sleep(BETWEEN).await;
        let upto = self.noted().await;
        let mut status = self.status.clone();
        // While everything is compared after connecting, the cursor stays where it was.
        let passed = |status: &crate::link::LinkStatus| {
            let idle = matches!(status.phase, Phase::InSync | Phase::Degraded);
            status.cursor >= upto && (idle || status.cursor > before)
        };
        let waited = tokio::select! {
            () = self.visitor.connection.lost() => true,
            waited = status.wait_for(passed) => waited.is_ok(),
        };
        if !waited {
            std::future::pending::<()>().await;
        }
        upto
    }

    fn unsettled(&self, moving: &[Difference]) -> String {
        let status = self.status.borrow();
        let lag = status.lag_entries;
        let some = moving.first().map(|first| {
            let name = first.name.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("{} {name}", first.account)
        });
        format!(
            "{} places were still changing when the time to settle was over, the first {}; {} lags \
             by {lag} entries",
            moving.len(),
            some.unwrap_or_default(),
            self.replica
        )
    }
}
