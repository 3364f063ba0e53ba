//! Bounded threads for blocking calls (the stores): the border between async and blocking.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, mpsc},
    thread,
};

use tokio::sync::{Semaphore, oneshot};

type Job = Box<dyn FnOnce() + Send>;

/// Calls that wait for a thread, for each thread.
const QUEUE_PER_THREAD: usize = 16;

/// Handle to the threads; they end when the last one is dropped. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Workers {
    jobs: mpsc::Sender<Job>,
    /// Bounds the queue: whoever finds it full waits without blocking a runtime thread.
    room: Arc<Semaphore>,
}

/// Why a call gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkerError {
    /// It panicked: a bug, contained to this call.
    #[error("a worker panicked: {0}")]
    Panicked(String),
    /// The process is ending.
    #[error("the workers have ended")]
    Ended,
}

impl Workers {
    /// Starts `threads` threads.
    pub fn start(name: &str, threads: usize) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for n in 0..threads {
            let queue = Arc::clone(&queue);
            thread::Builder::new().name(format!("{name}-{n}")).spawn(move || {
                loop {
                    let job = queue.lock().expect("no panic while it is held").recv();
                    let Ok(job) = job else { return };
                    job();
                }
            })?;
        }
        Ok(Self { jobs, room: Arc::new(Semaphore::new(threads * QUEUE_PER_THREAD)) })
    }

    /// Makes a blocking call on one of the threads. If the caller goes away, the call still runs to
    /// its end.
    pub async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkerError> {
        let room = Arc::clone(&self.room);
        let place = room.acquire_owned().await.map_err(|_| WorkerError::Ended)?;
        let (tell, answer) = oneshot::channel();
        let job: Job = Box::new(move || {
            let result = catch_unwind(AssertUnwindSafe(call));
            drop(place);
            // A caller that has gone away does not want its answer.
            let _ = tell.send(result.map_err(|panic| WorkerError::Panicked(text_of(&*panic))));
        });
        self.jobs.send(job).map_err(|_| WorkerError::Ended)?;
        answer.await.unwrap_or(Err(WorkerError::Ended))
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
