//! Situations in which names and UIDs no longer mean what they meant: restores and renames.

use mailtwin_logic::{
    entry::Target, ids::Uid, link::Phase, mailbox::MailboxName, quarantine::Reason,
};
use mailtwin_simulation::ann::{ann, name, settled};
use mailtwin_store::{
    MailStore as _, StoreError,
    conformance::InMemory,
    memory::{Call, Fault},
};

#[tokio::test(start_paused = true)]
async fn a_master_from_an_older_backup_takes_nothing_away() {
    let (inbox, old, new) = (MailboxName::inbox(), name("Old"), name("New"));
    let mut world = settled([&inbox, &old]).await;
    let backup = world.master.mail.store.snapshot();
    for at in [&inbox, &inbox, &new] {
        let deliver = |master: &InMemory| {
            master.store.deliver(&ann(), at, b"after the backup\n");
        };
        world.change(&ann(), deliver).await;
    }
    world.settle().await.unwrap();
    world.stop().await;
    world.restore(&backup);
    world.start();
    world.drain().await.unwrap();
    // It goes on, and gives out UIDs that meant other messages; old mail is expunged as ever.
    let change = |master: &InMemory| {
        master.store.deliver(&ann(), &inbox, b"after the restore\n");
        master.store.expunge(&ann(), &inbox, Uid(1));
        master.store.expunge(&ann(), &inbox, Uid(2));
    };
    world.change(&ann(), change).await;
    world.drain().await.unwrap();
    for (place, replica) in world.replicas.iter().enumerate() {
        let link = world.link(place);
        assert_eq!(link.phase, Phase::Degraded, "never said to be in sync");
        assert!(link.aside.iter().all(|aside| aside.reason == Reason::Conflict), "{link:?}");
        for (at, uid) in [(&inbox, 2), (&inbox, 3), (&new, 1)] {
            let kept = replica.mail.store.message(&ann(), at, Uid(uid));
            assert_eq!(kept.map(|(_, octets)| octets).unwrap(), b"after the backup\n");
        }
        assert!(replica.mail.store.message(&ann(), &inbox, Uid(1)).is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_mailbox_renamed_while_it_was_set_aside_is_found_before_it_is_released() {
    let (work, other, moved) = (name("Work"), name("Other"), name("Moved"));
    let world = settled([&work, &other]).await;
    let master = &world.master.mail.store;
    let mailbox = master.find(&ann(), &work).unwrap().map(|state| state.id);
    let error = Box::new(|| {
        let source = std::io::ErrorKind::PermissionDenied.into();
        StoreError::Io { op: "list", path: "Work".into(), source }
    });
    master.fail(Fault { call: Call::Delta, account: Some(ann()), mailbox, times: u32::MAX, error });
    master.deliver(&ann(), &work, b"second\n");
    world.log(vec![Target::Mailbox(ann(), work.clone())]).await;
    world.drain().await.unwrap();
    assert_eq!(world.link(0).aside.len(), 1);
    // Renames that nobody has noticed yet.
    assert!(master.rename_mailbox(&ann(), &work, &moved));
    assert!(master.rename_mailbox(&ann(), &other, &work));
    master.heal();
    for (place, replica) in world.replicas.iter().enumerate() {
        world.until(place, |link| link.aside.is_empty()).await.unwrap();
        let there = replica.mail.store.find(&ann(), &moved).unwrap();
        assert_eq!(there.map(|there| there.head.messages), Some(2));
    }
}

/// The entry names a place, which another mailbox has come to since; the entry of that move is not
/// there yet. What the first one was about, mail for the mailbox that was moved away or for the one
/// that came, must be on the replica before the cursor passes it.
#[tokio::test(start_paused = true)]
async fn of_two_mailboxes_that_change_places_neither_passes_for_the_other() {
    let (work, other, moved) = (name("Work"), name("Other"), name("Moved"));
    for meant in [&moved, &work] {
        let world = settled([&work, &other]).await;
        let master = &world.master.mail.store;
        if meant == &moved {
            master.deliver(&ann(), &work, b"second\n");
        }
        assert!(master.rename_mailbox(&ann(), &work, &moved));
        assert!(master.rename_mailbox(&ann(), &other, &work));
        if meant == &work {
            master.deliver(&ann(), &work, b"second\n");
        }
        world.log(vec![Target::Mailbox(ann(), work.clone())]).await;
        world.drain().await.unwrap();
        for replica in &world.replicas {
            let there = replica.mail.store.find(&ann(), meant).unwrap();
            assert_eq!(there.map(|there| there.head.messages), Some(2), "in {meant}");
        }
    }
}
