//! Fuzz targets: octets from the wire, the admin socket, the configuration and the state directory
//! (docs/testing.md says how they are run).

use std::{
    io,
    path::Path,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use mailtwin_logic::{
    ids::Account,
    limits::{BLOCKERS_MAX, FRAME_OCTETS_MAX, SLICE_CHANGES, WIRE_KEYWORDS_MAX},
    mailbox::{FileKey, Keywords, MailboxName},
    plan::Change,
    wire::message::{Abort, Apply, Control, Greeting, Hello, Reply, Request, decode, encode},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, ReadBuf};

use crate::{
    admin,
    config::{Config, parse_duration},
    keys::PublicKey,
    net::{Frame, FrameReader, FrameWriter},
    node::Node,
    pins,
    proof::Proof,
};

/// Frames, in slices of the size that the first octet says: the slices make no difference, and no
/// frame is longer than it may be.
pub fn frames(input: &[u8]) {
    let Some((&slice, content)) = input.split_first() else { return };
    let (whole, ended) = read_frames(content, usize::MAX);
    let (sliced, ended_too) = read_frames(content, 1 + usize::from(slice));
    assert_eq!((&whole, ended), (&sliced, ended_too));
    assert!(whole.iter().all(|frame| frame.payload.len() <= FRAME_OCTETS_MAX));
    let mut writer = FrameWriter::new(Vec::new());
    for frame in &whole {
        now(writer.send(frame)).expect("a frame that came can be sent");
    }
    now(writer.flush()).expect("memory can be written");
    let written = writer.into_inner();
    assert!(content.starts_with(&written) && (!ended || written.len() == content.len()));
}

fn read_frames(octets: &[u8], slice: usize) -> (Vec<Frame>, bool) {
    let mut reader = FrameReader::new(Slices { octets, slice });
    let mut frames = Vec::new();
    loop {
        match now(reader.next()) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, true),
            Err(_) => return (frames, false),
        }
    }
}

/// Gives its octets in slices, and never makes anybody wait.
struct Slices<'a> {
    octets: &'a [u8],
    slice: usize,
}

impl AsyncRead for Slices<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let some = self.octets.len().min(self.slice).min(buffer.remaining());
        let (now, later) = self.octets.split_at(some);
        buffer.put_slice(now);
        self.octets = later;
        Poll::Ready(Ok(()))
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => unreachable!("nothing here waits"),
    }
}

/// What an agent says, greeting included: names are names, and lists no longer than they may be.
pub fn requests(input: &[u8]) {
    let Some((&kind, payload)) = input.split_first() else { return };
    match kind % 4 {
        0 => drop(again::<Hello>(payload)),
        1 => drop(again::<Control>(payload)),
        2 => drop(again::<Abort>(payload)),
        _ => match again::<Request>(payload) {
            Some(
                Request::Accounts
                | Request::Preflight
                | Request::Promote { .. }
                | Request::Merged { .. }
                | Request::Tree
                | Request::Branch(_)
                | Request::Inspect(_)
                | Request::About,
            )
            | None => {}
            Some(
                Request::Account(account)
                | Request::Records { account, .. }
                | Request::Adopt { account, .. }
                | Request::Fetch { account, .. }
                | Request::GiveUp { account, .. },
            ) => assert_account(&account),
            Some(Request::Graves { account, mailbox, .. }) => {
                assert_account(&account);
                assert_mailbox(&mailbox);
            }
            Some(Request::Mend { account, record, .. }) => {
                assert_account(&account);
                assert_keywords(&record.keywords);
            }
            Some(Request::Restructure { account, steps }) => {
                assert_account(&account);
                assert!(steps.len() <= payload.len());
            }
            Some(Request::SetFile { account, key, .. }) => {
                assert_account(&account);
                if let FileKey::Acl(name) | FileKey::Sieve(name) | FileKey::Annotations(name) = key
                {
                    assert_mailbox(&name);
                }
            }
            Some(Request::Apply(apply)) => assert_apply(&apply),
        },
    }
}

fn assert_apply(apply: &Apply) {
    assert_account(&apply.account);
    assert_mailbox(&apply.name);
    assert!(apply.keywords.len() <= WIRE_KEYWORDS_MAX && apply.changes.len() <= SLICE_CHANGES);
    for change in &apply.changes {
        match change {
            Change::Add(record) => assert_keywords(&record.keywords),
            Change::Update { keywords, .. } => assert_keywords(keywords),
            Change::Expunge(_) | Change::Keep(_) => {}
        }
    }
}

fn assert_keywords(keywords: &Keywords) {
    let names: Vec<&str> = keywords.iter().collect();
    assert!(names.len() <= WIRE_KEYWORDS_MAX && names.is_sorted_by(|a, b| a < b));
}

fn assert_account(account: &Account) {
    assert_eq!(Account::new(account.as_str()).as_ref(), Ok(account));
    let parts = || account.as_str().split('/');
    assert!(!parts().any(|part| matches!(part, "." | "..")) && !account.as_str().contains('\0'));
}

fn assert_mailbox(name: &MailboxName) {
    assert_eq!(MailboxName::new(name.as_octets()).as_ref(), Ok(name));
    assert!(!name.parts().any(|part| matches!(part, b"." | b"..") || part.contains(&0)));
}

/// What a replica says, greeting included.
pub fn replies(input: &[u8]) {
    let Some((&kind, payload)) = input.split_first() else { return };
    match kind % 2 {
        0 => drop(again::<Greeting>(payload)),
        _ => match again::<Reply>(payload) {
            Some(Reply::Records { records, .. }) => {
                for record in &records {
                    assert_keywords(&record.keywords);
                }
            }
            Some(Reply::Account { mailboxes, .. }) => {
                for mailbox in &mailboxes {
                    assert_mailbox(&mailbox.name);
                }
            }
            Some(Reply::Accounts { accounts, .. }) => {
                for (account, _) in &accounts {
                    assert_account(account);
                }
            }
            Some(Reply::Ready { blockers, .. }) => assert!(blockers.len() <= BLOCKERS_MAX),
            Some(
                Reply::Done
                | Reply::Need(_)
                | Reply::Applied(_)
                | Reply::Stale(_)
                | Reply::Failed(_)
                | Reply::Tree(_)
                | Reply::Inspected(_)
                | Reply::Grave { .. }
                | Reply::Octets { .. }
                | Reply::FailedMessage(..)
                | Reply::About { .. },
            )
            | None => {}
        },
    }
}

/// Decodes a message, and it again from what it is encoded as.
fn again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    payload: &[u8],
) -> Option<T> {
    let message = decode::<T>(payload)?;
    assert_eq!(decode::<T>(&encode(&message)).as_ref(), Some(&message));
    Some(message)
}

/// The configuration: it is right, or its mistakes are named with lines that it has.
pub fn config(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match Config::parse(Path::new("mailtwin.toml"), &text) {
        Ok(config) => assert!(config.changed_keys(&config).is_empty()),
        Err(problems) => {
            assert!(!problems.is_empty());
            let lines = text.split('\n').count();
            assert!(problems.iter().all(|problem| problem.line <= lines), "{problems:?}");
        }
    }
    let _ = parse_duration(&text);
}

/// Lines on an admin socket, in both directions.
pub fn admin(input: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<admin::Request>(input) {
        let line = serde_json::to_vec(&request).expect("a request can be written");
        assert!(serde_json::from_slice(&line).is_ok_and(|again: admin::Request| again == request));
    }
    if let Ok(response) = serde_json::from_slice::<admin::Response>(input) {
        let line = serde_json::to_vec(&response).expect("an answer can be written");
        assert!(!line.contains(&b'\n'));
    }
}

/// `node.json`, `pins.json`, `failover.jsonl`, the proof of a switch, and keys.
pub fn node_state(input: &[u8]) {
    let path = Path::new("node.json");
    if let Ok(node) = Node::parse(input, path) {
        let octets = node.render().expect("a node can be written");
        assert!(Node::parse(&octets, path).is_ok_and(|again| again == node));
    }
    pins::fuzz(input);
    json_again::<Proof>(input);
    json_again::<admin::HistoryEntry>(input);
    if let Some(key) = PublicKey::from_spki(input) {
        assert_eq!(key.to_string().parse(), Ok(key));
    }
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(key) = text.parse::<PublicKey>()
    {
        assert_eq!(key.to_string(), text);
    }
}

fn json_again<T: Serialize + DeserializeOwned + PartialEq>(input: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(input) {
        let octets = serde_json::to_vec(&value).expect("what was read can be written");
        assert!(serde_json::from_slice::<T>(&octets).is_ok_and(|again| again == value));
    }
}

#[cfg(test)]
mod tests {
    use mailtwin_fuzz::replay;

    #[test]
    fn frames() {
        replay("frames", super::frames);
    }

    #[test]
    fn requests() {
        replay("requests", super::requests);
    }

    #[test]
    fn replies() {
        replay("replies", super::replies);
    }

    #[test]
    fn config() {
        replay("config", super::config);
    }

    #[test]
    fn admin() {
        replay("admin", super::admin);
    }

    #[test]
    fn node_state() {
        replay("node_state", super::node_state);
    }
}
