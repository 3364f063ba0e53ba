//! What of an engine's directories says that mail has changed, for a watcher that knows no engine.

use std::path::{Path, PathBuf};

use mailtwin_logic::{entry::Target, ids::Account, mailbox::MailboxName};

use crate::StoreError;

/// An engine whose changes show in directories.
///
/// A watcher watches first and asks again afterwards, so that nothing is missed that happens in
/// between; what it is told are hints, the store itself is looked at to see what happened.
pub trait Watchable: Send + Sync {
    /// Directories in which accounts, or directories on the way to them, come and go.
    fn account_places(&self) -> Result<Vec<Watch>, StoreError>;

    /// Directories of one account, as many as there are now; none if it is gone.
    fn places(&self, account: &Account) -> Result<Vec<Watch>, StoreError>;

    /// What it means that `change` happened to the name `name` in a directory with the role `role`.
    fn note(&self, role: &Role, name: &[u8], change: Change) -> Note;
}

/// A mail server's own journal of changes, which is ours to empty.
pub trait Journal: Send + Sync {
    /// The directory in which it grows.
    fn place(&self) -> &Path;

    /// Whether a change to this name in that directory is news in the journal.
    fn is_news(&self, name: &[u8]) -> bool;

    /// Sets what has been noted so far aside and tells it, until [`Journal::done`]; `None` if there is
    /// nothing.
    fn take(&self) -> Result<Option<Vec<Target>>, StoreError>;

    /// Removes what [`Journal::take`] told: it stands in our own log, durably.
    fn done(&self) -> Result<(), StoreError>;
}

/// A directory to watch. It may be gone by the time it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The directory.
    pub path: PathBuf,
    /// What it is.
    pub role: Role,
}

/// What a directory is to the engine. One directory may have several roles.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Accounts come and go in it.
    Accounts,
    /// A mailbox's own directory: control files, and mailboxes below it.
    Mailbox(Account, MailboxName),
    /// Holds a mailbox's messages.
    Messages(Account, MailboxName),
    /// Holds files of an account beside its mailboxes.
    Files(Account),
    /// The mail server's own journal grows in it.
    Journal,
}

impl Role {
    /// Whose directory it is; `None` if it is no account's.
    pub fn account(&self) -> Option<&Account> {
        match self {
            Self::Accounts | Self::Journal => None,
            Self::Mailbox(account, _) | Self::Messages(account, _) | Self::Files(account) => {
                Some(account)
            }
        }
    }
}

/// What happened to a name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A directory appeared, by creation or renaming.
    DirAppeared,
    /// A directory went.
    DirVanished,
    /// A file or link was created, perhaps still empty.
    Created,
    /// A file or link was renamed to this name.
    Arrived,
    /// A file that was open for writing was closed.
    Written,
    /// A file or link went, by removal or renaming.
    Vanished,
}

/// What a change means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// Nothing.
    Nothing,
    /// The mailbox is dirty, and more changes are likely to follow at once.
    Mailbox,
    /// The mailbox is dirty, and the change is complete.
    MailboxDone,
    /// The account's files are dirty.
    Account,
    /// The account has other directories than before.
    Places,
    /// There may be other accounts than before.
    Accounts,
}
