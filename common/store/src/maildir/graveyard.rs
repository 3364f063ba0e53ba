//! Where expunged messages and deleted mailboxes rest for a while.
//!
//! Below the working directory, one directory for each hour, named by its first second; in it the
//! files under numbers of ours, and `list` with a line for each: name here, account, mailbox,
//! UIDVALIDITY, UID, file name, INTERNALDATE and GUID (or `-`), tab between them, odd octets escaped.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use mailtwin_logic::{
    ids::{Account, Guid, Uid, UidValidity},
    mailbox::MailboxName,
};

use super::{
    fsys::{Dir, during, is_absent},
    hash,
    identity::refused,
    snapshot::Entry,
};
use crate::StoreError;

/// Seconds in one directory.
const BUCKET_SECS: u64 = 3600;
/// Stands for the GUID of octets that could not be read.
pub(crate) const UNREAD: &str = "-";

/// The graveyard of a store.
#[derive(Debug)]
pub(crate) struct Graveyard {
    path: PathBuf,
    keep: Duration,
    serial: AtomicU64,
}

/// Whose and what a burial is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family<'a> {
    pub account: &'a Account,
    pub mailbox: &'a MailboxName,
    pub uid_validity: UidValidity,
}

impl Graveyard {
    pub(crate) fn new(work_dir: &Path, keep: Duration) -> Self {
        Self { path: work_dir.join("graveyard"), keep, serial: AtomicU64::new(0) }
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes messages out of a mailbox. One that is gone already is none of our business.
    pub(crate) fn messages(
        &self,
        mailbox: &Dir,
        family: Family<'_>,
        entries: &[Entry],
        now_ms: u64,
    ) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        let (new, cur) = (mailbox.sub(b"new")?, mailbox.sub(b"cur")?);
        let place = |entry: &Entry| if entry.in_new { new.as_ref() } else { cur.as_ref() };
        if self.keep.is_zero() {
            for entry in entries {
                place(entry).map_or(Ok(false), |dir| dir.remove(&entry.name))?;
            }
            return Ok(());
        }
        let bucket = self.bucket(now_ms)?;
        let graves: Vec<String> = entries.iter().map(|_| self.grave(now_ms)).collect();
        let lines = entries.iter().zip(&graves);
        let lines =
            lines.map(|(entry, grave)| message_line(grave, family, entry, &entry.guid.to_string()));
        note(&bucket, &lines.collect::<String>())?;
        for (entry, grave) in entries.iter().zip(&graves) {
            let Some(dir) = place(entry) else { continue };
            match dir.rename(&entry.name, &bucket, grave.as_bytes()) {
                Err(error) if !is_absent(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps the file of a message that is about to be replaced, under the GUID of the octets that it
    /// has, if they can be read; the message stays where it is.
    pub(crate) fn before_mending(
        &self,
        place: &Dir,
        family: Family<'_>,
        entry: &Entry,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        if self.keep.is_zero() {
            return Ok(());
        }
        let held = hash::message(place, &entry.name).ok().flatten();
        let guid = held.map_or_else(|| UNREAD.to_owned(), |(guid, ..)| guid.to_string());
        let (bucket, grave) = (self.bucket(now_ms)?, self.grave(now_ms));
        note(&bucket, &message_line(&grave, family, entry, &guid))?;
        place.link(&entry.name, &bucket, grave.as_bytes())
    }

    /// Keeps octets that are about to be taken away where they are; durable on return. `about` is their
    /// UID, INTERNALDATE and GUID.
    pub(crate) fn octets(
        &self,
        family: Family<'_>,
        about: (Uid, i64, Guid),
        octets: &[u8],
        now_ms: u64,
    ) -> Result<(), StoreError> {
        if self.keep.is_zero() {
            return Ok(());
        }
        let (uid, date, guid) = about;
        let (bucket, grave) = (self.bucket(now_ms)?, self.grave(now_ms));
        let about = format!("{}\t{uid}\t-\t{date}\t{guid}", family.uid_validity);
        note(&bucket, &line(&grave, family, &[&about]))?;
        let mut file = bucket.create(grave.as_bytes(), bucket.owner()?)?;
        let path = bucket.at(grave.as_bytes());
        file.write_all(octets).map_err(during("write", &path))?;
        file.sync_all().map_err(during("sync", &path))?;
        bucket.sync()
    }

    /// An empty place for a mailbox that is taken away whole: directory and name to rename it to.
    pub(crate) fn mailbox(
        &self,
        family: Family<'_>,
        now_ms: u64,
    ) -> Result<(Dir, Vec<u8>), StoreError> {
        let bucket = self.bucket(now_ms)?;
        let grave = self.grave(now_ms);
        note(&bucket, &line(&grave, family, &[&family.uid_validity.to_string()]))?;
        Ok((bucket, grave.into_bytes()))
    }

    /// Removes what has rested long enough; returns how many messages that were.
    pub(crate) fn bury(&self, now_ms: u64) -> Result<u64, StoreError> {
        let Some(dir) = Dir::open(&self.path)? else { return Ok(0) };
        let mut buckets = Vec::new();
        dir.list(|name, _, _| buckets.push(String::from_utf8_lossy(name).into_owned()))?;
        let mut messages = 0;
        for name in buckets {
            let Ok(start) = name.parse::<u64>() else { continue };
            let keep_ms = u64::try_from(self.keep.as_millis()).unwrap_or(u64::MAX);
            if start.saturating_mul(1000).saturating_add(keep_ms) > now_ms {
                continue;
            }
            let path = self.path.join(&name);
            let end_ms = start.saturating_add(BUCKET_SECS).saturating_mul(1000);
            if end_ms.saturating_add(keep_ms) <= now_ms {
                messages += count(&path, 0);
                std::fs::remove_dir_all(&path).map_err(during("remove", &path))?;
            } else {
                messages += bury_some(&path, now_ms.saturating_sub(keep_ms))?;
            }
        }
        Ok(messages)
    }

    fn bucket(&self, now_ms: u64) -> Result<Dir, StoreError> {
        let start = now_ms / 1000 / BUCKET_SECS * BUCKET_SECS;
        let path = self.path.join(start.to_string());
        if let Some(dir) = Dir::open(&path)? {
            return Ok(dir);
        }
        mailtwin_disk::dir::create(&path, 0o700).map_err(refused)?;
        Dir::open(&path)?.ok_or_else(|| during("open", &path)(rustix::io::Errno::NOENT))
    }

    fn grave(&self, now_ms: u64) -> String {
        format!("{now_ms}.{}", self.serial.fetch_add(1, Ordering::Relaxed))
    }
}

fn message_line(grave: &str, family: Family<'_>, entry: &Entry, guid: &str) -> String {
    let about = format!("{}\t{}\t", family.uid_validity, entry.uid);
    let end = format!("\t{}\t{guid}", entry.date);
    line(grave, family, &[&about, &entry.name.escape_ascii().to_string(), &end])
}

fn line(grave: &str, family: Family<'_>, rest: &[&str]) -> String {
    let mailbox = family.mailbox.as_octets().escape_ascii();
    format!("{grave}\t{}\t{mailbox}\t{}\n", family.account.as_str(), rest.concat())
}

/// Written before anything moves: a line too many is harmless, a file nobody knows is not.
fn note(bucket: &Dir, lines: &str) -> Result<(), StoreError> {
    let mut file = match bucket.append(b"list") {
        Err(error) if is_absent(&error) => {
            bucket.create_with(b"list", bucket.owner()?, rustix::fs::Mode::from_raw_mode(0o600))?.0
        }
        other => other?,
    };
    file.write_all(lines.as_bytes()).map_err(during("write", &bucket.at(b"list")))
}

/// Removes what came into a bucket up to `until_ms`; its lines stay.
fn bury_some(path: &Path, until_ms: u64) -> Result<u64, StoreError> {
    let mut messages = 0;
    for entry in std::fs::read_dir(path).map_err(during("read", path))?.flatten() {
        let name = entry.file_name();
        let born = name.to_str().and_then(|name| name.split('.').next()?.parse::<u64>().ok());
        if born.is_none_or(|born| born > until_ms) {
            continue;
        }
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            messages += count(&path, 1);
            std::fs::remove_dir_all(&path).map_err(during("remove", &path))?;
        } else {
            messages += 1;
            std::fs::remove_file(&path).map_err(during("remove", &path))?;
        }
    }
    Ok(messages)
}

/// Messages in a bucket: its files, and those in `cur` and `new` of its mailboxes.
fn count(path: &Path, depth: usize) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let mut messages = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Ok(kind) = entry.file_type() else { continue };
        let is_message = if depth == 0 { name != "list" } else { depth == 2 };
        if kind.is_file() && is_message {
            messages += 1;
        } else if kind.is_dir() && (depth == 0 || (depth == 1 && (name == "cur" || name == "new")))
        {
            messages += count(&entry.path(), depth + 1);
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use mailtwin_logic::ids::ModSeq;

    use super::*;

    #[test]
    fn buried_and_removed_in_time() {
        let root = tempfile::tempdir().unwrap();
        let mailbox = root.path().join("box");
        std::fs::create_dir_all(mailbox.join("cur")).unwrap();
        std::fs::File::create(mailbox.join("cur/a:2,S")).unwrap();
        let dir = Dir::open(&mailbox).unwrap().unwrap();
        let graveyard = Graveyard::new(root.path(), Duration::from_mins(1));
        let (account, name) = (Account::new("ann").unwrap(), MailboxName::new(b"a\tb").unwrap());
        let uid_validity = UidValidity(7);
        let family = Family { account: &account, mailbox: &name, uid_validity };
        let entry = Entry {
            uid: Uid(3),
            guid: Guid([1; 20]),
            octets: 0,
            date: 9,
            inode: 0,
            name: b"a:2,S".as_slice().into(),
            in_new: false,
            keys: [].into(),
            modseq: ModSeq(0),
            replicated: true,
        };
        graveyard.messages(&dir, family, &[entry.clone(), entry], 3_600_000).unwrap();
        assert!(!mailbox.join("cur/a:2,S").exists());
        let list = std::fs::read_to_string(root.path().join("graveyard/3600/list")).unwrap();
        assert!(list.starts_with("3600000.0\tann\ta\\tb\t7\t3\ta:2,S\t9\t01"), "{list}");
        std::fs::File::create(mailbox.join("cur/b")).unwrap();
        let (bucket, grave) = graveyard.mailbox(family, 3_600_000).unwrap();
        let parent = Dir::open(root.path()).unwrap().unwrap();
        parent.rename(b"box", &bucket, &grave).unwrap();
        assert_eq!(graveyard.bury(3_659_000).unwrap(), 0);
        assert_eq!(graveyard.bury(3_660_000).unwrap(), 2);
        assert_eq!(graveyard.bury(7_260_000).unwrap(), 0);
        assert_eq!(std::fs::read_dir(root.path().join("graveyard")).unwrap().count(), 0);
    }
}
