//! Moves, deletes and resets mailboxes.

use std::collections::BTreeMap;

use mailtwin_cyrus::{Value, mailbox::Mailbox};
use mailtwin_logic::{
    ids::{Account, MailboxId, Uid},
    mailbox::MailboxName,
    plan::Step,
};

use super::{Cell, Cyrus, note_held};
use crate::StoreError;

/// A move: where it stands, where it goes.
struct Move {
    mailbox: Mailbox,
    to: Vec<u8>,
}

impl Cyrus {
    pub(super) fn take_steps(
        &self,
        account: &Account,
        cell: &mut Cell,
        steps: &[Step],
    ) -> Result<(), StoreError> {
        self.look_at_account(account, cell)?;
        let mut places: BTreeMap<MailboxName, MailboxId> =
            cell.boxes.iter().map(|(id, snapshot)| (snapshot.name.clone(), *id)).collect();
        let (mut gone, mut moved) = (Vec::new(), Vec::new());
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
            let there = places.remove(name).filter(|there| *there == id);
            let snapshot = there.and_then(|id| cell.boxes.get(&id));
            let snapshot = snapshot.ok_or(StoreError::Stale(None))?;
            match step {
                Step::Rename { to, .. } => moved.push((id, to.clone())),
                Step::Delete { .. } | Step::Reset { .. } if snapshot.state().foreign > 0 => {
                    return Err(StoreError::Stale(Some(snapshot.head())));
                }
                Step::Delete { .. } | Step::Reset { .. } => gone.push(id),
            }
        }
        let mut moves = Vec::new();
        for (id, to) in moved {
            if let Some(there) = places.insert(to.clone(), id) {
                let head = cell.boxes.get(&there).map(super::Snapshot::head);
                return Err(StoreError::Stale(head));
            }
            let to = self.internal(account, cell, &to)??;
            let snapshot = cell.boxes.get(&id).ok_or(StoreError::Stale(None))?;
            moves.push(Move { mailbox: snapshot.mailbox.clone(), to });
        }
        for id in gone {
            self.delete(account, cell, id)?;
        }
        let moved = self.carry_out(account, cell, moves);
        // Under which names all stand now is seen at the next look.
        self.look_at_account(account, cell)?;
        moved
    }

    fn delete(&self, account: &Account, cell: &mut Cell, id: MailboxId) -> Result<(), StoreError> {
        let Some(snapshot) = cell.boxes.get(&id) else { return Ok(()) };
        let uids: Vec<Uid> = snapshot.records().map(|record| record.uid).collect();
        self.bury(account, snapshot, &uids)?;
        let name = snapshot.mailbox.name.clone();
        // Deleting goes by name: what stands there must still be what was looked at.
        let there = self.server.by_name(&name)?;
        if there.is_none_or(|there| !snapshot.is_of(&there)) {
            return Err(StoreError::Stale(None));
        }
        self.server.apply("delete", "UNMAILBOX", &Value::text(&name))?;
        cell.boxes.remove(&id);
        let mut notes = mailtwin_disk::index::Batch::default();
        for uid in uids {
            note_held(&mut notes, id, uid, None);
        }
        self.index.apply(notes).map_err(super::index_failed)
    }

    /// Renames, each once its place is free; where none is, one steps aside first.
    fn carry_out(
        &self,
        account: &Account,
        cell: &mut Cell,
        mut moves: Vec<Move>,
    ) -> Result<(), StoreError> {
        let mut aside = 0;
        while !moves.is_empty() {
            let is_free = |one: &Move| moves.iter().all(|other| other.mailbox.name != one.to);
            if let Some(free) = moves.iter().position(is_free) {
                let Move { mailbox, to } = moves.remove(free);
                self.rename(&mailbox, &to)?;
                continue;
            }
            let Some(first) = moves.first_mut() else { return Ok(()) };
            aside += 1;
            let name = MailboxName::new(format!("mailtwin-move-{aside}").as_bytes());
            let name = name.unwrap_or_else(|_| MailboxName::inbox());
            let to = self.internal(account, cell, &name)??;
            self.rename(&first.mailbox, &to)?;
            first.mailbox.name = to;
        }
        Ok(())
    }

    pub(super) fn rename(&self, mailbox: &Mailbox, to: &[u8]) -> Result<(), StoreError> {
        let value = Value::map([
            ("OLDMBOXNAME", Value::text(&mailbox.name)),
            ("NEWMBOXNAME", Value::text(to)),
            ("PARTITION", Value::text(&mailbox.partition)),
            ("UIDVALIDITY", Value::number(mailbox.uid_validity)),
        ]);
        self.server.apply("rename", "RENAME", &value)
    }
}
