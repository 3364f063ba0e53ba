//! Frees log segments that every replica's durable cursor has passed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
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

    /// One cursor has become durable.
    pub(crate) fn up_to(&self, replica: &str, cursor: LogSeq) {
        let mut cursors = self.cursors.lock().expect("no panic while it is held");
        if let Some(known) = cursors.get_mut(replica) {
            *known = cursor;
        }
        let all = cursors.values().min().copied().unwrap_or(LogSeq(0));
        if let Err(error) = self.log.trim(all) {
            tracing::warn!(error = %Chain(&error), "cannot remove old segments of the sync log");
        }
    }
}
