//! Every replica's place in the sync log: frees segments that every durable cursor has passed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use mailtwin_logic::{chain::Chain, ids::LogSeq};

use crate::log::Log;

/// Every replica's durable cursor.
#[derive(Debug)]
pub(crate) struct Passed {
    log: Arc<Log>,
    cursors: Mutex<BTreeMap<String, LogSeq>>,
}

impl Passed {
    /// Of `replicas`, none of which has passed anything yet.
    pub(crate) fn new(log: Arc<Log>, replicas: impl Iterator<Item = String>) -> Self {
        let cursors = replicas.map(|replica| (replica, LogSeq(0))).collect();
        Self { log, cursors: Mutex::new(cursors) }
    }

    /// Takes a place at the log's end for a replica that is new: from here on, nothing that is
    /// appended goes because the others have passed it.
    pub(crate) fn join(&self, replica: &str) -> LogSeq {
        let mut cursors = self.lock();
        let head = *self.log.tail().borrow();
        cursors.insert(replica.to_owned(), head);
        head
    }

    /// Gives up a replica's place, and frees what only it needed.
    pub(crate) fn leave(&self, replica: &str) {
        let mut cursors = self.lock();
        cursors.remove(replica);
        self.trim(&cursors);
    }

    /// One cursor has become durable.
    pub(crate) fn up_to(&self, replica: &str, cursor: LogSeq) {
        let mut cursors = self.lock();
        if let Some(known) = cursors.get_mut(replica) {
            *known = cursor;
        }
        self.trim(&cursors);
    }

    /// Octets of segments that are kept for this replica alone.
    pub(crate) fn kept_for(&self, replica: &str) -> u64 {
        let cursors = self.lock();
        let others = cursors.iter().filter(|(name, _)| *name != replica);
        let passed = others.map(|(_, cursor)| *cursor).min();
        let passed = passed.unwrap_or_else(|| *self.log.tail().borrow());
        self.log.trimmable(passed)
    }

    /// Without any replica, nobody needs anything.
    fn trim(&self, cursors: &BTreeMap<String, LogSeq>) {
        let all = cursors.values().min().copied();
        let all = all.unwrap_or_else(|| *self.log.tail().borrow());
        if let Err(error) = self.log.trim(all) {
            tracing::warn!(code = "log-segment-kept", error = %Chain(&error), "cannot remove old segments of the sync log");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, LogSeq>> {
        self.cursors.lock().expect("no panic while it is held")
    }
}
