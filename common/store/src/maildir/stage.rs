//! Octets taken in: written to a file of their own, hashed on the way, dated, and not yet durable.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mailtwin_logic::{
    ids::{Account, Guid, MailboxId, Uid},
    mailbox::Record,
    plan::Mode,
};
use sha1::{Digest as _, Sha1};

use super::{
    engine::{Engine, lock},
    fsys::{Dir, Owner, date, during},
    hash, identity, names, uidlist,
};
use crate::{Destination, Staged, Staging, StoreError, staged::Place};

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A base name nobody has used, for a message of `octets` that came at `secs`.
pub(crate) fn generated_base(secs: i64, octets: u64, host: &str) -> Vec<u8> {
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    // Without it, process and serial still tell messages of one second apart.
    let random = super::random_id().map(|id| id.to_string()).unwrap_or_default();
    let random = random.get(..12).unwrap_or_default();
    let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    let host = host.get(..host.len().min(60)).unwrap_or_default();
    let pid = std::process::id();
    let secs = secs.max(0);
    format!("{secs}.R{random}P{pid}Q{serial}.{host},S={octets}").into_bytes()
}

/// Keys and base name a message gets where `is_taken` says which base names are: those of its
/// hint if they can be had.
pub(crate) fn line_of(
    record: &Record,
    host: &str,
    is_taken: impl Fn(&[u8]) -> bool,
) -> (Vec<u8>, Vec<u8>) {
    let Some((keys, base)) = uidlist::parse_hint(&record.hint) else {
        return (Vec::new(), generated_base(record.internal_date, record.octets, host));
    };
    let honest = names::told_size(base).is_none_or(|octets| octets == record.octets);
    if honest && !is_taken(base) {
        return (keys, base.to_vec());
    }
    let fresh = generated_base(record.internal_date, record.octets, host);
    (uidlist::with_guid(&keys, base), fresh)
}

struct FileStaging {
    dir: Arc<Dir>,
    name: Vec<u8>,
    inode: u64,
    /// `None` once finished.
    file: Option<File>,
    hash: Sha1,
    octets: u64,
    guid: Guid,
    octets_wanted: u64,
    date: i64,
}

impl FileStaging {
    fn what(&self) -> String {
        format!("staged message of {} octets", self.octets_wanted)
    }
}

impl Staging for FileStaging {
    fn write(&mut self, octets: &[u8]) -> Result<(), StoreError> {
        self.octets = self.octets.saturating_add(u64::try_from(octets.len()).unwrap_or(u64::MAX));
        if self.octets > self.octets_wanted {
            let what = format!("{}: more than announced", self.what());
            return Err(StoreError::Mismatch { what, want: self.guid, got: Guid::default() });
        }
        self.hash.update(octets);
        let path = || self.dir.at(&self.name);
        match &mut self.file {
            Some(file) => file.write_all(octets).map_err(|source| during("write", &path())(source)),
            None => Ok(()),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<Staged, StoreError> {
        let got = Guid(std::mem::take(&mut self.hash).finalize().into());
        if got != self.guid || self.octets != self.octets_wanted {
            return Err(StoreError::Mismatch { what: self.what(), want: self.guid, got });
        }
        let path = self.dir.at(&self.name);
        let Some(file) = &self.file else {
            return Err(StoreError::NotFound { what: self.what() });
        };
        rustix::fs::futimens(file, &date(self.date)).map_err(during("date", &path))?;
        self.file = None;
        Ok(Staged::new(got, self.octets, Place::File(path, self.inode)))
    }
}

impl Drop for FileStaging {
    fn drop(&mut self) {
        if self.file.is_some() {
            // A leftover is found and removed at the next start.
            let _ = self.dir.remove(&self.name);
        }
    }
}

impl Engine {
    /// Where a message for `destination` waits, under which name, and whose it will be.
    fn waiting_place(
        &self,
        destination: &Destination,
        record: &Record,
    ) -> Result<(Arc<Dir>, Vec<u8>, Owner), StoreError> {
        if destination.mode == Mode::Build {
            let build = self.build_of(destination)?;
            let mut build = lock(&build);
            let host = &self.cx.locker.host;
            let (_, base) = line_of(record, host, |base| build.bases.contains(base));
            build.bases.insert(base.clone());
            let flags = record.flags;
            let letters = names::Letters { flags, ..names::Letters::default() };
            return Ok((build.cur.clone(), names::compose(&base, &letters), build.owner));
        }
        self.disk()?;
        let dir = self.staging_dir()?;
        let owner = self.owner_in(&destination.account)?;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        Ok((dir, format!("{}.{serial}", std::process::id()).into_bytes(), owner))
    }

    pub(crate) fn stage(
        &self,
        destination: &Destination,
        record: &Record,
    ) -> Result<Box<dyn Staging>, StoreError> {
        let (dir, name, owner) = self.waiting_place(destination, record)?;
        let (file, inode) = dir.create_with(&name, owner, owner.file_mode())?;
        Ok(Box::new(FileStaging {
            dir,
            name,
            inode,
            file: Some(file),
            hash: Sha1::new(),
            octets: 0,
            guid: record.guid,
            octets_wanted: record.octets,
            date: record.internal_date,
        }))
    }

    /// Stages a link to, or a copy of, a message that is here already. The octets are hashed
    /// again: what is on the disk may be damaged.
    pub(crate) fn stage_held(
        &self,
        destination: &Destination,
        record: &Record,
    ) -> Result<Option<Staged>, StoreError> {
        for (slot, uid) in self.cx.shelf.holding(record.guid)? {
            let Some((account, id)) = self.owner_of(slot) else { continue };
            let held = match self.open(&account, id, uid, &mut None) {
                Ok(octets) if octets.octets() == record.octets => octets,
                Ok(_) | Err(_) => continue,
            };
            if account == destination.account
                && let Some(staged) = self.stage_link(destination, record, (&account, id, uid))?
            {
                return Ok(Some(staged));
            }
            let mut staging = self.stage(destination, record)?;
            let (mut held, mut buffer) = (held, vec![0; 64 << 10]);
            let copied = loop {
                match std::io::Read::read(&mut held, &mut buffer) {
                    Ok(0) => break true,
                    Ok(read) => staging.write(buffer.get(..read).unwrap_or_default())?,
                    Err(_) => break false,
                }
            };
            match staging.finish() {
                Ok(staged) if copied => return Ok(Some(staged)),
                // What lies here is not what it was: the original is still to be had.
                Ok(_) | Err(StoreError::Mismatch { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// A link, if the date is the same: it belongs to all names of a file.
    fn stage_link(
        &self,
        destination: &Destination,
        record: &Record,
        (account, id, uid): (&Account, MailboxId, Uid),
    ) -> Result<Option<Staged>, StoreError> {
        let (dir, name, _) = self.waiting_place(destination, record)?;
        let linked = self.visit_id(account, id, |_, snapshot, mailbox| {
            self.cx.shelf.load(snapshot, self.cx.clock.unix_ms())?;
            let Some(entry) = snapshot.entries().get(&uid) else { return Ok(false) };
            if entry.guid != record.guid || entry.date != record.internal_date {
                return Ok(false);
            }
            let Some(place) = mailbox.sub(entry.place())? else { return Ok(false) };
            Ok(place.link(&entry.name, &dir, &name).is_ok())
        });
        if !matches!(linked, Ok(true)) {
            return Ok(None);
        }
        let place = Place::File(dir.at(&name), dir.mark(&name, 0)?.inode());
        let staged = Staged::new(record.guid, record.octets, place);
        let sound = hash::message(&dir, &name)?.is_some_and(|(guid, octets, date, _)| {
            (guid, octets, date) == (record.guid, record.octets, record.internal_date)
        });
        Ok(sound.then_some(staged))
    }

    fn staging_dir(&self) -> Result<Arc<Dir>, StoreError> {
        let path = self.cx.work_dir.join("staging");
        open_or_make(&path).map(Arc::new)
    }

    /// Whose new files of an account are.
    pub(crate) fn owner_in(&self, account: &Account) -> Result<Owner, StoreError> {
        match self.cx.account_dir(account)? {
            Some(dir) => dir.owner(),
            // A store that everybody may enter does not make its mail everybody's to read.
            None => Ok(self.cx.prefix()?.owner()?.without_others()),
        }
    }
}

/// Opens a directory of our own, made if need be.
pub(crate) fn open_or_make(path: &Path) -> Result<Dir, StoreError> {
    if let Some(dir) = Dir::open(path)? {
        return Ok(dir);
    }
    mailtwin_disk::dir::create(path, 0o700).map_err(identity::refused)?;
    Dir::open(path)?.ok_or_else(|| during("open", path)(rustix::io::Errno::NOENT))
}
