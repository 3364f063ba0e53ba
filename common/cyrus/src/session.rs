//! One connection's conversation as a machine: commands in, octets out; octets in, outcomes out.
//!
//! ```text
//! Greeting ──* OK──▶ Idle ──begin()──▶ Asked ──OK / NO / BAD──▶ Idle
//!     │                                  │
//!     └────────── BYE, Fatal ────────────┴──▶ the connection is of no more use
//! ```

use crate::{
    dlist::{DlistError, Value, text},
    frame::{FrameError, Framer},
};

/// Answers to one command that are taken.
const ANSWERS_MAX: usize = 1_000_000;

/// How commands are dressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Bare, as `sync_server` takes them.
    Csync,
    /// With a tag and the prefix `SYNC`, as `imapd` takes them.
    Imap,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// SASL PLAIN with an initial response.
    Login {
        /// Who; an admin of the server.
        user: &'a str,
        /// Their password.
        password: &'a str,
    },
    /// Reads.
    Get(&'a str, &'a Value),
    /// Writes.
    Apply(&'a str, &'a Value),
    /// Drops what this session has staged.
    Restart,
    /// Nothing: it is answered if the session is still there.
    Noop,
    /// From its answer on all is encrypted (RFC 3501, section 6.2.1).
    StartTls,
    /// Mailboxes that match, as IMAP names them; over IMAP only.
    List(&'a str),
    /// The same with any of these patterns (RFC 5258, section 3).
    ListAny(&'a [String]),
}

/// One line of an answer: `* NAME value …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What it is.
    pub name: String,
    /// What it says.
    pub values: Vec<Value>,
}

impl Answer {
    /// The name that a line of LIST tells, and whether it is a place in the hierarchy only.
    pub fn listed(&self) -> Option<(&[u8], bool)> {
        let ("LIST", [flags, _, name]) = (&self.name[..], &self.values[..]) else { return None };
        let is_place = |flag: &Value| {
            let flag = flag.as_text().unwrap_or_default();
            [&b"\\Noselect"[..], b"\\NonExistent"].iter().any(|f| f.eq_ignore_ascii_case(flag))
        };
        Some((name.as_text()?, flags.as_list()?.iter().any(is_place)))
    }

    /// The internal names that a line of LSUB tells.
    pub fn subscribed(&self) -> impl Iterator<Item = &[u8]> {
        let names = self.values.first().and_then(Value::as_list).unwrap_or_default();
        // What tells the form of Cyrus's own file is told like a name.
        names.iter().filter_map(Value::as_text).filter(|name| *name != b"VER")
    }

    /// What a line of LIST says to stand between the parts of a name.
    pub fn separator(&self) -> Option<u8> {
        self.values.get(1)?.as_text()?.first().copied()
    }
}

/// A command that the server refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// The line, without `NO` or `BAD` and the tag; its first word may be a code like
    /// `IMAP_SYNC_CHECKSUM`.
    pub text: String,
}

impl Refusal {
    /// Whether it has this code.
    pub fn is(&self, code: &str) -> bool {
        self.text.split(' ').next() == Some(code)
    }
}

/// How a command, or the greeting, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well, with these answers.
    Done(Vec<Answer>),
    /// The server will not.
    Refused(Refusal),
    /// The server ends the connection, and says why.
    Closing(String),
}

/// Octets that are not this protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Not even lines.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Lines with broken values.
    #[error(transparent)]
    Dlist(#[from] DlistError),
    /// A line that may not stand where it does.
    #[error("unexpected line {0:?}")]
    Unexpected(String),
    /// More lines than one command has.
    #[error("more than {ANSWERS_MAX} answers to one command")]
    TooMany,
}

/// The machine. It waits for the greeting first.
#[derive(Debug)]
pub struct Session {
    dialect: Dialect,
    framer: Framer,
    serial: u32,
    greeted: bool,
    answers: Vec<Answer>,
}

impl Session {
    /// At the beginning of a connection.
    pub fn new(dialect: Dialect) -> Self {
        let (framer, answers) = (Framer::default(), Vec::new());
        Self { dialect, framer, serial: 0, greeted: false, answers }
    }

    /// The same connection behind [`Command::StartTls`], encrypted: csync greets once more. What came in
    /// behind the answer was said in the clear, by anybody.
    pub fn encrypted(self) -> Result<Self, ProtocolError> {
        if !self.framer.is_empty() {
            return Err(ProtocolError::Unexpected("octets behind STARTTLS".to_owned()));
        }
        let greeted = self.dialect == Dialect::Imap;
        Ok(Self { greeted, ..Self::new(self.dialect) })
    }

    /// The octets that begin `command`. The one before has ended.
    pub fn begin(&mut self, command: &Command<'_>) -> Vec<u8> {
        self.serial = self.serial.wrapping_add(1);
        let mut wire = match self.dialect {
            Dialect::Csync => Vec::new(),
            Dialect::Imap => format!("T{} ", self.serial).into_bytes(),
        };
        let prefix = if self.dialect == Dialect::Imap { "SYNC" } else { "" };
        let mut verb = |verb: &str, name: &str, value: &Value| {
            wire.extend_from_slice(format!("{prefix}{verb} {name} ").as_bytes());
            value.encode(&mut wire);
        };
        match command {
            Command::Get(name, value) => verb("GET", name, value),
            Command::Apply(name, value) => verb("APPLY", name, value),
            Command::Restart => wire.extend_from_slice(format!("{prefix}RESTART").as_bytes()),
            Command::Noop => wire.extend_from_slice(b"NOOP"),
            Command::StartTls => wire.extend_from_slice(b"STARTTLS"),
            Command::List(pattern) => {
                wire.extend_from_slice(b"LIST \"\" ");
                Value::text(pattern).encode(&mut wire);
            }
            Command::ListAny(patterns) => {
                wire.extend_from_slice(b"LIST \"\" ");
                Value::List(patterns.iter().map(Value::text).collect()).encode(&mut wire);
            }
            Command::Login { user, password } => {
                let plain = format!("\0{user}\0{password}");
                wire.extend_from_slice(b"AUTHENTICATE PLAIN ");
                wire.extend_from_slice(base64(plain.as_bytes()).as_bytes());
            }
        }
        wire.extend_from_slice(b"\r\n");
        wire
    }

    /// Takes octets as they come; gives the outcome once it is whole.
    pub fn receive(&mut self, octets: &[u8]) -> Result<Option<Outcome>, ProtocolError> {
        self.framer.feed(octets);
        while let Some(line) = self.framer.next_line()? {
            if let Some(outcome) = self.line(&line)? {
                return Ok(Some(outcome));
            }
        }
        Ok(None)
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<Outcome>, ProtocolError> {
        let Some(rest) = line.strip_prefix(b"* ") else { return self.last_line(line) };
        let words = printable(rest);
        let first = words.split(' ').next().unwrap_or_default();
        match first {
            "BYE" | "Fatal" => return Ok(Some(Outcome::Closing(words))),
            "OK" | "PREAUTH" if !self.greeted => {
                self.greeted = true;
                return Ok(Some(Outcome::Done(Vec::new())));
            }
            "OK" | "NO" | "BAD" | "PREAUTH" | "CAPABILITY" | "FLAGS" | "ENABLED" => {
                return Ok(None);
            }
            _ if !self.greeted || first.bytes().all(|octet| octet.is_ascii_digit()) => {
                return Ok(None);
            }
            _ => {}
        }
        if self.answers.len() >= ANSWERS_MAX {
            return Err(ProtocolError::TooMany);
        }
        self.answers.push(answer(rest)?);
        Ok(None)
    }

    /// A line without `* `: how the command ended.
    fn last_line(&mut self, line: &[u8]) -> Result<Option<Outcome>, ProtocolError> {
        let words = printable(line);
        let unexpected = || ProtocolError::Unexpected(words.chars().take(200).collect());
        if words.starts_with("BYE ") {
            return Ok(Some(Outcome::Closing(words)));
        }
        if !self.greeted {
            return Err(unexpected());
        }
        let rest = match self.dialect {
            Dialect::Csync => Some(&words[..]),
            Dialect::Imap => words.strip_prefix(&format!("T{} ", self.serial)),
        };
        let (status, text) = rest.ok_or_else(unexpected)?.split_once(' ').unwrap_or_default();
        match status {
            "OK" => Ok(Some(Outcome::Done(std::mem::take(&mut self.answers)))),
            "NO" | "BAD" => {
                self.answers.clear();
                Ok(Some(Outcome::Refused(Refusal { text: text.to_owned() })))
            }
            _ => Err(unexpected()),
        }
    }
}

fn answer(mut rest: &[u8]) -> Result<Answer, DlistError> {
    let name = text(&mut rest)?.ok_or(DlistError::Malformed)?;
    let name = String::from_utf8(name).map_err(|_| DlistError::Malformed)?;
    let mut values = Vec::new();
    loop {
        match rest {
            [b' ', behind @ ..] => rest = behind,
            [b'\r', b'\n'] | [b'\n'] | [] => return Ok(Answer { name, values }),
            _ => values.push(Value::parse(&mut rest)?),
        }
    }
}

/// A line for humans, at most some hundred octets of it.
fn printable(line: &[u8]) -> String {
    let line = line.get(..line.len().min(400)).unwrap_or_default();
    String::from_utf8_lossy(line.trim_ascii_end()).into_owned()
}

fn base64(octets: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in octets.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, &octet| bits << 8 | u32::from(octet));
        let bits = bits << (8 * (3 - group.len()));
        for place in 0..4_usize {
            let digit = usize::try_from(bits >> (18 - 6 * place) & 63).unwrap_or(0);
            let digit = DIGITS.get(digit).copied().map_or('=', char::from);
            text.push(if place > group.len() { '=' } else { digit });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeted(dialect: Dialect) -> Session {
        let mut session = Session::new(dialect);
        let banner = b"* SASL PLAIN\r\n* COMPRESS DEFLATE\r\n* OK mx1 Cyrus sync server\r\n";
        assert_eq!(session.receive(banner), Ok(Some(Outcome::Done(Vec::new()))));
        session
    }

    #[test]
    fn a_conversation_in_each_dialect() {
        for (dialect, sent, end) in [
            (Dialect::Csync, &b"GET USER alice\r\n"[..], "OK success\r\n"),
            (Dialect::Imap, b"T1 SYNCGET USER alice\r\n", "T1 OK success\r\n"),
        ] {
            let mut session = greeted(dialect);
            let wire = session.begin(&Command::Get("USER", &Value::text("alice")));
            assert_eq!(wire, sent);
            let lines = b"* OK [ALERT] hi\r\n* LSUB (user.alice)\r\n* MESSAGE NIL\r\n";
            assert_eq!(session.receive(lines), Ok(None));
            let Ok(Some(Outcome::Done(answers))) = session.receive(end.as_bytes()) else {
                panic!("it is done");
            };
            let names: Vec<&str> = answers.iter().map(|answer| &answer.name[..]).collect();
            assert_eq!(names, ["LSUB", "MESSAGE"]);
            assert_eq!(answers[1].values, [Value::Nil]);
        }
    }

    #[test]
    fn refusals_and_ends_are_told_apart() {
        let mut session = greeted(Dialect::Csync);
        session.begin(&Command::Restart);
        let refused = session.receive(b"NO IMAP_SYNC_CHECKSUM Checksum Failure\r\n").unwrap();
        let Some(Outcome::Refused(refusal)) = refused else { panic!("{refused:?}") };
        assert!(refusal.is("IMAP_SYNC_CHECKSUM") && !refusal.is("IMAP_SYNC"));
        for bye in
            [&b"BYE shutting down\r\n"[..], b"* Fatal error: word too long\r\n", b"* BYE x\r\n"]
        {
            let mut session = greeted(Dialect::Csync);
            assert!(matches!(session.receive(bye), Ok(Some(Outcome::Closing(_)))));
        }
        assert!(greeted(Dialect::Csync).receive(b"HELLO there\r\n").is_err());
        assert!(greeted(Dialect::Imap).receive(b"T9 OK not mine\r\n").is_err());
        assert!(Session::new(Dialect::Csync).receive(b"220 smtp.example.org\r\n").is_err());
    }

    #[test]
    fn what_is_said_before_tls_counts_for_nothing() {
        for dialect in [Dialect::Csync, Dialect::Imap] {
            let answer = if dialect == Dialect::Imap { "T1 OK begin\r\n" } else { "OK begin\r\n" };
            for injected in ["", "* OK hello\r\n", "x"] {
                let mut session = greeted(dialect);
                session.begin(&Command::StartTls);
                let octets = format!("{answer}{injected}");
                let begun = session.receive(octets.as_bytes());
                assert_eq!(begun, Ok(Some(Outcome::Done(Vec::new()))));
                assert_eq!(session.encrypted().is_ok(), injected.is_empty(), "{injected:?}");
            }
        }
    }

    #[test]
    fn login_is_plain() {
        let login = Command::Login { user: "repl", password: "replpw" };
        let wire = Session::new(Dialect::Csync).begin(&login);
        assert_eq!(wire, b"AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n");
        for (text, want) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
            assert_eq!(base64(text.as_bytes()), want);
        }
    }
}
