//! A replica with a valid key that answers nonsense: the agent goes on, never takes it for in sync,
//! takes a bounded amount of memory, and serves a real replica afterwards (I9, I7).

use anyhow::{Context as _, ensure};
use mailtwin_host::net::Kind;
use mailtwin_logic::{
    digest::Digest,
    ids::{Account, Epoch, Guid, LogSeq, MailboxId, ModSeq, Uid, UidValidity},
    limits::FRAME_OCTETS_MAX,
    mailbox::{FileKey, FileState, Flags, Head, Keywords, MailboxName, MailboxState, Record},
    wire::message::{
        Beat, Control, Failure, Greeting, Refusal, Remedy, Reply, Request, VERSION_MAX, decode,
        encode,
    },
};
use mailtwin_tests::{
    corpus,
    daemon::{AGENT, Pair},
    dovecot::{Dovecot, Version},
    lab::Lab,
    peer::Peer,
};

/// What an agent may take at most while it is lied to, in octets.
const MEMORY_MAX: u64 = 300 << 20;

/// Answers of one hostile replica; `false` ends the connection.
type Answers<'a> = &'a dyn Fn(&mut Peer, u32, Option<&Request>) -> anyhow::Result<bool>;

fn name(text: &str) -> MailboxName {
    MailboxName::new(text.as_bytes()).expect("a name that may be sent")
}

fn head(messages: u32) -> Head {
    let (uid_validity, uid_next) = (UidValidity(u32::MAX), Uid(u32::MAX));
    Head { uid_validity, uid_next, messages, digest: Digest::default() }
}

fn state(text: &str) -> MailboxState {
    let id = MailboxId([text.len().to_le_bytes()[0]; 16]);
    MailboxState { id, name: name(text), head: head(7), highest_modseq: ModSeq(1), foreign: 0 }
}

fn record(uid: u32) -> Record {
    Record {
        uid: Uid(uid),
        guid: Guid([1; 20]),
        octets: u64::MAX,
        internal_date: i64::MIN,
        flags: Flags(255),
        keywords: Keywords::default(),
        modseq: ModSeq(u64::MAX),
        replicated: true,
        hint: Box::default(),
    }
}

fn failed(remedy: Remedy) -> Reply {
    let detail = format!("first\n{}", "x".repeat(FRAME_OCTETS_MAX - 100));
    Reply::Failed(Failure { remedy, reason: "no\"word\n".to_owned(), detail })
}

fn welcome(peer: &mut Peer) -> anyhow::Result<()> {
    let node = "replica-node".to_owned();
    let (epoch, merged) = (Epoch(1), Epoch(1));
    let welcome = Greeting::Welcome { version: VERSION_MAX, node, epoch, features: 0, merged };
    peer.message(0, &welcome)
}

/// What the wrong answer to each request is, in turn.
fn wrong(request: &Request) -> Vec<Reply> {
    let account = Account::new("u1").expect("a name");
    let twice = vec![(account, Digest::default()); 2];
    let (records, state_of_it) = (vec![record(9), record(9), record(0)], Some(state("x")));
    match request {
        Request::Accounts => vec![Reply::Accounts { accounts: twice, more: false }],
        Request::Account(_) => {
            let file = FileState { key: FileKey::Acl(name("a")), guid: Guid([1; 20]) };
            let mailboxes = vec![state("b"), state("b"), state(""), state("zzz")];
            let (files, unread) = (vec![file; 3], vec![(name("u"), "x\n".repeat(50_000))]);
            vec![Reply::Account { mailboxes, files, unread, more: false }]
        }
        Request::Records { .. } => {
            vec![Reply::Records { state: state_of_it, records, more: false }]
        }
        Request::Apply(_) => vec![Reply::Need(vec![0, 0, 4_000_000_000]), Reply::Applied(head(1))],
        Request::Preflight
        | Request::Promote { .. }
        | Request::Adopt { .. }
        | Request::Merged { .. }
        | Request::Tree
        | Request::Branch(_)
        | Request::Inspect(_)
        | Request::Fetch { .. }
        | Request::Mend { .. }
        | Request::GiveUp { .. }
        | Request::Graves { .. }
        | Request::About => vec![Reply::Done],
        Request::Restructure { .. } | Request::SetFile { .. } => {
            vec![Reply::Stale(Some(head(3))), Reply::Done, Reply::Done]
        }
    }
}

fn lies(peer: &mut Peer, stream: u32, request: Option<&Request>) -> anyhow::Result<bool> {
    for reply in request.into_iter().flat_map(wrong) {
        peer.message(stream, &reply)?;
    }
    Ok(true)
}

fn mixed_up(peer: &mut Peer, stream: u32, _: Option<&Request>) -> anyhow::Result<bool> {
    peer.message(stream.wrapping_add(1000), &Reply::Done)?;
    for reply in [Reply::Applied(head(1)), Reply::Done, Reply::Need(vec![1])] {
        peer.message(stream, &reply)?;
    }
    Ok(true)
}

fn complains(peer: &mut Peer, stream: u32, request: Option<&Request>) -> anyhow::Result<bool> {
    let remedy = match request {
        Some(Request::Accounts) => {
            peer.message(stream, &Reply::Accounts { accounts: Vec::new(), more: false })?;
            return Ok(true);
        }
        Some(Request::Account(_)) => Remedy::SetAside,
        _ => Remedy::Reconnect,
    };
    peer.message(stream, &failed(remedy))?;
    Ok(true)
}

fn never_ends(peer: &mut Peer, stream: u32, request: Option<&Request>) -> anyhow::Result<bool> {
    let Some(Request::Accounts) = request else { return Ok(true) };
    let mut number: u32 = 0;
    // Until the agent has had enough.
    loop {
        let accounts = (number..number + 20_000).map(|n| (account(n), Digest::default()));
        number += 20_000;
        let part = Reply::Accounts { accounts: accounts.collect(), more: true };
        if peer.message(stream, &part).is_err() {
            return Ok(false);
        }
        ensure!(number < 20_000_000, "the agent takes {number} accounts");
    }
}

fn account(number: u32) -> Account {
    Account::new(&number.to_string()).expect("a name")
}

fn no_reply(peer: &mut Peer, stream: u32, _: Option<&Request>) -> anyhow::Result<bool> {
    peer.frame(Kind::Octets, stream, b"\xff\xff\xff")?;
    Ok(true)
}

fn half_a_frame(peer: &mut Peer, _: u32, _: Option<&Request>) -> anyhow::Result<bool> {
    peer.raw(&[200, 0, 0, 0, 1])?;
    Ok(false)
}

fn too_long(peer: &mut Peer, _: u32, _: Option<&Request>) -> anyhow::Result<bool> {
    peer.raw(&[0xff; 64])?;
    Ok(false)
}

#[test]
fn an_agent_bears_a_replica_that_talks_nonsense() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let master = Dovecot::start(lab, "master", Version::V23)?;
        let replica = Dovecot::start(lab, "replica", Version::V23)?;
        master.deliver("u1", &corpus::short("first"))?;
        let mut pair = Pair::around(lab, master, replica, &["u1"])?;
        let mut imap = pair.master.imap("u1")?;
        imap.create("Work")?;
        imap.append("Work", &corpus::short("work")).finish()?;
        pair.agent.start(lab)?;
        // Greetings first.
        let no = Greeting::Refused { why: Refusal::Version, detail: "no\n".repeat(300_000) };
        for octets in [encode(&no), b"\xff".to_vec(), Vec::new(), encode(&Reply::Done)] {
            let mut peer = Peer::accept(&pair.copy)?;
            peer.frame(Kind::Message, 0, &octets)?;
            // It hangs up.
            while peer.receive()?.is_some() {}
        }
        let kinds: [(&str, Answers<'_>); 7] = [
            ("lies", &lies),
            ("mixed up", &mixed_up),
            ("complains", &complains),
            ("never ends", &never_ends),
            ("no reply", &no_reply),
            ("half a frame", &half_a_frame),
            ("too long a frame", &too_long),
        ];
        for (what, answers) in kinds {
            serve(&pair, answers).with_context(|| what.to_owned())?;
            let status = pair.agent.replctl(lab, &["--output", "json", "status"])?;
            ensure!(!status.stdout.contains("in-sync"), "{what}: {}", status.stdout);
            ensure!(status.stdout.len() < 64 << 10, "{what}: {} octets", status.stdout.len());
            ensure!(pair.agent.daemon()?.is_running(), "{what}: the agent ended");
        }
        let peak = pair.agent.memory_peak()?;
        ensure!(peak <= MEMORY_MAX, "it took {} MiB", peak >> 20);
        let log = pair.agent.log_text(AGENT)?;
        ensure!(!log.contains("panicked"), "something panicked");
        let longest = log.lines().map(str::len).max().unwrap_or(0);
        ensure!(longest < 16 << 10, "a line of {longest} octets in the log");
        pair.copy.start(lab)?;
        pair.wait_equal(lab).context("with a real replica")
    })
}

/// Lets one hostile replica answer one connection, until the agent has nothing more to ask.
fn serve(pair: &Pair, answers: Answers<'_>) -> anyhow::Result<()> {
    let mut peer = Peer::accept(&pair.copy)?;
    welcome(&mut peer)?;
    let beat = Beat { at: 0, head: LogSeq(u64::MAX), cursor: LogSeq(u64::MAX) };
    peer.message(0, &Control::Beat(beat))?;
    let mut beats = 0;
    while beats < 2
        && let Some(frame) = peer.receive()?
    {
        if frame.stream == 0 {
            beats += 1;
            continue;
        }
        // The agent may have hung up meanwhile.
        if !answers(&mut peer, frame.stream, decode(&frame.payload).as_ref()).unwrap_or(false) {
            break;
        }
    }
    Ok(())
}
