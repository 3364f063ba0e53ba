//! An agent with a valid key that wants all of a replica's memory: it gets a bounded amount (I9).

use std::fs;

use anyhow::ensure;
use mailtwin_host::net::Kind;
use mailtwin_logic::{
    ids::{Guid, MailboxId, Uid},
    limits::{CHUNK_OCTETS, SLICE_CHANGES},
    mailbox::Record,
    plan::{Change, Step},
    wire::message::{Apply, Reply, Request, encode},
};
use mailtwin_tests::{
    hostile::{BODY, MEMORY_MAX, Site, account, build, mailbox, record},
    lab::Lab,
    peer::Peer,
};

#[test]
fn floods_take_bounded_memory() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut site = Site::new(lab)?;
        // Connections: each new one of the same agent ends the one before.
        let mut open = Vec::new();
        for _ in 0..80 {
            open.push(site.greet()?);
        }
        drop(open);
        // As many applies as there may be, none of which ends, with as much sent as is taken.
        let mut peer = site.greet()?;
        let endless = |number: usize| {
            let record = Record { octets: u64::MAX, guid: Guid([2; 20]), ..record(1) };
            Apply { changes: vec![Change::Add(record)], ..build("u1", &format!("E{number}")) }
        };
        let chunk = vec![7; CHUNK_OCTETS];
        let mut streams = Vec::new();
        for number in 0..60 {
            streams.push(peer.open(&encode(&Request::Apply(endless(number))))?);
        }
        for stream in streams.repeat(20) {
            // It is taken as fast as it can be staged, or not at all.
            if peer.frame(Kind::Octets, stream, &chunk).is_err() {
                break;
            }
        }
        drop(peer);
        let mut peer = site.greet()?;
        let stream = peer.open(&encode(&Request::Apply(endless(0))))?;
        peer.frame(Kind::Octets, stream, &[&chunk[..], b"x"].concat())?;
        while let Some(frame) = peer.receive()? {
            ensure!(frame.stream == stream, "a frame that is too long is taken");
        }
        begin_builds(&mut site.greet()?)?;
        refuse_long_lists(&site)?;
        ask_without_end(&mut site.greet()?)?;
        let peak = site.pair.copy.memory_peak()?;
        site.greet()?.expect_answer()?;
        ensure!(peak <= MEMORY_MAX, "it took {} MiB", peak >> 20);
        let home = site.pair.replica.home("u1");
        if home.exists() {
            fs::remove_dir_all(home)?;
        }
        site.expect_unharmed(lab)
    })
}

/// Builds that are begun and never finished.
fn begin_builds(peer: &mut Peer) -> anyhow::Result<()> {
    let mut begun = 0;
    for number in 0..2000 {
        let apply = Apply { last: false, ..build("u1", &format!("B{number}")) };
        match peer.apply(apply, &[BODY]) {
            Ok(Some(Reply::Applied(_))) => begun += 1,
            Ok(_) | Err(_) => break,
        }
    }
    ensure!((32..2000).contains(&begun), "{begun} builds at once");
    Ok(())
}

/// Lists that are as long as they could be made, where they may not be.
fn refuse_long_lists(site: &Site) -> anyhow::Result<()> {
    let keywords = vec![String::new(); 900_000];
    let changes = vec![Change::Expunge(Uid(1)); SLICE_CHANGES + 1];
    for apply in [Apply { keywords, ..build("u1", "K") }, Apply { changes, ..build("u1", "C") }] {
        let mut peer = site.greet()?;
        let answer = peer.ask(&encode(&Request::Apply(apply)))?;
        ensure!(answer.is_none(), "too long a list: {answer:?}");
    }
    let step = |n: u32| Step::Delete { id: MailboxId([1; 16]), name: mailbox(&n.to_string()) };
    let steps: Vec<Step> = (0..40_000).map(step).collect();
    let mut peer = site.greet()?;
    let answer = peer.ask(&encode(&Request::Restructure { account: account("u1"), steps }))?;
    ensure!(matches!(answer, Some(Reply::Stale(_) | Reply::Failed(_))), "{answer:?}");
    Ok(())
}

/// Accounts and mailboxes that are not there, again and again, and questions whose answers nobody
/// takes.
fn ask_without_end(peer: &mut Peer) -> anyhow::Result<()> {
    for number in 0..20_000 {
        let name = format!("{number}{}", "x".repeat(200));
        let request = Request::Records { account: account(&name), mailbox: MailboxId([1; 16]) };
        let answer = peer.ask(&encode(&request))?;
        ensure!(matches!(answer, Some(Reply::Records { state: None, .. } | Reply::Failed(_))));
    }
    let unheard = (0..60_000).find(|_| peer.open(&encode(&Request::Accounts)).is_err());
    ensure!(unheard.is_some(), "there is an end to what waits for being taken");
    Ok(())
}
