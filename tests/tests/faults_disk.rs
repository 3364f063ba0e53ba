//! Disks that are full, over quota, read-only, away, hung, or fail to sync: the admin is told, nothing is
//! lost, and replication goes on by itself when the fault has ended.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::{AGENT, Pair, REPLICA},
    dovecot::{Dovecot, Version},
    faults::{self, Failing, Frozen, metric, wait_log, wait_status},
    files,
    lab::Lab,
    volume::{self, Kind, Volume},
};

/// Inodes of a file system that is to run out of them.
const INODES: u32 = 400;

/// Octets of a message that a quota does not let in.
const LARGE: usize = 400_000;

/// A pair with a message on both sides, whose replica keeps its mail on a volume.
fn pair_on(lab: &Lab) -> anyhow::Result<Pair> {
    let master = Dovecot::start(lab, "master", Version::V23)?;
    let replica = Dovecot::start(lab, "replica", Version::V23)?;
    let mut pair = Pair::around(lab, master, replica, &["u1"])?;
    pair.copy.start(lab)?;
    pair.agent.start(lab)?;
    pair.first_copy(lab)?;
    pair.wait_equal(lab)?;
    Ok(pair)
}

fn deliver(pair: &Pair, what: &str, count: usize, octets: usize) -> anyhow::Result<()> {
    for number in 0..count {
        let mut message = corpus::short(&format!("{what}{number}"));
        message.extend(b"0123456789abcdef\r\n".repeat(octets / 18));
        pair.master.deliver("u1", &message)?;
    }
    Ok(())
}

#[test]
fn a_replica_without_inodes_waits() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mail = lab.mail_dir("replica/mail")?;
        let _volume = Volume::mount(Kind::Tmpfs { inodes: INODES }, 64, &mail)?;
        let mut pair = pair_on(lab)?;
        let ballast = volume::use_all_inodes(&mail)?;
        deliver(&pair, "no-inode", 5, 0)?;
        wait_status(lab, &pair, "No space left on device")?;
        ensure!(pair.copy.daemon()?.is_running(), "the replica daemon runs on");
        fs::remove_dir_all(ballast)?;
        pair.wait_equal(lab).context("with inodes again")?;
        pair.replica.expect_quiet_log()
    })
}

#[test]
fn a_replica_over_its_quota_waits() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut volume = Volume::mount(Kind::Btrfs, volume::MEGABYTES, &lab.dir().join("disk"))?;
        let mail = volume.at().join("mail");
        let btrfs = |words: &[&str], at: &Path| {
            let words = ["btrfs"].iter().chain(words).map(AsRef::as_ref);
            volume::tool(&words.chain([at.as_os_str()]).collect::<Vec<_>>())
        };
        btrfs(&["quota", "enable"], volume.at())?;
        btrfs(&["subvolume", "create"], &mail)?;
        files::give_to_mail_user(&mail)?;
        volume.bind("mail", &lab.mail_dir("replica/mail")?)?;
        let mut pair = pair_on(lab)?;
        btrfs(&["qgroup", "limit", "1M"], &mail)?;
        deliver(&pair, "over-quota", 6, LARGE)?;
        wait_status(lab, &pair, "uota exceeded")?;
        ensure!(pair.copy.daemon()?.is_running(), "the replica daemon runs on");
        btrfs(&["qgroup", "limit", "none"], &mail)?;
        pair.wait_equal(lab).context("with more quota")?;
        pair.replica.expect_quiet_log()
    })
}

#[test]
fn a_replica_whose_disk_became_read_only_goes_on_after_the_repair() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mail = lab.mail_dir("replica/mail")?;
        let mut volume = Volume::mount(Kind::Ext4, volume::MEGABYTES, &mail)?;
        let mut pair = pair_on(lab)?;
        let trigger = format!("/sys/fs/ext4/{}/trigger_fs_error", volume.device()?);
        files::write(Path::new(&trigger), "1")?;
        deliver(&pair, "read-only", 3, 0)?;
        wait_status(lab, &pair, "Read-only file system")?;
        // What an admin does: stop, repair, mount, start.
        pair.copy.kill()?;
        pair.replica.stop()?;
        volume.unmount(lab)?;
        volume.attach()?;
        pair.replica.resume(lab)?;
        pair.copy.start(lab)?;
        pair.wait_equal(lab).context("after the repair")
    })
}

#[test]
fn a_replicas_volume_that_goes_away_and_comes_back_is_not_written_beside() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mail = lab.mail_dir("replica/mail")?;
        let mut volume = Volume::mount(Kind::Ext4, volume::MEGABYTES, &mail)?;
        let mut pair = pair_on(lab)?;
        pair.replica.stop()?;
        volume.tear_off()?;
        deliver(&pair, "away", 3, 0)?;
        wait_status(lab, &pair, "not the mail store it was")?;
        ensure!(files::walk(&mail)?.is_empty(), "nothing is written where the volume was");
        volume.attach()?;
        pair.replica.resume(lab)?;
        pair.heal(lab).context("with the volume back")?;
        pair.replica.expect_quiet_log()
    })
}

#[test]
fn a_replica_whose_disk_hangs_says_so_and_goes_on() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mail = lab.mail_dir("replica/mail")?;
        let _volume = Volume::mount(Kind::Ext4, volume::MEGABYTES, &mail)?;
        let pair = pair_on(lab)?;
        let frozen = Frozen::start(&mail)?;
        deliver(&pair, "hung", 3, 0)?;
        lab.wait("the lag grows", || {
            let lag = pair.agent.ask(lab, &["status"])?["replicas"][0]["lag_seconds"].as_f64();
            Ok(if lag.is_some_and(|lag| lag > 2.0) { Ok(()) } else { Err(format!("{lag:?}")) })
        })?;
        pair.copy.replctl(lab, &["status"])?.expect(0).context("it answers all the while")?;
        metric(pair.copy.metrics.1, "mailtwin_role").context("it serves metrics")?;
        drop(frozen);
        pair.wait_equal(lab).context("with the disk back")?;
        pair.replica.expect_quiet_log()
    })
}

#[test]
fn a_failed_sync_ends_the_replica_daemon_and_nothing_is_acked_twice() -> anyhow::Result<()> {
    Lab::run(|lab| {
        faults::expect_tool("strace")?;
        let mut pair = pair_on(lab)?;
        let failing = Failing::start(lab, &mut pair.copy, "fsync,fdatasync,syncfs")?;
        deliver(&pair, "unsynced", 3, 0)?;
        let status = pair.copy.daemon()?.ended()?;
        ensure!(!status.success(), "it ends with an error: {status}");
        let log = pair.copy.log_text(REPLICA)?;
        ensure!(
            log.contains("the disk failed to sync") && log.contains("Input/output error"),
            "{log}"
        );
        failing.stop()?;
        pair.heal(lab).context("started again")?;
        pair.replica.expect_quiet_log()
    })
}

#[test]
fn a_log_that_cannot_be_synced_ends_the_agent_which_then_scans() -> anyhow::Result<()> {
    Lab::run(|lab| {
        faults::expect_tool("strace")?;
        let mut pair = pair_on(lab)?;
        let failing = Failing::start(lab, &mut pair.agent, "fsync,fdatasync")?;
        deliver(&pair, "unlogged", 3, 0)?;
        wait_log(lab, &pair.agent, AGENT, "the sync log cannot be written")?;
        let status = pair.agent.daemon()?.ended()?;
        ensure!(!status.success(), "it ends with an error: {status}");
        failing.stop()?;
        pair.heal(lab).context("started again")?;
        pair.replica.expect_quiet_log()
    })
}

#[test]
fn a_log_that_cannot_be_written_is_said_and_waited_for() -> anyhow::Result<()> {
    Lab::run(|lab| {
        faults::expect_tool("strace")?;
        let mut pair = pair_on(lab)?;
        let log = pair.agent.state_dir().join("log");
        let mut segments = fs::read_dir(&log)?.map(|entry| entry.map(|entry| entry.path()));
        let segment = segments.find(|path| {
            path.as_ref().is_ok_and(|path| path.extension().is_some_and(|kind| kind == "log"))
        });
        let segment = segment.context("a segment of the log")??;
        let failing = Failing::start_at(lab, &mut pair.agent, "pwrite64", Some(&segment))?;
        deliver(&pair, "unwritten", 3, 0)?;
        wait_status(lab, &pair, "CANNOT BE WRITTEN")?;
        let shown = pair.agent.replctl(lab, &["status", "--nagios"])?.expect(2)?;
        ensure!(shown.stdout.contains("cannot be written"), "{shown:?}");
        lab.wait("the metric counts it", || {
            let errors = metric(pair.agent.metrics.0, "mailtwin_log_append_errors_total")?;
            Ok(if errors > 0.0 { Ok(()) } else { Err("none".into()) })
        })?;
        failing.stop()?;
        ensure!(pair.agent.daemon()?.is_running(), "the agent waits");
        pair.heal(lab).context("with a disk that writes")?;
        pair.replica.expect_quiet_log()
    })
}

#[test]
fn an_index_that_cannot_be_written_ends_its_daemon_and_is_repaired() -> anyhow::Result<()> {
    Lab::run(|lab| {
        faults::expect_tool("strace")?;
        let mut pair = pair_on(lab)?;
        let index = pair.copy.state_dir().join("index/db");
        let failing = Failing::start_at(lab, &mut pair.copy, "pwrite64", Some(&index))?;
        deliver(&pair, "unindexed", 3, 0)?;
        let status = pair.copy.daemon()?.ended()?;
        ensure!(!status.success(), "it ends with an error: {status}");
        let log = pair.copy.log_text(REPLICA)?;
        ensure!(log.contains("the index failed: ending"), "{log}");
        failing.stop()?;
        pair.heal(lab).context("started again")?;
        pair.replica.expect_quiet_log()
    })
}

#[test]
fn a_replica_that_cannot_rename_waits() -> anyhow::Result<()> {
    Lab::run(|lab| {
        faults::expect_tool("strace")?;
        let mut pair = pair_on(lab)?;
        let calls = "rename,renameat,renameat2,link,linkat";
        let failing = Failing::start(lab, &mut pair.copy, calls)?;
        deliver(&pair, "unnamed", 3, 0)?;
        wait_status(lab, &pair, "Input/output error")?;
        failing.stop()?;
        pair.heal(lab).context("with a disk that renames")?;
        pair.replica.expect_quiet_log()
    })
}
