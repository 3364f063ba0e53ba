//! A network path with faults: a TCP proxy between an agent and a replica that refuses, holds
//! octets back in either direction, forgets a connection on one side, resets it in mid-frame, or is
//! slow.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use mailtwin_disk::clock::Clock;

use crate::lab::Lab;

/// How often a thread that has nothing to do looks again.
const TICK: Duration = Duration::from_millis(5);

/// Octets on their way in one direction of a connection.
const IN_FLIGHT_MAX: usize = 256 << 10;

/// A path to one port of this machine.
#[derive(Debug)]
pub struct Proxy {
    /// Where it takes connections.
    pub port: u16,
    /// What is wrong with it; may be changed at any time.
    pub faults: Arc<Faults>,
}

/// What is wrong with a path.
#[derive(Debug, Default)]
pub struct Faults {
    /// New connections are closed at once.
    pub refuse: AtomicBool,
    /// Nothing gets through towards the replica.
    pub hold_there: AtomicBool,
    /// Nothing comes back.
    pub hold_back: AtomicBool,
    /// Milliseconds that every octet is on its way.
    pub delay_ms: AtomicU64,
    /// Octets a second in each direction; 0 is no bound.
    pub rate: AtomicU64,
    /// A connection is reset when so many octets went there; 0 is never.
    pub reset_after: AtomicU64,
    /// Connections so far.
    connections: AtomicU64,
    /// Those up to this one are reset.
    reset_upto: AtomicU64,
    /// Those up to this one are closed towards the replica, and open for ever towards the agent.
    forgotten_upto: AtomicU64,
    stopped: AtomicBool,
}

impl Faults {
    /// Resets every connection there is.
    pub fn reset_all(&self) {
        self.reset_upto.store(self.connections.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Makes every connection there is half open: the replica is gone, and the agent is not told.
    pub fn forget_all(&self) {
        self.forgotten_upto.store(self.connections.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Holds back what goes there, what comes back, or both.
    pub fn hold(&self, there: bool, back: bool) {
        self.hold_there.store(there, Ordering::SeqCst);
        self.hold_back.store(back, Ordering::SeqCst);
    }

    /// Number of connections that were made so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Proxy {
    /// Begins to take connections for `target`.
    pub fn start(lab: &Lab, target: u16) -> anyhow::Result<Self> {
        let port = lab.port()?;
        let listener = TcpListener::bind(("127.0.0.1", port)).context("listen")?;
        listener.set_nonblocking(true)?;
        let faults = Arc::new(Faults::default());
        let (shared, clock) = (Arc::clone(&faults), lab.shared_clock());
        thread::spawn(move || {
            while !shared.stopped.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((agent, _)) => {
                        // Who cannot be reached is seen by the agent as a closed connection.
                        let _ = connect(&agent, target, &shared, &clock);
                    }
                    Err(_) => clock.pause(TICK),
                }
            }
        });
        Ok(Self { port, faults })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.faults.stopped.store(true, Ordering::SeqCst);
    }
}

fn connect(
    agent: &TcpStream,
    target: u16,
    faults: &Arc<Faults>,
    clock: &Arc<dyn Clock>,
) -> std::io::Result<()> {
    if faults.refuse.load(Ordering::SeqCst) {
        return Ok(());
    }
    agent.set_nonblocking(false)?;
    let replica = TcpStream::connect(("127.0.0.1", target))?;
    let number = faults.connections.fetch_add(1, Ordering::SeqCst) + 1;
    for there in [true, false] {
        let (from, to) = if there { (agent, &replica) } else { (&replica, agent) };
        let mut pump = Pump {
            from: from.try_clone()?,
            to: to.try_clone()?,
            there,
            number,
            faults: Arc::clone(faults),
            clock: Arc::clone(clock),
            queue: VecDeque::new(),
            queued: 0,
            passed: 0,
            free_at: Duration::ZERO,
        };
        pump.from.set_read_timeout(Some(TICK))?;
        thread::spawn(move || pump.run());
    }
    Ok(())
}

/// One direction of a connection.
struct Pump {
    from: TcpStream,
    to: TcpStream,
    there: bool,
    number: u64,
    faults: Arc<Faults>,
    clock: Arc<dyn Clock>,
    /// What is on its way, with when it arrives.
    queue: VecDeque<(Duration, Vec<u8>)>,
    queued: usize,
    passed: u64,
    /// When the line is free for the next octets.
    free_at: Duration,
}

impl Pump {
    fn run(&mut self) {
        while !self.faults.stopped.load(Ordering::SeqCst) {
            if self.number <= self.faults.reset_upto.load(Ordering::SeqCst) {
                return self.reset();
            }
            if self.number <= self.faults.forgotten_upto.load(Ordering::SeqCst) {
                let replica = if self.there { &self.to } else { &self.from };
                let _ = replica.shutdown(Shutdown::Both);
                self.clock.pause(TICK);
                continue;
            }
            let held = if self.there { &self.faults.hold_there } else { &self.faults.hold_back };
            if held.load(Ordering::SeqCst) {
                self.clock.pause(TICK);
                continue;
            }
            if !self.take() || !self.give() {
                break;
            }
        }
        let _ = self.to.shutdown(Shutdown::Both);
        let _ = self.from.shutdown(Shutdown::Both);
    }

    /// Ends it with an RST, as a peer that knows nothing of it.
    fn reset(&self) {
        for stream in [&self.from, &self.to] {
            let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Reads what is there; false at the end.
    fn take(&mut self) -> bool {
        let mut octets = vec![0; 16 << 10];
        if self.queued >= IN_FLIGHT_MAX {
            self.clock.pause(TICK);
            return true;
        }
        match self.from.read(&mut octets) {
            Ok(0) => false,
            Ok(count) => {
                octets.truncate(count);
                self.queued += count;
                let delay = Duration::from_millis(self.faults.delay_ms.load(Ordering::SeqCst));
                self.queue.push_back((self.clock.monotonic() + delay, octets));
                true
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }

    /// Passes on what has arrived; false when the connection is over.
    fn give(&mut self) -> bool {
        while let Some((due, octets)) = self.queue.front() {
            if self.clock.monotonic() < (*due).max(self.free_at) {
                return true;
            }
            let reset_after = self.faults.reset_after.load(Ordering::SeqCst);
            let count = u64::try_from(octets.len()).unwrap_or(u64::MAX);
            if self.there && reset_after > 0 && self.passed + count > reset_after {
                let before = usize::try_from(reset_after.saturating_sub(self.passed));
                let part = octets.get(..before.unwrap_or(0)).unwrap_or_default();
                let _ = self.to.write_all(part);
                self.reset();
                return false;
            }
            if self.to.write_all(octets).is_err() {
                return false;
            }
            let rate = self.faults.rate.load(Ordering::SeqCst);
            if let Some(micros) = (count * 1_000_000).checked_div(rate) {
                self.free_at = self.clock.monotonic() + Duration::from_micros(micros);
            }
            self.passed += count;
            self.queued -= octets.len();
            self.queue.pop_front();
        }
        true
    }
}
