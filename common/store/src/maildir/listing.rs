//! Which mailboxes an account has: looked at until no rename can have hidden one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use mailtwin_disk::index::Batch;
use mailtwin_logic::{
    ids::{Account, MailboxId},
    mailbox::{FileState, MailboxName, MailboxState},
};

use super::{
    engine::{Book, Cell, Engine, describe, lock},
    files,
    fsys::Dir,
    hash,
    snapshot::{Shelf, Snapshot},
    uidlist,
};
use crate::{Listing, Problem, ProblemKind, Reason, StoreError};

/// How often an account is looked at whose mailboxes are being moved about meanwhile.
const LOOKS: usize = 8;

/// Problems shown at most.
const PROBLEMS_MAX: usize = 1000;

/// Where mailboxes are, with the inode of `cur`; nothing of those that cannot be read.
type Places = BTreeMap<MailboxName, Option<(MailboxId, u64)>>;

/// What one look at an account found.
#[derive(Debug, Default)]
struct Seen {
    listing: Listing,
    problems: Vec<Problem>,
    places: Places,
    /// No mailbox came or went meanwhile.
    is_steady: bool,
}

impl Seen {
    /// Whether every mailbox that was known is there, and none twice.
    fn has_all(&self, known: &[(MailboxId, MailboxName)]) -> bool {
        let mut ids = BTreeSet::new();
        let is_single = self.places.values().flatten().all(|(id, _)| ids.insert(*id));
        let is_there = |(id, name): &(MailboxId, MailboxName)| {
            ids.contains(id) || self.places.get(name) == Some(&None)
        };
        is_single && known.iter().all(is_there)
    }
}

impl Engine {
    pub(crate) fn account(&self, account: &Account) -> Result<Option<Listing>, StoreError> {
        let book = self.book(account);
        let _still = book.still();
        let mut dir = self.cx.account_dir(account)?;
        if dir.is_none() {
            dir = self.cx.account_dir(account)?; // a second look, as for anything that is gone
        }
        let Some(dir) = dir else {
            self.forget_absent(account, &book, &Places::new())?;
            return Ok(None);
        };
        self.list(account, &book, &dir).map(Some)
    }

    /// Looks until what was seen cannot have been a rename half-way: a mailbox that was at its old
    /// name when the new one was looked at, and the other way round, must not pass for deleted (I2).
    fn list(&self, account: &Account, book: &Book, dir: &Dir) -> Result<Listing, StoreError> {
        let mut before: Option<Places> = None;
        for _ in 0..LOOKS {
            let known: Vec<_> = lock(&book.ids).iter().map(|(id, at)| (*id, at.clone())).collect();
            let seen = self.look_at_all(account, book, dir)?;
            if seen.is_steady && (seen.has_all(&known) || before.as_ref() == Some(&seen.places)) {
                return self.conclude_list(account, book, dir, seen);
            }
            before = Some(seen.places);
        }
        Err(StoreError::Moving { account: account.clone() })
    }

    /// Looks at every mailbox once.
    fn look_at_all(&self, account: &Account, book: &Book, dir: &Dir) -> Result<Seen, StoreError> {
        let (layout, mut odd) = (self.cx.options.layout, Vec::new());
        let names = layout.mailboxes(dir, &mut odd)?;
        self.follow_renames(account, book, dir, &names)?;
        let mut seen = Seen { is_steady: true, ..Seen::default() };
        seen.problems = odd.iter().map(|path| name_problem(path)).collect();
        for name in &names {
            let Some(mailbox) = self.cx.mailbox_dir(dir, name)? else {
                seen.is_steady = false;
                continue;
            };
            let cell = book.cell(name);
            let mut guard = lock(&cell);
            match self.refresh(account, name, &mailbox, &mut guard) {
                Ok(false) => {}
                Ok(true) => {
                    if let Some(snapshot) = guard.as_ref() {
                        let inode = snapshot.header.marks.cur.inode();
                        seen.places.insert(name.clone(), Some((snapshot.header.id, inode)));
                        seen.listing.state.mailboxes.push(snapshot.state(name));
                        note(&mut seen.problems, account, name, snapshot);
                        if snapshot.unreadable().next().is_some() {
                            seen.listing.ailing.push(name.clone());
                        }
                        self.warm(&cell, snapshot);
                    }
                    files::of_mailbox(
                        book,
                        &mailbox,
                        name,
                        &self.cx,
                        &mut seen.listing.state.files,
                    )?;
                }
                Err(error @ StoreError::WrongStore { .. }) => return Err(error),
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => {
                    seen.places.insert(name.clone(), None);
                    seen.problems.push(unreadable(account, name, &error));
                    seen.listing.unread.push((name.clone(), error.reason(), describe(&error)));
                }
            }
        }
        // One directory at two names was seen before and after it was renamed.
        let mut inodes = BTreeSet::new();
        seen.is_steady &=
            seen.places.values().flatten().all(|(_, inode)| *inode == 0 || inodes.insert(*inode));
        seen.is_steady &= names == layout.mailboxes(dir, &mut Vec::new())?;
        Ok(seen)
    }

    fn conclude_list(
        &self,
        account: &Account,
        book: &Book,
        dir: &Dir,
        seen: Seen,
    ) -> Result<Listing, StoreError> {
        let Seen { mut listing, mut problems, places, .. } = seen;
        self.forget_absent(account, book, &places)?;
        set_apart_copies(book, &mut listing);
        files::list(&self.cx, book, account, dir, &mut listing.state.files, &mut problems)?;
        listing.state.files.sort_unstable_by(|a: &FileState, b| a.key.cmp(&b.key));
        problems.truncate(PROBLEMS_MAX);
        lock(&self.problems).insert(Some(account.clone()), problems);
        Ok(listing)
    }

    /// What is known of an account, once it is known under the names that its mailboxes have: a
    /// crash can take back what the index was told of renames, but not the renames.
    pub(crate) fn settled_book(&self, account: &Account) -> Result<Arc<Book>, StoreError> {
        let book = self.book(account);
        if !*lock(&book.settled) {
            let _still = book.still();
            let Some(dir) = self.cx.account_dir(account)? else { return Ok(book.clone()) };
            let names = self.cx.options.layout.mailboxes(&dir, &mut Vec::new())?;
            self.follow_renames(account, &book, &dir, &names)?;
        }
        Ok(book)
    }

    /// Mailboxes under other names than before take their snapshots along.
    fn follow_renames(
        &self,
        account: &Account,
        book: &Book,
        dir: &Dir,
        names: &[MailboxName],
    ) -> Result<(), StoreError> {
        let mut settled = lock(&book.settled);
        let (mut vacant, mut homeless) = (Vec::new(), BTreeMap::new());
        for name in names {
            let Some(mailbox) = self.cx.mailbox_dir(dir, name)? else { continue };
            if !self.cx.is_read_only() {
                self.cx.locker.clear(&mailbox, uidlist::LOCK, uidlist::NAME)?;
            }
            let cell = book.cell(name);
            let mut guard = lock(&cell);
            let list = mailbox.stat(uidlist::NAME)?.map_or(0, |list| list.st_ino);
            let known = guard.as_ref().map(|held| (held.header.id, held.header.marks.list.inode()));
            if list == 0 || known.is_some_and(|(_, held)| held == list) {
                continue;
            }
            let Some(id) = hash::heading(&mailbox)?.and_then(|heading| heading.id) else {
                continue;
            };
            match known {
                Some((held, _)) if held == id => continue,
                Some((held, _)) => homeless.insert(held, (name.clone(), guard.take())),
                None => None,
            };
            vacant.push((name, id));
        }
        for (_, id) in &vacant {
            let gone = |old: &MailboxName| names.binary_search(old).is_err();
            if let Some(old) = book.name_of(*id).filter(gone) {
                let snapshot = lock(&book.cell(&old)).take();
                homeless.entry(*id).or_insert((old, snapshot));
            }
        }
        if !vacant.is_empty() {
            self.house(account, book, &vacant, homeless)?;
        }
        *settled = true;
        Ok(())
    }

    /// Puts each of the `homeless` snapshots where its mailbox is now.
    fn house(
        &self,
        account: &Account,
        book: &Book,
        vacant: &[(&MailboxName, MailboxId)],
        mut homeless: BTreeMap<MailboxId, (MailboxName, Option<Snapshot>)>,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for (old, _) in homeless.values() {
            Shelf::unname(&mut batch, account, old);
        }
        for (name, id) in vacant {
            if let Some((_, Some(mut snapshot))) = homeless.remove(id) {
                self.cx.shelf.save(&mut batch, account, name, &mut snapshot);
                lock(&book.ids).insert(*id, (*name).clone());
                *lock(&book.cell(name)) = Some(snapshot);
            }
        }
        // One whose mailbox is nowhere stays, if nobody else lives there: its list may have been
        // made anew, and then its messages need not be read again.
        for (id, (old, snapshot)) in homeless {
            let Some(mut snapshot) = snapshot else { continue };
            let cell = book.cell(&old);
            let mut guard = lock(&cell);
            if guard.is_none() {
                self.cx.shelf.save(&mut batch, account, &old, &mut snapshot);
                *guard = Some(snapshot);
            } else {
                let mut ids = lock(&book.ids);
                if ids.get(&id) == Some(&old) {
                    ids.remove(&id);
                }
                self.cx.shelf.remove_records(&mut batch, &snapshot)?;
            }
        }
        self.cx.shelf.apply(batch)
    }

    /// Forgets mailboxes that are surely gone.
    ///
    /// One may have been built since they were listed: so each is looked for once more, while
    /// nobody else can give it its place. Its cell stays, since somebody may be waiting for it.
    fn forget_absent(
        &self,
        account: &Account,
        book: &Book,
        present: &Places,
    ) -> Result<(), StoreError> {
        let absent: Vec<(MailboxName, Cell)> = {
            let cells = lock(&book.cells);
            let absent = cells.iter().filter(|(name, _)| !present.contains_key(name));
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

    pub(crate) fn problems(&self) -> Vec<Problem> {
        let problems = lock(&self.problems);
        let mut all: Vec<Problem> = problems.values().flatten().cloned().collect();
        all.sort_unstable();
        all.truncate(PROBLEMS_MAX);
        all
    }
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
    // A mailbox made anew under the same name has another identity.
    let names: BTreeMap<&MailboxName, &MailboxId> =
        owners.iter().map(|(id, name)| (name, id)).collect();
    ids.retain(|id, name| names.get(name).is_none_or(|now| *now == id));
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

pub(crate) fn no_accounts(prefix: &std::path::Path) -> Problem {
    Problem {
        kind: ProblemKind::NoAccounts,
        account: None,
        mailbox: None,
        object: prefix.display().to_string(),
        detail: "no account was found: does `root` say where the mail lies?".into(),
    }
}

pub(crate) fn name_problem(path: &std::path::Path) -> Problem {
    use std::os::unix::ffi::OsStrExt as _;
    Problem {
        kind: ProblemKind::Name,
        account: None,
        mailbox: None,
        object: path.as_os_str().as_bytes().escape_ascii().to_string(),
        detail: "its name cannot be replicated; rename it".into(),
    }
}
