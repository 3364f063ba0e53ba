//! docs/failover.md is what an admin types from at three in the morning: every command of it is run as
//! it is written, with names put in, in the situation that it is for.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{cluster::Cluster, lab::Lab};

/// The node that the page calls `mx2`.
const OTHER: &str = "mx2";
/// The conflict that the page shows and acknowledges.
const CONFLICT: &str = "2e78d49e86";

/// The commands of the page's indented blocks, without `replctl`.
fn page() -> anyhow::Result<BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/failover.md");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let commands = text.lines().filter_map(|line| line.strip_prefix("    replctl "));
    Ok(commands.map(|command| command.trim().to_owned()).collect())
}

/// Types commands, and notes which of the page's they are.
struct Admin<'a> {
    lab: &'a Lab,
    left: BTreeSet<String>,
    conflict: String,
}

impl Admin<'_> {
    /// Types one command of the page on the node at `place`; returns what it says.
    fn types(
        &mut self,
        cluster: &Cluster,
        place: usize,
        command: &str,
        codes: &[i32],
    ) -> anyhow::Result<String> {
        ensure!(self.left.remove(command), "the page does not say: replctl {command}");
        let other = cluster.nodes[1 - place].name();
        let put_in = |word: &str| match word {
            OTHER => other.to_owned(),
            CONFLICT => self.conflict.clone(),
            word => word.to_owned(),
        };
        let words: Vec<String> = command.split(' ').map(put_in).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = cluster.nodes[place].replctl(self.lab, &words)?;
        let is_expected = output.code.is_some_and(|code| codes.contains(&code));
        ensure!(is_expected, "{command}: not {codes:?}: {output:?}");
        Ok(output.stdout)
    }
}

#[test]
fn every_command_of_the_failover_page_does_what_it_says() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut cluster = Cluster::start(lab, &["one", "two"])?;
        let mut admin = Admin { lab, left: page()?, conflict: String::new() };
        cluster.deliver(0, 0, 6)?;
        cluster.nodes[0].replctl(lab, &["drain"])?.expect(0)?;

        admin.types(&cluster, 0, "failover drill --to mx2", &[0])?;
        admin.types(&cluster, 0, "failover drill --to mx2 --with-gate", &[0])?;
        admin.types(&cluster, 0, "freeze --wait 10s --expire 10m", &[0])?;
        ensure!(!cluster.servers[0].is_open(), "frozen");
        admin.types(&cluster, 0, "thaw", &[0])?;
        cluster.wait_master(lab, 0)?;
        admin.types(&cluster, 0, "failover switch --to mx2 --dry-run", &[0])?;
        cluster.wait_master(lab, 0)?;
        admin.types(&cluster, 0, "failover switch --to mx2", &[0])?;
        cluster.wait_master(lab, 1)?;
        cluster.nodes[1].replctl(lab, &["drain"])?.expect(0)?;

        // The new master dies, and one of its clients expunges something that nobody hears of.
        cluster.nodes[1].kill_both()?;
        let mut imap = cluster.servers[1].imap("u1")?;
        imap.select("INBOX")?;
        imap.command("UID STORE 1 +FLAGS (\\Deleted)")?;
        imap.command("EXPUNGE")?;
        imap.logout()?;
        cluster.servers[1].stop()?;
        lab.wait("the dead master's sessions are gone", || {
            let asked = cluster.nodes[0].replctl(lab, &["failover", "force", "--dry-run"])?;
            let gone = !asked.stdout.contains("is alive");
            Ok(if gone { Ok(()) } else { Err(asked.stdout) })
        })?;
        // What was heard last may be older than the drain, and then it is refused without --accept-loss.
        let risk = admin.types(&cluster, 0, "failover force --dry-run", &[0, 4])?;
        ensure!(risk.contains("was heard of last"), "{risk}");
        admin.types(&cluster, 0, "failover force --accept-loss all", &[0])?;
        lab.wait("one is open", || {
            Ok(if cluster.servers[0].is_open() { Ok(()) } else { Err("closed".into()) })
        })?;
        cluster.rise(lab, 1)?;
        cluster.wait_master(lab, 0)?;
        admin.conflict = lab.wait("the expunge is a conflict", || {
            let found = cluster.nodes[0].ask(lab, &["conflicts", "list"])?;
            let id = found["conflicts"][0]["id"].as_str().map(str::to_owned);
            Ok(id.ok_or_else(|| found.to_string()))
        })?;
        let listed = admin.types(&cluster, 0, "conflicts list", &[1])?;
        ensure!(listed.contains("expunged"), "{listed}");
        let shown = admin.types(&cluster, 0, &format!("conflicts show {CONFLICT}"), &[0])?;
        ensure!(shown.contains("replctl graveyard restore"), "{shown}");
        admin.types(&cluster, 0, &format!("conflicts ack {CONFLICT}"), &[0])?;
        cluster.wait_all_equal(lab, 0)?;
        ensure!(admin.left.is_empty(), "of the page nobody has typed {:?}", admin.left);
        Ok(())
    })
}
