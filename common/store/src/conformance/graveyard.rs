//! What lies in the graveyard can be told apart, read and exported.

use std::{
    io::Read as _,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use mailtwin_logic::{
    graveyard::Wanted,
    ids::{Account, Uid},
    mailbox::MailboxName,
    plan::{Change, Step},
};

use super::{
    Make,
    fixture::{At, ann, body, record},
};
use crate::{
    MailStore,
    graves::{self, Grave},
    guid_of,
};

/// When, where, under which UID, and what.
type Found = (u64, MailboxName, Option<Uid>, Vec<u8>);

/// Single messages, and those of a mailbox that was deleted, are told apart and read; looking changes
/// nothing.
pub fn graveyard_gives_back_what_it_keeps(make: Make<'_>) {
    let subject = make();
    let (work, odd) =
        (At::new(&*subject, 1, "Work"), At::new(&*subject, 2, subject.strange_name()));
    work.build(&[(1, "a"), (2, "b"), (3, "c")]);
    odd.build(&[(1, "d"), (5, "e")]);
    work.change(vec![Change::Expunge(Uid(2))]);
    subject.advance(Duration::from_mins(1));
    let delete = Step::Delete { id: odd.id, name: odd.name.clone() };
    work.store().restructure(&ann(), &[delete]).expect("delete");
    let everything = all(work.store(), &Wanted::default());
    let told: Vec<_> =
        everything.iter().map(|(_, name, uid, octets)| (name, *uid, octets)).collect();
    let (b, d, e) = (body("b"), body("d"), body("e"));
    let uid = |uid| Some(Uid(uid));
    assert_eq!(told, [(&work.name, uid(2), &b), (&odd.name, uid(1), &d), (&odd.name, uid(5), &e)]);
    let later = everything[1].0;
    assert!(everything[0].0 < later);
    let cases = [
        (Wanted { account: Some(ann()), ..Wanted::default() }, 3),
        (Wanted { account: Account::new("zoe").ok(), ..Wanted::default() }, 0),
        (Wanted { mailbox: Some(odd.name), ..Wanted::default() }, 2),
        (Wanted { uid: uid(2), ..Wanted::default() }, 1),
        (Wanted { guid: Some(guid_of(&e)), ..Wanted::default() }, 1),
        (Wanted { since_ms: later, ..Wanted::default() }, 2),
        (Wanted { message_id: Some("no such".into()), ..Wanted::default() }, 0),
    ];
    for (wanted, count) in cases {
        assert_eq!(all(work.store(), &wanted).len(), count, "{wanted:?}");
    }
    let dir = fresh_dir();
    for _ in 0..2 {
        // A second time, the same files.
        let mut names = Vec::new();
        let mut tell = |exported: graves::Exported| {
            let octets = std::fs::read(dir.join(&exported.file)).expect("read what was exported");
            assert_eq!(guid_of(&octets).to_string(), exported.guid);
            names.push(exported.file);
        };
        graves::export(work.store(), &Wanted::default(), &dir, &mut tell).expect("export");
        let files = std::fs::read_dir(dir.join("ann")).expect("list it").count();
        assert_eq!((names.len(), files), (3, 3));
    }
    std::fs::remove_dir_all(dir).expect("remove what was exported");
    assert_eq!(subject.buried().len(), 3);
}

fn all(store: &dyn MailStore, wanted: &Wanted) -> Vec<Found> {
    let mut found = Vec::new();
    let mut note = |grave: &Grave| {
        let mut octets = Vec::new();
        let mut message = store.exhume(grave).expect("open what is kept");
        message.read_to_end(&mut octets).expect("read what is kept");
        assert_eq!(octets.len() as u64, grave.octets);
        assert!(grave.guid.is_none_or(|guid| guid == guid_of(&octets)));
        let uid = grave.uid.expect("all have one");
        assert_eq!(grave.internal_date, record(uid.0, "").internal_date);
        found.push((grave.at_ms, grave.mailbox.clone(), grave.uid, octets));
        Ok(())
    };
    graves::find(store, wanted, &mut note).expect("look at the graveyard");
    found.sort();
    found
}

/// A directory that is not there yet.
fn fresh_dir() -> PathBuf {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("mailtwin-export-{}-{number}", std::process::id()))
}
