//! UIDs for messages that have none, and what a list lacks.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mailtwin_logic::ids::Uid;

use super::{Look, Trust};
use crate::{
    StoreError,
    maildir::{
        hash, names, random_id,
        uidlist::{self, Heading},
    },
};

impl Look<'_> {
    /// Gives UIDs to messages without one, and the list what it lacks. Only under the lock, or
    /// where the list is not shared.
    pub(super) fn number(&mut self) -> Result<(), StoreError> {
        if self.list.damage.is_some() {
            return Ok(());
        }
        let known = |base: &[u8]| !self.list.whole && self.snapshot.of_base(base).is_some();
        let lacks = |base: &&Vec<u8>| self.uid_of(base).is_none() && !known(base);
        let mut bases: Vec<Vec<u8>> = self.found.keys().filter(lacks).cloned().collect();
        if self.list.whole {
            let known = self.snapshot.entries().values().map(|entry| entry.base().to_vec());
            let is_there = |base: &Vec<u8>| self.uid_of(base).is_none() && self.is_there(base);
            bases.extend(known.filter(is_there));
            bases.sort_unstable();
            bases.dedup();
        }
        bases.sort_by_cached_key(|base| (names::told_time(base), base.clone()));
        let listed = self.list.heading.as_ref().map_or(Uid(1), |heading| heading.next);
        let mut next = listed.max(self.list.last.next());
        let mut held = HashMap::new();
        if self.cx.is_read_only() || self.list.heading.is_none() {
            // Where the list is not shared, or was taken away, a message keeps the number it had.
            let taken: BTreeSet<Uid> = self.list.uids.values().map(|(uid, _)| *uid).collect();
            next = next.max(self.snapshot.header.uid_next);
            let entries = self.snapshot.entries().values();
            let own = entries.filter(|entry| !taken.contains(&entry.uid));
            held = own.map(|entry| (entry.base().to_vec(), entry.uid)).collect();
        }
        let mut numbered = BTreeMap::new();
        for base in bases {
            let uid = held.get(&base).copied().unwrap_or(next);
            next = next.max(uid.next());
            self.list.uids.insert(base.clone(), (uid, Vec::new()));
            numbered.insert(uid, base);
        }
        let lines = numbered.iter().flat_map(|(uid, base)| uidlist::render(*uid, b"", base));
        let lines: Vec<u8> = lines.collect();
        if self.cx.is_read_only() {
            self.keep_numbers(next);
            return Ok(());
        }
        self.write_list(next, &lines)
    }

    /// Writes lines for messages that we placed and died before their lines were written: the
    /// snapshot was told of them first.
    pub(super) fn complete(&mut self) -> Result<(), StoreError> {
        let Some(heading) = self.list.heading.clone().filter(|_| self.list.damage.is_none()) else {
            return Ok(());
        };
        let mut next = heading.next.max(self.list.last.next());
        let (mut lines, mut uids) = (Vec::new(), Vec::new());
        for entry in self.snapshot.entries().range(next..).map(|(_, entry)| entry) {
            if self.uid_of(entry.base()).is_some() || !self.is_there(entry.base()) {
                continue;
            }
            if entry.uid > next {
                lines.extend(uidlist::gap(entry.uid));
            }
            lines.extend(uidlist::render(entry.uid, &entry.keys, entry.base()));
            uids.push((entry.base().to_vec(), (entry.uid, entry.keys.to_vec())));
            next = entry.uid.next();
        }
        if uids.is_empty() || self.trust != Trust::Second {
            return Ok(());
        }
        hash::append(self.dir, uidlist::NAME, self.list.read, &lines)?;
        self.list.read += u64::try_from(lines.len()).unwrap_or(0);
        self.list.last = Uid(next.0.saturating_sub(1));
        self.list.uids.extend(uids);
        self.marks.list = self.dir.mark(uidlist::NAME, 0)?;
        Ok(())
    }

    /// Whether a known message has a file.
    fn is_there(&self, base: &[u8]) -> bool {
        let known = self.snapshot.of_base(base);
        self.found.contains_key(base)
            || known.is_some_and(|entry| !self.strays.contains(&entry.uid))
    }

    fn keep_numbers(&mut self, next: Uid) {
        let mut heading = self.list.heading.clone().unwrap_or_else(|| self.known_heading());
        if heading.uid_validity.0 == 0 {
            heading.uid_validity = self.cx.new_uid_validity();
        }
        heading.next = heading.next.max(next);
        self.list.heading = Some(heading);
    }

    fn write_list(&mut self, next: Uid, lines: &[u8]) -> Result<(), StoreError> {
        let heading = match self.list.heading.clone() {
            Some(heading) if heading.id.is_some() => heading,
            Some(heading) => Heading { id: Some(random_id()?), ..heading },
            None if self.snapshot.header.uid_validity.0 > 0 => {
                Heading { next, ..self.known_heading() }
            }
            None => Heading {
                uid_validity: self.cx.new_uid_validity(),
                next,
                id: Some(random_id()?),
                rest: Vec::new(),
            },
        };
        if self.list.heading.as_ref() == Some(&heading) {
            if lines.is_empty() {
                return Ok(());
            }
            hash::append(self.dir, uidlist::NAME, self.list.read, lines)?;
            self.list.read += u64::try_from(lines.len()).unwrap_or(0);
        } else {
            let held = hash::tail(self.dir, uidlist::NAME, 0, uidlist::FILE_OCTETS_MAX)?;
            let held = held.unwrap_or_default();
            let after = held.iter().position(|&octet| octet == b'\n').map_or(0, |at| at + 1);
            let end = usize::try_from(self.list.read).unwrap_or(usize::MAX).min(held.len());
            let kept = held.get(after..end).unwrap_or_default();
            let content = [&heading.render(), kept, lines].concat();
            hash::replace(self.dir, uidlist::NAME, &content, self.dir.owner()?, None)?;
            self.dir.sync()?;
            self.list.read = u64::try_from(content.len()).unwrap_or(u64::MAX);
        }
        if !lines.is_empty() {
            self.list.last = Uid(next.0.saturating_sub(1));
        }
        self.list.heading = Some(heading);
        self.marks.list = self.dir.mark(uidlist::NAME, 0)?;
        Ok(())
    }
}
