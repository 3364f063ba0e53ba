//! Notices when events come so fast that each wake-up of the feed had better serve several: with
//! one for each event, half of what the feed costs is waking up.

use std::time::Duration;

/// How long events are counted.
const WINDOW: Duration = Duration::from_millis(100);

/// Events in a window that make a flood: a hundred deliveries a second and more.
const EVENTS: usize = 100;

/// How long to let events gather.
const PAUSE: Duration = Duration::from_millis(5);

/// Counts events.
#[derive(Debug, Default)]
pub(super) struct Flood {
    since: Duration,
    events: usize,
    is_on: bool,
}

impl Flood {
    /// `events` were read at `now`; says how long to wait before the next read, if at all.
    pub(super) fn note(&mut self, events: usize, now: Duration) -> Option<Duration> {
        let passed = now.saturating_sub(self.since);
        if passed >= WINDOW {
            self.is_on = self.events >= EVENTS && passed < 2 * WINDOW;
            (self.since, self.events) = (now, 0);
        }
        self.events += events;
        self.is_on.then_some(PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads of `events` each, one each `every` ms for a second from `from`: how many paused?
    fn pauses(flood: &mut Flood, from: u64, events: usize, every: usize) -> usize {
        let times = (from..from + 1000).step_by(every).map(Duration::from_millis);
        times.filter(|now| flood.note(events, *now).is_some()).count()
    }

    #[test]
    fn only_a_flood_is_let_gather_and_only_while_it_lasts() {
        let mut flood = Flood::default();
        assert_eq!(pauses(&mut flood, 1000, 5, 20), 0);
        assert_eq!(pauses(&mut flood, 2000, 5, 2), 450);
        // The window in which it ended still counts.
        assert_eq!(pauses(&mut flood, 3000, 5, 20), 5);
        assert_eq!(pauses(&mut flood, 4000, 5, 2), 450);
        assert!(flood.note(1, Duration::from_hours(1)).is_none());
    }
}
