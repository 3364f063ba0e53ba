//! `failover.jsonl`, every change of this node's role: one JSON object per line, appended and synced.

use std::path::{Path, PathBuf};

use mailtwin_disk::{
    DiskError,
    lines::{self, LineFile},
    replace::PRIVATE,
};

use crate::admin::HistoryEntry;

/// Lines shown: more failovers than a node has in its life.
const SHOWN_MAX: usize = 1_000;

/// Appends to the history; durable on return.
pub fn append(state_dir: &Path, entry: &HistoryEntry) -> Result<(), DiskError> {
    let text = serde_json::to_string(entry).expect("strings and numbers always encode");
    LineFile::open(&path_in(state_dir), PRIVATE)?.append(&text)
}

/// All that was ever appended, oldest first; damaged lines are left out.
pub(crate) fn all(state_dir: &Path) -> Result<Vec<HistoryEntry>, DiskError> {
    read_lines(&path_in(state_dir), usize::MAX)
}

/// How long the history's file is; 0 if there is none.
pub(crate) fn octets(state_dir: &Path) -> u64 {
    std::fs::metadata(path_in(state_dir)).map_or(0, |file| file.len())
}

/// The newest of what was appended, oldest first; damaged lines are left out.
pub fn read(state_dir: &Path) -> Result<Vec<HistoryEntry>, DiskError> {
    read_lines(&path_in(state_dir), SHOWN_MAX)
}

fn read_lines(path: &Path, most: usize) -> Result<Vec<HistoryEntry>, DiskError> {
    let mut entries = Vec::new();
    lines::read(path, |line| entries.extend(serde_json::from_str(line)))?;
    entries.drain(..entries.len().saturating_sub(most));
    Ok(entries)
}

fn path_in(state_dir: &Path) -> PathBuf {
    state_dir.join("failover.jsonl")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_appended_is_read_and_damage_is_left_out() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(read(state.path()).unwrap(), []);
        let entry = |epoch| HistoryEntry {
            at: 5,
            kind: "switch".into(),
            outcome: "done".into(),
            epoch,
            from: Some("mx1".into()),
            to: Some("mx2".into()),
            gate_closed_ms: None,
            detail: "a \"quoted\"\nline".into(),
        };
        append(state.path(), &entry(2)).unwrap();
        let mut file = LineFile::open(&path_in(state.path()), PRIVATE).unwrap();
        file.append("{half").unwrap();
        append(state.path(), &entry(3)).unwrap();
        assert_eq!(read(state.path()).unwrap(), [entry(2), entry(3)]);
    }
}
