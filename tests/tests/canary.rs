//! The canary: mail that is accepted now is seen to arrive, beside Dovecot and beside Cyrus.

use anyhow::ensure;
use mailtwin_tests::{cluster::Cluster, lab::Lab, oracle::Account, server::Server};

/// Canaries that stay in the mailbox.
const KEPT: usize = 10;

#[test]
fn a_canary_arrives_beside_dovecot() -> anyhow::Result<()> {
    Lab::run(|lab| arrives(lab, Cluster::start(lab, &["one", "two"])?))
}

#[test]
fn a_canary_arrives_beside_cyrus() -> anyhow::Result<()> {
    Lab::run(|lab| arrives(lab, Cluster::of_cyrus(lab, &["one", "two"])?))
}

fn arrives<S: Server>(lab: &Lab, mut cluster: Cluster<S>) -> anyhow::Result<()> {
    wait_in_sync(lab, &cluster)?;
    let output = cluster.nodes[0].replctl(lab, &["canary"])?.expect(4)?;
    ensure!(output.stderr.contains("[canary]"), "it says what to configure: {}", output.stderr);
    cluster.servers[0].add_account("canary", true)?;
    cluster.servers[1].add_account("canary", false)?;
    // It shares its mailbox with somebody's mail, which is not its to remove.
    cluster.servers[0]
        .deliver("canary", b"Subject: not a canary\r\n\r\nX-Mailtwin-Canary: no\r\n")?;
    cluster.nodes[0].stop_agent()?;
    cluster.nodes[0].send_canaries(cluster.servers[0].lmtp_address(), "0s")?;
    cluster.nodes[0].start_agent(lab)?;
    wait_in_sync(lab, &cluster)?;

    for _ in 0..KEPT + 3 {
        let report = cluster.nodes[0].ask(lab, &["canary"])?;
        let arrival = &report["replicas"][0];
        ensure!(report["accepted_ms"].is_u64() && report["error"].is_null(), "{report}");
        ensure!(arrival["name"] == cluster.nodes[1].name(), "{report}");
        ensure!(arrival["after_ms"].is_u64() && arrival["error"].is_null(), "{report}");
    }
    lab.wait("the newest canaries are left, and what is none", || {
        let account = Account::read(&cluster.servers[0], "canary")?;
        let held: usize = account.mailboxes.values().map(|mailbox| mailbox.messages.len()).sum();
        Ok(if held == KEPT + 1 { Ok(()) } else { Err(format!("{account:?}")) })
    })?;
    cluster.nodes[0].sync(lab)?;
    cluster.nodes[0].replctl(lab, &["check"])?.expect(0)?;

    let to = cluster.nodes[1].name().to_owned();
    for more in [&[][..], &["--with-gate"]] {
        let words = [&["failover", "drill", "--to", &to], more].concat();
        let said = cluster.nodes[0].replctl(lab, &words)?.expect(0)?.stdout;
        ensure!(said.contains("canary: accepted after"), "{said}");
    }
    cluster.nodes[0].replctl(lab, &["freeze", "--expire", "5m"])?.expect(0)?;
    let output = cluster.nodes[0].replctl(lab, &["canary"])?.expect(1)?;
    ensure!(output.stdout.contains("the mail server at"), "who refused it: {}", output.stdout);
    let status = cluster.nodes[0].replctl(lab, &["status"])?;
    ensure!(status.stdout.contains("the last canary did not arrive"), "{}", status.stdout);
    cluster.nodes[0].replctl(lab, &["thaw"])?.expect(0)?;
    cluster.nodes[0].replctl(lab, &["canary"])?.expect(0)?;
    Ok(())
}

/// The gates say nothing of an agent that has yet to start.
fn wait_in_sync<S: Server>(lab: &Lab, cluster: &Cluster<S>) -> anyhow::Result<()> {
    lab.wait("the agent answers", || {
        let status = cluster.nodes[0].replctl(lab, &["status"])?;
        Ok(if status.stdout.contains("in-sync") { Ok(()) } else { Err(format!("{status:?}")) })
    })
}
