//! An account's files beside its mailboxes: subscriptions, access lists, Sieve scripts and which of
//! them is active.
//!
//! What only Cyrus has a use for lies in files of our own, which Dovecot does not look at: so it comes
//! back when a Cyrus is the master again.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use mailtwin_logic::{
    ids::{Account, Guid},
    limits::FILE_OCTETS_MAX,
    mailbox::{FileKey, FileState, MailboxName},
};
use rustix::fs::FileType;

use super::{
    build::make_all,
    engine::{Book, Context, Engine, lock},
    fsys::Dir,
    hash,
};
use crate::{Problem, ProblemKind, StoreError, guid_of};

pub(crate) const SUBSCRIPTIONS: &[u8] = b"subscriptions";
const SUBSCRIPTIONS_LOCK: &[u8] = b"subscriptions.lock";
pub(crate) const ACL: &[u8] = b"dovecot-acl";
const ANNOTATIONS: &[u8] = b"mailtwin-annotations";
const QUOTA: &[u8] = b"mailtwin-quota";
const SEEN: &[u8] = b"mailtwin-seen";
const SUBSCRIBED: &[u8] = b"mailtwin-subscribed";
pub(crate) const SIEVE: &[u8] = b"sieve";
pub(crate) const SIEVE_ACTIVE: &[u8] = b".dovecot.sieve";
pub(crate) const SCRIPT_SUFFIX: &[u8] = b".sieve";

/// Levels of directories below `sieve/`.
pub(crate) const SCRIPT_DEPTH_MAX: usize = 4;

/// Scripts of one account.
const SCRIPTS_MAX: usize = 1000;

/// The SHA-1 of a file, computed only if it may have changed.
fn guid(
    cx: &Context,
    book: &Book,
    dir: &Dir,
    name: &[u8],
    key: &FileKey,
) -> Result<Option<Guid>, StoreError> {
    let mark = dir.mark(name, cx.clock.unix_ms())?;
    if mark.inode() == 0 {
        return Ok(None);
    }
    if let Some((held, guid)) = lock(&book.files).get(key)
        && held.holds(&mark)
    {
        return Ok(Some(*guid));
    }
    let Some(content) = dir.content(name, FILE_OCTETS_MAX)? else { return Ok(None) };
    let guid = guid_of(&content);
    lock(&book.files).insert(key.clone(), (mark, guid));
    Ok(Some(guid))
}

/// Adds what belongs to one mailbox.
pub(crate) fn of_mailbox(
    book: &Book,
    mailbox: &Dir,
    name: &MailboxName,
    cx: &Context,
    files: &mut Vec<FileState>,
) -> Result<(), StoreError> {
    let keys = [FileKey::Acl(name.clone()), FileKey::Annotations(name.clone())];
    for (key, file) in keys.into_iter().zip([ACL, ANNOTATIONS]) {
        if let Some(guid) = guid(cx, book, mailbox, file, &key)? {
            files.push(FileState { key, guid });
        }
    }
    Ok(())
}

/// Adds what belongs to no mailbox.
pub(crate) fn list(
    cx: &Context,
    book: &Book,
    account: &Account,
    dir: &Dir,
    files: &mut Vec<FileState>,
    problems: &mut Vec<Problem>,
) -> Result<(), StoreError> {
    let mut add = |dir: &Dir, name: &[u8], key: FileKey| match guid(cx, book, dir, name, &key) {
        Ok(Some(guid)) => files.push(FileState { key, guid }),
        Ok(None) => {}
        Err(error) => {
            problems.push(skipped(account, &dir.at(name), &super::engine::describe(&error)));
        }
    };
    add(dir, SUBSCRIPTIONS, FileKey::Subscriptions);
    add(dir, QUOTA, FileKey::Quota);
    add(dir, SEEN, FileKey::Seen);
    add(dir, SUBSCRIBED, FileKey::SubscribedOfOthers);
    let Some(home) = home(cx, account)? else { return Ok(()) };
    for path in scripts(&home)? {
        let key = MailboxName::new(path.as_os_str().as_bytes());
        if let (Ok(key), Some(sieve)) = (key, home.sub(SIEVE)?) {
            let (above, name) = super::build::split(&path)?;
            if let Some(above) = sieve.beneath(&above)? {
                add(&above, &name, FileKey::Sieve(key));
            }
        }
    }
    match active(&home)? {
        Active::Link(target) => {
            files.push(FileState { key: FileKey::SieveActive, guid: guid_of(&target) });
        }
        Active::Odd(why) => problems.push(skipped(account, &home.at(SIEVE_ACTIVE), why)),
        Active::None => {}
    }
    Ok(())
}

fn skipped(account: &Account, path: &Path, why: &str) -> Problem {
    Problem {
        kind: ProblemKind::FileSkipped,
        account: Some(account.clone()),
        mailbox: None,
        object: path.as_os_str().as_bytes().escape_ascii().to_string(),
        detail: why.to_owned(),
    }
}

/// Where scripts lie, if that is known and there.
pub(crate) fn home(cx: &Context, account: &Account) -> Result<Option<Dir>, StoreError> {
    let Some(home) = &cx.home else { return Ok(None) };
    let place = home.locate(account, &cx.pattern)?;
    let Some(prefix) = Dir::open(home.prefix())? else { return Ok(None) };
    prefix.beneath(&place)
}

/// Scripts, by their paths below `sieve/`.
fn scripts(home: &Dir) -> Result<Vec<PathBuf>, StoreError> {
    let Some(sieve) = home.sub(SIEVE)? else { return Ok(Vec::new()) };
    let (mut found, mut open) = (Vec::new(), vec![(sieve, PathBuf::new(), 0)]);
    while let Some((dir, path, depth)) = open.pop() {
        let mut below = Vec::new();
        dir.list(|name, _, kind| {
            let path = path.join(OsStr::from_bytes(name));
            if kind == FileType::RegularFile && name.ends_with(SCRIPT_SUFFIX) {
                if found.len() < SCRIPTS_MAX {
                    found.push(path);
                }
            } else if kind == FileType::Directory && depth < SCRIPT_DEPTH_MAX {
                below.push((name.to_vec(), path));
            }
        })?;
        for (name, path) in below {
            if let Some(sub) = dir.sub(&name)? {
                open.push((sub, path, depth + 1));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

enum Active {
    None,
    Link(Vec<u8>),
    Odd(&'static str),
}

/// The active script's link; one to below the home is taken relative to it.
fn active(home: &Dir) -> Result<Active, StoreError> {
    let Some(target) = home.target(SIEVE_ACTIVE)? else {
        let odd = "it is no link; move the script into sieve/ and link it";
        return Ok(if home.stat(SIEVE_ACTIVE)?.is_some() {
            Active::Odd(odd)
        } else {
            Active::None
        });
    };
    let path = Path::new(OsStr::from_bytes(&target));
    let relative = path.strip_prefix(home.path()).unwrap_or(path);
    Ok(if is_below(relative.as_os_str().as_bytes()) {
        Active::Link(relative.as_os_str().as_bytes().to_vec())
    } else {
        Active::Odd("it leads out of the account's home")
    })
}

fn is_below(target: &[u8]) -> bool {
    target.len() <= MailboxName::OCTETS_MAX
        && !target.is_empty()
        && MailboxName::new(target).is_ok()
}

impl Engine {
    pub(crate) fn file(
        &self,
        account: &Account,
        key: &FileKey,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        if let FileKey::SieveActive = key {
            let Some(home) = home(&self.cx, account)? else { return Ok(None) };
            return Ok(match active(&home)? {
                Active::Link(target) => Some(target),
                Active::Odd(_) | Active::None => None,
            });
        }
        match self.file_place(account, key, false)? {
            Some((dir, name)) => dir.content(&name, FILE_OCTETS_MAX),
            None => Ok(None),
        }
    }

    pub(crate) fn set_file(
        &self,
        account: &Account,
        key: &FileKey,
        content: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        if let Some(content) = content
            && u64::try_from(content.len()).is_ok_and(|octets| octets > FILE_OCTETS_MAX)
        {
            return Err(StoreError::Name { name: format!("{key:?}"), why: "it is too long" });
        }
        let Some((dir, name)) = self.file_place(account, key, content.is_some())? else {
            return Ok(());
        };
        let owner = dir.owner()?;
        let is_locked = *key == FileKey::Subscriptions;
        let take = || self.cx.locker.take(&dir, SUBSCRIPTIONS_LOCK, SUBSCRIPTIONS, owner);
        let held = is_locked.then(take).transpose()?;
        match (content, key) {
            (Some(target), FileKey::SieveActive) => {
                if !is_below(target) {
                    let name = target.escape_ascii().to_string();
                    return Err(StoreError::Name { name, why: "it leads out of the home" });
                }
                let temporary = [&name[..], b".tmp"].concat();
                dir.remove(&temporary)?;
                dir.symlink(&temporary, target, owner)?;
                dir.rename(&temporary, &dir, &name)?;
            }
            (Some(content), _) => hash::replace(&dir, &name, content, owner, None)?,
            (None, _) => {
                dir.remove(&name)?;
            }
        }
        dir.sync()?;
        held.map_or(Ok(()), |held| held.check())
    }

    /// Where scripts are to lie, made if need be.
    fn made_home(&self, account: &Account) -> Result<Option<Dir>, StoreError> {
        let Some(home) = &self.cx.home else { return Ok(None) };
        let Some(prefix) = Dir::open(home.prefix())? else { return Ok(None) };
        let place = home.locate(account, &self.cx.pattern)?;
        make_all(&prefix, &place, prefix.owner()?).map(Some)
    }

    /// Directory and name of a file that lies beside a mailbox's messages.
    fn beside(
        &self,
        dir: &Dir,
        mailbox: &MailboxName,
        name: &[u8],
        write: bool,
    ) -> Result<Option<(Dir, Vec<u8>)>, StoreError> {
        match self.cx.mailbox_dir(dir, mailbox)? {
            Some(dir) => Ok(Some((dir, name.to_vec()))),
            None if write => {
                let what = "the mailbox of an access list or annotations".into();
                Err(StoreError::NotFound { what })
            }
            None => Ok(None),
        }
    }

    /// Directory and name of a file; made, if it is to be written, as far as the account is there.
    fn file_place(
        &self,
        account: &Account,
        key: &FileKey,
        write: bool,
    ) -> Result<Option<(Dir, Vec<u8>)>, StoreError> {
        let dir = match self.cx.account_dir(account)? {
            Some(dir) => dir,
            None if write => {
                let place = self.cx.place(account)?;
                let prefix = self.cx.prefix()?;
                make_all(&prefix, &place, prefix.owner()?)?
            }
            None => return Ok(None),
        };
        let absent = |what: &'static str| StoreError::NotFound { what: what.into() };
        match key {
            FileKey::Subscriptions => Ok(Some((dir, SUBSCRIPTIONS.to_vec()))),
            FileKey::Quota => Ok(Some((dir, QUOTA.to_vec()))),
            FileKey::Seen => Ok(Some((dir, SEEN.to_vec()))),
            FileKey::SubscribedOfOthers => Ok(Some((dir, SUBSCRIBED.to_vec()))),
            FileKey::Acl(mailbox) => self.beside(&dir, mailbox, ACL, write),
            FileKey::Annotations(mailbox) => self.beside(&dir, mailbox, ANNOTATIONS, write),
            FileKey::SieveActive => {
                let place = if write { self.made_home(account) } else { home(&self.cx, account) };
                match place? {
                    Some(home) => Ok(Some((home, SIEVE_ACTIVE.to_vec()))),
                    None if write => Err(absent("a home directory for Sieve scripts")),
                    None => Ok(None),
                }
            }
            FileKey::Sieve(script) => {
                let place = if write { self.made_home(account) } else { home(&self.cx, account) };
                let Some(home) = place? else {
                    return if write {
                        Err(absent("a home directory for Sieve scripts"))
                    } else {
                        Ok(None)
                    };
                };
                script_place(&home, script, write)
            }
        }
    }
}

fn script_place(
    home: &Dir,
    script: &MailboxName,
    write: bool,
) -> Result<Option<(Dir, Vec<u8>)>, StoreError> {
    let octets = script.as_octets();
    if !octets.ends_with(SCRIPT_SUFFIX) || script.parts().any(|part| part.len() > 200) {
        return Err(StoreError::Name { name: script.to_string(), why: "it is no script's name" });
    }
    let path = Path::new("sieve").join(OsStr::from_bytes(octets));
    let (above, name) = super::build::split(&path)?;
    let dir = match home.beneath(&above)? {
        None if write => Some(make_all(home, &above, home.owner()?)?),
        other => other,
    };
    Ok(dir.map(|dir| (dir, name)))
}
