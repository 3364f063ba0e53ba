//! One replica's position in the sync log, durable in `<state>/cursors/<replica>.json`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use mailtwin_disk::{
    DiskError, dir,
    replace::{self, replace},
};
use mailtwin_logic::{
    cursor::Cursor,
    evidence::Acked,
    ids::{LogId, LogSeq},
};
use serde::{Deserialize, Serialize};

/// Format of the file.
const VERSION: u32 = 1;

/// A cursor and the file that keeps it. It moves by evidence and never falls, except by
/// [`CursorFile::reset`].
#[derive(Debug)]
pub struct CursorFile {
    path: PathBuf,
    cursor: Cursor,
    found: Found,
}

/// What was in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A position in this log.
    Kept,
    /// Nothing: the replica is new.
    New,
    /// A position in another log: all must be compared.
    OtherLog(LogId),
    /// Nothing that can be read: all must be compared.
    Damaged(String),
}

#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    log: String,
    seq: LogSeq,
}

/// Why a cursor cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum CursorError {
    /// The replica's name cannot be a file's.
    #[error("keep a cursor for replica `{0}`: the name cannot be that of a file")]
    Name(String),
    /// The operating system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl CursorFile {
    /// Reads the cursor of `replica` in the log `log`. If there is none in that log it stands before
    /// everything, and nothing is written until it moves.
    pub fn open(state_dir: &Path, replica: &str, log: LogId) -> Result<Self, CursorError> {
        if replica.is_empty() || replica.starts_with('.') || replica.contains(['/', '\0']) {
            return Err(CursorError::Name(replica.to_string()));
        }
        let dir = state_dir.join("cursors");
        dir::create(&dir, 0o700)?;
        let path = dir.join(format!("{replica}.json"));
        let (seq, found) = match fs::read_to_string(&path) {
            Ok(text) => parse(&text, log),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (LogSeq(0), Found::New),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                (LogSeq(0), Found::Damaged(error.to_string()))
            }
            Err(error) => return Err(DiskError::during("read", &path)(error).into()),
        };
        if let Found::OtherLog(_) | Found::Damaged(_) = found {
            tracing::warn!(
                code = "no-cursor",
                replica,
                ?found,
                "no cursor in this sync log; comparing everything"
            );
        }
        Ok(Self { path, cursor: Cursor { log, seq }, found })
    }

    /// Position up to which the replica has everything.
    pub fn seq(&self) -> LogSeq {
        self.cursor.seq
    }

    /// Position and log, for [`mailtwin_logic::cursor::Extent::claim`].
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// What was in the file when it was opened.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Moves to where `acked` proves the replica is, though not beyond `tail`, the log's newest durable
    /// entry: after a crash, another one may stand there. Durable on return. When that fails the
    /// cursor stays where it was; it never falls.
    pub fn advance(&mut self, acked: Acked, tail: LogSeq) -> Result<(), DiskError> {
        let seq = acked.upto().min(tail);
        if seq <= self.cursor.seq { Ok(()) } else { self.put(seq) }
    }

    /// Moves to `seq` without evidence, back or forth: the caller has everything compared from
    /// now on.
    pub fn reset(&mut self, seq: LogSeq) -> Result<(), DiskError> {
        self.put(seq)
    }

    fn put(&mut self, seq: LogSeq) -> Result<(), DiskError> {
        let text = render(self.cursor.log, seq);
        replace(&self.path, text.as_bytes(), replace::PRIVATE)?;
        self.cursor.seq = seq;
        Ok(())
    }
}

fn render(log: LogId, seq: LogSeq) -> String {
    let saved = serde_json::json!({ "version": VERSION, "log": log.to_string(), "seq": seq });
    format!("{saved}\n")
}

/// Fuzz target: a cursor is written so that it is read as the same, and one that is not in this log
/// stands before everything.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    let log = LogId([7; 16]);
    let text = String::from_utf8_lossy(input);
    let (seq, found) = parse(&text, log);
    if found == Found::Kept {
        assert_eq!(parse(&render(log, seq), log), (seq, Found::Kept));
    } else {
        assert_eq!(seq, LogSeq(0));
    }
}

fn parse(text: &str, log: LogId) -> (LogSeq, Found) {
    let saved: Saved = match serde_json::from_str(text) {
        Ok(saved) => saved,
        Err(error) => return (LogSeq(0), Found::Damaged(error.to_string())),
    };
    if saved.version != VERSION {
        let why = format!("it is of version {}, not {VERSION}", saved.version);
        return (LogSeq(0), Found::Damaged(why));
    }
    match saved.log.parse::<LogId>() {
        Ok(id) if id == log => (saved.seq, Found::Kept),
        Ok(id) => (LogSeq(0), Found::OtherLog(id)),
        Err(error) => (LogSeq(0), Found::Damaged(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mailtwin_logic::link::{Action, Input, Link, Outcome};

    use super::*;

    const LOG: LogId = LogId([3; 16]);

    /// Only the link machine gives evidence: a link that visits everything once.
    fn acked(upto: LogSeq) -> Acked {
        let mut link = Link::new(LogSeq(0), LogSeq(0));
        let mut inputs = vec![
            Input::Tick,
            Input::Connected,
            Input::Welcome,
            Input::Appended(upto),
            Input::Entries(Vec::new(), upto),
        ];
        let mut saved = None;
        while !inputs.is_empty() {
            let mut actions = Vec::new();
            link.on(Duration::ZERO, inputs.remove(0), &mut actions);
            for action in actions {
                match action {
                    Action::Visit(target) => {
                        inputs.push(Input::Visited(target, Outcome::Done(Vec::new())));
                    }
                    Action::Save(acked) => saved = Some(acked),
                    Action::Dial
                    | Action::Greet
                    | Action::Read(_)
                    | Action::Release(_)
                    | Action::Close => {}
                }
            }
        }
        saved.expect("the link saves")
    }

    #[test]
    fn moves_by_evidence_and_is_there_after_reopening() {
        let root = tempfile::tempdir().unwrap();
        let mut cursor = CursorFile::open(root.path(), "mx2", LOG).unwrap();
        assert_eq!((cursor.seq(), cursor.found()), (LogSeq(0), &Found::New));
        let tail = LogSeq(9);
        cursor.advance(acked(LogSeq(7)), tail).unwrap();
        cursor.advance(acked(LogSeq(5)), tail).unwrap();
        assert_eq!(cursor.seq(), LogSeq(7));
        let mut cursor = CursorFile::open(root.path(), "mx2", LOG).unwrap();
        assert_eq!((cursor.seq(), cursor.found()), (LogSeq(7), &Found::Kept));
        cursor.reset(LogSeq(2)).unwrap();
        let cursor = CursorFile::open(root.path(), "mx2", LOG).unwrap();
        assert_eq!(cursor.cursor(), Cursor { log: LOG, seq: LogSeq(2) });
    }

    #[test]
    fn never_stands_beyond_what_is_durable_in_the_log() {
        let root = tempfile::tempdir().unwrap();
        let mut cursor = CursorFile::open(root.path(), "mx2", LOG).unwrap();
        for (tail, expected) in [(4, 4), (3, 4), (6, 6), (9, 7)] {
            cursor.advance(acked(LogSeq(7)), LogSeq(tail)).unwrap();
            assert_eq!(cursor.seq(), LogSeq(expected), "the log is durable up to {tail}");
        }
    }

    #[test]
    fn another_log_and_damage_stand_before_everything() {
        let root = tempfile::tempdir().unwrap();
        let mut cursor = CursorFile::open(root.path(), "mx2", LOG).unwrap();
        cursor.reset(LogSeq(9)).unwrap();
        let other = CursorFile::open(root.path(), "mx2", LogId([4; 16])).unwrap();
        assert_eq!((other.seq(), other.found()), (LogSeq(0), &Found::OtherLog(LOG)));
        for damaged in [&b""[..], b"{", b"\xff", b"{\"version\":9,\"log\":\"\",\"seq\":1}"] {
            replace(&root.path().join("cursors/mx2.json"), damaged, replace::PRIVATE).unwrap();
            let cursor = CursorFile::open(root.path(), "mx2", LOG).unwrap();
            assert_eq!(cursor.seq(), LogSeq(0));
            assert!(matches!(cursor.found(), Found::Damaged(_)), "{:?}", cursor.found());
        }
    }

    #[test]
    fn a_name_that_leaves_the_directory_is_refused() {
        let root = tempfile::tempdir().unwrap();
        for name in ["", "..", "a/b", ".hidden"] {
            assert!(CursorFile::open(root.path(), name, LOG).is_err(), "{name}");
        }
    }
}
