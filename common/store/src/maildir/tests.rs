//! The engine on real directories, with a mail server and its clients played on the files.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mailtwin_disk::{
    clock::{Clock, SystemClock},
    index::Index,
};
use mailtwin_logic::{
    ids::{Account, Guid, Uid},
    mailbox::{FileKey, Flags, MailboxName},
};

use super::{
    Layout, Maildir, MaildirOptions, keywords, names, random_id,
    uidlist::{Heading, Lines},
};
use crate::{
    MailStore, StoreError,
    conformance::{KEEP, ManualClock, Subject},
    guid_of,
};

mod master;
mod replica;

/// A Maildir tree in a temporary directory, and what Dovecot, delivery agents and administrators do
/// to it.
#[derive(Debug)]
pub(super) struct Site {
    temporary: tempfile::TempDir,
    layout: Layout,
    serial: AtomicU64,
}

impl Site {
    pub(super) fn new(layout: Layout) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        fs::create_dir(temporary.path().join("mail")).unwrap();
        Self { temporary, layout, serial: AtomicU64::new(0) }
    }

    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.temporary.path().join(path)
    }

    /// Options of a replica.
    pub(super) fn options(&self) -> MaildirOptions {
        MaildirOptions {
            layout: self.layout,
            graveyard: KEEP,
            lock_patience: Duration::from_millis(50),
            ..MaildirOptions::new(&self.at("mail/{user}/Maildir"), &self.at("identity"))
        }
    }

    /// Opens the store with the index called `index`, so that one can be lost.
    pub(super) fn open(
        &self,
        options: MaildirOptions,
        index: &str,
        clock: Arc<dyn Clock>,
    ) -> Result<Maildir, StoreError> {
        let (index, _) = Index::open(&self.at(index)).unwrap();
        Maildir::open(options, index, clock)
    }

    /// Opens it as a master, on real time.
    pub(super) fn master(&self) -> Maildir {
        let options = MaildirOptions { assigns_uids: true, ..self.options() };
        self.open(options, "index", SystemClock::shared()).unwrap()
    }

    /// Opens it as a replica, on real time.
    pub(super) fn replica(&self) -> Maildir {
        self.open(self.options(), "index", SystemClock::shared()).unwrap()
    }

    pub(super) fn mailbox(&self, account: &Account, name: &MailboxName) -> PathBuf {
        let root = self.temporary.path().join("mail").join(account.as_str()).join("Maildir");
        root.join(self.layout.directory(name).unwrap())
    }

    fn is_there(&self, account: &Account, name: &MailboxName) -> bool {
        self.mailbox(account, name).join("cur").is_dir()
    }

    /// Puts a message into `new/`, without a UID; returns its base name.
    pub(super) fn drop_in(&self, account: &Account, name: &MailboxName, octets: &[u8]) -> String {
        let mailbox = self.mailbox(account, name);
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let base = format!("17{serial:08}.M{serial}P1.host,S={}", octets.len());
        write(&mailbox.join("tmp").join(&base), octets);
        fs::rename(mailbox.join("tmp").join(&base), mailbox.join("new").join(&base)).unwrap();
        base
    }

    pub(super) fn list(&self, account: &Account, name: &MailboxName) -> String {
        fs::read_to_string(self.mailbox(account, name).join("dovecot-uidlist")).unwrap()
    }

    pub(super) fn append(&self, account: &Account, name: &MailboxName, line: &str) {
        let path = self.mailbox(account, name).join("dovecot-uidlist");
        let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }

    /// The file of a message, wherever it lies.
    pub(super) fn file(&self, account: &Account, name: &MailboxName, uid: Uid) -> Option<PathBuf> {
        let list = self.list(account, name);
        let (_, rest) = Heading::parse(list.as_bytes()).unwrap();
        let lines = Lines::parse(rest, Uid(0)).read;
        let base = lines.iter().find(|line| line.uid == uid)?.base;
        let base = std::str::from_utf8(base).unwrap();
        let names = self.names(account, name);
        let file = names.iter().find(|name| name[4..].split(':').next() == Some(base))?;
        Some(self.mailbox(account, name).join(file))
    }

    /// Everything in `cur/` and `new/`, in order.
    pub(super) fn names(&self, account: &Account, name: &MailboxName) -> Vec<String> {
        let mailbox = self.mailbox(account, name);
        let mut names = Vec::new();
        for dir in ["cur", "new"] {
            for entry in fs::read_dir(mailbox.join(dir)).unwrap() {
                names.push(format!("{dir}/{}", entry.unwrap().file_name().to_str().unwrap()));
            }
        }
        names.sort_unstable();
        names
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's files need not be durable")]
pub(super) fn write(path: &Path, octets: &[u8]) {
    fs::write(path, octets).unwrap();
}

pub(super) fn ann() -> Account {
    Account::new("ann").unwrap()
}

pub(super) fn name(text: &str) -> MailboxName {
    MailboxName::new(text.as_bytes()).unwrap()
}

/// A site whose store is open, on a clock that tests turn.
struct Opened {
    // Goes before the directory it lives in.
    store: Maildir,
    clock: Arc<ManualClock>,
    site: Site,
}

impl Opened {
    fn boxed(layout: Layout) -> Box<dyn Subject> {
        let (site, clock) = (Site::new(layout), Arc::new(ManualClock::new()));
        let store = site.open(site.options(), "index", clock.clone()).unwrap();
        Box::new(Self { store, clock, site })
    }
}

impl Subject for Opened {
    fn store(&self) -> &dyn MailStore {
        &self.store
    }

    fn deliver(&self, account: &Account, mailbox: &MailboxName, octets: &[u8]) {
        self.site.deliver(account, mailbox, octets);
    }

    fn set_flags(&self, at: (&Account, &MailboxName, Uid), flags: Flags, keywords: &[&str]) {
        self.site.set_flags(at, flags, keywords);
    }

    fn expunge(&self, account: &Account, mailbox: &MailboxName, uid: Uid) {
        if let Some(file) = self.site.file(account, mailbox, uid) {
            fs::remove_file(file).unwrap();
        }
    }

    fn damage(&self, (account, name, uid): (&Account, &MailboxName, Uid), octets: &[u8]) {
        let Some(path) = self.site.file(account, name, uid) else { return };
        let date = fs::metadata(&path).unwrap().modified().unwrap();
        let file = fs::File::options().write(true).truncate(true).open(path).unwrap();
        (&file).write_all(octets).unwrap();
        file.set_modified(date).unwrap();
    }

    fn create(&self, account: &Account, mailbox: &MailboxName) {
        self.site.create(account, mailbox);
    }

    fn rename(&self, account: &Account, from: &MailboxName, to: &MailboxName) {
        self.site.rename(account, from, to);
    }

    fn delete(&self, account: &Account, mailbox: &MailboxName) {
        let mailbox = self.site.mailbox(account, mailbox);
        for dir in ["cur", "new", "tmp"] {
            fs::remove_dir_all(mailbox.join(dir)).unwrap();
        }
        let below = fs::read_dir(&mailbox).unwrap().map(|entry| entry.unwrap());
        for file in below.filter(|entry| entry.file_type().unwrap().is_file()) {
            fs::remove_file(file.path()).unwrap();
        }
        // Others may stand below it.
        let _ = fs::remove_dir(mailbox);
    }

    fn write_file(&self, account: &Account, key: &FileKey, content: Option<&[u8]>) {
        let root = self.site.mailbox(account, &MailboxName::inbox());
        let path = match key {
            FileKey::Subscriptions => root.join("subscriptions"),
            FileKey::Acl(name) => self.site.mailbox(account, name).join("dovecot-acl"),
            FileKey::Sieve(_)
            | FileKey::SieveActive
            | FileKey::Annotations(_)
            | FileKey::Quota
            | FileKey::Seen
            | FileKey::SubscribedOfOthers => panic!("no test does so"),
        };
        match content {
            Some(content) => write(&path, content),
            None => drop(fs::remove_file(path)),
        }
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    fn buried(&self) -> Vec<Guid> {
        let (mut found, mut open) = (Vec::new(), vec![self.site.at("mail/.mailtwin/graveyard")]);
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                let last = path.file_name().unwrap().to_str().unwrap();
                if path.is_dir() {
                    open.push(path);
                } else if last.starts_with(|c: char| c.is_ascii_digit()) {
                    found.push(guid_of(&fs::read(path).unwrap()));
                }
            }
        }
        found
    }
}

impl Site {
    pub(super) fn deliver(&self, account: &Account, name: &MailboxName, octets: &[u8]) {
        if !self.is_there(account, name) {
            return;
        }
        let base = self.drop_in(account, name, octets);
        let list = self.list(account, name);
        let (heading, rest) = Heading::parse(list.as_bytes()).unwrap();
        let lines = Lines::parse(rest, Uid(0)).read;
        let uid = lines.last().map_or(heading.next, |line| heading.next.max(line.uid.next()));
        self.append(account, name, &format!("{uid} :{base}\n"));
    }

    pub(super) fn set_flags(
        &self,
        (account, name, uid): (&Account, &MailboxName, Uid),
        flags: Flags,
        words: &[&str],
    ) {
        if !self.is_there(account, name) {
            return;
        }
        let Some(file) = self.file(account, name, uid) else { return };
        let mailbox = self.mailbox(account, name);
        let path = mailbox.join("dovecot-keywords");
        let held = keywords::Table::parse(&fs::read(&path).unwrap_or_default());
        let mut table = held.clone();
        table.extend(words.iter().copied());
        if table != held {
            write(&path.with_extension("tmp"), &table.render());
            fs::rename(path.with_extension("tmp"), &path).unwrap();
        }
        let keywords = table.mask(words.iter().copied());
        let letters = names::Letters { flags, keywords, others: Vec::new() };
        let base = names::base(file.file_name().unwrap().as_encoded_bytes()).to_vec();
        let to = String::from_utf8(names::compose(&base, &letters)).unwrap();
        fs::rename(&file, mailbox.join("cur").join(to)).unwrap();
    }

    pub(super) fn create(&self, account: &Account, name: &MailboxName) {
        if self.is_there(account, name) {
            return;
        }
        let mailbox = self.mailbox(account, name);
        for dir in ["new", "tmp", "cur"] {
            fs::create_dir_all(mailbox.join(dir)).unwrap();
        }
        let heading = format!("3 V1700000000 N1 G{}\n", random_id().unwrap());
        write(&mailbox.join("dovecot-uidlist"), heading.as_bytes());
    }

    pub(super) fn rename(&self, account: &Account, from: &MailboxName, to: &MailboxName) {
        let (octets, target) = (from.as_octets(), to.as_octets());
        let inside = target.starts_with(octets) && target.get(octets.len()) == Some(&b'/');
        if from.is_inbox() || to.is_inbox() || from == to || inside {
            return;
        }
        let root = self.mailbox(account, &MailboxName::inbox());
        let dir = super::fsys::Dir::open(&root).unwrap().unwrap();
        let all = self.layout.mailboxes(&dir, &mut Vec::new()).unwrap();
        let below = |name: &MailboxName| {
            let rest = name.as_octets().strip_prefix(octets)?;
            (rest.is_empty() || rest.starts_with(b"/")).then(|| [target, rest].concat())
        };
        let moves: Vec<_> = all.iter().filter_map(|name| Some((name, below(name)?))).collect();
        let targets = moves.iter().map(|(_, to)| MailboxName::new(to).unwrap());
        if targets.clone().any(|to| self.mailbox(account, &to).exists()) {
            return;
        }
        if self.layout == Layout::Fs {
            let to = self.mailbox(account, to);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::rename(self.mailbox(account, from), to).unwrap();
            return;
        }
        for ((from, _), to) in moves.iter().zip(targets) {
            fs::rename(self.mailbox(account, from), self.mailbox(account, &to)).unwrap();
        }
    }
}

mod flat {
    use super::*;

    crate::conformance!(|case: crate::conformance::Case| case(&|| Opened::boxed(
        Layout::MaildirPlusPlus
    )));
}

mod nested {
    use super::*;

    crate::conformance!(|case: crate::conformance::Case| case(&|| Opened::boxed(Layout::Fs)));
}
