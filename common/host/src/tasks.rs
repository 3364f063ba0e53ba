//! Tasks by name, and a shutdown that waits for them and says who hangs.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Spawns tasks that the process waits for when it ends. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    abandoned: CancellationToken,
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

/// Tasks that did not end in time, by name.
#[derive(Debug, thiserror::Error)]
#[error("still running after the grace period: {}", .names.join(", "))]
pub struct Hanging {
    /// Each name once.
    pub names: Vec<&'static str>,
}

impl Tasks {
    /// Tasks that end when `stop` is cancelled.
    pub fn new(stop: CancellationToken) -> Self {
        let abandoned = CancellationToken::new();
        Self { tracker: TaskTracker::new(), stop, abandoned, running: Arc::default() }
    }

    /// The token that ends everything.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Starts a task. It must end soon after the token it was given is cancelled.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let running = Arc::clone(&self.running);
        *running.lock().expect("no panic while it is held").entry(name).or_default() += 1;
        let gone = Gone { name, running };
        let abandoned = self.abandoned.clone();
        tokio::spawn(self.tracker.track_future(async move {
            let _gone = gone;
            tokio::select! {
                biased;
                () = abandoned.cancelled() => {}
                () = task => {}
            }
        }));
    }

    /// Stops everything and waits for at most `grace`.
    pub async fn shutdown(&self, grace: Duration) -> Result<(), Hanging> {
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(grace, self.tracker.wait()).await.is_ok() {
            return Ok(());
        }
        Err(Hanging { names: self.running().into_keys().collect() })
    }

    /// Drops every task where it waits, as if the process had been killed; returns when all are gone.
    pub async fn abandon(&self) {
        self.abandoned.cancel();
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// What runs, by name, and how many of each.
    pub fn running(&self) -> BTreeMap<&'static str, usize> {
        self.running.lock().expect("no panic while it is held").clone()
    }
}

/// Counts a task out, also when it panics.
struct Gone {
    name: &'static str,
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Drop for Gone {
    fn drop(&mut self) {
        let mut running = self.running.lock().expect("no panic while it is held");
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shutdown_waits_for_those_who_stop_also_for_those_who_panic() {
        let tasks = Tasks::new(CancellationToken::new());
        let stop = tasks.stop().clone();
        tasks.spawn("good", async move { stop.cancelled().await });
        tasks.spawn("bad", async { panic!("on purpose") });
        tasks.shutdown(Duration::from_mins(1)).await.unwrap();
        assert!(tasks.running.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn abandoned_tasks_do_not_finish_what_they_do() {
        let tasks = Tasks::new(CancellationToken::new());
        let (stop, done) = (tasks.stop().clone(), Arc::new(Mutex::new(false)));
        let cleaned_up = Arc::clone(&done);
        tasks.spawn("tidy", async move {
            stop.cancelled().await;
            *cleaned_up.lock().unwrap() = true;
        });
        tasks.spawn("stuck", std::future::pending());
        tokio::task::yield_now().await;
        tasks.abandon().await;
        assert!(tasks.running().is_empty() && !*done.lock().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_says_who_hangs() {
        let tasks = Tasks::new(CancellationToken::new());
        for name in ["stuck", "stuck", "also stuck"] {
            tasks.spawn(name, std::future::pending());
        }
        tasks.spawn("good", async {});
        let hanging = tasks.shutdown(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(hanging.names, ["also stuck", "stuck"]);
        assert!(hanging.to_string().contains("also stuck, stuck"));
    }
}
