//! Dovecot 2.4 as the other half of a pair: sites that lost their replicator in 2.4 come first.

use anyhow::ensure;
use mailtwin_tests::{
    corpus,
    dovecot::{Dovecot, Version},
    lab::Lab,
    oracle,
};

/// Set to 1 on a machine where debootstrap cannot work; anything else runs the tests.
fn left_out() -> bool {
    std::env::var_os("MAILTWIN_SKIP_DOVECOT24").is_some_and(|value| value == "1")
}

#[test]
fn harness_runs_it() -> anyhow::Result<()> {
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
        imap.uid_store("1", "+FLAGS (\\Seen $Junk)")?;
        let account = oracle::Account::read(&server, "u1")?;
        ensure!(account.mailboxes.len() == 2, "two mailboxes: {account:?}");
        server.expect_quiet_log()
    })
}
