//! After a hard failover: what a node that comes back has that the new master lacks, and what each side
//! changed since they last agreed. Pure decisions, mailbox by mailbox; the base is what the new master
//! held when it was promoted.
//!
//! Every decision stands when it is taken again after a crash half-way: what has been carried out is
//! found done.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{Guid, MailboxId, Uid},
    mailbox::{AccountState, Flags, Keywords, MailboxName, MailboxState, Record},
};

/// One message in the base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// UID.
    pub uid: Uid,
    /// SHA-1 of the octets.
    pub guid: Guid,
    /// System flags then.
    pub flags: Flags,
    /// Keywords then.
    pub keywords: Keywords,
}

impl BaseRecord {
    /// Whether nobody has changed the message's flags since.
    fn is_like(&self, now: &Record) -> bool {
        now.flags == self.flags && now.keywords == self.keywords
    }
}

/// One mailbox in the base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseMailbox {
    /// The mailbox as it was.
    pub state: MailboxState,
    /// Its messages, by UID, but for the node's own: those the old master never had.
    pub records: Vec<BaseRecord>,
}

/// What happens to one message on the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Only the returning node has it: it is copied to the master, under a new UID there.
    Take {
        /// Its UID on the returning node.
        uid: Uid,
        /// Why.
        why: Why,
    },
    /// The master's message at this UID gets a new one; the old UID is not used again.
    Move {
        /// Its UID until now.
        uid: Uid,
        /// Whether it has yet to be added under the new one.
        copy: bool,
    },
    /// The returning node's clients expunged it, and nobody touched it on the master since.
    Expunge {
        /// Its UID.
        uid: Uid,
    },
    /// Flags of both sides together.
    Update {
        /// Its UID.
        uid: Uid,
        /// All its system flags.
        flags: Flags,
        /// All its keywords.
        keywords: Keywords,
    },
}

/// Why a message is copied back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The old master accepted it, and the new one never had it.
    Tail,
    /// The same UID means another message on the master.
    Clash,
    /// It was expunged on the master, but changed on the returning node since.
    Changed,
}

/// Decides for one mailbox that both sides have. `base` is empty for one that was made since.
///
/// In the order in which to carry it out: what is added comes before what it replaces goes.
///
/// Only the old master's word counts for what is gone or changed: `their_next` is its UIDNEXT. Of any
/// other node it is `None`, for that may only have been behind.
pub fn mailbox(
    base: &[BaseRecord],
    ours: &[Record],
    theirs: &[Record],
    their_next: Option<Uid>,
) -> Vec<Decision> {
    let base: BTreeMap<Uid, &BaseRecord> = base.iter().map(|record| (record.uid, record)).collect();
    let mine: BTreeMap<Uid, &Record> = ours.iter().map(|record| (record.uid, record)).collect();
    let mut copies = Copies::new(&base, ours, theirs, their_next);
    let (mut adds, mut rest) = (Vec::new(), Vec::new());
    for their in theirs {
        let uid = their.uid;
        let agreed = base.get(&uid).filter(|agreed| agreed.guid == their.guid);
        match (mine.get(&uid), agreed) {
            (Some(our), _) if our.guid == their.guid && their_next.is_none() => {}
            (Some(our), agreed) if our.guid == their.guid => {
                let (flags, keywords) = merge(agreed.copied(), our, their);
                if flags != our.flags || keywords != our.keywords {
                    rest.push(Decision::Update { uid, flags, keywords });
                }
            }
            (None, Some(agreed)) => {
                if !agreed.is_like(their) && their_next.is_some() && !copies.has(their.guid) {
                    adds.push(Decision::Take { uid, why: Why::Changed });
                }
            }
            (None, None) if !copies.has(their.guid) => {
                adds.push(Decision::Take { uid, why: Why::Tail });
            }
            (None, None) => {}
            (Some(our), _) => {
                // The UID is spent: whoever saw it may have seen either message.
                if !copies.has(their.guid) {
                    adds.push(Decision::Take { uid, why: Why::Clash });
                }
                adds.push(Decision::Move { uid, copy: !copies.has(our.guid) });
            }
        }
    }
    if let Some(next) = their_next {
        let there: BTreeSet<Uid> = theirs.iter().map(|record| record.uid).collect();
        for our in ours.iter().filter(|our| our.uid < next && !there.contains(&our.uid)) {
            // The other side has used this UID up, for this message or another one, and its clients may
            // know: what stays cannot come back there under it.
            let agreed = base.get(&our.uid).filter(|agreed| agreed.guid == our.guid);
            if !agreed.is_some_and(|agreed| agreed.is_like(our)) {
                adds.push(Decision::Move { uid: our.uid, copy: !copies.has(our.guid) });
            }
        }
        let gone = expunges(&base, &mine, theirs);
        rest.extend(
            gone.into_iter().filter(|&uid| uid < next).map(|uid| Decision::Expunge { uid }),
        );
    }
    adds.append(&mut rest);
    adds
}

/// Which messages of a mailbox that the master does not have go to another one there, which holds
/// `held`: what nobody else has, or what was changed since it was expunged.
pub fn pour(base: &[BaseRecord], held: &[Record], theirs: &[Record]) -> Vec<(Uid, Why)> {
    let base: BTreeMap<Uid, &BaseRecord> = base.iter().map(|record| (record.uid, record)).collect();
    let mut copies = Copies::new(&BTreeMap::new(), held, &[], None);
    let mut taken = Vec::new();
    for their in theirs {
        let why = match base.get(&their.uid).filter(|agreed| agreed.guid == their.guid) {
            None => Why::Tail,
            Some(agreed) if !agreed.is_like(their) => Why::Changed,
            Some(_) => continue,
        };
        if !copies.has(their.guid) {
            taken.push((their.uid, why));
        }
    }
    taken
}

/// What the returning node's clients expunged and the master still has as it was.
fn expunges(
    base: &BTreeMap<Uid, &BaseRecord>,
    mine: &BTreeMap<Uid, &Record>,
    theirs: &[Record],
) -> Vec<Uid> {
    let there: BTreeSet<Uid> = theirs.iter().map(|record| record.uid).collect();
    let gone = base.values().filter(|agreed| !there.contains(&agreed.uid));
    let untouched = gone.filter(|agreed| {
        mine.get(&agreed.uid).is_some_and(|our| our.guid == agreed.guid && agreed.is_like(our))
    });
    untouched.map(|agreed| agreed.uid).collect()
}

/// Messages that the master has beyond the base, by what they hold: a message that was copied back
/// before a crash is one of them, and is not copied twice.
struct Copies(BTreeMap<Guid, usize>);

impl Copies {
    fn new(
        base: &BTreeMap<Uid, &BaseRecord>,
        ours: &[Record],
        theirs: &[Record],
        their_next: Option<Uid>,
    ) -> Self {
        let there: BTreeSet<Uid> = theirs.iter().map(|record| record.uid).collect();
        let mut copies = BTreeMap::new();
        // One at a UID that both sides have used stands for itself.
        let is_beyond = |uid: &Uid| {
            !base.contains_key(uid) && !there.contains(uid) && their_next.is_none_or(|n| *uid >= n)
        };
        for record in ours.iter().filter(|record| is_beyond(&record.uid)) {
            *copies.entry(record.guid).or_insert(0) += 1;
        }
        Self(copies)
    }

    /// Whether there is one more of them; it then stands for the one that was asked about.
    fn has(&mut self, guid: Guid) -> bool {
        match self.0.get_mut(&guid) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            Some(_) | None => false,
        }
    }
}

/// Flag by flag: whoever changed one since the base has it his way. Without a base both count.
fn merge(base: Option<&BaseRecord>, ours: &Record, theirs: &Record) -> (Flags, Keywords) {
    let Some(base) = base else {
        let keywords = ours.keywords.iter().chain(theirs.keywords.iter()).collect();
        return (ours.flags.with(theirs.flags), keywords);
    };
    let ours_changed = ours.flags.0 ^ base.flags.0;
    let flags = Flags(ours_changed & ours.flags.0 | !ours_changed & theirs.flags.0);
    let set =
        |keywords: &Keywords| -> BTreeSet<String> { keywords.iter().map(String::from).collect() };
    let (was, here, there) = (set(&base.keywords), set(&ours.keywords), set(&theirs.keywords));
    let all = was.iter().chain(&here).chain(&there);
    let kept = all.filter(|word| {
        let here = here.contains(*word);
        if here == was.contains(*word) { there.contains(*word) } else { here }
    });
    (flags, kept.collect())
}

/// What happens to one mailbox on the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Both have it: its messages are decided one by one.
    Merge {
        /// Which, on both sides.
        id: MailboxId,
    },
    /// Made by the returning node's clients: it is copied as a whole.
    Copy {
        /// Which, on the returning node.
        id: MailboxId,
    },
    /// The master has another one of that name, or had this one deleted, or has another of that
    /// UIDVALIDITY: messages that nobody else has go to that name.
    Pour {
        /// Which, on the returning node.
        id: MailboxId,
        /// Where to.
        name: MailboxName,
    },
    /// Renamed by the returning node's clients only.
    Rename {
        /// Which, on both sides.
        id: MailboxId,
        /// Where it stands on the master.
        from: MailboxName,
        /// Where it goes.
        to: MailboxName,
    },
    /// Deleted by the returning node's clients, and untouched on the master since.
    Delete {
        /// Which.
        id: MailboxId,
        /// Where it stands on the master.
        name: MailboxName,
    },
}

/// Decides for an account's mailboxes. What the other's clients renamed and deleted counts if it `says`
/// so: a node that was only behind has no word in that. A mailbox of the base that the master has no
/// more was deleted by the master's own clients, and stays deleted whoever brings it.
pub fn account(
    base: &[BaseMailbox],
    says: bool,
    ours: &AccountState,
    theirs: &AccountState,
) -> Vec<Fate> {
    let based: BTreeMap<MailboxId, &MailboxState> =
        base.iter().map(|mailbox| (mailbox.state.id, &mailbox.state)).collect();
    let mine: BTreeMap<MailboxId, &MailboxState> =
        ours.mailboxes.iter().map(|mailbox| (mailbox.id, mailbox)).collect();
    let deleted = if says { deleted(base, &mine, theirs) } else { BTreeSet::new() };
    let left = ours.mailboxes.iter().filter(|our| !deleted.contains(&our.id));
    let mut taken: BTreeSet<&MailboxName> = left.map(|our| &our.name).collect();
    let validities: BTreeSet<_> = ours.mailboxes.iter().map(|m| m.head.uid_validity).collect();
    let (mut fates, mut renames) = (Vec::new(), Vec::new());
    for their in &theirs.mailboxes {
        let (id, name, validity) = (their.id, their.name.clone(), their.head.uid_validity);
        match (mine.get(&id), based.get(&id)) {
            (Some(our), was) => {
                let moved_there = says && was.is_some_and(|was| was.name != their.name);
                let moved_here = was.is_some_and(|was| was.name != our.name);
                if moved_there && !moved_here && !taken.contains(&their.name) {
                    taken.insert(&their.name);
                    renames.push(Fate::Rename { id, from: our.name.clone(), to: name });
                }
                fates.push(Fate::Merge { id });
            }
            // Two of one UIDVALIDITY, made in the same second, could come to each other's names.
            (None, None) if !taken.contains(&their.name) && !validities.contains(&validity) => {
                taken.insert(&their.name);
                fates.push(Fate::Copy { id });
            }
            (None, _) => fates.push(Fate::Pour { id, name }),
        }
    }
    // Those that go make room first: nothing may be copied into one of them.
    let gone = ours.mailboxes.iter().filter(|our| deleted.contains(&our.id));
    let gone = gone.map(|our| Fate::Delete { id: our.id, name: our.name.clone() });
    gone.chain(renames).chain(fates).collect()
}

/// Mailboxes that the returning node's clients deleted and nobody touched on the master since.
fn deleted(
    base: &[BaseMailbox],
    mine: &BTreeMap<MailboxId, &MailboxState>,
    theirs: &AccountState,
) -> BTreeSet<MailboxId> {
    let there: BTreeSet<MailboxId> = theirs.mailboxes.iter().map(|mailbox| mailbox.id).collect();
    let gone = base.iter().filter(|BaseMailbox { state: was, records }| {
        // One that held mail of the new master's own had more in it than the other's clients knew.
        let all = u32::try_from(records.len()).is_ok_and(|count| count == was.head.messages);
        let same = mine.get(&was.id).is_some_and(|our| our.head == was.head);
        all && same && !there.contains(&was.id) && !was.name.is_inbox()
    });
    gone.map(|mailbox| mailbox.state.id).collect()
}

#[cfg(test)]
mod tests;
