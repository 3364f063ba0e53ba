//! What `replctl check` and the agent say to each other. Fields are only ever added.

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
