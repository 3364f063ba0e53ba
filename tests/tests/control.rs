//! What an admin sees and does: `replctl`, metrics, signals.

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::{AGENT, Node, Pair, REPLICA},
    lab::Lab,
    oracle::Account,
};
use rustix::process::Signal;
use serde_json::{Value, json};

#[test]
fn status_sync_log_and_metrics_tell_the_truth() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = Pair::start(lab, &["u1"])?;
        pair.master.deliver("u1", &corpus::short("m1"))?;
        pair.wait_equal(lab)?;
        pair.agent.sync(lab)?;
        pair.agent.replctl(lab, &["sync", "u1/INBOX"])?.expect(0)?;
        let unknown = pair.agent.replctl(lab, &["sync", "nosuch"])?.expect(2)?;
        ensure!(unknown.stderr.contains("nosuch"), "a typo is no success: {unknown:?}");
        let status = pair.agent.ask(lab, &["status"])?;
        for (pointer, expected) in [
            ("/node", json!(pair.agent.name())),
            ("/role", json!("master")),
            ("/replicas/0/name", json!(pair.copy.name())),
            ("/replicas/0/lag_entries", json!(0)),
        ] {
            let found = status.pointer(pointer);
            ensure!(found == Some(&expected), "{pointer} of {status}");
        }
        for pointer in ["/schema_version", "/epoch", "/log/id", "/log/head", "/replicas/0/cursor"] {
            ensure!(status.pointer(pointer).is_some(), "{pointer} is in {status}");
        }
        pair.agent.replctl(lab, &["status"])?.expect(0)?;
        pair.agent.replctl(lab, &["status", "--nagios"])?.expect(0)?;
        pair.copy.replctl(lab, &["status"])?.expect(0)?;
        pair.agent.replctl(lab, &["log", "stat"])?.expect(0)?;
        pair.agent.replctl(lab, &["log", "append", "u1/INBOX"])?.expect(0)?;
        let tail = pair.agent.replctl(lab, &["log", "tail"])?.expect(0)?;
        ensure!(tail.stdout.contains("u1"), "the log tells of u1: {tail:?}");
        pair.agent.replctl(lab, &["keys", "show"])?.expect(0)?;
        pair.agent.replctl(lab, &["replica", "list"])?.expect(0)?;

        for (port, names) in [
            (
                pair.agent.metrics.0,
                &[
                    "mailtwin_build_info",
                    "mailtwin_role",
                    "mailtwin_log_head_seq",
                    "mailtwin_replica_connected",
                    "mailtwin_replica_lag_seconds",
                    "mailtwin_messages_replicated_total",
                ][..],
            ),
            (
                pair.copy.metrics.1,
                &["mailtwin_build_info", "mailtwin_role", "mailtwin_apply_seconds"],
            ),
        ] {
            let page = Node::page(port, "/metrics")?;
            for name in names {
                ensure!(page.contains(name), "{name} is in {page}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_paused_replica_waits_and_goes_on() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = Pair::start(lab, &["u1"])?;
        pair.master.deliver("u1", &corpus::short("m1"))?;
        pair.wait_equal(lab)?;
        let name = pair.copy.name().to_owned();
        pair.agent.replctl(lab, &["replica", "pause", &name])?.expect(0)?;
        pair.master.deliver("u1", &corpus::short("m2"))?;
        lab.wait("the log counts it as lag", || {
            let status = pair.agent.ask(lab, &["status"])?;
            let lag = status.pointer("/replicas/0/lag_entries").and_then(Value::as_u64);
            let age = status.pointer("/replicas/0/lag_seconds").and_then(Value::as_f64);
            // Also while nothing is read from it for that replica.
            let is_counted = lag > Some(0) && age > Some(0.0);
            Ok(if is_counted { Ok(()) } else { Err(status.to_string()) })
        })?;
        // A pause outlives the agent.
        pair.agent.stop()?;
        pair.agent.start(lab)?;
        lab.wait("the agent is back", || {
            let output = pair.agent.replctl(lab, &["status"])?;
            Ok(if output.code == Some(3) { Err(format!("{output:?}")) } else { Ok(()) })
        })?;
        let copy = Account::read(&pair.replica, "u1")?;
        ensure!(!copy.serials().contains_key("m2"), "nothing came through");
        pair.agent.replctl(lab, &["replica", "resume", &name])?.expect(0)?;
        pair.wait_equal(lab)
    })
}

#[test]
fn signals_reload_report_and_stop() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = Pair::start(lab, &["u1"])?;
        pair.master.deliver("u1", &corpus::short("m1"))?;
        pair.wait_equal(lab)?;
        for (node, daemon) in [(&mut pair.agent, AGENT), (&mut pair.copy, REPLICA)] {
            let before = node.log_text(daemon)?.lines().count();
            node.daemon()?.signal(Signal::USR1)?;
            lab.wait("it logs its state", || {
                let lines = node.log_text(daemon)?.lines().count();
                Ok(if lines > before { Ok(()) } else { Err("no new line".into()) })
            })?;
            let text = node.config_text()?;
            node.write_config(&text.replace("listen = ", "graveyard = \"3d\"\nlisten = "))?;
            node.daemon()?.signal(Signal::HUP)?;
            lab.wait("it says what changed", || {
                let said = node.log_text(daemon)?.contains("graveyard");
                Ok(if said { Ok(()) } else { Err("not in the log".into()) })
            })?;
            node.write_config("config_version = 1\nnonsense = true\n")?;
            node.daemon()?.signal(Signal::HUP)?;
            lab.wait("it refuses a bad file and runs on", || {
                let said = node.log_text(daemon)?.contains("nonsense");
                Ok(if said { Ok(()) } else { Err("not in the log".into()) })
            })?;
            node.write_config(&text)?;
            ensure!(node.daemon()?.is_running(), "{daemon} runs on");
        }
        pair.master.deliver("u1", &corpus::short("m2"))?;
        pair.wait_equal(lab)?;
        pair.agent.stop().context("SIGTERM")?;
        pair.copy.stop().context("SIGTERM")
    })
}

#[test]
fn both_daemons_run_on_both_nodes_and_follow_their_roles() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = Pair::start(lab, &["u1"])?;
        pair.agent.start_replica(lab)?;
        pair.copy.start_agent(lab)?;
        pair.master.deliver("u1", &corpus::short("m1"))?;
        pair.wait_equal(lab)?;
        let mut imap = pair.master.imap("u1")?;
        imap.create("Work")?;
        pair.wait_equal(lab)?;
        let status = pair.copy.ask(lab, &["status"])?;
        ensure!(status.pointer("/role") == Some(&json!("replica")), "{status}");
        pair.expect_quiet_logs()
    })
}

#[test]
fn nobody_there_is_exit_code_3() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = Pair::start(lab, &["u1"])?;
        pair.first_copy(lab)?;
        pair.agent.stop()?;
        let output = pair.agent.replctl(lab, &["sync"])?.expect(3)?;
        ensure!(!output.stderr.is_empty(), "it says who: {output:?}");
        pair.agent.replctl(lab, &["no-such-verb"])?.expect(2)?;
        let again = pair.agent.replctl(lab, &["init", "--role", "master"])?;
        ensure!(again.code != Some(0), "a second init: {again:?}");
        Ok(())
    })
}
