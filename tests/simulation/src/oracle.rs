//! What must hold at every moment, whatever goes wrong.

use std::collections::{BTreeMap, BTreeSet};

use mailtwin_agent::link::LinkStatus;
use mailtwin_logic::{
    digest,
    entry::Target,
    ids::{Account, Epoch, Guid, MailboxId, Uid, UidValidity},
    link::Phase,
};
use mailtwin_store::conformance::InMemory;

use crate::{
    node::Promise,
    replica::Replica,
    world::{Seen, World, look, own_mail},
};

/// A mailbox for as long as its UIDs mean the same.
type Life = (Account, MailboxId, UidValidity);

/// Watches a world; remembers what must never change.
#[derive(Debug, Default)]
pub struct Oracle {
    /// Which message each UID means, on every node (I3).
    meanings: BTreeMap<Life, BTreeMap<Uid, Guid>>,
    /// UIDNEXT by node (I3).
    next: BTreeMap<(String, Life), Uid>,
    /// Epoch by replica (I3, I4).
    epochs: BTreeMap<String, Epoch>,
    /// Graves that were looked at, by replica (I2).
    graves: BTreeMap<String, usize>,
    /// What each replica had when it was looked at last, and what of that went since (I10).
    there: BTreeMap<String, BTreeSet<Seen>>,
    expunged: BTreeMap<String, BTreeSet<Seen>>,
    /// What the master got back when it was restored, and has had ever since: what was on its way
    /// then may expunge it on a replica, and the next look at the master brings it back.
    restored: BTreeSet<Seen>,
}

impl Oracle {
    /// Looks at everything; says what is broken.
    pub fn look(&mut self, world: &mut World) -> Result<(), String> {
        world.believe();
        if !self.restored.is_empty() {
            let now = masters(world);
            self.restored.retain(|seen| now.contains(seen));
        }
        self.numbers(world, &world.master.name, &world.master.mail)?;
        for replica in &world.replicas {
            self.numbers(world, &replica.name, &replica.mail)?;
            self.epoch(&replica.name, replica.process().map(|process| process.fence.epoch()))?;
            self.expunges(world, replica)?;
            self.returns(world, replica)?;
        }
        epochs(world)?;
        keepsakes(world)?;
        promises(world)?;
        claims(world)
    }

    /// A replica's store was restored from a backup: what it was since counts no more.
    pub fn restored(&mut self, replica: &Replica) {
        let node = &replica.name;
        self.next.retain(|(name, _), _| name != node);
        self.graves.insert(node.clone(), replica.mail.store.graveyard().len());
        self.there.remove(node);
        self.expunged.remove(node);
    }

    /// The master's store was restored from a backup: UIDs mean what it gives them from now on.
    pub fn master_restored(&mut self, world: &World) {
        self.next.retain(|(name, (account, id, _)), _| {
            // A mailbox that was deleted meanwhile is built anew, as the master has it.
            let replica = world.replicas.iter().find(|replica| replica.name == *name);
            replica.is_some_and(|replica| has_mailbox(&replica.mail, account, *id))
        });
        self.expunged.clear();
        self.restored = masters(world);
        for ((account, id, _), meanings) in &mut self.meanings {
            let mailboxes = world.master.mail.store.peek(account).state.mailboxes;
            let there = mailboxes.iter().find(|mailbox| mailbox.id == *id);
            let next = there.map_or(Uid(0), |mailbox| mailbox.head.uid_next);
            meanings.retain(|uid, _| *uid < next);
        }
    }

    /// A replica's own clients changed its mail: what they expunged comes back.
    pub fn touched(&mut self, replica: &Replica) {
        self.there.remove(&replica.name);
        self.expunged.remove(&replica.name);
        // A mailbox that they deleted is built anew, as the master has it.
        self.next.retain(|(name, (account, id, _)), _| {
            *name != replica.name || has_mailbox(&replica.mail, account, *id)
        });
    }

    fn numbers(&mut self, world: &World, node: &str, mail: &InMemory) -> Result<(), String> {
        for account in &world.accounts {
            for mailbox in mail.store.peek(account).state.mailboxes {
                let life = (account.clone(), mailbox.id, mailbox.head.uid_validity);
                let next = self.next.entry((node.to_owned(), life.clone())).or_default();
                if mailbox.head.uid_next < *next {
                    let name = &mailbox.name;
                    return Err(format!("I3: UIDNEXT of {account}/{name} on {node} fell"));
                }
                *next = mailbox.head.uid_next;
                let meanings = self.meanings.entry(life).or_default();
                for record in mail.store.peek_records(account, mailbox.id) {
                    // What a replica alone has has numbers that the master may give to others.
                    let forgotten = (account.clone(), record.uid, record.guid);
                    if node != world.master.name
                        && (!record.replicated || world.forgotten.contains_key(&forgotten))
                    {
                        continue;
                    }
                    let meaning = meanings.entry(record.uid).or_insert(record.guid);
                    if *meaning != record.guid {
                        let at = format!("{account}/{} {}", mailbox.name, record.uid);
                        return Err(format!("I3: {at} on {node} is another message than before"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Nothing was expunged but what the master's clients have taken away (I2).
    fn expunges(&mut self, world: &World, replica: &Replica) -> Result<(), String> {
        let graves = replica.mail.store.graveyard();
        let known = self.graves.entry(replica.name.clone()).or_default();
        for (account, name, record) in graves.iter().skip(*known) {
            let mail = (account.clone(), record.uid, record.guid);
            // What is built anew goes there, too, while the master has it.
            let (_, ours) = look(&world.master.mail, account);
            let is_there = ours.iter().any(|(_, _, guid)| *guid == record.guid);
            if !is_there && !world.gone.contains(&mail) && !world.has_forgotten(&mail) {
                let at = format!("{account}/{name} {} on {}", record.uid, replica.name);
                return Err(format!("I2: {at} was expunged, but not on the master"));
            }
        }
        *known = graves.len();
        Ok(())
    }

    /// A replica has nothing but what the master had, and what it expunged does not come back (I10).
    fn returns(&mut self, world: &World, replica: &Replica) -> Result<(), String> {
        let name = &replica.name;
        let mut now: BTreeSet<Seen> = BTreeSet::new();
        for account in &world.accounts {
            now.extend(look(&replica.mail, account).1);
        }
        let own = own_mail(&world.accounts, &replica.mail);
        let strange =
            now.iter().find(|seen| !own.contains(*seen) && !world.ever.contains_key(*seen));
        if let Some((mailbox, uid, _)) = strange {
            return Err(format!("I10: the master never had {mailbox} {uid}, which {name} has"));
        }
        let expunged = self.expunged.entry(name.clone()).or_default();
        let mut back = expunged.intersection(&now).filter(|seen| !self.restored.contains(*seen));
        if let Some((mailbox, uid, _)) = back.next() {
            return Err(format!("I10: {mailbox} {uid} is back on {name}"));
        }
        let before = self.there.insert(name.clone(), now.clone()).unwrap_or_default();
        expunged.extend(before.difference(&now));
        Ok(())
    }

    fn epoch(&mut self, node: &str, epoch: Option<Epoch>) -> Result<(), String> {
        let Some(epoch) = epoch else { return Ok(()) };
        let known = self.epochs.entry(node.to_owned()).or_insert(epoch);
        if epoch < *known {
            return Err(format!("I3: the epoch of {node} fell"));
        }
        *known = epoch;
        Ok(())
    }
}

fn has_mailbox(mail: &InMemory, account: &Account, id: MailboxId) -> bool {
    mail.store.peek(account).state.mailboxes.iter().any(|mailbox| mailbox.id == id)
}

/// What a replica's own clients have put there stays (I2).
fn keepsakes(world: &mut World) -> Result<(), String> {
    for (name, kept) in &mut world.own {
        let Some(replica) = world.replicas.iter().find(|replica| replica.name == *name) else {
            continue;
        };
        let now = own_mail(&world.accounts, &replica.mail);
        // What the master had, too, in the same place, was replication's then, and may have gone with
        // it.
        let mut lost = kept.difference(&now).filter(|seen| !world.ever.contains_key(*seen));
        if let Some((mailbox, uid, _)) = lost.next() {
            return Err(format!("I2: {name} has lost its own message {mailbox} {uid}"));
        }
        *kept = now;
    }
    Ok(())
}

/// Who has served a newer master is not changed by an older one any more (I4).
fn epochs(world: &World) -> Result<(), String> {
    for replica in &world.replicas {
        if let Some(epoch) = replica.served.late() {
            return Err(format!("I4: the master of epoch {epoch} changed {}", replica.name));
        }
    }
    Ok(())
}

/// What the cursor has passed is on the replica, or set aside, or no longer on the master (I1, I8).
fn promises(world: &World) -> Result<(), String> {
    let Some(agent) = world.master.agent() else { return Ok(()) };
    let mut ours = BTreeMap::new();
    let (links, promises) = (agent.links(), world.master.promises().clone());
    for (link, replica) in links.iter().zip(&world.replicas) {
        let mut theirs = BTreeMap::new();
        let is_aside = |account: &Account| {
            link.aside.iter().any(|aside| aside.target().account() == Some(account))
        };
        let passed = promises.iter().filter(|promise| promise.seq <= link.cursor);
        for Promise { seq, account, mail } in passed {
            if world.doubted.contains_key(&link.name) || is_aside(account) {
                continue;
            }
            let ours = ours.entry(account).or_insert_with(|| look(&world.master.mail, account).1);
            let theirs = theirs.entry(account).or_insert_with(|| look(&replica.mail, account).1);
            let lost = mail.iter().find(|seen| ours.contains(*seen) && !theirs.contains(*seen));
            if let Some((mailbox, uid, _)) = lost {
                let at = format!("{account} {mailbox} {uid}");
                return Err(format!("I8: {} has passed {seq} and lacks {at}", link.name));
            }
        }
    }
    Ok(())
}

/// Who says it is in sync is equal (I7); who says it is, but for what is set aside, is equal in all
/// else (I5).
fn claims(world: &World) -> Result<(), String> {
    let Some(agent) = world.master.agent().filter(|_| world.all_logged()) else { return Ok(()) };
    let tail = *agent.log().tail().borrow();
    for (link, replica) in agent.links().iter().zip(&world.replicas) {
        let quiet = matches!(link.phase, Phase::InSync | Phase::Degraded);
        if !quiet || link.cursor < tail || world.doubted.contains_key(&link.name) {
            continue;
        }
        if link.phase == Phase::Degraded {
            bystanders(world, link, &replica.mail)?;
            continue;
        }
        for account in &world.accounts {
            if let Some(difference) = difference(&world.master.mail, &replica.mail, account) {
                return Err(format!("I7: {} is not in sync: {difference}", link.name));
            }
        }
    }
    Ok(())
}

/// What is not set aside is equal (I5). An account that is set aside may keep its mailboxes from being
/// made, moved or removed.
fn bystanders(world: &World, link: &LinkStatus, theirs: &InMemory) -> Result<(), String> {
    for account in &world.accounts {
        let is_aside = |target| link.aside.iter().any(|aside| aside.target() == target);
        if is_aside(Target::Account(account.clone())) {
            continue;
        }
        let heads = |mail: &InMemory| -> BTreeMap<_, _> {
            let mailboxes = mail.store.peek(account).state.mailboxes.into_iter();
            let others =
                mailboxes.filter(|m| !is_aside(Target::Mailbox(account.clone(), m.name.clone())));
            others.map(|mailbox| (mailbox.name.clone(), (mailbox.id, mailbox.head))).collect()
        };
        let (ours, theirs) = (heads(&world.master.mail), heads(theirs));
        if ours != theirs {
            let name = &link.name;
            return Err(format!(
                "I5: {name} has set aside {:?}, and others differ: {account}: {ours:#?}\non the \
                 replica: {theirs:#?}",
                link.aside.iter().map(|aside| &aside.object).collect::<Vec<_>>()
            ));
        }
    }
    Ok(())
}

/// How an account differs on two nodes.
pub fn difference(ours: &InMemory, theirs: &InMemory, account: &Account) -> Option<String> {
    let (ours, theirs) = (ours.store.peek(account).state, theirs.store.peek(account).state);
    let same = digest::account(&ours) == digest::account(&theirs);
    (!same).then(|| format!("{account}: {ours:#?}\non the replica: {theirs:#?}"))
}

/// All mail on the master.
fn masters(world: &World) -> BTreeSet<Seen> {
    let mail = &world.master.mail;
    world.accounts.iter().flat_map(|account| look(mail, account).1).collect()
}
