//! What `replctl check` and the agent say to each other. Fields are only ever added.

use mailtwin_logic::check::{Depth, Difference, Local, Repair, Side};
use serde::{Deserialize, Serialize};

/// What is to be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckAsk {
    /// `account` or `account/mailbox`; none: everything.
    pub targets: Vec<String>,
    /// Only this replica; every one if absent.
    pub replica: Option<String>,
    /// How closely.
    pub level: CheckLevel,
    /// Which part of the messages is read, in thousandths, at level deep; all if absent.
    pub sample: Option<u16>,
    /// Octets read per second and side, at most, at level deep.
    pub rate: Option<u64>,
    /// How long changes under way may take to settle, in milliseconds.
    pub settle_ms: Option<u64>,
}

/// How closely two nodes are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckLevel {
    /// One digest for each mailbox.
    Quick,
    /// Every record, every file's size and date.
    #[default]
    Full,
    /// Every octet.
    Deep,
}

impl CheckLevel {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Full => "full",
            Self::Deep => "deep",
        }
    }
}

/// A check that runs, or has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckState {
    /// Its number.
    pub id: u64,
    /// How far it is.
    pub progress: CheckProgress,
    /// Absent while it runs. Differences are asked for in parts.
    pub report: Option<CheckReport>,
}

/// How far a check is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckProgress {
    /// What it is doing.
    pub phase: String,
    /// Messages there are to be compared, as far as they are counted.
    pub messages_total: u64,
    /// Messages compared.
    pub messages: u64,
    /// Octets of them.
    pub octets: u64,
    /// Mailboxes that are looked at again because they were changing.
    pub settling: u64,
}

/// What a check came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Version of this shape.
    pub schema_version: u32,
    /// The master's node name.
    pub node: String,
    /// The replicas compared with it.
    pub replicas: Vec<String>,
    /// What was compared: as asked for; empty for everything.
    pub targets: Vec<String>,
    /// `quick`, `full` or `deep`.
    pub level: CheckLevel,
    /// `equal`, `different` or `incomplete`.
    pub result: String,
    /// When it began, in milliseconds since 1970.
    pub began: u64,
    /// How long it took.
    pub seconds: f64,
    /// Accounts compared.
    pub accounts: u64,
    /// Mailboxes compared.
    pub mailboxes: u64,
    /// Messages compared.
    pub messages: u64,
    /// Their octets (0 at level quick, which does not count them).
    pub bytes: u64,
    /// Messages read on each side (level deep).
    pub messages_read: u64,
    /// Their octets.
    pub bytes_read: u64,
    /// All that was found, also what is not listed.
    pub found: u64,
    /// The worst first.
    pub differences: Vec<CheckDifference>,
    /// What could not be compared, and why.
    pub incomplete: Vec<String>,
    /// Repairs carried out.
    #[serde(default)]
    pub repaired: u64,
    /// The number by which what the repair took is brought back; absent if it took nothing.
    #[serde(default)]
    pub undo: Option<u64>,
    /// Where the signed report is.
    #[serde(default)]
    pub file: Option<String>,
}

/// What the last check of everything came to for one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCheck {
    /// When it began, in milliseconds since 1970.
    pub at: u64,
    /// How closely it looked.
    pub level: CheckLevel,
    /// `equal`, `different` or `incomplete`.
    pub result: String,
    /// Differences found.
    pub found: u64,
}

/// One difference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckDifference {
    /// Which replica.
    pub replica: String,
    /// Whose.
    pub account: String,
    /// Where.
    pub mailbox: Option<String>,
    /// Its identity.
    pub mailbox_id: Option<String>,
    /// Which message.
    pub uid: Option<u32>,
    /// One-word code.
    pub kind: String,
    /// `master`, `replica` or `unknown`: which is wrong.
    pub side: String,
    /// For humans.
    pub detail: String,
    /// `replay`, `replace`, `rewrite`, `bury` or `none`.
    pub repair: String,
}

impl CheckDifference {
    /// A difference as it is told; `replica` is empty where only one node was looked at.
    pub fn of(replica: &str, found: &Difference) -> Self {
        let side = match found.side {
            Side::Master => "master",
            Side::Replica => "replica",
            Side::Unknown => "unknown",
        };
        let repair = match found.repair {
            Repair::Replay => "replay",
            Repair::Replace => "replace",
            Repair::Rewrite => "rewrite",
            Repair::Bury => "bury",
            Repair::Raise => "raise",
            Repair::None => "none",
        };
        Self {
            replica: replica.to_owned(),
            account: found.account.to_string(),
            mailbox: found.name.as_ref().map(ToString::to_string),
            mailbox_id: found.mailbox.map(|id| id.to_string()),
            uid: found.uid.map(|uid| uid.0),
            kind: found.kind.name().to_owned(),
            side: side.to_owned(),
            detail: found.detail.clone(),
            repair: repair.to_owned(),
        }
    }
}

/// What of one node is to be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalAsk {
    /// `account` or `account/mailbox`; none: everything.
    pub targets: Vec<String>,
    /// How closely: `deep` reads every message.
    pub level: CheckLevel,
    /// Only accounts behind this one.
    pub after: Option<String>,
}

impl LocalAsk {
    /// How closely that is.
    pub fn depth(&self) -> Depth {
        match self.level {
            CheckLevel::Quick | CheckLevel::Full => Depth::Files,
            CheckLevel::Deep => Depth::Octets,
        }
    }
}

/// What some of a node's accounts came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalPart {
    /// The node.
    pub node: String,
    /// When it was looked at, in milliseconds since 1970.
    pub began: u64,
    /// Accounts looked at.
    pub accounts: u64,
    /// Their mailboxes.
    pub mailboxes: Vec<LocalMailbox>,
    /// Messages looked at.
    pub messages: u64,
    /// Their octets.
    pub bytes: u64,
    /// Messages read.
    pub messages_read: u64,
    /// Their octets.
    pub bytes_read: u64,
    /// All that is wrong, also what is not listed.
    pub found: u64,
    /// What is wrong.
    pub differences: Vec<CheckDifference>,
    /// What could not be looked at, and why.
    pub incomplete: Vec<String>,
    /// The last account looked at, if there are more.
    pub next: Option<String>,
}

/// A mailbox as one node's files have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalMailbox {
    /// Whose.
    pub account: String,
    /// Its name.
    pub mailbox: String,
    /// Its identity.
    pub mailbox_id: String,
    /// UIDVALIDITY.
    pub uid_validity: u32,
    /// UIDNEXT.
    pub uid_next: u32,
    /// How many messages it has.
    pub messages: u32,
}

impl LocalPart {
    /// As it is told.
    pub fn of(node: &str, began: u64, local: &Local) -> Self {
        let mailboxes = local.mailboxes.iter().map(|(account, state)| LocalMailbox {
            account: account.to_string(),
            mailbox: state.name.to_string(),
            mailbox_id: state.id.to_string(),
            uid_validity: state.head.uid_validity.0,
            uid_next: state.head.uid_next.0,
            messages: state.head.messages,
        });
        Self {
            node: node.to_owned(),
            began,
            accounts: local.accounts,
            mailboxes: mailboxes.collect(),
            messages: local.messages,
            bytes: local.octets,
            messages_read: local.read,
            bytes_read: local.octets_read,
            found: local.found,
            differences: local.differences.iter().map(|one| CheckDifference::of("", one)).collect(),
            incomplete: local.incomplete.clone(),
            next: local.next.as_ref().map(ToString::to_string),
        }
    }
}
