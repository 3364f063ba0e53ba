//! Repair that only this store can carry out: a file that is no longer what was recorded, and
//! messages that an admin gave up.

use std::fs::File;

use mailtwin_disk::index::Batch;
use mailtwin_logic::ids::{Account, Guid, MailboxId, Uid};

use super::{
    build::split,
    engine::Engine,
    fsys::{Dir, during},
    graveyard::Family,
    hash,
    snapshot::{Entry, Marks, Snapshot},
    uidlist,
};
use crate::{
    StoreError,
    staged::{Place, Staged},
};

impl Engine {
    pub(crate) fn mend(
        &self,
        account: &Account,
        id: MailboxId,
        uid: Uid,
        staged: Option<Staged>,
    ) -> Result<bool, StoreError> {
        self.disk()?;
        let mut staged = staged;
        if let Some(Place::File(path, _)) = staged.as_ref().map(Staged::place) {
            let file = File::open(path).map_err(during("open", path))?;
            file.sync_all().map_err(during("sync", path))?;
        }
        self.visit_id(account, id, |name, snapshot, dir| {
            self.cx.shelf.load(snapshot, self.cx.clock.unix_ms())?;
            let entry = snapshot.entries().get(&uid).cloned();
            let entry = entry.ok_or_else(|| StoreError::NotFound { what: what(account, uid) })?;
            let place = dir.sub(entry.place())?.ok_or(StoreError::Stale(None))?;
            let sound = staged.is_none() && is_sound(&place, &entry)?;
            // Names stand still under the lock; nobody writes into messages.
            let lock = self.cx.locker.take(dir, uidlist::LOCK, uidlist::NAME, dir.owner()?)?;
            if place.stat(&entry.name)?.is_none() {
                return Err(StoreError::Stale(Some(snapshot.head())));
            }
            let uid_validity = snapshot.header.uid_validity;
            let family = Family { account, mailbox: name, uid_validity };
            let inode = match staged.take() {
                None if sound => {
                    place.set_date(&entry.name, entry.date)?;
                    entry.inode
                }
                None => return Ok(false),
                Some(staged) => self.replace(&place, family, &entry, staged)?,
            };
            place.sync()?;
            lock.check()?;
            snapshot.refile(uid, inode);
            snapshot.header.marks = Marks::default();
            self.keep_durably(account, name, snapshot)?;
            Ok(true)
        })
    }

    /// Puts other octets in a message's place, in one step.
    fn replace(
        &self,
        place: &Dir,
        family: Family<'_>,
        entry: &Entry,
        staged: Staged,
    ) -> Result<u64, StoreError> {
        if (staged.guid(), staged.octets()) != (entry.guid, entry.octets) {
            let what = what(family.account, entry.uid);
            return Err(StoreError::Mismatch { what, want: entry.guid, got: staged.guid() });
        }
        self.cx.graveyard.before_mending(place, family, entry, self.cx.clock.unix_ms())?;
        let Place::File(path, inode) = staged.take() else {
            return Err(StoreError::NotFound { what: "staged message".into() });
        };
        let (from, name) = split(&path)?;
        let from = Dir::open(&from)?.ok_or(StoreError::Stale(None))?;
        from.rename(&name, place, &entry.name)?;
        Ok(inode)
    }

    pub(crate) fn give_up(
        &self,
        account: &Account,
        id: MailboxId,
        messages: &[(Uid, Guid)],
    ) -> Result<(), StoreError> {
        self.visit_id(account, id, |name, snapshot, _| {
            self.cx.shelf.load(snapshot, self.cx.clock.unix_ms())?;
            for (uid, guid) in messages {
                let held = snapshot.entries().get(uid).cloned();
                if let Some(entry) = held.filter(|held| held.guid == *guid && !held.replicated) {
                    snapshot.put(Entry { replicated: true, ..entry });
                }
            }
            self.keep_durably(account, name, snapshot)
        })
    }

    fn keep_durably(
        &self,
        account: &Account,
        name: &mailtwin_logic::mailbox::MailboxName,
        snapshot: &mut Snapshot,
    ) -> Result<(), StoreError> {
        self.keep(account, name, snapshot)?;
        self.cx.shelf.commit(Batch::default())
    }
}

/// Whether a message has the octets it had.
fn is_sound(place: &Dir, entry: &Entry) -> Result<bool, StoreError> {
    let held = match hash::message(place, &entry.name) {
        Ok(held) => held,
        // What cannot be read is replaced.
        Err(StoreError::Io { .. }) => None,
        Err(error) => return Err(error),
    };
    Ok(held.is_some_and(|(guid, octets, ..)| (guid, octets) == (entry.guid, entry.octets)))
}

fn what(account: &Account, uid: Uid) -> String {
    format!("message {uid} of {account}")
}
