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
    /// `None` makes calls where they are asked for.
    threads: Option<Threads>,
}

#[derive(Clone, Debug)]
struct Threads {
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
        let room = Arc::new(Semaphore::new(threads * QUEUE_PER_THREAD));
        Ok(Self { threads: Some(Threads { jobs, room }) })
    }

    /// No threads: each call is made on the task that asks for it, when it is its turn. For a
    /// simulation, in which nothing but its seed may decide what happens first.
    pub fn inline() -> Self {
        Self { threads: None }
    }

    /// Makes a blocking call on one of the threads. If the caller goes away, the call still runs to
    /// its end.
    pub async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkerError> {
        let Some(Threads { jobs, room }) = &self.threads else {
            tokio::task::yield_now().await;
            return attempt(call);
        };
        let room = Arc::clone(room);
        let place = room.acquire_owned().await.map_err(|_| WorkerError::Ended)?;
        let (tell, answer) = oneshot::channel();
        let job: Job = Box::new(move || {
            let result = attempt(call);
            drop(place);
            // A caller that has gone away does not want its answer.
            let _ = tell.send(result);
        });
        jobs.send(job).map_err(|_| WorkerError::Ended)?;
        answer.await.unwrap_or(Err(WorkerError::Ended))
    }
}

fn attempt<T>(call: impl FnOnce() -> T) -> Result<T, WorkerError> {
    let result = catch_unwind(AssertUnwindSafe(call));
    result.map_err(|panic| WorkerError::Panicked(text_of(&*panic)))
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_of_its_call_only() {
        for workers in [Workers::start("test", 1).unwrap(), Workers::inline()] {
            let panicked = workers.run(|| panic!("no such mailbox")).await;
            assert_eq!(panicked, Err::<(), _>(WorkerError::Panicked("no such mailbox".into())));
            assert_eq!(workers.run(|| 7).await, Ok(7));
        }
    }

    #[tokio::test]
    async fn more_calls_than_the_queue_holds_all_get_their_turn() {
        let workers = Workers::start("test", 2).unwrap();
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..10 * QUEUE_PER_THREAD {
            let workers = workers.clone();
            calls.spawn(async move { workers.run(move || n).await.unwrap() });
        }
        let mut answers = calls.join_all().await;
        answers.sort_unstable();
        assert_eq!(answers, (0..10 * QUEUE_PER_THREAD).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_call_goes_on_when_its_caller_has_gone() {
        let workers = Workers::start("test", 1).unwrap();
        let (begin, told_to_begin) = mpsc::channel();
        let (tell, told) = oneshot::channel();
        let slow = workers.run(move || {
            told_to_begin.recv().unwrap();
            tell.send(7).unwrap();
        });
        // One poll hands it to the thread; then its caller goes away.
        assert!(tokio::time::timeout(std::time::Duration::ZERO, slow).await.is_err());
        begin.send(()).unwrap();
        assert_eq!(told.await.unwrap(), 7);
    }
}
