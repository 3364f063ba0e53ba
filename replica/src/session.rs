//! One agent's connection: greeting, then a task for each stream it opens.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use mailtwin_host::{
    clock::Clock,
    net::{Frame, FrameReader, FrameWriter, Kind},
    tasks::Tasks,
    workers::Workers,
};
use mailtwin_logic::{
    chain::Chain,
    ids::{Account, MailboxId},
    limits::{CHUNK_OCTETS, IN_FLIGHT, NODE_OCTETS_MAX, STREAMS_MAX},
    mailbox::MailboxName,
    wire::message::{
        Beat, Control, Greeting, Hello, Refusal, Request, Standing, agree, decode, encode, features,
    },
};
use mailtwin_store::{Destination, MailStore};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    answer,
    commit::Committer,
    fence::{Fence, FenceError},
    heard::Heard,
    metrics::Metrics,
    stream::Stream,
};

/// How long a new connection may take to say who it is.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection may be silent; agents send a heartbeat every few seconds.
const SILENT_MAX: Duration = Duration::from_mins(1);
/// Mailboxes that one session may be building at once; an agent has at most `IN_FLIGHT` visits.
const BUILDS_MAX: usize = 8 * IN_FLIGHT;
/// Frames a stream's task may be behind before its connection waits for it.
const STREAM_QUEUE: usize = 3;
/// Frames waiting to be written.
const OUT_QUEUE: usize = 64;

/// What sessions need of their daemon.
#[derive(Clone)]
pub struct Context {
    /// This node's name.
    pub node: String,
    /// What takes mail in; absent while this node is the master.
    pub work: Option<Work>,
    /// Highest epoch seen, on disk.
    pub fence: Fence,
    /// What would keep this node from becoming the master.
    pub readiness: Readiness,
    /// Counters.
    pub metrics: Metrics,
    /// What agents said last, for status.
    pub heard: Heard,
    /// Where streams' tasks run.
    pub tasks: Tasks,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Context {
    /// An agent says what this node has.
    fn stands(&self, agent: &str, standing: &Standing) {
        if let Some(complete) = self.heard.stands(agent, standing, self.clock.unix_ms()) {
            self.metrics.complete_to(complete);
        }
    }
}

/// Finds out what stands against this node's becoming the master, for humans.
pub type Readiness = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Where mail goes, and how.
#[derive(Clone)]
pub struct Work {
    /// The store.
    pub store: Arc<dyn MailStore>,
    /// Threads for its blocking calls.
    pub workers: Workers,
    /// Group commit.
    pub committer: Committer,
}

/// Whether an agent that calls itself `name` may speak here; `Err` says why not.
pub type Admit<'a> = &'a (dyn Fn(&str) -> Result<(), String> + Send + Sync);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// It said nothing, or not for long.
    #[error("{peer} was silent for {} s", .after.as_secs())]
    Silent {
        /// Who.
        peer: String,
        /// For how long.
        after: Duration,
    },
    /// The connection broke, or what came is no frame.
    #[error("talk to {peer}")]
    Net {
        /// Who.
        peer: String,
        /// Cause.
        source: mailtwin_host::net::FrameError,
    },
    /// What came is a frame, but not one that may come here.
    #[error("{peer} broke the protocol: {what}")]
    Protocol {
        /// Who.
        peer: String,
        /// How.
        what: &'static str,
    },
    /// We refused it.
    #[error("refused {peer}: {detail}")]
    Refused {
        /// Who.
        peer: String,
        /// Why.
        detail: String,
    },
}

/// What the streams of one session share.
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn MailStore>,
    pub(crate) workers: Workers,
    pub(crate) committer: Committer,
    pub(crate) metrics: Metrics,
    /// The master.
    pub(crate) agent: String,
    pub(crate) fence: Fence,
    pub(crate) readiness: Readiness,
    /// Cancelled when the session ends: nothing of it is applied any more.
    pub(crate) live: CancellationToken,
    building: Mutex<BTreeMap<(Account, MailboxId), MailboxName>>,
    /// Tells the agent's next session that nothing of this one is left.
    _ends: DropGuard,
}

impl Shared {
    /// Under which name a mailbox is being built by this session over several applies.
    pub(crate) fn is_building(&self, to: &Destination) -> Option<MailboxName> {
        let building = self.building.lock().expect("no panic while it is held");
        building.get(&(to.account.clone(), to.mailbox)).cloned()
    }

    /// Notes whether more of `to` is to come. An agent that begins builds and ends none loses its
    /// session, and all of them.
    pub(crate) fn builds(&self, to: &Destination, more: bool) {
        let key = (to.account.clone(), to.mailbox);
        let mut building = self.building.lock().expect("no panic while it is held");
        if more {
            building.insert(key, to.name.clone());
            if building.len() > BUILDS_MAX {
                tracing::warn!(
                    code = "builds-too-many",
                    "an agent builds over {BUILDS_MAX} mailboxes at once: ending its session"
                );
                self.live.cancel();
            }
        } else {
            building.remove(&key);
        }
    }
}

impl Drop for Shared {
    /// The last stream is gone: what was half-built is of no use to the next session.
    fn drop(&mut self) {
        let building = std::mem::take(&mut *self.building.lock().expect("no panic while held"));
        for (account, mailbox) in building.into_keys() {
            self.store.abandon(&account, mailbox);
        }
    }
}

/// Serves one connection until it ends or `stop`.
pub async fn serve<I>(
    io: I,
    peer: &str,
    context: &Context,
    admit: Admit<'_>,
    stop: CancellationToken,
) -> Result<(), SessionError>
where
    I: AsyncRead + AsyncWrite + Send + 'static,
{
    let (input, output) = tokio::io::split(io);
    let mut reader = FrameReader::new(input);
    let mut writer = FrameWriter::new(output);
    let net = |source| SessionError::Net { peer: peer.to_owned(), source };
    let Ok(first) = timeout(HELLO_WITHIN, reader.next()).await else {
        return Err(SessionError::Silent { peer: peer.to_owned(), after: HELLO_WITHIN });
    };
    let Some(frame) = first.map_err(net)? else {
        return Ok(()); // a port scan
    };
    let Some(hello) = greeting(&frame) else {
        return Err(SessionError::Protocol { peer: peer.to_owned(), what: "no greeting" });
    };
    let stop = stop.child_token();
    let _ends_writer = stop.clone().drop_guard();
    let (greeting, work) = match greet(&hello, context, admit) {
        Ok((welcome, work)) => (welcome, Ok(work)),
        Err((why, detail)) => (Greeting::Refused { why, detail: detail.clone() }, Err(detail)),
    };
    let gone = CancellationToken::new();
    let ends = gone.clone().drop_guard();
    if work.is_ok() {
        // An agent has one connection: what it had before may not have noticed its end yet.
        let before = context.heard.takes_over(&hello.node, stop.clone(), gone);
        let _ = timeout(HELLO_WITHIN, before).await;
    }
    writer.send(&message(0, &greeting)).await.map_err(net)?;
    writer.flush().await.map_err(net)?;
    let work = work.map_err(|detail| SessionError::Refused { peer: hello.node.clone(), detail })?;
    let epoch = hello.epoch.0;
    tracing::info!(agent = %hello.node, %peer, epoch, "agent connected");
    let (out, queue) = mpsc::channel(OUT_QUEUE);
    context.tasks.spawn("session writer", write(writer, queue, stop.clone()));
    context.heard.connected(&hello.node, true);
    let wires = Wires { peer: &hello.node, out, stop, ends };
    let result = tokio::select! {
        biased;
        known = context.fence.overtakes(hello.epoch) => {
            let detail = format!("epoch {epoch} is over, {known} has begun");
            Err(SessionError::Refused { peer: hello.node.clone(), detail })
        }
        result = read(&mut reader, wires, context, work) => result,
    };
    context.heard.connected(&hello.node, false);
    tracing::info!(agent = %hello.node, "agent disconnected");
    result
}

/// A greeting, if `frame` is one, of a node that is called like one.
fn greeting(frame: &Frame) -> Option<Hello> {
    let hello = decode::<Hello>(&frame.payload).filter(|_| frame.stream == 0)?;
    let fits = hello.node.len() <= NODE_OCTETS_MAX && !hello.node.chars().any(char::is_control);
    fits.then_some(hello)
}

fn message<T: serde::Serialize>(stream: u32, message: &T) -> Frame {
    Frame { kind: Kind::Message, stream, payload: encode(message).into() }
}

/// Decides whether this agent may change anything here.
fn greet(
    hello: &Hello,
    context: &Context,
    admit: Admit<'_>,
) -> Result<(Greeting, Work), (Refusal, String)> {
    admit(&hello.node).map_err(|detail| (Refusal::Identity, detail))?;
    let version = agree(hello).map_err(|detail| (Refusal::Version, detail.to_owned()))?;
    match context.fence.admit(hello.epoch, &hello.node) {
        Ok(()) => {
            // Without it, this daemon is about to change its role.
            let work = context.work.clone().filter(|_| !context.fence.is_master());
            let work = work.ok_or_else(|| (Refusal::Role, "not ready yet".to_owned()))?;
            let (node, epoch) = (context.node.clone(), hello.epoch);
            let able = features(work.store.capabilities().sets_modseq);
            let (merged, features) = (context.fence.node().merged, hello.features & able);
            Ok((Greeting::Welcome { version, node, epoch, features, merged }, work))
        }
        Err(FenceError::Fenced { known }) => {
            let detail = format!(
                "{} knows epoch {known}, {} shows epoch {}: it was replaced by a newer master",
                context.node, hello.node, hello.epoch
            );
            Err((Refusal::Epoch(known), detail))
        }
        Err(error @ FenceError::Rival { .. }) => {
            let detail = format!(
                "{error} for {}, and {} says that it is, too: two masters are never joined",
                context.node, hello.node
            );
            Err((Refusal::Role, detail))
        }
        Err(error @ (FenceError::Save(_) | FenceError::SteppedDown { .. })) => {
            Err((Refusal::Role, Chain(&error).to_string()))
        }
    }
}

async fn write<W: AsyncWrite + Unpin + Send>(
    mut writer: FrameWriter<W>,
    mut queue: mpsc::Receiver<Frame>,
    stop: CancellationToken,
) {
    loop {
        let frame = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            frame = queue.recv() => frame,
        };
        let Some(frame) = frame else { return };
        let write = writer.send_from(&frame, queue.is_empty());
        // A peer that takes nothing must not keep an ended session waiting.
        let written = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            written = timeout(SILENT_MAX, write) => written,
        };
        // The reader notices a broken connection and says so.
        if !matches!(written, Ok(Ok(()))) {
            return stop.cancel();
        }
    }
}

/// How one session speaks and ends.
struct Wires<'a> {
    peer: &'a str,
    out: mpsc::Sender<Frame>,
    stop: CancellationToken,
    ends: DropGuard,
}

/// Hands frames to their streams until the connection ends.
async fn read<R: AsyncRead + Unpin + Send>(
    reader: &mut FrameReader<R>,
    Wires { peer, out, stop, ends }: Wires<'_>,
    context: &Context,
    Work { store, workers, committer }: Work,
) -> Result<(), SessionError> {
    let shared = Arc::new(Shared {
        store,
        workers,
        committer,
        metrics: context.metrics.clone(),
        agent: peer.to_owned(),
        fence: context.fence.clone(),
        readiness: Arc::clone(&context.readiness),
        live: stop.clone(),
        building: Mutex::default(),
        _ends: ends,
    });
    let mut streams: HashMap<u32, mpsc::Sender<Frame>> = HashMap::new();
    let mut newest = 0;
    let broke = |what| SessionError::Protocol { peer: peer.to_owned(), what };
    loop {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            next = timeout(SILENT_MAX, reader.next()) => next,
        };
        let Ok(next) = next else {
            return Err(SessionError::Silent { peer: peer.to_owned(), after: SILENT_MAX });
        };
        let net = |source| SessionError::Net { peer: peer.to_owned(), source };
        let Some(frame) = next.map_err(net)? else {
            return Ok(());
        };
        if frame.stream == 0 {
            match decode(&frame.payload) {
                Some(Control::Beat(beat)) => echo(beat, context, peer, &out).await,
                Some(Control::Standing(standing)) => context.stands(peer, &standing),
                None => return Err(broke("no heartbeat on stream 0")),
            }
            continue;
        }
        if let Some(stream) = streams.get(&frame.stream) {
            // Octets, or an abort. Streams hold several frames each.
            if frame.payload.len() > CHUNK_OCTETS {
                return Err(broke("more octets in a frame than may be"));
            }
            // A stream that has ended takes no more: its reply is on its way.
            let _ = stream.send(frame).await;
            continue;
        }
        if frame.stream <= newest {
            continue; // late octets of a stream that has ended
        }
        newest = frame.stream;
        let Some(request) = decode::<Request>(&frame.payload) else {
            return Err(broke("no request"));
        };
        streams.retain(|_, stream| !stream.is_closed());
        if streams.len() >= STREAMS_MAX {
            return Err(broke("too many streams"));
        }
        let (tell, frames) = mpsc::channel(STREAM_QUEUE);
        streams.insert(newest, tell);
        let stream = Stream::new(newest, Arc::clone(&shared), frames, out.clone());
        let stop = stop.clone();
        context.tasks.spawn("stream", async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                // An error means that the agent is gone or gave up; it will ask again.
                _ = answer::run(stream, request) => {}
            }
        });
    }
}

async fn echo(beat: Beat, context: &Context, peer: &str, out: &mpsc::Sender<Frame>) {
    context.heard.beat(peer, beat, context.clock.unix_ms());
    context.metrics.heartbeat(beat.at);
    let _ = out.send(message(0, &Control::Beat(beat))).await;
}
