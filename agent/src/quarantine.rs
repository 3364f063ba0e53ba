//! What is set aside for one replica: durable before the cursor moves past it, readable by an admin.
//!
//! `<state>/quarantine/<replica>.json` holds one JSON object per line. Only ever appended to while
//! the agent runs: of several lines about one target the last counts, and one that says `released`
//! ends it. Written anew when most of it is past.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use mailtwin_disk::{
    DiskError,
    lines::{self, LineFile},
    replace::{PRIVATE, replace},
};
use mailtwin_logic::{
    entry::Target,
    ids::{Account, Uid},
    mailbox::MailboxName,
    quarantine::{self, Reason, Step},
};
use serde::{Deserialize, Serialize};

use crate::visit::Trouble;

/// Targets set aside for one replica; with more, the replica is in trouble, not its mailboxes.
pub(crate) const ASIDE_MAX: usize = 10_000;
/// How often a target that fails again and again for one cause is written down, in milliseconds:
/// that it is set aside is durable already, and the rest is for humans.
const NOTE_EVERY: u64 = 60_000;
/// Lines beyond twice what is set aside, from which on the file is written anew.
const LINES_SPARE: usize = 1000;
/// Longest text of an error that is kept, in characters.
const TEXT_MAX: usize = 500;

/// One target set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// Whose.
    pub account: Account,
    /// Which mailbox; absent if it is the account's list or files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mailbox: Option<MailboxName>,
    /// Account and mailbox, printable.
    pub object: String,
    /// Why, the last time.
    pub reason: Reason,
    /// The first error, for humans.
    pub first: String,
    /// The last one.
    pub last: String,
    /// How often it was tried.
    pub tries: u32,
    /// When it failed first, in milliseconds since 1970.
    pub since: u64,
    /// When it failed last.
    #[serde(default)]
    pub last_at: u64,
    /// Messages in the mailbox on the master, if that could be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<u32>,
    /// Their octets, if all of them were looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub octets: Option<u64>,
    /// The messages that are the cause, if the rest of the mailbox is replicated; the first ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad: Vec<BadMessage>,
    /// Messages and mailboxes whose deletion the brake holds.
    #[serde(default)]
    pub held: (u64, u64),
    /// When it is tried next; known while the agent runs.
    #[serde(skip)]
    pub next_at: Option<u64>,
}

/// A message that cannot be replicated while its neighbours can.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadMessage {
    /// Its UID; absent if it has none that we know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
    /// Its file's name, or what else names it in the store.
    pub name: String,
    /// Subject, date and Message-ID, as far as they could be read.
    pub about: String,
    /// Why.
    pub reason: Reason,
    /// For humans.
    pub detail: String,
}

impl Aside {
    /// What it is about.
    pub fn target(&self) -> Target {
        match &self.mailbox {
            Some(mailbox) => Target::Mailbox(self.account.clone(), mailbox.clone()),
            None => Target::Account(self.account.clone()),
        }
    }

    /// What the next trial does, at `now` in milliseconds since 1970.
    pub fn step(&self, now: u64) -> Step {
        quarantine::step(self.reason, self.tries, now.saturating_sub(self.since))
    }

    /// After another failure.
    fn again(&self, trouble: &Trouble, now: u64) -> Self {
        Self {
            reason: trouble.reason,
            last: cut(&trouble.detail),
            tries: self.tries.saturating_add(1),
            last_at: now,
            messages: trouble.messages.or(self.messages),
            octets: trouble.octets.or(self.octets),
            bad: trouble.bad.clone(),
            held: trouble.held,
            ..self.clone()
        }
    }
}

/// A line that ends what lines before it said.
#[derive(Debug, Serialize, Deserialize)]
struct Released {
    #[serde(rename = "released")]
    ends: bool,
    account: Account,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mailbox: Option<MailboxName>,
}

/// What an admin must be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// It failed before, for the same cause.
    Nothing,
    /// The cause is a new one.
    Cause,
    /// Nothing has helped: from now on it needs a human.
    Human,
}

/// All of one replica's.
#[derive(Debug)]
pub(crate) struct Quarantine {
    path: PathBuf,
    file: LineFile,
    /// Lines in the file, at least.
    lines: usize,
    aside: BTreeMap<Target, Kept>,
}

#[derive(Debug)]
struct Kept {
    aside: Aside,
    /// When its line was written.
    noted: u64,
    /// Causes that are in the log already, and whether it says that a human is needed.
    told: (BTreeSet<Reason>, bool),
}

/// Why nothing could be set aside.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QuarantineError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There are too many already.
    #[error("{ASIDE_MAX} mailboxes are set aside already: the replica itself must be looked at")]
    Full,
}

impl Quarantine {
    /// Reads the file. A line that is damaged is dropped with a warning: its mailbox differs, and
    /// the comparison at the next greeting finds it again.
    pub(crate) fn open(state_dir: &Path, replica: &str) -> Result<Self, QuarantineError> {
        let dir = state_dir.join("quarantine");
        let path = dir.join(format!("{replica}.json"));
        mailtwin_disk::dir::create(&dir, 0o700)?;
        let mut aside = BTreeMap::new();
        lines::read(&path, |line| {
            if let Ok(Released { account, mailbox, .. }) = serde_json::from_str(line) {
                aside.remove(&target_of(account, mailbox));
                return;
            }
            match serde_json::from_str::<Aside>(line) {
                Ok(entry) => {
                    let kept = Kept { aside: entry, noted: 0, told: Default::default() };
                    aside.insert(kept.aside.target(), kept);
                }
                Err(error) => {
                    tracing::warn!(code = "quarantine-line-lost", path = %path.display(), %error, "dropping a damaged line");
                }
            }
        })?;
        let file = write_all(&path, &aside)?;
        Ok(Self { path, file, lines: aside.len(), aside })
    }

    /// Everything set aside.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Aside> {
        self.aside.values().map(|kept| &kept.aside)
    }

    /// One target, if it is set aside.
    pub(crate) fn get(&self, target: &Target) -> Option<&Aside> {
        self.aside.get(target).map(|kept| &kept.aside)
    }

    /// Sets `target` aside, or notes that it failed again; that it is set aside is durable on
    /// return. Tells what of that belongs into the log.
    pub(crate) fn put(
        &mut self,
        target: &Target,
        trouble: &Trouble,
        now: u64,
    ) -> Result<News, QuarantineError> {
        let Some(account) = target.account() else {
            return Ok(News::Nothing); // everything is never set aside: its accounts are
        };
        if let Some(kept) = self.aside.get_mut(target) {
            let is_new = kept.told.0.insert(trouble.reason);
            kept.aside = kept.aside.again(trouble, now);
            let human = kept.aside.step(now) == Step::Human && trouble.reason != Reason::Brake;
            let human = human && !std::mem::replace(&mut kept.told.1, human);
            if is_new || kept.noted.saturating_add(NOTE_EVERY) <= now {
                kept.noted = now;
                let line = encode(&kept.aside);
                if let Err(error) = self.append(&line) {
                    // What counts is on the disk since the first time.
                    tracing::debug!(%error, "cannot note that something failed again");
                }
            }
            if trouble.reason == Reason::Brake {
                return Ok(News::Nothing);
            }
            return Ok(if human {
                News::Human
            } else if is_new {
                News::Cause
            } else {
                News::Nothing
            });
        }
        // What the brake holds is many mailboxes at once, and no sign of a sick replica.
        let max = if trouble.reason == Reason::Brake { 10 * ASIDE_MAX } else { ASIDE_MAX };
        if self.aside.len() >= max {
            return Err(QuarantineError::Full);
        }
        let mailbox = match target {
            Target::Mailbox(_, mailbox) => Some(mailbox.clone()),
            Target::Store | Target::Account(_) => None,
        };
        let aside = Aside {
            account: account.clone(),
            mailbox,
            object: target.to_string(),
            reason: trouble.reason,
            first: cut(&trouble.detail),
            last: cut(&trouble.detail),
            tries: 1,
            since: now,
            last_at: now,
            messages: trouble.messages,
            octets: trouble.octets,
            bad: trouble.bad.clone(),
            held: trouble.held,
            next_at: None,
        };
        self.append(&encode(&aside))?;
        let told = (BTreeSet::from([trouble.reason]), false);
        self.aside.insert(target.clone(), Kept { aside, noted: now, told });
        // The brake itself says once that it holds.
        Ok(if trouble.reason == Reason::Brake { News::Nothing } else { News::Cause })
    }

    /// Takes `target` off the list; tells whether it was on it.
    pub(crate) fn release(&mut self, target: &Target) -> Result<bool, QuarantineError> {
        let Some(Kept { aside, .. }) = self.aside.remove(target) else { return Ok(false) };
        let Aside { account, mailbox, .. } = aside;
        self.append(&encode(&Released { ends: true, account, mailbox }))?;
        Ok(true)
    }

    /// Appends a line, durably, and drops what is past when there is much of it.
    fn append(&mut self, line: &str) -> Result<(), DiskError> {
        self.file.append(line)?;
        self.lines += 1;
        if self.lines > 2 * self.aside.len() + LINES_SPARE {
            // The line just written may be of a target that is not on the list yet.
            let last = serde_json::from_str::<Aside>(line).ok();
            self.file = write_all(&self.path, &self.aside)?;
            self.lines = self.aside.len();
            if last.is_some() {
                self.file.append(line)?;
            }
        }
        Ok(())
    }
}

fn target_of(account: Account, mailbox: Option<MailboxName>) -> Target {
    match mailbox {
        Some(mailbox) => Target::Mailbox(account, mailbox),
        None => Target::Account(account),
    }
}

fn write_all(path: &Path, aside: &BTreeMap<Target, Kept>) -> Result<LineFile, DiskError> {
    let lines: Vec<String> = aside.values().map(|kept| encode(&kept.aside) + "\n").collect();
    replace(path, lines.concat().as_bytes(), PRIVATE)?;
    LineFile::open(path, PRIVATE)
}

/// Fuzz target: lines are read as what they were written from.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    if let Ok(aside) = serde_json::from_slice::<Aside>(input) {
        let again = serde_json::from_str::<Aside>(&encode(&aside));
        assert!(again.is_ok_and(|again| again == aside));
    }
    if let Ok(Released { account, mailbox, .. }) = serde_json::from_slice(input) {
        assert!(target_of(account, mailbox).account().is_some());
    }
}

fn encode<T: Serialize>(line: &T) -> String {
    serde_json::to_string(line).expect("strings and numbers always encode")
}

/// One line of bounded length.
pub(crate) fn cut(text: &str) -> String {
    text.chars().take(TEXT_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &[u8]) -> Target {
        Target::Mailbox(Account::new("ann").unwrap(), MailboxName::new(name).unwrap())
    }

    #[test]
    fn survives_reopening_and_damage() {
        let dir = tempfile::tempdir().unwrap();
        let target = target(b"W\xffrk");
        let trouble = Trouble::new(Reason::Denied, "list /x: denied".into());
        let mut quarantine = Quarantine::open(dir.path(), "mx2").unwrap();
        assert_eq!(quarantine.put(&target, &trouble, 5).unwrap(), News::Cause);
        let again = quarantine.put(&target, &trouble, 9).unwrap();
        assert_eq!(again, News::Nothing, "one line per cause");
        let other = Trouble::new(Reason::Full, "disk\nfull\u{85}".into());
        assert_eq!(quarantine.put(&target, &other, 10).unwrap(), News::Cause);
        assert_eq!(quarantine.put(&target, &trouble, 11).unwrap(), News::Nothing, "known");
        assert_eq!(quarantine.put(&target, &other, 70_000).unwrap(), News::Nothing);

        let path = dir.path().join("quarantine/mx2.json");
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"account\":\n");
        replace(&path, text.as_bytes(), PRIVATE).unwrap();
        let mut quarantine = Quarantine::open(dir.path(), "mx2").unwrap();
        let aside = quarantine.all().next().unwrap().clone();
        assert_eq!((aside.tries, aside.since, aside.last_at), (5, 5, 70_000));
        assert_eq!((aside.reason, aside.last.as_str()), (Reason::Full, "disk full "));
        assert_eq!((aside.first.as_str(), aside.target()), ("list /x: denied", target.clone()));
        assert!(quarantine.release(&target).unwrap());
        assert!(!quarantine.release(&target).unwrap());
        let quarantine = Quarantine::open(dir.path(), "mx2").unwrap();
        assert_eq!(quarantine.all().count(), 0, "what is released stays so");
    }

    #[test]
    fn a_failure_for_the_same_cause_writes_nothing_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let trouble = Trouble::new(Reason::Locked, "it is locked".into());
        let mut quarantine = Quarantine::open(dir.path(), "mx2").unwrap();
        quarantine.put(&target(b"A"), &trouble, 0).unwrap();
        let before = quarantine.file.octets();
        for second in 0..59 {
            quarantine.put(&target(b"A"), &trouble, second * 1000).unwrap();
        }
        assert_eq!(quarantine.file.octets(), before);
        quarantine.put(&target(b"A"), &trouble, 60_000).unwrap();
        assert!(quarantine.file.octets() > before);
    }

    #[test]
    fn what_is_past_is_dropped_and_what_is_not_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let trouble = Trouble::new(Reason::Locked, "it is locked".into());
        let mut quarantine = Quarantine::open(dir.path(), "mx2").unwrap();
        for n in 0..2000_u32 {
            let other = target(format!("{n}").as_bytes());
            quarantine.put(&other, &trouble, 0).unwrap();
            if n % 100 > 0 {
                quarantine.release(&other).unwrap();
            }
        }
        assert!(quarantine.lines < 1500, "{}", quarantine.lines);
        let quarantine = Quarantine::open(dir.path(), "mx2").unwrap();
        assert_eq!(quarantine.all().count(), 20);
    }

    #[test]
    fn a_human_is_called_once() {
        let dir = tempfile::tempdir().unwrap();
        let trouble = Trouble::new(Reason::Conflict, "two messages".into());
        let mut quarantine = Quarantine::open(dir.path(), "mx2").unwrap();
        let news = (0..40).map(|n| quarantine.put(&target(b"A"), &trouble, n * 60_000).unwrap());
        let news: Vec<News> = news.filter(|news| *news != News::Nothing).collect();
        assert_eq!(news, [News::Cause, News::Human]);
    }
}
