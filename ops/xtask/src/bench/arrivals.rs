//! When messages arrive in mailboxes: inotify on both trees of a pair, one thread, times taken when an
//! event is read.
//!
//! On the master a message has arrived when its name shows. On the replica that is not enough, since
//! a name may show before it is durable: it counts from when the lock under which it was placed is
//! released. Mailtwin holds that lock until file, name and list are synced.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    path::Path,
    sync::{
        Arc, Mutex,
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

/// Which tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Master,
    Replica,
}

/// First appearances by base name, the part of a file name that flags do not change.
type Seen = HashMap<Vec<u8>, Duration>;

/// What a watched directory is.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// `new` or `cur` of a folder of the master.
    Master,
    /// `new` or `cur` of the replica's folder of this number.
    Replica(usize),
    /// The replica's folder of this number itself, where the lock is.
    Lock(usize),
}

/// Dovecot's lock of a folder, and ours.
const LOCK: &[u8] = b"dovecot-uidlist.lock";

#[derive(Debug, Default)]
struct Both {
    master: Seen,
    replica: Seen,
    /// By folder: names that show on the replica, under a lock that is still held.
    placed: HashMap<usize, Vec<Vec<u8>>>,
    trouble: Option<String>,
}

/// A running watch.
#[derive(Debug)]
pub(super) struct Arrivals {
    seen: Arc<Mutex<Both>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Arrivals {
    /// Watches `new` and `cur` of each Maildir folder. They must exist.
    pub(super) fn watch<'a>(
        clock: &Arc<dyn Clock>,
        folders: impl IntoIterator<Item = (Side, &'a Path)>,
    ) -> Result<Self> {
        let queue =
            inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).context("start inotify")?;
        let mut places = HashMap::new();
        let mut add = |path: &Path, flags, place| {
            let watch = inotify::add_watch(&queue, path, flags)
                .with_context(|| format!("watch {}", path.display()))?;
            places.insert(watch, place);
            Ok::<_, anyhow::Error>(())
        };
        for (number, (side, folder)) in folders.into_iter().enumerate() {
            let place = match side {
                Side::Master => Place::Master,
                Side::Replica => Place::Replica(number),
            };
            for name in ["new", "cur"] {
                add(&folder.join(name), WatchFlags::CREATE | WatchFlags::MOVED_TO, place)?;
            }
            if side == Side::Replica {
                add(folder, WatchFlags::DELETE, Place::Lock(number))?;
            }
        }
        let (seen, stop) = (Arc::<Mutex<Both>>::default(), Arc::<AtomicBool>::default());
        let reader = Reader { clock: Arc::clone(clock), queue, places, seen: Arc::clone(&seen) };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("arrivals".into())
            .spawn(move || reader.run(&stopped))
            .context("start a thread")?;
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// How many have been seen on the master, and how many of them on the replica, too.
    pub(super) fn counts(&self) -> Result<(usize, usize)> {
        let seen = self.seen.lock().expect("nobody panics while holding it");
        if let Some(trouble) = &seen.trouble {
            bail!("watch for arrivals: {trouble}");
        }
        let both = seen.master.keys().filter(|base| seen.replica.contains_key(*base)).count();
        Ok((seen.master.len(), both))
    }

    /// For each message on both sides, when it came to the replica, and how long after the master.
    pub(super) fn times(&self) -> Vec<(Duration, Duration)> {
        let seen = self.seen.lock().expect("nobody panics while holding it");
        let pairs = seen.master.iter().filter_map(|(base, master)| {
            let replica = seen.replica.get(base)?;
            Some((*replica, replica.saturating_sub(*master)))
        });
        pairs.collect()
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed already.
            let _ = thread.join();
        }
    }
}

impl Both {
    fn note(&mut self, place: Place, name: &[u8], now: Duration) {
        let base = || name.iter().copied().take_while(|octet| *octet != b':').collect();
        match place {
            Place::Master => {
                self.master.entry(base()).or_insert(now);
            }
            Place::Replica(folder) => self.placed.entry(folder).or_default().push(base()),
            Place::Lock(folder) if name == LOCK => {
                for base in self.placed.remove(&folder).unwrap_or_default() {
                    self.replica.entry(base).or_insert(now);
                }
            }
            Place::Lock(_) => {}
        }
    }
}

struct Reader {
    clock: Arc<dyn Clock>,
    queue: OwnedFd,
    places: HashMap<i32, Place>,
    seen: Arc<Mutex<Both>>,
}

impl Reader {
    fn run(self, stop: &AtomicBool) {
        let mut buffer = vec![MaybeUninit::uninit(); 64 << 10];
        let patience = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        while !stop.load(Ordering::Relaxed) {
            let mut ready = [PollFd::new(&self.queue, PollFlags::IN)];
            let polled = poll(&mut ready, Some(&patience));
            if let Err(error) = polled.map_err(Into::into).and_then(|_| self.drain(&mut buffer)) {
                self.lock().trouble = Some(error.to_string());
                return;
            }
        }
    }

    fn drain(&self, buffer: &mut [MaybeUninit<u8>]) -> io::Result<()> {
        let mut events = inotify::Reader::new(&self.queue, buffer);
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
            let (Some(place), Some(name)) = (self.places.get(&event.wd()), event.file_name())
            else {
                continue;
            };
            self.lock().note(*place, name.to_bytes(), now);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Both> {
        self.seen.lock().expect("nobody panics while holding it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mailtwin_disk::clock::SystemClock;

    #[test]
    fn a_message_is_matched_by_its_base_name() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for folder in [&a, &b] {
            std::fs::create_dir_all(folder.join("new")).unwrap();
            std::fs::create_dir_all(folder.join("cur")).unwrap();
        }
        let clock = SystemClock::shared();
        let sides = [(Side::Master, a.as_path()), (Side::Replica, b.as_path())];
        let arrivals = Arrivals::watch(&clock, sides).unwrap();
        std::fs::File::create(a.join("new/1.host")).unwrap();
        std::fs::File::create(b.join("cur/1.host:2,S")).unwrap();
        std::fs::File::create(b.join("dovecot-uidlist.lock")).unwrap();
        std::fs::File::create(b.join("cur/2.host:2,")).unwrap();
        std::fs::remove_file(b.join("dovecot-uidlist.lock")).unwrap();
        // Not yet durable.
        std::fs::File::create(a.join("new/3.host")).unwrap();
        std::fs::File::create(b.join("cur/3.host:2,")).unwrap();
        let deadline = clock.monotonic() + Duration::from_secs(30);
        while arrivals.counts().unwrap() != (2, 1) {
            assert!(clock.monotonic() < deadline);
            clock.pause(Duration::from_millis(5));
        }
        assert_eq!(arrivals.times().len(), 1);
    }
}
