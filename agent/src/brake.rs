//! One replica's brake. What is held, and what an admin has let go, outlives the agent in
//! `<state>/brake/<replica>.json`; decisions are those of [`mailtwin_logic::brake`].

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use mailtwin_disk::{
    DiskError,
    replace::{PRIVATE, replace},
};
use mailtwin_host::clock::Clock;
use mailtwin_logic::{
    brake::{Brake, Engaged, Limits, Look, Scope, Verdict},
    chain::Chain,
    ids::Account,
    mailbox::MailboxName,
};
use serde::{Deserialize, Serialize};

/// What is held, in order.
pub type Holds = Arc<Vec<(Scope, Engaged)>>;

/// The file's shape.
const VERSION: u32 = 1;

#[derive(Debug, Deserialize, Serialize)]
struct Kept {
    version: u32,
    engaged: Vec<(Scope, Engaged)>,
    released: Vec<(Scope, u64)>,
}

/// The brake and its file.
#[derive(Debug)]
pub(crate) struct BrakeFile {
    path: PathBuf,
    replica: String,
    clock: Arc<dyn Clock>,
    inner: Mutex<(Brake, Holds)>,
}

impl BrakeFile {
    /// Reads the file. If it is damaged, nobody knows what was held: then everything is.
    pub(crate) fn open(
        state_dir: &Path,
        replica: &str,
        limits: Limits,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, DiskError> {
        let dir = state_dir.join("brake");
        mailtwin_disk::dir::create(&dir, 0o700)?;
        let path = dir.join(format!("{replica}.json"));
        let mut brake = Brake::new(limits, BTreeMap::new(), BTreeMap::new());
        match std::fs::read(&path) {
            Ok(octets) => {
                let kept = serde_json::from_slice::<Kept>(&octets);
                if let Ok(Kept { version: VERSION, engaged, released }) = kept {
                    let (engaged, released) = (engaged.into_iter(), released.into_iter());
                    brake = Brake::new(limits, engaged.collect(), released.collect());
                } else {
                    let why = format!("{} cannot be read: what it held is unknown", path.display());
                    tracing::error!(code = "brake-engaged", %replica, %why, "the brake holds all deletions: see `replctl brake show`");
                    brake.engage(Scope::Store, clock.unix_ms(), why);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(DiskError::during("read", &path)(error)),
        }
        let holds = holds_of(&brake);
        Ok(Self { path, replica: replica.to_owned(), clock, inner: Mutex::new((brake, holds)) })
    }

    /// What is held.
    pub(crate) fn engaged(&self) -> Holds {
        Arc::clone(&self.lock().1)
    }

    /// So many accounts there are on the master.
    pub(crate) fn set_accounts(&self, accounts: usize) {
        self.lock().0.set_accounts(accounts as u64);
    }

    /// Whether deletions of an account are held.
    pub(crate) fn holds(&self, account: &Account) -> bool {
        self.lock().0.holds(self.clock.unix_ms(), account)
    }

    /// See [`Brake::ask`].
    pub(crate) fn ask(&self, account: &Account, mailbox: &MailboxName, messages: u64) -> Verdict {
        self.lock().0.ask(self.clock.unix_ms(), account, mailbox, messages)
    }

    /// See [`Brake::note`].
    pub(crate) fn note(&self, account: &Account, mailbox: &MailboxName, messages: u64) {
        self.lock().0.note(self.clock.unix_ms(), account, mailbox, messages);
    }

    /// See [`Brake::judge`]. What is held from now on is kept, and told once.
    pub(crate) fn judge(&self, account: &Account, look: &Look) -> Verdict {
        let mut inner = self.lock();
        let (verdict, news) = inner.0.judge(self.clock.unix_ms(), account, look);
        if news.is_empty() {
            return verdict;
        }
        inner.1 = holds_of(&inner.0);
        for scope in news {
            let why = inner.0.engaged().get(&scope).map(|engaged| engaged.why.as_str());
            let (replica, why) = (&self.replica, why.unwrap_or_default());
            tracing::error!(code = "brake-engaged", %replica, %scope, %why, "the brake holds deletions: see `replctl brake show`");
        }
        if let Err(error) = self.save(&inner.0) {
            // It holds for as long as the agent runs; the next one finds the same disappearance.
            tracing::error!(code = "brake-unsaved", replica = %self.replica, error = %Chain(&error), "cannot keep what the brake holds over a restart");
        }
        verdict
    }

    /// Lets `scopes` go, durably first.
    pub(crate) fn release(&self, scopes: &[Scope]) -> Result<(), DiskError> {
        let mut inner = self.lock();
        let (mut next, now) = (inner.0.clone(), self.clock.unix_ms());
        for scope in scopes {
            next.release(now, scope);
        }
        self.save(&next)?;
        *inner = (next.clone(), holds_of(&next));
        Ok(())
    }

    /// Nothing that was let go is left to be replayed.
    pub(crate) fn settle(&self) {
        let mut inner = self.lock();
        if inner.0.settle()
            && let Err(error) = self.save(&inner.0)
        {
            // It ends by itself after a while.
            tracing::warn!(code = "brake-unsaved", replica = %self.replica, error = %Chain(&error), "cannot save what the brake let go");
        }
    }

    fn save(&self, brake: &Brake) -> Result<(), DiskError> {
        let kept = Kept {
            version: VERSION,
            engaged: brake.engaged().clone().into_iter().collect(),
            released: brake.released().clone().into_iter().collect(),
        };
        let text = serde_json::to_vec(&kept).expect("strings and numbers always encode");
        replace(&self.path, &text, PRIVATE)
    }

    fn lock(&self) -> MutexGuard<'_, (Brake, Holds)> {
        self.inner.lock().expect("no panic while it is held")
    }
}

fn holds_of(brake: &Brake) -> Holds {
    Arc::new(brake.engaged().clone().into_iter().collect())
}

#[cfg(test)]
mod tests {
    use mailtwin_host::clock::SystemClock;

    use super::*;

    fn open(dir: &Path) -> BrakeFile {
        BrakeFile::open(dir, "mx2", Limits::default(), SystemClock::shared()).unwrap()
    }

    #[test]
    fn what_is_held_outlives_the_agent_and_damage_holds_everything() {
        let dir = tempfile::tempdir().unwrap();
        let ann = Account::new("ann").unwrap();
        let brake = open(dir.path());
        assert!(brake.engaged().is_empty() && !brake.holds(&ann));
        let scope = Scope::Account(ann.clone());
        brake.lock().0.engage(scope.clone(), 7, "test".into());
        brake.save(&brake.lock().0.clone()).unwrap();
        let brake = open(dir.path());
        assert_eq!(brake.engaged()[0].1.since, 7);
        assert!(brake.holds(&ann));
        brake.release(&[scope]).unwrap();
        assert!(!open(dir.path()).holds(&ann));
        replace(&dir.path().join("brake/mx2.json"), b"{", PRIVATE).unwrap();
        let brake = open(dir.path());
        assert!(brake.holds(&ann) && brake.engaged()[0].0 == Scope::Store);
        brake.release(&[Scope::Store]).unwrap();
        assert!(!brake.holds(&ann));
    }
}
