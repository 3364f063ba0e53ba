//! What a workload knows about its messages: which were accepted, and which somebody may have
//! removed.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

/// Messages of one account, by serial number.
#[derive(Debug, Default)]
pub struct Ledger {
    serials: Mutex<Serials>,
}

#[derive(Debug, Default)]
struct Serials {
    accepted: BTreeSet<String>,
    maybe_gone: BTreeSet<String>,
}

impl Ledger {
    /// The server has accepted a message.
    pub fn accepted(&self, serial: String) {
        self.lock().accepted.insert(serial);
    }

    /// Somebody is about to remove messages, whether or not it works out.
    pub fn removing(&self, serials: impl IntoIterator<Item = String>) {
        self.lock().maybe_gone.extend(serials);
    }

    /// Messages that must still be there.
    pub fn kept(&self) -> Vec<String> {
        let serials = self.lock();
        serials.accepted.difference(&serials.maybe_gone).cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Serials> {
        self.serials.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
