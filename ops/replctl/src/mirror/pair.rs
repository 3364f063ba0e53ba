//! A whole pair in one process: an agent and a replica session joined by a pipe, each with its own
//! store, index and state, all of it beside the copy.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use mailtwin_agent::{
    Agent, AgentParts, Replica,
    link::{Dial, Dialing, Io},
    log::{self, Log},
    metrics::Metrics,
};
use mailtwin_disk::{index::Index, lock::DirLock};
use mailtwin_host::{
    clock::{Clock, SystemClock},
    node::{Node, NodeError, NodeFile, Role},
    retry::Retry,
    tasks::Tasks,
    workers::Workers,
};
use mailtwin_logic::{brake::Limits, ids::Epoch};
use mailtwin_replica::{
    commit::Committer,
    fence::Fence,
    heard::Heard,
    session::{self, Context, Work},
};
use mailtwin_store::{
    MailStore,
    maildir::{Maildir, MaildirOptions},
};
use tokio_util::sync::CancellationToken;

/// Octets on their way between the two halves.
const PIPE_OCTETS: usize = 256 << 10;
/// Threads for blocking calls of each half.
const WORKERS: usize = 3;
/// Name of the copy in logs and status.
pub(crate) const COPY: &str = "copy";

/// Where everything lies.
pub(crate) struct Places {
    /// Beside the copy.
    pub(crate) state: PathBuf,
}

impl Places {
    /// `DST` has its state in `.DST.mailtwin` beside it.
    pub(crate) fn beside(dst: &Path) -> anyhow::Result<Self> {
        let dst = std::path::absolute(dst).context("find the copy")?;
        let name = dst.file_name().with_context(|| {
            format!("{} cannot be a copy: name a directory below it", dst.display())
        })?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".mailtwin");
        Ok(Self { state: dst.with_file_name(hidden) })
    }
}

/// A running pair.
pub(crate) struct Pair {
    pub(crate) agent: Agent,
    pub(crate) source: Arc<Maildir>,
    pub(crate) tasks: Tasks,
    pub(crate) clock: Arc<dyn Clock>,
    _lock: DirLock,
}

impl Pair {
    /// Starts both halves.
    pub(crate) fn start(
        places: &Places,
        source: MaildirOptions,
        copy: MaildirOptions,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        mailtwin_disk::dir::create(&places.state, 0o700)?;
        let lock = DirLock::take(&places.state)?;
        let clock: Arc<dyn Clock> = SystemClock::shared();
        let (index, _) = Index::open(&places.state.join("source-index"))?;
        let source = Arc::new(Maildir::open(source, index, Arc::clone(&clock))?);
        let (index, _) = Index::open(&places.state.join("copy-index"))?;
        let copy = Arc::new(Maildir::open(copy, index, Arc::clone(&clock))?);
        let tasks = Tasks::new(stop.clone());
        let dialer = Pipe::new(places, &copy, &tasks, stop)?;
        let (log, _) =
            Log::open(&places.state.join("log"), log::Options::default(), Arc::clone(&clock))?;
        let metrics = Metrics::register(&prometheus::Registry::new())?;
        let parts = AgentParts {
            node: "source".into(),
            forced: None,
            epoch: Epoch(1),
            state_dir: places.state.clone(),
            store: Arc::clone(&source) as Arc<dyn MailStore>,
            workers: Workers::start("source", WORKERS)?,
            log: Arc::new(log),
            tasks: tasks.clone(),
            clock: Arc::clone(&clock),
            metrics,
            retry: Retry::new(),
            brake: Limits::OFF,
        };
        let replica = Replica { name: COPY.into(), dialer: Arc::new(dialer) };
        let agent = Agent::start(parts, vec![replica], stop)?;
        Ok(Self { agent, source, tasks, clock, _lock: lock })
    }
}

/// The copy's `node.json`, made at the first run.
fn fence(state: &Path) -> anyhow::Result<Fence> {
    match Node::new(COPY, Role::Replica).create(state) {
        Ok(()) | Err(NodeError::Exists { .. }) => {
            Ok(Fence::new(Arc::new(NodeFile::open(state, COPY)?)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Dials the session in the same process.
struct Pipe {
    context: Context,
    stop: CancellationToken,
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pipe")
    }
}

impl Pipe {
    fn new(
        places: &Places,
        copy: &Arc<Maildir>,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let metrics = mailtwin_replica::metrics::Metrics::register(&prometheus::Registry::new())?;
        let store = Arc::clone(copy) as Arc<dyn MailStore>;
        let committer = Committer::start(Arc::clone(&store), metrics.clone(), stop.clone())?;
        let context = Context {
            node: COPY.into(),
            work: Some(Work { store, workers: Workers::start("copy", WORKERS)?, committer }),
            fence: fence(&places.state)?,
            // A copy on the same machine is never promoted.
            readiness: Arc::new(Vec::new),
            metrics,
            heard: Heard::default(),
            tasks: tasks.clone(),
            clock: SystemClock::shared(),
        };
        Ok(Self { context, stop: stop.clone() })
    }
}

impl Dial for Pipe {
    fn dial(&self) -> Dialing<'_> {
        let (ours, theirs) = tokio::io::duplex(PIPE_OCTETS);
        let (context, stop) = (self.context.clone(), self.stop.clone());
        self.context.tasks.spawn("copy session", async move {
            // The only agent that can speak here is the one in this process.
            let result = session::serve(theirs, "source", &context, &|_| Ok(()), stop).await;
            if let Err(error) = result {
                tracing::warn!(code = "link-broke", error = %mailtwin_logic::chain::Chain(&error), "session ended");
            }
        });
        Box::pin(async move { Ok(Box::new(ours) as Box<dyn Io>) })
    }
}
