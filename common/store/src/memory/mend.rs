//! Looking at messages with distrust, and mending them.

use mailtwin_logic::{
    check::{Inspect, Inspected},
    ids::{Account, Guid, MailboxId, Uid},
};

use super::{Call, MemoryStore, missing, no_mailbox, octets_of};
use crate::{StoreError, guid_of, staged::Staged};

impl MemoryStore {
    pub(super) fn inspect_one(&self, wanted: &Inspect) -> Result<Inspected, StoreError> {
        self.trip(Call::Delta, &wanted.account, Some(wanted.mailbox))?;
        let inner = self.inner();
        let found = inner.named(&wanted.account, wanted.mailbox);
        Ok(found.map(|(name, there)| there.inspect(name, wanted)).unwrap_or_default())
    }

    pub(super) fn mend_one(
        &self,
        account: &Account,
        mailbox: MailboxId,
        uid: Uid,
        staged: Option<Staged>,
    ) -> Result<bool, StoreError> {
        let inner = &mut *self.inner();
        let absent = || no_mailbox(account, mailbox);
        let name = inner.named(account, mailbox).map(|(name, _)| name.clone());
        let name = name.ok_or_else(absent)?;
        let there = inner.by_id_mut(account, mailbox).ok_or_else(absent)?;
        let held = there.get(uid).cloned().ok_or_else(|| missing(account, uid))?;
        if staged.is_none() {
            return Ok(guid_of(&held.octets) == held.record.guid);
        }
        let octets = octets_of(staged, &held.record, account)?;
        there.replace(uid, octets);
        let uid_validity = there.uid_validity;
        self.bury_all(inner, (account, &name, uid_validity), vec![held]);
        Ok(true)
    }

    pub(super) fn give_up_some(
        &self,
        account: &Account,
        mailbox: MailboxId,
        messages: &[(Uid, Guid)],
    ) -> Result<(), StoreError> {
        let inner = &mut *self.inner();
        let there = inner.by_id_mut(account, mailbox);
        let there = there.ok_or_else(|| no_mailbox(account, mailbox))?;
        for (uid, guid) in messages {
            if there.get(*uid).is_some_and(|held| held.record.guid == *guid) {
                there.update(*uid, |record| record.replicated = true);
            }
        }
        Ok(())
    }
}
