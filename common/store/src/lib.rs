//! The mail store trait, and the engines behind it. Blocking; knows nothing of tokio.
//!
//! A store is shared with a live mail server: it changes under our hands. So every change names the
//! head it was planned for, and a mailbox that has moved on answers [`StoreError::Stale`] and
//! changes nothing. Differences between engines are data ([`Capabilities`]), never an `if` in a
//! planner.
#![forbid(unsafe_code)]

pub mod cyrus;
mod describe;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod graves;
pub mod local;
pub mod memory;
mod staged;

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod maildir;
pub mod watch;

use mailtwin_logic::{
    check::{Inspect, Inspected},
    ids::{Account, Guid, MailboxId, ModSeq, Uid},
    mailbox::{AccountState, FileKey, Head, Keyword, MailboxName, MailboxState, Record},
    plan::{Change, Mode, Step},
};

pub use describe::Description;
pub use error::{Problem, ProblemKind, StoreError};
pub use graves::Grave;
pub use mailtwin_logic::quarantine::Reason;
pub use staged::{Octets, Reader, Staged, Staging};

/// One account's or mailbox's mail, in whatever form a mail server keeps it.
///
/// All calls block and may be made from several threads at once; an engine serialises what must
/// be. "Refreshes" means: looks at the store as it is now, cheaply where nothing changed.
pub trait MailStore: Send + Sync {
    /// What this engine can and cannot do.
    fn capabilities(&self) -> Capabilities;

    /// Whether this is the store it was, at little cost: for status, so that a lost volume shows
    /// before anybody looks for mail.
    fn verify(&self) -> Result<(), StoreError>;

    /// Every account the store has now, in order.
    fn accounts(&self) -> Result<Vec<Account>, StoreError>;

    /// An account's mailboxes and files; `None` if there is no such account. Refreshes all of
    /// it. A mailbox that cannot be read is left out and listed in [`MailStore::problems`]; it is
    /// then also in [`Listing::unread`], so that nobody takes it for deleted.
    fn account(&self, account: &Account) -> Result<Option<Listing>, StoreError>;

    /// One mailbox, refreshed; `None` if there is none of that name.
    fn find(
        &self,
        account: &Account,
        name: &MailboxName,
    ) -> Result<Option<MailboxState>, StoreError>;

    /// What changed in a mailbox after `since`, refreshed; everything if `since` is 0, or too long
    /// ago to tell (then [`Delta::complete`] is set).
    fn delta(
        &self,
        account: &Account,
        mailbox: MailboxId,
        since: ModSeq,
    ) -> Result<Delta, StoreError>;

    /// Messages of a mailbox that the last look at it could not read, bounded in number.
    fn unreadable(&self, account: &Account, mailbox: MailboxId) -> Vec<Unreadable>;

    /// Opens messages of one mailbox one after the other. It may keep a directory open, so it is
    /// for one run of messages and not to be kept.
    fn reader<'a>(&'a self, account: &'a Account, mailbox: MailboxId) -> Reader<'a>;

    /// Opens a message's octets.
    fn open(&self, account: &Account, mailbox: MailboxId, uid: Uid) -> Result<Octets, StoreError> {
        self.reader(account, mailbox)(uid)
    }

    /// Reads one of an account's files; `None` if it is not there.
    fn file(&self, account: &Account, key: &FileKey) -> Result<Option<Vec<u8>>, StoreError>;

    /// Replaces (or with `None` removes) one of an account's files; durable on return.
    fn set_file(
        &self,
        account: &Account,
        key: &FileKey,
        content: Option<&[u8]>,
    ) -> Result<(), StoreError>;

    /// Moves, deletes and resets mailboxes, all of `steps` together; durable on return. A step
    /// whose mailbox is no longer what it says is refused before anything is changed. What
    /// is deleted goes to the graveyard.
    fn restructure(&self, account: &Account, steps: &[Step]) -> Result<(), StoreError>;

    /// Starts taking in the octets of a message that `destination` will get.
    fn stage(
        &self,
        destination: &Destination,
        record: &Record,
    ) -> Result<Box<dyn Staging>, StoreError>;

    /// Stages a message from octets this store already holds somewhere, by link or copy; `None` if
    /// it holds none of that GUID and size.
    fn stage_held(
        &self,
        destination: &Destination,
        record: &Record,
    ) -> Result<Option<Staged>, StoreError>;

    /// Applies batches, each to another mailbox, with as few waits for the disk as possible.
    ///
    /// On `Ok` a batch is durable, contents, names and directories; the new head is returned. A
    /// refusal ([`StoreError::Stale`]) comes before the first change. Any other error, or a crash,
    /// may leave a prefix of the changes, each one whole: planning again is the repair. What is
    /// expunged goes to the graveyard.
    fn apply(&self, batches: Vec<Batch>) -> Vec<Result<Head, StoreError>>;

    /// Calls of [`MailStore::apply`] that are worth making at the same time. One, where the batches
    /// of a call share their waits for the disk; with more, each waits by itself and is a call.
    fn lanes(&self) -> usize {
        1
    }

    /// Marks messages below `below` as replicated, durably: the master of the next epoch had every
    /// one of them when this node, which was the master, handed over. Without the mark they would be
    /// taken for mail that only this node has. Returns how many lacked it.
    fn adopt(&self, account: &Account, mailbox: MailboxId, below: Uid) -> Result<u64, StoreError>;

    /// Forgets half-built mailboxes and staged octets of `mailbox` (its link broke).
    fn abandon(&self, account: &Account, mailbox: MailboxId);

    /// Removes what has been in the graveyard for longer than it is to be kept; returns how many
    /// messages went.
    fn bury(&self) -> Result<u64, StoreError>;

    /// Shows `visit` every message in the graveyard; ends with its first error.
    fn graves(
        &self,
        visit: &mut dyn FnMut(Grave) -> Result<(), StoreError>,
    ) -> Result<(), StoreError>;

    /// Opens the octets of a message in the graveyard.
    fn exhume(&self, grave: &Grave) -> Result<Octets, StoreError>;

    /// What is wrong in this store now, worst first, bounded in number.
    fn problems(&self) -> Vec<Problem>;

    /// Looks at the messages of a mailbox themselves, and at all that is remembered of it with
    /// distrust; blames only this store. [`Inspected::state`] is `None` if the mailbox is not there.
    fn inspect(&self, wanted: &Inspect) -> Result<Inspected, StoreError>;

    /// Gives a message the octets and date that were recorded when it was first seen: its own, if
    /// they are what they were, or else those `staged`. What was in its place goes to the
    /// graveyard. False if octets are needed. Durable on return.
    fn mend(
        &self,
        account: &Account,
        mailbox: MailboxId,
        uid: Uid,
        staged: Option<Staged>,
    ) -> Result<bool, StoreError>;

    /// Takes messages that replication did not put there for its own, so that it may take them away.
    /// Those that have another GUID, or are gone, are left out.
    fn give_up(
        &self,
        account: &Account,
        mailbox: MailboxId,
        messages: &[(Uid, Guid)],
    ) -> Result<(), StoreError>;

    /// The directories in which changes show; `None` if they show nowhere.
    fn watchable(&self) -> Option<&dyn watch::Watchable> {
        None
    }

    /// The mail server's own journal of changes; `None` if it keeps none.
    fn journal(&self) -> Option<&dyn watch::Journal> {
        None
    }
}

/// What an engine can do, for those who must decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Engine name, as in the configuration.
    pub engine: &'static str,
    /// Whether its MODSEQs are the mail server's own, which [`Batch::modseq`] raises: a client
    /// that moves here knows those of the other server, and must not miss what happens next.
    pub sets_modseq: bool,
    /// Keywords a mailbox can hold.
    pub keywords_max: usize,
}

/// An account as [`MailStore::account`] found it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// What could be read.
    pub state: AccountState,
    /// Mailboxes that are there but could not be read, and why.
    pub unread: Vec<(MailboxName, Reason, String)>,
    /// Mailboxes of `state` in which single messages could not be read: [`MailStore::unreadable`]
    /// names them.
    pub ailing: Vec<MailboxName>,
}

/// A message that is there but cannot be read, so that no record tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its file, or whatever else names it in the store; printable.
    pub name: String,
    /// Why, for humans.
    pub detail: String,
}

/// What changed in a mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The mailbox after the changes.
    pub state: MailboxState,
    /// Every keyword of the mailbox in the store's own order (Maildir: of the letters), so that
    /// an engine of the same kind can keep it.
    pub keywords: Vec<Keyword>,
    /// Whether messages of `records` have annotations, which are in the account's files.
    pub annotated: bool,
    /// Whether `records` is all there is, rather than what changed.
    pub complete: bool,
    /// New and changed records, by UID.
    pub records: Vec<Record>,
    /// UIDs that went; empty when `complete`.
    pub expunged: Vec<Uid>,
}

/// A mailbox that is about to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Whose.
    pub account: Account,
    /// Which.
    pub mailbox: MailboxId,
    /// Where it stands, or will.
    pub name: MailboxName,
    /// How it will be changed.
    pub mode: Mode,
}

/// Changes to one mailbox.
#[derive(Debug)]
pub struct Batch {
    /// Which mailbox, and how.
    pub to: Destination,
    /// The head the changes were planned for; `None`: it must not exist. Of a mailbox being built
    /// over several batches, only the first is checked.
    pub expect: Option<Head>,
    /// UIDVALIDITY and UIDNEXT it shall have afterwards, once `last` is set. Its `messages` and
    /// `digest` are not looked at.
    pub target: Head,
    /// HIGHESTMODSEQ shall be no lower afterwards, once `last` is set; 0 where the master's MODSEQs
    /// say nothing. Only engines that have [`Capabilities::sets_modseq`] look at it.
    pub modseq: ModSeq,
    /// The master's keywords in its own order.
    pub keywords: Vec<Keyword>,
    /// In order; expunges and updates first, additions by ascending UID.
    pub changes: Vec<Change>,
    /// Octets of the additions, in their order, as many as there are additions.
    pub staged: Vec<Staged>,
    /// Whether this is the last batch for now: a mailbox being built becomes visible with it.
    pub last: bool,
}

/// SHA-1 of octets in memory.
pub fn guid_of(octets: &[u8]) -> Guid {
    use sha1::Digest as _;
    Guid(sha1::Sha1::digest(octets).into())
}
