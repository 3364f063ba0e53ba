//! Messages that cannot be replicated while their neighbours can: left out, and named.

use std::collections::BTreeMap;

use mailtwin_logic::{
    ids::{Account, MailboxId, ModSeq, Uid},
    mailbox::{Head, Record},
    plan::{self, Change, Mode, Plan},
};
use mailtwin_store::{Delta, Description, MailStore, Reason, StoreError, Unreadable};

use super::{Trouble, VisitError, Visitor, mailbox::Found};
use crate::quarantine::{BadMessage, cut};

/// Messages of one mailbox that are left out and named; with more, the mailbox is the trouble.
pub(super) const BAD_MAX: usize = 32;

impl Visitor {
    /// Takes what was found bad out of a plan.
    pub(super) async fn leave_out(
        &self,
        account: &Account,
        delta: &Delta,
        plan: &mut Plan,
        held: Option<Head>,
        found: &mut Found,
    ) -> Result<(), VisitError> {
        if found.bad.is_empty() {
            return Ok(());
        }
        if plan.mode == Mode::Build {
            // Each further one would cost building from the beginning: better look at all at once.
            self.open_all(account, delta.state.id, plan, found).await?;
        }
        plan.changes.retain(|change| !found.bad.contains_key(&uid_of(change)));
        let first = plan.changes.iter().find_map(|change| match change {
            Change::Add(record) => Some(record.uid),
            Change::Update { .. } | Change::Expunge(_) | Change::Keep(_) => None,
        });
        plan.mode = plan::mode(delta.state.head, held, first);
        Ok(())
    }

    /// Opens every message that is to be sent; notes those that cannot be.
    async fn open_all(
        &self,
        account: &Account,
        mailbox: MailboxId,
        plan: &Plan,
        found: &mut Found,
    ) -> Result<(), VisitError> {
        if std::mem::replace(&mut found.checked, true) {
            return Ok(());
        }
        let uids: Vec<Uid> = plan.changes.iter().map(uid_of).collect();
        let whose = account.clone();
        let open = move |store: &dyn MailStore| {
            let closed = uids.into_iter().filter_map(|uid| {
                let error = store.open(&whose, mailbox, uid).err()?.of_message(uid);
                matches!(error, StoreError::Message { .. }).then_some(error)
            });
            Ok(closed.take(BAD_MAX).collect::<Vec<StoreError>>())
        };
        for error in self.work(open).await? {
            if let VisitError::Message(uid, trouble) = error.into() {
                found.bad.insert(uid, trouble);
            }
        }
        Ok(())
    }

    /// What the messages left out are.
    pub(super) async fn bad_messages(
        &self,
        account: &Account,
        mailbox: MailboxId,
        bad: &BTreeMap<Uid, Trouble>,
    ) -> Result<Option<Trouble>, VisitError> {
        let Some((first, cause)) = bad.first_key_value() else { return Ok(None) };
        let (whose, uids) = (account.clone(), bad.keys().copied().collect::<Vec<_>>());
        let read = move |store: &dyn MailStore| {
            let records = store.delta(&whose, mailbox, ModSeq(0))?.records;
            let names: BTreeMap<Uid, String> =
                records.iter().map(|record| (record.uid, name_of(record))).collect();
            let one = |uid: Uid| {
                let about = Description::read(store, &whose, mailbox, uid).to_string();
                (names.get(&uid).cloned().unwrap_or_default(), about)
            };
            Ok(uids.into_iter().map(one).collect::<Vec<_>>())
        };
        let about = self.work(read).await?;
        let one = |((uid, cause), (name, about)): ((&Uid, &Trouble), (String, String))| {
            let (reason, detail) = (cause.reason, cut(&cause.detail));
            BadMessage { uid: Some(*uid), name, about, reason, detail }
        };
        let messages: Vec<BadMessage> = bad.iter().zip(about).map(one).collect();
        let (count, detail) = (messages.len(), &cause.detail);
        let detail = format!("{count} messages are left out, the first {first}: {detail}");
        Ok(Some(Trouble { bad: messages, ..Trouble::new(cause.reason, detail) }))
    }
}

/// The trouble with messages that no record tells of, because they cannot be read.
pub(super) fn unreadable(unread: &[Unreadable]) -> Option<Trouble> {
    let first = unread.first()?;
    let (count, Unreadable { name, detail }) = (unread.len(), first);
    let detail =
        format!("master: {count} messages cannot be read, the first in file {name}: {detail}");
    let one = |message: &Unreadable| BadMessage {
        uid: None,
        name: message.name.clone(),
        about: String::new(),
        reason: Reason::Unreadable,
        detail: cut(&message.detail),
    };
    let bad = unread.iter().take(BAD_MAX).map(one).collect();
    Some(Trouble { bad, ..Trouble::new(Reason::Unreadable, detail) })
}

/// The file's name that a Maildir's hint ends with.
fn name_of(record: &Record) -> String {
    let after = record.hint.splitn(2, |&octet| octet == b':').nth(1).unwrap_or_default();
    cut(&after.escape_ascii().to_string())
}

fn uid_of(change: &Change) -> Uid {
    match change {
        Change::Add(record) => record.uid,
        Change::Update { uid, .. } | Change::Expunge(uid) | Change::Keep(uid) => *uid,
    }
}
