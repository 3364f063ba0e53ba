//! Where accounts and mailboxes lie: the root pattern, and the two layouts below an account.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Component, Path, PathBuf},
};

use mailtwin_cyrus::names;
use mailtwin_logic::{ids::Account, mailbox::MailboxName};
use rustix::fs::FileType;

use super::fsys::Dir;
use crate::StoreError;

/// Levels of directories that are looked into for accounts or mailboxes.
pub(crate) const DEPTH_MAX: usize = 32;

/// How mailboxes lie in an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Flat, `.Work.Sub` beside the INBOX's `cur`: Dovecot's default.
    MaildirPlusPlus,
    /// Nested directories, `Work/Sub`.
    Fs,
}

/// A path with `{user}`, `{domain}` or `{path}` in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    prefix: PathBuf,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Tokens(Vec<Token>),
    Path,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Text(Vec<u8>),
    User,
    Domain,
}

/// What an account puts in place of the variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Values {
    user: Option<Vec<u8>>,
    domain: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
}

impl Pattern {
    /// Reads a pattern; the error says what is wrong with it.
    pub(crate) fn parse(text: &Path) -> Result<Self, String> {
        if !text.is_absolute() {
            return Err("it is not an absolute path".into());
        }
        let (mut prefix, mut parts) = (PathBuf::new(), Vec::new());
        for component in text.components() {
            let name = match component {
                Component::RootDir => {
                    prefix.push("/");
                    continue;
                }
                Component::Normal(name) => name,
                Component::Prefix(_) | Component::CurDir | Component::ParentDir => {
                    return Err("it has a part `.` or `..`".into());
                }
            };
            if parts.is_empty() && !name.as_bytes().contains(&b'{') {
                prefix.push(name);
            } else {
                parts.push(Part::parse(name.as_bytes())?);
            }
        }
        if parts.is_empty() {
            let last = prefix.file_name().ok_or("it is the file system's root")?;
            parts.push(Part::Tokens(vec![Token::Text(last.as_bytes().to_vec())]));
            prefix.pop();
        }
        if parts.len() > 1 && parts.contains(&Part::Path) {
            return Err("`{path}` must be the last part, and the only one with a variable".into());
        }
        Ok(Self { prefix, parts })
    }

    /// The part above the first variable.
    pub(crate) fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// Whether accounts are found by walking the tree.
    pub(crate) fn is_tree(&self) -> bool {
        self.parts.contains(&Part::Path)
    }

    /// Each part's name if it has no variable.
    pub(crate) fn fixed_parts(&self) -> Vec<Option<&[u8]>> {
        self.parts.iter().map(Part::fixed).collect()
    }

    /// The directory above, if it is another for each account.
    pub(crate) fn parent(&self) -> Option<Self> {
        let (last, parts) = self.parts.split_last()?;
        matches!(last, Part::Tokens(tokens) if matches!(tokens.as_slice(), [Token::Text(_)]))
            .then(|| Self { prefix: self.prefix.clone(), parts: parts.to_vec() })
    }

    /// Where an account of `named`'s names lies, below this pattern's prefix.
    pub(crate) fn locate(&self, account: &Account, named: &Self) -> Result<PathBuf, StoreError> {
        let error = |why| StoreError::Name { name: account.as_str().to_owned(), why };
        let values = named.values(account).ok_or_else(|| error("no account here is called so"))?;
        let mut path = PathBuf::new();
        for part in &self.parts {
            let mut name = Vec::new();
            match part {
                Part::Path => {
                    name.clone_from(values.path.as_ref().ok_or_else(|| error("no path"))?);
                }
                Part::Tokens(tokens) => {
                    for token in tokens {
                        let value = match token {
                            Token::Text(text) => Some(text),
                            Token::User => values.user.as_ref(),
                            Token::Domain => values.domain.as_ref(),
                        };
                        name.extend(value.ok_or_else(|| error("it lacks a part"))?);
                    }
                }
            }
            path.push(OsStr::from_bytes(&name));
        }
        Ok(path)
    }

    /// Every account below the open prefix, with its place below it; what `skip` says is no
    /// account is not looked into. Names that cannot be used go to `odd`.
    pub(crate) fn accounts(
        &self,
        prefix: &Dir,
        layout: Layout,
        skip: &Path,
        odd: &mut Vec<PathBuf>,
    ) -> Result<Vec<Account>, StoreError> {
        let mut walk = Walk { layout, skip, odd, found: Vec::new() };
        if self.is_tree() {
            walk.tree(prefix, &mut Vec::new(), 0)?;
        } else {
            walk.parts(prefix, &self.parts, &Values::default())?;
        }
        let mut found = walk.found;
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn has(&self, wanted: &Token) -> bool {
        let holds = |part: &Part| matches!(part, Part::Tokens(tokens) if tokens.contains(wanted));
        self.parts.iter().any(holds)
    }

    /// The reverse of [`account`]; `None` if that cannot have made it.
    fn values(&self, account: &Account) -> Option<Values> {
        let name = account.as_str();
        if self.is_tree() {
            let path = decode(name)?;
            let fine = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
            let fine = path.is_empty() || path.split(|&octet| octet == b'/').all(fine);
            return fine.then(|| Values { path: Some(path), ..Values::default() });
        }
        let part = |text: &str| {
            let octets = decode(text)?;
            let fine = !matches!(octets.as_slice(), b"" | b"." | b"..")
                && !octets.iter().any(|&octet| matches!(octet, b'/' | 0));
            fine.then_some(octets)
        };
        let mut values = Values::default();
        match (self.has(&Token::User), self.has(&Token::Domain)) {
            (true, true) => {
                let (user, domain) = name.rsplit_once('@')?;
                values.user = Some(part(user)?);
                values.domain = Some(part(domain)?);
            }
            (true, false) => values.user = Some(part(name)?),
            (false, true) => values.domain = Some(part(name)?),
            (false, false) if name.is_empty() => {}
            (false, false) => return None,
        }
        Some(values)
    }
}

impl Part {
    fn fixed(&self) -> Option<&[u8]> {
        match self {
            Self::Tokens(tokens) => match tokens.as_slice() {
                [Token::Text(text)] => Some(text),
                _ => None,
            },
            Self::Path => None,
        }
    }

    fn parse(name: &[u8]) -> Result<Self, String> {
        if name == b"{path}" {
            return Ok(Self::Path);
        }
        let (mut tokens, mut rest) = (Vec::new(), name);
        while !rest.is_empty() {
            let (token, octets) = if rest.starts_with(b"{user}") {
                (Token::User, 6)
            } else if rest.starts_with(b"{domain}") {
                (Token::Domain, 8)
            } else {
                let octets = rest.iter().skip(1).position(|&octet| octet == b'{');
                let octets = octets.map_or(rest.len(), |at| at + 1);
                let text = rest.get(..octets).unwrap_or_default();
                if text.iter().any(|octet| matches!(octet, b'{' | b'}')) {
                    return Err("it has a variable other than {user}, {domain} or {path}".into());
                }
                (Token::Text(text.to_vec()), octets)
            };
            let doubled =
                |last: &Token| !matches!(last, Token::Text(_)) && !matches!(token, Token::Text(_));
            if tokens.last().is_some_and(doubled) {
                return Err("nothing stands between two variables".into());
            }
            tokens.push(token);
            rest = rest.get(octets..).unwrap_or_default();
        }
        Ok(Self::Tokens(tokens))
    }
}

fn account(values: &Values) -> Option<Account> {
    let name = if let Some(path) = &values.path {
        encode(path, b"")
    } else {
        let user = values.user.as_deref().map(|user| encode(user, b"/"));
        let domain = values.domain.as_deref().map(|domain| encode(domain, b"/@"));
        [user, domain].into_iter().flatten().collect::<Vec<_>>().join("@")
    };
    Account::new(&name).ok()
}

struct Walk<'a> {
    layout: Layout,
    skip: &'a Path,
    odd: &'a mut Vec<PathBuf>,
    found: Vec<Account>,
}

impl Walk<'_> {
    fn parts(&mut self, dir: &Dir, parts: &[Part], values: &Values) -> Result<(), StoreError> {
        let Some((part, rest)) = parts.split_first() else {
            if is_account(dir, self.layout)? {
                match account(values) {
                    Some(account) => self.found.push(account),
                    None => self.odd.push(dir.path().to_path_buf()),
                }
            }
            return Ok(());
        };
        let Part::Tokens(tokens) = part else { return Ok(()) };
        if let [Token::Text(text)] = tokens.as_slice() {
            return match dir.beneath(Path::new(OsStr::from_bytes(text)))? {
                Some(sub) => self.parts(&sub, rest, values),
                None => Ok(()),
            };
        }
        for name in directories(dir)? {
            let mut values = values.clone();
            if dir.at(&name) == self.skip || !fits(tokens, &name, &mut values) {
                continue;
            }
            if let Some(sub) = dir.beneath(Path::new(OsStr::from_bytes(&name)))? {
                self.parts(&sub, rest, &values)?;
            }
        }
        Ok(())
    }

    fn tree(&mut self, dir: &Dir, path: &mut Vec<u8>, depth: usize) -> Result<(), StoreError> {
        if is_account(dir, self.layout)? {
            let values = Values { path: Some(path.clone()), ..Values::default() };
            match account(&values) {
                Some(account) => self.found.push(account),
                None => self.odd.push(dir.path().to_path_buf()),
            }
            return Ok(());
        }
        if depth >= DEPTH_MAX {
            return Ok(());
        }
        for name in directories(dir)? {
            let Some(sub) = dir.sub(&name)?.filter(|sub| sub.path() != self.skip) else { continue };
            let octets = path.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(&name);
            self.tree(&sub, path, depth + 1)?;
            path.truncate(octets);
        }
        Ok(())
    }
}

/// Whether mail lies here: an INBOX, or in the flat layout at least one mailbox. What a Cyrus shares has
/// no INBOX, and is known by its name.
pub(crate) fn is_account(dir: &Dir, layout: Layout) -> Result<bool, StoreError> {
    let mut parts = dir.path().components().filter_map(|part| part.as_os_str().to_str());
    if parts.any(names::is_shared) || dir.has_dir(b"cur")? {
        return Ok(true);
    }
    let mut candidates = Vec::new();
    if layout == Layout::MaildirPlusPlus {
        candidates = directories(dir)?;
        candidates.retain(|name| name.starts_with(b".") && !name.starts_with(b".."));
    }
    for name in candidates {
        if let Some(sub) = dir.sub(&name)?
            && sub.has_dir(b"cur")?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn directories(dir: &Dir) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut names = Vec::new();
    dir.list(|name, _, kind| {
        if matches!(kind, FileType::Directory | FileType::Symlink) {
            names.push(name.to_vec());
        }
    })?;
    Ok(names)
}

/// Matches a name; a variable before a text ends at that text's last place.
fn fits(tokens: &[Token], name: &[u8], values: &mut Values) -> bool {
    match tokens {
        [] => name.is_empty(),
        [Token::Text(text), rest @ ..] => {
            name.strip_prefix(text.as_slice()).is_some_and(|name| fits(rest, name, values))
        }
        [variable, rest @ ..] => {
            let end = match rest.first() {
                Some(Token::Text(text)) => {
                    let is_here = |at: &usize| name.get(*at..).is_some_and(|n| n.starts_with(text));
                    (1..name.len()).rev().find(is_here)
                }
                _ => Some(name.len()),
            };
            let Some((value, after)) = end.and_then(|end| name.split_at_checked(end)) else {
                return false;
            };
            let place = match variable {
                Token::Domain => &mut values.domain,
                Token::User | Token::Text(_) => &mut values.user,
            };
            // A variable that stands twice must mean the same.
            if value.is_empty() || place.as_ref().is_some_and(|held| held != value) {
                return false;
            }
            *place = Some(value.to_vec());
            fits(rest, after, values)
        }
    }
}

/// Printable form: `%XX` for what is not printable UTF-8, for `%`, and for `special`.
pub(crate) fn encode(octets: &[u8], special: &[u8]) -> String {
    let mut text = String::with_capacity(octets.len());
    let escape = |text: &mut String, octets: &[u8]| {
        for octet in octets {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{octet:02X}");
        }
    };
    for chunk in octets.utf8_chunks() {
        for c in chunk.valid().chars() {
            let is_special = c == '%' || u8::try_from(c).is_ok_and(|c| special.contains(&c));
            if c.is_control() || is_special {
                escape(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                text.push(c);
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let (mut octets, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            octets.push(u8::from_str_radix(digits, 16).ok()?);
            rest = after.get(2..)?;
        } else {
            octets.push(first);
            rest = after;
        }
    }
    Some(octets)
}

impl Layout {
    /// A mailbox's directory, below its account's.
    /// Refuses a name that no mailbox can have in this layout.
    pub fn check_name(self, name: &MailboxName) -> Result<(), StoreError> {
        self.directory(name).map(drop)
    }

    pub(crate) fn directory(self, name: &MailboxName) -> Result<PathBuf, StoreError> {
        if name.is_inbox() {
            return Ok(PathBuf::new());
        }
        let error = |why| StoreError::Name { name: name.to_string(), why };
        if self == Self::Fs && name.parts().count() > DEPTH_MAX {
            return Err(error("it has too many parts"));
        }
        let mut directory = Vec::new();
        for part in name.parts() {
            match self {
                Self::MaildirPlusPlus if part.contains(&b'.') => {
                    return Err(error("a part has a dot in it, which separates parts here"));
                }
                Self::Fs if part.starts_with(b".") || is_reserved(part) => {
                    return Err(error("a part is what files of a mailbox are called"));
                }
                Self::MaildirPlusPlus => directory.extend([b".", part].concat()),
                Self::Fs if directory.is_empty() => directory.extend(part),
                Self::Fs => directory.extend([b"/", part].concat()),
            }
        }
        let longest = directory.split(|&octet| octet == b'/').map(<[u8]>::len).max();
        if longest.is_some_and(|octets| octets > 255) {
            return Err(error("it is too long for a directory"));
        }
        Ok(PathBuf::from(std::ffi::OsString::from_vec(directory)))
    }

    /// Every place below an account where a mailbox may lie, the INBOX first. Directories that
    /// cannot be mailboxes of ours go to `odd`.
    pub(crate) fn mailboxes(
        self,
        account: &Dir,
        odd: &mut Vec<PathBuf>,
    ) -> Result<Vec<MailboxName>, StoreError> {
        let mut names = vec![MailboxName::inbox()];
        match self {
            Self::MaildirPlusPlus => account.list(|name, _, kind| {
                let Some(flat) = name.strip_prefix(b".") else { return };
                // Dovecot parks what it deletes under two dots.
                if kind != FileType::Directory || flat.is_empty() || flat.starts_with(b".") {
                    return;
                }
                let nested: Vec<u8> =
                    flat.iter().map(|&o| if o == b'.' { b'/' } else { o }).collect();
                match MailboxName::new(&nested) {
                    Ok(name) => names.push(name),
                    Err(_) => odd.push(account.at(name)),
                }
            })?,
            Self::Fs => nested(account, &mut Vec::new(), 0, &mut names, odd)?,
        }
        names.sort_unstable();
        Ok(names)
    }
}

fn nested(
    dir: &Dir,
    path: &mut Vec<u8>,
    depth: usize,
    names: &mut Vec<MailboxName>,
    odd: &mut Vec<PathBuf>,
) -> Result<(), StoreError> {
    let mut found = Vec::new();
    dir.list(|name, _, kind| {
        if kind == FileType::Directory && !name.starts_with(b".") && !is_reserved(name) {
            found.push(name.to_vec());
        }
    })?;
    for name in found {
        let octets = path.len();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(&name);
        match (MailboxName::new(path), dir.sub(&name)?) {
            (Ok(mailbox), Some(sub)) if depth < DEPTH_MAX => {
                names.push(mailbox);
                nested(&sub, path, depth + 1, names, odd)?;
            }
            (_, None) => {}
            _ => odd.push(dir.at(&name)),
        }
        path.truncate(octets);
    }
    Ok(())
}

pub(crate) fn is_reserved(part: &[u8]) -> bool {
    matches!(part, b"cur" | b"new" | b"tmp" | b"maildirfolder" | b"maildirsize" | b"subscriptions")
        || part.starts_with(b"dovecot")
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
