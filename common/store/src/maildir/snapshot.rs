//! What we know of one mailbox since we last looked: in memory, and in the index as a header, chunks
//! of records and the latest tombstones, so that a change rewrites little.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::ControlFlow,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use mailtwin_disk::index::{Batch, Index, IndexError};
use mailtwin_logic::{
    digest::Digest,
    ids::{Account, Guid, MailboxId, ModSeq, Uid, UidValidity},
    mailbox::{Head, MailboxName, MailboxState, Record},
};
use serde::{Deserialize, Serialize};

#[cfg(any(test, fuzzing))]
mod fuzz;
#[cfg(any(test, fuzzing))]
pub(crate) use fuzz::snapshots;

use super::{fsys::Mark, keywords::Table, names, uidlist};
use crate::{ProblemKind, StoreError};

/// UIDs in one chunk: what one changed record makes us write again.
const CHUNK_UIDS: u32 = 64;

/// Tombstones kept at least; twice as many at most.
const TOMBSTONES: usize = 1000;

/// Problems kept of one mailbox.
const PROBLEMS_MAX: usize = 16;

/// No mailbox changes more often.
const MODSEQS_PER_MS: u64 = 1024;

/// Form of what stands in the index; another one is not read.
const VERSION: u8 = 2;

/// A message as we saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub uid: Uid,
    pub guid: Guid,
    pub octets: u64,
    /// INTERNALDATE, seconds since 1970.
    pub date: i64,
    pub inode: u64,
    pub name: Box<[u8]>,
    pub in_new: bool,
    /// Keys of its line in the uidlist.
    pub keys: Box<[u8]>,
    pub modseq: ModSeq,
    pub replicated: bool,
}

impl Entry {
    pub(crate) fn base(&self) -> &[u8] {
        names::base(&self.name)
    }

    /// Name of the directory it lies in.
    pub(crate) fn place(&self) -> &'static [u8] {
        if self.in_new { b"new" } else { b"cur" }
    }

    pub(crate) fn record(&self, table: &Table) -> Record {
        let letters = names::letters(&self.name);
        Record {
            uid: self.uid,
            guid: self.guid,
            octets: self.octets,
            internal_date: self.date,
            flags: letters.flags,
            keywords: table.of_mask(letters.keywords).collect(),
            modseq: self.modseq,
            replicated: self.replicated,
            hint: uidlist::hint(&self.keys, self.base()),
        }
    }
}

/// Signatures of what a scan depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marks {
    pub cur: Mark,
    pub new: Mark,
    pub list: Mark,
    pub keywords: Mark,
}

impl Marks {
    /// Whether nothing can have changed until `later`.
    pub(crate) fn hold(&self, later: &Self) -> bool {
        self.cur.holds(&later.cur)
            && self.new.holds(&later.new)
            && self.list.holds(&later.list)
            && self.keywords.holds(&later.keywords)
    }
}

/// Everything about a mailbox but its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    version: u8,
    /// Number of its records' place in the index.
    pub slot: u64,
    pub id: MailboxId,
    pub uid_validity: UidValidity,
    pub uid_next: Uid,
    pub highest_modseq: ModSeq,
    /// Changes up to here can no longer be told apart.
    pub floor: ModSeq,
    digest: Digest,
    count: u32,
    replicated: u32,
    /// Files that have no UID yet.
    pub unnumbered: u32,
    keywords: Vec<String>,
    pub marks: Marks,
    /// Changes were said here and perhaps not all made: the store knows which.
    pub pending: bool,
    /// How far the uidlist was read, in octets, and the last UID in it.
    pub list_read: u64,
    pub list_last: Uid,
    pub problems: Vec<(ProblemKind, String, String)>,
}

/// A mailbox's snapshot. Records are loaded when they are needed.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub header: Header,
    pub table: Table,
    contents: Option<Contents>,
    touched: Touched,
}

#[derive(Clone, Debug, Default)]
struct Contents {
    entries: BTreeMap<Uid, Entry>,
    /// UIDs by base name.
    bases: HashMap<Box<[u8]>, Uid>,
    /// In order of their modseqs.
    tombstones: Vec<(ModSeq, Uid)>,
}

/// What differs from the index.
#[derive(Clone, Debug, Default)]
struct Touched {
    chunks: BTreeSet<u32>,
    tombstones: bool,
    /// Whether the message now holds these octets, or no longer does.
    holders: Vec<(Guid, Uid, bool)>,
}

impl Snapshot {
    /// Of a mailbox never seen before. MODSEQs start at the time, in parts of a millisecond that
    /// changes do not outrun, so that they never return to values given out before the index was
    /// lost.
    pub(crate) fn fresh(slot: u64, id: MailboxId, now_ms: u64) -> Self {
        let start = ModSeq(now_ms.saturating_mul(MODSEQS_PER_MS));
        let header = Header {
            version: VERSION,
            slot,
            id,
            uid_validity: UidValidity(0),
            uid_next: Uid(1),
            highest_modseq: start,
            floor: start,
            digest: Digest::default(),
            count: 0,
            replicated: 0,
            unnumbered: 0,
            keywords: Vec::new(),
            marks: Marks::default(),
            pending: false,
            list_read: 0,
            list_last: Uid(0),
            problems: Vec::new(),
        };
        Self {
            header,
            table: Table::default(),
            contents: Some(Contents::default()),
            touched: Touched::default(),
        }
    }

    fn of(header: Header) -> Self {
        let table = Table::of(&header.keywords);
        Self { header, table, contents: None, touched: Touched::default() }
    }

    pub(crate) fn head(&self) -> Head {
        Head {
            uid_validity: self.header.uid_validity,
            uid_next: self.header.uid_next,
            messages: self.header.count,
            digest: self.header.digest,
        }
    }

    pub(crate) fn state(&self, name: &MailboxName) -> MailboxState {
        let own = self.header.count.saturating_sub(self.header.replicated);
        MailboxState {
            id: self.header.id,
            name: name.clone(),
            head: self.head(),
            highest_modseq: self.header.highest_modseq,
            foreign: own.saturating_add(self.header.unnumbered),
        }
    }

    /// Records by UID; empty until loaded.
    pub(crate) fn entries(&self) -> &BTreeMap<Uid, Entry> {
        static NONE: BTreeMap<Uid, Entry> = BTreeMap::new();
        self.contents.as_ref().map_or(&NONE, |contents| &contents.entries)
    }

    /// The record of a base name.
    pub(crate) fn of_base(&self, base: &[u8]) -> Option<&Entry> {
        let contents = self.contents.as_ref()?;
        contents.entries.get(contents.bases.get(base)?)
    }

    /// UIDs expunged after `since`.
    pub(crate) fn expunged(&self, since: ModSeq) -> impl Iterator<Item = Uid> {
        let tombstones = self.contents.iter().flat_map(|contents| &contents.tombstones);
        tombstones.filter(move |(modseq, _)| *modseq > since).map(|(_, uid)| *uid)
    }

    fn next_modseq(&mut self) -> ModSeq {
        self.header.highest_modseq = self.header.highest_modseq.next();
        self.header.highest_modseq
    }

    /// Adds or replaces a record; its modseq is set here.
    pub(crate) fn put(&mut self, mut entry: Entry) {
        entry.modseq = self.next_modseq();
        self.forget(entry.uid);
        self.header.digest.add(&entry.record(&self.table));
        self.header.count = self.header.count.saturating_add(1);
        let replicated = u32::from(entry.replicated);
        self.header.replicated = self.header.replicated.saturating_add(replicated);
        self.touched.chunks.insert(entry.uid.0 / CHUNK_UIDS);
        self.touched.holders.push((entry.guid, entry.uid, true));
        let contents = self.contents.get_or_insert_default();
        contents.bases.insert(entry.base().into(), entry.uid);
        contents.entries.insert(entry.uid, entry);
    }

    /// Marks the records below `below` as replicated; tells how many were not.
    pub(crate) fn adopt(&mut self, below: Uid) -> u64 {
        let Some(contents) = &mut self.contents else { return 0 };
        let mut adopted = 0;
        for (uid, entry) in contents.entries.range_mut(..below) {
            if !entry.replicated {
                entry.replicated = true;
                self.header.replicated += 1;
                self.touched.chunks.insert(uid.0 / CHUNK_UIDS);
                adopted += 1;
            }
        }
        adopted
    }

    /// Takes out a record and remembers that it went.
    pub(crate) fn expunge(&mut self, uid: Uid) {
        if self.forget(uid).is_none() {
            return;
        }
        let modseq = self.next_modseq();
        self.touched.tombstones = true;
        let tombstones = &mut self.contents.get_or_insert_default().tombstones;
        tombstones.push((modseq, uid));
        if tombstones.len() > 2 * TOMBSTONES {
            let dropped = tombstones.drain(..TOMBSTONES).next_back();
            self.header.floor = dropped.map_or(self.header.floor, |(modseq, _)| modseq);
        }
    }

    fn forget(&mut self, uid: Uid) -> Option<Entry> {
        let contents = self.contents.as_mut()?;
        let entry = contents.entries.remove(&uid)?;
        if contents.bases.get(entry.base()) == Some(&uid) {
            contents.bases.remove(entry.base());
        }
        self.header.digest.remove(&entry.record(&self.table));
        self.header.count = self.header.count.saturating_sub(1);
        let replicated = u32::from(entry.replicated);
        self.header.replicated = self.header.replicated.saturating_sub(replicated);
        self.touched.chunks.insert(uid.0 / CHUNK_UIDS);
        self.touched.holders.push((entry.guid, uid, false));
        Some(entry)
    }

    /// A message got another name: other letters, or it moved from `new/` to `cur/`.
    pub(crate) fn rename(&mut self, uid: Uid, name: &[u8], in_new: bool) {
        let Some(mut entry) = self.entries().get(&uid).cloned() else { return };
        let same = names::letters(&entry.name) == names::letters(name);
        entry.name = name.into();
        entry.in_new = in_new;
        if !same {
            self.put(entry);
        } else if let Some(contents) = &mut self.contents {
            contents.entries.insert(uid, entry);
            self.touched.chunks.insert(uid.0 / CHUNK_UIDS);
        }
    }

    /// A message's file was replaced by one with the same octets.
    pub(crate) fn refile(&mut self, uid: Uid, inode: u64) {
        let Some(contents) = &mut self.contents else { return };
        if let Some(entry) = contents.entries.get_mut(&uid) {
            entry.inode = inode;
            self.touched.chunks.insert(uid.0 / CHUNK_UIDS);
        }
    }

    /// Puts another keyword table in place; records whose keywords are called otherwise now have
    /// changed.
    pub(crate) fn set_table(&mut self, table: Table) {
        let changed = self.table.changed(&table);
        let is_concerned = |entry: &&Entry| names::letters(&entry.name).keywords & changed != 0;
        let concerned: Vec<Entry> = self.entries().values().filter(is_concerned).cloned().collect();
        for entry in &concerned {
            self.forget(entry.uid);
        }
        self.table = table;
        for entry in concerned {
            self.put(entry);
        }
    }

    /// Everything is another mailbox's now: no change can be told from before.
    pub(crate) fn restart(&mut self, id: MailboxId, uid_validity: UidValidity) -> Vec<Entry> {
        let entries: Vec<Entry> = self.entries().values().cloned().collect();
        for entry in &entries {
            self.forget(entry.uid);
        }
        self.contents.get_or_insert_default().tombstones.clear();
        self.touched.tombstones = true;
        self.header.floor = self.next_modseq();
        self.header.id = id;
        self.header.uid_validity = uid_validity;
        self.header.uid_next = Uid(1);
        entries
    }

    /// Notes something wrong, within bounds.
    pub(crate) fn complain(&mut self, kind: ProblemKind, object: &[u8], detail: impl Into<String>) {
        if self.header.problems.len() < PROBLEMS_MAX {
            let object = object.get(..object.len().min(300)).unwrap_or_default();
            let problem = (kind, object.escape_ascii().to_string(), detail.into());
            self.header.problems.push(problem);
        }
    }

    /// Messages that the last look could not read: file name and why.
    pub(crate) fn unreadable(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.header.problems.iter();
        let unread = all.filter(|(kind, ..)| *kind == ProblemKind::MessageUnreadable);
        unread.map(|(_, name, detail)| (name.as_str(), detail.as_str()))
    }

    /// Records that are in memory.
    pub(crate) fn loaded(&self) -> usize {
        self.entries().len()
    }

    /// Gives memory back, if the index has everything.
    pub(crate) fn unload(&mut self) {
        let touched = &self.touched;
        if touched.chunks.is_empty() && !touched.tombstones && touched.holders.is_empty() {
            self.contents = None;
        }
    }

    /// Whether records are in memory.
    pub(crate) fn is_loaded(&self) -> bool {
        self.contents.is_some()
    }
}

/// Snapshots in the index.
#[derive(Debug)]
pub(crate) struct Shelf {
    index: Index,
    next_slot: Mutex<u64>,
    /// Whether to keep track of which message holds which octets.
    holders: bool,
}

const NEXT_SLOT: &[u8] = b"n";

impl Shelf {
    pub(crate) fn new(index: Index, holders: bool) -> Result<Self, StoreError> {
        let next = index.get(NEXT_SLOT).map_err(failed)?;
        let next = next.and_then(|next| next.try_into().ok()).map_or(1, u64::from_be_bytes);
        Ok(Self { index, next_slot: Mutex::new(next), holders })
    }

    /// A slot never used before.
    pub(crate) fn slot(&self) -> Result<u64, StoreError> {
        let mut next = self.next_slot.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = *next;
        *next += 1;
        let mut batch = Batch::default();
        batch.put(NEXT_SLOT, &next.to_be_bytes());
        self.index.apply(batch).map_err(failed)?;
        Ok(slot)
    }

    /// Shows every mailbox that is known.
    pub(crate) fn each(
        &self,
        mut visit: impl FnMut(Account, MailboxName, Snapshot),
    ) -> Result<(), StoreError> {
        let scanned = self.index.scan_prefix(b"h", |key, value| {
            if let Some((account, name)) = parse_key(key)
                && let Ok(header) = postcard::from_bytes::<Header>(value)
                && header.version == VERSION
            {
                visit(account, name, Snapshot::of(header));
            }
            ControlFlow::Continue(())
        });
        scanned.map_err(failed)
    }

    /// Brings a snapshot's records into memory. If any is missing or damaged, the snapshot starts
    /// again from nothing.
    pub(crate) fn load(&self, snapshot: &mut Snapshot, now_ms: u64) -> Result<(), StoreError> {
        if snapshot.is_loaded() {
            return Ok(());
        }
        let (mut contents, mut whole) = (Contents::default(), true);
        let slot = snapshot.header.slot.to_be_bytes();
        let scanned = self.index.scan_prefix(&[b"r", &slot[..]].concat(), |_, value| {
            match postcard::from_bytes::<Vec<Entry>>(value) {
                Ok(chunk) => contents.entries.extend(chunk.into_iter().map(|e| (e.uid, e))),
                Err(_) => whole = false,
            }
            ControlFlow::Continue(())
        });
        scanned.map_err(failed)?;
        if let Some(value) = self.index.get(&[b"t", &slot[..]].concat()).map_err(failed)? {
            match postcard::from_bytes(&value) {
                Ok(tombstones) => contents.tombstones = tombstones,
                Err(_) => whole = false,
            }
        }
        let bases = contents.entries.values().map(|entry| (entry.base().into(), entry.uid));
        contents.bases = bases.collect();
        let count = u32::try_from(contents.entries.len()).unwrap_or(u32::MAX);
        if whole && count == snapshot.header.count {
            snapshot.contents = Some(contents);
        } else {
            tracing::warn!(
                code = "index-records-lost",
                slot = snapshot.header.slot,
                count,
                expected = snapshot.header.count,
                "records of a mailbox are missing in the index: reading it anew"
            );
            let highest = snapshot.header.highest_modseq.next();
            *snapshot = Snapshot::fresh(self.slot()?, snapshot.header.id, now_ms);
            let start = snapshot.header.highest_modseq.max(highest);
            (snapshot.header.highest_modseq, snapshot.header.floor) = (start, start);
        }
        Ok(())
    }

    /// Puts what changed in `snapshot` into `batch`.
    pub(crate) fn save(
        &self,
        batch: &mut Batch,
        account: &Account,
        name: &MailboxName,
        snapshot: &mut Snapshot,
    ) {
        snapshot.header.keywords = snapshot.table.names().collect();
        batch.put(&key(account, name), &encode(&snapshot.header));
        let slot = snapshot.header.slot.to_be_bytes();
        let touched = std::mem::take(&mut snapshot.touched);
        let Some(contents) = &snapshot.contents else { return };
        for chunk in touched.chunks {
            let first = chunk.saturating_mul(CHUNK_UIDS);
            let range = Uid(first)..=Uid(first.saturating_add(CHUNK_UIDS - 1));
            let entries: Vec<&Entry> = contents.entries.range(range).map(|(_, e)| e).collect();
            let key = [b"r", &slot[..], &chunk.to_be_bytes()].concat();
            if entries.is_empty() {
                batch.delete(&key);
            } else {
                batch.put(&key, &encode(&entries));
            }
        }
        if touched.tombstones {
            batch.put(&[b"t", &slot[..]].concat(), &encode(&contents.tombstones));
        }
        for (guid, uid, held) in touched.holders.into_iter().filter(|_| self.holders) {
            let key = [b"g", &guid.0[..], &slot, &uid.0.to_be_bytes()].concat();
            if held { batch.put(&key, b"") } else { batch.delete(&key) }
        }
    }

    /// Takes a mailbox off the shelf.
    pub(crate) fn remove(
        &self,
        batch: &mut Batch,
        account: &Account,
        name: &MailboxName,
        snapshot: &Snapshot,
    ) -> Result<(), StoreError> {
        self.remove_records(batch, snapshot)?;
        Self::unname(batch, account, name);
        Ok(())
    }

    /// Removes everything of a mailbox but its name.
    pub(crate) fn remove_records(
        &self,
        batch: &mut Batch,
        snapshot: &Snapshot,
    ) -> Result<(), StoreError> {
        let slot = snapshot.header.slot.to_be_bytes();
        let chunks = self.index.scan_prefix(&[b"r", &slot[..]].concat(), |key, value| {
            batch.delete(key);
            let entries = postcard::from_bytes::<Vec<Entry>>(value).unwrap_or_default();
            for entry in entries.iter().filter(|_| self.holders) {
                let uid = entry.uid.0.to_be_bytes();
                batch.delete(&[b"g", &entry.guid.0[..], &slot, &uid].concat());
            }
            ControlFlow::Continue(())
        });
        chunks.map_err(failed)?;
        batch.delete(&[b"t", &slot[..]].concat());
        Ok(())
    }

    /// Removes only the name under which a snapshot stood.
    pub(crate) fn unname(batch: &mut Batch, account: &Account, name: &MailboxName) {
        batch.delete(&key(account, name));
    }

    /// Slots and UIDs of messages that hold the octets, a few.
    pub(crate) fn holding(&self, guid: Guid) -> Result<Vec<(u64, Uid)>, StoreError> {
        let mut found = Vec::new();
        let scanned = self.index.scan_prefix(&[b"g", &guid.0[..]].concat(), |key, _| {
            let slot = key.get(21..29).and_then(|slot| slot.try_into().ok());
            let uid = key.get(29..).and_then(|uid| uid.try_into().ok());
            if let (Some(slot), Some(uid)) = (slot, uid) {
                found.push((u64::from_be_bytes(slot), Uid(u32::from_be_bytes(uid))));
            }
            if found.len() < 4 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        scanned.map_err(failed).map(|()| found)
    }

    /// Makes changes that a crash may take back.
    pub(crate) fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        self.index.apply(batch).map_err(failed)
    }

    /// Makes changes durable.
    pub(crate) fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.index.commit(batch).map_err(failed)
    }
}

fn key(account: &Account, name: &MailboxName) -> Vec<u8> {
    [b"h", account.as_str().as_bytes(), b"\0", name.as_octets()].concat()
}

fn parse_key(key: &[u8]) -> Option<(Account, MailboxName)> {
    let key = key.strip_prefix(b"h")?;
    let end = key.iter().position(|&octet| octet == 0)?;
    let account = Account::new(std::str::from_utf8(key.get(..end)?).ok()?).ok()?;
    Some((account, MailboxName::new(key.get(end + 1..)?).ok()?))
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("a buffer that grows takes everything")
}

fn failed(error: IndexError) -> StoreError {
    let (op, path, source) = match error {
        IndexError::Disk(error) => (error.op, error.path, error.source),
        other @ (IndexError::TooLarge(_) | IndexError::Damaged(_) | IndexError::Held(_)) => {
            ("use", PathBuf::from("index"), std::io::Error::other(other))
        }
    };
    StoreError::Io { op, path, source }
}
