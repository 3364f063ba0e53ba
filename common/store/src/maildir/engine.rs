//! What the engine knows, and how it brings that up to date.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
};

use mailtwin_disk::{clock::Clock, dir::FileSystem, index::Batch};
use mailtwin_logic::{
    ids::{Account, Guid, MailboxId, Uid, UidValidity},
    mailbox::{FileKey, MailboxName, MailboxState},
};

use super::{
    MaildirOptions,
    build::Builds,
    fsys::{Dir, Mark},
    graveyard::Graveyard,
    identity::{self, Keeper},
    layout::Pattern,
    listing::{name_problem, no_accounts},
    lock::Locker,
    scan::{self, Read, Trust, Verdict},
    snapshot::{Shelf, Snapshot},
    uidlist,
    warm::Warm,
};
use crate::{Octets, Problem, StoreError, Unreadable};

/// Accounts, and mailboxes of one, that are remembered without asking whether there is anything to
/// remember of them.
const BOOKS_KEPT: usize = 4096;

/// What all parts need.
#[derive(Debug)]
pub(crate) struct Context {
    pub options: MaildirOptions,
    pub pattern: Pattern,
    pub home: Option<Pattern>,
    pub work_dir: PathBuf,
    pub clock: Arc<dyn Clock>,
    pub locker: Locker,
    pub shelf: Shelf,
    pub identity: Keeper,
    pub graveyard: Graveyard,
}

/// A mailbox's snapshot; whoever holds the lock is alone with the mailbox in this process.
pub(crate) type Cell = Arc<Mutex<Option<Snapshot>>>;

/// What is known of one account.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// Whether mailboxes were looked for under other names since the start.
    pub settled: Mutex<bool>,
    /// Held for writing while mailboxes are moved about.
    pub moving: RwLock<()>,
    pub cells: Mutex<BTreeMap<MailboxName, Cell>>,
    pub ids: Mutex<HashMap<MailboxId, MailboxName>>,
    pub files: Mutex<HashMap<FileKey, (Mark, Guid)>>,
}

/// The engine behind [`super::Maildir`].
#[derive(Debug)]
pub(crate) struct Engine {
    pub cx: Context,
    pub builds: Builds,
    books: Mutex<BTreeMap<Account, Arc<Book>>>,
    /// Whose the records in a slot are.
    slots: Mutex<HashMap<u64, (Account, MailboxId)>>,
    pub problems: Mutex<BTreeMap<Option<Account>, Vec<Problem>>>,
    warm: Mutex<Warm>,
    /// The mail's file system, and the device it was.
    pub disk: Mutex<Option<(u64, Arc<FileSystem>)>>,
}

/// Locks, whatever a thread that panicked left: snapshots are checked against the store anyway.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Context {
    pub(crate) fn now_secs(&self) -> i64 {
        i64::try_from(self.clock.unix_ms() / 1000).unwrap_or(i64::MAX)
    }

    pub(crate) fn new_uid_validity(&self) -> UidValidity {
        UidValidity(u32::try_from(self.now_secs()).unwrap_or(u32::MAX).max(1))
    }

    /// The directory above the accounts, which must be the one it was.
    pub(crate) fn prefix(&self) -> Result<Dir, StoreError> {
        let prefix = self.pattern.prefix();
        let dir = Dir::open(prefix)?.ok_or_else(|| identity::missing(prefix))?;
        self.identity.verify(&dir)?;
        Ok(dir)
    }

    /// Where an account lies or would lie, below the directory above the accounts.
    pub(crate) fn place(&self, account: &Account) -> Result<PathBuf, StoreError> {
        let place = self.pattern.locate(account, &self.pattern)?;
        if self.pattern.prefix().join(&place).starts_with(&self.work_dir) {
            let why = "what is called so is our own, and no account";
            return Err(StoreError::Name { name: account.as_str().to_owned(), why });
        }
        Ok(place)
    }

    pub(crate) fn account_dir(&self, account: &Account) -> Result<Option<Dir>, StoreError> {
        let place = self.place(account)?;
        self.prefix()?.beneath(&place)
    }

    /// A mailbox's directory, whether it is a mailbox or not.
    pub(crate) fn mailbox_dir(
        &self,
        account: &Dir,
        name: &MailboxName,
    ) -> Result<Option<Dir>, StoreError> {
        account.beneath(&self.options.layout.directory(name)?)
    }
}

impl Book {
    /// Keeps mailboxes where they are for as long as it lives.
    pub(crate) fn still(&self) -> RwLockReadGuard<'_, ()> {
        self.moving.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn cell(&self, name: &MailboxName) -> Cell {
        let mut cells = lock(&self.cells);
        if let Some(cell) = cells.get(name) {
            return cell.clone();
        }
        // As for accounts that are not there: see `Engine::book`.
        if cells.len() >= BOOKS_KEPT && cells.len().is_power_of_two() {
            cells.retain(|_, cell| Arc::strong_count(cell) > 1 || lock(cell).is_some());
        }
        cells.entry(name.clone()).or_default().clone()
    }

    /// Whether nothing is known that could not be found out again at once.
    fn is_blank(&self) -> bool {
        let known = |cell: &Cell| Arc::strong_count(cell) > 1 || lock(cell).is_some();
        lock(&self.ids).is_empty()
            && lock(&self.files).is_empty()
            && !lock(&self.cells).values().any(known)
    }

    pub(crate) fn name_of(&self, id: MailboxId) -> Option<MailboxName> {
        lock(&self.ids).get(&id).cloned()
    }
}

impl Engine {
    pub(crate) fn new(cx: Context) -> Result<Self, StoreError> {
        let mut books: BTreeMap<Account, Arc<Book>> = BTreeMap::new();
        let mut slots = HashMap::new();
        cx.shelf.each(|account, name, snapshot| {
            slots.insert(snapshot.header.slot, (account.clone(), snapshot.header.id));
            let book = books.entry(account).or_default();
            lock(&book.ids).insert(snapshot.header.id, name.clone());
            lock(&book.cells).insert(name, Arc::new(Mutex::new(Some(snapshot))));
        })?;
        let (books, slots) = (Mutex::new(books), Mutex::new(slots));
        let (problems, warm, disk) = (Mutex::default(), Mutex::default(), Mutex::default());
        Ok(Self { cx, builds: Builds::default(), books, slots, problems, warm, disk })
    }

    pub(crate) fn book(&self, account: &Account) -> Arc<Book> {
        let mut books = lock(&self.books);
        if let Some(book) = books.get(account) {
            return book.clone();
        }
        // Somebody may ask for accounts that are not there, and never stop.
        if books.len() >= BOOKS_KEPT && books.len().is_power_of_two() {
            books.retain(|_, book| Arc::strong_count(book) > 1 || !book.is_blank());
        }
        books.entry(account.clone()).or_default().clone()
    }

    pub(crate) fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        let prefix = self.cx.prefix()?;
        let mut odd = Vec::new();
        let layout = self.cx.options.layout;
        let found = self.cx.pattern.accounts(&prefix, layout, &self.cx.work_dir, &mut odd)?;
        let known = lock(&self.books).values().any(|book| !lock(&book.ids).is_empty());
        if found.is_empty() && known {
            let why = "it is empty, and had accounts before".into();
            return Err(StoreError::WrongStore { path: prefix.path().to_path_buf(), why });
        }
        let mut problems: Vec<Problem> = odd.iter().map(|path| name_problem(path)).collect();
        // A copy may well be empty yet; what is copied from hardly is.
        if found.is_empty() && self.cx.options.assigns_uids {
            problems.push(no_accounts(prefix.path()));
        }
        lock(&self.problems).insert(None, problems);
        Ok(found)
    }

    /// Forgets a mailbox that was at `name`.
    pub(crate) fn forget(
        &self,
        account: &Account,
        book: &Book,
        name: &MailboxName,
        snapshot: &Snapshot,
    ) -> Result<(), StoreError> {
        let mut ids = lock(&book.ids);
        if ids.get(&snapshot.header.id) == Some(name) {
            ids.remove(&snapshot.header.id);
        }
        drop(ids);
        let mut batch = Batch::default();
        self.cx.shelf.remove(&mut batch, account, name, snapshot)?;
        self.cx.shelf.apply(batch)
    }

    /// Brings one mailbox's snapshot up to date; `false` if there is no mailbox.
    pub(crate) fn refresh(
        &self,
        account: &Account,
        name: &MailboxName,
        dir: &Dir,
        guard: &mut Option<Snapshot>,
    ) -> Result<bool, StoreError> {
        let mut provisional = None;
        let snapshot = if let Some(snapshot) = guard {
            snapshot
        } else {
            let fresh = Snapshot::fresh(0, scan::derived_id(dir), self.cx.clock.unix_ms());
            provisional.insert(fresh)
        };
        let mut read = Read::new();
        let mut verdict = scan::look(&self.cx, dir, snapshot, Trust::First, &mut read)?;
        if verdict == Verdict::Unsure {
            self.cx.prefix()?;
            let owner = dir.owner()?;
            let lock = if self.cx.is_read_only() {
                None
            } else {
                Some(self.cx.locker.take(dir, uidlist::LOCK, uidlist::NAME, owner)?)
            };
            verdict = scan::look(&self.cx, dir, snapshot, Trust::Second, &mut read)?;
            lock.map_or(Ok(()), |lock| lock.check())?;
        }
        match verdict {
            Verdict::Absent => return Ok(false),
            Verdict::Changed => self.keep(account, name, snapshot)?,
            Verdict::Unchanged | Verdict::Unsure => {}
        }
        if let Some(snapshot) = provisional {
            *guard = Some(snapshot);
        }
        Ok(true)
    }

    /// Brings a snapshot up to date under a lock that is held already.
    pub(crate) fn refresh_locked(
        &self,
        dir: &Dir,
        guard: &mut Option<Snapshot>,
    ) -> Result<bool, StoreError> {
        let fresh = || Snapshot::fresh(0, scan::derived_id(dir), self.cx.clock.unix_ms());
        let mut snapshot = guard.take().unwrap_or_else(fresh);
        let verdict = scan::look(&self.cx, dir, &mut snapshot, Trust::Second, &mut Read::new());
        let there = !matches!(verdict, Ok(Verdict::Absent));
        if there || snapshot.header.slot != 0 {
            *guard = Some(snapshot);
        }
        verdict.map(|_| there)
    }

    /// Puts a changed snapshot into the index, where a crash may take it back.
    pub(crate) fn keep(
        &self,
        account: &Account,
        name: &MailboxName,
        snapshot: &mut Snapshot,
    ) -> Result<(), StoreError> {
        if snapshot.header.slot == 0 {
            snapshot.header.slot = self.cx.shelf.slot()?;
        }
        let mut batch = Batch::default();
        self.cx.shelf.save(&mut batch, account, name, snapshot);
        self.cx.shelf.apply(batch)?;
        self.know(account, name, snapshot);
        Ok(())
    }

    /// Makes a mailbox findable by identity and slot.
    pub(crate) fn know(&self, account: &Account, name: &MailboxName, snapshot: &Snapshot) {
        let (id, slot) = (snapshot.header.id, snapshot.header.slot);
        lock(&self.book(account).ids).entry(id).or_insert_with(|| name.clone());
        lock(&self.slots).insert(slot, (account.clone(), id));
    }

    /// Notes that a mailbox's records were used, and makes room if there are too many.
    pub(crate) fn warm(&self, cell: &Cell, snapshot: &Snapshot) {
        lock(&self.warm).used(cell, snapshot);
    }

    /// Whose the records in a slot are.
    pub(crate) fn owner_of(&self, slot: u64) -> Option<(Account, MailboxId)> {
        lock(&self.slots).get(&slot).cloned()
    }

    pub(crate) fn find(
        &self,
        account: &Account,
        name: &MailboxName,
    ) -> Result<Option<MailboxState>, StoreError> {
        let book = self.settled_book(account)?;
        let _still = book.still();
        let found = self.visit(account, &book, name, |snapshot, _| Ok(snapshot.state(name)));
        match found {
            Err(StoreError::NotFound { .. } | StoreError::Name { .. }) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Refreshes the mailbox at `name` and shows it.
    fn visit<T>(
        &self,
        account: &Account,
        book: &Book,
        name: &MailboxName,
        show: impl FnOnce(&mut Snapshot, &Dir) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let absent = || StoreError::NotFound { what: format!("mailbox {name} of {account}") };
        let dir = self.cx.account_dir(account)?.ok_or_else(absent)?;
        let dir = self.cx.mailbox_dir(&dir, name)?.ok_or_else(absent)?;
        let cell = book.cell(name);
        let mut guard = lock(&cell);
        if !self.refresh(account, name, &dir, &mut guard)? {
            return Err(absent());
        }
        let snapshot = guard.as_mut().ok_or_else(absent)?;
        let shown = show(snapshot, &dir);
        self.warm(&cell, snapshot);
        shown
    }

    /// Refreshes the mailbox of an identity and shows it, looking for it if it was moved.
    pub(crate) fn visit_id<T>(
        &self,
        account: &Account,
        id: MailboxId,
        mut show: impl FnMut(&MailboxName, &mut Snapshot, &Dir) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let book = self.settled_book(account)?;
        for attempt in 0..2 {
            if attempt > 0 {
                self.account(account)?;
            }
            let _still = book.still();
            let Some(name) = book.name_of(id) else { continue };
            let shown = self.visit(account, &book, &name, |snapshot, dir| {
                if snapshot.header.id == id {
                    show(&name, snapshot, dir).map(Some)
                } else {
                    Ok(None)
                }
            });
            match shown {
                Ok(None) | Err(StoreError::NotFound { .. }) => {}
                Ok(Some(shown)) => return Ok(shown),
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::NotFound { what: format!("mailbox {id} of {account}") })
    }

    pub(crate) fn adopt(
        &self,
        account: &Account,
        id: MailboxId,
        below: Uid,
    ) -> Result<u64, StoreError> {
        let adopted = self.visit_id(account, id, |name, snapshot, _| {
            self.cx.shelf.load(snapshot, self.cx.clock.unix_ms())?;
            let adopted = snapshot.adopt(below);
            self.keep(account, name, snapshot)?;
            Ok(adopted)
        })?;
        self.cx.shelf.commit(Batch::default())?;
        Ok(adopted)
    }

    /// Messages that the last look at a mailbox could not read.
    pub(crate) fn unreadable(&self, account: &Account, id: MailboxId) -> Vec<Unreadable> {
        let book = self.book(account);
        let Some(name) = book.name_of(id) else { return Vec::new() };
        let cell = book.cell(&name);
        let guard = lock(&cell);
        let Some(snapshot) = guard.as_ref().filter(|snapshot| snapshot.header.id == id) else {
            return Vec::new();
        };
        let one = |(name, detail): (&str, &str)| Unreadable {
            name: name.to_owned(),
            detail: detail.to_owned(),
        };
        snapshot.unreadable().map(one).collect()
    }

    pub(crate) fn open(
        &self,
        account: &Account,
        id: MailboxId,
        uid: Uid,
        near: &mut Option<Near>,
    ) -> Result<Octets, StoreError> {
        let book = self.settled_book(account)?;
        // Most often the message lies where it was seen last.
        if let Some(name) = book.name_of(id) {
            let _still = book.still();
            let cell = book.cell(&name);
            let mut guard = lock(&cell);
            if let Some(snapshot) = guard.as_mut().filter(|snapshot| snapshot.header.id == id)
                && let Some(near) = self.near(account, &name, near)?
                && let Some(octets) = self.open_known(snapshot, near, uid)?
            {
                return Ok(octets);
            }
        }
        *near = None;
        let opened = self.visit_id(account, id, |name, snapshot, dir| {
            let mut here = Near { name: name.clone(), dir: dir.again()?, place: None };
            self.open_known(snapshot, &mut here, uid)
        });
        opened?.ok_or_else(|| StoreError::NotFound {
            what: format!("message {uid} of mailbox {id} of {account}"),
        })
    }

    /// The directory of a mailbox, opened unless it is open already.
    fn near<'a>(
        &self,
        account: &Account,
        name: &MailboxName,
        near: &'a mut Option<Near>,
    ) -> Result<Option<&'a mut Near>, StoreError> {
        if near.as_ref().is_none_or(|near| near.name != *name) {
            *near = None;
            let Some(account) = self.cx.account_dir(account)? else { return Ok(None) };
            let Some(dir) = self.cx.mailbox_dir(&account, name)? else { return Ok(None) };
            *near = Some(Near { name: name.clone(), dir, place: None });
        }
        Ok(near.as_mut())
    }

    fn open_known(
        &self,
        snapshot: &mut Snapshot,
        near: &mut Near,
        uid: Uid,
    ) -> Result<Option<Octets>, StoreError> {
        self.cx.shelf.load(snapshot, self.cx.clock.unix_ms())?;
        let Some(entry) = snapshot.entries().get(&uid) else { return Ok(None) };
        let Some(place) = near.place(entry.place())? else { return Ok(None) };
        let Some((file, stat)) = place.read(&entry.name)? else { return Ok(None) };
        Ok(Some(Octets::new(u64::try_from(stat.st_size).unwrap_or(0), file)))
    }
}

/// Where a reader found its last message, open: most often the next one lies there, too.
#[derive(Debug)]
pub(crate) struct Near {
    name: MailboxName,
    dir: Dir,
    place: Option<(&'static [u8], Dir)>,
}

impl Near {
    /// One of the mailbox's own directories.
    fn place(&mut self, name: &'static [u8]) -> Result<Option<&Dir>, StoreError> {
        if self.place.as_ref().is_none_or(|(open, _)| *open != name) {
            self.place = self.dir.sub(name)?.map(|dir| (name, dir));
        }
        Ok(self.place.as_ref().map(|(_, dir)| dir))
    }
}

/// An error with its cause, on one line.
pub(crate) fn describe(error: &StoreError) -> String {
    if let StoreError::Io { source, .. } = error {
        return format!("{error}: {source}");
    }
    error.to_string()
}
