//! Mailboxes moved, deleted and emptied, all of one account's together.
//!
//! Everything is checked before anything moves. Mailboxes that change places are parked aside first;
//! a note beside them says where each goes, so that after a crash they get there at the next
//! start.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    sync::PoisonError,
};

use mailtwin_disk::{index::Batch, replace};
use mailtwin_logic::{
    ids::{Account, MailboxId},
    mailbox::MailboxName,
    plan::Step,
};
use rustix::fs::FileType;

use super::{
    build::{make_all, split},
    engine::{Book, Engine, lock},
    fsys::{Dir, is_absent, is_taken},
    graveyard::Family,
    identity::refused,
    indexlog,
    layout::Layout,
    lock::DotLock,
    random_id,
    snapshot::{Entry, Shelf, Snapshot},
    stage::open_or_make,
    uidlist,
};
use crate::StoreError;

/// The note beside parked mailboxes: a line `<name here> TAB <destination below the prefix>` for
/// each, escaped.
const NOTE: &str = "destinations";

impl Engine {
    pub(crate) fn restructure(&self, account: &Account, steps: &[Step]) -> Result<(), StoreError> {
        let book = self.settled_book(account)?;
        let _alone = book.moving.write().unwrap_or_else(PoisonError::into_inner);
        let stale = || StoreError::Stale(None);
        let root = self.cx.account_dir(account)?.ok_or_else(stale)?;
        self.check_steps(account, &book, &root, steps)?;
        let mut renames = Vec::new();
        for step in steps {
            match step {
                Step::Delete { name, .. } => self.delete(account, &book, &root, name)?,
                Step::Reset { name, .. } => self.reset(account, &book, &root, name)?,
                Step::Rename { from, to, .. } => renames.push((from, to)),
            }
        }
        self.rename_all(account, &book, &root, &renames)?;
        root.sync()?;
        root.remove(b"maildirsize")?;
        Ok(())
    }

    fn check_steps(
        &self,
        account: &Account,
        book: &Book,
        root: &Dir,
        steps: &[Step],
    ) -> Result<(), StoreError> {
        let (mut leaving, mut arriving) = (BTreeSet::new(), BTreeSet::new());
        for step in steps {
            let (id, name) = match step {
                Step::Delete { name, .. } if name.is_inbox() => {
                    let why = "the INBOX cannot be deleted";
                    return Err(StoreError::Name { name: name.to_string(), why });
                }
                Step::Delete { id, name } => (id, name),
                Step::Rename { id, from, to } => {
                    self.cx.options.layout.directory(to)?;
                    if from.is_inbox() || to.is_inbox() {
                        let why = "the INBOX cannot be moved";
                        return Err(StoreError::Name { name: to.to_string(), why });
                    }
                    if !arriving.insert(to.clone()) {
                        return Err(StoreError::Stale(None));
                    }
                    (id, from)
                }
                Step::Reset { id, name } if name.is_inbox() => (id, name),
                Step::Reset { name, .. } => {
                    let why = "only the INBOX is reset";
                    return Err(StoreError::Name { name: name.to_string(), why });
                }
            };
            let may_have_own = matches!(step, Step::Rename { .. });
            self.check_step(account, book, root, (*id, name), may_have_own)?;
            leaving.insert(name.clone());
        }
        for to in arriving.difference(&leaving) {
            if let Some(dir) = self.cx.mailbox_dir(root, to)?
                && dir.has_dir(b"cur")?
            {
                return Err(StoreError::Stale(None));
            }
        }
        Ok(())
    }

    fn check_step(
        &self,
        account: &Account,
        book: &Book,
        root: &Dir,
        (id, name): (MailboxId, &MailboxName),
        may_have_own: bool,
    ) -> Result<(), StoreError> {
        let absent = || StoreError::Stale(None);
        let dir = self.cx.mailbox_dir(root, name)?.ok_or_else(absent)?;
        let cell = book.cell(name);
        let mut guard = lock(&cell);
        if !self.refresh(account, name, &dir, &mut guard)? {
            return Err(absent());
        }
        let found = guard.as_ref().ok_or_else(absent)?.state(name);
        if found.id != id || (found.foreign > 0 && !may_have_own) {
            return Err(StoreError::Stale(Some(found.head)));
        }
        Ok(())
    }

    /// Looks at a mailbox again under its lock, so that nothing delivered meanwhile goes along, and
    /// lets `take` take it away or empty it; the next build gives what then stands there a new identity.
    fn take_away(
        &self,
        account: &Account,
        book: &Book,
        root: &Dir,
        name: &MailboxName,
        take: impl FnOnce(&Dir, &DotLock<'_>, &Snapshot, Family<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let stale = || StoreError::Stale(None);
        let dir = self.cx.mailbox_dir(root, name)?.ok_or_else(stale)?;
        let cell = book.cell(name);
        let mut guard = lock(&cell);
        let held = self.cx.locker.take(&dir, uidlist::LOCK, uidlist::NAME, dir.owner()?)?;
        self.refresh_locked(&dir, &mut guard)?;
        let snapshot = guard.as_ref().ok_or_else(stale)?;
        if snapshot.state(name).foreign > 0 {
            return Err(StoreError::Stale(Some(snapshot.head())));
        }
        let uid_validity = snapshot.header.uid_validity;
        let family = Family { account, mailbox: name, uid_validity };
        take(&dir, &held, snapshot, family)?;
        if let Some(snapshot) = guard.take() {
            self.forget(account, book, name, &snapshot)?;
        }
        Ok(())
    }

    /// Takes the mailbox away in one rename.
    fn delete(
        &self,
        account: &Account,
        book: &Book,
        root: &Dir,
        name: &MailboxName,
    ) -> Result<(), StoreError> {
        self.take_away(account, book, root, name, |_, _, _, family| {
            let (grave, at) = self.cx.graveyard.mailbox(family, self.cx.clock.unix_ms())?;
            let directory = self.cx.options.layout.directory(name)?;
            move_mailbox(self.cx.options.layout, root, &directory, &grave, &at)?;
            // The lock went along; what it is called there does not matter.
            if let Some(moved) = grave.sub(&at)? {
                moved.remove(uidlist::LOCK)?;
            }
            Ok(())
        })
    }

    /// Empties the INBOX and takes its identity away.
    fn reset(
        &self,
        account: &Account,
        book: &Book,
        root: &Dir,
        name: &MailboxName,
    ) -> Result<(), StoreError> {
        self.take_away(account, book, root, name, |dir, held, snapshot, family| {
            let entries: Vec<Entry> = snapshot.entries().values().cloned().collect();
            for file in indexlog::COMPANIONS {
                dir.remove(file)?;
            }
            indexlog::replace(dir, self.cx.clock.unix_ms(), dir.owner()?)?;
            self.cx.graveyard.messages(dir, family, &entries, self.cx.clock.unix_ms())?;
            dir.remove(b"dovecot-keywords")?;
            dir.remove(uidlist::NAME)?;
            for place in [b"cur", b"new"] {
                dir.sub(place)?.map_or(Ok(()), |dir| dir.sync())?;
            }
            dir.sync()?;
            held.check()
        })
    }

    fn rename_all(
        &self,
        account: &Account,
        book: &Book,
        root: &Dir,
        renames: &[(&MailboxName, &MailboxName)],
    ) -> Result<(), StoreError> {
        let layout = self.cx.options.layout;
        let place = |name: &MailboxName| layout.directory(name);
        // Whoever has one of them open finishes first. The locks go along, and are taken away
        // where they then are.
        let mut dirs = Vec::new();
        for (from, _) in renames {
            dirs.extend(self.cx.mailbox_dir(root, from)?);
        }
        let mut locks = Vec::new();
        for dir in &dirs {
            locks.push(self.cx.locker.take(dir, uidlist::LOCK, uidlist::NAME, dir.owner()?)?);
        }
        let sources: BTreeSet<&MailboxName> = renames.iter().map(|(from, _)| *from).collect();
        let crossing = renames.iter().any(|(_, to)| sources.contains(to));
        let nested = layout == Layout::Fs && renames.len() > 1;
        if crossing || nested {
            self.park_and_place(account, root, renames)?;
        } else {
            for (from, to) in renames {
                let (above, last) = split(&root.path().join(place(to)?))?;
                let above = above.strip_prefix(root.path()).unwrap_or_else(|_| Path::new(""));
                let above = make_all(root, above, root.owner()?)?;
                move_mailbox(layout, root, &place(from)?, &above, &last)?;
                above.sync()?;
            }
        }
        let ours: BTreeSet<u64> = locks.iter().map(DotLock::inode).collect();
        for (_, to) in renames {
            // Whoever sees that ours is gone may have its own there at once.
            if let Some(dir) = self.cx.mailbox_dir(root, to)?
                && dir.stat(uidlist::LOCK)?.is_some_and(|stat| ours.contains(&stat.st_ino))
            {
                dir.remove(uidlist::LOCK)?;
            }
        }
        self.rename_snapshots(account, book, renames)
    }

    fn rename_snapshots(
        &self,
        account: &Account,
        book: &Book,
        renames: &[(&MailboxName, &MailboxName)],
    ) -> Result<(), StoreError> {
        let take = |(from, to): &(&MailboxName, &MailboxName)| {
            lock(&book.cell(from)).take().map(|snapshot| ((*to).clone(), snapshot))
        };
        let moved: Vec<(MailboxName, Snapshot)> = renames.iter().filter_map(take).collect();
        let mut batch = Batch::default();
        for (from, _) in renames {
            Shelf::unname(&mut batch, account, from);
        }
        for (to, mut snapshot) in moved {
            self.cx.shelf.save(&mut batch, account, &to, &mut snapshot);
            lock(&book.ids).insert(snapshot.header.id, to.clone());
            *lock(&book.cell(&to)) = Some(snapshot);
        }
        self.cx.shelf.apply(batch)
    }

    fn park_and_place(
        &self,
        account: &Account,
        root: &Dir,
        renames: &[(&MailboxName, &MailboxName)],
    ) -> Result<(), StoreError> {
        let layout = self.cx.options.layout;
        let base = self.cx.place(account)?;
        let path = self.cx.work_dir.join("parked").join(random_id()?.to_string());
        let parked = open_or_make(&path)?;
        let mut note = String::new();
        for (number, (_, to)) in renames.iter().enumerate() {
            let to = base.join(layout.directory(to)?);
            // Writing to a string cannot fail.
            let _ = writeln!(note, "{number}\t{}", to.as_os_str().as_bytes().escape_ascii());
        }
        replace::replace(&path.join(NOTE), note.as_bytes(), replace::PRIVATE).map_err(refused)?;
        // The deepest first, so that a parent never takes a child along.
        let mut order: Vec<usize> = (0..renames.len()).collect();
        order.sort_by_key(|&at| {
            std::cmp::Reverse(renames.get(at).map(|(from, _)| from.parts().count()))
        });
        for at in order {
            let Some((from, _)) = renames.get(at) else { continue };
            let name = at.to_string();
            move_mailbox(layout, root, &layout.directory(from)?, &parked, name.as_bytes())?;
        }
        parked.sync()?;
        root.sync()?;
        place_parked(layout, &self.cx.prefix()?, &parked)
    }

    /// Finishes what a crash interrupted, and removes what it left half done.
    pub(crate) fn recover(&self) -> Result<(), StoreError> {
        let remove = |name: &str| {
            let path = self.cx.work_dir.join(name);
            match std::fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(super::fsys::during("remove", &path)(error))
                }
                _ => Ok(()),
            }
        };
        remove("staging")?;
        remove("build")?;
        let Some(parked) = Dir::open(&self.cx.work_dir.join("parked"))? else { return Ok(()) };
        let mut groups = Vec::new();
        parked.list(|name, _, _| groups.push(name.to_vec()))?;
        for name in groups {
            if let Some(group) = parked.sub(&name)? {
                place_parked(self.cx.options.layout, &self.cx.prefix()?, &group)?;
            }
        }
        Ok(())
    }
}

/// Moves parked mailboxes to where the note says; one whose place was taken meanwhile stays.
fn place_parked(layout: Layout, prefix: &Dir, parked: &Dir) -> Result<(), StoreError> {
    let note = parked.content(NOTE.as_bytes(), 16 << 20)?.unwrap_or_default();
    for line in String::from_utf8_lossy(&note).lines() {
        let Some((name, to)) = line.split_once('\t') else { continue };
        let Some(to) = unescape(to) else { continue };
        let Some(dir) = parked.sub(name.as_bytes())? else { continue };
        let (above, last) = split(&prefix.path().join(&to))?;
        let above = above.strip_prefix(prefix.path()).unwrap_or_else(|_| Path::new(""));
        let above = make_all(prefix, above, dir.owner()?)?;
        match move_mailbox(layout, parked, Path::new(name), &above, &last) {
            Err(error) if is_taken(&error) => {
                tracing::error!(code = "move-place-taken", parked = %dir.path().display(), "a moved mailbox finds its place taken");
            }
            other => other?,
        }
        above.sync()?;
    }
    let mut left = 0;
    parked.list(|name, _, _| left += usize::from(name != NOTE.as_bytes()))?;
    if left == 0 {
        parked.remove(NOTE.as_bytes())?;
        let _ = std::fs::remove_dir(parked.path());
    }
    Ok(())
}

/// Moves a mailbox and nothing else: in the nested layout, mailboxes below it stay.
fn move_mailbox(
    layout: Layout,
    root: &Dir,
    from: &Path,
    above: &Dir,
    name: &[u8],
) -> Result<(), StoreError> {
    let (parent, last) = split(&root.path().join(from))?;
    let parent = parent.strip_prefix(root.path()).unwrap_or_else(|_| Path::new(""));
    let stale = || StoreError::Stale(None);
    let parent = root.beneath(parent)?.ok_or_else(stale)?;
    let dir = parent.sub(&last)?.ok_or_else(stale)?;
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let mut children = false;
    dir.list(|name, _, kind| {
        let own = matches!(name, b"cur" | b"new" | b"tmp") || kind != FileType::Directory;
        children |= layout == Layout::Fs && !own;
        if own {
            parts.push(name.to_vec());
        }
    })?;
    if !children {
        match parent.rename_new(&last, above, name) {
            Err(error) if is_taken(&error) && layout == Layout::Fs => {}
            Err(error) => return Err(error),
            Ok(()) => return parent.sync(),
        }
    }
    let to = above.make(name, dir.owner()?)?;
    if to.has_dir(b"cur")? {
        return Err(super::fsys::during("rename", dir.path())(rustix::io::Errno::EXIST));
    }
    // `cur` makes it a mailbox: it leaves first and arrives last.
    dir.rename(b"cur", &to, b".cur")?;
    for part in parts.iter().filter(|part| part.as_slice() != b"cur") {
        match dir.rename(part, &to, part) {
            Err(error) if !is_absent(&error) => return Err(error),
            _ => {}
        }
    }
    to.rename(b".cur", &to, b"cur")?;
    to.sync()?;
    parent.remove_dir(&last)?;
    parent.sync()
}

fn unescape(text: &str) -> Option<PathBuf> {
    let (mut octets, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'\\' {
            octets.push(first);
            continue;
        }
        let (&kind, after) = rest.split_first()?;
        rest = after;
        octets.push(match kind {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'x' => {
                let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
                rest = rest.get(2..)?;
                u8::from_str_radix(digits, 16).ok()?
            }
            other => other,
        });
    }
    Some(PathBuf::from(std::ffi::OsString::from_vec(octets)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_can_be_read_back() {
        let octets: Vec<u8> = (1..=255).collect();
        let escaped = octets.escape_ascii().to_string();
        assert_eq!(unescape(&escaped).unwrap().as_os_str().as_bytes(), octets);
        assert_eq!(unescape("a\\"), None);
        assert_eq!(unescape("\\x1"), None);
    }
}
