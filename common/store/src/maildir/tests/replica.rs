//! What a replica's engine leaves on the disk.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use mailtwin_logic::{
    ids::{MailboxId, ModSeq, UidValidity},
    mailbox::{Head, Keywords, Record},
    plan::{Change, Mode, Step},
};

use super::*;
use crate::{Batch, Destination, Reason};

fn record(uid: u32, hint: &str) -> Record {
    let octets = format!("message {uid}\n");
    Record {
        uid: Uid(uid),
        guid: guid_of(octets.as_bytes()),
        octets: octets.len() as u64,
        internal_date: 1_500_000_000 + i64::from(uid),
        flags: Flags::SEEN,
        keywords: ["todo"].iter().collect(),
        modseq: ModSeq(0),
        replicated: false,
        hint: hint.as_bytes().into(),
    }
}

struct Order<'a> {
    at: &'a str,
    mode: Mode,
    expect: Option<Head>,
    next: u32,
    changes: Vec<Change>,
    adds: &'a [(u32, &'a str)],
}

fn id_of(at: &str) -> MailboxId {
    let octet = match at {
        "" => 8,
        "Other" => 9,
        _ => 7,
    };
    MailboxId([octet; 16])
}

fn send(store: &Maildir, order: Order<'_>) -> Result<Head, StoreError> {
    let mailbox = id_of(order.at);
    let to = Destination { account: ann(), mailbox, name: name(order.at), mode: order.mode };
    let records: Vec<Record> = order.adds.iter().map(|(uid, hint)| record(*uid, hint)).collect();
    let staged = records.iter().map(|record| {
        let mut staging = store.stage(&to, record).unwrap();
        staging.write(format!("message {}\n", record.uid).as_bytes()).unwrap();
        staging.finish().unwrap()
    });
    let staged = staged.collect();
    let (uid_validity, uid_next) = (UidValidity(777), Uid(order.next));
    let batch = Batch {
        modseq: ModSeq(0),
        to,
        expect: order.expect,
        target: Head { uid_validity, uid_next, ..Head::default() },
        keywords: vec!["$Junk".into(), "todo".into()],
        changes: order.changes.into_iter().chain(records.into_iter().map(Change::Add)).collect(),
        staged,
        last: true,
    };
    store.apply(vec![batch]).pop().unwrap()
}

fn build(store: &Maildir, at: &str, adds: &[(u32, &str)]) -> Head {
    let (mode, expect, next, changes) = (Mode::Build, None, 9, Vec::new());
    send(store, Order { at, mode, expect, next, changes, adds }).unwrap()
}

fn update(store: &Maildir, at: &str, changes: Vec<Change>, adds: &[(u32, &str)]) -> Head {
    let expect = Some(store.find(&ann(), &name(at)).unwrap().unwrap().head);
    send(store, Order { at, mode: Mode::Update, expect, next: 1, changes, adds }).unwrap()
}

const GUID: &str = "07070707070707070707070707070707";

#[test]
fn a_mailbox_is_built_as_dovecot_would() {
    let site = Site::new(Layout::MaildirPlusPlus);
    let store = site.replica();
    build(&store, "Work", &[(3, "Gx P4 S9 :1700.M1.h,S=10"), (5, ":1800.M1.h,S=99")]);
    let list = site.list(&ann(), &name("Work"));
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines[..2], [&format!("3 V777 N9 G{GUID}"), "3 Gx P4 :1700.M1.h,S=10"]);
    // A base name that lies about the size would break Dovecot's FETCH.
    assert!(lines[2].starts_with("5 G1800.M1.h,S=99 :1500000005.R"), "{list}");
    assert!(lines[2].ends_with(",S=10") && lines.len() == 3);
    let work = site.mailbox(&ann(), &name("Work"));
    let file = work.join("cur/1700.M1.h,S=10:2,Sb");
    let metadata = fs::metadata(file).unwrap();
    assert_eq!(
        (metadata.mtime(), metadata.permissions().mode() & 0o077),
        (1_500_000_003, 0o044 & metadata.permissions().mode())
    );
    assert_eq!(fs::read_to_string(work.join("dovecot-keywords")).unwrap(), "0 $Junk\n1 todo\n");
    assert_eq!(fs::metadata(work.join("dovecot.index.log")).unwrap().len(), 40);
    assert!(work.join("maildirfolder").exists() && work.join("new").is_dir());
    assert!(!work.join("dovecot-uidlist.lock").exists());
    let root = site.mailbox(&ann(), &name(""));
    assert_eq!(fs::read_to_string(root.join("dovecot-uidvalidity")).unwrap(), "00000309");
    assert!(root.join("dovecot-uidvalidity.00000309").exists());
    // The account is there now; its INBOX comes in place.
    build(&store, "", &[(1, ":1.a")]);
    assert!(root.join("cur/1.a:2,Sb").exists() && !root.join("maildirfolder").exists());
    assert_eq!(fs::read_dir(site.at("mail/.mailtwin/build")).unwrap().count(), 0);
}

#[test]
fn changes_are_written_in_the_measured_order() {
    let site = Site::new(Layout::MaildirPlusPlus);
    let store = site.replica();
    build(&store, "Work", &[(1, ":1.a"), (2, ":1.b")]);
    let work = site.mailbox(&ann(), &name("Work"));
    // Somebody set a letter we do not know, and began a line.
    fs::rename(work.join("cur/1.b:2,Sb"), work.join("cur/1.b:2,SZb")).unwrap();
    site.append(&ann(), &name("Work"), "9 :half");
    let flags = |uid| Change::Update {
        uid: Uid(uid),
        internal_date: 1_500_000_002,
        flags: Flags::FLAGGED,
        keywords: Keywords::default(),
    };
    let changes = vec![Change::Expunge(Uid(1)), flags(2)];
    let head = update(&store, "Work", changes, &[(20, ":1.b"), (21, ":../../x"), (40, "")]);
    assert_eq!(head.uid_next, Uid(41));
    let list = site.list(&ann(), &name("Work"));
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines[..4], [&format!("3 V777 N9 G{GUID}"), "1 :1.a", "2 :1.b", "19 :0.gap19"]);
    assert!(lines[4].starts_with("20 G1.b :1500000020.R"), "{list}");
    assert!(lines[5].starts_with("21 :1500000021.R"), "{list}");
    assert_eq!(lines[6], "39 :0.gap39");
    let names = site.names(&ann(), &name("Work"));
    assert_eq!(names[0], "cur/1.b:2,FZ");
    assert_eq!(names.len(), 4);
    assert_eq!(store.find(&ann(), &name("Work")).unwrap().unwrap().head, head);
    assert_eq!(fs::read_dir(site.at("mail/.mailtwin/staging")).unwrap().count(), 0);
}

#[test]
fn provenance_is_in_the_index() {
    let site = Site::new(Layout::MaildirPlusPlus);
    let store = site.replica();
    let head = build(&store, "Work", &[(1, ":1.a"), (2, ":1.b")]);
    update(&store, "Work", vec![], &[(9, ":1.c")]);
    assert_eq!(store.find(&ann(), &name("Work")).unwrap().unwrap().foreign, 0);
    drop(store);
    let store = site.replica();
    let state = store.find(&ann(), &name("Work")).unwrap().unwrap();
    assert_eq!((state.foreign, state.head.messages), (0, head.messages + 1));
    drop(store);
    let store = site.open(site.options(), "lost", SystemClock::shared()).unwrap();
    assert_eq!(store.find(&ann(), &name("Work")).unwrap().unwrap().foreign, 3);
}

#[test]
fn what_was_not_expunged_before_a_crash_is_still_ours() {
    let site = Site::new(Layout::MaildirPlusPlus);
    let store = site.replica();
    let head = build(&store, "Work", &[(1, ":1.a"), (2, ":1.b")]);
    let graveyard = site.at("mail/.mailtwin/graveyard");
    // It breaks off after the index was told and before anything is taken away.
    assert!(!graveyard.exists());
    write(&graveyard, b"in the way");
    let order = || Order {
        at: "Work",
        mode: Mode::Update,
        expect: Some(head),
        next: 1,
        changes: vec![Change::Expunge(Uid(1))],
        adds: &[(9, ":1.c")],
    };
    send(&store, order()).unwrap_err();
    drop(store);
    fs::remove_file(&graveyard).unwrap();
    let store = site.replica();
    let found = store.find(&ann(), &name("Work")).unwrap().unwrap();
    assert_eq!((found.foreign, found.head.messages), (0, 2));
    let head = send(&store, Order { expect: Some(found.head), adds: &[], ..order() }).unwrap();
    assert_eq!(head.messages, 1);
}

#[test]
fn renames_that_the_index_has_forgotten_are_found_again() {
    let rename = |from: &str, to: &str| {
        let id = id_of(from);
        Step::Rename { id, from: name(from), to: name(to) }
    };
    let delete = |at: &str| Step::Delete { id: id_of(at), name: name(at) };
    let cases = [
        (vec![rename("Work", "Other"), rename("Other", "Work")], vec![("Other", 7), ("Work", 9)]),
        (vec![delete("Other"), rename("Work", "Other")], vec![("Other", 7)]),
        (vec![rename("Work", "Q"), rename("Other", "Work")], vec![("Q", 7), ("Work", 9)]),
        (vec![delete("Work"), rename("Other", "Q")], vec![("Q", 9)]),
    ];
    for (steps, expected) in cases {
        let site = Site::new(Layout::MaildirPlusPlus);
        let store = site.replica();
        build(&store, "Work", &[(1, ":1.a"), (2, ":1.b")]);
        build(&store, "Other", &[(1, ":1.c")]);
        drop(store);
        fs::create_dir(site.at("stale")).unwrap();
        for file in fs::read_dir(site.at("index")).unwrap().flatten() {
            if file.path().is_file() {
                fs::copy(file.path(), site.at("stale").join(file.file_name())).unwrap();
            }
        }
        let store = site.replica();
        store.restructure(&ann(), &steps).unwrap();
        drop(store);
        let store = site.open(site.options(), "stale", SystemClock::shared()).unwrap();
        // Whoever asks first, for one mailbox or for all, finds ours to be ours.
        for (at, id) in &expected {
            let found = store.find(&ann(), &name(at)).unwrap().unwrap();
            assert_eq!((found.id, found.foreign), (MailboxId([*id; 16]), 0), "{steps:?}");
        }
        let listing = store.account(&ann()).unwrap().unwrap().state;
        let found: Vec<_> =
            listing.mailboxes.iter().map(|m| (m.name.clone(), m.id.0[0], m.foreign)).collect();
        let expected: Vec<_> = expected.iter().map(|(at, id)| (name(at), *id, 0)).collect();
        assert_eq!(found, expected, "{steps:?}");
    }
}

#[test]
fn a_lock_that_is_held_changes_nothing() {
    let site = Site::new(Layout::MaildirPlusPlus);
    let store = site.replica();
    let head = build(&store, "Work", &[(1, ":1.a")]);
    let (before, list) = (site.names(&ann(), &name("Work")), site.list(&ann(), &name("Work")));
    let lock = site.mailbox(&ann(), &name("Work")).join("dovecot-uidlist.lock");
    write(&lock, b"1:elsewhere");
    let (mode, expect) = (Mode::Update, Some(head));
    let (changes, adds) = (vec![Change::Expunge(Uid(1))], &[(9, ":1.b")][..]);
    let order = Order { at: "Work", mode, expect, next: 1, changes, adds };
    assert_eq!(send(&store, order).unwrap_err().reason(), Reason::Locked);
    assert_eq!(site.names(&ann(), &name("Work")), before);
    assert_eq!(site.list(&ann(), &name("Work")), list);
    fs::remove_file(lock).unwrap();
    assert_eq!(store.find(&ann(), &name("Work")).unwrap().unwrap().head, head);
    update(&store, "Work", vec![Change::Expunge(Uid(1))], &[(9, ":1.b")]);
}

#[test]
fn what_a_crash_left_is_cleared_or_finished() {
    let site = Site::new(Layout::MaildirPlusPlus);
    let store = site.replica();
    build(&store, "A", &[(1, ":1.a")]);
    drop(store);
    let parked = site.at("mail/.mailtwin/parked/x");
    fs::create_dir_all(&parked).unwrap();
    fs::create_dir_all(site.at("mail/.mailtwin/build/half/cur")).unwrap();
    fs::create_dir_all(site.at("mail/.mailtwin/staging")).unwrap();
    write(&site.at("mail/.mailtwin/staging/1.1"), b"half");
    fs::rename(site.mailbox(&ann(), &name("A")), parked.join("0")).unwrap();
    write(&parked.join("destinations"), b"0\tann/Maildir/.B\n1\tann/Maildir/.C\n");
    let store = site.replica();
    assert!(!parked.exists() && !site.at("mail/.mailtwin/build/half").exists());
    assert!(!site.at("mail/.mailtwin/staging/1.1").exists());
    let listing = store.account(&ann()).unwrap().unwrap().state;
    let found: Vec<_> = listing.mailboxes.iter().map(|m| (m.name.clone(), m.foreign)).collect();
    assert_eq!(found, [(name("B"), 0)]);
}

#[test]
fn messages_that_have_no_uid_yet_hold_up_deletion() {
    let site = Site::new(Layout::MaildirPlusPlus);
    let store = site.replica();
    build(&store, "Work", &[(1, ":1.a")]);
    site.drop_in(&ann(), &name("Work"), b"own");
    let state = store.find(&ann(), &name("Work")).unwrap().unwrap();
    assert_eq!((state.head.messages, state.foreign), (1, 1));
    assert!(!site.list(&ann(), &name("Work")).contains("own"), "a replica gives no UIDs");
    let delete = Step::Delete { id: state.id, name: name("Work") };
    assert!(matches!(store.restructure(&ann(), &[delete]), Err(StoreError::Stale(_))));
}

#[test]
fn what_broke_off_half_way_is_ours_and_completed() {
    let site = Site::new(Layout::MaildirPlusPlus);
    let store = site.replica();
    let head = build(&store, "Work", &[(1, ":1.a")]);
    let blocked = site.mailbox(&ann(), &name("Work")).join("cur/1.b:2,Sb");
    fs::create_dir(&blocked).unwrap();
    let (mode, expect) = (Mode::Update, Some(head));
    let adds = &[(20, ":1.b")][..];
    let order = Order { at: "Work", mode, expect, next: 30, changes: Vec::new(), adds };
    send(&store, order).unwrap_err();
    // The gap line was written, the message has no name yet.
    assert!(site.list(&ann(), &name("Work")).ends_with("19 :0.gap19\n"));
    drop(store);
    // Now as if the crash had come right after its name, before its line.
    let staged = fs::read_dir(site.at("mail/.mailtwin/staging")).unwrap().next().unwrap().unwrap();
    fs::remove_dir(&blocked).unwrap();
    fs::rename(staged.path(), &blocked).unwrap();
    let store = site.replica();
    let state = store.find(&ann(), &name("Work")).unwrap().unwrap();
    assert_eq!((state.foreign, state.head.messages, state.head.uid_next), (0, 2, Uid(21)));
    assert!(site.list(&ann(), &name("Work")).ends_with("19 :0.gap19\n20 :1.b\n"));
    update(&store, "Work", vec![Change::Expunge(Uid(20))], &[(21, ":1.c")]);
}

#[test]
fn a_batch_that_failed_takes_no_uid() {
    let site = Site::new(Layout::MaildirPlusPlus);
    let store = site.replica();
    let head = build(&store, "Work", &[(1, ":1.a")]);
    let blocked = site.mailbox(&ann(), &name("Work")).join("cur/1.b:2,Sb");
    fs::create_dir(&blocked).unwrap();
    let (mode, expect) = (Mode::Update, Some(head));
    let adds = &[(20, ":1.b")][..];
    let order = Order { at: "Work", mode, expect, next: 30, changes: Vec::new(), adds };
    send(&store, order).unwrap_err();
    fs::remove_dir(&blocked).unwrap();
    let state = store.find(&ann(), &name("Work")).unwrap().unwrap();
    assert_eq!((state.foreign, state.head.messages, state.head.uid_next), (0, 1, Uid(20)));
    update(&store, "Work", vec![], &[(20, ":1.b")]);
}
