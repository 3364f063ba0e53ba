//! Maildir as Dovecot keeps it, shared with a Dovecot that is running.
//!
//! ```text
//!  layout: root pattern -> accounts -> mailboxes      engine: what is known, refreshed
//!  scan:   directory + uidlist + keywords -> snapshot  snapshot: in memory and in the index
//!  stage -> apply | build -> (lock, gap line, rename, own line) -> graveyard     steps, files
//! ```
//!
//! Message files are never written after they have a name; names are what changes.

mod apply;
mod build;
mod changes;
mod engine;
mod files;
pub(crate) mod fsys;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub(crate) mod graves;
pub(crate) mod graveyard;
mod hash;
pub(crate) mod identity;
mod indexlog;
mod inspect;
mod keywords;
mod layout;
mod listing;
mod lock;
mod mend;
mod names;
mod scan;
mod snapshot;
mod stage;
mod steps;
mod uidlist;
mod warm;
mod watch;

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mailtwin_disk::{clock::Clock, index::Index};
use mailtwin_logic::{
    check::{Inspect, Inspected},
    ids::{Account, Guid, MailboxId, ModSeq, Uid},
    limits::KEYWORDS_MAX,
    mailbox::{FileKey, MailboxName, MailboxState, Record},
    plan::Step,
};

use crate::{
    Batch, Capabilities, Delta, Destination, Grave, Listing, MailStore, Octets, Problem, Reader,
    Staged, Staging, StoreError, Unreadable, staged::Place,
};
use engine::{Context, Engine};
use fsys::during;
pub(crate) use identity::refused;
use layout::Pattern;

pub use identity::IdentityKind;
pub use layout::Layout;

/// What a Maildir store is made of.
#[derive(Clone, Debug)]
pub struct MaildirOptions {
    /// Where accounts lie, absolute, with `{user}`, `{domain}` or `{path}` (any depth below what
    /// stands before it) in place of names; without any, the one account with the empty name.
    pub root: PathBuf,
    /// How mailboxes lie in an account.
    pub layout: Layout,
    /// Where an account's `sieve/` and `.dovecot.sieve` lie, of the same form. `None`: above the
    /// root's last part, if that is the same for all accounts.
    pub home: Option<PathBuf>,
    /// Staging, half-built mailboxes and the graveyard: on the file system of the mail, and in
    /// no account. `None`: `.mailtwin` above the accounts.
    pub work_dir: Option<PathBuf>,
    /// How long expunged messages are kept; zero for not at all.
    pub graveyard: Duration,
    /// Whether the store may be written.
    pub uid_bookkeeping: UidBookkeeping,
    /// Whether messages without a UID get one: on a master.
    pub assigns_uids: bool,
    /// How the store is told from another.
    pub identity: IdentityKind,
    /// File, outside the store, that remembers which one it is.
    pub identity_record: PathBuf,
    /// How long to wait for a lock that somebody holds.
    pub lock_patience: Duration,
}

/// Whether the store may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UidBookkeeping {
    /// In the files shared with Dovecot.
    Shared,
    /// Nothing in the store is ever written, not even locks; messages without a UID get numbers
    /// that live in the index only.
    ReadOnly,
}

impl MaildirOptions {
    /// Options for a replica's store at `root`, remembered by the file `identity_record`: shared
    /// with a Dovecot, flat layout, a week of graveyard.
    pub fn new(root: &Path, identity_record: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
            layout: Layout::MaildirPlusPlus,
            home: None,
            work_dir: None,
            graveyard: Duration::from_hours(7 * 24),
            uid_bookkeeping: UidBookkeeping::Shared,
            assigns_uids: false,
            identity: IdentityKind::File,
            identity_record: identity_record.to_path_buf(),
            lock_patience: Duration::from_secs(10),
        }
    }
}

impl MaildirOptions {
    /// Options for the tree at `root`, in which accounts lie at any depth.
    pub fn tree(root: &Path, identity_record: &Path) -> Self {
        Self {
            work_dir: Some(work_dir_of_tree(root)),
            ..Self::new(&root.join("{path}"), identity_record)
        }
    }
}

/// A Maildir store.
#[derive(Debug)]
pub struct Maildir {
    engine: Engine,
}

impl Maildir {
    /// Opens the store. Its index may be lost at any time; it then is read anew.
    ///
    /// A root or home that makes no sense is [`StoreError::Name`].
    pub fn open(
        options: MaildirOptions,
        index: Index,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        let pattern = |path: &Path| {
            Pattern::parse(path).map_err(|why| StoreError::Corrupt { path: path.into(), why })
        };
        let root = pattern(&options.root)?;
        let home = match &options.home {
            Some(home) => Some(pattern(home)?),
            None => root.parent(),
        };
        let work_dir = options.work_dir.clone().unwrap_or_else(|| default_work_dir(&root));
        let read_only = options.uid_bookkeeping == UidBookkeeping::ReadOnly;
        let kind = if read_only { IdentityKind::Inode } else { options.identity };
        let keeper =
            identity::Keeper::open(kind, root.prefix(), &options.identity_record, read_only)?;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.trim().to_owned();
        let locker = lock::Locker { clock: clock.clone(), host, patience: options.lock_patience };
        let replica = !options.assigns_uids && !read_only;
        let engine = Engine::new(Context {
            pattern: root,
            home,
            graveyard: graveyard::Graveyard::new(&work_dir, options.graveyard),
            work_dir,
            clock,
            locker,
            shelf: snapshot::Shelf::new(index, replica)?,
            identity: keeper,
            options,
        })?;
        if replica {
            engine.recover()?;
        }
        Ok(Self { engine })
    }
}

fn default_work_dir(root: &Pattern) -> PathBuf {
    let prefix = root.prefix();
    if root.is_tree() { work_dir_of_tree(prefix) } else { prefix.join(".mailtwin") }
}

/// Beside the tree, which may be one account itself, unless it is a file system of its own.
fn work_dir_of_tree(root: &Path) -> PathBuf {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| path.metadata().map(|metadata| metadata.dev()).ok();
    match (root.parent(), root.file_name()) {
        (Some(above), Some(name)) if device(root).is_none_or(|d| Some(d) == device(above)) => {
            above.join(format!(".{}.mailtwin", name.to_string_lossy()))
        }
        _ => root.join(".mailtwin"),
    }
}

/// Fills `octets` from the kernel's random source.
pub(crate) fn random(octets: &mut [u8]) -> Result<(), StoreError> {
    let path = Path::new("/dev/urandom");
    let mut source = std::fs::File::open(path).map_err(during("open", path))?;
    source.read_exact(octets).map_err(during("read", path))
}

/// An identity nobody has.
pub(crate) fn random_id() -> Result<MailboxId, StoreError> {
    let mut id = [0; 16];
    random(&mut id).map(|()| MailboxId(id))
}

impl MailStore for Maildir {
    fn capabilities(&self) -> Capabilities {
        Capabilities { engine: "maildir", sets_modseq: false, keywords_max: KEYWORDS_MAX }
    }

    fn verify(&self) -> Result<(), StoreError> {
        self.engine.cx.prefix().map(drop)
    }

    fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        self.engine.accounts()
    }

    fn account(&self, account: &Account) -> Result<Option<Listing>, StoreError> {
        self.engine.account(account)
    }

    fn find(
        &self,
        account: &Account,
        name: &MailboxName,
    ) -> Result<Option<MailboxState>, StoreError> {
        self.engine.find(account, name)
    }

    fn delta(
        &self,
        account: &Account,
        mailbox: MailboxId,
        since: ModSeq,
    ) -> Result<Delta, StoreError> {
        let now_ms = self.engine.cx.clock.unix_ms();
        self.engine.visit_id(account, mailbox, |name, snapshot, _| {
            let (floor, highest) = (snapshot.header.floor, snapshot.header.highest_modseq);
            let complete = since.0 == 0 || since < floor || since > highest;
            // Where nothing is new, no record is needed.
            if complete || since < highest {
                self.engine.cx.shelf.load(snapshot, now_ms)?;
            }
            let entries = snapshot.entries().values();
            let wanted = entries.filter(|entry| complete || entry.modseq > since);
            let records = wanted.map(|entry| entry.record(&snapshot.table)).collect();
            let is_gone = |uid: &Uid| !snapshot.entries().contains_key(uid);
            let expunged = snapshot.expunged(since).filter(|uid| !complete && is_gone(uid));
            Ok(Delta {
                state: snapshot.state(name),
                keywords: snapshot.table.names().collect(),
                annotated: false,
                complete,
                records,
                expunged: expunged.collect(),
            })
        })
    }

    fn unreadable(&self, account: &Account, mailbox: MailboxId) -> Vec<Unreadable> {
        self.engine.unreadable(account, mailbox)
    }

    fn reader<'a>(&'a self, account: &'a Account, mailbox: MailboxId) -> Reader<'a> {
        let mut near = None;
        Box::new(move |uid| self.engine.open(account, mailbox, uid, &mut near))
    }

    fn file(&self, account: &Account, key: &FileKey) -> Result<Option<Vec<u8>>, StoreError> {
        self.engine.file(account, key)
    }

    fn set_file(
        &self,
        account: &Account,
        key: &FileKey,
        content: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        self.engine.set_file(account, key, content)
    }

    fn restructure(&self, account: &Account, steps: &[Step]) -> Result<(), StoreError> {
        self.engine.restructure(account, steps)
    }

    fn stage(
        &self,
        destination: &Destination,
        record: &Record,
    ) -> Result<Box<dyn Staging>, StoreError> {
        self.engine.stage(destination, record)
    }

    fn stage_held(
        &self,
        destination: &Destination,
        record: &Record,
    ) -> Result<Option<Staged>, StoreError> {
        self.engine.stage_held(destination, record)
    }

    fn apply(&self, batches: Vec<Batch>) -> Vec<Result<mailtwin_logic::mailbox::Head, StoreError>> {
        self.engine.apply(batches)
    }

    fn adopt(&self, account: &Account, mailbox: MailboxId, below: Uid) -> Result<u64, StoreError> {
        self.engine.adopt(account, mailbox, below)
    }

    fn abandon(&self, account: &Account, mailbox: MailboxId) {
        self.engine.abandon(account, mailbox);
    }

    fn bury(&self) -> Result<u64, StoreError> {
        self.engine.cx.graveyard.bury(self.engine.cx.clock.unix_ms())
    }

    fn graves(
        &self,
        visit: &mut dyn FnMut(Grave) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.engine.cx.graveyard.each(visit)
    }

    fn exhume(&self, grave: &Grave) -> Result<Octets, StoreError> {
        match &grave.place {
            Place::File(path, _) => graves::open(path),
            Place::Memory(_) | Place::Taken => {
                let what = "a message of another store".into();
                Err(StoreError::NotFound { what })
            }
        }
    }

    fn problems(&self) -> Vec<Problem> {
        self.engine.problems()
    }

    fn inspect(&self, wanted: &Inspect) -> Result<Inspected, StoreError> {
        self.engine.inspect(wanted)
    }

    fn mend(
        &self,
        account: &Account,
        mailbox: MailboxId,
        uid: Uid,
        staged: Option<Staged>,
    ) -> Result<bool, StoreError> {
        self.engine.mend(account, mailbox, uid, staged)
    }

    fn give_up(
        &self,
        account: &Account,
        mailbox: MailboxId,
        messages: &[(Uid, Guid)],
    ) -> Result<(), StoreError> {
        self.engine.give_up(account, mailbox, messages)
    }

    fn watchable(&self) -> Option<&dyn crate::watch::Watchable> {
        Some(self)
    }
}

#[cfg(test)]
mod tests;
