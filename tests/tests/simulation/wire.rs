//! A replica's daemon without its process, and connections to it that break when they are told to.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    io,
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context as Waker, Poll},
};

use mailtwin_agent::link::{Dial, DialError, Io};
use mailtwin_host::{
    node::{Node, Role},
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
use mailtwin_store::{conformance::InMemory, memory::MemoryStore};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio_util::sync::CancellationToken;

/// Octets on their way in one direction before the writer waits.
const PIPE_OCTETS: usize = 32 << 10;

/// One replica.
pub(crate) struct Replica {
    pub(crate) name: String,
    pub(crate) mail: InMemory,
    pub(crate) context: Context,
    /// Octets that each of the next connections carries before it breaks.
    pub(crate) cuts: Mutex<VecDeque<usize>>,
    /// Whether it accepts connections.
    pub(crate) up: AtomicBool,
    /// Whether it does not hear of connections that the agent has given up.
    pub(crate) half_open: AtomicBool,
    pub(crate) dials: AtomicUsize,
    sessions: Mutex<CancellationToken>,
    limbo: Mutex<Vec<DuplexStream>>,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replica({})", self.name)
    }
}

impl Replica {
    pub(crate) fn new(name: &str, state_dir: &Path, epoch: Epoch, tasks: &Tasks) -> Arc<Self> {
        let node = Node { name: name.to_owned(), role: Role::Replica, epoch };
        node.create(state_dir).unwrap();
        let mail = InMemory::new(name);
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let store: Arc<MemoryStore> = Arc::clone(&mail.store);
        let fatal = CancellationToken::new();
        let context = Context {
            node: name.to_owned(),
            work: Some(Work {
                store: store.clone(),
                workers: Workers::start("replica", 2).unwrap(),
                committer: Committer::start(store, metrics.clone(), fatal).unwrap(),
            }),
            fence: Arc::new(Fence::open(state_dir).unwrap()),
            metrics,
            heard: Heard::default(),
            tasks: tasks.clone(),
        };
        Arc::new(Self {
            name: name.to_owned(),
            mail,
            context,
            cuts: Mutex::default(),
            up: AtomicBool::new(true),
            half_open: AtomicBool::new(false),
            dials: AtomicUsize::new(0),
            sessions: Mutex::new(tasks.stop().child_token()),
            limbo: Mutex::default(),
        })
    }

    /// Begins a session on one end of a pipe and gives the other.
    pub(crate) fn connect(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(PIPE_OCTETS);
        let (context, stop) = (self.context.clone(), self.sessions.lock().unwrap().clone());
        self.context.tasks.spawn("session", async move {
            let admit = |_: &str| Ok(());
            // How it ends is the agent's to notice.
            let _ = session::serve(far, "a pipe", &context, &admit, stop).await;
        });
        near
    }

    /// Ends all sessions at once, and loses what a killed process loses.
    pub(crate) fn crash(&self) {
        let mut sessions = self.sessions.lock().unwrap();
        sessions.cancel();
        *sessions = self.context.tasks.stop().child_token();
        self.mail.store.crash();
    }

    /// Lets the replica notice the connections that were given up.
    pub(crate) fn close_limbo(&self) {
        self.limbo.lock().unwrap().clear();
    }
}

/// Dials a replica.
#[derive(Debug)]
pub(crate) struct Dialer(pub(crate) Arc<Replica>);

impl Dial for Dialer {
    fn dial(&self) -> Pin<Box<dyn Future<Output = Result<Box<dyn Io>, DialError>> + Send + '_>> {
        self.0.dials.fetch_add(1, Ordering::Relaxed);
        let dialed: Result<Box<dyn Io>, DialError> = if self.0.up.load(Ordering::Relaxed) {
            let left = self.0.cuts.lock().unwrap().pop_front();
            let pipe = Some(self.0.connect());
            Ok(Box::new(Cut { pipe, left, replica: Arc::clone(&self.0) }))
        } else {
            let source = io::Error::from(io::ErrorKind::ConnectionRefused);
            Err(DialError { address: self.0.name.clone(), source: source.into() })
        };
        Box::pin(async { dialed })
    }
}

/// The agent's end of a connection that breaks after so many octets in either direction.
struct Cut {
    pipe: Option<DuplexStream>,
    left: Option<usize>,
    replica: Arc<Replica>,
}

impl Cut {
    fn pass(&mut self, octets: usize) -> io::Result<()> {
        let Some(left) = &mut self.left else { return Ok(()) };
        *left = left.saturating_sub(octets);
        if *left == 0 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }

    fn pipe(&mut self) -> Pin<&mut DuplexStream> {
        Pin::new(self.pipe.as_mut().unwrap())
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        let pipe = self.pipe.take().filter(|_| self.replica.half_open.load(Ordering::Relaxed));
        self.replica.limbo.lock().unwrap().extend(pipe);
    }
}

impl AsyncRead for Cut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        waker: &mut Waker<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.pass(0)?;
        let before = buffer.filled().len();
        let polled = self.pipe().poll_read(waker, buffer);
        self.pass(buffer.filled().len() - before)?;
        polled
    }
}

impl AsyncWrite for Cut {
    fn poll_write(
        mut self: Pin<&mut Self>,
        waker: &mut Waker<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Only what is left still goes through, so that frames are torn.
        let left = self.left.unwrap_or(usize::MAX);
        self.pass(0)?;
        let polled = self.pipe().poll_write(waker, &octets[..octets.len().min(left)]);
        if let Poll::Ready(Ok(written)) = polled {
            self.left = self.left.map(|left| left - written);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, waker: &mut Waker<'_>) -> Poll<io::Result<()>> {
        self.pipe().poll_flush(waker)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, waker: &mut Waker<'_>) -> Poll<io::Result<()>> {
        self.pipe().poll_shutdown(waker)
    }
}
