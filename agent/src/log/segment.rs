//! One file of the sync log: a header that says which log it belongs to and where, then entries.
//!
//! Header, 52 octets, numbers little-endian: `MTWNLOG\n`; format version (u32); [`LogId`];
//! position of the first entry (u64); position of the last entry before this segment, 0 if none
//! (u64); 4 octets of zero; CRC-32C of all before (u32). Entries are records of
//! [`mailtwin_disk::append`].

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use mailtwin_disk::{
    DiskError,
    append::{self, End, RECORD_HEADER},
};
use mailtwin_logic::{
    entry::Entry,
    ids::{LogId, LogSeq},
};

/// Octets of the header.
pub(super) const HEADER_OCTETS: usize = 52;

/// Longest entry: the longest account and mailbox name, and room for the rest.
pub(super) const ENTRY_MAX: usize = 2048;

const MAGIC: [u8; 8] = *b"MTWNLOG\n";
const VERSION: u32 = 1;
const SUFFIX: &str = ".log";

/// Where a segment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: LogId,
    pub(super) first: LogSeq,
    /// Last entry before this segment: tells a hole that recovery left on purpose from a segment
    /// that somebody took away.
    pub(super) previous: LogSeq,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut octets = Vec::with_capacity(HEADER_OCTETS);
        octets.extend_from_slice(&MAGIC);
        octets.extend_from_slice(&VERSION.to_le_bytes());
        octets.extend_from_slice(&self.id.0);
        octets.extend_from_slice(&self.first.0.to_le_bytes());
        octets.extend_from_slice(&self.previous.0.to_le_bytes());
        octets.extend_from_slice(&[0; 4]);
        let crc = crc32c::crc32c(&octets);
        octets.extend_from_slice(&crc.to_le_bytes());
        octets
    }

    fn decode(octets: &[u8]) -> Result<Self, Unreadable> {
        let short = Unreadable::Damaged("it is shorter than its header");
        let (magic, rest) = octets.split_first_chunk::<8>().ok_or(short)?;
        let (version, rest) = rest.split_first_chunk::<4>().ok_or(short)?;
        let (id, rest) = rest.split_first_chunk::<16>().ok_or(short)?;
        let (first, rest) = rest.split_first_chunk::<8>().ok_or(short)?;
        let (previous, _) = rest.split_first_chunk::<8>().ok_or(short)?;
        let header = Self {
            id: LogId(*id),
            first: LogSeq(u64::from_le_bytes(*first)),
            previous: LogSeq(u64::from_le_bytes(*previous)),
        };
        if *magic == MAGIC && u32::from_le_bytes(*version) > VERSION {
            return Err(Unreadable::Newer);
        }
        let whole = octets.get(..HEADER_OCTETS).ok_or(short)? == header.encode();
        if whole { Ok(header) } else { Err(Unreadable::Damaged("its header is damaged")) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unreadable {
    Newer,
    Damaged(&'static str),
}

/// Path of the segment that starts with `first`.
pub(super) fn path(dir: &Path, first: LogSeq) -> PathBuf {
    dir.join(format!("{:020}{SUFFIX}", first.0))
}

/// Position of the first entry by the name of the segment; 0 if it has none.
pub(super) fn first_of(path: &Path) -> LogSeq {
    let digits = path.file_stem().and_then(|stem| stem.to_str());
    LogSeq(digits.and_then(|digits| digits.parse().ok()).unwrap_or_default())
}

/// Every segment in `dir`, oldest first, by name.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, DiskError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(DiskError::during("read", dir))? {
        let name = entry.map_err(DiskError::during("read", dir))?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
        if digits.is_some_and(|digits| digits.bytes().all(|octet| octet.is_ascii_digit())) {
            paths.push(dir.join(name));
        }
    }
    paths.sort();
    Ok(paths)
}

/// What a whole segment turned out to be.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) header: Header,
    /// Its last whole entry in an unbroken row; the one before its first if it has none.
    pub(super) last: LogSeq,
    /// Where that ends.
    pub(super) octets: u64,
    /// Length of the file.
    pub(super) file_octets: u64,
    pub(super) end: End,
}

/// Why a segment cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScanError {
    #[error("it is of a newer version")]
    Newer,
    #[error("{why}")]
    Header { why: &'static str, file_octets: u64 },
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Reads and checks all of a segment.
pub(super) fn scan(path: &Path) -> Result<Scanned, ScanError> {
    check(&fs::read(path).map_err(DiskError::during("read", path))?)
}

pub(super) fn check(octets: &[u8]) -> Result<Scanned, ScanError> {
    let file_octets = octets.len() as u64;
    let header = Header::decode(octets).map_err(|error| match error {
        Unreadable::Newer => ScanError::Newer,
        Unreadable::Damaged(why) => ScanError::Header { why, file_octets },
    })?;
    let mut row = Row { next: header.first, at: HEADER_OCTETS, broken: false };
    let end = append::scan(octets, HEADER_OCTETS, ENTRY_MAX, |payload| {
        let _ = row.take(payload);
    });
    let end = if row.broken { End::Damaged { at: row.at } } else { end };
    let last = LogSeq(row.next.0.saturating_sub(1));
    Ok(Scanned { header, last, octets: row.at as u64, file_octets, end })
}

/// Entries after `start`, from the octets at `offset` on, at most `max` and up to `last`; and where
/// the next one begins. No entry at all means that the segment is damaged there.
pub(super) fn read(
    path: &Path,
    offset: u64,
    next: LogSeq,
    wanted: Wanted,
) -> io::Result<(Vec<Entry>, Row)> {
    let file = File::open(path)?;
    let mut octets = vec![0; WINDOW];
    let mut filled = 0;
    while let Some(rest) = octets.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    octets.truncate(filled);
    let mut row = Row { next, at: 0, broken: false };
    let mut entries = Vec::new();
    append::scan(&octets, 0, ENTRY_MAX, |payload| {
        if entries.len() < wanted.max && row.next <= wanted.last {
            entries.extend(row.take(payload).filter(|entry| entry.seq > wanted.after));
        }
    });
    Ok((entries, row))
}

/// Octets that are read at once: some thousand entries.
const WINDOW: usize = 128 << 10;

/// What [`read`] shall give.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) after: LogSeq,
    pub(super) last: LogSeq,
    pub(super) max: usize,
}

/// Entries one after the other, without gaps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Position of the next entry.
    pub(super) next: LogSeq,
    /// Offset of its record.
    pub(super) at: usize,
    broken: bool,
}

impl Row {
    fn take(&mut self, payload: &[u8]) -> Option<Entry> {
        let entry = Entry::decode(payload).filter(|entry| entry.seq == self.next && !self.broken);
        if entry.is_some() {
            self.next = self.next.next();
            self.at += RECORD_HEADER + payload.len();
        } else {
            self.broken = true;
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trip_damage_and_versions() {
        let header = Header { id: LogId([7; 16]), first: LogSeq(9), previous: LogSeq(8) };
        let octets = header.encode();
        assert_eq!(octets.len(), HEADER_OCTETS);
        assert_eq!(Header::decode(&octets), Ok(header));
        for at in 0..octets.len() {
            let mut damaged = octets.clone();
            damaged[at] ^= 1;
            assert!(Header::decode(&damaged).is_err(), "{at}");
            assert!(Header::decode(&octets[..at]).is_err(), "{at}");
        }
        let mut newer = octets;
        newer[8] = 2;
        assert_eq!(Header::decode(&newer), Err(Unreadable::Newer));
    }

    #[test]
    fn only_segments_are_listed_in_order() {
        let root = tempfile::tempdir().unwrap();
        for name in
            ["00000000000000000010.log", "00000000000000000002.log", "lock", "2.log.damaged"]
        {
            File::create(root.path().join(name)).unwrap();
        }
        let listed = list(root.path()).unwrap();
        assert_eq!(listed, [path(root.path(), LogSeq(2)), path(root.path(), LogSeq(10))]);
    }
}
