//! Mailboxes built aside: whole before anybody can see them.
//!
//! A new mailbox is renamed into place. Where its directory stands already, empty (an INBOX that was
//! reset, or a parent of other mailboxes), its files are moved in, `cur` last, since that is what
//! makes it a mailbox.

use std::{
    collections::{HashMap, HashSet},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use mailtwin_disk::index::Batch as IndexBatch;
use mailtwin_logic::{
    ids::{Account, MailboxId, ModSeq},
    mailbox::{Head, Record},
};

use super::{
    changes,
    engine::{Book, Engine, lock},
    fsys::{Dir, Owner, is_absent, is_taken},
    hash, indexlog,
    keywords::Table,
    layout::Layout,
    names, random_id,
    snapshot::{Entry, Snapshot},
    stage::{line_of, open_or_make},
    uidlist::{self, Heading},
};
use crate::{Batch, Destination, Staged, StoreError, staged::Place};

/// Mailboxes being built.
#[derive(Debug, Default)]
pub(crate) struct Builds(Mutex<Building>);

type Building = HashMap<(Account, MailboxId), Arc<Mutex<Build>>>;

/// A mailbox being built.
#[derive(Debug)]
pub(crate) struct Build {
    /// Above the directory it is built in.
    parent: Dir,
    name: Vec<u8>,
    dir: Dir,
    pub cur: Arc<Dir>,
    pub owner: Owner,
    /// Base names given out.
    pub bases: HashSet<Vec<u8>>,
    entries: Vec<Entry>,
    table: Table,
}

impl Drop for Build {
    fn drop(&mut self) {
        // Once it is in place there is nothing left to remove; a leftover goes at the next start.
        let _ = std::fs::remove_dir_all(self.dir.path());
    }
}

impl Engine {
    /// The build of a mailbox, begun if need be.
    pub(crate) fn build_of(&self, to: &Destination) -> Result<Arc<Mutex<Build>>, StoreError> {
        let key = (to.account.clone(), to.mailbox);
        if let Some(build) = lock(&self.builds.0).get(&key) {
            return Ok(build.clone());
        }
        self.disk()?;
        let owner = self.owner_in(&to.account)?;
        let parent = open_or_make(&self.cx.work_dir.join("build"))?;
        let name = format!("{}.{}", to.mailbox, random_id()?).into_bytes();
        let dir = parent.make(&name, owner)?;
        let cur = Arc::new(dir.make(b"cur", owner)?);
        dir.make(b"new", owner)?;
        dir.make(b"tmp", owner)?;
        let build = Build {
            parent,
            name,
            dir,
            cur,
            owner,
            bases: HashSet::new(),
            entries: Vec::new(),
            table: Table::default(),
        };
        let build = Arc::new(Mutex::new(build));
        Ok(lock(&self.builds.0).entry(key).or_insert(build).clone())
    }

    /// Forgets what was built so far.
    pub(crate) fn abandon(&self, account: &Account, mailbox: MailboxId) {
        lock(&self.builds.0).remove(&(account.clone(), mailbox));
    }

    /// Takes a batch into its build; with the last one the mailbox is written and waits for
    /// [`Engine::publish`].
    pub(crate) fn build(&self, batch: Batch) -> Result<Option<Built>, StoreError> {
        let (to, target, last) = (batch.to.clone(), batch.target, batch.last);
        let taken = self.take_in(batch);
        if taken.is_err() || last {
            let build = lock(&self.builds.0).remove(&(to.account.clone(), to.mailbox));
            taken?;
            let Some(build) = build else { return Ok(None) };
            let now_ms = self.cx.clock.unix_ms();
            lock(&build).write(&to, target, self.cx.options.layout, now_ms)?;
            return Ok(Some(Built { to, target, build }));
        }
        Ok(None)
    }

    fn take_in(&self, batch: Batch) -> Result<(), StoreError> {
        let build = self.build_of(&batch.to)?;
        let mut build = lock(&build);
        if build.entries.is_empty() {
            self.check_free(&batch.to)?;
        }
        let records = changes::additions(&batch)?;
        if records.len() != batch.changes.len() || batch.expect.is_some() {
            return Err(StoreError::Stale(None));
        }
        // A build that starts from the beginning replaces one that broke off.
        let last = build.entries.last().map(|entry| entry.uid);
        if records.first().is_some_and(|first| last.is_some_and(|last| first.uid <= last)) {
            for entry in std::mem::take(&mut build.entries) {
                build.cur.remove(&entry.name)?;
            }
        }
        let mut last = build.entries.last().map(|entry| entry.uid);
        for record in &records {
            if last.is_some_and(|last| record.uid <= last) {
                return Err(StoreError::UidTaken(record.uid));
            }
            last = Some(record.uid);
        }
        build.table.extend(batch.keywords.iter().map(String::as_str));
        for (record, staged) in records.into_iter().zip(batch.staged) {
            build.table.extend(record.keywords.iter());
            build.add(&record, staged, &self.cx.locker.host)?;
        }
        Ok(())
    }

    /// Refuses if there is a mailbox where this one is to be, or if it is here under another name:
    /// then it was renamed while it was planned, and must not be there twice.
    fn check_free(&self, to: &Destination) -> Result<(), StoreError> {
        self.cx.options.layout.directory(&to.name)?;
        let elsewhere =
            self.settled_book(&to.account)?.name_of(to.mailbox).filter(|at| *at != to.name);
        if let Some(at) = elsewhere
            && let Some(held) = self.find(&to.account, &at)?
            && held.id == to.mailbox
        {
            return Err(StoreError::Stale(Some(held.head)));
        }
        match self.find(&to.account, &to.name)? {
            // The empty INBOX that a mail server makes at a login gives way.
            Some(held) if to.name.is_inbox() && held.head.messages == 0 && held.foreign == 0 => {
                Ok(())
            }
            Some(held) => Err(StoreError::Stale(Some(held.head))),
            None => Ok(()),
        }
    }

    /// Puts what the mailbox will be into `index`, and returns it.
    pub(crate) fn announce(
        &self,
        built: &Built,
        index: &mut IndexBatch,
    ) -> Result<Snapshot, StoreError> {
        self.check_free(&built.to)?;
        let mut snapshot = lock(&built.build).snapshot(&built.to, built.target, self)?;
        self.cx.shelf.save(index, &built.to.account, &built.to.name, &mut snapshot);
        Ok(snapshot)
    }

    /// Gives a mailbox its place; its name is durable once the directory returned is synced.
    pub(crate) fn place(
        &self,
        built: &Built,
        mut snapshot: Snapshot,
    ) -> Result<(Head, Dir), StoreError> {
        let to = &built.to;
        let free = self.check_free(to);
        let book = self.settled_book(&to.account)?;
        let _still = book.still();
        let cell = book.cell(&to.name);
        let mut guard = lock(&cell);
        if guard.is_some() {
            // Looking at what it replaces has put that into the index again.
            let mut index = IndexBatch::default();
            self.cx.shelf.save(&mut index, &to.account, &to.name, &mut snapshot);
            self.cx.shelf.commit(index)?;
        }
        match free.and_then(|()| lock(&built.build).place(self, to)) {
            Ok(dir) => {
                self.know(&to.account, &to.name, &snapshot);
                lock(&book.ids).insert(to.mailbox, to.name.clone());
                let head = snapshot.head();
                self.warm(&cell, &snapshot);
                *guard = Some(snapshot);
                drop(guard);
                self.after_change(&to.account, built.target.uid_validity)?;
                Ok((head, dir))
            }
            Err(error) => {
                drop(guard);
                self.retract(to, &book, &snapshot)?;
                Err(error)
            }
        }
    }

    /// Takes back what was said of a mailbox that found its place taken.
    fn retract(
        &self,
        to: &Destination,
        book: &Book,
        snapshot: &Snapshot,
    ) -> Result<(), StoreError> {
        let mut index = IndexBatch::default();
        self.cx.shelf.remove(&mut index, &to.account, &to.name, snapshot)?;
        self.cx.shelf.apply(index)?;
        let cell = book.cell(&to.name);
        let mut guard = lock(&cell);
        guard.as_mut().map_or(Ok(()), |held| self.keep(&to.account, &to.name, held))
    }
}

/// A mailbox that is written and waits for its place.
#[derive(Debug)]
pub(crate) struct Built {
    to: Destination,
    target: Head,
    build: Arc<Mutex<Build>>,
}

impl Build {
    fn add(&mut self, record: &Record, staged: Staged, host: &str) -> Result<(), StoreError> {
        let Place::File(path, inode) = staged.take() else {
            return Err(StoreError::NotFound { what: "staged message".into() });
        };
        let (dir, held) = split(&path)?;
        let here = dir == self.cur.path();
        let (keys, base) = if here {
            let base = names::base(&held).to_vec();
            // The name was chosen when the octets came; keys remember the one it replaces.
            let (keys, _) = line_of(record, host, |hinted| hinted != base);
            (keys, base)
        } else {
            line_of(record, host, |base| self.bases.contains(base))
        };
        self.bases.insert(base.clone());
        let letters = names::Letters {
            flags: record.flags,
            keywords: self.table.mask(record.keywords.iter()),
            others: Vec::new(),
        };
        let name = names::compose(&base, &letters);
        if !here || name != held {
            let from = if here { None } else { Dir::open(&dir)? };
            from.as_ref().unwrap_or(&self.cur).rename_new(&held, &self.cur, &name)?;
        }
        self.entries.push(Entry {
            uid: record.uid,
            guid: record.guid,
            octets: record.octets,
            date: record.internal_date,
            inode,
            name: name.into(),
            in_new: false,
            keys: keys.into(),
            modseq: ModSeq(0),
            replicated: true,
        });
        Ok(())
    }

    /// Writes everything but the messages.
    fn write(
        &mut self,
        to: &Destination,
        target: Head,
        layout: Layout,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let next = self.entries.last().map_or(target.uid_next, |last| last.uid.next());
        let heading = Heading {
            uid_validity: target.uid_validity,
            next: target.uid_next.max(next),
            id: Some(to.mailbox),
            rest: Vec::new(),
        };
        let mut list = heading.render();
        for entry in &self.entries {
            list.extend(uidlist::render(entry.uid, &entry.keys, entry.base()));
        }
        hash::put(&self.dir, uidlist::NAME, &list, self.owner)?;
        let table = self.table.render();
        if !table.is_empty() {
            hash::put(&self.dir, b"dovecot-keywords", &table, self.owner)?;
        }
        hash::put(&self.dir, indexlog::NAME, &indexlog::seed(now_ms, None), self.owner)?;
        if !to.name.is_inbox() && layout == Layout::MaildirPlusPlus {
            self.dir.create(b"maildirfolder", self.owner)?;
        }
        Ok(())
    }

    fn snapshot(
        &mut self,
        to: &Destination,
        target: Head,
        engine: &Engine,
    ) -> Result<Snapshot, StoreError> {
        let now_ms = engine.cx.clock.unix_ms();
        let mut snapshot = Snapshot::fresh(engine.cx.shelf.slot()?, to.mailbox, now_ms);
        snapshot.header.uid_validity = target.uid_validity;
        let next = self.entries.last().map_or(target.uid_next, |last| last.uid.next());
        snapshot.header.uid_next = target.uid_next.max(next);
        snapshot.set_table(self.table.clone());
        for entry in self.entries.drain(..) {
            snapshot.put(entry);
        }
        Ok(snapshot)
    }

    /// Returns the directory in which its name, or `cur`, now is.
    fn place(&mut self, engine: &Engine, to: &Destination) -> Result<Dir, StoreError> {
        let (prefix, cx) = (engine.cx.prefix()?, &engine.cx);
        let account = cx.place(&to.account)?;
        let mailbox = account.join(cx.options.layout.directory(&to.name)?);
        if mailbox.as_os_str().is_empty() {
            // A tree that is one account itself.
            self.move_in(engine, &prefix)?;
            return Ok(prefix);
        }
        let (above, last) = split(&mailbox)?;
        let root = make_all(&prefix, &above, self.owner)?;
        match self.parent.rename_new(&self.name, &root, &last) {
            Ok(()) => Ok(root),
            Err(error) if is_taken(&error) => match root.sub(&last)? {
                Some(dir) => self.move_in(engine, &dir).map(|()| dir),
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    fn move_in(&self, engine: &Engine, dir: &Dir) -> Result<(), StoreError> {
        let held = engine.cx.locker.take(dir, uidlist::LOCK, uidlist::NAME, self.owner)?;
        for name in indexlog::COMPANIONS {
            dir.remove(name)?;
        }
        for name in [b"new", b"tmp"] {
            dir.make(name, self.owner)?;
        }
        indexlog::replace(dir, engine.cx.clock.unix_ms(), self.owner)?;
        let files: [&[u8]; 3] = [b"maildirfolder", b"dovecot-keywords", uidlist::NAME];
        for name in files {
            match self.dir.rename(name, dir, name) {
                Err(error) if !is_absent(&error) => return Err(error),
                _ => {}
            }
        }
        // Takes the place of an empty directory only.
        match self.dir.rename(b"cur", dir, b"cur") {
            Err(error) if is_taken(&error) => return Err(StoreError::Stale(None)),
            other => other?,
        }
        dir.sync()?;
        held.check()
    }
}

/// Opens a directory below another, making what is missing on the way.
pub(crate) fn make_all(root: &Dir, relative: &Path, owner: Owner) -> Result<Dir, StoreError> {
    if let Some(dir) = root.beneath(relative)? {
        return Ok(dir);
    }
    let mut at = PathBuf::new();
    for part in relative.components() {
        let parent = root.beneath(&at)?;
        at.push(part);
        if let Some(parent) = parent
            && root.beneath(&at)?.is_none()
        {
            parent.make(part.as_os_str().as_bytes(), owner)?;
            parent.sync()?;
        }
    }
    root.beneath(&at)?.ok_or_else(|| super::fsys::during("open", &at)(rustix::io::Errno::NOENT))
}

/// Directory and name of a path.
pub(crate) fn split(path: &Path) -> Result<(PathBuf, Vec<u8>), StoreError> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent.to_path_buf(), name.as_bytes().to_vec())),
        _ => Err(StoreError::NotFound { what: path.display().to_string() }),
    }
}
