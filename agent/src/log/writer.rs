//! The log's single writer: many submissions, one fdatasync.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use mailtwin_disk::{
    DiskError,
    append::{self, AppendFile, Disk},
    clock::Clock,
};
use mailtwin_logic::{
    entry::{Entry, Target},
    ids::LogSeq,
};
use tokio::sync::{mpsc, oneshot};

use super::{
    Options, Ticket,
    recovery::Damage,
    segment::{self, HEADER_OCTETS, Header},
    state::{Segment, Shared},
};

/// New segments in a row that could not be synced, before the writer ends.
pub const SYNC_FAILURES_MAX: u32 = 3;

/// Entries in one write.
const GROUP_MAX: usize = 1024;

/// First wait after a failure; doubles up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(50);

/// Longest wait: also how long a stop may take while the disk is full.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Whether the log can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// The last write succeeded.
    Good,
    /// The last write failed for this reason; it is tried again.
    Failing(String),
    /// It will not be tried again: the process must end and start anew, with a scan.
    Stopped(String),
}

/// What is handed to the writer.
#[derive(Debug)]
pub(super) struct Submission {
    targets: Vec<Target>,
    durable: Option<oneshot::Sender<LogSeq>>,
    /// A damaged segment to be set aside once `targets` are durable.
    damage: Option<Damage>,
}

impl Submission {
    pub(super) fn new(targets: Vec<Target>) -> (Self, Ticket) {
        let (sender, receiver) = oneshot::channel();
        (Self { targets, durable: Some(sender), damage: None }, Ticket(receiver))
    }

    /// Makes every replica look at everything, and then puts `damage` out of sight.
    pub(super) fn repair(damage: Damage) -> Self {
        Self { targets: vec![Target::Store], durable: None, damage: Some(damage) }
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: Options,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    active: Option<AppendFile>,
    next: LogSeq,
    sync_failures: u32,
}

/// The writer cannot go on.
struct Stop;

impl Writer {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: Options,
        clock: Arc<dyn Clock>,
        shared: &Arc<Shared>,
    ) -> Self {
        let (dir, shared) = (dir.to_path_buf(), Arc::clone(shared));
        let next = shared.state().head.next();
        Self { disk, dir, options, clock, shared, active: None, next, sync_failures: 0 }
    }

    /// Goes on in `active` if there is one, with `next`.
    pub(super) fn resume(mut self, active: Option<AppendFile>, next: LogSeq) -> Self {
        (self.active, self.next) = (active, next);
        self
    }

    /// Serves submissions until the last sender is gone.
    pub(super) async fn run(mut self, mut submissions: mpsc::Receiver<Submission>) {
        while let Some(first) = submissions.recv().await {
            let mut targets = first.targets.len();
            let mut group = vec![first];
            while targets < GROUP_MAX
                && let Ok(more) = submissions.try_recv()
            {
                targets += more.targets.len();
                group.push(more);
            }
            if self.serve(group).await.is_err() {
                return;
            }
        }
    }

    async fn serve(&mut self, group: Vec<Submission>) -> Result<(), Stop> {
        for damage in group.iter().filter_map(|submission| submission.damage.as_ref()) {
            self.leave(&damage.path);
        }
        let fresh = self.select(&group);
        for targets in fresh.chunks(GROUP_MAX) {
            self.append_persistently(targets).await?;
        }
        let head = self.shared.state().head;
        for submission in group {
            if let Some(damage) = submission.damage {
                self.set_aside(&damage);
            }
            if let Some(durable) = submission.durable {
                // Whoever submitted it may not care.
                let _ = durable.send(head);
            }
        }
        Ok(())
    }

    /// What needs an entry, each once.
    fn select(&self, group: &[Submission]) -> Vec<Target> {
        let state = self.shared.state();
        let (mut seen, mut fresh) = (HashSet::new(), Vec::new());
        for submission in group {
            let always = submission.damage.is_some();
            for target in &submission.targets {
                let covered = !always && state.covering(target).is_some();
                if !covered && seen.insert(target) {
                    fresh.push(target.clone());
                } else {
                    self.shared.coalesced.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        fresh
    }

    async fn append_persistently(&mut self, targets: &[Target]) -> Result<(), Stop> {
        let mut pause = PAUSE_FIRST;
        loop {
            let Err(error) = self.append(targets) else {
                if self.shared.health.send_if_modified(|health| {
                    std::mem::replace(health, Health::Good) != Health::Good
                }) {
                    tracing::info!(dir = %self.dir.display(), "the sync log can be written again");
                }
                return Ok(());
            };
            self.report(&error);
            if self.sync_failures >= SYNC_FAILURES_MAX {
                self.shared.health.send_replace(Health::Stopped(describe(&error)));
                return Err(Stop);
            }
            if self.shared.closing.load(Ordering::Acquire) {
                return Err(Stop);
            }
            tokio::time::sleep(pause).await;
            pause = PAUSE_MAX.min(pause * 2);
        }
    }

    /// Counts every failure, logs the first.
    fn report(&self, error: &DiskError) {
        self.shared.append_errors.fetch_add(1, Ordering::Relaxed);
        let text = describe(error);
        let first = self.shared.health.borrow().clone() == Health::Good;
        if first {
            tracing::error!(
                code = "log-unwritable",
                error = text,
                "the sync log cannot be written; changes wait in the store until it can"
            );
        }
        self.shared.health.send_replace(Health::Failing(text));
    }

    /// Appends one entry for each of `targets`: shows them to readers and makes them durable. Tries
    /// once.
    pub(super) fn append(&mut self, targets: &[Target]) -> Result<(), DiskError> {
        let at = self.clock.unix_ms();
        let mut entries = Vec::with_capacity(targets.len());
        let mut frames = Vec::new();
        let mut seq = self.next;
        for target in targets {
            let entry = Entry { seq, at, target: target.clone() };
            append::frame(&entry.encode(), &mut frames);
            entries.push(entry);
            seq = seq.next();
        }
        let Some(last) = entries.last().map(|entry| entry.seq) else { return Ok(()) };
        let octets = self.write(&frames, &entries).inspect_err(|error| {
            if error.op == "sync" {
                // What of it is on the disk is unknown and stays so: never sync this file again.
                self.active = None;
                self.sync_failures += u32::from(error.is_lost_write());
            }
        })?;
        self.sync_failures = 0;
        self.next = seq;
        self.shared.appended.fetch_add(entries.len() as u64, Ordering::Relaxed);
        let removed = {
            let mut state = self.shared.state();
            state.settle(last, octets);
            state.enforce_bound()
        };
        self.note_removed(removed);
        self.shared.tail.send_replace(last);
        Ok(())
    }

    fn note_removed(&self, removed: Result<u64, DiskError>) {
        match removed {
            Ok(removed) => {
                self.shared.dropped_segments.fetch_add(removed, Ordering::Relaxed);
            }
            Err(error) => tracing::warn!(
                code = "log-segment-kept",
                error = describe(&error),
                "an old segment of the sync log cannot be removed"
            ),
        }
    }

    /// Writes whole records, shows readers what they hold, and syncs; returns the length of the
    /// segment they are in.
    fn write(&mut self, frames: &[u8], entries: &[Entry]) -> Result<u64, DiskError> {
        let grown = |file: &AppendFile| file.octets() + frames.len() as u64;
        let fits = |file: &AppendFile| {
            file.octets() <= HEADER_OCTETS as u64 || grown(file) <= self.options.segment_octets
        };
        let file = match self.active.take().filter(fits) {
            Some(file) => file,
            None => self.start_segment()?,
        };
        let file = self.active.insert(file);
        file.append(frames)?;
        self.shared.show(entries);
        file.sync()?;
        Ok(file.octets())
    }

    fn start_segment(&self) -> Result<AppendFile, DiskError> {
        let path = segment::path(&self.dir, self.next);
        let mut state = self.shared.state();
        // A segment of that name was left before any entry in it was durable.
        state.remove(&path);
        let _ = fs::remove_file(&path);
        let header = Header { id: self.shared.id, first: self.next, previous: state.head };
        let file = AppendFile::create(&*self.disk, &path, &header.encode())?;
        state.segments.push_back(Segment {
            path,
            first: self.next,
            last: LogSeq(self.next.0 - 1),
            octets: file.octets(),
        });
        Ok(file)
    }

    /// Writes no more into a segment that turned out to be damaged.
    fn leave(&mut self, path: &Path) {
        if self.shared.state().segments.back().is_some_and(|last| last.path == path) {
            self.active = None;
        }
    }

    fn set_aside(&self, damage: &Damage) {
        let known = self.shared.state().segments.iter().any(|segment| segment.path == damage.path);
        if !known {
            return; // another reader was faster
        }
        match damage.set_aside() {
            Ok(()) => {
                self.shared.state().remove(&damage.path);
                tracing::error!(
                    code = "log-damaged",
                    at = damage.at,
                    aside = %damage.aside.display(),
                    "a segment of the sync log is damaged; every replica is compared in full"
                );
            }
            Err(error) => tracing::warn!(
                code = "log-damage-kept",
                error = describe(&error),
                "a damaged segment of the sync log cannot be set aside"
            ),
        }
    }
}

fn describe(error: &DiskError) -> String {
    format!("{error}: {}", error.source)
}
