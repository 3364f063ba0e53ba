//! One test's surroundings: a folder, ports, waiting with a deadline, and the logs of everything that
//! ran, shown when the test fails.

use std::{
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use mailtwin_disk::clock::{Clock, SystemClock};
use tokio::net::TcpSocket;

use crate::files;

/// Longest wait for anything. Generous, because it only ever passes on a failure.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// Numeric user and group of all mail. It needs no entry in the machine's user list.
pub const MAIL_USER: u32 = 5000;

/// Lines of each log that a failure shows.
const LOG_LINES_SHOWN: usize = 60;

/// Ports are taken from below the range that the kernel gives to outgoing connections.
const PORT_FIRST: u16 = 15_000;
const PORT_COUNT: u16 = 15_000;
static PORTS_ASKED_FOR: AtomicU16 = AtomicU16::new(0);

/// A test's own folder and clock.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    clock: Arc<dyn Clock>,
    logs: Mutex<Vec<PathBuf>>,
    /// Ports asked for so far, by all tests of this program.
    ports: &'static AtomicU16,
}

impl Lab {
    /// Runs a test in a folder of its own. If it fails or panics, the error ends with the last
    /// lines of every log; with `MAILTWIN_KEEP=1` the folder stays.
    pub fn run(body: impl FnOnce(&Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        Self::run_in(&std::env::temp_dir(), body)
    }

    /// [`Lab::run`] with the folder below `parent`, for those who care what disk it is on.
    pub fn run_in(
        parent: &Path,
        body: impl FnOnce(&Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if !rustix::process::geteuid().is_root() {
            bail!("run the end-to-end tests as root: Dovecot must become the mail user");
        }
        let dir = tempfile::Builder::new()
            .prefix("mailtwin-")
            .tempdir_in(parent)
            .context("make the test's folder")?;
        files::chmod(dir.path(), 0o755)?;
        let (path, _guard) = match std::env::var_os("MAILTWIN_KEEP") {
            Some(_) => (dir.keep(), None),
            None => (dir.path().to_path_buf(), Some(dir)),
        };
        let lab = Self {
            dir: path,
            clock: SystemClock::shared(),
            logs: Mutex::default(),
            ports: &PORTS_ASKED_FOR,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| body(&lab))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(anyhow!("panic: {}", text.unwrap_or("without a message")))
        });
        outcome.map_err(|error| {
            let causes = error.chain().map(ToString::to_string).collect::<Vec<_>>();
            anyhow!("{}\n{}", causes.join(": "), lab.log_tails())
        })
    }

    /// The folder; anybody may enter it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a folder below, that belongs to the mail user.
    pub fn mail_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        files::give_to_mail_user(&dir)?;
        Ok(dir)
    }

    /// Time, for those who measure or pause.
    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// The same clock, to be kept.
    pub fn shared_clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    /// A free loopback port.
    pub fn port(&self) -> anyhow::Result<u16> {
        // Test programs that run at the same time start at different places.
        let start = u16::try_from(std::process::id().wrapping_mul(97) % u32::from(PORT_COUNT))?;
        for _ in 0..PORT_COUNT {
            let step = self.ports.fetch_add(1, Ordering::Relaxed);
            let port = PORT_FIRST + start.wrapping_add(step) % PORT_COUNT;
            // Bound but never listening: a child that another test starts just now holds this socket,
            // too, until it runs its program, and must not keep the port from who asked for it.
            let probe = TcpSocket::new_v4().context("make a socket")?;
            probe.set_reuseaddr(true).context("set a socket's options")?;
            if probe.bind((Ipv4Addr::LOCALHOST, port).into()).is_ok() {
                return Ok(port);
            }
        }
        bail!("no free port between {PORT_FIRST} and {}", PORT_FIRST + PORT_COUNT)
    }

    /// Shows the end of `log` if the test fails.
    pub fn watch_log(&self, log: &Path) {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        if !logs.iter().any(|known| known == log) {
            logs.push(log.to_path_buf());
        }
    }

    /// Looks until there is something, or [`PATIENCE`] is over; `look` says why not yet.
    pub fn wait<T>(
        &self,
        what: &str,
        look: impl FnMut() -> anyhow::Result<Result<T, String>>,
    ) -> anyhow::Result<T> {
        wait(&*self.clock, what, look)
    }

    fn log_tails(&self) -> String {
        let logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut shown = String::new();
        for log in &*logs {
            let text = fs::read(log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            // What Dovecot tells of every login would hide the rest.
            let lines: Vec<&str> = text.lines().filter(|line| !line.contains(": Info: ")).collect();
            let first = lines.len().saturating_sub(LOG_LINES_SHOWN);
            let tail = lines.get(first..).unwrap_or_default().join("\n");
            let _ = writeln!(shown, "---- {} ({} lines)", log.display(), lines.len());
            let is_grave = |line: &&&str| line.contains(" WARN ") || line.contains(" ERROR ");
            let grave = lines.iter().take(first).rev().filter(is_grave).take(LOG_LINES_SHOWN);
            for line in grave.collect::<Vec<_>>().into_iter().rev() {
                let _ = writeln!(shown, "{line}\n...");
            }
            let _ = writeln!(shown, "{tail}");
        }
        shown
    }
}

/// [`Lab::wait`] for those who have only a clock.
pub fn wait<T>(
    clock: &dyn Clock,
    what: &str,
    mut look: impl FnMut() -> anyhow::Result<Result<T, String>>,
) -> anyhow::Result<T> {
    let deadline = clock.monotonic() + PATIENCE;
    let mut pause = Duration::from_millis(10);
    loop {
        match look().with_context(|| format!("wait until {what}"))? {
            Ok(found) => return Ok(found),
            Err(why) if clock.monotonic() >= deadline => {
                bail!("gave up after {PATIENCE:?} waiting until {what}: {why}")
            }
            Err(_) => clock.pause(pause),
        }
        pause = (pause * 3 / 2).min(Duration::from_millis(500));
    }
}
