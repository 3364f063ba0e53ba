//! A disk that loses, in a crash, what was not synced, and that can be full or broken.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mailtwin_disk::append::{Disk, Medium, RealDisk};
use mailtwin_store::conformance::replication::Dice;

/// Files of the sync log. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// By file: what is there, and how much of it is durable.
    files: BTreeMap<PathBuf, Octets>,
    full: bool,
    failing_syncs: u32,
    /// Counts crashes: files opened before one do nothing any more.
    life: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Octets {
    written: u64,
    durable: u64,
}

impl SimDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes every write fail, or none.
    pub fn fill(&self, full: bool) {
        self.state().full = full;
    }

    /// Lets the next `times` syncs fail, and lose what they were to sync.
    pub fn fail_syncs(&self, times: u32) {
        self.state().failing_syncs = times;
    }

    /// Loses what was not synced, of each file as much as the dice say.
    pub fn crash(&self, dice: &mut Dice) {
        let mut state = self.state();
        state.life += 1;
        (state.full, state.failing_syncs) = (false, 0);
        for (path, octets) in std::mem::take(&mut state.files) {
            let unsure = usize::try_from(octets.written - octets.durable).unwrap_or(usize::MAX);
            let kept = octets.durable + dice.below(unsure + 1) as u64;
            let file = std::fs::OpenOptions::new().write(true).open(&path);
            // One that has been removed meanwhile has nothing to lose.
            if let Ok(file) = file {
                file.set_len(kept).expect("cut a file of the simulation");
            }
        }
    }

    fn medium(&self, path: &Path, file: Box<dyn Medium>, there: u64) -> Box<dyn Medium> {
        let mut state = self.state();
        state.files.insert(path.to_path_buf(), Octets { written: there, durable: there });
        let life = state.life;
        drop(state);
        Box::new(SimFile { disk: self.clone(), path: path.to_path_buf(), file, life })
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Medium>> {
        if self.state().full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = RealDisk.create(path)?;
        Ok(self.medium(path, file, 0))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Medium>> {
        let (file, there) = (RealDisk.open(path)?, std::fs::metadata(path)?.len());
        Ok(self.medium(path, file, there))
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    file: Box<dyn Medium>,
    life: u64,
}

impl SimFile {
    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.life == self.life { Ok(state) } else { Err(io::ErrorKind::NotConnected.into()) }
    }
}

impl Medium for SimFile {
    fn write_at(&mut self, octets: &[u8], at: u64) -> io::Result<()> {
        let mut state = self.alive()?;
        let end = at + octets.len() as u64;
        // A full disk takes a part.
        let taken = if state.full { octets.len() / 2 } else { octets.len() };
        let known = state.files.entry(self.path.clone()).or_default();
        known.written = known.written.max(if taken == octets.len() { end } else { at });
        let full = state.full;
        drop(state);
        self.file.write_at(octets.get(..taken).unwrap_or_default(), at)?;
        if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.alive()?;
        if state.failing_syncs > 0 {
            state.failing_syncs -= 1;
            return Err(io::Error::from_raw_os_error(5));
        }
        let known = state.files.entry(self.path.clone()).or_default();
        known.durable = known.written;
        Ok(())
    }

    fn truncate(&mut self, octets: u64) -> io::Result<()> {
        let mut state = self.alive()?;
        let known = state.files.entry(self.path.clone()).or_default();
        known.written = octets;
        known.durable = known.durable.min(octets);
        drop(state);
        self.file.truncate(octets)
    }
}
