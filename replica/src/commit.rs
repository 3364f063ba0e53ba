//! Group commit: one thread applies what all streams of all sessions have ready, so that many
//! mailboxes share one wait for the disk. A store that has no use for groups gets several threads,
//! each of which applies one batch after the other.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use mailtwin_logic::{chain::Chain, limits::IN_FLIGHT, mailbox::Head, plan::Mode};
use mailtwin_store::{Batch, MailStore, StoreError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Batches in one group. More would hold mailbox locks for too long.
const GROUP_MAX: usize = 32;
/// Builds worth waiting for: half of what one agent has in flight, so that the other half can come
/// in while these go to the disk.
const GATHERED: usize = IN_FLIGHT / 2;
/// How long one more build is waited for while any is coming in.
const LINGER: Duration = Duration::from_millis(20);
/// Batches waiting for the thread; streams wait beyond that.
const QUEUE_MAX: usize = 256;

/// Batches whose octets come in while all threads are busy.
const AHEAD: usize = 2;

struct Job {
    batch: Batch,
    live: CancellationToken,
    done: oneshot::Sender<Result<Head, StoreError>>,
}

/// Handle to the threads; they end when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Committer {
    lane: Lane,
    /// Builds whose octets are coming in.
    coming: Arc<AtomicUsize>,
    /// Of a store with several threads: for those whose octets come in or wait for a thread.
    turns: Option<Arc<Semaphore>>,
}

#[derive(Clone, Debug)]
enum Lane {
    Thread(mpsc::SyncSender<Job>),
    Inline(Worker),
}

/// A build on its way to the thread.
#[derive(Debug)]
pub(crate) struct Coming(Arc<AtomicUsize>);

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({})", self.batch.to.name)
    }
}

impl Committer {
    /// Starts the threads. `fatal` is cancelled when the disk failed to sync: nothing it said can
    /// be relied on any more, so the process must end.
    pub fn start(
        store: Arc<dyn MailStore>,
        metrics: Metrics,
        fatal: CancellationToken,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::sync_channel(QUEUE_MAX);
        let (queue, coming) = (Arc::new(Mutex::new(queue)), Arc::new(AtomicUsize::new(0)));
        let lanes = store.lanes();
        let worker = Worker { store, metrics, fatal };
        for _ in 0..lanes {
            let (queue, coming, worker) = (Arc::clone(&queue), Arc::clone(&coming), worker.clone());
            let next = move || {
                let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                if lanes == 1 { gather(&queue, &coming) } else { Some(vec![queue.recv().ok()?]) }
            };
            thread::Builder::new().name("commit".into()).spawn(move || {
                while let Some(group) = next() {
                    worker.apply(group);
                }
            })?;
        }
        let turns = (lanes > 1).then(|| Arc::new(Semaphore::new(lanes + AHEAD)));
        Ok(Self { lane: Lane::Thread(jobs), coming, turns })
    }

    /// No thread: each batch is applied alone, on the task that brings it. For a simulation.
    pub fn inline(store: Arc<dyn MailStore>, metrics: Metrics, fatal: CancellationToken) -> Self {
        let lane = Lane::Inline(Worker { store, metrics, fatal });
        Self { lane, coming: Arc::default(), turns: None }
    }

    /// Says that a build is coming in, until what is returned is dropped: others may wait for it.
    pub(crate) fn expect(&self) -> Coming {
        self.coming.fetch_add(1, Ordering::Relaxed);
        Coming(Arc::clone(&self.coming))
    }

    /// Waits until octets may come in for one more batch, which is to be applied before what is
    /// returned is dropped. Where each batch waits for the mail server, more than it can take would
    /// only fill memory.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(self.turns.as_ref()?).acquire_owned().await.ok()
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
        let jobs = match &self.lane {
            Lane::Thread(jobs) => jobs,
            Lane::Inline(worker) => {
                tokio::task::yield_now().await;
                worker.apply(vec![job]);
                return answer.await.ok();
            }
        };
        loop {
            match jobs.try_send(job) {
                Ok(()) => break,
                Err(mpsc::TrySendError::Full(back)) => {
                    job = back;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(mpsc::TrySendError::Disconnected(_)) => return None,
            }
        }
        answer.await.ok()
    }
}

/// Waits for a job, then takes what else is ready. A first copy is many builds, each of which would
/// otherwise wait for the disk nearly alone: they wait a little for each other. Nothing else waits.
fn gather(queue: &mpsc::Receiver<Job>, coming: &AtomicUsize) -> Option<Vec<Job>> {
    let mut group = vec![queue.recv().ok()?];
    loop {
        while group.len() < GROUP_MAX
            && let Ok(job) = queue.try_recv()
        {
            group.push(job);
        }
        let lingers = group.len() < GATHERED
            && coming.load(Ordering::Relaxed) > 0
            && group.iter().all(|job| job.batch.to.mode == Mode::Build);
        match lingers.then(|| queue.recv_timeout(LINGER)) {
            Some(Ok(job)) => group.push(job),
            Some(Err(_)) | None => return Some(group),
        }
    }
}

/// What applies.
#[derive(Clone)]
struct Worker {
    store: Arc<dyn MailStore>,
    metrics: Metrics,
    fatal: CancellationToken,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Worker")
    }
}

impl Worker {
    fn apply(&self, group: Vec<Job>) {
        let live = group.into_iter().filter(|job| !job.live.is_cancelled());
        let (batches, waiting): (Vec<_>, Vec<_>) = live.map(|job| (job.batch, job.done)).unzip();
        let timer = self.metrics.apply_seconds.start_timer();
        let results = self.store.apply(batches);
        timer.observe_duration();
        for (result, done) in results.into_iter().zip(waiting) {
            if let Err(error) = &result
                && error.is_fatal()
            {
                tracing::error!(code = "sync-failed", error = %Chain(error), "the disk failed to sync: ending, so that nothing unsure is acked");
                self.fatal.cancel();
            }
            // A session that is gone does not wait for its answer.
            let _ = done.send(result);
        }
    }
}
