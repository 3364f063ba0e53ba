//! What systemd is told, if it runs us: ready, stopping, still alive. Without it, nothing.

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use crate::tasks::Tasks;

/// Whether anybody is told.
pub fn listens() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
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

/// Says regularly that the runtime is alive, if the unit has a `WatchdogSec=`.
pub fn spawn_alive(tasks: &Tasks, stop: CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    tasks.spawn("watchdog", async move {
        let mut ticks = tokio::time::interval(limit / 3);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => notify(&[NotifyState::Watchdog]),
            }
        }
    });
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot tell systemd");
    }
}
