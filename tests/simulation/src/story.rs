//! One seed's story: clients, faults, and then peace, in which everything must become equal.

use std::{
    fmt,
    num::NonZero,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mailtwin_logic::ids::Account;
use mailtwin_store::{
    StoreError,
    conformance::replication::Dice,
    memory::{Call, Fault, Snapshot},
};

use crate::{
    net::{Break, Flow},
    oracle::Oracle,
    replica::{Open, Replica},
    world::World,
};

/// How dialing may end.
const OPEN: [Open; 4] = [Open::Yes, Open::Yes, Open::Refused, Open::Silent];

/// Things that happen before there is peace, at most.
const STEPS_MAX: usize = 40;

/// A seed that broke an invariant.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which one.
    pub seed: u64,
    /// What was broken.
    pub what: String,
    /// What had happened.
    pub history: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, what, history } = self;
        write!(f, "seed {seed}: {what}\n{}", history.join("\n"))
    }
}

/// Lives through the stories of `seeds`, on as many threads as there are processors; stops at the
/// first that breaks something.
pub fn run_all(seeds: Range<u64>) -> Result<(), Failure> {
    let (next, failed) = (AtomicU64::new(seeds.start), OnceLock::new());
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while failed.get().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    if let Err(failure) = run(seed) {
                        // One is enough.
                        let _ = failed.set(failure);
                    }
                }
            });
        }
    });
    failed.into_inner().map_or(Ok(()), Err)
}

/// Lives through the story of `seed`; gives its history.
pub fn run(seed: u64) -> Result<Vec<String>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("build a runtime for the simulation");
    let mut history = Vec::new();
    let told = runtime.block_on(async {
        let mut story = Story::new(seed);
        let lived = AssertUnwindSafe(story.live());
        let lived = futures_util::FutureExt::catch_unwind(lived).await;
        history = std::mem::take(&mut story.world.history);
        lived.unwrap_or_else(|panic| Err(format!("panicked: {}", text_of(&*panic))))
    });
    // What a panic left behind may panic again.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(runtime)));
    match told {
        Ok(()) => Ok(history),
        Err(what) => Err(Failure { seed, what, history }),
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

pub(crate) struct Story {
    pub(crate) world: World,
    pub(crate) dice: Dice,
    pub(crate) oracle: Oracle,
    backups: Vec<Option<Snapshot>>,
    masters_backup: Option<Snapshot>,
}

impl Story {
    fn new(seed: u64) -> Self {
        let world = World::new(1);
        let backups = world.replicas.iter().map(|_| None).collect();
        let (dice, oracle) = (Dice::new(seed), Oracle::default());
        Self { world, dice, oracle, backups, masters_backup: None }
    }

    async fn live(&mut self) -> Result<(), String> {
        let actions = self.dice.below(60);
        self.world.live(actions, &mut self.dice).await;
        self.world.start();
        let steps = 5 + self.dice.below(STEPS_MAX);
        // Not in every story, for what a replica's own clients do makes an oracle blind.
        let strays = self.dice.below(4) == 0;
        for _ in 0..steps {
            self.step(strays).await;
            self.start_again_if_stopped().await;
            self.oracle.look(&mut self.world)?;
        }
        if self.dice.below(2) == 0 {
            self.trouble().await?;
        }
        self.peace().await
    }

    /// A log that has given up ends the agent.
    async fn start_again_if_stopped(&mut self) {
        if self.world.master.log_has_stopped() {
            self.world.tell("the log has stopped: the agent ends, and starts anew");
            self.mend_disk();
            self.world.stop().await;
            self.world.start();
        }
    }

    pub(crate) fn mend_disk(&self) {
        self.world.master.disk.fill(false);
        self.world.master.disk.fail_syncs(0);
    }

    async fn step(&mut self, strays: bool) {
        let place = self.dice.below(self.world.replicas.len());
        let replica = Arc::clone(&self.world.replicas[place]);
        match self.dice.below(30) {
            0..=7 => {
                let actions = 1 + self.dice.below(10);
                self.world.live(actions, &mut self.dice).await;
            }
            8..=10 => self.wait(60_000).await,
            11 => self.wait(300).await,
            12 | 13 => self.doom(&replica),
            14 | 15 => self.weather(&replica),
            16 => self.crash(place, &replica).await,
            17 => self.agent_ends().await,
            18 => self.fault(place),
            19 => self.log_disk(),
            20 => {
                let ms = i64::try_from(self.dice.below(7_200_000)).unwrap_or(0) - 3_600_000;
                self.world.tell(format!("the clock jumps by {ms} ms"));
                self.world.clock.jump(ms);
            }
            21 => {
                self.world.tell(format!("{} is backed up", replica.name));
                self.backups[place] = Some(replica.mail.store.snapshot());
            }
            22 => self.pause(place),
            23 => self.tear(place),
            24 => self.former_master().await,
            25 if strays => {
                for _ in 0..=self.dice.below(3) {
                    self.world.act_on_replica(place, &mut self.dice);
                    self.oracle.touched(&replica);
                    let pause = self.dice.below(80) as u64;
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            }
            26 | 27 if strays => self.masters_backup().await,
            _ => self.heal(&replica),
        }
    }

    /// The master is backed up, or comes back with what it was then; its log and what it knows of its
    /// replicas with it, or not.
    async fn masters_backup(&mut self) {
        let Some(backup) = self.masters_backup.take() else {
            self.world.tell("the master is backed up");
            self.masters_backup = Some(self.world.master.mail.store.snapshot());
            self.world.master.back_state_up();
            return;
        };
        self.world.master.kill(&mut self.dice).await;
        self.world.restore(&backup);
        self.oracle.master_restored(&self.world);
        let words = if self.dice.below(2) == 0 {
            self.world.master.restore_state();
            "the master is restored from its backup, log and state, too"
        } else {
            "the master's mail is restored from its backup"
        };
        self.world.tell(words);
        let actions = self.dice.below(3);
        self.world.live(actions, &mut self.dice).await;
        self.world.start();
    }

    async fn wait(&mut self, ms: usize) {
        let ms = self.dice.below(ms) as u64;
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    fn doom(&mut self, replica: &Replica) {
        let kinds = [Break::Reset, Break::HalfOpen, Break::SilentOut, Break::SilentIn];
        let (fate, octets) = (*self.dice.pick(&kinds), 1 + self.dice.below(20_000));
        self.world.tell(format!("{}: {fate:?} after {octets} octets", replica.name));
        if self.dice.below(2) == 0 {
            replica.doom(fate, octets);
        } else {
            replica.way().dooms.push((fate, octets));
        }
    }

    fn weather(&mut self, replica: &Replica) {
        let latency = Duration::from_millis([0, 1, 20, 300, 10_000][self.dice.below(5)]);
        let pace = *self.dice.pick(&[None, None, Some(2000), Some(20_000)]);
        let repeat = *self.dice.pick(&[None, None, None, Some(1), Some(7)]);
        let (flow, open) = (Flow { latency, pace, repeat }, *self.dice.pick(&OPEN));
        replica.make_flow(flow);
        replica.way().open = open;
        self.world.tell(format!("{}: answers: {open:?}, {flow:?}", replica.name));
    }

    fn heal(&mut self, replica: &Replica) {
        self.world.tell(format!("{}: all is well", replica.name));
        calm(replica);
        self.world.master.disk.fill(false);
    }

    /// The replica's process is killed; sometimes it finds older mail when it comes back.
    async fn crash(&mut self, place: usize, replica: &Arc<Replica>) {
        self.world.tell(format!("{} is killed", replica.name));
        replica.kill().await;
        self.wait(5_000).await;
        if let Some(backup) = self.backups[place].take().filter(|_| self.dice.below(2) == 0) {
            self.world.tell(format!("{} is restored from its backup", replica.name));
            self.world.doubt(replica);
            replica.mail.store.restore(&backup);
            self.world.note_own(replica);
            self.oracle.restored(replica);
        }
        replica.start();
        self.world.tell(format!("{} is back", replica.name));
    }

    /// The agent ends in one way or another, and starts again on what that left.
    async fn agent_ends(&mut self) {
        if self.dice.below(3) == 0 {
            self.world.tell("the agent is told to end");
            self.mend_disk();
            self.world.stop().await;
        } else {
            self.world.tell("the master loses power");
            self.world.master.kill(&mut self.dice).await;
        }
        let actions = self.dice.below(8);
        self.world.live(actions, &mut self.dice).await;
        match self.dice.below(6) {
            0 => {
                self.world.tell("cursors and quarantine are lost");
                self.world.master.lose_state();
            }
            1 => {
                self.world.tell("cursors and quarantine are damaged");
                self.world.master.damage_state();
            }
            _ => {}
        }
        self.world.tell("the agent starts");
        self.world.start();
    }

    /// Some calls of a store fail.
    fn fault(&mut self, place: usize) {
        let times = 1 + u32::try_from(self.dice.below(20)).unwrap_or(0);
        self.break_calls(place, times);
    }

    /// Lets so many calls of a kind fail for one account, on the master or on a replica; returns
    /// for which.
    pub(crate) fn break_calls(&mut self, place: usize, times: u32) -> Account {
        let on_master = [Call::Delta, Call::Open, Call::Account, Call::File];
        let on_replica =
            [Call::Find, Call::Apply, Call::Stage, Call::Restructure, Call::SetFile, Call::Account];
        let is_master = self.dice.below(3) == 0;
        let call = *self.dice.pick(if is_master { &on_master[..] } else { &on_replica });
        let account = self.dice.pick(&self.world.accounts).clone();
        let replica = &self.world.replicas[place];
        let (store, name) = if is_master {
            (&self.world.master.mail.store, self.world.master.name.clone())
        } else {
            (&replica.mail.store, replica.name.clone())
        };
        let error = Box::new(|| StoreError::Io {
            op: "read",
            path: "simulated".into(),
            source: std::io::Error::from_raw_os_error(5),
        });
        let mailbox = None;
        store.fail(Fault { call, account: Some(account.clone()), mailbox, times, error });
        self.world.tell(format!("{name}: {call:?} fails {times} times for {account}"));
        account
    }

    /// Another node takes over, or the one that was the master goes on as if nothing had happened.
    async fn former_master(&mut self) {
        let Some(former) = &mut self.world.former else {
            self.world.tell("another node becomes the master; the one that was does not know");
            self.world.take_over();
            self.masters_backup = None;
            return;
        };
        if self.dice.below(3) == 0 {
            former.kill(&mut self.dice).await;
            former.start(&self.world.replicas, &self.world.clock);
            self.world.tell("the node that was the master loses power, and starts");
        }
        let actions = 1 + self.dice.below(5);
        self.world.live_in_the_past(actions, &mut self.dice).await;
    }

    fn log_disk(&mut self) {
        if self.dice.below(2) == 0 {
            self.world.tell("the log's disk is full");
            self.world.master.disk.fill(true);
        } else {
            self.world.tell("a sync of the log fails");
            self.world.master.disk.fail_syncs(1);
        }
    }

    fn pause(&mut self, place: usize) {
        let (name, on) = (self.world.replicas[place].name.clone(), self.dice.below(2) == 0);
        self.world.tell(format!("{name}: paused: {on}"));
        let paused = self.world.agent().pause(&name, on).expect("there is such a replica");
        paused.expect("write the list of paused replicas");
    }

    fn tear(&mut self, place: usize) {
        let changes = self.dice.below(3);
        let replica = &self.world.replicas[place];
        let words = format!("{}: an apply breaks off after {changes} changes", replica.name);
        replica.mail.store.tear(changes);
        self.world.tell(words);
    }
}

pub(crate) fn calm(replica: &Replica) {
    replica.make_flow(Flow::default());
    let mut way = replica.way();
    way.open = Open::Yes;
    way.dooms.clear();
}
