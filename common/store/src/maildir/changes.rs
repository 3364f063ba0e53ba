//! What a batch means for one mailbox: checked first, then worked out, then done.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
};

use mailtwin_logic::{
    ids::{ModSeq, Uid},
    mailbox::{Flags, Keywords, Record},
    plan::{Change, Mode},
};

use super::{
    fsys::Dir,
    keywords::{self, Table},
    names,
    snapshot::{Entry, Snapshot},
    stage::line_of,
    uidlist,
};
use crate::{Batch, StoreError, staged::Place};

/// A rename in `cur/`, or from `new/` to it.
#[derive(Debug)]
pub(crate) struct Renaming {
    pub uid: Uid,
    pub in_new: bool,
    pub from: Box<[u8]>,
    pub to: Vec<u8>,
    /// INTERNALDATE, if it is another.
    pub date: Option<i64>,
}

/// A message on its way from where it was staged.
#[derive(Debug)]
pub(crate) struct Placing {
    pub staged: PathBuf,
    pub entry: Entry,
}

/// A batch, worked out.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub expunges: Vec<Entry>,
    pub renamings: Vec<Renaming>,
    pub placings: Vec<Placing>,
    /// What is no longer replication's.
    pub kept: Vec<Uid>,
    /// The keyword table, if it grows.
    pub table: Option<Table>,
}

/// The records a batch adds, if they are as they must be and come with their octets.
pub(crate) fn additions(batch: &Batch) -> Result<Vec<Record>, StoreError> {
    let mut records = Vec::new();
    for change in &batch.changes {
        let names = match change {
            Change::Add(record) => {
                records.push(record.clone());
                &record.keywords
            }
            Change::Update { keywords, .. } => keywords,
            Change::Expunge(_) | Change::Keep(_) => continue,
        };
        check_keywords(names.iter())?;
    }
    check_keywords(batch.keywords.iter().map(String::as_str))?;
    if records.len() != batch.staged.len() {
        let what = format!("octets of {} messages, {} given", records.len(), batch.staged.len());
        return Err(StoreError::NotFound { what });
    }
    for (record, staged) in records.iter().zip(&batch.staged) {
        if (record.guid, record.octets) != (staged.guid(), staged.octets()) {
            let what = format!("message {}", record.uid);
            return Err(StoreError::Mismatch { what, want: record.guid, got: staged.guid() });
        }
        if !(Uid(1)..=Uid::MAX).contains(&record.uid) {
            return Err(StoreError::UidTaken(record.uid));
        }
    }
    Ok(records)
}

fn check_keywords<'a>(mut names: impl Iterator<Item = &'a str>) -> Result<(), StoreError> {
    match names.find(|name| !keywords::is_keyword(name)) {
        Some(name) => Err(StoreError::Name {
            name: name.escape_debug().to_string(),
            why: "it is no keyword: empty, too long, or more than a word",
        }),
        None => Ok(()),
    }
}

/// Works out what to do; changes nothing, and refuses what may not be done.
pub(crate) fn work_out(
    batch: &mut Batch,
    snapshot: &Snapshot,
    dir: &Dir,
    host: &str,
    list: &[u8],
) -> Result<Work, StoreError> {
    let records = additions(batch)?;
    let stale = || StoreError::Stale(Some(snapshot.head()));
    if batch.to.mode == Mode::Update
        && (snapshot.header.id, snapshot.header.uid_validity)
            != (batch.to.mailbox, batch.target.uid_validity)
    {
        return Err(stale());
    }
    let mut work = Work::default();
    let table = grown_table(batch, &snapshot.table);
    let (mut expunged, mut next) = (HashSet::new(), snapshot.header.uid_next);
    for change in &batch.changes {
        match change {
            Change::Expunge(uid) => {
                let Some(entry) = snapshot.entries().get(uid) else { continue };
                // Delivered or changed here meanwhile: not ours to take.
                if !entry.replicated {
                    return Err(stale());
                }
                expunged.insert(*uid);
                work.expunges.push(entry.clone());
            }
            Change::Keep(uid) => work.kept.push(*uid),
            Change::Update { uid, internal_date, flags, keywords } => {
                let absent = || StoreError::NotFound { what: format!("message {uid}") };
                let entry = snapshot.entries().get(uid).ok_or_else(absent)?;
                work.renamings.push(renaming(entry, *internal_date, *flags, keywords, &table)?);
            }
            Change::Add(record) => {
                let held = snapshot.entries().contains_key(&record.uid);
                let free = match batch.to.mode {
                    Mode::Repair => !held || expunged.contains(&record.uid),
                    Mode::Update | Mode::Build => record.uid >= next,
                };
                if !free {
                    return Err(StoreError::UidTaken(record.uid));
                }
                next = next.max(record.uid.next());
            }
        }
    }
    if records.windows(2).any(|pair| pair.first().map(|r| r.uid) >= pair.last().map(|r| r.uid)) {
        return Err(StoreError::UidTaken(Uid(0)));
    }
    let mut taken = listed(list, &records);
    others(dir, snapshot, &mut taken)?;
    place(batch, records, snapshot, host, &table, taken, &mut work)?;
    work.table = (table != snapshot.table).then_some(table);
    Ok(work)
}

/// Base names that the list still has a line for, if there is anything to add. A line outlives its
/// message; a second one for the same name would be taken for damage.
fn listed(list: &[u8], records: &[Record]) -> HashSet<Vec<u8>> {
    let Ok((_, lines)) = uidlist::Heading::parse(list) else { return HashSet::new() };
    if records.is_empty() {
        return HashSet::new();
    }
    uidlist::Lines::parse(lines, Uid(0)).read.iter().map(|line| line.base.to_vec()).collect()
}

/// Adds the names of files that have no UID.
fn others(dir: &Dir, snapshot: &Snapshot, taken: &mut HashSet<Vec<u8>>) -> Result<(), StoreError> {
    if snapshot.header.unnumbered == 0 {
        return Ok(());
    }
    for place in [b"new", b"cur"] {
        let Some(dir) = dir.sub(place)? else { continue };
        dir.list(|name, _, _| {
            taken.insert(names::base(name).to_vec());
        })?;
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "one caller, which has all of it at hand")]
fn place(
    batch: &mut Batch,
    records: Vec<Record>,
    snapshot: &Snapshot,
    host: &str,
    table: &Table,
    mut taken: HashSet<Vec<u8>>,
    work: &mut Work,
) -> Result<(), StoreError> {
    for (record, staged) in records.into_iter().zip(batch.staged.drain(..)) {
        let is_taken = |base: &[u8]| taken.contains(base) || snapshot.of_base(base).is_some();
        let (keys, base) = line_of(&record, host, is_taken);
        taken.insert(base.clone());
        let letters = names::Letters {
            flags: record.flags,
            keywords: table.mask(record.keywords.iter()),
            others: Vec::new(),
        };
        let Place::File(staged, _) = staged.take() else {
            return Err(StoreError::NotFound { what: "staged message".into() });
        };
        let inode = std::fs::symlink_metadata(&staged)
            .map(|stat| std::os::unix::fs::MetadataExt::ino(&stat))
            .map_err(super::fsys::during("stat", &staged))?;
        work.placings.push(Placing {
            staged,
            entry: Entry {
                uid: record.uid,
                guid: record.guid,
                octets: record.octets,
                date: record.internal_date,
                inode,
                name: names::compose(&base, &letters).into(),
                in_new: false,
                keys: keys.into(),
                modseq: ModSeq(0),
                replicated: true,
            },
        });
    }
    Ok(())
}

fn grown_table(batch: &Batch, held: &Table) -> Table {
    let mut table = held.clone();
    table.extend(batch.keywords.iter().map(String::as_str));
    for change in &batch.changes {
        match change {
            Change::Add(record) => table.extend(record.keywords.iter()),
            Change::Update { keywords, .. } => table.extend(keywords.iter()),
            Change::Expunge(_) | Change::Keep(_) => {}
        }
    }
    table
}

fn renaming(
    entry: &Entry,
    date: i64,
    flags: Flags,
    keywords: &Keywords,
    table: &Table,
) -> Result<Renaming, StoreError> {
    let letters = names::Letters {
        flags,
        keywords: table.mask(keywords.iter()),
        others: names::letters(&entry.name).others,
    };
    let to = names::compose(entry.base(), &letters);
    if to.len() > names::NAME_OCTETS_MAX {
        let name = entry.name.escape_ascii().to_string();
        return Err(StoreError::Name { name, why: "no letters fit behind it" });
    }
    Ok(Renaming {
        uid: entry.uid,
        in_new: entry.in_new,
        from: entry.name.clone(),
        to,
        date: (date != entry.date).then_some(date),
    })
}

impl Work {
    /// Makes `snapshot` what the mailbox will be, but for what is to go: were that forgotten before it
    /// is gone, a crash in between would turn our own messages into somebody else's.
    pub(crate) fn foresee(&self, batch: &Batch, snapshot: &mut Snapshot) {
        if let Some(table) = &self.table {
            snapshot.set_table(table.clone());
        }
        for renaming in &self.renamings {
            snapshot.rename(renaming.uid, &renaming.to, false);
            if let Some(date) = renaming.date
                && let Some(entry) = snapshot.entries().get(&renaming.uid)
            {
                snapshot.put(Entry { date, ..entry.clone() });
            }
        }
        for uid in &self.kept {
            if let Some(entry) = snapshot.entries().get(uid) {
                snapshot.put(Entry { replicated: false, ..entry.clone() });
            }
        }
        let target = batch.target;
        let id = batch.to.mailbox;
        let held = snapshot.header.uid_next;
        if (snapshot.header.id, snapshot.header.uid_validity) != (id, target.uid_validity) {
            let same = snapshot.header.uid_validity == target.uid_validity;
            let kept = snapshot.restart(id, target.uid_validity);
            let own = if same { held } else { Uid(1) };
            let gone = |entry: &Entry| self.expunges.iter().any(|gone| gone.uid == entry.uid);
            let last = kept.iter().rfind(|entry| !gone(entry));
            let last = last.map_or(own, |entry| entry.uid.next());
            snapshot.header.uid_next = own.max(last);
            for entry in kept {
                snapshot.put(entry);
            }
        }
        for placing in &self.placings {
            snapshot.header.uid_next = snapshot.header.uid_next.max(placing.entry.uid.next());
            snapshot.put(placing.entry.clone());
        }
        if batch.last {
            snapshot.header.uid_next = snapshot.header.uid_next.max(target.uid_next);
        }
    }

    /// Forgets what has gone.
    pub(crate) fn forget_gone(&self, snapshot: &mut Snapshot) {
        for gone in &self.expunges {
            // Its UID may be another message's by now.
            let held = snapshot.entries().get(&gone.uid);
            if held.is_some_and(|held| held.base() == gone.base()) {
                snapshot.expunge(gone.uid);
            }
        }
    }

    /// Lines of a list that holds nothing but what the snapshot will.
    pub(crate) fn lines(&self, snapshot: &Snapshot) -> Vec<u8> {
        let entries: &BTreeMap<Uid, Entry> = snapshot.entries();
        let gone: HashSet<&[u8]> = self.expunges.iter().map(Entry::base).collect();
        let lines = entries.values().filter(|entry| !gone.contains(entry.base()));
        lines.flat_map(|e| uidlist::render(e.uid, &e.keys, e.base())).collect()
    }
}
