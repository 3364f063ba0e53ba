//! What the replica is known to hold: for each mailbox the head it acked, and our own MODSEQ then.
//!
//! Kept for the life of one connection. With it, only what changed since is read and sent; without
//! it, the mailbox's records are compared.

use std::{collections::HashMap, sync::Mutex};

use mailtwin_logic::{
    ids::{Account, MailboxId, ModSeq},
    mailbox::{Head, MailboxState},
};

/// Mailboxes remembered; when there are more, all are forgotten and compared again when next
/// visited. About 200 octets each.
const MAILBOXES_MAX: usize = 100_000;

/// One mailbox on the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// The replica's head.
    pub(crate) head: Head,
    /// Our store's highest MODSEQ when ours was the same.
    pub(crate) modseq: ModSeq,
}

/// All mailboxes of one replica.
#[derive(Debug, Default)]
pub(crate) struct Held {
    known: Mutex<HashMap<(Account, MailboxId), Known>>,
}

impl Held {
    /// What is known of one mailbox.
    pub(crate) fn get(&self, account: &Account, mailbox: MailboxId) -> Option<Known> {
        self.lock().get(&(account.clone(), mailbox)).copied()
    }

    /// The replica is equal to `state`.
    pub(crate) fn equal(&self, account: &Account, state: &MailboxState) {
        let mut known = self.lock();
        if known.len() >= MAILBOXES_MAX {
            known.clear();
        }
        let now = Known { head: state.head, modseq: state.highest_modseq };
        known.insert((account.clone(), state.id), now);
    }

    /// Nothing is known any more.
    pub(crate) fn forget(&self, account: &Account, mailbox: MailboxId) {
        self.lock().remove(&(account.clone(), mailbox));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(Account, MailboxId), Known>> {
        self.known.lock().expect("no panic while it is held")
    }
}
