//! Octets on their way: in memory, or in files of our own, until Cyrus gets them.

use std::{
    fs::{self, File, OpenOptions},
    io::{Cursor, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use mailtwin_cyrus::mailbox::Mailbox;
use mailtwin_logic::{
    ids::{Account, Guid, MailboxId, Uid},
    mailbox::Record,
};
use sha1::{Digest as _, Sha1};

use super::{Cyrus, lock, no_mailbox, no_message, server::Fetched};
use crate::{
    Destination, Octets, Staged, Staging, StoreError,
    maildir::fsys::{Dir, during},
    staged::{Place, Room},
};

/// Where they wait, below the working directory: a node's two daemons keep out of each other's way.
pub(super) fn dir(is_master: bool) -> &'static str {
    if is_master { "staging-master" } else { "staging-replica" }
}

/// Octets that wait in memory, altogether; beyond, they wait in files.
const ROOM_OCTETS: u64 = 64 << 20;

/// Octets of a message that may wait in memory.
const SMALL_OCTETS: u64 = 256 << 10;

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// Removes what a crash left.
pub(super) fn sweep(staging: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(staging).map_err(during("read", staging))? {
        let path = entry.map_err(during("read", staging))?.path();
        fs::remove_file(&path).map_err(during("remove", &path))?;
    }
    Ok(())
}

/// Reads staged octets, to be sent.
pub(super) fn read(staged: &Staged) -> Result<Vec<u8>, StoreError> {
    let what = format!("staged message {}", staged.guid());
    let octets = match staged.place() {
        Place::Memory(octets) => return Ok(octets.to_vec()), // hashed when they came in
        Place::File(path, _) => fs::read(path).map_err(during("read", path))?,
        Place::Taken => return Err(StoreError::NotFound { what }),
    };
    // Cyrus ends the connection over octets that are not what their GUID says.
    let got = crate::guid_of(&octets);
    if got != staged.guid() {
        return Err(StoreError::Mismatch { what, want: staged.guid(), got });
    }
    Ok(octets)
}

struct Intake {
    /// `None` once finished.
    taken: Option<Taken>,
    hash: Sha1,
    octets: u64,
    want: (Guid, u64),
    what: String,
}

/// Where the octets of a message are as they come in.
enum Taken {
    File(PathBuf, File),
    Memory(Vec<u8>, Room),
}

impl Staging for Intake {
    fn write(&mut self, octets: &[u8]) -> Result<(), StoreError> {
        self.octets = self.octets.saturating_add(octets.len() as u64);
        if self.octets > self.want.1 {
            let what = format!("{}: more octets than announced", self.what);
            return Err(StoreError::Mismatch { what, want: self.want.0, got: Guid::default() });
        }
        self.hash.update(octets);
        match &mut self.taken {
            Some(Taken::File(path, file)) => file.write_all(octets).map_err(during("write", path)),
            Some(Taken::Memory(all, _)) => {
                all.extend_from_slice(octets);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<Staged, StoreError> {
        let got = Guid(std::mem::take(&mut self.hash).finalize().into());
        if (got, self.octets) != self.want {
            let (what, want) = (self.what.clone(), self.want.0);
            return Err(StoreError::Mismatch { what, want, got });
        }
        let staged = |place| Staged::new(got, self.octets, place);
        Ok(match self.taken.take() {
            Some(Taken::File(path, _)) => staged(Place::File(path, 0)),
            Some(Taken::Memory(all, room)) => staged(Place::Memory(all.into())).within(room),
            None => staged(Place::Taken),
        })
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        if let Some(Taken::File(path, _)) = &self.taken {
            // A leftover is removed at the next start.
            let _ = fs::remove_file(path);
        }
    }
}

impl Cyrus {
    pub(super) fn begin_staging(
        &self,
        destination: &Destination,
        record: &Record,
    ) -> Result<Box<dyn Staging>, StoreError> {
        let small = record.octets <= SMALL_OCTETS;
        let room = || Room::take(&self.room, record.octets, ROOM_OCTETS);
        let taken = match small.then(room).flatten() {
            Some(room) => Taken::Memory(Vec::new(), room),
            None => self.staging_file()?,
        };
        Ok(Box::new(Intake {
            taken: Some(taken),
            hash: Sha1::new(),
            octets: 0,
            want: (record.guid, record.octets),
            what: format!("message {} for {}", record.uid, destination.account),
        }))
    }

    fn staging_file(&self) -> Result<Taken, StoreError> {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}.{serial}", std::process::id());
        let path = self.server.options.work_dir.join(dir(self.server.options.is_master)).join(name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(during("create", &path))?;
        Ok(Taken::File(path, file))
    }

    /// Copies octets that some mailbox of this store holds.
    pub(super) fn stage_copy(
        &self,
        destination: &Destination,
        record: &Record,
    ) -> Result<Option<Staged>, StoreError> {
        let place = lock(&self.bodies).get(&record.guid).cloned();
        let Some((account, id, uid)) = place else { return Ok(None) };
        let mut octets = match self.open_one(&account, id, uid) {
            Ok(octets) if octets.octets() == record.octets => octets,
            Ok(_) => return Ok(None),
            Err(_) => {
                // Gone or damaged: the original is still to be had.
                lock(&self.bodies).remove(&record.guid);
                return Ok(None);
            }
        };
        let mut all = Vec::new();
        octets.read_to_end(&mut all).map_err(during("read", Path::new("a message in memory")))?;
        if crate::guid_of(&all) != record.guid {
            return Ok(None);
        }
        let mut staging = self.begin_staging(destination, record)?;
        staging.write(&all)?;
        staging.finish().map(Some)
    }

    pub(super) fn open_one(
        &self,
        account: &Account,
        mailbox: MailboxId,
        uid: Uid,
    ) -> Result<Octets, StoreError> {
        let cell = self.cell(account);
        let mut cell = lock(&cell);
        let known = cell.boxes.get(&mailbox).is_some_and(|snapshot| snapshot.get(uid).is_some());
        if !known {
            self.refresh_id(account, &mut cell, mailbox)?;
        }
        let snapshot = cell.boxes.get(&mailbox).ok_or_else(|| no_mailbox(account, mailbox))?;
        let record = snapshot.get(uid).ok_or_else(|| no_message(account, uid))?;
        let (at, name, record) = (snapshot.mailbox.clone(), snapshot.name.clone(), record.clone());
        drop(cell); // others need not wait for this message
        if let Some(octets) = self.content(&at, &record) {
            return Ok(Octets::new(octets.len() as u64, Cursor::new(octets)));
        }
        match self.server.fetch(&at, uid, record.guid) {
            Ok(Fetched::Octets(octets)) => {
                Ok(Octets::new(octets.len() as u64, Cursor::new(octets)))
            }
            Ok(Fetched::Wrong) => {
                let path = format!("message {uid} of {account}/{name}").into();
                let why = "Cyrus says its file does not match its GUID or cannot be read".into();
                Err(StoreError::Corrupt { path, why })
            }
            Err(error) if error.reason() == crate::Reason::Missing => {
                self.gone(account, mailbox, uid)
            }
            Err(error) => Err(error),
        }
    }

    /// What a message's file holds, read by ourselves: that spares Cyrus a command and a copy. `None`
    /// if it lies elsewhere, may not be read, or is not what its GUID says: Cyrus is asked then.
    fn content(&self, mailbox: &Mailbox, record: &Record) -> Option<Vec<u8>> {
        let dir = Dir::open(&self.files(mailbox)).ok()??;
        let name = format!("{}.", record.uid).into_bytes();
        let octets = dir.content(&name, record.octets).ok()??;
        (crate::guid_of(&octets) == record.guid).then_some(octets)
    }

    /// A message that Cyrus cannot fetch: expunged meanwhile, or its file is lost.
    fn gone(&self, account: &Account, mailbox: MailboxId, uid: Uid) -> Result<Octets, StoreError> {
        let cell = self.cell(account);
        let mut cell = lock(&cell);
        let snapshot = self.refresh_id(account, &mut cell, mailbox)?;
        let snapshot = snapshot.ok_or_else(|| no_mailbox(account, mailbox))?;
        if snapshot.get(uid).is_none() {
            return Err(no_message(account, uid));
        }
        let path = format!("message {uid} of {account}/{}", snapshot.name).into();
        Err(StoreError::Corrupt { path, why: "Cyrus has its record, but no file".into() })
    }
}
