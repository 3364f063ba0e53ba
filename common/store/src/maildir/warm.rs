//! Which mailboxes' records are in memory, so that those not used for longest give theirs back.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, Weak},
};

use super::{engine::Cell, snapshot::Snapshot};

/// Mailboxes whose records are in memory, the one used last at the end.
#[derive(Debug, Default)]
pub(crate) struct Warm {
    cells: VecDeque<(Weak<Mutex<Option<Snapshot>>>, usize)>,
    records: usize,
}

/// Records kept in memory, some 300 octets each; mailboxes not used for longest give theirs back.
const RECORDS_MAX: usize = 32_000;

impl Warm {
    /// Notes that a mailbox's records were used, and makes room if there are too many.
    pub(crate) fn used(&mut self, cell: &Cell, snapshot: &Snapshot) {
        if snapshot.loaded() == 0 {
            return;
        }
        let own = Arc::downgrade(cell);
        if let Some(at) = self.cells.iter().position(|(held, _)| held.ptr_eq(&own))
            && let Some((_, records)) = self.cells.remove(at)
        {
            self.records = self.records.saturating_sub(records);
        }
        self.cells.push_back((own, snapshot.loaded()));
        self.records += snapshot.loaded();
        while self.records > RECORDS_MAX && self.cells.len() > 1 {
            let Some((coldest, records)) = self.cells.pop_front() else { break };
            self.records = self.records.saturating_sub(records);
            // One in use gives its records back another time.
            if let Some(coldest) = coldest.upgrade()
                && let Ok(mut guard) = coldest.try_lock()
                && let Some(snapshot) = guard.as_mut()
            {
                snapshot.unload();
            }
        }
    }
}
