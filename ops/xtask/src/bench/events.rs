//! File events with the time they were read at: inotify, and one thread that reads it.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use mailtwin_disk::clock::Clock;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};

/// What is made of events.
pub(super) trait Notes: Send + 'static {
    /// What tells the directories apart.
    type Place: Copy + Send;

    /// Something happened to `name` in a directory, and was read now.
    fn note(&mut self, place: Self::Place, name: &[u8], now: Duration);
}

/// Directories that are to be watched.
pub(super) struct Places<P> {
    queue: OwnedFd,
    by_watch: HashMap<i32, P>,
}

impl<P> Places<P> {
    pub(super) fn new() -> Result<Self> {
        let queue = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        Ok(Self { queue: queue.context("start inotify")?, by_watch: HashMap::new() })
    }

    /// Watches a directory, which must exist, for what `flags` say.
    pub(super) fn add(&mut self, path: &Path, flags: WatchFlags, place: P) -> Result<()> {
        let watch = inotify::add_watch(&self.queue, path, flags);
        let watch = watch.with_context(|| format!("watch {}", path.display()))?;
        self.by_watch.insert(watch, place);
        Ok(())
    }
}

/// A running watch; it ends when dropped.
#[derive(Debug)]
pub(super) struct Watch<N> {
    seen: Arc<Mutex<Seen<N>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Seen<N> {
    notes: N,
    trouble: Option<String>,
}

impl<N: Notes> Watch<N> {
    pub(super) fn start(
        clock: &Arc<dyn Clock>,
        places: Places<N::Place>,
        notes: N,
    ) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Seen { notes, trouble: None }));
        let stop = Arc::<AtomicBool>::default();
        let reader = Reader { clock: Arc::clone(clock), places, seen: Arc::clone(&seen) };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("arrivals".into())
            .spawn(move || reader.run(&stopped))
            .context("start a thread")?;
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// Looks at what was noted so far.
    pub(super) fn look<T>(&self, look: impl FnOnce(&N) -> T) -> Result<T> {
        let seen = lock(&self.seen);
        if let Some(trouble) = &seen.trouble {
            bail!("watch for arrivals: {trouble}");
        }
        Ok(look(&seen.notes))
    }
}

impl<N> Drop for Watch<N> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed already.
            let _ = thread.join();
        }
    }
}

fn lock<T>(seen: &Mutex<T>) -> MutexGuard<'_, T> {
    seen.lock().expect("nobody panics while holding it")
}

struct Reader<N: Notes> {
    clock: Arc<dyn Clock>,
    places: Places<N::Place>,
    seen: Arc<Mutex<Seen<N>>>,
}

impl<N: Notes> Reader<N> {
    fn run(self, stop: &AtomicBool) {
        let mut buffer = vec![MaybeUninit::uninit(); 64 << 10];
        let patience = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        while !stop.load(Ordering::Relaxed) {
            let mut ready = [PollFd::new(&self.places.queue, PollFlags::IN)];
            let polled = poll(&mut ready, Some(&patience));
            if let Err(error) = polled.map_err(Into::into).and_then(|_| self.drain(&mut buffer)) {
                lock(&self.seen).trouble = Some(error.to_string());
                return;
            }
        }
    }

    fn drain(&self, buffer: &mut [MaybeUninit<u8>]) -> io::Result<()> {
        let mut events = inotify::Reader::new(&self.places.queue, buffer);
        loop {
            let event = match events.next() {
                Ok(event) => event,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                return Err(io::Error::other("inotify lost events"));
            }
            let now = self.clock.monotonic();
            let place = self.places.by_watch.get(&event.wd());
            if let (Some(place), Some(name)) = (place, event.file_name()) {
                lock(&self.seen).notes.note(*place, name.to_bytes(), now);
            }
        }
    }
}
