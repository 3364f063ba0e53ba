//! A mailbox that is not there yet: collected, then shown whole.

use std::collections::BTreeMap;

use mailtwin_cyrus::{mailbox::Mailbox, names};
use mailtwin_disk::index::Batch as IndexBatch;
use mailtwin_logic::{
    ids::{Account, ModSeq, Uid},
    mailbox::{Head, MailboxName, Record},
    plan::Change,
};

use super::{
    Cell, Cyrus,
    apply::{Work, all_values, check_new, check_staged, first_messages},
    files, index_failed, note_held,
    server::Session,
    snapshot::Snapshot,
};
use crate::{Batch, Staged, StoreError};

/// What an owner may do in a mailbox of theirs, unless somebody has said otherwise.
pub(super) const OWNER_RIGHTS: &str = "lrswipkxtecdan";

/// A mailbox being collected.
#[derive(Debug, Default)]
pub(super) struct Building {
    records: Vec<Record>,
    /// What Cyrus does not have yet.
    staged: Vec<Staged>,
    /// Where the others wait, so that they go to the disk while more are coming in.
    session: Option<Session>,
}

impl Cyrus {
    pub(super) fn build(
        &self,
        account: &Account,
        cell: &mut Cell,
        mut batch: Batch,
    ) -> Result<Head, StoreError> {
        let (id, name) = (batch.to.mailbox, batch.to.name.clone());
        if let Some(there) = self.refresh_id(account, cell, id)? {
            return Err(StoreError::Stale(Some(there.head())));
        }
        let at = self.internal(account, cell, &name)??;
        self.make_room(account, cell, &at, &name)?;
        let mut building = cell.building.remove(&id).unwrap_or_default();
        let first = batch.changes.iter().find_map(|change| added(change).map(|r| r.uid));
        let last = building.records.last().map(|record| record.uid);
        // Additions ascend over all batches: one that does not begins anew.
        if first.is_some() && last >= first {
            building = Building::default();
        }
        if building.records.is_empty() && batch.expect.is_some() {
            return Err(StoreError::Stale(None));
        }
        let mut work = Work { changed: [].into(), expunged: Vec::new(), kept: Vec::new() };
        for record in batch.changes.iter().filter_map(added) {
            check_new(record, &work, true)?;
            work.changed.insert(record.uid, (record.clone(), true));
        }
        check_staged(&batch)?;
        building.records.extend(work.changed.into_values().map(|(record, _)| record));
        building.staged.append(&mut batch.staged);
        if batch.last {
            return self.show(account, cell, &batch, building);
        }
        building.session = self.server.send_ahead(building.session.take(), &building.staged)?;
        if building.session.is_some() {
            building.staged.clear();
        }
        let records = &building.records;
        let head = Head {
            uid_next: records.last().map_or(Uid(1), |record| record.uid.next()),
            messages: u32::try_from(records.len()).unwrap_or(u32::MAX),
            digest: mailtwin_logic::digest::Digest::of(records),
            ..batch.target
        };
        cell.building.insert(id, building);
        Ok(head)
    }

    fn show(
        &self,
        account: &Account,
        cell: &mut Cell,
        batch: &Batch,
        building: Building,
    ) -> Result<Head, StoreError> {
        let (id, name) = (batch.to.mailbox, &batch.to.name);
        if !name.is_inbox() {
            self.ensure_inbox(account, cell)?;
        }
        self.ensure_parents(account, cell, name)?;
        let at = self.internal(account, cell, name)??;
        let unique_id = names::unique_id(id.0);
        let is_deleted = self.free_identity(account, (&unique_id, name), &at)?;
        let acl = files::owner(account).map(|owner| format!("{owner}\t{OWNER_RIGHTS}\t"));
        let acl = acl.unwrap_or_default().into_bytes();
        let new = Mailbox::new(at.clone(), unique_id, batch.target.uid_validity.0, acl);
        let last = building.records.last().map_or(0, |record| record.uid.0);
        let last_uid = last.max(batch.target.uid_next.0.saturating_sub(1));
        let now = self.clock.unix_ms() / 1000;
        let (are_told, floor) = (batch.modseq != ModSeq(0), self.modseq_floor(batch));
        let (messages, highest_modseq) = first_messages(&building.records, are_told, floor);
        let new = Mailbox { last_uid, highest_modseq, ..new };
        let mut notes = IndexBatch::default();
        for uid in self.held(id)?.keys() {
            note_held(&mut notes, id, *uid, None); // of an earlier mailbox with this identity
        }
        for record in &building.records {
            note_held(&mut notes, id, record.uid, Some(record.guid));
        }
        self.index.commit(notes).map_err(index_failed)?;
        let change = (&at[..], &new.value(all_values(&new, &messages, now), None));
        let session = building.session.map_or_else(|| self.server.session(), Ok)?;
        self.server.finish(session, change, &building.staged, is_deleted.then_some(&[]))?;
        let shown = self.refresh_id_at(account, cell, &at, name)?;
        shown.ok_or(StoreError::Stale(None))
    }

    /// The head of the mailbox that stands at `at`, which was not known before.
    fn refresh_id_at(
        &self,
        account: &Account,
        cell: &mut Cell,
        at: &[u8],
        name: &MailboxName,
    ) -> Result<Option<Head>, StoreError> {
        let Some(mailbox) = self.server.by_name(at)? else { return Ok(None) };
        let snapshot = self.refresh(account, cell, mailbox, name.clone())?;
        Ok(snapshot.map(|snapshot| snapshot.head()))
    }

    /// Refuses a place where another mailbox stands. An INBOX without messages is only what Cyrus
    /// has made for a new user, and gives way; but with an INBOX Cyrus removes whatever the user has.
    fn make_room(
        &self,
        account: &Account,
        cell: &Cell,
        at: &[u8],
        name: &MailboxName,
    ) -> Result<(), StoreError> {
        let Some((there, messages)) = self.server.full(at)? else { return Ok(()) };
        if there.is_intermediate() {
            return Ok(());
        }
        let user = self.server.user(account.as_str(), &self.listed(account, cell)?)?;
        let is_other = |mailbox: &&Mailbox| mailbox.name != at && !mailbox.is_intermediate();
        if self.server.options.inbox_first
            && name.is_inbox()
            && (user.mailboxes.iter().any(|one| is_other(&one)) || !user.scripts.is_empty())
        {
            let why = "there is another INBOX, and with it everything that this user has here would \
                       go; take the user away there if nothing of it is needed";
            return Err(StoreError::Name { name: name.to_string(), why });
        }
        if name.is_inbox() && messages.is_empty() {
            if there.last_uid == 0 {
                return Ok(()); // Cyrus replaces it by itself
            }
            let at = mailtwin_cyrus::Value::text(at);
            return self.server.apply("delete", "UNMAILBOX", &at);
        }
        let why = "another mailbox has this name";
        Err(StoreError::Name { name: name.to_string(), why })
    }

    /// Makes what is missing above a mailbox a place in the hierarchy only: left to itself, Cyrus makes
    /// mailboxes there that nobody has asked for.
    fn ensure_parents(
        &self,
        account: &Account,
        cell: &mut Cell,
        name: &MailboxName,
    ) -> Result<(), StoreError> {
        let parts: Vec<&[u8]> = name.parts().collect();
        for depth in 1..parts.len() {
            let above = parts.get(..depth).unwrap_or_default().join(&b'/');
            let Ok(above) = MailboxName::new(&above) else { continue };
            let at = self.internal(account, cell, &above)??;
            if self.server.by_name(&at)?.is_some() {
                continue;
            }
            let unique_id = names::unique_id(crate::maildir::random_id()?.0);
            self.server.bring(&at, &[], &Mailbox::place(&at, &unique_id), None)?;
        }
        Ok(())
    }

    /// Takes a mailbox's identity away from what else has it: Cyrus takes the mailbox under no other
    /// name. Where others are below what is deleted, it leaves a place in the hierarchy; and what a
    /// client has deleted is kept under another name for a while. Tells whether the latter stands at
    /// `at` now, and has to be taken away there: from where it was, its identity would not come back.
    fn free_identity(
        &self,
        account: &Account,
        (unique_id, name): (&str, &MailboxName),
        at: &[u8],
    ) -> Result<bool, StoreError> {
        let Some(there) = self.server.by_id(unique_id, at)? else { return Ok(false) };
        if there.name == at {
            return Ok(false);
        }
        if names::is_deleted(&there.name) {
            self.bury_deleted(account, name, &there.name)?;
            self.rename(&there, at)?;
            return Ok(true);
        }
        if !there.is_intermediate() {
            return Ok(false);
        }
        let another = names::unique_id(crate::maildir::random_id()?.0);
        let place = Mailbox::place(&there.name, &another);
        self.server.bring(&there.name, &[], &place, None).map(|()| false)
    }

    /// Copies the messages of what a client has deleted and the server has kept into the graveyard,
    /// under the name that the mailbox had.
    fn bury_deleted(
        &self,
        account: &Account,
        name: &MailboxName,
        kept: &[u8],
    ) -> Result<(), StoreError> {
        let Some((mailbox, messages)) = self.server.full(kept)? else { return Ok(()) };
        let mut snapshot = Snapshot::new(mailbox.clone(), name.clone());
        snapshot.learn(mailbox, messages, &BTreeMap::new());
        let uids: Vec<Uid> = snapshot.records().map(|record| record.uid).collect();
        self.bury(account, &snapshot, &uids)
    }

    /// Makes an empty INBOX if there is none: without one, Cyrus takes neither another mailbox of a
    /// user's nor a script. Shared mailboxes need none.
    pub(super) fn ensure_inbox(
        &self,
        account: &Account,
        cell: &mut Cell,
    ) -> Result<(), StoreError> {
        if files::owner(account).is_none() {
            return Ok(());
        }
        let inbox = MailboxName::inbox();
        let at = self.internal(account, cell, &inbox)??;
        if self.server.by_name(&at)?.is_some_and(|there| !there.is_intermediate()) {
            return Ok(());
        }
        if self.server.options.inbox_first {
            return Err(StoreError::InboxFirst { account: account.clone() });
        }
        let id = crate::maildir::random_id()?;
        let unique_id = names::unique_id(id.0);
        let acl = format!("{account}\t{OWNER_RIGHTS}\t").into_bytes();
        let now = u32::try_from(self.clock.unix_ms() / 1000).unwrap_or(1);
        let make = |at: Vec<u8>| {
            let new = Mailbox::new(at.clone(), unique_id.clone(), now, acl.clone());
            self.server.bring(&at, &[], &new.value(Vec::new(), None), None)
        };
        let made = make(at);
        if made.is_ok() || cell.virtual_domain.is_some() || !account.as_str().contains('@') {
            return made;
        }
        // Nothing of this user was seen: whether an `@` begins a virtual domain shows only now.
        cell.virtual_domain = Some(false);
        make(self.internal(account, cell, &inbox)??)
    }
}

fn added(change: &Change) -> Option<&Record> {
    match change {
        Change::Add(record) => Some(record),
        Change::Update { .. } | Change::Expunge(_) | Change::Keep(_) => None,
    }
}
