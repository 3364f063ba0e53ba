//! A real Prometheus that scrapes real daemons, and `promtool`, which comes with it.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{
    files,
    lab::{Lab, PATIENCE},
    process::{Launch, Process},
};

/// The folder of rules and their tests.
pub fn rules_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/prometheus")
}

/// A running Prometheus that scrapes and evaluates every second.
#[derive(Debug)]
pub struct Prometheus {
    port: u16,
    _process: Process,
}

impl Prometheus {
    /// Starts one that evaluates `rules` over agents and replica daemons with these ports of /metrics.
    pub fn start(lab: &Lab, agents: &[u16], replicas: &[u16], rules: &str) -> anyhow::Result<Self> {
        let dir = lab.mail_dir("prometheus")?;
        files::write(&dir.join("rules.yml"), rules)?;
        let targets = |ports: &[u16]| {
            let all = ports.iter().map(|port| format!("\"127.0.0.1:{port}\""));
            all.collect::<Vec<_>>().join(", ")
        };
        let (agents, replicas) = (targets(agents), targets(replicas));
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [rules.yml]\n\
             scrape_configs:\n\
             - {{job_name: mailtwin-agent, static_configs: [{{targets: [{agents}]}}]}}\n\
             - {{job_name: mailtwin-replica, static_configs: [{{targets: [{replicas}]}}]}}\n"
        );
        files::write(&dir.join("prometheus.yml"), config)?;
        let port = lab.port()?;
        let command = [
            "prometheus".to_owned(),
            format!("--config.file={}", dir.join("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", dir.join("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
            "--log.level=warn".to_owned(),
        ];
        let launch = Launch {
            name: "prometheus".into(),
            command: command.map(OsString::from).to_vec(),
            as_mail_user: true,
            log: dir.join("log"),
        };
        let process = Process::start(lab, &launch)?;
        let started = Self { port, _process: process };
        lab.wait("Prometheus is ready", || {
            Ok(started.get("/-/ready").map(drop).map_err(|error| format!("{error:#}")))
        })?;
        Ok(started)
    }

    /// Alerts that fire now.
    pub fn firing(&self) -> anyhow::Result<BTreeSet<String>> {
        let answer = self.ask("/api/v1/alerts")?;
        let alerts = answer["data"]["alerts"].as_array().context("a list of alerts")?;
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        let name = |alert: &Value| alert["labels"]["alertname"].as_str().map(str::to_owned);
        firing.map(|alert| name(alert).context("an alert has a name")).collect()
    }

    /// Waits until each of these fires.
    pub fn wait_firing(&self, lab: &Lab, alerts: &[&str]) -> anyhow::Result<()> {
        lab.wait(&format!("{alerts:?} fire"), || {
            let firing = self.firing()?;
            let all = alerts.iter().all(|&alert| firing.contains(alert));
            Ok(if all { Ok(()) } else { Err(format!("only {firing:?} do")) })
        })
    }

    /// Waits until none of these fires; without any, until none does.
    pub fn wait_clear(&self, lab: &Lab, alerts: &[&str]) -> anyhow::Result<()> {
        lab.wait(&format!("{alerts:?} are clear"), || {
            let firing = self.firing()?;
            let asked = |alert: &String| alerts.is_empty() || alerts.contains(&alert.as_str());
            Ok(if firing.iter().any(asked) { Err(format!("{firing:?} fire")) } else { Ok(()) })
        })
    }

    /// What a query comes to: its samples, each with its labels.
    pub fn query(&self, query: &str) -> anyhow::Result<Vec<Value>> {
        let answer = self.ask(&format!("/api/v1/query?query={}", escaped(query)))?;
        let samples = answer["data"]["result"].as_array();
        Ok(samples.with_context(|| format!("{query}: {answer}"))?.clone())
    }

    fn ask(&self, path: &str) -> anyhow::Result<Value> {
        let body = self.get(path)?;
        let answer: Value = serde_json::from_str(&body).with_context(|| format!("read {body}"))?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer)
    }

    /// HTTP 1.0: the answer comes in one piece and ends with the connection.
    fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).context("connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(|| format!("read {path}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an empty line ends the head")?;
        ensure!(head.contains(" 200 "), "{path}: {answer}");
        Ok(body.to_owned())
    }
}

/// Escaped for the query of an address.
fn escaped(text: &str) -> String {
    let octets = text.bytes().map(|octet| match octet {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(octet).to_string(),
        _ => format!("%{octet:02X}"),
    });
    octets.collect()
}

/// Runs `promtool` in the folder of the rules, with `input`; fails unless it is content.
pub fn promtool(words: &[&str], input: &str) -> anyhow::Result<()> {
    let mut command = Command::new("promtool");
    command.args(words.iter().map(OsStr::new)).current_dir(rules_dir());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run promtool (apt-get install prometheus)")?;
    child.stdin.take().context("its input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output().context("wait for promtool")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(output.status.success(), "promtool {words:?}: {said}");
    Ok(())
}
