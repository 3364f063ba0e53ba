//! Power cuts, on real file systems: pictures of the disk are taken while a replica, or the log,
//! works; each is mounted as after a crash. What was acked is there, whole, once; the daemons go on
//! from it, and Dovecot has nothing to complain about.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::Pair,
    dovecot::{Dovecot, Version},
    lab::Lab,
    oracle::Account,
    powercut::{self, Client, History, Mark},
    random::{self, Random},
    volume::{Kind, PowerCut},
};

/// Pictures of a run, unless `POINTS` says otherwise.
const POINTS: usize = 100;

/// One in so many is started again with the real daemons and servers.
const STARTED_ONE_IN: usize = 10;

/// Longest time between two pictures.
const PAUSE_MS_MAX: usize = 300;

/// Where a test's folder lies: nothing but the volume under test needs to wait for a disk.
const MEMORY: &str = "/dev/shm";

fn points() -> usize {
    random::number("POINTS").and_then(|count| usize::try_from(count).ok()).unwrap_or(POINTS)
}

/// Pictures of a run whose every picture is started again.
fn points_to_start() -> usize {
    points().div_ceil(STARTED_ONE_IN)
}

/// One crash.
struct Point {
    picture: PathBuf,
    /// What was acked before it, and begun after it.
    marks: (Mark, Mark),
}

#[test]
fn a_replica_on_ext4_keeps_what_it_acked() -> anyhow::Result<()> {
    replica_on(Kind::Ext4)
}

#[test]
fn a_replica_on_xfs_keeps_what_it_acked() -> anyhow::Result<()> {
    replica_on(Kind::Xfs)
}

fn replica_on(kind: Kind) -> anyhow::Result<()> {
    Lab::run_in(MEMORY.as_ref(), |lab| {
        let mut disk = PowerCut::mount(kind, &lab.dir().join("disk"))?;
        disk.volume.bind("mail", &lab.mail_dir("replica/mail")?)?;
        disk.volume.bind("state", &lab.mail_dir("replica-node/state")?)?;
        let master = Dovecot::start(lab, "master", Version::V23)?;
        let replica = Dovecot::start(lab, "replica", Version::V23)?;
        let mut pair = Pair::around(lab, master, replica, &["u1", "u2", "u3"])?;
        pair.copy.start(lab)?;
        pair.agent.start(lab)?;
        let seed = random::seed(lab.clock());
        let history = History::default();
        let points = cut_power(lab, &pair, &disk, &history, (seed, points()))
            .with_context(|| format!("work, SEED={seed} repeats what was done"))?;
        pair.wait_equal(lab)?;
        pair.copy.kill()?;
        disk.volume.unmount(lab)?;
        for (number, point) in points.into_iter().enumerate() {
            disk.resume(point.picture)?;
            look_at(lab, &mut pair, &history, point.marks, number)
                .with_context(|| format!("power cut {number} on {kind:?}, SEED={seed}"))?;
            disk.forget(lab)?;
        }
        pair.replica.expect_quiet_log()
    })
}

#[test]
fn an_agent_goes_on_from_what_a_power_cut_left() -> anyhow::Result<()> {
    [Kind::Ext4, Kind::Xfs].into_iter().try_for_each(agent_on)
}

fn agent_on(kind: Kind) -> anyhow::Result<()> {
    Lab::run_in(MEMORY.as_ref(), |lab| {
        let mut disk = PowerCut::mount(kind, &lab.dir().join("disk"))?;
        disk.volume.bind("state", &lab.mail_dir("master-node/state")?)?;
        let mut pair = Pair::start(lab, &["u1", "u2", "u3"])?;
        let seed = random::seed(lab.clock());
        let history = History::default();
        let points = cut_power(lab, &pair, &disk, &history, (seed, points_to_start()))
            .with_context(|| format!("work, SEED={seed} repeats what was done"))?;
        pair.wait_equal(lab)?;
        pair.agent.kill()?;
        disk.volume.unmount(lab)?;
        for (number, point) in points.into_iter().enumerate() {
            disk.resume(point.picture)?;
            pair.agent.start(lab)?;
            let told = format!("power cut {number} on {kind:?}");
            pair.master.deliver("u1", &corpus::short(&format!("after{number}")))?;
            pair.wait_equal(lab).with_context(|| told.clone())?;
            pair.agent.sync(lab).with_context(|| told.clone())?;
            pair.agent.replctl(lab, &["status"])?.expect(0).context(told)?;
            pair.agent.stop()?;
            disk.forget(lab)?;
        }
        pair.replica.expect_quiet_log()
    })
}

/// Takes pictures while a client works at the master.
fn cut_power(
    lab: &Lab,
    pair: &Pair,
    disk: &PowerCut,
    history: &History,
    (seed, points): (u64, usize),
) -> anyhow::Result<Vec<Point>> {
    let mut client = Client::start(&pair.master, &pair.accounts, history, seed)?;
    let mut random = Random::new(seed).fork(1);
    client.wave(lab, &pair.agent).context("the first wave")?;
    let go_on = AtomicBool::new(true);
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            while go_on.load(Ordering::Relaxed) {
                client.wave(lab, &pair.agent)?;
            }
            Ok(())
        });
        let picture = |number| {
            let pause = u64::try_from(random.below(PAUSE_MS_MAX))?;
            lab.clock().pause(Duration::from_millis(pause));
            ensure!(!work.is_finished(), "the client has stopped");
            let acked = history.mark();
            let picture = disk.picture(number)?;
            Ok(Point { picture, marks: (acked, history.begun()) })
        };
        let points: anyhow::Result<Vec<Point>> = (0..points).map(picture).collect();
        go_on.store(false, Ordering::Relaxed);
        let worked: anyhow::Result<()> =
            work.join().map_err(|_| anyhow::anyhow!("the client panicked"))?;
        worked.and(points)
    })
}

/// Looks at what one power cut left; some are started again.
fn look_at(
    lab: &Lab,
    pair: &mut Pair,
    history: &History,
    marks: (Mark, Mark),
    number: usize,
) -> anyhow::Result<()> {
    let found = powercut::problems(&pair.replica, &pair.accounts, history, marks)?;
    ensure!(found.is_empty(), "{}", found.join("\n"));
    if !number.is_multiple_of(STARTED_ONE_IN) {
        return Ok(());
    }
    // A client may be there before us.
    if !powercut::has_locks(&pair.replica, &pair.accounts)? {
        for account in &pair.accounts {
            Account::read(&pair.replica, account).context("open what the power cut left")?;
        }
    }
    pair.copy.start(lab)?;
    pair.wait_equal(lab).context("started again")?;
    for account in &pair.accounts {
        let serials = Account::read(&pair.replica, account)?.serials();
        ensure!(serials.values().all(|&times| times == 1), "doubled: {serials:?}");
    }
    pair.copy.stop()
}
