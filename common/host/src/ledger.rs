//! `ledger.jsonl`: what was decided about the mail of nodes that came back. One JSON object per line,
//! appended and synced **before** it is carried out, so that a crash leaves no decision untold. A line
//! with the key of an earlier one replaces it, one that is `withdrawn` removes it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use mailtwin_disk::{
    DiskError,
    lines::{self, LineFile},
    replace::PRIVATE,
};
use mailtwin_logic::ids::Guid;
use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

use crate::admin::LedgerEntry;

/// Entries shown: they fit one answer. The file has all.
const SHOWN_MAX: usize = 5_000;

/// Hexadecimal digits of a digest that make an entry's id.
const ID_DIGITS: usize = 10;

/// One line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    entry: LedgerEntry,
    /// It was not carried out, because something changed meanwhile, and was decided otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    withdrawn: bool,
}

/// The id of an entry: the same whenever the same is decided again.
pub fn id(entry: &LedgerEntry) -> String {
    let LedgerEntry { epoch, node, account, mailbox, kind, uid, guid, .. } = entry;
    let key = format!("{epoch}\n{node}\n{account}\n{mailbox}\n{kind}\n{uid:?}\n{guid:?}");
    Guid(Sha1::digest(key).into()).to_string().chars().take(ID_DIGITS).collect()
}

/// Appends decisions; durable on return.
pub fn append(state_dir: &Path, entries: &[LedgerEntry]) -> Result<(), DiskError> {
    write(state_dir, entries, false)
}

/// Takes decisions back that were not carried out; durable on return.
pub fn withdraw(state_dir: &Path, entries: &[LedgerEntry]) -> Result<(), DiskError> {
    write(state_dir, entries, true)
}

/// Notes that an admin has seen the conflicts of these ids, or all of them; durable on return.
/// Returns those that nobody had seen before.
pub fn ack(
    state_dir: &Path,
    ids: Option<&[String]>,
    at: u64,
) -> Result<Vec<LedgerEntry>, DiskError> {
    let is_meant = |entry: &LedgerEntry| {
        let named = ids.is_none_or(|ids| ids.contains(&entry.id));
        named && entry.is_conflict() && entry.acked_at.is_none()
    };
    let mut seen: Vec<_> = read(state_dir)?.into_iter().filter(is_meant).collect();
    for entry in &mut seen {
        entry.acked_at = Some(at);
    }
    append(state_dir, &seen)?;
    Ok(seen)
}

/// The whole ledger, oldest first; damaged lines are left out.
pub fn read(state_dir: &Path) -> Result<Vec<LedgerEntry>, DiskError> {
    let (mut entries, mut places) = (Vec::new(), BTreeMap::new());
    lines::read(&path_in(state_dir), |line| {
        let Ok(Line { entry, withdrawn }) = serde_json::from_str(line) else { return };
        let entry = LedgerEntry { id: id(&entry), ..entry };
        let place = *places.entry(entry.id.clone()).or_insert_with(|| {
            entries.push(None);
            entries.len() - 1
        });
        if let Some(place) = entries.get_mut(place) {
            *place = (!withdrawn).then_some(entry);
        }
    })?;
    Ok(entries.into_iter().flatten().collect())
}

/// The newest of [`read`], oldest first, as many as one answer takes.
pub fn newest(state_dir: &Path) -> Result<Vec<LedgerEntry>, DiskError> {
    let mut entries = read(state_dir)?;
    entries.drain(..entries.len().saturating_sub(SHOWN_MAX));
    Ok(entries)
}

/// How long the ledger's file is; 0 if there is none.
pub(crate) fn octets(state_dir: &Path) -> u64 {
    std::fs::metadata(path_in(state_dir)).map_or(0, |file| file.len())
}

fn write(state_dir: &Path, entries: &[LedgerEntry], withdrawn: bool) -> Result<(), DiskError> {
    if entries.is_empty() {
        return Ok(());
    }
    let encoded = entries.iter().map(|entry| {
        let line = Line { entry: entry.clone(), withdrawn };
        serde_json::to_string(&line).expect("strings and numbers always encode")
    });
    LineFile::open(&path_in(state_dir), PRIVATE)?.append_all(encoded)
}

fn path_in(state_dir: &Path) -> PathBuf {
    state_dir.join("ledger.jsonl")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: &str, uid: u32, new_uid: u32) -> LedgerEntry {
        let entry = LedgerEntry {
            at: 5,
            epoch: 2,
            node: "mx1".into(),
            account: "ann".into(),
            mailbox: "INBOX".into(),
            kind: kind.into(),
            uid: Some(uid),
            new_uid: Some(new_uid),
            guid: Some("00".repeat(20)),
            detail: "a \"quoted\"\nline".into(),
            id: String::new(),
            acked_at: None,
        };
        LedgerEntry { id: id(&entry), ..entry }
    }

    #[test]
    fn what_is_decided_again_replaces_and_what_is_withdrawn_is_gone() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path();
        assert_eq!(read(dir).unwrap(), []);
        append(dir, &[entry("tail", 1, 10), entry("clash", 2, 11), entry("expunged", 3, 3)])
            .unwrap();
        let mut file = LineFile::open(&path_in(dir), PRIVATE).unwrap();
        file.append("{half").unwrap();
        append(dir, &[entry("tail", 1, 12)]).unwrap();
        withdraw(dir, &[entry("expunged", 3, 3)]).unwrap();
        assert_eq!(read(dir).unwrap(), [entry("tail", 1, 12), entry("clash", 2, 11)]);
    }

    #[test]
    fn an_admin_acks_conflicts_once_and_nothing_else() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path();
        append(dir, &[entry("tail", 1, 10), entry("clash", 2, 11), entry("moved", 2, 12)]).unwrap();
        let clash = entry("clash", 2, 11).id;
        let acked = ack(dir, Some(&[clash, entry("tail", 1, 10).id]), 77).unwrap();
        assert_eq!(acked.iter().map(|entry| entry.kind.as_str()).collect::<Vec<_>>(), ["clash"]);
        assert_eq!(ack(dir, None, 78).unwrap().len(), 1);
        assert_eq!(ack(dir, None, 79).unwrap(), []);
        let acked: Vec<_> = read(dir).unwrap().iter().map(|entry| entry.acked_at).collect();
        assert_eq!(acked, [None, Some(77), Some(78)]);
    }
}
