//! How stories end: with lasting trouble that may delay nobody else, and then with peace.

use std::{sync::Arc, time::Duration};

use mailtwin_agent::link::LinkStatus;
use mailtwin_logic::{
    entry::Target,
    ids::Account,
    link::Phase,
    mailbox::{MailboxName, MailboxState, Record},
    quarantine::Reason,
};
use mailtwin_store::conformance::InMemory;

use crate::{
    net::{Break, Flow},
    oracle::difference,
    replica::Open,
    story::{Story, calm},
    world::World,
};

/// How long a link takes at most to recover when its own way is well again: the peer's silence, a
/// refused dial and the wait after it.
const RECOVERY: Duration = Duration::from_mins(3);
/// How long new mail takes at most to a replica that is well, whatever is wrong elsewhere.
const DELIVERY: Duration = Duration::from_secs(10);
/// How often the clients of replicas tidy up, at most.
const TIDYINGS_MAX: usize = 5;
/// Why something may stay different until somebody sees to it.
const TOLD: [Reason; 3] = [Reason::Conflict, Reason::Name, Reason::Brake];

impl Story {
    /// One replica is away or slow and one account cannot be replayed, for long: the rest must not be
    /// delayed by that (I5).
    pub(crate) async fn trouble(&mut self) -> Result<(), String> {
        let well = self.dice.below(self.world.replicas.len());
        for (place, replica) in self.world.replicas.clone().iter().enumerate() {
            calm(replica);
            let resumed = self.world.agent().pause(&replica.name, false);
            resumed.expect("it is there").expect("write the list of paused replicas");
            if place == well {
                continue;
            }
            match self.dice.below(3) {
                0 => replica.make_flow(Flow { pace: Some(200), ..Flow::default() }),
                away => {
                    replica.way().open = [Open::Refused, Open::Silent][away - 1];
                    replica.doom(Break::HalfOpen, 1);
                }
            }
        }
        // What its connection suffered before is over, and was noticed.
        let replica = Arc::clone(&self.world.replicas[well]);
        let (epoch, dials) = (self.world.master.epoch, replica.dials(self.world.master.epoch));
        replica.kill().await;
        replica.start();
        self.mend_disk();
        let broken = self.break_calls(well, u32::MAX);
        let name = self.world.replicas[well].name.clone();
        self.world.tell(format!("only {name} is well, and {broken} is broken there"));
        let slow = |()| format!("I5: {name} was delayed by what is wrong elsewhere");
        let again = |_: &World| replica.dials(epoch) > dials;
        self.world.wait_for(RECOVERY, again).await.map_err(slow)?;
        self.replayed(well, RECOVERY).await.map_err(slow)?;
        for account in self.world.accounts.clone() {
            let letter = format!("news for {account}\n");
            let deliver = |master: &InMemory| {
                master.store.deliver(&account, &MailboxName::inbox(), letter.as_bytes());
            };
            self.world.change(&account, deliver).await;
        }
        self.replayed(well, DELIVERY).await.map_err(slow)?;
        self.oracle.look(&mut self.world)?;
        self.differences_are_told(well).map_err(|differs| format!("I5: {differs}"))
    }

    /// Waits until the link at `place` has passed everything, but no longer than `within`.
    async fn replayed(&self, place: usize, within: Duration) -> Result<(), ()> {
        let passed = |world: &World| {
            let (link, tail) = (world.link(place), *world.agent().log().tail().borrow());
            let quiet = matches!(link.phase, Phase::InSync | Phase::Degraded);
            world.all_logged() && link.cursor >= tail && quiet
        };
        self.world.wait_for(within, passed).await
    }

    /// Everything is mended; nothing may stay different that is not said to be.
    pub(crate) async fn peace(&mut self) -> Result<(), String> {
        self.world.tell("peace");
        self.mend_disk();
        self.world.master.mail.store.heal();
        for replica in self.world.replicas.clone() {
            calm(&replica);
            replica.mail.store.heal();
            let resumed = self.world.agent().pause(&replica.name, false);
            resumed.expect("it is there").expect("write the list of paused replicas");
        }
        let awake =
            |world: &World| world.agent().links().iter().all(|link| link.phase != Phase::Paused);
        self.world.wait("nobody is paused", awake).await?;
        self.settle().await?;
        for place in 0..self.world.replicas.len() {
            self.differences_are_told(place)?;
        }
        // What was in the way of something else may be gone only after the first time.
        for _ in 0..TIDYINGS_MAX {
            if !self.tidy_up().await {
                break;
            }
            self.settle().await?;
        }
        let healed = |world: &World| world.agent().links().iter().all(|link| link.aside.is_empty());
        self.world.wait("nothing is set aside", healed).await?;
        self.world.drain().await?;
        self.world.doubted.clear();
        self.oracle.look(&mut self.world)?;
        for place in 0..self.world.replicas.len() {
            self.world.equal(place).map_err(|what| format!("not equal in the end: {what}"))?;
        }
        self.former_is_fenced().await
    }

    /// Waits until all has been compared and tried again, and only what both sides have of their own
    /// stays different.
    async fn settle(&mut self) -> Result<(), String> {
        self.compare_again().await?;
        self.world.drain().await?;
        let settled = |world: &World| {
            let mut aside = Vec::new();
            world.agent().links().iter().for_each(|link| aside.extend(link.aside.to_vec()));
            aside.iter().all(|aside| TOLD.contains(&aside.reason))
        };
        self.world.wait("nothing but conflicts is set aside", settled).await?;
        self.world.drain().await
    }

    /// What changed behind the agent's back is seen when a connection begins.
    async fn compare_again(&mut self) -> Result<(), String> {
        for replica in self.world.replicas.clone() {
            if self.world.doubted.contains_key(&replica.name) {
                replica.kill().await;
                replica.start();
            }
        }
        let compared = |world: &World| {
            let late = |(name, dials): (&String, &usize)| {
                let named = world.replicas.iter().find(|replica| replica.name == *name);
                named.is_some_and(|replica| replica.dials(world.master.epoch) <= *dials)
            };
            !world.doubted.iter().any(late)
        };
        self.world.wait("all have been dialed again", compared).await
    }

    /// Where a replica differs, that is set aside (I7).
    fn differences_are_told(&self, place: usize) -> Result<(), String> {
        let (link, replica) = (self.world.link(place), &self.world.replicas[place]);
        let untold = |account: &&Account| {
            let aside = |target: Target| target.account() == Some(account);
            !link.aside.iter().any(|known| aside(known.target()))
        };
        let master = &self.world.master.mail;
        let mut untold = self.world.accounts.iter().filter(untold);
        match untold.find_map(|account| difference(master, &replica.mail, account)) {
            Some(differs) => Err(format!("I7: {} does not tell that {differs}", link.name)),
            None => Ok(()),
        }
    }

    /// The clients of replicas take away what they put there and what is in the way of others, and UIDs they used up are used up on the
    /// master, too; the brake is released. Tells whether there was anything to do.
    async fn tidy_up(&mut self) -> bool {
        let mut found = false;
        for replica in self.world.replicas.clone() {
            self.world.note_own(&replica);
            self.world.own.remove(&replica.name);
            let mut tidied = false;
            for account in self.world.accounts.clone() {
                for mailbox in replica.mail.store.peek(&account).state.mailboxes {
                    for record in replica.mail.store.peek_records(&account, mailbox.id) {
                        let ours = self.world.master.mail.store.peek_records(&account, mailbox.id);
                        let clashes =
                            |ours: &Record| ours.uid == record.uid && ours.guid != record.guid;
                        if !record.replicated || ours.iter().any(clashes) {
                            tidied = true;
                            replica.mail.store.expunge(&account, &mailbox.name, record.uid);
                        }
                    }
                }
            }
            if !tidied {
                continue;
            }
            found = true;
            self.world.tell(format!("{}: its clients tidied up", replica.name));
            self.world.doubt(&replica);
            self.oracle.touched(&replica);
        }
        for link in self.world.agent().links() {
            let scopes: Vec<_> = link.brake.iter().map(|(scope, _)| scope.clone()).collect();
            if !scopes.is_empty() {
                found = true;
                self.world.tell(format!("{}: the brake is released", link.name));
                let released = self.world.agent().release(&link.name, scopes).await;
                released.expect("there is such a replica");
            }
        }
        self.catch_up().await;
        found
    }

    /// Delivers to the master until no replica is ahead of it.
    async fn catch_up(&mut self) {
        for replica in self.world.replicas.clone() {
            for account in self.world.accounts.clone() {
                for theirs in replica.mail.store.peek(&account).state.mailboxes {
                    self.catch_up_with(&account, &theirs).await;
                }
            }
        }
    }

    async fn catch_up_with(&mut self, account: &Account, theirs: &MailboxState) {
        loop {
            let ours = self.world.master.mail.store.peek(account).state.mailboxes;
            let Some(ours) = ours.into_iter().find(|ours| ours.id == theirs.id) else { return };
            if ours.head.uid_next >= theirs.head.uid_next {
                return;
            }
            let letter = format!("{} catches up\n", ours.head.uid_next);
            let deliver = |master: &InMemory| {
                master.store.deliver(account, &ours.name, letter.as_bytes());
            };
            self.world.change(account, deliver).await;
        }
    }

    /// Who was the master learns that it is not, by every replica (I4).
    async fn former_is_fenced(&mut self) -> Result<(), String> {
        let Some(former) = &self.world.former else { return Ok(()) };
        let Some(agent) = former.agent() else { return Ok(()) };
        for replica in &self.world.replicas {
            let resumed = agent.pause(&replica.name, false);
            resumed.expect("it is there").expect("write the list of paused replicas");
        }
        let fenced = |world: &World| {
            let links = world.former.as_ref().and_then(|former| Some(former.agent()?.links()));
            let fenced = |link: &LinkStatus| matches!(link.phase, Phase::Fenced(_));
            links.unwrap_or_default().iter().all(fenced)
        };
        self.world.wait("the former master is fenced", fenced).await
    }
}
