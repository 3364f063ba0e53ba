//! What the engine knows, and how it brings that up to date.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
};

use mailtwin_disk::{clock::Clock, dir::FileSystem, index::Batch};
use mailtwin_logic::{
    ids::{Account, Guid, MailboxId, Uid, UidValidity},
    mailbox::{FileKey, FileState, MailboxName, MailboxState},
};

use super::{
    MaildirOptions,
    build::Builds,
    files,
    fsys::{Dir, Mark},
    graveyard::Graveyard,
    identity::{self, Keeper},
    layout::Pattern,
    lock::Locker,
    scan::{self, Read, Trust, Verdict},
    snapshot::{Shelf, Snapshot},
    uidlist::{self, Heading},
    warm::Warm,
};
use crate::{Listing, Octets, Problem, ProblemKind, Reason, StoreError};

/// Problems shown at most.
const PROBLEMS_MAX: usize = 1000;

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
    problems: Mutex<BTreeMap<Option<Account>, Vec<Problem>>>,
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

    pub(crate) fn account_dir(&self, account: &Account) -> Result<Option<Dir>, StoreError> {
        let place = self.pattern.locate(account, &self.pattern)?;
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
        lock(&self.cells).entry(name.clone()).or_default().clone()
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
        lock(&self.books).entry(account.clone()).or_default().clone()
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
        lock(&self.problems)
            .insert(None, odd.into_iter().map(|path| name_problem(&path)).collect());
        Ok(found)
    }

    pub(crate) fn account(&self, account: &Account) -> Result<Option<Listing>, StoreError> {
        let book = self.book(account);
        let _still = book.still();
        let Some(dir) = self.cx.account_dir(account)? else {
            // A second look, as for anything that is gone.
            if self.cx.account_dir(account)?.is_none() {
                self.forget_absent(account, &book, &BTreeSet::new())?;
                return Ok(None);
            }
            return self
                .cx
                .account_dir(account)?
                .map_or(Ok(None), |dir| self.list(account, &book, &dir).map(Some));
        };
        self.list(account, &book, &dir).map(Some)
    }

    fn list(&self, account: &Account, book: &Book, dir: &Dir) -> Result<Listing, StoreError> {
        let mut odd = Vec::new();
        let layout = self.cx.options.layout;
        let mut names = layout.mailboxes(dir, &mut odd)?;
        let lacks = |names: &[MailboxName]| {
            lock(&book.cells).keys().any(|name| names.binary_search(name).is_err())
        };
        if lacks(&names) {
            // A rename can hide both names for an instant.
            odd.clear();
            let again = layout.mailboxes(dir, &mut odd)?;
            names = names.into_iter().chain(again).collect::<BTreeSet<_>>().into_iter().collect();
        }
        self.follow_renames(account, book, dir, &names)?;
        let mut problems: Vec<Problem> = odd.iter().map(|path| name_problem(path)).collect();
        let mut listing = Listing::default();
        let mut present = BTreeSet::new();
        for name in names {
            let Some(mailbox) = self.cx.mailbox_dir(dir, &name)? else { continue };
            let cell = book.cell(&name);
            let mut guard = lock(&cell);
            match self.refresh(account, &name, &mailbox, &mut guard) {
                Ok(false) => {}
                Ok(true) => {
                    present.insert(name.clone());
                    if let Some(snapshot) = guard.as_ref() {
                        listing.state.mailboxes.push(snapshot.state(&name));
                        note(&mut problems, account, &name, snapshot);
                        self.warm(&cell, snapshot);
                    }
                    files::acl(book, &mailbox, &name, &self.cx, &mut listing.state.files)?;
                }
                Err(error @ StoreError::WrongStore { .. }) => return Err(error),
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => {
                    present.insert(name.clone());
                    problems.push(unreadable(account, &name, &error));
                    listing.unread.push((name, error.reason(), describe(&error)));
                }
            }
        }
        self.forget_absent(account, book, &present)?;
        set_apart_copies(book, &mut listing);
        files::list(&self.cx, book, account, dir, &mut listing.state.files, &mut problems)?;
        listing.state.files.sort_unstable_by(|a: &FileState, b| a.key.cmp(&b.key));
        problems.truncate(PROBLEMS_MAX);
        lock(&self.problems).insert(Some(account.clone()), problems);
        Ok(listing)
    }

    /// A mailbox under a new name whose old one is gone takes its snapshot along.
    fn follow_renames(
        &self,
        account: &Account,
        book: &Book,
        dir: &Dir,
        names: &[MailboxName],
    ) -> Result<(), StoreError> {
        for name in names {
            let cell = book.cell(name);
            if lock(&cell).is_some() {
                continue;
            }
            let Some(mailbox) = self.cx.mailbox_dir(dir, name)? else { continue };
            let Some(id) = listed_id(&mailbox)? else { continue };
            let Some(old) = book.name_of(id).filter(|old| names.binary_search(old).is_err()) else {
                continue;
            };
            let snapshot = lock(&book.cell(&old)).take();
            if let Some(snapshot) = snapshot {
                self.rename_known(account, book, &old, name, snapshot)?;
            }
        }
        Ok(())
    }

    /// Puts a snapshot under another name.
    pub(crate) fn rename_known(
        &self,
        account: &Account,
        book: &Book,
        from: &MailboxName,
        to: &MailboxName,
        mut snapshot: Snapshot,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        Shelf::unname(&mut batch, account, from);
        self.cx.shelf.save(&mut batch, account, to, &mut snapshot);
        self.cx.shelf.apply(batch)?;
        lock(&book.ids).insert(snapshot.header.id, to.clone());
        *lock(&book.cell(to)) = Some(snapshot);
        Ok(())
    }

    /// Forgets mailboxes that are surely gone.
    ///
    /// One may have been built since they were listed: so each is looked for once more, while
    /// nobody else can give it its place. Its cell stays, since somebody may be waiting for it.
    fn forget_absent(
        &self,
        account: &Account,
        book: &Book,
        present: &BTreeSet<MailboxName>,
    ) -> Result<(), StoreError> {
        let absent: Vec<(MailboxName, Cell)> = {
            let cells = lock(&book.cells);
            let absent = cells.iter().filter(|(name, _)| !present.contains(name));
            absent.map(|(name, cell)| (name.clone(), cell.clone())).collect()
        };
        for (name, cell) in absent {
            let mut guard = lock(&cell);
            if guard.is_none() || self.is_there(account, &name)? {
                continue;
            }
            if let Some(snapshot) = guard.take() {
                self.forget(account, book, &name, &snapshot)?;
            }
        }
        Ok(())
    }

    fn is_there(&self, account: &Account, name: &MailboxName) -> Result<bool, StoreError> {
        let Some(root) = self.cx.account_dir(account)? else { return Ok(false) };
        let dir = self.cx.mailbox_dir(&root, name)?;
        dir.map_or(Ok(false), |dir| dir.has_dir(b"cur"))
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
        let book = self.book(account);
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
        let book = self.book(account);
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

    pub(crate) fn open(
        &self,
        account: &Account,
        id: MailboxId,
        uid: Uid,
    ) -> Result<Octets, StoreError> {
        let book = self.book(account);
        // Most often the message lies where it was seen last.
        if let Some(name) = book.name_of(id) {
            let _still = book.still();
            let cell = book.cell(&name);
            let mut guard = lock(&cell);
            if let Some(snapshot) = guard.as_mut().filter(|snapshot| snapshot.header.id == id)
                && let Some(account) = self.cx.account_dir(account)?
                && let Some(dir) = self.cx.mailbox_dir(&account, &name)?
                && let Some(octets) = self.open_known(snapshot, &dir, uid)?
            {
                return Ok(octets);
            }
        }
        let opened =
            self.visit_id(account, id, |_, snapshot, dir| self.open_known(snapshot, dir, uid));
        opened?.ok_or_else(|| StoreError::NotFound {
            what: format!("message {uid} of mailbox {id} of {account}"),
        })
    }

    fn open_known(
        &self,
        snapshot: &mut Snapshot,
        dir: &Dir,
        uid: Uid,
    ) -> Result<Option<Octets>, StoreError> {
        self.cx.shelf.load(snapshot, self.cx.clock.unix_ms())?;
        let Some(entry) = snapshot.entries().get(&uid) else { return Ok(None) };
        let Some(place) = dir.sub(entry.place())? else { return Ok(None) };
        let Some((file, stat)) = place.read(&entry.name)? else { return Ok(None) };
        Ok(Some(Octets::new(u64::try_from(stat.st_size).unwrap_or(0), file)))
    }

    pub(crate) fn problems(&self) -> Vec<Problem> {
        let problems = lock(&self.problems);
        let mut all: Vec<Problem> = problems.values().flatten().cloned().collect();
        all.sort_unstable();
        all.truncate(PROBLEMS_MAX);
        all
    }
}

/// The identity that a mailbox's list gives it.
pub(crate) fn listed_id(mailbox: &Dir) -> Result<Option<MailboxId>, StoreError> {
    let Some(content) = mailbox.read(uidlist::NAME)? else { return Ok(None) };
    let mut start = vec![0; 512];
    let read = std::io::Read::read(&mut &content.0, &mut start)
        .map_err(super::fsys::during("read", &mailbox.at(uidlist::NAME)))?;
    let heading = Heading::parse(start.get(..read).unwrap_or_default());
    Ok(heading.ok().and_then(|(heading, _)| heading.id))
}

/// Of several mailboxes with one identity (`cp -a`), the one known longest keeps it.
fn set_apart_copies(book: &Book, listing: &mut Listing) {
    let mut owners: HashMap<MailboxId, MailboxName> = HashMap::new();
    for mailbox in &listing.state.mailboxes {
        let is_known = book.name_of(mailbox.id).as_ref() == Some(&mailbox.name);
        if is_known || !owners.contains_key(&mailbox.id) {
            owners.insert(mailbox.id, mailbox.name.clone());
        }
    }
    let is_copy = |mailbox: &MailboxState| owners.get(&mailbox.id) != Some(&mailbox.name);
    for copy in listing.state.mailboxes.extract_if(.., |mailbox| is_copy(mailbox)) {
        let owner = owners.get(&copy.id).map(ToString::to_string).unwrap_or_default();
        let detail = format!("it is a copy of {owner}, with the same identity");
        listing.unread.push((copy.name, Reason::Conflict, detail));
    }
    let mut ids = lock(&book.ids);
    ids.extend(owners);
}

fn note(problems: &mut Vec<Problem>, account: &Account, name: &MailboxName, snapshot: &Snapshot) {
    let own = snapshot.header.problems.iter().map(|(kind, object, detail)| Problem {
        kind: *kind,
        account: Some(account.clone()),
        mailbox: Some(name.clone()),
        object: object.clone(),
        detail: detail.clone(),
    });
    problems.extend(own);
}

fn unreadable(account: &Account, name: &MailboxName, error: &StoreError) -> Problem {
    Problem {
        kind: ProblemKind::MailboxUnreadable,
        account: Some(account.clone()),
        mailbox: Some(name.clone()),
        object: name.to_string(),
        detail: describe(error),
    }
}

fn name_problem(path: &std::path::Path) -> Problem {
    use std::os::unix::ffi::OsStrExt as _;
    Problem {
        kind: ProblemKind::Name,
        account: None,
        mailbox: None,
        object: path.as_os_str().as_bytes().escape_ascii().to_string(),
        detail: "its name cannot be replicated; rename it".into(),
    }
}

/// An error with its cause, on one line.
pub(crate) fn describe(error: &StoreError) -> String {
    if let StoreError::Io { source, .. } = error {
        return format!("{error}: {source}");
    }
    error.to_string()
}
