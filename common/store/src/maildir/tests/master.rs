//! What a master's engine makes of mail that others put there.

use std::{
    collections::BTreeSet,
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    sync::atomic::{AtomicBool, Ordering},
};

use mailtwin_logic::{
    ids::{MailboxId, ModSeq},
    mailbox::{MailboxState, Record},
};

use super::*;
use crate::{
    Listing, ProblemKind, Reason,
    maildir::{IdentityKind, UidBookkeeping},
};

fn listing(store: &Maildir) -> Listing {
    store.account(&ann()).unwrap().unwrap()
}

fn state(store: &Maildir, at: &str) -> MailboxState {
    store.find(&ann(), &name(at)).unwrap().unwrap()
}

fn records(store: &Maildir, at: &str) -> Vec<Record> {
    store.delta(&ann(), state(store, at).id, ModSeq(0)).unwrap().records
}

fn kinds(store: &Maildir) -> Vec<ProblemKind> {
    store.problems().into_iter().map(|problem| problem.kind).collect()
}

/// An INBOX without any file of Dovecot's.
fn bare(site: &Site) {
    site.create(&ann(), &name(""));
    fs::remove_file(site.mailbox(&ann(), &name("")).join("dovecot-uidlist")).unwrap();
}

#[test]
fn messages_without_a_uid_get_one_in_order_of_delivery() {
    let site = Site::new(Layout::MaildirPlusPlus);
    bare(&site);
    let inbox = site.mailbox(&ann(), &name(""));
    for base in ["1700000009.b", "1700000001.z", "1700000009.a"] {
        write(&inbox.join("new").join(base), base.as_bytes());
    }
    let store = site.master();
    let before = records(&store, "");
    let hints: Vec<&[u8]> = before.iter().map(|record| &*record.hint).collect();
    assert_eq!(hints, [&b":1700000001.z"[..], b":1700000009.a", b":1700000009.b"]);
    let list = site.list(&ann(), &name(""));
    let id = state(&store, "").id;
    assert!(list.starts_with("3 V") && list.contains(&format!(" N4 G{id}\n1 :1700000001.z\n")));
    // More of them; the list is appended to, half a line cut.
    site.append(&ann(), &name(""), "9 :170000");
    write(&inbox.join("cur/1700000002.c:2,S"), b"c");
    assert_eq!(state(&store, "").head.uid_next, Uid(5));
    assert_eq!(site.list(&ann(), &name("")), format!("{list}4 :1700000002.c\n"));
    // Nothing depends on the index.
    let head = state(&store, "").head;
    drop(store);
    let options = MaildirOptions { assigns_uids: true, ..site.options() };
    let again = site.open(options, "another index", SystemClock::shared()).unwrap();
    assert_eq!(state(&again, "").head, head);
    assert!(!inbox.join("dovecot-uidlist.lock").exists());
}

#[test]
fn a_mailbox_made_anew_with_the_old_ones_inode_is_another() {
    let site = Site::new(Layout::MaildirPlusPlus);
    site.create(&ann(), &name(""));
    let store = site.master();
    for (start, more) in [(1, ""), (2, "2 :1.a\n3 :1.b\n")] {
        let list = |digit: &str| {
            format!("3 V17000000{start}{} N{start} G{}\n{more}", start + 1, digit.repeat(32))
        };
        let path = site.mailbox(&ann(), &name("")).join("dovecot-uidlist");
        for digit in ["a", "b"] {
            write(&path, list(digit).as_bytes());
            assert_eq!(state(&store, "").id.to_string(), digit.repeat(32));
        }
    }
}

/// Dovecot writes a list anew without the lines of what is gone, and the second time may be given the
/// inode that the list had at first.
#[test]
fn a_list_that_was_written_anew_tells_which_uids_are_spent() {
    let site = Site::new(Layout::MaildirPlusPlus);
    site.create(&ann(), &name(""));
    (1..=2).for_each(|n| site.deliver(&ann(), &name(""), format!("{n}").as_bytes()));
    let path = site.mailbox(&ann(), &name("")).join("dovecot-uidlist");
    let list = site.list(&ann(), &name(""));
    let rest = list.split_once(" N1 ").unwrap();
    let store = site.master();
    for next in [3, 4, 6] {
        write(&path, [rest.0, &format!(" N{next} "), rest.1].concat().as_bytes());
        assert_eq!(state(&store, "").head.uid_next, Uid(next));
    }
    // Nobody is given a UID that somebody had.
    site.drop_in(&ann(), &name(""), b"late");
    let uids: Vec<Uid> = records(&store, "").iter().map(|record| record.uid).collect();
    assert_eq!(uids, [Uid(1), Uid(2), Uid(6)]);
}

#[test]
fn a_root_that_matches_no_account_is_a_problem_for_a_master_only() {
    let (site, copy) = (Site::new(Layout::MaildirPlusPlus), Site::new(Layout::MaildirPlusPlus));
    let (master, replica) = (site.master(), copy.replica());
    for store in [&master, &replica] {
        assert_eq!(store.accounts().unwrap(), []);
    }
    assert_eq!((kinds(&master), kinds(&replica)), (vec![ProblemKind::NoAccounts], vec![]));
    site.create(&ann(), &name(""));
    assert_eq!(master.accounts().unwrap(), [ann()]);
    assert_eq!(kinds(&master), []);
}

/// Names go round as with `RENAME C T`, `RENAME B C`, `RENAME A B`, `RENAME T A`, again and again.
#[test]
fn a_mailbox_that_is_being_renamed_is_never_taken_for_deleted() {
    const NAMES: [&str; 4] = ["A", "B", "C", "T"];
    let site = Site::new(Layout::MaildirPlusPlus);
    site.create(&ann(), &name(""));
    for at in &NAMES[..3] {
        site.create(&ann(), &name(at));
    }
    let store = site.master();
    let ids = |listing: Listing| -> BTreeSet<MailboxId> {
        assert_eq!(listing.unread, []);
        listing.state.mailboxes.into_iter().map(|mailbox| mailbox.id).collect()
    };
    let all = ids(listing(&store));
    let (go_on, place) = (AtomicBool::new(true), |at: &str| site.mailbox(&ann(), &name(at)));
    let looks: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = NAMES.iter().rev().cycle();
            let mut free = round.next().unwrap();
            while go_on.load(Ordering::Relaxed) {
                let next = round.next().unwrap();
                fs::rename(place(next), place(free)).unwrap();
                free = next;
            }
        });
        let looks = (0..300).map(|_| store.account(&ann())).collect();
        go_on.store(false, Ordering::Relaxed);
        looks
    });
    for look in looks {
        match look {
            Ok(listing) => assert_eq!(ids(listing.unwrap()), all),
            Err(error) => assert_eq!(error.reason(), Reason::Busy, "{error}"),
        }
    }
    assert_eq!(ids(listing(&store)), all);
}

#[test]
fn what_is_known_survives_a_restart_and_a_lost_index_is_noticed() {
    let site = Site::new(Layout::MaildirPlusPlus);
    site.create(&ann(), &name(""));
    (0..200).for_each(|n| site.deliver(&ann(), &name(""), format!("{n}").as_bytes()));
    let store = site.master();
    let before = state(&store, "");
    drop(store);
    let store = site.master();
    assert_eq!(state(&store, ""), before);
    let since = before.highest_modseq;
    site.deliver(&ann(), &name(""), b"more");
    let delta = store.delta(&ann(), before.id, since).unwrap();
    assert_eq!((delta.complete, delta.records.len()), (false, 1));
    drop(store);
    let options = MaildirOptions { assigns_uids: true, ..site.options() };
    let store = site.open(options, "another index", SystemClock::shared()).unwrap();
    let delta = store.delta(&ann(), before.id, since).unwrap();
    assert_eq!((delta.complete, delta.records.len()), (true, 201));
}

#[test]
fn an_absence_is_believed_only_under_the_lock() {
    let site = Site::new(Layout::MaildirPlusPlus);
    site.create(&ann(), &name(""));
    (1..=3).for_each(|n| site.deliver(&ann(), &name(""), format!("{n}").as_bytes()));
    let store = site.master();
    let before = state(&store, "");
    let lock = site.mailbox(&ann(), &name("")).join("dovecot-uidlist.lock");
    write(&lock, format!("{}:elsewhere", std::process::id()).as_bytes());
    // A rename explains itself.
    site.set_flags((&ann(), &name(""), Uid(1)), Flags::SEEN, &["todo"]);
    assert_eq!(records(&store, "")[0].flags, Flags::SEEN);
    fs::remove_file(site.file(&ann(), &name(""), Uid(2)).unwrap()).unwrap();
    let error = store.find(&ann(), &name("")).unwrap_err();
    assert_eq!(error.reason(), Reason::Locked, "{error}");
    let unread = listing(&store).unread;
    assert_eq!(
        unread.first().map(|(name, reason, _)| (name.is_inbox(), *reason)),
        Some((true, Reason::Locked))
    );
    assert_eq!(kinds(&store), [ProblemKind::MailboxUnreadable]);
    fs::remove_file(lock).unwrap();
    let delta = store.delta(&ann(), before.id, before.highest_modseq).unwrap();
    assert_eq!((delta.expunged, delta.records.len()), (vec![Uid(2)], 1));
}

#[test]
fn damaged_lists_are_reported_and_left_alone() {
    let heading = "3 V7 N1 G0123456789abcdef0123456789abcdef\n";
    let cases = [
        ("5 :a\n5 :b\n", 1),
        ("9 :a\n3 :b\n", 1),
        ("1 :a\nnonsense\n2 :b\n", 1),
        ("1 :a\n2 :a\n3 :b\n", 2),
        ("4294967295 :a\n", 0),
        ("1 :a\n2 lower :b\n", 1),
    ];
    for (lines, want) in cases {
        let site = Site::new(Layout::MaildirPlusPlus);
        site.create(&ann(), &name(""));
        let inbox = site.mailbox(&ann(), &name(""));
        let text = format!("{heading}{lines}");
        write(&inbox.join("dovecot-uidlist"), text.as_bytes());
        write(&inbox.join("cur/a:2,"), b"a");
        write(&inbox.join("cur/b:2,"), b"b");
        let store = site.master();
        assert_eq!(state(&store, "").head.messages, want, "{lines:?}");
        listing(&store);
        let damaged = kinds(&store).contains(&ProblemKind::ListDamaged);
        assert_eq!(damaged, want < 2, "{lines:?}");
        assert_eq!(site.list(&ann(), &name("")), text);
    }
    for text in ["", "3 V7", "garbage\n", "1 7 3\n"] {
        let site = Site::new(Layout::MaildirPlusPlus);
        site.create(&ann(), &name(""));
        write(&site.mailbox(&ann(), &name("")).join("dovecot-uidlist"), text.as_bytes());
        let store = site.master();
        assert_eq!(listing(&store).unread.len(), 1, "{text:?}");
        assert_eq!(site.list(&ann(), &name("")), text);
    }
}

#[test]
fn what_is_no_message_is_reported() {
    let site = Site::new(Layout::MaildirPlusPlus);
    site.create(&ann(), &name(""));
    site.deliver(&ann(), &name(""), b"one");
    let inbox = site.mailbox(&ann(), &name(""));
    fs::create_dir(inbox.join("cur/dir:2,")).unwrap();
    symlink("/etc/passwd", inbox.join("new/link")).unwrap();
    write(&inbox.join("new/.hidden"), b"x");
    write(&inbox.join("new").join("line\nbreak"), b"x");
    write(&inbox.join("new").join(std::ffi::OsStr::from_bytes(b"1700.\xff\xfe")), b"odd");
    let store = site.master();
    listing(&store);
    assert_eq!(state(&store, "").head.messages, 2);
    let want = [ProblemKind::Name, ProblemKind::NotAMessage, ProblemKind::NotAMessage];
    assert_eq!(kinds(&store), want);
    // Problems do not vanish with the process.
    drop(store);
    let store = site.master();
    listing(&store);
    assert_eq!(kinds(&store), want);
}

#[test]
fn a_copied_folder_does_not_take_the_identity_of_the_original() {
    let site = Site::new(Layout::MaildirPlusPlus);
    site.create(&ann(), &name(""));
    site.create(&ann(), &name("Work"));
    site.deliver(&ann(), &name("Work"), b"one");
    let store = site.master();
    let before = listing(&store).state;
    let (from, to) = (site.mailbox(&ann(), &name("Work")), site.mailbox(&ann(), &name("Archive")));
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
    let after = listing(&store);
    assert_eq!(after.state, before);
    let unread: Vec<_> = after.unread.iter().map(|(name, reason, _)| (name, *reason)).collect();
    assert_eq!(unread, [(&name("Archive"), Reason::Conflict)]);
}

#[test]
fn an_empty_mount_point_is_another_store() {
    for identity in [IdentityKind::File, IdentityKind::Inode] {
        let site = Site::new(Layout::MaildirPlusPlus);
        site.create(&ann(), &name(""));
        site.deliver(&ann(), &name(""), b"one");
        let options = MaildirOptions { assigns_uids: true, identity, ..site.options() };
        let store = site.open(options, "index", SystemClock::shared()).unwrap();
        let before = listing(&store).state;
        fs::rename(site.at("mail"), site.at("aside")).unwrap();
        let refuses = |store: &Maildir| {
            let errors = [
                store.accounts().unwrap_err(),
                store.account(&ann()).unwrap_err(),
                store.find(&ann(), &name("")).unwrap_err(),
            ];
            errors.iter().all(|error| error.reason() == Reason::WrongStore)
        };
        assert!(refuses(&store), "not mounted");
        fs::create_dir(site.at("mail")).unwrap();
        assert!(refuses(&store), "empty");
        fs::remove_dir(site.at("mail")).unwrap();
        fs::rename(site.at("aside"), site.at("mail")).unwrap();
        assert_eq!(listing(&store).state, before);
    }
}

#[test]
fn a_tree_that_is_only_read_is_left_as_it_is() {
    let site = Site::new(Layout::MaildirPlusPlus);
    bare(&site);
    let inbox = site.mailbox(&ann(), &name(""));
    write(&inbox.join("new/1700000001.a"), b"a");
    write(&inbox.join("cur/1700000002.b:2,S"), b"b");
    let files = || {
        let mut files = site.names(&ann(), &name(""));
        files.extend(fs::read_dir(&inbox).unwrap().map(|entry| format!("{entry:?}")));
        files
    };
    let before = files();
    let options = || MaildirOptions { uid_bookkeeping: UidBookkeeping::ReadOnly, ..site.options() };
    let store = site.open(options(), "index", SystemClock::shared()).unwrap();
    let first = records(&store, "");
    assert_eq!(first.iter().map(|record| record.uid.0).collect::<Vec<_>>(), [1, 2]);
    fs::remove_file(inbox.join("new/1700000001.a")).unwrap();
    write(&inbox.join("new/1700000000.c"), b"c");
    let second = records(&store, "");
    assert_eq!(second.iter().map(|record| record.uid.0).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(second[0], first[1]);
    let head = state(&store, "").head;
    drop(store);
    let store = site.open(options(), "index", SystemClock::shared()).unwrap();
    assert_eq!(state(&store, "").head, head);
    fs::remove_file(inbox.join("new/1700000000.c")).unwrap();
    write(&inbox.join("new/1700000001.a"), b"a");
    assert_eq!(files().len(), before.len());
    assert!(!site.at("mail/.mailtwin-store").exists());
}

#[test]
fn keywords_follow_the_table() {
    let site = Site::new(Layout::MaildirPlusPlus);
    site.create(&ann(), &name(""));
    site.deliver(&ann(), &name(""), b"one");
    site.set_flags((&ann(), &name(""), Uid(1)), Flags::default(), &["old"]);
    let inbox = site.mailbox(&ann(), &name(""));
    let store = site.master();
    let words = |store: &Maildir| -> Vec<String> {
        records(store, "")[0].keywords.iter().map(str::to_owned).collect()
    };
    assert_eq!(words(&store), ["old"]);
    let before = state(&store, "");
    write(&inbox.join("dovecot-keywords"), b"0 new\n");
    let delta = store.delta(&ann(), before.id, before.highest_modseq).unwrap();
    assert_eq!(delta.records.len(), 1);
    assert_eq!((words(&store), delta.keywords), (vec!["new".to_owned()], vec!["new".to_owned()]));
    fs::remove_file(inbox.join("dovecot-keywords")).unwrap();
    assert_eq!(words(&store), ["unknown-0"]);
    let names: Vec<String> = (0..26).map(|n| format!("k{n}")).collect();
    write(&inbox.join("dovecot-keywords"), &keywords::Table::of(&names).render());
    listing(&store);
    assert_eq!(kinds(&store), [ProblemKind::KeywordsFull]);
}

#[test]
fn other_uids_for_known_messages_are_other_messages() {
    let site = Site::new(Layout::MaildirPlusPlus);
    site.create(&ann(), &name(""));
    (1..=3).for_each(|n| site.deliver(&ann(), &name(""), format!("{n}").as_bytes()));
    let store = site.master();
    let before = state(&store, "");
    // As Dovecot does with a duplicate: the later line wins.
    let list = site.list(&ann(), &name(""));
    let base = list.lines().nth(2).unwrap().split_once(':').unwrap().1.to_owned();
    site.append(&ann(), &name(""), &format!("9 :{base}\n"));
    let delta = store.delta(&ann(), before.id, before.highest_modseq).unwrap();
    assert_eq!((delta.expunged, delta.records[0].uid), (vec![Uid(2)], Uid(9)));
    // And with another UIDVALIDITY everything is new.
    let list = site.list(&ann(), &name("")).replace("V1700000000", "V1700000001");
    let path = site.mailbox(&ann(), &name("")).join("dovecot-uidlist");
    write(&path.with_extension("new"), list.as_bytes());
    fs::rename(path.with_extension("new"), path).unwrap();
    let delta = store.delta(&ann(), before.id, delta.state.highest_modseq).unwrap();
    assert_eq!((delta.complete, delta.records.len()), (true, 3));
    assert_eq!(delta.state.head.uid_validity.0, 1_700_000_001);
}

#[test]
fn a_list_that_breaks_or_vanishes_expunges_nothing() {
    let site = Site::new(Layout::MaildirPlusPlus);
    site.create(&ann(), &name(""));
    (1..=4).for_each(|n| site.deliver(&ann(), &name(""), format!("{n}").as_bytes()));
    let store = site.master();
    let before = state(&store, "");
    let (path, list) =
        (site.mailbox(&ann(), &name("")).join("dovecot-uidlist"), site.list(&ann(), &name("")));
    let broken = list.replace("\n2 :", "\nx :");
    write(&path, broken.as_bytes());
    assert_eq!(state(&store, "").head, before.head);
    site.drop_in(&ann(), &name(""), b"new");
    assert_eq!(state(&store, "").head.messages, 4, "without a UID until the list is whole");
    assert_eq!(site.list(&ann(), &name("")), broken);
    fs::remove_file(&path).unwrap();
    let after = state(&store, "");
    assert_eq!((after.id, after.head.messages, after.head.uid_next), (before.id, 5, Uid(6)));
    assert_eq!(after.head.uid_validity, before.head.uid_validity);
    let delta = store.delta(&ann(), before.id, before.highest_modseq).unwrap();
    assert_eq!((delta.expunged, delta.records.len()), (vec![], 1));
    assert!(site.list(&ann(), &name("")).starts_with("3 V1700000000 N6 G"));
}

#[test]
fn a_new_mailbox_does_not_inherit_the_identity_of_one_that_was_moved_away() {
    let site = Site::new(Layout::MaildirPlusPlus);
    site.create(&ann(), &name("A"));
    let store = site.master();
    let old = state(&store, "A");
    let (a, b) = (site.mailbox(&ann(), &name("A")), site.mailbox(&ann(), &name("B")));
    fs::rename(&a, &b).unwrap();
    // Dovecot makes the directories first and the list a moment later.
    for sub in ["cur", "new", "tmp"] {
        fs::create_dir_all(a.join(sub)).unwrap();
    }
    let new = state(&store, "A");
    assert_ne!(new.id, old.id);
    assert_eq!(state(&store, "B").id, old.id);
    assert_eq!(listing(&store).unread, []);
}

/// The numbers of a deleted mailbox's directories may go to the next one, and an index may know less
/// than clients do after a crash.
#[test]
fn a_mailbox_without_a_list_and_anything_known_is_another_one() {
    let site = Site::new(Layout::MaildirPlusPlus);
    site.create(&ann(), &name("Work"));
    (1..=3).for_each(|n| site.deliver(&ann(), &name("Work"), format!("{n}").as_bytes()));
    let store = site.master();
    let before = state(&store, "Work");
    let list = site.mailbox(&ann(), &name("Work")).join("dovecot-uidlist");
    // With its messages it is the same.
    fs::remove_file(&list).unwrap();
    assert_eq!(state(&store, "Work").head, before.head);
    for uid in 1..=3 {
        fs::remove_file(site.file(&ann(), &name("Work"), Uid(uid)).unwrap()).unwrap();
    }
    fs::remove_file(&list).unwrap();
    // Made just now, they have other times.
    let cur = site.mailbox(&ann(), &name("Work")).join("cur");
    write(&cur.join("x"), b"");
    fs::remove_file(cur.join("x")).unwrap();
    site.drop_in(&ann(), &name("Work"), b"of another");
    let after = state(&store, "Work");
    assert_ne!(after.id, before.id);
    assert!(after.head.uid_validity > before.head.uid_validity, "{before:?} {after:?}");
    assert_eq!(records(&store, "Work").len(), 1);
}
