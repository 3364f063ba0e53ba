//! Compares two listings of an account, and the records of two mailboxes.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};

use super::{Difference, Kind, Repair, Side, mark_of};
use crate::{
    ids::{Account, Guid, Uid},
    mailbox::{AccountState, FileKey, MailboxState, Record},
};

/// What comparing two listings came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// What differs.
    pub differences: Vec<Difference>,
    /// Mailboxes that both sides have, the master's and the replica's.
    pub pairs: Vec<(MailboxState, MailboxState)>,
}

/// Compares two listings of one account.
pub fn listing(account: &Account, ours: &AccountState, theirs: &AccountState) -> Listed {
    let mut listed = Listed::default();
    let by_id: BTreeMap<_, _> = theirs.mailboxes.iter().map(|m| (m.id, m)).collect();
    let by_name: BTreeMap<_, _> = theirs.mailboxes.iter().map(|m| (&m.name, m)).collect();
    let ids: BTreeSet<_> = ours.mailboxes.iter().map(|m| m.id).collect();
    let mut named = BTreeSet::new();
    for ours in &ours.mailboxes {
        let Some(&theirs) = by_id.get(&ours.id) else {
            let other = by_name.get(&ours.name).filter(|other| !ids.contains(&other.id));
            listed.differences.push(match other {
                Some(other) => {
                    named.insert(other.id);
                    other_id(account, ours, other)
                }
                None => missing(account, ours),
            });
            continue;
        };
        heads(account, ours, theirs, &mut listed.differences);
        listed.pairs.push((ours.clone(), theirs.clone()));
    }
    let only_theirs = |m: &&MailboxState| !ids.contains(&m.id) && !named.contains(&m.id);
    for theirs in theirs.mailboxes.iter().filter(only_theirs) {
        listed.differences.push(extra(account, theirs));
    }
    files(account, ours, theirs, &mut listed.differences);
    listed
}

fn of_mailbox(account: &Account, state: &MailboxState, kind: Kind, detail: String) -> Difference {
    Difference {
        account: account.clone(),
        mailbox: Some(state.id),
        name: Some(state.name.clone()),
        uid: None,
        kind,
        side: Side::Replica,
        detail,
        repair: Repair::Replay,
        marks: (0, 0),
    }
}

fn missing(account: &Account, ours: &MailboxState) -> Difference {
    let detail = format!("{} messages, none of them on the replica", ours.head.messages);
    of_mailbox(account, ours, Kind::MailboxMissing, detail)
}

fn other_id(account: &Account, ours: &MailboxState, theirs: &MailboxState) -> Difference {
    let detail = format!("master {}, replica {}", ours.id, theirs.id);
    let repair = if theirs.foreign > 0 { Repair::None } else { Repair::Replay };
    Difference { repair, ..of_mailbox(account, ours, Kind::MailboxId, detail) }
}

fn extra(account: &Account, theirs: &MailboxState) -> Difference {
    let (all, own) = (theirs.head.messages, theirs.foreign);
    let detail = format!("only on the replica: {all} messages, {own} not put there by replication");
    let repair = if own > 0 { Repair::None } else { Repair::Replay };
    Difference { repair, ..of_mailbox(account, theirs, Kind::MailboxExtra, detail) }
}

fn heads(
    account: &Account,
    ours: &MailboxState,
    theirs: &MailboxState,
    found: &mut Vec<Difference>,
) {
    let mut differs = |kind, detail, marks, repair| {
        found.push(Difference { repair, marks, ..of_mailbox(account, ours, kind, detail) });
    };
    if ours.name != theirs.name {
        let detail = format!("on the replica it is {}", theirs.name);
        differs(Kind::MailboxName, detail, (0, 0), Repair::Replay);
    }
    let (a, b) = (ours.head, theirs.head);
    if a.uid_validity != b.uid_validity {
        let detail = format!("master {}, replica {}", a.uid_validity, b.uid_validity);
        let marks = (a.uid_validity.0.into(), b.uid_validity.0.into());
        differs(Kind::UidValidity, detail, marks, Repair::Replay);
    }
    if a.uid_next != b.uid_next {
        let detail = format!("master {}, replica {}", a.uid_next, b.uid_next);
        let marks = (a.uid_next.0.into(), b.uid_next.0.into());
        // UIDNEXT never falls (I3).
        let repair = if a.uid_next < b.uid_next { Repair::Raise } else { Repair::Replay };
        differs(Kind::UidNext, detail, marks, repair);
    }
    if (a.messages, a.digest) != (b.messages, b.digest) {
        let detail = format!("master {} messages, replica {}", a.messages, b.messages);
        let marks = (ours.highest_modseq.0, theirs.highest_modseq.0);
        differs(Kind::Contents, detail, marks, Repair::Replay);
    }
}

fn files(account: &Account, ours: &AccountState, theirs: &AccountState, out: &mut Vec<Difference>) {
    let index = |state: &AccountState| -> BTreeMap<FileKey, Guid> {
        state.files.iter().map(|file| (file.key.clone(), file.guid)).collect()
    };
    let (ours, theirs) = (index(ours), index(theirs));
    let keys: BTreeSet<&FileKey> = ours.keys().chain(theirs.keys()).collect();
    for key in keys {
        let (a, b) = (ours.get(key), theirs.get(key));
        if a == b {
            continue;
        }
        let what = match (a, b) {
            (Some(_), None) => "missing on the replica",
            (None, _) => "only on the replica",
            (Some(_), Some(_)) => "another content on the replica",
        };
        let name = match key {
            FileKey::Subscriptions => String::from("subscriptions"),
            FileKey::SieveActive => String::from("active Sieve script"),
            FileKey::Acl(name) => format!("access list of {name}"),
            FileKey::Sieve(name) => format!("Sieve script {name}"),
            FileKey::Annotations(name) => format!("annotations of {name}"),
            FileKey::Quota => String::from("quota limits"),
            FileKey::Seen => String::from("what was seen in mailboxes of others"),
            FileKey::SubscribedOfOthers => String::from("subscriptions to mailboxes of others"),
        };
        let mark = |guid: Option<&Guid>| guid.map_or(0, |guid| mark_of(*guid));
        out.push(Difference {
            account: account.clone(),
            mailbox: None,
            name: None,
            uid: None,
            kind: Kind::File,
            side: Side::Replica,
            detail: format!("{name}: {what}"),
            repair: Repair::Replay,
            marks: (mark(a), mark(b)),
        });
    }
}

/// Compares the records of one mailbox, both in order of UID.
pub fn records(
    account: &Account,
    state: &MailboxState,
    ours: &[Record],
    theirs: &[Record],
) -> Vec<Difference> {
    let held: BTreeMap<Uid, &Record> = theirs.iter().map(|record| (record.uid, record)).collect();
    let uids: BTreeSet<Uid> = ours.iter().map(|record| record.uid).collect();
    let guids: BTreeSet<Guid> = ours.iter().map(|record| record.guid).collect();
    let mut found = Vec::new();
    let mut differs = |uid, kind, detail, marks, repair| {
        let mailbox = of_mailbox(account, state, kind, detail);
        // Of two messages that both are what they were when first seen, none is the wrong one.
        let side = if kind == Kind::Clash { Side::Unknown } else { mailbox.side };
        found.push(Difference { uid: Some(uid), side, repair, marks, ..mailbox });
    };
    for record in ours {
        let Some(other) = held.get(&record.uid) else {
            let detail = format!("{} octets, GUID {}", record.octets, record.guid);
            differs(record.uid, Kind::Missing, detail, (record.modseq.0, 0), Repair::Replay);
            continue;
        };
        let marks = (record.modseq.0, other.modseq.0);
        if record.guid != other.guid {
            let detail = format!("GUID: master {}, replica {}", record.guid, other.guid);
            // What the master has under another UID is not lost when it goes here.
            let repair = if guids.contains(&other.guid) { Repair::Bury } else { Repair::None };
            differs(record.uid, Kind::Clash, detail, marks, repair);
            continue;
        }
        if record.octets != other.octets {
            let detail = format!("recorded octets: {} and {}", record.octets, other.octets);
            differs(record.uid, Kind::Size, detail, marks, Repair::None);
        }
        if record.flags != other.flags {
            let detail = format!("master {:?}, replica {:?}", record.flags, other.flags);
            differs(record.uid, Kind::Flags, detail, marks, Repair::Replay);
        }
        if record.keywords != other.keywords {
            let words = |record: &Record| record.keywords.iter().collect::<Vec<_>>().join(" ");
            let detail = format!("master ({}), replica ({})", words(record), words(other));
            differs(record.uid, Kind::Keywords, detail, marks, Repair::Replay);
        }
        if record.internal_date != other.internal_date {
            let (a, b) = (record.internal_date, other.internal_date);
            let detail = format!("INTERNALDATE: master {a}, replica {b}");
            differs(record.uid, Kind::Date, detail, marks, Repair::Replay);
        }
    }
    for extra in theirs.iter().filter(|record| !uids.contains(&record.uid)) {
        let (repair, why) = match (extra.replicated, guids.contains(&extra.guid)) {
            (true, _) => (Repair::Replay, "the master has it no more"),
            (false, true) => (Repair::Bury, "a copy of one that the master has under another UID"),
            (false, false) => (Repair::None, "not put there by replication"),
        };
        let detail = format!("{} octets, GUID {}: {why}", extra.octets, extra.guid);
        differs(extra.uid, Kind::Extra, detail, (0, extra.modseq.0), repair);
    }
    found
}

#[cfg(test)]
mod tests;
