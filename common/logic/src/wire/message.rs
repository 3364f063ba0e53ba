//! Messages between agent and replica, and their encoding (postcard, documented in docs/protocol.md).
//!
//! A connection carries many *streams*. Stream 0 is the greeting and the heartbeat. The agent
//! opens every other one with a [`Request`]; the replica answers with one or more [`Reply`]s.
//! Enums only ever grow at their end; a number of protocol versions is agreed on in the greeting.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    check::{Inspect, Inspected},
    digest::Digest,
    ids::{Account, Epoch, Guid, LogId, LogSeq, MailboxId, ModSeq, Uid, UidValidity},
    limits::{BLOCKERS_MAX, LISTING_PER_FRAME, SLICE_CHANGES, TOLD_MAX, WIRE_KEYWORDS_MAX},
    mailbox::{FileKey, FileState, Head, Keyword, MailboxName, MailboxState, Record},
    plan::{Change, Mode, Step},
    wire::bounded::at_most,
};

/// Oldest protocol version this build speaks.
pub const VERSION_MIN: u16 = 1;
/// Newest protocol version this build speaks.
pub const VERSION_MAX: u16 = 1;
/// Version of what digests cover. Two sides with another one would never be equal.
pub const MODEL: u16 = 1;
/// Feature bit: answers what `replctl check` asks ([`Request::Tree`] to [`Request::Graves`]).
pub const FEATURE_CHECK: u64 = 1;
/// Feature bit: takes [`Control::Standing`] and answers [`Request::About`].
pub const FEATURE_STANDING: u64 = 2;
/// Feature bit: MODSEQs are the mail server's own, and can be compared with the other side's.
pub const FEATURE_MODSEQ: u64 = 4;

/// Every ability of this build, beside a mail server whose MODSEQs it can set, or not.
pub const fn features(sets_modseq: bool) -> u64 {
    FEATURE_CHECK | FEATURE_STANDING | if sets_modseq { FEATURE_MODSEQ } else { 0 }
}

/// What a node says first, on stream 0; the agent begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest protocol version spoken.
    pub version_min: u16,
    /// Newest protocol version spoken.
    pub version_max: u16,
    /// Version of the digest.
    pub model: u16,
    /// Node name, as in the peer's configuration.
    pub node: String,
    /// Highest epoch this node knows.
    pub epoch: Epoch,
    /// Optional abilities, one bit each; unknown bits are ignored.
    pub features: u64,
    /// The agent's sync log.
    pub log: LogId,
}

/// The replica's answer to a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Greeting {
    /// Go ahead.
    Welcome {
        /// Protocol version from here on.
        version: u16,
        /// The replica's node name.
        node: String,
        /// Highest epoch the replica knows.
        epoch: Epoch,
        /// Optional abilities both may use.
        features: u64,
        /// The epoch whose master's mail and the replica's were last made one.
        merged: Epoch,
    },
    /// No; the connection ends.
    Refused {
        /// Why.
        why: Refusal,
        /// For humans: what, and what to do about it.
        detail: String,
    },
}

/// Why a replica refuses an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Protocol or digest versions do not meet.
    Version,
    /// The replica knows a higher epoch: this agent is fenced.
    Epoch(Epoch),
    /// This node is a master itself.
    Role,
    /// Name or key is not one this node was told of.
    Identity,
}

/// Heartbeat on stream 0, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// The sender's clock, in milliseconds since 1970.
    pub at: u64,
    /// End of the sync log (agent), echoed by the replica.
    pub head: LogSeq,
    /// The cursor of this replica (agent), echoed by the replica.
    pub cursor: LogSeq,
}

/// What an agent says of a replica, beside its heartbeat: so that the replica knows what it has when
/// the master is dead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The sender's clock, in milliseconds since 1970.
    pub at: u64,
    /// By the same clock: every change that was noticed until then is on the replica, or set aside.
    /// `None` while that is not known, because everything is being compared.
    pub complete_to: Option<u64>,
    /// The agent's version.
    pub version: String,
}

/// Everything on stream 0 after the greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Still there.
    Beat(Beat),
    /// From the agent, only with [`FEATURE_STANDING`]. Not echoed.
    Standing(Standing),
}

/// Opens a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Every account with its digest. Answered by [`Reply::Accounts`].
    Accounts,
    /// One account's lists. Answered by [`Reply::Account`].
    Account(Account),
    /// One mailbox's records. Answered by [`Reply::Records`].
    Records {
        /// Whose.
        account: Account,
        /// Which.
        mailbox: MailboxId,
    },
    /// Moves, deletes, resets. Answered by [`Reply::Done`].
    Restructure {
        /// Whose.
        account: Account,
        /// All together.
        steps: Vec<Step>,
    },
    /// Writes (or with `None` removes) a file. Answered by [`Reply::Done`].
    SetFile {
        /// Whose.
        account: Account,
        /// Which.
        key: FileKey,
        /// At most `limits::FILE_OCTETS_MAX` octets.
        content: Option<Vec<u8>>,
    },
    /// Changes one mailbox. Answered by [`Reply::Need`]; then the octets asked for follow in
    /// order and without gaps, in frames of octets; then comes [`Reply::Applied`].
    Apply(Apply),
    /// What would keep this node from becoming the master. Answered by [`Reply::Ready`].
    Preflight,
    /// Be the master of `epoch`, the one after the agent's: it has given up its role, durably, and
    /// every message was on both sides when it did. Answered by [`Reply::Done`].
    Promote {
        /// The new epoch.
        epoch: Epoch,
        /// When the old master closed its gate, in milliseconds since 1970.
        closed_at: u64,
        /// The last epoch that was forced, as far as the old master knows.
        forced: Option<Epoch>,
    },
    /// The master has all that these mailboxes held below these UIDs: from now on it may be
    /// replaced by what the master has. Answered by [`Reply::Done`].
    Adopt {
        /// Whose.
        account: Account,
        /// Mailboxes and the UIDNEXT that was seen of each.
        marks: Vec<(MailboxId, Uid)>,
    },
    /// The master has all this node had when `epoch` began. Answered by [`Reply::Done`].
    Merged {
        /// The agent's own epoch.
        epoch: Epoch,
    },
    /// One digest per branch of accounts. Answered by [`Reply::Tree`]. This and what follows only
    /// with [`FEATURE_CHECK`].
    Tree,
    /// Every account on these branches, with its digest. Answered by [`Reply::Accounts`].
    Branch(Vec<u8>),
    /// A look at a mailbox's own files. Answered by [`Reply::Inspected`].
    Inspect(Inspect),
    /// One message's octets. Answered by [`Reply::Octets`].
    Fetch {
        /// Whose.
        account: Account,
        /// Which mailbox.
        mailbox: MailboxId,
        /// Which message.
        uid: Uid,
    },
    /// Gives a message the octets and date that its record says. Answered by [`Reply::Need`]; if
    /// the octets are asked for, they follow as in an apply; then comes [`Reply::Done`].
    Mend {
        /// Whose.
        account: Account,
        /// Which mailbox.
        mailbox: MailboxId,
        /// The master's record.
        record: Record,
    },
    /// Takes messages that are the replica's own for replication's, so that replaying may take them
    /// away. Answered by [`Reply::Done`].
    GiveUp {
        /// Whose.
        account: Account,
        /// Which mailbox.
        mailbox: MailboxId,
        /// Which messages; those that are others by now stay what they are.
        messages: Vec<(Uid, Guid)>,
    },
    /// What lies in the graveyard of some messages. Answered by a [`Reply::Grave`] and then
    /// [`Reply::Octets`] for each, or [`Reply::FailedMessage`] for one that cannot be read; then comes
    /// [`Reply::Done`].
    Graves {
        /// Whose.
        account: Account,
        /// Of the mailbox of this name, then.
        mailbox: MailboxName,
        /// Under which UIDVALIDITY.
        uid_validity: UidValidity,
        /// Of which messages, at most `limits::SLICE_CHANGES`; also those whose UID is not known.
        #[serde(deserialize_with = "at_most::<_, _, SLICE_CHANGES>")]
        uids: Vec<Uid>,
    },
    /// Who are you? Answered by [`Reply::About`]. Only with [`FEATURE_STANDING`].
    About,
}

/// Changes to one mailbox: see `MailStore::apply` for the fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apply {
    /// Whose.
    pub account: Account,
    /// Which.
    pub mailbox: MailboxId,
    /// Where it stands, or will.
    pub name: MailboxName,
    /// How.
    pub mode: Mode,
    /// The replica's head that this was planned for.
    pub expect: Option<Head>,
    /// The master's head.
    pub target: Head,
    /// The master's HIGHESTMODSEQ; 0 without [`FEATURE_MODSEQ`].
    pub modseq: ModSeq,
    /// The master's keywords in its order; at most `limits::WIRE_KEYWORDS_MAX`.
    #[serde(deserialize_with = "at_most::<_, _, WIRE_KEYWORDS_MAX>")]
    pub keywords: Vec<Keyword>,
    /// At most `limits::SLICE_CHANGES`.
    #[serde(deserialize_with = "at_most::<_, _, SLICE_CHANGES>")]
    pub changes: Vec<Change>,
    /// Whether this is the last slice.
    pub last: bool,
}

/// The agent's word inside an apply, instead of octets: the message is gone, forget this apply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abort;

/// Answers a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Some accounts, in order.
    Accounts {
        /// Name and `digest::account`.
        accounts: Vec<(Account, Digest)>,
        /// Whether another part follows.
        more: bool,
    },
    /// An account's lists, in parts.
    Account {
        /// Mailboxes, in order of their names.
        mailboxes: Vec<MailboxState>,
        /// Files, in order of their keys.
        files: Vec<FileState>,
        /// Mailboxes that are there but cannot be read, and why; at most
        /// `limits::LISTING_PER_FRAME`.
        #[serde(deserialize_with = "at_most::<_, _, LISTING_PER_FRAME>")]
        unread: Vec<(MailboxName, String)>,
        /// Whether another part follows.
        more: bool,
    },
    /// Records of a mailbox, in parts.
    Records {
        /// The mailbox; `None` if it is not there.
        state: Option<MailboxState>,
        /// By UID.
        records: Vec<Record>,
        /// Whether another part follows.
        more: bool,
    },
    /// Durable.
    Done,
    /// Which additions' octets the replica lacks, by their place among the additions.
    Need(#[serde(deserialize_with = "at_most::<_, _, SLICE_CHANGES>")] Vec<u32>),
    /// Durable; the mailbox's new head.
    Applied(Head),
    /// The mailbox is not at the head expected: plan again.
    Stale(Option<Head>),
    /// It did not work; nothing acked.
    Failed(Failure),
    /// Answers [`Request::Preflight`].
    Ready {
        /// The replica's clock, in milliseconds since 1970.
        clock: u64,
        /// What stands against it, for humans; at most `limits::BLOCKERS_MAX`.
        #[serde(deserialize_with = "at_most::<_, _, BLOCKERS_MAX>")]
        blockers: Vec<String>,
    },
    /// The sum of `digest::twig` over the accounts of each branch.
    Tree(Vec<Digest>),
    /// What was found, or as much of it as fits.
    Inspected(Inspected),
    /// Octets of a message, in parts.
    Octets {
        /// At most `limits::CHUNK_OCTETS`.
        octets: Vec<u8>,
        /// Whether another part follows.
        more: bool,
    },
    /// It did not work, and the fault is one message's: without it, the rest may work.
    FailedMessage(Uid, Failure),
    /// A message in the graveyard, whose octets follow.
    Grave {
        /// When it came there, in milliseconds since 1970.
        at: u64,
        /// Under which UID it was, if that is known.
        uid: Option<Uid>,
        /// How many octets it has.
        octets: u64,
        /// INTERNALDATE in seconds since 1970.
        internal_date: i64,
    },
    /// Answers [`Request::About`].
    About {
        /// The replica daemon's version.
        version: String,
        /// Its clock, in milliseconds since 1970.
        clock: u64,
    },
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What the agent should do.
    pub remedy: Remedy,
    /// One-word code, as in metrics and quarantine.
    pub reason: String,
    /// For humans: operation, object, cause.
    pub detail: String,
}

/// What to do about an error: the only thing most callers need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Remedy {
    /// Back off and dial again; nothing is wrong with the mail.
    Reconnect,
    /// Set this mailbox aside and carry on with the others.
    SetAside,
    /// Stop and tell a human.
    Stop,
}

/// Encodes a message for a frame.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_allocvec(message).expect("a buffer that grows takes every message")
}

/// Decodes a frame's payload: one whole message and nothing behind it.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Some(message),
        _ => None,
    }
}

/// What the other side says in words, for logs, files and people: short, and on one line.
pub fn told(text: &str) -> String {
    let mut short = String::new();
    for character in text.chars().take(TOLD_MAX) {
        if character.is_control() {
            short.extend(character.escape_default());
        } else {
            short.push(character);
        }
    }
    short
}

/// Agrees on a protocol version, or says which side is too old.
pub fn agree(hello: &Hello) -> Result<u16, &'static str> {
    if hello.model != MODEL {
        return Err(if hello.model > MODEL {
            "the replica's version is too old: upgrade the replica"
        } else {
            "the agent's version is too old: upgrade the agent"
        });
    }
    if hello.version_min > VERSION_MAX {
        return Err("the replica's version is too old: upgrade the replica");
    }
    if hello.version_max < VERSION_MIN {
        return Err("the agent's version is too old: upgrade the agent");
    }
    Ok(hello.version_max.min(VERSION_MAX))
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    fn hello(min: u16, max: u16, model: u16) -> Hello {
        Hello {
            version_min: min,
            version_max: max,
            model,
            node: "mx1".to_string(),
            epoch: Epoch(1),
            features: 0,
            log: LogId([7; 16]),
        }
    }

    #[test]
    fn versions() {
        assert_eq!(agree(&hello(1, 9, MODEL)), Ok(VERSION_MAX));
        assert!(agree(&hello(VERSION_MAX + 1, 9, MODEL)).unwrap_err().contains("the replica"));
        assert!(agree(&hello(0, 0, MODEL)).unwrap_err().contains("the agent"));
        assert!(agree(&hello(1, 1, MODEL + 1)).unwrap_err().contains("the replica"));
    }

    #[test]
    fn lists_that_are_too_long_are_refused_before_they_take_memory() {
        let head = Head::default();
        let apply = |keywords: usize, changes: usize| Apply {
            modseq: ModSeq(0),
            account: Account::new("ann").unwrap(),
            mailbox: MailboxId([1; 16]),
            name: MailboxName::inbox(),
            mode: Mode::Update,
            expect: Some(head),
            target: head,
            keywords: alloc::vec![String::new(); keywords],
            changes: alloc::vec![Change::Expunge(Uid(1)); changes],
            last: true,
        };
        let accepted = |apply: Apply| decode::<Request>(&encode(&Request::Apply(apply))).is_some();
        assert!(accepted(apply(WIRE_KEYWORDS_MAX, SLICE_CHANGES)));
        assert!(!accepted(apply(WIRE_KEYWORDS_MAX + 1, 1)));
        assert!(!accepted(apply(1, SLICE_CHANGES + 1)));
        let need = |count| decode::<Reply>(&encode(&Reply::Need(alloc::vec![0; count]))).is_some();
        assert!(need(SLICE_CHANGES) && !need(SLICE_CHANGES + 1));
        // A list that says it is longer than its frame.
        assert_eq!(decode::<Reply>(&[4, 0xff, 0xff, 0xff, 0xff, 0x0f]), None);
    }

    #[test]
    fn what_the_other_side_says_is_cut_and_kept_on_one_line() {
        assert_eq!(told("disk\nfull\u{1b}"), "disk\\nfull\\u{1b}");
        assert_eq!(told(&"x".repeat(1 << 20)).len(), TOLD_MAX);
    }

    #[test]
    fn round_trip_and_trailing_octets() {
        let request = Request::Account(Account::new("ann").unwrap());
        let mut octets = encode(&request);
        assert_eq!(decode(&octets), Some(request));
        octets.push(0);
        assert_eq!(decode::<Request>(&octets), None);
        // A name with `..` is refused while it is being read.
        let hostile = encode(&(1_u8, "../x"));
        assert_eq!(decode::<Request>(&hostile), None);
    }
}
