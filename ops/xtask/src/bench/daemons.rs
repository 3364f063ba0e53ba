//! A Mailtwin pair as the benchmark runs it: both daemons as a service would, from their own
//! configuration files, keys pinned at first contact.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use mailtwin_tests::{
    daemon as tests, files,
    lab::Lab,
    process::{self, Launch, Process},
};

use super::tree;

/// Both daemons, running.
pub(super) struct Daemons {
    /// On the master's mail.
    pub(super) agent: Process,
    /// On the replica's.
    pub(super) replica: Process,
    /// When they were started, by the lab's clock.
    pub(super) started: Duration,
    agent_metrics: u16,
    /// The master's configuration.
    pub(super) master_config: PathBuf,
}

/// One node's side of a pair.
struct Node<'a> {
    name: &'a str,
    /// The sections of its configuration that say where the mail is.
    store: &'a str,
    listen: u16,
    metrics: [u16; 2],
    peer: &'a str,
    peer_listen: u16,
}

impl Daemons {
    /// Starts them between two folders of homes (`USER/Maildir` in each). `name` is this pair's own
    /// in the lab.
    pub(super) fn start(
        lab: &Lab,
        binaries: &Path,
        name: &str,
        [master, replica]: [&Path; 2],
    ) -> Result<Self> {
        let stores = [master, replica].map(|mail| {
            let mail = mail.display();
            format!(
                "[store]\nengine = \"maildir\"\nroot = \"{mail}/{{user}}/Maildir\"\n\
                 home = \"{mail}/{{user}}\"\n"
            )
        });
        Self::between(lab, binaries, name, stores.each_ref().map(String::as_str))
    }

    /// Starts them between two stores, which are said in words of their configurations.
    pub(super) fn between(
        lab: &Lab,
        binaries: &Path,
        name: &str,
        [master, replica]: [&str; 2],
    ) -> Result<Self> {
        let state = lab.mail_dir(name)?;
        let mut ports = [0; 6];
        for port in &mut ports {
            *port = lab.port()?;
        }
        let [a, b, metrics @ ..] = ports;
        let node = |name, store, listen, metrics, peer, peer_listen| {
            let node = Node { name, store, listen, metrics, peer, peer_listen };
            node.prepare(lab, binaries, &state)
        };
        let on_master = node("mx1", master, a, [metrics[0], metrics[1]], "mx2", b)?;
        let on_replica = node("mx2", replica, b, [metrics[2], metrics[3]], "mx1", a)?;
        let start = |program: &str, config: &Path| {
            let mut command = vec!["env".into()];
            command.extend(environment(program)?.into_iter().map(Into::into));
            command.extend([binaries.join(program).into(), "--config".into(), config.into()]);
            let log = state.join(format!("{program}.log"));
            let name = program.to_owned();
            let launch = Launch { name, command, as_mail_user: true, log };
            Process::start(lab, &launch)
        };
        Ok(Self {
            started: lab.clock().monotonic(),
            replica: start("mailtwin-replica", &on_replica)?,
            agent: start("mailtwin-agent", &on_master)?,
            agent_metrics: metrics[0],
            master_config: on_master,
        })
    }

    /// Waits until `total` messages are below `replica`, and nothing is left to do.
    pub(super) fn copied(&self, lab: &Lab, replica: &Path, total: u64) -> Result<()> {
        let mut there = 0;
        while there < total {
            there = lab.wait("more messages are on the replica", || {
                let now = tree::count(replica)?;
                Ok(if now > there { Ok(now) } else { Err(format!("still {now}")) })
            })?;
        }
        self.settle(lab)
    }

    /// Waits until the replica has acked everything that is in the log.
    pub(super) fn settle(&self, lab: &Lab) -> Result<()> {
        lab.wait("the replica has no lag", || {
            let lag = self.lag()?;
            Ok(if lag == Some(0) { Ok(()) } else { Err(format!("lag is {lag:?}")) })
        })
    }

    /// Entries of the log that the replica has not acked, as far as that is known.
    pub(super) fn lag(&self) -> Result<Option<u64>> {
        let page = tests::Node::page(self.agent_metrics, "/metrics")?;
        let lag = "mailtwin_replica_lag_entries{replica=\"mx2\"} ";
        let line = page.lines().find_map(|line| line.strip_prefix(lag));
        Ok(line.and_then(|lag| lag.parse().ok()))
    }

    /// Ends both.
    pub(super) fn stop(self) -> Result<()> {
        self.agent.terminate().context("stop the agent")?;
        self.replica.terminate().context("stop the replica daemon").map(drop)
    }
}

/// What the program's unit sets in its environment, as `NAME=value`.
fn environment(program: &str) -> Result<Vec<String>> {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../systemd");
    let unit = std::fs::read_to_string(units.join(format!("{program}.service")))
        .with_context(|| format!("read the unit of {program}"))?;
    let set = unit.lines().filter_map(|line| line.strip_prefix("Environment="));
    Ok(set.map(str::to_owned).collect())
}

impl Node<'_> {
    /// Writes the configuration and makes state and key; returns the configuration's path.
    fn prepare(&self, lab: &Lab, binaries: &Path, state: &Path) -> Result<PathBuf> {
        let home = state.join(self.name);
        for part in ["state", "run"] {
            files::make_mail_dir(&home.join(part))?;
        }
        let config = home.join("mailtwin.toml");
        files::write(&config, self.configuration(&home))?;
        let role = if self.name == "mx1" { "master" } else { "replica" };
        let program = binaries.join("replctl");
        let words: [&OsStr; 6] = [
            program.as_ref(),
            "--config".as_ref(),
            config.as_ref(),
            "init".as_ref(),
            "--role".as_ref(),
            role.as_ref(),
        ];
        process::run(lab, &words, true)?
            .expect(0)
            .with_context(|| format!("init {}", self.name))?;
        Ok(config)
    }

    fn configuration(&self, home: &Path) -> String {
        let Self { name, store, listen, metrics: [agent, replica], peer, peer_listen } = self;
        let home = home.display();
        format!(
            "config_version = 1
[node]
name = \"{name}\"
state_dir = \"{home}/state\"
run_dir = \"{home}/run\"
{store}[replica]
listen = \"127.0.0.1:{listen}\"
[metrics]
agent = \"127.0.0.1:{agent}\"
replica = \"127.0.0.1:{replica}\"
[[peer]]
name = \"{peer}\"
address = \"127.0.0.1:{peer_listen}\"
"
        )
    }
}
