//! Holds a rate: whoever reads ahead of it waits.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

/// Octets asked for at once where no rate is set.
const PART_OCTETS: u64 = 64 << 20;
/// Parts per second where one is.
const PARTS_PER_SECOND: u64 = 4;
/// Fewest octets asked for at once: less is all overhead.
const PART_OCTETS_MIN: u64 = 64 << 10;

/// One side's rate.
#[derive(Debug)]
pub(super) struct Pace {
    rate: Option<u64>,
    begun: Mutex<Option<(Instant, u64)>>,
}

impl Pace {
    /// Of `rate` octets per second, or as fast as it goes.
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.map(|rate| rate.max(1)), begun: Mutex::default() }
    }

    /// How many octets to ask for at once.
    pub(super) fn part(&self) -> u64 {
        self.rate.map_or(PART_OCTETS, |rate| (rate / PARTS_PER_SECOND).max(PART_OCTETS_MIN))
    }

    /// Notes that `octets` were read, and waits until they may have been.
    pub(super) async fn took(&self, octets: u64) {
        let Some(rate) = self.rate else { return };
        let until = {
            let mut begun = self.begun.lock().expect("no panic while it is held");
            let (since, sum) = begun.get_or_insert_with(|| (Instant::now(), 0));
            *sum = sum.saturating_add(octets);
            *since + due(*sum, rate)
        };
        tokio::time::sleep_until(until).await;
    }
}

/// When `octets` have been read at `rate` octets per second.
fn due(octets: u64, rate: u64) -> Duration {
    let millis = u128::from(octets) * 1000 / u128::from(rate.max(1));
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_due_at_the_rate() {
        assert_eq!(due(0, 1_000_000), Duration::ZERO);
        assert_eq!(due(5_000_000, 1_000_000), Duration::from_secs(5));
        assert_eq!(due(u64::MAX, 1), Duration::from_millis(u64::MAX));
    }

    #[tokio::test]
    async fn without_a_rate_nobody_waits() {
        let free = Pace::new(None);
        free.took(u64::MAX).await;
        assert_eq!((free.part(), Pace::new(Some(1_000_000)).part()), (PART_OCTETS, 250_000));
    }
}
