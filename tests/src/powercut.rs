//! What a power cut may leave of a replica: a client that works in waves and knows what of it was
//! acked, and a look at the files that a picture of the disk holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use imap_proto::UidSetMember;

use crate::{corpus, daemon::Node, dovecot::Dovecot, imap::Imap, lab::Lab, random::Random};

/// Longest pause after a wave, in milliseconds. Half of them have none.
const QUIET_MS: usize = 150;

/// Most mailboxes besides INBOX that an account has at a time.
const BOXES_MAX: usize = 6;

/// What the client did.
#[derive(Clone, Debug)]
enum Step {
    /// The server has accepted a message under this UID.
    Appended(String, u32),
    /// A message is about to be flagged.
    Flagging(String),
    /// Messages are about to be expunged, or their mailbox to be deleted.
    Removing(Vec<String>),
}

/// All that was done, and how much of it the replica has acked.
#[derive(Debug, Default)]
pub struct History(Mutex<Steps>);

#[derive(Debug, Default)]
struct Steps {
    all: Vec<Step>,
    acked: usize,
}

/// Steps acked so far.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

impl History {
    /// How much is acked now.
    pub fn mark(&self) -> Mark {
        Mark(self.lock().acked)
    }

    /// How much was begun by now, whether or not it is acked.
    pub fn begun(&self) -> Mark {
        Mark(self.lock().all.len())
    }

    fn add(&self, step: Step) {
        self.lock().all.push(step);
    }

    fn lock(&self) -> MutexGuard<'_, Steps> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What must hold in a picture that was taken after `acked` and before `begun`.
    fn expectations(&self, acked: Mark, begun: Mark) -> BTreeMap<String, Expected> {
        let mut expected = BTreeMap::new();
        for (number, step) in self.lock().all.iter().take(begun.0).enumerate() {
            let acked = number < acked.0;
            if let Step::Appended(serial, uid) = step {
                let fresh = Expected { uid: *uid, acked, flagged: false, fate: Fate::Stays };
                expected.insert(serial.clone(), fresh);
                continue;
            }
            let serials = match step {
                Step::Removing(serials) => serials.as_slice(),
                Step::Flagging(serial) | Step::Appended(serial, _) => std::slice::from_ref(serial),
            };
            for serial in serials {
                let Some(one) = expected.get_mut(serial) else { continue };
                match step {
                    Step::Removing(_) if acked => one.fate = Fate::Gone,
                    Step::Removing(_) => one.fate = Fate::Either,
                    Step::Flagging(_) | Step::Appended(..) => one.flagged |= acked,
                }
            }
        }
        expected
    }
}

/// What must be true of a message.
#[derive(Debug)]
struct Expected {
    uid: u32,
    acked: bool,
    flagged: bool,
    fate: Fate,
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    Either,
    Gone,
}

/// A mailbox on the master, and what is in it.
#[derive(Debug)]
struct Place {
    account: usize,
    name: String,
    messages: Vec<(u32, String)>,
}

/// A client that works at the master and waits for the replica after each wave.
#[derive(Debug)]
pub struct Client<'a> {
    history: &'a History,
    sessions: Vec<Imap>,
    places: Vec<Place>,
    random: Random,
    serials: usize,
}

impl<'a> Client<'a> {
    /// Logs in to every account.
    pub fn start(
        server: &Dovecot,
        accounts: &[String],
        history: &'a History,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let sessions = accounts.iter().map(|account| server.imap(account));
        let inbox = |account| Place { account, name: "INBOX".into(), messages: Vec::new() };
        Ok(Self {
            history,
            sessions: sessions.collect::<anyhow::Result<_>>()?,
            places: (0..accounts.len()).map(inbox).collect(),
            random: Random::new(seed),
            serials: 0,
        })
    }

    /// Does several things at once, and returns when all of them are acked.
    pub fn wave(&mut self, lab: &Lab, agent: &Node) -> anyhow::Result<()> {
        if self.random.once_in(4) {
            // So many mailboxes at once go to the disk in another way than few.
            for at in 0..self.places.len() {
                self.append(at, 1).context("APPEND")?;
            }
        }
        for _ in 0..=self.random.below(3) {
            let at = self.random.below(self.places.len());
            match self.random.below(12) {
                0..2 => self.create().context("CREATE")?,
                2 => self.rename(at).context("RENAME")?,
                3 => self.delete(at).context("DELETE")?,
                4..7 => self.change(at).context("STORE or EXPUNGE")?,
                _ => {
                    // More than eight go to the disk in another way than fewer.
                    let many = if self.random.once_in(4) { 20 } else { 6 };
                    let count = self.random.below(many) + 1;
                    self.append(at, count).context("APPEND")?;
                }
            }
        }
        let done = self.history.begun();
        agent.replctl(lab, &["sync"])?.expect(0)?;
        self.history.lock().acked = done.0;
        // What comes next would make durable what this wave forgot to.
        let quiet = self.random.below(2 * QUIET_MS);
        lab.clock().pause(Duration::from_millis(u64::try_from(quiet.saturating_sub(QUIET_MS))?));
        Ok(())
    }

    fn append(&mut self, at: usize, count: usize) -> anyhow::Result<()> {
        let place = &mut self.places[at];
        for _ in 0..count {
            self.serials += 1;
            let serial = format!("s{}", self.serials);
            let appended =
                self.sessions[place.account].append(&place.name, &message(&serial)).finish()?;
            let uids = appended.uids.unwrap_or_default();
            let Some(UidSetMember::Uid(uid)) = uids.first() else {
                anyhow::bail!("APPEND says which UID it gave: {uids:?}")
            };
            self.history.add(Step::Appended(serial.clone(), *uid));
            place.messages.push((*uid, serial));
        }
        Ok(())
    }

    /// Flags a message, and expunges another.
    fn change(&mut self, at: usize) -> anyhow::Result<()> {
        let place = &mut self.places[at];
        if place.messages.len() < 3 {
            return Ok(());
        }
        let session = &mut self.sessions[place.account];
        session.select(&place.name)?;
        let (uid, serial) = &place.messages[self.random.below(place.messages.len())];
        self.history.add(Step::Flagging(serial.clone()));
        session.command(&format!("UID STORE {uid} +FLAGS (\\Flagged)"))?;
        let (uid, serial) = place.messages.remove(self.random.below(place.messages.len()));
        self.history.add(Step::Removing(vec![serial]));
        session.command(&format!("UID STORE {uid} +FLAGS (\\Deleted)"))?;
        session.command(&format!("UID EXPUNGE {uid}"))?;
        Ok(())
    }

    fn create(&mut self) -> anyhow::Result<()> {
        let account = self.random.below(self.sessions.len());
        if self.places.iter().filter(|place| place.account == account).count() > BOXES_MAX {
            return Ok(());
        }
        self.serials += 1;
        let name = format!("Box{}", self.serials);
        self.sessions[account].create(&name)?;
        self.places.push(Place { account, name, messages: Vec::new() });
        let count = self.random.below(4) + 1;
        self.append(self.places.len() - 1, count)
    }

    fn rename(&mut self, at: usize) -> anyhow::Result<()> {
        self.serials += 1;
        let name = format!("Moved{}", self.serials);
        let place = &mut self.places[at];
        if place.name == "INBOX" {
            return Ok(());
        }
        let session = &mut self.sessions[place.account];
        session.select("INBOX")?; // who has a mailbox open that moves away is thrown out
        session.rename(&place.name, &name)?;
        place.name = name;
        Ok(())
    }

    fn delete(&mut self, at: usize) -> anyhow::Result<()> {
        if self.places[at].name == "INBOX" {
            return Ok(());
        }
        let place = self.places.swap_remove(at);
        let serials = place.messages.into_iter().map(|(_, serial)| serial);
        self.history.add(Step::Removing(serials.collect()));
        let session = &mut self.sessions[place.account];
        session.select("INBOX")?;
        session.delete(&place.name)?;
        Ok(())
    }
}

/// A message whose octets all follow from its serial number.
fn message(serial: &str) -> Vec<u8> {
    let mut message = corpus::short(serial);
    let number: usize = serial.trim_start_matches('s').parse().unwrap_or(0);
    let mut body = String::new();
    for line in 0..(number * 37) % 150 {
        let _ = write!(body, "line {line} of {serial}, so that a torn one shows\r\n");
    }
    message.extend_from_slice(body.as_bytes());
    message
}

/// What is wrong with a replica's files, given what must hold; one line each.
pub fn problems(
    server: &Dovecot,
    accounts: &[String],
    history: &History,
    (acked, begun): (Mark, Mark),
) -> anyhow::Result<Vec<String>> {
    let expected = history.expectations(acked, begun);
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for account in accounts {
        for dir in mailboxes(&server.maildir(account))? {
            look(&dir, &expected, &mut seen, &mut found)
                .with_context(|| format!("look at {}", dir.display()))?;
        }
    }
    for (serial, one) in &expected {
        if one.acked && one.fate == Fate::Stays && !seen.contains(serial) {
            found.push(format!("{serial} (UID {}) was acked and is missing", one.uid));
        }
        if one.acked && one.fate == Fate::Gone && seen.contains(serial) {
            found.push(format!("{serial}: its expunge was acked, and it is back"));
        }
    }
    Ok(found)
}

/// Whether a lock is left of who held it when power failed. A Dovecot that comes upon one waits for
/// two minutes, unless a daemon of ours clears it away.
pub fn has_locks(server: &Dovecot, accounts: &[String]) -> anyhow::Result<bool> {
    for account in accounts {
        let dirs = mailboxes(&server.maildir(account))?;
        if dirs.iter().any(|dir| dir.join("dovecot-uidlist.lock").exists()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The folders of an account that hold messages.
fn mailboxes(maildir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut dirs = vec![maildir.to_path_buf()];
    for entry in fs::read_dir(maildir).into_iter().flatten() {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            dirs.push(entry.path());
        }
    }
    Ok(dirs.into_iter().filter(|dir| dir.join("cur").is_dir()).collect())
}

fn look(
    dir: &Path,
    expected: &BTreeMap<String, Expected>,
    seen: &mut BTreeSet<String>,
    found: &mut Vec<String>,
) -> anyhow::Result<()> {
    let uids = uidlist(&dir.join("dovecot-uidlist"))?;
    let mut taken = BTreeSet::new();
    for sub in ["cur", "new"] {
        for entry in fs::read_dir(dir.join(sub)).into_iter().flatten() {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (base, flags) = name.split_once(":2,").unwrap_or((&name, ""));
            let octets = fs::read(&path)?;
            let Some(serial) = corpus::serial(&octets) else {
                found.push(format!("{}: torn, without its head", path.display()));
                continue;
            };
            if without_cr(&octets) != without_cr(&message(&serial)) {
                found.push(format!("{serial} is torn: {} octets", octets.len()));
            }
            if !seen.insert(serial.clone()) {
                found.push(format!("{serial} is there twice"));
            }
            let uid = uids.get(base).copied();
            if uid.is_some_and(|uid| !taken.insert(uid)) {
                found.push(format!("{serial}: its UID {uid:?} is another's, too"));
            }
            let Some(one) = expected.get(&serial) else { continue };
            // One that was not acked may have its line still to come.
            if uid != Some(one.uid) && (one.acked || uid.is_some()) {
                found.push(format!("{serial} is listed as {uid:?} instead of {}", one.uid));
            }
            if one.flagged && one.fate == Fate::Stays && !flags.contains('F') {
                found.push(format!("{serial}: its flag was acked, and is lost"));
            }
        }
    }
    Ok(())
}

/// UIDs by base name.
fn uidlist(path: &Path) -> anyhow::Result<BTreeMap<String, u32>> {
    let mut uids = BTreeMap::new();
    if !path.exists() {
        return Ok(uids);
    }
    let text = fs::read(path).context("read the list")?;
    let text = String::from_utf8_lossy(&text);
    for line in text.split_inclusive('\n').skip(1).filter(|line| line.ends_with('\n')) {
        let (keys, name) = line.trim_end().split_once(':').context("a line of the list")?;
        let uid = keys.split(' ').next().unwrap_or_default();
        let uid = uid.parse().with_context(|| format!("the UID in {line:?}"))?;
        let base = name.split(":2,").next().unwrap_or(name);
        uids.insert(base.to_owned(), uid);
    }
    ensure!(text.starts_with("3 "), "the list begins with its version: {text:.40?}");
    Ok(uids)
}

fn without_cr(octets: &[u8]) -> Vec<u8> {
    octets.iter().copied().filter(|&octet| octet != b'\r').collect()
}
