//! An IMAP session of the `imap` crate, with what the suites need beyond it: QRESYNC (RFC 7162),
//! raw commands with parsed answers, and IDLE with a deadline.

use std::{
    net::{SocketAddr, TcpStream},
    ops::{Deref, DerefMut, RangeInclusive},
    time::Duration,
};

use anyhow::{Context as _, bail};
use imap::types::UnsolicitedResponse;
use imap_proto::{AttributeValue, MailboxDatum, Response, ResponseCode};

use crate::lab::PATIENCE;

/// A logged-in session. Everything the `imap` crate offers is there through `Deref`.
#[derive(Debug)]
pub struct Imap {
    session: imap::Session<TcpStream>,
    socket: TcpStream,
}

/// What a server says of a mailbox that it opens.
#[derive(Debug, Default)]
pub struct Opened {
    /// UIDVALIDITY.
    pub uid_validity: Option<u32>,
    /// UIDNEXT.
    pub uid_next: Option<u32>,
    /// Number of messages.
    pub exists: u32,
}

/// What a QRESYNC client learns when it opens a mailbox again.
#[derive(Debug, Default)]
pub struct Resynced {
    /// UIDVALIDITY.
    pub uid_validity: u32,
    /// UIDNEXT.
    pub uid_next: u32,
    /// HIGHESTMODSEQ.
    pub highest_modseq: u64,
    /// Number of messages.
    pub exists: u32,
    /// UIDs that are gone (`VANISHED (EARLIER)`).
    pub vanished: Vec<RangeInclusive<u32>>,
    /// UIDs with flags as they are now, of messages that changed.
    pub fetched: Vec<(u32, Vec<String>)>,
}

impl Resynced {
    /// Whether the server said that `uid` is gone.
    pub fn has_vanished(&self, uid: u32) -> bool {
        self.vanished.iter().any(|range| range.contains(&uid))
    }
}

impl Imap {
    /// Connects and logs in; reads time out after [`PATIENCE`].
    pub fn login(server: SocketAddr, account: &str, password: &str) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(server).context("connect")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        let mut client = imap::Client::new(socket.try_clone()?);
        client.read_greeting().context("read the greeting")?;
        let session = client.login(account, password).map_err(|(error, _)| error)?;
        Ok(Self { session, socket })
    }

    /// Runs a command and returns the untagged answers, parsed.
    pub fn command(&mut self, command: &str) -> anyhow::Result<Vec<Response<'static>>> {
        let answer = self
            .session
            .run_command_and_read_response(command)
            .with_context(|| command.to_owned())?;
        let mut rest = answer.as_slice();
        let mut responses = Vec::new();
        while !rest.is_empty() {
            let (after, response) = imap_proto::parser::parse_response(rest)
                .map_err(|_| anyhow::anyhow!("unreadable: {}", rest.escape_ascii()))?;
            responses.push(response.into_owned());
            rest = after;
        }
        Ok(responses)
    }

    /// Opens a mailbox for writing. Unlike the crate's own, it bears a server that says meanwhile that
    /// it waits: Dovecot does, with an untagged NO, for a lock that a power cut has left.
    pub fn select(&mut self, mailbox: &str) -> anyhow::Result<Opened> {
        self.open("SELECT", mailbox)
    }

    /// Opens a mailbox for reading, as [`Imap::select`] does.
    pub fn examine(&mut self, mailbox: &str) -> anyhow::Result<Opened> {
        self.open("EXAMINE", mailbox)
    }

    fn open(&mut self, how: &str, mailbox: &str) -> anyhow::Result<Opened> {
        let quoted = mailbox.replace('\\', "\\\\").replace('"', "\\\"");
        let mut known = Resynced::default();
        for response in self.command(&format!("{how} \"{quoted}\""))? {
            known.learn(&response);
        }
        let told = |value: u32| (value != 0).then_some(value);
        Ok(Opened {
            uid_validity: told(known.uid_validity),
            uid_next: told(known.uid_next),
            exists: known.exists,
        })
    }

    /// Turns QRESYNC on, for this session.
    pub fn enable_qresync(&mut self) -> anyhow::Result<()> {
        self.session.run_command_and_check_ok("ENABLE QRESYNC").context("enable QRESYNC")
    }

    /// Opens a mailbox telling the server what the client knows: UIDVALIDITY and HIGHESTMODSEQ. With
    /// (0, 0) it knows nothing, and the mailbox is opened plainly.
    pub fn resync(&mut self, mailbox: &str, known: (u32, u64)) -> anyhow::Result<Resynced> {
        let parameter = match known {
            (0, _) => "CONDSTORE".to_owned(),
            (uid_validity, modseq) => format!("QRESYNC ({uid_validity} {modseq} 1:4294967295)"),
        };
        let mut known = Resynced::default();
        for response in self.command(&format!("SELECT \"{mailbox}\" ({parameter})"))? {
            known.learn(&response);
        }
        if known.uid_validity == 0 || known.highest_modseq == 0 {
            bail!("SELECT of {mailbox} said neither UIDVALIDITY nor HIGHESTMODSEQ: {known:?}");
        }
        Ok(known)
    }

    /// Idles until `seen` says that an answer is the expected one.
    pub fn idle_until(
        &mut self,
        what: &str,
        mut seen: impl FnMut(&UnsolicitedResponse) -> bool,
    ) -> anyhow::Result<()> {
        let mut log = Vec::new();
        let mut found = false;
        let outcome = {
            let mut idle = self.session.idle();
            idle.timeout(PATIENCE).keepalive(false);
            idle.wait_while(|response| {
                found = seen(&response);
                log.push(format!("{response:?}"));
                !found
            })
        };
        self.socket.set_read_timeout(Some(PATIENCE))?;
        outcome.with_context(|| format!("idle until {what}"))?;
        if !found {
            bail!("idled {PATIENCE:?} without seeing {what}; seen: {log:?}");
        }
        Ok(())
    }

    /// Stops waiting on a server that has nothing to say.
    pub fn set_patience(&self, patience: Duration) -> anyhow::Result<()> {
        self.socket.set_read_timeout(Some(patience)).context("set the socket's time limit")
    }
}

impl Resynced {
    /// Takes in one answer; those that do not concern a resynchronisation change nothing.
    fn learn(&mut self, response: &Response<'_>) {
        if let Response::Data { code: Some(code), .. } = response {
            if let ResponseCode::UidValidity(value) = code {
                self.uid_validity = *value;
            } else if let ResponseCode::UidNext(value) = code {
                self.uid_next = *value;
            } else if let ResponseCode::HighestModSeq(value) = code {
                self.highest_modseq = *value;
            }
        } else if let Response::MailboxData(MailboxDatum::Exists(count)) = response {
            self.exists = *count;
        } else if let Response::Vanished { uids, .. } = response {
            self.vanished.extend(uids.iter().cloned());
        } else if let Response::Fetch(_, attributes) = response {
            self.learn_fetch(attributes);
        }
    }

    fn learn_fetch(&mut self, attributes: &[AttributeValue<'_>]) {
        let mut uid = 0;
        let mut flags = Vec::new();
        for attribute in attributes {
            if let AttributeValue::Uid(value) = attribute {
                uid = *value;
            } else if let AttributeValue::Flags(names) = attribute {
                flags = names.iter().map(ToString::to_string).collect();
            }
        }
        self.fetched.push((uid, flags));
    }
}

impl Deref for Imap {
    type Target = imap::Session<TcpStream>;

    fn deref(&self) -> &Self::Target {
        &self.session
    }
}

impl DerefMut for Imap {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.session
    }
}
