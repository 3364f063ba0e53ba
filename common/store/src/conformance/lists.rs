//! Cases about an account's list of mailboxes, its files, and names.

use mailtwin_logic::{
    ids::MailboxId,
    mailbox::{FileKey, MailboxName},
    plan::{Mode, Step},
};

use super::{
    Make, Subject,
    fixture::{At, ann, body, head, id, name, record},
};
use crate::{Reason, StoreError, guid_of};

fn rename(number: u8, from: &str, to: &str) -> Step {
    Step::Rename { id: id(number), from: name(from), to: name(to) }
}

fn delete(number: u8, at: &str) -> Step {
    Step::Delete { id: id(number), name: name(at) }
}

fn list(subject: &dyn Subject) -> Vec<(String, MailboxId)> {
    let listing = subject.store().account(&ann()).expect("account").unwrap_or_default();
    assert_eq!(listing.unread, []);
    let mailboxes = listing.state.mailboxes;
    assert!(mailboxes.is_sorted_by_key(|mailbox| &mailbox.name), "mailboxes come by name");
    let named = mailboxes.iter().filter(|mailbox| !mailbox.name.is_inbox());
    named.map(|mailbox| (mailbox.name.to_string(), mailbox.id)).collect()
}

fn assert_list(subject: &dyn Subject, want: &[(&str, u8)]) {
    let want: Vec<_> = want.iter().map(|(name, n)| ((*name).to_owned(), id(*n))).collect();
    assert_eq!(list(subject), want);
}

/// All steps of one call happen together, so names may be swapped and passed on.
pub fn names_are_swapped_and_moved_in_chains(make: Make<'_>) {
    let subject = make();
    let boxes = ["A", "B", "C", "C/Sub"];
    for (at, number) in boxes.iter().zip(1..) {
        At::new(&*subject, number, at).build(&[(u32::from(number), at)]);
    }
    let store = subject.store();
    store.restructure(&ann(), &[rename(1, "A", "B"), rename(2, "B", "A")]).expect("swap");
    assert_list(&*subject, &[("A", 2), ("B", 1), ("C", 3), ("C/Sub", 4)]);
    let chain = [rename(2, "A", "B"), rename(1, "B", "C"), rename(3, "C", "New/Deep")];
    store.restructure(&ann(), &chain).expect("chain");
    assert_list(&*subject, &[("B", 2), ("C", 1), ("C/Sub", 4), ("New/Deep", 3)]);
    let at = At::new(&*subject, 3, "New/Deep");
    assert_eq!(at.head(), Some(head(7, 4, &[record(3, "C")])));
    at.assert_holds(3, "C");
    at.add(&[(9, "more")]);
    // A deletion frees its name for a move in the same call.
    store.restructure(&ann(), &[delete(1, "C"), rename(2, "B", "C")]).expect("replace");
    assert_list(&*subject, &[("C", 2), ("C/Sub", 4), ("New/Deep", 3)]);
    assert_eq!(subject.buried(), [record(1, "A").guid]);
}

/// What was deleted while others were below it, as when a tree is renamed piece by piece, may come back
/// under another name.
pub fn deleted_above_others_and_back_under_another_name(make: Make<'_>) {
    let subject = make();
    for (at, number) in ["A", "A/x", "A/x/deep"].iter().zip(1..) {
        At::new(&*subject, number, at).build(&[(1, at)]);
    }
    subject.store().restructure(&ann(), &[delete(2, "A/x")]).expect("delete");
    assert_list(&*subject, &[("A", 1), ("A/x/deep", 3)]);
    let back = At::new(&*subject, 2, "B/x");
    assert_eq!(back.build(&[(1, "A/x")]), head(7, 2, &[record(1, "A/x")]));
    assert_list(&*subject, &[("A", 1), ("A/x/deep", 3), ("B/x", 2)]);
    back.assert_holds(1, "A/x");
}

/// A name may come back with another identity and other messages.
pub fn deleted_and_created_anew_under_one_name(make: Make<'_>) {
    let subject = make();
    let old = At::new(&*subject, 1, "Work");
    old.build(&[(1, "a"), (2, "b")]);
    subject.store().restructure(&ann(), &[delete(1, "Work")]).expect("delete");
    assert_list(&*subject, &[]);
    assert_eq!(old.state(), None);
    let new = At::new(&*subject, 2, "Work");
    assert_eq!(new.build(&[(1, "z")]), head(7, 2, &[record(1, "z")]));
    assert_list(&*subject, &[("Work", 2)]);
    new.assert_holds(1, "z");
    let mut buried = subject.buried();
    buried.sort_unstable();
    let mut want = [record(1, "a").guid, record(2, "b").guid];
    want.sort_unstable();
    assert_eq!(buried, want);
}

/// Steps that were planned for another list are refused, and none of them is carried out.
pub fn steps_for_what_has_changed_are_refused_whole(make: Make<'_>) {
    let subject = make();
    for (at, number) in ["A", "B"].iter().zip(1..) {
        At::new(&*subject, number, at).build(&[(1, at)]);
    }
    let before = list(&*subject);
    let cases = [
        vec![rename(1, "A", "X"), rename(9, "B", "Y")],
        vec![delete(1, "A"), delete(2, "Gone")],
        vec![rename(1, "A", "B")],
        vec![rename(1, "A", "X"), rename(2, "B", "X")],
        vec![delete(2, "A")],
    ];
    for steps in cases {
        let error = subject.store().restructure(&ann(), &steps).expect_err("it is stale");
        assert!(matches!(error, StoreError::Stale(_)), "{steps:?}: {error}");
        assert_eq!(list(&*subject), before, "{steps:?}");
    }
    assert_eq!(subject.buried(), []);
    subject.rename(&ann(), &name("A"), &name("Moved"));
    assert!(subject.store().restructure(&ann(), &[delete(1, "A")]).is_err());
    assert_list(&*subject, &[("B", 2), ("Moved", 1)]);
}

/// A mailbox with mail that replication did not put there is not deleted.
pub fn foreign_messages_hold_up_deletion(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    work.build(&[(1, "a")]);
    subject.deliver(&ann(), &work.name, &body("mine"));
    let error = subject.store().restructure(&ann(), &[delete(1, "Work")]).expect_err("it is kept");
    assert!(matches!(error, StoreError::Stale(_)), "{error}");
    assert_eq!(work.uids(), [1, 2]);
    work.assert_holds(2, "mine");
    let inbox = At::new(&*subject, 2, "");
    inbox.build(&[(1, "b")]);
    subject.deliver(&ann(), &inbox.name, &body("mine too"));
    let reset = Step::Reset { id: id(2), name: inbox.name.clone() };
    assert!(subject.store().restructure(&ann(), &[reset]).is_err());
    assert_eq!(inbox.uids(), [1, 2]);
    // Moving it takes nothing away.
    subject.store().restructure(&ann(), &[rename(1, "Work", "Old")]).expect("rename");
    assert_eq!(At::new(&*subject, 1, "Old").uids(), [1, 2]);
}

/// An INBOX that was reset is gone, until another one is built in its place.
pub fn reset_inbox_makes_room(make: Make<'_>) {
    let subject = make();
    let old = At::new(&*subject, 1, "");
    old.build(&[(1, "a"), (2, "b")]);
    let reset = Step::Reset { id: id(1), name: old.name.clone() };
    subject.store().restructure(&ann(), &[reset]).expect("reset");
    let there = subject.store().find(&ann(), &old.name).expect("find");
    assert!(there.is_none_or(|there| there.id != id(1) && there.head.messages == 0));
    assert_eq!(subject.buried().len(), 2);
    let new = At::new(&*subject, 2, "");
    assert_eq!(new.build(&[(1, "z")]), head(7, 2, &[record(1, "z")]));
    new.assert_holds(1, "z");
    let gone = [delete(2, ""), rename(2, "", "X"), Step::Reset { id: id(2), name: name("X") }];
    for step in gone {
        assert!(subject.store().restructure(&ann(), &[step]).is_err());
    }
    assert_eq!(new.uids(), [1]);
}

/// Files are read back as they were written, listed with their hash, and removed.
pub fn files_are_written_and_removed(make: Make<'_>) {
    let subject = make();
    At::new(&*subject, 1, "").build(&[]);
    At::new(&*subject, 2, "Work").build(&[]);
    let store = subject.store();
    let keys = [
        FileKey::Subscriptions,
        FileKey::Acl(name("Work")),
        FileKey::Sieve(name("main.sieve")),
        FileKey::SieveActive,
        FileKey::Annotations(name("Work")),
        FileKey::Quota,
        FileKey::Seen,
        FileKey::SubscribedOfOthers,
    ];
    let contents: [&[u8]; 8] = [
        b"V\t2\n\nWork\n",
        b"user=bob lr\n",
        b"keep;\n",
        b"sieve/main.sieve",
        b"%(ENTRY /comment USERID \"\" VALUE \"of all\")\n\
          %(ENTRY /specialuse USERID ann VALUE \\Sent)\n",
        b"%(FOLDER INBOX STORAGE 100000 MESSAGE 5000)\n",
        b"%(UNIQUEID 00112233445566778899aabb LASTREAD 1700000000 LASTUID 7 LASTCHANGE 1700000001 \
          SEENUIDS 1:3,7)\n",
        b"%(MBOXNAME news.linux)\n%(MBOXNAME user.ben.Work)\n",
    ];
    for (key, content) in keys.iter().zip(contents) {
        assert_eq!(store.file(&ann(), key).expect("file"), None, "{key:?}");
        store.set_file(&ann(), key, Some(content)).expect("set");
        assert_eq!(store.file(&ann(), key).expect("file").as_deref(), Some(content), "{key:?}");
    }
    let files = || store.account(&ann()).expect("account").expect("it is there").state.files;
    let listed: Vec<_> = files().into_iter().map(|file| (file.key, file.guid)).collect();
    let want: Vec<_> = keys.iter().cloned().zip(contents.map(guid_of)).collect();
    assert_eq!(listed, want);
    store.set_file(&ann(), &keys[0], Some(b"V\t2\n\n")).expect("replace");
    assert_eq!(files()[0].guid, guid_of(b"V\t2\n\n"));
    subject.write_file(&ann(), &keys[0], Some(b"V\t2\n\nOther\n"));
    assert_eq!(files()[0].guid, guid_of(b"V\t2\n\nOther\n"));
    for key in keys.iter().rev() {
        store.set_file(&ann(), key, None).expect("remove");
        store.set_file(&ann(), key, None).expect("removing twice is nothing");
        assert_eq!(store.file(&ann(), key).expect("file"), None);
    }
    assert_eq!(files(), []);
}

/// A name is stored as it is or refused; none of them reaches another mailbox or leaves the store.
pub fn hostile_names_stay_inside(make: Make<'_>) {
    for bad in [&b".."[..], b"a/../b", b"a/./b", b"/etc", b"a//b", b"a\0b"] {
        assert!(MailboxName::new(bad).is_err(), "{}", bad.escape_ascii());
    }
    let subject = make();
    let long = "x".repeat(300);
    let deep = vec!["deep"; 200].join("/");
    let names: [&[u8]; 12] = [
        b"...",
        b"cur",
        b"new",
        b"tmp",
        b"a.b",
        b"a\\b\"c'",
        b"~root",
        b"line\nbreak",
        b"\xff\xfe",
        b" ",
        long.as_bytes(),
        deep.as_bytes(),
    ];
    let mut kept = Vec::new();
    for (octets, number) in names.into_iter().zip(1..) {
        let name = MailboxName::new(octets).expect("it is a name");
        let at = At { subject: &*subject, id: id(number), name };
        match at.apply(at.batch(Mode::Build, Vec::new(), &[(1, "a")])) {
            Ok(_) => kept.push((at.name.to_string(), at.id)),
            Err(error) => assert_eq!(error.reason(), Reason::Name, "{}: {error}", at.name),
        }
    }
    let by_octets = |text: &(String, MailboxId)| names[usize::from(text.1.0[0]) - 1];
    kept.sort_by_key(by_octets);
    assert_eq!(list(&*subject), kept);
    for (_, id) in kept {
        let at = At { subject: &*subject, id, name: MailboxName::inbox() };
        assert_eq!(at.uids(), [1]);
    }
}
