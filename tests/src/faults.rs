//! Faults of a running system that end when they are dropped: system calls that fail, a disk that
//! hangs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

use crate::{
    daemon::{Node, Pair},
    lab::Lab,
    process::{Launch, Process},
    volume::tool,
};

/// System calls of a process that fail with EIO.
#[derive(Debug)]
pub struct Failing {
    tracer: Option<Process>,
}

impl Failing {
    /// From now on, each of these system calls of the node's daemon fails with EIO.
    pub fn start(lab: &Lab, node: &mut Node, calls: &str) -> anyhow::Result<Self> {
        Self::start_at(lab, node, calls, None)
    }

    /// The same, only of those that are about one file.
    pub fn start_at(
        lab: &Lab,
        node: &mut Node,
        calls: &str,
        file: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let id = node.daemon()?.id();
        let trace = format!("trace={calls}");
        let inject = format!("inject={calls}:error=EIO");
        let traced = lab.dir().join(format!("strace.{id}"));
        let words = ["strace", "-f", "-e", &trace, "-e", &inject, "-o"];
        let mut command: Vec<std::ffi::OsString> = words.iter().map(Into::into).collect();
        command.extend([traced.into()]);
        command.extend(file.into_iter().flat_map(|file| ["-P".into(), file.into()]));
        command.extend(["-p".into(), id.to_string().into()]);
        let log = lab.dir().join("strace.log");
        let launch = Launch { name: "strace".into(), command, as_mail_user: false, log };
        let tracer = Process::start(lab, &launch)?;
        lab.wait("strace holds the daemon", || {
            let status = fs::read_to_string(format!("/proc/{id}/status"))?;
            let free = status.contains("TracerPid:\t0");
            Ok(if free { Err("not yet".into()) } else { Ok(()) })
        })?;
        Ok(Self { tracer: Some(tracer) })
    }

    /// Lets them work again; a daemon that has ended is no error.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.tracer.take().map_or(Ok(()), |mut tracer| {
            tracer.signal(Signal::INT)?;
            tracer.ended().map(drop)
        })
    }
}

/// A file system on which every write hangs.
#[derive(Debug)]
pub struct Frozen(PathBuf);

impl Frozen {
    /// Freezes the file system that is mounted there.
    pub fn start(volume: &Path) -> anyhow::Result<Self> {
        tool(&["fsfreeze".as_ref(), "--freeze".as_ref(), volume.as_os_str()])?;
        Ok(Self(volume.to_path_buf()))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = tool(&["fsfreeze".as_ref(), "--unfreeze".as_ref(), self.0.as_os_str()]);
    }
}

/// Waits until the agent's `replctl status` says `words` and ends with 1.
pub fn wait_status(lab: &Lab, pair: &Pair, words: &str) -> anyhow::Result<()> {
    lab.wait(&format!("status says {words:?}"), || {
        let shown = pair.agent.replctl(lab, &["status"])?;
        let said = shown.code == Some(1) && shown.stdout.contains(words);
        Ok(if said { Ok(()) } else { Err(format!("{shown:?}")) })
    })
}

/// Waits until a daemon's log says `words`.
pub fn wait_log(lab: &Lab, node: &Node, daemon: &str, words: &str) -> anyhow::Result<()> {
    lab.wait(&format!("the log says {words:?}"), || {
        let said = node.log_text(daemon)?.contains(words);
        Ok(if said { Ok(()) } else { Err("not yet".into()) })
    })
}

/// The value of a metric without labels, or with the only ones there are.
pub fn metric(port: u16, name: &str) -> anyhow::Result<f64> {
    let page = Node::page(port, "/metrics")?;
    let line = page.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.with_context(|| format!("{name} in {page}"))
}

/// Fails unless a tool that the tests call is there.
pub fn expect_tool(program: &str) -> anyhow::Result<()> {
    let found = Command::new(program).arg("--version").output();
    ensure!(found.is_ok(), "{program} is not installed; tests/run installs it");
    Ok(())
}
