//! Thousands of random operations by several clients at once, and both servers equal afterwards.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::ensure;
use mailtwin_tests::{
    daemon::{Node, Pair},
    dovecot::{Dovecot, Version},
    lab::Lab,
    oracle,
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
        // A client that opens a mailbox in the very moment it is moved away finds its files gone.
        pair.replica.expect_quiet_log_but(&["failed: No such file or directory"])
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
