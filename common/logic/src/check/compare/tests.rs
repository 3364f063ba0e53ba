//! Every kind of difference between two listings, and between two mailboxes.

use alloc::{vec, vec::Vec};

use super::*;
use crate::{
    digest::Digest,
    ids::{MailboxId, ModSeq, UidValidity},
    mailbox::{FileState, Flags, Head, Keywords, MailboxName},
};

fn ann() -> Account {
    Account::new("ann").unwrap()
}

fn record(uid: u32, guid: u8) -> Record {
    Record {
        uid: Uid(uid),
        guid: Guid([guid; 20]),
        octets: 100,
        internal_date: 5,
        flags: Flags::SEEN,
        keywords: ["a"].into_iter().collect(),
        modseq: ModSeq(uid.into()),
        replicated: true,
        hint: [].into(),
    }
}

fn state(id: u8, name: &str, records: &[Record]) -> MailboxState {
    MailboxState {
        id: MailboxId([id; 16]),
        name: MailboxName::new(name.as_bytes()).unwrap(),
        head: Head {
            uid_validity: UidValidity(7),
            uid_next: Uid(10),
            messages: u32::try_from(records.len()).unwrap(),
            digest: Digest::of(records),
        },
        highest_modseq: ModSeq(9),
        foreign: 0,
    }
}

fn account(mailboxes: Vec<MailboxState>) -> AccountState {
    AccountState { mailboxes, files: Vec::new() }
}

type Told = Vec<(Kind, Option<u32>, Repair)>;

fn told(differences: &[Difference]) -> Told {
    differences.iter().map(|d| (d.kind, d.uid.map(|uid| uid.0), d.repair)).collect()
}

fn compared(theirs: &[Record]) -> Told {
    let ours = [record(1, 1), record(2, 2), record(3, 3)];
    told(&records(&ann(), &state(1, "A", &ours), &ours, theirs))
}

#[test]
fn every_difference_of_records_has_its_kind() {
    let ours = [record(1, 1), record(2, 2), record(3, 3)];
    assert_eq!(compared(&ours), []);
    assert_eq!(compared(&ours[1..]), [(Kind::Missing, Some(1), Repair::Replay)]);
    let mut theirs = ours.to_vec();
    theirs[0].flags = Flags::default();
    theirs[1].keywords = Keywords::default();
    theirs[2].internal_date = 6;
    let expected = [
        (Kind::Flags, Some(1), Repair::Replay),
        (Kind::Keywords, Some(2), Repair::Replay),
        (Kind::Date, Some(3), Repair::Replay),
    ];
    assert_eq!(compared(&theirs), expected);
    let mut theirs = ours.to_vec();
    theirs[1].octets += 1;
    assert_eq!(compared(&theirs), [(Kind::Size, Some(2), Repair::None)]);
}

#[test]
fn nothing_is_buried_that_could_be_lost() {
    let ours = [record(1, 1), record(2, 2), record(3, 3)];
    let with = |extra: Record| [&ours[..], &[extra]].concat();
    assert_eq!(compared(&with(record(4, 4))), [(Kind::Extra, Some(4), Repair::Replay)]);
    let own = |uid, guid| Record { replicated: false, ..record(uid, guid) };
    assert_eq!(compared(&with(own(4, 4))), [(Kind::Extra, Some(4), Repair::None)]);
    assert_eq!(compared(&with(own(4, 2))), [(Kind::Extra, Some(4), Repair::Bury)]);
    let swapped = [record(1, 1), record(2, 3), record(3, 2)];
    let bury = |uid| (Kind::Clash, Some(uid), Repair::Bury);
    assert_eq!(compared(&swapped), [bury(2), bury(3)]);
    let other = [record(1, 1), record(2, 9), record(3, 3)];
    assert_eq!(compared(&other), [(Kind::Clash, Some(2), Repair::None)]);
}

#[test]
fn every_difference_of_listings_has_its_kind() {
    let one = [record(1, 1)];
    let listed = |ours: Vec<MailboxState>, theirs: Vec<MailboxState>| {
        let listed = listing(&ann(), &account(ours), &account(theirs));
        (told(&listed.differences), listed.pairs.len())
    };
    let (a, b) = (state(1, "A", &one), state(2, "B", &one));
    assert_eq!(listed(vec![a.clone(), b.clone()], vec![a.clone(), b.clone()]), (vec![], 2));
    let only = |kind, repair| (vec![(kind, None, repair)], 1);
    let missing = listed(vec![a.clone(), b.clone()], vec![a.clone()]);
    assert_eq!(missing, only(Kind::MailboxMissing, Repair::Replay));
    let extra = listed(vec![a.clone()], vec![a.clone(), b.clone()]);
    assert_eq!(extra, only(Kind::MailboxExtra, Repair::Replay));
    let own = MailboxState { foreign: 1, ..b };
    let extra = listed(vec![a.clone()], vec![a.clone(), own]);
    assert_eq!(extra, only(Kind::MailboxExtra, Repair::None));
    let renamed = listed(vec![a.clone()], vec![state(1, "C", &one)]);
    assert_eq!(renamed, only(Kind::MailboxName, Repair::Replay));
    let other = listed(vec![a.clone()], vec![state(3, "A", &one)]);
    assert_eq!(other, (vec![(Kind::MailboxId, None, Repair::Replay)], 0));
    let contents = listed(vec![a], vec![state(1, "A", &[record(1, 2)])]);
    assert_eq!(contents, only(Kind::Contents, Repair::Replay));
}

#[test]
fn heads_and_files_are_compared() {
    let with = |change: fn(&mut Head)| {
        let mut state = state(1, "A", &[]);
        change(&mut state.head);
        account(vec![state])
    };
    let ours = with(|_| {});
    let told = |theirs| told(&listing(&ann(), &ours, &theirs).differences);
    let validity = told(with(|head| head.uid_validity = UidValidity(8)));
    assert_eq!(validity, [(Kind::UidValidity, None, Repair::Replay)]);
    let lower = told(with(|head| head.uid_next = Uid(9)));
    assert_eq!(lower, [(Kind::UidNext, None, Repair::Replay)]);
    // UIDNEXT never falls.
    let higher = told(with(|head| head.uid_next = Uid(11)));
    assert_eq!(higher, [(Kind::UidNext, None, Repair::Raise)]);
    let file = |key, guid| FileState { key, guid: Guid([guid; 20]) };
    let files = |files| AccountState { mailboxes: Vec::new(), files };
    let script = FileKey::Sieve(MailboxName::new(b"main").unwrap());
    let ours = files(vec![file(FileKey::Subscriptions, 1), file(script, 2)]);
    let theirs = files(vec![file(FileKey::Subscriptions, 3), file(FileKey::SieveActive, 4)]);
    let listed = listing(&ann(), &ours, &theirs);
    let details: Vec<_> = listed.differences.iter().map(|d| d.detail.as_str()).collect();
    let expected = [
        "subscriptions: another content on the replica",
        "Sieve script main: missing on the replica",
        "active Sieve script: only on the replica",
    ];
    assert_eq!(details, expected);
}
