//! Tells what lies in a Maildir store's graveyard.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use mailtwin_logic::{
    ids::{Account, Guid, Uid, UidValidity},
    mailbox::MailboxName,
};

use super::{
    fsys::{Dir, during},
    graveyard::{Graveyard, UNREAD},
    names, uidlist,
};
use crate::{Octets, StoreError, graves::Grave, staged::Place};

/// Longest line of a list that is read, in octets.
const LINE_MAX: usize = 64 << 10;

type Visit<'a> = &'a mut dyn FnMut(Grave) -> Result<(), StoreError>;

/// A line of a list: where something came from.
struct Line {
    grave: String,
    at_ms: u64,
    account: Account,
    mailbox: MailboxName,
    uid_validity: UidValidity,
    /// UID, INTERNALDATE and GUID of a message; absent for a mailbox.
    message: Option<(Uid, i64, Option<Guid>)>,
}

impl Graveyard {
    /// Shows `visit` every message, oldest hour first.
    pub(crate) fn each(&self, visit: Visit<'_>) -> Result<(), StoreError> {
        let Some(dir) = Dir::open(self.path())? else { return Ok(()) };
        let mut buckets = Vec::new();
        dir.list(|name, _, _| {
            buckets
                .extend(std::str::from_utf8(name).ok().and_then(|name| name.parse::<u64>().ok()));
        })?;
        buckets.sort_unstable();
        for bucket in buckets {
            if let Some(dir) = Dir::open(&self.path().join(bucket.to_string()))? {
                each_in(&dir, visit)?;
            }
        }
        Ok(())
    }
}

fn each_in(bucket: &Dir, visit: Visit<'_>) -> Result<(), StoreError> {
    let Some((list, _)) = bucket.read(b"list")? else { return Ok(()) };
    let mut reader = BufReader::new(list);
    let mut text = Vec::new();
    loop {
        text.clear();
        let mut part = std::io::Read::take(&mut reader, LINE_MAX as u64);
        let read = part.read_until(b'\n', &mut text);
        if read.map_err(during("read", &bucket.at(b"list")))? == 0 {
            return Ok(());
        }
        // A line that a crash cut makes no sense; its messages never came.
        let Some(line) = std::str::from_utf8(&text).ok().and_then(parse) else { continue };
        match line.message {
            Some(message) => one(bucket, &line, message, visit)?,
            None => whole(bucket, &line, visit)?,
        }
    }
}

/// A message by itself, unless it has been removed or never came.
fn one(
    bucket: &Dir,
    line: &Line,
    (uid, internal_date, guid): (Uid, i64, Option<Guid>),
    visit: Visit<'_>,
) -> Result<(), StoreError> {
    let Some((_, stat)) = bucket.read(line.grave.as_bytes())? else { return Ok(()) };
    visit(Grave {
        uid: Some(uid),
        guid,
        octets: u64::try_from(stat.st_size).unwrap_or(0),
        internal_date,
        ..grave(line, bucket.at(line.grave.as_bytes()))
    })
}

/// The messages of a mailbox that was taken away whole.
fn whole(bucket: &Dir, line: &Line, visit: Visit<'_>) -> Result<(), StoreError> {
    let Some(mailbox) = bucket.sub(line.grave.as_bytes())? else { return Ok(()) };
    let content = mailbox.content(uidlist::NAME, uidlist::FILE_OCTETS_MAX)?.unwrap_or_default();
    let lines =
        uidlist::Heading::parse(&content).map(|(_, rest)| uidlist::Lines::parse(rest, Uid(0)));
    let uids: HashMap<&[u8], Uid> = lines
        .map(|lines| lines.read.into_iter().map(|line| (line.base, line.uid)).collect())
        .unwrap_or_default();
    for place in [&b"new"[..], b"cur"] {
        let Some(dir) = mailbox.sub(place)? else { continue };
        let mut files = Vec::new();
        dir.list(|name, _, _| files.push(name.to_vec()))?;
        files.sort_unstable();
        for name in files {
            let Some((_, stat)) = dir.read(&name)? else { continue };
            visit(Grave {
                uid: uids.get(names::base(&name)).copied(),
                octets: u64::try_from(stat.st_size).unwrap_or(0),
                internal_date: stat.st_mtime,
                ..grave(line, dir.at(&name))
            })?;
        }
    }
    Ok(())
}

fn grave(line: &Line, path: PathBuf) -> Grave {
    Grave {
        at_ms: line.at_ms,
        account: line.account.clone(),
        mailbox: line.mailbox.clone(),
        uid_validity: line.uid_validity,
        uid: None,
        guid: None,
        octets: 0,
        internal_date: 0,
        place: Place::File(path, 0),
    }
}

/// Opens what lies at `path`.
pub(crate) fn open(path: &Path) -> Result<Octets, StoreError> {
    let absent = || StoreError::NotFound { what: path.display().to_string() };
    let (parent, name) = path.parent().zip(path.file_name()).ok_or_else(absent)?;
    let dir = Dir::open(parent)?.ok_or_else(absent)?;
    let (file, stat) = dir.read(name.as_bytes())?.ok_or_else(absent)?;
    Ok(Octets::new(u64::try_from(stat.st_size).unwrap_or(0), file))
}

fn parse(line: &str) -> Option<Line> {
    let mut fields = line.strip_suffix('\n')?.split('\t');
    let grave = fields.next().filter(|grave| !grave.contains('/'))?.to_owned();
    let at_ms = grave.split('.').next()?.parse().ok()?;
    let account = Account::new(fields.next()?).ok()?;
    let mailbox = MailboxName::new(&unescape(fields.next()?)?).ok()?;
    let uid_validity = UidValidity(fields.next()?.parse().ok()?);
    let message = match fields.next() {
        None => None,
        Some(uid) => {
            let _file_name = fields.next()?;
            let date = fields.next()?.parse().ok()?;
            let guid = match fields.next()? {
                UNREAD => None,
                guid => Some(guid.parse().ok()?),
            };
            Some((Uid(uid.parse().ok()?), date, guid))
        }
    };
    Some(Line { grave, at_ms, account, mailbox, uid_validity, message })
}

/// Undoes `escape_ascii`.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(octet) = rest.next() {
        if octet != b'\\' {
            octets.push(octet);
            continue;
        }
        octets.push(match rest.next()? {
            b't' => b'\t',
            b'n' => b'\n',
            b'r' => b'\r',
            b'x' => {
                let digit = |octet: u8| char::from(octet).to_digit(16);
                let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    Some(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_they_were() {
        let odd = b"a\tb\\c'\"\n\xff\x00 d";
        assert_eq!(unescape(&odd.escape_ascii().to_string()).unwrap(), odd);
        for broken in ["\\", "\\x", "\\x4", "\\xzz"] {
            assert_eq!(unescape(broken), None, "{broken}");
        }
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        let guid = "01".repeat(20);
        let good = format!("36.0\tann\tA\t7\t3\ta:2,S\t9\t{guid}\n");
        let line = parse(&good).unwrap();
        assert_eq!((line.at_ms, line.uid_validity.0), (36, 7));
        assert_eq!(line.message.unwrap().0, Uid(3));
        assert!(parse("36.0\tann\tA\t7\n").unwrap().message.is_none());
        let cut = good.len() / 2;
        for bad in [&good[..cut], "", "\n", "../x.0\tann\tA\t7\n", "36.0\t../x\tA\t7\n"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
