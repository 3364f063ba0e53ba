//! One TCP life of a link: frames in and out, many streams at once.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use mailtwin_host::{
    codes::KeyTrouble,
    net::{Frame, FrameError, FrameReader, FrameWriter, Kind},
    tasks::Tasks,
    tls::is_key_refusal,
};
use mailtwin_logic::{
    ids::Epoch,
    wire::message::{Abort, Greeting, Hello, Refusal, Reply, Request, decode, encode, told},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::pulse::{Heart, Pulse};

/// Frames waiting to be written; whoever sends more waits.
const OUT_QUEUE: usize = 32;
/// Replies a stream may be behind.
const STREAM_QUEUE: usize = 8;
/// How often a heartbeat is sent.
const BEAT_EVERY: Duration = Duration::from_secs(5);
/// How long the replica may be silent.
const SILENT_MAX: Duration = Duration::from_secs(30);
/// How long one request may go without any answer while the heartbeat goes on: longer than any
/// group of changes takes to get to a slow disk.
const REPLY_WITHIN: Duration = Duration::from_mins(10);

/// The connection is gone, or its peer broke the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection is gone")]
pub(crate) struct Gone;

/// Why a greeting failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GreetError {
    /// The connection broke.
    #[error("greet the replica")]
    Net(#[source] FrameError),
    /// It does not know this node.
    #[error(
        "the replica knows this node by another key: run `replctl keys pin` there with the key that \
         `replctl keys show` prints here"
    )]
    KeyRefused,
    /// It closed, or did not answer in time, or what it said is no greeting.
    #[error("greet the replica: {0}")]
    NoAnswer(&'static str),
    /// It refused.
    #[error("{detail}")]
    Refused {
        /// Why.
        why: Refusal,
        /// For humans.
        detail: String,
    },
}

impl GreetError {
    /// Whether this node's key is why, and nothing else.
    pub(crate) fn key_trouble(&self) -> Option<KeyTrouble> {
        let refused = match self {
            Self::KeyRefused => true,
            Self::Refused { why, .. } => *why == Refusal::Identity,
            Self::Net(_) | Self::NoAnswer(_) => false,
        };
        refused.then_some(KeyTrouble::OwnKeyRefused)
    }
}

fn broken(error: FrameError) -> GreetError {
    let refused = matches!(&error, FrameError::Io(source) if is_key_refusal(source));
    if refused { GreetError::KeyRefused } else { GreetError::Net(error) }
}

type Streams = Arc<Mutex<HashMap<u32, mpsc::Sender<Reply>>>>;

/// Handle to a connection; cheap to clone.
#[derive(Clone)]
pub(crate) struct Connection {
    out: mpsc::Sender<Frame>,
    streams: Streams,
    next: Arc<AtomicU32>,
    lost: CancellationToken,
    merged: Epoch,
    features: u64,
}

impl Connection {
    /// Greets, then serves the connection with two tasks until it breaks or is closed.
    pub(crate) async fn greet<I>(
        io: I,
        hello: &Hello,
        tasks: &Tasks,
        pulse: watch::Receiver<Pulse>,
        stop: &CancellationToken,
    ) -> Result<Self, GreetError>
    where
        I: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (input, output) = tokio::io::split(io);
        let (mut reader, mut writer) = (FrameReader::new(input), FrameWriter::new(output));
        writer.send(&message(0, hello)).await.map_err(broken)?;
        writer.flush().await.map_err(broken)?;
        let answer = timeout(mailtwin_logic::link::ANSWER_WITHIN, reader.next()).await;
        let answer = answer.map_err(|_| GreetError::NoAnswer("no answer in time"))?;
        let frame = answer.map_err(broken)?;
        let frame = frame.ok_or(GreetError::NoAnswer("it closed the connection"))?;
        let (features, merged) = match decode::<Greeting>(&frame.payload) {
            Some(Greeting::Welcome { features, merged, .. }) => (features, merged),
            Some(Greeting::Refused { why, detail }) => {
                return Err(GreetError::Refused { why, detail: told(&detail) });
            }
            None => return Err(GreetError::NoAnswer("its answer is no greeting")),
        };
        let (out, queue) = mpsc::channel(OUT_QUEUE);
        let connection = Self {
            out,
            streams: Streams::default(),
            next: Arc::new(AtomicU32::new(1)),
            lost: stop.child_token(),
            merged,
            features,
        };
        let (streams, lost) = (Arc::clone(&connection.streams), connection.lost.clone());
        tasks.spawn("link reader", read(reader, streams, lost.clone()));
        tasks.spawn("link writer", write(writer, queue, Heart::new(pulse, features), lost));
        Ok(connection)
    }

    /// The epoch whose master's mail and the replica's were last made one.
    pub(crate) fn merged(&self) -> Epoch {
        self.merged
    }

    /// Opens a stream with `request`.
    pub(crate) async fn ask(&self, request: &Request) -> Result<Stream, Gone> {
        let room = tokio::select! {
            biased;
            () = self.lost.cancelled() => return Err(Gone),
            room = self.out.reserve() => room.map_err(|_| Gone)?,
        };
        let (tell, replies) = mpsc::channel(STREAM_QUEUE);
        let mut frame = message(0, request);
        // Numbers must arrive in order: one below the newest is taken for that of a stream that
        // has ended. So it is given out and queued under one lock.
        let mut streams = self.streams.lock().expect("no panic while it is held");
        frame.stream = self.next.fetch_add(1, Ordering::Relaxed);
        if frame.stream == u32::MAX {
            self.lost.cancel(); // numbers are used up: the next connection starts anew
            return Err(Gone);
        }
        streams.insert(frame.stream, tell);
        let id = frame.stream;
        room.send(frame);
        drop(streams);
        Ok(Stream { id, connection: self.clone(), replies })
    }

    /// Whether the replica is able to do all of `features`.
    pub(crate) fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// Whether it is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Resolves when the connection is gone.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Drops the connection.
    pub(crate) fn close(&self) {
        self.lost.cancel();
    }
}

/// One request and what comes of it.
pub(crate) struct Stream {
    id: u32,
    connection: Connection,
    replies: mpsc::Receiver<Reply>,
}

impl Stream {
    /// Waits for the next reply.
    pub(crate) async fn reply(&mut self) -> Result<Reply, Gone> {
        let reply = tokio::select! {
            biased;
            () = self.connection.lost.cancelled() => return Err(Gone),
            reply = timeout(REPLY_WITHIN, self.replies.recv()) => reply,
        };
        if let Ok(Some(reply)) = reply {
            return Ok(reply);
        }
        self.connection.close();
        Err(Gone)
    }

    /// Sends octets of the messages asked for.
    pub(crate) async fn octets(&self, payload: Bytes) -> Result<(), Gone> {
        self.send(Frame { kind: Kind::Octets, stream: self.id, payload }).await
    }

    /// Takes the apply back: a message that was offered is gone.
    pub(crate) async fn abort(&self) -> Result<(), Gone> {
        self.send(message(self.id, &Abort)).await
    }

    async fn send(&self, frame: Frame) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.connection.lost.cancelled() => Err(Gone),
            sent = self.connection.out.send(frame) => sent.map_err(|_| Gone),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut streams = self.connection.streams.lock().expect("no panic while it is held");
        streams.remove(&self.id);
    }
}

pub(super) fn message<T: serde::Serialize>(stream: u32, message: &T) -> Frame {
    Frame { kind: Kind::Message, stream, payload: encode(message).into() }
}

async fn read<R: AsyncRead + Unpin + Send>(
    mut reader: FrameReader<R>,
    streams: Streams,
    lost: CancellationToken,
) {
    let _ends_all = lost.clone().drop_guard();
    loop {
        let next = tokio::select! {
            biased;
            () = lost.cancelled() => return,
            next = timeout(SILENT_MAX, reader.next()) => next,
        };
        let frame = match next {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => {
                let error = mailtwin_logic::chain::Chain(&error).to_string();
                return tracing::warn!(code = "link-broke", %error, "the connection to the replica broke");
            }
            Err(_) => {
                let seconds = SILENT_MAX.as_secs();
                return tracing::warn!(
                    code = "link-silent",
                    seconds,
                    "the replica is silent: dropping the connection"
                );
            }
        };
        if frame.stream == 0 {
            continue; // the echo of a heartbeat: having been heard is its purpose
        }
        let Some(reply) = decode::<Reply>(&frame.payload) else {
            return tracing::warn!(
                code = "link-protocol",
                "the replica broke the protocol: dropping the connection"
            );
        };
        let stream = streams.lock().expect("no panic while it is held").get(&frame.stream).cloned();
        if let Some(stream) = stream {
            // A stream nobody waits for any more has taken itself off the list. One whose visit
            // waits for the replica to take what it sends must not wait for ever.
            let sent = timeout(REPLY_WITHIN, stream.send(reply)).await;
            if sent.is_err() {
                return tracing::warn!(
                    code = "link-stuck",
                    "the replica answers and takes nothing: dropping the connection"
                );
            }
        }
    }
}

async fn write<W: AsyncWrite + Unpin + Send>(
    mut writer: FrameWriter<W>,
    mut queue: mpsc::Receiver<Frame>,
    mut heart: Heart,
    lost: CancellationToken,
) {
    let _ends_all = lost.clone().drop_guard();
    let mut ticks = tokio::time::interval(BEAT_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let (frame, also) = tokio::select! {
            biased;
            () = lost.cancelled() => return,
            Some(frame) = queue.recv() => (frame, None),
            _ = ticks.tick() => heart.beat(),
        };
        let write = async {
            if let Some(also) = also {
                writer.send_from(&also, false).await?;
            }
            writer.send_from(&frame, queue.is_empty()).await
        };
        // A replica that takes nothing must not keep a connection alive that was given up.
        let written = tokio::select! {
            biased;
            () = lost.cancelled() => return,
            written = write => written,
        };
        // The reader says what is wrong with a connection that broke.
        if written.is_err() {
            return;
        }
    }
}
