//! Log lines in the journal's own protocol: with a level that it knows, and each field to be searched for.
//!
//! Not through `tracing-journald`: there the message is the sentence alone, and whoever looks with plain
//! `journalctl` sees neither which replica nor why.

use std::{
    io::{self, Write as _},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    fmt::{
        FormatFields as _,
        format::{DefaultFields, Writer},
    },
    layer::Context,
};

const SOCKET: &str = "/run/systemd/journal/socket";

/// What the names of our fields begin with; the others are the journal's own.
const PREFIX: &str = "MAILTWIN_";

/// The journal, as a place for log lines.
#[derive(Debug)]
pub(crate) struct Journal {
    ours: UnixDatagram,
    path: PathBuf,
    program: String,
}

impl Journal {
    /// The journal, if that is what stands behind stderr. A program that was started with its stderr
    /// elsewhere has inherited the variable, but not the stream that it names.
    pub(crate) fn behind_stderr() -> Option<Self> {
        let named = std::env::var("JOURNAL_STREAM").ok()?;
        let found = rustix::fs::fstat(io::stderr()).ok()?;
        let is_it = named == format!("{}:{}", found.st_dev, found.st_ino);
        is_it.then(|| Self::at(Path::new(SOCKET))).and_then(Result::ok)
    }

    fn at(path: &Path) -> io::Result<Self> {
        let program = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
        let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { ours: UnixDatagram::unbound()?, path: path.to_owned(), program })
    }

    fn entry(&self, priority: &str, text: &str, event: &Event<'_>) -> Vec<u8> {
        let mut entry = Entry::default();
        entry.put("PRIORITY", priority);
        // The kernel's name of the program, which it is called by otherwise, ends after 15 characters.
        entry.put("SYSLOG_IDENTIFIER", &self.program);
        entry.put("MESSAGE", text);
        event.record(&mut entry);
        entry.0
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let (priority, mut text) = (priority(*event.metadata().level()), String::new());
        // The sentence and its fields, as on a terminal. Writing to a string does not fail.
        let _ = DefaultFields::new().format_fields(Writer::new(&mut text), event);
        let entry = self.entry(priority, &text, event);
        if self.ours.send_to(&entry, &self.path).is_err() {
            // An entry too large, or a sandbox without the socket: the stream takes text of any length,
            // and there is nobody to tell if it does not.
            let _ = writeln!(io::stderr(), "<{priority}>{text}");
        }
    }
}

/// The number that syslog has for a level.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

/// One entry, as it is sent.
#[derive(Default)]
struct Entry(Vec<u8>);

impl Entry {
    /// Adds a field, in the form whose value may contain anything.
    fn put(&mut self, name: &str, value: &str) {
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        // The sentence is in MESSAGE.
        if field.name() != "message" {
            self.put(&name(field.name()), value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// What a field is called in the journal, which takes capitals, digits and `_` only.
fn name(field: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    PREFIX.chars().chain(field.chars().map(letter)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Reads an entry as the journal does.
    fn read(mut entry: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while !entry.is_empty() {
            let end = entry.iter().position(|octet| *octet == b'\n').unwrap();
            let (name, rest) = entry.split_at(end);
            let (length, rest) = rest[1..].split_at(8);
            let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
            let text = |octets: &[u8]| String::from_utf8(octets.to_vec()).unwrap();
            fields.insert(text(name), text(&rest[..length]));
            assert_eq!(rest[length], b'\n');
            entry = &rest[length + 1..];
        }
        fields
    }

    #[test]
    fn a_line_has_its_level_its_text_and_its_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let theirs = UnixDatagram::bind(&path).unwrap();
        let journal = tracing_subscriber::registry().with(Journal::at(&path).unwrap());
        tracing::subscriber::with_default(journal, || {
            let why = "connect:\nConnection refused";
            tracing::warn!(code = "not-connected", retry_ms = 1200, %why, "not {}", "connected");
        });
        let mut octets = [0; 4096];
        let length = theirs.recv(&mut octets).unwrap();
        let fields = read(&octets[..length]);
        let got = |name: &str| fields.get(name).map(String::as_str);
        assert_eq!(got("PRIORITY"), Some("4"));
        assert!(
            got("SYSLOG_IDENTIFIER").is_some_and(|program| program.starts_with("mailtwin_host"))
        );
        assert_eq!(
            got("MESSAGE"),
            Some(
                "not connected code=\"not-connected\" retry_ms=1200 why=connect:\nConnection refused"
            )
        );
        assert_eq!(got("MAILTWIN_CODE"), Some("not-connected"));
        assert_eq!(got("MAILTWIN_RETRY_MS"), Some("1200"));
        assert_eq!(got("MAILTWIN_WHY"), Some("connect:\nConnection refused"));
        assert_eq!(fields.len(), 6, "{fields:?}");
    }
}
