//! The gate: the admin's commands that stop and reopen mail access and delivery on this node.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mailtwin_disk::replace;
use mailtwin_logic::ids::Epoch;
use rustix::{fs::FlockOperation, io::Errno};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use crate::{config::Config, hook, node::Role};

/// How long a command may take beyond the time it was given for sessions to finish.
const WITHIN: Duration = Duration::from_mins(1);

/// How often it is looked whether an earlier command has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Runs the commands. Both must be fit to be run again when the gate is already as it shall be.
///
/// One at a time, in the order in which they were asked for. A command may also outlive the daemon
/// that began it, and must not open what the next daemon has closed: so each has a lock as its
/// standard input, which ends when its last process has.
#[derive(Clone, Debug)]
pub struct Gate {
    node: String,
    lock: PathBuf,
    /// Whose turn it is; first come, first served.
    turn: Arc<Mutex<()>>,
    /// Whether the last command that came to its end opened it.
    open: Arc<AtomicBool>,
    commands: crate::config::Gate,
}

/// Why the gate did not move.
#[derive(Debug, thiserror::Error)]
#[error("{what} the gate with `{command}`: {why}")]
pub struct GateError {
    what: &'static str,
    command: String,
    why: String,
}

/// What a command is told, in `MAILTWIN_ROLE`, `MAILTWIN_EPOCH` and `MAILTWIN_WAIT`.
#[derive(Clone, Copy, Debug)]
pub struct Occasion {
    /// The node's role from now on.
    pub role: Role,
    /// In which epoch.
    pub epoch: Epoch,
    /// How long clients' sessions may take to finish before they are ended.
    pub wait: Duration,
}

impl Gate {
    /// The one that `config` describes.
    pub fn new(config: &Config) -> Self {
        let lock = config.node.state_dir.join("gate.lock");
        let (node, commands) = (config.node.name.clone(), config.gate.clone());
        Self { node, lock, turn: Arc::default(), open: Arc::default(), commands }
    }

    /// Whether it was opened, and nobody has begun to close it since. Without commands it is open
    /// once it was to be opened.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Whether it can be closed and opened.
    pub fn is_there(&self) -> bool {
        self.commands.close.is_some() && self.commands.open.is_some()
    }

    /// Closes it. Without a command that is somebody else's task.
    pub async fn close(&self, occasion: Occasion) -> Result<(), GateError> {
        let _turn = self.turn.lock().await;
        self.open.store(false, Ordering::Release);
        self.run("close", self.commands.close.as_deref(), occasion).await
    }

    /// Opens it. Without a command that is somebody else's task.
    pub async fn open(&self, occasion: Occasion) -> Result<(), GateError> {
        self.open_unless(occasion, || false).await.map(|_opened| ())
    }

    /// Opens it, unless somebody has come, when it is its turn, who wants it closed. Whether it did.
    pub async fn open_unless(
        &self,
        occasion: Occasion,
        unwanted: impl Fn() -> bool,
    ) -> Result<bool, GateError> {
        let _turn = self.turn.lock().await;
        if unwanted() {
            return Ok(false);
        }
        self.run("open", self.commands.open.as_deref(), occasion).await?;
        self.open.store(true, Ordering::Release);
        Ok(true)
    }

    /// Waits until no earlier command runs. The file is empty: whoever reads it finds its end.
    async fn take_lock(&self, until: Instant) -> Result<File, String> {
        let path = self.lock.display();
        let told = |error: io::Error| format!("lock {path}: {error}");
        let mut file = OpenOptions::new();
        file.read(true).write(true).create(true).truncate(false).mode(replace::PRIVATE);
        let file = file.open(&self.lock).map_err(told)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK) if Instant::now() < until => sleep(LOOK_EVERY).await,
                Err(Errno::WOULDBLOCK) => {
                    return Err(format!("an earlier gate command still runs: see `fuser {path}`"));
                }
                Err(error) => return Err(told(error.into())),
            }
        }
    }

    async fn run(
        &self,
        what: &'static str,
        command: Option<&str>,
        Occasion { role, epoch, wait }: Occasion,
    ) -> Result<(), GateError> {
        let Some(command) = command else { return Ok(()) };
        let failed = |why: String| GateError { what, command: command.to_owned(), why };
        let lock = self.take_lock(Instant::now() + WITHIN + wait).await.map_err(failed)?;
        let told = [
            ("MAILTWIN_GATE", what.to_owned()),
            ("MAILTWIN_NODE", self.node.clone()),
            ("MAILTWIN_ROLE", role.to_string()),
            ("MAILTWIN_EPOCH", epoch.to_string()),
            ("MAILTWIN_WAIT", wait.as_secs().to_string()),
        ];
        hook::run(command, lock.into(), &told, WITHIN + wait).await.map_err(failed)?;
        tracing::info!(what, %role, %epoch, "gate moved");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::{process::Command, time::timeout};

    use super::*;

    fn gate(dir: &tempfile::TempDir, close: &str) -> Gate {
        let commands = crate::config::Gate { close: Some(close.into()), open: None };
        let lock = dir.path().join("gate.lock");
        Gate { node: "mx1".into(), lock, turn: Arc::default(), open: Arc::default(), commands }
    }

    fn occasion() -> Occasion {
        Occasion { role: Role::Replica, epoch: Epoch(7), wait: Duration::from_secs(3) }
    }

    #[tokio::test]
    async fn a_command_knows_the_occasion_and_its_complaint_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let told = r#"[ "$MAILTWIN_GATE $MAILTWIN_NODE $MAILTWIN_ROLE $MAILTWIN_EPOCH $MAILTWIN_WAIT" = "close mx1 replica 7 3" ]"#;
        gate(&dir, told).close(occasion()).await.unwrap();
        gate(&dir, "false").open(occasion()).await.unwrap();
        let moves = gate(&dir, "false");
        moves.open(occasion()).await.unwrap();
        assert!(moves.is_open());
        moves.close(occasion()).await.unwrap_err();
        assert!(!moves.is_open(), "it may be half closed");
        let complains = gate(&dir, "echo no doveadm here >&2; exit 3");
        let text = complains.close(occasion()).await.unwrap_err().to_string();
        assert!(text.contains("no doveadm here") && text.contains("exit status: 3"), "{text}");
        assert!(!gate(&dir, "true").is_there(), "it could not be opened again");
    }

    #[tokio::test]
    async fn it_is_not_opened_when_somebody_has_come_who_closes_it() {
        let dir = tempfile::tempdir().unwrap();
        let gate = gate(&dir, "true");
        assert!(gate.open_unless(occasion(), || false).await.unwrap());
        // Whether it is wanted is asked when it is its turn, not before.
        let asked = std::cell::Cell::new(false);
        let held = gate.turn.lock().await;
        let unwanted = || {
            asked.set(true);
            true
        };
        let opening = gate.open_unless(occasion(), unwanted);
        tokio::pin!(opening);
        assert!(timeout(LOOK_EVERY, &mut opening).await.is_err() && !asked.get());
        drop(held);
        assert!(!opening.await.unwrap() && asked.get());
    }

    #[tokio::test]
    async fn the_next_waits_for_what_a_dead_daemon_has_begun() {
        let dir = tempfile::tempdir().unwrap();
        let (go, log) = (dir.path().join("go"), dir.path().join("log"));
        // Like a daemon that was killed: its command goes on, with the lock.
        let slow = format!(
            "echo begun >> {log}; until [ -e {go} ]; do sleep 0.01; done; echo ended >> {log}",
            log = log.display(),
            go = go.display()
        );
        let turn = gate(&dir, "").take_lock(Instant::now() + WITHIN).await.unwrap();
        let mut orphan = Command::new("/bin/sh").args(["-c", &slow]).stdin(turn).spawn().unwrap();
        let next = gate(&dir, &format!("echo next >> {}", log.display()));
        let late = next.take_lock(Instant::now()).await.unwrap_err();
        assert!(late.contains("an earlier gate command still runs"), "{late}");
        let (moved, ()) = tokio::join!(next.close(occasion()), async {
            File::create(&go).unwrap();
        });
        moved.unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "begun\nended\nnext\n");
        orphan.wait().await.unwrap();
    }
}
