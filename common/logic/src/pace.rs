//! How fast something goes lately, and how long the rest takes at that pace.

use alloc::collections::VecDeque;
use core::time::Duration;

/// Time between two samples, at least.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Samples kept: the pace is that of so many seconds.
const SAMPLES_MAX: usize = 30;

/// Remembers how far something was at a few moments of the last half minute.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    samples: VecDeque<(Duration, u64)>,
}

impl Pace {
    /// It begins anew, at `count`.
    pub fn begin(&mut self, now: Duration, count: u64) {
        self.samples.clear();
        self.samples.push_back((now, count));
    }

    /// It is at `count` now. Moments that are close to each other are one.
    pub fn note(&mut self, now: Duration, count: u64) {
        let last = self.samples.back().map(|(at, _)| *at);
        if last.is_some_and(|at| now.saturating_sub(at) < SAMPLE_EVERY) {
            return;
        }
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((now, count));
    }

    /// How many there were in a thousand seconds, at the pace of the samples; `None` before there are
    /// two.
    pub fn per_kilosecond(&self) -> Option<u64> {
        let (&(from, first), &(to, last)) = (self.samples.front()?, self.samples.back()?);
        let millis = to.checked_sub(from)?.as_millis();
        let counted = u128::from(last.saturating_sub(first));
        (millis > 0).then(|| u64::try_from(counted * 1_000_000 / millis).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_pace_is_that_of_the_last_half_minute() {
        let mut pace = Pace::default();
        assert_eq!(pace.per_kilosecond(), None);
        pace.begin(s(100), 0);
        pace.note(s(100), 5);
        assert_eq!(pace.per_kilosecond(), None, "one moment tells no pace");
        pace.note(s(102), 10);
        assert_eq!(pace.per_kilosecond(), Some(5000));
        for second in 103..200 {
            pace.note(s(second), 10);
        }
        assert_eq!(pace.per_kilosecond(), Some(0), "it has stood still for long");
        pace.begin(s(200), 7);
        pace.note(s(204), 9);
        assert_eq!(pace.per_kilosecond(), Some(500));
    }

    #[test]
    fn a_count_that_falls_is_no_pace() {
        let mut pace = Pace::default();
        pace.begin(s(0), 10);
        pace.note(s(1), 3);
        assert_eq!(pace.per_kilosecond(), Some(0));
    }
}
