//! What a repair takes away, and what in a graveyard is that.

use alloc::{collections::BTreeMap, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{Account, Guid, Uid, UidValidity},
    mailbox::{MailboxName, Record},
};

/// Octets that a repair is about to take from where they are. Written down before it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Whose.
    pub account: Account,
    /// Where, by the name it has on that node.
    pub mailbox: MailboxName,
    /// Under which UIDVALIDITY.
    pub uid_validity: UidValidity,
    /// Under which UID.
    pub uid: Uid,
    /// What is taken.
    pub what: Octets,
}

/// Which octets those are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Octets {
    /// A message's.
    Message(Guid),
    /// Those that lie in the place of a message: any but its own.
    Instead(Guid),
}

impl Taken {
    /// Whether octets in a graveyard, of the same mailbox and UIDVALIDITY, are these. Of messages that
    /// went with their whole mailbox the UID may be unknown.
    pub fn is(&self, uid: Option<Uid>, guid: Guid) -> bool {
        match self.what {
            Octets::Message(own) => guid == own && uid.is_none_or(|uid| uid == self.uid),
            Octets::Instead(own) => guid != own && uid == Some(self.uid),
        }
    }

    /// Whether nothing is lost without these, since the master has them.
    pub fn is_held(&self, held: &BTreeMap<Guid, Uid>) -> bool {
        matches!(self.what, Octets::Message(own) if held.contains_key(&own))
    }
}

/// Messages of a replica's mailbox that replaying the master's may take away: all that the master does
/// not have under the same UID.
pub fn at_stake(ours: &[Record], theirs: &[Record]) -> Vec<(Uid, Guid)> {
    let ours: BTreeMap<Uid, Guid> = ours.iter().map(|record| (record.uid, record.guid)).collect();
    let theirs = theirs.iter().map(|record| (record.uid, record.guid));
    theirs.filter(|(uid, guid)| ours.get(uid) != Some(guid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::ModSeq,
        mailbox::{Flags, Keywords},
    };

    const A: Guid = Guid([1; 20]);
    const B: Guid = Guid([2; 20]);

    fn taken(what: Octets) -> Taken {
        Taken {
            account: Account::new("ann").unwrap(),
            mailbox: MailboxName::inbox(),
            uid_validity: UidValidity(7),
            uid: Uid(3),
            what,
        }
    }

    #[test]
    fn what_was_taken_is_known_again() {
        let message = taken(Octets::Message(A));
        assert!(message.is(Some(Uid(3)), A) && message.is(None, A));
        assert!(!message.is(Some(Uid(4)), A) && !message.is(Some(Uid(3)), B));
        let damaged = taken(Octets::Instead(A));
        assert!(damaged.is(Some(Uid(3)), B));
        // The message itself, expunged later, is not what was replaced.
        assert!(!damaged.is(Some(Uid(3)), A));
        assert!(!damaged.is(Some(Uid(4)), B) && !damaged.is(None, B));
    }

    #[test]
    fn what_the_master_has_need_not_come_back() {
        let held = BTreeMap::from([(A, Uid(9))]);
        assert!(taken(Octets::Message(A)).is_held(&held));
        assert!(!taken(Octets::Message(B)).is_held(&held));
        assert!(!taken(Octets::Instead(A)).is_held(&held));
    }

    #[test]
    fn only_what_the_master_lacks_is_at_stake() {
        let record = |uid, guid| Record {
            uid: Uid(uid),
            guid,
            octets: 5,
            internal_date: 0,
            flags: Flags::default(),
            keywords: Keywords::default(),
            modseq: ModSeq(1),
            replicated: true,
            hint: [].into(),
        };
        let ours = [record(1, A), record(2, B)];
        let theirs = [record(1, A), record(2, A), record(3, B)];
        assert_eq!(at_stake(&ours, &theirs), [(Uid(2), A), (Uid(3), B)]);
        assert_eq!(at_stake(&ours, &ours), []);
    }
}
