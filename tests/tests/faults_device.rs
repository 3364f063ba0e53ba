//! Devices that die or fail to read, and memory that runs out: nothing is lost, nothing is taken for
//! deleted, and all is equal once the fault has ended.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::{AGENT, Pair},
    dovecot::{Dovecot, Version},
    faults::{Failing, expect_tool, wait_status},
    files,
    lab::Lab,
    memory::Group,
    oracle::Account,
    volume::{self, Kind, Volume},
};

/// Messages of an account before the fault; the first copy brings the first.
const BEFORE: usize = 6;

/// Memory that is left to a daemon that is to run out of it.
const LEFT_OCTETS: u64 = 128 << 10;

/// A pair with mail on both sides.
fn pair(lab: &Lab) -> anyhow::Result<Pair> {
    let master = Dovecot::start(lab, "master", Version::V23)?;
    let replica = Dovecot::start(lab, "replica", Version::V23)?;
    let mut pair = Pair::around(lab, master, replica, &["u1", "u2"])?;
    pair.copy.start(lab)?;
    pair.agent.start(lab)?;
    pair.first_copy(lab)?;
    deliver(&pair, "before", BEFORE - 1)?;
    pair.wait_equal(lab)?;
    Ok(pair)
}

fn deliver(pair: &Pair, what: &str, count: usize) -> anyhow::Result<()> {
    for number in 0..count {
        for account in ["u1", "u2"] {
            pair.master.deliver(account, &corpus::short(&format!("{what}{number}")))?;
        }
    }
    Ok(())
}

/// From now on, whatever asks for its data gets EIO, as from a device that is gone.
fn kill_device(volume: &Path) -> anyhow::Result<()> {
    volume::tool(&[
        "xfs_io".as_ref(),
        "-x".as_ref(),
        "-c".as_ref(),
        "shutdown".as_ref(),
        volume.as_os_str(),
    ])
}

#[test]
fn a_replica_whose_device_dies_goes_on_with_another() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mail = lab.mail_dir("replica/mail")?;
        let mut volume = Volume::mount(Kind::Ext4, volume::MEGABYTES, &mail)?;
        let mut pair = pair(lab)?;
        kill_device(&mail)?;
        deliver(&pair, "dead", 3)?;
        wait_status(lab, &pair, "Input/output error")?;
        pair.copy.kill()?;
        pair.replica.stop()?;
        volume.unmount(lab)?;
        volume.attach()?;
        pair.replica.resume(lab)?;
        pair.copy.start(lab)?;
        pair.heal(lab).context("with a device that works")
    })
}

#[test]
fn a_master_whose_device_dies_takes_nothing_from_the_replica() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mail = lab.mail_dir("master/mail")?;
        let mut volume = Volume::mount(Kind::Ext4, volume::MEGABYTES, &mail)?;
        let mut pair = pair(lab)?;
        kill_device(&mail)?;
        // It looks at everything, with what it knew of the directories gone, too.
        pair.agent.kill()?;
        files::write(Path::new("/proc/sys/vm/drop_caches"), "2")?;
        let mut agent = pair.agent.spawn(lab, AGENT)?;
        lab.wait("the agent ends, or tells of it", || {
            let ended = !agent.is_running();
            let said = pair.agent.log_text(AGENT)?.contains("Input/output error");
            Ok(if ended || said { Ok(()) } else { Err("neither".into()) })
        })?;
        for account in ["u1", "u2"] {
            let there = Account::read(&pair.replica, account)?.serials().len();
            ensure!(there == BEFORE, "{account} has {there} on the replica");
        }
        if agent.is_running() {
            agent.kill()?;
        }
        pair.master.stop()?;
        volume.unmount(lab)?;
        volume.attach()?;
        pair.master.resume(lab)?;
        pair.agent.start(lab)?;
        deliver(&pair, "after", 2)?;
        pair.wait_equal(lab).context("with a device that works")?;
        let there = Account::read(&pair.replica, "u1")?.serials().len();
        ensure!(there == BEFORE + 2, "{there} on the replica");
        Ok(())
    })
}

/// The file of the message that says `serial`, which no client has seen yet.
fn file_of(pair: &Pair, account: &str, serial: &str) -> anyhow::Result<PathBuf> {
    let subject = format!("Subject: {serial}");
    let is_it = |path: &PathBuf| {
        std::fs::read(path).is_ok_and(|text| String::from_utf8_lossy(&text).contains(&subject))
    };
    let files = files::walk(&pair.master.mail_root().join(account).join("Maildir/new"))?;
    files.into_iter().find(is_it).with_context(|| format!("the file of {serial}"))
}

#[test]
fn a_message_that_cannot_be_read_holds_up_no_other() -> anyhow::Result<()> {
    Lab::run(|lab| {
        expect_tool("strace")?;
        let mut pair = pair(lab)?;
        pair.copy.stop()?;
        deliver(&pair, "unreadable", 1)?;
        let file = file_of(&pair, "u1", "unreadable0")?;
        let failing = Failing::start_at(
            lab,
            &mut pair.agent,
            "read,pread64,readv,preadv,preadv2",
            Some(&file),
        )?;
        deliver(&pair, "beside", 2)?;
        pair.copy.start(lab)?;
        lab.wait("its neighbours are there", || {
            let there = Account::read(&pair.replica, "u1")?.serials();
            Ok(if there.contains_key("beside1") { Ok(()) } else { Err(format!("{there:?}")) })
        })?;
        wait_status(lab, &pair, "Input/output error")?;
        failing.stop()?;
        pair.wait_equal(lab).context("with a disk that reads")
    })
}

#[test]
fn a_replica_that_is_killed_for_want_of_memory_loses_nothing() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = pair(lab)?;
        let group = Group::with(pair.copy.daemon()?.id())?;
        group.leave(LEFT_OCTETS)?;
        let mut killed = None;
        for round in 0..50 {
            deliver(&pair, &format!("large{round}-"), 20)?;
            if !pair.copy.daemon()?.is_running() {
                killed = Some(pair.copy.daemon()?.ended()?);
                break;
            }
        }
        let killed = killed.context("a kill for want of memory")?;
        ensure!(std::os::unix::process::ExitStatusExt::signal(&killed) == Some(9), "{killed}");
        group.lift()?;
        pair.heal(lab).context("with memory")
    })
}
