//! Changes to mailboxes that a live Dovecot may have open: group commit by the recipe that was
//! measured to lose and renumber nothing.
//!
//! Octets are made durable before any lock is taken. Under the lock of each mailbox of a group:
//! look again, refuse if the head is another; say in the index what will be ours; then per message
//! gap line, rename, own line. One wait for the disk covers the group; then the locks go.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Arc, MutexGuard},
};

use mailtwin_disk::{dir::FileSystem, index::Batch as IndexBatch};
use mailtwin_logic::{
    ids::{Account, Uid, UidValidity},
    limits::SLICE_CHANGES,
    mailbox::Head,
    plan::Mode,
};

use super::{
    build::{Built, split},
    changes::{self, Work},
    engine::{Book, Cell, Context, Engine, lock},
    fsys::{Dir, Mark, Owner, during},
    graveyard::Family,
    hash, identity, indexlog,
    lock::DotLock,
    scan,
    snapshot::{Marks, Snapshot},
    uidlist::{self, Heading},
};
use crate::{Batch, StoreError, staged::Place};

/// Up to so many files are synced one by one; beyond, the whole file system is.
const FEW: usize = 8;

/// A batch with what it needs before a lock is taken.
struct Ready {
    at: usize,
    batch: Batch,
    book: Arc<Book>,
    dir: Dir,
    cell: Cell,
}

/// A batch whose mailbox is locked, and found as expected.
struct Held<'a> {
    ready: &'a mut Ready,
    dir: &'a Dir,
    guard: MutexGuard<'a, Option<Snapshot>>,
    lock: DotLock<'a>,
    work: Work,
    owner: Owner,
    /// Octets of whole lines in the list.
    whole: u64,
    next: Uid,
    heading: Heading,
}

type Results = Vec<Option<Result<Head, StoreError>>>;

impl Engine {
    pub(crate) fn apply(&self, batches: Vec<Batch>) -> Vec<Result<Head, StoreError>> {
        let mut results: Results = batches.iter().map(|_| None).collect();
        let disk = self.disk();
        if let Err(error) = disk.as_ref().map_or_else(|e| Err(again(e)), |d| settle(&batches, d)) {
            return batches.iter().map(|_| Err(again(&error))).collect();
        }
        let Ok(disk) = disk else { return Vec::new() };
        let (mut builds, mut updates) = (Vec::new(), Vec::new());
        for (at, batch) in batches.into_iter().enumerate() {
            match batch.to.mode {
                Mode::Build => builds.push((at, batch)),
                Mode::Update | Mode::Repair => updates.push((at, batch)),
            }
        }
        self.apply_builds(builds, &disk, &mut results);
        updates.sort_by(|(_, a), (_, b)| {
            (&a.to.account, &a.to.name).cmp(&(&b.to.account, &b.to.name))
        });
        let mut group: Vec<(usize, Batch)> = Vec::new();
        for (at, batch) in updates {
            let changes: usize = group.iter().map(|(_, batch)| batch.changes.len()).sum();
            let again = group.iter().any(|(_, held)| {
                held.to.account == batch.to.account && held.to.name == batch.to.name
            });
            if !group.is_empty() && (again || changes + batch.changes.len() > SLICE_CHANGES) {
                self.apply_group(std::mem::take(&mut group), &disk, &mut results);
            }
            group.push((at, batch));
        }
        self.apply_group(group, &disk, &mut results);
        let missing = || StoreError::NotFound { what: "an outcome".into() };
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(missing()))).collect()
    }

    /// The file system, opened before anything is written to it so that it reports what it loses.
    pub(crate) fn disk(&self) -> Result<Arc<FileSystem>, StoreError> {
        let prefix = self.cx.pattern.prefix();
        let device = std::fs::metadata(prefix).map_err(during("stat", prefix))?.dev();
        let mut held = lock(&self.disk);
        if let Some((known, disk)) = held.as_ref()
            && *known == device
        {
            return Ok(disk.clone());
        }
        let disk = Arc::new(FileSystem::open(prefix).map_err(identity::refused)?);
        *held = Some((device, disk.clone()));
        Ok(disk)
    }

    fn apply_builds(&self, builds: Vec<(usize, Batch)>, disk: &FileSystem, results: &mut Results) {
        let mut built: Vec<(usize, Built)> = Vec::new();
        for (at, batch) in builds {
            let target = batch.target;
            match self.build(batch) {
                Ok(Some(whole)) => built.push((at, whole)),
                Ok(None) => set(results, at, Ok(Head { messages: 0, ..target })),
                Err(error) => set(results, at, Err(error)),
            }
        }
        if built.is_empty() {
            return;
        }
        if let Err(error) = disk.sync().map_err(identity::refused) {
            for (at, _) in &built {
                set(results, *at, Err(again(&error)));
            }
            return;
        }
        self.publish(built, disk, results);
    }

    /// Gives mailboxes that are written, and durable, their places.
    fn publish(&self, built: Vec<(usize, Built)>, disk: &FileSystem, results: &mut Results) {
        // The index says what we put there before it is there: were it the other way round, a
        // crash would turn our own messages into somebody else's.
        let mut index = IndexBatch::default();
        let mut announced = Vec::new();
        for (at, built) in built {
            match self.announce(&built, &mut index) {
                Ok(snapshot) => announced.push((at, built, snapshot)),
                Err(error) => set(results, at, Err(error)),
            }
        }
        if let Err(error) = self.cx.shelf.commit(index) {
            for (at, ..) in &announced {
                set(results, *at, Err(again(&error)));
            }
            return;
        }
        let (mut placed, mut above) = (Vec::new(), BTreeMap::new());
        for (at, built, snapshot) in announced {
            match self.place(&built, snapshot) {
                Ok((head, dir)) => {
                    placed.push((at, head));
                    above.insert(dir.path().to_path_buf(), dir);
                }
                Err(error) => set(results, at, Err(error)),
            }
        }
        let synced = if above.len() > FEW {
            disk.sync().map_err(identity::refused)
        } else {
            above.values().try_for_each(Dir::sync)
        };
        for (at, head) in placed {
            set(results, at, synced.as_ref().map(|()| head).map_err(again));
        }
    }

    fn apply_group(&self, group: Vec<(usize, Batch)>, disk: &FileSystem, results: &mut Results) {
        let mut ready = Vec::new();
        for (at, batch) in group {
            match self.prepare(at, batch) {
                Ok(whole) => ready.push(whole),
                Err(error) => set(results, at, Err(error)),
            }
        }
        let books: Vec<Arc<Book>> = ready.iter().map(|ready| ready.book.clone()).collect();
        let mut still: Vec<_> = Vec::new();
        for (i, book) in books.iter().enumerate() {
            if !books.iter().take(i).any(|other| Arc::ptr_eq(other, book)) {
                still.push(book.still());
            }
        }
        let cells: Vec<Cell> = ready.iter().map(|ready| ready.cell.clone()).collect();
        let dirs: Vec<Dir> = match ready.iter().map(|ready| ready.dir.again()).collect() {
            Ok(dirs) => dirs,
            Err(error) => {
                let failed: StoreError = error;
                for ready in &ready {
                    set(results, ready.at, Err(again(&failed)));
                }
                return;
            }
        };
        let mut held: Vec<Held<'_>> = Vec::new();
        for ((ready, cell), dir) in ready.iter_mut().zip(&cells).zip(&dirs) {
            let at = ready.at;
            match self.hold(ready, cell, dir) {
                Ok(whole) => held.push(whole),
                Err(error) => set(results, at, Err(error)),
            }
        }
        self.commit_group(held, disk, results);
    }

    /// Says in the index what will be ours, does it, and waits for the disk once.
    fn commit_group(&self, mut held: Vec<Held<'_>>, disk: &FileSystem, results: &mut Results) {
        let mut index = IndexBatch::default();
        let mut commit = false;
        for one in &mut held {
            let to = &one.ready.batch.to;
            if let Some(snapshot) = one.guard.as_mut() {
                commit |= !(one.work.placings.is_empty() && one.work.kept.is_empty());
                one.work.foresee(&one.ready.batch, snapshot);
                snapshot.header.marks = Marks::default();
                snapshot.header.pending = true;
                self.cx.shelf.save(&mut index, &to.account, &to.name, snapshot);
            }
        }
        let said = if commit { self.cx.shelf.commit(index) } else { self.cx.shelf.apply(index) };
        if let Err(error) = said {
            for one in &held {
                set(results, one.ready.at, Err(again(&error)));
            }
            return;
        }
        let mut done = Vec::new();
        for mut one in held {
            match one.act(&self.cx) {
                Ok(list) => done.push((one, list)),
                Err(error) => set(results, one.ready.at, Err(error)),
            }
        }
        let few = done.len() <= FEW / 2;
        let mut synced = Ok(());
        if !few {
            synced = disk.sync().map_err(identity::refused);
        }
        for (one, list) in done {
            let at = one.ready.at;
            let result = match &synced {
                Ok(()) => self.conclude(one, list, few),
                Err(error) => Err(again(error)),
            };
            set(results, at, result);
        }
    }

    fn prepare(&self, at: usize, batch: Batch) -> Result<Ready, StoreError> {
        let to = &batch.to;
        let book = self.settled_book(&to.account)?;
        let stale = || StoreError::Stale(None);
        let account = self.cx.account_dir(&to.account)?.ok_or_else(stale)?;
        let dir = self.cx.mailbox_dir(&account, &to.name)?.ok_or_else(stale)?;
        if !dir.has_dir(b"cur")? {
            return Err(stale());
        }
        let cell = book.cell(&to.name);
        Ok(Ready { at, batch, book, dir, cell })
    }

    fn hold<'a>(
        &self,
        ready: &'a mut Ready,
        cell: &'a Cell,
        dir: &'a Dir,
    ) -> Result<Held<'a>, StoreError> {
        let owner = dir.owner()?;
        let mut guard = lock(cell);
        // Whatever takes long is done before the lock is taken.
        let to = &ready.batch.to;
        if !self.refresh(&to.account, &to.name, dir, &mut guard)? {
            return Err(StoreError::Stale(None));
        }
        let lock = self.cx.locker.take(dir, uidlist::LOCK, uidlist::NAME, owner)?;
        if !self.refresh_locked(dir, &mut guard)? {
            return Err(StoreError::Stale(None));
        }
        let Some(snapshot) = guard.as_mut() else { return Err(StoreError::Stale(None)) };
        self.cx.shelf.load(snapshot, self.cx.clock.unix_ms())?;
        if snapshot.header.slot == 0 {
            snapshot.header.slot = self.cx.shelf.slot()?;
            self.know(&ready.batch.to.account, &ready.batch.to.name, snapshot);
        }
        if ready.batch.expect != Some(snapshot.head()) {
            return Err(StoreError::Stale(Some(snapshot.head())));
        }
        let content = hash::tail(dir, uidlist::NAME, 0, uidlist::FILE_OCTETS_MAX)?;
        let content = content.unwrap_or_default();
        let host = &self.cx.locker.host;
        let work = changes::work_out(&mut ready.batch, snapshot, dir, host, &content)?;
        let heading = Heading::parse(&content).map(|(heading, _)| heading);
        if ready.batch.to.mode == Mode::Update
            && let Err(why) = &heading
        {
            return Err(StoreError::Corrupt { path: dir.at(uidlist::NAME), why: why.clone() });
        }
        let whole = content.iter().rposition(|&octet| octet == b'\n').map_or(0, |at| at + 1);
        let whole = u64::try_from(whole).unwrap_or(0);
        let next = snapshot.header.uid_next;
        let heading = heading.unwrap_or_default();
        Ok(Held { ready, dir, guard, lock, work, owner, whole, next, heading })
    }

    fn conclude(
        &self,
        mut one: Held<'_>,
        list: Option<File>,
        few: bool,
    ) -> Result<Head, StoreError> {
        if few {
            if let Some(list) = list {
                list.sync_data().map_err(during("sync", &one.dir.at(uidlist::NAME)))?;
            }
            if one.work.table.is_some() || one.ready.batch.to.mode == Mode::Repair {
                one.dir.sync()?;
            }
            let touches_new = |work: &Work| {
                work.expunges.iter().any(|entry| entry.in_new)
                    || work.renamings.iter().any(|renaming| renaming.in_new)
            };
            sync_sub(one.dir, b"cur")?;
            if touches_new(&one.work) {
                sync_sub(one.dir, b"new")?;
            }
        }
        let marks = scan::marks(&self.cx, one.dir)?;
        one.lock.check()?;
        let to = &one.ready.batch.to;
        let snapshot = one.guard.as_mut().ok_or(StoreError::Stale(None))?;
        one.work.forget_gone(snapshot);
        snapshot.header.marks = marks.unwrap_or_default();
        snapshot.header.pending = false;
        snapshot.header.list_read = snapshot.header.marks.list.size();
        snapshot.header.list_last = Uid(snapshot.header.uid_next.0.saturating_sub(1));
        self.keep(&to.account, &to.name, snapshot)?;
        let head = snapshot.head();
        self.after_change(&to.account, head.uid_validity)?;
        Ok(head)
    }

    /// What else lies in an account and must follow: quota sums, and the UIDVALIDITY of the next
    /// mailbox.
    pub(crate) fn after_change(
        &self,
        account: &Account,
        uid_validity: UidValidity,
    ) -> Result<(), StoreError> {
        let Some(dir) = self.cx.account_dir(account)? else { return Ok(()) };
        // Dovecot counts anew where there is none.
        dir.remove(b"maildirsize")?;
        keep_uid_validity(&dir, uid_validity)
    }
}

/// Makes sure that a mailbox created here gets a larger UIDVALIDITY.
fn keep_uid_validity(account: &Dir, uid_validity: UidValidity) -> Result<(), StoreError> {
    const NAME: &[u8] = b"dovecot-uidvalidity";
    let held = account.content(NAME, 64)?;
    let text = held.map(|held| String::from_utf8_lossy(&held).trim().to_owned());
    let value = text.as_deref().and_then(|text| u32::from_str_radix(text, 16).ok());
    if value.is_some_and(|value| value >= uid_validity.0) {
        return Ok(());
    }
    let owner = account.owner()?;
    let fresh = format!("{:08x}", uid_validity.0);
    let marker = |text: &str| format!("dovecot-uidvalidity.{text}").into_bytes();
    let old = text.filter(|_| value.is_some()).map(|text| marker(&text));
    let renamed = old.is_some_and(|old| account.rename(&old, account, &marker(&fresh)).is_ok());
    if !renamed {
        let mode = rustix::fs::Mode::from_raw_mode(0o444);
        match account.create_with(&marker(&fresh), owner, mode) {
            Err(error) if !super::fsys::is_taken(&error) => return Err(error),
            _ => {}
        }
    }
    hash::replace(account, NAME, fresh.as_bytes(), owner, None)
}

impl Held<'_> {
    /// Carries out the work; returns the list if it was appended to and is not yet durable.
    fn act(&mut self, cx: &Context) -> Result<Option<File>, StoreError> {
        if let Some(table) = &self.work.table {
            // A live session looks at whole seconds.
            let held: Mark = self.dir.mark(b"dovecot-keywords", 0)?;
            let date = cx.now_secs().max(held.modified_secs().saturating_add(1));
            let name = b"dovecot-keywords";
            hash::replace(self.dir, name, &table.render(), self.owner, Some(date))?;
        }
        let list = match self.ready.batch.to.mode {
            Mode::Repair => {
                self.rewrite_list(cx)?;
                None
            }
            Mode::Update | Mode::Build => {
                let list = self.dir.append(uidlist::NAME)?;
                hash::cut(self.dir, uidlist::NAME, &list, self.whole)?;
                Some(list)
            }
        };
        self.expunge_and_rename(cx)?;
        let cur = self.dir.sub(b"cur")?.ok_or(StoreError::Stale(None))?;
        let mut appended = list;
        for placing in &self.work.placings {
            let entry = &placing.entry;
            if entry.uid > self.next
                && let Some(list) = &mut appended
            {
                append(self.dir, list, &uidlist::gap(entry.uid))?;
            }
            let (from, name) = split(&placing.staged)?;
            let from = Dir::open(&from)?.ok_or(StoreError::Stale(None))?;
            from.rename_new(&name, &cur, &entry.name)?;
            if let Some(list) = &mut appended {
                append(self.dir, list, &uidlist::render(entry.uid, &entry.keys, entry.base()))?;
            }
            self.next = self.next.max(entry.uid.next());
        }
        let target = self.ready.batch.target.uid_next;
        if let Some(list) = &mut appended
            && self.ready.batch.last
            && target > self.next
        {
            append(self.dir, list, &uidlist::gap(target))?;
            // A live Dovecot reads the list again only when the directory has changed.
            cur.touch()?;
        }
        if self.ready.batch.to.mode == Mode::Repair {
            // Whoever looked in between has an index of what was there then.
            indexlog::replace(self.dir, cx.clock.unix_ms(), self.owner)?;
        }
        Ok(appended)
    }

    fn expunge_and_rename(&self, cx: &Context) -> Result<(), StoreError> {
        let to = &self.ready.batch.to;
        let uid_validity = self.heading.uid_validity;
        let family = Family { account: &to.account, mailbox: &to.name, uid_validity };
        cx.graveyard.messages(self.dir, family, &self.work.expunges, cx.clock.unix_ms())?;
        if self.work.renamings.is_empty() {
            return Ok(());
        }
        let stale = || StoreError::Stale(None);
        let (cur, new) = (self.dir.sub(b"cur")?.ok_or_else(stale)?, self.dir.sub(b"new")?);
        for renaming in &self.work.renamings {
            let from = if renaming.in_new { new.as_ref().ok_or_else(stale)? } else { &cur };
            if renaming.in_new || *renaming.from != *renaming.to {
                from.rename_new(&renaming.from, &cur, &renaming.to)?;
            }
            if let Some(date) = renaming.date {
                cur.set_date(&renaming.to, date)?;
            }
        }
        Ok(())
    }

    /// Replaces the list by a sorted one, and begins the index anew that would contradict it. Lines
    /// come before files: a line without a file is nothing, a file without a line gets another
    /// UID.
    fn rewrite_list(&self, cx: &Context) -> Result<(), StoreError> {
        let snapshot = self.guard.as_ref().ok_or(StoreError::Stale(None))?;
        for name in indexlog::COMPANIONS {
            self.dir.remove(name)?;
        }
        indexlog::replace(self.dir, cx.clock.unix_ms(), self.owner)?;
        let heading = Heading {
            uid_validity: snapshot.header.uid_validity,
            next: snapshot.header.uid_next,
            id: Some(snapshot.header.id),
            rest: self.heading.rest.clone(),
        };
        let content = [heading.render(), self.work.lines(snapshot)].concat();
        hash::replace(self.dir, uidlist::NAME, &content, self.owner, None)
    }
}

/// Appends whole or not at all: Dovecot would write on behind half a line.
fn append(dir: &Dir, list: &mut File, line: &[u8]) -> Result<(), StoreError> {
    let path = || dir.at(uidlist::NAME);
    let before = list.metadata().map_err(|source| during("stat", &path())(source))?.len();
    list.write_all(line).map_err(|source| {
        // If this fails too, whoever comes next under the lock cuts it.
        let _ = list.set_len(before);
        during("write", &path())(source)
    })
}

fn sync_sub(dir: &Dir, name: &[u8]) -> Result<(), StoreError> {
    dir.sub(name)?.map_or(Ok(()), |dir| dir.sync())
}

/// Makes staged octets durable.
fn settle(batches: &[Batch], disk: &FileSystem) -> Result<(), StoreError> {
    let updates = batches.iter().filter(|batch| batch.to.mode != Mode::Build);
    let staged = updates.flat_map(|batch| &batch.staged);
    let paths: Vec<&PathBuf> = staged
        .filter_map(|staged| match staged.place() {
            Place::File(path, _) => Some(path),
            Place::Memory(_) | Place::Taken => None,
        })
        .collect();
    if paths.len() > FEW {
        return disk.sync().map_err(identity::refused);
    }
    for path in paths {
        let file = File::open(path).map_err(during("open", path))?;
        file.sync_all().map_err(during("sync", path))?;
    }
    Ok(())
}

fn set(results: &mut Results, at: usize, result: Result<Head, StoreError>) {
    if let Some(place) = results.get_mut(at) {
        *place = Some(result);
    }
}

/// The same error once more, for another batch that it struck.
fn again(error: &StoreError) -> StoreError {
    if let StoreError::Io { op, path, source } = error {
        let source = match source.raw_os_error() {
            Some(code) => std::io::Error::from_raw_os_error(code),
            None => std::io::Error::new(source.kind(), source.to_string()),
        };
        return StoreError::Io { op, path: path.clone(), source };
    }
    if let StoreError::WrongStore { path, why } = error {
        return StoreError::WrongStore { path: path.clone(), why: why.clone() };
    }
    StoreError::NotFound { what: error.to_string() }
}
