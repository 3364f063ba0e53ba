//! Changes to one mailbox that is there, brought to Cyrus as one state.
//!
//! Who put a message there is noted before Cyrus has it, by UID and GUID: after a crash in between,
//! another message that came under that UID is not taken for replication's.

use std::collections::BTreeMap;

use mailtwin_cyrus::{
    Value,
    mailbox::{EXPUNGED, Mailbox, Message},
};
use mailtwin_disk::index::Batch as IndexBatch;
use mailtwin_logic::{
    ids::{Account, Guid, ModSeq, Uid, UidValidity},
    mailbox::{Head, Record},
    plan::{Change, Mode},
};

use super::{
    Cell, Cyrus, index_failed, lock, no_message, note_held,
    snapshot::{Snapshot, message_of},
    vanished::vanished,
};
use crate::{Batch, Destination, StoreError};

/// MODSEQs have 63 bits (RFC 7162, 3.1.3).
const MODSEQ_MAX: u64 = u64::MAX >> 1;

/// A batch taken apart and found good.
pub(super) struct Work {
    /// Records as they shall be, by UID, and whether each is new.
    pub(super) changed: BTreeMap<Uid, (Record, bool)>,
    pub(super) expunged: Vec<Uid>,
    pub(super) kept: Vec<Uid>,
}

impl Cyrus {
    pub(super) fn apply_one(&self, batch: Batch) -> Result<Head, StoreError> {
        self.verify_store()?;
        let account = batch.to.account.clone();
        let cell = self.cell(&account);
        let mut cell = lock(&cell);
        if batch.to.mode == Mode::Build {
            return self.build(&account, &mut cell, batch);
        }
        let found = self.refresh_id(&account, &mut cell, batch.to.mailbox)?;
        let Some(snapshot) = found.filter(|snapshot| snapshot.name == batch.to.name) else {
            return Err(StoreError::Stale(None));
        };
        if batch.expect != Some(snapshot.head()) {
            return Err(StoreError::Stale(Some(snapshot.head())));
        }
        let work = take_apart(&batch, snapshot)?;
        let head = snapshot.head();
        let uid_validity = if batch.last { batch.target.uid_validity } else { head.uid_validity };
        let is_new_below =
            work.changed.iter().any(|(uid, (_, is_new))| *is_new && *uid < head.uid_next);
        let is_rebuilt = is_new_below || uid_validity != head.uid_validity;
        if is_rebuilt && self.server.options.is_master {
            // Killed half-way, it would leave the master without the mailbox.
            return Err(StoreError::UnderClients { mailbox: batch.to.name });
        }
        if is_rebuilt {
            self.rebuild(&account, &mut cell, &batch, &work)
        } else {
            self.update(&account, &mut cell, &batch, work)
        }
    }

    fn update(
        &self,
        account: &Account,
        cell: &mut Cell,
        batch: &Batch,
        work: Work,
    ) -> Result<Head, StoreError> {
        let id = batch.to.mailbox;
        let Some(snapshot) = cell.boxes.get_mut(&id) else {
            return Err(StoreError::Stale(None));
        };
        let before = snapshot.mailbox.clone();
        let news = work.changed.values().filter(|(_, is_new)| *is_new).map(|(record, _)| record);
        let is_changed = !work.changed.is_empty() || !work.expunged.is_empty();
        let own =
            if is_changed { next_modseq(&before, news.clone()) } else { before.highest_modseq };
        let last = news.clone().map(|record| record.uid).next_back().unwrap_or_default();
        let target = Uid(batch.target.uid_next.0.saturating_sub(1));
        let last_uid = last.0.max(before.last_uid).max(if batch.last { target.0 } else { 0 });
        let is_more = is_changed || last_uid != before.last_uid;
        let floor = if is_more { self.modseq_floor(batch) } else { batch.modseq.0 };
        let modseq = own.max(floor).min(MODSEQ_MAX);
        let after = Mailbox { last_uid, highest_modseq: modseq, ..before.clone() };
        let mut notes = IndexBatch::default();
        for record in news {
            note_held(&mut notes, id, record.uid, Some(record.guid));
        }
        for uid in &work.kept {
            note_held(&mut notes, id, *uid, None);
        }
        self.index.commit(notes).map_err(index_failed)?;
        for uid in &work.kept {
            snapshot.mark(*uid, false);
        }
        if !is_changed && (last_uid, modseq) == (before.last_uid, before.highest_modseq) {
            return Ok(snapshot.head());
        }
        let snapshot = &*snapshot;
        self.bury(account, snapshot, &work.expunged)?;
        let now = self.clock.unix_ms() / 1000;
        let mut records = BTreeMap::new();
        for (record, _) in work.changed.values() {
            records.insert(record.uid, snapshot.message(record, modseq).value(now));
        }
        for record in work.expunged.iter().filter_map(|uid| snapshot.get(*uid)) {
            let mut message = snapshot.message(record, modseq);
            message.flags.push(EXPUNGED.to_vec());
            records.insert(record.uid, message.value(now));
        }
        let skipped = before.last_uid.saturating_add(1)..=last_uid;
        let is_new = |uid| records.contains_key(&uid);
        let gone: Vec<_> = vanished(&before.unique_id, skipped, is_new, modseq).collect();
        records.extend(gone.into_iter().map(|message| (Uid(message.uid), message.value(now))));
        let value = after.value(records.into_values().collect(), Some(&before));
        match self.server.bring(&before.name, &batch.staged, &value, None) {
            Err(error) if error.reason() == crate::Reason::Busy => {
                // Somebody was faster, or the connection broke: looked at again, planned again.
                tracing::debug!(error = %mailtwin_logic::chain::Chain(&error), "to be planned again");
                return Err(StoreError::Stale(None));
            }
            other => other?,
        }
        self.after_change(account, cell, (&batch.to, &before, &after), work)
    }

    /// What HIGHESTMODSEQ is to be at least, so that clients that come from the master hear of this
    /// change. A Dovecot that was copied to counts on from milliseconds (see the Maildir engine's
    /// index logs), any other from one: both are below the time.
    pub(super) fn modseq_floor(&self, batch: &Batch) -> u64 {
        if batch.modseq == ModSeq(0) { self.clock.unix_ms() } else { batch.modseq.0 }
    }

    /// What is known afterwards: what was just changed if nobody else did, or what a look tells.
    fn after_change(
        &self,
        account: &Account,
        cell: &mut Cell,
        (to, before, after): (&Destination, &Mailbox, &Mailbox),
        work: Work,
    ) -> Result<Head, StoreError> {
        let gone = || StoreError::Stale(None);
        let mut notes = IndexBatch::default();
        for uid in &work.expunged {
            note_held(&mut notes, to.mailbox, *uid, None);
        }
        self.index.apply(notes).map_err(index_failed)?;
        let mailbox = self.server.by_id(&before.unique_id, &before.name)?.ok_or_else(gone)?;
        let key = |mailbox: &Mailbox| {
            let Mailbox { uid_validity, last_uid, highest_modseq, .. } = mailbox;
            (*uid_validity, *last_uid, *highest_modseq)
        };
        let head = if key(&mailbox) == key(after) {
            let snapshot = cell.boxes.get_mut(&to.mailbox).ok_or_else(gone)?;
            let changed = work.changed.into_values();
            let changed = changed.map(|(record, is_new)| {
                let replicated = record.replicated || is_new;
                Record { replicated, hint: Box::default(), ..record }
            });
            snapshot.advance(mailbox, changed.collect(), &work.expunged);
            snapshot.head()
        } else {
            let snapshot = self.refresh(account, cell, mailbox, to.name.clone())?;
            snapshot.ok_or_else(gone)?.head()
        };
        if let Some(snapshot) = cell.boxes.get(&to.mailbox) {
            self.remember(account, snapshot);
        }
        Ok(head)
    }

    /// Takes the mailbox away and gives it back whole, in one go: the only way to messages below
    /// UIDNEXT, and to another UIDVALIDITY. Copies of what only this node has are kept first.
    fn rebuild(
        &self,
        account: &Account,
        cell: &mut Cell,
        batch: &Batch,
        work: &Work,
    ) -> Result<Head, StoreError> {
        let id = batch.to.mailbox;
        let gone = || StoreError::Stale(None);
        let snapshot = cell.boxes.get(&id).ok_or_else(gone)?;
        let before = snapshot.mailbox.clone();
        self.bury(account, snapshot, &work.expunged)?;
        let stays = |record: &&Record| !work.expunged.contains(&record.uid);
        let mut records: BTreeMap<Uid, Record> =
            snapshot.records().filter(stays).map(|record| (record.uid, record.clone())).collect();
        let own: Vec<Uid> = records.values().filter(|r| !r.replicated).map(|r| r.uid).collect();
        self.bury(account, snapshot, &own)?;
        let held: Vec<Guid> = records.values().map(|record| record.guid).collect();
        let mut notes = IndexBatch::default();
        for (uid, (record, is_new)) in &work.changed {
            if *is_new {
                note_held(&mut notes, id, *uid, Some(record.guid));
            }
            records.insert(*uid, record.clone());
        }
        for uid in work.kept.iter().chain(&work.expunged) {
            note_held(&mut notes, id, *uid, None);
        }
        self.index.commit(notes).map_err(index_failed)?;
        let news = work.changed.values().map(|(record, _)| record);
        let highest_modseq = next_modseq(&before, news).max(self.modseq_floor(batch));
        let highest_modseq = highest_modseq.min(MODSEQ_MAX);
        let last = records.keys().next_back().map_or(0, |uid| uid.0);
        let target = if batch.last { batch.target } else { snapshot.head() };
        let floor = if target.uid_validity.0 == before.uid_validity { before.last_uid } else { 0 };
        let last_uid = last.max(target.uid_next.0.saturating_sub(1)).max(floor);
        let uid_validity = target.uid_validity.0;
        let after = Mailbox { uid_validity, last_uid, highest_modseq, ..before.clone() };
        let now = self.clock.unix_ms() / 1000;
        let message = |record| snapshot.message(record, highest_modseq);
        let messages: Vec<Message> = records.values().map(message).collect();
        let value = after.value(all_values(&after, &messages, now), None);
        self.server.bring(&before.name, &batch.staged, &value, Some(&held))?;
        let found = self.refresh_id(account, cell, id)?.ok_or_else(gone)?;
        Ok(found.head())
    }

    /// Keeps copies of messages in the graveyard; those that cannot be read any more are left out.
    pub(super) fn bury(
        &self,
        account: &Account,
        snapshot: &Snapshot,
        uids: &[Uid],
    ) -> Result<(), StoreError> {
        if self.server.options.graveyard.is_zero() {
            return Ok(());
        }
        let uid_validity = UidValidity(snapshot.mailbox.uid_validity);
        for record in uids.iter().filter_map(|uid| snapshot.get(*uid)) {
            let fetched = self.server.fetch(&snapshot.mailbox, record.uid, record.guid);
            let octets = match fetched {
                Ok(super::server::Fetched::Octets(octets)) => octets,
                Ok(super::server::Fetched::Wrong) => continue,
                Err(error) if error.reason() == crate::Reason::Missing => continue,
                Err(error) => return Err(error),
            };
            let at = (account, &snapshot.name, uid_validity);
            self.bury_octets(at, record, &octets, record.guid)?;
        }
        Ok(())
    }

    /// Notes that replication may take messages away.
    pub(super) fn take_for_ours(
        &self,
        snapshot: &mut Snapshot,
        messages: &[(Uid, Guid)],
    ) -> Result<(), StoreError> {
        let mut notes = IndexBatch::default();
        for (uid, guid) in messages {
            note_held(&mut notes, snapshot.id(), *uid, Some(*guid));
        }
        self.index.commit(notes).map_err(index_failed)?;
        for (uid, _) in messages {
            snapshot.mark(*uid, true);
        }
        Ok(())
    }
}

/// A MODSEQ above all that the mailbox has had, and no lower than the master's for what is new, so
/// that a client that comes from there misses less.
pub(super) fn next_modseq<'a>(before: &Mailbox, news: impl Iterator<Item = &'a Record>) -> u64 {
    let told = news.map(|record| record.modseq.0).max().unwrap_or(0);
    told.max(before.highest_modseq.saturating_add(1)).min(MODSEQ_MAX)
}

/// Refuses what cannot be carried out, before anything is changed.
fn take_apart(batch: &Batch, snapshot: &Snapshot) -> Result<Work, StoreError> {
    let uid_next = snapshot.head().uid_next;
    let mut work = Work { changed: BTreeMap::new(), expunged: Vec::new(), kept: Vec::new() };
    for change in &batch.changes {
        match change {
            Change::Add(record) => {
                let fits = match batch.to.mode {
                    Mode::Build | Mode::Update => record.uid >= uid_next,
                    Mode::Repair => snapshot.get(record.uid).is_none(),
                };
                check_new(record, &work, fits)?;
                work.changed.insert(record.uid, (record.clone(), true));
            }
            Change::Update { uid, internal_date, flags, keywords } => {
                let held = snapshot.get(*uid);
                let held = held.ok_or_else(|| no_message(&batch.to.account, *uid))?;
                let (flags, keywords) = (*flags, keywords.clone());
                let record =
                    Record { internal_date: *internal_date, flags, keywords, ..held.clone() };
                work.changed.insert(*uid, (record, false));
            }
            Change::Expunge(uid) if snapshot.get(*uid).is_some() => work.expunged.push(*uid),
            Change::Expunge(_) => {}
            Change::Keep(uid) => work.kept.push(*uid),
        }
    }
    work.changed.retain(|uid, _| !work.expunged.contains(uid));
    check_staged(batch)?;
    Ok(work)
}

/// Refuses a record that cannot be added after those of `work`.
pub(super) fn check_new(record: &Record, work: &Work, fits: bool) -> Result<(), StoreError> {
    let uid = record.uid;
    let last = work.changed.iter().rev().find(|(_, (_, is_new))| *is_new);
    if uid < Uid(1) || uid > Uid::MAX || !fits || last.is_some_and(|(last, _)| *last >= uid) {
        return Err(StoreError::UidTaken(uid));
    }
    if record.octets == 0 {
        let why = "Cyrus keeps no message without octets";
        return Err(StoreError::Name { name: format!("message {uid}"), why }.of_message(uid));
    }
    Ok(())
}

/// Every addition has its octets, in order.
pub(super) fn check_staged(batch: &Batch) -> Result<(), StoreError> {
    let mut staged = batch.staged.iter();
    for change in &batch.changes {
        let Change::Add(record) = change else { continue };
        let what = format!("the content of message {} for {}", record.uid, batch.to.account);
        let Some(octets) = staged.next() else { return Err(StoreError::NotFound { what }) };
        if octets.guid() != record.guid {
            return Err(StoreError::Mismatch { what, want: record.guid, got: octets.guid() });
        }
    }
    Ok(())
}

/// A new mailbox's messages, with the master's own MODSEQs if they say something (`are_told`), and
/// the highest of these and `floor`.
pub(super) fn first_messages(
    records: &[Record],
    are_told: bool,
    floor: u64,
) -> (Vec<Message>, u64) {
    let floor = floor.clamp(1, MODSEQ_MAX);
    let told = |record: &Record| record.modseq.0.clamp(1, MODSEQ_MAX);
    let modseq = |record: &Record| if are_told { told(record) } else { floor };
    let highest = records.iter().map(modseq).max().unwrap_or(1).max(floor);
    (records.iter().map(|record| message_of(record, modseq(record))).collect(), highest)
}

/// All that a whole mailbox consists of: `messages`, in the order of their UIDs, and what is gone.
pub(super) fn all_values(mailbox: &Mailbox, messages: &[Message], now: u64) -> Vec<Value> {
    let values = messages.iter().map(|message| (message.uid, message.value(now)));
    let mut values: BTreeMap<u32, Value> = values.collect();
    let is_there = |uid: Uid| values.contains_key(&uid.0);
    let (uids, modseq) = (1..=mailbox.last_uid, mailbox.highest_modseq);
    let gone: Vec<Message> = vanished(&mailbox.unique_id, uids, is_there, modseq).collect();
    values.extend(gone.iter().map(|message| (message.uid, message.value(now))));
    values.into_values().collect()
}
