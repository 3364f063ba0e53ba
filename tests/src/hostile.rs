//! A site for agents that mean harm: a replica that runs, something outside its store that nothing may
//! happen to, and requests.

use std::path::PathBuf;

use anyhow::ensure;
use mailtwin_logic::{
    digest::Digest,
    ids::{Account, MailboxId, ModSeq, Uid, UidValidity},
    mailbox::{FileKey, Flags, Head, Keywords, MailboxName, Record},
    plan::{Change, Mode},
    wire::message::{Apply, Request, encode},
};

use crate::{
    corpus,
    daemon::{Pair, REPLICA},
    dovecot::{Dovecot, Version},
    files,
    lab::Lab,
    peer::Peer,
};

/// What a replica daemon may take at most while all of this is done to it, in octets.
pub const MEMORY_MAX: u64 = 128 << 20;

/// A message, and what it is stored as.
pub const BODY: &[u8] = b"Subject: x\r\n\r\nbody\r\n";

/// A pair whose agent does not run: the test speaks for it. What is `outside` the store would take
/// whatever got there.
#[derive(Debug)]
pub struct Site {
    /// The two nodes.
    pub pair: Pair,
    /// A directory of the mail user that no request may reach.
    pub outside: PathBuf,
    before: String,
}

impl Site {
    /// A pair whose replica daemon listens.
    pub fn new(lab: &Lab) -> anyhow::Result<Self> {
        let master = Dovecot::start(lab, "master", Version::V23)?;
        let replica = Dovecot::start(lab, "replica", Version::V23)?;
        let mut pair = Pair::around(lab, master, replica, &["u1"])?;
        pair.copy.start(lab)?;
        let outside = lab.mail_dir("outside")?;
        for dir in ["cur", "new", "tmp", "Maildir/cur", "sieve", "b/cur"] {
            files::make_mail_dir(&outside.join(dir))?;
        }
        for file in ["list", "dovecot-uidlist", "keywords", "subscriptions", "x.sieve"] {
            files::write_mail(&outside.join(file), "3 V1 N1\n")?;
        }
        let before = files::fingerprint(&outside)?;
        lab.wait("the replica listens", || {
            Ok(Peer::dial(&pair.agent, &pair.copy).map(drop).map_err(|error| error.to_string()))
        })?;
        Ok(Self { pair, outside, before })
    }

    /// A new session of the agent.
    pub fn greet(&self) -> anyhow::Result<Peer> {
        Peer::greet(&self.pair.agent, &self.pair.copy)
    }

    /// Nothing got out, nothing panicked, and a real agent is served.
    pub fn expect_unharmed(mut self, lab: &Lab) -> anyhow::Result<()> {
        ensure!(files::fingerprint(&self.outside)? == self.before, "something got outside");
        ensure!(self.pair.copy.daemon()?.is_running(), "the replica daemon runs on");
        let peak = self.pair.copy.memory_peak()?;
        ensure!(peak <= MEMORY_MAX, "it took {} MiB", peak >> 20);
        let log = self.pair.copy.log_text(REPLICA)?;
        ensure!(!log.contains("panicked"), "something panicked");
        self.pair.master.deliver("u1", &corpus::short("after"))?;
        self.pair.agent.start(lab)?;
        self.pair.wait_equal(lab)
    }

    /// Where the replica has an account's mail.
    pub fn maildir(&self, account: &str) -> PathBuf {
        self.pair.replica.maildir(account)
    }
}

/// An account.
pub fn account(name: &str) -> Account {
    Account::new(name).expect("a name that may be sent")
}

/// A mailbox.
pub fn mailbox(name: &str) -> MailboxName {
    MailboxName::new(name.as_bytes()).expect("a name that may be sent")
}

/// The record of [`BODY`].
pub fn record(uid: u32) -> Record {
    let digits = files::sha1(BODY);
    Record {
        uid: Uid(uid),
        guid: digits.parse().expect("a SHA-1"),
        octets: BODY.len() as u64,
        internal_date: 1_700_000_000,
        flags: Flags::SEEN,
        keywords: Keywords::default(),
        modseq: ModSeq(1),
        replicated: false,
        hint: format!(":17000000{uid}.M1.host").into_bytes().into(),
    }
}

/// Builds `name` with one message.
pub fn build(user: &str, name: &str) -> Apply {
    let head = Head {
        uid_validity: UidValidity(5),
        uid_next: Uid(9),
        messages: 1,
        digest: Digest::default(),
    };
    // An identity for each name.
    let mut id = [7; 16];
    let octets = user.bytes().chain(name.bytes());
    octets.enumerate().for_each(|(at, octet)| id[at % 16] ^= octet);
    Apply {
        modseq: ModSeq(0),
        account: account(user),
        mailbox: MailboxId(id),
        name: mailbox(name),
        mode: Mode::Build,
        expect: None,
        target: head,
        keywords: Vec::new(),
        changes: vec![Change::Add(record(1))],
        last: true,
    }
}

/// A request that writes a file.
pub fn set_file(user: &str, key: FileKey, content: &[u8]) -> Vec<u8> {
    encode(&Request::SetFile { account: account(user), key, content: Some(content.to_vec()) })
}
