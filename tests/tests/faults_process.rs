//! Daemons that are stopped for a while, restarted again and again, whose clock jumps, or that may
//! not watch directories: nothing is lost, and all is equal in the end.

use std::{ffi::OsString, io::ErrorKind, os::unix::net::UnixDatagram, time::Duration};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::{AGENT, Node, Pair, REPLICA},
    faults::{metric, wait_log},
    files,
    lab::{Lab, PATIENCE},
    volume,
};
use rustix::process::Signal;

/// Restarts of a storm, of each daemon.
const RESTARTS: usize = 15;

/// How long systemd would wait for a word, in a unit of the test's.
const WATCHDOG: Duration = Duration::from_secs(9);

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

/// Waits until a daemon has told systemd this; `None` if it does not within `patience`.
fn told(socket: &UnixDatagram, words: &str, patience: Duration) -> anyhow::Result<Option<()>> {
    socket.set_read_timeout(Some(patience))?;
    let mut octets = [0; 4096];
    loop {
        match socket.recv(&mut octets) {
            Ok(length) => {
                let said = String::from_utf8_lossy(octets.get(..length).unwrap_or_default());
                if said.contains(words) {
                    return Ok(Some(()));
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn a_daemon_that_hangs_is_not_said_to_live() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = pair_with_mail(lab)?;
        for (master, daemon) in [(true, AGENT), (false, REPLICA)] {
            let node = side(&mut pair, master);
            node.stop()?;
            let path = lab.dir().join(format!("notify-{master}"));
            let socket = UnixDatagram::bind(&path).context("listen like systemd")?;
            files::chmod(&path, 0o666)?;
            let limit = WATCHDOG.as_micros();
            let words = [
                "env".to_owned(),
                format!("NOTIFY_SOCKET={}", path.display()),
                format!("WATCHDOG_USEC={limit}"),
            ];
            node.run_under(words.into_iter().map(OsString::from).collect());
            node.start(lab)?;
            told(&socket, "STATUS=", PATIENCE)?.context("it says how it is")?;
            for _ in 0..3 {
                told(&socket, "WATCHDOG=1", PATIENCE)?.context("it says that it lives")?;
            }
            // It hangs as soon as it reads what never comes.
            let history = node.state_dir().join("failover.jsonl");
            volume::tool(&["mkfifo".as_ref(), "--mode=666".as_ref(), history.as_os_str()])?;
            wait_log(lab, node, daemon, "systemd is not told")?;
            while told(&socket, "WATCHDOG=1", WATCHDOG)?.is_some() {}
            let hanging = node.daemon()?;
            ensure!(hanging.is_running(), "it is there, and hangs");
            node.kill()?;
            std::fs::remove_file(history)?;
            node.run_under(Vec::new());
            node.start(lab)?;
        }
        deliver(&pair, "after")?;
        pair.wait_equal(lab)
    })
}
