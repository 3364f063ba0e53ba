//! Fuzz targets of the sync log: segments as they are, and with checksums that fit what they hold,
//! without which hardly any input would get past the first of them.

use std::{fs, io::Write as _, path::Path};

use mailtwin_disk::append::{self, End, RealDisk};
use mailtwin_logic::ids::{LogId, LogSeq};

use super::{
    LogError, recovery,
    segment::{self, HEADER_OCTETS, Header, ScanError, Scanned, Wanted},
};

/// Splits the octets of one segment from those of the next.
const SEPARATOR: &[u8] = b"=next=";

pub(crate) fn segment(input: &[u8]) {
    check(input);
    check(&mended(input));
}

fn check(octets: &[u8]) -> Option<Scanned> {
    let scanned = match segment::check(octets) {
        Ok(scanned) => scanned,
        Err(ScanError::Newer | ScanError::Header { .. } | ScanError::Disk(_)) => return None,
    };
    assert!(scanned.octets <= scanned.file_octets && scanned.file_octets == octets.len() as u64);
    assert!(scanned.octets >= HEADER_OCTETS as u64);
    assert_eq!(scanned.end == End::Clean, scanned.octets == scanned.file_octets);
    let whole = usize::try_from(scanned.octets).ok().and_then(|end| octets.get(..end));
    let again = whole.map(segment::check).expect("it is not longer than it is");
    let again = again.expect("its header is as it was");
    assert_eq!((again.last, again.end), (scanned.last, End::Clean));
    Some(scanned)
}

/// A segment that holds what `input` says, with all checksums right.
fn mended(input: &[u8]) -> Vec<u8> {
    let (head, mut rest) = input.split_at(input.len().min(HEADER_OCTETS));
    let number = |at: usize| {
        let octets = head.get(at..).and_then(|octets| octets.first_chunk::<8>());
        LogSeq(octets.map_or(1, |octets| u64::from_le_bytes(*octets)))
    };
    let header = Header { id: LogId([7; 16]), first: number(28), previous: number(36) };
    let mut octets = header.encode();
    while let Some((&length, after)) = rest.split_first() {
        let (payload, later) = after.split_at(after.len().min(usize::from(length)));
        if !payload.is_empty() {
            append::frame(payload, &mut octets);
        }
        rest = later;
    }
    octets
}

pub(crate) fn recovery(input: &[u8]) {
    let dir = tempfile::tempdir().expect("there is room for a test");
    let mut parts = vec![input];
    let matches = |octets: &[u8]| octets == SEPARATOR;
    if let Some(at) = input.windows(SEPARATOR.len()).position(matches) {
        parts = vec![&input[..at], &input[at + SEPARATOR.len()..]];
    }
    for (number, part) in (0..).zip(parts) {
        let is_mended = part.first().is_some_and(|octet| octet % 2 == 1);
        let octets = if is_mended { mended(part) } else { part.to_vec() };
        let first = octets.get(28..).and_then(|octets| octets.first_chunk::<8>());
        let first = first.map_or(number, |first| u64::from_le_bytes(*first).max(number));
        let file = fs::File::create(segment::path(dir.path(), LogSeq(first)));
        file.and_then(|mut file| file.write_all(&octets)).expect("there is room");
    }
    let Some((head, next, damaged)) = recover(dir.path()) else { return };
    assert!(head < next || next == LogSeq(u64::MAX), "{head} {next}");
    for path in damaged {
        fs::remove_file(path).expect("it is there");
    }
    // What was damaged is set aside by whoever opens; then all is well.
    let (again, after, damaged) = recover(dir.path()).expect("it could be read before");
    assert!(again <= head && after <= next && damaged.is_empty());
}

type Found = (LogSeq, LogSeq, Vec<std::path::PathBuf>);

fn recover(dir: &Path) -> Option<Found> {
    let found = match recovery::recover(&RealDisk, dir) {
        Ok(found) => found,
        Err(LogError::Newer { .. }) => return None,
        Err(error) => panic!("recover: {error}"),
    };
    for segment in &found.segments {
        let wanted = Wanted { after: LogSeq(0), last: segment.last, max: usize::MAX };
        let read = segment::read(&segment.path, HEADER_OCTETS as u64, segment.first, wanted);
        let (entries, _) = read.expect("it was read before");
        let last =
            entries.last().map_or_else(|| LogSeq(segment.first.0.saturating_sub(1)), |e| e.seq);
        assert_eq!(last, segment.last, "every entry that is said to be there can be read");
    }
    let damaged = found.recovery.damaged.iter().map(|damage| damage.path.clone()).collect();
    Some((found.head, found.next, damaged))
}
