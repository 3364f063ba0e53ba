//! Lines of Cyrus's sync log: what they tell to look at.
//!
//! One event a line, words separated by a space, odd ones in double quotes with backslashes. A line
//! says what may have changed, never how.

use std::collections::{BTreeMap, BTreeSet};

/// What a run of lines tells to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Internal names of mailboxes whose messages may have changed, and nothing else of them.
    pub messages: BTreeSet<Vec<u8>>,
    /// Internal names of mailboxes that may have changed in any way, come or gone.
    pub mailboxes: BTreeSet<Vec<u8>>,
    /// Userids about whom anything may have changed.
    pub users: BTreeSet<String>,
    /// Lines that make no sense: then anything may have changed.
    pub unknown: u64,
}

/// Reads lines, the last of which may lack its line feed.
///
/// A delivery is an `APPEND` and a `MAILBOX` line; a mailbox with more of the latter may also have
/// other rights.
pub fn read(text: &[u8]) -> Dirty {
    let mut dirty = Dirty::default();
    let mut surplus: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
    for line in text.split(|&octet| octet == b'\n').filter(|line| !line.is_empty()) {
        let words = words(line).unwrap_or_default();
        let mut words = words.into_iter();
        let kind = words.next().unwrap_or_default();
        let names: Vec<Vec<u8>> = words.collect();
        match (&kind[..], &names[..]) {
            (b"APPEND", [name]) => *surplus.entry(name.clone()).or_default() -= 1,
            (b"MAILBOX", [name]) => *surplus.entry(name.clone()).or_default() += 1,
            (b"UNMAILBOX" | b"RENAME" | b"DOUBLEMAILBOX" | b"QUOTA" | b"ANNOTATION", [_, ..]) => {
                dirty.mailboxes.extend(names.into_iter().filter(|name| !name.is_empty()));
            }
            (
                b"SUB" | b"UNSUB" | b"SEEN" | b"USER" | b"UNUSER" | b"META" | b"SIEVE",
                [user, ..],
            ) => match String::from_utf8(user.clone()) {
                Ok(user) => drop(dirty.users.insert(user)),
                Err(_) => dirty.unknown += 1,
            },
            _ => dirty.unknown += 1,
        }
    }
    for (name, surplus) in surplus {
        let place = if surplus > 0 { &mut dirty.mailboxes } else { &mut dirty.messages };
        place.insert(name);
    }
    dirty
}

/// The words of a line; `None` if a quoted one has no end.
fn words(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (mut words, mut rest) = (Vec::new(), line);
    loop {
        rest = match rest {
            [] => return Some(words),
            [b' ', behind @ ..] => behind,
            [b'"', behind @ ..] => {
                let (word, behind) = quoted(behind)?;
                words.push(word);
                behind
            }
            _ => {
                let end = rest.iter().position(|&octet| octet == b' ').unwrap_or(rest.len());
                let (word, behind) = rest.split_at(end);
                words.push(word.to_vec());
                behind
            }
        }
    }
}

fn quoted(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut word = Vec::new();
    loop {
        match rest {
            [] => return None,
            [b'"', behind @ ..] => return Some((word, behind)),
            [b'\\', octet, behind @ ..] | [octet, behind @ ..] => {
                word.push(*octet);
                rest = behind;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_what_they_mean() {
        let text = b"APPEND user.bob\nMAILBOX user.bob\nMAILBOX \"user.u1.with \\\"q\\\" \\{x\\} \\\\ 1\"\n\
            RENAME user.a.x DELETED.user.a.x.6B\nSUB alice user.alice.Work\nANNOTATION \"\"\n\
            APPEND user.c\nMAILBOX user.c\nMAILBOX user.c";
        let dirty = read(text);
        let names = |set: &BTreeSet<Vec<u8>>| -> Vec<String> {
            set.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
        };
        assert_eq!(names(&dirty.messages), ["user.bob"]);
        let all = ["DELETED.user.a.x.6B", "user.a.x", "user.c", "user.u1.with \"q\" {x} \\ 1"];
        assert_eq!(names(&dirty.mailboxes), all);
        assert_eq!(dirty.users, BTreeSet::from(["alice".to_owned()]));
        assert_eq!(dirty.unknown, 0);
    }

    #[test]
    fn what_makes_no_sense_is_counted() {
        for bad in
            [&b"NEWS x\n"[..], b"MAILBOX \"a\n", b"APPEND\n", b"SUB \xff x\n", b"MAILBOX a b\n"]
        {
            assert_eq!(read(bad).unknown, 1, "{}", bad.escape_ascii());
        }
        assert_eq!(read(b"\n\n"), Dirty::default());
    }
}
