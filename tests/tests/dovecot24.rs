//! Dovecot 2.4 as the other half of a pair: sites that lost their replicator in 2.4 come first.

use std::sync::atomic::AtomicBool;

use anyhow::ensure;
use mailtwin_tests::{
    corpus,
    daemon::Pair,
    dovecot::{Dovecot, Version},
    lab::Lab,
    oracle,
    workload::Workload,
};

/// Set to 1 on a machine where debootstrap cannot work; anything else runs the tests.
fn left_out() -> bool {
    std::env::var_os("MAILTWIN_SKIP_DOVECOT24").is_some_and(|value| value == "1")
}

#[test]
fn the_harness_runs_it() -> anyhow::Result<()> {
    if left_out() {
        return Ok(());
    }
    Lab::run(|lab| {
        let server = Dovecot::start(lab, "new", Version::V24)?;
        server.deliver("u1", &corpus::short("m1"))?;
        let mut imap = server.imap("u1")?;
        ensure!(imap.capabilities()?.has_str("QRESYNC"), "QRESYNC is offered");
        imap.create("Work.Sub")?;
        imap.select("INBOX")?;
        imap.uid_copy("1", "Work.Sub")?;
        imap.command("SETACL Work.Sub u2 lr")?;
        imap.command("UID STORE 1 +FLAGS (\\Seen $Junk)")?;
        let account = oracle::Account::read(&server, "u1")?;
        ensure!(account.mailboxes.len() == 2, "two mailboxes: {account:?}");
        let log = std::fs::read_to_string(server.log())?;
        ensure!(log.contains("Dovecot v2.4"), "it is Dovecot 2.4: {log}");
        server.expect_quiet_log()
    })
}

#[test]
fn as_replica_of_a_2_3_master() -> anyhow::Result<()> {
    random_work(Version::V23, Version::V24)
}

#[test]
fn as_master_of_a_2_3_replica() -> anyhow::Result<()> {
    random_work(Version::V24, Version::V23)
}

fn random_work(master: Version, replica: Version) -> anyhow::Result<()> {
    if left_out() {
        return Ok(());
    }
    Lab::run(|lab| {
        let pair = Pair::busy(lab, (master, replica))?;
        pair.first_copy(lab)?;
        let workload = Workload::usual(lab, &pair.master, &pair.accounts);
        let tally = workload.run(lab, &AtomicBool::new(false))?;
        tally.expect_no_loss(&pair.master, &pair.accounts)?;
        pair.wait_equal(lab)?;
        pair.replica.expect_quiet_log()
    })
}
