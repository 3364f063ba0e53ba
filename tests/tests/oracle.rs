//! Thousands of random operations by several clients at once, and both servers equal afterwards.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::ensure;
use mailtwin_tests::{
    cyrus::Cyrus,
    daemon::{AGENT, Node, Pair, REPLICA},
    dovecot::{Dovecot, Version},
    lab::Lab,
    oracle,
    random::Random,
    server::Server as _,
    workload::{self, Workload},
};

const ACCOUNTS: [&str; 3] = ["u1", "u2", "u3"];

#[test]
fn random_work_of_many_clients_ends_equal() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = Pair::busy(lab, (Version::V23, Version::V23))?;
        pair.first_copy(lab)?;
        let workload = Workload::usual(lab, &pair.master, &pair.accounts);
        let go_on = AtomicBool::new(true);
        // Clients look at the replica all the while, as they would after a failover.
        let tally = thread::scope(|scope| {
            scope.spawn(|| {
                workload::browse(lab, &pair.replica, &pair.accounts, &go_on, workload.seed);
            });
            let tally = workload.run(lab, &AtomicBool::new(false));
            go_on.store(false, Ordering::Relaxed);
            tally
        })?;
        tally.expect_no_loss(&pair.master, &pair.accounts)?;
        pair.wait_equal(lab)?;
        let tried = tally.done + tally.refused + tally.dropped;
        ensure!(tried >= workload.operations, "{tried} operations of {}", workload.operations);
        // A client that opens a mailbox in the very moment it is moved away finds its files gone; one
        // that has it open while a message comes back under its old UID finds its index begun anew.
        let expected = ["failed: No such file or directory", "reset, view is now inconsistent"];
        pair.replica.expect_quiet_log_but(&expected)
    })
}

#[test]
fn a_replica_that_joins_in_the_middle_and_one_that_is_frozen_end_equal() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let master = Dovecot::busy(lab, "master", Version::V23)?;
        let first = Dovecot::start(lab, "first", Version::V23)?;
        let second = Dovecot::start(lab, "second", Version::V23)?;
        let accounts: Vec<String> = ACCOUNTS.map(str::to_owned).to_vec();
        let mut nodes = Node::cluster(lab, &[&master, &first, &second])?;
        let [agent, one, two] = nodes.as_mut_slice() else {
            anyhow::bail!("a node for each server");
        };
        let work = |part: u64| {
            let mut workload = Workload::usual(lab, &master, &accounts);
            workload.operations /= 4;
            workload.seed = workload.seed.wrapping_add(part);
            workload.run(lab, &AtomicBool::new(false))
        };
        work(0)?;
        agent.start(lab)?;
        one.start(lab)?;
        work(1)?;
        // A frozen replica must hold up nobody.
        one.daemon()?.signal(rustix::process::Signal::STOP)?;
        two.start(lab)?;
        work(2)?;
        oracle::wait_equal(lab, &master, &second, &accounts)?;
        one.daemon()?.signal(rustix::process::Signal::CONT)?;
        oracle::wait_equal(lab, &master, &first, &accounts)?;
        first.expect_quiet_log()?;
        second.expect_quiet_log()
    })
}

#[test]
fn random_work_on_a_cyrus_pair_ends_equal_whatever_daemon_dies() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let accounts: Vec<String> = ACCOUNTS.map(str::to_owned).to_vec();
        // Messages of the corpus come more than once, under one Message-ID.
        let start = |name| Cyrus::with_extra(lab, name, "duplicatesuppression: no");
        let (master, replica) = (start("master")?, start("replica")?);
        for (server, is_master) in [(&master, true), (&replica, false)] {
            accounts.iter().try_for_each(|account| server.add_account(account, is_master))?;
        }
        let stores = [&master, &replica].map(|server| (server.name(), server.store_config()));
        let mut nodes = Node::start_beside(lab, &stores)?;
        let workload = Workload::usual(lab, &master, &accounts);
        let go_on = AtomicBool::new(true);
        let (tally, killed) = thread::scope(|scope| {
            scope.spawn(|| workload::browse(lab, &replica, &accounts, &go_on, workload.seed));
            let cyruses =
                scope.spawn(|| kill_processes([&master, &replica], &go_on, (lab, workload.seed)));
            let work = scope.spawn(|| {
                let tally = workload.run(lab, &AtomicBool::new(false));
                go_on.store(false, Ordering::Relaxed);
                tally
            });
            let killed = kill_now_and_then(lab, &mut nodes, &go_on, workload.seed);
            let panicked = || anyhow::anyhow!("a thread panicked");
            let sessions = cyruses.join().map_err(|_| panicked()).flatten();
            let tally = work.join().map_err(|_| panicked()).flatten();
            tally.and_then(|tally| Ok((tally, (killed?, sessions?))))
        })?;
        ensure!(killed.0 > 1 && killed.1 > 2, "daemons and processes were killed: {killed:?}");
        tally.expect_no_loss(&master, &accounts)?;
        // A Cyrus process that dies between a change and its line in the sync log leaves none: only a
        // scan finds such a change, and an agent begins with one.
        nodes[0].crash(lab, AGENT)?;
        oracle::wait_equal(lab, &master, &replica, &accounts)?;
        nodes[0].replctl(lab, &["drain"])?.expect(0)?;
        nodes[0].replctl(lab, &["check", "--level", "deep"])?.expect(0)?;
        Ok(())
    })
}

/// kill -9 of what in both Cyruses works for our daemons, until `go_on` is cleared; returns how many.
fn kill_processes(
    cyruses: [&Cyrus; 2],
    go_on: &AtomicBool,
    (lab, seed): (&Lab, u64),
) -> anyhow::Result<usize> {
    let (mut random, mut killed) = (Random::new(seed), 0);
    while go_on.load(Ordering::Relaxed) {
        lab.clock().pause(std::time::Duration::from_millis(2_600));
        for cyrus in cyruses {
            killed += usize::from(cyrus.kill_one_that_serves_us(&mut random)?);
        }
    }
    Ok(killed)
}

/// kill -9 of the agent or of the replica daemon until `go_on` is cleared; returns how often.
fn kill_now_and_then(
    lab: &Lab,
    nodes: &mut [Node],
    go_on: &AtomicBool,
    seed: u64,
) -> anyhow::Result<usize> {
    let (mut random, mut killed) = (Random::new(seed), 0);
    while go_on.load(Ordering::Relaxed) {
        let place = random.below(2);
        lab.clock().pause(std::time::Duration::from_millis(200 + random.draw() % 1_800));
        nodes[place].crash(lab, [AGENT, REPLICA][place])?;
        killed += 1;
    }
    Ok(killed)
}
