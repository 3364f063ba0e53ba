//! Gathers what is dirty for a few milliseconds, so that one delivery becomes one entry, and paces
//! what is dirty all the time, so that a hundred deliveries into one mailbox become a few.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mailtwin_logic::entry::Target;

/// A target is reported this long after its last event ...
pub(super) const QUIET: Duration = Duration::from_millis(3);

/// ... and at most this long after its first.
pub(super) const LONGEST: Duration = Duration::from_millis(10);

/// A target is reported once in this time in the long run, however often it changes: each report
/// costs both ends a look at the mailbox and a few syncs, which the mail server next to them needs
/// more when mail comes in faster than this.
const PACE: Duration = Duration::from_millis(250);

/// Reports that a target may be ahead of its pace.
const AHEAD: u32 = 4;

/// In a flood a target is reported once in this time, and none is ahead: the machine has no processor
/// to spare then, and what waits for a turn is carried over together.
const PACE_IN_FLOOD: Duration = Duration::from_millis(400);

/// Targets that wait for the log; with more, everything is reported instead.
const OUTBOX_MAX: usize = 20_000;

/// When something was read that had happened before: events wait in the kernel's queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// It happened after this.
    pub(super) after: Duration,
    /// It was read now.
    pub(super) now: Duration,
}

/// When something is due that has happened at least once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    after: Duration,
    first: Duration,
    last: Duration,
}

impl Due {
    pub(super) fn new(seen: Seen) -> Self {
        Self { after: seen.after, first: seen.now, last: seen.now }
    }

    pub(super) fn again(&mut self, now: Duration) {
        self.last = now;
    }

    /// It happened for the first time after this.
    pub(super) fn after(self) -> Duration {
        self.after
    }

    pub(super) fn at(self) -> Duration {
        (self.last + QUIET).min(self.first + LONGEST)
    }
}

/// What is dirty and has not been taken by the log yet.
#[derive(Debug, Default)]
pub(super) struct Gather {
    waiting: BTreeMap<Target, Wait>,
    outbox: BTreeSet<Target>,
    reported: BTreeMap<Target, Reported>,
    is_flooded: bool,
}

/// A target that was reported lately.
#[derive(Clone, Copy, Debug)]
struct Reported {
    last: Duration,
    /// When its next report would be on pace.
    pace: Duration,
}

/// What a target waits for.
#[derive(Clone, Copy, Debug)]
struct Wait {
    /// More events; nothing if what there was to happen has happened.
    quiet: Option<Due>,
    /// Its turn.
    pace: Duration,
    /// It changed for the first time after this.
    after: Duration,
}

impl Wait {
    fn at(self) -> Duration {
        self.quiet.map_or(Duration::ZERO, Due::at).max(self.pace)
    }
}

impl Gather {
    /// `target` is dirty; more events may follow.
    pub(super) fn soon(&mut self, target: Target, seen: Seen) {
        let pace = self.turn(&target);
        let wait = self.waiting.entry(target);
        let wait = wait.or_insert_with(|| Wait { quiet: None, pace, after: seen.after });
        wait.quiet.get_or_insert_with(|| Due::new(seen)).again(seen.now);
    }

    /// `target` is dirty, and what there was to happen has happened.
    pub(super) fn now(&mut self, target: Target, seen: Seen) {
        let pace = self.turn(&target);
        if pace <= seen.now {
            self.waiting.remove(&target);
            self.report(target, seen.now);
        } else {
            let after = self.waiting.get(&target).map_or(seen.after, |wait| wait.after);
            self.waiting.insert(target, Wait { quiet: None, pace, after });
        }
    }

    /// Moves what is due by `now` to what is to be sent.
    pub(super) fn ripen(&mut self, now: Duration) {
        let ripe = |(target, wait): (&Target, &Wait)| (wait.at() <= now).then(|| target.clone());
        let due: Vec<Target> = self.waiting.iter().filter_map(ripe).collect();
        for target in due {
            self.waiting.remove(&target);
            self.report(target, now);
        }
        self.reported.retain(|_, it| it.pace.max(it.last + PACE_IN_FLOOD) > now);
    }

    /// Whether events come so fast that everything has to wait for its turn.
    pub(super) fn flooded(&mut self, is_flooded: bool) {
        self.is_flooded = is_flooded;
    }

    /// When `target` may be reported next. All that must wait take the same turns, so that their
    /// changes share entries' and messages' syncs.
    fn turn(&self, target: &Target) -> Duration {
        let Some(Reported { last, pace }) = self.reported.get(target) else {
            return Duration::ZERO;
        };
        let (due, every) = if self.is_flooded {
            (*last + PACE_IN_FLOOD, PACE_IN_FLOOD)
        } else {
            (pace.saturating_sub(PACE * AHEAD), PACE)
        };
        let turns = due.as_millis() / every.as_millis();
        every.saturating_mul(u32::try_from(turns).unwrap_or(u32::MAX))
    }

    fn report(&mut self, target: Target, now: Duration) {
        let none = Reported { last: now, pace: now };
        let reported = self.reported.entry(target.clone()).or_insert(none);
        *reported = Reported { last: now, pace: reported.pace.max(now) + PACE };
        if self.outbox.len() >= OUTBOX_MAX {
            self.outbox.clear();
            self.outbox.insert(Target::Store);
        } else {
            self.outbox.insert(target);
        }
    }

    /// When [`Gather::ripen`] has something to do.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.waiting.values().map(|wait| wait.at()).min()
    }

    /// What waits changed after this.
    pub(super) fn after(&self) -> Option<Duration> {
        self.waiting.values().map(|wait| wait.after).min()
    }

    /// What is to be sent now.
    pub(super) fn outbox(&self) -> Vec<Target> {
        self.outbox.iter().cloned().collect()
    }

    /// All of [`Gather::outbox`] has been taken.
    pub(super) fn sent(&mut self) {
        self.outbox.clear();
    }

    pub(super) fn has_mail(&self) -> bool {
        !self.outbox.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use mailtwin_logic::ids::Account;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Read at `now`, 5 ms after the read before.
    fn seen(now: Duration) -> Seen {
        Seen { after: now.saturating_sub(ms(5)), now }
    }

    fn account(name: &str) -> Target {
        Target::Account(Account::new(name).unwrap())
    }

    #[test]
    fn waits_for_quiet_but_not_for_ever() {
        let mut gather = Gather::default();
        gather.soon(account("a"), seen(ms(0)));
        assert_eq!(gather.deadline(), Some(ms(3)));
        for at in [2, 4, 6, 8] {
            gather.soon(account("a"), seen(ms(at)));
        }
        assert_eq!(gather.deadline(), Some(ms(10)));
        gather.ripen(ms(9));
        assert!(!gather.has_mail());
        gather.ripen(ms(10));
        assert_eq!((gather.outbox(), gather.deadline()), (vec![account("a")], None));
        gather.sent();
        assert!(!gather.has_mail());
    }

    #[test]
    fn what_is_done_goes_at_once_and_only_once() {
        let mut gather = Gather::default();
        gather.soon(account("a"), seen(ms(0)));
        gather.now(account("a"), seen(ms(1)));
        assert_eq!((gather.outbox(), gather.deadline()), (vec![account("a")], None));
    }

    #[test]
    fn what_waits_may_have_happened_any_time_after_the_read_before() {
        let mut gather = Gather::default();
        gather.soon(account("a"), seen(ms(20)));
        gather.soon(account("a"), seen(ms(22)));
        gather.soon(account("b"), seen(ms(23)));
        assert_eq!(gather.after(), Some(ms(15)));
        gather.ripen(ms(25));
        assert_eq!(gather.after(), Some(ms(18)));
        // Ahead of its pace: what is done waits, too.
        for _ in 0..=AHEAD {
            gather.now(account("b"), seen(ms(26)));
        }
        gather.now(account("b"), seen(ms(27)));
        assert_eq!((gather.after(), gather.outbox().len()), (Some(ms(22)), 2));
        gather.ripen(ms(26) + PACE * (AHEAD + 1));
        assert_eq!(gather.after(), None);
    }

    #[test]
    fn too_much_becomes_everything() {
        let mut gather = Gather::default();
        for number in 0..=OUTBOX_MAX {
            gather.now(account(&number.to_string()), seen(ms(0)));
        }
        assert_eq!(gather.outbox(), [Target::Store]);
    }

    #[test]
    fn what_is_dirty_all_the_time_is_reported_on_pace() {
        let mut gather = Gather::default();
        let mut reports = Vec::new();
        // Something every 10 ms for twenty turns, now gathered, now complete.
        let end = PACE * 20;
        for at in (0..).map(|n| ms(10) * n).take_while(|at| *at < end) {
            if at.as_millis() / 10 % 2 == 0 {
                gather.soon(account("a"), seen(at));
            } else {
                gather.now(account("a"), seen(at));
            }
            let due = gather.deadline().filter(|due| *due < at + ms(10));
            gather.ripen(due.unwrap_or(at));
            if gather.has_mail() {
                reports.push(due.unwrap_or(at));
                gather.sent();
            }
        }
        assert!(gather.deadline().is_some(), "the last change waits for its turn");
        let early = reports.iter().filter(|at| **at < ms(100)).count();
        assert_eq!(early, 5, "{reports:?}");
        assert_eq!(reports.len(), 5 + 20 - 1, "{reports:?}");
        // One that is rare never waits, and after a while neither does this one.
        gather.now(account("b"), seen(end));
        assert_eq!(gather.outbox(), [account("b")]);
        gather.ripen(end + PACE * AHEAD);
        gather.sent();
        gather.now(account("a"), seen(end * 2));
        assert_eq!(gather.outbox(), [account("a")]);
        gather.ripen(end * 2 + PACE_IN_FLOOD);
        assert!(gather.reported.is_empty());
    }

    #[test]
    fn in_a_flood_everything_takes_the_same_turns() {
        let mut gather = Gather::default();
        gather.flooded(true);
        let mut reports = Vec::new();
        for at in (1000..3000).step_by(10).map(ms) {
            gather.now(account(if at.as_millis() % 20 == 0 { "a" } else { "b" }), seen(at));
            gather.ripen(at);
            if gather.has_mail() {
                reports.push((at, gather.outbox().len()));
                gather.sent();
            }
        }
        let both = [1200, 1600, 2000, 2400, 2800].map(|at| (ms(at), 2));
        assert_eq!(reports[..2], [(ms(1000), 1), (ms(1010), 1)]);
        assert_eq!(reports[2..], both);
        // When it is over, nothing waits that is rare.
        gather.flooded(false);
        gather.now(account("a"), seen(ms(3000)));
        assert_eq!(gather.outbox(), [account("a")]);
    }
}
