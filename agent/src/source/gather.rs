//! Gathers what is dirty for a few milliseconds, so that one delivery becomes one entry.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mailtwin_logic::entry::Target;

/// A target is reported this long after its last event ...
pub(super) const QUIET: Duration = Duration::from_millis(3);

/// ... and at most this long after its first.
pub(super) const LONGEST: Duration = Duration::from_millis(10);

/// Targets that wait for the log; with more, everything is reported instead.
const OUTBOX_MAX: usize = 20_000;

/// When something is due that has happened at least once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    first: Duration,
    last: Duration,
}

impl Due {
    pub(super) fn new(now: Duration) -> Self {
        Self { first: now, last: now }
    }

    pub(super) fn again(&mut self, now: Duration) {
        self.last = now;
    }

    pub(super) fn at(self) -> Duration {
        (self.last + QUIET).min(self.first + LONGEST)
    }
}

/// What is dirty and has not been taken by the log yet.
#[derive(Debug, Default)]
pub(super) struct Gather {
    waiting: BTreeMap<Target, Due>,
    outbox: BTreeSet<Target>,
}

impl Gather {
    /// `target` is dirty; more events may follow.
    pub(super) fn soon(&mut self, target: Target, now: Duration) {
        self.waiting.entry(target).or_insert_with(|| Due::new(now)).again(now);
    }

    /// `target` is dirty, and what there was to happen has happened.
    pub(super) fn now(&mut self, target: Target) {
        self.waiting.remove(&target);
        if self.outbox.len() >= OUTBOX_MAX {
            self.outbox.clear();
            self.outbox.insert(Target::Store);
        } else {
            self.outbox.insert(target);
        }
    }

    /// Moves what is due by `now` to what is to be sent.
    pub(super) fn ripen(&mut self, now: Duration) {
        let ripe = |(target, due): (&Target, &Due)| (due.at() <= now).then(|| target.clone());
        let due: Vec<Target> = self.waiting.iter().filter_map(ripe).collect();
        for target in due {
            self.now(target);
        }
    }

    /// When [`Gather::ripen`] has something to do.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.waiting.values().map(|due| due.at()).min()
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

    fn account(name: &str) -> Target {
        Target::Account(Account::new(name).unwrap())
    }

    #[test]
    fn waits_for_quiet_but_not_for_ever() {
        let mut gather = Gather::default();
        gather.soon(account("a"), ms(0));
        assert_eq!(gather.deadline(), Some(ms(3)));
        for at in [2, 4, 6, 8] {
            gather.soon(account("a"), ms(at));
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
        gather.soon(account("a"), ms(0));
        gather.now(account("a"));
        assert_eq!((gather.outbox(), gather.deadline()), (vec![account("a")], None));
    }

    #[test]
    fn too_much_becomes_everything() {
        let mut gather = Gather::default();
        for number in 0..=OUTBOX_MAX {
            gather.now(account(&number.to_string()));
        }
        assert_eq!(gather.outbox(), [Target::Store]);
    }
}
