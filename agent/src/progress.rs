//! How far the copy of everything to one replica is, in messages.
//!
//! What is on both sides is counted while everything is compared, and what is sent when it is acked.
//! Accounts that are equal are only added up; of the others it is remembered how far each is, since
//! it may be compared more than once.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use mailtwin_logic::{ids::Account, mailbox::MailboxState};

/// Accounts remembered; of further ones it is only known how many messages they have.
const ACCOUNTS_MAX: usize = 100_000;

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Messages that are on both sides.
    pub there: u64,
    /// Messages on the master, of the accounts that were looked at.
    pub of: u64,
    /// Whether all accounts were looked at.
    pub whole: bool,
    /// Messages acked since it began.
    pub acked: u64,
}

/// Counts it.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    sum: Copied,
    accounts: HashMap<Account, (u64, u64)>,
}

impl Progress {
    /// Everything is compared from now on.
    pub(crate) fn begin(&self) {
        *self.lock() = State::default();
    }

    /// All accounts have been looked at.
    pub(crate) fn counted(&self) {
        self.lock().sum.whole = true;
    }

    /// An account is equal on both sides.
    pub(crate) fn equal(&self, ours: &[MailboxState]) {
        let (state, messages) = (&mut *self.lock(), messages(ours));
        state.sum.of += messages;
        state.sum.there += messages;
    }

    /// An account has these messages, and the replica has so many of them; nothing is known of that
    /// yet if absent.
    pub(crate) fn account(&self, account: &Account, ours: &[MailboxState], there: Option<u64>) {
        let (state, of) = (&mut *self.lock(), messages(ours));
        let known = state.accounts.get(account).copied();
        if known.is_none() && (state.sum.whole || state.accounts.len() >= ACCOUNTS_MAX) {
            // What comes up later is everyday replay.
            return;
        }
        let (old_there, old_of) = known.unwrap_or_default();
        let there = there.unwrap_or(old_there).min(of);
        state.sum.of = state.sum.of - old_of + of;
        state.sum.there = state.sum.there - old_there + there;
        state.accounts.insert(account.clone(), (there, of));
    }

    /// Messages of an account were acked.
    pub(crate) fn acked(&self, account: &Account, messages: u64) {
        let state = &mut *self.lock();
        state.sum.acked += messages;
        if let Some((there, of)) = state.accounts.get_mut(account) {
            let before = *there;
            *there = there.saturating_add(messages).min(*of);
            state.sum.there += *there - before;
        }
    }

    /// How far it is.
    pub(crate) fn now(&self) -> Copied {
        self.lock().sum
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while it is held")
    }
}

/// Messages in all of an account's mailboxes.
pub(crate) fn messages(mailboxes: &[MailboxState]) -> u64 {
    mailboxes.iter().map(|mailbox| u64::from(mailbox.head.messages)).sum()
}

#[cfg(test)]
mod tests {
    use mailtwin_logic::{
        ids::{MailboxId, ModSeq},
        mailbox::{Head, MailboxName},
    };

    use super::*;

    fn of(messages: u32) -> Vec<MailboxState> {
        let head = Head { messages, ..Head::default() };
        let (id, name) = (MailboxId([1; 16]), MailboxName::inbox());
        vec![MailboxState { id, name, head, highest_modseq: ModSeq(1), foreign: 0 }]
    }

    #[test]
    fn an_account_counts_once_however_often_it_is_compared() {
        let (progress, ann) = (Progress::default(), Account::new("ann").unwrap());
        progress.equal(&of(5));
        progress.account(&ann, &of(10), None);
        let copied = |there, of, whole, acked| Copied { there, of, whole, acked };
        assert_eq!(progress.now(), copied(5, 15, false, 0));
        progress.account(&ann, &of(10), Some(4));
        progress.acked(&ann, 3);
        progress.counted();
        assert_eq!(progress.now(), copied(12, 15, true, 3));
        progress.account(&ann, &of(12), Some(7));
        assert_eq!(progress.now(), copied(12, 17, true, 3));
        progress.acked(&ann, 100);
        assert_eq!(progress.now(), copied(17, 17, true, 103), "never more than there are");
        let ben = Account::new("ben").unwrap();
        progress.account(&ben, &of(1), None);
        progress.acked(&ben, 1);
        assert_eq!(progress.now(), copied(17, 17, true, 104), "mail of today is no copy");
        progress.begin();
        assert_eq!(progress.now(), Copied::default());
    }
}
