//! What only Cyrus has, as files: annotations, quota limits, and what of mailboxes of others a user has
//! seen and subscribed to.
//!
//! A file is one map of the replication protocol to a line, in the protocol's own form
//! ([`mailtwin_cyrus::dlist`]), lines sorted. A Maildir keeps it without a look at it.

use std::collections::{BTreeMap, BTreeSet};

use mailtwin_cyrus::{
    Value,
    names::{self, Named},
};
use mailtwin_logic::{
    ids::{Account, Uid},
    limits::FILE_OCTETS_MAX,
    mailbox::MailboxName,
};

use super::{
    Cell, Cyrus, files,
    server::User,
    snapshot::{Snapshot, message_of},
};
use crate::StoreError;

/// What Cyrus says for a limit that is none.
const UNLIMITED: u64 = u32::MAX as u64;

/// Options of a mailbox that nobody has set any for.
const OPTIONS: &[u8] = b"P";

/// Keys of a quota that say nothing of a limit, or what another says, too.
const NO_LIMITS: [&str; 4] = ["ROOT", "FOLDER", "LIMIT", "MODSEQ"];

/// Annotations by entry and userid; an empty userid is for values that all users share.
type Notes = BTreeMap<(Vec<u8>, Vec<u8>), Vec<u8>>;

/// What a mailbox has beside its messages, and they beside their octets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Extras {
    /// Letters, other than [`OPTIONS`].
    options: Option<Vec<u8>>,
    /// Of the mailbox.
    own: Notes,
    messages: BTreeMap<Uid, Notes>,
}

impl Extras {
    fn of(snapshot: &Snapshot) -> Self {
        let fields = &snapshot.mailbox.fields;
        let own = fields.iter().find(|(key, _)| key == "ANNOTATIONS");
        let options = Some(snapshot.mailbox.options());
        let messages = snapshot.annotations().map(|(uid, list)| (uid, notes(list)));
        Self {
            options: options.filter(|options| *options != OPTIONS).map(<[u8]>::to_vec),
            own: own.map(|(_, list)| notes(list)).unwrap_or_default(),
            messages: messages.filter(|(_, notes)| !notes.is_empty()).collect(),
        }
    }

    fn lines(&self) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        lines.extend(self.options.iter().map(|text| vec![("OPTIONS", Value::text(text))]));
        let one = |uid: Option<Uid>, ((entry, user), value): (&(Vec<u8>, Vec<u8>), &Vec<u8>)| {
            let uid = uid.map(|uid| ("UID", Value::number(uid)));
            let texts = [("ENTRY", entry), ("USERID", user), ("VALUE", value)];
            uid.into_iter().chain(texts.map(|(key, text)| (key, Value::text(text)))).collect()
        };
        lines.extend(self.own.iter().map(|note| one(None, note)));
        for (uid, notes) in &self.messages {
            lines.extend(notes.iter().map(|note| one(Some(*uid), note)));
        }
        lines.into_iter().map(line).collect()
    }

    fn parse(content: &[u8]) -> Result<Self, &'static str> {
        let mut extras = Self::default();
        for map in maps(content)? {
            if let Some(options) = map.text_of("OPTIONS") {
                extras.options = Some(options.to_vec());
                continue;
            }
            let text = |key| map.text_of(key).map(<[u8]>::to_vec);
            let (Some(entry), Some(user), Some(value)) =
                (text("ENTRY"), text("USERID"), text("VALUE"))
            else {
                return Err("a line is no annotation");
            };
            let uid = || map.number_of("UID").and_then(|uid| u32::try_from(uid).ok());
            let notes = if map.get("UID").is_none() {
                &mut extras.own
            } else {
                extras.messages.entry(Uid(uid().ok_or("a line has no valid UID")?)).or_default()
            };
            notes.insert((entry, user), value);
        }
        Ok(extras)
    }
}

/// The file of a mailbox's annotations; `None` if there are none, or more than are replicated.
pub(super) fn annotations(snapshot: &Snapshot) -> Option<Vec<u8>> {
    if !snapshot.is_annotated() {
        return None;
    }
    let content = joined(Extras::of(snapshot).lines())?;
    (content.len() as u64 <= FILE_OCTETS_MAX).then_some(content)
}

/// The file of a user's quota limits; `None` if there are none.
pub(super) fn quota(account: &Account, quotas: &[Value]) -> Option<Vec<u8>> {
    let lines = quotas.iter().filter_map(|quota| {
        let Named::Folder { user, folder } = names::meaning(quota.text_of("ROOT")?) else {
            return None;
        };
        let limits = limits(quota);
        if user != account.as_str() || limits.is_empty() {
            return None;
        }
        let folder = ("FOLDER", Value::text(folder));
        Some(line([folder].into_iter().chain(limits).collect()))
    });
    joined(lines.collect())
}

/// The file of what a user has seen in mailboxes of others; `None` if that is nothing.
pub(super) fn seen(user: &User) -> Option<Vec<u8>> {
    joined(user.seen.iter().map(encode).collect())
}

/// The file of a user's subscriptions to mailboxes of others; `None` if there are none.
pub(super) fn subscribed(account: &Account, user: &User) -> Option<Vec<u8>> {
    let others = user.subscribed.iter().filter(|name| !files::is_own(account, name));
    joined(others.map(|name| line(vec![("MBOXNAME", Value::text(name))])).collect())
}

/// What such a file means.
pub(super) fn subscribed_in(
    account: &Account,
    content: Option<&[u8]>,
) -> Result<BTreeSet<Vec<u8>>, StoreError> {
    let refused =
        |why| StoreError::Name { name: format!("subscriptions of {account} to others"), why };
    let maps = maps(content.unwrap_or_default()).map_err(refused)?;
    let names = maps.iter().map(|map| map.text_of("MBOXNAME").map(<[u8]>::to_vec));
    let names = names.collect::<Option<BTreeSet<_>>>();
    let names = names.ok_or_else(|| refused("a line has no MBOXNAME"))?;
    if names.iter().any(|name| files::is_own(account, name)) {
        return Err(refused("one is the user's own"));
    }
    Ok(names)
}

/// The limits of a quota, by resource.
fn limits(quota: &Value) -> Vec<(&str, Value)> {
    let Value::Map(fields) = quota else { return Vec::new() };
    let fields = fields.iter().map(|(key, value)| (&key[..], value.clone()));
    let is_limit = |(key, _): &(&str, Value)| {
        !NO_LIMITS.contains(key) && quota.number_of(key).is_some_and(|limit| limit < UNLIMITED)
    };
    fields.filter(is_limit).collect()
}

impl Cyrus {
    /// Makes the annotations of a mailbox and its messages those of `content`; tells whether all are
    /// there that can be for now. Of messages that are not here, none is.
    pub(super) fn annotate(
        &self,
        account: &Account,
        cell: &mut Cell,
        name: &MailboxName,
        content: Option<&[u8]>,
    ) -> Result<bool, StoreError> {
        let refused =
            |why| StoreError::Name { name: format!("annotations of {account}/{name}"), why };
        let wanted = Extras::parse(content.unwrap_or_default()).map_err(refused)?;
        let Some(snapshot) = self.find_one(account, cell, name)? else {
            if content.is_none() {
                return Ok(true);
            }
            return Err(StoreError::NotFound { what: format!("mailbox {account}/{name}") });
        };
        let last = Uid(snapshot.mailbox.last_uid);
        let is_whole = wanted.messages.keys().all(|uid| *uid <= last);
        let before = snapshot.mailbox.clone();
        let held = Extras::of(snapshot);
        let mut after = before.clone();
        after.highest_modseq = before.highest_modseq.saturating_add(1);
        let modseq = after.highest_modseq;
        let options = wanted.options.as_deref().unwrap_or(OPTIONS);
        after.fields.retain(|(key, _)| key != "OPTIONS" && key != "ANNOTATIONS");
        after.fields.push(("OPTIONS".to_owned(), Value::text(options)));
        after.fields.push(("ANNOTATIONS".to_owned(), list(&wanted.own, 0)));
        let none = Notes::new();
        let mut records = Vec::new();
        for record in snapshot.records() {
            let of = |extras: &Extras| extras.messages.get(&record.uid).cloned();
            let (wanted, held) = (of(&wanted), of(&held));
            if wanted != held {
                let annotations = Some(list(wanted.as_ref().unwrap_or(&none), modseq));
                let mut message = message_of(record, modseq);
                message.annotations = annotations;
                records.push(message.value(self.clock.unix_ms() / 1000));
            }
        }
        let is_same = (&held.options, &held.own) == (&wanted.options, &wanted.own);
        if !is_same || !records.is_empty() {
            self.server.bring(&before.name, &[], &after.value(records, Some(&before)), None)?;
        }
        Ok(is_whole)
    }

    /// Makes a user's quota limits those of `content`.
    pub(super) fn limit(
        &self,
        account: &Account,
        cell: &mut Cell,
        content: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let refused = |why| StoreError::Name { name: format!("quota of {account}"), why };
        let mut wanted = BTreeMap::new();
        for map in maps(content.unwrap_or_default()).map_err(refused)? {
            let folder = map.text_of("FOLDER").and_then(|folder| MailboxName::new(folder).ok());
            let folder = folder.ok_or_else(|| refused("a line has no valid FOLDER"))?;
            wanted.insert(self.internal(account, cell, &folder)??, map);
        }
        if !wanted.is_empty() && self.server.options.inbox_first {
            self.ensure_inbox(account, cell)?;
        }
        for quota in &self.quotas(account, cell)? {
            let root = quota.text_of("ROOT").unwrap_or_default();
            match wanted.get(root) {
                Some(map) if limits(map) == limits(quota) => drop(wanted.remove(root)),
                Some(_) => {}
                None => self.server.apply("remove quota", "UNQUOTA", &Value::text(root))?,
            }
        }
        for (root, map) in wanted {
            let storage = map.number_of("STORAGE").unwrap_or(UNLIMITED);
            let mut fields = vec![("ROOT", Value::text(root)), ("LIMIT", Value::number(storage))];
            fields.extend(limits(&map));
            let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value));
            self.server.apply("set quota", "QUOTA", &Value::Map(fields.collect()))?;
        }
        Ok(())
    }

    /// Quotas of the roots of an account's mailboxes.
    pub(super) fn quotas(&self, account: &Account, cell: &Cell) -> Result<Vec<Value>, StoreError> {
        let listed = self.listed(account, cell)?;
        Ok(self.server.mailboxes(account.as_str(), &listed)?.quotas)
    }

    /// Makes what a user has seen in mailboxes of others that of `content`, as far as it tells.
    pub(super) fn mark_seen(
        &self,
        account: &Account,
        cell: &Cell,
        content: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let refused = |why| StoreError::Name { name: format!("seen state of {account}"), why };
        let held: BTreeSet<Vec<u8>> = self.meta(account, cell)?.seen.iter().map(encode).collect();
        for map in maps(content.unwrap_or_default()).map_err(refused)? {
            let Value::Map(fields) = &map else { continue };
            if map.text_of("UNIQUEID").is_none() || held.contains(&encode(&map)) {
                continue;
            }
            let who = ("USERID".to_owned(), Value::text(account.as_str()));
            let fields = fields.iter().filter(|(key, _)| key != "USERID").cloned();
            let value = Value::Map([who].into_iter().chain(fields).collect());
            self.server.apply("set seen state", "SEEN", &value)?;
        }
        Ok(())
    }
}

fn notes(list: &Value) -> Notes {
    let each = list.as_list().unwrap_or_default().iter().filter_map(|one| {
        let text = |key| one.text_of(key).map(<[u8]>::to_vec);
        Some(((text("ENTRY")?, text("USERID").unwrap_or_default()), text("VALUE")?))
    });
    each.collect()
}

fn list(notes: &Notes, modseq: u64) -> Value {
    let one = |((entry, user), value): (&(Vec<u8>, Vec<u8>), &Vec<u8>)| {
        Value::map([
            ("ENTRY", Value::text(entry)),
            ("USERID", Value::text(user)),
            ("MODSEQ", Value::number(modseq)),
            ("VALUE", Value::text(value)),
        ])
    };
    Value::List(notes.iter().map(one).collect())
}

fn encode(value: &Value) -> Vec<u8> {
    let mut octets = Vec::new();
    value.encode(&mut octets);
    octets.push(b'\n');
    octets
}

fn line(fields: Vec<(&str, Value)>) -> Vec<u8> {
    encode(&Value::Map(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()))
}

fn joined(mut lines: Vec<Vec<u8>>) -> Option<Vec<u8>> {
    lines.sort();
    (!lines.is_empty()).then(|| lines.concat())
}

/// The maps of a file.
fn maps(mut content: &[u8]) -> Result<Vec<Value>, &'static str> {
    let mut maps = Vec::new();
    while !content.is_empty() {
        let value = Value::parse(&mut content).map_err(|_| "a line is not well-formed")?;
        let (Value::Map(_), Some(rest)) = (&value, content.strip_prefix(b"\n")) else {
            return Err("a line is not well-formed");
        };
        content = rest;
        maps.push(value);
    }
    Ok(maps)
}

/// What is read is written so that it is read as the same.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    let Ok(extras) = Extras::parse(input) else { return };
    let content = joined(extras.lines()).unwrap_or_default();
    assert_eq!(Extras::parse(&content), Ok(extras));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let note = |entry: &str, value: &[u8]| {
            (((entry.as_bytes().to_vec()), b"ann".to_vec()), value.to_vec())
        };
        let extras = Extras {
            options: Some(b"PS".to_vec()),
            own: [note("/comment", b"a \"b\"\r\n)\0\xff"), note("/specialuse", b"\\Sent")].into(),
            messages: [(Uid(7), [note("/comment", b"")].into())].into(),
        };
        let content = joined(extras.lines()).unwrap();
        assert_eq!(Extras::parse(&content), Ok(extras));
        let fine = b"%(ENTRY a USERID b VALUE c)\n";
        assert!(Extras::parse(fine).is_ok());
        for odd in [
            &b"%(ENTRY a USERID b VALUE c)"[..],
            b"%(ENTRY a USERID b)\n",
            b"(ENTRY a USERID b VALUE c)\n",
            b"%(UID -1 ENTRY a USERID b VALUE c)\n",
            b"%(UID 4294967296 ENTRY a USERID b VALUE c)\n",
            b"%(ENTRY a",
        ] {
            assert!(Extras::parse(odd).is_err(), "{}", odd.escape_ascii());
        }
    }

    #[test]
    fn limits_that_are_none_are_left_out() {
        let quotas = [
            "%(ROOT user.ann.Work LIMIT 9 STORAGE 9 MESSAGE 4294967295 MODSEQ 15)",
            "%(ROOT user.ann LIMIT 4294967295 STORAGE 4294967295 MODSEQ 15)",
            "%(ROOT user.ben LIMIT 9 STORAGE 9 MODSEQ 15)",
        ];
        let quotas = quotas.map(|text| Value::parse(&mut text.as_bytes()).unwrap());
        let content = quota(&Account::new("ann").unwrap(), &quotas);
        assert_eq!(content.unwrap(), b"%(FOLDER Work STORAGE 9)\n");
    }
}
