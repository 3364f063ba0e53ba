//! What a node says over HTTP: to load balancers, and to people with a browser, a real one.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    browser::{self, View},
    corpus,
    daemon::{Node, Pair},
    files,
    lab::{Lab, PATIENCE},
};
use serde_json::Value;

/// Status of a `GET`, and the first line of what came.
fn get(port: u16, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let line = body.lines().next().unwrap_or_default().to_owned();
    Ok((status.with_context(|| answer.clone())?, line))
}

fn wait_for(lab: &Lab, port: u16, path: &str, status: u16) -> anyhow::Result<()> {
    lab.wait(&format!("{path} says {status}"), || {
        // Between two roles nobody listens.
        let Ok((found, line)) = get(port, path) else { return Ok(Err("no answer".into())) };
        Ok(if found == status { Ok(()) } else { Err(format!("{found} {line}")) })
    })
}

/// A pair whose replica is in sync and knows it, with both daemons on both nodes.
fn pair(lab: &Lab) -> anyhow::Result<Pair> {
    let mut pair = Pair::start(lab, &["u1"])?;
    pair.agent.start_replica(lab)?;
    pair.copy.start_agent(lab)?;
    pair.master.deliver("u1", &corpus::short("m1"))?;
    pair.wait_equal(lab)?;
    wait_for(lab, pair.copy.metrics.1, "/replica?lag=30s", 200)?;
    Ok(pair)
}

#[test]
fn load_balancers_find_the_master_and_replicas_that_are_not_behind() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = pair(lab)?;
        let ports = |node: &Node| node.metrics;
        let ((a_agent, a_replica), (b_agent, b_replica)) = (ports(&pair.agent), ports(&pair.copy));
        for (port, path, status) in [
            (a_agent, "/healthz", 200),
            (a_agent, "/readyz", 200),
            (a_agent, "/master", 200),
            (a_agent, "/replica?lag=30s", 503),
            (a_replica, "/master", 503),
            (a_replica, "/replica?lag=30s", 503),
            (b_agent, "/master", 503),
            (b_agent, "/readyz", 200),
            (b_replica, "/readyz", 200),
            (b_replica, "/master", 503),
            (b_replica, "/replica", 200),
            (b_replica, "/replica?lag=nonsense", 400),
        ] {
            wait_for(lab, port, path, status)?;
        }
        // The replica counts by itself how far it is behind a master that is dead.
        pair.agent.kill_both()?;
        wait_for(lab, b_replica, "/replica?lag=2s", 503)?;
        let (status, said) = get(b_replica, "/replica?lag=1h")?;
        ensure!(status == 200 && said.contains("lag "), "{status} {said}");
        let metrics = Node::page(b_replica, "/metrics")?;
        let line =
            metrics.lines().find(|it| it.starts_with("mailtwin_complete_timestamp_seconds "));
        let value = line.and_then(|line| line.split(' ').nth(1)?.parse::<f64>().ok());
        ensure!(value.is_some_and(|value| value > 1e9), "{line:?}");
        let status = pair.copy.ask(lab, &["status"])?;
        let lag = status["lag_seconds"].as_f64();
        ensure!(lag.is_some_and(|lag| lag > 2.0), "{status}");
        ensure!(status["issues"][0]["level"] == "critical", "{status}");
        let shown = pair.copy.replctl(lab, &["status"])?.expect(1)?;
        ensure!(shown.stdout.contains("if the master died now: everything up to "), "{shown:?}");
        ensure!(shown.stdout.contains("replctl failover force --dry-run"), "{shown:?}");
        let name = pair.agent.name().to_owned();
        ensure!(shown.stdout.contains(&format!("NOT CONNECTED: {name}")), "{shown:?}");

        // It takes over.
        pair.copy.replctl(lab, &["failover", "force", "--accept-loss", "all"])?;
        wait_for(lab, b_agent, "/master", 200)?;
        wait_for(lab, b_replica, "/replica", 503)
    })
}

#[test]
fn a_frozen_master_is_no_master_for_a_load_balancer() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = pair(lab)?;
        pair.agent.stop()?;
        let text = pair.agent.config_text()?;
        pair.agent.write_config(&format!("{text}\n[gate]\nclose = \"true\"\nopen = \"true\"\n"))?;
        pair.agent.start(lab)?;
        let port = pair.agent.metrics.0;
        wait_for(lab, port, "/master", 200)?;
        let freeze =
            pair.agent.spawn_replctl(lab, &["freeze", "--wait", "0s", "--expire", "10m"])?;
        wait_for(lab, port, "/master", 503)?;
        let shown = pair.agent.replctl(lab, &["status"])?;
        ensure!(shown.stdout.contains("the gate is not open"), "{shown:?}");
        pair.agent.replctl(lab, &["thaw"])?;
        wait_for(lab, port, "/master", 200)?;
        drop(freeze);
        Ok(())
    })
}

/// The page of a daemon, once a browser that loads it shows all of `words`.
fn shown(lab: &Lab, port: u16, words: &[&str]) -> anyhow::Result<String> {
    lab.wait(&format!("a browser shows {words:?}"), || {
        let page = match browser::document(lab, &format!("http://127.0.0.1:{port}/")) {
            Ok(page) => page,
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        Ok(if words.iter().all(|word| page.contains(word)) { Ok(page) } else { Err(page) })
    })
}

#[test]
fn a_browser_shows_what_is_and_names_nobodys_mail() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = Pair::start(lab, &["u1"])?;
        // Names of accounts and mailboxes may be anything.
        let hostile = "<script>document.title='broken in'</script>";
        let mut imap = pair.master.imap("u1")?;
        imap.create("<b>Secret")?;
        imap.append("<b>Secret", &corpus::short("m1")).finish()?;
        pair.wait_equal(lab)?;
        let account = pair.master.mail_root().join(hostile.replace('/', "")).join("Maildir");
        for part in ["cur", "new", "tmp"] {
            files::make_mail_dir(&account.join(part))?;
        }
        // A message that cannot be read is a problem with a name, set aside with a name.
        let bad = account.join("cur/1.x:2,");
        files::write_mail(&bad, "Subject: <script>\n\nx\n")?;
        files::chmod(&bad, 0o000)?;
        pair.agent.replctl(lab, &["log", "append", ""])?;
        lab.wait("something is wrong", || {
            let status = pair.agent.ask(lab, &["status"])?;
            let found = status["problems"].as_array().is_some_and(|list| !list.is_empty());
            Ok(if found { Ok(()) } else { Err(status.to_string()) })
        })?;

        let (agent, replica) = (pair.agent.metrics.0, pair.copy.metrics.1);
        let name = format!("<th scope=\"row\" role=\"rowheader\">{}</th>", pair.copy.name());
        let page = shown(lab, agent, &[&name, "<polyline"])?;
        for text in ["master, epoch 1", ">Gate<", "If the master died now", "Sync log", ">Lag<"] {
            ensure!(page.contains(text), "{text} is in {page}");
        }
        ensure!(page.contains("<title>master-node: "), "the headline: {page}");
        let json = Node::page(agent, "/status.json")?;
        for text in [&page, &json] {
            for name in ["Secret", "broken in", "u1/", "document.title='"] {
                ensure!(!text.contains(name), "{name} is in {text}");
            }
        }
        let json: Value = serde_json::from_str(&json)?;
        ensure!(json["problems"].as_u64() > Some(0), "{json}");
        ensure!(json["lag_history"][0]["name"] == pair.copy.name(), "{json}");

        wait_for(lab, replica, "/replica?lag=0s", 200)?;
        let page = shown(lab, replica, &["everything is here"])?;
        ensure!(page.contains("replica-node: follows master-node"), "{page}");

        // For who wants to see it: MAILTWIN_KEEP=1 keeps the pictures.
        for (name, size, dark) in [
            ("light.png", (1000, 900), false),
            ("dark.png", (1000, 900), true),
            ("phone.png", (390, 1400), false),
        ] {
            let url = format!("http://127.0.0.1:{agent}/");
            browser::picture(lab, &url, name, View { size, dark })?;
        }
        Ok(())
    })
}

#[test]
fn a_status_that_is_watched_is_drawn_again_until_it_is_interrupted() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = Pair::start(lab, &["u1"])?;
        pair.first_copy(lab)?;
        let mut watch = pair.agent.spawn_replctl(lab, &["status", "--watch"])?;
        let shown = |word: &str| -> anyhow::Result<usize> {
            Ok(pair.agent.log_text("replctl")?.matches(word).count())
        };
        lab.wait("it is drawn twice", || {
            let count = shown("if this master died now: ")?;
            Ok(if count >= 2 { Ok(()) } else { Err(count.to_string()) })
        })?;
        // An agent that is started anew is waited for.
        pair.agent.stop()?;
        lab.wait("it says so", || {
            let said = pair.agent.log_text("replctl")?.contains("no daemon answers");
            Ok(if said { Ok(()) } else { Err("not yet".into()) })
        })?;
        pair.agent.start(lab)?;
        let before = pair.agent.log_text("replctl")?.matches("if this master died now: ").count();
        lab.wait("it is back", || {
            let now = pair.agent.log_text("replctl")?.matches("if this master died now: ").count();
            Ok(if now > before { Ok(()) } else { Err(now.to_string()) })
        })?;
        watch.signal(rustix::process::Signal::INT)?;
        lab.wait("it ends", || Ok(if watch.is_running() { Err("it runs".into()) } else { Ok(()) }))
    })
}
