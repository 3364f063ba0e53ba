//! Commands to the Cyrus beside us, over connections that are kept.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use mailtwin_cyrus::{
    Answer, Command, Dialect, File, Link, LinkError, Listing, Refusal, Value,
    mailbox::{Mailbox, Message, NEW_PARTITION, guid_text},
    names,
};
use mailtwin_disk::clock::Clock;
use mailtwin_logic::ids::{Guid, Uid};

use super::{CyrusOptions, stage};
use crate::{Staged, StoreError};

/// Connections kept for later, of each kind.
const IDLE_MAX: usize = 8;

/// Octets of messages in one upload; a larger message goes alone.
const UPLOAD_OCTETS: usize = 8 << 20;

/// Messages in one upload.
const UPLOAD_MESSAGES: usize = 256;

/// Mailboxes asked for in one command.
const HEADERS_MAX: usize = 200;

/// What a server says of a user.
#[derive(Debug, Default)]
pub(super) struct User {
    pub(super) mailboxes: Vec<Mailbox>,
    /// Internal names.
    pub(super) subscribed: Vec<Vec<u8>>,
    /// File name, GUID, and whether it is the active one's compiled form.
    pub(super) scripts: Vec<(String, Guid, bool)>,
    /// Quotas of their roots.
    pub(super) quotas: Vec<Value>,
    /// What was seen in mailboxes of others.
    pub(super) seen: Vec<Value>,
}

/// Connections on which messages may wait for a mailbox that is being collected: each is a process of
/// the server's.
const SESSIONS_MAX: usize = 16;

/// The answers to a command.
type Answers = Result<Vec<Answer>, LinkError>;

/// What became of a fetch.
#[derive(Debug)]
pub(super) enum Fetched {
    Octets(Vec<u8>),
    /// The file is there, but not what it should be.
    Wrong,
}

/// A connection, and the messages that wait there for their mailbox.
#[derive(Debug)]
pub(super) struct Session {
    link: Link,
    sent: BTreeSet<Guid>,
    /// One of those that are counted.
    _counted: Arc<()>,
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) options: CyrusOptions,
    pub(super) clock: Arc<dyn Clock>,
    imap: Mutex<Vec<Link>>,
    csync: Mutex<Vec<Link>>,
    separator: OnceLock<u8>,
    sessions: Arc<()>,
}

impl Server {
    pub(super) fn new(options: CyrusOptions, clock: Arc<dyn Clock>) -> Self {
        let (imap, csync) = (Mutex::default(), Mutex::default());
        Self { options, clock, imap, csync, separator: OnceLock::new(), sessions: Arc::default() }
    }

    /// The port that changes go to: what a master writes must stand in its sync log, so that all
    /// replicas hear of it; what a replica writes must not. Reading costs `imapd` three times as much.
    fn dialect(&self) -> Dialect {
        if self.options.is_master { Dialect::Imap } else { Dialect::Csync }
    }

    /// Does `work` on a connection.
    pub(super) fn with<T>(
        &self,
        dialect: Dialect,
        work: impl FnMut(&mut Link) -> Result<T, LinkError>,
    ) -> Result<T, LinkError> {
        let (link, done) = self.begin(dialect, work)?;
        self.keep(dialect, link);
        done
    }

    /// Begins with `work` on a connection, which is then still there. One that was kept may have ended
    /// meanwhile: then on another.
    fn begin<T>(
        &self,
        dialect: Dialect,
        mut work: impl FnMut(&mut Link) -> Result<T, LinkError>,
    ) -> Result<(Link, Result<T, LinkError>), LinkError> {
        loop {
            let kept = self.pool(dialect).pop();
            let is_kept = kept.is_some();
            let mut link = kept.map_or_else(|| self.open(dialect), Ok)?;
            match work(&mut link) {
                Err(error) if !error.is_refusal() && is_kept => {}
                Err(error) if !error.is_refusal() => return Err(error),
                done => return Ok((link, done)),
            }
        }
    }

    fn keep(&self, dialect: Dialect, link: Link) {
        let mut pool = self.pool(dialect);
        if pool.len() < IDLE_MAX {
            pool.push(link);
        }
    }

    fn pool(&self, dialect: Dialect) -> MutexGuard<'_, Vec<Link>> {
        let pool = if dialect == Dialect::Imap { &self.imap } else { &self.csync };
        pool.lock().expect("no panic while it is held")
    }

    fn open(&self, dialect: Dialect) -> Result<Link, LinkError> {
        let CyrusOptions { imap, csync, login, .. } = &self.options;
        let place = if dialect == Dialect::Imap { imap } else { csync };
        Link::open(place, dialect, login, Arc::clone(&self.clock))
    }

    fn get(&self, name: &str, value: &Value) -> Result<Vec<Answer>, LinkError> {
        self.with(Dialect::Csync, |link| link.run(&Command::Get(name, value)))
    }

    /// One write that may be repeated.
    pub(super) fn apply(
        &self,
        op: &'static str,
        name: &str,
        value: &Value,
    ) -> Result<(), StoreError> {
        let done = self.with(self.dialect(), |link| link.run(&Command::Apply(name, value)));
        done.map(drop).map_err(failed(op, name))
    }

    /// Everything but messages about a user, or about the shared mailboxes of a domain, whose
    /// mailboxes are `names`. Those that cannot be read are left out, as is one with Sieve scripts.
    ///
    /// `GET USER` would tell all of it at once, but is for replicas: whoever is asked removes all of
    /// the user's Sieve files that are not in the database of scripts, those of a Cyrus before 3.6
    /// and of a client that is just storing one among them.
    pub(super) fn user(&self, user: &str, names: &[Vec<u8>]) -> Result<User, StoreError> {
        let User { mailboxes, quotas, .. } = self.mailboxes(user, names)?;
        Ok(User { mailboxes, quotas, ..self.meta(user)? })
    }

    /// Of these mailboxes of a user, those that can be read, and quotas of their roots.
    pub(super) fn mailboxes(&self, user: &str, names: &[Vec<u8>]) -> Result<User, StoreError> {
        let mut answers = Vec::new();
        for some in names.chunks(HEADERS_MAX) {
            let names = some.iter().map(Value::text).collect();
            let told = self.get("MAILBOXES", &Value::List(names));
            answers.extend(told.map_err(failed("list", user))?);
        }
        let roots = answers.iter().filter_map(|answer| answer.values.first()?.text_of("QUOTAROOT"));
        let roots: BTreeSet<Vec<u8>> = roots.map(<[u8]>::to_vec).collect();
        for root in roots {
            let told = self.get("QUOTA", &Value::text(root));
            answers.extend(told.map_err(failed("list", user))?);
        }
        understood(user, answers)
    }

    /// A user's subscriptions, scripts, and what they have seen in mailboxes of others.
    pub(super) fn meta(&self, user: &str) -> Result<User, StoreError> {
        if names::is_shared(user) {
            return Ok(User::default());
        }
        let answers = self.get("META", &Value::text(user)).map_err(failed("list", user))?;
        understood(user, answers)
    }

    /// Internal names of the shared mailboxes of a domain, as IMAP lists them, and whether each is a
    /// place in the hierarchy only.
    pub(super) fn list_shared(&self, user: &str) -> Result<Vec<(Vec<u8>, bool)>, StoreError> {
        let listed = (|| {
            let mut listing = self.listing()?;
            let mut found = Vec::new();
            for top in listing.shared()?.iter().filter(|top| top.whose == user) {
                found.extend(listing.tree(top)?);
            }
            Ok(found)
        })();
        listed.map_err(failed("list", user))
    }

    /// Userids, and whose shared mailboxes are.
    pub(super) fn users(&self) -> Result<BTreeSet<String>, StoreError> {
        let listed = (|| {
            let mut listing = self.listing()?;
            let mut users = listing.users()?;
            users.extend(listing.shared()?.into_iter().map(|top| top.whose));
            Ok(users)
        })();
        listed.map_err(failed("list", "users"))
    }

    fn listing(&self) -> Result<Listing<impl FnMut(&Command<'_>) -> Answers>, LinkError> {
        Listing::new(|command| self.with(Dialect::Imap, |link| link.run(command)))
    }

    /// A mailbox by its internal name; `None` if it is not there. One that cannot be read is an error.
    pub(super) fn by_name(&self, name: &[u8]) -> Result<Option<Mailbox>, StoreError> {
        let list = Value::List(vec![Value::text(name)]);
        self.header("MAILBOXES", &list, &name.escape_ascii().to_string(), name)
    }

    /// A mailbox by its UNIQUEID, that stood at `name` the last time; `None` if it is not there.
    pub(super) fn by_id(&self, id: &str, name: &[u8]) -> Result<Option<Mailbox>, StoreError> {
        let list = Value::List(vec![Value::text(id)]);
        self.header("UNIQUEIDS", &list, id, name)
    }

    fn header(
        &self,
        by: &str,
        list: &Value,
        what: &str,
        name: &[u8],
    ) -> Result<Option<Mailbox>, StoreError> {
        let answers = self.get(by, list).map_err(failed("look at", what))?;
        let found = answers.iter().find(|answer| answer.name == "MAILBOX");
        if let Some(value) = found.and_then(|answer| answer.values.first()) {
            return Mailbox::parse(value).map(Some).map_err(damaged(what));
        }
        // Neither one that is missing nor one that cannot be read is told of: only this tells them
        // apart.
        self.full(name).map(|_| None)
    }

    /// A mailbox with all of its messages, expunged ones excepted; `None` if it is not there.
    pub(super) fn full(&self, name: &[u8]) -> Result<Option<(Mailbox, Vec<Message>)>, StoreError> {
        let what = name.escape_ascii().to_string();
        let answers = match self.get("FULLMAILBOX", &Value::text(name)) {
            Err(error) if error.has_code("IMAP_MAILBOX_NONEXISTENT") => return Ok(None),
            other => other.map_err(failed("read", &what))?,
        };
        let value = answers.into_iter().find(|answer| answer.name == "MAILBOX");
        let Some(value) = value.and_then(|answer| answer.values.into_iter().next()) else {
            return Ok(None);
        };
        let mailbox = Mailbox::parse(&value).map_err(damaged(&what))?;
        let mut messages = Vec::new();
        for record in value.get("RECORD").and_then(Value::as_list).unwrap_or_default() {
            let message = Message::parse(record).map_err(damaged(&what))?;
            if !message.is_expunged() {
                messages.push(message);
            }
        }
        Ok(Some((mailbox, messages)))
    }

    /// A message's octets, whose SHA-1 the server has checked.
    pub(super) fn fetch(
        &self,
        mailbox: &Mailbox,
        uid: Uid,
        guid: Guid,
    ) -> Result<Fetched, StoreError> {
        let wanted = Value::map([
            ("MBOXNAME", Value::text(&mailbox.name)),
            ("PARTITION", Value::text(&mailbox.partition)),
            ("UNIQUEID", Value::text(&mailbox.unique_id)),
            ("GUID", Value::text(guid_text(guid.0))),
            ("UID", Value::number(uid)),
        ]);
        let what = format!("message {uid} of {}", mailbox.name.escape_ascii());
        let answers = self.get("FETCH", &wanted).map_err(failed("fetch", &what))?;
        let value = answers.into_iter().find(|answer| answer.name == "MESSAGE");
        match value.and_then(|answer| answer.values.into_iter().next()) {
            Some(Value::File(file)) if crate::guid_of(&file.octets) == guid => {
                Ok(Fetched::Octets(file.octets))
            }
            _ => Ok(Fetched::Wrong),
        }
    }

    /// A Sieve script's text.
    pub(super) fn script(&self, user: &str, file: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let wanted = Value::map([("USERID", Value::text(user)), ("FILENAME", Value::text(file))]);
        let what = format!("script {file} of {user}");
        let answers = match self.get("FETCH_SIEVE", &wanted) {
            Err(error) if error.is_refusal() => return Ok(None),
            other => other.map_err(failed("fetch", &what))?,
        };
        let value = answers.into_iter().find(|answer| answer.name == "SIEVE");
        let value = value.and_then(|answer| answer.values.into_iter().next());
        Ok(value.and_then(|value| Some(value.text_of("CONTENT")?.to_vec())))
    }

    /// External names of mailboxes that match one of the patterns, over IMAP; those that are places
    /// only are left out.
    pub(super) fn list(&self, patterns: &[String]) -> Result<Vec<Vec<u8>>, StoreError> {
        let list = Command::ListAny(patterns);
        let answers = self.with(Dialect::Imap, |link| link.run(&list));
        let answers = answers.map_err(failed("list", &patterns.join(" ")))?;
        let listed = answers.iter().filter_map(Answer::listed);
        let mailboxes = listed.filter(|(_, is_place)| !is_place);
        Ok(mailboxes.map(|(name, _)| name.to_vec()).collect())
    }

    /// What stands between the parts of a name over IMAP.
    pub(super) fn separator(&self) -> Result<u8, StoreError> {
        if let Some(separator) = self.separator.get() {
            return Ok(*separator);
        }
        let told = self.listing().map_err(failed("list", "the hierarchy"))?.separator();
        Ok(*self.separator.get_or_init(|| told))
    }

    /// Uploads messages, each content once, then brings a mailbox to the state that `value` says, in
    /// one session. With `rebuilt`, the mailbox of that name is taken away in between, and those GUIDs
    /// of it are kept over that.
    pub(super) fn bring(
        &self,
        name: &[u8],
        staged: &[Staged],
        value: &Value,
        rebuilt: Option<&[Guid]>,
    ) -> Result<(), StoreError> {
        let session = self.session()?;
        self.finish(session, (name, value), staged, rebuilt)
    }

    /// A session in which nothing waits. It is there; should it break later, everything is planned anew.
    pub(super) fn session(&self) -> Result<Session, StoreError> {
        let begun = self.begin(self.dialect(), |link| link.run(&Command::Restart));
        let begun = begun.and_then(|(link, done)| done.map(|_| link));
        let link = begun.map_err(failed("begin", "a session"))?;
        Ok(Session { link, sent: BTreeSet::new(), _counted: Arc::clone(&self.sessions) })
    }

    /// Has messages wait in a session, another if there is none yet; `None` if there are too many.
    pub(super) fn send_ahead(
        &self,
        session: Option<Session>,
        staged: &[Staged],
    ) -> Result<Option<Session>, StoreError> {
        if session.is_none() && Arc::strong_count(&self.sessions) > SESSIONS_MAX {
            return Ok(None);
        }
        let mut session = session.map_or_else(|| self.session(), Ok)?;
        upload(&mut session, staged, NEW_PARTITION)?;
        Ok(Some(session))
    }

    /// [`Server::bring`] in a session where messages may wait already.
    pub(super) fn finish(
        &self,
        mut session: Session,
        (name, value): (&[u8], &Value),
        staged: &[Staged],
        rebuilt: Option<&[Guid]>,
    ) -> Result<(), StoreError> {
        let what = name.escape_ascii().to_string();
        let partition = value.text_of("PARTITION").unwrap_or_default();
        let done = upload(&mut session, staged, &String::from_utf8_lossy(partition));
        let done = done.and_then(|()| {
            change(&mut session.link, name, value, rebuilt).map_err(|error| {
                let is_poison = matches!(error, LinkError::Ended { .. });
                let why = "Cyrus ended the connection over its changes; its log says why";
                let poison = || StoreError::Corrupt { path: (&what).into(), why: why.into() };
                if is_poison { poison() } else { failed("change", &what)(error) }
            })
        });
        let is_alive = match &done {
            Ok(()) => true,
            Err(StoreError::Server { source, .. }) => source.is_refusal(),
            Err(_) => false,
        };
        // Frees what was staged.
        if is_alive && session.link.run(&Command::Restart).is_ok() {
            self.keep(self.dialect(), session.link);
        }
        done
    }
}

/// Sends messages, each content once, some at a time, so that they need little memory.
fn upload(session: &mut Session, staged: &[Staged], partition: &str) -> Result<(), StoreError> {
    let Session { link, sent, .. } = session;
    if !sent.is_empty() {
        // It was left alone for a while: what it ends over later is then what comes later.
        link.run(&Command::Noop).map_err(failed("upload", "messages"))?;
    }
    let mut part = (Vec::new(), 0_usize);
    let mut send = |files: Vec<Value>| {
        let sent = link.run(&Command::Apply("MESSAGE", &Value::List(files)));
        sent.map(drop).map_err(failed("upload", "messages"))
    };
    for staged in staged.iter().filter(|staged| sent.insert(staged.guid())) {
        let octets = stage::read(staged)?;
        let is_full =
            part.0.len() >= UPLOAD_MESSAGES || part.1.saturating_add(octets.len()) > UPLOAD_OCTETS;
        if is_full && !part.0.is_empty() {
            send(std::mem::take(&mut part.0))?;
            part.1 = 0;
        }
        part.1 = part.1.saturating_add(octets.len());
        let (partition, guid) = (partition.to_owned(), guid_text(staged.guid().0));
        part.0.push(Value::File(File { partition, guid, octets }));
    }
    if part.0.is_empty() { Ok(()) } else { send(part.0) }
}

fn change(
    link: &mut Link,
    name: &[u8],
    value: &Value,
    rebuilt: Option<&[Guid]>,
) -> Result<(), LinkError> {
    if let Some(guids) = rebuilt {
        let guids = guids.iter().map(|guid| Value::text(guid_text(guid.0))).collect();
        let reserve = Value::map([
            ("PARTITION", value.get("PARTITION").cloned().unwrap_or(Value::Nil)),
            ("MBOXNAME", Value::List(vec![Value::text(name)])),
            ("GUID", Value::List(guids)),
        ]);
        let missing = link.run(&Command::Apply("RESERVE", &reserve))?;
        if let Some(missing) = missing.first().and_then(|answer| answer.values.first()) {
            let text = format!("messages are damaged or gone: {missing:?}; mend them first");
            return Err(LinkError::Refused(Refusal { text }));
        }
        link.run(&Command::Apply("UNMAILBOX", &Value::text(name)))?;
    }
    link.run(&Command::Apply("MAILBOX", value)).map(drop)
}

fn understood(user: &str, answers: Vec<Answer>) -> Result<User, StoreError> {
    let mut found = User::default();
    for answer in answers {
        let Some(value) = answer.values.first() else { continue };
        match &answer.name[..] {
            "MAILBOX" => found.mailboxes.push(Mailbox::parse(value).map_err(damaged(user))?),
            "LSUB" => found.subscribed.extend(answer.subscribed().map(<[u8]>::to_vec)),
            "SIEVE" => found.scripts.extend(script(value)),
            "QUOTA" => found.quotas.push(value.clone()),
            "SEEN" => found.seen.push(value.clone()),
            _ => {}
        }
    }
    Ok(found)
}

fn script(value: &Value) -> Option<(String, Guid, bool)> {
    let name = String::from_utf8(value.text_of("FILENAME")?.to_vec()).ok()?;
    let guid = std::str::from_utf8(value.text_of("GUID")?).ok()?.parse().ok()?;
    Some((name, guid, value.number_of("ISACTIVE") == Some(1)))
}

/// For `map_err`: names the operation and its object.
pub(super) fn failed(op: &'static str, what: &str) -> impl FnOnce(LinkError) -> StoreError {
    let what = what.to_owned();
    move |source| StoreError::Server { op, what, source: Box::new(source) }
}

fn damaged<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> StoreError {
    let what = what.to_owned();
    move |error| StoreError::Corrupt { path: what.into(), why: format!("Cyrus tells of {error}") }
}
