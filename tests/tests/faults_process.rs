//! Daemons that are stopped for a while, restarted again and again, whose clock jumps, or that may
//! not watch directories: nothing is lost, and all is equal in the end.

use std::ffi::OsString;

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::{AGENT, Node, Pair},
    faults::metric,
    files,
    lab::Lab,
};
use rustix::process::Signal;

/// Restarts of a storm, of each daemon.
const RESTARTS: usize = 15;

/// Debian's libfaketime, for programs with several threads.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

fn side(pair: &mut Pair, master: bool) -> &mut Node {
    if master { &mut pair.agent } else { &mut pair.copy }
}

fn deliver(pair: &Pair, what: &str) -> anyhow::Result<()> {
    (0..5).try_for_each(|n| pair.master.deliver("u1", &corpus::short(&format!("{what}{n}"))))
}

fn pair_with_mail(lab: &Lab) -> anyhow::Result<Pair> {
    let pair = Pair::start(lab, &["u1"])?;
    pair.first_copy(lab)?;
    pair.wait_equal(lab)?;
    Ok(pair)
}

#[test]
fn a_stopped_replica_is_noticed_and_goes_on() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = pair_with_mail(lab)?;
        pair.copy.daemon()?.signal(Signal::STOP)?;
        deliver(&pair, "stopped")?;
        lab.wait("the agent gives the connection up", || {
            let connected = metric(pair.agent.metrics.0, "mailtwin_replica_connected")?;
            Ok(if connected == 0.0 { Ok(()) } else { Err("connected".into()) })
        })?;
        pair.agent.replctl(lab, &["status"])?.expect(1)?;
        pair.copy.daemon()?.signal(Signal::CONT)?;
        pair.wait_equal(lab).context("continued")?;
        pair.expect_quiet_logs()
    })
}

#[test]
fn a_stopped_agent_is_noticed_and_goes_on() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = pair_with_mail(lab)?;
        pair.agent.daemon()?.signal(Signal::STOP)?;
        deliver(&pair, "stopped")?;
        lab.wait("the replica gives the connection up", || {
            let shown = pair.copy.replctl(lab, &["status"])?;
            Ok(if shown.code == Some(1) { Ok(()) } else { Err(shown.stdout) })
        })?;
        pair.agent.daemon()?.signal(Signal::CONT)?;
        pair.wait_equal(lab).context("continued")?;
        pair.expect_quiet_logs()
    })
}

#[test]
fn a_storm_of_restarts_loses_nothing() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = pair_with_mail(lab)?;
        for number in 0..RESTARTS {
            pair.master.deliver("u1", &corpus::short(&format!("storm{number}")))?;
            for master in [true, false] {
                let node = side(&mut pair, master);
                node.kill()?;
                node.start(lab)?;
            }
        }
        pair.wait_equal(lab).context("after the storm")?;
        pair.expect_quiet_logs()
    })
}

#[test]
fn clocks_that_jump_confuse_nobody() -> anyhow::Result<()> {
    Lab::run(|lab| {
        ensure!(
            std::path::Path::new(FAKETIME).exists(),
            "{FAKETIME} is missing; tests/run installs it"
        );
        let mut pair = pair_with_mail(lab)?;
        let offset = |master: bool| lab.dir().join(format!("clock-{master}"));
        for master in [true, false] {
            files::write(&offset(master), "+0")?;
            files::chmod(&offset(master), 0o644)?;
            let node = side(&mut pair, master);
            node.stop()?;
            let words = [
                "env".to_owned(),
                format!("LD_PRELOAD={FAKETIME}"),
                format!("FAKETIME_TIMESTAMP_FILE={}", offset(master).display()),
                "FAKETIME_NO_CACHE=1".to_owned(),
                "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
            ];
            node.run_under(words.into_iter().map(OsString::from).collect());
            node.start(lab)?;
        }
        for (master, jump) in
            [(true, "+2d"), (false, "+2d"), (true, "-1d"), (false, "-30d"), (true, "+400d")]
        {
            files::write(&offset(master), jump)?;
            deliver(&pair, &format!("jump{jump}-{master}-"))?;
            let mut imap = pair.master.imap("u1")?;
            imap.select("INBOX")?;
            let first = imap.uid_search("ALL")?.into_iter().min().context("a message")?;
            imap.command(&format!("UID STORE {first} +FLAGS (\\Deleted)"))?;
            imap.expunge()?;
            pair.wait_equal(lab).with_context(|| format!("{jump}, on the master: {master}"))?;
        }
        let lag = pair.agent.ask(lab, &["status"])?["replicas"][0]["lag_seconds"].clone();
        ensure!(lag.as_f64().is_some_and(|lag| lag < 60.0), "lag {lag}");
        pair.expect_quiet_logs()
    })
}

#[test]
fn without_watches_mail_still_comes_and_the_limit_is_named() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = pair_with_mail(lab)?;
        pair.agent.stop()?;
        // A limit of its own, which nobody else on this machine notices.
        let limited = "echo 0 > /proc/sys/user/max_inotify_watches && exec \"$@\"";
        let words = ["unshare", "--user", "--map-root-user", "sh", "-c", limited, "limited"];
        pair.agent.run_under(words.map(OsString::from).into());
        pair.agent.start(lab)?;
        lab.wait("it says which limit to raise", || {
            let log = pair.agent.log_text(AGENT)?;
            let said = log.contains("sysctl -w fs.inotify.max_user_watches=");
            Ok(if said { Ok(()) } else { Err("not in the log".into()) })
        })?;
        deliver(&pair, "unwatched")?;
        pair.wait_equal(lab)?;
        pair.expect_quiet_logs()
    })
}
