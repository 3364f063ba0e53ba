//! Plain text, one line per fact, only ever appended to: what an admin reads with `less` when
//! everything else is broken (quarantine, conflicts, ledger).

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::{DiskError, dir};

/// Longest line, in octets; what is over is cut when it is read back.
pub const LINE_OCTETS_MAX: usize = 64 << 10;

/// A file of lines, open for appending.
#[derive(Debug)]
pub struct LineFile {
    file: File,
    path: PathBuf,
    octets: u64,
    /// A write failed half-way: the next line starts on a line of its own.
    half_line: bool,
}

impl LineFile {
    /// Opens or creates `path`. Half a line that a crash left is ended, so that it does not
    /// run into the next one.
    pub fn open(path: &Path, mode: u32) -> Result<Self, DiskError> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(mode)
            .open(path)
            .map_err(DiskError::during("open", path))?;
        dir::sync(dir::parent_of(path))?;
        let octets = file.metadata().map_err(DiskError::during("read", path))?.len();
        let mut last = [b'\n'];
        if let Some(at) = octets.checked_sub(1) {
            file.read_exact_at(&mut last, at).map_err(DiskError::during("read", path))?;
        }
        Ok(Self { file, path: path.to_path_buf(), octets, half_line: last != *b"\n" })
    }

    /// Appends `line`, control characters escaped; durable on return.
    pub fn append(&mut self, line: &str) -> Result<(), DiskError> {
        self.append_all([line])
    }

    /// Appends several; all of them are durable on return, with one sync.
    pub fn append_all(
        &mut self,
        lines: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<(), DiskError> {
        let mut text = String::new();
        if self.half_line {
            text.push('\n');
        }
        for line in lines {
            for character in line.as_ref().chars() {
                if character.is_control() {
                    text.extend(character.escape_default());
                } else {
                    text.push(character);
                }
            }
            text.push('\n');
        }
        self.half_line = true;
        self.file.write_all(text.as_bytes()).map_err(DiskError::during("write", &self.path))?;
        self.half_line = false;
        self.octets += text.len() as u64;
        self.file.sync_data().map_err(DiskError::during("sync", &self.path))
    }

    /// Length of the file, in octets.
    pub fn octets(&self) -> u64 {
        self.octets
    }
}

/// Shows `visit` each line of `path`, in order and without its end; none if there is no such file.
/// Octets that are no UTF-8 come out as U+FFFD.
pub fn read(path: &Path, visit: impl FnMut(&str)) -> Result<(), DiskError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(DiskError::during("open", path)(error)),
    };
    each(BufReader::new(file), visit).map_err(DiskError::during("read", path))
}

fn each(mut lines: impl BufRead, mut visit: impl FnMut(&str)) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = LINE_OCTETS_MAX as u64;
        if lines.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else {
            lines.skip_until(b'\n')?;
        }
        visit(&String::from_utf8_lossy(&line));
    }
}

/// Fuzz target: lines come out as they went in, or with U+FFFD in them.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    let mut found = Vec::new();
    each(input, |line| found.push(line.to_owned())).expect("memory can be read");
    let mut wanted: Vec<_> = input.split(|&octet| octet == b'\n').collect();
    wanted.pop_if(|last| last.is_empty());
    let cut = |line: &&[u8]| line.len() >= LINE_OCTETS_MAX;
    let same = |(line, found): (&&[u8], &String)| *found == String::from_utf8_lossy(line);
    assert_eq!(found.len(), wanted.len());
    assert!(wanted.iter().any(cut) || wanted.iter().zip(&found).all(same));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replace::PRIVATE;

    fn lines(path: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        read(path, |line| lines.push(line.to_string())).unwrap();
        lines
    }

    #[test]
    fn appends_across_openings_and_ends_half_lines() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("quarantine.log");
        assert!(lines(&path).is_empty());
        let mut file = LineFile::open(&path, PRIVATE).unwrap();
        file.append("one").unwrap();
        file.append("t\nw\u{1b}o").unwrap();
        (&file.file).write_all(b"half").unwrap();
        let mut file = LineFile::open(&path, PRIVATE).unwrap();
        file.append("three").unwrap();
        assert_eq!(lines(&path), ["one", r"t\nw\u{1b}o", "half", "three"]);
        assert_eq!(file.octets(), std::fs::metadata(&path).unwrap().len());
    }

    #[test]
    fn an_endless_line_is_cut() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lines");
        let mut file = LineFile::open(&path, PRIVATE).unwrap();
        file.append(&"x".repeat(3 * LINE_OCTETS_MAX)).unwrap();
        file.append("next").unwrap();
        let lines = lines(&path);
        assert_eq!((lines.len(), lines[0].len(), lines[1].as_str()), (2, LINE_OCTETS_MAX, "next"));
    }
}
