//! Tells when everything that happened in the store before a moment has been handed to the log.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use mailtwin_disk::clock::Clock;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::watch as state;

use super::{Counts, UNWATCHED_RESCAN};

/// The feed's end: hears wishes, tells how far it is.
#[derive(Debug)]
pub(super) struct Signal {
    wish: Arc<OwnedFd>,
    told: state::Sender<Duration>,
}

/// Waits for the feed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Barrier {
    wish: Arc<OwnedFd>,
    told: state::Receiver<Duration>,
    clock: Arc<dyn Clock>,
    counts: Arc<Counts>,
}

/// Both ends.
pub(super) fn barrier(clock: Arc<dyn Clock>, counts: Arc<Counts>) -> io::Result<(Signal, Barrier)> {
    let wish = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let wish = Arc::new(wish.map_err(io::Error::from)?);
    let (sender, told) = state::channel(Duration::ZERO);
    let signal = Signal { wish: Arc::clone(&wish), told: sender };
    Ok((signal, Barrier { wish, told, clock, counts }))
}

impl Signal {
    /// Becomes readable when somebody waits.
    pub(super) fn wish(&self) -> &OwnedFd {
        &self.wish
    }

    /// A wish has been seen.
    pub(super) fn heard(&self) {
        // Nothing to read is what was wanted.
        let _ = rustix::io::read(&*self.wish, &mut [0_u8; 8]);
    }

    /// Everything that happened before `told` is in the log's hands.
    pub(super) fn tell(&self, told: Duration) {
        self.told.send_if_modified(|last| {
            let news = told > *last;
            *last = (*last).max(told);
            news
        });
    }
}

impl Barrier {
    /// Returns when everything that has happened before now is in the log's hands; never if the feed
    /// has ended.
    pub async fn passed(&self) {
        let now = self.clock.monotonic();
        if self.counts.unwatched() > 0 {
            // What is not watched is looked at every so often.
            tokio::time::sleep(UNWATCHED_RESCAN + Duration::from_secs(1)).await;
        }
        self.told(now).await;
    }

    /// Returns when everything that was seen to happen before now is in the log's hands: as
    /// [`Barrier::passed`], but what is not watched may still be unknown.
    pub async fn seen_passed(&self) {
        self.told(self.clock.monotonic()).await;
    }

    async fn told(&self, now: Duration) {
        let mut told = self.told.clone();
        loop {
            if *told.borrow_and_update() >= now {
                return;
            }
            // The counter cannot be full before the feed has read it.
            let _ = rustix::io::write(&*self.wish, &1_u64.to_ne_bytes());
            if told.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}
