//! kill -9 of either daemon at random moments of a random run: nothing is lost, doubled or expunged
//! that should not be.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use mailtwin_tests::{
    daemon::Pair,
    dovecot::Version,
    lab::Lab,
    random::{self, Random},
    workload::Workload,
};

/// Kills of a run, unless `KILLS` says otherwise.
const KILLS: u64 = 50;

/// Longest time that a daemon lives.
const LIFE_MS_MAX: usize = 900;

#[test]
fn killed_daemons_end_equal() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = Pair::busy(lab, (Version::V23, Version::V23))?;
        pair.first_copy(lab)?;
        let (agent, copy) = (&mut pair.agent, &mut pair.copy);
        let workload = Workload::usual(lab, &pair.master, &pair.accounts);
        let mut random = Random::new(workload.seed).fork(77);
        let go_on = AtomicBool::new(true);
        let tally = thread::scope(|scope| {
            let work = scope.spawn(|| workload.run(lab, &go_on));
            let killed = (0..random::number("KILLS").unwrap_or(KILLS)).try_for_each(|_| {
                let life = u64::try_from(random.below(LIFE_MS_MAX))?;
                lab.clock().pause(Duration::from_millis(life));
                let node = if random.once_in(2) { &mut *agent } else { &mut *copy };
                node.kill()?;
                node.start(lab)
            });
            go_on.store(false, Ordering::Relaxed);
            let tally = work.join().map_err(|_| anyhow::anyhow!("the workload panicked"))?;
            killed.and(tally)
        })?;
        tally.expect_no_loss(&pair.master, &pair.accounts)?;
        pair.wait_equal(lab)?;
        pair.replica.expect_quiet_log()
    })
}
