//! What writer and readers of the log share.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64},
    },
};

use mailtwin_disk::DiskError;
use mailtwin_logic::{
    cursor::Extent,
    entry::{Entry, Target},
    ids::{LogId, LogSeq},
};
use tokio::sync::watch;

use super::{Health, Options, recovery::Found, segment::HEADER_OCTETS};

/// Entries kept in memory: what live readers read.
const RECENT_MAX: usize = 4096;

/// Targets whose last entry is remembered. Beyond, entries are appended that could have been
/// spared.
const COVERED_MAX: usize = 50_000;

/// Places in segments that are remembered: more than there are replicas that lag at once.
const POSITIONS_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) id: LogId,
    state: Mutex<State>,
    pub(super) tail: watch::Sender<LogSeq>,
    pub(super) written: watch::Sender<LogSeq>,
    pub(super) health: watch::Sender<Health>,
    pub(super) closing: AtomicBool,
    pub(super) append_errors: AtomicU64,
    pub(super) appended: AtomicU64,
    pub(super) coalesced: AtomicU64,
    pub(super) dropped_segments: AtomicU64,
}

impl Shared {
    pub(super) fn new(found: &Found, options: Options) -> Self {
        let state = State {
            segments: found.segments.clone().into(),
            recent: VecDeque::new(),
            head: found.head,
            written: found.head,
            taken: LogSeq::default(),
            positions: VecDeque::new(),
            covered: HashMap::new(),
            options,
        };
        Self {
            id: found.recovery.id,
            state: Mutex::new(state),
            tail: watch::Sender::new(found.head),
            written: watch::Sender::new(found.head),
            health: watch::Sender::new(Health::Good),
            closing: AtomicBool::new(false),
            append_errors: AtomicU64::new(0),
            appended: AtomicU64::new(0),
            coalesced: AtomicU64::new(0),
            dropped_segments: AtomicU64::new(0),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives readers what is written and not durable yet.
    pub(super) fn show(&self, entries: &[Entry]) {
        let written = {
            let mut state = self.state();
            state.show(entries);
            state.written
        };
        self.written.send_replace(written);
    }
}

/// One segment as readers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) first: LogSeq,
    /// Last durable entry; the one before `first` if there is none.
    pub(super) last: LogSeq,
    pub(super) octets: u64,
}

/// Where an entry lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    /// First entry of the segment.
    pub(super) segment: LogSeq,
    /// The entry.
    pub(super) next: LogSeq,
    /// Its octets.
    pub(super) offset: u64,
}

#[derive(Debug)]
pub(super) struct State {
    /// Oldest first; the last one is being written, if any is.
    pub(super) segments: VecDeque<Segment>,
    /// The newest entries, without a hole between them.
    recent: VecDeque<Entry>,
    /// Newest durable entry.
    pub(super) head: LogSeq,
    /// Newest entry that readers are given; those after `head` are being made durable.
    pub(super) written: LogSeq,
    /// The furthest that any reader has taken.
    taken: LogSeq,
    /// Where readers that lag go on, most recent last.
    positions: VecDeque<Position>,
    /// The last entry of each target since opening. Not those from before: it is not known who
    /// has taken them.
    covered: HashMap<Target, LogSeq>,
    options: Options,
}

impl State {
    pub(super) fn extent(&self, id: LogId) -> Extent {
        let oldest = self.oldest();
        Extent {
            id,
            oldest,
            head: self.head,
            octets: self.octets(),
            bound_octets: self.options.bound_octets,
        }
    }

    pub(super) fn oldest(&self) -> LogSeq {
        let filled = self.segments.iter().find(|segment| segment.last >= segment.first);
        filled.map_or_else(|| self.head.next(), |segment| segment.first)
    }

    fn octets(&self) -> u64 {
        self.segments.iter().map(|segment| segment.octets).sum()
    }

    pub(super) fn take(&mut self, upto: LogSeq) {
        self.taken = self.taken.max(upto);
    }

    /// Where the entry after `after` lies in the segment that starts with `segment`, or a place
    /// before it.
    pub(super) fn position(&mut self, segment: LogSeq, after: LogSeq) -> Position {
        let matches = |known: &Position| known.segment == segment && known.next == after.next();
        let known = self.positions.iter().position(matches);
        let known = known.and_then(|index| self.positions.remove(index));
        known.unwrap_or(Position { segment, next: segment, offset: HEADER_OCTETS as u64 })
    }

    pub(super) fn remember(&mut self, position: Position) {
        if self.positions.len() == POSITIONS_MAX {
            self.positions.pop_front();
        }
        self.positions.push_back(position);
    }

    /// Position of an entry for `target` that every reader has still to take.
    pub(super) fn covering(&self, target: &Target) -> Option<LogSeq> {
        let oldest = self.oldest();
        self.covered.get(target).copied().filter(|&seq| seq > self.taken && seq >= oldest)
    }

    /// Entries after `after` from memory; `None` if older ones are wanted.
    pub(super) fn recent(&self, after: LogSeq, max: usize) -> Option<Vec<Entry>> {
        let first = self.recent.front()?.seq;
        if after.next() < first {
            return None;
        }
        let skip = self.recent.partition_point(|entry| entry.seq <= after);
        Some(self.recent.range(skip..).take(max).cloned().collect())
    }

    /// Takes in what readers may have; each entry once: what could not be made durable is written
    /// again, in the same position.
    fn show(&mut self, entries: &[Entry]) {
        let known = self.written;
        for entry in entries.iter().filter(|entry| entry.seq > known) {
            self.written = entry.seq;
            self.cover(entry.target.clone(), entry.seq);
            if self.recent.back().is_some_and(|last| last.seq.next() != entry.seq) {
                self.recent.clear();
            }
            if self.recent.len() == RECENT_MAX {
                self.recent.pop_front();
            }
            self.recent.push_back(entry.clone());
        }
    }

    /// All up to `head` is durable; `octets` is the length of the segment it ends in.
    pub(super) fn settle(&mut self, head: LogSeq, octets: u64) {
        self.head = head;
        if let Some(segment) = self.segments.back_mut() {
            (segment.last, segment.octets) = (head, octets);
        }
    }

    fn cover(&mut self, target: Target, seq: LogSeq) {
        if self.covered.len() >= COVERED_MAX {
            let taken = self.taken;
            self.covered.retain(|_, seq| *seq > taken);
        }
        if self.covered.len() < COVERED_MAX {
            self.covered.insert(target, seq);
        } else if let Some(known) = self.covered.get_mut(&target) {
            *known = seq;
        }
    }

    /// Octets of the segments that [`State::trim`] would remove.
    pub(super) fn trimmable(&self, upto: LogSeq) -> u64 {
        let but_last = self.segments.len().saturating_sub(1);
        let passed = self.segments.iter().take(but_last).take_while(|s| s.last <= upto);
        passed.map(|segment| segment.octets).sum()
    }

    pub(super) fn trim(&mut self, upto: LogSeq) -> Result<(), DiskError> {
        while self.segments.len() > 1
            && self.segments.front().is_some_and(|oldest| oldest.last <= upto)
        {
            self.remove_oldest()?;
        }
        Ok(())
    }

    /// Forgets a damaged segment.
    pub(super) fn remove(&mut self, path: &Path) {
        self.segments.retain(|segment| segment.path != path);
    }

    /// Removes the oldest segments until the rest is within the bound; returns how many went.
    pub(super) fn enforce_bound(&mut self) -> Result<u64, DiskError> {
        let mut removed = 0;
        while self.segments.len() > 1 && self.octets() > self.options.bound_octets {
            self.remove_oldest()?;
            removed += 1;
        }
        Ok(removed)
    }

    fn remove_oldest(&mut self) -> Result<(), DiskError> {
        let Some(oldest) = self.segments.front() else { return Ok(()) };
        match fs::remove_file(&oldest.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(DiskError::during("remove", &oldest.path)(error));
            }
            Ok(()) | Err(_) => {}
        }
        self.segments.pop_front();
        let oldest = self.oldest();
        while self.recent.front().is_some_and(|entry| entry.seq < oldest) {
            self.recent.pop_front();
        }
        Ok(())
    }
}
