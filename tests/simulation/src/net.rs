//! Connections with latency that break, stall, or lose one direction when told to.

use std::{
    collections::VecDeque,
    future::Future as _,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use mailtwin_logic::wire::frame::{HEADER_OCTETS, Header};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// Octets on their way in one direction before the writer waits.
const WINDOW_OCTETS: usize = 32 << 10;

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// Both ends notice.
    Reset,
    /// Only the end that dialed notices.
    HalfOpen,
    /// Nobody notices: nothing arrives any more from the end that dialed.
    SilentOut,
    /// Nobody notices: nothing arrives any more at the end that dialed.
    SilentIn,
}

/// How a connection flows.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Of each direction.
    pub latency: Duration,
    /// Octets that each direction takes in a second; `None` for as many as come.
    pub pace: Option<u32>,
    /// Each so many-th answer comes twice, and one that has come before comes again after it.
    pub repeat: Option<usize>,
}

impl Default for Flow {
    fn default() -> Self {
        Self { latency: Duration::from_millis(1), pace: None, repeat: None }
    }
}

/// One direction.
#[derive(Debug)]
struct Lane {
    flow: Flow,
    /// When the octets that are on their way have passed.
    busy: Instant,
    repeater: Option<Repeater>,
    queue: VecDeque<(Instant, VecDeque<u8>)>,
    octets: usize,
    /// Octets that go through before `fate` strikes.
    left: Option<usize>,
    lost: bool,
    reset: bool,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Lane {
    fn new(flow: Flow) -> Self {
        Self {
            flow,
            busy: Instant::now(),
            repeater: None,
            queue: VecDeque::new(),
            octets: 0,
            left: None,
            lost: false,
            reset: false,
            closed: false,
            reader: None,
            writer: None,
        }
    }

    /// Sends octets on their way.
    fn carry(&mut self, octets: &[u8]) {
        let octets = match &mut self.repeater {
            Some(repeater) => repeater.repeat(octets, self.flow.repeat),
            None => octets.into(),
        };
        let now = Instant::now();
        if let Some(pace) = self.flow.pace {
            let octets = u32::try_from(octets.len()).unwrap_or(u32::MAX);
            self.busy = self.busy.max(now) + Duration::from_secs(1) * octets / pace;
        }
        self.octets += octets.len();
        self.queue.push_back((self.busy.max(now) + self.flow.latency, octets.into()));
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

/// Both directions of a connection.
#[derive(Debug)]
pub struct Connection {
    out: Mutex<Lane>,
    back: Mutex<Lane>,
    fate: Mutex<Option<Break>>,
}

impl Connection {
    /// The end that dialed, and the other.
    pub fn pair(flow: Flow) -> (End, End) {
        let back = Lane { repeater: Some(Repeater::default()), ..Lane::new(flow) };
        let connection = Arc::new(Self {
            out: Mutex::new(Lane::new(flow)),
            back: Mutex::new(back),
            fate: Mutex::default(),
        });
        let end = |dialed| End { connection: Arc::clone(&connection), dialed, sleep: None };
        (end(true), end(false))
    }

    /// Lets it suffer `fate` after `octets` more from the end that dialed.
    pub fn doom(&self, fate: Break, octets: usize) {
        *hold(&self.fate) = Some(fate);
        hold(&self.out).left = Some(octets);
    }

    /// Makes it flow like this from now on.
    pub fn flow(&self, flow: Flow) {
        hold(&self.out).flow = flow;
        hold(&self.back).flow = flow;
    }

    fn strike(&self) {
        let fate = hold(&self.fate).take();
        let (mut out, mut back) = (hold(&self.out), hold(&self.back));
        match fate {
            Some(Break::Reset) => (out.reset, back.reset) = (true, true),
            Some(Break::HalfOpen) => (out.lost, back.reset) = (true, true),
            Some(Break::SilentOut) => out.lost = true,
            Some(Break::SilentIn) => back.lost = true,
            None => {}
        }
        out.wake();
        back.wake();
    }
}

/// Says things again, as a confused peer would.
#[derive(Debug, Default)]
struct Repeater {
    /// The beginning of a frame.
    partial: Vec<u8>,
    frames: usize,
    /// A frame that came before.
    old: Vec<u8>,
}

impl Repeater {
    /// Whole frames of what came so far, every `every`-th of them twice, with an older one.
    fn repeat(&mut self, octets: &[u8], every: Option<usize>) -> Vec<u8> {
        self.partial.extend_from_slice(octets);
        let mut said = Vec::new();
        while let Some(header) = self.partial.first_chunk::<HEADER_OCTETS>()
            && let Ok(header) = Header::decode(*header)
            && let whole = HEADER_OCTETS + header.octets
            && self.partial.len() >= whole
        {
            let frame: Vec<u8> = self.partial.drain(..whole).collect();
            said.extend_from_slice(&frame);
            self.frames += 1;
            // What comes on stream 0 is no answer to anything.
            if header.stream > 0 && every.is_some_and(|every| self.frames.is_multiple_of(every)) {
                said.extend_from_slice(&frame);
                said.extend_from_slice(&self.old);
                self.old = frame;
            }
        }
        said
    }
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One end of a connection; dropping it closes the connection.
#[derive(Debug)]
pub struct End {
    connection: Arc<Connection>,
    dialed: bool,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl End {
    /// The connection, for whoever wants to break it.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    fn incoming(&self) -> &Mutex<Lane> {
        if self.dialed { &self.connection.back } else { &self.connection.out }
    }

    fn outgoing(&self) -> &Mutex<Lane> {
        if self.dialed { &self.connection.out } else { &self.connection.back }
    }

    /// A reset of what comes in is one of the end.
    fn is_reset(&self) -> bool {
        hold(self.incoming()).reset || (self.dialed && hold(self.outgoing()).reset)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        for lane in [self.incoming(), self.outgoing()] {
            let mut lane = hold(lane);
            // Who hears nothing does not hear of this either.
            lane.closed |= !lane.lost;
            lane.wake();
        }
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_reset() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let due = {
            let mut lane = hold(self.incoming());
            let closed = lane.closed;
            match lane.queue.front_mut() {
                Some((due, octets)) if *due <= Instant::now() => {
                    let taken = octets.len().min(buffer.remaining());
                    octets.drain(..taken).for_each(|octet| buffer.put_slice(&[octet]));
                    if octets.is_empty() {
                        lane.queue.pop_front();
                    }
                    lane.octets -= taken;
                    lane.writer.take().into_iter().for_each(Waker::wake);
                    return Poll::Ready(Ok(()));
                }
                Some((due, _)) => *due,
                None if closed => return Poll::Ready(Ok(())),
                None => {
                    lane.reader = Some(context.waker().clone());
                    return Poll::Pending;
                }
            }
        };
        hold(self.incoming()).reader = Some(context.waker().clone());
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(due)));
        sleep.as_mut().reset(due);
        if sleep.as_mut().poll(context).is_ready() {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_reset() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let mut lane = hold(self.outgoing());
        if lane.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = WINDOW_OCTETS - lane.octets.min(WINDOW_OCTETS);
        if room == 0 {
            lane.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let written = octets.len().min(room);
        let through = lane.left.map_or(written, |left| left.min(written));
        lane.left = lane.left.map(|left| left - through);
        let strikes = lane.left.take_if(|left| *left == 0).is_some();
        if lane.lost {
            lane.octets += written; // never acknowledged, so the window fills
            return Poll::Ready(Ok(written));
        }
        if through > 0 {
            lane.carry(octets.get(..through).unwrap_or_default());
        }
        drop(lane);
        if strikes {
            self.connection.strike();
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut lane = hold(self.outgoing());
        lane.closed |= !lane.lost;
        lane.wake();
        drop(lane);
        Poll::Ready(Ok(()))
    }
}
