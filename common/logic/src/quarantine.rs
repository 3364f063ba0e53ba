//! Why something is set aside, and the ladder that heals what it can.
//!
//! ```text
//!   retry ──▶ compare ──▶ reseed ──▶ human
//!   as ever    all records  build anew  as `compare`, and an admin is told
//! ```
//!
//! Each failure may lead one step up; a success leads out. A step is reached only after both a number
//! of trials and some time: mail that goes on arriving must not hurry it.

use core::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a mailbox, an account or a message fails: one code, which metrics, quarantine and `explain`
/// use. The list is closed; docs/quarantine.md says what to do about each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Changes all the time, or did not become equal in several comparisons.
    Busy,
    /// Vanishes while it is read.
    Missing,
    /// Octets and GUID differ.
    GuidMismatch,
    /// One UID means two messages, or mail is only on the replica.
    Conflict,
    /// The name cannot be stored.
    Name,
    /// A lock is never free.
    Locked,
    /// A file of the mail server, or a message, is damaged.
    Corrupt,
    /// Not the store it was.
    WrongStore,
    /// Permission denied.
    Denied,
    /// Disk full.
    Full,
    /// A quota of the file system is used up.
    OverQuota,
    /// Any other error of the operating system.
    Io,
    /// The peer refused, broke off, or gave a reason that is not in this list.
    Refused,
    /// Messages of the mailbox cannot be read on the master.
    Unreadable,
    /// Deletions are held by the brake.
    Brake,
}

impl Reason {
    /// Every code, in the order of the documentation.
    pub const ALL: [Self; 15] = [
        Self::Busy,
        Self::Missing,
        Self::GuidMismatch,
        Self::Conflict,
        Self::Name,
        Self::Locked,
        Self::Corrupt,
        Self::WrongStore,
        Self::Denied,
        Self::Full,
        Self::OverQuota,
        Self::Io,
        Self::Refused,
        Self::Unreadable,
        Self::Brake,
    ];

    /// The code.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Missing => "missing",
            Self::GuidMismatch => "guid-mismatch",
            Self::Conflict => "conflict",
            Self::Name => "name",
            Self::Locked => "locked",
            Self::Corrupt => "corrupt",
            Self::WrongStore => "wrong-store",
            Self::Denied => "denied",
            Self::Full => "full",
            Self::OverQuota => "over-quota",
            Self::Io => "io",
            Self::Refused => "refused",
            Self::Unreadable => "unreadable",
            Self::Brake => "brake",
        }
    }

    /// The code that a peer sent; what is not in the list counts as a refusal, so that no peer can
    /// make up codes.
    pub fn of_peer(code: &str) -> Self {
        code.parse().unwrap_or(Self::Refused)
    }

    /// Whether one message alone may have it while its neighbours are well. A full disk, a lock or
    /// a lost store is never the fault of a message.
    pub fn is_of_one_message(self) -> bool {
        match self {
            Self::GuidMismatch
            | Self::Conflict
            | Self::Name
            | Self::Corrupt
            | Self::Denied
            | Self::Io => true,
            Self::Busy
            | Self::Missing
            | Self::Locked
            | Self::WrongStore
            | Self::Full
            | Self::OverQuota
            | Self::Refused
            | Self::Unreadable
            | Self::Brake => false,
        }
    }

    /// Whether building the mailbox anew on the replica could mend it. What keeps us from reading or
    /// writing would keep us from building as well, and then less would be there than before.
    fn may_reseed_mend(self) -> bool {
        matches!(self, Self::GuidMismatch | Self::Conflict | Self::Corrupt | Self::Busy)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that is no code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no such reason")]
pub struct UnknownReason;

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(code: &str) -> Result<Self, UnknownReason> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == code).ok_or(UnknownReason)
    }
}

/// What the next trial of something set aside does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// A visit like any other, after a growing pause.
    Retry,
    /// All records of both sides are compared, whatever is remembered of them.
    Compare,
    /// The replica's mailbox goes to its graveyard and is built anew, if the master has every
    /// message that it holds; otherwise as [`Step::Compare`].
    Reseed,
    /// As [`Step::Compare`], at the longest pause; an admin has been told.
    Human,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Retry => "retry",
            Self::Compare => "compare",
            Self::Reseed => "reseed",
            Self::Human => "human",
        })
    }
}

/// Failures and age in milliseconds from which on a step is taken, highest first.
const LADDER: [(u32, u64, Step); 3] =
    [(12, 10 * 60_000, Step::Human), (9, 2 * 60_000, Step::Reseed), (4, 10_000, Step::Compare)];

/// The step to take next with what failed `tries` times, for the first time `age_ms` ago.
pub fn step(reason: Reason, tries: u32, age_ms: u64) -> Step {
    let reached = LADDER.iter().find(|(least, age, _)| tries >= *least && age_ms >= *age);
    let step = reached.map_or(Step::Retry, |(_, _, step)| *step);
    // No trial lets go of the brake: only an admin does.
    if reason == Reason::Brake {
        return Step::Human;
    }
    if step == Step::Reseed && !reason.may_reseed_mend() { Step::Compare } else { step }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_back_and_made_up_ones_are_not_taken() {
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(reason));
            assert_eq!(Reason::of_peer(reason.as_str()), reason);
        }
        assert_eq!(Reason::of_peer("no\nsuch"), Reason::Refused);
    }

    #[test]
    fn the_ladder() {
        use Reason::{Brake, Conflict, Denied};
        let (second, minute) = (1000, 60_000);
        let cases = [
            (Conflict, 1, 0, Step::Retry),
            (Conflict, 4, 15 * second, Step::Compare),
            // Mail keeps arriving in a broken mailbox: many failures, no time.
            (Conflict, 100, 5 * second, Step::Retry),
            (Conflict, 100, minute, Step::Compare),
            // The agent was down: much time, few failures.
            (Conflict, 2, 1000 * minute, Step::Retry),
            (Conflict, 9, 5 * minute, Step::Reseed),
            (Denied, 9, 5 * minute, Step::Compare),
            (Conflict, 12, 20 * minute, Step::Human),
            (Denied, 12, 20 * minute, Step::Human),
            (Brake, 1, 0, Step::Human),
        ];
        for (reason, tries, age, want) in cases {
            assert_eq!(step(reason, tries, age), want, "{reason} {tries} {age}");
        }
    }

    #[test]
    fn nothing_ever_leads_down() {
        for reason in Reason::ALL {
            let mut last = Step::Retry;
            for tries in 0..40 {
                let now = step(reason, tries, u64::from(tries) * 60_000);
                assert!(now >= last, "{reason}: {last} then {now}");
                last = now;
            }
            assert_eq!(last, Step::Human);
        }
    }
}
