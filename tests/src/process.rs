//! A program that runs as long as a test needs it: started with its output in a file, ended by its
//! process number and nothing broader.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use mailtwin_disk::clock::Clock;
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{Lab, MAIL_USER, PATIENCE};

/// How long a program may take to end before it is killed on drop.
const FAREWELL: Duration = Duration::from_secs(20);

/// What to start.
#[derive(Debug)]
pub struct Launch {
    /// What failures and logs call it.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Whether it runs as the mail user, as a service would, rather than as root.
    pub as_mail_user: bool,
    /// Where its output goes; appended to.
    pub log: PathBuf,
}

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    clock: Arc<dyn Clock>,
}

impl Process {
    /// Starts it. It is ended when the thread that started it ends, whatever happens to the test.
    pub fn start(lab: &Lab, launch: &Launch) -> anyhow::Result<Self> {
        lab.watch_log(&launch.log);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&launch.log)
            .with_context(|| format!("open {}", launch.log.display()))?;
        let mut command = command(&launch.command, launch.as_mail_user);
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", launch.name))?;
        Ok(Self { name: launch.name.clone(), child, clock: lab.shared_clock() })
    }

    /// What failures call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended by itself.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether it has ended by itself and waits for its parent to notice.
    pub fn has_ended(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        stat.map_or(true, |stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
    }

    /// kill -9, and its corpse removed.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    /// SIGTERM, and the status it ends with.
    pub fn terminate(mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended()
    }

    /// Waits until it ends by itself.
    pub fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let deadline = self.clock.monotonic() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if self.clock.monotonic() >= deadline {
                bail!("{} did not end within {PATIENCE:?}", self.name);
            }
            self.clock.pause(Duration::from_millis(10));
        }
    }

    /// Sends a signal, for instance SIGSTOP, SIGCONT or SIGHUP.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let id = id.with_context(|| format!("{} has no process number", self.name))?;
        kill_process(id, signal).with_context(|| format!("signal {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_running() {
            return;
        }
        let _ = self.signal(Signal::CONT);
        let _ = self.signal(Signal::TERM);
        let deadline = self.clock.monotonic() + FAREWELL;
        while self.is_running() && self.clock.monotonic() < deadline {
            self.clock.pause(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program that ran to its end said.
#[derive(Debug)]
pub struct Output {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Fails unless the exit code was `code`.
    pub fn expect(self, code: i32) -> anyhow::Result<Self> {
        if self.code != Some(code) {
            bail!(
                "exit code {:?} instead of {code}\nstdout: {}\nstderr: {}",
                self.code,
                self.stdout,
                self.stderr
            );
        }
        Ok(self)
    }
}

/// Runs a program to its end, which must come within [`PATIENCE`].
pub fn run(lab: &Lab, words: &[&OsStr], as_mail_user: bool) -> anyhow::Result<Output> {
    let dir = tempfile::tempdir_in(lab.dir()).context("make a folder for the output")?;
    let (out, err) = (dir.path().join("stdout"), dir.path().join("stderr"));
    let words: Vec<OsString> = words.iter().map(|&word| word.to_owned()).collect();
    let child = command(&words, as_mail_user)
        .stdin(Stdio::null())
        .stdout(File::create(&out)?)
        .stderr(File::create(&err)?)
        .spawn()
        .with_context(|| format!("start {words:?}"))?;
    let mut process = Process { name: format!("{words:?}"), child, clock: lab.shared_clock() };
    let status = process.ended();
    let text = |path: &Path| -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
    };
    let (stdout, stderr) = (text(&out)?, text(&err)?);
    let status = status.with_context(|| format!("stdout: {stdout}\nstderr: {stderr}"))?;
    Ok(Output { code: status.code(), stdout, stderr })
}

/// The command, so wrapped that it dies with its parent; `setpriv` is part of every Debian.
fn command(words: &[OsString], as_mail_user: bool) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=KILL");
    if as_mail_user {
        command.arg(format!("--reuid={MAIL_USER}")).arg(format!("--regid={MAIL_USER}"));
        command.arg("--clear-groups");
    }
    command.arg("--").args(words);
    command
}
