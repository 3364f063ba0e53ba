//! The change feed: says which accounts and mailboxes may have changed, at least once each.
//!
//! ```text
//! store's directories ─inotify─▶ watcher thread ─▶ gathered and paced per target ─▶ sync log
//!                                  ▲ start-up scan, paced periodic rescan
//! ```
//!
//! Events are hints: all they say is "look here". What they miss, because the agent was away, the
//! kernel's queue overflowed, or there were not enough watches, a scan finds: at the start, after
//! an overflow, and every so often. An account is watched first and reported afterwards, so that
//! nothing can happen unseen in between. A mail server that keeps a journal of its own is asked there
//! instead: the journal is emptied once what it told is durable in our log. Nothing wakes the thread while nothing happens, but the
//! periodic rescan.

mod barrier;
mod flood;
mod gather;
mod journal;
mod places;
mod rescan;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use mailtwin_disk::clock::Clock;
use mailtwin_logic::entry::Target;
use mailtwin_store::MailStore;
use rustix::event::{EventfdFlags, eventfd};

use crate::log::{Log, LogError, Ticket};
pub use barrier::Barrier;
use tokio::sync::watch as state;

/// How the feed works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Every account is looked at once in this time, whether or not it seems to have changed.
    pub rescan: Duration,
    /// Directories watched at most; accounts that do not fit are looked at every
    /// [`UNWATCHED_RESCAN`]. The kernel's own limit counts besides.
    pub watches_max: usize,
}

/// How often accounts are looked at that could not be watched.
pub const UNWATCHED_RESCAN: Duration = Duration::from_secs(30);

impl Default for Options {
    fn default() -> Self {
        Self { rescan: Duration::from_hours(6), watches_max: usize::MAX }
    }
}

/// What the feed has been through, for metrics.
#[derive(Debug, Default)]
pub struct Counts {
    overflows: AtomicU64,
    refused: AtomicU64,
    watches: AtomicU64,
    unwatched: AtomicU64,
}

impl Counts {
    /// Times the kernel's queue overflowed and everything was looked at.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Relaxed)
    }

    /// Directories that could not be watched for want of watches, ever.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Directories watched now.
    pub fn watches(&self) -> u64 {
        self.watches.load(Ordering::Relaxed)
    }

    /// Accounts that are not watched in full now.
    pub fn unwatched(&self) -> u64 {
        self.unwatched.load(Ordering::Relaxed)
    }
}

/// Takes what the feed says.
pub trait Sink: Send + 'static {
    /// Takes `targets`, or says why not. Must not wait.
    fn offer(&self, targets: &[Target]) -> Offer;

    /// Takes `targets` and waits until they are durable.
    fn keep(&self, targets: &[Target]) -> Offer;
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// The targets are taken care of.
    Taken,
    /// They must be offered again in a while.
    Busy,
    /// Nothing will ever be taken again.
    Closed,
}

impl Sink for Arc<Log> {
    fn offer(&self, targets: &[Target]) -> Offer {
        match self.submit(targets.to_vec()) {
            Ok(_) => Offer::Taken,
            Err(LogError::Busy) => Offer::Busy,
            Err(_) => Offer::Closed,
        }
    }

    fn keep(&self, targets: &[Target]) -> Offer {
        let durable = self.submit_blocking(targets.to_vec()).and_then(Ticket::wait);
        if durable.is_ok() { Offer::Taken } else { Offer::Closed }
    }
}

/// Why the feed did not start.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The kernel gives no inotify instance.
    #[error(
        "watch the store: the user has no inotify instance left; raise \
         fs.inotify.max_user_instances"
    )]
    Instances,
    /// The operating system refused.
    #[error("watch the store")]
    Io(#[from] io::Error),
}

/// The running feed. Dropping it ends its thread.
#[derive(Debug)]
pub struct Source {
    counts: Arc<Counts>,
    watching: state::Receiver<bool>,
    barrier: Barrier,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Source {
    /// Starts watching `store` and telling `sink`. A store whose changes show nowhere is only
    /// scanned.
    pub fn start(
        store: Arc<dyn MailStore>,
        sink: impl Sink,
        options: Options,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SourceError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = Arc::new(stop.map_err(io::Error::from)?);
        let counts = Arc::new(Counts::default());
        let (watching, receiver) = state::channel(false);
        let (signal, barrier) = barrier::barrier(Arc::clone(&clock), Arc::clone(&counts))?;
        let parts = watch::Parts {
            store,
            sink: Box::new(sink),
            options,
            clock,
            stop: Arc::clone(&stop),
            barrier: signal,
            counts: Arc::clone(&counts),
            watching,
        };
        let watcher = watch::Watcher::new(parts)?;
        let thread =
            std::thread::Builder::new().name("source".to_string()).spawn(move || watcher.run())?;
        Ok(Self { counts, watching: receiver, barrier, stop, thread: Some(thread) })
    }

    /// Counts for metrics; outlive the feed.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Tells when what has happened so far is in the log.
    pub fn barrier(&self) -> Barrier {
        self.barrier.clone()
    }

    /// Becomes true once every account is watched and has been reported for the first time.
    pub fn watching(&self) -> state::Receiver<bool> {
        self.watching.clone()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // The counter cannot be full after one write, and the thread ends at any value.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed.
            let _ = thread.join();
        }
    }
}
