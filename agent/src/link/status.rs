//! What a link tells the rest of its agent about itself.

use std::sync::Arc;

use mailtwin_logic::{ids::LogSeq, link::Phase};

use crate::{brake::Holds, quarantine::Aside};

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
    /// What is set aside.
    pub aside: Arc<Vec<Aside>>,
    /// What the brake holds.
    pub brake: Holds,
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
            aside: Arc::default(),
            brake: Arc::default(),
        }
    }

    /// Age of the lag in milliseconds; 0 without lag.
    pub fn lag_ms(&self, now: u64) -> u64 {
        self.oldest_at.map_or(0, |at| now.saturating_sub(at))
    }
}
