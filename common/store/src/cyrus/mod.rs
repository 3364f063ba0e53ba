//! The engine for a live Cyrus beside us, spoken to over its replication protocol: no file of the
//! server's is written but damaged messages that are mended.
//!
//! ```text
//! look (headers, records) ─▶ snapshot ─▶ apply, steps, files ─▶ server ─▶ csync or imapd
//! feed: the server's own sync log, renamed aside, read, and removed once it stands in ours
//! ```
//!
//! An account is a userid, or stands for all shared mailboxes of a domain. A mailbox is a UNIQUEID, so it keeps its identity over renames and on the
//! replica. Which messages replication put there stands in the index, by UID and GUID: with the index
//! lost all are foreign, and nothing is deleted. All calls of one account wait for each other.

mod acl;
mod apply;
mod build;
mod extras;
mod feed;
mod files;
mod inspect;
mod look;
mod server;
mod snapshot;
mod stage;
mod steps;
mod stillness;
mod vanished;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicU64},
    time::Duration,
};

use mailtwin_cyrus::{Login, Place};
use mailtwin_disk::{
    clock::Clock,
    index::{Batch as IndexBatch, Index, IndexError},
};
use mailtwin_logic::{
    check::{Inspect, Inspected},
    ids::{Account, Guid, MailboxId, ModSeq, Uid, UidValidity},
    mailbox::{FileKey, Head, MailboxName, MailboxState, Record},
    plan::Step,
};

use crate::{
    Batch, Capabilities, Delta, Destination, Grave, Listing, MailStore, Octets, Problem, Reader,
    Staged, Staging, StoreError, Unreadable,
    maildir::{
        fsys::Dir,
        graves,
        graveyard::{Family, Graveyard},
        identity::{self, IdentityKind, Keeper},
    },
    staged::Place as Waiting,
    watch::Journal,
};

use build::Building;
use server::Server;
use snapshot::Snapshot;
use stillness::Stillness;

/// Mailboxes changed at the same time, each over a connection of its own: Cyrus waits for the disk with
/// each message.
const LANES: usize = 14;

/// User flags that a mailbox of Cyrus can hold.
const KEYWORDS_MAX: usize = 128;

/// How a Cyrus store is reached.
#[derive(Clone, Debug)]
pub struct CyrusOptions {
    /// `imapd`.
    pub imap: Place,
    /// `sync_server`.
    pub csync: Place,
    /// Who we are there: an admin.
    pub login: Login,
    /// Directory of the default partition.
    pub root: PathBuf,
    /// Directory of our own channel of the server's sync log.
    pub channel: PathBuf,
    /// Where messages wait to be taken in, and the graveyard is: below our own state.
    pub work_dir: PathBuf,
    /// The file that says which store this was the last time.
    pub identity_record: PathBuf,
    /// How long expunged messages are kept; zero: not at all.
    pub graveyard: Duration,
    /// Whether this node is the master: then what is written goes over IMAP, which logs it.
    pub is_master: bool,
    /// Whether what comes before a user's INBOX is put off until that is there. Otherwise an empty one
    /// is made, which another can only replace while the user has nothing else.
    pub inbox_first: bool,
}

impl CyrusOptions {
    /// Options for a replica of `imapd` and `sync_server`, with our own files below `state_dir`.
    pub fn new(
        (imap, csync): (Place, Place),
        login: Login,
        channel: &Path,
        root: &Path,
        state_dir: &Path,
    ) -> Self {
        Self {
            imap,
            csync,
            login,
            root: root.to_path_buf(),
            channel: channel.to_path_buf(),
            work_dir: state_dir.join("cyrus"),
            identity_record: state_dir.join("store.json"),
            graveyard: Duration::from_hours(7 * 24),
            is_master: false,
            inbox_first: true,
        }
    }
}

/// A Cyrus store.
#[derive(Debug)]
pub struct Cyrus {
    server: Server,
    index: Index,
    clock: Arc<dyn Clock>,
    keeper: Keeper,
    graveyard: Graveyard,
    cells: Mutex<BTreeMap<Account, Arc<Mutex<Cell>>>>,
    /// What is wrong, by account.
    problems: Mutex<BTreeMap<Account, Vec<Problem>>>,
    /// Where octets are held, as far as they were seen.
    bodies: Mutex<BTreeMap<Guid, (Account, MailboxId, Uid)>>,
    /// Octets that wait in memory.
    room: Arc<AtomicU64>,
    stillness: Stillness,
    /// When this was opened.
    opened_ms: u64,
}

/// What is known of one account.
#[derive(Debug, Default)]
struct Cell {
    /// Whether its names are in a virtual domain; unknown until one is seen.
    virtual_domain: Option<bool>,
    boxes: BTreeMap<MailboxId, Snapshot>,
    building: BTreeMap<MailboxId, Building>,
    /// Internal names that IMAP lists and the replication protocol tells nothing of, although they
    /// can be read: not mail.
    silent: BTreeSet<Vec<u8>>,
    /// Whether the user is known to have a list of subscriptions.
    has_list: bool,
}

#[cfg(any(test, fuzzing))]
pub(crate) use extras::fuzz as fuzz_extras;

/// Refuses a mailbox's `dovecot-acl` that no list of Cyrus's can stand for, and says why.
pub fn check_rights(content: &[u8]) -> Result<(), &'static str> {
    acl::list(Some(content), Some("owner")).map(drop)
}

impl Cyrus {
    /// Opens the store; the server need not run yet.
    pub fn open(
        options: CyrusOptions,
        index: Index,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        feed::prepare(&options.channel)?;
        let (root, record) = (&options.channel, &options.identity_record);
        let keeper = Keeper::open(IdentityKind::File, root, record, false)?;
        let staging = options.work_dir.join(stage::dir(options.is_master));
        mailtwin_disk::dir::create(&staging, 0o700).map_err(identity::refused)?;
        stage::sweep(&staging)?;
        let graveyard = Graveyard::new(&options.work_dir, options.graveyard);
        let server = Server::new(options, Arc::clone(&clock));
        let (cells, problems, bodies) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (room, stillness) = (Arc::default(), Stillness::default());
        let opened_ms = clock.unix_ms();
        Ok(Self {
            server,
            index,
            clock,
            keeper,
            graveyard,
            cells,
            problems,
            bodies,
            room,
            stillness,
            opened_ms,
        })
    }

    fn cell(&self, account: &Account) -> Arc<Mutex<Cell>> {
        let mut cells = self.cells.lock().expect("no panic while it is held");
        Arc::clone(cells.entry(account.clone()).or_default())
    }

    /// Refuses a server that has lost or changed its configuration directory.
    fn verify_store(&self) -> Result<(), StoreError> {
        let channel = &self.server.options.channel;
        let dir = Dir::open(channel)?.ok_or_else(|| identity::missing(channel))?;
        self.keeper.verify(&dir)
    }

    fn root(&self) -> &Path {
        &self.server.options.root
    }

    /// Keeps octets in the graveyard, durably.
    fn bury_octets(
        &self,
        at: (&Account, &MailboxName, UidValidity),
        record: &Record,
        octets: &[u8],
        guid: Guid,
    ) -> Result<(), StoreError> {
        let (account, mailbox, uid_validity) = at;
        let family = Family { account, mailbox, uid_validity };
        let about = (record.uid, record.internal_date, guid);
        self.graveyard.octets(family, about, octets, self.clock.unix_ms())
    }

    /// Which messages of a mailbox replication put there.
    fn held(&self, id: MailboxId) -> Result<BTreeMap<Uid, Guid>, StoreError> {
        let mut held = BTreeMap::new();
        let prefix = held_prefix(id);
        let scanned = self.index.scan_prefix(&prefix, |key, value| {
            let uid = key.get(prefix.len()..).and_then(|uid| uid.try_into().ok());
            if let (Some(uid), Ok(guid)) = (uid, value.try_into()) {
                held.insert(Uid(u32::from_be_bytes(uid)), Guid(guid));
            }
            std::ops::ControlFlow::Continue(())
        });
        scanned.map_err(index_failed)?;
        Ok(held)
    }
}

fn held_prefix(id: MailboxId) -> Vec<u8> {
    [&b"cyrus/held/"[..], &id.0].concat()
}

fn held_key(id: MailboxId, uid: Uid) -> Vec<u8> {
    [&held_prefix(id)[..], &uid.0.to_be_bytes()].concat()
}

/// Notes for the index who put messages there.
fn note_held(batch: &mut IndexBatch, id: MailboxId, uid: Uid, guid: Option<Guid>) {
    match guid {
        Some(guid) => batch.put(&held_key(id, uid), &guid.0),
        None => batch.delete(&held_key(id, uid)),
    }
}

fn index_failed(error: IndexError) -> StoreError {
    let source = std::io::Error::other(error);
    StoreError::Io { op: "use", path: "the index".into(), source }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while it is held")
}

fn no_mailbox(account: &Account, id: MailboxId) -> StoreError {
    StoreError::NotFound { what: format!("mailbox {id} of {account}") }
}

fn no_message(account: &Account, uid: Uid) -> StoreError {
    StoreError::NotFound { what: format!("message {uid} of {account}") }
}

impl MailStore for Cyrus {
    fn capabilities(&self) -> Capabilities {
        Capabilities { engine: "cyrus", sets_modseq: true, keywords_max: KEYWORDS_MAX }
    }

    fn verify(&self) -> Result<(), StoreError> {
        self.verify_store()
    }

    fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        self.list_accounts()
    }

    fn account(&self, account: &Account) -> Result<Option<Listing>, StoreError> {
        self.verify_store()?;
        let cell = self.cell(account);
        if self.server.options.is_master && !lock(&cell).has_list {
            self.stillness.wait(account, &*self.clock);
        }
        self.look_at_account(account, &mut lock(&cell))
    }

    fn find(
        &self,
        account: &Account,
        name: &MailboxName,
    ) -> Result<Option<MailboxState>, StoreError> {
        self.verify_store()?;
        let cell = self.cell(account);
        let mut cell = lock(&cell);
        Ok(self.find_one(account, &mut cell, name)?.map(Snapshot::state))
    }

    fn delta(
        &self,
        account: &Account,
        mailbox: MailboxId,
        since: ModSeq,
    ) -> Result<Delta, StoreError> {
        let cell = self.cell(account);
        let mut cell = lock(&cell);
        let snapshot = self.refresh_id(account, &mut cell, mailbox)?;
        Ok(snapshot.ok_or_else(|| no_mailbox(account, mailbox))?.delta(since))
    }

    /// Cyrus has a record of every message; one that cannot be read is found when it is opened.
    fn unreadable(&self, _: &Account, _: MailboxId) -> Vec<Unreadable> {
        Vec::new()
    }

    fn reader<'a>(&'a self, account: &'a Account, mailbox: MailboxId) -> Reader<'a> {
        Box::new(move |uid| self.open_one(account, mailbox, uid))
    }

    fn file(&self, account: &Account, key: &FileKey) -> Result<Option<Vec<u8>>, StoreError> {
        self.read_file(account, &mut lock(&self.cell(account)), key)
    }

    fn set_file(
        &self,
        account: &Account,
        key: &FileKey,
        content: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        self.verify_store()?;
        self.write_file(account, &mut lock(&self.cell(account)), key, content)
    }

    fn restructure(&self, account: &Account, steps: &[Step]) -> Result<(), StoreError> {
        self.verify_store()?;
        self.take_steps(account, &mut lock(&self.cell(account)), steps)
    }

    fn stage(
        &self,
        destination: &Destination,
        record: &Record,
    ) -> Result<Box<dyn Staging>, StoreError> {
        self.begin_staging(destination, record)
    }

    fn stage_held(
        &self,
        destination: &Destination,
        record: &Record,
    ) -> Result<Option<Staged>, StoreError> {
        self.stage_copy(destination, record)
    }

    fn apply(&self, batches: Vec<Batch>) -> Vec<Result<Head, StoreError>> {
        batches.into_iter().map(|batch| self.apply_one(batch)).collect()
    }

    fn lanes(&self) -> usize {
        LANES
    }

    fn adopt(&self, account: &Account, mailbox: MailboxId, below: Uid) -> Result<u64, StoreError> {
        let cell = self.cell(account);
        let mut cell = lock(&cell);
        let snapshot = self.refresh_id(account, &mut cell, mailbox)?;
        let snapshot = snapshot.ok_or_else(|| no_mailbox(account, mailbox))?;
        let own = snapshot.records().filter(|record| record.uid < below && !record.replicated);
        let own: Vec<(Uid, Guid)> = own.map(|record| (record.uid, record.guid)).collect();
        self.take_for_ours(snapshot, &own)?;
        Ok(own.len() as u64)
    }

    fn abandon(&self, account: &Account, mailbox: MailboxId) {
        lock(&self.cell(account)).building.remove(&mailbox);
    }

    fn bury(&self) -> Result<u64, StoreError> {
        self.graveyard.bury(self.clock.unix_ms())
    }

    fn graves(
        &self,
        visit: &mut dyn FnMut(Grave) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.graveyard.each(visit)
    }

    fn exhume(&self, grave: &Grave) -> Result<Octets, StoreError> {
        match &grave.place {
            Waiting::File(path, _) => graves::open(path),
            Waiting::Memory(_) | Waiting::Taken => {
                Err(StoreError::NotFound { what: "a message of another store".into() })
            }
        }
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = lock(&self.problems).values().flatten().cloned().collect();
        problems.sort();
        problems.truncate(look::PROBLEMS_MAX);
        problems
    }

    fn inspect(&self, wanted: &Inspect) -> Result<Inspected, StoreError> {
        self.inspect_one(wanted)
    }

    fn mend(
        &self,
        account: &Account,
        mailbox: MailboxId,
        uid: Uid,
        staged: Option<Staged>,
    ) -> Result<bool, StoreError> {
        self.mend_one(account, mailbox, uid, staged)
    }

    fn give_up(
        &self,
        account: &Account,
        mailbox: MailboxId,
        messages: &[(Uid, Guid)],
    ) -> Result<(), StoreError> {
        let cell = self.cell(account);
        let mut cell = lock(&cell);
        let snapshot = self.refresh_id(account, &mut cell, mailbox)?;
        let snapshot = snapshot.ok_or_else(|| no_mailbox(account, mailbox))?;
        let is_held = |(uid, guid): &&(Uid, Guid)| {
            snapshot.get(*uid).is_some_and(|record| record.guid == *guid)
        };
        let held: Vec<(Uid, Guid)> = messages.iter().filter(is_held).copied().collect();
        self.take_for_ours(snapshot, &held)
    }

    fn journal(&self) -> Option<&dyn Journal> {
        Some(self)
    }
}
