//! Metrics of what a node's durable records say: its ledger and the history of its role. They are
//! read at a scrape and only when they have grown, so they hold over restarts of the daemons.

use std::{path::PathBuf, sync::Mutex};

use prometheus::{
    IntCounterVec, IntGauge, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::{
    codes::{HistoryKind, LedgerKind},
    history, ledger,
};

/// Reads the records of one state directory.
struct Records {
    state_dir: PathBuf,
    conflicts: IntCounterVec,
    unseen: IntGauge,
    failovers: IntCounterVec,
    /// Octets of the ledger and of the history when they were last read.
    read: Mutex<(Option<u64>, Option<u64>)>,
}

/// Registers the metrics of the records in `state_dir`.
pub fn register(registry: &Registry, state_dir: PathBuf) -> Result<(), prometheus::Error> {
    registry.register(Box::new(Records {
        state_dir,
        conflicts: IntCounterVec::new(
            Opts::new(
                "mailtwin_conflicts_total",
                "Decisions against one of the sides when a node came back, by kind",
            ),
            &["kind"],
        )?,
        unseen: IntGauge::new(
            "mailtwin_conflicts_unseen",
            "Conflicts that no admin has acknowledged",
        )?,
        failovers: IntCounterVec::new(
            Opts::new("mailtwin_failovers_total", "Changes of this node's role, and attempts"),
            &["kind", "outcome"],
        )?,
        read: Mutex::default(),
    }))
}

impl Records {
    /// Reads what has grown. What cannot be read keeps its last values: `replctl conflicts list` and
    /// `failover history` say why.
    fn refresh(&self) {
        let mut read = self.read.lock().expect("no panic while it is held");
        let octets = Some(ledger::octets(&self.state_dir));
        if read.0 != octets && self.refresh_conflicts().is_ok() {
            read.0 = octets;
        }
        let octets = Some(history::octets(&self.state_dir));
        if read.1 != octets && self.refresh_failovers().is_ok() {
            read.1 = octets;
        }
    }

    fn refresh_conflicts(&self) -> Result<(), mailtwin_disk::DiskError> {
        let entries = ledger::read(&self.state_dir)?;
        for kind in LedgerKind::ALL.iter().filter(|kind| kind.is_conflict()) {
            let there = entries.iter().filter(|entry| entry.kind == kind.as_str()).count();
            raise(&self.conflicts, &[kind.as_str()], there);
        }
        let unseen =
            entries.iter().filter(|entry| entry.is_conflict() && entry.acked_at.is_none()).count();
        self.unseen.set(i64::try_from(unseen).unwrap_or(i64::MAX));
        Ok(())
    }

    fn refresh_failovers(&self) -> Result<(), mailtwin_disk::DiskError> {
        let entries = history::all(&self.state_dir)?;
        for kind in HistoryKind::ALL {
            let of_kind = || entries.iter().filter(|entry| entry.kind == kind.as_str());
            let mut outcomes: Vec<&str> = of_kind().map(|entry| entry.outcome.as_str()).collect();
            outcomes.sort_unstable();
            for same in outcomes.chunk_by(|one, other| one == other) {
                let outcome = same.first().copied().unwrap_or_default();
                raise(&self.failovers, &[kind.as_str(), outcome], same.len());
            }
        }
        Ok(())
    }
}

/// Sets a counter that never goes down, also if decisions were withdrawn.
fn raise(counters: &IntCounterVec, labels: &[&str], to: usize) {
    let counter = counters.with_label_values(labels);
    counter.inc_by(u64::try_from(to).unwrap_or(u64::MAX).saturating_sub(counter.get()));
}

impl Collector for Records {
    fn desc(&self) -> Vec<&Desc> {
        [self.conflicts.desc(), self.unseen.desc(), self.failovers.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.refresh();
        [self.conflicts.collect(), self.unseen.collect(), self.failovers.collect()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{HistoryEntry, LedgerEntry};

    fn text(registry: &Registry) -> String {
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn records_are_counted_and_a_conflict_that_was_seen_is_still_one() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path();
        let registry = Registry::new();
        register(&registry, dir.to_owned()).unwrap();
        assert!(text(&registry).contains("mailtwin_conflicts_total{kind=\"clash\"} 0"));
        let entry = |kind: LedgerKind| LedgerEntry {
            at: 5,
            epoch: 2,
            node: "mx1".into(),
            account: "ann".into(),
            mailbox: "INBOX".into(),
            kind: kind.as_str().into(),
            uid: Some(1),
            new_uid: None,
            guid: None,
            detail: String::new(),
            id: String::new(),
            acked_at: None,
        };
        ledger::append(dir, &[entry(LedgerKind::Clash), entry(LedgerKind::Tail)]).unwrap();
        let event = HistoryEntry {
            at: 5,
            kind: HistoryKind::Force.as_str().into(),
            outcome: "done".into(),
            epoch: 2,
            from: None,
            to: None,
            gate_closed_ms: None,
            detail: String::new(),
        };
        history::append(dir, &event).unwrap();
        let told = text(&registry);
        assert!(told.contains("mailtwin_conflicts_total{kind=\"clash\"} 1"), "{told}");
        assert!(!told.contains("kind=\"tail\""), "what was only brought over is none: {told}");
        assert!(told.contains("mailtwin_conflicts_unseen 1"), "{told}");
        let forced = "mailtwin_failovers_total{kind=\"force\",outcome=\"done\"} 1";
        assert!(told.contains(forced), "{told}");

        ledger::ack(dir, None, 7).unwrap();
        let told = text(&registry);
        assert!(told.contains("mailtwin_conflicts_total{kind=\"clash\"} 1"), "{told}");
        assert!(told.contains("mailtwin_conflicts_unseen 0"), "{told}");
        assert!(told.contains(forced), "{told}");
    }
}
