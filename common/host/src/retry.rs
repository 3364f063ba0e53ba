//! Waits between attempts: exponential with jitter, without end, until there is progress.

use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff as _};

/// First wait.
const FIRST: Duration = Duration::from_millis(100);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(30);

/// One policy; [`Retry::reset`] it when there is progress, not when there is a mere connection.
#[derive(Clone, Debug)]
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

    /// The same without jitter: for a simulation, in which nothing is left to chance.
    #[must_use]
    pub fn steady(mut self) -> Self {
        self.policy.randomization_factor = 0.0;
        self
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_never_end_and_begin_again_after_progress() {
        let mut retry = Retry::new();
        let jittered = |wait: Duration| wait.mul_f64(0.5)..=wait.mul_f64(1.5);
        assert!(jittered(FIRST).contains(&retry.next_wait()));
        let waits: Vec<Duration> = (0..10_000).map(|_| retry.next_wait()).collect();
        assert!(waits.iter().all(|wait| *wait <= *jittered(LONGEST).end()));
        assert!(waits[100..].iter().all(|wait| jittered(LONGEST).contains(wait)));
        assert!(waits[100..].iter().any(|wait| *wait != waits[100]), "no jitter");
        retry.reset();
        assert!(jittered(FIRST).contains(&retry.next_wait()));
        let mut steady = Retry::new().steady();
        assert_eq!(steady.next_wait(), FIRST);
    }
}
