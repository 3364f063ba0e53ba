//! The tables of docs/failover.md.

use alloc::{vec, vec::Vec};

use crate::{
    ids::{ModSeq, UidValidity},
    mailbox::Head,
};

use super::*;

fn record(uid: u32, guid: u8, flags: u8, words: &[&str]) -> Record {
    Record {
        uid: Uid(uid),
        guid: Guid([guid; 20]),
        octets: 3,
        internal_date: 9,
        flags: Flags(flags),
        keywords: words.iter().collect(),
        modseq: ModSeq(1),
        replicated: false,
        hint: [].into(),
    }
}

fn based(uid: u32, guid: u8, flags: u8, words: &[&str]) -> BaseRecord {
    let Record { uid, guid, flags, keywords, .. } = record(uid, guid, flags, words);
    BaseRecord { uid, guid, flags, keywords }
}

fn take(uid: u32, why: Why) -> Decision {
    Decision::Take { uid: Uid(uid), why }
}

/// What it is, base, ours, theirs, and what follows.
type Row<'a> =
    (&'a str, Option<&'a BaseRecord>, Option<&'a Record>, Option<&'a Record>, Vec<Decision>);

#[test]
fn every_combination_of_one_uid() {
    let (a, b) = (record(7, 1, 0, &[]), record(7, 2, 0, &[]));
    let flagged = record(7, 1, 2, &[]);
    let base = based(7, 1, 0, &[]);
    let update = Decision::Update { uid: Uid(7), flags: Flags(2), keywords: Keywords::default() };
    let table: Vec<Row<'_>> = vec![
        ("only there, new", None, None, Some(&a), vec![take(7, Why::Tail)]),
        (
            "only here, at a UID that the other side has used up",
            None,
            Some(&a),
            None,
            vec![Decision::Move { uid: Uid(7), copy: true }],
        ),
        ("equal", Some(&base), Some(&a), Some(&a), vec![]),
        ("the same on both, new", None, Some(&a), Some(&a), vec![]),
        ("expunged there", Some(&base), Some(&a), None, vec![Decision::Expunge { uid: Uid(7) }]),
        (
            "expunged there, flagged here",
            Some(&base),
            Some(&flagged),
            None,
            vec![Decision::Move { uid: Uid(7), copy: true }],
        ),
        ("expunged here", Some(&base), None, Some(&a), vec![]),
        (
            "expunged here, flagged there",
            Some(&base),
            None,
            Some(&flagged),
            vec![take(7, Why::Changed)],
        ),
        ("expunged on both", Some(&base), None, None, vec![]),
        ("flagged there", Some(&base), Some(&a), Some(&flagged), vec![update]),
        ("flagged here", Some(&base), Some(&flagged), Some(&a), vec![]),
        (
            "another message on each side",
            None,
            Some(&a),
            Some(&b),
            vec![take(7, Why::Clash), Decision::Move { uid: Uid(7), copy: true }],
        ),
    ];
    for (what, base, ours, theirs, expected) in table {
        let base: Vec<BaseRecord> = base.into_iter().cloned().collect();
        let ours: Vec<Record> = ours.into_iter().cloned().collect();
        let theirs: Vec<Record> = theirs.into_iter().cloned().collect();
        assert_eq!(mailbox(&base, &ours, &theirs, Some(Uid(100))), expected, "{what}");
        // Who was only behind takes nothing away and changes nothing.
        let harmless =
            |decision: &Decision| matches!(decision, Decision::Take { .. } | Decision::Move { .. });
        let of_a_replica = mailbox(&base, &ours, &theirs, None);
        assert!(of_a_replica.iter().all(harmless), "{what}: {of_a_replica:?}");
        let restored = mailbox(&base, &ours, &theirs, Some(Uid(7)));
        assert!(!restored.contains(&Decision::Expunge { uid: Uid(7) }), "{what}");
    }
}

#[test]
fn flags_and_keywords_merge_one_by_one() {
    // Seen (8) taken away here, flagged (2) set there, draft (16) on all; words likewise.
    let base = based(1, 1, 8 | 16, &["gone", "stays"]);
    let ours = record(1, 1, 16, &["stays", "here"]);
    let theirs = record(1, 1, 2 | 8 | 16, &["gone", "stays", "there"]);
    let (flags, keywords) = merge(Some(&base), &ours, &theirs);
    assert_eq!(flags, Flags(2 | 16));
    assert_eq!(keywords, ["here", "stays", "there"].iter().collect());
    assert_eq!(merge(None, &ours, &theirs).0, Flags(2 | 8 | 16));
}

#[test]
fn what_was_done_before_a_crash_is_not_done_again() {
    let theirs = [record(7, 2, 0, &[]), record(8, 3, 0, &[]), record(9, 3, 0, &[])];
    // Of the clash at 7 both have been added above, and one of two equal messages.
    let ours =
        [record(7, 1, 0, &[]), record(50, 2, 0, &[]), record(51, 1, 0, &[]), record(52, 3, 0, &[])];
    let decided = mailbox(&[], &ours, &theirs, Some(Uid(10)));
    assert_eq!(decided, [Decision::Move { uid: Uid(7), copy: false }, take(9, Why::Tail)]);
    // The master's own, at a UID that the other side has used up, was added again under another.
    let decided = mailbox(&[], &[record(4, 5, 0, &[]), record(50, 5, 0, &[])], &[], Some(Uid(10)));
    assert_eq!(decided, [Decision::Move { uid: Uid(4), copy: false }]);
    let above = mailbox(&[], &[record(50, 5, 0, &[])], &[], Some(Uid(10)));
    assert_eq!(above, []);
}

fn state(id: u8, name: &str, messages: u32) -> MailboxState {
    let head = Head { uid_validity: UidValidity(u32::from(id)), messages, ..Head::default() };
    MailboxState {
        id: MailboxId([id; 16]),
        name: MailboxName::new(name.as_bytes()).unwrap(),
        head,
        highest_modseq: ModSeq(1),
        foreign: 0,
    }
}

#[test]
fn mailboxes_made_renamed_and_deleted_on_either_side() {
    let id = |id: u8| MailboxId([id; 16]);
    let name = |text: &str| MailboxName::new(text.as_bytes()).unwrap();
    let names = [(1, "Same"), (2, "Old"), (3, "Gone"), (4, "Busy"), (5, "Shut"), (10, "Own")];
    let replicated = |id: u8| if id == 10 { 2 } else { 3 };
    let base = names.map(|(id, name)| BaseMailbox {
        state: state(id, name, 3),
        records: (0..replicated(id)).map(|uid| based(uid + 1, 1, 0, &[])).collect(),
    });
    let ours = AccountState {
        mailboxes: vec![
            state(1, "Same", 4),
            state(2, "Old", 3),
            state(3, "Gone", 3),
            state(4, "Busy", 9),
            state(6, "Both", 1),
            // One of its messages came past the gate: it stays, although the other side deleted it.
            state(10, "Own", 3),
        ],
        files: vec![],
    };
    let theirs = AccountState {
        mailboxes: vec![
            state(1, "Same", 3),
            state(2, "New", 3),
            state(5, "Shut", 5),
            state(7, "Both", 1),
            state(8, "Mine", 1),
            // Made in the same second as the master's Busy: never under one UIDVALIDITY with it.
            MailboxState { head: state(4, "Busy", 1).head, ..state(9, "Twin", 1) },
        ],
        files: vec![],
    };
    let expected = [
        Fate::Delete { id: id(3), name: name("Gone") },
        Fate::Rename { id: id(2), from: name("Old"), to: name("New") },
        Fate::Merge { id: id(1) },
        Fate::Merge { id: id(2) },
        Fate::Pour { id: id(5), name: name("Shut") },
        Fate::Pour { id: id(7), name: name("Both") },
        Fate::Copy { id: id(8) },
        Fate::Pour { id: id(9), name: name("Twin") },
    ];
    assert_eq!(account(&base, true, &ours, &theirs), expected);
    let harms = |fate: &Fate| matches!(fate, Fate::Rename { .. } | Fate::Delete { .. });
    let without = account(&[], false, &ours, &theirs);
    assert!(!without.iter().any(harms), "{without:?}");
    // A node that was only behind does not bring back what the master's own clients deleted.
    let behind = account(&base, false, &ours, &theirs);
    assert!(!behind.iter().any(harms), "{behind:?}");
    assert!(behind.contains(&Fate::Pour { id: id(5), name: name("Shut") }), "{behind:?}");
}

/// What is new there is copied, or moved, to where the deleted one was, not into it.
#[test]
fn a_mailbox_deleted_and_made_anew_keeps_its_mail() {
    let id = |id: u8| MailboxId([id; 16]);
    let name = |text: &str| MailboxName::new(text.as_bytes()).unwrap();
    let list = |mailboxes: Vec<MailboxState>| AccountState { mailboxes, files: vec![] };
    let held = [state(1, "Anew", 0), state(2, "Target", 0), state(3, "Source", 0)];
    let base = held.clone().map(|state| BaseMailbox { state, records: vec![] });
    let ours = list(held.to_vec());
    let theirs = list(vec![state(4, "Anew", 2), state(3, "Target", 0)]);
    let expected = [
        Fate::Delete { id: id(1), name: name("Anew") },
        Fate::Delete { id: id(2), name: name("Target") },
        Fate::Rename { id: id(3), from: name("Source"), to: name("Target") },
        Fate::Copy { id: id(4) },
        Fate::Merge { id: id(3) },
    ];
    assert_eq!(account(&base, true, &ours, &theirs), expected);
}

#[test]
fn a_mailbox_without_a_place_keeps_what_nobody_else_has() {
    let base = [based(1, 1, 0, &[]), based(2, 2, 0, &[])];
    let theirs =
        [record(1, 1, 0, &[]), record(2, 2, 2, &[]), record(3, 3, 0, &[]), record(4, 4, 0, &[])];
    let held = [record(90, 3, 0, &[])];
    let poured = [(Uid(2), Why::Changed), (Uid(4), Why::Tail)];
    assert_eq!(pour(&base, &held, &theirs), poured);
}
