//! Accounts of a node that came back that are not merged yet. One that cannot be holds up no other, but
//! nothing is replicated to it before.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard},
};

use mailtwin_logic::ids::Account;
use tokio::sync::{Mutex as Turn, MutexGuard as Held};

use super::Merging;

/// Those of one replica, for the life of a connection.
pub(crate) struct Unmerged {
    /// `None` if nothing was to be merged.
    merging: Option<Merging>,
    left: Mutex<Left>,
    /// One account at a time.
    turn: Turn<()>,
}

enum Left {
    /// Every account: nothing has been tried yet.
    All,
    /// These.
    Only(BTreeSet<Account>),
}

impl Unmerged {
    /// Everything, if there is something to merge; or nothing.
    pub(crate) fn new(merging: Option<Merging>) -> Self {
        let left = if merging.is_some() { Left::All } else { Left::Only(BTreeSet::new()) };
        Self { merging, left: Mutex::new(left), turn: Turn::default() }
    }

    pub(super) fn merging(&self) -> Option<&Merging> {
        self.merging.as_ref()
    }

    /// Whether `account` has to be merged before anything else is done to it.
    pub(crate) fn has(&self, account: &Account) -> bool {
        match &*self.lock() {
            Left::All => true,
            Left::Only(left) => left.contains(account),
        }
    }

    /// All that are left, if `account` is one of them and all were tried once.
    pub(super) fn left_with(&self, account: &Account) -> Option<BTreeSet<Account>> {
        match &*self.lock() {
            Left::Only(left) if left.contains(account) => Some(left.clone()),
            Left::All | Left::Only(_) => None,
        }
    }

    pub(super) fn set_left(&self, left: BTreeSet<Account>) {
        *self.lock() = Left::Only(left);
    }

    pub(super) async fn turn(&self) -> Held<'_, ()> {
        self.turn.lock().await
    }

    fn lock(&self) -> MutexGuard<'_, Left> {
        self.left.lock().expect("no panic while it is held")
    }
}
