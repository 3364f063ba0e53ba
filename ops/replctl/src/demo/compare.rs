//! Compares two mail trees file by file: what the demo believes in the end, and nothing of what
//! the daemons say of themselves.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt, path::Path};

use super::client::{file_name, mailboxes};

/// One message as a client would see it.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    uid: Option<u32>,
    flags: String,
    internal_date: i64,
    octets: Vec<u8>,
}

/// What one account's tree holds.
#[derive(Debug, Default)]
pub(super) struct Count {
    pub(super) mailboxes: usize,
    pub(super) master: usize,
    pub(super) replica: usize,
    pub(super) differences: Vec<String>,
}

/// Compares the Maildirs of one account on both sides.
pub(super) fn account(master: &Path, replica: &Path) -> io::Result<Count> {
    let (ours, theirs) = (read(master)?, read(replica)?);
    let mut count = Count { mailboxes: ours.len(), ..Count::default() };
    for (name, mailbox) in &ours {
        count.master += mailbox.messages.len();
        let Some(other) = theirs.get(name) else {
            count.differences.push(format!("{name} is not on the replica"));
            continue;
        };
        count.replica += other.messages.len();
        if mailbox.header != other.header {
            count.differences.push(format!("{name}: {} / {}", mailbox.header, other.header));
        }
        for (base, message) in &mailbox.messages {
            match other.messages.get(base) {
                None => count.differences.push(format!("{name}: {base} is missing")),
                Some(copy) if copy != message => {
                    count.differences.push(format!("{name}: {base} differs"));
                }
                Some(_) => {}
            }
        }
        for base in other.messages.keys().filter(|base| !mailbox.messages.contains_key(*base)) {
            count.differences.push(format!("{name}: {base} is only on the replica"));
        }
    }
    for name in theirs.keys().filter(|name| !ours.contains_key(*name)) {
        count.differences.push(format!("{name} is only on the replica"));
    }
    Ok(count)
}

struct Mailbox {
    /// UIDVALIDITY and identity.
    header: String,
    messages: BTreeMap<String, Message>,
}

fn read(maildir: &Path) -> io::Result<BTreeMap<String, Mailbox>> {
    let mut all = BTreeMap::new();
    if !maildir.is_dir() {
        return Ok(all);
    }
    for path in mailboxes(maildir)? {
        let name = if path == maildir { "INBOX".to_owned() } else { file_name(&path) };
        let list = fs::read_to_string(path.join("dovecot-uidlist")).unwrap_or_default();
        let mut lines = list.lines();
        let header = lines.next().unwrap_or_default().split(' ');
        let header: Vec<&str> = header.filter(|word| word.starts_with(['V', 'G'])).collect();
        let uids: BTreeMap<&str, u32> = lines.filter_map(uid_line).collect();
        let mut messages = BTreeMap::new();
        for sub in ["new", "cur"] {
            for entry in fs::read_dir(path.join(sub))? {
                let file = entry?.path();
                let name = file_name(&file);
                let (base, flags) = name.split_once(":2,").unwrap_or((&name, ""));
                let message = Message {
                    uid: uids.get(base).copied(),
                    flags: flags.to_owned(),
                    internal_date: fs::metadata(&file)?.mtime(),
                    octets: fs::read(&file)?,
                };
                messages.insert(base.to_owned(), message);
            }
        }
        all.insert(name, Mailbox { header: header.join(" "), messages });
    }
    Ok(all)
}

fn uid_line(line: &str) -> Option<(&str, u32)> {
    let (keys, base) = line.split_once(" :").or_else(|| line.split_once(':'))?;
    Some((base, keys.split(' ').next()?.parse().ok()?))
}
