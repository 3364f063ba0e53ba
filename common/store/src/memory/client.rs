//! What mail clients, delivery and faults do to a store in memory: for tests and simulation.

use std::sync::Arc;

use mailtwin_logic::{
    ids::{Account, Guid, MailboxId, ModSeq, Uid, UidValidity},
    mailbox::{FileKey, Flags, Keywords, MailboxName, MailboxState, Record},
};

use super::{
    Inner, Mail, MemoryStore,
    fault::{Call, Fault},
    mailbox::{Mailbox, Message},
};
use crate::{Listing, guid_of};

/// A message to be appended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Letter {
    /// What it consists of.
    pub octets: Vec<u8>,
    /// INTERNALDATE in seconds since 1970.
    pub internal_date: i64,
    /// System flags.
    pub flags: Flags,
    /// User-defined flags.
    pub keywords: Keywords,
}

/// All that a store in memory would still have after a crash.
#[derive(Clone, Debug)]
pub struct Snapshot(Inner);

impl MemoryStore {
    /// Creates an empty mailbox and returns it; `None` if the name is taken.
    pub fn create_mailbox(&self, account: &Account, name: &MailboxName) -> Option<MailboxState> {
        let mut inner = self.inner();
        let (id, uid_validity) = self.fresh(&mut inner);
        let mailboxes = &mut inner.account_mut(account).mailboxes;
        if mailboxes.contains_key(name) {
            return None;
        }
        let mailbox = Mailbox::new(id, uid_validity);
        let state = mailbox.state(name);
        mailboxes.insert(name.clone(), mailbox);
        Some(state)
    }

    /// Delivers a message without flags, dated now, into a mailbox that is created if need be.
    pub fn deliver(&self, account: &Account, name: &MailboxName, octets: &[u8]) -> Uid {
        let internal_date = i64::try_from(self.clock.unix_ms() / 1000).unwrap_or(i64::MAX);
        let letter = Letter { octets: octets.to_vec(), internal_date, ..Letter::default() };
        self.append(account, name, letter)
    }

    /// Appends a message to a mailbox that is created if need be.
    pub fn append(&self, account: &Account, name: &MailboxName, letter: Letter) -> Uid {
        let Letter { octets, internal_date, flags, keywords } = letter;
        let octets: Arc<[u8]> = octets.into();
        let guid = guid_of(&octets);
        let mut inner = self.inner();
        inner.bodies.insert(guid, Arc::downgrade(&octets));
        let (id, uid_validity) = self.fresh(&mut inner);
        let mailboxes = &mut inner.account_mut(account).mailboxes;
        let mailbox =
            mailboxes.entry(name.clone()).or_insert_with(|| Mailbox::new(id, uid_validity));
        let uid = mailbox.uid_next;
        let record = Record {
            uid,
            guid,
            octets: octets.len() as u64,
            internal_date,
            flags,
            keywords,
            modseq: ModSeq(0),
            replicated: false,
            hint: Box::default(),
        };
        mailbox.put(record, octets);
        uid
    }

    /// Sets a message's flags and keywords; tells whether it is there.
    pub fn set_flags(
        &self,
        account: &Account,
        name: &MailboxName,
        uid: Uid,
        flags: Flags,
        keywords: Keywords,
    ) -> bool {
        let mut inner = self.inner();
        let mailbox = inner.mailbox_mut(account, name);
        mailbox.filter(|mailbox| mailbox.get(uid).is_some()).is_some_and(|mailbox| {
            mailbox.update(uid, |record| (record.flags, record.keywords) = (flags, keywords))
        })
    }

    /// Expunges a message as its owner would, without a graveyard; tells whether it was there.
    pub fn expunge(&self, account: &Account, name: &MailboxName, uid: Uid) -> bool {
        let mut inner = self.inner();
        let mailbox = inner.mailbox_mut(account, name);
        mailbox.is_some_and(|mailbox| mailbox.expunge(uid).is_some())
    }

    /// Deletes a mailbox as its owner would; tells whether it was there.
    pub fn delete_mailbox(&self, account: &Account, name: &MailboxName) -> bool {
        let mut inner = self.inner();
        let mail = inner.accounts.get_mut(account);
        mail.is_some_and(|mail| mail.mailboxes.remove(name).is_some())
    }

    /// Renames a mailbox and all below it; tells whether that could be done.
    pub fn rename_mailbox(&self, account: &Account, from: &MailboxName, to: &MailboxName) -> bool {
        let mut inner = self.inner();
        let mailboxes = &mut inner.account_mut(account).mailboxes;
        let below = [from.as_octets(), b"/"].concat();
        let inside = to == from || to.as_octets().starts_with(&below);
        if from.is_inbox() || to.is_inbox() || inside || mailboxes.contains_key(to) {
            return false;
        }
        let moved = mailboxes.keys().filter_map(|name| {
            let rest = name.as_octets().strip_prefix(from.as_octets())?;
            let whole = rest.is_empty() || rest.starts_with(b"/");
            let target = MailboxName::new(&[to.as_octets(), rest].concat()).ok()?;
            whole.then(|| (name.clone(), target))
        });
        let moved: Vec<_> = moved.collect();
        if moved.is_empty() || moved.iter().any(|(_, target)| mailboxes.contains_key(target)) {
            return false;
        }
        for (name, target) in moved {
            if let Some(mailbox) = mailboxes.remove(&name) {
                mailboxes.insert(target, mailbox);
            }
        }
        true
    }

    /// Gives a mailbox another UIDVALIDITY, as a mail server does that lost its lists.
    pub fn set_uid_validity(&self, account: &Account, name: &MailboxName, to: UidValidity) {
        let mut inner = self.inner();
        if let Some(mailbox) = inner.mailbox_mut(account, name) {
            mailbox.uid_validity = to;
        }
    }

    /// Writes (or with `None` removes) a file as its owner would.
    pub fn write_file(&self, account: &Account, key: &FileKey, content: Option<&[u8]>) {
        self.inner().put_file(account, key, content);
    }

    /// Changes a message's octets behind the store's back, as a failing disk does.
    pub fn damage(&self, account: &Account, name: &MailboxName, uid: Uid, octets: &[u8]) {
        if let Some(mailbox) = self.inner().mailbox_mut(account, name) {
            mailbox.replace(uid, octets.into());
        }
    }

    /// A message's record and octets.
    pub fn message(
        &self,
        account: &Account,
        name: &MailboxName,
        uid: Uid,
    ) -> Option<(Record, Vec<u8>)> {
        let inner = self.inner();
        let Message { record, octets } =
            inner.accounts.get(account)?.mailboxes.get(name)?.get(uid)?;
        Some((record.clone(), octets.to_vec()))
    }

    /// Where each message in the graveyard stood, oldest first.
    pub fn graveyard(&self) -> Vec<(Account, MailboxName, Record)> {
        let inner = self.inner();
        let graves = inner.graveyard.iter();
        graves.map(|g| (g.account.clone(), g.name.clone(), g.message.record.clone())).collect()
    }

    /// Lets calls fail.
    pub fn fail(&self, fault: Fault) {
        self.faults().add(fault);
    }

    /// Lets one message, wherever it lies, be unreadable ([`Call::Open`]) or impossible to take in
    /// ([`Call::Stage`]), until [`MemoryStore::heal`].
    pub fn fail_message(&self, call: Call, guid: Guid) {
        self.faults().add_message(call, guid);
    }

    /// Lets the next batch that has more than `changes` changes break off after so many, as a crash
    /// or a full disk would.
    pub fn tear(&self, changes: usize) {
        self.faults().tear = Some(changes);
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.faults().clear();
    }

    /// What an account is now, whatever calls are to fail.
    pub fn peek(&self, account: &Account) -> Listing {
        self.inner().accounts.get(account).map(Mail::listing).unwrap_or_default()
    }

    /// The records of one mailbox, likewise.
    pub fn peek_records(&self, account: &Account, mailbox: MailboxId) -> Vec<Record> {
        let inner = self.inner();
        let messages = inner.by_id(account, mailbox).into_iter().flat_map(Mailbox::messages);
        messages.map(|message| message.record.clone()).collect()
    }

    /// Everything that is durable now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.inner().clone())
    }

    /// Goes back to a snapshot, as a restore from a backup does. What was half-built is gone; no
    /// mailbox made from now on gets the identity of one that was.
    pub fn restore(&self, snapshot: &Snapshot) {
        let mut inner = self.inner();
        let made = inner.made.max(snapshot.0.made);
        *inner = Inner { made, ..snapshot.0.clone() };
        inner.building.clear();
    }

    /// Loses what a process loses that is killed: everything half-built.
    pub fn crash(&self) {
        self.inner().building.clear();
    }
}
