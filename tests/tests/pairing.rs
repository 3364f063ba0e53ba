//! Two nodes that know nothing of each other are introduced, one command on each; what becomes of a
//! pair when a key changes.

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::{AGENT, Node, Pair},
    dovecot::{Dovecot, Version},
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
