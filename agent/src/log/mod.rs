//! The sync log: the durable, ordered record of what needs replaying (I1).
//!
//! ```text
//! submit ─▶ queue (bounded) ─▶ writer thread: skip what is covered ─▶ write ─▶ show ─▶ fdatasync
//!                                                                               │
//! readers, one per replica ◀── recent entries in memory, older from segments ◀──┘
//! ```
//!
//! Entries lie in segments, `<dir>/<position of the first, 20 digits>.log`; every position is
//! used once by what is durable, also over crashes. Readers see an entry once it is written, so that a
//! visit does not wait for the disk; whoever submitted it hears of it when it is durable. What
//! outlives this process, a cursor above all, must not name a position beyond [`Log::tail`]: after
//! a crash another entry may stand there.
//!
//! A target that has an entry which no reader has taken yet gets no second one: whoever takes
//! that entry looks at the store afterwards. Reading takes: once [`Reader::read`] has given an entry
//! to anybody, the next submission of its target gets an entry of its own.
//!
//! When the log's disk is full or refuses to write, the writer counts it, says so
//! ([`Health::Failing`]), and tries again until it succeeds; meanwhile the queue fills and the sources wait. When
//! an fdatasync fails, that segment is left for good, because nobody can know what of it is on the
//! disk and a second fdatasync would report success for pages that the kernel has dropped; the
//! entries that were not yet durable go into a new segment. If [`SYNC_FAILURES_MAX`] new segments in
//! a row cannot be synced either, the writer ends ([`Health::Stopped`]) and so must the process: its
//! next start scans everything.

#[cfg(any(test, fuzzing))]
mod fuzz;
mod reader;
mod recovery;
mod segment;
mod state;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
};

use mailtwin_disk::{
    DiskError,
    append::{Disk, RealDisk},
    clock::Clock,
    dir,
    lock::{DirLock, LockError},
};
use mailtwin_host::tasks::Tasks;
use mailtwin_logic::{
    cursor::Extent,
    entry::{Entry, Target},
    ids::{LogId, LogSeq},
};
use tokio::sync::{mpsc, oneshot, watch};

#[cfg(any(test, fuzzing))]
pub(crate) use fuzz::{recovery as fuzz_recovery, segment as fuzz_segment};
pub use recovery::{Damage, Recovery};
pub use writer::{Health, SYNC_FAILURES_MAX};

use state::Shared;
use writer::{Submission, Writer};

/// Segments that a full log has, at least.
const SEGMENTS_MIN: u64 = 8;

/// Submissions that may wait for the writer.
const QUEUE_MAX: usize = 1024;

/// How much the log may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// A segment that has grown to this is followed by a new one; it goes as a whole.
    pub segment_octets: u64,
    /// When all segments together are longer, the oldest go, read or not.
    pub bound_octets: u64,
}

impl Options {
    /// For a log of at most so many octets. It goes in whole segments: they are small enough that
    /// dropping one leaves most of it.
    pub fn bound(bound_octets: u64) -> Self {
        let segment_octets = Self::default().segment_octets.min(bound_octets / SEGMENTS_MIN);
        Self { segment_octets, bound_octets }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_octets: 4 << 20, bound_octets: 256 << 20 }
    }
}

/// Why the log could not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another process has the log's directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The operating system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A segment was written by a newer Mailtwin.
    #[error("read {path}: it is of a newer version; use the Mailtwin that wrote it", path = path.display())]
    Newer {
        /// The segment.
        path: PathBuf,
    },
    /// A segment is damaged. It has been set aside, and an entry that makes every replica look at
    /// everything has been appended; reading again goes on behind the damage.
    #[error("read {path}: damaged at octet {at}", path = path.display())]
    Damaged {
        /// The segment's name until now.
        path: PathBuf,
        /// Where.
        at: u64,
    },
    /// The entries after this position are gone: the reader must compare everything.
    #[error("read the sync log after {after}: the oldest entry it has is {oldest}")]
    Gone {
        /// What was asked for.
        after: LogSeq,
        /// What there is.
        oldest: LogSeq,
    },
    /// The queue is full.
    #[error("append to the sync log: {QUEUE_MAX} submissions are waiting already")]
    Busy,
    /// The writer has ended.
    #[error("append to the sync log: it is closed")]
    Closed,
}

/// The open log. Clones share it; when the last one goes the writer ends, after what was
/// submitted is durable or has failed once more.
#[derive(Clone, Debug)]
pub struct Log {
    open: Arc<Open>,
}

#[derive(Debug)]
struct Open {
    shared: Arc<Shared>,
    queue: Option<mpsc::Sender<Submission>>,
    writer: Option<JoinHandle<()>>,
    _lock: DirLock,
}

/// Tells when a submission is durable.
#[derive(Debug)]
pub struct Ticket(oneshot::Receiver<LogSeq>);

impl Ticket {
    /// Waits; gives the position by which all of it is covered.
    pub async fn durable(self) -> Result<LogSeq, LogError> {
        self.0.await.map_err(|_| LogError::Closed)
    }

    /// The same, on a thread that may block.
    pub fn wait(self) -> Result<LogSeq, LogError> {
        self.0.blocking_recv().map_err(|_| LogError::Closed)
    }
}

/// What the log has been through since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Attempts to write or sync that failed.
    pub append_errors: u64,
    /// Entries written.
    pub appended: u64,
    /// Targets that an entry covered already.
    pub coalesced: u64,
    /// Segments that went because of the bound, whether or not everybody had passed them.
    pub dropped_segments: u64,
}

impl Log {
    /// Opens or creates the log in `dir`, cuts a torn tail, sets damaged segments aside, and starts
    /// the writer.
    pub fn open(
        dir: &Path,
        options: Options,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovery), LogError> {
        Self::open_on(Arc::new(RealDisk), dir, options, clock)
    }

    fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: Options,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovery), LogError> {
        let during_start = || DiskError::during("start the writer of", dir);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(during_start())?;
        let (mut open, work, recovery) = Open::prepare(disk, dir, options, clock)?;
        let thread = std::thread::Builder::new()
            .name("sync-log".to_string())
            .spawn(move || runtime.block_on(work))
            .map_err(during_start())?;
        open.writer = Some(thread);
        Ok((Self { open: Arc::new(open) }, recovery))
    }

    /// Like [`Log::open`], for a simulation: on a disk of the caller's, and with the writer as one of
    /// its tasks.
    pub fn open_simulated(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: Options,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<(Self, Recovery), LogError> {
        let (open, work, recovery) = Open::prepare(disk, dir, options, clock)?;
        tasks.spawn("sync-log", work);
        Ok((Self { open: Arc::new(open) }, recovery))
    }

    /// Identity of the log.
    pub fn id(&self) -> LogId {
        self.open.shared.id
    }

    /// Hands `targets` to the writer and returns at once; [`LogError::Busy`] if too many
    /// submissions are waiting.
    pub fn submit(&self, targets: Vec<Target>) -> Result<Ticket, LogError> {
        let (submission, ticket) = Submission::new(targets);
        self.queue()?.try_send(submission).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => LogError::Busy,
            mpsc::error::TrySendError::Closed(_) => LogError::Closed,
        })?;
        Ok(ticket)
    }

    /// Like [`Log::submit`], but waits for room in the queue. For sources: while the log cannot be
    /// written, changes wait where they come from.
    pub fn submit_blocking(&self, targets: Vec<Target>) -> Result<Ticket, LogError> {
        let (submission, ticket) = Submission::new(targets);
        self.queue()?.blocking_send(submission).map_err(|_| LogError::Closed)?;
        Ok(ticket)
    }

    /// Appends `targets` and waits until they are durable.
    pub async fn append(&self, targets: Vec<Target>) -> Result<LogSeq, LogError> {
        let (submission, ticket) = Submission::new(targets);
        self.queue()?.send(submission).await.map_err(|_| LogError::Closed)?;
        ticket.durable().await
    }

    /// The tail: position of the newest durable entry.
    pub fn tail(&self) -> watch::Receiver<LogSeq> {
        self.open.shared.tail.subscribe()
    }

    /// Position of the newest entry that readers see, durable or not yet.
    pub fn written(&self) -> watch::Receiver<LogSeq> {
        self.open.shared.written.subscribe()
    }

    /// Whether appending works.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.open.shared.health.subscribe()
    }

    /// What the log holds now.
    pub fn extent(&self) -> Extent {
        self.open.shared.state().extent(self.open.shared.id)
    }

    /// Counts since opening.
    pub fn counts(&self) -> Counts {
        Counts {
            append_errors: self.open.shared.append_errors.load(Ordering::Relaxed),
            appended: self.open.shared.appended.load(Ordering::Relaxed),
            coalesced: self.open.shared.coalesced.load(Ordering::Relaxed),
            dropped_segments: self.open.shared.dropped_segments.load(Ordering::Relaxed),
        }
    }

    /// A reader that has everything up to and including `taken`.
    pub fn reader(&self, taken: LogSeq) -> Reader {
        self.open.shared.state().take(taken);
        Reader { log: self.clone() }
    }

    /// When the first entry after `after` that is still there was appended, in milliseconds since
    /// 1970. Far back it reads from disk, as [`Reader::read`] does.
    pub fn first_at(&self, after: LogSeq) -> Result<Option<u64>, LogError> {
        reader::first_at(&self.open.shared, after)
    }

    /// Removes every segment whose entries are all at or before `upto`, the one being written
    /// excepted. Whoever calls it knows that every durable cursor has passed them.
    pub fn trim(&self, upto: LogSeq) -> Result<(), LogError> {
        Ok(self.open.shared.state().trim(upto)?)
    }

    /// Octets that [`Log::trim`] would free.
    pub fn trimmable(&self, upto: LogSeq) -> u64 {
        self.open.shared.state().trimmable(upto)
    }

    fn queue(&self) -> Result<&mpsc::Sender<Submission>, LogError> {
        self.open.queue.as_ref().ok_or(LogError::Closed)
    }
}

/// Reads the log for one replica.
#[derive(Debug)]
pub struct Reader {
    log: Log,
}

/// A batch of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// By position.
    pub entries: Vec<Entry>,
    /// Nothing up to here is left to read.
    pub upto: LogSeq,
}

impl Reader {
    /// At most `max` entries after `after`, fewer if fewer are at hand; none only if there are
    /// none. They count as taken: a change that is submitted from now on gets an entry behind
    /// them.
    ///
    /// Does not wait for the disk while the reader keeps up; further back it reads some hundred
    /// kilobytes.
    pub fn read(&self, after: LogSeq, max: usize) -> Result<Taken, LogError> {
        let read = reader::read(&self.log.open.shared, after, max);
        if let Err(LogError::Damaged { path, at }) = &read {
            let damage = Damage::new(path, *at, "an entry is damaged");
            // Full or closed: the next read finds the same damage.
            let _ = self.log.queue()?.try_send(Submission::repair(damage));
        }
        let entries = read?;
        let upto = entries.last().map_or(after, |entry| entry.seq);
        Ok(Taken { entries, upto })
    }
}

impl Open {
    /// Recovers what is in `dir`; the writer's work, to be run somewhere, goes on where it ends.
    fn prepare(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: Options,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>, Recovery), LogError> {
        dir::create(dir, 0o700)?;
        let lock = DirLock::take(dir)?;
        let found = recovery::recover(&*disk, dir)?;
        let shared = Arc::new(Shared::new(&found, options));
        let mut writer =
            Writer::new(disk, dir, options, clock, &shared).resume(found.active, found.next);
        if !found.recovery.damaged.is_empty() {
            // First the entry that makes up for them, then out of sight: a crash in between
            // finds them again.
            writer.append(&[Target::Store])?;
            for damage in &found.recovery.damaged {
                damage.set_aside()?;
            }
        }
        let (queue, submissions) = mpsc::channel(QUEUE_MAX);
        let open = Self { shared, queue: Some(queue), writer: None, _lock: lock };
        Ok((open, writer.run(submissions), found.recovery))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // A panic of the writer has been printed; its submitters saw the log close.
            let _ = writer.join();
        }
    }
}
