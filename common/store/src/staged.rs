//! Octets on their way: being read from a message, or taken in and verified before they get a name.

use std::{
    fmt,
    io::{self, Read},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mailtwin_logic::ids::{Guid, Uid};

use crate::StoreError;

/// A message's octets, opened for reading once.
pub struct Octets {
    octets: u64,
    source: Box<dyn Read + Send>,
}

impl Octets {
    /// Wraps a reader that gives `octets` octets.
    pub fn new(octets: u64, source: impl Read + Send + 'static) -> Self {
        Self { octets, source: Box::new(source) }
    }

    /// How many there are.
    pub fn octets(&self) -> u64 {
        self.octets
    }
}

/// Opens one message after the other of one mailbox.
pub type Reader<'a> = Box<dyn FnMut(Uid) -> Result<Octets, StoreError> + 'a>;

impl Read for Octets {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.source.read(buffer)
    }
}

impl fmt::Debug for Octets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Octets({})", self.octets)
    }
}

/// Takes in one message's octets.
pub trait Staging: Send {
    /// Takes the next octets. More than announced is an error.
    fn write(&mut self, octets: &[u8]) -> Result<(), StoreError>;

    /// Ends: checks number and SHA-1. On an error what was taken in is thrown away.
    fn finish(self: Box<Self>) -> Result<Staged, StoreError>;
}

/// Octets whose number and SHA-1 were checked, waiting in the store for a name. Dropping it
/// throws them away.
#[derive(Debug)]
pub struct Staged {
    guid: Guid,
    octets: u64,
    place: Place,
    /// Dropped with it.
    room: Option<Room>,
}

/// A part of the memory that an engine lets octets wait in; given back when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    used: Arc<AtomicU64>,
    octets: u64,
}

impl Room {
    /// Takes room, of which `max` octets may be `used`; `None` if so many are not left.
    pub(crate) fn take(used: &Arc<AtomicU64>, octets: u64, max: u64) -> Option<Self> {
        let more = |used: u64| used.checked_add(octets).filter(|used| *used <= max);
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self { used: Arc::clone(used), octets })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.used.fetch_sub(self.octets, Ordering::Relaxed);
    }
}

/// Where staged octets wait.
pub(crate) enum Place {
    /// In a file, with its inode number.
    File(PathBuf, u64),
    /// In memory.
    Memory(Arc<[u8]>),
    /// Already taken.
    Taken,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, _) => write!(f, "File({})", path.display()),
            Self::Memory(octets) => write!(f, "Memory({})", octets.len()),
            Self::Taken => f.write_str("Taken"),
        }
    }
}

impl Staged {
    /// Evidence that the octets at `place` hash to `guid`: only engines make it, after checking.
    pub(crate) fn new(guid: Guid, octets: u64, place: Place) -> Self {
        Self { guid, octets, place, room: None }
    }

    /// The same, in memory that is counted.
    pub(crate) fn within(mut self, room: Room) -> Self {
        self.room = Some(room);
        self
    }

    /// What they hash to.
    pub fn guid(&self) -> Guid {
        self.guid
    }

    /// How many there are.
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// Where they wait.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Hands the octets over to whoever gives them a name; nothing is thrown away any more.
    pub(crate) fn take(mut self) -> Place {
        std::mem::replace(&mut self.place, Place::Taken)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Place::File(path, _) = &self.place {
            // A leftover is found and removed at the next start.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back() {
        let used = Arc::default();
        let first = Room::take(&used, 6, 10);
        assert!(first.is_some() && Room::take(&used, 5, 10).is_none());
        let staged = Staged::new(Guid::default(), 6, Place::Taken);
        drop(first.map(|room| staged.within(room)));
        assert!(Room::take(&used, 10, 10).is_some() && Room::take(&used, u64::MAX, 10).is_none());
    }
}
