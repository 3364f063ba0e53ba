//! What is set aside for one replica: durable before the cursor moves past it, readable by an admin.
//!
//! `<state>/quarantine/<replica>.json` holds one JSON object per line, replaced as a whole.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use mailtwin_disk::{
    DiskError,
    replace::{PRIVATE, replace},
};
use mailtwin_logic::{entry::Target, ids::Account, mailbox::MailboxName};
use serde::{Deserialize, Serialize};

use crate::visit::Trouble;

/// Targets set aside for one replica; with more, the replica is in trouble, not its mailboxes.
pub(crate) const ASIDE_MAX: usize = 10_000;

/// One target set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// Whose.
    pub account: Account,
    /// Which mailbox; absent if it is the account's list or files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mailbox: Option<MailboxName>,
    /// Account and mailbox, printable.
    pub object: String,
    /// One-word code.
    pub reason: String,
    /// The first error, for humans.
    pub first: String,
    /// The last one.
    pub last: String,
    /// How often it was tried.
    pub tries: u32,
    /// When it was set aside, in milliseconds since 1970.
    pub since: u64,
}

impl Aside {
    /// What it is about.
    pub fn target(&self) -> Target {
        match &self.mailbox {
            Some(mailbox) => Target::Mailbox(self.account.clone(), mailbox.clone()),
            None => Target::Account(self.account.clone()),
        }
    }
}

/// All of one replica's.
#[derive(Debug)]
pub(crate) struct Quarantine {
    path: PathBuf,
    aside: BTreeMap<Target, Aside>,
}

/// Why nothing could be set aside.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QuarantineError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There are too many already.
    #[error("{ASIDE_MAX} mailboxes are set aside already: the replica itself must be looked at")]
    Full,
}

impl Quarantine {
    /// Reads the file. A line that is damaged is dropped with a warning: its mailbox differs, and
    /// the comparison at the next greeting finds it again.
    pub(crate) fn open(state_dir: &Path, replica: &str) -> Result<Self, QuarantineError> {
        let dir = state_dir.join("quarantine");
        let path = dir.join(format!("{replica}.json"));
        mailtwin_disk::dir::create(&dir, 0o700)?;
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(DiskError::during("read", &path)(error).into()),
        };
        let mut aside = BTreeMap::new();
        for line in text.lines() {
            match serde_json::from_str::<Aside>(line) {
                Ok(entry) => {
                    aside.insert(entry.target(), entry);
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "dropping a damaged line");
                }
            }
        }
        Ok(Self { path, aside })
    }

    /// Everything set aside.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Aside> {
        self.aside.values()
    }

    /// Sets `target` aside, or notes that it failed again; durable on return. Tells whether the
    /// cause is a new one, which is worth a line in the log.
    pub(crate) fn put(
        &mut self,
        target: &Target,
        trouble: &Trouble,
        now: u64,
    ) -> Result<bool, QuarantineError> {
        let Some(account) = target.account() else {
            return Ok(false); // everything is never set aside: its accounts are
        };
        let mailbox = match target {
            Target::Mailbox(_, mailbox) => Some(mailbox.clone()),
            Target::Store | Target::Account(_) => None,
        };
        let new = Aside {
            account: account.clone(),
            mailbox,
            object: target.to_string(),
            reason: trouble.reason.clone(),
            first: trouble.detail.clone(),
            last: trouble.detail.clone(),
            tries: 1,
            since: now,
        };
        let before = self.aside.get(target).cloned();
        if before.is_none() && self.aside.len() >= ASIDE_MAX {
            return Err(QuarantineError::Full);
        }
        let (entry, told) = match &before {
            Some(old) => {
                let entry = Aside {
                    first: old.first.clone(),
                    since: old.since,
                    tries: old.tries.saturating_add(1),
                    ..new
                };
                (entry, old.reason == trouble.reason)
            }
            None => (new, false),
        };
        self.aside.insert(target.clone(), entry);
        self.save()?;
        Ok(!told)
    }

    /// Takes `target` off the list; tells whether it was on it.
    pub(crate) fn release(&mut self, target: &Target) -> Result<bool, QuarantineError> {
        if self.aside.remove(target).is_none() {
            return Ok(false);
        }
        self.save()?;
        Ok(true)
    }

    fn save(&self) -> Result<(), QuarantineError> {
        let mut text = String::new();
        for entry in self.aside.values() {
            text += &serde_json::to_string(entry).expect("strings and numbers always encode");
            text.push('\n');
        }
        Ok(replace(&self.path, text.as_bytes(), PRIVATE)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_reopening_and_damage() {
        let dir = tempfile::tempdir().unwrap();
        let target =
            Target::Mailbox(Account::new("ann").unwrap(), MailboxName::new(b"W\xffrk").unwrap());
        let trouble = Trouble { reason: "denied".into(), detail: "list /x: denied".into() };
        let mut quarantine = Quarantine::open(dir.path(), "mx2").unwrap();
        assert!(quarantine.put(&target, &trouble, 5).unwrap());
        assert!(!quarantine.put(&target, &trouble, 9).unwrap(), "one line per cause");
        let other = Trouble { reason: "full".into(), ..trouble };
        assert!(quarantine.put(&target, &other, 10).unwrap());

        let path = dir.path().join("quarantine/mx2.json");
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"account\":\n");
        replace(&path, text.as_bytes(), PRIVATE).unwrap();
        let mut quarantine = Quarantine::open(dir.path(), "mx2").unwrap();
        let all: Vec<_> = quarantine.all().cloned().collect();
        assert_eq!((all[0].tries, all[0].since, all[0].reason.as_str()), (3, 5, "full"));
        assert_eq!(all[0].target(), target);
        assert!(quarantine.release(&target).unwrap());
        assert!(!quarantine.release(&target).unwrap());
    }
}
