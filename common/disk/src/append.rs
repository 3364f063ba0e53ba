//! An append-only file of checksummed records behind a header of the caller's.
//!
//! A record is a length (u32, little-endian), a CRC-32C over that length and the payload (u32,
//! little-endian), and the payload of 1 to `record_max` octets. What a crash left of the last
//! write is cut when the file is opened; damage with whole records behind it is no torn tail, and is
//! reported as what it is.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::{DiskError, dir, replace};

/// Octets of a record beside its payload.
pub const RECORD_HEADER: usize = 8;

/// Where append-only files lie. Tests put one in between that fails when told.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Makes a new, empty file.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Medium>>;

    /// Opens a file that is there.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Medium>>;
}

/// One open file of a [`Disk`].
pub trait Medium: Send + fmt::Debug {
    /// Writes all of `octets` at `at`.
    fn write_at(&mut self, octets: &[u8], at: u64) -> io::Result<()>;

    /// Makes content and length durable.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts to `octets`.
    fn truncate(&mut self, octets: u64) -> io::Result<()>;
}

/// The real one.
#[derive(Clone, Copy, Debug)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Medium>> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(replace::PRIVATE);
        Ok(Box::new(options.open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Medium>> {
        Ok(Box::new(OpenOptions::new().write(true).open(path)?))
    }
}

impl Medium for File {
    fn write_at(&mut self, octets: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(octets, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&mut self, octets: u64) -> io::Result<()> {
        self.set_len(octets)
    }
}

/// A file that records are appended to.
#[derive(Debug)]
pub struct AppendFile {
    medium: Box<dyn Medium>,
    path: PathBuf,
    /// Whole records end here; what lies behind is overwritten.
    octets: u64,
}

impl AppendFile {
    /// Makes a new file that starts with `header`; header and name are durable on return.
    pub fn create(disk: &dyn Disk, path: &Path, header: &[u8]) -> Result<Self, DiskError> {
        let mut medium = disk.create(path).map_err(DiskError::during("create", path))?;
        let written = medium
            .write_at(header, 0)
            .map_err(DiskError::during("write", path))
            .and_then(|()| medium.sync().map_err(DiskError::during("sync", path)));
        if let Err(error) = written {
            // Half a header must not look like a damaged file at the next start.
            let _ = fs::remove_file(path);
            return Err(error);
        }
        dir::sync(dir::parent_of(path))?;
        Ok(Self { medium, path: path.to_path_buf(), octets: header.len() as u64 })
    }

    /// Opens a file whose whole records end at `octets` (see [`scan`]) and durably cuts what is
    /// behind.
    pub fn open(disk: &dyn Disk, path: &Path, octets: u64) -> Result<Self, DiskError> {
        let mut medium = disk.open(path).map_err(DiskError::during("open", path))?;
        medium.truncate(octets).map_err(DiskError::during("write", path))?;
        medium.sync().map_err(DiskError::during("sync", path))?;
        Ok(Self { medium, path: path.to_path_buf(), octets })
    }

    /// Appends whole records, made by [`frame`]. After an error the file ends where it did
    /// before, as far as anybody can see, and appending may be tried again.
    pub fn append(&mut self, frames: &[u8]) -> Result<(), DiskError> {
        let written = self.medium.write_at(frames, self.octets);
        if let Err(error) = written {
            // If this fails too, the half record is overwritten later or cut at the next opening.
            let _ = self.medium.truncate(self.octets);
            return Err(DiskError::during("write", &self.path)(error));
        }
        self.octets += frames.len() as u64;
        Ok(())
    }

    /// Makes every record durable. After an error the file must not be used any more: what was
    /// appended since the last sync may be there or not, and no later sync can tell.
    pub fn sync(&mut self) -> Result<(), DiskError> {
        self.medium.sync().map_err(DiskError::during("sync", &self.path))
    }

    /// Length up to the end of the last record, header included.
    pub fn octets(&self) -> u64 {
        self.octets
    }
}

/// Appends the record of `payload` to `frames`. The payload must not be empty, nor over what
/// [`scan`] will be told to accept.
pub fn frame(payload: &[u8], frames: &mut Vec<u8>) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    frames.extend_from_slice(&length);
    frames.extend_from_slice(&checksum(length, payload).to_le_bytes());
    frames.extend_from_slice(payload);
}

/// How a file of records ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a whole record, or with the header.
    Clean,
    /// Whole records end at `at`; what follows is the rest of a write that never finished.
    Torn {
        /// Octets of header and whole records.
        at: usize,
    },
    /// The record at `at` is damaged and there are whole ones behind it.
    Damaged {
        /// Offset of the first damaged record.
        at: usize,
    },
}

/// Shows `visit` the payload of each record in `octets` from `from` on, up to the end or the
/// first that is not whole, and says which it was.
pub fn scan(octets: &[u8], from: usize, record_max: usize, mut visit: impl FnMut(&[u8])) -> End {
    let mut at = from;
    loop {
        let rest = octets.get(at..).unwrap_or_default();
        if rest.is_empty() {
            return End::Clean;
        }
        let Some(payload) = record(rest, record_max) else { break };
        visit(payload);
        at += RECORD_HEADER + payload.len();
    }
    let behind = octets.get(at + 1..).unwrap_or_default();
    let followed = (0..behind.len())
        .any(|skip| behind.get(skip..).is_some_and(|rest| record(rest, record_max).is_some()));
    if followed { End::Damaged { at } } else { End::Torn { at } }
}

/// The payload of the record that `octets` start with, if it is whole.
fn record(octets: &[u8], record_max: usize) -> Option<&[u8]> {
    let (length, rest) = octets.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let octets = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if octets == 0 || octets > record_max {
        return None;
    }
    let payload = rest.get(..octets)?;
    (checksum(*length, payload) == u32::from_le_bytes(*crc)).then_some(payload)
}

fn checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), payload)
}

/// Fuzz target: any octets are read as far as they are whole records, and whole records as what
/// they were made of, whatever is damaged behind them.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    const MAX: usize = 256;
    let read = |octets: &[u8]| {
        let (mut payloads, mut whole) = (Vec::new(), Vec::new());
        let end = scan(octets, 0, MAX, |payload| payloads.push(payload.to_vec()));
        for payload in &payloads {
            assert!((1..=MAX).contains(&payload.len()));
            frame(payload, &mut whole);
        }
        assert_eq!(octets.get(..whole.len()), Some(&whole[..]));
        match end {
            End::Clean => assert_eq!(whole.len(), octets.len()),
            End::Torn { at } | End::Damaged { at } => {
                assert!(at == whole.len() && at < octets.len());
            }
        }
        (payloads, end)
    };
    read(input);
    let Some((&place, content)) = input.split_first() else { return };
    let payloads: Vec<Vec<u8>> = content.chunks(1 + content.len() / 3).map(Into::into).collect();
    let payloads: Vec<Vec<u8>> = payloads.into_iter().filter(|p| p.len() <= MAX).collect();
    let mut file = Vec::new();
    for payload in &payloads {
        frame(payload, &mut file);
    }
    assert_eq!(read(&file), (payloads.clone(), End::Clean));
    let at = usize::from(place) % file.len().max(1);
    if let Some(octet) = file.get_mut(at) {
        *octet ^= 1 << (place % 8);
        let (found, end) = read(&file);
        assert!(payloads.starts_with(&found) && end != End::Clean);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &[u8] = b"header\n\0";
    const MAX: usize = 100;

    fn file(payloads: &[&[u8]]) -> Vec<u8> {
        let mut octets = HEADER.to_vec();
        for payload in payloads {
            frame(payload, &mut octets);
        }
        octets
    }

    fn read(octets: &[u8]) -> (Vec<Vec<u8>>, End) {
        let mut payloads = Vec::new();
        let end = scan(octets, HEADER.len(), MAX, |payload| payloads.push(payload.to_vec()));
        (payloads, end)
    }

    #[test]
    fn a_tail_cut_anywhere_is_torn() {
        let whole = file(&[b"one", b"two", b"three"]);
        let two = file(&[b"one", b"two"]).len();
        assert_eq!(read(&whole), (vec![b"one".into(), b"two".into(), b"three".into()], End::Clean));
        for length in two + 1..whole.len() {
            let (payloads, end) = read(&whole[..length]);
            assert_eq!((payloads.len(), end), (2, End::Torn { at: two }), "{length}");
        }
        let zeros = [&whole[..two], &[0; 4096]].concat();
        assert_eq!(read(&zeros).1, End::Torn { at: two });
        assert_eq!(read(&whole[..two]).1, End::Clean);
    }

    #[test]
    fn damage_with_records_behind_it_is_told_apart() {
        let whole = file(&[b"one", b"two", b"three"]);
        let (one, two) = (file(&[b"one"]).len(), file(&[b"one", b"two"]).len());
        for at in one..two {
            let mut octets = whole.clone();
            octets[at] ^= 0x10;
            let (payloads, end) = read(&octets);
            assert_eq!((payloads.len(), end), (1, End::Damaged { at: one }), "{at}");
        }
    }

    #[test]
    fn appends_after_a_cut() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        let mut frames = Vec::new();
        frame(b"one", &mut frames);
        let mut append = AppendFile::create(&RealDisk, &path, HEADER).unwrap();
        append.append(&frames).unwrap();
        append.append(&frames).unwrap();
        append.sync().unwrap();
        let keep = append.octets() - frames.len() as u64;
        drop(append);
        let mut append = AppendFile::open(&RealDisk, &path, keep).unwrap();
        let mut frames = Vec::new();
        frame(b"second", &mut frames);
        append.append(&frames).unwrap();
        append.sync().unwrap();
        assert_eq!(fs::read(&path).unwrap(), file(&[b"one", b"second"]));
        let again = AppendFile::create(&RealDisk, &path, HEADER);
        assert!(again.unwrap_err().to_string().starts_with("create "));
    }

    #[test]
    fn a_full_disk_is_said_and_leaves_no_half_record() {
        if !Path::new("/dev/full").exists() {
            return;
        }
        let mut append = AppendFile {
            medium: RealDisk.open(Path::new("/dev/full")).unwrap(),
            path: "/dev/full".into(),
            octets: 8,
        };
        let error = append.append(b"x").unwrap_err();
        assert!(error.is_full() && !error.is_lost_write(), "{error}");
        assert_eq!(append.octets(), 8);
    }
}
