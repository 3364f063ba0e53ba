//! Looks at a mailbox and brings its snapshot up to date.
//!
//! The first look takes no lock. What it cannot explain (a message gone, seen twice, without a UID)
//! waits for a second look under Dovecot's lock, where names stand still: only that one believes an
//! expunge and gives out UIDs. Octets of new messages are read between the two, so that the lock
//! is held for the names only.

mod list;
mod numbers;

use std::collections::{BTreeSet, HashMap};

use mailtwin_logic::ids::{Guid, MailboxId, ModSeq, Uid, UidValidity};
use rustix::fs::FileType;

use super::{
    UidBookkeeping,
    engine::{Context, describe},
    fsys::Dir,
    hash,
    keywords::{self, Table},
    names,
    snapshot::{Entry, Marks, Snapshot},
    uidlist::{self, Heading},
};
use crate::{ProblemKind, StoreError};

/// What a look found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There is no mailbox here.
    Absent,
    /// The snapshot is as it was.
    Unchanged,
    /// The snapshot is up to date now.
    Changed,
    /// Something must be looked at again; the snapshot is as it was.
    Unsure,
}

/// How far a look may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Names may move meanwhile.
    First,
    /// Under the lock, or for a second time where no lock may be taken.
    Second,
}

/// Messages read so far, by base name; survives from the first look to the second.
pub(crate) type Read = HashMap<Vec<u8>, Content>;

/// What was read of one message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    inode: u64,
    guid: Guid,
    octets: u64,
    date: i64,
}

/// A file as a listing shows it.
#[derive(Clone, Debug)]
struct Found {
    name: Vec<u8>,
    inode: u64,
    in_new: bool,
}

impl Found {
    fn of(entry: &Entry) -> Self {
        Self { name: entry.name.to_vec(), inode: entry.inode, in_new: entry.in_new }
    }
}

/// What a uidlist says that is of use now.
#[derive(Debug, Default)]
struct List {
    heading: Option<Heading>,
    /// By base name; the last line wins.
    uids: HashMap<Vec<u8>, (Uid, Vec<u8>)>,
    /// Whether `uids` is all of the list rather than what was appended.
    whole: bool,
    read: u64,
    last: Uid,
    damage: Option<String>,
}

/// One look.
struct Look<'a> {
    cx: &'a Context,
    dir: &'a Dir,
    snapshot: &'a mut Snapshot,
    trust: Trust,
    marks: Marks,
    /// Files that are not as the snapshot has them, by base name.
    found: HashMap<Vec<u8>, Found>,
    /// Messages that are, of what was listed.
    same: Vec<Uid>,
    /// Messages that are not where they were: their files are found elsewhere, or gone.
    strays: BTreeSet<Uid>,
    /// Base names seen more than once.
    doubled: Vec<Vec<u8>>,
    list: List,
    complaints: Vec<(ProblemKind, Vec<u8>, String)>,
    unsettled: bool,
    /// The list is damaged somewhere.
    damaged: bool,
}

/// Signatures of what a scan depends on; `None` if there is no mailbox.
pub(crate) fn marks(cx: &Context, dir: &Dir) -> Result<Option<Marks>, StoreError> {
    if !dir.has_dir(b"cur")? {
        return Ok(None);
    }
    let now_ms = cx.clock.unix_ms();
    // `new` before `cur`: a message that moves meanwhile is then seen twice rather than never.
    Ok(Some(Marks {
        new: dir.mark(b"new", now_ms)?,
        cur: dir.mark(b"cur", now_ms)?,
        list: dir.mark(uidlist::NAME, now_ms)?,
        keywords: dir.mark(b"dovecot-keywords", now_ms)?,
    }))
}

/// Whether this is another mailbox that stands where the known one stood: its directory is another
/// and nobody has given it a list yet. It must not be given the identity of the one that was moved
/// away.
fn is_successor(snapshot: &Snapshot, marks: &Marks) -> bool {
    let held = snapshot.header.marks.cur.inode();
    marks.list.inode() == 0 && held != 0 && held != marks.cur.inode()
}

/// Makes it that of a mailbox of which nothing is known.
fn restart(snapshot: &mut Snapshot, dir: &Dir) {
    snapshot.restart(derived_id(dir), UidValidity(0));
    snapshot.header.marks = Marks::default();
    snapshot.header.list_read = 0;
}

/// Looks once.
pub(crate) fn look(
    cx: &Context,
    dir: &Dir,
    snapshot: &mut Snapshot,
    trust: Trust,
    read: &mut Read,
) -> Result<Verdict, StoreError> {
    let Some(marks) = marks(cx, dir)? else { return Ok(Verdict::Absent) };
    if snapshot.header.marks.hold(&marks) {
        return Ok(Verdict::Unchanged);
    }
    cx.shelf.load(snapshot, cx.clock.unix_ms())?;
    if is_successor(snapshot, &marks) {
        restart(snapshot, dir);
    }
    let mut look = Look {
        cx,
        dir,
        snapshot,
        trust,
        marks,
        found: HashMap::new(),
        same: Vec::new(),
        strays: BTreeSet::new(),
        doubled: Vec::new(),
        list: List::default(),
        complaints: Vec::new(),
        unsettled: false,
        damaged: false,
    };
    look.run(read)
}

impl Look<'_> {
    fn run(&mut self, read: &mut Read) -> Result<Verdict, StoreError> {
        self.list_names()?;
        self.forget_another();
        self.read_list(false)?;
        if !self.list.whole && self.any_unknown() {
            self.read_list(true)?;
        }
        let empty = self.found.is_empty() && self.snapshot.entries().len() == self.strays.len();
        if self.list.heading.is_none() && !self.cx.assigns() && empty {
            return Ok(Verdict::Absent);
        }
        self.read_messages(read)?;
        if self.trust == Trust::First && self.is_unsure(read) {
            return Ok(Verdict::Unsure);
        }
        if self.cx.assigns() {
            self.number()?;
        } else if self.snapshot.header.pending {
            self.complete()?;
        }
        let table = self.table()?;
        self.bring_up(table, read);
        Ok(Verdict::Changed)
    }

    /// Forgets the mailbox that was deleted where this one was made: its directories may have the same
    /// inode numbers, and the index may know of it only what a crash has left. Without a list, it is the
    /// one that we know only if something of that is still there: else messages would get UIDs that
    /// clients know as others' (RFC 3501, section 2.3.1.1).
    fn forget_another(&mut self) {
        let header = &self.snapshot.header;
        let is_same = header.marks.cur.holds(&self.marks.cur);
        let is_listed = self.marks.list.inode() != 0 || header.uid_validity.0 == 0;
        if is_same || is_listed || self.cx.is_read_only() {
            return;
        }
        let is_known = |(base, found): (&Vec<u8>, &Found)| {
            self.snapshot.of_base(base).is_some_and(|entry| entry.inode == found.inode)
        };
        let is_missed = self.strays.len() == self.snapshot.entries().len();
        if is_missed && !self.found.iter().any(is_known) {
            restart(self.snapshot, self.dir);
            self.strays.clear();
        }
    }

    /// Lists what may have changed; the rest is as it was.
    fn list_names(&mut self) -> Result<(), StoreError> {
        let header = &self.snapshot.header;
        // What is no record is remembered by nothing but the next listing.
        let all = header.unnumbered > 0 || !header.problems.is_empty();
        let relist_new = all || !header.marks.new.holds(&self.marks.new);
        let relist_cur = all || !header.marks.cur.holds(&self.marks.cur);
        if relist_new {
            self.list_dir(b"new", true)?;
        }
        if relist_cur {
            self.list_dir(b"cur", false)?;
        }
        self.same.sort_unstable();
        let mut same = self.same.iter().peekable();
        for entry in self.snapshot.entries().values() {
            let relisted = if entry.in_new { relist_new } else { relist_cur };
            while same.next_if(|uid| **uid < entry.uid).is_some() {}
            if relisted && same.peek() != Some(&&entry.uid) {
                self.strays.insert(entry.uid);
            }
        }
        let as_it_was = |base: &&Vec<u8>| {
            let known = self.snapshot.of_base(base);
            known.is_some_and(|entry| !self.strays.contains(&entry.uid))
        };
        let twice: Vec<Vec<u8>> = self.found.keys().filter(as_it_was).cloned().collect();
        for base in twice {
            let Some(entry) = self.snapshot.of_base(&base) else { continue };
            // Of two files with one base name, the one in `cur/` counts.
            if entry.in_new {
                self.strays.insert(entry.uid);
            } else {
                self.found.remove(&base);
            }
            self.doubled.push(base);
        }
        Ok(())
    }

    fn list_dir(&mut self, name: &[u8], in_new: bool) -> Result<(), StoreError> {
        let Some(dir) = self.dir.sub(name)? else { return Ok(()) };
        let mut found = Vec::new();
        let complaints = &mut self.complaints;
        dir.list(|name, inode, kind| {
            if name.starts_with(b".") {
                return;
            }
            if kind != FileType::RegularFile {
                let detail = "it is no regular file, and not replicated";
                complaints.push((ProblemKind::NotAMessage, name.to_vec(), detail.into()));
            } else if names::base(name).iter().any(|octet| matches!(octet, b'\r' | b'\n')) {
                let detail = "its name has a line end in it, which dovecot-uidlist cannot hold";
                complaints.push((ProblemKind::Name, name.to_vec(), detail.into()));
            } else if names::base(name).is_empty() {
                let detail = "its name has nothing before the colon";
                complaints.push((ProblemKind::Name, name.to_vec(), detail.into()));
            } else {
                found.push(Found { name: name.to_vec(), inode, in_new });
            }
        })?;
        for found in found {
            self.see(found);
        }
        Ok(())
    }

    /// Of two files with one base name, the one in `cur/` counts, and there the first by name.
    fn see(&mut self, found: Found) {
        if let Some(entry) = self.snapshot.of_base(names::base(&found.name))
            && (&*entry.name, entry.inode, entry.in_new)
                == (&*found.name, found.inode, found.in_new)
        {
            self.same.push(entry.uid);
            return;
        }
        let base = names::base(&found.name).to_vec();
        match self.found.get_mut(&base) {
            None => {
                self.found.insert(base, found);
            }
            Some(held) => {
                let key = |found: &Found| (found.in_new, found.name.clone());
                if key(&found) < key(held) {
                    *held = found;
                }
                self.doubled.push(base);
            }
        }
    }

    fn any_unknown(&self) -> bool {
        let is_new = |base: &Vec<u8>| {
            self.snapshot.of_base(base).is_none() && !self.list.uids.contains_key(base)
        };
        self.found.keys().any(is_new)
    }

    /// Reads and hashes messages not seen before, or not as they are.
    fn read_messages(&mut self, read: &mut Read) -> Result<(), StoreError> {
        let (mut new, mut cur) = (None, None);
        for (base, found) in &self.found {
            let known = self.snapshot.of_base(base);
            let is_known = known.is_some_and(|entry| entry.inode == found.inode);
            let is_read = read.get(base).is_some_and(|octets| octets.inode == found.inode);
            if is_known || is_read || (!self.cx.assigns() && self.uid_of(base).is_none()) {
                continue;
            }
            let (place, name): (&mut Option<Dir>, &[u8]) =
                if found.in_new { (&mut new, b"new") } else { (&mut cur, b"cur") };
            if place.is_none() {
                *place = self.dir.sub(name)?;
            }
            let Some(dir) = place else { continue };
            match hash::message(dir, &found.name) {
                Ok(Some((guid, octets, date, inode))) => {
                    read.insert(base.clone(), Content { inode, guid, octets, date });
                }
                // It was renamed since it was listed.
                Ok(None) => self.unsettled = true,
                Err(error @ StoreError::Io { .. }) if !is_exhausted(&error) => {
                    self.unsettled = true;
                    let detail = describe(&error);
                    let name = found.name.clone();
                    self.complaints.push((ProblemKind::MessageUnreadable, name, detail));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The UID a message has, by its line or as we know it.
    fn uid_of(&self, base: &[u8]) -> Option<(Uid, &[u8])> {
        self.list.uids.get(base).map(|(uid, keys)| (*uid, keys.as_slice()))
    }

    /// Whether a look without the lock cannot be believed.
    fn is_unsure(&self, read: &Read) -> bool {
        let entries = self.snapshot.entries();
        let mut strays = self.strays.iter().filter_map(|uid| entries.get(uid));
        if !self.doubled.is_empty()
            || strays.any(|entry| !self.found.contains_key(entry.base()))
            || !self.renumbered().is_empty()
        {
            return true;
        }
        let unlisted = |entry: &Entry| self.uid_of(entry.base()).is_none();
        if self.list.whole && entries.values().any(unlisted) {
            return true;
        }
        let unread =
            self.complaints.iter().any(|(kind, ..)| *kind == ProblemKind::MessageUnreadable);
        if self.unsettled && !unread {
            return true;
        }
        if !self.cx.assigns() {
            return false;
        }
        let lacks_id = self.list.heading.as_ref().is_none_or(|heading| heading.id.is_none());
        let is_new = |base: &&Vec<u8>| self.snapshot.of_base(base).is_none();
        let unnumbered = |base: &Vec<u8>| self.uid_of(base).is_none() && read.contains_key(base);
        lacks_id || self.found.keys().filter(is_new).any(unnumbered)
    }

    /// Messages whose lines now say another UID.
    fn renumbered(&self) -> Vec<Uid> {
        let lines = self.list.uids.iter();
        let known = lines.filter_map(|(base, (uid, _))| Some((*uid, self.snapshot.of_base(base)?)));
        known.filter(|(uid, entry)| *uid != entry.uid).map(|(_, entry)| entry.uid).collect()
    }

    fn table(&self) -> Result<Option<Table>, StoreError> {
        if self.snapshot.header.marks.keywords.holds(&self.marks.keywords) {
            return Ok(None);
        }
        let content = self.dir.content(b"dovecot-keywords", keywords::FILE_OCTETS_MAX)?;
        let table = Table::parse(&content.unwrap_or_default());
        Ok((table != self.snapshot.table).then_some(table))
    }

    /// Makes the snapshot what was seen.
    fn bring_up(&mut self, table: Option<Table>, read: &mut Read) {
        self.snapshot.header.problems.clear();
        self.complaints.sort_unstable(); // only so many are kept: the worst
        for (kind, object, detail) in std::mem::take(&mut self.complaints) {
            self.snapshot.complain(kind, &object, detail);
        }
        for base in std::mem::take(&mut self.doubled) {
            let detail = "two files have this name; one of them is replicated";
            self.snapshot.complain(ProblemKind::Name, &base, detail);
        }
        if let Some(damage) = self.list.damage.take() {
            let detail = format!("{damage}; messages behind that have no UID");
            self.snapshot.complain(ProblemKind::ListDamaged, uidlist::NAME, detail);
            self.unsettled = true;
            self.damaged = true;
        }
        let mut renewed = self.renew();
        if let Some(table) = table {
            self.snapshot.set_table(table);
        }
        if self.snapshot.table.is_full() {
            let detail = "all 26 letters are taken: keywords from the next one on live in Dovecot's index only";
            self.snapshot.complain(ProblemKind::KeywordsFull, b"dovecot-keywords", detail);
        }
        let unnumbered = self.update_entries(&mut renewed, read);
        let header = &mut self.snapshot.header;
        header.unnumbered = u32::try_from(unnumbered).unwrap_or(u32::MAX);
        if let Some(heading) = &self.list.heading {
            let next = heading.next.max(self.list.last.next());
            header.uid_next = if header.pending { next } else { header.uid_next.max(next) };
        }
        header.pending = false;
        header.list_read = self.list.read;
        header.list_last = self.list.last;
        header.marks = self.marks;
        if self.unsettled {
            header.marks.cur = header.marks.cur.unsettled();
            header.marks.new = header.marks.new.unsettled();
            header.list_read = 0;
        }
    }

    /// If the list is another mailbox's now, or counts anew, empties the snapshot and returns what
    /// was in it, so that messages need not be read again.
    fn renew(&mut self) -> Vec<Entry> {
        let header = &self.snapshot.header;
        let (id, uid_validity) = match &self.list.heading {
            Some(heading) => {
                (heading.id.unwrap_or_else(|| derived_id(self.dir)), heading.uid_validity)
            }
            None => (derived_id(self.dir), UidValidity(0)),
        };
        if (header.id, header.uid_validity) == (id, uid_validity) {
            return Vec::new();
        }
        let entries = self.snapshot.restart(id, uid_validity);
        for entry in entries.iter().filter(|entry| !self.strays.contains(&entry.uid)) {
            self.found.insert(entry.base().to_vec(), Found::of(entry));
        }
        entries
    }

    /// Drops, renames and adds records; returns how many files have no UID.
    fn update_entries(&mut self, renewed: &mut Vec<Entry>, read: &mut Read) -> usize {
        let mut old: HashMap<Vec<u8>, Entry> =
            renewed.drain(..).map(|entry| (entry.base().to_vec(), entry)).collect();
        let mut concerned = self.strays.clone();
        concerned.extend(self.renumbered());
        // Where a list is damaged, what it no longer tells is not gone.
        let told = self.list.whole && !self.damaged;
        if told {
            let unlisted = |entry: &&Entry| self.uid_of(entry.base()).is_none();
            let entries = self.snapshot.entries().values().filter(unlisted);
            concerned.extend(entries.map(|entry| entry.uid));
        }
        for uid in concerned {
            let Some(entry) = self.snapshot.entries().get(&uid).cloned() else { continue };
            let base = entry.base();
            let listed = self.uid_of(base).map(|(uid, _)| uid);
            let keeps_uid = listed.map_or(!told, |listed| listed == uid);
            let strays = self.strays.contains(&uid);
            match self.found.get(base).cloned() {
                Some(found) if found.inode == entry.inode && keeps_uid => {
                    self.snapshot.rename(uid, &found.name, found.in_new);
                }
                None if strays => self.snapshot.expunge(uid),
                // If its file was replaced, its record is when it is added.
                _ if keeps_uid => {}
                found => {
                    self.found.insert(base.to_vec(), found.unwrap_or_else(|| Found::of(&entry)));
                    self.snapshot.expunge(uid);
                    old.insert(base.to_vec(), entry);
                }
            }
        }
        self.add_entries(&old, read)
    }

    fn add_entries(&mut self, old: &HashMap<Vec<u8>, Entry>, read: &mut Read) -> usize {
        let (mut adds, mut unnumbered) = (Vec::new(), 0);
        for (base, found) in &self.found {
            let held = self.snapshot.of_base(base);
            if held.is_some_and(|entry| entry.inode == found.inode) {
                continue;
            }
            let uid = self.uid_of(base).map(|(uid, keys)| (uid, keys.to_vec()));
            let Some((uid, keys)) = uid.or_else(|| held.map(|entry| (entry.uid, Vec::new())))
            else {
                unnumbered += 1;
                continue;
            };
            let template = old.get(base).filter(|entry| entry.inode == found.inode);
            let octets = match (template, read.get(base)) {
                (Some(entry), _) => Content {
                    inode: entry.inode,
                    guid: entry.guid,
                    octets: entry.octets,
                    date: entry.date,
                },
                (None, Some(octets)) if octets.inode == found.inode => *octets,
                _ => continue,
            };
            adds.push(Entry {
                uid,
                guid: octets.guid,
                octets: octets.octets,
                date: octets.date,
                inode: octets.inode,
                name: found.name.clone().into(),
                in_new: found.in_new,
                keys: keys.into(),
                modseq: ModSeq::default(),
                replicated: template.is_some_and(|entry| entry.replicated),
            });
        }
        adds.sort_unstable_by_key(|entry| entry.uid);
        for entry in adds {
            self.snapshot.put(entry);
        }
        unnumbered
    }
}

/// Identity of a mailbox whose list has none: from where it lies and what directory it is.
pub(crate) fn derived_id(dir: &Dir) -> MailboxId {
    use std::os::unix::ffi::OsStrExt as _;
    let inode = dir.mark(b"cur", 0).map_or(0, |mark| mark.inode());
    let guid = crate::guid_of(&[dir.path().as_os_str().as_bytes(), &inode.to_le_bytes()].concat());
    let mut id = [0; 16];
    id.iter_mut().zip(guid.0).for_each(|(place, octet)| *place = octet);
    MailboxId(id)
}

/// Whether an error is about this process rather than about one file.
pub(crate) fn is_exhausted(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. }
        if matches!(source.raw_os_error(), Some(code) if code == EMFILE || code == ENFILE))
}

const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

impl Context {
    /// Whether messages without a UID get one here.
    pub(crate) fn assigns(&self) -> bool {
        self.options.assigns_uids || self.is_read_only()
    }

    /// Whether the store is never written.
    pub(crate) fn is_read_only(&self) -> bool {
        self.options.uid_bookkeeping == UidBookkeeping::ReadOnly
    }
}
