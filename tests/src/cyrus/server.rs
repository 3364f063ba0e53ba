//! Cyrus as clusters, the oracle and workloads see it. What lies beside messages is read and written
//! over its replication protocol.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
};

use anyhow::Context as _;
use mailtwin_cyrus::{Answer, Command, Dialect, Link, Login, Place, Value};

use super::{ADMIN, Cyrus, PROBE};
use crate::{
    dovecot::PASSWORD,
    gate::Hook,
    imap::Imap,
    lab::{Lab, MAIL_USER},
    lmtp, oracle,
    random::Random,
    server::Server,
};

impl Cyrus {
    /// Logs in to the replication protocol over IMAP, as an admin may.
    pub fn link(&self) -> anyhow::Result<Link> {
        let (user, password) = (ADMIN.to_owned(), PASSWORD.to_owned());
        let login = Login { user, password, certificate: None };
        let place = Place::Tcp(self.imap_address());
        let link = Link::open(&place, Dialect::Imap, &login, self.clock.clone());
        link.with_context(|| format!("log in to {} as its admin", self.name))
    }

    /// The UNIQUEID of a mailbox, given by its internal name.
    pub(super) fn unique_id(&self, name: &str) -> anyhow::Result<String> {
        let wanted = Value::List(vec![Value::text(name)]);
        let told = self.link()?.run(&Command::Get("MAILBOXES", &wanted))?;
        let value = told.first().and_then(|answer| answer.values.first());
        let id = value.and_then(|value| value.text_of("UNIQUEID"));
        Ok(String::from_utf8(id.with_context(|| format!("a mailbox {name}"))?.to_vec())?)
    }

    /// Where the scripts that are run lie for a user who has an INBOX.
    pub fn sieve_dir(&self, user: &str) -> anyhow::Result<PathBuf> {
        let id = self.unique_id(&format!("user.{user}"))?;
        Ok(self.dir.join("sieve/uuid").join(&id[..1]).join(&id[1..2]).join(id))
    }

    /// All that it tells of a user.
    pub fn told(&self, user: &str) -> anyhow::Result<Vec<Answer>> {
        let told = self.link()?.run(&Command::Get("USER", &Value::text(user)));
        told.with_context(|| format!("ask {} for {user}", self.name))
    }

    /// What a user is subscribed to: internal names.
    pub fn subscribed(&self, user: &str) -> anyhow::Result<Vec<String>> {
        let told = self.told(user)?;
        let names = told.iter().filter(|answer| answer.name == "LSUB").flat_map(Answer::subscribed);
        Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
    }
}

impl Server for Cyrus {
    fn name(&self) -> &str {
        &self.name
    }

    fn add_account(&self, account: &str, is_master: bool) -> anyhow::Result<()> {
        if is_master { self.create_user(account) } else { self.set_password(account) }
    }

    fn imap(&self, account: &str) -> anyhow::Result<Imap> {
        Self::imap(self, account)
    }

    fn deliver(&self, account: &str, message: &[u8]) -> anyhow::Result<()> {
        Self::deliver(self, account, message)
    }

    fn lmtp_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.lmtp))
    }

    fn separator(&self) -> char {
        '/'
    }

    /// Its ports are open in any case: only who has logged in hears that the gate is closed, and who
    /// wants to deliver.
    fn is_open(&self) -> bool {
        let client = self.imap(PROBE).and_then(|mut imap| Ok(imap.noop().map(drop)?));
        client.is_ok() && lmtp::takes_mail(Server::lmtp_address(self)).unwrap_or(false)
    }

    fn hook(&self) -> anyhow::Result<Hook> {
        let enter = format!(
            "exec nsenter --target $(cat {}) --mount --pid setpriv --reuid {MAIL_USER} \
             --regid {MAIL_USER} --clear-groups \"$@\"",
            self.namespace().display(),
        );
        Hook::cyrus(enter, &self.dir.join("imapd.conf"), &self.dir.join("master.pid"))
    }

    fn store_config(&self) -> String {
        Self::store_config(self)
    }

    /// Its UNIQUEID.
    fn identity(&self, account: &str, mailbox: &str) -> anyhow::Result<String> {
        let parts = mailbox.split('/').map(|part| part.replace('.', "^"));
        let parts: Vec<String> = parts.filter(|part| part != "INBOX").collect();
        let at = ["user".to_owned(), account.to_owned()].into_iter().chain(parts);
        let at = at.collect::<Vec<_>>().join(".");
        self.unique_id(&at)
    }

    /// It gives clients the octets that it keeps.
    fn serials_by_guid(&self, account: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let seen = oracle::Account::read(self, account)?;
        let messages = seen.mailboxes.into_values().flat_map(|mailbox| mailbox.messages);
        Ok(messages.filter_map(|(_, message)| Some((message.sha1, message.serial?))).collect())
    }

    /// It is the server that says what there is.
    fn shows_all(&self, _account: &str, _shown: usize) -> anyhow::Result<bool> {
        Ok(true)
    }

    /// Nobody makes one by looking.
    fn has_inbox(&self, _account: &str) -> bool {
        true
    }

    /// What it tells of a user beside messages, quotas, and what has been deleted.
    fn beside_messages(&self, account: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let mut found = BTreeMap::new();
        for answer in self.told(account)? {
            let value = answer.values.first().context("an answer with a value")?;
            let text = |key: &str| format!("{:?}", value.get(key));
            match answer.name.as_str() {
                // What is gone, and what is only a place for mailboxes below it.
                "MAILBOX"
                    if text("MBOXNAME").contains("DELETED.") || text("MBOXTYPE").contains('i') => {}
                "MAILBOX" => {
                    let rights = rights_but_n(value.text_of("ACL").unwrap_or_default());
                    let what = format!("{} {rights}", text("UNIQUEID"));
                    found.insert(text("MBOXNAME"), what);
                }
                // When a script was written is the server's own.
                "SIEVE" => {
                    let what = format!("{} {}", text("GUID"), text("ISACTIVE"));
                    found.insert(format!("script {}", text("FILENAME")), what);
                }
                _ => {}
            }
        }
        Ok(found)
    }

    fn edit_script(&self, account: &str, random: &mut Random) -> anyhow::Result<String> {
        let name = format!("s{}", random.below(3));
        let of = |file: &str| {
            [("USERID", Value::text(account)), ("FILENAME", Value::text(format!("{name}.{file}")))]
        };
        let (verb, argument) = match random.below(4) {
            0 => ("ACTIVATE_SIEVE", Value::map(of("bc"))),
            1 => ("UNSIEVE", Value::map(of("script"))),
            _ => {
                let text = format!("# {}\r\nkeep;\r\n", random.draw());
                let [user, file] = of("script");
                let (when, content) = (Value::number(1), Value::text(text));
                let map = Value::map([user, file, ("LAST_UPDATE", when), ("CONTENT", content)]);
                ("SIEVE", map)
            }
        };
        // It refuses to make a script active that is not there, and to remove the active one.
        let done = self.link()?.run(&Command::Apply(verb, &argument));
        Ok(format!("{verb} {name}{}", if done.is_ok() { "" } else { " refused" }))
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        self.kill()
    }

    fn resume(&mut self, lab: &Lab) -> anyhow::Result<()> {
        Self::resume(self, lab)
    }
}

/// An access list, identifiers and rights in turn, in an order, and without the right to annotate,
/// which goes with the right to write.
fn rights_but_n(list: &[u8]) -> String {
    let list = String::from_utf8_lossy(list);
    let words: Vec<&str> = list.split_terminator('\t').collect();
    let pairs = words.chunks(2).map(|pair| match pair {
        [who, rights] => format!("{who}={}", rights.replace('n', "")),
        odd => format!("{odd:?}"),
    });
    let sorted: BTreeSet<String> = pairs.collect();
    format!("{sorted:?}")
}
