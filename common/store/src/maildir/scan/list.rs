//! Reads a mailbox's uidlist: all of it, or what was appended since the last look.

use std::collections::HashMap;

use mailtwin_logic::ids::Uid;

use super::{List, Look, derived_id};
use crate::{
    StoreError,
    maildir::{
        hash,
        uidlist::{self, Heading, Lines},
    },
};

/// Octets of a list that are read again where only what was appended is of interest: more than a
/// line has.
const CONTINUES_OCTETS: u64 = 4096;

impl Look<'_> {
    /// Reads the uidlist: what was appended since the last time if that can be told, or all of it.
    pub(super) fn read_list(&mut self, all: bool) -> Result<(), StoreError> {
        let header = &self.snapshot.header;
        let (held, now) = (header.marks.list, self.marks.list);
        let appended = !all
            && header.list_read > 0
            && held.inode() == now.inode()
            && now.size() >= header.list_read;
        if appended && held.holds(&now) {
            self.list.read = header.list_read;
            self.list.last = header.list_last;
            self.list.heading = Some(self.known_heading());
            return Ok(());
        }
        let from = if appended { header.list_read } else { 0 };
        // A little of what was read already comes along, to tell the file from a new one that was
        // given the old one's inode number.
        let back = usize::try_from(from.min(CONTINUES_OCTETS)).unwrap_or(0);
        let start = from.saturating_sub(CONTINUES_OCTETS);
        let tail = hash::tail(self.dir, uidlist::NAME, start, uidlist::FILE_OCTETS_MAX)?;
        let Some(mut content) = tail else {
            self.list = List { whole: true, ..List::default() };
            return Ok(());
        };
        let mut known = None;
        if appended {
            let new = content.split_off(back.min(content.len()));
            known = self.continued(&content, start == 0)?;
            if known.is_none() {
                return self.read_list(true);
            }
            content = new;
        }
        let (heading, rest, last) = if let Some(heading) = known {
            (heading, content.as_slice(), header.list_last)
        } else {
            let path = self.dir.at(uidlist::NAME);
            let corrupt = |why| StoreError::Corrupt { path, why };
            let (heading, rest) = Heading::parse(&content).map_err(corrupt)?;
            (heading, rest, Uid(0))
        };
        let lines = Lines::parse(rest, last);
        let skipped = content.len() - rest.len();
        let read = u64::try_from(skipped + lines.octets).unwrap_or(u64::MAX);
        self.list = List {
            heading: Some(heading),
            whole: !appended,
            read: from.saturating_add(read),
            last: lines.read.last().map_or(last, |line| line.uid),
            damage: lines.damage,
            uids: HashMap::new(),
        };
        for line in lines.read {
            let keys = if line.keys.len() <= uidlist::KEYS_OCTETS_MAX { line.keys } else { b"" };
            self.list.uids.insert(line.base.to_vec(), (line.uid, keys.to_vec()));
        }
        Ok(())
    }

    /// The heading of a list of which `part` was read before, up to its end; `None` if it is another.
    /// A mailbox that was deleted and made anew can have a list of the same inode number, and be as
    /// long. So can the same mailbox's: rewritten, it lacks the lines of what was delivered and
    /// expunged meanwhile, and only its first line tells that their UIDs are spent.
    fn continued(&self, part: &[u8], is_start: bool) -> Result<Option<Heading>, StoreError> {
        let header = &self.snapshot.header;
        if !uidlist::ends_with(part, is_start, header.list_last) {
            return Ok(None);
        }
        let Some(now) = hash::heading(self.dir)? else { return Ok(None) };
        let id = now.id.unwrap_or_else(|| derived_id(self.dir));
        if (id, now.uid_validity) != (header.id, header.uid_validity) {
            return Ok(None);
        }
        let known = self.known_heading();
        Ok(Some(Heading { next: known.next.max(now.next), ..known }))
    }

    pub(super) fn known_heading(&self) -> Heading {
        let header = &self.snapshot.header;
        Heading {
            uid_validity: header.uid_validity,
            next: header.uid_next,
            id: Some(header.id),
            rest: Vec::new(),
        }
    }
}
