//! Mailtwin beside Cyrus's own `sync_client`, on real Cyruses: a first copy, a pass over what is equal,
//! and deliveries. Both read the same servers, configured alike, and write to servers of their own.

mod copies;
mod deliveries;
mod landings;

use std::{collections::BTreeMap, fmt, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use mailtwin_tests::{
    cyrus::{Cyrus, Held},
    lab::Lab,
};

use super::{
    Bench,
    daemons::Daemons,
    live,
    measure::{self, median},
    report::{Figure, Row, talk},
};

/// Who replicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeper {
    SyncClient,
    Mailtwin,
}

impl fmt::Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SyncClient => "sync_client",
            Self::Mailtwin => "mailtwin",
        })
    }
}

/// Measures all three.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    Lab::run_in(bench.image.path(), |lab| {
        rows.push(copies::initial(bench, lab)?);
        rows.push(copies::no_change(bench, lab)?);
        rows.extend(deliveries::steady(bench, lab)?);
        Ok(())
    })?;
    Ok(rows)
}

/// Starts one. Our messages share a few Message-IDs, of each of which it would take one only.
fn cyrus(lab: &Lab, name: &str) -> Result<Cyrus> {
    Cyrus::with_extra(lab, name, "duplicatesuppression: no")
}

fn keepers(bench: &Bench) -> Vec<Keeper> {
    let mut keepers = vec![Keeper::SyncClient];
    keepers.extend((!bench.peers_only).then_some(Keeper::Mailtwin));
    keepers
}

/// The median of what a keeper took.
fn median_of(taken: &[(Keeper, Duration)], keeper: Keeper) -> Option<Figure> {
    let own = taken.iter().filter(|(one, _)| *one == keeper);
    median(&own.map(|(_, time)| *time).collect::<Vec<_>>()).map(Figure::Time)
}

/// Starts our daemons between two Cyruses. `name` is the pair's own in the lab.
fn daemons(bench: &Bench, lab: &Lab, name: &str, [from, to]: [&Cyrus; 2]) -> Result<Daemons> {
    let stores = [from.store_config(), to.store_config()];
    Daemons::between(lab, &bench.binaries, name, stores.each_ref().map(String::as_str))
}

/// Runs `sync_client` with `what`: `-A` is everything of every user, `-r` goes into the background.
fn run_own(bench: &Bench, from: &Cyrus, to: &Cyrus, what: &str) -> Result<Duration> {
    let words = from.sync_client(to, &[what])?;
    let [program, arguments @ ..] = &words[..] else { unreachable!("it has a program") };
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(measure::run(&bench.clock, &mut command, &bench.log)?.wall)
}

/// What all users of a server have.
fn held(server: &Cyrus) -> Result<Vec<Held>> {
    (0..live::ACCOUNTS).map(|number| server.held(&live::account(number))).collect()
}

fn count(held: &[Held]) -> usize {
    held.iter().flat_map(Held::values).map(BTreeMap::len).sum()
}

/// Checks that the replica has the master's messages, under their UIDs and GUIDs, in all mailboxes.
fn ensure_equal(master: &Cyrus, replica: &Cyrus, messages: usize) -> Result<()> {
    let (ours, theirs) = (held(master)?, held(replica)?);
    ensure!(count(&ours) == messages, "the master has {} messages", count(&ours));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        for (name, wanted) in ours {
            let there = theirs.get(name);
            ensure!(there == Some(wanted), "{name} differs on the replica");
        }
    }
    ensure!(count(&theirs) == messages, "the replica has {} messages", count(&theirs));
    Ok(())
}

/// Makes all users on the master.
fn create_users(master: &Cyrus) -> Result<()> {
    (0..live::ACCOUNTS).try_for_each(|number| {
        let user = live::account(number);
        master.create_user(&user).with_context(|| format!("create {user}"))
    })
}

fn say(what: &str, keeper: Keeper, taken: Duration) {
    talk(&format!("{what}: {keeper}: {:.3} s", taken.as_secs_f64()));
}
