//! Tells differences that stay from changes that are on their way.

use alloc::{collections::BTreeSet, vec::Vec};

use super::{Difference, Kind, Side};
use crate::{
    ids::{Account, MailboxId, Uid},
    mailbox::MailboxName,
};

type Key = (Account, Option<MailboxId>, Option<MailboxName>, Option<Uid>, Kind, Side, (u64, u64));

/// Looks at the same places again and again.
///
/// Between two looks everything that had happened before the first one must have been replayed, or set
/// aside. What is then seen a second time, unchanged on both sides, is different with nothing in
/// flight. What is seen for the first time, or has changed, is looked at once more.
#[derive(Debug, Default)]
pub struct Settle {
    before: BTreeSet<Key>,
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
        found.name.clone(),
        found.uid,
        found.kind,
        found.side,
        found.marks,
    )
}

#[cfg(test)]
mod tests {
    use alloc::{string::String, vec};

    use super::*;
    use crate::check::Repair;

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
}
