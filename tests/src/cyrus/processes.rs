//! Cyrus's processes, and what becomes of Cyrus when they die.

use std::{fs, path::Path};

use anyhow::Context as _;
use mailtwin_cyrus::{Dialect, Link, LinkError, Login, Place};
use rustix::process::{Pid, Signal, kill_process};

use super::{ADMIN, Cyrus};
use crate::{lab::Lab, random::Random};

/// One of Cyrus's processes.
struct Worker {
    pid: Pid,
    command: String,
    /// What Cyrus notes of the connection that it serves.
    session: Option<String>,
}

impl Worker {
    fn is_for_replication(&self) -> bool {
        self.command.contains("sync_server")
    }

    fn serves_us(&self) -> bool {
        let Some(session) = &self.session else { return false };
        self.is_for_replication() || session.contains(&format!("\t{ADMIN}\t"))
    }
}

impl Cyrus {
    /// kill -9 of one of the processes that work for our daemons: those that are taking in replication,
    /// and those in which the admin is logged in over IMAP. Tells whether there was one.
    ///
    /// One that waits for a connection is left alone: see [`Cyrus::switch_off_replication`].
    pub fn kill_one_that_serves_us(&self, random: &mut Random) -> anyhow::Result<bool> {
        let mut serving = self.workers()?;
        serving.retain(Worker::serves_us);
        if serving.is_empty() {
            return Ok(false);
        }
        Ok(kill_process(serving[random.below(serving.len())].pid, Signal::KILL).is_ok())
    }

    /// Makes Cyrus switch replication over its socket off: it counts the processes that die while they
    /// wait for a connection, and when the fifth does, with never more than ten seconds between
    /// two, nothing listens for that service any more until SIGHUP. What is connected is ended, too.
    pub fn switch_off_replication(&self, lab: &Lab) -> anyhow::Result<()> {
        let login = Login { user: String::new(), password: String::new(), certificate: None };
        let place = Place::Unix(self.dir.join("csync"));
        lab.wait(&format!("{} has switched replication off", self.name), || {
            let waits = |worker: &Worker| worker.is_for_replication() && worker.session.is_none();
            let killed = self.kill_all(waits)?;
            // After this connection one waits for the next.
            match Link::open(&place, Dialect::Csync, &login, self.clock.clone()) {
                Ok(_) => Ok(Err(format!("{killed} killed this time"))),
                Err(LinkError::Connect { .. }) => Ok(Ok(())),
                // Nobody answers, but who is still connected holds the socket open.
                Err(error) => {
                    self.kill_all(Worker::is_for_replication)?;
                    Ok(Err(error.to_string()))
                }
            }
        })
    }

    /// How many there were.
    fn kill_all(&self, wanted: impl Fn(&Worker) -> bool) -> anyhow::Result<usize> {
        let mut workers = self.workers()?;
        workers.retain(wanted);
        let killed = workers.iter().filter(|one| kill_process(one.pid, Signal::KILL).is_ok());
        Ok(killed.count())
    }

    /// Has Cyrus read its configuration anew, as SIGHUP does.
    pub fn reload(&self) -> anyhow::Result<()> {
        let workers = self.workers()?;
        let master = workers.iter().find(|worker| worker.command.contains("/bin/master"));
        let master = master.with_context(|| format!("the first process of {}", self.name))?;
        kill_process(master.pid, Signal::HUP).context("send it SIGHUP")
    }

    fn workers(&self) -> anyhow::Result<Vec<Worker>> {
        let config = format!("{}/imapd.conf", self.dir.display());
        let mut workers = Vec::new();
        for process in fs::read_dir("/proc").context("read /proc")?.flatten() {
            let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(pid) = pid.and_then(Pid::from_raw) else { continue };
            let command = read(&process.path().join("cmdline"));
            if !command.contains(&config)
                || command.contains("unshare")
                || command.starts_with("sh\0")
            {
                continue;
            }
            // What Cyrus notes of its sessions has the numbers that they have in its own namespace.
            let status = read(&process.path().join("status"));
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            let inside = numbers.and_then(|numbers| numbers.split_whitespace().last());
            let session = inside.map(|pid| self.dir.join("conf/proc").join(pid));
            let session = session.and_then(|file| fs::read_to_string(file).ok());
            workers.push(Worker { pid, command, session });
        }
        Ok(workers)
    }
}

/// Of a process that may end at any time.
fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
