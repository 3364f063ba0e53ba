//! What stands against a failover: pure decisions from what the drivers have found out.

use alloc::{format, string::String, vec::Vec};

use crate::{ids::LogSeq, link::Phase};

/// Clocks of two nodes may differ by so much: an epoch is ordered by its number, but logs, ages and
/// retention are read by people who compare them.
const CLOCKS_APART_MAX_MS: u64 = 5_000;

/// Entries a replica may lack before the gate is closed: draining more takes longer than users wait.
const LAG_MAX: u64 = 1_000;

/// What may stand against a switch: the code that `replctl explain` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocker {
    /// The master's own store.
    Store,
    /// The sync log cannot be written.
    Log,
    /// There is no gate to close.
    NoGate,
    /// The replica is not connected.
    NotConnected,
    /// What only the replica has is being copied back.
    Merging,
    /// The replica is paused.
    Paused,
    /// The replica knows a newer epoch.
    Fenced,
    /// The replica lacks too much.
    Lag,
    /// Something is set aside.
    SetAside,
    /// The clocks are apart.
    Clocks,
    /// Something on the other node.
    OtherSide,
}

impl Blocker {
    /// The code.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Store => "preflight-store",
            Self::Log => "preflight-log",
            Self::NoGate => "preflight-no-gate",
            Self::NotConnected => "preflight-not-connected",
            Self::Merging => "preflight-merging",
            Self::Paused => "preflight-paused",
            Self::Fenced => "preflight-fenced",
            Self::Lag => "preflight-lag",
            Self::SetAside => "preflight-set-aside",
            Self::Clocks => "preflight-clocks",
            Self::OtherSide => "preflight-other-side",
        }
    }

    /// A sentence with its code.
    fn say(self, what: &str) -> String {
        format!("{what} [{}]", self.as_str())
    }
}

/// What a master knows before it hands over to a replica.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What the link to it is doing.
    pub phase: Phase,
    /// Why it is not connected, if it is not.
    pub last_error: Option<String>,
    /// Entries it lacks.
    pub lag: u64,
    /// What is set aside for it.
    pub aside: usize,
    /// Why the sync log cannot be written, if it cannot.
    pub log_error: Option<String>,
    /// Why the master's own store is not what it was, if it is not.
    pub store_error: Option<String>,
    /// Whether commands that close and open the gate are configured here.
    pub has_gate: bool,
    /// The master's clock, in milliseconds since 1970.
    pub clock: u64,
    /// The replica's clock and what it says against it; `None` if it was not asked or did not answer.
    pub answer: Option<(u64, Vec<String>)>,
}

/// Everything that stands against handing over to `name`, worst first; each with the next step.
pub fn blockers(name: &str, facts: &Facts) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(why) = &facts.store_error {
        all.push(Blocker::Store.say(&format!("the mail store of this node: {why}")));
    }
    if let Some(why) = &facts.log_error {
        all.push(Blocker::Log.say(&format!("the sync log cannot be written: {why}")));
    }
    if !facts.has_gate {
        all.push(Blocker::NoGate.say(
            "no gate: clients could write while the role moves; configure gate.close and gate.open, \
             or keep clients out yourself and say --no-gate",
        ));
    }
    match (facts.phase, &facts.last_error) {
        (Phase::InSync | Phase::Degraded | Phase::Replaying, _) => {}
        (Phase::Merging, _) => {
            let what = format!("what only {name} has is still being copied back: wait for that");
            all.push(Blocker::Merging.say(&what));
        }
        (Phase::Paused, _) => {
            let what = format!("{name} is paused: `replctl replica resume {name}`");
            all.push(Blocker::Paused.say(&what));
        }
        (Phase::Fenced(by), _) => {
            all.push(Blocker::Fenced.say(&format!("{name} knows a newer epoch, {by}")));
        }
        (Phase::Waiting | Phase::Connecting, Some(why)) => {
            all.push(Blocker::NotConnected.say(&format!("{name} is not connected: {why}")));
        }
        (Phase::Waiting | Phase::Connecting, None) => {
            all.push(Blocker::NotConnected.say(&format!("{name} is not connected yet")));
        }
    }
    if facts.lag > LAG_MAX {
        all.push(Blocker::Lag.say(&format!(
            "{name} lacks {} entries, and more than {LAG_MAX} take too long with the gate closed: \
             wait until `replctl status` shows less",
            facts.lag
        )));
    }
    if facts.aside > 0 {
        all.push(Blocker::SetAside.say(&format!(
            "{} mailboxes or accounts are set aside for {name}, and would be missing there: \
             `replctl status` names them",
            facts.aside
        )));
    }
    if let Some((theirs, reasons)) = &facts.answer {
        let apart = theirs.abs_diff(facts.clock);
        if apart > CLOCKS_APART_MAX_MS {
            let seconds = apart / 1000;
            let what =
                format!("the clocks of this node and {name} are {seconds} s apart: set them");
            all.push(Blocker::Clocks.say(&what));
        }
        all.extend(
            reasons.iter().map(|reason| Blocker::OtherSide.say(&format!("{name}: {reason}"))),
        );
    }
    all
}

/// Whether a replica that is at `cursor` in `phase` has everything up to `upto`, and nothing left to do.
pub fn is_drained(phase: Phase, cursor: LogSeq, upto: LogSeq) -> bool {
    phase == Phase::InSync && cursor >= upto
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec};

    use crate::ids::Epoch;

    use super::*;

    fn good() -> Facts {
        Facts {
            phase: Phase::InSync,
            last_error: None,
            lag: 3,
            aside: 0,
            log_error: None,
            store_error: None,
            has_gate: true,
            clock: 100_000,
            answer: Some((104_000, vec![])),
        }
    }

    #[test]
    fn a_good_pair_may_switch_and_every_fault_is_named() {
        assert_eq!(blockers("mx2", &good()), Vec::<String>::new());
        let faults = [
            (Facts { store_error: Some("gone".to_string()), ..good() }, "gone"),
            (Facts { log_error: Some("full".to_string()), ..good() }, "full"),
            (Facts { has_gate: false, ..good() }, "--no-gate"),
            (Facts { phase: Phase::Paused, ..good() }, "replica resume mx2"),
            (Facts { phase: Phase::Waiting, last_error: None, ..good() }, "not connected"),
            (Facts { phase: Phase::Fenced(Epoch(9)), ..good() }, "newer epoch, 9"),
            (Facts { lag: 1_001, ..good() }, "1001 entries"),
            (Facts { aside: 2, ..good() }, "2 mailboxes"),
            (Facts { clock: 200_000, ..good() }, "96 s apart"),
            (Facts { answer: Some((100_000, vec!["full".to_string()])), ..good() }, "mx2: full"),
        ];
        for (facts, says) in faults {
            let found = blockers("mx2", &facts);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(says), "{found:?} does not say {says}");
        }
    }

    #[test]
    fn what_is_set_aside_is_not_drained() {
        assert!(is_drained(Phase::InSync, LogSeq(4), LogSeq(4)));
        assert!(!is_drained(Phase::InSync, LogSeq(3), LogSeq(4)));
        assert!(!is_drained(Phase::Degraded, LogSeq(4), LogSeq(4)));
    }
}
