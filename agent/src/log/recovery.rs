//! What a log's directory holds when it is opened, and what is done about what should not be there.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use mailtwin_disk::{
    DiskError,
    append::{AppendFile, Disk, End, RECORD_HEADER},
    dir,
};
use mailtwin_logic::ids::{LogId, LogSeq};

use super::{
    LogError,
    segment::{self, HEADER_OCTETS, Header, ScanError, Scanned},
    state::Segment,
};

/// Damaged segments that are kept for humans; older ones go.
const ASIDE_KEPT: usize = 4;

const ASIDE_SUFFIX: &str = ".damaged";

/// What opening a log found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Identity of the log.
    pub id: LogId,
    /// Whether it is new: every cursor is of another log.
    pub fresh: bool,
    /// Position of the last entry that was there.
    pub head: LogSeq,
    /// Octets of a write that never finished and were cut.
    pub cut_octets: u64,
    /// Segments set aside, if any: an entry that makes every replica look at everything has been
    /// appended for them.
    pub damaged: Vec<Damage>,
}

/// One damaged segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment's name until now.
    pub path: PathBuf,
    /// Where it is kept for humans.
    pub aside: PathBuf,
    /// Offset of the first damaged octets.
    pub at: u64,
    /// What is wrong.
    pub why: String,
}

impl Damage {
    pub(super) fn new(path: &Path, at: u64, why: &str) -> Self {
        let mut aside = path.as_os_str().to_os_string();
        aside.push(ASIDE_SUFFIX);
        Self { path: path.to_path_buf(), aside: aside.into(), at, why: why.to_string() }
    }

    /// Renames the segment, so that nobody reads it as one.
    pub(super) fn set_aside(&self) -> Result<(), DiskError> {
        fs::rename(&self.path, &self.aside).map_err(DiskError::during("rename", &self.path))?;
        self.path.parent().map_or(Ok(()), dir::sync)
    }
}

/// What the log goes on from.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) recovery: Recovery,
    pub(super) segments: Vec<Segment>,
    /// The last segment, if entries can be appended to it.
    pub(super) active: Option<AppendFile>,
    /// Last entry.
    pub(super) head: LogSeq,
    /// The first position that was certainly never used.
    pub(super) next: LogSeq,
}

pub(super) fn recover(disk: &dyn Disk, dir: &Path) -> Result<Found, LogError> {
    prune_aside(dir)?;
    let mut survey = survey(dir)?;
    let fresh = survey.whole.is_empty() && survey.damaged.is_empty();
    let id = match survey.whole.last() {
        Some((_, newest)) => newest.header.id,
        None => new_id()?,
    };
    survey.keep_only(id);
    survey.keep_unbroken();
    let (mut active, mut cut_octets) = (None, 0);
    if let Some((path, last)) = survey.whole.last() {
        cut_octets = last.file_octets - last.octets;
        let file = AppendFile::open(disk, path, last.octets)?;
        // Positions that a cut write or a damaged segment may have held are never used again, and
        // a segment has no holes: then the next entry starts a new one.
        active = (survey.next == last.last.next()).then_some(file);
    }
    let segments: Vec<Segment> = survey
        .whole
        .iter()
        .map(|(path, scanned)| Segment {
            path: path.clone(),
            first: scanned.header.first,
            last: scanned.last,
            octets: scanned.octets,
        })
        .collect();
    let head = segments.last().map_or(LogSeq(survey.next.0 - 1), |segment| segment.last);
    let recovery = Recovery { id, fresh, head, cut_octets, damaged: survey.damaged };
    Ok(Found { recovery, segments, active, head, next: survey.next })
}

struct Survey {
    whole: Vec<(PathBuf, Scanned)>,
    damaged: Vec<Damage>,
    next: LogSeq,
}

fn survey(dir: &Path) -> Result<Survey, LogError> {
    let mut survey = Survey { whole: Vec::new(), damaged: Vec::new(), next: LogSeq(1) };
    let paths = segment::list(dir)?;
    for path in &paths {
        match segment::scan(path) {
            Ok(scanned) => {
                survey.used(scanned.last);
                if scanned.octets < scanned.file_octets {
                    survey.used_at_most(scanned.last.next(), scanned.file_octets - scanned.octets);
                }
                survey.whole.push((path.clone(), scanned));
            }
            Err(ScanError::Newer) => return Err(LogError::Newer { path: path.clone() }),
            Err(ScanError::Header { why, file_octets }) => {
                if file_octets <= HEADER_OCTETS as u64 && Some(path) == paths.last() {
                    // It was being made, and never held an entry.
                    fs::remove_file(path).map_err(DiskError::during("remove", path))?;
                    continue;
                }
                survey.used_at_most(segment::first_of(path), file_octets);
                survey.damaged.push(Damage::new(path, 0, why));
            }
            Err(ScanError::Disk(error)) => return Err(error.into()),
        }
    }
    Ok(survey)
}

impl Survey {
    fn used(&mut self, seq: LogSeq) {
        self.next = self.next.max(seq.next());
    }

    /// Positions from `first` on may have been used by as many records as fit in `octets`.
    fn used_at_most(&mut self, first: LogSeq, octets: u64) {
        let records = octets / (RECORD_HEADER as u64 + 1) + 1;
        self.used(LogSeq(first.0.saturating_add(records)));
    }

    /// Segments of another log got here by mistake.
    fn keep_only(&mut self, id: LogId) {
        for (path, _) in self.whole.extract_if(.., |(_, scanned)| scanned.header.id != id) {
            self.damaged.push(Damage::new(&path, 0, "it belongs to another sync log"));
        }
    }

    /// A segment that breaks off is fine if it is the last one, or if the next one took over from
    /// where it is whole (it was left because it could not be synced). Otherwise entries are lost.
    fn keep_unbroken(&mut self) {
        let mut follower: Option<Header> = None;
        let mut kept: Vec<(PathBuf, Scanned)> = Vec::new();
        for (path, mut scanned) in self.whole.drain(..).rev() {
            let next = follower.replace(scanned.header);
            let taken_over = next.is_some_and(|next| scanned.last >= next.previous);
            let lost = match scanned.end {
                End::Clean => None,
                End::Torn { .. } | End::Damaged { .. } if taken_over => None,
                End::Torn { .. } if next.is_none() => None,
                End::Torn { at } => Some((at, "it breaks off before its last entry")),
                End::Damaged { at } => Some((at, "an entry is damaged and others follow")),
            };
            if let Some((at, why)) = lost {
                self.damaged.push(Damage::new(&path, at as u64, why));
                continue;
            }
            // By one that is set aside nothing ends: the next start would not see it, and this one must
            // not have said less.
            if let Some((_, next)) = kept.last() {
                let before = LogSeq(next.header.first.0.saturating_sub(1));
                scanned.last = scanned.last.min(before);
            }
            kept.push((path, scanned));
        }
        kept.reverse();
        self.whole = kept;
    }
}

fn prune_aside(dir: &Path) -> Result<(), DiskError> {
    let mut aside = Vec::new();
    for entry in fs::read_dir(dir).map_err(DiskError::during("read", dir))? {
        let name = entry.map_err(DiskError::during("read", dir))?.file_name();
        if name.as_encoded_bytes().ends_with(ASIDE_SUFFIX.as_bytes()) {
            aside.push(dir.join(name));
        }
    }
    aside.sort();
    let excess = aside.len().saturating_sub(ASIDE_KEPT);
    for path in aside.iter().take(excess) {
        fs::remove_file(path).map_err(DiskError::during("remove", path))?;
    }
    Ok(())
}

fn new_id() -> Result<LogId, DiskError> {
    let source = Path::new("/dev/urandom");
    let mut id = [0; 16];
    File::open(source)
        .and_then(|mut random| random.read_exact(&mut id))
        .map_err(DiskError::during("read", source))?;
    Ok(LogId(id))
}
