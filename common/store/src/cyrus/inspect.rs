//! Looks at messages with distrust, and mends them where they lie.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use mailtwin_cyrus::mailbox::Mailbox;
use mailtwin_logic::{
    check::{Depth, Flaw, FlawKind, Inspect, Inspected, slot},
    ids::{Account, MailboxId, Uid, UidValidity},
    mailbox::Record,
};

use super::{Cyrus, Snapshot, lock, no_mailbox, no_message, server::Fetched, stage};
use crate::{
    Reason, Staged, StoreError,
    maildir::fsys::{Dir, during},
};

/// The name under which a mended message is written before it takes its place.
const FRESH: &[u8] = b".mailtwin-mended";

/// Octets of a damaged message that are kept in the graveyard; a larger one is not mended.
const MESSAGE_OCTETS_MAX: u64 = 4 << 30;

impl Cyrus {
    pub(super) fn inspect_one(&self, wanted: &Inspect) -> Result<Inspected, StoreError> {
        let cell = self.cell(&wanted.account);
        let snapshot = {
            let mut cell = lock(&cell);
            let found = self.refresh_id(&wanted.account, &mut cell, wanted.mailbox)?;
            let Some(snapshot) = found else { return Ok(Inspected::default()) };
            snapshot.clone()
        };
        let mut found = Inspected { state: Some(snapshot.state()), ..Inspected::default() };
        let files = Dir::open(&self.files(&snapshot.mailbox))?;
        for record in snapshot.from(wanted.from) {
            let uid = record.uid;
            let chosen = wanted.slots.has(slot(wanted.mailbox, uid));
            let is_left_out = !wanted.only.is_empty() && !wanted.only.contains(&uid)
                || wanted.depth == Depth::Sample && !chosen;
            if is_left_out {
                continue;
            }
            if found.octets_read >= wanted.octets_max {
                found.next = Some(uid);
                break;
            }
            found.digest.add(record);
            found.messages += 1;
            found.octets += record.octets;
            let flaw = if wanted.depth >= Depth::Octets && chosen {
                found.read += 1;
                found.octets_read += record.octets;
                self.read_with_distrust(&snapshot, record, files.as_ref())?
            } else {
                flaw_of_file(files.as_ref(), record)?
            };
            let flaw = flaw.map(|(kind, detail)| Flaw { uid: Some(uid), kind, detail });
            found.flaws.extend(flaw);
        }
        Ok(found)
    }

    fn read_with_distrust(
        &self,
        snapshot: &Snapshot,
        record: &Record,
        files: Option<&Dir>,
    ) -> Result<Option<(FlawKind, String)>, StoreError> {
        match self.server.fetch(&snapshot.mailbox, record.uid, record.guid) {
            Ok(Fetched::Octets(_)) => Ok(None),
            Ok(Fetched::Wrong) => {
                let detail = format!("its file is not what GUID {} says", record.guid);
                Ok(Some(flaw_of_file(files, record)?.unwrap_or((FlawKind::Octets, detail))))
            }
            Err(error) if error.reason() == Reason::Missing => {
                Ok(Some((FlawKind::Unreadable, "Cyrus has its record, but no file".to_owned())))
            }
            Err(error) => Err(error),
        }
    }

    /// The directory of a mailbox's messages, as Cyrus 3.6 and later lay them out.
    pub(super) fn files(&self, mailbox: &Mailbox) -> PathBuf {
        let id = &mailbox.unique_id;
        let is_plain =
            id.len() > 2 && id.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-');
        let id = if is_plain { id } else { "--" };
        let (one, two) = (id.get(..1).unwrap_or("-"), id.get(1..2).unwrap_or("-"));
        self.root().join("uuid").join(one).join(two).join(id)
    }

    pub(super) fn mend_one(
        &self,
        account: &Account,
        mailbox: MailboxId,
        uid: Uid,
        staged: Option<Staged>,
    ) -> Result<bool, StoreError> {
        let cell = self.cell(account);
        let mut cell = lock(&cell);
        let snapshot = self.refresh_id(account, &mut cell, mailbox)?;
        let snapshot = snapshot.ok_or_else(|| no_mailbox(account, mailbox))?;
        let record = snapshot.get(uid).ok_or_else(|| no_message(account, uid))?;
        let Some(staged) = staged else {
            let fetched = self.server.fetch(&snapshot.mailbox, uid, record.guid);
            return match fetched {
                Ok(fetched) => Ok(matches!(fetched, Fetched::Octets(_))),
                Err(error) if error.reason() == Reason::Missing => Ok(false),
                Err(error) => Err(error),
            };
        };
        if staged.guid() != record.guid {
            let what = format!("the content of message {uid} for {account}");
            return Err(StoreError::Mismatch { what, want: record.guid, got: staged.guid() });
        }
        let path = self.files(&snapshot.mailbox);
        let dir = Dir::open(&path)?.ok_or_else(|| {
            let what = format!("{} (is `root` the mailbox's partition?)", path.display());
            StoreError::NotFound { what }
        })?;
        let name = format!("{uid}.").into_bytes();
        if let Some(held) = dir.content(&name, MESSAGE_OCTETS_MAX)? {
            let at = (account, &snapshot.name, UidValidity(snapshot.mailbox.uid_validity));
            self.bury_octets(at, record, &held, crate::guid_of(&held))?;
        }
        replace(&dir, &name, &stage::read(&staged)?)?;
        Ok(true)
    }
}

/// What is wrong with a message's file, without reading it.
fn flaw_of_file(
    files: Option<&Dir>,
    record: &Record,
) -> Result<Option<(FlawKind, String)>, StoreError> {
    // A mailbox that was made before Cyrus 3.6, or in another partition, lies elsewhere.
    let Some(dir) = files else { return Ok(None) };
    let Some(stat) = dir.stat(format!("{}.", record.uid).as_bytes())? else {
        return Ok(Some((FlawKind::Unreadable, "its file is gone".to_owned())));
    };
    let (held, octets) = (u64::try_from(stat.st_size).unwrap_or(0), record.octets);
    let detail = || format!("{held} octets, {octets} when it came");
    Ok((held != octets).then(|| (FlawKind::Size, detail())))
}

/// Puts a message in a file's place, owned as its neighbours are; durable on return.
fn replace(dir: &Dir, name: &[u8], octets: &[u8]) -> Result<(), StoreError> {
    dir.remove(FRESH)?;
    let mut file = dir.create(FRESH, dir.owner()?)?;
    let path: &Path = &dir.at(FRESH);
    file.write_all(octets).map_err(during("write", path))?;
    file.sync_all().map_err(during("sync", path))?;
    dir.rename(FRESH, dir, name)?;
    dir.sync()
}
