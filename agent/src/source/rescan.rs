//! When which account is looked at although nothing was heard of it: pure pacing.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use mailtwin_logic::ids::Account;

/// Accounts looked at in one go during the start-up scan, before events are read again.
const BURST: usize = 16;

/// One account after the other: all at once in the beginning, then spread over the period.
#[derive(Debug)]
pub(super) struct Rescan {
    period: Duration,
    queue: VecDeque<Account>,
    pace: Pace,
    /// Accounts that are not watched, and when they are due as well.
    unwatched: BTreeSet<Account>,
    unwatched_every: Duration,
    unwatched_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// The start-up scan, or one after an overflow: no pause.
    Fast,
    /// The periodic one: the next account is due at this time.
    Slow { next: Duration, step: Duration },
}

/// What is to be done now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Look at these.
    pub(super) accounts: Vec<Account>,
    /// A new round starts: list all accounts and hand them to [`Rescan::round`].
    pub(super) list: bool,
}

impl Rescan {
    pub(super) fn new(period: Duration, unwatched_every: Duration) -> Self {
        Self {
            period,
            queue: VecDeque::new(),
            pace: Pace::Fast,
            unwatched: BTreeSet::new(),
            unwatched_every,
            unwatched_at: None,
        }
    }

    /// Looks at all of `accounts` as fast as it goes.
    pub(super) fn rush(&mut self, accounts: impl IntoIterator<Item = Account>) {
        self.queue = accounts.into_iter().collect();
        self.pace = Pace::Fast;
    }

    /// Looks at all of `accounts` within the period that starts at `now`.
    pub(super) fn round(&mut self, accounts: impl IntoIterator<Item = Account>, now: Duration) {
        self.queue = accounts.into_iter().collect();
        // One step more than accounts: the last one is the listing that starts the next round.
        let steps = u32::try_from(self.queue.len()).unwrap_or(u32::MAX).saturating_add(1);
        let step = self.period / steps;
        self.pace = Pace::Slow { next: now + step, step };
    }

    /// Nothing can be looked at: lists the accounts again in a while.
    pub(super) fn again(&mut self, now: Duration) {
        self.queue.clear();
        let step = self.unwatched_every;
        self.pace = Pace::Slow { next: now + step, step };
    }

    /// Whether the start-up scan is under way.
    pub(super) fn is_rushing(&self) -> bool {
        self.pace == Pace::Fast
    }

    /// `account` can or cannot be watched in full.
    pub(super) fn watched(&mut self, account: &Account, is_watched: bool, now: Duration) {
        if is_watched {
            self.unwatched.remove(account);
        } else {
            self.unwatched.insert(account.clone());
        }
        self.unwatched_at = match self.unwatched_at {
            _ if self.unwatched.is_empty() => None,
            None => Some(now + self.unwatched_every),
            set => set,
        };
    }

    /// Accounts that cannot be watched in full.
    pub(super) fn unwatched(&self) -> usize {
        self.unwatched.len()
    }

    /// When [`Rescan::due`] has something to do.
    pub(super) fn deadline(&self) -> Duration {
        let next = match self.pace {
            Pace::Fast => Duration::ZERO,
            Pace::Slow { next, .. } => next,
        };
        self.unwatched_at.map_or(next, |at| at.min(next))
    }

    pub(super) fn due(&mut self, now: Duration) -> Work {
        let mut work = Work::default();
        match &mut self.pace {
            Pace::Fast => {
                let burst = self.queue.len().min(BURST);
                work.accounts.extend(self.queue.drain(..burst));
                if self.queue.is_empty() {
                    work.list = true;
                }
            }
            Pace::Slow { next, step } => {
                while *next <= now && !work.list && work.accounts.len() < BURST {
                    match self.queue.pop_front() {
                        Some(account) => work.accounts.push(account),
                        None => work.list = true,
                    }
                    *next += *step;
                }
                // After a long sleep of the machine there is nothing to catch up on.
                *next = (*next).max(now.saturating_sub(*step));
            }
        }
        if self.unwatched_at.is_some_and(|at| at <= now) {
            work.accounts.extend(self.unwatched.iter().cloned());
            self.unwatched_at = Some(now + self.unwatched_every);
        }
        work
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn accounts(count: usize) -> Vec<Account> {
        (0..count).map(|number| Account::new(&format!("u{number:03}")).unwrap()).collect()
    }

    #[test]
    fn a_store_that_cannot_be_looked_at_is_tried_again_soon() {
        let mut rescan = Rescan::new(secs(10_000), secs(30));
        rescan.rush([]);
        assert!(rescan.due(secs(0)).list);
        rescan.again(secs(0));
        assert_eq!(rescan.deadline(), secs(30));
        assert_eq!(rescan.due(secs(29)), Work::default());
        assert!(rescan.due(secs(30)).list);
    }

    #[test]
    fn first_everything_at_once_then_spread_over_the_period() {
        let mut rescan = Rescan::new(secs(100), secs(10));
        rescan.rush(accounts(40));
        let mut seen = Vec::new();
        loop {
            assert_eq!(rescan.deadline(), Duration::ZERO);
            let work = rescan.due(secs(5));
            assert!(work.accounts.len() <= BURST);
            seen.extend(work.accounts);
            if work.list {
                break;
            }
        }
        assert_eq!(seen, accounts(40));
        rescan.round(accounts(9), secs(5));
        assert!(!rescan.is_rushing());
        for (index, account) in accounts(9).into_iter().enumerate() {
            let at = secs(15 + 10 * index as u64);
            assert_eq!(rescan.deadline(), at);
            assert_eq!(rescan.due(secs(14 + 10 * index as u64)), Work::default());
            assert_eq!(rescan.due(at).accounts, [account]);
        }
        assert_eq!(rescan.due(secs(105)), Work { accounts: vec![], list: true });
    }

    #[test]
    fn what_is_not_watched_is_looked_at_more_often() {
        let mut rescan = Rescan::new(secs(1000), secs(10));
        let all = accounts(2);
        rescan.round(all.clone(), secs(0));
        rescan.watched(&all[1], false, secs(0));
        assert_eq!((rescan.deadline(), rescan.unwatched()), (secs(10), 1));
        assert_eq!(rescan.due(secs(10)).accounts, [all[1].clone()]);
        assert_eq!(rescan.deadline(), secs(20));
        rescan.watched(&all[1], true, secs(12));
        assert_eq!(rescan.deadline(), secs(1000) / 3);
    }

    #[test]
    fn a_long_sleep_is_not_caught_up_on() {
        let mut rescan = Rescan::new(secs(100), secs(10));
        rescan.round(accounts(99), secs(0));
        let work = rescan.due(secs(86400));
        assert_eq!(work.accounts.len(), BURST);
        assert!(rescan.deadline() >= secs(86399));
    }
}
