//! Looks at the files of a mailbox with distrust: what was remembered of them is only compared with.

use std::collections::BTreeSet;

use mailtwin_logic::{
    check::{Depth, Flaw, FlawKind, Inspect, Inspected, slot},
    digest::Digest,
    ids::{Account, MailboxId, Uid},
};

use super::{
    engine::{Engine, describe, lock},
    fsys::Dir,
    hash,
    snapshot::{Entry, Marks, Snapshot},
    uidlist::{self, Heading, Lines},
};
use crate::{ProblemKind, StoreError};

/// Messages in one part: bounds the memory it takes.
const PART: usize = 10_000;
/// How often messages are looked for that clients rename all the time.
const LOOKS: usize = 4;
/// Flaws told in one part: it has to fit a frame.
const FLAWS_MAX: usize = 1000;
/// Characters of a detail.
const DETAIL_MAX: usize = 300;

/// What was taken from a snapshot, to be looked at without its lock.
struct Part {
    dir: Dir,
    /// Records, each with its share in the digest.
    entries: Vec<(Entry, Digest)>,
    inspected: Inspected,
}

/// The directories of a mailbox, opened when they are needed.
struct Places<'a> {
    dir: &'a Dir,
    new: Option<Dir>,
    cur: Option<Dir>,
}

impl Places<'_> {
    fn of(&mut self, entry: &Entry) -> Result<Option<&Dir>, StoreError> {
        let place = if entry.in_new { &mut self.new } else { &mut self.cur };
        if place.is_none() {
            *place = self.dir.sub(entry.place())?;
        }
        Ok(place.as_ref())
    }
}

impl Engine {
    pub(crate) fn inspect(&self, wanted: &Inspect) -> Result<Inspected, StoreError> {
        let (account, id) = (&wanted.account, wanted.mailbox);
        let first = wanted.from <= Uid(1) && wanted.only.is_empty();
        if first && wanted.depth != Depth::Sample {
            self.distrust(account, id);
        }
        let part = match self.visit_id(account, id, |name, snapshot, dir| {
            self.cx.shelf.load(snapshot, self.cx.clock.unix_ms())?;
            let mut part = take(snapshot, dir, wanted)?;
            part.inspected.state = Some(snapshot.state(name));
            if first {
                part.inspected.flaws = self.look_at_list(snapshot, dir)?;
            }
            Ok(part)
        }) {
            Ok(part) => part,
            Err(StoreError::NotFound { .. }) => return Ok(Inspected::default()),
            Err(error) => return Err(error),
        };
        self.look_at_messages(wanted, part)
    }

    /// Has all of a mailbox's names and its list read again, whatever their dates say.
    fn distrust(&self, account: &Account, id: MailboxId) {
        let book = self.book(account);
        let Some(name) = book.name_of(id) else { return };
        let cell = book.cell(&name);
        if let Some(snapshot) = lock(&cell).as_mut() {
            snapshot.header.marks = Marks::default();
        }
    }

    fn look_at_list(&self, snapshot: &Snapshot, dir: &Dir) -> Result<Vec<Flaw>, StoreError> {
        let mut flaws = Vec::new();
        let mut flaw = |kind, detail| flaws.push(Flaw { uid: None, kind, detail });
        for (kind, _, detail) in &snapshot.header.problems {
            if *kind == ProblemKind::ListDamaged {
                flaw(FlawKind::List, format!("dovecot-uidlist: {detail}"));
            }
        }
        if snapshot.header.unnumbered > 0 && !self.cx.assigns() {
            let count = snapshot.header.unnumbered;
            flaw(FlawKind::Unnumbered, format!("{count} files have no line in dovecot-uidlist"));
        }
        if self.cx.is_read_only() || snapshot.header.pending {
            return Ok(flaws);
        }
        let content = hash::tail(dir, uidlist::NAME, 0, uidlist::FILE_OCTETS_MAX)?;
        if let Some(content) = content
            && let Ok((heading, rest)) = Heading::parse(&content)
        {
            let last = Lines::parse(rest, Uid(0)).read.last().map_or(Uid(0), |line| line.uid);
            let (next, known) = (heading.next.max(last.next()), snapshot.header.uid_next);
            if next < known && heading.uid_validity == snapshot.header.uid_validity {
                flaw(FlawKind::UidNext, format!("dovecot-uidlist says {next}, it was {known}"));
            }
        }
        Ok(flaws)
    }

    fn look_at_messages(&self, wanted: &Inspect, part: Part) -> Result<Inspected, StoreError> {
        let Part { mut dir, mut entries, mut inspected } = part;
        let mut astray = look_at(wanted, &dir, &entries, &mut inspected)?;
        for _ in 0..LOOKS {
            if astray.is_empty() {
                break;
            }
            // Renamed or expunged since their names were taken.
            let again = Inspect { only: astray.into_iter().collect(), ..wanted.clone() };
            self.distrust(&wanted.account, wanted.mailbox);
            let found = self.visit_id(&wanted.account, wanted.mailbox, |_, snapshot, dir| {
                self.cx.shelf.load(snapshot, self.cx.clock.unix_ms())?;
                take(snapshot, dir, &again)
            });
            match found {
                Ok(found) => (dir, entries) = (found.dir, found.entries),
                Err(StoreError::NotFound { .. }) => break,
                Err(error) => return Err(error),
            }
            let mut again = Inspected::default();
            astray = look_at(wanted, &dir, &entries, &mut again)?;
            inspected.flaws.append(&mut again.flaws);
            inspected.read += again.read;
            inspected.octets_read = inspected.octets_read.saturating_add(again.octets_read);
        }
        Ok(inspected)
    }
}

/// Takes the next part of a mailbox's records.
fn take(snapshot: &Snapshot, dir: &Dir, wanted: &Inspect) -> Result<Part, StoreError> {
    let (mut entries, mut inspected) = (Vec::new(), Inspected::default());
    let only: BTreeSet<Uid> = wanted.only.iter().copied().collect();
    for (uid, entry) in snapshot.entries().range(wanted.from..) {
        let left_out =
            wanted.depth == Depth::Sample && !wanted.slots.has(slot(wanted.mailbox, *uid));
        if left_out || (!only.is_empty() && !only.contains(uid)) {
            continue;
        }
        if entries.len() >= PART {
            inspected.next = Some(*uid);
            break;
        }
        entries.push((entry.clone(), Digest::of([&entry.record(&snapshot.table)])));
    }
    Ok(Part { dir: dir.again()?, entries, inspected })
}

/// Looks at messages; returns those whose files are not where they were.
fn look_at(
    wanted: &Inspect,
    dir: &Dir,
    entries: &[(Entry, Digest)],
    inspected: &mut Inspected,
) -> Result<Vec<Uid>, StoreError> {
    let mut places = Places { dir, new: None, cur: None };
    let mut astray = Vec::new();
    for (entry, share) in entries {
        if inspected.flaws.len() >= FLAWS_MAX || inspected.octets_read >= wanted.octets_max {
            inspected.next = Some(entry.uid);
            break;
        }
        inspected.digest.merge(*share);
        inspected.messages += 1;
        inspected.octets = inspected.octets.saturating_add(entry.octets);
        let Some(place) = places.of(entry)? else {
            astray.push(entry.uid);
            continue;
        };
        let chosen = wanted.slots.has(slot(wanted.mailbox, entry.uid));
        let read = wanted.depth >= Depth::Octets && chosen;
        match flaw_of(place, entry, read) {
            Ok(Seen::Astray) => astray.push(entry.uid),
            Ok(Seen::Flaw(kind, detail)) => {
                let detail = detail.chars().take(DETAIL_MAX).collect();
                inspected.flaws.push(Flaw { uid: Some(entry.uid), kind, detail });
            }
            Ok(Seen::Sound) => {}
            Err(error) => return Err(error),
        }
        if read {
            inspected.read += 1;
            inspected.octets_read = inspected.octets_read.saturating_add(entry.octets);
        }
    }
    Ok(astray)
}

/// What became of a message.
enum Seen {
    Sound,
    Astray,
    Flaw(FlawKind, String),
}

fn flaw_of(place: &Dir, entry: &Entry, read: bool) -> Result<Seen, StoreError> {
    let opened = match place.read(&entry.name) {
        Ok(Some((_, stat))) => stat,
        Ok(None) => return Ok(Seen::Astray),
        Err(error @ StoreError::Io { .. }) => return unreadable(error),
        Err(error) => return Err(error),
    };
    let octets = u64::try_from(opened.st_size).unwrap_or(0);
    if octets != entry.octets {
        let detail = format!("{octets} octets, {} when first seen", entry.octets);
        return Ok(Seen::Flaw(FlawKind::Size, detail));
    }
    if read {
        match hash::message(place, &entry.name) {
            Ok(Some((guid, ..))) if guid != entry.guid => {
                let detail = format!("GUID {guid}, {} when first seen", entry.guid);
                return Ok(Seen::Flaw(FlawKind::Octets, detail));
            }
            Ok(Some(_)) => {}
            Ok(None) => return Ok(Seen::Astray),
            Err(error @ StoreError::Io { .. }) => return unreadable(error),
            Err(error) => return Err(error),
        }
    }
    if opened.st_mtime != entry.date {
        let detail = format!("INTERNALDATE {}, {} when first seen", opened.st_mtime, entry.date);
        return Ok(Seen::Flaw(FlawKind::Date, detail));
    }
    Ok(Seen::Sound)
}

/// An error of one file is its flaw; one of the process is not.
fn unreadable(error: StoreError) -> Result<Seen, StoreError> {
    if super::scan::is_exhausted(&error) {
        return Err(error);
    }
    Ok(Seen::Flaw(FlawKind::Unreadable, describe(&error)))
}
