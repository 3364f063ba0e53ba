//! Our daemons and `replctl` as they are installed: built programs, a configuration file a node,
//! run as the mail user.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::{
    corpus,
    dovecot::{Dovecot, Version},
    files,
    lab::{Lab, PATIENCE},
    oracle,
    process::{self, Launch, Output, Process},
    volume::tool,
};

/// The daemon on the master.
pub const AGENT: &str = "mailtwin-agent";
/// The daemon on a replica.
pub const REPLICA: &str = "mailtwin-replica";
/// The command line.
pub const REPLCTL: &str = "replctl";

/// A node: its configuration, and the daemons that run now.
#[derive(Debug)]
pub struct Node {
    name: String,
    role: &'static str,
    dir: PathBuf,
    bin: PathBuf,
    /// Port of the replica daemon.
    pub port: u16,
    /// Ports of /metrics: the agent's and the replica daemon's.
    pub metrics: (u16, u16),
    agent: Option<Process>,
    replica: Option<Process>,
    /// Words before those of a daemon.
    wrapper: Vec<OsString>,
}

impl Node {
    /// Makes and initialises a node for each server: the first is the master, the others are its
    /// replicas. Nothing is started.
    pub fn cluster(lab: &Lab, servers: &[&Dovecot]) -> anyhow::Result<Vec<Self>> {
        let stores = servers.iter().map(|server| (server.name(), maildir_store(server)));
        Self::beside(lab, &stores.collect::<Vec<_>>())
    }

    /// [`Node::beside`], and all of them running; the master last.
    pub fn start_beside(lab: &Lab, servers: &[(&str, String)]) -> anyhow::Result<Vec<Self>> {
        let mut nodes = Self::beside(lab, servers)?;
        nodes.iter_mut().rev().try_for_each(|node| node.start(lab))?;
        Ok(nodes)
    }

    /// The same for servers of any kind: what they are called, and the sections of the configuration
    /// that tell of their store.
    pub fn beside(lab: &Lab, servers: &[(&str, String)]) -> anyhow::Result<Vec<Self>> {
        let mut nodes = Vec::new();
        for (number, (server, _)) in servers.iter().enumerate() {
            let name = format!("{server}-node");
            nodes.push(Self {
                role: if number == 0 { "master" } else { "replica" },
                dir: lab.mail_dir(&name)?,
                bin: programs(lab)?,
                port: lab.port()?,
                metrics: (lab.port()?, lab.port()?),
                agent: None,
                replica: None,
                wrapper: Vec::new(),
                name,
            });
        }
        for (node, (_, store)) in nodes.iter().zip(servers) {
            let peers: Vec<&Self> = nodes.iter().filter(|peer| peer.name != node.name).collect();
            node.write_config(&node.configuration(store, &peers))?;
            node.replctl(lab, &["init", "--role", node.role])?.expect(0)?;
        }
        Ok(nodes)
    }

    /// Its name in every configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("mailtwin.toml")
    }

    /// What it keeps.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Lets it tell of incidents. Before its agent is started.
    pub fn tell_incidents(&self) -> anyhow::Result<()> {
        let told = self.dir.join("incidents");
        let command = format!("echo $MAILTWIN_INCIDENT $MAILTWIN_TEXT >> {}", told.display());
        let text = format!("{}\n[incident]\ncommand = {command:?}\n", self.config_text()?);
        self.write_config(&text)
    }

    /// Gives it a canary, to the account `canary`. Before its agent is started.
    pub fn send_canaries(&self, lmtp: SocketAddr, interval: &str) -> anyhow::Result<()> {
        let keys = format!("account = \"canary\"\nlmtp = \"{lmtp}\"\ninterval = {interval:?}\n");
        self.write_config(&format!("{}\n[canary]\n{keys}", self.config_text()?))
    }

    /// What it has told of, a line each.
    pub fn incidents(&self) -> anyhow::Result<String> {
        match fs::read_to_string(self.dir.join("incidents")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            told => Ok(told?),
        }
    }

    /// Where its admin sockets are.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Log of one of its daemons.
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.dir.join(format!("{daemon}.log"))
    }

    /// The most memory that its running daemon has had, in octets.
    pub fn memory_peak(&mut self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.daemon()?.id());
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kilobytes: u64 = kilobytes.context("the kernel says VmHWM")?.trim().parse()?;
        Ok(kilobytes << 10)
    }

    /// The text of such a log so far.
    pub fn log_text(&self, daemon: &str) -> anyhow::Result<String> {
        let octets = fs::read(self.log(daemon)).with_context(|| format!("read {daemon}'s log"))?;
        Ok(String::from_utf8_lossy(&octets).into_owned())
    }

    /// Writes its configuration anew.
    pub fn write_config(&self, text: &str) -> anyhow::Result<()> {
        files::write(&self.config(), text)?;
        files::give_to_mail_user(&self.config())
    }

    /// Has another program start its daemons from now on.
    pub fn run_under(&mut self, wrapper: Vec<OsString>) {
        self.wrapper = wrapper;
    }

    /// Starts the daemon of its role anew if it has ended, as a service manager would; says whether
    /// it had.
    pub fn restart_if_ended(&mut self, lab: &Lab) -> anyhow::Result<bool> {
        let ended = !self.daemon()?.is_running();
        if ended {
            self.start(lab)?;
        }
        Ok(ended)
    }

    /// Starts the daemon that its role needs.
    pub fn start(&mut self, lab: &Lab) -> anyhow::Result<()> {
        match self.role {
            "master" => self.start_agent(lab),
            _ => self.start_replica(lab),
        }
    }

    /// Starts its agent.
    pub fn start_agent(&mut self, lab: &Lab) -> anyhow::Result<()> {
        self.agent = Some(self.spawn(lab, AGENT)?);
        Ok(())
    }

    /// Starts its replica daemon.
    pub fn start_replica(&mut self, lab: &Lab) -> anyhow::Result<()> {
        self.replica = Some(self.spawn(lab, REPLICA)?);
        Ok(())
    }

    /// Starts a daemon that the node does not keep track of.
    pub fn spawn(&self, lab: &Lab, daemon: &str) -> anyhow::Result<Process> {
        let config = self.config();
        let mut command = self.wrapper.clone();
        command.extend([self.bin.join(daemon).into(), "--config".into(), config.into()]);
        Process::start(
            lab,
            &Launch {
                name: format!("{daemon} of {}", self.name),
                command,
                as_mail_user: true,
                log: self.log(daemon),
            },
        )
    }

    /// Starts both daemons, as every node has them where roles move.
    pub fn start_both(&mut self, lab: &Lab) -> anyhow::Result<()> {
        self.start_replica(lab)?;
        self.start_agent(lab)
    }

    /// kill -9 of both of its daemons.
    pub fn kill_both(&mut self) -> anyhow::Result<()> {
        [self.agent.take(), self.replica.take()].into_iter().flatten().try_for_each(Process::kill)
    }

    /// SIGTERM to its agent.
    pub fn stop_agent(&mut self) -> anyhow::Result<()> {
        let agent = self.agent.take();
        agent.with_context(|| format!("no agent runs on {}", self.name))?.terminate()?;
        Ok(())
    }

    /// Starts `replctl --config` of this node with more words, and does not wait for it.
    pub fn spawn_replctl(&self, lab: &Lab, words: &[&str]) -> anyhow::Result<Process> {
        let mut command =
            vec![self.bin.join(REPLCTL).into(), "--config".into(), self.config().into()];
        command.extend(words.iter().map(Into::into));
        let log = self.log(REPLCTL);
        Process::start(lab, &Launch { name: REPLCTL.into(), command, as_mail_user: true, log })
    }

    /// kill -9 of one of its daemons, which is started again at once.
    pub fn crash(&mut self, lab: &Lab, daemon: &str) -> anyhow::Result<()> {
        let place = if daemon == AGENT { &mut self.agent } else { &mut self.replica };
        place.take().with_context(|| format!("no {daemon} runs on {}", self.name))?.kill()?;
        if daemon == AGENT { self.start_agent(lab) } else { self.start_replica(lab) }
    }

    /// The running daemon of its role.
    pub fn daemon(&mut self) -> anyhow::Result<&mut Process> {
        let daemon = match self.role {
            "master" => self.agent.as_mut(),
            _ => self.replica.as_mut(),
        };
        daemon.with_context(|| format!("no daemon runs on {}", self.name))
    }

    /// kill -9 of the daemon of its role.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.take_daemon()?.kill()
    }

    /// SIGTERM; fails unless it ends with exit code 0.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let status = self.take_daemon()?.terminate()?;
        ensure!(status.success(), "the daemon of {} ended with {status}", self.name);
        Ok(())
    }

    /// Runs `replctl --config` of this node with more words.
    pub fn replctl(&self, lab: &Lab, words: &[&str]) -> anyhow::Result<Output> {
        let program = self.bin.join(REPLCTL).into_os_string();
        let config = self.config().into_os_string();
        let mut command: Vec<&OsStr> = vec![&program, "--config".as_ref(), &config];
        command.extend(words.iter().map(OsStr::new));
        process::run(lab, &command, true)
    }

    /// Has `replctl sync` wait until every replica has what this master has now.
    pub fn sync(&self, lab: &Lab) -> anyhow::Result<()> {
        self.replctl(lab, &["sync"])?.expect(0).map(drop)
    }

    /// The public key of this node, whose daemon runs, as an admin would copy it.
    pub fn key(&self, lab: &Lab) -> anyhow::Result<String> {
        lab.wait("the daemon shows its key", || {
            let shown = self.replctl(lab, &["keys", "show"])?;
            let key = shown.stdout.split_whitespace().find(|word| word.starts_with("mt1"));
            Ok(key.map(str::to_owned).ok_or_else(|| format!("{shown:?}")))
        })
    }

    /// Has the node, whose daemons do not run, lose its key and get another.
    pub fn make_key_anew(&self, lab: &Lab, role: &str) -> anyhow::Result<()> {
        fs::remove_dir_all(self.state_dir().join("keys")).context("remove the key")?;
        self.replctl(lab, &["init", "--role", role])?.expect(0)?;
        Ok(())
    }

    /// `replctl --output json` with more words, parsed. A daemon that begins anew in another role does
    /// not answer for a moment, and is waited for.
    pub fn ask(&self, lab: &Lab, words: &[&str]) -> anyhow::Result<Value> {
        let words: Vec<&str> = ["--output", "json"].iter().chain(words).copied().collect();
        let output = lab.wait(&format!("{} answers", self.name), || {
            let output = self.replctl(lab, &words)?;
            let is_away = output.code == Some(3);
            Ok(if is_away { Err(format!("{output:?}")) } else { Ok(output) })
        })?;
        serde_json::from_str(&output.stdout).with_context(|| format!("read {output:?}"))
    }

    /// The body of a page that one of its daemons serves on `port`.
    pub fn page(port: u16, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let host = "Host: localhost\r\nConnection: close";
        stream.write_all(format!("GET {path} HTTP/1.1\r\n{host}\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(|| format!("read {path}"))?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        let (_, body) = answer.split_once("\r\n\r\n").context("an empty line ends the head")?;
        Ok(body.to_owned())
    }

    /// The configuration that `cluster` wrote, for tests that change a line of it.
    pub fn config_text(&self) -> anyhow::Result<String> {
        fs::read_to_string(self.config()).context("read the configuration")
    }

    fn take_daemon(&mut self) -> anyhow::Result<Process> {
        let daemon = match self.role {
            "master" => self.agent.take(),
            _ => self.replica.take(),
        };
        daemon.with_context(|| format!("no daemon runs on {}", self.name))
    }

    fn configuration(&self, store: &str, peers: &[&Self]) -> String {
        let dir = self.dir.display();
        let mut text = format!(
            r#"config_version = 1

[node]
name = "{name}"
state_dir = "{dir}/state"
run_dir = "{dir}/run"
log = "info,mailtwin_agent=debug,mailtwin_replica=debug,mailtwin_store=debug"

{store}
[replica]
listen = "127.0.0.1:{port}"

[metrics]
agent = "127.0.0.1:{agent}"
replica = "127.0.0.1:{replica}"
"#,
            name = self.name,
            port = self.port,
            agent = self.metrics.0,
            replica = self.metrics.1,
        );
        for peer in peers {
            let (name, port) = (&peer.name, peer.port);
            let peer = format!("\n[[peer]]\nname = \"{name}\"\naddress = \"127.0.0.1:{port}\"\n");
            text.push_str(&peer);
        }
        text
    }
}

/// The section of the configuration that tells of a Dovecot's store.
pub fn maildir_store(server: &Dovecot) -> String {
    let (mail, layout) = (server.mail_root().display().to_string(), server.layout().as_str());
    format!(
        "[store]\nengine = \"maildir\"\nroot = \"{mail}/{{user}}/Maildir\"\n\
         home = \"{mail}/{{user}}\"\nlayout = \"{layout}\"\n"
    )
}

/// A master and one replica, each a Dovecot with our daemon beside it.
#[derive(Debug)]
pub struct Pair {
    /// Where mail comes in.
    pub master: Dovecot,
    /// Where it is copied to.
    pub replica: Dovecot,
    /// The master's daemons.
    pub agent: Node,
    /// The replica's daemons.
    pub copy: Node,
    /// Accounts that the oracle compares.
    pub accounts: Vec<String>,
}

impl Pair {
    /// A pair of Dovecot 2.3 with Maildir++, everything running.
    pub fn start(lab: &Lab, accounts: &[&str]) -> anyhow::Result<Self> {
        let master = Dovecot::start(lab, "master", Version::V23)?;
        let replica = Dovecot::start(lab, "replica", Version::V23)?;
        Self::running(lab, master, replica, accounts)
    }

    /// A pair whose master is [`Dovecot::busy`], everything running.
    pub fn busy(lab: &Lab, versions: (Version, Version)) -> anyhow::Result<Self> {
        let master = Dovecot::busy(lab, "master", versions.0)?;
        let replica = Dovecot::start(lab, "replica", versions.1)?;
        Self::running(lab, master, replica, &["u1", "u2", "u3"])
    }

    fn running(
        lab: &Lab,
        master: Dovecot,
        replica: Dovecot,
        accounts: &[&str],
    ) -> anyhow::Result<Self> {
        let mut pair = Self::around(lab, master, replica, accounts)?;
        pair.copy.start(lab)?;
        pair.agent.start(lab)?;
        pair.copy.ask(lab, &["status"])?;
        pair.agent.ask(lab, &["status"])?;
        Ok(pair)
    }

    /// A pair around servers that run already; no daemon is started.
    pub fn around(
        lab: &Lab,
        master: Dovecot,
        replica: Dovecot,
        accounts: &[&str],
    ) -> anyhow::Result<Self> {
        let [agent, copy]: [Node; 2] = Node::cluster(lab, &[&master, &replica])?
            .try_into()
            .map_err(|_| anyhow::anyhow!("a node for each server"))?;
        let accounts = accounts.iter().map(|&name| name.to_owned()).collect();
        Ok(Self { master, replica, agent, copy, accounts })
    }

    /// Waits until an IMAP client sees the same on both; gives up when a daemon has ended.
    pub fn wait_equal(&self, lab: &Lab) -> anyhow::Result<()> {
        lab.wait("both servers are equal", || {
            let daemons = [&self.agent.agent, &self.copy.replica].into_iter().flatten();
            for daemon in daemons {
                ensure!(!daemon.has_ended(), "{} has ended", daemon.name());
            }
            Ok(oracle::look(&self.master, &self.replica, &self.accounts))
        })
    }

    /// Delivers a message to each account and waits until the replica has it on disk: from then on
    /// clients may look at the replica. (What a client makes there before is replaced, and a
    /// Dovecot that has it open complains about that.)
    pub fn first_copy(&self, lab: &Lab) -> anyhow::Result<()> {
        for account in &self.accounts {
            self.master.deliver(account, &corpus::short("first"))?;
            lab.wait("the first message arrives", || {
                let there = files::messages(&self.replica.home(account));
                let some = there.is_ok_and(|messages| !messages.is_empty());
                Ok(if some { Ok(()) } else { Err(format!("nothing of {account}")) })
            })?;
        }
        Ok(())
    }

    /// Waits until both are equal, starting again what ends, as a service manager would.
    pub fn heal(&mut self, lab: &Lab) -> anyhow::Result<()> {
        lab.wait("both servers are equal again", || {
            self.agent.restart_if_ended(lab)?;
            self.copy.restart_if_ended(lab)?;
            Ok(oracle::look(&self.master, &self.replica, &self.accounts))
        })
    }

    /// Fails if either Dovecot has something to complain about.
    pub fn expect_quiet_logs(&self) -> anyhow::Result<()> {
        self.master.expect_quiet_log()?;
        self.replica.expect_quiet_log()
    }
}

/// Runs `replctl` with no configuration, as root or as the mail user.
pub fn replctl(lab: &Lab, words: &[&OsStr], as_mail_user: bool) -> anyhow::Result<Output> {
    let program = programs(lab)?.join(REPLCTL).into_os_string();
    let mut command: Vec<&OsStr> = vec![&program];
    command.extend(words);
    process::run(lab, &command, as_mail_user)
}

/// The folder of our programs, copied to where the mail user may run them.
pub fn programs(lab: &Lab) -> anyhow::Result<PathBuf> {
    let bin = lab.dir().join("bin");
    if bin.is_dir() {
        return Ok(bin);
    }
    let built = built()?;
    fs::create_dir(&bin).context("make the folder of programs")?;
    for program in [AGENT, REPLICA, REPLCTL] {
        let from = built.join(program);
        // By another process: a program that is open for writing in a child that another test starts
        // at this moment cannot be run.
        tool(&["cp".as_ref(), from.as_os_str(), bin.as_os_str()])?;
    }
    Ok(bin)
}

/// Builds the programs in the profile that the tests were built in, once a test program;
/// `MAILTWIN_BUILT` names the folder where somebody has done so.
fn built() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT
        .get_or_init(|| build(&[AGENT, REPLICA, REPLCTL]).map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

/// The folder of our programs and of `xtask`, as they were built.
pub fn built_with_xtask() -> anyhow::Result<PathBuf> {
    built()?;
    build(&["xtask"])
}

fn build(packages: &[&str]) -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("MAILTWIN_BUILT") {
        return Ok(dir.into());
    }
    let program = std::env::current_exe().context("find this program")?;
    // Test programs lie in target/PROFILE/deps, others in target/PROFILE.
    let mut folders = program.ancestors().skip(1).filter(|folder| !folder.ends_with("deps"));
    let dir = folders.next().context("the folder of this program")?;
    let mut words: Vec<OsString> = vec!["build".into(), "--quiet".into()];
    for package in packages {
        words.extend(["-p", package].map(OsString::from));
    }
    if dir.file_name().is_some_and(|name| name == "release") {
        words.push("--release".into());
    }
    let output = Command::new(env!("CARGO"))
        .args(words)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .stdin(Stdio::null())
        .output()
        .context("run cargo build")?;
    if !output.status.success() {
        bail!("cargo build: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(dir.to_path_buf())
}
