//! Empties a mail server's own journal into the sync log: what it tells is durable there before it is
//! removed here.

use std::time::Duration;

use mailtwin_logic::{chain::Chain, entry::Target};
use mailtwin_store::watch::Journal;

use super::{Offer, Sink};

/// How soon the journal is looked at again after it could not be read.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// Targets that are handed over at once.
const TARGETS_MAX: usize = 1000;

/// What emptying came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Emptied {
    /// There is nothing left of what was there.
    Whole,
    /// It has to be tried again.
    Later,
    /// Nothing will ever be taken again.
    Closed,
}

/// Takes what the journal has, makes it durable, and removes it.
pub(super) fn empty(journal: &dyn Journal, sink: &dyn Sink) -> Emptied {
    // A run that was left over comes first, and after it what was noted since.
    for _ in 0..2 {
        let targets = match journal.take() {
            Ok(Some(targets)) => targets,
            Ok(None) => return Emptied::Whole,
            Err(error) => {
                let (error, place) = (Chain(&error), journal.place().display());
                tracing::error!(code = "server-log-unreadable", %error, %place, "cannot read the mail server's sync log; it is tried again");
                return Emptied::Later;
            }
        };
        match keep(&targets, sink) {
            Offer::Taken => {}
            Offer::Busy => return Emptied::Later,
            Offer::Closed => return Emptied::Closed,
        }
        if let Err(error) = journal.done() {
            let (error, place) = (Chain(&error), journal.place().display());
            tracing::error!(code = "server-log-kept", %error, %place, "cannot remove what was read of the mail server's sync log");
            return Emptied::Later;
        }
    }
    Emptied::Whole
}

fn keep(targets: &[Target], sink: &dyn Sink) -> Offer {
    let kept = targets.chunks(TARGETS_MAX).map(|targets| sink.keep(targets));
    kept.reduce(|all, one| if all == Offer::Taken { one } else { all }).unwrap_or(Offer::Taken)
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::{Arc, Mutex},
    };

    use mailtwin_logic::ids::Account;
    use mailtwin_store::StoreError;

    use super::*;

    /// What happened, in order.
    type Story = Arc<Mutex<Vec<String>>>;

    /// Runs of the journal that are still to be told, and whether removing one fails.
    struct Runs(Mutex<Vec<Vec<Target>>>, bool, Story);

    impl Journal for Runs {
        fn place(&self) -> &Path {
            Path::new("/sync/mailtwin")
        }

        fn is_news(&self, name: &[u8]) -> bool {
            name == b"log"
        }

        fn take(&self) -> Result<Option<Vec<Target>>, StoreError> {
            self.2.lock().unwrap().push("take".to_owned());
            Ok(self.0.lock().unwrap().first().cloned())
        }

        fn done(&self) -> Result<(), StoreError> {
            if self.1 {
                return Err(StoreError::NotFound { what: "log-run".into() });
            }
            self.2.lock().unwrap().push("done".to_owned());
            self.0.lock().unwrap().remove(0);
            Ok(())
        }
    }

    struct Log(Offer, Story);

    impl Sink for Log {
        fn offer(&self, _: &[Target]) -> Offer {
            Offer::Closed
        }

        fn keep(&self, targets: &[Target]) -> Offer {
            self.1.lock().unwrap().push(format!("keep {}", targets.len()));
            self.0
        }
    }

    fn told(runs: Vec<Vec<Target>>, offer: Offer, fails: bool) -> (Emptied, String) {
        let story = Story::default();
        let journal = Runs(Mutex::new(runs), fails, Arc::clone(&story));
        let emptied = empty(&journal, &Log(offer, Arc::clone(&story)));
        (emptied, story.lock().unwrap().join(", "))
    }

    #[test]
    fn what_is_told_is_durable_before_it_is_removed() {
        let run = |accounts: usize| -> Vec<Target> {
            let name = |n: usize| Account::new(&format!("u{n}")).unwrap();
            (0..accounts).map(|n| Target::Account(name(n))).collect()
        };
        let whole = |story: &str| (Emptied::Whole, story.to_owned());
        assert_eq!(told(vec![], Offer::Taken, false), whole("take"));
        let two = vec![run(1), run(2)];
        let story = "take, keep 1, done, take, keep 2, done";
        assert_eq!(told(two, Offer::Taken, false), whole(story));
        // Lines that concern nobody are removed all the same.
        assert_eq!(told(vec![run(0)], Offer::Taken, false), whole("take, done, take"));
        let story = "take, keep 1000, keep 1, done, take";
        assert_eq!(told(vec![run(1001)], Offer::Taken, false), whole(story));
        let stays = (Emptied::Closed, "take, keep 1".to_owned());
        assert_eq!(told(vec![run(1)], Offer::Closed, false), stays);
        let later = (Emptied::Later, "take, keep 1".to_owned());
        assert_eq!(told(vec![run(1)], Offer::Busy, false), later);
        assert_eq!(told(vec![run(1)], Offer::Taken, true), later);
    }
}
