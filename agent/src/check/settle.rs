//! Looks again at what differs, with everything replayed in between that had happened before.

use std::{sync::atomic::Ordering, time::Duration};

use mailtwin_logic::{
    check::{Difference, Looked, Settle},
    ids::LogSeq,
    link::Phase,
};
use tokio::time::{Instant, timeout_at};

use super::{CheckError, Checker, Outcome, Wanted, scope::suspects};

/// Least time between two looks: what changes all the time is not looked at all the time.
const BETWEEN: Duration = Duration::from_millis(50);

impl Checker {
    pub(super) async fn settle(
        &self,
        wanted: &Wanted,
        found: Vec<Difference>,
    ) -> Result<Outcome, CheckError> {
        let (mut settle, mut outcome) = (Settle::default(), Outcome::default());
        let deadline = Instant::now() + wanted.settle;
        let before = self.status.borrow().cursor;
        let mut moving = settle.look(found).moving;
        while !moving.is_empty() {
            let suspects = suspects(&moving);
            let places = suspects.values().map(|suspect| suspect.mailboxes.len().max(1) as u64);
            self.tally.settling.store(places.sum(), Ordering::Relaxed);
            if timeout_at(deadline, self.quiet(before)).await.is_err() {
                outcome.incomplete.push(self.unsettled(&moving));
                return Ok(outcome);
            }
            if self.visitor.connection.is_lost() {
                return Err(CheckError::Lost(self.replica.clone()));
            }
            let accounts = suspects.keys().cloned().collect();
            let again = self.accounts(accounts, wanted, Some(&suspects)).await;
            let Looked { stays, moving: still } =
                settle.look(again.map_err(|error| self.why(error))?);
            outcome.differences.extend(stays);
            moving = still;
        }
        Ok(outcome)
    }

    /// Waits until everything that has happened in the store before now is replayed, or set aside.
    async fn quiet(&self, before: LogSeq) {
        tokio::time::sleep(BETWEEN).await;
        if let Some(barrier) = &self.barrier {
            barrier.passed().await;
        }
        // Nothing is appended, but what was submitted before has then been.
        let Ok(upto) = self.log.append(Vec::new()).await else {
            return std::future::pending().await; // the agent is ending
        };
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
