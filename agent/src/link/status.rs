//! What a link tells the rest of its agent about itself.

use std::sync::Arc;

use mailtwin_host::codes::KeyTrouble;
use mailtwin_logic::{cursor::Claim, ids::LogSeq, link::Phase};

use crate::{brake::Holds, progress::Copied, quarantine::Aside};

/// A link as it was a moment ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// The replica.
    pub name: String,
    /// What it is doing.
    pub phase: Phase,
    /// Whether a connection stands.
    pub connected: bool,
    /// Everything up to here is on the replica, or set aside.
    pub cursor: LogSeq,
    /// Entries it lacks.
    pub lag_entries: u64,
    /// When the oldest of them was appended, in milliseconds since 1970.
    pub oldest_at: Option<u64>,
    /// Why it is not connected.
    pub last_error: Option<String>,
    /// Whether that is a key.
    pub key_trouble: Option<KeyTrouble>,
    /// What is set aside.
    pub aside: Arc<Vec<Aside>>,
    /// What the brake holds.
    pub brake: Holds,
    /// Whether the log still has what it lacks.
    pub claim: Claim,
    /// How far a copy of everything is, while there is one.
    pub copy: Option<Copying>,
}

/// A copy of everything under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copying {
    /// How far it is.
    pub copied: Copied,
    /// Messages in a thousand seconds, lately.
    pub per_kilosecond: Option<u64>,
}

impl Copying {
    /// Messages that are left, as far as they are counted.
    pub fn left(&self) -> u64 {
        self.copied.of.saturating_sub(self.copied.there)
    }

    /// Milliseconds that they take, at the pace of late.
    pub fn left_ms(&self) -> Option<u64> {
        self.left().saturating_mul(1_000_000).checked_div(self.per_kilosecond?)
    }
}

impl LinkStatus {
    /// A link that has not begun.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            phase: Phase::Waiting,
            connected: false,
            cursor: LogSeq(0),
            lag_entries: 0,
            oldest_at: None,
            last_error: None,
            key_trouble: None,
            aside: Arc::default(),
            brake: Arc::default(),
            claim: Claim::Ok,
            copy: None,
        }
    }

    /// Age of the lag in milliseconds; 0 without lag.
    pub fn lag_ms(&self, now: u64) -> u64 {
        self.oldest_at.map_or(0, |at| now.saturating_sub(at))
    }
}
