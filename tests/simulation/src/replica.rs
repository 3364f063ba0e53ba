//! A replica's daemon without its process, and the way to it.

use std::{
    fmt,
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mailtwin_agent::link::{Dial, DialError, Io};
use mailtwin_host::{
    node::{Node, NodeFile, Role},
    tasks::Tasks,
    workers::Workers,
};
use mailtwin_logic::ids::Epoch;
use mailtwin_replica::{
    commit::Committer,
    fence::Fence,
    heard::Heard,
    metrics::Metrics,
    session::{self, Context, Work},
};
use mailtwin_store::conformance::InMemory;
use tokio_util::sync::CancellationToken;

use crate::net::{Break, Connection, End};

/// How the way to a replica is.
#[derive(Debug)]
pub struct Way {
    /// Of each direction.
    pub latency: Duration,
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
    state_dir: PathBuf,
    way: Mutex<Way>,
    process: Mutex<Option<Context>>,
    connections: Mutex<Vec<Arc<Connection>>>,
    dials: Mutex<usize>,
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
        let node = Node { epoch, ..Node::new(name, Role::Replica) };
        node.create(state_dir).expect("write the state of a simulated node");
        let way = Way { latency: Duration::from_millis(1), open: Open::Yes, dooms: Vec::new() };
        let replica = Arc::new(Self {
            name: name.to_owned(),
            mail: InMemory::new(name),
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
        let (store, fatal) = (self.mail.store.clone(), CancellationToken::new());
        let context = Context {
            node: self.name.clone(),
            work: Some(Work {
                store: store.clone(),
                workers: Workers::inline(),
                committer: Committer::inline(store, metrics.clone(), fatal),
            }),
            fence: Fence::new(file),
            readiness: Arc::new(Vec::new),
            metrics,
            heard: Heard::default(),
            tasks: Tasks::new(CancellationToken::new()),
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

    /// What its process works with, while it runs.
    pub fn process(&self) -> Option<Context> {
        hold(&self.process).clone()
    }

    /// The way to it.
    pub fn way(&self) -> MutexGuard<'_, Way> {
        hold(&self.way)
    }

    /// How often it was dialed.
    pub fn dials(&self) -> usize {
        *hold(&self.dials)
    }

    /// Lets all connections there are suffer `fate` after so many octets more.
    pub fn doom(&self, fate: Break, octets: usize) {
        let mut connections = hold(&self.connections);
        connections.drain(..).for_each(|connection| connection.doom(fate, octets));
    }

    /// Begins a session on one end of a connection and gives the other; nothing if no process runs.
    pub fn connect(&self) -> Option<End> {
        let context = self.process()?;
        let (near, far) = {
            let mut way = self.way();
            let (near, far) = Connection::pair(way.latency);
            if let Some((fate, octets)) = way.dooms.pop() {
                near.connection().doom(fate, octets);
            } else {
                hold(&self.connections).push(Arc::clone(near.connection()));
            }
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

/// Dials a replica.
#[derive(Debug)]
pub struct Dialer(pub Arc<Replica>);

impl Dial for Dialer {
    fn dial(&self) -> Pin<Box<dyn Future<Output = Result<Box<dyn Io>, DialError>> + Send + '_>> {
        *hold(&self.0.dials) += 1;
        Box::pin(async {
            let open = self.0.way().open;
            let end = match open {
                Open::Yes => self.0.connect(),
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
