//! Random hard failovers, by the verb that an admin uses: clients on both sides, a merge, and nothing
//! lost, doubled, or under a UID that was another message's. `SEEDS` of them, beginning with `SEED`.

use std::collections::{BTreeMap, BTreeSet};

use mailtwin_logic::{
    entry::Target,
    ids::{Account, Guid, MailboxId, Uid},
    limits::UID_MARGIN,
    link::Phase,
    mailbox::{Flags, Keywords},
};
use mailtwin_simulation::{
    ann::{ann, name, settled},
    net::Break,
    replica::Open,
    world::{Seen, World, look},
};
use mailtwin_store::MailStore as _;
use mailtwin_store::conformance::{
    InMemory,
    replication::{Dice, act},
};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(start_paused = true)]
async fn a_merge_after_a_hard_failover_loses_and_doubles_nothing() {
    let first = number("SEED").unwrap_or(1);
    for seed in first..first + number("SEEDS").unwrap_or(300) {
        let mut world = World::new(1);
        if let Err(why) = live(&mut world, &mut Dice::new(seed)).await {
            panic!("SEED={seed} SEEDS=1 repeats it: {why}\n{}", world.history.join("\n"));
        }
        world.stop().await;
    }
}

/// Where all mail is on one node.
type Mail = BTreeMap<Account, BTreeSet<Seen>>;

fn all(world: &World, mail: &InMemory) -> Mail {
    world.accounts.iter().map(|account| (account.clone(), look(mail, account).1)).collect()
}

/// Flags and keywords of all mail on a node.
fn flags(world: &World, mail: &InMemory) -> BTreeMap<(Account, Seen), (Flags, Keywords)> {
    let mut all = BTreeMap::new();
    for account in &world.accounts {
        for mailbox in mail.store.peek(account).state.mailboxes {
            for record in mail.store.peek_records(account, mailbox.id) {
                let seen = (mailbox.id, record.uid, record.guid);
                all.insert((account.clone(), seen), (record.flags, record.keywords));
            }
        }
    }
    all
}

/// No UID that clients of the dead master have seen is another message's.
fn unconfused(shown: &BTreeSet<(Account, Seen)>, mail: &Mail) -> Result<(), String> {
    let shown: BTreeMap<(&Account, MailboxId, Uid), Guid> = shown
        .iter()
        .map(|(account, (mailbox, uid, guid))| ((account, *mailbox, *uid), *guid))
        .collect();
    for (account, held) in mail {
        for seen @ (mailbox, uid, guid) in held {
            let before = shown.get(&(account, *mailbox, *uid));
            if before.is_some_and(|before| before != guid) {
                return Err(format!("{account}: the UID of {seen:?} was another message's"));
            }
        }
    }
    Ok(())
}

fn mailboxes(world: &World, mail: &InMemory) -> BTreeSet<(Account, MailboxId)> {
    let mut ids = BTreeSet::new();
    for account in &world.accounts {
        let (listing, _) = look(mail, account);
        ids.extend(listing.state.mailboxes.iter().map(|mailbox| (account.clone(), mailbox.id)));
    }
    ids
}

async fn live(world: &mut World, dice: &mut Dice) -> Result<(), String> {
    world.live(dice.below(60), dice).await;
    world.start();
    world.live(dice.below(20), dice).await;
    world.settle().await?;

    // A tail that nobody else has, or one that one of them has in part.
    for replica in &world.replicas {
        if dice.below(3) > 0 {
            replica.way().open = Open::Refused;
            replica.doom(Break::Reset, dice.below(20_000));
        }
    }
    world.live(dice.below(25), dice).await;
    let (base, third) = (all(world, &world.replicas[0].mail), all(world, &world.replicas[1].mail));
    let held = mailboxes(world, &world.replicas[0].mail);
    let was = flags(world, &world.replicas[0].mail);
    // What clients of the dead master have seen, also if it is gone.
    let mut shown = world.shown();
    world.fail_over(0, dice).await?;
    // The other replica comes back before the dead master, or with it.
    let waits = dice.below(2) == 0;
    world.replicas[1].way().open = if waits { Open::Refused } else { Open::Yes };

    // Clients of both, for those of the dead one come to it before it knows.
    let old = world.replicas[0].mail.clone();
    for _ in 0..dice.below(25) {
        let account = dice.pick(&world.accounts).clone();
        let done = act(&old, &account, dice);
        world.tell(format!("the old master: {account}: {done}"));
        shown.extend(look(&old, &account).1.into_iter().map(|seen| (account.clone(), seen)));
    }
    world.live(dice.below(25), dice).await;
    world.wait("everything is logged", World::all_logged).await?;
    let (theirs, ours) = (all(world, &old), all(world, &world.master.mail));
    let (kept, is) = (mailboxes(world, &world.master.mail), flags(world, &world.master.mail));
    let still = mailboxes(world, &old);
    unconfused(&shown, &ours)?;
    world.replicas.iter().for_each(|replica| replica.way().open = Open::Yes);
    world.tell("the old master is back");
    // Two that come back at once may be in each other's way, and then one is merged later.
    for place in 0..world.replicas.len() {
        world.until(place, |link| link.phase == Phase::InSync).await?;
    }
    // What the merge wrote, the feed would have seen.
    world.log(vec![Target::Store]).await;
    world.settle().await?;
    let there = mailboxes(world, &world.master.mail);
    if let Some(back) = held.difference(&kept).find(|deleted| there.contains(*deleted)) {
        return Err(format!("{back:?} was deleted by the new master's clients, and is back"));
    }
    let merged = all(world, &world.master.mail);
    for ((account, seen), flags) in &was {
        let is_untouched = is.get(&(account.clone(), *seen)) == Some(flags);
        let is_expunged = !theirs.get(account).is_some_and(|mail| mail.contains(seen));
        let has_place = still.contains(&(account.clone(), seen.0));
        let is_there = merged.get(account).is_some_and(|mail| mail.contains(seen));
        if is_untouched && is_expunged && has_place && is_there {
            return Err(format!("{seen:?} was expunged on the old master, and is still there"));
        }
    }
    // Whatever comes now has a UID that nobody has seen.
    for (account, id) in &there {
        let listing = world.master.mail.store.peek(account).state.mailboxes;
        let Some(mailbox) = listing.iter().find(|mailbox| mailbox.id == *id) else { continue };
        let name = mailbox.name.clone();
        world.master.mail.store.deliver(account, &name, b"after the merge\n");
    }
    unconfused(&shown, &all(world, &world.master.mail))?;
    for account in &world.accounts {
        let at = |mail: &Mail| mail.get(account).cloned().unwrap_or_default();
        let (base, third) = (at(&base), at(&third));
        let sides = Sides { base, third, theirs: at(&theirs), ours: at(&ours) };
        sides.judge(&at(&merged)).map_err(|why| format!("{account}: {why}"))?;
    }
    Ok(())
}

/// One account before the merge.
struct Sides {
    /// What the new master held when it became that.
    base: BTreeSet<Seen>,
    /// What another replica held then: some of it may be gone from both others.
    third: BTreeSet<Seen>,
    theirs: BTreeSet<Seen>,
    ours: BTreeSet<Seen>,
}

impl Sides {
    fn judge(&self, merged: &BTreeSet<Seen>) -> Result<(), String> {
        let held: BTreeSet<Guid> = merged.iter().map(|(_, _, guid)| *guid).collect();
        let is_based = |seen: &&Seen| self.base.contains(seen);
        let new = self.theirs.union(&self.ours).filter(|seen| !is_based(seen));
        let kept = self.theirs.intersection(&self.ours).filter(is_based);
        if let Some(lost) = new.chain(kept).find(|(_, _, guid)| !held.contains(guid)) {
            return Err(format!("{lost:?} is lost"));
        }
        // What a client has seen under a UID is there, or nothing is.
        let uids: BTreeMap<(MailboxId, Uid), Guid> =
            merged.iter().map(|(mailbox, uid, guid)| ((*mailbox, *uid), *guid)).collect();
        let is_another = |(mailbox, uid, guid): &&Seen| {
            uids.get(&(*mailbox, *uid)).is_some_and(|merged| merged != guid)
        };
        if let Some(seen) = self.theirs.union(&self.ours).find(is_another) {
            return Err(format!("the UID of {seen:?} is another message's now"));
        }
        let copies = |side: &BTreeSet<Seen>| {
            let mut counts = BTreeMap::<Guid, usize>::new();
            for (_, _, guid) in side {
                *counts.entry(*guid).or_default() += 1;
            }
            counts
        };
        let either: BTreeSet<Seen> = self.theirs.union(&self.ours).copied().collect();
        let either = copies(&either.union(&self.third).copied().collect());
        for (guid, count) in copies(merged) {
            if count > either.get(&guid).copied().unwrap_or_default() {
                return Err(format!("{guid} is there {count} times"));
            }
        }
        Ok(())
    }
}

/// More UIDs than a new master leaves out: nothing is left of them, and nobody gets them again.
#[tokio::test(start_paused = true)]
async fn uids_without_a_message_are_not_given_out_again() {
    let (ann, work) = (ann(), name("Work"));
    let mut world = settled([&work, &name("INBOX")]).await;
    world.fail_over(0, &mut Dice::new(1)).await.expect("force it");
    let old = world.replicas[0].mail.clone();
    for number in 0..UID_MARGIN + 200 {
        old.store.deliver(&ann, &work, b"expunged at once\n");
        old.store.expunge(&ann, &work, Uid(number + 2));
    }
    world.replicas[0].way().open = Open::Yes;
    world.until(0, |link| link.phase == Phase::InSync).await.expect("it is merged");
    let given_out = Uid(UID_MARGIN + 202);
    let there = world.master.mail.store.find(&ann, &work).expect("find").expect("a mailbox");
    assert_eq!(there.head.uid_next, given_out);
    world.log(vec![Target::Store]).await;
    world.settle().await.unwrap();
}
