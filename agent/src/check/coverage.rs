//! Remembers which parts of all messages were read when, so that samples cover everything in turn, and
//! what the last check of everything came to.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Mutex,
};

use mailtwin_disk::{
    DiskError, dir,
    replace::{PRIVATE, replace},
};
use mailtwin_host::admin::LastCheck;
use mailtwin_logic::check::{SLOTS, Slots};
use serde::{Deserialize, Serialize};

/// Version of the file's shape.
const VERSION: u32 = 1;
/// Places remembered of samples that were not of everything.
const SCOPES_MAX: usize = 100;

/// What is remembered about one replica.
#[derive(Debug)]
pub(crate) struct Coverage {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    /// Where the next sample begins, by what it is of.
    next: BTreeMap<String, u16>,
    /// When each part was read last, on both sides, in milliseconds since 1970; 0 for never.
    verified: Vec<u64>,
    /// The last check of everything.
    #[serde(default)]
    last: Option<LastCheck>,
}

impl State {
    fn fresh() -> Self {
        let (version, next) = (VERSION, BTreeMap::new());
        Self { version, next, verified: vec![0; SLOTS.into()], last: None }
    }

    fn is_sound(&self) -> bool {
        self.version == VERSION && self.verified.len() == usize::from(SLOTS)
    }
}

impl Coverage {
    /// Reads what is remembered; a file that is lost or damaged means that nothing was read yet.
    pub(crate) fn open(state_dir: &Path, replica: &str) -> Self {
        let path = state_dir.join("check").join(format!("{replica}.json"));
        let read = std::fs::read(&path).ok();
        let state = read.and_then(|text| serde_json::from_slice::<State>(&text).ok());
        let state = state.filter(State::is_sound).unwrap_or_else(State::fresh);
        Self { path, state: Mutex::new(state) }
    }

    /// The next `thousandths` of `scope`.
    pub(crate) fn next(&self, scope: &str, thousandths: Option<u16>) -> Slots {
        let Some(count) = thousandths else { return Slots::ALL };
        let state = self.state.lock().expect("no panic while it is held");
        let from = state.next.get(scope).copied().unwrap_or(0) % SLOTS;
        Slots { from, count: count.clamp(1, SLOTS) }
    }

    /// `slots` of `scope`, which is empty for everything, were read at `at`.
    pub(crate) fn read(&self, scope: &str, slots: Slots, at: u64) -> Result<(), DiskError> {
        let mut state = self.state.lock().expect("no panic while it is held");
        if state.next.len() >= SCOPES_MAX {
            state.next.retain(|scope, _| scope.is_empty());
        }
        let next = (u32::from(slots.from) + u32::from(slots.count)) % u32::from(SLOTS);
        state.next.insert(scope.to_owned(), u16::try_from(next).unwrap_or(0));
        if scope.is_empty() {
            for (slot, verified) in (0..SLOTS).zip(&mut state.verified) {
                if slots.has(slot) {
                    *verified = at;
                }
            }
        }
        self.keep(&state)
    }

    /// A check of everything has ended.
    pub(crate) fn ended(&self, check: LastCheck) -> Result<(), DiskError> {
        let mut state = self.state.lock().expect("no panic while it is held");
        state.last = Some(check);
        self.keep(&state)
    }

    /// The last check of everything.
    pub(crate) fn last(&self) -> Option<LastCheck> {
        self.state.lock().expect("no panic while it is held").last.clone()
    }

    fn keep(&self, state: &State) -> Result<(), DiskError> {
        if let Some(dir) = self.path.parent() {
            dir::create(dir, 0o700)?;
        }
        let text = serde_json::to_vec(state).expect("numbers always encode");
        replace(&self.path, &text, PRIVATE)
    }

    /// When the part that was not read for longest was read, in milliseconds since 1970; 0 for
    /// never.
    pub(crate) fn oldest(&self) -> u64 {
        let state = self.state.lock().expect("no panic while it is held");
        state.verified.iter().copied().min().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use mailtwin_host::admin::CheckLevel;

    use super::*;

    #[test]
    fn twenty_nights_of_a_twentieth_cover_everything() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Coverage::open(dir.path(), "mx2");
        let mut seen = vec![0; SLOTS.into()];
        for night in 1..=20 {
            // Remembered over restarts.
            let coverage = open();
            assert_eq!(coverage.oldest(), 0);
            let slots = coverage.next("", Some(50));
            for slot in 0..SLOTS {
                seen[usize::from(slot)] += u32::from(slots.has(slot));
            }
            coverage.read("", slots, night).unwrap();
        }
        assert!(seen.iter().all(|&count| count == 1));
        assert_eq!(open().oldest(), 1);
        let coverage = open();
        coverage.read("ann", coverage.next("ann", Some(300)), 99).unwrap();
        assert_eq!(coverage.next("ann", Some(300)).from, 300);
        // A part of the accounts says nothing about all of them.
        assert_eq!(coverage.oldest(), 1);
        coverage.read("", coverage.next("", None), 100).unwrap();
        assert_eq!(open().oldest(), 100);
        let result = "equal".to_owned();
        let last = LastCheck { at: 7, level: CheckLevel::Full, result, found: 0 };
        open().ended(last.clone()).unwrap();
        // Neither forgets the other.
        assert_eq!((open().last(), open().oldest()), (Some(last), 100));
        std::fs::File::create(dir.path().join("check/mx2.json")).unwrap();
        assert_eq!(open().oldest(), 0);
    }
}
