//! What `replctl doctor` says of one thing it looked at.

use serde::Serialize;

/// How bad a finding is; the worst is the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Nothing is wrong, but it is good to know.
    Note,
    /// It works, and may cost mail, time or a failover some day.
    Risk,
    /// It does not work.
    Broken,
}

impl Level {
    /// One word, as the table has it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Risk => "RISK",
            Self::Broken => "BROKEN",
        }
    }
}

/// What was looked at: the code that `replctl explain` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Code {
    /// The configuration file.
    Configuration,
    /// `node.json` and what is beside it.
    NodeState,
    /// The node's private key.
    KeyFile,
    /// Where the admin sockets are.
    RunDir,
    /// Whether the daemons may read and write the mail.
    StoreAccess,
    /// Where messages are staged.
    WorkDir,
    /// What another mail server could not hold.
    OtherServer,
    /// What kind of file system the mail is on.
    FileSystem,
    /// `fs.inotify.max_user_watches`.
    InotifyWatches,
    /// `fs.inotify.max_user_instances`.
    InotifyInstances,
    /// The daemons' limit of open files.
    OpenFiles,
    /// The clocks of this node and its peers.
    Clock,
    /// Free space.
    Space,
    /// Free inodes.
    Inodes,
    /// The sync log's bound against the free space.
    LogBound,
    /// Which mail server there is.
    MailServer,
    /// Where the mail server says the mail is.
    MailLocation,
    /// `maildir_very_dirty_syncs`.
    DirtySyncs,
    /// `mail_fsync`.
    MailFsync,
    /// Mailboxes with more keywords than Maildir has letters.
    Keywords,
    /// Whether both daemons run.
    Daemons,
    /// The commands that close and open the gate.
    Gate,
    /// Whether there are peers.
    Peers,
    /// Whether a peer's replica daemon answers.
    PeerReachable,
    /// Whether a peer's key is pinned, and is the one that it shows.
    PeerKey,
    /// What the link to a peer says.
    PeerLink,
    /// What would keep a peer from becoming the master.
    PeerReadiness,
    /// The versions of both ends.
    Version,
    /// What `replctl status` would complain about.
    Status,
}

impl Code {
    /// The code.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::NodeState => "node-state",
            Self::KeyFile => "key-file",
            Self::RunDir => "run-dir",
            Self::StoreAccess => "store-access",
            Self::WorkDir => "work-dir",
            Self::FileSystem => "file-system",
            Self::InotifyWatches => "inotify-watches",
            Self::InotifyInstances => "inotify-instances",
            Self::OpenFiles => "open-files",
            Self::Clock => "clock",
            Self::Space => "space",
            Self::Inodes => "inodes",
            Self::LogBound => "log-bound",
            Self::MailServer => "mail-server",
            Self::MailLocation => "mail-location",
            Self::DirtySyncs => "dirty-syncs",
            Self::MailFsync => "mail-fsync",
            Self::Keywords => "keywords",
            Self::Daemons => "daemons",
            Self::Gate => "gate",
            Self::Peers => "peers",
            Self::PeerReachable => "peer-reachable",
            Self::PeerKey => "peer-key",
            Self::PeerLink => "peer-link",
            Self::PeerReadiness => "peer-readiness",
            Self::Version => "version",
            Self::Status => "status",
            Self::OtherServer => "other-server",
        }
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// How bad it is.
    pub(crate) level: Level,
    /// What was looked at.
    pub(crate) code: Code,
    /// What was found.
    pub(crate) what: String,
    /// What may come of it; empty for [`Level::Ok`].
    pub(crate) why: String,
    /// The next command or step; empty if there is nothing to do.
    pub(crate) next: String,
}

impl Finding {
    /// As it should be.
    pub(crate) fn ok(code: Code, what: impl Into<String>) -> Self {
        Self { level: Level::Ok, code, what: what.into(), why: String::new(), next: String::new() }
    }

    /// Good to know.
    pub(crate) fn note(code: Code, what: impl Into<String>) -> Self {
        Self { level: Level::Note, ..Self::ok(code, what) }
    }

    /// May cost something some day.
    pub(crate) fn risk(code: Code, what: impl Into<String>) -> Self {
        Self { level: Level::Risk, ..Self::ok(code, what) }
    }

    /// Does not work.
    pub(crate) fn broken(code: Code, what: impl Into<String>) -> Self {
        Self { level: Level::Broken, ..Self::ok(code, what) }
    }

    /// The same, with what may come of it.
    pub(crate) fn because(self, why: impl Into<String>) -> Self {
        Self { why: why.into(), ..self }
    }

    /// The same, with what to do next.
    pub(crate) fn next(self, next: impl Into<String>) -> Self {
        Self { next: next.into(), ..self }
    }
}
