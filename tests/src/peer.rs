//! The other end of a link, with a key that a daemon knows, that says whatever a test wants.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, bail, ensure};
use mailtwin_host::{
    keys::NodeKey,
    net::{Frame, FrameReader, Kind},
    node::Node as State,
    pins::Expected,
    tls::{self, Stream},
};
use mailtwin_logic::{
    ids::{Epoch, LogId},
    wire::{
        frame::Header,
        message::{
            Apply, Greeting, Hello, MODEL, Reply, Request, VERSION_MAX, VERSION_MIN, decode, encode,
        },
    },
};
use tokio::{
    io::{AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::TcpListener,
    runtime::{Builder, Runtime},
    time::timeout,
};

use crate::{daemon::Node, lab::PATIENCE};

/// One connection.
#[derive(Debug)]
pub struct Peer {
    runtime: Runtime,
    reader: FrameReader<ReadHalf<Stream>>,
    writer: WriteHalf<Stream>,
    newest: u32,
}

impl Peer {
    /// Calls the replica daemon of `to` with the key of `from`, and says nothing.
    pub fn dial(from: &Node, to: &Node) -> anyhow::Result<Self> {
        let key = NodeKey::load(&from.state_dir()).context("read the key")?;
        let runtime = runtime()?;
        let address = format!("127.0.0.1:{}", to.port);
        let dial = tls::connect(&address, &key, Expected::Any);
        let (stream, _) = within(&runtime, PATIENCE, dial)?.context("dial the replica")?;
        Ok(Self::over(runtime, stream))
    }

    /// Calls, and greets as the agent of `from` would.
    pub fn greet(from: &Node, to: &Node) -> anyhow::Result<Self> {
        let mut peer = Self::dial(from, to)?;
        let state = State::load(&from.state_dir()).context("read the node")?;
        peer.message(0, &hello(&state.name, state.epoch))?;
        let answer = peer.receive()?.context("the replica closed")?;
        match decode(&answer.payload) {
            Some(Greeting::Welcome { .. }) => Ok(peer),
            Some(Greeting::Refused { detail, .. }) => bail!("refused: {detail}"),
            None => bail!("no greeting: {answer:?}"),
        }
    }

    /// Waits at the port of `replica`, with its key, until somebody calls; the greeting is read, and
    /// not answered.
    pub fn accept(replica: &Node) -> anyhow::Result<Self> {
        let key = NodeKey::load(&replica.state_dir()).context("read the key")?;
        let runtime = runtime()?;
        let accept = async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, replica.port)).await?;
            let (socket, _) = listener.accept().await?;
            anyhow::Ok(tls::accept(socket, &key, Expected::Any).await?.0)
        };
        let stream = within(&runtime, PATIENCE, accept)?.context("be called by an agent")?;
        let mut peer = Self::over(runtime, stream);
        let frame = peer.receive()?.context("the agent closed")?;
        decode::<Hello>(&frame.payload).context("an agent greets first")?;
        Ok(peer)
    }

    fn over(runtime: Runtime, stream: Stream) -> Self {
        let (input, writer) = tokio::io::split(stream);
        Self { runtime, reader: FrameReader::new(input), writer, newest: 0 }
    }

    /// Writes octets as they are. An error means that the other side has ended the connection, or
    /// takes nothing.
    pub fn raw(&mut self, octets: &[u8]) -> anyhow::Result<()> {
        let write = async {
            self.writer.write_all(octets).await?;
            self.writer.flush().await
        };
        Ok(within(&self.runtime, Duration::from_secs(5), write)??)
    }

    /// Writes a frame.
    pub fn frame(&mut self, kind: Kind, stream: u32, payload: &[u8]) -> anyhow::Result<()> {
        let header = Header { octets: payload.len(), stream, kind };
        let header = header.encode().context("a frame that may be sent")?;
        self.raw(&[&header, payload].concat())
    }

    /// Writes a message.
    pub fn message<T: serde::Serialize>(&mut self, stream: u32, said: &T) -> anyhow::Result<()> {
        self.frame(Kind::Message, stream, &encode(said))
    }

    /// The next frame, which must come soon; `None` if the other side closed or broke off.
    pub fn receive(&mut self) -> anyhow::Result<Option<Frame>> {
        Ok(within(&self.runtime, PATIENCE, self.reader.next())?.ok().flatten())
    }

    /// Opens a stream with the payload of a request, right or wrong.
    pub fn open(&mut self, payload: &[u8]) -> anyhow::Result<u32> {
        self.newest += 1;
        self.frame(Kind::Message, self.newest, payload)?;
        Ok(self.newest)
    }

    /// The next reply on a stream; `None` if the other side ended the connection.
    pub fn reply(&mut self, stream: u32) -> anyhow::Result<Option<Reply>> {
        while let Some(frame) = self.receive()? {
            if frame.stream == stream {
                return Ok(Some(decode(&frame.payload).context("a reply")?));
            }
        }
        Ok(None)
    }

    /// Asks, and takes the first reply; `None` if the other side ended the connection instead.
    pub fn ask(&mut self, payload: &[u8]) -> anyhow::Result<Option<Reply>> {
        // What is wrong with a request may end the connection before all of it is written.
        match self.open(payload) {
            Ok(stream) => self.reply(stream),
            Err(_) => Ok(None),
        }
    }

    /// Applies changes with all the octets that are asked for; the last reply.
    pub fn apply(&mut self, apply: Apply, octets: &[&[u8]]) -> anyhow::Result<Option<Reply>> {
        let stream = self.open(&encode(&Request::Apply(apply)))?;
        let places = match self.reply(stream)? {
            Some(Reply::Need(places)) => places,
            other => return Ok(other),
        };
        for place in places {
            let body = octets.get(usize::try_from(place)?).context("octets that are there")?;
            for chunk in body.chunks(64 << 10) {
                self.frame(Kind::Octets, stream, chunk)?;
            }
        }
        self.reply(stream)
    }

    /// Fails unless the other side is still there and answers.
    pub fn expect_answer(&mut self) -> anyhow::Result<()> {
        let answer = self.ask(&encode(&Request::Accounts))?;
        ensure!(matches!(answer, Some(Reply::Accounts { .. })), "no answer: {answer:?}");
        Ok(())
    }
}

/// A greeting of an agent.
pub fn hello(name: &str, epoch: Epoch) -> Hello {
    Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        model: MODEL,
        node: name.to_owned(),
        epoch,
        features: 0,
        log: LogId([9; 16]),
    }
}

fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("start a runtime")
}

fn within<T>(
    runtime: &Runtime,
    limit: Duration,
    work: impl Future<Output = T>,
) -> anyhow::Result<T> {
    runtime.block_on(async { timeout(limit, work).await }).context("in time")
}
