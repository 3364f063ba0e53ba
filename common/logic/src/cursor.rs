//! How far one replica is in the sync log, and whether the log still covers the rest.

use serde::{Deserialize, Serialize};

use crate::ids::{LogId, LogSeq};

/// A replica's position: everything up to and including `seq` is durable there, or durably set
/// aside for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The log it counts in.
    pub log: LogId,
    /// Position in it.
    pub seq: LogSeq,
}

/// What a sync log holds now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its identity.
    pub id: LogId,
    /// The oldest position it still has an entry for; one above `head` if it has none.
    pub oldest: LogSeq,
    /// Position of the newest entry.
    pub head: LogSeq,
    /// Octets of all entries from `oldest` to `head`.
    pub octets: u64,
    /// Octets at which the oldest entries go, read or not.
    pub bound_octets: u64,
}

/// Whether a replica can catch up by replaying the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    /// It can.
    Ok,
    /// It can, but what it needs fills three quarters of what the log may hold.
    AtRisk,
    /// Entries it needs are gone, or its cursor is not of this log: all must be compared.
    Lost,
}

impl Claim {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Ok, Self::AtRisk, Self::Lost];

    /// One word for it, as in status, metrics and docs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::AtRisk => "at-risk",
            Self::Lost => "lost",
        }
    }
}

impl Extent {
    /// What `cursor` can still count on.
    ///
    /// What it needs is estimated from its share of the entries, as if all were of one size.
    pub fn claim(&self, cursor: Cursor) -> Claim {
        let beyond = cursor.seq > self.head;
        let gone = cursor.seq.0.saturating_add(1) < self.oldest.0;
        if cursor.log != self.id || beyond || gone {
            return Claim::Lost;
        }
        let held = u128::from(self.head.0 - self.oldest.0.min(self.head.0)) + 1;
        let needed = u128::from(self.head.0 - cursor.seq.0);
        let octets = u128::from(self.octets) * needed.min(held) / held;
        if octets * 4 >= u128::from(self.bound_octets) * 3 { Claim::AtRisk } else { Claim::Ok }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: LogId = LogId([1; 16]);

    fn claim(oldest: u64, head: u64, octets: u64, seq: u64) -> Claim {
        let (oldest, head) = (LogSeq(oldest), LogSeq(head));
        let extent = Extent { id: LOG, oldest, head, octets, bound_octets: 1000 };
        extent.claim(Cursor { log: LOG, seq: LogSeq(seq) })
    }

    #[test]
    fn table() {
        let rows = [
            (1, 0, 0, 0, Claim::Ok, "an empty log and nothing replayed"),
            (1, 100, 1000, 100, Claim::Ok, "at the head of a full log"),
            (1, 100, 1000, 0, Claim::AtRisk, "needs all of a full log"),
            (1, 100, 750, 0, Claim::AtRisk, "needs three quarters of the bound"),
            (1, 100, 749, 0, Claim::Ok, "needs less"),
            (1, 100, 1000, 50, Claim::Ok, "needs half"),
            (51, 100, 500, 50, Claim::Ok, "the next entry is the oldest"),
            (51, 100, 500, 49, Claim::Lost, "one entry is gone"),
            (101, 100, 0, 100, Claim::Ok, "all is passed and trimmed"),
            (101, 100, 0, 99, Claim::Lost, "trimmed without it"),
            (1, 100, 500, 101, Claim::Lost, "from a log that was longer"),
        ];
        for (oldest, head, octets, seq, expected, why) in rows {
            assert_eq!(claim(oldest, head, octets, seq), expected, "{why}");
        }
    }

    #[test]
    fn another_log_is_lost_wherever_it_stands() {
        let (oldest, head) = (LogSeq(1), LogSeq(9));
        let extent = Extent { id: LOG, oldest, head, octets: 9, bound_octets: 1000 };
        let other = Cursor { log: LogId([2; 16]), seq: LogSeq(9) };
        assert_eq!(extent.claim(other), Claim::Lost);
    }
}
