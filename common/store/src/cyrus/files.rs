//! What an account has beside mailboxes, as the files that it would be in a Maildir: subscriptions and
//! rights as Dovecot writes them, Sieve scripts by name.
//!
//! Several contents may mean the same. The one that was written is remembered together with what it
//! meant, and is given back as long as Cyrus still has that.

use std::collections::BTreeSet;

use mailtwin_cyrus::{
    Value,
    names::{self, Named},
};
use mailtwin_disk::index::Batch as IndexBatch;
use mailtwin_logic::{
    ids::Account,
    mailbox::{FileKey, FileState, MailboxName},
};

use super::{Cell, Cyrus, acl, extras, index_failed, server::User};
use crate::{Problem, ProblemKind, StoreError, guid_of};

/// How Dovecot's list of subscriptions begins.
const HEADING: &[u8] = b"V\t2\n\n";

/// How often subscriptions are looked at and mended.
const SUBSCRIBE_TRIES: usize = 4;

const SCRIPT: &str = ".script";
const COMPILED: &str = ".bc";
const SIEVE: &str = ".sieve";

impl Cyrus {
    /// The files; what has no place in one is told of.
    pub(super) fn list_files(
        &self,
        account: &Account,
        user: &User,
        cell: &Cell,
        problems: &mut Vec<Problem>,
    ) -> Result<Vec<FileState>, StoreError> {
        let mut files = Vec::new();
        let mut add = |key: FileKey, content: Option<Vec<u8>>| {
            let told = self.as_written(account, &key, content)?;
            files.extend(told.map(|content| FileState { key, guid: guid_of(&content) }));
            Ok::<_, StoreError>(())
        };
        add(FileKey::Subscriptions, subscriptions(account, user))?;
        for snapshot in cell.boxes.values() {
            let content = acl::content(&snapshot.mailbox.acl, owner(account));
            add(FileKey::Acl(snapshot.name.clone()), content)?;
            let key = FileKey::Annotations(snapshot.name.clone());
            let annotations = extras::annotations(snapshot);
            if annotations.is_none() && snapshot.is_annotated() {
                problems.push(too_long(account, &snapshot.name));
            }
            add(key, annotations)?;
        }
        add(FileKey::Quota, extras::quota(account, &user.quotas))?;
        add(FileKey::Seen, extras::seen(user))?;
        add(FileKey::SubscribedOfOthers, extras::subscribed(account, user))?;
        add(FileKey::SieveActive, active(user))?;
        for (file, guid, _) in &user.scripts {
            if let Some(key) = script_key(file) {
                files.push(FileState { key, guid: *guid });
            }
        }
        files.sort();
        Ok(files)
    }

    pub(super) fn read_file(
        &self,
        account: &Account,
        cell: &mut Cell,
        key: &FileKey,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let content = self.told(account, cell, key)?;
        if matches!(key, FileKey::Sieve(_)) {
            return Ok(content);
        }
        self.as_written(account, key, content)
    }

    /// What Cyrus has, in our words.
    fn told(
        &self,
        account: &Account,
        cell: &mut Cell,
        key: &FileKey,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let meta = |cell: &Cell| self.meta(account, cell);
        Ok(match key {
            FileKey::Subscriptions => subscriptions(account, &meta(cell)?),
            FileKey::SieveActive => active(&meta(cell)?),
            FileKey::Acl(name) => {
                let snapshot = self.find_one(account, cell, name)?;
                snapshot.and_then(|snapshot| acl::content(&snapshot.mailbox.acl, owner(account)))
            }
            FileKey::Sieve(name) => {
                let Ok(stem) = stem(name) else { return Ok(None) };
                self.server.script(account.as_str(), &format!("{stem}{SCRIPT}"))?
            }
            FileKey::Annotations(name) => {
                self.find_one(account, cell, name)?.and_then(extras::annotations)
            }
            FileKey::Quota => extras::quota(account, &self.quotas(account, cell)?),
            FileKey::Seen => extras::seen(&meta(cell)?),
            FileKey::SubscribedOfOthers => extras::subscribed(account, &meta(cell)?),
        })
    }

    pub(super) fn write_file(
        &self,
        account: &Account,
        cell: &mut Cell,
        key: &FileKey,
        content: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let mut is_whole = true;
        match key {
            FileKey::Annotations(name) => is_whole = self.annotate(account, cell, name, content)?,
            FileKey::Quota => self.limit(account, cell, content)?,
            FileKey::Seen => self.mark_seen(account, cell, content)?,
            FileKey::Subscriptions => {
                let names = subscribed(content)?.into_iter();
                let names = names.map(|name| self.internal(account, cell, &name).flatten());
                let wanted = names.collect::<Result<_, _>>()?;
                self.subscribe(account, cell, &wanted, true)?;
            }
            FileKey::SubscribedOfOthers => {
                let wanted = extras::subscribed_in(account, content)?;
                self.subscribe(account, cell, &wanted, false)?;
            }
            FileKey::Acl(name) => self.set_rights(account, cell, name, content)?,
            FileKey::Sieve(name) => return self.set_script(account, cell, name, content),
            FileKey::SieveActive => self.activate(account, cell, content)?,
        }
        // What it means to Cyrus, as that tells it.
        let means = self.told(account, cell, key)?;
        let mut batch = IndexBatch::default();
        match content {
            Some(content) => {
                // What is not all there yet is not taken for it: the rest is tried again.
                let means = is_whole.then(|| guid_of(means.as_deref().unwrap_or_default()));
                let means = means.unwrap_or_default();
                batch.put(&memory_key(account, key), &[&means.0[..], content].concat());
            }
            None => batch.delete(&memory_key(account, key)),
        }
        self.index.commit(batch).map_err(index_failed)
    }

    /// `content`, or what was written when it meant the same.
    fn as_written(
        &self,
        account: &Account,
        key: &FileKey,
        content: Option<Vec<u8>>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let memory = self.index.get(&memory_key(account, key)).map_err(index_failed)?;
        let is_extra = matches!(
            key,
            FileKey::Annotations(_) | FileKey::Quota | FileKey::Seen | FileKey::SubscribedOfOthers
        );
        if is_extra && memory.is_none() && !self.server.options.is_master {
            return Ok(None); // not replication's, so that it may not take it away
        }
        let means = guid_of(content.as_deref().unwrap_or_default());
        let written = memory.as_deref().and_then(|memory| memory.split_at_checked(20));
        let written = written.filter(|(guid, _)| *guid == means.0).map(|(_, text)| text.to_vec());
        Ok(written.or(content))
    }

    /// A user's subscriptions, scripts, and what they have seen in mailboxes of others. What Cyrus
    /// keeps of one without mailboxes is nobody's: with them, it looks elsewhere.
    pub(super) fn meta(&self, account: &Account, cell: &Cell) -> Result<User, StoreError> {
        let is_there = !self.listed(account, cell)?.is_empty();
        if is_there { self.server.meta(account.as_str()) } else { Ok(User::default()) }
    }

    /// Makes a user's subscriptions to their own mailboxes, or to all others, those that are wanted.
    fn subscribe(
        &self,
        account: &Account,
        cell: &mut Cell,
        wanted: &BTreeSet<Vec<u8>>,
        to_own: bool,
    ) -> Result<(), StoreError> {
        if !wanted.is_empty() && self.server.options.inbox_first {
            // Cyrus keeps them elsewhere while there is no INBOX, and does not look there later.
            self.ensure_inbox(account, cell)?;
        }
        // While somebody looks at a list that Cyrus is about to make, it may lose what comes first.
        for _ in 0..SUBSCRIBE_TRIES {
            let user = self.meta(account, cell)?;
            let held = user.subscribed.into_iter().filter(|name| is_own(account, name) == to_own);
            let held: BTreeSet<Vec<u8>> = held.collect();
            if held == *wanted {
                break;
            }
            for (verb, name) in wanted
                .difference(&held)
                .map(|name| ("SUB", name))
                .chain(held.difference(wanted).map(|name| ("UNSUB", name)))
            {
                let value = Value::map([
                    ("USERID", Value::text(account.as_str())),
                    ("MBOXNAME", Value::text(name)),
                ]);
                self.server.apply("subscribe", verb, &value)?;
            }
        }
        Ok(())
    }

    fn set_rights(
        &self,
        account: &Account,
        cell: &mut Cell,
        name: &MailboxName,
        content: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let refused = |why| StoreError::Name { name: format!("rights of {account}/{name}"), why };
        let acl = acl::list(content, owner(account)).map_err(refused)?;
        let Some(snapshot) = self.find_one(account, cell, name)? else {
            if content.is_none() {
                return Ok(());
            }
            return Err(StoreError::NotFound { what: format!("mailbox {account}/{name}") });
        };
        let before = snapshot.mailbox.clone();
        if before.acl == acl {
            return Ok(());
        }
        let after = mailtwin_cyrus::mailbox::Mailbox { acl, ..before.clone() };
        let value = after.value(Vec::new(), Some(&before));
        self.server.bring(&before.name, &[], &value, None)
    }

    fn set_script(
        &self,
        account: &Account,
        cell: &mut Cell,
        name: &MailboxName,
        content: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let user = account.as_str();
        let stem = stem(name)?;
        let (who, file) =
            (("USERID", Value::text(user)), ("FILENAME", Value::text(format!("{stem}{SCRIPT}"))));
        let Some(content) = content else {
            let held = self.meta(account, cell)?;
            if !held.scripts.iter().any(|(held, ..)| *held == format!("{stem}{SCRIPT}")) {
                return Ok(());
            }
            return self.server.apply("remove", "UNSIEVE", &Value::map([who, file]));
        };
        self.ensure_inbox(account, cell)?;
        let now = ("LAST_UPDATE", Value::number(self.clock.unix_ms() / 1000));
        let value = Value::map([who, file, now, ("CONTENT", Value::text(content))]);
        self.server.apply("write script", "SIEVE", &value)
    }

    fn activate(
        &self,
        account: &Account,
        cell: &Cell,
        content: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let who = ("USERID", Value::text(account.as_str()));
        let Some(content) = content else {
            if active(&self.meta(account, cell)?).is_none() {
                return Ok(());
            }
            return self.server.apply("deactivate", "UNACTIVATE_SIEVE", &Value::map([who]));
        };
        let last = content.rsplit(|&octet| octet == b'/').next().unwrap_or_default();
        let name = MailboxName::new(last).unwrap_or_else(|_| MailboxName::inbox());
        let file = format!("{}{COMPILED}", stem(&name)?);
        let value = Value::map([who, ("FILENAME", Value::text(file))]);
        self.server.apply("activate", "ACTIVATE_SIEVE", &value)
    }
}

fn memory_key(account: &Account, key: &FileKey) -> Vec<u8> {
    let which = match key {
        FileKey::Subscriptions => b"s".to_vec(),
        FileKey::Acl(name) => [b"a", name.as_octets()].concat(),
        FileKey::Sieve(name) => [b"v", name.as_octets()].concat(),
        FileKey::SieveActive => b"x".to_vec(),
        FileKey::Annotations(name) => [b"n", name.as_octets()].concat(),
        FileKey::Quota => b"q".to_vec(),
        FileKey::Seen => b"e".to_vec(),
        FileKey::SubscribedOfOthers => b"o".to_vec(),
    };
    [b"cyrus/file/", account.as_str().as_bytes(), b"\0", &which].concat()
}

/// Who may do everything unless somebody has said otherwise: nobody with shared mailboxes.
pub(super) fn owner(account: &Account) -> Option<&str> {
    Some(account.as_str()).filter(|user| !names::is_shared(user))
}

fn too_long(account: &Account, mailbox: &MailboxName) -> Problem {
    Problem {
        kind: ProblemKind::NotCarried,
        account: Some(account.clone()),
        mailbox: Some(mailbox.clone()),
        object: "annotations".to_owned(),
        detail: "all annotations here together are too long to be replicated".to_owned(),
    }
}

/// Whether a mailbox is the account's.
pub(super) fn is_own(account: &Account, name: &[u8]) -> bool {
    own(account, name).is_some()
}

/// The folder of an internal name, if it is the account's.
fn own(account: &Account, name: &[u8]) -> Option<MailboxName> {
    match names::meaning(name) {
        Named::Folder { user, folder } if user == account.as_str() => {
            MailboxName::new(&folder).ok()
        }
        Named::Folder { .. } | Named::Odd { .. } | Named::Other => None,
    }
}

/// Dovecot's list of what is subscribed; `None` if nothing is. Others' mailboxes do not stand in it.
fn subscriptions(account: &Account, user: &User) -> Option<Vec<u8>> {
    let own = user.subscribed.iter().filter_map(|name| own(account, name));
    let names: BTreeSet<MailboxName> = own.collect();
    if names.is_empty() {
        return None;
    }
    let mut text = HEADING.to_vec();
    for name in names {
        let parts: Vec<&[u8]> = name.parts().collect();
        text.extend(if name.is_inbox() { b"INBOX".to_vec() } else { parts.join(&b'\t') });
        text.push(b'\n');
    }
    Some(text)
}

fn subscribed(content: Option<&[u8]>) -> Result<BTreeSet<MailboxName>, StoreError> {
    let refused = |why| StoreError::Name { name: "subscriptions".to_owned(), why };
    let Some(content) = content else { return Ok(BTreeSet::new()) };
    let lines = content.strip_prefix(HEADING);
    let lines = lines.ok_or_else(|| refused("they are not in Dovecot's second form"))?;
    let mut names = BTreeSet::new();
    for line in lines.split(|&octet| octet == b'\n').filter(|line| !line.is_empty()) {
        let parts: Vec<&[u8]> = line.split(|&octet| octet == b'\t').collect();
        let name = if line.eq_ignore_ascii_case(b"INBOX") { Vec::new() } else { parts.join(&b'/') };
        names.insert(MailboxName::new(&name).map_err(|_| refused("a name makes no sense"))?);
    }
    Ok(names)
}

/// Where the link to the active script leads.
fn active(user: &User) -> Option<Vec<u8>> {
    let (file, ..) = user.scripts.iter().find(|(_, _, is_active)| *is_active)?;
    let stem = file.strip_suffix(COMPILED).or_else(|| file.strip_suffix(SCRIPT))?;
    Some(format!("sieve/{stem}{SIEVE}").into_bytes())
}

fn script_key(file: &str) -> Option<FileKey> {
    let stem = file.strip_suffix(SCRIPT)?;
    MailboxName::new(format!("{stem}{SIEVE}").as_bytes()).ok().map(FileKey::Sieve)
}

/// A script's name in Cyrus.
fn stem(name: &MailboxName) -> Result<&str, StoreError> {
    let stem = std::str::from_utf8(name.as_octets()).ok().and_then(|n| n.strip_suffix(SIEVE));
    let stem = stem.filter(|stem| !stem.is_empty() && !stem.contains('/'));
    stem.ok_or_else(|| StoreError::Name {
        name: format!("Sieve script {name}"),
        why: "Cyrus takes scripts that are called NAME.sieve and lie in no folder",
    })
}

#[cfg(test)]
mod tests {
    use mailtwin_logic::ids::Guid;

    use super::*;

    #[test]
    fn subscriptions_in_dovecots_form() {
        let account = Account::new("ann").unwrap();
        let names = ["user.ann", "user.ann.Work.Sub", "user.ben", "user.ann.B"];
        let subscribed_to = names.map(|name| name.as_bytes().to_vec()).to_vec();
        let user = User { subscribed: subscribed_to, ..User::default() };
        let text = subscriptions(&account, &user).unwrap();
        assert_eq!(text, b"V\t2\n\nINBOX\nB\nWork\tSub\n");
        let names: Vec<String> =
            subscribed(Some(&text)).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["INBOX", "B", "Work/Sub"]);
        assert!(subscribed(Some(b"Work\n")).is_err());
        assert_eq!(subscriptions(&account, &User::default()), None);
        let scripts = vec![("a.bc".to_owned(), Guid::default(), true)];
        assert_eq!(active(&User { scripts, ..User::default() }).unwrap(), b"sieve/a.sieve");
    }

    #[test]
    fn names_of_scripts() {
        let good = MailboxName::new(b"main.sieve").unwrap();
        assert_eq!(stem(&good).unwrap(), "main");
        for bad in [&b"main"[..], b"a/b.sieve", b".sieve", b"\xff.sieve"] {
            assert!(stem(&MailboxName::new(bad).unwrap()).is_err());
        }
    }
}
