//! The harness on Dovecot alone: a test of ours can only fail for us if these pass.

use std::{process::Command, sync::atomic::AtomicBool};

use anyhow::ensure;
use mailtwin_tests::{
    corpus,
    dovecot::{Dovecot, Layout, Version},
    lab::Lab,
    oracle,
    workload::Workload,
};

#[test]
fn the_oracle_sees_every_kind_of_difference() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut master = Dovecot::start(lab, "master", Version::V23)?;
        let mut replica = Dovecot::start(lab, "replica", Version::V23)?;
        for n in 0..5 {
            master.deliver("u1", &corpus::short(&format!("m{n}")))?;
        }
        let mut imap = master.imap("u1")?;
        imap.create("Work.Sub")?;
        imap.select("INBOX")?;
        imap.uid_copy("1:2", "Work.Sub")?;
        imap.uid_store("1", "+FLAGS (\\Seen $Junk)")?;
        imap.subscribe("Work.Sub")?;
        imap.logout()?;
        master.stop()?;
        replica.stop()?;
        let copied = Command::new("cp")
            .args(["-a", "--no-target-directory"])
            .args([master.mail_root(), replica.mail_root()])
            .status()?;
        ensure!(copied.success(), "cp: {copied}");
        master.resume(lab)?;
        replica.resume(lab)?;

        let accounts = ["u1".to_owned()];
        let found = oracle::differences(&master, &replica, &accounts)?;
        ensure!(found.is_empty(), "a copy differs: {found:#?}");
        ensure!(oracle::Account::read(&master, "u1")?.serials().len() == 5, "serials are read");

        let mut imap = replica.imap("u1")?;
        imap.select("INBOX")?;
        imap.uid_store("2", "+FLAGS (\\Deleted)")?;
        imap.expunge()?;
        imap.uid_store("3", "+FLAGS (work)")?;
        imap.append("INBOX", &corpus::short("other")).finish()?;
        imap.create("More")?;
        imap.unsubscribe("Work.Sub")?;
        let found = oracle::differences(&master, &replica, &accounts)?;
        for part in ["UID 2", "UID 3", "UID 6", "UIDNEXT", "More", "LSUB"] {
            ensure!(found.iter().any(|line| line.contains(part)), "{part} is not in {found:#?}");
        }
        master.expect_quiet_log()?;
        replica.expect_quiet_log()
    })
}

#[test]
fn both_layouts_and_quota_and_rights_work() -> anyhow::Result<()> {
    Lab::run(|lab| {
        for (name, layout) in [("plus", Layout::MaildirPlusPlus), ("fs", Layout::Fs)] {
            let server = Dovecot::with_layout(lab, name, Version::V23, layout)?;
            server.deliver("u1", &corpus::short("m"))?;
            let mut imap = server.imap("u1")?;
            let sub = format!("Work{}Sub", layout.separator());
            imap.create(&sub)?;
            ensure!(server.mailbox_dir("u1", &sub).join("cur").is_dir(), "{name}: {sub} is there");
            imap.command(&format!("SETACL {sub} u2 lr"))?;
            ensure!(!imap.get_quota_root("INBOX")?.quotas().is_empty(), "{name}: has a quota");
            server.expect_quiet_log()?;
        }
        Ok(())
    })
}

#[test]
fn the_workload_loses_nothing_on_dovecot_alone() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let server = Dovecot::busy(lab, "server", Version::V23)?;
        let accounts = ["u1".to_owned(), "u2".to_owned()];
        let mut workload = Workload::usual(lab, &server, &accounts);
        workload.operations /= 4;
        let tally = workload.run(lab, &AtomicBool::new(false))?;
        tally.expect_no_loss(&server, &accounts)?;
        ensure!(tally.ledgers.iter().all(|ledger| ledger.kept().len() > 20), "most mail stays");
        Ok(())
    })
}
