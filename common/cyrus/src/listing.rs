//! Who has mailboxes: users, and the shared ones of each domain, as IMAP lists them to an admin.

use std::collections::BTreeSet;

use crate::{
    dlist::Value,
    names::{self, Named},
    session::{Answer, Command},
};

/// Names asked for in one command.
const ASKED_MAX: usize = 200;

/// A shared mailbox at the top, or a place there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Top {
    /// Whose it is here: [`names::SHARED`] and its domain.
    pub whose: String,
    /// Its external name.
    pub external: Vec<u8>,
    /// Its internal name.
    pub internal: Vec<u8>,
}

/// Lists by asking over IMAP; each answer is as it is at that moment.
#[derive(Debug)]
pub struct Listing<F> {
    ask: F,
    separator: u8,
}

/// External names of one level, and whether an `@` in them begins a virtual domain.
struct Level {
    names: Vec<Vec<u8>>,
    virtual_domains: bool,
}

impl<E, F: FnMut(&Command<'_>) -> Result<Vec<Answer>, E>> Listing<F> {
    /// Asks what stands between the parts of a name.
    pub fn new(mut ask: F) -> Result<Self, E> {
        let answers = ask(&Command::List(""))?;
        Ok(Self { ask, separator: answers.iter().find_map(Answer::separator).unwrap_or(b'/') })
    }

    /// What stands between the parts of a name: `.` or `/`.
    pub fn separator(&self) -> u8 {
        self.separator
    }

    /// Userids with an INBOX.
    pub fn users(&mut self) -> Result<BTreeSet<String>, E> {
        let Level { names, virtual_domains } = self.level("user")?;
        let separator = self.separator;
        let user = |name: &Vec<u8>| {
            let internal = names::internal_of(name, separator, virtual_domains);
            match names::meaning(&internal) {
                Named::Folder { user, folder } => {
                    Some(user).filter(|user| folder.is_empty() && !names::is_shared(user))
                }
                Named::Odd { .. } | Named::Other => None,
            }
        };
        Ok(names.iter().filter_map(user).collect())
    }

    /// Shared mailboxes at the top.
    pub fn shared(&mut self) -> Result<Vec<Top>, E> {
        let Level { names, virtual_domains } = self.level("")?;
        let separator = self.separator;
        let top = |external: Vec<u8>| {
            let internal = names::internal_of(&external, separator, virtual_domains);
            let whose = match names::meaning(&internal) {
                Named::Folder { user, .. } | Named::Odd { user } => user,
                Named::Other => return None,
            };
            names::is_shared(&whose).then_some(Top { whose, external, internal })
        };
        Ok(names.into_iter().filter_map(top).collect())
    }

    /// Internal names of a shared mailbox and of what is below it, and whether each is a place in the
    /// hierarchy only.
    pub fn tree(&mut self, top: &Top) -> Result<Vec<(Vec<u8>, bool)>, E> {
        let in_domain = top.internal.contains(&b'!');
        let (name, separator) = (String::from_utf8_lossy(&top.external), self.separator);
        let patterns = names::with_all_below(&name, separator, in_domain);
        let answers = (self.ask)(&Command::ListAny(&patterns))?;
        let listed = answers.iter().filter_map(Answer::listed);
        let named = listed.map(|(name, at)| (names::internal_of(name, separator, in_domain), at));
        Ok(named.collect())
    }

    /// What is directly below `above`, or at the top.
    fn level(&mut self, above: &str) -> Result<Level, E> {
        let separator = char::from(self.separator);
        let above = if above.is_empty() { String::new() } else { format!("{above}{separator}") };
        let mut names = self.list(&format!("{above}%"))?;
        if !names.iter().any(|name| name.contains(&b'@')) {
            return Ok(Level { names, virtual_domains: false });
        }
        // Dots of a domain end a part, too, where they stand between parts: those are cut short.
        let whole = self.list(&format!("{above}%@*"))?;
        let virtual_domains = self.has_domains(&whole)?;
        if virtual_domains {
            names.retain(|name| !name.contains(&b'@'));
            names.extend(whole);
        }
        Ok(Level { names, virtual_domains })
    }

    /// Whether the `@` of these names begins a virtual domain: only the internal name tells.
    fn has_domains(&mut self, externals: &[Vec<u8>]) -> Result<bool, E> {
        for virtual_domains in [true, false] {
            let some = externals.iter().take(ASKED_MAX);
            let internal = |name| names::internal_of(name, self.separator, virtual_domains);
            let names = some.map(|name| Value::text(internal(name))).collect();
            if !(self.ask)(&Command::Get("MAILBOXES", &Value::List(names)))?.is_empty() {
                return Ok(virtual_domains);
            }
        }
        Ok(true) // none can be read: then it is what is usual
    }

    fn list(&mut self, pattern: &str) -> Result<Vec<Vec<u8>>, E> {
        let answers = (self.ask)(&Command::List(pattern))?;
        Ok(answers.iter().filter_map(|answer| Some(answer.listed()?.0.to_vec())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server with these internal names, as it lists them.
    fn list(separator: u8, internal: &[&str]) -> Listing<impl FnMut(&Command<'_>) -> Answers> {
        let internal: Vec<Vec<u8>> = internal.iter().map(|name| name.as_bytes().to_vec()).collect();
        let answer = move |name: &[u8]| Answer {
            name: "LIST".to_owned(),
            values: vec![
                Value::List(Vec::new()),
                Value::text(char::from(separator).to_string()),
                Value::text(name),
            ],
        };
        let ask = move |command: &Command<'_>| -> Answers {
            let patterns = match command {
                Command::List("") => return Ok(vec![answer(b"")]),
                Command::List(pattern) => vec![pattern.as_bytes()],
                Command::ListAny(patterns) => patterns.iter().map(String::as_bytes).collect(),
                Command::Get(_, names) => {
                    let asked = names.as_list().unwrap().iter().filter_map(Value::as_text);
                    let there = asked.filter(|name| internal.iter().any(|there| there == name));
                    return Ok(there.map(answer).collect());
                }
                Command::Login { .. }
                | Command::Apply(..)
                | Command::Restart
                | Command::Noop
                | Command::StartTls => {
                    panic!("nothing else is asked: {command:?}")
                }
            };
            let external = internal.iter().map(|name| names::external(name, separator));
            let matching = external.flat_map(|name| {
                patterns.iter().filter_map(move |pattern| matched(pattern, &name, separator))
            });
            let matching: BTreeSet<Vec<u8>> = matching.collect();
            Ok(matching.iter().map(|name| answer(name)).collect())
        };
        Listing::new(ask).unwrap()
    }

    type Answers = Result<Vec<Answer>, std::convert::Infallible>;

    /// The beginning of `name` that a pattern stands for, as Cyrus shows what is above a match, too.
    fn matched(pattern: &[u8], name: &[u8], separator: u8) -> Option<Vec<u8>> {
        if let Some(above) = pattern.strip_suffix(b"%") {
            let rest = name.strip_prefix(above)?;
            let at = rest.iter().position(|&octet| octet == b'@').unwrap_or(rest.len());
            let end = rest.iter().position(|&octet| octet == separator).unwrap_or(rest.len());
            return (end >= at || at == rest.len()).then(|| name[..above.len() + end].to_vec());
        }
        let star = pattern.iter().position(|&octet| octet == b'*');
        let Some(star) = star else { return (pattern == name).then(|| name.to_vec()) };
        let (before, behind) = (&pattern[..star], &pattern[star + 1..]);
        let is_fine = match before.strip_suffix(b"%@") {
            Some(above) => name.strip_prefix(above).is_some_and(|rest| {
                let at = rest.iter().position(|&octet| octet == b'@');
                at.is_some_and(|at| !rest[..at].contains(&separator))
            }),
            None => name.starts_with(before),
        };
        (is_fine && name.ends_with(behind)).then(|| name.to_vec())
    }

    #[test]
    fn users_and_shared_mailboxes_whatever_separates_parts() {
        for separator in [b'.', b'/'] {
            let there = [
                "user.ann",
                "user.ann.Work",
                "user.jim^b",
                "example.net!user.ben",
                "example.net!user.ben.Work",
                "news",
                "news.linux",
                "news^x.y",
                "example.net!more",
                "example.net!more.of",
                "DELETED.news.x",
            ];
            let mut listing = list(separator, &there);
            let users: Vec<String> = listing.users().unwrap().into_iter().collect();
            assert_eq!(users, ["ann", "ben@example.net", "jim.b"]);
            let tops = listing.shared().unwrap();
            let mut trees = Vec::new();
            for top in &tops {
                for (name, _) in listing.tree(top).unwrap() {
                    trees.push(format!("{} {}", top.whose, String::from_utf8(name).unwrap()));
                }
            }
            trees.sort();
            let want = [
                "+shared news",
                "+shared news.linux",
                "+shared news^x.y",
                "+shared@example.net example.net!more",
                "+shared@example.net example.net!more.of",
            ];
            assert_eq!(trees, want, "{}", char::from(separator));
        }
    }

    #[test]
    fn an_at_without_virtual_domains() {
        for separator in [b'.', b'/'] {
            let mut listing = list(separator, &["user.a@b^c", "user.a@b^c.Work", "x@y", "x@y.z"]);
            let users: Vec<String> = listing.users().unwrap().into_iter().collect();
            assert_eq!(users, ["a@b.c"]);
            let tops = listing.shared().unwrap();
            assert_eq!(tops.len(), 1, "{tops:?}");
            assert_eq!((&tops[0].whose[..], &tops[0].internal[..]), ("+shared", &b"x@y"[..]));
            assert_eq!(listing.tree(&tops[0]).unwrap().len(), 2);
        }
    }
}
