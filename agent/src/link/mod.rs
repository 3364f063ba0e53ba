//! Drives one replica's link: one task owns the machine, visits run beside it.

pub(crate) mod connection;
mod dial;
mod merge;
pub(crate) mod pulse;
mod standing;
mod status;
mod tls;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use mailtwin_disk::DiskError;
use mailtwin_host::{
    clock::Clock, codes::KeyTrouble, retry::Retry, tasks::Tasks, workers::Workers,
};
use mailtwin_logic::{
    brake::Scope,
    chain::Chain,
    cursor::Claim,
    entry::{Entry, Target},
    evidence::Acked,
    ids::{Account, Epoch, LogSeq},
    link::{Action, Input, Link, Outcome},
    pace::Pace,
    quarantine::{Reason, Step},
    wire::message::{Hello, MODEL, Refusal, VERSION_MAX, VERSION_MIN, features},
};
use mailtwin_store::MailStore;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    brake::BrakeFile,
    cursor::CursorFile,
    log::{Log, LogError, Reader},
    metrics::LinkMetrics,
    passed::Passed,
    progress::Progress,
    quarantine::{Aside, News, Quarantine},
    visit::{Held, Trouble, VisitError, Visited, Visitor},
};
use connection::{Connection, GreetError};
use standing::Behind;

pub use dial::{Dial, DialError, Dialing, Io};
use pulse::Pulse;
pub use status::{Copying, LinkStatus};
pub use tls::Dialers;

/// Log entries read in one go.
const ENTRIES_MAX: usize = 1000;
/// Events of visits and dials that wait for the task; visits are bounded, so this never fills.
const EVENTS: usize = 64;
/// How often a moved cursor is written, at most: what is lost with it is looked at again.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Targets set aside of which status tells at once; of more, it tells once in a while.
const ASIDE_FEW: usize = 500;

/// What a link needs of its agent.
pub(crate) struct LinkParts {
    pub(crate) replica: String,
    pub(crate) node: String,
    pub(crate) epoch: Epoch,
    pub(crate) forced: Option<Epoch>,
    pub(crate) state_dir: PathBuf,
    pub(crate) dialer: Arc<dyn Dial>,
    pub(crate) store: Arc<dyn MailStore>,
    pub(crate) workers: Workers,
    pub(crate) log: Arc<Log>,
    pub(crate) reader: Reader,
    pub(crate) passed: Arc<Passed>,
    pub(crate) cursor: CursorFile,
    pub(crate) quarantine: Quarantine,
    pub(crate) brake: Arc<BrakeFile>,
    pub(crate) tasks: Tasks,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: LinkMetrics,
    pub(crate) retry: Retry,
    pub(crate) paused: watch::Receiver<bool>,
    pub(crate) status: watch::Sender<LinkStatus>,
    /// For others who have something to ask the replica.
    pub(crate) visitor: watch::Sender<Option<Visitor>>,
}

/// What an admin wants done; answered once it is.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) what: What,
    pub(crate) done: oneshot::Sender<Result<(), DiskError>>,
}

/// Kinds of [`Order`].
#[derive(Debug)]
pub(crate) enum What {
    /// Try these, which are set aside, now.
    Retry(Vec<Target>),
    /// Set these aside no longer: compare them as if nothing had happened.
    Forgive(Vec<Target>),
    /// Let deletions go that the brake holds.
    Release(Vec<Scope>),
}

/// What tasks beside the link's report. `life` is the connection they belong to.
enum Event {
    Dialed {
        life: u64,
        io: Result<Box<dyn Io>, DialError>,
    },
    Greeted {
        life: u64,
        result: Result<Connection, GreetError>,
    },
    /// What the replica had and the master lacked is copied back.
    Merged {
        life: u64,
        /// Accounts that cannot be merged yet.
        result: Result<BTreeSet<Account>, VisitError>,
    },
    /// A visit of everything, still under way, found these to differ.
    Found {
        life: u64,
        dirty: Vec<Target>,
    },
    Visited {
        life: u64,
        target: Target,
        result: Result<Visited, VisitError>,
    },
}

/// Where a visit of everything tells what it finds.
pub(crate) struct Finds {
    life: u64,
    events: mpsc::Sender<Event>,
}

impl Finds {
    /// Has `dirty` visited.
    pub(crate) async fn tell(&self, dirty: Vec<Target>) {
        // Nobody listens any more when the link has ended.
        let _ = self.events.send(Event::Found { life: self.life, dirty }).await;
    }
}

struct Driver {
    parts: LinkParts,
    link: Link,
    /// Counts connections, so that reports of an old one are not taken for the present one's.
    life: u64,
    stop: CancellationToken,
    /// Ends everything that belongs to the present connection.
    life_stop: CancellationToken,
    connection: Option<Connection>,
    dialed: Option<Box<dyn Io>>,
    events: mpsc::Sender<Event>,
    pulse: watch::Sender<Pulse>,
    start: Instant,
    saved_at: Instant,
    unsaved: Option<Acked>,
    last_error: Option<String>,
    key_trouble: Option<KeyTrouble>,
    progress: Arc<Progress>,
    pace: Pace,
    claim: Claim,
    behind: Option<Behind>,
    aside: Arc<Vec<Aside>>,
    aside_is_old: bool,
    shown_at: Instant,
}

/// Runs until `stop`.
pub(crate) async fn run(
    parts: LinkParts,
    mut orders: mpsc::Receiver<Order>,
    stop: CancellationToken,
) {
    let (events, mut reports) = mpsc::channel(EVENTS);
    let mut driver = Driver::new(parts, stop.clone(), events);
    let (mut written, mut tail) = (driver.parts.log.written(), driver.parts.log.tail());
    let mut paused = driver.parts.paused.clone();
    // Not borrowed across the call: the log's writer waits for borrowers, and they then for it.
    let (newest, pause) = (*written.borrow_and_update(), *paused.borrow_and_update());
    driver.begin(newest, pause);
    loop {
        let now = Instant::now();
        let due = driver.link.deadline().map(|due| driver.start + due);
        let shown_by = now + driver.publish_within();
        let due = due.map_or(shown_by, |due| due.min(shown_by));
        let connection = driver.connection.clone();
        let lost = async {
            match connection {
                Some(connection) => connection.lost().await,
                None => std::future::pending().await,
            }
        };
        // The select only picks what happens next; every effect happens below it.
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(event) = reports.recv() => Next::Event(event),
            Some(order) = orders.recv() => Next::Order(order),
            Ok(()) = paused.changed() => Next::Input(Input::Paused(*paused.borrow_and_update())),
            Ok(()) = written.changed() => Next::Input(Input::Appended(*written.borrow_and_update())),
            Ok(()) = tail.changed() => Next::Durable,
            () = lost => Next::Lost,
            () = sleep_until(due) => Next::Input(Input::Tick),
        };
        match next {
            Next::Input(input) => driver.feed(input),
            Next::Event(event) => driver.on_event(event),
            Next::Durable => {}
            Next::Lost => driver.lose("the connection broke"),
            Next::Order(order) => driver.obey(order),
        }
        driver.save(false);
        driver.publish();
    }
    driver.life_stop.cancel();
    driver.save(true);
    driver.publish();
}

enum Next {
    Input(Input),
    Event(Event),
    Order(Order),
    /// What was replayed already may now be told and saved.
    Durable,
    Lost,
}

impl Driver {
    fn new(parts: LinkParts, stop: CancellationToken, events: mpsc::Sender<Event>) -> Self {
        let now = Instant::now();
        Self {
            link: Link::new(parts.cursor.seq(), parts.cursor.seq()),
            parts,
            life: 0,
            life_stop: stop.child_token(),
            stop,
            connection: None,
            dialed: None,
            events,
            pulse: watch::Sender::new(Pulse::none()),
            start: now,
            saved_at: now,
            unsaved: None,
            last_error: None,
            key_trouble: None,
            progress: Arc::default(),
            pace: Pace::default(),
            claim: Claim::Ok,
            behind: None,
            aside: Arc::default(),
            aside_is_old: true,
            shown_at: now,
        }
    }

    fn begin(&mut self, newest: LogSeq, paused: bool) {
        let aside = self.parts.quarantine.all().map(Aside::target).collect();
        self.feed(Input::Appended(newest));
        self.feed(Input::Aside(aside));
        self.count_aside();
        if paused {
            self.feed(Input::Paused(true));
        }
        self.feed(Input::Tick);
        self.publish();
    }

    fn feed(&mut self, input: Input) {
        let mut actions = Vec::new();
        self.link.on(self.start.elapsed(), input, &mut actions);
        for action in actions {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Dial => self.dial(),
            Action::Greet => self.greet(),
            Action::Read(after) => self.read(after),
            Action::Visit(target) => self.visit(target),
            Action::Release(target) => self.release(&target),
            Action::Save(acked) => self.unsaved = Some(acked),
            Action::Close => self.close(),
        }
    }

    fn dial(&mut self) {
        self.close();
        self.life += 1;
        self.life_stop = self.stop.child_token();
        let (life, events) = (self.life, self.events.clone());
        let (dialer, stop) = (Arc::clone(&self.parts.dialer), self.life_stop.clone());
        self.parts.tasks.spawn("dial", async move {
            let io = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                io = dialer.dial() => io,
            };
            let _ = events.send(Event::Dialed { life, io }).await;
        });
    }

    fn greet(&mut self) {
        let Some(io) = self.dialed.take() else { return };
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            model: MODEL,
            node: self.parts.node.clone(),
            epoch: self.parts.epoch,
            features: features(self.parts.store.capabilities().sets_modseq),
            log: self.parts.log.id(),
        };
        let (life, events, pulse) = (self.life, self.events.clone(), self.pulse.subscribe());
        let (tasks, stop) = (self.parts.tasks.clone(), self.life_stop.clone());
        self.parts.tasks.spawn("greet", async move {
            let greeting = Connection::greet(io, &hello, &tasks, pulse, &stop);
            let result = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                result = greeting => result,
            };
            let _ = events.send(Event::Greeted { life, result }).await;
        });
    }

    /// Reads log entries. They are in memory, or a short sequential read away.
    fn read(&mut self, after: LogSeq) {
        let input = match self.parts.reader.read(after, ENTRIES_MAX) {
            Ok(taken) => Input::Entries(taken.entries, taken.upto),
            Err(error) => self.skip(&error),
        };
        self.feed(input);
    }

    /// What cannot be read, or is gone, is covered by looking at everything as it is now.
    fn skip(&mut self, error: &LogError) -> Input {
        let (replica, error) = (&self.parts.replica, Chain(error));
        tracing::error!(code = "log-unreadable", %replica, %error, "cannot read the sync log: comparing everything instead");
        let seq = self.durable();
        // Later changes must not hide behind entries that this reader will never see.
        self.parts.reader = self.parts.log.reader(seq);
        let entry = Entry { seq, at: self.parts.clock.unix_ms(), target: Target::Store };
        Input::Entries(vec![entry], seq)
    }

    fn visit(&mut self, target: Target) {
        let Some(visitor) = self.parts.visitor.borrow().clone() else { return };
        let (life, events, stop) = (self.life, self.events.clone(), self.life_stop.clone());
        let finds = Finds { life, events: events.clone() };
        let now = self.parts.clock.unix_ms();
        let step = self.parts.quarantine.get(&target).map_or(Step::Retry, |aside| aside.step(now));
        self.parts.tasks.spawn("visit", async move {
            let result = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                result = visitor.visit(&target, step, &finds) => result,
            };
            let _ = events.send(Event::Visited { life, target, result }).await;
        });
    }

    fn close(&mut self) {
        self.life_stop.cancel();
        if let Some(connection) = self.connection.take() {
            connection.close();
        }
        self.parts.visitor.send_replace(None);
        self.dialed = None;
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Dialed { life, .. }
            | Event::Greeted { life, .. }
            | Event::Merged { life, .. }
            | Event::Found { life, .. }
            | Event::Visited { life, .. }
                if life != self.life => {}
            Event::Dialed { io: Ok(io), .. } => {
                self.dialed = Some(io);
                self.feed(Input::Connected);
            }
            Event::Dialed { io: Err(error), .. } => {
                self.lose_over(error.key_trouble(), &Chain(&error).to_string());
            }
            Event::Greeted { result: Ok(connection), .. } => self.on_welcome(connection),
            Event::Greeted { result: Err(error), .. } => self.on_refused(&error),
            Event::Merged { result, .. } => self.on_merged(result),
            Event::Found { dirty, .. } => self.feed(Input::Found(dirty)),
            Event::Visited { target, result, .. } => self.on_visited(target, result),
        }
    }

    fn on_welcome(&mut self, connection: Connection) {
        tracing::info!(replica = %self.parts.replica, "connected");
        self.key_trouble = None;
        let visitor = Visitor {
            store: Arc::clone(&self.parts.store),
            workers: self.parts.workers.clone(),
            connection: connection.clone(),
            held: Arc::new(Held::default()),
            brake: Arc::clone(&self.parts.brake),
            metrics: self.parts.metrics.clone(),
            progress: Arc::clone(&self.progress),
            unmerged: Arc::new(self.unmerged(connection.merged())),
        };
        self.progress.begin();
        self.pace.begin(self.start.elapsed(), 0);
        let merged = connection.merged();
        self.parts.visitor.send_replace(Some(visitor.clone()));
        self.connection = Some(connection);
        if merged >= self.parts.epoch {
            return self.feed(Input::Welcome);
        }
        self.feed(Input::Merging);
        self.merge(visitor);
    }

    fn on_refused(&mut self, error: &GreetError) {
        if let GreetError::Refused { why: Refusal::Epoch(by), detail } = error {
            tracing::error!(code = "newer-epoch", replica = %self.parts.replica, %detail, "fenced: this node is no longer the master");
            self.last_error = Some(detail.clone());
            return self.feed(Input::Fenced(*by));
        }
        self.lose_over(error.key_trouble(), &Chain(error).to_string());
    }

    fn on_visited(&mut self, target: Target, result: Result<Visited, VisitError>) {
        let since = self.link.since(&target);
        let outcome = match result {
            Ok(Visited { dirty, trouble: None }) => {
                self.parts.retry.reset();
                self.last_error = None;
                if let Some(at) = since.filter(|_| dirty.is_empty() && target != Target::Store) {
                    let ms = self.parts.clock.unix_ms().saturating_sub(at);
                    self.parts.metrics.delivery.observe(Duration::from_millis(ms).as_secs_f64());
                }
                Outcome::Done(dirty)
            }
            Ok(Visited { dirty, trouble: Some(trouble) }) => {
                if !self.set_aside(&target, &trouble) {
                    return;
                }
                Outcome::SetAside(dirty)
            }
            Err(VisitError::Target(trouble) | VisitError::Message(_, trouble)) => {
                if !self.set_aside(&target, &trouble) {
                    return;
                }
                Outcome::SetAside(Vec::new())
            }
            Err(VisitError::Gone) => return self.lose("the connection broke"),
            Err(VisitError::Replica(trouble)) => return self.lose(&trouble.detail),
        };
        self.feed(Input::Visited(target, outcome));
    }

    /// Sets aside durably; if even that fails, the cursor must not move: start over.
    fn set_aside(&mut self, target: &Target, trouble: &Trouble) -> bool {
        if *target == Target::Store {
            self.lose(&trouble.detail);
            return false;
        }
        match self.parts.quarantine.put(target, trouble, self.parts.clock.unix_ms()) {
            Ok(new) => {
                let (replica, Trouble { reason, detail, .. }) = (&self.parts.replica, trouble);
                match new {
                    News::Nothing => {}
                    News::Cause => {
                        tracing::warn!(code = "set-aside", %replica, %target, %reason, %detail, "set aside; the rest goes on");
                    }
                    News::Human => {
                        tracing::error!(code = "set-aside-for-good", %replica, %target, %reason, %detail, "nothing has helped: see `replctl quarantine show`");
                    }
                }
                self.count_aside();
                true
            }
            Err(error) => {
                self.lose(&Chain(&error).to_string());
                false
            }
        }
    }

    fn release(&mut self, target: &Target) {
        match self.parts.quarantine.release(target) {
            Ok(true) => {
                tracing::info!(replica = %self.parts.replica, %target, "healed; no longer set aside");
                self.count_aside();
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(code = "quarantine-unsaved", replica = %self.parts.replica, error = %Chain(&error), "cannot save the quarantine list");
            }
        }
    }

    /// Notes that what is set aside is no longer what status and metrics say.
    fn count_aside(&mut self) {
        self.aside_is_old = true;
    }

    /// Brings status and metrics up to date, not too often when it is long.
    fn show_aside(&mut self) {
        let often = self.aside.len() < ASIDE_FEW || self.shown_at.elapsed() >= SAVE_EVERY;
        if !self.aside_is_old || !often {
            return;
        }
        (self.aside_is_old, self.shown_at) = (false, Instant::now());
        let (now, at) = (self.parts.clock.unix_ms(), self.start.elapsed());
        let show = |aside: &Aside| {
            let due = self.link.retry_due(&aside.target());
            let wait = due.map(|due| due.saturating_sub(at).as_millis());
            let next_at = wait.map(|ms| now.saturating_add(u64::try_from(ms).unwrap_or(u64::MAX)));
            Aside { next_at, ..aside.clone() }
        };
        self.aside = Arc::new(self.parts.quarantine.all().map(show).collect());
        let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
        for aside in self.aside.iter() {
            *reasons.entry(aside.reason).or_default() += 1;
        }
        if !reasons.contains_key(&Reason::Brake) {
            self.parts.brake.settle();
        }
        self.parts.metrics.set_quarantined(&reasons);
    }

    fn obey(&mut self, Order { what, done }: Order) {
        let mut result = Ok(());
        match what {
            What::Retry(targets) => self.feed(Input::Retry(targets)),
            What::Forgive(targets) => self.feed(Input::Forgive(targets)),
            What::Release(scopes) => {
                result = self.parts.brake.release(&scopes);
                let is_let_go = |aside: &&Aside| {
                    let own = Scope::Account(aside.account.clone());
                    let meant = scopes.contains(&Scope::Store) || scopes.contains(&own);
                    aside.reason == Reason::Brake && meant
                };
                let held = self.parts.quarantine.all().filter(is_let_go).map(Aside::target);
                let held = held.collect();
                self.feed(Input::Retry(held));
            }
        }
        self.count_aside();
        // Whoever asked may have gone.
        let _ = done.send(result);
    }

    /// The newest durable entry of the log.
    fn durable(&self) -> LogSeq {
        *self.parts.log.tail().borrow()
    }

    /// Makes the cursor durable, at most once in a while: it may stand too low, never too high.
    fn save(&mut self, now: bool) {
        let Some(acked) = self.unsaved else { return };
        if !now && self.saved_at.elapsed() < SAVE_EVERY {
            return;
        }
        self.saved_at = Instant::now();
        let tail = self.durable();
        match self.parts.cursor.advance(acked, tail) {
            Ok(()) => {
                let saved = self.parts.cursor.seq();
                self.unsaved = Some(acked).filter(|acked| acked.upto() > saved);
                self.parts.passed.up_to(&self.parts.replica, saved);
            }
            Err(error) => {
                tracing::error!(code = "cursor-unsaved", replica = %self.parts.replica, error = %Chain(&error), "cannot save the cursor; free space or mend the state directory");
            }
        }
    }
}
