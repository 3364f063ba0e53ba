//! Keeps out of Cyrus's way while it makes a user's first list of subscriptions.
//!
//! Cyrus (3.6 to 3.12, `mboxlist_opensubs` in its `imap/mboxlist.c`) makes the list as an empty file
//! and then writes its version into it. Who opens it in between, to read only, takes it for one of an
//! older version and converts it: the subscription that the list was made for is refused, lost or
//! misnamed, and of the latter two nobody hears. csync's `GET META` opens it. Clients subscribe to a mailbox
//! right after they made it, which is when we would look; so a user without a list is looked at once
//! nothing more is heard of them.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use mailtwin_disk::clock::Clock;
use mailtwin_logic::ids::Account;

/// Nothing was heard of a user for so long.
const STILL: Duration = Duration::from_secs(1);

/// Who never is still is looked at all the same.
const LONGEST: Duration = Duration::from_secs(5);

/// Who was heard of lately, and when, by the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct Stillness {
    heard: Mutex<BTreeMap<Account, Duration>>,
}

impl Stillness {
    /// Something about `accounts` themselves, not only about messages, may have changed.
    pub(super) fn hear(&self, accounts: impl Iterator<Item = Account>, now: Duration) {
        let mut heard = super::lock(&self.heard);
        heard.retain(|_, at| *at + STILL > now);
        heard.extend(accounts.map(|account| (account, now)));
    }

    /// Waits until nothing has been heard of `account` for a while, but not for ever.
    pub(super) fn wait(&self, account: &Account, clock: &dyn Clock) {
        let end = clock.monotonic() + LONGEST;
        loop {
            let still = super::lock(&self.heard).get(account).map(|at| *at + STILL);
            let now = clock.monotonic();
            match still.and_then(|still| still.min(end).checked_sub(now)) {
                Some(left) if !left.is_zero() => clock.pause(left),
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Time passes with pauses only; of `busy` something is heard in each.
    #[derive(Debug)]
    struct Pauses<'a>(&'a Stillness, Mutex<Duration>, Option<Account>);

    impl Clock for Pauses<'_> {
        fn unix_ms(&self) -> u64 {
            0
        }

        fn monotonic(&self) -> Duration {
            *self.1.lock().unwrap()
        }

        fn pause(&self, time: Duration) {
            *self.1.lock().unwrap() += time / 2 + Duration::from_millis(1);
            self.0.hear(self.2.clone().into_iter(), self.monotonic());
        }
    }

    #[test]
    fn who_was_heard_of_is_waited_for_and_nobody_for_ever() {
        let (ann, ben) = (Account::new("ann").unwrap(), Account::new("ben").unwrap());
        let stillness = Stillness::default();
        let start = Duration::from_secs(9);
        stillness.hear([ann.clone()].into_iter(), start);
        let waited = |account: &Account, busy: Option<&Account>| {
            let clock = Pauses(&stillness, Mutex::new(start), busy.cloned());
            stillness.wait(account, &clock);
            clock.monotonic().saturating_sub(start)
        };
        assert_eq!(waited(&ben, None), Duration::ZERO);
        let once = waited(&ann, None);
        assert!(once >= STILL && once < STILL * 2, "{once:?}");
        stillness.hear([ann.clone()].into_iter(), start);
        let long = waited(&ann, Some(&ann));
        assert!(long >= LONGEST && long < LONGEST + STILL, "{long:?}");
    }
}
