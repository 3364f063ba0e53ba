//! What the replica is known to hold: for each mailbox the head it acked, and our own MODSEQ then.
//!
//! Kept for the life of one connection. With it, only what changed since is read and sent; without
//! it, the mailbox's records are compared.

use std::{collections::HashMap, sync::Mutex};

use mailtwin_logic::{
    ids::{Account, MailboxId, ModSeq},
    mailbox::{Head, MailboxName, MailboxState},
};

/// Mailboxes remembered; when there are more, all are forgotten and compared again when next
/// visited. About 300 octets each.
const MAILBOXES_MAX: usize = 100_000;

/// One mailbox on the replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its name there. Entries of the log name mailboxes: one that has come to another's name since
    /// must not pass for it.
    pub(crate) name: MailboxName,
    /// The replica's head.
    pub(crate) head: Head,
    /// Our store's highest MODSEQ when ours was the same.
    pub(crate) modseq: ModSeq,
}

/// All mailboxes of one replica.
#[derive(Debug, Default)]
pub(crate) struct Held {
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    mailboxes: HashMap<(Account, MailboxId), Note>,
    /// What was last at each name; it may have moved since.
    names: HashMap<(Account, MailboxName), MailboxId>,
    /// Counts what was noted.
    now: u64,
    /// When all was forgotten last.
    cleared: u64,
}

#[derive(Debug)]
struct Note {
    at: u64,
    known: Option<Known>,
}

/// A moment before which nothing of what a long look found is news.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(u64);

impl Held {
    /// What is known of the mailbox that has this name on the replica.
    pub(crate) fn named(
        &self,
        account: &Account,
        name: &MailboxName,
    ) -> Option<(MailboxId, Known)> {
        let id = *self.lock().names.get(&(account.clone(), name.clone()))?;
        self.get(account, id).filter(|known| known.name == *name).map(|known| (id, known))
    }

    /// What is known of one mailbox.
    fn get(&self, account: &Account, mailbox: MailboxId) -> Option<Known> {
        self.lock().mailboxes.get(&(account.clone(), mailbox))?.known.clone()
    }

    /// To be taken before a look at many mailboxes, for [`Held::equal_since`].
    pub(crate) fn moment(&self) -> Moment {
        Moment(self.lock().now)
    }

    /// The replica is equal to `state`, because it has just acked that.
    pub(crate) fn equal(&self, account: &Account, state: &MailboxState) {
        self.lock().note(account, state.id, Some(known(state)));
    }

    /// The replica was equal to `state` after `moment`. Says nothing if the mailbox was visited
    /// since: that is newer.
    pub(crate) fn equal_since(&self, moment: Moment, account: &Account, state: &MailboxState) {
        let mut notes = self.lock();
        let noted = notes.mailboxes.get(&(account.clone(), state.id)).map_or(0, |note| note.at);
        if noted.max(notes.cleared) <= moment.0 {
            notes.note(account, state.id, Some(known(state)));
        }
    }

    /// The replica says that this is its head, or that it has no such mailbox: what was noted
    /// otherwise is wrong.
    pub(crate) fn expect(&self, account: &Account, mailbox: MailboxId, head: Option<Head>) {
        if self.get(account, mailbox).is_some_and(|known| Some(known.head) != head) {
            self.forget(account, mailbox);
        }
    }

    /// Nothing is known any more.
    pub(crate) fn forget(&self, account: &Account, mailbox: MailboxId) {
        self.lock().note(account, mailbox, None);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().expect("no panic while it is held")
    }
}

impl Notes {
    fn note(&mut self, account: &Account, mailbox: MailboxId, known: Option<Known>) {
        self.now += 1;
        if self.mailboxes.len() >= MAILBOXES_MAX {
            self.mailboxes.clear();
            self.names.clear();
            self.cleared = self.now;
        }
        if let Some(known) = &known {
            self.names.insert((account.clone(), known.name.clone()), mailbox);
        }
        self.mailboxes.insert((account.clone(), mailbox), Note { at: self.now, known });
    }
}

fn known(state: &MailboxState) -> Known {
    Known { name: state.name.clone(), head: state.head, modseq: state.highest_modseq }
}

#[cfg(test)]
mod tests {
    use mailtwin_logic::{ids::Uid, mailbox::MailboxName};

    use super::*;

    fn state(uid_next: u32) -> MailboxState {
        let head = Head { uid_next: Uid(uid_next), ..Head::default() };
        let (id, name) = (MailboxId([1; 16]), MailboxName::inbox());
        MailboxState { id, name, head, highest_modseq: ModSeq(7), foreign: 0 }
    }

    #[test]
    fn a_long_look_does_not_undo_what_a_visit_found_meanwhile() {
        let (held, account) = (Held::default(), Account::new("ann").unwrap());
        let id = state(1).id;
        let before = held.moment();
        held.equal(&account, &state(2));
        held.equal_since(before, &account, &state(1));
        assert_eq!(held.get(&account, id), Some(known(&state(2))));
        held.forget(&account, id);
        held.equal_since(before, &account, &state(1));
        assert_eq!(held.get(&account, id), None);
        held.equal_since(held.moment(), &account, &state(3));
        assert_eq!(held.get(&account, id), Some(known(&state(3))));
    }

    #[test]
    fn a_name_finds_what_is_known_of_the_mailbox_that_has_it() {
        let (held, account) = (Held::default(), Account::new("ann").unwrap());
        let (inbox, work) = (MailboxName::inbox(), MailboxName::new(b"Work").unwrap());
        assert_eq!(held.named(&account, &inbox), None);
        held.equal(&account, &state(1));
        assert_eq!(held.named(&account, &inbox), Some((state(1).id, known(&state(1)))));
        // It moves, and another comes to its name.
        let moved = MailboxState { name: work.clone(), ..state(1) };
        held.equal(&account, &moved);
        assert_eq!(held.named(&account, &inbox), None);
        assert_eq!(held.named(&account, &work), Some((moved.id, known(&moved))));
        let newer = MailboxState { id: MailboxId([2; 16]), ..state(5) };
        held.equal(&account, &newer);
        assert_eq!(held.named(&account, &inbox), Some((newer.id, known(&newer))));
        held.forget(&account, newer.id);
        assert_eq!(held.named(&account, &inbox), None);
    }

    #[test]
    fn what_the_replica_says_of_itself_wins() {
        let (held, account) = (Held::default(), Account::new("ann").unwrap());
        let id = state(1).id;
        held.equal(&account, &state(2));
        held.expect(&account, id, Some(state(2).head));
        assert_eq!(held.get(&account, id), Some(known(&state(2))));
        held.expect(&account, id, None);
        assert_eq!(held.get(&account, id), None);
    }
}
