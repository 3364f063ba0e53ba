//! Single situations, told step by step.

use std::sync::Arc;

use mailtwin_host::{
    clock::Clock as _,
    net::{Frame, FrameReader, FrameWriter, Kind},
};
use mailtwin_logic::{
    brake::{Limits, Scope},
    entry::Target,
    ids::{Account, Epoch, LogId, Uid},
    link::Phase,
    mailbox::{FileKey, Flags, MailboxName},
    quarantine::Reason,
    wire::message::{Greeting, Hello, MODEL, Refusal, decode, encode},
};
use mailtwin_simulation::{
    ann::{ann, name, settled},
    replica::Open,
    world::World,
};
use mailtwin_store::{
    MailStore as _, StoreError,
    conformance::{InMemory, replication::Dice},
    guid_of,
    memory::{Call, Fault, MemoryStore},
};

fn denied() -> StoreError {
    let source = std::io::ErrorKind::PermissionDenied.into();
    StoreError::Io { op: "list", path: "Work".into(), source }
}

/// Lets every call of a kind fail for one of ann's mailboxes.
fn break_mailbox(store: &MemoryStore, call: Call, at: &MailboxName) {
    let mailbox = store.find(&ann(), at).expect("nothing fails yet").map(|state| state.id);
    let (account, times) = (Some(ann()), u32::MAX);
    store.fail(Fault { call, account, mailbox, times, error: Box::new(denied) });
}

#[tokio::test(start_paused = true)]
async fn what_is_there_and_what_comes_reaches_every_replica() {
    let mut world = World::new(1);
    let mut dice = Dice::new(1);
    world.live(200, &mut dice).await;
    world.start();
    world.settle().await.unwrap();
    for _ in 0..5 {
        world.live(30, &mut dice).await;
        world.settle().await.unwrap();
    }
    assert_eq!(world.link(0).phase, Phase::InSync);
    world.stop().await;
    world.live(30, &mut dice).await;
    world.start();
    world.settle().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failing_mailbox_is_set_aside_and_heals() {
    let (work, good) = (name("Work"), name("Good"));
    let mut world = settled([&work, &good]).await;
    let broken = [(0, Call::Apply), (1, Call::Stage)];
    for (place, call) in broken {
        break_mailbox(&world.replicas[place].mail.store, call, &work);
    }
    for n in 0..5 {
        for at in [&work, &good] {
            let letter = format!("message {n} for {at}\n");
            world
                .change(&ann(), |m| {
                    m.store.deliver(&ann(), at, letter.as_bytes());
                })
                .await;
        }
    }
    world.drain().await.unwrap();
    for place in 0..2 {
        let link = world.link(place);
        let aside: Vec<_> = link.aside.iter().map(|a| (a.target(), a.reason)).collect();
        assert_eq!(aside, [(Target::Mailbox(ann(), work.clone()), Reason::Denied)]);
        assert_eq!((link.phase, link.lag_entries), (Phase::Degraded, 0));
        let there = world.replicas[place].mail.store.find(&ann(), &good).unwrap().unwrap();
        assert_eq!(there.head.messages, 6, "the rest goes on");
    }
    // What is set aside outlives the agent.
    world.stop().await;
    world.start();
    world.until(0, |link| link.phase == Phase::Degraded).await.unwrap();
    world.replicas.iter().for_each(|replica| replica.mail.store.heal());
    for place in 0..2 {
        world
            .until(place, |link| link.phase == Phase::InSync && link.aside.is_empty())
            .await
            .unwrap();
    }
    world.settle().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_mailbox_the_master_cannot_read_is_not_taken_for_deleted() {
    let (work, good) = (name("Work"), name("Good"));
    let world = settled([&work, &good]).await;
    for call in [Call::Delta, Call::Open] {
        break_mailbox(&world.master.mail.store, call, &work);
    }
    for at in [&work, &good] {
        world.master.mail.store.deliver(&ann(), at, b"new\n");
        world.log(vec![Target::Mailbox(ann(), at.clone())]).await;
    }
    world.drain().await.unwrap();
    for (place, replica) in world.replicas.iter().enumerate() {
        assert_eq!(world.link(place).aside.len(), 1);
        let messages = |at| replica.mail.store.find(&ann(), at).unwrap().unwrap().head.messages;
        assert_eq!((messages(&work), messages(&good)), (1, 2));
    }
    world.master.mail.store.heal();
    for place in 0..2 {
        world.until(place, |link| link.aside.is_empty()).await.unwrap();
    }
    world.settle().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_paused_replica_stands_still_while_the_other_goes_on() {
    let mut world = World::new(1);
    let mut dice = Dice::new(3);
    world.live(40, &mut dice).await;
    world.start();
    world.settle().await.unwrap();
    let before = world.replicas[0].mail.store.account(&ann()).unwrap();
    world.agent().pause("mx2", true).unwrap().unwrap();
    assert!(world.agent().pause("mx9", true).is_none());
    world.until(0, |link| link.phase == Phase::Paused).await.unwrap();
    world.live(60, &mut dice).await;
    world.drain().await.unwrap();
    world.equal(1).unwrap();
    assert_eq!(world.replicas[0].mail.store.account(&ann()).unwrap(), before);
    assert!(world.link(0).lag_entries > 0);
    world.stop().await;
    world.start();
    world.until(0, |link| link.phase == Phase::Paused).await.unwrap();
    world.agent().pause("mx2", false).unwrap().unwrap();
    world.until(0, |link| link.phase == Phase::InSync).await.unwrap();
    world.settle().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_away_holds_up_nobody() {
    let mut world = World::new(1);
    let mut dice = Dice::new(4);
    world.replicas[0].way().open = Open::Refused;
    world.live(40, &mut dice).await;
    world.start();
    world.live(40, &mut dice).await;
    world.drain_one(1).await.unwrap();
    world.equal(1).unwrap();
    assert!(!world.link(0).connected && world.link(0).last_error.is_some());
    world.replicas[0].way().open = Open::Yes;
    world.settle().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_agent_of_an_older_epoch_changes_nothing() {
    let mut world = World::new(1);
    let at = MailboxName::inbox();
    world.start();
    world.settle().await.unwrap();
    // A newer master has shown itself to one of the replicas; the old one is still connected.
    let fenced = Arc::clone(&world.replicas[0]);
    fenced.process().unwrap().fence.admit(Epoch(2), "mx9").unwrap();
    world
        .change(&ann(), |master| {
            master.store.deliver(&ann(), &at, b"too late\n");
        })
        .await;
    world.until(0, |link| link.phase == Phase::Fenced(Epoch(2))).await.unwrap();
    assert_eq!(fenced.mail.store.find(&ann(), &at).unwrap().unwrap().head.messages, 0);
    world.drain_one(1).await.unwrap();
    world.equal(1).unwrap();
    assert!(world.link(0).last_error.is_some_and(|error| error.contains("epoch 2")));
    // It dials no more, and neither does the next process of that epoch.
    world.stop().await;
    let dials = fenced.dials(Epoch(1));
    world.start();
    world.until(0, |link| link.phase == Phase::Fenced(Epoch(2))).await.unwrap();
    assert_eq!(fenced.dials(Epoch(1)), dials + 1);
}

#[tokio::test(start_paused = true)]
async fn versions_that_do_not_meet_are_told_which_side_to_upgrade() {
    let world = World::new(1);
    let cases = [
        (2, 9, MODEL, "upgrade the replica"),
        (0, 0, MODEL, "upgrade the agent"),
        (1, 1, MODEL + 1, "upgrade the replica"),
        (1, 1, MODEL - 1, "upgrade the agent"),
    ];
    for (version_min, version_max, model, words) in cases {
        let (node, epoch, log) = ("mx1".into(), Epoch(7), LogId([1; 16]));
        let hello = Hello { version_min, version_max, model, node, epoch, features: 0, log };
        let (input, output) = tokio::io::split(world.replicas[0].connect(Epoch(7)).unwrap());
        let (mut reader, mut writer) = (FrameReader::new(input), FrameWriter::new(output));
        let payload = encode(&hello).into();
        writer.send(&Frame { kind: Kind::Message, stream: 0, payload }).await.unwrap();
        writer.flush().await.unwrap();
        let answer = reader.next().await.unwrap().unwrap();
        let Some(Greeting::Refused { why, detail }) = decode(&answer.payload) else {
            panic!("{answer:?}");
        };
        assert_eq!(why, Refusal::Version);
        assert!(detail.contains(words), "{detail}");
        assert!(reader.next().await.unwrap().is_none(), "the connection ends");
    }
    assert_eq!(
        world.replicas[0].process().unwrap().fence.epoch(),
        Epoch(1),
        "a refused agent changes nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_replica_holds_is_not_sent_again() {
    let mut world = World::new(1);
    let letter = vec![b'x'; 300_000];
    let octets = letter.len() as u64;
    world.master.mail.store.deliver(&ann(), &MailboxName::inbox(), &letter);
    world.start();
    world.settle().await.unwrap();
    let replicas = world.replicas.len() as u64;
    assert_eq!(world.agent().totals(), (replicas, replicas * octets, 0));
    // Copied, moved, and delivered to somebody else.
    let (copy, ben) = (name("Copy"), Account::new("ben").unwrap());
    world
        .change(&ann(), |master| {
            master.store.deliver(&ann(), &copy, &letter);
        })
        .await;
    world.settle().await.unwrap();
    let inbox = MailboxName::inbox();
    world
        .change(&ann(), |master| {
            master.store.expunge(&ann(), &inbox, Uid(1));
        })
        .await;
    world
        .change(&ben, |master| {
            master.store.deliver(&ben, &inbox, &letter);
        })
        .await;
    world.settle().await.unwrap();
    let saved = 2 * replicas * octets;
    assert_eq!(world.agent().totals(), (3 * replicas, replicas * octets, saved));
    // A lost cursor costs comparing, not sending.
    world.stop().await;
    world.master.lose_state();
    world.start();
    world.settle().await.unwrap();
    assert_eq!(world.agent().totals(), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_replica_from_an_older_backup_is_made_equal() {
    let mut world = World::new(1);
    let mut dice = Dice::new(5);
    world.live(60, &mut dice).await;
    world.start();
    world.settle().await.unwrap();
    let backup = world.replicas[0].mail.store.snapshot();
    world.live(60, &mut dice).await;
    world.settle().await.unwrap();
    let restored = Arc::clone(&world.replicas[0]);
    let dials = restored.dials(Epoch(1));
    restored.kill().await;
    restored.mail.store.restore(&backup);
    restored.start();
    world.until(0, |_| restored.dials(Epoch(1)) > dials).await.unwrap();
    world.until(0, |link| link.phase == Phase::InSync).await.unwrap();
    world.settle().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn mail_that_only_a_replica_has_is_kept_and_said() {
    let (inbox, work) = (MailboxName::inbox(), name("Work"));
    let mut world = settled([&inbox, &work]).await;
    let replica = Arc::clone(&world.replicas[0]);
    for at in [&inbox, &work] {
        replica.mail.store.deliver(&ann(), at, b"only here\n");
    }
    world
        .change(&ann(), |master| {
            master.store.delete_mailbox(&ann(), &work);
        })
        .await;
    let flags = Flags::SEEN;
    let seen = |master: &InMemory| {
        let keywords = ["todo"].iter().collect();
        master.store.set_flags(&ann(), &inbox, Uid(1), flags, keywords);
    };
    world.change(&ann(), seen).await;
    world.drain().await.unwrap();
    let link = world.link(0);
    assert_eq!(link.phase, Phase::Degraded, "never said to be in sync");
    assert!(link.aside.iter().all(|aside| aside.reason == Reason::Conflict), "{link:?}");
    let at_inbox = Target::Mailbox(ann(), inbox.clone());
    assert!(link.aside.iter().any(|aside| aside.target() == at_inbox), "{link:?}");
    for (at, uid) in [(&inbox, 2), (&work, 2)] {
        let (record, octets) = replica.mail.store.message(&ann(), at, Uid(uid)).unwrap();
        assert!(!record.replicated && octets == b"only here\n");
    }
    let (first, _) = replica.mail.store.message(&ann(), &inbox, Uid(1)).unwrap();
    assert_eq!(first.flags, flags, "the rest of the mailbox goes on");
    world.equal(1).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_bad_message_stops_no_neighbour() {
    let (work, fresh) = (name("Work"), name("Fresh"));
    let mut world = settled([&work, &MailboxName::inbox()]).await;
    // One message cannot be read on the master, another cannot be taken in by a replica.
    let [unread, refused] = ["cannot be read\n", "cannot be taken in\n"].map(str::as_bytes);
    world.master.mail.store.fail_message(Call::Open, guid_of(unread));
    world.replicas[1].mail.store.fail_message(Call::Stage, guid_of(refused));
    for at in [&work, &fresh] {
        for letter in [b"before\n", unread, b"between\n", refused, b"after\n"] {
            world
                .change(&ann(), |master| {
                    master.store.deliver(&ann(), at, letter);
                })
                .await;
        }
    }
    world.drain().await.unwrap();
    for (place, bad) in [(0, 1), (1, 2)] {
        let link = world.link(place);
        assert_eq!((link.phase, link.aside.len()), (Phase::Degraded, 2), "{link:#?}");
        for aside in link.aside.iter() {
            assert_eq!((aside.reason, aside.bad.len()), (Reason::Io, bad), "{aside:#?}");
        }
        for (at, all) in [(&work, 6), (&fresh, 5)] {
            let there = world.replicas[place].mail.store.find(&ann(), at).unwrap().unwrap();
            let neighbours = all - u32::try_from(bad).unwrap();
            assert_eq!(there.head.messages, neighbours, "{at} on {}", link.name);
        }
    }
    // What can be read again comes in its place; what is expunged needs no place.
    world.master.mail.store.heal();
    world
        .change(&ann(), |master| {
            let at = master.store.find(&ann(), &work).unwrap().unwrap();
            let records = master.store.peek_records(&ann(), at.id);
            let refused = records.iter().find(|record| record.guid == guid_of(refused)).unwrap();
            master.store.expunge(&ann(), &work, refused.uid);
        })
        .await;
    world.until(1, |link| link.aside.len() == 1).await.unwrap();
    world.until(0, |link| link.phase == Phase::InSync).await.unwrap();
    world.equal(0).unwrap();
    world.replicas[1].mail.store.heal();
    world.until(1, |link| link.phase == Phase::InSync).await.unwrap();
    world.settle().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_admin_need_not_wait_and_can_begin_anew() {
    let (work, good) = (name("Work"), name("Good"));
    let mut world = settled([&work, &good]).await;
    let store = Arc::clone(&world.replicas[0].mail.store);
    break_mailbox(&store, Call::Apply, &work);
    world
        .change(&ann(), |master| {
            master.store.deliver(&ann(), &work, b"second\n");
        })
        .await;
    let at = Target::Mailbox(ann(), work.clone());
    // By then it waits for minutes.
    world.until(0, |link| link.aside.iter().any(|aside| aside.tries > 10)).await.unwrap();
    world.agent().forgive("mx2", vec![at.clone()]).await;
    world.until(0, |link| link.aside.iter().any(|aside| aside.tries == 1)).await.unwrap();
    world.until(0, |link| link.aside.iter().any(|aside| aside.tries > 8)).await.unwrap();
    store.heal();
    let before = world.clock.monotonic();
    world.agent().retry("mx2", vec![at]).await;
    world.until(0, |link| link.phase == Phase::InSync).await.unwrap();
    let waited = world.clock.monotonic().saturating_sub(before);
    assert!(waited < std::time::Duration::from_secs(2), "{waited:?}");
    world.settle().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_mailbox_whose_uids_were_dealt_anew_is_built_anew_if_nothing_is_lost() {
    let (work, other) = (name("Work"), name("Other"));
    let mut world = settled([&work, &other]).await;
    let backup = world.master.mail.store.snapshot();
    let deliver = async |world: &mut World, at: &MailboxName, letters: [&'static [u8]; 2]| {
        for letter in letters {
            world
                .change(&ann(), |master| {
                    master.store.deliver(&ann(), at, letter);
                })
                .await;
        }
    };
    deliver(&mut world, &work, [b"a\n", b"b\n"]).await;
    deliver(&mut world, &other, [b"c\n", b"only the replica has it\n"]).await;
    world.settle().await.unwrap();
    // The master comes back from a backup, and the mail that was lost arrives again, most of it.
    world.stop().await;
    world.master.mail.store.restore(&backup);
    world.start();
    deliver(&mut world, &work, [b"b\n", b"a\n"]).await;
    deliver(&mut world, &other, [b"d\n", b"c\n"]).await;
    let at_other = Target::Mailbox(ann(), other.clone());
    let told = |link: &mailtwin_agent::link::LinkStatus| {
        let human = |aside: &mailtwin_agent::quarantine::Aside| aside.tries > 14;
        link.aside.len() == 1 && link.aside.iter().all(human)
    };
    for place in 0..2 {
        world.until(place, told).await.unwrap();
        assert_eq!(world.link(place).aside[0].target(), at_other);
        let store = &world.replicas[place].mail.store;
        let ours = world.master.mail.store.find(&ann(), &work).unwrap().unwrap().head;
        assert_eq!(store.find(&ann(), &work).unwrap().unwrap().head, ours);
        let (_, octets) = store.message(&ann(), &other, Uid(3)).unwrap();
        assert_eq!(octets, b"only the replica has it\n");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mass_disappearance_is_held_until_an_admin_lets_it_go() {
    let mut world = World::new(1);
    world.master.limits = Limits { messages: 20, mailboxes: 3, ..Limits::default() };
    let boxes = ["A", "B", "C", "D"].map(name);
    for at in &boxes {
        for n in 0..20 {
            world.master.mail.store.deliver(&ann(), at, format!("{at} {n}\n").as_bytes());
        }
    }
    world.master.mail.store.write_file(&ann(), &FileKey::Subscriptions, Some(b"A\n"));
    world.start();
    world.settle().await.unwrap();
    let empty = |master: &InMemory, at: &MailboxName| {
        let id = master.store.find(&ann(), at).unwrap().unwrap().id;
        for record in master.store.peek_records(&ann(), id) {
            master.store.expunge(&ann(), at, record.uid);
        }
    };
    // Somebody empties a folder: that is nobody's business.
    world.change(&ann(), |master| empty(master, &boxes[0])).await;
    world.settle().await.unwrap();
    // All else goes at once, and mail goes on arriving.
    let inbox = MailboxName::inbox();
    world
        .change(&ann(), |master| {
            empty(master, &boxes[1]);
            empty(master, &boxes[2]);
            master.store.delete_mailbox(&ann(), &boxes[3]);
            master.store.deliver(&ann(), &inbox, b"still alive\n");
            master.store.deliver(&ann(), &boxes[1], b"here as well\n");
            master.store.write_file(&ann(), &FileKey::Subscriptions, None);
        })
        .await;
    world.drain().await.unwrap();
    let held = |world: &World, place: usize| {
        let link = world.link(place);
        assert_eq!(link.phase, Phase::Degraded, "never said to be in sync");
        assert_eq!(link.brake.len(), 1, "{link:#?}");
        assert_eq!(link.brake[0].0, Scope::Account(ann()));
        let store = &world.replicas[place].mail.store;
        let there = |at| store.find(&ann(), at).unwrap().unwrap().head.messages;
        let all: Vec<u32> = boxes.iter().chain([&inbox]).map(there).collect();
        assert_eq!(all, [0, 21, 20, 20, 1], "additions only");
        assert!(store.file(&ann(), &FileKey::Subscriptions).unwrap().is_some(), "files as well");
        let kept: u64 = link.aside.iter().map(|aside| aside.held.0).sum();
        assert_eq!(kept, 60);
    };
    (0..2).for_each(|place| held(&world, place));
    let before = world.link(0).brake;
    world.stop().await;
    tokio::time::sleep(std::time::Duration::from_mins(1)).await;
    world.start();
    world.drain().await.unwrap();
    (0..2).for_each(|place| held(&world, place));
    assert_eq!(world.link(0).brake, before, "it is still the same hold");
    world.agent().release("mx2", vec![Scope::Account(ann())]).await.unwrap();
    world.until(0, |link| link.phase == Phase::InSync && link.brake.is_empty()).await.unwrap();
    world.equal(0).unwrap();
    held(&world, 1);
    world.agent().release("mx3", vec![Scope::Store]).await.unwrap();
    world.until(1, |link| link.brake.len() == 1).await.unwrap();
    world.agent().release("mx3", vec![Scope::Account(ann())]).await.unwrap();
    world.until(1, |link| link.phase == Phase::InSync && link.brake.is_empty()).await.unwrap();
    world.settle().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn accounts_that_vanish_one_after_the_other_are_held_together() {
    let mut world = World::new(1);
    world.master.limits = Limits { accounts: 2, ..Limits::default() };
    let inbox = MailboxName::inbox();
    for account in &world.accounts {
        for n in 0..20 {
            world.master.mail.store.deliver(account, &inbox, format!("{account} {n}\n").as_bytes());
        }
    }
    world.start();
    world.settle().await.unwrap();
    for account in world.accounts.clone() {
        world
            .change(&account, |master| {
                for uid in 1..=20 {
                    master.store.expunge(&account, &inbox, Uid(uid));
                }
            })
            .await;
        world.drain().await.unwrap();
    }
    for place in 0..2 {
        let there = world.accounts.iter().map(|account| {
            let found = world.replicas[place].mail.store.find(account, &inbox);
            found.unwrap().unwrap().head.messages
        });
        assert_eq!(there.collect::<Vec<_>>(), [0, 20, 20]);
        assert_eq!(world.link(place).brake[0].0, Scope::Store);
        let name = world.replicas[place].name.clone();
        world.agent().release(&name, vec![Scope::Store]).await.unwrap();
        world.until(place, |link| link.phase == Phase::InSync).await.unwrap();
    }
    world.settle().await.unwrap();
}
