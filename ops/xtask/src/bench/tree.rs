//! Mail trees to measure on: many accounts' Maildirs of real messages, each message another, the
//! same at every run.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};

/// When the oldest message arrived, in seconds since 1970.
const FIRST_ARRIVAL: u64 = 1_600_000_000;

/// How large a tree is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub accounts: u64,
    /// Mailboxes of each account, INBOX among them.
    pub mailboxes: u64,
    /// Messages in each mailbox.
    pub messages: u64,
    /// Octets of a message, about.
    pub octets: usize,
}

impl Shape {
    /// Messages altogether.
    pub(super) fn total(self) -> u64 {
        self.accounts * self.mailboxes * self.messages
    }
}

/// Real messages that all others are made from.
#[derive(Debug)]
pub(super) struct Samples(Vec<Vec<u8>>);

impl Samples {
    /// Reads every `.eml` in `dir`, in order of their names.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let mut paths: Vec<PathBuf> = fs::read_dir(dir)
            .with_context(|| format!("read sample mail in {}", dir.display()))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        paths.retain(|path| path.extension().is_some_and(|name| name == "eml"));
        paths.sort();
        ensure!(!paths.is_empty(), "{} holds no .eml files", dir.display());
        let read =
            |path: &PathBuf| fs::read(path).with_context(|| format!("read {}", path.display()));
        Ok(Self(paths.iter().map(read).collect::<Result<_>>()?))
    }

    /// The `number`-th message, of about `octets` octets (between 7/8 and 10/8 of it), with line
    /// ends as on disk. Equal numbers give equal messages, and no others do.
    pub(super) fn message(&self, number: u64, octets: usize) -> Vec<u8> {
        let mut dice = Dice(number);
        let target = octets * 7 / 8 + dice.below(octets * 3 / 8);
        let mut message = format!("X-Bench-Number: {number}\n").into_bytes();
        extend(&mut message, self.pick(number), target);
        // Bounded, for samples of which no line fits.
        for _ in 0..1000 {
            if message.len() + 80 >= target {
                break;
            }
            let filler = self.pick(dice.next());
            let skip = dice.below(filler.len());
            let line = filler.iter().skip(skip).position(|octet| *octet == b'\n').unwrap_or(0);
            extend(&mut message, filler.get(skip + line..).unwrap_or_default(), target);
        }
        message
    }

    fn pick(&self, number: u64) -> &[u8] {
        let count = u64::try_from(self.0.len()).unwrap_or(u64::MAX);
        usize::try_from(number % count).ok().and_then(|index| self.0.get(index)).map_or(&[], |m| m)
    }
}

/// Builds a tree below `root`: `u1/Maildir`, `u2/Maildir` and so on, as a Dovecot would have left it.
pub(super) fn build(root: &Path, shape: Shape, samples: &Samples) -> Result<()> {
    let mut number = 0;
    for account in 1..=shape.accounts {
        let maildir = root.join(format!("u{account}/Maildir"));
        for mailbox in 1..=shape.mailboxes {
            let folder = match mailbox {
                1 => maildir.clone(),
                _ => maildir.join(format!(".Folder{mailbox}")),
            };
            let id = account * shape.mailboxes + mailbox;
            build_mailbox(&folder, id, number, shape, samples)
                .with_context(|| format!("build {}", folder.display()))?;
            number += shape.messages;
        }
    }
    Ok(())
}

fn build_mailbox(folder: &Path, id: u64, first: u64, shape: Shape, from: &Samples) -> Result<()> {
    for name in ["cur", "new", "tmp"] {
        fs::create_dir_all(folder.join(name))?;
    }
    if folder.file_name().is_some_and(|name| name != "Maildir") {
        File::create(folder.join("maildirfolder"))?;
    }
    let mut uidlist =
        format!("3 V{} N{} G{id:032x}\n", FIRST_ARRIVAL + id, shape.messages + 1).into_bytes();
    for index in 0..shape.messages {
        let number = first + index;
        let octets = from.message(number, shape.octets);
        let arrived = FIRST_ARRIVAL + number;
        let lines = octets.split(|octet| *octet == b'\n').count() - 1;
        let (size, crlf) = (octets.len(), octets.len() + lines);
        let base = format!("{arrived}.M{number}P1.bench,S={size},W={crlf}");
        let flags = if number.is_multiple_of(3) { "" } else { "S" };
        let mut file = File::create(folder.join(format!("cur/{base}:2,{flags}")))?;
        file.write_all(&octets)?;
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(arrived))?;
        writeln!(uidlist, "{} :{base}", index + 1)?;
    }
    File::create(folder.join("dovecot-uidlist"))?.write_all(&uidlist)?;
    Ok(())
}

/// Checks that `copy` holds the messages of `original`, octet for octet under the same names.
/// Returns how many.
pub(super) fn compare(original: &Path, copy: &Path) -> Result<u64> {
    let mut messages = 0;
    for path in mail_files(original)? {
        let name = path.strip_prefix(original)?;
        let there = fs::read(copy.join(name))
            .with_context(|| format!("read the copy of {}", path.display()))?;
        ensure!(fs::read(&path)? == there, "{} differs from {}", copy.display(), path.display());
        messages += 1;
    }
    Ok(messages)
}

/// Copies a tree as fast as one thread can, one sync at the end: the floor for a durable copy.
pub(super) fn copy_and_sync(from: &Path, to: &Path) -> Result<()> {
    copy(from, to)?;
    super::image::settle(to)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            let mut file = File::create(target)?;
            file.write_all(&fs::read(entry.path())?)?;
            file.set_modified(entry.metadata()?.modified()?)?;
        }
    }
    Ok(())
}

/// Messages in `cur` and `new` anywhere below `root`.
pub(super) fn count(root: &Path) -> Result<u64> {
    Ok(u64::try_from(mail_files(root)?.len())?)
}

/// What is still being built does not count, and a folder may be moved while we look.
fn mail_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        let mail = dir.file_name().is_some_and(|name| name == "cur" || name == "new");
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.with_context(|| format!("list {}", dir.display()))?,
        };
        for entry in entries {
            let entry = entry?;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && entry.file_name() == ".mailtwin" => {}
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(_) if mail => found.push(entry.path()),
                Ok(_) | Err(_) => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Appends whole lines of `from` while they fit into `target` octets.
fn extend(message: &mut Vec<u8>, from: &[u8], target: usize) {
    for line in from.split_inclusive(|octet| *octet == b'\n') {
        if message.len() + line.len() > target {
            break;
        }
        message.extend_from_slice(line);
    }
}

/// A repeatable source of numbers (`SplitMix64`).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Samples {
        let line =
            |n: usize| format!("From: a{n}@example.org\n\n{}", "text of one line\n".repeat(n));
        Samples((1..40).map(|n| line(n).into_bytes()).collect())
    }

    #[test]
    fn messages_are_repeatable_and_all_different() {
        let samples = samples();
        let mut all: Vec<_> = (0..500).map(|n| samples.message(n, 8000)).collect();
        assert_eq!(all.first(), Some(&samples.message(0, 8000)));
        assert!(all.iter().all(|message| (6800..=10_000).contains(&message.len())));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 500);
    }

    #[test]
    fn a_copy_is_found_equal_and_a_damaged_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let shape = Shape { accounts: 2, mailboxes: 2, messages: 3, octets: 500 };
        build(&a, shape, &samples()).unwrap();
        copy(&a, &b).unwrap();
        assert_eq!(count(&b).unwrap(), shape.total());
        assert_eq!(compare(&a, &b).unwrap(), 12);
        let victim = mail_files(&b).unwrap().pop().unwrap();
        File::create(victim).unwrap().write_all(b"other").unwrap();
        assert!(compare(&a, &b).is_err());
    }
}
