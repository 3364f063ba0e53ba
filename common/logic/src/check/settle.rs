//! Tells differences that stay from changes that are on their way.

use alloc::{collections::BTreeSet, string::String, vec::Vec};

use super::{Difference, Kind, Side};
use crate::{
    entry::Target,
    ids::{Account, MailboxId, Uid},
};

/// What it was said of tells apart, too: one access list from another.
type Key = (Account, Option<MailboxId>, Option<Uid>, Kind, Side, (u64, u64), String);

/// Looks at the same places again and again.
///
/// Between two looks everything that had happened before the first one must have been replayed, or set
/// aside. What is then seen a second time, unchanged on both sides, is different with nothing in
/// flight. What is seen for the first time, or has changed, is looked at once more. So is what may
/// have changed and changed back: a message's marks never come back, those of anything else may.
#[derive(Debug, Default)]
pub struct Settle {
    before: BTreeSet<Key>,
}

/// Whether `found` may have been changed, and changed back, by what the log says has `changed`.
pub fn may_be_back(found: &Difference, changed: &Target) -> bool {
    found.uid.is_none()
        && match changed {
            Target::Store => true,
            Target::Account(account) => *account == found.account,
            Target::Mailbox(account, name) => {
                *account == found.account && found.name.as_ref() == Some(name)
            }
        }
}

/// What a look came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Looked {
    /// Different with nothing in flight.
    pub stays: Vec<Difference>,
    /// To be looked at again.
    pub moving: Vec<Difference>,
}

impl Settle {
    /// Takes what a look found.
    pub fn look(&mut self, found: Vec<Difference>) -> Looked {
        let before = core::mem::take(&mut self.before);
        let (mut stays, mut moving) = (Vec::new(), Vec::new());
        for difference in found {
            let key = key(&difference);
            let again = before.contains(&key);
            self.before.insert(key);
            if again { stays.push(difference) } else { moving.push(difference) }
        }
        Looked { stays, moving }
    }
}

fn key(found: &Difference) -> Key {
    (
        found.account.clone(),
        found.mailbox,
        found.uid,
        found.kind,
        found.side,
        found.marks,
        found.detail.clone(),
    )
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::{check::Repair, mailbox::MailboxName};

    fn flags(uid: u32, marks: (u64, u64)) -> Difference {
        Difference {
            account: Account::new("ann").unwrap(),
            mailbox: Some(MailboxId([1; 16])),
            name: Some(MailboxName::inbox()),
            uid: Some(Uid(uid)),
            kind: Kind::Flags,
            side: Side::Replica,
            detail: String::new(),
            repair: Repair::Replay,
            marks,
        }
    }

    #[test]
    fn only_what_is_seen_twice_unchanged_stays() {
        let mut settle = Settle::default();
        let first = settle.look(vec![flags(1, (5, 5)), flags(2, (6, 6)), flags(3, (7, 7))]);
        assert!(first.stays.is_empty() && first.moving.len() == 3);
        // 1 stays, 2 was changed meanwhile, 3 has become equal, 4 is new.
        let second = settle.look(vec![flags(1, (5, 5)), flags(2, (8, 6)), flags(4, (9, 9))]);
        assert_eq!(second.stays, [flags(1, (5, 5))]);
        assert_eq!(second.moving, [flags(2, (8, 6)), flags(4, (9, 9))]);
        let third = settle.look(vec![flags(1, (5, 5)), flags(3, (7, 7)), flags(4, (9, 9))]);
        assert_eq!(third.stays, [flags(1, (5, 5)), flags(4, (9, 9))]);
        // What was equal in between starts again.
        assert_eq!(third.moving, [flags(3, (7, 7))]);
    }

    #[test]
    fn two_access_lists_of_one_content_are_not_one_seen_twice() {
        let list = |of: &str| Difference {
            mailbox: None,
            uid: None,
            name: Some(MailboxName::new(of.as_bytes()).unwrap()),
            detail: alloc::format!("access list of {of}: missing on the replica"),
            kind: Kind::File,
            ..flags(1, (7, 0))
        };
        let mut settle = Settle::default();
        settle.look(vec![list("A")]);
        assert_eq!(settle.look(vec![list("B")]).stays, []);
        assert_eq!(settle.look(vec![list("B")]).stays, [list("B")]);
    }

    #[test]
    fn what_is_not_a_message_may_change_and_change_back() {
        let ann = Account::new("ann").unwrap();
        let work = MailboxName::new(b"Work").unwrap();
        let inbox = Target::Mailbox(ann.clone(), MailboxName::inbox());
        let mailbox = Difference { uid: None, ..flags(1, (7, 0)) };
        assert!(may_be_back(&mailbox, &inbox));
        assert!(may_be_back(&mailbox, &Target::Account(ann.clone())));
        assert!(may_be_back(&mailbox, &Target::Store));
        assert!(!may_be_back(&mailbox, &Target::Mailbox(ann, work)));
        assert!(!may_be_back(&mailbox, &Target::Account(Account::new("bob").unwrap())));
        assert!(!may_be_back(&flags(1, (7, 0)), &inbox));
    }
}
