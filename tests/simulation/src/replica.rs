//! A replica's daemon without its process, and the way to it.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use mailtwin_agent::link::{Dial, DialError, Io};
use mailtwin_host::{
    clock::{Clock, SystemClock},
    node::{Node, NodeFile, Role},
    tasks::Tasks,
    workers::Workers,
};
use mailtwin_logic::ids::Epoch;
use mailtwin_replica::{
    commit::Committer,
    fence::Fence,
    force::{Force, Order},
    heard::Heard,
    metrics::Metrics,
    session::{self, Context, Work},
};
use mailtwin_store::conformance::InMemory;
use tokio_util::sync::CancellationToken;

use crate::{
    net::{Break, Connection, End, Flow},
    reach::{Reached, Served},
};

/// How the way to a replica is.
#[derive(Debug)]
pub struct Way {
    /// How it flows.
    pub flow: Flow,
    /// Whether dialing is refused, or hangs.
    pub open: Open,
    /// What the next connections suffer, and after how many octets from the agent.
    pub dooms: Vec<(Break, usize)>,
}

/// Whether a replica can be dialed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// It answers.
    Yes,
    /// It refuses.
    Refused,
    /// It does not answer.
    Silent,
}

/// One replica.
pub struct Replica {
    /// Its node name.
    pub name: String,
    /// Its mail, which outlives its process.
    pub mail: InMemory,
    /// Whose sessions have reached its mail.
    pub served: Served,
    state_dir: PathBuf,
    way: Mutex<Way>,
    process: Mutex<Option<Context>>,
    connections: Mutex<Vec<Weak<Connection>>>,
    dials: Mutex<BTreeMap<Epoch, usize>>,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replica({})", self.name)
    }
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Replica {
    /// A new one that runs.
    pub fn new(name: &str, state_dir: &Path, epoch: Epoch) -> Arc<Self> {
        Self::of(name, state_dir, epoch, InMemory::new(name))
    }

    /// One of a node that has mail already, as it was left.
    pub fn of(name: &str, state_dir: &Path, epoch: Epoch, mail: InMemory) -> Arc<Self> {
        let node = Node { epoch, ..Node::new(name, Role::Replica) };
        node.create(state_dir).expect("write the state of a simulated node");
        let way = Way { flow: Flow::default(), open: Open::Yes, dooms: Vec::new() };
        let replica = Arc::new(Self {
            name: name.to_owned(),
            mail,
            served: Served::default(),
            state_dir: state_dir.to_path_buf(),
            way: Mutex::new(way),
            process: Mutex::default(),
            connections: Mutex::default(),
            dials: Mutex::default(),
        });
        replica.start();
        replica
    }

    /// Starts its process on what the last one left.
    pub fn start(&self) {
        let metrics =
            Metrics::register(&prometheus::Registry::new()).expect("register fresh metrics");
        let file = NodeFile::open(&self.state_dir, &self.name);
        let file = Arc::new(file.expect("read the state of a simulated node"));
        let context = Context {
            node: self.name.clone(),
            work: None, // each session has its own
            fence: Fence::new(file),
            readiness: Arc::new(Vec::new),
            metrics,
            heard: Heard::default(),
            tasks: Tasks::new(CancellationToken::new()),
            // For what status shows, and for no decision.
            clock: SystemClock::shared(),
        };
        *hold(&self.process) = Some(context);
    }

    /// Kills its process: it loses what it had only in memory.
    pub async fn kill(&self) {
        let process = hold(&self.process).take();
        if let Some(context) = process {
            context.tasks.abandon().await;
        }
        self.mail.store.crash();
    }

    /// Makes this node the master by the verb that an admin uses, for the old one is dead; then its
    /// daemon ends. Fails with what the verb says.
    pub async fn force(&self, clock: Arc<dyn Clock>) -> Result<(), String> {
        let context = self.process().ok_or("its process does not run")?;
        let (store, metrics) = (Arc::clone(&self.mail.store), context.metrics.clone());
        let work = Work {
            store: store.clone(),
            workers: Workers::inline(),
            committer: Committer::inline(store, metrics, CancellationToken::new()),
        };
        let (fence, heard) = (context.fence.clone(), context.heard.clone());
        while heard.agents().values().any(|agent| agent.connections > 0) {
            // The dead master's connections have yet to be noticed.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let state_dir = self.state_dir.clone();
        let force = Force { fence, work, heard, state_dir, clock };
        let ended = force.run(Order { accept_loss: None, dry_run: false }).await;
        let outcome = ended.outcome.ok_or("it did not end")?;
        self.kill().await;
        if outcome.state == "done" { Ok(()) } else { Err(outcome.message) }
    }

    /// What its process works with, while it runs.
    pub fn process(&self) -> Option<Context> {
        hold(&self.process).clone()
    }

    /// The way to it.
    pub fn way(&self) -> MutexGuard<'_, Way> {
        hold(&self.way)
    }

    /// How often it was dialed by the master of `epoch`.
    pub fn dials(&self, epoch: Epoch) -> usize {
        hold(&self.dials).get(&epoch).copied().unwrap_or(0)
    }

    /// Lets all connections there are suffer `fate` after so many octets more.
    pub fn doom(&self, fate: Break, octets: usize) {
        for connection in hold(&self.connections).iter().filter_map(Weak::upgrade) {
            connection.doom(fate, octets);
        }
    }

    /// Makes the way to it like this, for connections there are as for those to come.
    pub fn make_flow(&self, flow: Flow) {
        self.way().flow = flow;
        let mut connections = hold(&self.connections);
        connections.retain(|connection| connection.strong_count() > 0);
        connections.iter().filter_map(Weak::upgrade).for_each(|connection| connection.flow(flow));
    }

    /// Begins a session with an agent of `epoch` on one end of a connection and gives the other;
    /// nothing if no process runs.
    pub fn connect(&self, epoch: Epoch) -> Option<End> {
        let mut context = self.process()?;
        let (store, served) = (Arc::clone(&self.mail.store), self.served.clone());
        let store = Arc::new(Reached { store, epoch, served });
        let metrics = context.metrics.clone();
        context.work = Some(Work {
            store: store.clone(),
            workers: Workers::inline(),
            committer: Committer::inline(store, metrics, CancellationToken::new()),
        });
        let (near, far) = {
            let mut way = self.way();
            let (near, far) = Connection::pair(way.flow);
            if let Some((fate, octets)) = way.dooms.pop() {
                near.connection().doom(fate, octets);
            }
            hold(&self.connections).push(Arc::downgrade(near.connection()));
            (near, far)
        };
        let (tasks, stop) = (context.tasks.clone(), context.tasks.stop().child_token());
        tasks.spawn("session", async move {
            let admit = |_: &str| Ok(());
            // How it ends is the agent's to notice.
            let _ = session::serve(far, "simulation", &context, &admit, stop).await;
        });
        Some(near)
    }
}

/// Dials a replica for an agent of an epoch.
#[derive(Debug)]
pub struct Dialer(pub Arc<Replica>, pub Epoch);

impl Dial for Dialer {
    fn dial(&self) -> Pin<Box<dyn Future<Output = Result<Box<dyn Io>, DialError>> + Send + '_>> {
        *hold(&self.0.dials).entry(self.1).or_default() += 1;
        Box::pin(async {
            let open = self.0.way().open;
            let end = match open {
                Open::Yes => self.0.connect(self.1),
                Open::Refused => None,
                Open::Silent => {
                    // As long as a connect waits for an answer.
                    tokio::time::sleep(Duration::from_secs(10)).await;
                    None
                }
            };
            let refused = || {
                let source = io::Error::from(io::ErrorKind::ConnectionRefused);
                DialError { address: self.0.name.clone(), source: source.into() }
            };
            end.map(|end| Box::new(end) as Box<dyn Io>).ok_or_else(refused)
        })
    }
}
