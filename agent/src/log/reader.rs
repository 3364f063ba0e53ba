//! Bounded batches of entries after a position: from memory when they are recent, else from disk.

use std::io;

use mailtwin_disk::DiskError;
use mailtwin_logic::{entry::Entry, ids::LogSeq};

use super::{
    LogError,
    segment::{self, Row, Wanted},
    state::{Position, Segment, Shared},
};

pub(super) fn read(shared: &Shared, after: LogSeq, max: usize) -> Result<Vec<Entry>, LogError> {
    let entries = look(shared, after, max)?;
    shared.state().take(entries.last().map_or(after, |entry| entry.seq));
    Ok(entries)
}

/// When the first entry after `after` that is still there was appended, in milliseconds since 1970.
pub(super) fn first_at(shared: &Shared, after: LogSeq) -> Result<Option<u64>, LogError> {
    let oldest = shared.state().oldest();
    let before_oldest = LogSeq(oldest.0.saturating_sub(1));
    Ok(look(shared, after.max(before_oldest), 1)?.first().map(|entry| entry.at))
}

/// Entries that do not count as taken.
fn look(shared: &Shared, after: LogSeq, max: usize) -> Result<Vec<Entry>, LogError> {
    let (segment, position) = {
        let mut state = shared.state();
        if after >= state.written {
            return Ok(Vec::new());
        }
        if let Some(entries) = state.recent(after, max) {
            return Ok(entries);
        }
        let oldest = state.oldest();
        if after.next() < oldest {
            return Err(LogError::Gone { after, oldest });
        }
        let holds = |segment: &&Segment| segment.last > after;
        let Some(segment) = state.segments.iter().find(holds).cloned() else {
            return Ok(Vec::new());
        };
        let position = state.position(segment.first, after);
        (segment, position)
    };
    let wanted = Wanted { after, last: segment.last, max };
    let (entries, position) = read_segment(shared, &segment, position, wanted)?;
    shared.state().remember(position);
    Ok(entries)
}

fn read_segment(
    shared: &Shared,
    segment: &Segment,
    mut position: Position,
    wanted: Wanted,
) -> Result<(Vec<Entry>, Position), LogError> {
    loop {
        let (entries, row) = segment::read(&segment.path, position.offset, position.next, wanted)
            .map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                // It went while it was about to be read.
                LogError::Gone { after: wanted.after, oldest: shared.state().oldest() }
            } else {
                DiskError::during("read", &segment.path)(error).into()
            }
        })?;
        let Row { next, at, .. } = row;
        if at == 0 {
            return Err(LogError::Damaged { path: segment.path.clone(), at: position.offset });
        }
        position = Position { next, offset: position.offset + at as u64, ..position };
        if !entries.is_empty() {
            return Ok((entries, position));
        }
    }
}
