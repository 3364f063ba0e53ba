//! A first copy, and a pass over mailboxes that are equal.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use mailtwin_tests::{cyrus::Cyrus, files, lab::Lab, server::Server as _};

use super::{Keeper, create_users, cyrus, daemons, ensure_equal, keepers, median_of, run_own, say};
use crate::bench::{
    Bench, copy,
    live::{self, ACCOUNTS},
    measure,
    report::{Goal, Row, talk},
};

/// What `sync_client` is called in the table.
const PEER: &str = "sync_client -A";

/// Messages of each user in the first copy.
const MESSAGES: usize = 1000;

/// Mailboxes of each user in the other pass, and messages of each.
const MAILBOXES: usize = 10;
const FEW: usize = 10;

/// How closely the end of our copy is seen, and when nobody waits for it any more.
const LOOK_EVERY: Duration = Duration::from_millis(25);
const COPY_LIMIT: Duration = Duration::from_mins(10);

/// From a master to a replica without users.
pub(super) fn initial(bench: &Bench, lab: &Lab) -> Result<Row> {
    let total = ACCOUNTS * MESSAGES;
    let master = cyrus(lab, "copy-master")?;
    create_users(&master)?;
    talk(&format!("delivering {total} messages to a Cyrus"));
    live::deliver(bench, master.lmtp_address(), &live::messages(bench, total)?, None)?;
    let (mut keepers, mut taken) = (keepers(bench), Vec::new());
    for run in 0..bench.runs {
        keepers.rotate_left(1); // Nobody always comes first.
        for &keeper in &keepers {
            let name = format!("copy-{run}-{keeper}");
            let replica = cyrus(lab, &name)?;
            copy::read_all(&master.spool())?;
            bench.image.settle()?;
            let wall = match keeper {
                Keeper::SyncClient => run_own(bench, &master, &replica, "-A")?,
                Keeper::Mailtwin => {
                    let name = format!("{name}-daemons");
                    copy_all(bench, lab, &name, [&master, &replica], total)?
                }
            };
            ensure_equal(&master, &replica, total)
                .with_context(|| format!("check what {keeper} copied"))?;
            say("Cyrus: initial copy", keeper, wall);
            taken.push((keeper, wall));
        }
    }
    Ok(row(&format!("Cyrus: initial copy, {total} messages, wall"), &taken, 0.4))
}

/// Starts our daemons and waits until the replica has acked everything.
fn copy_all(
    bench: &Bench,
    lab: &Lab,
    name: &str,
    [master, replica]: [&Cyrus; 2],
    total: usize,
) -> Result<Duration> {
    let daemons = daemons(bench, lab, name, [master, replica])?;
    let taken = || lab.clock().monotonic().saturating_sub(daemons.started);
    // Before anything was looked at, there is nothing to be acked either.
    while !(daemons.lag().is_ok_and(|lag| lag == Some(0)) && spooled(replica)? == total) {
        ensure!(taken() < COPY_LIMIT, "there are {} of {total} messages", spooled(replica)?);
        bench.clock.pause(LOOK_EVERY);
    }
    let wall = taken();
    daemons.stop()?;
    Ok(wall)
}

/// Files of messages in a server's mailboxes.
fn spooled(server: &Cyrus) -> Result<usize> {
    let mailboxes = server.spool().join("uuid");
    let paths = if mailboxes.exists() { files::walk(&mailboxes)? } else { Vec::new() };
    Ok(paths.iter().filter(|path| path.as_os_str().as_encoded_bytes().ends_with(b".")).count())
}

/// Over 200 mailboxes that are equal.
pub(super) fn no_change(bench: &Bench, lab: &Lab) -> Result<Row> {
    let (mailboxes, total) = (ACCOUNTS * MAILBOXES, ACCOUNTS * MAILBOXES * FEW);
    talk(&format!("making {mailboxes} mailboxes on a Cyrus"));
    let master = cyrus(lab, "quiet-master")?;
    create_users(&master)?;
    for number in 0..ACCOUNTS {
        fill(bench, &master, number)?;
    }
    let theirs = cyrus(lab, "quiet-sync_client")?;
    run_own(bench, &master, &theirs, "-A")?;
    ensure_equal(&master, &theirs, total)?;
    let ours = cyrus(lab, "quiet-mailtwin")?;
    let mut pair = None;
    if !bench.peers_only {
        let daemons = daemons(bench, lab, "quiet-daemons", [&master, &ours])?;
        lab.wait("everything is copied", || {
            let there = spooled(&ours)?;
            Ok(if there == total { Ok(()) } else { Err(format!("{there} are there")) })
        })?;
        daemons.settle(lab)?;
        ensure_equal(&master, &ours, total)?;
        pair = Some(daemons);
    }
    let (mut keepers, mut taken) = (keepers(bench), Vec::new());
    for run in 0..=bench.runs {
        keepers.rotate_left(1);
        for &keeper in &keepers {
            bench.image.settle()?;
            let wall = match &pair {
                Some(daemons) if keeper == Keeper::Mailtwin => {
                    let mut check = Command::new(bench.binaries.join("replctl"));
                    check.arg("--config").arg(&daemons.master_config);
                    check.args(["check", "--level", "quick"]);
                    measure::run(&bench.clock, &mut check, &bench.log)?.wall
                }
                _ => run_own(bench, &master, &theirs, "-A")?,
            };
            if run > 0 {
                say("Cyrus: no-change pass", keeper, wall);
                taken.push((keeper, wall)); // The first one warms the cache.
            }
        }
    }
    pair.map_or(Ok(()), super::Daemons::stop)?;
    Ok(row(&format!("Cyrus: no-change pass, {mailboxes} mailboxes, wall"), &taken, 1.0))
}

/// Makes a user's mailboxes, each with a few messages.
fn fill(bench: &Bench, master: &Cyrus, number: usize) -> Result<()> {
    let mut imap = master.imap(&live::account(number))?;
    for mailbox in 0..MAILBOXES {
        let name = if mailbox == 0 { "INBOX".to_owned() } else { format!("Folder{mailbox}") };
        if mailbox > 0 {
            imap.create(&name)?;
        }
        for message in 0..FEW {
            let number = (number * MAILBOXES + mailbox) * FEW + message;
            imap.append(&name, &live::message(bench, number)?).finish()?;
        }
    }
    Ok(())
}

fn row(what: &str, taken: &[(Keeper, Duration)], goal: f64) -> Row {
    let theirs = median_of(taken, Keeper::SyncClient);
    Row {
        what: what.to_owned(),
        peers: theirs.map(|figure| (PEER.to_owned(), figure)).into_iter().collect(),
        ours: median_of(taken, Keeper::Mailtwin),
        goals: vec![Goal::TimesAtMost(goal, PEER)],
    }
}
