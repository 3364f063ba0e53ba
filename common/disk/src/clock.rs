//! Time for blocking code. Nothing else in the workspace asks the operating system for it, so that
//! tests and simulation can give their own.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Source of time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Milliseconds since 1970; may jump.
    fn unix_ms(&self) -> u64;

    /// Time since an arbitrary start; never falls.
    fn monotonic(&self) -> Duration;

    /// Waits. Only on threads that may block.
    fn pause(&self, time: Duration);
}

/// The machine's own clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// The clock, ready to be shared.
    #[expect(clippy::disallowed_methods, reason = "the one place that may ask")]
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self { start: Instant::now() })
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that may ask")]
impl Clock for SystemClock {
    fn unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}
