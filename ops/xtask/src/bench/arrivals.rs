//! When messages arrive in mailboxes: inotify on both trees of a pair, times taken when an event is read.
//!
//! On the master a message has arrived when its name shows. On the replica that is not enough, since
//! a name may show before it is durable: it counts from when the lock under which it was placed is
//! released. Mailtwin holds that lock until file, name and list are synced.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use anyhow::Result;
use mailtwin_disk::clock::Clock;
use rustix::fs::inotify::WatchFlags;

use super::events::{Notes, Places, Watch};

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
}

/// A running watch.
#[derive(Debug)]
pub(super) struct Arrivals(Watch<Both>);

impl Arrivals {
    /// Watches `new` and `cur` of each Maildir folder. They must exist.
    pub(super) fn watch<'a>(
        clock: &Arc<dyn Clock>,
        folders: impl IntoIterator<Item = (Side, &'a Path)>,
    ) -> Result<Self> {
        let mut places = Places::new()?;
        for (number, (side, folder)) in folders.into_iter().enumerate() {
            let place = match side {
                Side::Master => Place::Master,
                Side::Replica => Place::Replica(number),
            };
            for name in ["new", "cur"] {
                places.add(&folder.join(name), WatchFlags::CREATE | WatchFlags::MOVED_TO, place)?;
            }
            if side == Side::Replica {
                places.add(folder, WatchFlags::DELETE, Place::Lock(number))?;
            }
        }
        Watch::start(clock, places, Both::default()).map(Self)
    }

    /// How many have been seen on the master, and how many of them on the replica, too.
    pub(super) fn counts(&self) -> Result<(usize, usize)> {
        self.0.look(|seen| {
            let both = seen.master.keys().filter(|base| seen.replica.contains_key(*base)).count();
            (seen.master.len(), both)
        })
    }

    /// For each message on both sides, when it came to the replica, and how long after the master.
    pub(super) fn times(&self) -> Result<Vec<(Duration, Duration)>> {
        self.0.look(|seen| {
            let pairs = seen.master.iter().filter_map(|(base, master)| {
                let replica = seen.replica.get(base)?;
                Some((*replica, replica.saturating_sub(*master)))
            });
            pairs.collect()
        })
    }
}

impl Notes for Both {
    type Place = Place;

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
        assert_eq!(arrivals.times().unwrap().len(), 1);
    }
}
