//! Time that passes only when everybody waits.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use mailtwin_host::clock::Clock;
use tokio::time::Instant;

/// When simulations begin, in milliseconds since 1970.
const BEGINNING: u64 = 1_800_000_000_000;

/// The runtime's paused time, and a wall clock that can be set.
#[derive(Debug)]
pub struct SimClock {
    start: Instant,
    ahead_ms: AtomicI64,
}

impl SimClock {
    /// A clock that starts now.
    pub fn shared() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), ahead_ms: AtomicI64::new(0) })
    }

    /// Sets the wall clock forward, or back if negative.
    pub fn jump(&self, ms: i64) {
        self.ahead_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn unix_ms(&self) -> u64 {
        let passed = u64::try_from(self.monotonic().as_millis()).unwrap_or(u64::MAX);
        (BEGINNING + passed).saturating_add_signed(self.ahead_ms.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    /// Nobody here may block, so there is nothing to wait for.
    fn pause(&self, _: Duration) {}
}
