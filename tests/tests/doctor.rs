//! `replctl doctor` on real pairs: a good one has nothing broken, and every planted trouble is found.

use std::{ffi::OsString, fs, path::Path};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    daemon::{self, Node, Pair},
    dovecot::Dovecot,
    files,
    lab::Lab,
};
use serde_json::Value;

/// Debian's libfaketime, for programs with several threads.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// What depends on the machine that the tests run on.
const OF_THE_MACHINE: [&str; 6] =
    ["space", "inodes", "log-bound", "inotify-watches", "inotify-instances", "file-system"];

/// A pair that has met, with both daemons on both nodes.
fn pair(lab: &Lab) -> anyhow::Result<Pair> {
    let mut pair = Pair::start(lab, &["u1"])?;
    pair.agent.start_replica(lab)?;
    pair.copy.start_agent(lab)?;
    pair.first_copy(lab)?;
    pair.wait_equal(lab)?;
    Ok(pair)
}

fn doveconf(server: &Dovecot) -> String {
    format!("doveconf -c {}", server.config().display())
}

/// Findings of a run with `words`, after `(level, code, what)`.
fn findings(value: &Value) -> anyhow::Result<Vec<(String, String, String)>> {
    let list = value.pointer("/findings").and_then(Value::as_array).context("findings")?;
    let text = |finding: &Value, key: &str| -> anyhow::Result<String> {
        let text = finding.get(key).and_then(Value::as_str);
        Ok(text.with_context(|| format!("{key} of {finding}"))?.to_owned())
    };
    list.iter()
        .map(|finding| {
            let (level, next) = (text(finding, "level")?, text(finding, "next")?);
            let bad = level == "risk" || level == "broken";
            ensure!(!bad || !next.is_empty(), "a next step: {finding}");
            Ok((level, text(finding, "code")?, text(finding, "what")?))
        })
        .collect()
}

fn examine(
    lab: &Lab,
    node: &Node,
    server: &Dovecot,
) -> anyhow::Result<Vec<(String, String, String)>> {
    findings(&node.ask(lab, &["doctor", "--doveconf", &doveconf(server)])?)
}

/// Waits until the doctor has found `wanted`, `(level, code, part of what)`.
fn wait_for(
    lab: &Lab,
    node: &Node,
    server: &Dovecot,
    wanted: &[(&str, &str, &str)],
) -> anyhow::Result<()> {
    lab.wait("the doctor finds it", || {
        let found = examine(lab, node, server)?;
        let is_there = |(level, code, what): &(&str, &str, &str)| {
            found.iter().any(|it| it.0 == *level && it.1 == *code && it.2.contains(what))
        };
        let missing: Vec<_> = wanted.iter().filter(|wanted| !is_there(wanted)).collect();
        Ok(if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} of {found:#?}")) })
    })
}

#[test]
fn a_good_pair_has_nothing_broken_or_at_risk() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = pair(lab)?;
        for (node, server) in [(&pair.agent, &pair.master), (&pair.copy, &pair.replica)] {
            lab.wait("nothing is wrong", || {
                let mut found = examine(lab, node, server)?;
                found.retain(|(level, code, _)| {
                    (level == "risk" || level == "broken") && !OF_THE_MACHINE.contains(&&**code)
                });
                Ok(if found.is_empty() { Ok(()) } else { Err(format!("{found:#?}")) })
            })?;
            let found = examine(lab, node, server)?;
            for code in [
                "configuration",
                "node-state",
                "key-file",
                "run-dir",
                "store-access",
                "mail-location",
                "mail-server",
                "daemons",
                "open-files",
                "peer-reachable",
                "peer-key",
                "peer-link",
                "clock",
                "version",
                "status",
                "keywords",
            ] {
                ensure!(
                    found.iter().any(|it| it.1 == code && it.0 == "ok"),
                    "{code} is ok: {found:#?}"
                );
            }
        }
        // As root it asks the kernel what the daemons' user may do.
        let config = pair.agent.config();
        let words = ["--config", &config.display().to_string(), "doctor"].map(OsString::from);
        let words: Vec<_> = words.iter().map(OsString::as_os_str).collect();
        let output = daemon::replctl(lab, &words, false)?;
        ensure!(output.stdout.contains("may use the mail below"), "{output:?}");
        ensure!(output.stdout.contains("`replctl explain CODE`"), "{output:?}");
        pair.expect_quiet_logs()
    })
}

#[test]
fn planted_troubles_of_the_node_are_found() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = pair(lab)?;
        let node = &pair.agent;
        files::chmod(&node.state_dir().join("keys/node.pem"), 0o640)?;
        let mailbox = pair.master.maildir("u1");
        let full: Vec<String> = (0..26).map(|n| format!("{n} word{n}")).collect();
        files::write_mail(&mailbox.join("dovecot-keywords"), full.join("\n") + "\n")?;
        let closed = pair.master.home("u2").join("Maildir/cur");
        fs::create_dir_all(&closed)?;
        files::chmod(&closed, 0o700)?;
        let text = node.config_text()?.replace("layout = \"maildir++\"", "layout = \"fs\"");
        node.write_config(&format!(
            "{text}\n[gate]\nclose = \"/no/such/hook close\"\nopen = \"/bin/sh -c true\"\n"
        ))?;
        let conf = lab.dir().join("other.conf");
        let settings = "mail_fsync = never\nmaildir_very_dirty_syncs = yes\n";
        files::write(&conf, fs::read_to_string(pair.master.config())? + settings)?;
        files::chmod(&conf, 0o644)?;
        let words = ["doctor", "--doveconf", &format!("doveconf -c {}", conf.display())];
        let found = findings(&node.ask(lab, &words)?)?;
        for (level, code, what) in [
            ("broken", "key-file", "has mode 640"),
            ("broken", "store-access", "u2/Maildir"),
            ("broken", "mail-location", "layout is maildir++"),
            ("broken", "gate", "/no/such/hook cannot be run"),
            ("risk", "keywords", "u1/Maildir"),
            ("risk", "mail-fsync", "never"),
            ("risk", "dirty-syncs", "yes"),
        ] {
            let is_there = |it: &(String, String, String)| {
                it.0 == level && it.1 == code && it.2.contains(what)
            };
            ensure!(found.iter().any(is_there), "{level} {code} {what}: {found:#?}");
        }
        node.replctl(lab, &["doctor"])?.expect(1)?;

        // Without its daemon, all else is still looked at.
        pair.agent.kill_both()?;
        let found = examine(lab, &pair.agent, &pair.master)?;
        let has = |level: &str, code: &str, what: &str| {
            found.iter().any(|it| it.0 == level && it.1 == code && it.2.contains(what))
        };
        ensure!(has("broken", "daemons", "mailtwin-agent does not answer"), "{found:#?}");
        ensure!(has("risk", "daemons", "mailtwin-replica does not answer"), "{found:#?}");
        ensure!(has("broken", "key-file", "has mode 640"), "{found:#?}");
        ensure!(has("note", "clock", "cannot be told"), "{found:#?}");

        pair.agent.write_config("config_version = 1\nnonsense = true\n")?;
        let output = pair.agent.replctl(lab, &["doctor"])?.expect(1)?;
        ensure!(output.stdout.contains("BROKEN  configuration: "), "{output:?}");
        ensure!(output.stdout.contains(":2: nonsense: unknown key"), "{output:?}");
        Ok(())
    })
}

#[test]
fn planted_troubles_of_the_other_node_are_found() -> anyhow::Result<()> {
    Lab::run(|lab| {
        ensure!(Path::new(FAKETIME).exists(), "{FAKETIME} is missing; tests/run installs it");
        let mut pair = pair(lab)?;
        let (agent, copy) = (pair.agent.name().to_owned(), pair.copy.name().to_owned());
        // Its clock is a minute ahead, and its agent does not run.
        pair.copy.kill_both()?;
        let words = ["env", &format!("LD_PRELOAD={FAKETIME}"), "FAKETIME=+60s"];
        pair.copy.run_under(words.map(OsString::from).into());
        pair.copy.start_replica(lab)?;
        wait_for(
            lab,
            &pair.agent,
            &pair.master,
            &[
                ("risk", "clock", "s ahead of ours"),
                ("risk", "peer-readiness", "mailtwin-agent does not run"),
                ("ok", "peer-key", &copy),
            ],
        )?;
        // The copy sees the same from its side.
        wait_for(
            lab,
            &pair.copy,
            &pair.replica,
            &[("risk", "clock", "s behind ours"), ("risk", "daemons", "mailtwin-agent")],
        )?;

        // Another key is pinned than the one it shows.
        let keys = pair.agent.ask(lab, &["keys", "show"])?;
        let pins = keys.pointer("/pins").and_then(Value::as_array).context("pins")?;
        let shown = pins.first().and_then(|pin| pin.get("key")).and_then(Value::as_str);
        let shown = shown.context("a key")?;
        let other = format!("mt1{}", "7".repeat(64));
        pair.agent.replctl(lab, &["keys", "pin", &copy, &other])?.expect(0)?;
        pair.agent.replctl(lab, &["keys", "unpin", &copy, shown])?.expect(0)?;
        wait_for(
            lab,
            &pair.agent,
            &pair.master,
            &[("broken", "peer-key", "shows a key that is not its own")],
        )?;

        pair.copy.stop()?;
        wait_for(
            lab,
            &pair.agent,
            &pair.master,
            &[("broken", "peer-reachable", &copy), ("broken", "peer-link", &copy)],
        )?;
        // A replica can live without reaching its master.
        pair.agent.kill_both()?;
        wait_for(lab, &pair.copy, &pair.replica, &[("risk", "peer-reachable", &agent)])
    })
}

#[test]
fn codes_are_explained() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let explain = |word: &str| daemon::replctl(lab, &["explain".as_ref(), word.as_ref()], true);
        let output = explain("[preflight-lag]")?.expect(0)?;
        ensure!(output.stdout.contains("replctl status"), "{output:?}");
        // One word may be a code in several places.
        let output = explain("corrupt")?.expect(0)?;
        ensure!(output.stdout.contains("(what a check finds)"), "{output:?}");
        ensure!(output.stdout.contains("(why something is set aside)"), "{output:?}");
        let output = explain("sync")?.expect(2)?;
        ensure!(output.stderr.contains("in-sync"), "what is near is named: {output:?}");
        let all = daemon::replctl(lab, &["explain".as_ref()], true)?.expect(0)?;
        ensure!(all.stdout.lines().count() > 100, "{all:?}");
        Ok(())
    })
}
