//! `replctl demo`: a whole master and a whole replica on this machine, sample mail, faults, and a
//! comparison that believes neither.

mod client;
mod compare;
mod sample;

use std::{
    future::Future,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use mailtwin_host::{
    admin::{Client as Admin, Request, Response},
    config::Config,
    node::Role,
    signals::Signal,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{args, cmd::init, exit, output::Output, runtime};
use client::Client;

/// How long the replica may take to catch up before the demo gives up.
const CATCH_UP: Duration = Duration::from_mins(2);
/// How long daemons may take to end.
const END_WITHIN: Duration = Duration::from_secs(20);

/// Runs the verb.
pub(crate) fn run(args: &args::Demo, output: &Output) -> anyhow::Result<u8> {
    let dir = args.dir.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("mailtwin-demo-{}", std::process::id()))
    });
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let stop = CancellationToken::new();
    let result = runtime::run(&stop, async {
        let result = show(args, &dir, output, &stop).await;
        stop.cancel();
        result
    });
    if args.dir.is_none() {
        let _ = std::fs::remove_dir_all(&dir);
    }
    result
}

async fn show(
    args: &args::Demo,
    dir: &Path,
    output: &Output,
    stop: &CancellationToken,
) -> anyhow::Result<u8> {
    let stage = Stage::set(dir)?;
    output.say(&format!("Two nodes below {}, joined by TLS on loopback.", dir.display()))?;
    let mut client = Client::new(&stage.master.mail, sample::MESSAGES.to_vec());
    client.make_accounts()?;
    let third = usize::try_from(args.messages / 3)?;
    client.deliver(third)?;
    output.say(&format!("{third} messages lie on the master before anything runs."))?;

    let replica = stage.replica.start_replica(stop);
    let agent = stage.master.start_agent(stop);
    stage.catch_up(output, "first copy").await?;

    output.say("The master's users go on: deliveries, flags, moves, expunges.")?;
    for _ in 0..5 {
        client.deliver(third / 5)?;
        client.flag(12)?;
        client.move_messages(6)?;
        client.expunge(4)?;
        stage.show_lag(output).await?;
        // So that it can be watched.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stage.show_lag(output).await?;
    stage.catch_up(output, "live changes").await?;

    output.say("The replica stops. Mail goes on; mailboxes are renamed, made and deleted.")?;
    replica.end().await?;
    client.rearrange()?;
    client.deliver(third - third / 5 * 5 + third)?;
    client.flag(20)?;
    client.expunge(10)?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    stage.show_lag(output).await?;
    output.say("The replica comes back.")?;
    let replica = stage.replica.start_replica(stop);
    stage.catch_up(output, "after the outage").await?;

    agent.end().await?;
    replica.end().await?;
    let differences = stage.compare(output, &client)?;
    if differences.is_empty() {
        output.say("Equal: every message, UID, flag and date.")?;
        return Ok(0);
    }
    for difference in differences.iter().take(20) {
        output.say(&format!("differs: {difference}"))?;
    }
    Ok(exit::FOUND)
}

/// Both nodes.
struct Stage {
    master: Node,
    replica: Node,
}

struct Node {
    mail: PathBuf,
    config: Config,
}

/// A daemon in this process.
struct Daemon {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Daemon {
    async fn end(self) -> anyhow::Result<()> {
        self.stop.cancel();
        tokio::time::timeout(END_WITHIN, self.task).await.context("a daemon did not end")??
    }
}

impl Stage {
    fn set(dir: &Path) -> anyhow::Result<Self> {
        // A free port, found by asking for any.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let master = Node::make(dir, "master", Role::Master, port)?;
        let replica = Node::make(dir, "replica", Role::Replica, port)?;
        Ok(Self { master, replica })
    }

    /// Waits until the replica has everything, and shows how it gets there.
    async fn catch_up(&self, output: &Output, what: &str) -> anyhow::Result<()> {
        let admin = self.master.admin();
        let start = tokio::time::Instant::now();
        // Everything is looked at once more, so that "nothing to do" means what it says.
        let request = Request::Sync { targets: Vec::new(), timeout_ms: None, replica: None };
        let sync = retry(|| admin.call(&request));
        tokio::pin!(sync);
        let answer = loop {
            tokio::select! {
                answer = &mut sync => break answer?,
                () = tokio::time::sleep(Duration::from_millis(500)) => {
                    self.show_lag(output).await?;
                }
            }
            if start.elapsed() > CATCH_UP {
                bail!("{what}: the replica did not catch up in {} s", CATCH_UP.as_secs());
            }
        };
        match answer {
            Response::Synced { .. } => {
                let seconds = start.elapsed().as_secs_f64();
                Ok(output.say(&format!("  {what}: in sync after {seconds:.1} s"))?)
            }
            other => bail!("{what}: {other:?}"),
        }
    }

    async fn show_lag(&self, output: &Output) -> anyhow::Result<()> {
        if let Ok(Response::Status(status)) = self.master.admin().call(&Request::Status).await {
            for replica in &status.replicas {
                output.say(&format!(
                    "  {}: {}, lag {} entries ({:.2} s), {} messages across",
                    replica.name,
                    replica.state,
                    replica.lag_entries,
                    replica.lag_seconds,
                    replica.messages
                ))?;
            }
        }
        Ok(())
    }

    fn compare(&self, output: &Output, client: &Client) -> anyhow::Result<Vec<String>> {
        let mut rows = Vec::new();
        let mut differences = Vec::new();
        for account in ["ann", "bob", "carol"] {
            let maildir = |node: &Node| node.mail.join(account).join("Maildir");
            let count = compare::account(&maildir(&self.master), &maildir(&self.replica))?;
            let equal = if count.differences.is_empty() { "yes" } else { "NO" };
            rows.push([
                account.to_owned(),
                count.mailboxes.to_string(),
                count.master.to_string(),
                count.replica.to_string(),
                equal.to_owned(),
            ]);
            differences
                .extend(count.differences.into_iter().map(|text| format!("{account}: {text}")));
        }
        let done = client.done;
        output.say(&format!(
            "Delivered {}, flagged {}, moved {}, expunged {}.",
            done.delivered, done.flagged, done.moved, done.expunged
        ))?;
        Output::table(["account", "mailboxes", "on master", "on replica", "equal"], &rows)?;
        Ok(differences)
    }
}

/// Calls until the daemon's socket is there.
async fn retry<T, F: Future<Output = Result<T, mailtwin_host::admin::AdminError>>>(
    call: impl Fn() -> F,
) -> anyhow::Result<T> {
    let deadline = tokio::time::Instant::now() + CATCH_UP;
    loop {
        match call().await {
            Ok(answer) => return Ok(answer),
            Err(error) if tokio::time::Instant::now() > deadline => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

impl Node {
    fn make(dir: &Path, name: &str, role: Role, port: u16) -> anyhow::Result<Self> {
        let home = dir.join(name);
        let mail = home.join("mail");
        std::fs::create_dir_all(&mail)?;
        let text = format!(
            r#"config_version = 1
[node]
name = "{name}"
state_dir = "{home}/state"
run_dir = "{home}/run"
[store]
engine = "maildir"
root = "{home}/mail/{{user}}/Maildir"
[replica]
listen = "127.0.0.1:{port}"
[metrics]
agent = "127.0.0.1:0"
replica = "127.0.0.1:0"
[[peer]]
name = "{peer}"
address = "127.0.0.1:{port}"
"#,
            home = home.display(),
            peer = if role == Role::Master { "replica" } else { "master" },
        );
        let config = Config::parse(Path::new(name), &text)
            .map_err(mailtwin_host::config::ConfigError::Invalid)?;
        init::make(&config, role)?;
        Ok(Self { mail, config })
    }

    fn admin(&self) -> Admin {
        Admin::new(&mailtwin_host::admin::agent_socket(&self.config.node.run_dir))
    }

    fn start_agent(&self, stop: &CancellationToken) -> Daemon {
        let (config, stop) = (self.config.clone(), stop.child_token());
        let daemon = mailtwin_agent::daemon::run(config, no_signals(), stop.clone());
        Daemon { stop, task: spawn(daemon) }
    }

    fn start_replica(&self, stop: &CancellationToken) -> Daemon {
        let (config, stop) = (self.config.clone(), stop.child_token());
        let daemon = mailtwin_replica::daemon::run(config, no_signals(), stop.clone(), None);
        Daemon { stop, task: spawn(daemon) }
    }
}

/// Signals are the demo's own, not its daemons'.
fn no_signals() -> mpsc::Receiver<Signal> {
    mpsc::channel(1).1
}

#[expect(clippy::disallowed_methods, reason = "daemons here are waited for by name")]
fn spawn(
    daemon: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) -> tokio::task::JoinHandle<anyhow::Result<()>> {
    tokio::spawn(daemon)
}
