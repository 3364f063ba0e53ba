//! Waits between attempts: exponential with jitter, without end, until there is progress.

use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff as _};

/// First wait.
const FIRST: Duration = Duration::from_millis(100);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(30);

/// One policy; [`Retry::reset`] it when there is progress, not when there is a mere connection.
#[derive(Debug)]
pub struct Retry {
    policy: ExponentialBackoff,
}

impl Default for Retry {
    fn default() -> Self {
        Self::new()
    }
}

impl Retry {
    /// Begins with a short wait.
    pub fn new() -> Self {
        let policy = ExponentialBackoffBuilder::new()
            .with_initial_interval(FIRST)
            .with_max_interval(LONGEST)
            .with_max_elapsed_time(None) // the default gives up after 15 minutes
            .build();
        Self { policy }
    }

    /// How long to wait before the next attempt.
    pub fn next_wait(&mut self) -> Duration {
        self.policy.next_backoff().unwrap_or(LONGEST)
    }

    /// There was progress: the next wait is short again.
    pub fn reset(&mut self) {
        self.policy.reset();
    }
}
