//! Says whether two servers hold the same mail, as an IMAP client sees it, and the same Sieve
//! scripts, access rights and subscriptions, as they lie on disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
};

use anyhow::Context as _;

use crate::{corpus, files, imap::Imap, lab::Lab, server::Server};

/// Differences that a report lists at most.
const SHOWN_MAX: usize = 40;

/// One account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// LIST: names of mailboxes that can be opened. Others are only places for what is below them;
    /// Dovecot shows them or not, depending on where it takes its list from.
    pub list: BTreeSet<String>,
    /// LSUB.
    pub subscribed: BTreeSet<String>,
    /// Every mailbox that can be opened.
    pub mailboxes: BTreeMap<String, Mailbox>,
    /// Sieve scripts, the active one, access rights: [`Server::beside_messages`].
    pub files: BTreeMap<String, String>,
}

/// One mailbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mailbox {
    /// UIDVALIDITY.
    pub uid_validity: u32,
    /// UIDNEXT.
    pub uid_next: u32,
    /// By UID.
    pub messages: BTreeMap<u32, Message>,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Flags and keywords but `\Recent`, which belongs to sessions. Keywords know no case (RFC 9051
    /// section 2.3.2), so they are in small letters.
    pub flags: BTreeSet<String>,
    /// INTERNALDATE, seconds since 1970.
    pub internal_date: i64,
    /// RFC822.SIZE.
    pub size: u32,
    /// SHA-1 of BODY[].
    pub sha1: String,
    /// Its serial number, if a test gave it one.
    pub serial: Option<String>,
}

impl Account {
    /// Reads all of an account; changes nothing but what looking changes.
    pub fn read(server: &dyn Server, account: &str) -> anyhow::Result<Self> {
        let mut imap = server.imap(account)?;
        let mut state = Self { files: server.beside_messages(account)?, ..Self::default() };
        for name in imap.lsub(None, Some("*")).context("LSUB")?.iter() {
            state.subscribed.insert(name.name().to_owned());
        }
        for name in listed(&mut imap)? {
            match Mailbox::read(&mut imap, &name) {
                Ok(mailbox) => {
                    state.list.insert(name.clone());
                    state.mailboxes.insert(name, mailbox);
                }
                // Its list lags behind when many mailboxes come and go at once.
                Err(error) if is_refusal(&error) => {}
                Err(error) => return Err(error.context(format!("read {account} {name}"))),
            }
        }
        imap.logout().context("LOGOUT")?;
        Ok(state)
    }

    /// Serial numbers of all messages, each as often as it is there.
    pub fn serials(&self) -> BTreeMap<String, usize> {
        let mut serials = BTreeMap::new();
        for message in self.mailboxes.values().flat_map(|mailbox| mailbox.messages.values()) {
            if let Some(serial) = &message.serial {
                *serials.entry(serial.clone()).or_insert(0) += 1;
            }
        }
        serials
    }

    /// What differs, one line each.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.list != other.list {
            found.push(pair("LIST", &self.list, &other.list));
        }
        if self.subscribed != other.subscribed {
            found.push(pair("LSUB", &self.subscribed, &other.subscribed));
        }
        compare_maps("file", &self.files, &other.files, &mut found);
        for (name, mailbox) in &self.mailboxes {
            if let Some(other) = other.mailboxes.get(name) {
                mailbox.compare(name, other, &mut found);
            }
        }
        found
    }
}

impl Mailbox {
    /// Reads a mailbox without selecting it for writing.
    pub fn read(imap: &mut Imap, name: &str) -> anyhow::Result<Self> {
        let opened = imap.examine(name).context("EXAMINE")?;
        let mut mailbox = Self {
            uid_validity: opened.uid_validity.context("the server tells UIDVALIDITY")?,
            uid_next: opened.uid_next.context("the server tells UIDNEXT")?,
            messages: BTreeMap::new(),
        };
        if opened.exists == 0 {
            return Ok(mailbox);
        }
        let what = "(UID FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[])";
        for fetch in imap.uid_fetch("1:*", what).context("UID FETCH")?.iter() {
            // Flag changes of others come in between, without a body.
            let (Some(uid), Some(body)) = (fetch.uid, fetch.body()) else { continue };
            let flags = fetch.flags().iter().map(|flag| flag.to_string().to_ascii_lowercase());
            let message = Message {
                flags: flags.filter(|flag| flag != "\\recent").collect(),
                internal_date: fetch.internal_date().context("INTERNALDATE")?.timestamp(),
                size: fetch.size.context("RFC822.SIZE")?,
                sha1: files::sha1(body),
                serial: corpus::serial(body),
            };
            mailbox.messages.insert(uid, message);
        }
        Ok(mailbox)
    }

    fn compare(&self, name: &str, other: &Self, found: &mut Vec<String>) {
        if self.uid_validity != other.uid_validity {
            found.push(pair(
                &format!("{name}: UIDVALIDITY"),
                &self.uid_validity,
                &other.uid_validity,
            ));
        }
        if self.uid_next != other.uid_next {
            found.push(pair(&format!("{name}: UIDNEXT"), &self.uid_next, &other.uid_next));
        }
        compare_maps(&format!("{name}: UID"), &self.messages, &other.messages, found);
    }
}

/// Names that the server says can be opened.
fn listed(imap: &mut Imap) -> anyhow::Result<Vec<String>> {
    let names = imap.list(None, Some("*")).context("LIST")?;
    let closed = |attribute: &imap_proto::NameAttribute<'_>| {
        matches!(attribute, imap_proto::NameAttribute::NoSelect)
    };
    let open = names.iter().filter(|name| !name.attributes().iter().any(closed));
    Ok(open.map(|name| name.name().to_owned()).collect())
}

/// Whether the server said that there is no such mailbox. The library takes a refusal that names a
/// mailbox in UTF-8 for a BYE; after a real one, the next command fails.
fn is_refusal(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(imap::Error::No(_) | imap::Error::Bye(_)))
}

/// Compares the accounts of two servers now; one line a difference.
pub fn differences(
    left: &dyn Server,
    right: &dyn Server,
    accounts: &[String],
) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for account in accounts {
        // A login makes an INBOX. The copy's first one replaces it, and a Dovecot that has it open
        // at that moment complains.
        if left.has_inbox(account) && !right.has_inbox(account) {
            found.push(format!("{account} is not on {} yet", right.name()));
            continue;
        }
        let here = Account::read(left, account)?;
        let there = Account::read(right, account)?;
        found.extend(here.differences(&there).iter().map(|line| format!("{account} {line}")));
    }
    let more = found.len().saturating_sub(SHOWN_MAX);
    found.truncate(SHOWN_MAX);
    if more > 0 {
        found.push(format!("and {more} more"));
    }
    Ok(found)
}

/// Waits until two servers are equal.
pub fn wait_equal(
    lab: &Lab,
    left: &dyn Server,
    right: &dyn Server,
    accounts: &[String],
) -> anyhow::Result<()> {
    let what = format!("{} equals {}", right.name(), left.name());
    lab.wait(&what, || Ok(look(left, right, accounts)))
}

/// One look for [`Lab::wait`]: what differs is why not yet.
pub fn look(left: &dyn Server, right: &dyn Server, accounts: &[String]) -> Result<(), String> {
    // A mailbox may go while it is being read; that is a difference like any other.
    let found = match differences(left, right, accounts) {
        Ok(found) => found,
        Err(error) => vec![format!("cannot compare: {error:#}")],
    };
    if found.is_empty() { Ok(()) } else { Err(format!("\n  {}", found.join("\n  "))) }
}

fn compare_maps<K: Ord + Debug, V: PartialEq + Debug>(
    what: &str,
    left: &BTreeMap<K, V>,
    right: &BTreeMap<K, V>,
    found: &mut Vec<String>,
) {
    let keys: BTreeSet<&K> = left.keys().chain(right.keys()).collect();
    for key in keys {
        let what = || format!("{what} {key:?}");
        match (left.get(key), right.get(key)) {
            (Some(value), None) => found.push(format!("{}: only left: {value:?}", what())),
            (None, Some(value)) => found.push(format!("{}: only right: {value:?}", what())),
            (Some(here), Some(there)) if here != there => found.push(pair(&what(), here, there)),
            _ => {}
        }
    }
}

fn pair(what: &str, left: &impl Debug, right: &impl Debug) -> String {
    format!("{what}: left {left:?}, right {right:?}")
}
