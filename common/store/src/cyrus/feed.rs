//! Our own channel of the server's sync log, taken without losing a line.
//!
//! ```text
//! log ──rename──▶ log-run ── lock, unlock ── read to the end ──▶ our sync log, durable ──▶ unlink
//! ```
//!
//! Whoever opened `log` before the rename has written when the lock is ours; later ones see that the
//! file was moved, and begin a new one. A `log-run` that is there already was not finished: it comes
//! first.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::Path,
};

use mailtwin_cyrus::{
    journal::{self, Dirty},
    names::{self, Named},
};
use mailtwin_logic::{entry::Target, ids::Account, mailbox::MailboxName};
use rustix::fs::FlockOperation;

use super::Cyrus;
use crate::{
    StoreError,
    maildir::fsys::{Dir, during},
    watch::Journal,
};

const LOG: &str = "log";
const RUN: &str = "log-run";

/// Octets of the log that are read; with more, everything is looked at.
const OCTETS_MAX: u64 = 64 << 20;

/// Makes the channel's directory, as Cyrus would with the first change.
pub(super) fn prepare(channel: &Path) -> Result<(), StoreError> {
    if Dir::open(channel)?.is_some() {
        return Ok(());
    }
    let Some(parent) = channel.parent().and_then(|parent| Dir::open(parent).transpose()) else {
        return Err(StoreError::NoStore { path: channel.to_path_buf() });
    };
    let parent = parent?;
    let name = channel.file_name().map(std::ffi::OsStr::as_bytes).unwrap_or_default();
    parent.make(name, parent.owner()?.without_others()).map(drop)
}

impl Journal for Cyrus {
    fn place(&self) -> &Path {
        &self.server.options.channel
    }

    fn is_news(&self, name: &[u8]) -> bool {
        name == LOG.as_bytes()
    }

    fn take(&self) -> Result<Option<Vec<Target>>, StoreError> {
        let (log, run) = (self.place().join(LOG), self.place().join(RUN));
        if !run.try_exists().map_err(during("look at", &run))? {
            match fs::rename(&log, &run) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                other => other.map_err(during("rename", &log))?,
            }
        }
        // Cyrus takes POSIX locks, and those for writing need a file open for writing.
        let file = OpenOptions::new().read(true).write(true).open(&run);
        let mut file = file.map_err(during("open", &run))?;
        for operation in [FlockOperation::LockExclusive, FlockOperation::Unlock] {
            rustix::fs::fcntl_lock(&file, operation).map_err(during("lock", &run))?;
        }
        let written = file.metadata().map_err(during("look at", &run))?;
        let written = written.mtime().saturating_mul(1000) + written.mtime_nsec() / 1_000_000;
        let mut text = Vec::new();
        let read = (&mut file).take(OCTETS_MAX + 1).read_to_end(&mut text);
        read.map_err(during("read", &run))?;
        if text.len() as u64 > OCTETS_MAX {
            return Ok(Some(vec![Target::Store]));
        }
        let dirty = journal::read(&text);
        // What was logged before we started is not news.
        if u64::try_from(written).unwrap_or(0) >= self.opened_ms {
            self.stillness.hear(self.stirring(&dirty), self.clock.monotonic());
        }
        Ok(Some(targets(&dirty)))
    }

    fn done(&self) -> Result<(), StoreError> {
        let run = self.place().join(RUN);
        match fs::remove_file(&run) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(during("remove", &run)),
        }
    }
}

impl Cyrus {
    /// Who of these does more than receive mail and set flags.
    fn stirring(&self, dirty: &Dirty) -> impl Iterator<Item = Account> {
        let made = dirty.mailboxes.iter().filter_map(|name| match names::meaning(name) {
            Named::Folder { user, .. } | Named::Odd { user } => {
                Account::new(&user).ok().filter(|account| !self.knows(account, name))
            }
            Named::Other => None,
        });
        made.chain(dirty.users.iter().filter_map(|user| Account::new(user).ok()))
    }

    /// Whether a mailbox of this internal name was there when its account was looked at; `false`
    /// while that is done.
    fn knows(&self, account: &Account, name: &[u8]) -> bool {
        let cell = self.cell(account);
        cell.try_lock()
            .is_ok_and(|cell| cell.boxes.values().any(|known| known.mailbox.name == name))
    }
}

/// What a run of lines tells to look at, in our own names.
fn targets(dirty: &Dirty) -> Vec<Target> {
    let mut targets = BTreeSet::new();
    if dirty.unknown > 0 {
        targets.insert(Target::Store);
    }
    let account = |user: &str| Account::new(user).ok();
    targets.extend(dirty.users.iter().filter_map(|user| account(user)).map(Target::Account));
    for (name, is_all) in
        dirty.messages.iter().map(|n| (n, false)).chain(dirty.mailboxes.iter().map(|n| (n, true)))
    {
        match names::meaning(name) {
            Named::Folder { user, folder } => {
                let Some(account) = account(&user) else { continue };
                match MailboxName::new(&folder) {
                    Ok(name) if !is_all => targets.insert(Target::Mailbox(account, name)),
                    _ => targets.insert(Target::Account(account)),
                };
            }
            Named::Odd { user } => targets.extend(account(&user).map(Target::Account)),
            Named::Other => {}
        }
    }
    targets.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_targets() {
        let text =
            b"APPEND user.ann\nMAILBOX user.ann\nMAILBOX user.ben.Work\nMAILBOX DELETED.user.x.1\n\
            RENAME user.cid.a user.cid.b\nSUB dan user.dan\nMAILBOX shared.news\n";
        let account = |name: &str| Account::new(name).unwrap();
        let want = [
            Target::Account(account("ben")),
            Target::Account(account("cid")),
            Target::Account(account("dan")),
            Target::Account(account("+shared")),
            Target::Mailbox(account("ann"), MailboxName::inbox()),
        ];
        let mut found = targets(&journal::read(text));
        found.sort();
        let mut want = want.to_vec();
        want.sort();
        assert_eq!(found, want);
        assert_eq!(targets(&journal::read(b"what is this\n")), [Target::Store]);
    }
}
