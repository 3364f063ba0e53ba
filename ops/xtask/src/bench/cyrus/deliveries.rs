//! Deliveries by LMTP, 50 a second: from the moment at which each was accepted until it is durable on
//! the replica.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use mailtwin_tests::{cyrus::Cyrus, lab::Lab, server::Server as _};

use super::{
    Daemons, Keeper, count, create_users, cyrus, daemons, ensure_equal, held, keepers,
    landings::Landings, median_of, run_own,
};
use crate::bench::{
    Bench,
    live::{self, ACCOUNTS},
    measure::quantile,
    report::{Goal, Row, talk},
};

/// What `sync_client` is called in the table.
const PEER: &str = "sync_client -r";

const RATE: u32 = 50;
const MESSAGES: usize = 20 * RATE as usize;

/// Whoever keeps the replica in step, running.
enum Running {
    /// In the background: it ends with the master's other processes.
    SyncClient,
    Mailtwin(Daemons),
}

pub(super) fn steady(bench: &Bench, lab: &Lab) -> Result<Vec<Row>> {
    let (mut keepers, mut middle, mut tail) = (keepers(bench), Vec::new(), Vec::new());
    for run in 0..bench.runs {
        keepers.rotate_left(1); // Nobody always comes first.
        for &keeper in &keepers {
            let lags = round(bench, lab, keeper, run)
                .with_context(|| format!("deliver to a Cyrus with {keeper}"))?;
            let [p50, p99] = [50, 99].map(|percent| quantile(&lags, percent).unwrap_or_default());
            talk(&format!("Cyrus: deliveries: {keeper}: lag p50 {p50:.1?} p99 {p99:.1?}"));
            middle.push((keeper, p50));
            tail.push((keeper, p99));
        }
    }
    let row = |name, taken: &[_], goal| {
        let theirs = median_of(taken, Keeper::SyncClient);
        Row {
            what: format!("Cyrus: {RATE} deliveries/s for 20 s, accepted to durable, {name}"),
            peers: theirs.map(|figure| (PEER.to_owned(), figure)).into_iter().collect(),
            ours: median_of(taken, Keeper::Mailtwin),
            goals: vec![Goal::TimesAtMost(goal, PEER)],
        }
    };
    Ok(vec![row("p50", &middle, 0.33), row("p99", &tail, 0.5)])
}

/// How long each message took.
fn round(bench: &Bench, lab: &Lab, keeper: Keeper, run: usize) -> Result<Vec<Duration>> {
    let name = |role: &str| format!("steady-{run}-{keeper}-{role}");
    let master = cyrus(lab, &name("master"))?;
    let replica = cyrus(lab, &name("replica"))?;
    create_users(&master)?;
    for number in 0..ACCOUNTS {
        // One message for everybody, so that first-time work is not measured.
        let first = live::message(bench, 1_000_000 + number)?;
        master.deliver(&live::account(number), &first)?;
    }
    let running = start(bench, lab, keeper, &name("daemons"), [&master, &replica])?;
    lab.wait("the replica has the first messages", || {
        let there = count(&held(&replica)?);
        Ok(if there == ACCOUNTS { Ok(()) } else { Err(format!("{there} are there")) })
    })?;
    if let Running::Mailtwin(daemons) = &running {
        daemons.settle(lab)?;
    }
    bench.image.settle()?;

    let landings = Landings::watch(&bench.clock, &inboxes(&replica)?)?;
    let messages = live::messages(bench, MESSAGES)?;
    let accepted = live::deliver(bench, master.lmtp_address(), &messages, Some(RATE))?;
    lab.wait("the replica has every message", || {
        let missing = MESSAGES.saturating_sub(landings.count()?);
        Ok(if missing == 0 { Ok(()) } else { Err(format!("{missing} are missing")) })
    })?;
    if let Running::Mailtwin(daemons) = running {
        daemons.stop()?;
    }
    ensure_equal(&master, &replica, ACCOUNTS + MESSAGES)?;

    let mut lags = Vec::new();
    let inboxes = inboxes(&master)?;
    for ((mailbox, uid), landed) in landings.times()? {
        let path = inboxes.get(mailbox).context("a mailbox's number")?.join(format!("{uid}."));
        let number = number(&fs::read(&path)?);
        let number = number.with_context(|| format!("find out which {} is", path.display()))?;
        let accepted = accepted.get(number).context("the number of a message")?;
        lags.push(landed.saturating_sub(*accepted));
    }
    Ok(lags)
}

fn start(
    bench: &Bench,
    lab: &Lab,
    keeper: Keeper,
    name: &str,
    pair: [&Cyrus; 2],
) -> Result<Running> {
    if keeper == Keeper::Mailtwin {
        return daemons(bench, lab, name, pair).map(Running::Mailtwin);
    }
    let [master, replica] = pair;
    run_own(bench, master, replica, "-r")?;
    Ok(Running::SyncClient)
}

/// Directories of all users' INBOXes.
fn inboxes(server: &Cyrus) -> Result<Vec<PathBuf>> {
    let users = (0..ACCOUNTS).map(live::account);
    users.map(|user| server.mailbox_dir(&format!("user.{user}"))).collect()
}

/// Which of our messages this is.
fn number(octets: &[u8]) -> Option<usize> {
    let mut lines = octets.split(|octet| *octet == b'\n');
    let number = lines.find_map(|line| line.strip_prefix(b"X-Bench-Number: "))?;
    std::str::from_utf8(number).ok()?.trim().parse().ok()
}
