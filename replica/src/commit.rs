//! Group commit: one thread applies what all streams of all sessions have ready, so that many
//! mailboxes share one wait for the disk.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use mailtwin_logic::{chain::Chain, mailbox::Head};
use mailtwin_store::{Batch, MailStore, StoreError};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Batches in one group. More would hold mailbox locks for too long.
const GROUP_MAX: usize = 64;
/// Batches waiting for the thread; streams wait beyond that.
const QUEUE_MAX: usize = 256;

struct Job {
    batch: Batch,
    live: CancellationToken,
    done: oneshot::Sender<Result<Head, StoreError>>,
}

/// Handle to the thread; it ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Committer {
    jobs: mpsc::SyncSender<Job>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({})", self.batch.to.name)
    }
}

impl Committer {
    /// Starts the thread. `fatal` is cancelled when the disk failed to sync: nothing it said can
    /// be relied on any more, so the process must end.
    pub fn start(
        store: Arc<dyn MailStore>,
        metrics: Metrics,
        fatal: CancellationToken,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::sync_channel(QUEUE_MAX);
        thread::Builder::new()
            .name("commit".into())
            .spawn(move || run(&queue, &*store, &metrics, &fatal))?;
        Ok(Self { jobs })
    }

    /// Applies one batch together with whatever else is ready; `None` if the thread has ended, or if
    /// the session that ends with `live` has before its turn came: whoever speaks next must not
    /// find changes that come later than its own.
    pub async fn apply(
        &self,
        batch: Batch,
        live: &CancellationToken,
    ) -> Option<Result<Head, StoreError>> {
        let (done, answer) = oneshot::channel();
        let mut job = Job { batch, live: live.clone(), done };
        loop {
            match self.jobs.try_send(job) {
                Ok(()) => break,
                Err(mpsc::TrySendError::Full(back)) => {
                    job = back;
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                Err(mpsc::TrySendError::Disconnected(_)) => return None,
            }
        }
        answer.await.ok()
    }
}

fn run(
    queue: &mpsc::Receiver<Job>,
    store: &dyn MailStore,
    metrics: &Metrics,
    fatal: &CancellationToken,
) {
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        while group.len() < GROUP_MAX
            && let Ok(job) = queue.try_recv()
        {
            group.push(job);
        }
        let live = group.into_iter().filter(|job| !job.live.is_cancelled());
        let (batches, waiting): (Vec<_>, Vec<_>) = live.map(|job| (job.batch, job.done)).unzip();
        let timer = metrics.apply_seconds.start_timer();
        let results = store.apply(batches);
        timer.observe_duration();
        for (result, done) in results.into_iter().zip(waiting) {
            if let Err(error) = &result
                && error.is_fatal()
            {
                tracing::error!(error = %Chain(error), "the disk failed to sync: ending, so that nothing unsure is acked");
                fatal.cancel();
            }
            // A session that is gone does not wait for its answer.
            let _ = done.send(result);
        }
    }
}
