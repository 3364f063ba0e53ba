//! Two nodes that know nothing of each other are introduced, one command on each; what becomes of a
//! pair when a key changes.

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::{AGENT, Node, Pair},
    dovecot::{Dovecot, Version},
    files,
    lab::Lab,
    oracle::Account,
};

/// The code in what `replctl pair` printed.
fn code(printed: &str) -> anyhow::Result<String> {
    let line = printed.lines().find(|line| line.contains("replctl pair '"));
    let code = line.and_then(|line| line.split('\'').nth(1));
    Ok(code.with_context(|| format!("a code in {printed}"))?.to_owned())
}

#[test]
fn two_nodes_are_introduced_by_one_command_on_each() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let master = Dovecot::start(lab, "master", Version::V23)?;
        let replica = Dovecot::start(lab, "replica", Version::V23)?;
        let mut pair = Pair::around(lab, master, replica, &["u1"])?;
        for node in [&pair.agent, &pair.copy] {
            let text = node.config_text()?;
            let (alone, _) = text.split_once("\n[[peer]]").context("a peer in the file")?;
            node.write_config(alone)?;
            std::fs::remove_dir_all(node.state_dir())?;
        }
        pair.agent.replctl(lab, &["init", "--role", "master"])?.expect(0)?;
        pair.copy.replctl(lab, &["init", "--role", "replica"])?.expect(0)?;
        pair.agent.start(lab)?;
        pair.copy.start(lab)?;
        pair.master.deliver("u1", &corpus::short("m1"))?;

        let at = |port: u16| format!("127.0.0.1:{port}");
        let (here, there) = (at(pair.agent.port), at(pair.copy.port));
        let shown = lab.wait("the agent shows its code", || {
            let shown = pair.agent.replctl(lab, &["pair", "--address", &here])?;
            Ok(if shown.code == Some(0) { Ok(shown.stdout) } else { Err(shown.stderr) })
        })?;
        let master = code(&shown)?;
        for wrong in ["nonsense", &master.replace("#mt1", "#mt2")] {
            let refused = pair.copy.replctl(lab, &["pair", wrong])?.expect(2)?;
            ensure!(refused.stderr.contains(wrong), "{refused:?}");
        }
        let own = pair.agent.replctl(lab, &["pair", &master])?;
        ensure!(own.code == Some(2), "no node is its own peer: {own:?}");

        let words = ["pair", &master, "--address", &there];
        pair.copy.replctl(lab, &[&words[..], &["--dry-run"]].concat())?.expect(0)?;
        let keys = pair.copy.replctl(lab, &["keys", "show"])?.expect(0)?;
        ensure!(keys.stdout.lines().count() == 1, "a dry run trusts nobody: {keys:?}");
        let taken = pair.copy.replctl(lab, &words)?.expect(0)?;
        let replica = code(&taken.stdout)?;
        ensure!(replica.contains(&there), "{replica}");
        let fingerprint =
            |text: &str| text.split(&[' ', ')', '\n'][..]).any(|word| word.len() == 39);
        ensure!(fingerprint(&shown) && fingerprint(&taken.stdout), "both show it to be compared");
        pair.agent.replctl(lab, &["pair", &replica])?.expect(0)?;
        pair.wait_equal(lab)?;

        // Again changes nothing, and holds over a restart.
        pair.agent.replctl(lab, &["pair", &replica])?.expect(0)?;
        pair.copy.replctl(lab, &words)?.expect(0)?;
        pair.agent.stop()?;
        pair.agent.start(lab)?;
        pair.master.deliver("u1", &corpus::short("m2"))?;
        pair.wait_equal(lab)
    })
}

#[test]
fn a_replica_with_a_new_key_gets_no_mail_until_an_admin_pins_it() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = Pair::start(lab, &["u1"])?;
        pair.first_copy(lab)?;
        let (name, old) = (pair.copy.name().to_owned(), pair.copy.key(lab)?);
        pair.copy.stop()?;
        pair.copy.make_key_anew(lab, "replica")?;
        pair.copy.start(lab)?;
        let new = pair.copy.key(lab)?;
        ensure!(old != new, "another key: {new}");
        pair.master.deliver("u1", &corpus::short("kept back"))?;

        let pin = format!("replctl keys pin {name} {new}");
        expect_trouble(lab, &pair.agent, "peer-key-changed", &pin)?;
        let log = pair.agent.log_text(AGENT)?;
        let line = log.lines().find(|line| line.contains("peer-key-changed"));
        let line = line.context("a line in the log")?;
        ensure!(line.contains("ERROR") && line.contains(&pin), "{line}");
        let copy = Account::read(&pair.replica, "u1")?;
        ensure!(!copy.serials().contains_key("kept back"), "nothing was sent");

        let typed: Vec<&str> = pin.split(' ').skip(1).collect();
        pair.agent.replctl(lab, &typed)?.expect(0)?;
        pair.agent.replctl(lab, &["keys", "unpin", &name, &old])?.expect(0)?;
        pair.wait_equal(lab)?;
        expect_no_trouble(lab, &pair.agent)
    })
}

#[test]
fn a_master_with_a_new_key_is_told_that_it_is_refused() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = Pair::start(lab, &["u1"])?;
        pair.first_copy(lab)?;
        pair.agent.stop()?;
        pair.agent.make_key_anew(lab, "master")?;
        pair.agent.start(lab)?;
        let (name, new) = (pair.agent.name().to_owned(), pair.agent.key(lab)?);
        pair.master.deliver("u1", &corpus::short("kept back"))?;
        expect_trouble(lab, &pair.agent, "own-key-refused", &format!("keys pin {name} KEY"))?;
        let copy = Account::read(&pair.replica, "u1")?;
        ensure!(!copy.serials().contains_key("kept back"), "nothing was sent");
        pair.copy.replctl(lab, &["keys", "pin", &name, &new])?.expect(0)?;
        pair.wait_equal(lab)?;
        expect_no_trouble(lab, &pair.agent)
    })
}

/// The status of `node` begins with what is wrong, and what to type; its metric says it, too.
fn expect_trouble(lab: &Lab, node: &Node, code: &str, next: &str) -> anyhow::Result<()> {
    let status = lab.wait("status tells of the key", || {
        let status = node.ask(lab, &["status"])?;
        let told = status["replicas"][0]["key_trouble"] == code;
        Ok(if told { Ok(status) } else { Err(status.to_string()) })
    })?;
    let first = &status["issues"][0];
    ensure!(first["code"] == code && first["level"] == "critical", "{first}");
    let shown = node.replctl(lab, &["status"])?;
    ensure!(shown.code == Some(1) && shown.stdout.contains(next), "{shown:?}");
    node.replctl(lab, &["explain", code])?.expect(0)?;
    ensure!(refused(node)?, "the metric says so");
    Ok(())
}

fn expect_no_trouble(lab: &Lab, node: &Node) -> anyhow::Result<()> {
    lab.wait("nothing is wrong with a key any more", || {
        let status = node.ask(lab, &["status"])?;
        let clear = status["replicas"][0]["key_trouble"].is_null() && !refused(node)?;
        Ok(if clear { Ok(()) } else { Err(status.to_string()) })
    })
}

/// Whether the agent's metric says that a key was refused.
fn refused(node: &Node) -> anyhow::Result<bool> {
    let page = Node::page(node.metrics.0, "/metrics")?;
    let line = page.lines().find(|line| line.starts_with("mailtwin_replica_key_refused{"));
    Ok(line.with_context(|| format!("the metric in {page}"))?.ends_with(" 1"))
}

#[test]
fn both_keys_of_a_pair_are_rotated_while_mail_flows() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = whole_pair(lab)?;
        for turn in ["master", "replica"] {
            let nodes = [&pair.agent, &pair.copy];
            let [node, other] = if turn == "master" { nodes } else { [nodes[1], nodes[0]] };
            let old = node.key(lab)?;
            node.replctl(lab, &["keys", "rotate", "--switch"])?.expect(4)?;
            let asked = node.ask(lab, &["keys", "rotate", "--dry-run"])?;
            ensure!(asked["stage"] == "key-settled" && asked["done"] == false, "{asked}");
            ensure!(!node.state_dir().join("keys/next.pem").exists(), "a dry run makes no key");

            let prepared = node.ask(lab, &["keys", "rotate"])?;
            let next = prepared["next"].as_str().context("a next key")?.to_owned();
            let again = node.ask(lab, &["keys", "rotate"])?;
            ensure!(again == prepared && next != old, "{prepared} {again}");
            ensure!(keys_of(lab, other, node)? == sorted(&[&old, &next]), "both are pinned");
            ensure!(node.key(lab)? == old, "the present one is still in use");
            pair.master.deliver("u1", &corpus::short(&format!("{turn} prepared")))?;
            pair.wait_equal(lab)?;

            let done = node.ask(lab, &["keys", "rotate", "--switch"])?;
            ensure!(done["stage"] == "key-settled" && done["key"] == *next, "{done}");
            ensure!(done["peers"][0]["news"] == "key-unpinned", "{done}");
            ensure!(keys_of(lab, other, node)? == [next.clone()], "the old one is unpinned");
            ensure!(node.key(lab)? == next, "the next one is in use");
            pair.master.deliver("u1", &corpus::short(&format!("{turn} switched")))?;
            pair.wait_equal(lab)?;
        }
        let log = pair.agent.log_text(AGENT)?;
        let connected = log.lines().filter(|line| line.contains(" connected replica=")).count();
        ensure!(connected == 1, "the connection has stood all the time: {log}");

        // Every handshake from here on is with the new keys.
        pair.agent.kill_both()?;
        pair.copy.kill_both()?;
        pair.agent.start_both(lab)?;
        pair.copy.start_both(lab)?;
        pair.master.deliver("u1", &corpus::short("after a restart"))?;
        pair.wait_equal(lab)?;
        expect_no_trouble(lab, &pair.agent)
    })
}

#[test]
fn a_rotation_waits_for_a_peer_that_is_away_and_goes_on_after_a_crash() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = whole_pair(lab)?;
        let old = pair.agent.key(lab)?;
        pair.copy.kill_both()?;
        let first = pair.agent.replctl(lab, &["keys", "rotate"])?.expect(1)?;
        ensure!(first.stdout.contains("NOT TOLD"), "{first:?}");
        let refused = pair.agent.replctl(lab, &["keys", "rotate", "--switch"])?.expect(4)?;
        ensure!(refused.stderr.contains(&format!("keys pin {}", pair.agent.name())), "{refused:?}");
        ensure!(pair.agent.key(lab)? == old, "nobody is locked out");

        // The agent crashes, the peer comes back.
        pair.agent.kill_both()?;
        pair.agent.start_both(lab)?;
        pair.copy.start_both(lab)?;
        lab.wait("the peer can be told", || {
            let told = pair.agent.replctl(lab, &["keys", "rotate"])?;
            Ok(if told.code == Some(0) { Ok(()) } else { Err(format!("{told:?}")) })
        })?;
        pair.agent.replctl(lab, &["keys", "rotate", "--switch"])?.expect(0)?;
        let new = pair.agent.key(lab)?;
        ensure!(new != old, "another key");

        // As a crash between the change and the last word leaves things.
        pair.copy.replctl(lab, &["keys", "pin", pair.agent.name(), &old])?.expect(0)?;
        let previous = pair.agent.state_dir().join("keys/previous.pub");
        files::write(&previous, format!("{old}\n"))?;
        pair.agent.replctl(lab, &["keys", "rotate"])?.expect(4)?;
        pair.agent.replctl(lab, &["keys", "rotate", "--switch"])?.expect(0)?;
        ensure!(keys_of(lab, &pair.copy, &pair.agent)? == [new], "the old one is unpinned");
        ensure!(!previous.exists(), "and forgotten here");
        pair.master.deliver("u1", &corpus::short("after it"))?;
        pair.wait_equal(lab)
    })
}

/// A pair whose nodes run both daemons, as installed.
fn whole_pair(lab: &Lab) -> anyhow::Result<Pair> {
    let mut pair = Pair::start(lab, &["u1"])?;
    pair.agent.start_replica(lab)?;
    pair.copy.start_agent(lab)?;
    pair.first_copy(lab)?;
    Ok(pair)
}

/// The keys that `node` has pinned for `peer`.
fn keys_of(lab: &Lab, node: &Node, peer: &Node) -> anyhow::Result<Vec<String>> {
    let shown = node.ask(lab, &["keys", "show"])?;
    let pins = shown["pins"].as_array().context("pins")?;
    let theirs = pins.iter().filter(|pin| pin["peer"] == peer.name());
    let keys: Vec<&str> = theirs.filter_map(|pin| pin["key"].as_str()).collect();
    Ok(sorted(&keys))
}

fn sorted(keys: &[&str]) -> Vec<String> {
    let mut keys: Vec<String> = keys.iter().map(|&key| key.to_owned()).collect();
    keys.sort();
    keys
}
