//! The graveyard, told of and taken out of: what a store expunged, for as long as it keeps it.

use std::{
    collections::BTreeSet,
    io::Read as _,
    path::{Path, PathBuf},
};

use mailtwin_disk::{dir, replace};
use mailtwin_logic::{
    graveyard::{Found, GraveReport, Wanted},
    ids::{Account, Guid, Uid, UidValidity},
    mailbox::MailboxName,
};
use serde::Serialize;

use crate::{Description, MailStore, StoreError, guid_of, maildir::refused, staged::Place};

/// Octets of a message that are looked at for its Message-ID.
const HEADER_OCTETS_MAX: usize = 64 << 10;
/// What was exported, one JSON object a line.
const MANIFEST: &str = "manifest.jsonl";
/// Longest part of a file's name that tells of its mailbox, in octets.
const NAME_MAX: usize = 150;

/// A message in the graveyard.
#[derive(Debug)]
pub struct Grave {
    /// When it was expunged here, in milliseconds since 1970.
    pub at_ms: u64,
    /// Whose it was.
    pub account: Account,
    /// Where it was, then.
    pub mailbox: MailboxName,
    /// Under which UIDVALIDITY.
    pub uid_validity: UidValidity,
    /// Under which UID; absent if that is not known any more.
    pub uid: Option<Uid>,
    /// SHA-1 of its octets, if it was noted.
    pub guid: Option<Guid>,
    /// How many octets it has.
    pub octets: u64,
    /// INTERNALDATE in seconds since 1970.
    pub internal_date: i64,
    /// Where it lies.
    pub(crate) place: Place,
}

/// Messages told of: with their headers they have to fit one answer.
const TOLD_MAX: usize = 1000;

impl Grave {
    /// What is told of it.
    pub fn report(&self, octets: u64, about: String) -> GraveReport {
        GraveReport {
            at_ms: self.at_ms,
            account: self.account.to_string(),
            mailbox: self.mailbox.to_string(),
            uid_validity: self.uid_validity.0,
            uid: self.uid.map(|uid| uid.0),
            guid: self.guid.map(|guid| guid.to_string()),
            octets,
            internal_date: self.internal_date,
            about,
        }
    }

    /// One of another node's graveyard, which cannot be opened here.
    pub fn elsewhere(at_ms: u64, mailbox: (&Account, &MailboxName, UidValidity)) -> Self {
        let (account, name, uid_validity) = mailbox;
        Self {
            at_ms,
            account: account.clone(),
            mailbox: name.clone(),
            uid_validity,
            uid: None,
            guid: None,
            octets: 0,
            internal_date: 0,
            place: Place::Taken,
        }
    }
}

/// A message that was exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Its file, below the directory of the export.
    pub file: String,
    /// Whose it was.
    pub account: String,
    /// Where it was, in the octets of the store; `INBOX` for that.
    pub mailbox: String,
    /// Under which UID, if that is known.
    pub uid: Option<u32>,
    /// SHA-1 of its octets.
    pub guid: String,
    /// INTERNALDATE in seconds since 1970.
    pub internal_date: i64,
    /// When it was expunged here, in milliseconds since 1970.
    pub at_ms: u64,
}

/// Tells of what is meant, and writes it below `to`.
pub fn tell(
    store: &dyn MailStore,
    wanted: &Wanted,
    to: Option<&Path>,
) -> Result<Found, StoreError> {
    let mut found = Found::default();
    find(store, wanted, &mut |grave| {
        found.count += 1;
        found.octets += grave.octets;
        if found.entries.len() < TOLD_MAX {
            let about = Description::of_grave(store, grave).to_string();
            found.entries.push(grave.report(grave.octets, about));
        }
        Ok(())
    })?;
    if let Some(to) = to {
        let mut exported = Vec::new();
        export(store, wanted, to, &mut |one| exported.push(one))?;
        found.count = exported.len() as u64;
        write_manifest(&exported, to)?;
    }
    Ok(found)
}

/// Shows `visit` every message that is meant.
pub fn find(
    store: &dyn MailStore,
    wanted: &Wanted,
    visit: &mut dyn FnMut(&Grave) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    store.graves(&mut |grave| {
        if fits(wanted, &grave) && fits_message(wanted, store, &grave)? {
            visit(&grave)?;
        }
        Ok(())
    })
}

/// Messages that had one of `uids`, or of which that is not known, under `uid_validity`.
pub fn of_messages(
    store: &dyn MailStore,
    wanted: &Wanted,
    uid_validity: UidValidity,
    uids: &BTreeSet<Uid>,
) -> Result<Vec<Grave>, StoreError> {
    let mut found = Vec::new();
    store.graves(&mut |grave| {
        let is_meant = grave.uid.is_none_or(|uid| uids.contains(&uid));
        if fits(wanted, &grave) && grave.uid_validity == uid_validity && is_meant {
            found.push(grave);
        }
        Ok(())
    })?;
    Ok(found)
}

/// Writes every message that is meant into a file below `to`, durably, and tells of each. Doing it
/// again replaces the same files.
pub fn export(
    store: &dyn MailStore,
    wanted: &Wanted,
    to: &Path,
    tell: &mut dyn FnMut(Exported),
) -> Result<(), StoreError> {
    find(store, wanted, &mut |grave| {
        tell(write(grave, &read(store, grave)?, to)?);
        Ok(())
    })
}

/// Says what was exported to `to`, one JSON object a line.
pub fn write_manifest(all: &[Exported], to: &Path) -> Result<(), StoreError> {
    let mut text = String::new();
    for exported in all {
        text += &serde_json::to_string(exported).expect("strings and numbers always encode");
        text.push('\n');
    }
    dir::create(to, 0o700).map_err(refused)?;
    replace::replace(&to.join(MANIFEST), text.as_bytes(), replace::PRIVATE).map_err(refused)
}

/// Writes a message's `octets` into a file below `to`, durably.
pub fn write(grave: &Grave, octets: &[u8], to: &Path) -> Result<Exported, StoreError> {
    let guid = guid_of(octets);
    let what = format!("message {} of {} in the graveyard", file_name(grave), grave.account);
    if let Some(want) = grave.guid.filter(|want| *want != guid) {
        return Err(StoreError::Mismatch { what, want, got: guid });
    }
    let account = PathBuf::from(grave.account.as_str());
    dir::create(to, 0o700).map_err(refused)?;
    dir::create(&to.join(&account), 0o700).map_err(refused)?;
    let file = account.join(file_name(grave));
    replace::replace(&to.join(&file), octets, replace::PRIVATE).map_err(refused)?;
    Ok(Exported {
        file: file.display().to_string(),
        account: grave.account.to_string(),
        mailbox: if grave.mailbox.is_inbox() {
            "INBOX".to_owned()
        } else {
            String::from_utf8_lossy(grave.mailbox.as_octets()).into_owned()
        },
        uid: grave.uid.map(|uid| uid.0),
        guid: guid.to_string(),
        internal_date: grave.internal_date,
        at_ms: grave.at_ms,
    })
}

/// A name that says what it is, is the same each time, and is one part of a path.
fn file_name(grave: &Grave) -> String {
    let name: String = grave.mailbox.to_string().replace(['/', '\\'], ".");
    let name: String = name.trim_start_matches('.').chars().take(NAME_MAX).collect();
    let uid = grave.uid.map_or(0, |uid| uid.0);
    let guid = grave.guid.map(|guid| format!(".{guid}")).unwrap_or_default();
    let place = match &grave.place {
        Place::File(path, _) => {
            let name = path.file_name().map(std::os::unix::ffi::OsStrExt::as_bytes);
            let name = guid_of(name.unwrap_or_default()).to_string();
            format!(".{}", name.get(..8).unwrap_or_default())
        }
        Place::Memory(_) | Place::Taken => guid,
    };
    format!("{name}.{}.{uid}.{}{place}.eml", grave.uid_validity, grave.at_ms)
}

/// Reads a message.
pub fn read(store: &dyn MailStore, grave: &Grave) -> Result<Vec<u8>, StoreError> {
    let mut message = store.exhume(grave)?;
    let mut octets = Vec::new();
    message.read_to_end(&mut octets).map_err(|source| StoreError::Io {
        op: "read",
        path: file_name(grave).into(),
        source,
    })?;
    Ok(octets)
}

/// Whether all that a graveyard knows without reading the message fits.
fn fits(wanted: &Wanted, grave: &Grave) -> bool {
    wanted.account.as_ref().is_none_or(|account| *account == grave.account)
        && wanted.mailbox.as_ref().is_none_or(|mailbox| *mailbox == grave.mailbox)
        && wanted.uid.is_none_or(|uid| grave.uid == Some(uid))
        && grave.at_ms >= wanted.since_ms
}

/// Whether the message itself fits as well.
fn fits_message(wanted: &Wanted, store: &dyn MailStore, grave: &Grave) -> Result<bool, StoreError> {
    if wanted.guid.is_some() && grave.guid.is_some() && wanted.guid != grave.guid {
        return Ok(false);
    }
    let reads = wanted.message_id.is_some() || (wanted.guid.is_some() && grave.guid.is_none());
    if !reads {
        return Ok(true);
    }
    let octets = read(store, grave)?;
    let head = octets.get(..octets.len().min(HEADER_OCTETS_MAX)).unwrap_or_default();
    let message_id = Description::of(head).message_id;
    Ok(wanted.guid.is_none_or(|guid| guid == guid_of(&octets))
        && (wanted.message_id.is_none() || wanted.message_id == message_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_exported_files_stay_inside() {
        for (mailbox, start) in
            [("", "INBOX.7.3."), ("../x", ""), ("a/b", "a.b.7.3."), ("..hidden", "hidden.7.3.")]
        {
            let Ok(mailbox) = MailboxName::new(mailbox.as_bytes()) else {
                assert_eq!(start, "", "{mailbox}");
                continue;
            };
            let grave = Grave {
                at_ms: 9,
                account: Account::new("ann").unwrap(),
                mailbox,
                uid_validity: UidValidity(7),
                uid: Some(Uid(3)),
                guid: None,
                octets: 0,
                internal_date: 0,
                place: Place::Taken,
            };
            let name = file_name(&grave);
            assert!(name.starts_with(start) && !name.contains('/'), "{name}");
        }
    }
}
