//! Alerts, runbooks, metrics and dashboard: in step with each other, and tried on a real Prometheus that
//! scrapes a real pair. Each alert fires because its cause is really there, and clears when that is gone.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::TcpStream,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    check, corpus,
    daemon::{Node, Pair},
    dovecot::{Dovecot, Version},
    faults::{self, Failing},
    files,
    lab::Lab,
    prometheus::{Prometheus, promtool, rules_dir},
};
use rustix::process::Signal;
use serde_json::Value;

const RULES: &str = "mailtwin.rules.yml";

/// Events that the kernel keeps for a reader by default, and some more.
const EVENTS: usize = 20_000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn rules() -> anyhow::Result<String> {
    fs::read_to_string(rules_dir().join(RULES)).context("read the rules")
}

/// The rules as they are shipped, but in a hurry: hours and minutes become seconds, so that a test can
/// wait for them. Nothing else differs.
fn hurried() -> anyhow::Result<String> {
    let mut rules = rules()?;
    for (shipped, here) in [
        ("lag_seconds > 300", "lag_seconds > 3"),
        ("heartbeat_age:seconds > 120", "heartbeat_age:seconds > 12"),
        ("append_errors_total[15m]", "append_errors_total[10s]"),
        // Longer than the agent is stopped: from its last answer before to its first one after.
        ("overflows_total[1h]", "overflows_total[40s]"),
        ("refused_connections_total[15m]", "refused_connections_total[10s]"),
        ("check_age:seconds > 180000", "check_age:seconds > 25"),
        ("> 0) + 90)", "> 0) + 5)"),
        ("> 3888000", "> 25"),
    ] {
        ensure!(rules.matches(shipped).count() == 1, "{shipped} stands there once");
        rules = rules.replace(shipped, here);
    }
    let lines = rules.lines().map(|line| match line.split_once("for: ") {
        Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: 1s\n"),
        _ => format!("{line}\n"),
    });
    Ok(lines.collect())
}

/// Names of all alerts.
fn alerts(rules: &str) -> BTreeSet<String> {
    rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .map(str::to_owned)
        .collect()
}

/// Metrics of ours that a text names, a histogram by its name alone.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    let ours = words.filter(|word| word.starts_with("mailtwin_") && !word.contains(':'));
    ours.map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned()).collect()
}

/// Every query of the dashboard, with the panel it is for.
fn queries() -> anyhow::Result<Vec<(String, String)>> {
    let text = fs::read_to_string(root().join("ops/grafana/mailtwin.json"))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let mut all = Vec::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        let title = panel["title"].as_str().context("a panel has a title")?;
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().with_context(|| format!("a query of {title}"))?;
            all.push((title.to_owned(), query.to_owned()));
        }
    }
    ensure!(all.len() > 20, "the dashboard has panels");
    Ok(all)
}

#[test]
fn rules_pass_their_own_tests() -> anyhow::Result<()> {
    promtool(&["check", "rules", RULES], "")?;
    promtool(&["check", "config", "prometheus.yml"], "")?;
    promtool(&["test", "rules", "mailtwin.test.yml"], "")
}

#[test]
fn rules_that_take_weeks_pass_their_own_tests() -> anyhow::Result<()> {
    promtool(&["test", "rules", "mailtwin-weeks.test.yml"], "")
}

#[test]
fn alerts_have_runbooks_and_tests_and_metrics_are_documented() -> anyhow::Result<()> {
    let rules = rules()?;
    let alerts = alerts(&rules);
    ensure!(alerts.len() > 15, "{alerts:?}");
    let mut runbooks = BTreeSet::new();
    for entry in fs::read_dir(root().join("ops/runbooks"))? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        runbooks.insert(name.strip_suffix(".md").context("a runbook is a page")?.to_owned());
    }
    ensure!(alerts == runbooks, "alerts {alerts:?}\nrunbooks {runbooks:?}");
    let mut tests = String::new();
    for name in ["mailtwin.test.yml", "mailtwin-weeks.test.yml"] {
        tests.push_str(&fs::read_to_string(rules_dir().join(name))?);
    }
    let mut problems = Vec::new();
    for alert in &alerts {
        let page = fs::read_to_string(root().join(format!("ops/runbooks/{alert}.md")))?;
        let parts = ["## What it means", "## What to type", "## When it is over"];
        let whole =
            page.starts_with(&format!("# {alert}\n")) && parts.iter().all(|p| page.contains(p));
        let named = format!("runbook: ops/runbooks/{alert}.md");
        let fires = tests.contains(&format!("alertname: {alert}\n"));
        let is_quiet = tests.contains(&format!("alertname: {alert}}}\n"));
        if !(whole && rules.contains(&named) && fires && is_quiet) {
            problems.push(format!("{alert}: page {whole}, fires {fires}, is quiet {is_quiet}"));
        }
    }
    let documented = metrics(&fs::read_to_string(root().join("docs/metrics.md"))?);
    let queries = queries()?.into_iter().map(|(_, query)| query).collect::<Vec<_>>().join("\n");
    for metric in metrics(&rules).union(&metrics(&queries)) {
        if !documented.contains(metric) {
            problems.push(format!("docs/metrics.md does not have {metric}"));
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

#[test]
fn runbooks_only_tell_to_type_what_replctl_knows() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut seen = BTreeSet::new();
        for entry in fs::read_dir(root().join("ops/runbooks"))? {
            let page = fs::read_to_string(entry?.path())?;
            // Indented lines, and what stands between backquotes.
            let blocks = page.lines().filter(|line| line.starts_with("    ")).map(str::trim);
            let inline = page.split('`').skip(1).step_by(2);
            seen.extend(
                blocks.chain(inline).filter(|c| c.starts_with("replctl ")).map(str::to_owned),
            );
        }
        ensure!(seen.len() > 15, "{seen:?}");
        for command in seen {
            expect_known(lab, &command).with_context(|| command.clone())?;
        }
        Ok(())
    })
}

/// Fails unless the help of a command's verbs knows every word and option of it.
fn expect_known(lab: &Lab, command: &str) -> anyhow::Result<()> {
    let help = |verbs: &[&str]| {
        let words: Vec<_> = verbs.iter().chain(&["--help"]).map(std::ffi::OsStr::new).collect();
        let output = mailtwin_tests::daemon::replctl(lab, &words, false)?;
        anyhow::Ok(output.expect(0)?.stdout)
    };
    let has = |text: &str, word: &str| {
        text.lines().any(|line| line.trim_start().split([' ', ',', '=']).any(|part| part == word))
    };
    let mut verbs: Vec<&str> = Vec::new();
    for word in command.split_whitespace().skip(1) {
        let text = help(&verbs)?;
        let (_, commands) = text.split_once("\nCommands:\n").unwrap_or_default();
        let is_verb = commands.lines().any(|line| line.trim().split(' ').next() == Some(word));
        if word.starts_with("--") {
            ensure!(has(&text, word), "no option {word}: {text}");
        } else if is_verb {
            verbs.push(word);
        } else {
            ensure!(!verbs.is_empty(), "no verb {word}: {text}");
            let takes_words = text.contains("Arguments:") || text.contains(" <");
            ensure!(takes_words, "no argument {word}: {text}");
        }
    }
    Ok(())
}

/// A pair with a master whose log is small and whose brake is tight, some mail, and a Prometheus.
fn watched(lab: &Lab) -> anyhow::Result<(Pair, Prometheus)> {
    let master = Dovecot::start(lab, "master", Version::V23)?;
    let replica = Dovecot::start(lab, "replica", Version::V23)?;
    let mut pair = Pair::around(lab, master, replica, &["u1", "u2"])?;
    let config = pair.agent.config_text()?;
    let tight = "[log]\nbound = \"1MiB\"\n\n[brake]\nmessages = 50\nshare = \"25%\"\n\n[replica]\n";
    pair.agent.write_config(&config.replace("[replica]\n", tight))?;
    pair.agent.send_canaries(pair.master.lmtp_address(), "2s")?;
    pair.copy.start(lab)?;
    pair.agent.start(lab)?;
    pair.first_copy(lab)?;
    pair.wait_equal(lab)?;
    let prometheus = watch(lab, &pair)?;
    Ok((pair, prometheus))
}

/// A Prometheus for the daemons that a pair has running: the master's agent, the replica's daemon.
fn watch(lab: &Lab, pair: &Pair) -> anyhow::Result<Prometheus> {
    Prometheus::start(lab, &[pair.agent.metrics.0], &[pair.copy.metrics.1], &hurried()?)
}

/// A deep check that finds nothing: from then on no alert has a cause.
fn check_all(lab: &Lab, pair: &Pair) -> anyhow::Result<()> {
    pair.agent.replctl(lab, &["check", "--level", "deep"])?.expect(0)?;
    Ok(())
}

fn claim(lab: &Lab, pair: &Pair) -> anyhow::Result<String> {
    let status = pair.agent.ask(lab, &["status"])?;
    Ok(status["replicas"][0]["claim"].as_str().context("a claim")?.to_owned())
}

/// Appends entries to the master's log, for mail that is not there, until the replica's claim is
/// another than `is`.
fn fill_log(lab: &Lab, pair: &Pair, is: &str) -> anyhow::Result<()> {
    let long = "x".repeat(200);
    for part in 0..60 {
        if claim(lab, pair)? != is {
            return Ok(());
        }
        let names = (0..300).map(|n| format!("ghost/{is}-{part}-{n}-{long}"));
        let words: Vec<String> =
            ["log", "append"].map(str::to_owned).into_iter().chain(names).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        pair.agent.replctl(lab, &words)?.expect(0)?;
    }
    anyhow::bail!("the claim stays {is}")
}

#[test]
fn alerts_of_daemons_and_links_fire_and_clear() -> anyhow::Result<()> {
    Lab::run(|lab| {
        faults::expect_tool("strace")?;
        let (mut pair, prometheus) = watched(lab)?;
        check_all(lab, &pair)?;
        prometheus.wait_clear(lab, &[]).context("all is well")?;

        // The replica goes, and mail goes on arriving.
        pair.copy.stop()?;
        pair.master.deliver("u1", &corpus::short("alone"))?;
        let away = [
            "MailtwinDaemonDown",
            "MailtwinReplicaDisconnected",
            "MailtwinReplicaLagging",
            "MailtwinCanaryMissing",
        ];
        prometheus.wait_firing(lab, &away)?;
        fill_log(lab, &pair, "ok")?;
        prometheus.wait_firing(lab, &["MailtwinClaimAtRisk"])?;
        fill_log(lab, &pair, "at-risk")?;
        prometheus.wait_firing(lab, &["MailtwinClaimLost"])?;
        prometheus.wait_clear(lab, &["MailtwinClaimAtRisk"])?;
        pair.copy.start(lab)?;
        prometheus.wait_clear(lab, &away).context("the replica is back")?;
        prometheus.wait_clear(lab, &["MailtwinClaimLost"])?;
        pair.wait_equal(lab)?;

        // It comes back with another key.
        let old = pair.copy.key(lab)?;
        pair.copy.stop()?;
        pair.copy.make_key_anew(lab, "replica")?;
        pair.copy.start(lab)?;
        prometheus.wait_firing(lab, &["MailtwinReplicaKeyRefused"])?;
        let (name, new) = (pair.copy.name(), pair.copy.key(lab)?);
        pair.agent.replctl(lab, &["keys", "pin", name, &new])?.expect(0)?;
        pair.agent.replctl(lab, &["keys", "unpin", name, &old])?.expect(0)?;
        prometheus.wait_clear(lab, &["MailtwinReplicaKeyRefused"])?;
        pair.wait_equal(lab)?;

        // The master's agent hangs, while more changes than the kernel remembers.
        pair.agent.daemon()?.signal(Signal::STOP)?;
        prometheus.wait_firing(lab, &["MailtwinMasterHeartbeatStale", "MailtwinDaemonDown"])?;
        let dir = pair.master.maildir("u1");
        for n in 0..EVENTS {
            let path = dir.join(format!("passing.{n}"));
            files::write(&path, "")?;
            fs::remove_file(&path)?;
        }
        pair.agent.daemon()?.signal(Signal::CONT)?;
        prometheus.wait_firing(lab, &["MailtwinWatchOverflows"])?;
        prometheus.wait_clear(lab, &["MailtwinMasterHeartbeatStale", "MailtwinDaemonDown"])?;
        prometheus.wait_clear(lab, &["MailtwinWatchOverflows"])?;

        // A stranger knocks.
        lab.wait("the stranger is noticed", || {
            let mut stranger = TcpStream::connect(("127.0.0.1", pair.copy.port))?;
            stranger.write_all(b"EHLO mail.example.org\r\n")?;
            let seen = prometheus.firing()?.contains("MailtwinConnectionsRefused");
            Ok(if seen { Ok(()) } else { Err("not yet".into()) })
        })?;
        prometheus.wait_clear(lab, &["MailtwinConnectionsRefused"])?;

        // The disk of the sync log fails.
        let segment = segment(&pair)?;
        let failing = Failing::start_at(lab, &mut pair.agent, "pwrite64", Some(&segment))?;
        pair.master.deliver("u1", &corpus::short("unwritten"))?;
        prometheus.wait_firing(lab, &["MailtwinLogAppendErrors"])?;
        failing.stop()?;
        prometheus.wait_clear(lab, &["MailtwinLogAppendErrors"])?;
        pair.wait_equal(lab)
    })
}

/// The sync log's newest segment.
fn segment(pair: &Pair) -> anyhow::Result<PathBuf> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(pair.agent.state_dir().join("log"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "log") {
            segments.push(path);
        }
    }
    segments.into_iter().max().context("a segment of the log")
}

#[test]
fn alerts_of_mail_fire_and_clear_and_the_dashboard_shows_it() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (mut pair, prometheus) = watched(lab)?;
        prometheus.wait_firing(lab, &["MailtwinCheckMissing", "MailtwinNeverVerified"])?;
        check_all(lab, &pair)?;
        prometheus.wait_clear(lab, &[]).context("everything was read and is equal")?;
        // Until somebody checks again, that gets old.
        prometheus.wait_firing(lab, &["MailtwinCheckTooOld", "MailtwinVerifiedTooOld"])?;
        check_all(lab, &pair)?;
        prometheus.wait_clear(lab, &["MailtwinCheckTooOld", "MailtwinVerifiedTooOld"])?;

        // A message that nobody may read.
        let unread = pair.master.maildir("u1").join("cur/1700000002.unread.host:2,S");
        files::write_mail(&unread, corpus::short("unread"))?;
        files::chmod(&unread, 0)?;
        prometheus.wait_firing(lab, &["MailtwinMailboxQuarantined"])?;
        files::chmod(&unread, 0o600)?;
        pair.agent.replctl(lab, &["quarantine", "retry"])?;
        prometheus.wait_clear(lab, &["MailtwinMailboxQuarantined"])?;
        pair.wait_equal(lab)?;

        // A bit that flips on the replica.
        let first = files::messages(&pair.replica.maildir("u2"))?;
        check::flip(first.first().context("a message")?)?;
        pair.agent.replctl(lab, &["check", "--level", "deep"])?.expect(1)?;
        prometheus.wait_firing(lab, &["MailtwinCheckDifferences"])?;
        pair.agent.replctl(lab, &["check", "--level", "deep", "--repair"])?.expect(0)?;
        prometheus.wait_clear(lab, &["MailtwinCheckDifferences"])?;

        lose_mail(lab, &mut pair)?;
        prometheus.wait_firing(lab, &["MailtwinBrakeEngaged"])?;
        expect_data(lab, &prometheus)?;
        pair.agent.replctl(lab, &["brake", "release"])?.expect(0)?;
        prometheus.wait_clear(lab, &["MailtwinBrakeEngaged"])?;
        pair.wait_equal(lab)?;
        for port in [pair.agent.metrics.0, pair.copy.metrics.1] {
            promtool(&["check", "metrics"], &Node::page(port, "/metrics")?)?;
        }
        Ok(())
    })
}

/// Brings mail to `u1` and removes it where it lies, all but what arrived first.
fn lose_mail(lab: &Lab, pair: &mut Pair) -> anyhow::Result<()> {
    let mut imap = pair.master.imap("u1")?;
    for name in ["Work", "Sent"] {
        imap.create(name)?;
        for n in 0..60 {
            imap.append(name, &corpus::short(&format!("{name}-{n}"))).finish()?;
        }
    }
    imap.logout()?;
    pair.wait_equal(lab)?;
    pair.agent.stop()?;
    for name in ["Work", "Sent"] {
        for path in files::messages(&pair.master.mailbox_dir("u1", name))? {
            fs::remove_file(path)?;
        }
    }
    pair.agent.start(lab)
}

/// Every query of the dashboard is understood and has data.
fn expect_data(lab: &Lab, prometheus: &Prometheus) -> anyhow::Result<()> {
    // An agent that was just started has some figures only after a while.
    lab.wait("every panel has data", || {
        let mut without = Vec::new();
        for (panel, query) in queries()? {
            let samples = prometheus.query(&query).with_context(|| panel.clone())?;
            if samples.is_empty() {
                without.push(format!("{panel}: {query}"));
            }
        }
        let lacking = || format!("panels without data:\n{}", without.join("\n"));
        Ok(if without.is_empty() { Ok(()) } else { Err(lacking()) })
    })
}

#[test]
fn alerts_of_roles_fire_and_clear() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let master = Dovecot::start(lab, "master", Version::V23)?;
        let replica = Dovecot::start(lab, "replica", Version::V23)?;
        let mut pair = Pair::around(lab, master, replica, &["u1"])?;
        pair.agent.start_both(lab)?;
        pair.copy.start_both(lab)?;
        pair.first_copy(lab)?;
        pair.wait_equal(lab)?;
        let nodes = [&pair.agent, &pair.copy];
        let (agents, replicas) =
            (nodes.map(|node| node.metrics.0), nodes.map(|node| node.metrics.1));
        let prometheus = Prometheus::start(lab, &agents, &replicas, &hurried()?)?;
        let roles = ["MailtwinNoMaster", "MailtwinTwoMasters", "MailtwinMasterHeartbeatStale"];
        prometheus.wait_clear(lab, &roles)?;

        // The master dies; the replica takes over.
        pair.agent.kill_both()?;
        prometheus.wait_firing(lab, &["MailtwinNoMaster", "MailtwinMasterHeartbeatStale"])?;
        pair.copy.replctl(lab, &["failover", "force", "--accept-loss", "all"])?.expect(0)?;
        prometheus.wait_clear(lab, &roles).context("there is a master")?;

        // The old one comes back, and neither can reach the other.
        pair.copy.stop()?;
        pair.agent.start_agent(lab)?;
        prometheus.wait_firing(lab, &["MailtwinTwoMasters"])?;
        pair.agent.start_replica(lab)?;
        prometheus.wait_clear(lab, &["MailtwinTwoMasters"]).context("they have met")?;
        Ok(())
    })
}
