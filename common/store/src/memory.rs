//! Reference engine: a complete mail store in maps, whose behaviour is the contract's.
//!
//! It forgets everything with the process. Beside the trait it offers what mail clients do, and
//! faults, to tests and simulation.

mod client;
mod fault;
mod intake;
mod mailbox;
mod mend;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io::{self, Cursor},
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use mailtwin_disk::clock::Clock;
use mailtwin_logic::{
    check::{Inspect, Inspected},
    ids::{Account, Guid, MailboxId, ModSeq, Uid, UidValidity},
    mailbox::{AccountState, FileKey, FileState, Head, MailboxName, MailboxState, Record},
    plan::{Change, Mode, Step},
};

use crate::{
    Batch, Capabilities, Delta, Destination, Grave, Listing, MailStore, Octets, Problem, Reader,
    Staged, Staging, StoreError, Unreadable, guid_of, staged::Place,
};

pub use client::{Letter, Snapshot};
pub use fault::{Call, Fault};

use fault::Faults;
use intake::Intake;
use mailbox::{Mailbox, Message};

/// Hashes that are never too many.
const BODIES_MIN: usize = 1000;

/// The store.
#[derive(Debug)]
pub struct MemoryStore {
    /// Makes its mailbox identities other than those of other stores.
    name: String,
    clock: Arc<dyn Clock>,
    keep: Duration,
    inner: Mutex<Inner>,
    faults: Mutex<Faults>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    accounts: BTreeMap<Account, Mail>,
    building: BTreeMap<(Account, MailboxId), Mailbox>,
    graveyard: Vec<Buried>,
    /// Octets of every message by their hash, while there is one.
    bodies: BTreeMap<Guid, Weak<[u8]>>,
    /// Hashes in `bodies` when those of which nothing is left are to be dropped.
    prune_at: usize,
    /// Mailboxes made here so far.
    made: u32,
}

#[derive(Clone, Debug, Default)]
struct Mail {
    mailboxes: BTreeMap<MailboxName, Mailbox>,
    files: BTreeMap<FileKey, Vec<u8>>,
}

#[derive(Clone, Debug)]
struct Buried {
    at_ms: u64,
    account: Account,
    name: MailboxName,
    uid_validity: UidValidity,
    message: Message,
}

impl Mail {
    fn listing(&self) -> Listing {
        let mailboxes = self.mailboxes.iter().map(|(name, mailbox)| mailbox.state(name)).collect();
        let file = |(key, content): (&FileKey, &Vec<u8>)| FileState {
            key: key.clone(),
            guid: guid_of(content),
        };
        let files = self.files.iter().map(file).collect();
        Listing { state: AccountState { mailboxes, files }, ..Listing::default() }
    }
}

impl MemoryStore {
    /// An empty store. What is expunged stays in the graveyard for `keep`; with zero there is none.
    pub fn new(name: &str, clock: Arc<dyn Clock>, keep: Duration) -> Self {
        let (inner, faults) = (Mutex::default(), Mutex::default());
        Self { name: name.to_owned(), clock, keep, inner, faults }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while it is held")
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().expect("no panic while it is held")
    }

    fn trip(
        &self,
        call: Call,
        account: &Account,
        mailbox: Option<MailboxId>,
    ) -> Result<(), StoreError> {
        self.faults().trip(call, Some(account), mailbox)
    }

    fn fresh(&self, inner: &mut Inner) -> (MailboxId, UidValidity) {
        inner.made += 1;
        let Guid(hash) = guid_of(format!("{} {}", self.name, inner.made).as_bytes());
        let mut id = MailboxId::default();
        id.0.iter_mut().zip(hash).for_each(|(octet, hashed)| *octet = hashed);
        (id, UidValidity(inner.made))
    }

    fn bury_all(
        &self,
        inner: &mut Inner,
        to: (&Account, &MailboxName, UidValidity),
        gone: Vec<Message>,
    ) {
        if self.keep.is_zero() {
            return;
        }
        let at_ms = self.clock.unix_ms();
        let (account, name, uid_validity) = to;
        let graves = gone.into_iter().map(|message| {
            let (account, name) = (account.clone(), name.clone());
            Buried { at_ms, account, name, uid_validity, message }
        });
        inner.graveyard.extend(graves);
    }

    fn apply_one(&self, mut batch: Batch) -> Result<Head, StoreError> {
        let Destination { account, mailbox, name, .. } = batch.to.clone();
        self.trip(Call::Apply, &account, Some(mailbox))?;
        let inner = &mut *self.inner();
        if batch.to.mode == Mode::Build {
            return self.build(inner, batch);
        }
        let stale = |mailbox: Option<&Mailbox>| StoreError::Stale(mailbox.map(Mailbox::head));
        let found = inner.mailbox_mut(&account, &name);
        let Some(there) = found.filter(|there| there.id == mailbox) else {
            return Err(stale(None));
        };
        if batch.expect != Some(there.head()) {
            return Err(stale(Some(there)));
        }
        let octets = check(&mut batch, there)?;
        let mut gone = Vec::new();
        let tear = self.take_tear(batch.changes.len());
        let torn = carry_out(there, &batch, octets.clone(), &mut gone, tear);
        if torn.is_ok() && batch.last {
            there.become_like(batch.target, batch.modseq, &batch.keywords);
        }
        let head = there.head();
        inner.remember(&batch, octets);
        self.bury_all(inner, (&account, &name, head.uid_validity), gone);
        torn.map(|()| head)
    }

    fn build(&self, inner: &mut Inner, mut batch: Batch) -> Result<Head, StoreError> {
        let Destination { account, mailbox: id, name, .. } = batch.to.clone();
        if let Some(there) = inner.by_id(&account, id) {
            return Err(StoreError::Stale(Some(there.head())));
        }
        if inner.is_taken(&account, &name) {
            let why = "another mailbox has this name";
            return Err(StoreError::Name { name: name.to_string(), why });
        }
        let key = (account.clone(), id);
        // Additions ascend over all batches: one that does not begins anew.
        let first = batch.changes.iter().find_map(uid_added);
        let goes_on = |begun: &Mailbox| first.is_none() || begun.last_uid() < first;
        let begun = inner.building.remove(&key).filter(goes_on);
        let mut building = match begun {
            Some(begun) => begun,
            None if batch.expect.is_some() => return Err(StoreError::Stale(None)),
            None => Mailbox::new(id, batch.target.uid_validity),
        };
        let octets = check(&mut batch, &building)?;
        let tear = self.take_tear(batch.changes.len());
        carry_out(&mut building, &batch, octets.clone(), &mut Vec::new(), tear)?;
        if batch.last {
            building.become_like(batch.target, batch.modseq, &batch.keywords);
        }
        let head = building.head();
        inner.remember(&batch, octets);
        if batch.last {
            inner.account_mut(&account).mailboxes.insert(name, building);
        } else {
            inner.building.insert(key, building);
        }
        Ok(head)
    }

    fn take_tear(&self, changes: usize) -> usize {
        self.faults().tear.take_if(|tear| *tear < changes).unwrap_or(usize::MAX)
    }
}

impl Inner {
    fn account_mut(&mut self, account: &Account) -> &mut Mail {
        self.accounts.entry(account.clone()).or_default()
    }

    fn mailbox_mut(&mut self, account: &Account, name: &MailboxName) -> Option<&mut Mailbox> {
        self.accounts.get_mut(account)?.mailboxes.get_mut(name)
    }

    fn by_name(&self, account: &Account, name: &MailboxName) -> Option<&Mailbox> {
        self.accounts.get(account)?.mailboxes.get(name)
    }

    fn by_id(&self, account: &Account, id: MailboxId) -> Option<&Mailbox> {
        self.named(account, id).map(|(_, mailbox)| mailbox)
    }

    fn named(&self, account: &Account, id: MailboxId) -> Option<(&MailboxName, &Mailbox)> {
        self.accounts.get(account)?.mailboxes.iter().find(|(_, mailbox)| mailbox.id == id)
    }

    fn by_id_mut(&mut self, account: &Account, id: MailboxId) -> Option<&mut Mailbox> {
        self.accounts.get_mut(account)?.mailboxes.values_mut().find(|mailbox| mailbox.id == id)
    }

    /// Whether a mailbox to be built cannot stand at `name`. An INBOX that has nothing in it is
    /// only what a mail server makes at a login.
    fn is_taken(&self, account: &Account, name: &MailboxName) -> bool {
        let there = self.by_name(account, name);
        there.is_some_and(|there| !(name.is_inbox() && there.is_empty()))
    }

    fn remember(&mut self, batch: &Batch, octets: Vec<Arc<[u8]>>) {
        let adds = batch.changes.iter().filter_map(added);
        for (record, octets) in adds.zip(octets) {
            self.bodies.insert(record.guid, Arc::downgrade(&octets));
        }
        if self.bodies.len() > self.prune_at.max(BODIES_MIN) {
            self.bodies.retain(|_, octets| octets.strong_count() > 0);
            self.prune_at = 2 * self.bodies.len();
        }
    }

    fn put_file(&mut self, account: &Account, key: &FileKey, content: Option<&[u8]>) {
        let files = &mut self.account_mut(account).files;
        match content {
            Some(content) => files.insert(key.clone(), content.to_vec()),
            None => files.remove(key),
        };
    }
}

fn added(change: &Change) -> Option<&Record> {
    match change {
        Change::Add(record) => Some(record),
        Change::Update { .. } | Change::Expunge(_) | Change::Keep(_) => None,
    }
}

fn uid_added(change: &Change) -> Option<Uid> {
    added(change).map(|record| record.uid)
}

/// Refuses what cannot be carried out, before anything is changed; gives the additions' octets.
fn check(batch: &mut Batch, there: &Mailbox) -> Result<Vec<Arc<[u8]>>, StoreError> {
    let fits = |uid: Uid, last: Option<Uid>| match batch.to.mode {
        Mode::Build | Mode::Update => uid >= there.uid_next && Some(uid) > last,
        Mode::Repair => there.get(uid).is_none() && Some(uid) > last,
    };
    let mut last = None;
    for change in &batch.changes {
        match change {
            Change::Add(Record { uid, .. }) => {
                if *uid < Uid(1) || *uid > Uid::MAX || !fits(*uid, last) {
                    return Err(StoreError::UidTaken(*uid));
                }
                last = Some(*uid);
            }
            Change::Update { uid, .. } if there.get(*uid).is_none() => {
                return Err(missing(&batch.to.account, *uid));
            }
            Change::Update { .. } | Change::Expunge(_) | Change::Keep(_) => {}
        }
    }
    let mut staged = std::mem::take(&mut batch.staged).into_iter();
    let adds = batch.changes.iter().filter_map(added);
    adds.map(|record| octets_of(staged.next(), record, &batch.to.account)).collect()
}

fn octets_of(
    staged: Option<Staged>,
    record: &Record,
    account: &Account,
) -> Result<Arc<[u8]>, StoreError> {
    let what = format!("the content of message {} for {account}", record.uid);
    let Some(staged) = staged else { return Err(StoreError::NotFound { what }) };
    if staged.guid() != record.guid {
        return Err(StoreError::Mismatch { what, want: record.guid, got: staged.guid() });
    }
    match staged.take() {
        Place::Memory(octets) => Ok(octets),
        Place::File(..) | Place::Taken => Err(StoreError::NotFound { what }),
    }
}

/// Makes the first `tear` changes, which is all of them unless a test wants otherwise.
fn carry_out(
    there: &mut Mailbox,
    batch: &Batch,
    octets: Vec<Arc<[u8]>>,
    gone: &mut Vec<Message>,
    tear: usize,
) -> Result<(), StoreError> {
    let mut octets = octets.into_iter();
    for (done, change) in batch.changes.iter().enumerate() {
        if done >= tear {
            let source = io::Error::other("broken off by a test");
            return Err(StoreError::Io { op: "write", path: "memory".into(), source });
        }
        match change {
            Change::Add(record) => {
                let octets = octets.next().expect("as many as additions, which was checked");
                there.put(Record { replicated: true, ..record.clone() }, octets);
            }
            Change::Update { uid, internal_date, flags, keywords } => {
                there.update(*uid, |record| {
                    record.internal_date = *internal_date;
                    record.flags = *flags;
                    record.keywords = keywords.clone();
                });
            }
            Change::Expunge(uid) => gone.extend(there.expunge(*uid)),
            Change::Keep(uid) => {
                there.update(*uid, |record| record.replicated = false);
            }
        }
    }
    Ok(())
}

fn missing(account: &Account, uid: Uid) -> StoreError {
    StoreError::NotFound { what: format!("message {uid} of {account}") }
}

fn no_mailbox(account: &Account, id: MailboxId) -> StoreError {
    StoreError::NotFound { what: format!("mailbox {id} of {account}") }
}

impl MailStore for MemoryStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities { engine: "memory", sets_modseq: true, keywords_max: usize::MAX }
    }

    fn verify(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        self.faults().trip(Call::Accounts, None, None)?;
        Ok(self.inner().accounts.keys().cloned().collect())
    }

    fn account(&self, account: &Account) -> Result<Option<Listing>, StoreError> {
        self.trip(Call::Account, account, None)?;
        Ok(self.inner().accounts.get(account).map(Mail::listing))
    }

    fn find(
        &self,
        account: &Account,
        name: &MailboxName,
    ) -> Result<Option<MailboxState>, StoreError> {
        let state = self.inner().by_name(account, name).map(|mailbox| mailbox.state(name));
        self.trip(Call::Find, account, state.as_ref().map(|state| state.id))?;
        Ok(state)
    }

    fn delta(
        &self,
        account: &Account,
        mailbox: MailboxId,
        since: ModSeq,
    ) -> Result<Delta, StoreError> {
        self.trip(Call::Delta, account, Some(mailbox))?;
        let inner = self.inner();
        let found = inner.named(account, mailbox);
        let (name, there) = found.ok_or_else(|| no_mailbox(account, mailbox))?;
        Ok(there.delta(name, since))
    }

    /// A map has no message that it cannot read.
    fn unreadable(&self, _: &Account, _: MailboxId) -> Vec<Unreadable> {
        Vec::new()
    }

    fn reader<'a>(&'a self, account: &'a Account, mailbox: MailboxId) -> Reader<'a> {
        Box::new(move |uid| {
            self.trip(Call::Open, account, Some(mailbox))?;
            let inner = self.inner();
            let there = inner.by_id(account, mailbox).and_then(|mailbox| mailbox.get(uid));
            let message = there.ok_or_else(|| missing(account, uid))?;
            self.faults().trip_message(Call::Open, message.record.guid)?;
            Ok(Octets::new(message.record.octets, Cursor::new(Arc::clone(&message.octets))))
        })
    }

    fn file(&self, account: &Account, key: &FileKey) -> Result<Option<Vec<u8>>, StoreError> {
        self.trip(Call::File, account, None)?;
        Ok(self.inner().accounts.get(account).and_then(|mail| mail.files.get(key).cloned()))
    }

    fn set_file(
        &self,
        account: &Account,
        key: &FileKey,
        content: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        self.trip(Call::SetFile, account, None)?;
        self.inner().put_file(account, key, content);
        Ok(())
    }

    fn restructure(&self, account: &Account, steps: &[Step]) -> Result<(), StoreError> {
        self.trip(Call::Restructure, account, None)?;
        let inner = &mut *self.inner();
        let mail = inner.accounts.get(account);
        let mut next = mail.map(|mail| mail.mailboxes.clone()).unwrap_or_default();
        let mut gone = Vec::new();
        let mut moved = Vec::new();
        for step in steps {
            let (id, name) = match step {
                Step::Delete { id, name } | Step::Reset { id, name } => (*id, name),
                Step::Rename { id, from, .. } => (*id, from),
            };
            let inbox = matches!(step, Step::Rename { to, .. } if to.is_inbox()) || name.is_inbox();
            if inbox != matches!(step, Step::Reset { .. }) {
                let why = "the INBOX stays where it is, and only it is reset";
                return Err(StoreError::Name { name: name.to_string(), why });
            }
            let Entry::Occupied(there) = next.entry(name.clone()) else {
                return Err(StoreError::Stale(None));
            };
            let state = there.get().state(name);
            let leaves = matches!(step, Step::Rename { .. });
            if state.id != id || !leaves && state.foreign > 0 {
                return Err(StoreError::Stale(Some(state.head)));
            }
            let mailbox = there.remove();
            match step {
                Step::Rename { to, .. } => moved.push((to.clone(), mailbox)),
                Step::Delete { .. } | Step::Reset { .. } => gone.push((name.clone(), mailbox)),
            }
        }
        for (to, mailbox) in moved {
            match next.entry(to) {
                Entry::Occupied(there) => {
                    return Err(StoreError::Stale(Some(there.get().head())));
                }
                Entry::Vacant(place) => place.insert(mailbox),
            };
        }
        inner.account_mut(account).mailboxes = next;
        for (name, mailbox) in gone {
            let messages = mailbox.messages().cloned().collect();
            let uid_validity = mailbox.head().uid_validity;
            self.bury_all(inner, (account, &name, uid_validity), messages);
        }
        Ok(())
    }

    fn stage(
        &self,
        destination: &Destination,
        record: &Record,
    ) -> Result<Box<dyn Staging>, StoreError> {
        self.trip(Call::Stage, &destination.account, Some(destination.mailbox))?;
        self.faults().trip_message(Call::Stage, record.guid)?;
        let what = format!("message {} for {}", record.uid, destination.account);
        let (guid, octets) = (record.guid, record.octets);
        Ok(Box::new(Intake { what, guid, octets, taken: Vec::new() }))
    }

    fn stage_held(
        &self,
        destination: &Destination,
        record: &Record,
    ) -> Result<Option<Staged>, StoreError> {
        self.trip(Call::Stage, &destination.account, Some(destination.mailbox))?;
        self.faults().trip_message(Call::Stage, record.guid)?;
        let held = self.inner().bodies.get(&record.guid).and_then(Weak::upgrade);
        let held = held.filter(|octets| octets.len() as u64 == record.octets);
        Ok(held.map(|octets| Staged::new(record.guid, record.octets, Place::Memory(octets))))
    }

    fn apply(&self, batches: Vec<Batch>) -> Vec<Result<Head, StoreError>> {
        batches.into_iter().map(|batch| self.apply_one(batch)).collect()
    }

    fn adopt(&self, account: &Account, mailbox: MailboxId, below: Uid) -> Result<u64, StoreError> {
        let mut inner = self.inner();
        let found = inner.by_id_mut(account, mailbox);
        Ok(found.ok_or_else(|| no_mailbox(account, mailbox))?.adopt(below))
    }

    fn abandon(&self, account: &Account, mailbox: MailboxId) {
        self.inner().building.remove(&(account.clone(), mailbox));
    }

    fn bury(&self) -> Result<u64, StoreError> {
        let (now, keep) = (u128::from(self.clock.unix_ms()), self.keep.as_millis());
        let graves = &mut self.inner().graveyard;
        let before = graves.len();
        graves.retain(|grave| u128::from(grave.at_ms) + keep > now);
        Ok((before - graves.len()) as u64)
    }

    fn graves(
        &self,
        visit: &mut dyn FnMut(Grave) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let all = self.inner().graveyard.clone();
        all.into_iter().try_for_each(|buried| {
            let Message { record, octets, .. } = buried.message;
            visit(Grave {
                at_ms: buried.at_ms,
                account: buried.account,
                mailbox: buried.name,
                uid_validity: buried.uid_validity,
                uid: Some(record.uid),
                guid: Some(guid_of(&octets)),
                octets: record.octets,
                internal_date: record.internal_date,
                place: Place::Memory(octets),
            })
        })
    }

    fn exhume(&self, grave: &Grave) -> Result<Octets, StoreError> {
        match &grave.place {
            Place::Memory(octets) => Ok(Octets::new(grave.octets, Cursor::new(Arc::clone(octets)))),
            Place::File(..) | Place::Taken => {
                Err(StoreError::NotFound { what: "a message of another store".into() })
            }
        }
    }

    fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }

    fn inspect(&self, wanted: &Inspect) -> Result<Inspected, StoreError> {
        self.inspect_one(wanted)
    }

    fn mend(
        &self,
        account: &Account,
        mailbox: MailboxId,
        uid: Uid,
        staged: Option<Staged>,
    ) -> Result<bool, StoreError> {
        self.mend_one(account, mailbox, uid, staged)
    }

    fn give_up(
        &self,
        account: &Account,
        mailbox: MailboxId,
        messages: &[(Uid, Guid)],
    ) -> Result<(), StoreError> {
        self.give_up_some(account, mailbox, messages)
    }
}
