//! docs/migration.md, followed to the letter: from Cyrus to Dovecot and the other way, while mail comes
//! in all the time.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, ensure};
use imap::types::Flag;
use mailtwin_tests::{
    corpus,
    cyrus::Cyrus,
    daemon::Node,
    dovecot::{Dovecot, Layout, Version},
    gate::Gatekeeper,
    lab::Lab,
    lmtp,
    oracle::Account,
    server::Server,
};

/// What the page calls the old server and the new one.
const NODES: [&str; 2] = ["mx1", "mx2"];

/// A command of the page that turns a replica into the master.
const SWITCHES: [&str; 2] = ["failover switch --to mx2", "failover switch --to mx1"];

/// The commands of the page's indented blocks, in its order, without `replctl`.
fn page() -> anyhow::Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/migration.md");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let commands = text.lines().filter_map(|line| line.strip_prefix("    replctl "));
    Ok(commands.map(|command| command.trim().to_owned()).collect())
}

#[test]
fn the_page_leads_from_cyrus_to_dovecot_and_back() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let old = Cyrus::start(lab, "old")?;
        migrate(lab, [&old, &dovecot(lab, "new")?])
    })
}

#[test]
fn the_page_leads_from_dovecot_to_cyrus_and_back() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let new = Cyrus::start(lab, "new")?;
        migrate(lab, [&dovecot(lab, "old")?, &new])
    })
}

/// A Dovecot as the page wants it.
fn dovecot(lab: &Lab, name: &str) -> anyhow::Result<Dovecot> {
    Dovecot::with_extra(lab, name, Version::V23, Layout::Fs, "mail_save_crlf = yes")
}

fn migrate(lab: &Lab, servers: [&dyn Server; 2]) -> anyhow::Result<()> {
    servers[0].add_account("u1", true)?;
    servers[1].add_account("u1", false)?;
    let stores = servers.map(|server| (server.name(), server.store_config()));
    let mut nodes = Node::beside(lab, &stores)?;
    let mut gates = Vec::new();
    for (node, server) in nodes.iter().zip(servers) {
        gates.push(Gatekeeper::install(lab, node, server)?);
    }
    fill(servers[0])?;
    nodes.iter_mut().rev().try_for_each(|node| node.start_both(lab))?;
    wait_open(lab, servers, 0)?;
    let commands = page()?;
    let (removal, commands) = commands.split_last().context("commands")?;
    ensure!(removal == "replica remove mx1", "the page ends with {removal}");
    let go_on = AtomicBool::new(true);
    let accepted = thread::scope(|scope| {
        let deliveries = scope.spawn(|| deliver_all_the_while(lab, servers, &go_on));
        let followed = follow(lab, servers, &nodes, commands);
        go_on.store(false, Ordering::Relaxed);
        let accepted = deliveries.join().map_err(|_| anyhow::anyhow!("deliveries panicked"))?;
        followed.map(|()| accepted)
    })?;
    nodes[1].replctl(lab, &["drain"])?.expect(0)?;
    gates.iter().try_for_each(Gatekeeper::open_by_hand)?;
    let ([old, new], wanted) = (read(servers)?, 6 + accepted.len());
    for (name, serials) in [("old", old), ("new", new)] {
        let lost: Vec<_> = accepted.difference(&serials).collect();
        ensure!(lost.is_empty() && serials.len() >= wanted, "{name} lacks {lost:?}: {serials:?}");
    }
    ensure!(!accepted.is_empty(), "mail did flow");
    types(lab, &nodes, 1, removal)
}

/// Types the page's commands, each on the node that is the master then, and compares after each move.
fn follow(
    lab: &Lab,
    servers: [&dyn Server; 2],
    nodes: &[Node],
    commands: &[String],
) -> anyhow::Result<()> {
    let (mut master, mut moved) = (0, Vec::new());
    for command in commands {
        types(lab, nodes, master, command)?;
        if SWITCHES.contains(&command.as_str()) {
            master = 1 - master;
            wait_open(lab, servers, master)?;
            wait_replayed(lab, servers, nodes, master)?;
            moved.push(command.as_str());
        }
    }
    ensure!(moved == SWITCHES, "the page moves there and back: {moved:?}");
    // Who has seen the way back goes on after all.
    types(lab, nodes, 0, SWITCHES[0])?;
    wait_open(lab, servers, 1)?;
    wait_replayed(lab, servers, nodes, 1)
}

/// Types one command of the page on the node at `place`.
fn types(lab: &Lab, nodes: &[Node], place: usize, command: &str) -> anyhow::Result<()> {
    let put_in = |word: &str| {
        let place = NODES.iter().position(|name| *name == word);
        place.map_or(word, |place| nodes[place].name()).to_owned()
    };
    let words: Vec<String> = command.split(' ').map(put_in).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    lab.wait(&format!("{command} does what the page says"), || {
        let output = nodes[place].replctl(lab, &words)?;
        // A lab is no machine: of that, doctor may have something to say. The page has some said again.
        let is_again = ["drain", "failover drill"].iter().any(|again| command.starts_with(again));
        let is_fine =
            output.code == Some(0) || (command.starts_with("doctor") && output.code == Some(1));
        ensure!(is_fine || is_again, "{command}: {output:?}");
        Ok(if is_fine { Ok(()) } else { Err(output.stdout) })
    })
}

/// Mail in several mailboxes, with flags and dates.
fn fill(server: &dyn Server) -> anyhow::Result<()> {
    let mut imap = server.imap("u1")?;
    let date = chrono::DateTime::parse_from_rfc3339("2001-02-03T04:05:06+00:00")?;
    for name in ["Work", "Work/Sub"] {
        imap.create(name)?;
        imap.subscribe(name)?;
    }
    for (number, mailbox) in ["INBOX", "Work", "Work/Sub"].iter().cycle().take(6).enumerate() {
        imap.append(mailbox, &corpus::short(&format!("before-{number}")))
            .flags([Flag::Flagged, Flag::from("$label1")])
            .internal_date(date)
            .finish()?;
    }
    imap.logout()?;
    Ok(())
}

fn wait_open(lab: &Lab, servers: [&dyn Server; 2], master: usize) -> anyhow::Result<()> {
    lab.wait("only the master is open", || {
        let open = servers.map(Server::is_open);
        Ok(if open == [master == 0, master == 1] { Ok(()) } else { Err(format!("{open:?}")) })
    })
}

/// All that the master has is replayed; clients cannot look there yet.
fn wait_replayed(
    lab: &Lab,
    servers: [&dyn Server; 2],
    nodes: &[Node],
    master: usize,
) -> anyhow::Result<()> {
    servers[master].deliver("u1", &corpus::short(&format!("after-the-move-to-{master}")))?;
    lab.wait("everything is replayed", || {
        let output = nodes[master].replctl(lab, &["drain"])?;
        Ok(if output.code == Some(0) { Ok(()) } else { Err(output.stdout) })
    })
}

/// The serial numbers on both sides, which clients see as equal.
fn read(servers: [&dyn Server; 2]) -> anyhow::Result<[BTreeSet<String>; 2]> {
    let [old, new] = servers.map(|server| Account::read(server, "u1"));
    let (mut old, mut new) = (old?, new?);
    // Rights and scripts are other files, or none.
    (old.files, new.files) = Default::default();
    let different = old.differences(&new);
    ensure!(different.is_empty(), "old and new: {different:#?}");
    Ok([old, new].map(|account| account.serials().into_keys().collect()))
}

/// Delivers until told to end, to whichever server takes it; returns what was accepted.
fn deliver_all_the_while(
    lab: &Lab,
    servers: [&dyn Server; 2],
    go_on: &AtomicBool,
) -> BTreeSet<String> {
    let (mut accepted, mut number) = (BTreeSet::new(), 0);
    while go_on.load(Ordering::Relaxed) {
        for server in servers {
            // A number is used once: one that was refused may have been taken all the same.
            let serial = format!("t{number}");
            number += 1;
            if lmtp::deliver(server.lmtp_address(), "u1", &corpus::short(&serial)).is_ok() {
                accepted.insert(serial);
            }
        }
        lab.clock().pause(std::time::Duration::from_secs(1));
    }
    accepted
}
