//! The command line, as clap reads it.

pub(crate) mod check;
pub(crate) mod failover;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use check::Check;
use failover::Failover;

/// Mailtwin's command line: a second, verified, always current copy of every mailbox.
///
/// Exit codes: 0 fine; 1 ran and found something (differences, something set aside); 2 usage or
/// configuration; 3 a daemon or peer could not be reached; 4 refused.
#[derive(Debug, Parser)]
#[command(name = "replctl", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// Configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/mailtwin/mailtwin.toml")]
    pub(crate) config: PathBuf,
    /// How to print results.
    #[arg(long, global = true, value_enum, default_value_t)]
    pub(crate) output: Form,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people.
    #[default]
    Text,
    /// For programs: one object with `schema_version`.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Show the whole thing at work on sample mail: a master, a replica, faults, a comparison.
    Demo(Demo),
    /// Replicate one mail tree into another on this machine; nothing else is needed.
    Mirror(Mirror),
    /// Make this node's state: its role and its key.
    Init(Init),
    /// Show role, replicas, lag and what is set aside; worst first.
    Status(Status),
    /// Replay now and wait.
    Sync(Sync),
    /// Replay until a replica has everything and nothing is pending, and wait for that.
    Drain(Drain),
    /// Have a message delivered on this master, and time it until every replica has it.
    ///
    /// Wants the section `[canary]` in the configuration. Exit codes: 0 it arrived everywhere; 1 it did not.
    Canary,
    /// Move the master's role to another node.
    #[command(subcommand)]
    Failover(Failover),
    /// What became of the mail that only a returning node had.
    Ledger,
    /// What was decided against one of two sides when a node came back: list it, show it, say that it
    /// was seen.
    #[command(subcommand)]
    Conflicts(Conflicts),
    /// Close the gate for a while: no client gets in, no mail is delivered.
    Freeze(Freeze),
    /// Reopen the gate after `freeze`.
    Thaw,
    /// Look at the sync log, or append to it.
    #[command(subcommand)]
    Log(Log),
    /// Introduce this node and another one to each other, one step on each: what one prints, the other
    /// is told.
    Pair(Pair),
    /// Show, pin and unpin keys, or give this node another one.
    #[command(subcommand)]
    Keys(Keys),
    /// List, add, remove, pause and resume replicas.
    #[command(subcommand)]
    Replica(Replica),
    /// List what is set aside for a replica, try it again, or forget that it failed.
    #[command(subcommand)]
    Quarantine(Quarantine),
    /// List what this node expunged and still keeps, or give it out.
    #[command(subcommand)]
    Graveyard(Graveyard),
    /// Show what the brake holds after a mass disappearance, or let it go.
    #[command(subcommand)]
    Brake(Brake),
    /// Look at everything that replication needs on this node, and say what is wrong and what to do.
    ///
    /// Changes nothing, and works without the daemons. Exit codes: 0 nothing is broken or at risk;
    /// 1 something is.
    Doctor(Doctor),
    /// Say what a code means that was shown somewhere, and what to do about it.
    Explain(Explain),
    /// Prove that master and replicas are equal, or list what is not, the worst first.
    ///
    /// Exit codes: 0 equal; 1 differences; 2 usage; 3 could not be compared.
    Check(Check),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Graveyard {
    /// What there is.
    List(Graves),
    /// Write messages into files, and hand them to a command if there is one.
    Restore {
        #[command(flatten)]
        graves: Graves,
        /// Where the files go; the replica daemon's user must be allowed to write there.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Run by the shell for each message, which it finds as its input; `$MAILTWIN_ACCOUNT` and
        /// `$MAILTWIN_MAILBOX` say where it was. For example:
        /// `ssh mx1 doveadm save -u "$MAILTWIN_ACCOUNT" -m "$MAILTWIN_MAILBOX"`
        #[arg(long, value_name = "COMMAND")]
        deliver: Option<String>,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// As status, logs, a check or the doctor show it; every one if absent.
    pub(crate) code: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// How Dovecot's `doveconf` is run, by the shell.
    #[arg(long, value_name = "COMMAND", default_value = "doveconf")]
    pub(crate) doveconf: String,
    /// Also look for mail that a node beside this mail server could not hold.
    #[arg(long = "for", value_name = "SERVER")]
    pub(crate) other: Option<OtherServer>,
}

/// A mail server that another node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OtherServer {
    Cyrus,
    /// Dovecot with Maildir++, its default layout.
    #[value(name = "maildir++")]
    Maildir,
    /// Dovecot with `LAYOUT=fs`.
    Fs,
}

/// What is meant of all that lies in a graveyard.
#[derive(Debug, Args)]
pub(crate) struct Graves {
    /// Whose mail, and of which mailbox; everything if absent.
    #[arg(value_name = "ACCOUNT[/MAILBOX]")]
    pub(crate) target: Option<String>,
    /// Only the message that had this UID.
    #[arg(long)]
    pub(crate) uid: Option<u32>,
    /// Only the message with this Message-ID.
    #[arg(long, value_name = "ID")]
    pub(crate) message_id: Option<String>,
    /// Only the message whose octets have this SHA-1.
    #[arg(long)]
    pub(crate) guid: Option<String>,
    /// Only what was expunged here since then: a time like 2026-01-31T12:00:00Z, or a duration like
    /// 2h for so long ago.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Brake {
    /// What is held, since when and why, and how much.
    Show(Held),
    /// Let the deletions go: they are replayed now.
    Release {
        #[command(flatten)]
        held: Held,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
}

/// What is meant of all that is held.
#[derive(Debug, Args)]
pub(crate) struct Held {
    /// Everything that is held if absent.
    #[arg(value_name = "ACCOUNT")]
    pub(crate) accounts: Vec<String>,
    /// Only what is held for this replica.
    #[arg(long, value_name = "NAME")]
    pub(crate) replica: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Quarantine {
    /// One line for each mailbox or account that is set aside.
    List(Aside),
    /// All about it: errors, step of the ladder, the messages that are the cause.
    Show(Aside),
    /// Try it now instead of when its pause is over.
    Retry(Change),
    /// Forget that it failed, and compare it as if nothing had happened: if it fails again, it is set
    /// aside again, as something new.
    Release(Change),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Conflicts {
    /// One line for each that nobody has acknowledged.
    List {
        /// Also those that somebody has.
        #[arg(long)]
        all: bool,
    },
    /// Both versions, and how to get back what was taken away.
    Show {
        /// As `list` shows them.
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
    /// Say that they were seen: they are listed no more. The ledger keeps them.
    Ack {
        /// As `list` shows them.
        #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<String>,
        /// All there are.
        #[arg(long)]
        all: bool,
    },
}

/// What is meant of all that is set aside.
#[derive(Debug, Args)]
pub(crate) struct Aside {
    /// An account stands for all its mailboxes; everything if absent.
    #[arg(value_name = "ACCOUNT[/MAILBOX]")]
    pub(crate) targets: Vec<String>,
    /// Only what is set aside for this replica.
    #[arg(long, value_name = "NAME")]
    pub(crate) replica: Option<String>,
}

/// The same, to be changed.
#[derive(Debug, Args)]
pub(crate) struct Change {
    #[command(flatten)]
    pub(crate) aside: Aside,
    /// Only say what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Where to work; a temporary directory if absent.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Messages to deliver.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    pub(crate) messages: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Mirror {
    /// A Maildir, or a tree that holds Maildirs at any depth.
    pub(crate) src: PathBuf,
    /// The copy. What replication needs to know lies beside it, never in it.
    pub(crate) dst: PathBuf,
    /// End when the copy is equal; otherwise follow until interrupted.
    #[arg(long)]
    pub(crate) once: bool,
    /// Write nothing in SRC, not even the UID bookkeeping that mail servers keep there.
    #[arg(long)]
    pub(crate) read_only_source: bool,
    /// Take SRC for the same tree as last time although it looks like another one (restored from
    /// a backup, moved to another disk). Without it, a copy is never emptied by mistake.
    #[arg(long)]
    pub(crate) accept_new_source: bool,
    /// How mailboxes lie in SRC.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) layout: Layout,
    /// How long the copy keeps what was expunged, beside it.
    #[arg(long, value_name = "DURATION", default_value = "7d")]
    pub(crate) graveyard: String,
}

/// How mailboxes lie in an account's directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// `.Work.Sub` beside cur/new/tmp.
    #[default]
    #[value(name = "maildir++")]
    MaildirPlusPlus,
    /// `Work/Sub` as directories.
    Fs,
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// What this node begins as.
    #[arg(long, value_enum)]
    pub(crate) role: Role,
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// The authoritative side.
    Master,
    /// A receiving side.
    Replica,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Print again every second until interrupted.
    #[arg(long)]
    pub(crate) watch: bool,
    /// One line and an exit code for Nagios and its like (0 ok, 1 warning, 2 critical, 3 unknown).
    #[arg(long, conflicts_with = "watch")]
    pub(crate) nagios: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Sync {
    /// Accounts or mailboxes; everything if absent.
    #[arg(value_name = "ACCOUNT[/MAILBOX]")]
    pub(crate) targets: Vec<String>,
    /// How long to wait.
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub(crate) timeout: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Log {
    /// Print the newest entries.
    Tail {
        /// How many.
        #[arg(short = 'n', default_value_t = 20)]
        entries: usize,
    },
    /// Print identity, size, ends, and every replica's cursor.
    Stat,
    /// Say that something may have changed: for delivery agents and scripts.
    Append {
        /// Accounts or mailboxes.
        #[arg(required = true, value_name = "ACCOUNT[/MAILBOX]")]
        targets: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Print this node's key and those pinned for its peers.
    Show,
    /// Trust a key of a peer.
    Pin {
        /// The peer's node name.
        peer: String,
        /// As its own `replctl keys show` prints it.
        key: String,
    },
    /// Trust it no more. Without any key, the peer's next one is pinned at first contact.
    Unpin {
        /// The peer's node name.
        peer: String,
        /// The key.
        key: String,
    },
    /// Give this node another key, in two steps, while everything runs: make the next one and tell every
    /// peer, which pins it beside the present one; then, with --switch, change to it and have the old
    /// one unpinned. Each step can be repeated.
    ///
    /// Exit codes: 0 every peer knows; 1 some have still to be told; 4 not now.
    Rotate(Rotate),
}

#[derive(Debug, Parser)]
pub(crate) struct Rotate {
    /// Change to the next key: refused until every peer has pinned it.
    #[arg(long)]
    pub(crate) switch: bool,
    /// A peer that need not know, because it is dead or an admin has pinned the key there.
    #[arg(long, value_name = "PEER")]
    pub(crate) without: Vec<String>,
    /// Only say how things stand.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Replica {
    /// Every replica and how it does.
    List,
    /// Replicate to one more node from now on, also after a restart: it takes its place in the log,
    /// is compared and copied, and follows. Begin on the new node: `replctl init --role replica`,
    /// this node as a peer in its configuration, and mailtwin-replica running.
    Add {
        /// Its node name.
        name: String,
        /// Where its replica daemon listens: host:port.
        address: String,
        /// Its key, as its own `replctl keys show` prints it; without one, the first that it shows is
        /// pinned.
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Replicate to a node no longer, also after a restart: what was kept for it goes. Nothing on
    /// that node is touched.
    Remove {
        /// Its node name.
        name: String,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Stop replaying to one; its place in the log is kept.
    Pause {
        /// Its node name.
        name: String,
    },
    /// Go on.
    Resume {
        /// Its node name.
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// Only this one; all that are not paused if absent.
    #[arg(long, value_name = "NAME")]
    pub(crate) replica: Option<String>,
    /// How long to wait.
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub(crate) timeout: String,
}

#[derive(Debug, Args)]
pub(crate) struct Freeze {
    /// How long clients may take to finish.
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    pub(crate) wait: String,
    /// Reopen the gate by itself after this time.
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    pub(crate) expire: String,
}

#[derive(Debug, Args)]
pub(crate) struct Pair {
    /// What `replctl pair` printed on the other node: NAME@HOST:PORT#KEY. Without it, this node's own
    /// is printed.
    #[arg(value_name = "CODE")]
    pub(crate) code: Option<String>,
    /// Where the other node reaches this one: host:port. This machine's name, and the port where the
    /// replica daemon listens, if absent.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) address: Option<String>,
    /// Only say what would be done.
    #[arg(long, requires = "code")]
    pub(crate) dry_run: bool,
}
