//! Two nodes that know nothing of each other are introduced, one command on each.

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::Pair,
    dovecot::{Dovecot, Version},
    lab::Lab,
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
