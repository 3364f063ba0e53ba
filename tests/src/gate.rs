//! The gate of a node in a lab: the hook that the project ships for its mail server.
//!
//! The daemons run as the mail user, and Dovecot obeys only root, and Cyrus is in namespaces of its
//! own. On a real node the first is `sudo`'s business; here a thread of the test runs the hook for
//! them.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;
use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};

use crate::{daemon::Node, files, lab::Lab, server::Server};

/// How often the thread looks for something to do.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a daemon calls: leaves a question, and waits for the answer.
const ASK: &str = r#"#!/bin/sh
question=$(mktemp -p "$1") || exit 1
mkfifo "$question.answer" || exit 1
echo "$2 ${MAILTWIN_WAIT:-0} $$" > "$question"
mv "$question" "$question.asked"
read -r code text < "$question.answer"
[ "$code" = 0 ] || echo "$text" >&2
exit "$code"
"#;

/// Runs the hook until it is dropped.
#[derive(Debug)]
pub struct Gatekeeper {
    hook: Hook,
    /// Held while a command of the daemon's runs.
    lock: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Gatekeeper {
    /// Gives `node` a gate that closes and opens `server`. Before its agent is started.
    pub fn install(lab: &Lab, node: &Node, server: &dyn Server) -> anyhow::Result<Self> {
        let dir = lab.mail_dir(&format!("{}-gate", node.name()))?;
        let ask = dir.join("ask");
        files::write(&ask, ASK)?;
        files::chmod(&ask, 0o755)?;
        let command = |what| format!("{} {} {what}", ask.display(), dir.display());
        let mut text = node.config_text()?;
        let (close, open) = (command("close"), command("open"));
        write!(text, "\n[gate]\nclose = {close:?}\nopen = {open:?}\n")?;
        node.write_config(&text)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, clock) = (Arc::clone(&stop), lab.shared_clock());
        let hook = server.hook()?;
        let ours = hook.clone();
        let thread = std::thread::Builder::new().name("gatekeeper".into()).spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                // A question that cannot be answered leaves the daemon waiting, and the test fails.
                let _ = answer(&dir, &ours);
                clock.pause(LOOK_EVERY);
            }
        })?;
        let lock = node.state_dir().join("gate.lock");
        Ok(Self { hook, lock, stop, thread: Some(thread) })
    }

    /// Opens the gate as an admin would by hand, when the daemon has done with it.
    pub fn open_by_hand(&self) -> anyhow::Result<()> {
        self.by_hand("open")
    }

    /// Closes it so.
    pub fn close_by_hand(&self) -> anyhow::Result<()> {
        self.by_hand("close")
    }

    fn by_hand(&self, what: &str) -> anyhow::Result<()> {
        let lock = fs::File::options().read(true).open(&self.lock)?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        let (code, text) = self.hook.run(what, "0")?;
        anyhow::ensure!(code == 0, "{what} the gate: {text}");
        Ok(())
    }
}

impl Drop for Gatekeeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say that the test would not have noticed.
            let _ = thread.join();
        }
    }
}

fn answer(dir: &Path, hook: &Hook) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "asked") {
            continue;
        }
        let question = fs::read_to_string(&path)?;
        let mut words = question.split_whitespace();
        let mut word = || words.next().context("a word, a number of seconds and who asks");
        let (what, wait, asker) = (word()?, word()?, word()?);
        let is_there = || Path::new("/proc").join(asker).exists();
        // Nobody waits for what a daemon wanted that was killed meanwhile.
        let answer = is_there().then(|| hook.run(what, wait)).transpose()?;
        fs::remove_file(&path)?;
        let Some((code, text)) = answer else { continue };
        tell(&path.with_extension("answer"), asker, &format!("{code} {text}\n"))?;
    }
    Ok(())
}

/// Gives the answer to whoever asked, who may not listen yet, or have been killed meanwhile.
fn tell(answer: &Path, asker: &str, text: &str) -> anyhow::Result<()> {
    while Path::new("/proc").join(asker).exists() {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        match rustix::fs::open(answer, flags, Mode::empty()) {
            Ok(fifo) => {
                rustix::io::write(fifo, text.as_bytes())?;
                return Ok(());
            }
            Err(Errno::NXIO) => std::thread::yield_now(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// One of the hooks that the project ships, and how to run it for a mail server.
#[derive(Clone, Debug)]
pub struct Hook {
    /// What runs before the hook's own words, as a shell command that ends with them.
    around: String,
    script: PathBuf,
    variables: Vec<(&'static str, OsString)>,
}

impl Hook {
    /// Dovecot's, given how to call its doveadm.
    pub fn dovecot(doveadm: &str) -> anyhow::Result<Self> {
        let variables = vec![("DOVEADM", doveadm.into())];
        Ok(Self { around: "exec \"$@\"".into(), script: shipped("dovecot-gate")?, variables })
    }

    /// Cyrus's, given a shell command that runs its words where Cyrus and its user are, the
    /// configuration, and the file with the master process's number.
    pub fn cyrus(around: String, conf: &Path, pid: &Path) -> anyhow::Result<Self> {
        let variables = vec![("CYRUS_CONF", conf.into()), ("CYRUS_PID", pid.into())];
        Ok(Self { around, script: shipped("cyrus-gate")?, variables })
    }

    /// Closes or opens the gate; returns the hook's exit code and its complaints.
    pub fn run(&self, what: &str, wait: &str) -> anyhow::Result<(i32, String)> {
        // Cyrus's user may not look into the folder of the project.
        let text = fs::read_to_string(&self.script)
            .with_context(|| format!("read {}", self.script.display()))?;
        let output = Command::new("sh")
            .args(["-c", &self.around, "sh", "sh", "-c", &text, "gate", what])
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .env("MAILTWIN_WAIT", wait)
            .output()
            .with_context(|| format!("run {}", self.script.display()))?;
        let text = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
        Ok((output.status.code().unwrap_or(1), text))
    }
}

fn shipped(name: &str) -> anyhow::Result<PathBuf> {
    let hook = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/hooks").join(name);
    hook.canonicalize().with_context(|| format!("find {}", hook.display()))
}
