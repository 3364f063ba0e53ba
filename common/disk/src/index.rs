//! The index: an ordered map on disk for what can be rebuilt. The only module that names sled.
//!
//! Losing it costs a scan and never mail, so whatever is wrong with it is answered by moving it
//! aside and starting empty. The module is built on facts measured with sled 0.34.7 on Linux:
//!
//! - `flush` calls `sync_file_range`, not fsync: [`Index::sync`] adds an fdatasync of the file.
//! - `blobs/`, for pages above some 128 KiB, is never synced: values are stored in pieces
//!   ([`value`]), and above [`VALUE_MAX`] refused.
//! - `snap.*.generating`, left by a crash, would be read as a snapshot: removed before opening.
//! - Damage shows as an error or as a panic: every call runs inside a panic boundary, and after the
//!   first panic or damage sled is not called again, so at most one panic message is printed.
//! - Pages are checked when they are read: after an unclean stop all are read at opening, so that
//!   damage shows there and not later.
//! - Damage in the newest part of the file is taken for a torn tail: sled then opens without a word
//!   and holds an earlier state, synced changes gone. So every sync counts itself in the map and,
//!   once durable, in a small file beside it ([`mark`]); a map that lags behind it is damaged.

use std::{
    ffi::OsString,
    fmt,
    fs::{self, File},
    io,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    DiskError,
    clock::SystemClock,
    dir,
    lock::{FileLock, LockError},
};

mod mark;
mod pending;
#[cfg(test)]
mod tests;
mod value;

#[cfg(any(test, fuzzing))]
pub(crate) use value::fuzz;

use mark::{Mark, MarkFile};
use pending::{Changes, Pending, Writer};

/// Longest value, in octets.
pub const VALUE_MAX: usize = 32 << 10;

/// The one key that is ours: the version of what is stored and the number of the last sync.
const OWN_KEY: &[u8] = b"\0mailtwin";
const SCHEMA: &[u8] = b"2:";

/// Octets of pages kept in memory. The default of 1 GiB would be the daemon's largest part.
const CACHE_OCTETS: u64 = 4 << 20;

/// How often a value is put together while others replace it, before it counts as damaged.
const JOIN_TRIES: usize = 100;

/// How often sled writes out its buffer and reuses space by itself: rare, so that an idle daemon
/// sleeps. Durability never depends on it.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// sled's data file.
const DATA: &str = "db";

/// Damaged directories that are kept for humans; older ones go, so that they cannot fill the disk.
const ASIDE_KEPT: u32 = 3;

/// A process that was just killed keeps its lock for a few milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(1);
/// sled's threads keep its own lock for a moment after a database was closed.
const SLED_LIMIT: Duration = Duration::from_secs(15);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// An open index. Clones share it; when the last one goes, it is closed in order.
#[derive(Clone, Debug)]
pub struct Index {
    open: Arc<Open>,
    /// Ends before `open` is closed.
    _writer: Arc<Writer>,
}

/// What [`Index::open`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Nothing: it is new and empty.
    Fresh,
    /// What was there, whole.
    Kept,
    /// Damage, or another version's content: it is new and empty, and must be rebuilt.
    Replaced {
        /// What was wrong.
        why: String,
        /// Where the old one is now.
        aside: PathBuf,
    },
}

/// Why a call on an index failed. After [`IndexError::Damaged`] and [`IndexError::Disk`] this index
/// answers every call with an error, and [`Index::on_failure`] says so; opening it again repairs it.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// A value over [`VALUE_MAX`].
    #[error("store a value of {0} octets in the index: over the limit")]
    TooLarge(usize),
    /// The content, or sled's state in memory, is not to be trusted.
    #[error("use the index: {0}")]
    Damaged(String),
    /// The operating system refused: disk full, permissions, I/O error.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Another process has it.
    #[error(transparent)]
    Held(#[from] LockError),
}

/// Changes that happen together or not at all. Of several to one key, the last counts.
#[derive(Default)]
pub struct Batch {
    changes: Changes,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({})", self.changes.len())
    }
}

impl Batch {
    /// Sets `key` to `value`. A value over [`VALUE_MAX`] makes the whole batch fail.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.changes.insert(key.to_vec(), Some(value.to_vec()));
    }

    /// Removes `key`, if it is there.
    pub fn delete(&mut self, key: &[u8]) {
        self.changes.insert(key.to_vec(), None);
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl Index {
    /// Opens the index in `dir`, making the directory if it is not there. A damaged one is
    /// renamed to `<dir>.damaged-<n>` beside it and an empty one takes its place.
    ///
    /// Disk full, missing permissions and I/O errors are returned, and nothing is thrown away.
    pub fn open(dir: &Path) -> Result<(Self, Opened), IndexError> {
        dir::create(dir, 0o700)?;
        // sled has a lock of its own, but only for what it does itself.
        let lock = FileLock::within(&dir.with_extension("lock"), LOCK_LIMIT)?;
        let (mut open, opened) = match Open::at(dir) {
            Ok((open, true)) => (open, Opened::Kept),
            Ok((open, false)) => (open, Opened::Fresh),
            Err(IndexError::Damaged(why)) => {
                let aside = move_aside(dir)?;
                dir::create(dir, 0o700)?;
                (Open::at(dir)?.0, Opened::Replaced { why, aside })
            }
            Err(error) => return Err(error),
        };
        if opened != Opened::Kept {
            open.sync(1)?;
            dir::sync(dir)?;
        }
        open.lock = Some(lock);
        let open = Arc::new(open);
        let writer = Arc::new(Writer::start(&open)?);
        Ok((Self { open, _writer: writer }, opened))
    }

    /// Calls `tell` once, when it has failed: soon after, from whichever thread noticed.
    pub fn on_failure(&self, tell: impl FnOnce() + Send + 'static) {
        *self.open.failure.lock() = Some(Box::new(tell));
        if self.open.damaged.load(Ordering::Acquire) {
            self.open.tell_failure();
        }
    }

    /// The value of `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.open.guard("read", |db| {
            if let Some(waiting) = self.open.pending.lock().changes.get(key) {
                return Ok(waiting.clone());
            }
            for _ in 0..JOIN_TRIES {
                let Some(first) = db.get(value::first_key(key))? else { return Ok(None) };
                if let Some(value) = value::join(db, key, &first)? {
                    return Ok(Some(value));
                }
            }
            Err(sled::Error::Unsupported("a value lacks a piece".to_string()))
        })
    }

    /// Makes the changes of `batch`, all or none. They are visible at once and durable with the
    /// next [`Index::sync`] or [`Index::commit`]; a crash before that loses a tail of batches, never
    /// one in between. What goes wrong later makes later calls fail. Memory grows with a batch, by
    /// some kilobytes a change: some hundred changes are fine, ten thousand are not.
    pub fn apply(&self, batch: Batch) -> Result<(), IndexError> {
        let octets = batch.changes.values().flatten().map(Vec::len).max().unwrap_or_default();
        if octets > VALUE_MAX {
            return Err(IndexError::TooLarge(octets));
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.open.guard("write", |_| Ok(()))?;
        let has_room = self.open.pending.add(batch.changes);
        self.open.applied.fetch_add(1, Ordering::Release);
        if has_room { Ok(()) } else { self.open.write_out() }
    }

    /// Makes the changes of `batch`, all or none; durable on return, like all before it.
    pub fn commit(&self, batch: Batch) -> Result<(), IndexError> {
        self.apply(batch)?;
        self.sync()
    }

    /// Makes every applied batch durable. Callers at the same time share one wait for the disk.
    pub fn sync(&self) -> Result<(), IndexError> {
        self.open.sync(self.open.applied.load(Ordering::Acquire))
    }

    /// Shows `visit` every key that starts with `prefix`, and its value, in order, until it breaks.
    /// Changes made meanwhile may or may not be seen.
    pub fn scan_prefix(
        &self,
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        if self.open.pending.touches(prefix) {
            self.open.write_out()?;
        }
        let mut records =
            self.open.guard("read", |db| Ok(db.scan_prefix(value::first_key(prefix))))?;
        loop {
            let next = self.open.guard("read", |db| {
                let Some((stored, first)) = records.next().transpose()? else { return Ok(None) };
                let key = stored.get(1..).unwrap_or_default().to_vec();
                let value = value::join(db, &key, &first)?;
                Ok(Some((key, value)))
            })?;
            let Some((key, value)) = next else { return Ok(()) };
            // One that is being replaced is read again, if it is still there.
            let value = match value {
                Some(value) => Some(value),
                None => self.get(&key)?,
            };
            if value.is_some_and(|value| visit(&key, &value).is_break()) {
                return Ok(());
            }
        }
    }
}

#[derive(Debug)]
struct Open {
    /// `None` only while it is being closed.
    db: Option<sled::Db>,
    /// The data file, for the fdatasync.
    data: File,
    dir: PathBuf,
    /// What sled does not have yet.
    pending: Pending,
    /// Batches applied since opening.
    applied: AtomicU64,
    syncs: Mutex<Syncs>,
    /// Damage was seen; sled is not called again.
    damaged: AtomicBool,
    failure: Failure,
    /// Last, so that it is released when all else is closed.
    lock: Option<FileLock>,
}

/// Whom to tell when it fails.
#[derive(Default)]
struct Failure(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Failure {
    fn lock(&self) -> MutexGuard<'_, Option<Box<dyn FnOnce() + Send>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Failure")
    }
}

#[derive(Debug)]
struct Syncs {
    mark: MarkFile,
    /// Number of the last one, ever.
    number: u64,
    /// How many of the batches applied since opening are durable.
    covered: u64,
}

impl Open {
    /// Opens what is in `dir` and checks it; also says whether there was anything.
    fn at(dir: &Path) -> Result<(Self, bool), IndexError> {
        dir::remove_leftovers(dir, |name| {
            name.starts_with("snap.") && name.ends_with(".generating")
        })?;
        let path = dir.join(DATA);
        let octets = fs::metadata(&path).map_or(0, |data| data.len());
        let (mut mark, last) = MarkFile::open(dir)?;
        let closed = last.closed_octets != 0;
        if closed && last.closed_octets != octets {
            let why = format!("{DATA} has {octets} octets instead of {}", last.closed_octets);
            return Err(IndexError::Damaged(why));
        }
        if closed {
            mark.write(Mark { closed_octets: 0, ..last })?;
            mark.sync()?;
        }
        let db = open_sled(dir)?;
        let number = contain(dir, "open", || check(&db, closed))?;
        let has = number.unwrap_or_default();
        if has < last.sync {
            let why = format!("it is as of sync {has}, and there were {}", last.sync);
            return Err(IndexError::Damaged(why));
        }
        let data = File::open(&path).map_err(DiskError::during("open", &path))?;
        let open = Self {
            db: Some(db),
            data,
            dir: dir.to_path_buf(),
            pending: Pending::default(),
            applied: AtomicU64::new(0),
            syncs: Mutex::new(Syncs { mark, number: has, covered: 0 }),
            damaged: AtomicBool::new(false),
            failure: Failure::default(),
            lock: None,
        };
        Ok((open, number.is_some()))
    }

    fn guard<T>(
        &self,
        op: &'static str,
        call: impl FnOnce(&sled::Db) -> sled::Result<T>,
    ) -> Result<T, IndexError> {
        let usable = self.db.as_ref().filter(|_| !self.damaged.load(Ordering::Acquire));
        let Some(db) = usable else {
            let why = "it failed before; the next start repairs it";
            return Err(IndexError::Damaged(why.to_string()));
        };
        // After any error sled refuses writes or knows less than it should: do not go on with it.
        contain(&self.dir, op, || call(db)).inspect_err(|_| self.fail())
    }

    fn fail(&self) {
        self.damaged.store(true, Ordering::Release);
        self.tell_failure();
    }

    fn tell_failure(&self) {
        let tell = self.failure.lock().take();
        if let Some(tell) = tell {
            tell();
        }
    }

    /// Gives sled what waits, as one batch.
    fn write_out(&self) -> Result<(), IndexError> {
        let mut pending = self.pending.lock();
        if pending.changes.is_empty() {
            return Ok(());
        }
        self.guard("write", |db| {
            let mut batch = sled::Batch::default();
            for (key, new) in &pending.changes {
                // These reads are also what sled needs to free old versions of pages: it does so
                // a few at a time whenever it is called. 200,000 changes in batches of 1,000
                // left 550 MB behind without them, and 45 MB with them.
                let held = db.get(value::first_key(key))?;
                let held = held.map_or(0, |first| value::further(&first));
                value::change(&mut batch, key, new.as_deref(), held);
            }
            db.apply_batch(batch)
        })?;
        pending.clear();
        Ok(())
    }

    /// Returns once the first `wanted` batches since opening are durable.
    fn sync(&self, wanted: u64) -> Result<(), IndexError> {
        let mut syncs = self.syncs.lock().unwrap_or_else(PoisonError::into_inner);
        if syncs.covered >= wanted {
            return Ok(());
        }
        let covered = self.applied.load(Ordering::Acquire);
        let number = syncs.number + 1;
        self.write_out()?;
        self.guard("write", |db| {
            db.insert(OWN_KEY, [SCHEMA, &number.to_be_bytes()].concat())?;
            db.flush()
        })?;
        self.sync_data()?;
        syncs.mark.write(Mark { sync: number, closed_octets: 0 })?;
        (syncs.number, syncs.covered) = (number, covered);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), IndexError> {
        self.data.sync_data().map_err(|error| {
            self.fail();
            DiskError::during("sync", &self.dir.join(DATA))(error).into()
        })
    }

    fn close(&mut self) -> Result<(), IndexError> {
        let synced = self.sync(self.applied.load(Ordering::Acquire));
        let db = self.db.take();
        // sled unwraps errors when it is dropped.
        let dropped = contain(&self.dir, "close", || {
            drop(db);
            Ok(())
        });
        synced.and(dropped)?;
        if self.damaged.load(Ordering::Acquire) {
            return Ok(()); // Said when it happened; without the mark all is checked at the next start.
        }
        self.sync_data()?;
        let closed_octets =
            self.data.metadata().map_err(DiskError::during("read", &self.dir))?.len();
        let syncs = self.syncs.get_mut().unwrap_or_else(PoisonError::into_inner);
        syncs.mark.write(Mark { sync: syncs.number, closed_octets })?;
        syncs.mark.sync()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(
                code = "index-not-closed",
                dir = %self.dir.display(),
                error = &error as &dyn std::error::Error,
                "the index was not closed in order; the next start checks all of it",
            );
        }
    }
}

fn open_sled(dir: &Path) -> Result<sled::Db, IndexError> {
    let housekeeping = u64::try_from(HOUSEKEEPING.as_millis()).ok();
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE_OCTETS)
        .flush_every_ms(housekeeping)
        .mode(sled::Mode::LowSpace);
    let (clock, mut waited) = (SystemClock::shared(), Duration::ZERO);
    loop {
        match contain(dir, "open", || config.open()) {
            Err(IndexError::Disk(error)) if is_locked(&error) && waited < SLED_LIMIT => {
                waited += LOCK_PAUSE;
                clock.pause(LOCK_PAUSE);
            }
            result => return result,
        }
    }
}

/// sled wraps the lock's error in one of its own, of kind `Other`, and says so only in words.
fn is_locked(error: &DiskError) -> bool {
    error.source.kind() == io::ErrorKind::Other
        && error.source.to_string().contains("could not acquire lock")
}

/// Number of the last sync; `None` if there is nothing yet. Damage and a foreign schema are errors.
fn check(db: &sled::Db, closed: bool) -> sled::Result<Option<u64>> {
    let mut records = false;
    for record in db.iter() {
        record?;
        records = true;
        if closed {
            break;
        }
    }
    let own = db.get(OWN_KEY)?;
    let number = own
        .as_deref()
        .and_then(|own| own.strip_prefix(SCHEMA)?.try_into().ok())
        .map(u64::from_be_bytes);
    if records && number.is_none() {
        return Err(sled::Error::Unsupported("its content is of another version".into()));
    }
    Ok(number)
}

/// The panic boundary, and the place where sled's errors become ours.
fn contain<T>(
    dir: &Path,
    op: &'static str,
    call: impl FnOnce() -> sled::Result<T>,
) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(error)))
            if !matches!(
                error.kind(),
                io::ErrorKind::InvalidData
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Err(DiskError::during(op, dir)(error).into())
        }
        Ok(Err(error)) => Err(IndexError::Damaged(error.to_string())),
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(IndexError::Damaged(format!("sled panicked: {message}")))
        }
    }
}

/// Renames `dir` to the next free number and lets the oldest go.
fn move_aside(dir: &Path) -> Result<PathBuf, IndexError> {
    let parent = dir::parent_of(dir);
    let mut stem = dir.file_name().map_or_else(OsString::new, OsString::from);
    stem.push(".damaged-");
    let mut numbers = Vec::new();
    for entry in fs::read_dir(parent).map_err(DiskError::during("read", parent))? {
        let name = entry.map_err(DiskError::during("read", parent))?.file_name();
        let number = name
            .as_encoded_bytes()
            .strip_prefix(stem.as_encoded_bytes())
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok());
        numbers.extend(number);
    }
    let numbered = |number: u32| {
        let mut name = stem.clone();
        name.push(number.to_string());
        parent.join(name)
    };
    let next = numbers.iter().max().map_or(1, |last| last.saturating_add(1));
    let aside = numbered(next);
    fs::rename(dir, &aside).map_err(DiskError::during("rename", dir))?;
    dir::sync(parent)?;
    for old in numbers.into_iter().filter(|&number| number.saturating_add(ASIDE_KEPT) <= next) {
        let old = numbered(old);
        fs::remove_dir_all(&old).map_err(DiskError::during("remove", &old))?;
    }
    Ok(aside)
}
