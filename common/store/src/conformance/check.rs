//! Looking at messages with distrust, mending them, and giving up what is not replication's.

use std::io::Read as _;

use mailtwin_logic::{
    check::{Depth, FlawKind, Inspect, Inspected, Slots},
    digest::Digest,
    ids::{Guid, Uid},
    plan::{Change, Mode},
};

use super::{
    Make, Subject,
    fixture::{At, ann, body, id, record},
};
use crate::{StoreError, guid_of};

/// Everything that is there is counted once, in however many parts, and only what was chosen is read.
pub fn inspecting_counts_and_changes_nothing(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    let head = work.build(&[(1, "a"), (2, "bb"), (5, "ccc")]);
    let octets = ["a", "bb", "ccc"].map(|text| body(text).len() as u64);
    let all: u64 = octets.iter().sum();
    let files = work.inspect(&wanted(&work, Depth::Files));
    assert_eq!(files.state.as_ref().map(|state| state.head), Some(head));
    assert_eq!((files.messages, files.digest, files.octets), (3, head.digest, all));
    assert_eq!(
        (files.read, files.octets_read, files.next, &files.flaws[..]),
        (0, 0, None, &[][..])
    );
    let read = work.inspect(&wanted(&work, Depth::Octets));
    assert_eq!((read.messages, read.read, read.octets_read), (3, 3, all));
    assert!(read.flaws.is_empty() && read.next.is_none(), "{read:?}");
    let only = Inspect { only: vec![Uid(2)], ..wanted(&work, Depth::Octets) };
    let only = work.inspect(&only);
    assert_eq!((only.messages, only.octets_read), (1, octets[1]));
    let none = Inspect { slots: Slots { from: 0, count: 0 }, ..wanted(&work, Depth::Octets) };
    let none = work.inspect(&none);
    assert_eq!((none.messages, none.read), (3, 0), "not chosen, but there");
    let none = Inspect { slots: Slots { from: 0, count: 0 }, ..wanted(&work, Depth::Sample) };
    assert_eq!(work.inspect(&none).messages, 0);
    let (mut from, mut sum, mut parts) = (Uid(0), Digest::default(), 0);
    loop {
        let part = work.inspect(&Inspect { from, octets_max: 1, ..wanted(&work, Depth::Octets) });
        sum.merge(part.digest);
        parts += 1;
        let Some(next) = part.next else { break };
        assert!(next > from, "it goes on");
        from = next;
    }
    assert_eq!((sum, parts >= 3), (head.digest, true));
    let absent = Inspect { mailbox: id(9), ..wanted(&work, Depth::Files) };
    assert_eq!(work.store().inspect(&absent).expect("inspect"), Inspected::default());
    assert_eq!(work.head(), Some(head));
}

/// Other octets of the same number show when they are read, others at once; the record stays.
pub fn inspecting_finds_what_is_not_what_it_was(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    let head = work.build(&[(1, "a"), (2, "b"), (3, "c")]);
    damage(&*subject, &work, 2, "x");
    let flaws = |depth| {
        let found = work.inspect(&wanted(&work, depth));
        assert_eq!((found.messages, found.digest), (3, head.digest), "records are as they were");
        let flaws = found.flaws.into_iter().map(|flaw| (flaw.uid, flaw.kind));
        flaws.collect::<Vec<_>>()
    };
    assert_eq!(flaws(Depth::Files), []);
    assert_eq!(flaws(Depth::Octets), [(Some(Uid(2)), FlawKind::Octets)]);
    damage(&*subject, &work, 3, "longer");
    assert_eq!(flaws(Depth::Files), [(Some(Uid(3)), FlawKind::Size)]);
    let octets = [(Some(Uid(2)), FlawKind::Octets), (Some(Uid(3)), FlawKind::Size)];
    assert_eq!(flaws(Depth::Octets), octets);
    assert_eq!(work.head(), Some(head));
}

/// A message gets back what was recorded, and nothing else; what was there instead is kept.
pub fn mending_gives_back_what_was_recorded(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    let head = work.build(&[(1, "a"), (2, "b"), (3, "c")]);
    let before = work.records();
    let mend = |uid, staged| work.store().mend(&ann(), work.id, Uid(uid), staged);
    assert!(mend(1, None).expect("it is sound"));
    assert_eq!(buried(&work), []);
    damage(&*subject, &work, 2, "x");
    assert!(!mend(2, None).expect("octets are needed"));
    let wrong = work.stage(Mode::Repair, &record(3, "c"), "c");
    assert!(matches!(mend(2, Some(wrong)), Err(StoreError::Mismatch { .. })), "others' octets");
    assert_eq!(work.inspect(&wanted(&work, Depth::Octets)).flaws.len(), 1, "it is as it was");
    assert_eq!(buried(&work), []);
    let right = work.stage(Mode::Repair, &record(2, "b"), "b");
    assert!(mend(2, Some(right)).expect("mend"));
    work.assert_holds(2, "b");
    assert_eq!(work.inspect(&wanted(&work, Depth::Octets)).flaws, []);
    assert_eq!((work.head(), work.records()), (Some(head), before), "no client sees a change");
    // Under the GUID of what it is, so that it can be given out.
    let octets = body("x");
    assert_eq!(buried(&work), [(Some(Uid(2)), Some(guid_of(&octets)), octets)]);
    let gone = work.stage(Mode::Repair, &record(9, "z"), "z");
    assert!(matches!(mend(9, Some(gone)), Err(StoreError::NotFound { .. })));
    let absent = work.store().mend(&ann(), id(9), Uid(1), None);
    assert!(matches!(absent, Err(StoreError::NotFound { .. })));
}

/// Only the messages that were named, with the octets that were named, are given up; they stay until
/// replication takes them away, and are kept then.
pub fn given_up_messages_may_be_taken_away(make: Make<'_>) {
    let subject = make();
    let work = At::new(&*subject, 1, "Work");
    work.build(&[(1, "a")]);
    subject.deliver(&ann(), &work.name, &body("mine"));
    subject.deliver(&ann(), &work.name, &body("too"));
    assert_eq!(work.state().expect("it is there").foreign, 2);
    let (mine, other) = (guid_of(&body("mine")), guid_of(&body("other")));
    let give_up = |messages: &[(Uid, Guid)]| {
        work.store().give_up(&ann(), work.id, messages).expect("give up");
        work.state().expect("it is there").foreign
    };
    assert_eq!(give_up(&[(Uid(2), other), (Uid(7), mine)]), 2, "others by now, or gone");
    assert_eq!(give_up(&[(Uid(2), mine)]), 1);
    assert_eq!(work.uids(), [1, 2, 3]);
    work.change(vec![Change::Expunge(Uid(2))]);
    assert_eq!(work.uids(), [1, 3]);
    assert_eq!(buried(&work), [(Some(Uid(2)), Some(mine), body("mine"))]);
    let absent = work.store().give_up(&ann(), id(9), &[(Uid(1), mine)]);
    assert!(matches!(absent, Err(StoreError::NotFound { .. })));
}

impl At<'_> {
    fn inspect(&self, wanted: &Inspect) -> Inspected {
        self.store().inspect(wanted).expect("inspect")
    }
}

fn wanted(at: &At<'_>, depth: Depth) -> Inspect {
    Inspect {
        account: ann(),
        mailbox: at.id,
        depth,
        from: Uid(0),
        octets_max: u64::MAX,
        slots: Slots::ALL,
        only: Vec::new(),
    }
}

fn damage(subject: &dyn Subject, at: &At<'_>, uid: u32, text: &str) {
    subject.damage((&ann(), &at.name, Uid(uid)), &body(text));
}

type Buried = (Option<Uid>, Option<Guid>, Vec<u8>);

fn buried(at: &At<'_>) -> Vec<Buried> {
    let mut found = Vec::new();
    let visited = at.store().graves(&mut |grave| {
        let mut octets = Vec::new();
        at.store().exhume(&grave)?.read_to_end(&mut octets).expect("read");
        found.push((grave.uid, grave.guid, octets));
        Ok(())
    });
    visited.expect("look into the graveyard");
    found
}
