//! Why a store call did nothing, and what is wrong with a store.

use std::{io, path::PathBuf};

use mailtwin_cyrus::LinkError;
use mailtwin_logic::{
    ids::{Account, Guid, Uid},
    mailbox::{Head, MailboxName},
    quarantine::Reason,
};
use serde::{Deserialize, Serialize};

/// Why a call did nothing, or stopped half-way where its contract says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The mailbox is not what the changes were planned for; plan again.
    #[error("the mailbox has changed since the changes were planned")]
    Stale(Option<Head>),
    /// There is no such account, mailbox or message.
    #[error("{what} is not there")]
    NotFound {
        /// Which, for humans.
        what: String,
    },
    /// The octets do not hash to the GUID they came under, or are not as many as said.
    #[error("verify {what}: expected {want}, found {got}")]
    Mismatch {
        /// Which message.
        what: String,
        /// Announced or recorded.
        want: Guid,
        /// Computed.
        got: Guid,
    },
    /// The UID is taken by another message.
    #[error("UID {0} already denotes another message here")]
    UidTaken(Uid),
    /// The name cannot be stored by this engine.
    #[error("store {name}: {why}")]
    Name {
        /// Which.
        name: String,
        /// Why not.
        why: &'static str,
    },
    /// A lock could not be had in time.
    #[error("lock {path}: held by {holder} for over {waited_ms} ms", path = path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// What it says of its owner.
        holder: String,
        /// How long we waited, in milliseconds.
        waited_ms: u64,
    },
    /// The mail server's own file is damaged.
    #[error("read {path}: {why}", path = path.display())]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// How.
        why: String,
    },
    /// The store's root is empty, or is another one than last time (I2).
    #[error("{path} is not the mail store it was: {why}", path = path.display())]
    WrongStore {
        /// Its root.
        path: PathBuf,
        /// How that shows.
        why: String,
    },
    /// There is no store yet where one is to be.
    #[error(
        "{path} is not there: mount or create it, owned by the mail server's user, or correct \
         `root`",
        path = path.display()
    )]
    NoStore {
        /// The directory above all accounts.
        path: PathBuf,
    },
    /// Clients rename mailboxes so fast that no look at them all was of one moment.
    #[error("list the mailboxes of {account}: they were moved about all the while")]
    Moving {
        /// Whose.
        account: Account,
    },
    /// A mail server that makes nothing of a user's before their INBOX.
    #[error("{account} has no INBOX yet: it comes first, and this is tried again")]
    InboxFirst {
        /// Whose.
        account: Account,
    },
    /// It takes a mailbox away for a moment, and clients work there.
    #[error(
        "change {mailbox}: messages below UIDNEXT and another UIDVALIDITY need it to be made anew, \
         which is not done under a master's clients"
    )]
    UnderClients {
        /// Which.
        mailbox: MailboxName,
    },
    /// It is one message's fault; its neighbours may be well.
    #[error("message {uid}")]
    Message {
        /// Which.
        uid: Uid,
        /// Cause.
        source: Box<Self>,
    },
    /// The mail server did not do what it was asked.
    #[error("{op} {what}")]
    Server {
        /// Present-tense verb.
        op: &'static str,
        /// Mailbox or account.
        what: String,
        /// Cause.
        source: Box<LinkError>,
    },
    /// The operating system refused.
    #[error("{op} {path}", path = path.display())]
    Io {
        /// Present-tense verb.
        op: &'static str,
        /// What.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl StoreError {
    /// The code that metrics, quarantine and `explain` use.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Stale(_) | Self::Moving { .. } | Self::InboxFirst { .. } => Reason::Busy,
            Self::NotFound { .. } => Reason::Missing,
            Self::Mismatch { .. } => Reason::GuidMismatch,
            Self::UidTaken(_) => Reason::Conflict,
            Self::Name { .. } => Reason::Name,
            Self::Locked { .. } => Reason::Locked,
            Self::Corrupt { .. } => Reason::Corrupt,
            Self::WrongStore { .. } | Self::NoStore { .. } => Reason::WrongStore,
            Self::UnderClients { .. } => Reason::Refused,
            Self::Message { source, .. } => source.reason(),
            Self::Server { source, .. } => reason_of_server(source),
            Self::Io { source, .. } => reason_of(source.kind()),
        }
    }

    /// Whether the disk itself failed to make something durable: then nothing it said before can
    /// be relied on and the process must end (fsync is never tried again).
    pub fn is_fatal(&self) -> bool {
        if let Self::Message { source, .. } = self {
            return source.is_fatal();
        }
        matches!(self, Self::Io { op: "sync", source, .. }
            if !matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    /// Whether the mail server does not answer: no mailbox is at fault, and none has to be set aside.
    pub fn is_away(&self) -> bool {
        if let Self::Message { source, .. } = self {
            return source.is_away();
        }
        matches!(self, Self::Server { source, .. }
            if matches!(**source, LinkError::Connect { .. }))
    }

    /// The same error, told of message `uid` if it can be the fault of one message alone.
    #[must_use]
    pub fn of_message(self, uid: Uid) -> Self {
        let narrow = self.reason().is_of_one_message() && !self.is_fatal();
        if narrow { Self::Message { uid, source: Box::new(self) } } else { self }
    }
}

fn reason_of_server(error: &LinkError) -> Reason {
    // Without a connection no mailbox is at fault.
    let LinkError::Refused(refusal) = error else { return Reason::Busy };
    match refusal.text.split(' ').next() {
        Some("IMAP_MAILBOX_NONEXISTENT") => Reason::Missing,
        Some("IMAP_MAILBOX_LOCKED") => Reason::Locked,
        Some("IMAP_SYNC_CHANGED" | "IMAP_SYNC_CHECKSUM" | "IMAP_MAILBOX_MOVED") => Reason::Busy,
        _ => Reason::Io,
    }
}

fn reason_of(kind: io::ErrorKind) -> Reason {
    if kind == io::ErrorKind::PermissionDenied {
        Reason::Denied
    } else if kind == io::ErrorKind::NotFound {
        Reason::Missing
    } else if kind == io::ErrorKind::StorageFull {
        Reason::Full
    } else if kind == io::ErrorKind::QuotaExceeded {
        Reason::OverQuota
    } else {
        Reason::Io
    }
}

/// Something wrong in a store that does not stop replication of the rest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Of which kind.
    pub kind: ProblemKind,
    /// Whose.
    pub account: Option<Account>,
    /// Where.
    pub mailbox: Option<MailboxName>,
    /// The file or directory, printable.
    pub object: String,
    /// What is wrong and what to do.
    pub detail: String,
}

impl Problem {
    /// Where it is, for humans: account and mailbox, as far as it is of one, and the object.
    pub fn place(&self) -> String {
        let object = &self.object;
        match (&self.account, &self.mailbox) {
            (Some(account), Some(mailbox)) => format!("{account}/{mailbox}: {object}"),
            (Some(account), None) => format!("{account}: {object}"),
            (None, _) => object.clone(),
        }
    }
}

/// Kinds of [`Problem`], worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProblemKind {
    /// The store is not the one it was; deletions are held.
    WrongStore,
    /// Not one account was found.
    NoAccounts,
    /// A mailbox that cannot be read.
    MailboxUnreadable,
    /// A message that cannot be read.
    MessageUnreadable,
    /// The mail server's own list is damaged.
    ListDamaged,
    /// A name that cannot be replicated.
    Name,
    /// A file in `cur/` or `new/` that is no message.
    NotAMessage,
    /// The keyword table is full; further ones live only in the mail server's index.
    KeywordsFull,
    /// A file that is not replicated because it is too large or not a regular one.
    FileSkipped,
    /// Something that replication has no place for: it is not on the replica.
    NotCarried,
}

impl ProblemKind {
    /// The code, as in status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WrongStore => "wrong-store",
            Self::NoAccounts => "no-accounts",
            Self::MailboxUnreadable => "mailbox-unreadable",
            Self::MessageUnreadable => "message-unreadable",
            Self::ListDamaged => "list-damaged",
            Self::Name => "name",
            Self::NotAMessage => "not-a-message",
            Self::KeywordsFull => "keywords-full",
            Self::FileSkipped => "file-skipped",
            Self::NotCarried => "not-carried",
        }
    }
}
