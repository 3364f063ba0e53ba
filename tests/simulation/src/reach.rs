//! A replica's store as the sessions of one epoch reach it: notes who changes it when (I4).

use std::sync::{Arc, Mutex, PoisonError};

use mailtwin_logic::{
    check::{Inspect, Inspected},
    ids::{Account, Epoch, Guid, MailboxId, ModSeq, Uid},
    mailbox::{FileKey, Head, MailboxName, MailboxState, Record},
    plan::Step,
};
use mailtwin_store::{
    Batch, Capabilities, Delta, Destination, Grave, Listing, MailStore, Octets, Problem, Reader,
    Staged, Staging, StoreError, Unreadable, memory::MemoryStore,
};

/// Whom a replica has served. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Served(Arc<Mutex<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    newest: Epoch,
    late: Option<Epoch>,
}

impl Served {
    /// The epoch of a session that changed something after one of a newer epoch had been served.
    pub fn late(&self) -> Option<Epoch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).late
    }

    fn reads(&self, epoch: Epoch) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.newest = notes.newest.max(epoch);
    }

    fn changes(&self, epoch: Epoch) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch < notes.newest {
            notes.late = Some(epoch);
        }
        notes.newest = notes.newest.max(epoch);
    }
}

/// The store, for sessions of one epoch.
#[derive(Debug)]
pub struct Reached {
    /// The store.
    pub store: Arc<MemoryStore>,
    /// Of the agent.
    pub epoch: Epoch,
    /// Where it is noted.
    pub served: Served,
}

impl Reached {
    fn read(&self) -> &MemoryStore {
        self.served.reads(self.epoch);
        &self.store
    }

    fn change(&self) -> &MemoryStore {
        self.served.changes(self.epoch);
        &self.store
    }
}

impl MailStore for Reached {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    fn verify(&self) -> Result<(), StoreError> {
        self.store.verify()
    }

    fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        self.read().accounts()
    }

    fn account(&self, account: &Account) -> Result<Option<Listing>, StoreError> {
        self.read().account(account)
    }

    fn find(
        &self,
        account: &Account,
        name: &MailboxName,
    ) -> Result<Option<MailboxState>, StoreError> {
        self.read().find(account, name)
    }

    fn delta(
        &self,
        account: &Account,
        mailbox: MailboxId,
        since: ModSeq,
    ) -> Result<Delta, StoreError> {
        self.read().delta(account, mailbox, since)
    }

    fn reader<'a>(&'a self, account: &'a Account, mailbox: MailboxId) -> Reader<'a> {
        Box::new(move |uid| self.read().open(account, mailbox, uid))
    }

    fn file(&self, account: &Account, key: &FileKey) -> Result<Option<Vec<u8>>, StoreError> {
        self.read().file(account, key)
    }

    fn set_file(
        &self,
        account: &Account,
        key: &FileKey,
        content: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        self.change().set_file(account, key, content)
    }

    fn restructure(&self, account: &Account, steps: &[Step]) -> Result<(), StoreError> {
        self.change().restructure(account, steps)
    }

    fn stage(
        &self,
        destination: &Destination,
        record: &Record,
    ) -> Result<Box<dyn Staging>, StoreError> {
        self.read().stage(destination, record)
    }

    fn stage_held(
        &self,
        destination: &Destination,
        record: &Record,
    ) -> Result<Option<Staged>, StoreError> {
        self.read().stage_held(destination, record)
    }

    fn apply(&self, batches: Vec<Batch>) -> Vec<Result<Head, StoreError>> {
        if batches.is_empty() {
            return Vec::new(); // of sessions that have ended
        }
        self.change().apply(batches)
    }

    fn abandon(&self, account: &Account, mailbox: MailboxId) {
        self.store.abandon(account, mailbox);
    }

    fn adopt(&self, account: &Account, mailbox: MailboxId, next: Uid) -> Result<u64, StoreError> {
        self.change().adopt(account, mailbox, next)
    }

    fn unreadable(&self, account: &Account, mailbox: MailboxId) -> Vec<Unreadable> {
        self.store.unreadable(account, mailbox)
    }

    fn graves(
        &self,
        each: &mut dyn FnMut(Grave) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.store.graves(each)
    }

    fn exhume(&self, grave: &Grave) -> Result<Octets, StoreError> {
        self.store.exhume(grave)
    }

    fn bury(&self) -> Result<u64, StoreError> {
        self.store.bury()
    }

    fn problems(&self) -> Vec<Problem> {
        self.store.problems()
    }

    fn inspect(&self, wanted: &Inspect) -> Result<Inspected, StoreError> {
        self.read().inspect(wanted)
    }

    fn mend(
        &self,
        account: &Account,
        mailbox: MailboxId,
        uid: Uid,
        staged: Option<Staged>,
    ) -> Result<bool, StoreError> {
        self.change().mend(account, mailbox, uid, staged)
    }

    fn give_up(
        &self,
        account: &Account,
        mailbox: MailboxId,
        messages: &[(Uid, Guid)],
    ) -> Result<(), StoreError> {
        self.change().give_up(account, mailbox, messages)
    }
}
