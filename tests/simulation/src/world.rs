//! A master with its agent, and replicas, in one thread.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use mailtwin_agent::{Agent, link::LinkStatus};
use mailtwin_host::clock::Clock as _;
use mailtwin_logic::{
    entry::Target,
    ids::{Account, Epoch, Guid, MailboxId, Uid},
    link::Phase,
    mailbox::MailboxName,
};
use mailtwin_store::{
    Listing,
    conformance::{
        InMemory,
        replication::{Dice, act},
    },
    memory::Snapshot,
};
use tempfile::TempDir;

use crate::{
    clock::SimClock,
    node::Master,
    oracle::difference,
    replica::{Open, Replica},
};

/// How long anything may take, in simulated time.
pub const PATIENCE: Duration = Duration::from_hours(1);

/// All of it.
pub struct World {
    /// The master.
    pub master: Master,
    /// A node that was the master in an earlier epoch, and does not know that it is over.
    pub former: Option<Master>,
    /// The replicas.
    pub replicas: Vec<Arc<Replica>>,
    /// Who has mail.
    pub accounts: Vec<Account>,
    /// What happened so far.
    pub history: Vec<String>,
    /// Time.
    pub clock: Arc<SimClock>,
    /// Messages that the master's clients have taken away.
    pub gone: BTreeSet<(Account, Uid, Guid)>,
    /// Messages that the master forgot when it was restored from a backup, and where they were.
    pub forgotten: BTreeMap<(Account, Uid, Guid), BTreeSet<MailboxId>>,
    /// Messages that the master has ever had, and whose.
    pub ever: BTreeMap<Seen, Account>,
    /// By replica: mail there that its own clients have put there.
    pub own: BTreeMap<String, BTreeSet<Seen>>,
    /// Replicas whose mail changed behind the agent's back, and how often they had been dialed then.
    pub doubted: BTreeMap<String, usize>,
    dir: TempDir,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "World({} replicas)", self.replicas.len())
    }
}

/// Where state directories lie: in memory, where there is such a place.
fn state_root() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

impl World {
    /// A master with two replicas; the agent is not started yet.
    pub fn new(epoch: u64) -> Self {
        let dir = tempfile::tempdir_in(state_root()).expect("make a directory for the simulation");
        let replica = |name: &str| {
            let state_dir = dir.path().join(name);
            std::fs::create_dir(&state_dir).expect("make a state directory");
            Replica::new(name, &state_dir, Epoch(1))
        };
        let replicas = vec![replica("mx2"), replica("mx3")];
        let accounts =
            ["ann", "ben", "lists/2024"].map(|name| Account::new(name).expect("it is a good name"));
        let master = InMemory::new("mx1");
        for account in &accounts {
            master.store.create_mailbox(account, &MailboxName::inbox());
        }
        Self {
            master: Master::new("mx1", Epoch(epoch), master, dir.path()),
            former: None,
            replicas,
            accounts: accounts.into(),
            history: Vec::new(),
            clock: SimClock::shared(),
            gone: BTreeSet::new(),
            forgotten: BTreeMap::new(),
            ever: BTreeMap::new(),
            own: BTreeMap::new(),
            doubted: BTreeMap::new(),
            dir,
        }
    }

    /// Notes what happens.
    pub fn tell(&mut self, what: impl Into<String>) {
        let at = self.clock.monotonic();
        self.history.push(format!("{:>10.3} {}", at.as_secs_f64(), what.into()));
    }

    /// Starts the agent on what an earlier one left, with the scan that a start begins with.
    pub fn start(&mut self) {
        self.master.start(&self.replicas, &self.clock);
        for account in &self.accounts {
            let (_, mail) = look(&self.master.mail, account);
            self.ever.extend(mail.iter().map(|seen| (*seen, account.clone())));
            let targets = vec![Target::Account(account.clone())];
            self.master.log_after(Duration::from_millis(20), targets, (account.clone(), mail));
        }
    }

    /// Ends the agent as a SIGTERM does.
    pub async fn stop(&mut self) {
        self.master.stop().await;
    }

    /// Another node becomes the master, with the same mail; the one that was goes on, and does not
    /// know.
    pub fn take_over(&mut self) {
        let epoch = Epoch(self.master.epoch.0 + 1);
        let name = format!("mx1-{epoch}");
        let mail = InMemory::new(&name);
        mail.store.restore(&self.master.mail.store.snapshot());
        let master = Master::new(&name, epoch, mail, self.dir.path());
        self.former = Some(std::mem::replace(&mut self.master, master));
        self.doubted.values_mut().for_each(|dials| *dials = 0); // the new one has not dialed yet
        for replica in &self.replicas {
            let admitted = replica.process().map(|process| process.fence.admit(epoch, &name));
            admitted.expect("it runs").expect("note the epoch");
        }
        self.start();
    }

    /// The master dies in a power cut, and the replica at `place` is made the master by the verb that an
    /// admin uses. The dead node becomes a replica in its place, which cannot be reached yet.
    pub async fn fail_over(&mut self, place: usize, dice: &mut Dice) -> Result<(), String> {
        self.master.kill(dice).await;
        let new = Arc::clone(&self.replicas[place]);
        new.force(self.clock.clone()).await?;
        let epoch = Epoch(self.master.epoch.0 + 1);
        let master = Master::new(&new.name, epoch, new.mail.clone(), self.dir.path());
        let old = std::mem::replace(&mut self.master, master);
        self.master.forced = Some(epoch);
        let state_dir = self.dir.path().join(format!("{}-back", old.name));
        std::fs::create_dir(&state_dir).expect("make a state directory");
        self.replicas[place] = Replica::of(&old.name, &state_dir, old.epoch, old.mail);
        self.replicas[place].way().open = Open::Refused;
        self.tell(format!("{} is dead, {} is the master of epoch {epoch}", old.name, new.name));
        self.start();
        Ok(())
    }

    /// The master's mail becomes what it was; the agent does not run.
    pub fn restore(&mut self, backup: &Snapshot) {
        let all = |world: &Self| -> BTreeSet<Seen> {
            let accounts = world.accounts.iter();
            accounts.flat_map(|account| look(&world.master.mail, account).1).collect()
        };
        let before = all(self);
        self.master.mail.store.restore(backup);
        self.master.promises().clear();
        let after = all(self);
        self.forgotten.clear();
        for (seen, account) in &self.ever {
            let (mailbox, uid, guid) = *seen;
            let key = (account.clone(), uid, guid);
            if !after.contains(seen) {
                self.forgotten.entry(key).or_default().insert(mailbox);
            } else if !before.contains(seen) {
                self.gone.remove(&key);
            }
        }
        for replica in self.replicas.clone() {
            self.doubt(&replica);
            self.note_own(&replica);
        }
    }

    /// Whether nothing tells any more that the master has not expunged a message, but forgotten it: it
    /// has given out its UID again, or has no such mailbox.
    pub fn has_forgotten(&self, mail: &(Account, Uid, Guid)) -> bool {
        let Some(places) = self.forgotten.get(mail) else { return false };
        let mailboxes = self.master.mail.store.peek(&mail.0).state.mailboxes;
        places.iter().any(|id| {
            let there = mailboxes.iter().find(|mailbox| mailbox.id == *id);
            there.is_none_or(|mailbox| mail.1 < mailbox.head.uid_next)
        })
    }

    /// The agent, which runs.
    pub fn agent(&self) -> &Agent {
        self.master.agent().expect("it runs")
    }

    /// Every message that a master was ever seen to have.
    pub fn shown(&self) -> BTreeSet<(Account, Seen)> {
        self.ever.iter().map(|(seen, account)| (account.clone(), *seen)).collect()
    }

    /// The link to the replica at `place`.
    pub fn link(&self, place: usize) -> LinkStatus {
        self.agent().links().swap_remove(place)
    }

    /// Logs what is dirty, as a source does.
    pub async fn log(&self, targets: Vec<Target>) {
        self.agent().append(targets).await.expect("append to the simulated log");
    }

    /// Does something to the master's mail, and what that made dirty is logged `delay` later.
    pub fn change_slowly<T>(
        &mut self,
        delay: Duration,
        account: &Account,
        what: impl FnOnce(&InMemory) -> T,
    ) -> T {
        let (done, targets, mail) = self.change_only(account, what);
        if !targets.is_empty() {
            self.master.log_after(delay, targets, (account.clone(), mail));
        }
        done
    }

    /// Does something to the master's mail and logs what that made dirty.
    pub async fn change(&mut self, account: &Account, what: impl FnOnce(&InMemory)) {
        let ((), targets, _) = self.change_only(account, what);
        if self.master.agent().is_some() && !targets.is_empty() {
            self.log(targets).await;
        }
    }

    fn change_only<T>(
        &mut self,
        account: &Account,
        what: impl FnOnce(&InMemory) -> T,
    ) -> (T, Vec<Target>, BTreeSet<Seen>) {
        let before = look(&self.master.mail, account);
        let done = what(&self.master.mail);
        let after = look(&self.master.mail, account);
        let went = before.1.difference(&after.1);
        self.gone.extend(went.map(|(_, uid, guid)| (account.clone(), *uid, *guid)));
        let fresh: BTreeSet<Seen> = after.1.difference(&before.1).copied().collect();
        self.ever.extend(fresh.iter().map(|seen| (*seen, account.clone())));
        (done, dirty(account, &before.0, &after.0), fresh)
    }

    /// Does random things to the master's mail.
    pub async fn live(&mut self, actions: usize, dice: &mut Dice) {
        for _ in 0..actions {
            let account = dice.pick(&self.accounts).clone();
            let delay = Duration::from_millis(3 + dice.below(250) as u64);
            let done = self.change_slowly(delay, &account, |master| act(master, &account, dice));
            self.tell(format!("{account}: {done}"));
            tokio::time::sleep(Duration::from_millis(dice.below(80) as u64)).await;
        }
    }

    /// Does random things to the mail of the node that was the master.
    pub async fn live_in_the_past(&mut self, actions: usize, dice: &mut Dice) {
        for _ in 0..actions {
            let account = dice.pick(&self.accounts).clone();
            let Some(former) = &self.former else { return };
            let before = look(&former.mail, &account);
            let done = act(&former.mail, &account, dice);
            let after = look(&former.mail, &account);
            let targets = dirty(&account, &before.0, &after.0);
            if !targets.is_empty() {
                let delay = Duration::from_millis(3 + dice.below(20) as u64);
                former.log_after(delay, targets, (account.clone(), BTreeSet::new()));
            }
            let words = format!("{}, no longer master: {account}: {done}", former.name);
            self.tell(words);
            tokio::time::sleep(Duration::from_millis(dice.below(80) as u64)).await;
        }
    }

    /// Does a random thing to a replica's mail, as its own clients would.
    pub fn act_on_replica(&mut self, place: usize, dice: &mut Dice) {
        let replica = Arc::clone(&self.replicas[place]);
        let account = dice.pick(&self.accounts).clone();
        replica.mail.store.heal(); // its clients can read
        let done = act(&replica.mail, &account, dice);
        self.tell(format!("{}: {account}: {done}", replica.name));
        self.doubt(&replica);
        self.note_own(&replica);
    }

    /// Notes what a replica has of its own.
    pub fn note_own(&mut self, replica: &Replica) {
        self.own.insert(replica.name.clone(), own_mail(&self.accounts, &replica.mail));
    }

    /// The replica's mail changed behind the agent's back.
    pub fn doubt(&mut self, replica: &Replica) {
        self.doubted.insert(replica.name.clone(), replica.dials(self.master.epoch));
    }

    /// Believes again in replicas that have been compared since their mail changed.
    pub fn believe(&mut self) {
        let Some(agent) = self.master.agent() else { return };
        for (link, replica) in agent.links().iter().zip(&self.replicas) {
            let compared = matches!(link.phase, Phase::InSync | Phase::Degraded);
            self.doubted.retain(|name, dials| {
                *name != replica.name || !compared || replica.dials(self.master.epoch) <= *dials
            });
        }
    }

    /// Whether the log covers every change there was.
    pub fn all_logged(&self) -> bool {
        self.master.all_logged()
    }

    /// Waits until everything is logged, and all links have replayed it and have nothing else to do.
    pub async fn drain(&self) -> Result<(), String> {
        self.wait("everything is logged", Self::all_logged).await?;
        let upto = *self.agent().log().tail().borrow();
        self.wait("all is replayed", |world| {
            let quiet = |link: &LinkStatus| {
                link.cursor >= upto && matches!(link.phase, Phase::InSync | Phase::Degraded)
            };
            world.agent().links().iter().all(|link| quiet(link) || link.phase == Phase::Paused)
        })
        .await
    }

    /// Waits until the link at `place` has replayed what is in the log.
    pub async fn drain_one(&self, place: usize) -> Result<(), String> {
        self.wait("everything is logged", Self::all_logged).await?;
        let upto = *self.agent().log().tail().borrow();
        self.until(place, |link| link.cursor >= upto && link.phase == Phase::InSync).await
    }

    /// Says how the replica at `place` differs from the master, if it does.
    pub fn equal(&self, place: usize) -> Result<(), String> {
        let replica = &self.replicas[place];
        let differences = self.accounts.iter();
        let mut differences =
            differences.filter_map(|account| difference(&self.master.mail, &replica.mail, account));
        differences
            .next()
            .map_or(Ok(()), |difference| Err(format!("{}: {difference}", replica.name)))
    }

    /// Drains; then everybody must be equal, and nothing set aside.
    pub async fn settle(&self) -> Result<(), String> {
        self.drain().await?;
        for place in 0..self.replicas.len() {
            let link = self.link(place);
            if !link.aside.is_empty() {
                return Err(format!("something is set aside: {link:#?}"));
            }
            self.equal(place)?;
        }
        Ok(())
    }

    /// Waits until `is` holds for the link at `place`.
    pub async fn until(
        &self,
        place: usize,
        is: impl Fn(&LinkStatus) -> bool,
    ) -> Result<(), String> {
        self.wait("the link gets there", |world| is(&world.link(place))).await
    }

    /// Waits until `is` holds.
    pub async fn wait(&self, what: &str, is: impl Fn(&Self) -> bool) -> Result<(), String> {
        let done = self.wait_for(PATIENCE, is).await;
        done.map_err(|()| format!("waited an hour until {what}: {:#?}", self.agent().links()))
    }

    /// Waits until `is` holds, at most for `within`.
    pub async fn wait_for(&self, within: Duration, is: impl Fn(&Self) -> bool) -> Result<(), ()> {
        let wait = async {
            while !is(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(within, wait).await.map_err(|_| ())
    }
}

/// Where a message is, and which it is.
pub type Seen = (MailboxId, Uid, Guid);

/// Mail on a replica that replication did not put there.
pub(crate) fn own_mail(accounts: &[Account], mail: &InMemory) -> BTreeSet<Seen> {
    let mut own = BTreeSet::new();
    for account in accounts {
        for mailbox in mail.store.peek(account).state.mailboxes {
            let records = mail.store.peek_records(account, mailbox.id);
            let mine = records.iter().filter(|record| !record.replicated);
            own.extend(mine.map(|record| (mailbox.id, record.uid, record.guid)));
        }
    }
    own
}

/// What an account has on a node.
pub fn look(master: &InMemory, account: &Account) -> (Listing, BTreeSet<Seen>) {
    let listing = master.store.peek(account);
    let mut seen = BTreeSet::new();
    for mailbox in &listing.state.mailboxes {
        let records = master.store.peek_records(account, mailbox.id);
        seen.extend(records.iter().map(|record| (mailbox.id, record.uid, record.guid)));
    }
    (listing, seen)
}

/// What a watcher would have seen.
fn dirty(account: &Account, before: &Listing, after: &Listing) -> Vec<Target> {
    let named = |listing: &Listing| -> BTreeMap<_, _> {
        listing.state.mailboxes.iter().map(|m| (m.name.clone(), (m.id, m.head))).collect()
    };
    let (old, new) = (named(before), named(after));
    let ids = |named: &BTreeMap<MailboxName, (MailboxId, _)>| -> Vec<_> {
        named.iter().map(|(name, (id, _))| (name.clone(), *id)).collect()
    };
    let mut targets = Vec::new();
    if ids(&old) != ids(&new) || before.state.files != after.state.files {
        targets.push(Target::Account(account.clone()));
    }
    let changed = new.iter().filter(|(name, now)| old.get(*name).is_some_and(|old| old != *now));
    targets.extend(changed.map(|(name, _)| Target::Mailbox(account.clone(), name.clone())));
    targets
}
