//! `replctl check` in bulk: a thousand random defects, and a hundred checks while clients work.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::Pair,
    dovecot::{Dovecot, Version},
    files,
    lab::Lab,
    random::{self, Random},
    workload::Workload,
};
use serde_json::Value;

/// Messages that defects are planted in.
const MESSAGES: u32 = 120;
/// Defects planted together, each in another message.
const TOGETHER: usize = 25;
const DEFECTS: usize = 1000;
const CHECKS: usize = 100;

fn check(lab: &Lab, pair: &Pair, words: &[&str]) -> anyhow::Result<(i32, Value)> {
    let all = [&["--output", "json", "check"], words].concat();
    let output = pair.agent.replctl(lab, &all)?;
    let report = serde_json::from_str(&output.stdout);
    let report = report.with_context(|| format!("a report: {output:?}"))?;
    Ok((output.code.context("an exit code")?, report))
}

/// Files of the messages of `Work`, by UID.
fn messages(server: &Dovecot) -> anyhow::Result<Vec<(u32, PathBuf)>> {
    let dir = server.mailbox_dir("u1", "Work");
    let list = fs::read_to_string(dir.join("dovecot-uidlist"))?;
    let mut found = Vec::new();
    for entry in fs::read_dir(dir.join("cur"))?.chain(fs::read_dir(dir.join("new"))?) {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let base = name.split(":2,").next().unwrap_or_default();
        let line = list.lines().find(|line| line.ends_with(&format!(":{base}")));
        let uid = line.and_then(|line| line.split(' ').next()?.parse().ok());
        found.push((uid.with_context(|| format!("a UID of {name}"))?, entry.path()));
    }
    found.sort();
    Ok(found)
}

/// Spoils one message at random; says what must be reported.
fn spoil(random: &mut Random, pair: &Pair, at: usize) -> anyhow::Result<String> {
    let on_master = random.once_in(3);
    let (server, side) =
        if on_master { (&pair.master, "master") } else { (&pair.replica, "replica") };
    let all = messages(server)?;
    let (uid, path) = all.get(at).context("the message")?;
    let mut octets = fs::read(path)?;
    let kind = match random.below(if on_master { 4 } else { 6 }) {
        0 => {
            let at = random.below(octets.len());
            octets[at] ^= 1 << random.below(8);
            files::overwrite(path, &octets)?;
            "corrupt"
        }
        1 => {
            octets.truncate(random.below(octets.len()));
            files::overwrite(path, &octets)?;
            "size"
        }
        2 => {
            let seconds = 1_000_000 + random.below(1_000_000_000) as u64;
            let date = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            fs::File::options().write(true).open(path)?.set_modified(date)?;
            "date"
        }
        3 => {
            files::chmod(path, 0)?;
            "unreadable"
        }
        4 => {
            fs::remove_file(path)?;
            "missing"
        }
        _ => {
            let name = path.to_string_lossy();
            let (base, letters) = name.split_once(":2,").context("letters")?;
            let letters = if letters.contains('F') {
                letters.replace('F', "")
            } else {
                format!("F{letters}")
            };
            fs::rename(path, format!("{base}:2,{letters}"))?;
            "flags"
        }
    };
    Ok(format!("{uid} {kind} {side}"))
}

#[test]
fn a_thousand_random_defects_are_found_and_nothing_else() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = Pair::start(lab, &["u1"])?;
        pair.first_copy(lab)?;
        let mut imap = pair.master.imap("u1")?;
        imap.create("Work")?;
        for n in 0..MESSAGES {
            imap.append("Work", &corpus::short(&format!("m{n}"))).finish()?;
        }
        imap.logout()?;
        pair.wait_equal(lab)?;
        let seed = random::seed(lab.clock());
        let mut random = Random::new(seed);
        for round in 0..DEFECTS / TOGETHER {
            let mut chosen = BTreeSet::new();
            while chosen.len() < TOGETHER {
                chosen.insert(random.below(MESSAGES as usize));
            }
            let mut planted = BTreeSet::new();
            // From the last one, so that those before keep their places when one is removed.
            for at in chosen.into_iter().rev() {
                planted.insert(spoil(&mut random, &pair, at)?);
            }
            let (code, report) = check(lab, &pair, &["--level", "deep"])?;
            let differences = report["differences"].as_array().context("differences")?;
            let told = differences.iter().map(|found| {
                let word = |key: &str| found[key].as_str().unwrap_or("-").to_owned();
                format!("{} {} {}", found["uid"], word("kind"), word("side"))
            });
            let told: BTreeSet<String> = told.collect();
            ensure!(
                code == 1 && told == planted && differences.len() == TOGETHER,
                "seed {seed}, round {round}: planted {planted:?}, told {told:?}"
            );
            let repaired = pair.agent.replctl(lab, &["check", "--level", "deep", "--repair"])?;
            repaired.expect(0).with_context(|| format!("seed {seed}, round {round}"))?;
        }
        pair.wait_equal(lab)
    })
}

#[test]
fn nothing_in_flight_is_reported() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = Pair::busy(lab, (Version::V23, Version::V23))?;
        pair.first_copy(lab)?;
        let workload = Workload::usual(lab, &pair.master, &pair.accounts);
        let go_on = AtomicBool::new(true);
        let (checked, tally) = thread::scope(|scope| {
            let work = scope.spawn(|| workload.run(lab, &go_on));
            let checked = hundred_checks(lab, &pair);
            go_on.store(false, Ordering::Relaxed);
            (checked, work.join())
        });
        checked?;
        let tally = tally.map_err(|_| anyhow::anyhow!("the workload panicked"))??;
        ensure!(tally.done > 0, "clients worked");
        pair.wait_equal(lab)
    })
}

fn hundred_checks(lab: &Lab, pair: &Pair) -> anyhow::Result<()> {
    for number in 0..CHECKS {
        let level = ["quick", "full", "deep"][number % 3];
        let (code, report) = check(lab, pair, &["--level", level])?;
        ensure!(code == 0, "check {number}, {level}: {report}");
    }
    Ok(())
}

/// Octets of all messages read under a rate, and the rate, in MiB.
const READ_MIB: u64 = 16;
const RATE_MIB: u64 = 2;

#[test]
fn a_rate_is_held() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = Pair::start(lab, &["u1"])?;
        pair.first_copy(lab)?;
        let mut imap = pair.master.imap("u1")?;
        for n in 0..READ_MIB * 4 {
            let line = format!("{n:063}\n");
            let message = format!("Subject: {n}\n\n{}", line.repeat(4096));
            imap.append("INBOX", message.as_bytes()).finish()?;
        }
        imap.logout()?;
        pair.wait_equal(lab)?;
        pair.agent.sync(lab)?;
        let rate = format!("{RATE_MIB}MiB");
        let (code, report) = check(lab, &pair, &["--level", "deep", "--rate", &rate])?;
        ensure!(code == 0, "{report}");
        let read = report["bytes_read"].as_u64().context("octets read")?;
        ensure!(read >= READ_MIB << 20, "{report}");
        let due = std::time::Duration::from_millis(read * 1000 / (RATE_MIB << 20));
        let taken = report["seconds"].as_f64().context("how long it took")? / due.as_secs_f64();
        println!("{taken:.3} of the time due");
        ensure!((0.9..1.1).contains(&taken), "{taken} of the time that is due: {report}");
        Ok(())
    })
}
