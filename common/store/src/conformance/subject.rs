//! The reference engine as a subject of its own contract.

use std::{sync::Arc, time::Duration};

use mailtwin_logic::{
    ids::{Account, Guid, Uid},
    mailbox::{FileKey, Flags, MailboxName},
};

use super::{KEEP, ManualClock, Subject};
use crate::{MailStore, memory::MemoryStore};

/// A store in memory.
#[derive(Clone, Debug)]
pub struct InMemory {
    /// The store.
    pub store: Arc<MemoryStore>,
    /// Its time.
    pub clock: Arc<ManualClock>,
}

impl InMemory {
    /// An empty one.
    pub fn new(name: &str) -> Self {
        let clock = Arc::new(ManualClock::new());
        Self { store: Arc::new(MemoryStore::new(name, clock.clone(), KEEP)), clock }
    }
}

impl Subject for InMemory {
    fn store(&self) -> &dyn MailStore {
        &*self.store
    }

    fn deliver(&self, account: &Account, mailbox: &MailboxName, octets: &[u8]) {
        self.store.deliver(account, mailbox, octets);
    }

    fn set_flags(&self, at: (&Account, &MailboxName, Uid), flags: Flags, keywords: &[&str]) {
        self.store.set_flags(at.0, at.1, at.2, flags, keywords.iter().collect());
    }

    fn expunge(&self, account: &Account, mailbox: &MailboxName, uid: Uid) {
        self.store.expunge(account, mailbox, uid);
    }

    fn damage(&self, at: (&Account, &MailboxName, Uid), octets: &[u8]) {
        self.store.damage(at.0, at.1, at.2, octets);
    }

    fn create(&self, account: &Account, mailbox: &MailboxName) {
        self.store.create_mailbox(account, mailbox);
    }

    fn rename(&self, account: &Account, from: &MailboxName, to: &MailboxName) {
        self.store.rename_mailbox(account, from, to);
    }

    fn delete(&self, account: &Account, mailbox: &MailboxName) {
        self.store.delete_mailbox(account, mailbox);
    }

    fn write_file(&self, account: &Account, key: &FileKey, content: Option<&[u8]>) {
        self.store.write_file(account, key, content);
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    fn buried(&self) -> Vec<Guid> {
        self.store.graveyard().into_iter().map(|(_, _, record)| record.guid).collect()
    }
}

#[cfg(test)]
mod memory {
    use super::InMemory;

    crate::conformance!(|case: crate::conformance::Case| case(&|| Box::new(InMemory::new(
        "subject"
    ))));
}
