//! What systemd is told, if it runs us: ready, stopping, still alive. What it hands over: a port that it
//! holds for us. Without it, nothing.

use std::{
    io,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use crate::tasks::Tasks;

/// Whether anybody is told.
pub fn listens() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The port that a socket unit holds for this daemon, if there is one. To be called once, before there
/// are threads: it takes what says so out of the environment, so that no child believes it is meant.
///
/// # Errors
/// More than one socket, or one that is no TCP listener.
pub fn take_listener() -> io::Result<Option<TcpListener>> {
    let mut handed = ListenFd::from_env();
    if handed.len() > 1 {
        let many = format!("{} sockets instead of one: see its ListenStream=", handed.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, many));
    }
    handed.take_tcp_listener(0)
}

/// The daemon serves.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The daemon ends.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// Whether a daemon goes on, as the loop tells that serves its role.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// What may take its time begins or ends: only the runtime is watched.
    pub fn begin(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// The daemon has just been able to say how it is.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether it has beaten since `last` was seen, or need not; remembers what it sees.
    fn goes_on(&self, last: &mut u64) -> bool {
        let now = self.0.load(Ordering::Relaxed);
        now == 0 || now != std::mem::replace(last, now)
    }
}

/// Says regularly that the daemon goes on, if the unit has a `WatchdogSec=`: that its runtime gives
/// tasks their turn, and that it can still say how it is. Told nothing for that long, systemd starts it
/// anew.
pub fn spawn_alive(tasks: &Tasks, stop: CancellationToken, pulse: Pulse) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    tasks.spawn("watchdog", async move {
        let (mut ticks, mut last) = (tokio::time::interval(limit / 3), 0);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if pulse.goes_on(&mut last) {
                notify(&[NotifyState::Watchdog]);
            } else {
                tracing::error!(
                    code = "hanging",
                    ?limit,
                    "hanging: systemd is not told that this daemon goes on"
                );
            }
        }
    });
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot tell systemd");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_beat_hangs_unless_it_has_not_begun() {
        let (pulse, mut last) = (Pulse::default(), 0);
        assert!(pulse.goes_on(&mut last) && pulse.goes_on(&mut last));
        pulse.beat();
        assert!(pulse.goes_on(&mut last));
        assert!(!pulse.goes_on(&mut last));
        pulse.beat();
        assert!(pulse.goes_on(&mut last));
        pulse.begin();
        assert!(pulse.goes_on(&mut last) && pulse.goes_on(&mut last));
    }
}
