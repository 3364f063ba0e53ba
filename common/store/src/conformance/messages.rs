//! Cases about the messages of one mailbox.

use mailtwin_logic::{
    ids::{ModSeq, Uid, UidValidity},
    mailbox::{Flags, Head, Record},
    plan::{self, Change, Mode, Step},
};

use super::{
    KEEP, Make,
    fixture::{At, ann, apply, body, flag, head, name, record},
};
use crate::{Batch, Reason, StoreError, guid_of};

/// A batch that was planned for another head is refused before anything is changed.
pub fn stale_plan_changes_nothing(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    let before = work.build(&[(1, "a"), (2, "b")]);
    let wrong = Head { uid_next: Uid(9), ..before };
    for expect in [None, Some(wrong)] {
        let mut batch = work.batch(Mode::Update, vec![Change::Expunge(Uid(1))], &[(3, "c")]);
        batch.expect = expect;
        let error = work.apply(batch).expect_err("it is stale");
        assert!(matches!(error, StoreError::Stale(_)), "{error}");
        assert_eq!(work.head(), Some(before));
    }
    // A client is faster than the plan.
    let batch = work.batch(Mode::Update, vec![Change::Expunge(Uid(1))], &[]);
    subject.set_flags((&ann(), &work.name, Uid(2)), Flags::SEEN, &[]);
    assert!(matches!(work.apply(batch), Err(StoreError::Stale(_))));
    assert_eq!(work.uids(), [1, 2]);
    // No such mailbox, and one that is there already.
    let other = At::new(&*subject, 2, "Other");
    let mut batch = other.batch(Mode::Update, Vec::new(), &[(1, "a")]);
    batch.expect = Some(before);
    assert!(matches!(other.apply(batch), Err(StoreError::Stale(_))));
    let mut batch = work.batch(Mode::Build, Vec::new(), &[(1, "z")]);
    batch.expect = None;
    assert!(matches!(work.apply(batch), Err(StoreError::Stale(_))));
    assert_eq!(work.uids(), [1, 2]);
}

/// A message that the master has forgotten becomes the store's own, and is not expunged any more.
pub fn what_is_kept_is_the_stores_own(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    let before = work.build(&[(1, "a"), (2, "b")]);
    assert_eq!(work.change(vec![Change::Keep(Uid(2))]), before);
    let state = subject.store().find(&ann(), &work.name).expect("find").expect("it is there");
    assert_eq!((state.head, state.foreign), (before, 1));
    let records = subject.store().delta(&ann(), state.id, ModSeq(0)).expect("delta").records;
    let own: Vec<_> = records.iter().map(|record| !record.replicated).collect();
    assert_eq!(own, [false, true]);
    let delete = Step::Delete { id: state.id, name: work.name };
    let refused = subject.store().restructure(&ann(), &[delete]);
    assert!(matches!(refused, Err(StoreError::Stale(_))), "{refused:?}");
}

/// Adding, updating and expunging gives the very head that the master has for the same records.
pub fn changes_give_the_head_of_the_same_records(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    let all = [record(1, "a"), record(2, "b")];
    assert_eq!(work.build(&[(1, "a"), (2, "b")]), head(7, 3, &all));
    assert_eq!(work.add(&[(5, "c"), (9, "d")]).uid_next, Uid(10));
    let flags = Flags::SEEN.with(Flags::FLAGGED).with(Flags::ANSWERED);
    let changed = work.change(vec![
        Change::Expunge(Uid(1)),
        flag(2, flags, &["todo", "$Junk"]),
        flag(9, Flags::DRAFT.with(Flags::DELETED).with(Flags::PASSED), &["todo"]),
    ]);
    let mut want = [record(2, "b"), record(5, "c"), record(9, "d")];
    (want[0].flags, want[0].keywords) = (flags, ["$Junk", "todo"].iter().collect());
    want[2].flags = Flags::DRAFT.with(Flags::DELETED).with(Flags::PASSED);
    want[2].keywords = ["todo"].iter().collect();
    assert_eq!(changed, head(7, 10, &want));
    assert_eq!(work.head(), Some(changed));
    // Flags and keywords go as they came; a date changes alone.
    let mut batch = work.batch(Mode::Update, vec![flag(2, Flags::default(), &[])], &[]);
    batch.target = changed;
    batch.changes.push(Change::Update {
        uid: Uid(5),
        internal_date: 86_400,
        flags: Flags::default(),
        keywords: [""; 0].iter().collect(),
    });
    let changed = work.apply(batch).expect("apply");
    want[0] = record(2, "b");
    want[1].internal_date = 86_400;
    assert_eq!(changed, head(7, 10, &want));
    assert!(work.records().iter().all(|record| record.replicated), "all came by replication");
    for (uid, text) in [(2, "b"), (5, "c"), (9, "d")] {
        work.assert_holds(uid, text);
    }
}

/// The last batch raises UIDNEXT to the master's; nothing lowers it.
pub fn target_raises_uid_next(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    let mut batch = work.batch(Mode::Build, Vec::new(), &[(1, "a")]);
    batch.target = head(7, 100, &[]);
    assert_eq!(work.apply(batch).expect("build").uid_next, Uid(100));
    let mut batch = work.batch(Mode::Update, Vec::new(), &[]);
    batch.target = head(7, 200, &[]);
    assert_eq!(work.apply(batch).expect("raise").uid_next, Uid(200));
    let mut batch = work.batch(Mode::Update, vec![Change::Expunge(Uid(1))], &[]);
    batch.target = head(7, 3, &[]);
    assert_eq!(work.apply(batch).expect("expunge").uid_next, Uid(200));
    assert_eq!(work.head(), Some(head(7, 200, &[])));
    // What comes then stands at or above it.
    let batch = work.batch(Mode::Update, Vec::new(), &[(150, "b")]);
    assert!(matches!(work.apply(batch), Err(StoreError::UidTaken(Uid(150)))));
    assert_eq!(work.add(&[(200, "b")]).uid_next, Uid(201));
}

/// HIGHESTMODSEQ is no lower than a batch says, with and without a change, where the engine can.
pub fn modseqs_are_raised_and_never_lowered(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    let highest = || {
        let store = subject.store();
        let state = store.find(&ann(), &name("Work")).expect("find").expect("it is there");
        state.highest_modseq.0
    };
    let with = |mode, changes, adds: &[(u32, &str)], modseq| {
        work.apply(Batch { modseq: ModSeq(modseq), ..work.batch(mode, changes, adds) })
    };
    with(Mode::Build, Vec::new(), &[(1, "a")], 1000).expect("build");
    let sets = subject.store().capabilities().sets_modseq;
    assert!(!sets || highest() >= 1000);
    let before = highest();
    with(Mode::Update, Vec::new(), &[], before + 1000).expect("raise");
    assert!(!sets || highest() >= before + 1000);
    let before = highest();
    with(Mode::Update, Vec::new(), &[(2, "b")], before + 1000).expect("add");
    assert!(!sets || highest() >= before + 1000);
    let before = highest();
    with(Mode::Update, vec![Change::Expunge(Uid(1))], &[], 1).expect("expunge");
    with(Mode::Update, Vec::new(), &[], u64::MAX).expect("nonsense");
    assert!(highest() > before);
}

/// A mailbox that is built over several batches is not seen before the last one.
pub fn build_is_invisible_until_its_last_batch(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work/Deep/Down");
    for adds in [&[(1, "a"), (2, "b")][..], &[(4, "c")]] {
        let mut batch = work.batch(Mode::Build, Vec::new(), adds);
        batch.last = false;
        work.apply(batch).expect("a part");
        assert_eq!(work.state(), None);
        let listing = work.store().account(&ann()).expect("account").unwrap_or_default();
        assert!(listing.state.mailboxes.iter().all(|mailbox| mailbox.id != work.id));
        assert!(work.store().delta(&ann(), work.id, ModSeq(0)).is_err());
    }
    let mut batch = work.batch(Mode::Build, Vec::new(), &[(7, "d")]);
    batch.target = head(7, 30, &[]);
    batch.keywords = vec!["todo".into()];
    let built = work.apply(batch).expect("the last part");
    let all = [record(1, "a"), record(2, "b"), record(4, "c"), record(7, "d")];
    assert_eq!(built, head(7, 30, &all));
    assert_eq!(work.head(), Some(built));
    work.assert_holds(1, "a");
    work.assert_holds(7, "d");
    let state = work.state().expect("it is there");
    assert_eq!((state.foreign, &state.name), (0, &work.name));
    let empty = At::new(&*subject, 2, "Empty");
    assert_eq!(empty.build(&[]), head(7, 1, &[]));
    assert_eq!(empty.head(), Some(head(7, 1, &[])));
}

/// Nothing is left of a build that was abandoned.
pub fn abandoned_build_leaves_nothing(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    let mut batch = work.batch(Mode::Build, Vec::new(), &[(1, "a"), (2, "b")]);
    batch.last = false;
    work.apply(batch).expect("a part");
    work.store().abandon(&ann(), work.id);
    assert_eq!(work.build(&[(3, "c")]), head(7, 4, &[record(3, "c")]));
    assert_eq!(work.uids(), [3]);
    work.store().abandon(&ann(), work.id);
    assert_eq!(work.uids(), [3], "what is whole stays");
}

/// A build whose additions start from the beginning replaces the one that broke off.
pub fn build_begins_anew_when_it_is_repeated(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    let mut batch = work.batch(Mode::Build, Vec::new(), &[(1, "a"), (2, "b")]);
    batch.last = false;
    work.apply(batch).expect("a part");
    assert_eq!(work.build(&[(2, "b"), (3, "c")]), head(7, 4, &[record(2, "b"), record(3, "c")]));
}

/// No mailbox is built where another one stands.
pub fn build_refuses_a_place_that_is_taken(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    let before = work.build(&[(1, "a")]);
    let usurper = At::new(&*subject, 2, "Work");
    let error = usurper.apply(usurper.batch(Mode::Build, Vec::new(), &[(1, "z")]));
    let reason = error.expect_err("it is taken").reason();
    assert!(matches!(reason, Reason::Conflict | Reason::Name | Reason::Busy), "{reason}");
    assert_eq!(work.head(), Some(before));
    subject.create(&ann(), &name("New"));
    let usurper = At::new(&*subject, 3, "New");
    assert!(usurper.apply(usurper.batch(Mode::Build, Vec::new(), &[(1, "z")])).is_err());
    // An INBOX with mail in it is a mailbox like any other.
    let inbox = At::new(&*subject, 4, "");
    subject.create(&ann(), &inbox.name);
    subject.deliver(&ann(), &inbox.name, &body("mine"));
    assert!(inbox.apply(inbox.batch(Mode::Build, Vec::new(), &[(1, "z")])).is_err());
    let found = work.store().find(&ann(), &inbox.name).expect("find").expect("it is there");
    assert_eq!((found.head.messages, found.foreign), (1, 1));
}

/// A mailbox that was renamed while it was planned is not built a second time.
pub fn build_refuses_a_mailbox_that_is_elsewhere(make: Make<'_>) {
    let subject = make();
    let old = At::new(&*subject, 1, "Old");
    let before = old.build(&[(1, "a")]);
    let new = At::new(&*subject, 1, "New");
    let error = new.apply(new.batch(Mode::Build, Vec::new(), &[(1, "a")]));
    assert!(matches!(error, Err(StoreError::Stale(Some(head))) if head == before), "{error:?}");
    assert_eq!((old.head(), new.head()), (Some(before), None));
}

/// The empty INBOX that a mail server makes at a login gives way to the master's.
pub fn build_takes_the_place_of_an_empty_inbox(make: Make<'_>) {
    let subject = make();
    let inbox = At::new(&*subject, 1, "");
    subject.create(&ann(), &inbox.name);
    let there = inbox.store().find(&ann(), &inbox.name).expect("find");
    assert!(there.is_some_and(|there| there.id != inbox.id && there.foreign == 0));
    let built = inbox.build(&[(3, "a")]);
    assert_eq!(built, head(7, 4, &[record(3, "a")]));
    assert_eq!(inbox.head(), Some(built));
    inbox.assert_holds(3, "a");
}

/// Only a repair puts messages below UIDNEXT, and never over one that is there.
pub fn additions_below_uid_next_need_a_repair(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    let before = work.build(&[(2, "b"), (5, "e")]);
    let batch = work.batch(Mode::Update, Vec::new(), &[(3, "c")]);
    assert!(matches!(work.apply(batch), Err(StoreError::UidTaken(Uid(3)))));
    assert_eq!(work.head(), Some(before));
    let batch = work.batch(Mode::Repair, Vec::new(), &[(5, "other")]);
    assert!(matches!(work.apply(batch), Err(StoreError::UidTaken(Uid(5)))));
    assert_eq!(work.head(), Some(before));
    let mut batch = work.batch(
        Mode::Repair,
        vec![Change::Expunge(Uid(2)), flag(5, Flags::SEEN, &[])],
        &[(1, "a"), (3, "c"), (8, "h")],
    );
    batch.target = head(7, 9, &[]);
    let mut all = [record(1, "a"), record(3, "c"), record(5, "e"), record(8, "h")];
    all[2].flags = Flags::SEEN;
    assert_eq!(work.apply(batch).expect("repair"), head(7, 9, &all));
    assert_eq!(work.uids(), [1, 3, 5, 8]);
    work.assert_holds(3, "c");
    work.assert_holds(5, "e");
}

/// A repair takes over the master's UIDVALIDITY, and then also a lower UIDNEXT.
pub fn repair_takes_another_uid_validity(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    work.build(&[(4, "a"), (50, "b")]);
    let mut batch = work.batch(Mode::Repair, vec![Change::Expunge(Uid(50))], &[(1, "b")]);
    batch.target = head(8, 5, &[]);
    let all = [record(1, "b"), record(4, "a")];
    assert_eq!(work.apply(batch).expect("repair"), head(8, 5, &all));
    assert_eq!(work.head(), Some(head(8, 5, &all)));
    let state = work.state().expect("it is there");
    assert_eq!(state.head.uid_validity, UidValidity(8));
}

/// A delta tells what changed since a MODSEQ, and nothing else, or everything.
pub fn delta_tells_what_changed(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    work.build(&[(1, "a"), (2, "b"), (3, "c"), (4, "d")]);
    let since = work.state().expect("it is there").highest_modseq;
    let unchanged = work.store().delta(&ann(), work.id, since).expect("delta");
    assert!(!unchanged.complete);
    assert_eq!((unchanged.records.len(), unchanged.expunged.len()), (0, 0));
    work.change(vec![Change::Expunge(Uid(2)), flag(3, Flags::SEEN, &["todo"])]);
    subject.expunge(&ann(), &work.name, Uid(4));
    subject.deliver(&ann(), &work.name, &body("new"));
    subject.set_flags((&ann(), &work.name, Uid(1)), Flags::FLAGGED, &["later"]);
    let delta = work.store().delta(&ann(), work.id, since).expect("delta");
    assert!(!delta.complete);
    assert_eq!(delta.expunged, [Uid(2), Uid(4)]);
    let uids: Vec<u32> = delta.records.iter().map(|record| record.uid.0).collect();
    assert_eq!(uids, [1, 3, 5]);
    assert!(delta.state.highest_modseq > since);
    assert!(["todo", "later"].iter().all(|word| delta.keywords.iter().any(|known| known == word)));
    let complete = work.store().delta(&ann(), work.id, ModSeq(0)).expect("delta");
    assert!(complete.complete && complete.expunged.is_empty());
    assert_eq!(complete.state, delta.state);
    let uids: Vec<u32> = complete.records.iter().map(|record| record.uid.0).collect();
    assert_eq!(uids, [1, 3, 5]);
    let beyond = ModSeq(delta.state.highest_modseq.0 + 1000);
    assert!(work.store().delta(&ann(), work.id, beyond).expect("delta").complete);
    assert!(work.store().delta(&ann(), super::fixture::id(9), since).is_err());
}

/// Replaying an expunge is harmless; flags for a message that is gone are an error.
pub fn expunging_twice_is_nothing_and_updating_what_is_gone_an_error(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    work.build(&[(1, "a"), (2, "b")]);
    let once = work.change(vec![Change::Expunge(Uid(1))]);
    assert_eq!(work.change(vec![Change::Expunge(Uid(1)), Change::Expunge(Uid(77))]), once);
    let mut batch = work.batch(Mode::Update, vec![flag(1, Flags::SEEN, &[])], &[]);
    batch.target = once;
    let error = work.apply(batch).expect_err("it is gone");
    assert_eq!(error.reason(), Reason::Missing, "{error}");
    assert_eq!(work.uids(), [2]);
}

/// Octets that are not what their record says never get a name.
pub fn wrong_octets_are_refused(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    work.build(&[]);
    let (to, good) = (work.to(Mode::Update), record(1, "a"));
    let take = |record: &Record, octets: &[u8]| {
        let mut staging = work.store().stage(&to, record)?;
        staging.write(octets)?;
        staging.finish()
    };
    let octets = body("a");
    let mut flipped = octets.clone();
    flipped[3] ^= 1;
    let long = [&octets[..], b"x"].concat();
    for wrong in [&flipped[..], &octets[1..], b"", &long] {
        let error = take(&good, wrong).expect_err("it is wrong");
        assert_eq!(error.reason(), Reason::GuidMismatch, "{error}");
    }
    let empty = Record { guid: guid_of(b""), octets: 0, ..record(1, "a") };
    let lie = Record { guid: good.guid, ..empty.clone() };
    assert!(take(&lie, b"").is_err());
    // Staged octets come under no other record.
    let mut batch = work.batch(Mode::Update, Vec::new(), &[(2, "b")]);
    batch.staged = vec![take(&good, &octets).expect("it is good")];
    assert!(work.apply(batch).is_err());
    let mut batch = work.batch(Mode::Update, Vec::new(), &[(2, "b")]);
    batch.staged.clear();
    assert!(work.apply(batch).is_err());
    assert_eq!(work.uids(), [0; 0]);
    let stored = take(&empty, b"").and_then(|staged| {
        let mut batch = work.batch(Mode::Update, Vec::new(), &[]);
        (batch.changes, batch.staged) = (vec![Change::Add(empty.clone())], vec![staged]);
        work.apply(batch)
    });
    if subject.takes_empty_messages() {
        assert_eq!(stored.expect("a message may be empty"), head(7, 2, &[empty]));
    } else {
        assert!(stored.is_err(), "{stored:?}");
        assert_eq!(work.uids(), [0; 0]);
    }
}

/// What the store holds anywhere is staged without its octets.
pub fn octets_already_held_need_not_come_again(make: Make<'_>) {
    let subject = make();
    let (work, copy) = (At::new(&*subject, 1, "Work"), At::new(&*subject, 2, "Copy"));
    work.build(&[(1, "a")]);
    copy.build(&[]);
    let to = copy.to(Mode::Update);
    let held = |record: &Record| copy.store().stage_held(&to, record).expect("stage");
    assert!(held(&record(1, "unknown")).is_none());
    assert!(held(&Record { octets: 5, ..record(1, "a") }).is_none(), "another size is another");
    let wanted = record(4, "a");
    let staged = held(&wanted).expect("it is held");
    assert_eq!((staged.guid(), staged.octets()), (wanted.guid, wanted.octets));
    let mut batch = copy.batch(Mode::Update, Vec::new(), &[]);
    batch.target = head(7, 5, &[]);
    (batch.changes, batch.staged) = (vec![Change::Add(wanted.clone())], vec![staged]);
    assert_eq!(copy.apply(batch).expect("apply"), head(7, 5, &[wanted]));
    copy.assert_holds(4, "a");
    // The copy stands on its own feet.
    work.change(vec![Change::Expunge(Uid(1))]);
    copy.assert_holds(4, "a");
}

/// Each batch succeeds or fails by itself.
pub fn one_failing_batch_does_not_stop_the_others(make: Make<'_>) {
    let subject = make();
    let boxes = ["A", "B", "C"];
    let at: Vec<At<'_>> =
        boxes.iter().zip(1..).map(|(name, n)| At::new(&*subject, n, name)).collect();
    for at in &at {
        at.build(&[(1, "a")]);
    }
    let mut batches: Vec<_> =
        at.iter().map(|at| at.batch(Mode::Update, Vec::new(), &[(2, at.name_text())])).collect();
    batches[1].expect = None;
    let results = subject.store().apply(batches);
    let good: Vec<bool> = results.iter().map(Result::is_ok).collect();
    assert_eq!(good, [true, false, true]);
    let uids: Vec<_> = at.iter().map(At::uids).collect();
    assert_eq!(uids, [vec![1, 2], vec![1], vec![1, 2]]);
}

/// After part of a plan was applied, comparing again gives the rest and ends equal.
pub fn planning_again_completes_what_broke_off(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    work.build(&[(1, "a"), (2, "b"), (3, "c")]);
    let mut ours = vec![record(2, "b"), record(3, "c"), record(6, "f"), record(7, "g")];
    ours[1].flags = Flags::SEEN;
    let target = head(7, 8, &ours);
    // The first part of the plan: one expunge.
    let plan = plan::mailbox(&ours, target, &work.records(), work.head());
    let mut part = work.batch(Mode::Update, plan.changes[..1].to_vec(), &[]);
    part.last = false;
    work.apply(part).expect("the first part");
    let plan = plan::mailbox(&ours, target, &work.records(), work.head());
    assert_eq!(plan.changes.len(), 3, "{plan:?}");
    let mut rest = work.batch(Mode::Update, Vec::new(), &[(6, "f"), (7, "g")]);
    (rest.changes, rest.target) = (plan.changes, target);
    assert_eq!(apply(work.store(), rest).expect("the rest"), target);
    let plan = plan::mailbox(&ours, target, &work.records(), work.head());
    assert_eq!(plan.changes, []);
}

/// What replication expunges can be found again for as long as it is kept.
pub fn graveyard_keeps_what_was_expunged(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    work.build(&[(1, "a"), (2, "b")]);
    assert_eq!(subject.buried(), []);
    work.change(vec![Change::Expunge(Uid(1))]);
    assert_eq!(subject.buried(), [record(1, "a").guid]);
    subject.advance(KEEP / 2);
    work.change(vec![Change::Expunge(Uid(2))]);
    assert_eq!(work.store().bury().expect("bury"), 0);
    let mut buried = subject.buried();
    buried.sort_unstable();
    let mut want = [record(1, "a").guid, record(2, "b").guid];
    want.sort_unstable();
    assert_eq!(buried, want);
    subject.advance(KEEP / 2 + std::time::Duration::from_secs(1));
    assert_eq!(work.store().bury().expect("bury"), 1);
    assert_eq!(subject.buried(), [record(2, "b").guid]);
}

/// Mail that somebody else put there is counted, and told apart for ever.
pub fn foreign_messages_are_told_apart(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    work.build(&[(1, "a")]);
    subject.deliver(&ann(), &work.name, &body("mine"));
    let state = work.state().expect("it is there");
    assert_eq!((state.foreign, state.head.messages, state.head.uid_next), (1, 2, Uid(3)));
    let mine: Vec<_> =
        work.records().iter().map(|record| (record.uid, record.replicated)).collect();
    assert_eq!(mine, [(Uid(1), true), (Uid(2), false)]);
    let mut batch = work.batch(Mode::Update, vec![flag(1, Flags::SEEN, &[])], &[(3, "c")]);
    batch.target = head(7, 4, &[]);
    work.apply(batch).expect("add above it");
    subject.set_flags((&ann(), &work.name, Uid(1)), Flags::default(), &[]);
    let replicated: Vec<bool> = work.records().iter().map(|record| record.replicated).collect();
    assert_eq!(replicated, [true, false, true]);
    assert_eq!(work.state().expect("it is there").foreign, 1);
}
