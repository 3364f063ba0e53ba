//! Fuzz targets of the Maildir engine.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Read as _, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mailtwin_disk::{clock::SystemClock, index::Index};
use mailtwin_logic::{
    digest::Digest,
    ids::{Account, ModSeq, Uid},
    limits::{KEYWORD_OCTETS_MAX, KEYWORDS_MAX},
    mailbox::{FileKey, MailboxName},
};

pub(crate) use super::snapshot::snapshots;
use super::{
    Maildir, MaildirOptions,
    keywords::Table,
    layout::{self, Layout, Pattern},
    names,
    uidlist::{self, Heading, Lines},
};
use crate::{MailStore as _, guid_of};

pub(crate) fn uidlist(input: &[u8]) {
    if let Ok((heading, rest)) = Heading::parse(input) {
        assert!(heading.uid_validity.0 > 0 && heading.next.0 > 0);
        let line = heading.render();
        assert_eq!(line.iter().position(|&octet| octet == b'\n'), Some(line.len() - 1));
        assert_eq!(Heading::parse(&line), Ok((heading, &b""[..])));
        lines(rest);
    }
    lines(input);
    if let Some((keys, base)) = uidlist::parse_hint(input) {
        assert!(names::is_storable(base) && keys.len() <= uidlist::KEYS_OCTETS_MAX);
        let hint = uidlist::hint(&keys, base);
        assert_eq!(uidlist::parse_hint(&hint), Some((keys.clone(), base)));
        // What another node says stays one line of ours.
        let keys = uidlist::with_guid(&keys, base);
        let line = uidlist::render(Uid(7), &keys, base);
        let found = Lines::parse(&line, Uid(0));
        assert_eq!((found.octets, found.read.len()), (line.len(), 1));
        assert_eq!((found.read[0].keys, found.read[0].base), (&keys[..], base));
    }
}

fn lines(content: &[u8]) {
    let found = Lines::parse(content, Uid(0));
    let whole = content.get(..found.octets).expect("no more is read than there is");
    assert!(found.read.is_sorted_by(|a, b| a.uid < b.uid));
    assert!(found.read.iter().all(|line| !line.base.is_empty() && !line.base.contains(&b'\n')));
    let rendered = found.read.iter().map(|line| uidlist::render(line.uid, line.keys, line.base));
    let rendered = rendered.collect::<Vec<_>>().concat();
    let again = Lines::parse(&rendered, Uid(0));
    assert_eq!((&again.read, again.octets, &again.damage), (&found.read, rendered.len(), &None));
    if let Some(last) = found.read.last() {
        assert!(uidlist::ends_with(whole, false, last.uid));
        // From any line on, the rest is read as it was.
        let middle = &found.read[found.read.len() / 2];
        let from = found.read.iter().take_while(|line| line.uid <= middle.uid).count();
        let skipped: usize =
            whole.split_inclusive(|&octet| octet == b'\n').take(from).map(<[u8]>::len).sum();
        assert_eq!(Lines::parse(&whole[skipped..], middle.uid).read, found.read[from..]);
    }
}

pub(crate) fn keywords(input: &[u8]) {
    let table = Table::parse(input);
    let names: Vec<String> = table.names().collect();
    assert!(names.len() <= KEYWORDS_MAX);
    assert!(names.iter().all(|name| name.len() <= KEYWORD_OCTETS_MAX && !name.contains('\n')));
    let again = Table::parse(&table.render());
    assert_eq!(again.names().collect::<Vec<_>>(), names);
    let mask = table.mask(names.iter().map(String::as_str));
    assert_eq!(
        table.mask(table.of_mask(mask).collect::<Vec<_>>().iter().map(String::as_str)),
        mask
    );
    let mut grown = table.clone();
    grown.extend(String::from_utf8_lossy(input).split_whitespace());
    assert!(grown.names().count() <= KEYWORDS_MAX && table.changed(&grown).count_ones() <= 26);
}

pub(crate) fn file_names(input: &[u8]) {
    let (base, letters) = (names::base(input), names::letters(input));
    let name = names::compose(base, &letters);
    let again = names::letters(&name);
    assert_eq!(
        (names::base(&name), again.flags, again.keywords),
        (base, letters.flags, letters.keywords)
    );
    assert_eq!(again.others.len(), letters.others.len());
    assert_eq!(names::compose(base, &again), name);
    if names::is_storable(base) && letters.others.is_empty() {
        assert!(name.len() <= names::NAME_OCTETS_MAX && !name.contains(&b'/'));
    }
    let _ = (names::told_size(input), names::told_time(input));
}

/// Forms of a root, each with what its accounts may be called like.
const ROOTS: [&str; 6] = [
    "/mail/{domain}/{user}/Maildir",
    "/mail/{user}",
    "/mail/.{user}",
    "/mail/{path}",
    "/mail/{user}-{domain}/{user}",
    "/mail",
];

pub(crate) fn places(input: &[u8]) {
    for layout in [Layout::MaildirPlusPlus, Layout::Fs] {
        let Ok(name) = MailboxName::new(input) else { continue };
        let Ok(directory) = layout.directory(&name) else { continue };
        assert_below(&directory);
        let octets = directory.as_os_str().as_encoded_bytes();
        let nested: Vec<u8> = match layout {
            Layout::MaildirPlusPlus => {
                assert!(octets.is_empty() || octets.starts_with(b".") && !octets.contains(&b'/'));
                let flat = octets.strip_prefix(b".").unwrap_or_default();
                flat.iter().map(|&octet| if octet == b'.' { b'/' } else { octet }).collect()
            }
            Layout::Fs => octets.to_vec(),
        };
        assert_eq!(nested, name.as_octets(), "a directory stands for one mailbox");
    }
    for root in ROOTS {
        let root = Pattern::parse(Path::new(root)).expect("it is a root");
        let text = String::from_utf8_lossy(input);
        if let Ok(account) = Account::new(&text)
            && let Ok(place) = root.locate(&account, &root)
        {
            assert_below(&place);
            let home = root.parent().and_then(|home| home.locate(&account, &root).ok());
            if let Some(place) = home {
                assert_below(&place);
            }
        }
    }
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(pattern) = Pattern::parse(Path::new(text))
    {
        assert!(pattern.prefix().is_absolute());
    }
    let printable = layout::encode(input, b"/@");
    assert!(!printable.contains(['/', '@']) && !printable.chars().any(char::is_control));
    assert_eq!(layout::decode(&printable).as_deref(), Some(input));
}

/// A path that cannot lead anywhere but down.
fn assert_below(path: &Path) {
    assert!(
        path.components().all(|part| matches!(part, Component::Normal(_))),
        "{}",
        path.display()
    );
    assert!(!path.as_os_str().as_encoded_bytes().contains(&0));
}

/// Splits one file from the next in what [`mailboxes`] reads.
const SEPARATOR: &[u8] = b"=next=";

/// A store that one mailbox after the other is looked at in.
struct Site {
    dir: tempfile::TempDir,
    store: Maildir,
    accounts: AtomicU64,
}

/// Accounts in one store. It remembers those that are gone, some 3 KB each.
const ACCOUNTS_MAX: u64 = 4096;

/// The store, and the name of an account that it never had.
fn site() -> (Arc<Site>, String) {
    static SITE: Mutex<Option<Arc<Site>>> = Mutex::new(None);
    let mut held = SITE.lock().unwrap_or_else(PoisonError::into_inner);
    let site = held.get_or_insert_with(|| Arc::new(Site::new())).clone();
    let number = site.accounts.fetch_add(1, Ordering::Relaxed);
    if number + 1 == ACCOUNTS_MAX {
        *held = None;
    }
    (site, format!("u{number}"))
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("there is room");
        let (mail, record) = (dir.path().join("mail/{user}"), dir.path().join("identity"));
        fs::create_dir(dir.path().join("mail")).expect("there is room");
        let (index, _) = Index::open(&dir.path().join("index")).expect("there is room");
        let options = MaildirOptions {
            assigns_uids: true,
            lock_patience: Duration::from_millis(1),
            ..MaildirOptions::new(&mail, &record)
        };
        let store = Maildir::open(options, index, SystemClock::shared());
        Self { dir, store: store.expect("it is a store"), accounts: AtomicU64::new(0) }
    }
}

pub(crate) fn mailboxes(input: &[u8]) {
    let (site, name) = site();
    let root = site.dir.path().join("mail").join(&name);
    for dir in ["cur", "new", "tmp", ".Work/cur"] {
        fs::create_dir_all(root.join(dir)).expect("there is room");
    }
    let mut files = split(input, SEPARATOR);
    for name in ["dovecot-uidlist", "dovecot-keywords", "subscriptions", ".Work/dovecot-uidlist"] {
        let content = files.next().unwrap_or_default();
        write(&root.join(name), content).expect("there is room");
    }
    for (number, name) in files.take(8).enumerate() {
        let name = OsStr::from_bytes(name.get(..name.len().min(255)).unwrap_or_default());
        if !name.as_bytes().iter().any(|&octet| matches!(octet, b'/' | 0)) {
            // It may be no name, or be there already.
            let _ = write(&root.join("cur").join(name), number.to_string().as_bytes());
        }
    }
    look(&site.store, &Account::new(&name).expect("it is a name"));
    fs::remove_dir_all(&root).expect("it is ours");
    look(&site.store, &Account::new(&name).expect("it is a name"));
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::File::create(path)?.write_all(content)
}

fn split<'a>(input: &'a [u8], separator: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = Some(input);
    std::iter::from_fn(move || {
        let octets = rest.take()?;
        match octets.windows(separator.len()).position(|part| part == separator) {
            Some(at) => {
                rest = octets.get(at + separator.len()..);
                octets.get(..at)
            }
            None => Some(octets),
        }
    })
}

/// All that is shown hangs together.
fn look(store: &Maildir, account: &Account) {
    let Ok(Some(listing)) = store.account(account) else { return };
    for mailbox in &listing.state.mailboxes {
        let Ok(delta) = store.delta(account, mailbox.id, ModSeq(0)) else { continue };
        let head = delta.state.head;
        assert_eq!(delta.records.len(), head.messages as usize);
        assert!(delta.records.is_sorted_by(|a, b| a.uid < b.uid));
        assert!(delta.records.iter().all(|record| record.uid < head.uid_next));
        let mut digest = Digest::default();
        delta.records.iter().for_each(|record| digest.add(record));
        assert_eq!(digest, head.digest);
        for record in &delta.records {
            // It is there, or it cannot be read: it is never another.
            let Ok(mut octets) = store.open(account, mailbox.id, record.uid) else { continue };
            let mut content = Vec::new();
            octets.read_to_end(&mut content).expect("it is a file");
            assert_eq!(guid_of(&content), record.guid);
        }
    }
    let _ = store.file(account, &FileKey::Subscriptions);
}
