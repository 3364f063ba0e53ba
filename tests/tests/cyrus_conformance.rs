//! The contract of `MailStore` on a live Cyrus: the cases that every engine passes, each on servers of
//! its own.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use mailtwin_cyrus::{
    Command, Dialect, File, Link, Login, Place, Value,
    mailbox::{EXPUNGED, Mailbox, Message, guid_text},
    names,
};
use mailtwin_disk::{clock::SystemClock, index::Index};
use mailtwin_logic::{
    ids::{Account, Guid, ModSeq, Uid, UidValidity},
    mailbox::{FileKey, Flags, Head, MailboxName},
    plan::Mode,
};
use mailtwin_store::{
    Batch, Destination, MailStore, StoreError,
    conformance::{Case, ManualClock, Subject},
    cyrus::{Cyrus as Store, CyrusOptions},
    guid_of,
};
use mailtwin_tests::{
    cyrus::{ADMIN, Cyrus},
    dovecot::PASSWORD,
    lab::Lab,
};

mailtwin_store::conformance!(on_cyrus);

fn on_cyrus(case: Case) {
    let made = Mutex::new(0);
    let run = Lab::run(|lab| {
        case(&|| Box::new(OnCyrus::new(lab, &made).expect("a Cyrus")));
        Ok(())
    });
    run.expect("the lab");
}

#[test]
fn a_masters_mailbox_is_not_made_anew_under_its_clients() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let subject = OnCyrus::with_role(lab, &Mutex::new(0), true)?;
        let (account, name) = (Account::new("u1")?, MailboxName::new(b"Work")?);
        subject.create(&account, &name);
        subject.deliver(&account, &name, b"Subject: stays\r\n\r\n");
        let before = subject.store.find(&account, &name)?.context("the mailbox")?;
        let batch = Batch {
            modseq: ModSeq(0),
            to: Destination {
                account: account.clone(),
                mailbox: before.id,
                name,
                mode: Mode::Repair,
            },
            expect: Some(before.head),
            target: Head { uid_validity: UidValidity(7), ..before.head },
            keywords: Vec::new(),
            changes: Vec::new(),
            staged: Vec::new(),
            last: true,
        };
        let refused = subject.store.apply(vec![batch]).remove(0);
        ensure!(matches!(refused, Err(StoreError::UnderClients { .. })), "{refused:?}");
        let after = subject.store.find(&account, &before.name)?;
        ensure!(after.as_ref() == Some(&before), "{after:?}");
        Ok(())
    })
}

/// A Cyrus, our engine beside it, and a client that changes mail as the server itself would.
struct OnCyrus {
    store: Store,
    /// Writes files as another program would.
    other: Store,
    clock: Arc<ManualClock>,
    link: Mutex<Link>,
    spool: PathBuf,
    made: Mutex<u8>,
    // Last, so that it outlives connections.
    _cyrus: Cyrus,
}

impl OnCyrus {
    fn new(lab: &Lab, made: &Mutex<u32>) -> anyhow::Result<Self> {
        Self::with_role(lab, made, false)
    }

    fn with_role(lab: &Lab, made: &Mutex<u32>, is_master: bool) -> anyhow::Result<Self> {
        let mut made = made.lock().expect("no panic while it is held");
        *made += 1;
        let cyrus = Cyrus::start(lab, &format!("cyrus{made}"))?;
        let dir = lab.dir().join(format!("state{made}"));
        let clock = Arc::new(ManualClock::new());
        let (user, password) = (ADMIN.to_owned(), PASSWORD.to_owned());
        let login = Login { user, password, certificate: None };
        let csync = Place::Tcp(cyrus.csync_address());
        let open = |name: &str| -> anyhow::Result<Store> {
            let dir = dir.join(name);
            fs::create_dir_all(&dir)?;
            let (index, _) = Index::open(&dir.join("index"))?;
            let servers = (Place::Tcp(cyrus.imap_address()), csync.clone());
            let (root, channel) = (cyrus.spool(), cyrus.channel());
            let options = CyrusOptions {
                is_master,
                inbox_first: false,
                ..CyrusOptions::new(servers, login.clone(), &channel, &root, &dir)
            };
            Ok(Store::open(options, index, clock.clone())?)
        };
        let link = Link::open(&csync, Dialect::Csync, &login, SystemClock::shared())?;
        Ok(Self {
            store: open("ours")?,
            other: open("other")?,
            clock,
            link: Mutex::new(link),
            spool: cyrus.spool(),
            made: Mutex::new(0),
            _cyrus: cyrus,
        })
    }

    fn apply(&self, name: &str, value: &Value) {
        let mut link = self.link.lock().expect("no panic while it is held");
        link.run(&Command::Apply(name, value)).expect("Cyrus does it");
    }

    fn full(&self, at: &[u8]) -> Option<(Mailbox, Vec<Message>)> {
        let mut link = self.link.lock().expect("no panic while it is held");
        let answers = link.run(&Command::Get("FULLMAILBOX", &Value::text(at))).ok()?;
        let value = answers.first()?.values.first()?;
        let records = value.get("RECORD").and_then(Value::as_list).unwrap_or_default();
        let messages = records.iter().map(|record| Message::parse(record).expect("a record"));
        let live = messages.filter(|message| !message.is_expunged()).collect();
        let mailbox = Mailbox::parse(value).expect("a mailbox");
        (!mailbox.is_intermediate()).then_some((mailbox, live))
    }

    /// Brings a mailbox to another state; nothing happens if it is not there.
    fn change(&self, at: &[u8], change: impl FnOnce(&mut Mailbox, &[Message]) -> Vec<Message>) {
        let Some((mut mailbox, messages)) = self.full(at) else { return };
        mailbox.highest_modseq += 1;
        let changed = change(&mut mailbox, &messages);
        let records = changed.iter().map(|message| message.value(1_700_000_000)).collect();
        self.apply("MAILBOX", &mailbox.value(records, None));
    }

    fn make(&self, at: Vec<u8>, account: &Account) {
        if self.full(&at).is_some() {
            return;
        }
        let mut made = self.made.lock().expect("no panic while it is held");
        *made += 1;
        let mut id = guid_of(format!("{} {made}", self.spool.display()).as_bytes()).0;
        id[0] = 0;
        let id: [u8; 16] = id[..16].try_into().expect("sixteen of twenty");
        let acl = format!("{account}\tlrswipkxtecdan\t").into_bytes();
        let new = Mailbox::new(at, names::unique_id(id), u32::from(*made), acl);
        self.apply("MAILBOX", &new.value(Vec::new(), None));
    }

    /// Folders of an account, with their internal names.
    fn folders(&self, account: &Account) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut link = self.link.lock().expect("no panic while it is held");
        let answers = link.run(&Command::Get("USER", &Value::text(account.as_str())));
        let answers = answers.expect("a user");
        let values = answers.iter().filter(|answer| answer.name == "MAILBOX");
        let boxes = values.map(|answer| Mailbox::parse(&answer.values[0]).expect("a mailbox"));
        let folder = |mailbox: Mailbox| match names::meaning(&mailbox.name) {
            names::Named::Folder { folder, .. } if mailbox.is_mail() => {
                Some((folder, mailbox.name))
            }
            names::Named::Folder { .. } | names::Named::Odd { .. } | names::Named::Other => None,
        };
        boxes.filter_map(folder).collect()
    }
}

fn internal(account: &Account, mailbox: &MailboxName) -> Vec<u8> {
    let name = names::internal(account.as_str(), mailbox.as_octets(), true);
    name.expect("cases use good names")
}

impl Subject for OnCyrus {
    fn store(&self) -> &dyn MailStore {
        &self.store
    }

    fn deliver(&self, account: &Account, mailbox: &MailboxName, octets: &[u8]) {
        let guid = guid_of(octets).0;
        self.change(&internal(account, mailbox), |mailbox, _| {
            let partition = "default".to_owned();
            let file = File { partition, guid: guid_text(guid), octets: octets.to_vec() };
            self.apply("MESSAGE", &Value::List(vec![Value::File(file)]));
            mailbox.last_uid += 1;
            vec![Message {
                uid: mailbox.last_uid,
                modseq: mailbox.highest_modseq,
                guid,
                octets: octets.len() as u64,
                internal_date: 1_700_000_000,
                flags: Vec::new(),
                annotations: None,
            }]
        });
    }

    fn set_flags(&self, at: (&Account, &MailboxName, Uid), flags: Flags, keywords: &[&str]) {
        const NAMES: [&str; 6] =
            [r"\Answered", r"\Flagged", r"\Deleted", r"\Seen", r"\Draft", "$MailtwinPassed"];
        let (account, mailbox, uid) = at;
        let set = NAMES.iter().enumerate().filter(|(bit, _)| flags.0 >> bit & 1 == 1);
        let names = set.map(|(_, name)| name).chain(keywords);
        let flags: Vec<Vec<u8>> = names.map(|name| name.as_bytes().to_vec()).collect();
        self.change(&internal(account, mailbox), |mailbox, messages| {
            let found = messages.iter().filter(|message| message.uid == uid.0).cloned();
            let (modseq, flags) = (mailbox.highest_modseq, &flags);
            found.map(|found| Message { modseq, flags: flags.clone(), ..found }).collect()
        });
    }

    fn expunge(&self, account: &Account, mailbox: &MailboxName, uid: Uid) {
        self.change(&internal(account, mailbox), |mailbox, messages| {
            let found = messages.iter().filter(|message| message.uid == uid.0).cloned();
            let (modseq, flags) = (mailbox.highest_modseq, vec![EXPUNGED.to_vec()]);
            found.map(|found| Message { modseq, flags: flags.clone(), ..found }).collect()
        });
    }

    fn damage(&self, (account, mailbox, uid): (&Account, &MailboxName, Uid), octets: &[u8]) {
        let Some((mailbox, _)) = self.full(&internal(account, mailbox)) else { return };
        let id = &mailbox.unique_id;
        let dir = self.spool.join("uuid").join(&id[..1]).join(&id[1..2]).join(id);
        let path = dir.join(format!("{uid}."));
        let date = fs::metadata(&path).and_then(|file| file.modified()).expect("a file");
        let file = fs::File::options().write(true).truncate(true).open(&path).expect("open it");
        std::io::Write::write_all(&mut &file, octets).expect("write it");
        file.set_modified(date).expect("date it");
    }

    fn create(&self, account: &Account, mailbox: &MailboxName) {
        self.make(internal(account, &MailboxName::inbox()), account);
        self.make(internal(account, mailbox), account);
    }

    fn rename(&self, account: &Account, from: &MailboxName, to: &MailboxName) {
        let folders = self.folders(account);
        let below = |folder: &[u8], above: &[u8]| {
            folder.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        let (from, to) = (from.as_octets(), to.as_octets());
        let moved: Vec<&Vec<u8>> = folders.keys().filter(|folder| below(folder, from)).collect();
        let target = |folder: &[u8]| [to, &folder[from.len()..]].concat();
        let is_taken = |folder: &&Vec<u8>| folders.contains_key(&target(folder));
        if from.is_empty() || to.is_empty() || below(to, from) || moved.iter().any(is_taken) {
            return;
        }
        for folder in moved {
            let name = MailboxName::new(&target(folder)).expect("a good name");
            self.apply(
                "RENAME",
                &Value::map([
                    ("OLDMBOXNAME", Value::text(&folders[folder])),
                    ("NEWMBOXNAME", Value::text(internal(account, &name))),
                    ("PARTITION", Value::text("default")),
                ]),
            );
        }
    }

    fn delete(&self, account: &Account, mailbox: &MailboxName) {
        let at = internal(account, mailbox);
        if self.full(&at).is_some() {
            self.apply("UNMAILBOX", &Value::text(at));
        }
    }

    fn write_file(&self, account: &Account, key: &FileKey, content: Option<&[u8]>) {
        self.other.set_file(account, key, content).expect("write a file");
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    fn takes_empty_messages(&self) -> bool {
        // Cyrus ends the connection over one.
        false
    }

    fn strange_name(&self) -> &'static str {
        "Odd' [~]"
    }

    fn buried(&self) -> Vec<Guid> {
        let mut buried = Vec::new();
        let visited = self.store.graves(&mut |grave| {
            buried.extend(grave.guid);
            Ok(())
        });
        visited.expect("look into the graveyard");
        buried
    }
}
