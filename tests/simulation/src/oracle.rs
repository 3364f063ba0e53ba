//! What must hold at every moment, whatever goes wrong.

use std::collections::BTreeMap;

use mailtwin_agent::link::LinkStatus;
use mailtwin_logic::{
    digest,
    entry::Target,
    ids::{Account, Epoch, Guid, MailboxId, Uid, UidValidity},
    link::Phase,
};
use mailtwin_store::conformance::InMemory;

use crate::world::{Promise, World, look};

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
}

impl Oracle {
    /// Looks at everything; says what is broken.
    pub fn look(&mut self, world: &World) -> Result<(), String> {
        self.numbers(world, "mx1", &world.master)?;
        for replica in &world.replicas {
            self.numbers(world, &replica.name, &replica.mail)?;
            self.epoch(&replica.name, replica.process().map(|process| process.fence.epoch()))?;
        }
        expunges(world)?;
        promises(world)?;
        claims(world)
    }

    /// A node's store was restored from a backup: its numbers may start from there.
    pub fn restored(&mut self, node: &str) {
        self.next.retain(|(name, _), _| name != node);
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
                    // A replica's own mail has numbers that the master may give to others.
                    if node != "mx1" && !record.replicated {
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

/// Nothing was expunged but what the master's clients have taken away (I2).
fn expunges(world: &World) -> Result<(), String> {
    for replica in &world.replicas {
        for (account, name, record) in replica.mail.store.graveyard() {
            if !world.gone.contains(&record.guid) {
                let at = format!("{account}/{name} {} on {}", record.uid, replica.name);
                return Err(format!("I2: {at} was expunged, but not on the master"));
            }
        }
    }
    Ok(())
}

/// What the cursor has passed is on the replica, or set aside, or no longer on the master (I1, I8).
fn promises(world: &World) -> Result<(), String> {
    if !world.runs() {
        return Ok(());
    }
    let mut ours = BTreeMap::new();
    let links = world.agent().links();
    let promises = world.promises.lock().expect("nobody panics while holding it").clone();
    for (link, replica) in links.iter().zip(&world.replicas) {
        let mut theirs = BTreeMap::new();
        let is_aside = |account: &Account| {
            link.aside.iter().any(|aside| aside.target().account() == Some(account))
        };
        let passed = promises.iter().filter(|promise| promise.seq <= link.cursor);
        for Promise { seq, account, mail } in passed {
            if world.doubted.contains(&link.name) || is_aside(account) {
                continue;
            }
            let ours = ours.entry(account).or_insert_with(|| look(&world.master, account).1);
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
    if !world.runs() || !world.all_logged() {
        return Ok(());
    }
    let tail = *world.agent().log().tail().borrow();
    for (link, replica) in world.agent().links().iter().zip(&world.replicas) {
        let quiet = matches!(link.phase, Phase::InSync | Phase::Degraded);
        if !quiet || link.cursor < tail || world.doubted.contains(&link.name) {
            continue;
        }
        if link.phase == Phase::Degraded {
            bystanders(world, link, &replica.mail)?;
            continue;
        }
        for account in &world.accounts {
            if let Some(difference) = difference(&world.master, &replica.mail, account) {
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
        let (ours, theirs) = (heads(&world.master), heads(theirs));
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
