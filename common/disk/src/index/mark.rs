//! The mark beside an index's data: how many syncs it must hold, and whether it was closed in order.
//!
//! 24 octets, overwritten in place: number of the last sync (u64, little-endian), length of the
//! data file if it was closed in order and else 0 (u64), 4 octets of zero, CRC-32C of all before
//! (u32). It is written after the data is durable and not synced itself while in use: a killed
//! process loses none of it, and after a power cut it may be behind, never ahead.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::IndexError;
use crate::{DiskError, replace};

const NAME: &str = "mailtwin-mark";
const OCTETS: usize = 24;

/// What the mark says. The default is what is known without one: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Number of the last sync.
    pub(super) sync: u64,
    /// Octets of the data file when it was closed in order; 0 while it is in use.
    pub(super) closed_octets: u64,
}

#[derive(Debug)]
pub(super) struct MarkFile {
    file: File,
    path: PathBuf,
}

impl MarkFile {
    pub(super) fn open(dir: &Path) -> Result<(Self, Mark), IndexError> {
        let path = dir.join(NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(replace::PRIVATE)
            .open(&path)
            .map_err(DiskError::during("open", &path))?;
        let mut octets = [0; OCTETS];
        // A short or damaged mark proves nothing; then all is checked, as after an unclean stop.
        let mark = match file.read_exact_at(&mut octets, 0) {
            Ok(()) => decode(octets).unwrap_or_default(),
            Err(_) => Mark::default(),
        };
        Ok((Self { file, path }, mark))
    }

    pub(super) fn write(&mut self, mark: Mark) -> Result<(), IndexError> {
        let written = self.file.write_all_at(&encode(mark), 0);
        Ok(written.map_err(DiskError::during("write", &self.path))?)
    }

    pub(super) fn sync(&self) -> Result<(), IndexError> {
        Ok(self.file.sync_all().map_err(DiskError::during("sync", &self.path))?)
    }
}

fn encode(mark: Mark) -> [u8; OCTETS] {
    let mut octets = [0; OCTETS];
    octets[..8].copy_from_slice(&mark.sync.to_le_bytes());
    octets[8..16].copy_from_slice(&mark.closed_octets.to_le_bytes());
    let crc = crc32c::crc32c(&octets[..20]);
    octets[20..].copy_from_slice(&crc.to_le_bytes());
    octets
}

fn decode(octets: [u8; OCTETS]) -> Option<Mark> {
    let sync = u64::from_le_bytes(octets[..8].try_into().ok()?);
    let closed_octets = u64::from_le_bytes(octets[8..16].try_into().ok()?);
    let mark = Mark { sync, closed_octets };
    (encode(mark) == octets).then_some(mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_reopening_and_damage_reads_as_nothing() {
        let root = tempfile::tempdir().unwrap();
        let mark = Mark { sync: 7, closed_octets: 4096 };
        let (mut file, first) = MarkFile::open(root.path()).unwrap();
        assert_eq!(first, Mark::default());
        file.write(mark).unwrap();
        assert_eq!(MarkFile::open(root.path()).unwrap().1, mark);
        file.file.write_all_at(b"x", 3).unwrap();
        assert_eq!(MarkFile::open(root.path()).unwrap().1, Mark::default());
        file.file.set_len(9).unwrap();
        assert_eq!(MarkFile::open(root.path()).unwrap().1, Mark::default());
    }
}
