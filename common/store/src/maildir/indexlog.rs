//! The 40 octets from which Dovecot starts a mailbox's transaction log: with them its MODSEQs stand
//! above any a client saw on another node, and CONDSTORE and QRESYNC tell the truth after a
//! failover.

use std::io::Read as _;

use super::{
    fsys::{Dir, Owner, during},
    hash,
};
use crate::StoreError;

/// The file.
pub(crate) const NAME: &[u8] = b"dovecot.index.log";

/// What must not stand beside a fresh one.
pub(crate) const COMPANIONS: [&[u8]; 4] =
    [b"dovecot.index", b"dovecot.index.backup", b"dovecot.index.cache", b"dovecot.index.log.2"];

/// Octets of its header.
const OCTETS: usize = 40;

/// A log header (Dovecot 2.3 `mail-transaction-log.h`, little endian) whose first MODSEQ is
/// `now_ms`: that stays ahead of a master that makes less than a change per millisecond.
///
/// `held` is the beginning of the log that it replaces. Sessions that have that open take a log of
/// the same identity and the next sequence that has none before it for what it is: the index
/// begins anew. One of another identity they call corrupted, and put their own in its place.
pub(crate) fn seed(now_ms: u64, held: Option<&[u8]>) -> [u8; OCTETS] {
    let secs = u32::try_from(now_ms / 1000).unwrap_or(u32::MAX);
    let (identity, sequence) = held.and_then(next).unwrap_or((secs, 1));
    let mut header = [0; OCTETS];
    let fields: [(usize, &[u8]); 7] = [
        (0, &[1, 3]),                 // version
        (2, &40_u16.to_le_bytes()),   // octets of this header
        (4, &identity.to_le_bytes()), // index identity
        (8, &sequence.to_le_bytes()), // sequence of this file
        (20, &secs.to_le_bytes()),    // made at
        (24, &now_ms.to_le_bytes()),  // first MODSEQ
        (32, &[1]),                   // little endian
    ];
    for (at, octets) in fields {
        header.iter_mut().skip(at).zip(octets).for_each(|(place, octet)| *place = *octet);
    }
    header
}

/// Puts a seed in the place of whatever log there is; durable but for the name.
pub(crate) fn replace(dir: &Dir, now_ms: u64, owner: Owner) -> Result<(), StoreError> {
    let mut held = Vec::new();
    if let Some((log, _)) = dir.read(NAME)? {
        log.take(OCTETS as u64).read_to_end(&mut held).map_err(during("read", &dir.at(NAME)))?;
    }
    hash::replace(dir, NAME, &seed(now_ms, Some(&held)), owner, None)
}

/// Identity of this log, and the sequence that follows its own.
fn next(log: &[u8]) -> Option<(u32, u32)> {
    let number = |at: usize| Some(u32::from_le_bytes(log.get(at..at + 4)?.try_into().ok()?));
    let (identity, sequence) = (number(4)?, number(8)?.checked_add(1)?);
    // 0 says that the log is corrupted.
    (log.first() == Some(&1) && identity != 0).then_some((identity, sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_dovecot_reads_them() {
        let header = seed(0x0102_0304_0506, None);
        assert_eq!(header[..4], [1, 3, 40, 0]);
        assert_eq!(header[4..8], header[20..24]);
        assert_eq!(header[8..12], [1, 0, 0, 0]);
        assert_eq!(header[24..32], [6, 5, 4, 3, 2, 1, 0, 0]);
        assert_eq!(header[32..], [1, 0, 0, 0, 0, 0, 0, 0]);
    }
    #[test]
    fn a_log_is_followed_by_one_of_the_same_identity() {
        let held = seed(5_000, None);
        let header = seed(0x0102_0304_0506, Some(&held));
        assert_eq!(header[4..12], [5, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(header[12..20], [0; 8]);
        assert_eq!(header[24..32], [6, 5, 4, 3, 2, 1, 0, 0]);
        let mut corrupted = held;
        corrupted[4..8].fill(0);
        let mut last = held;
        last[8..12].fill(0xff);
        for useless in [&corrupted[..], &last, &held[..11], b""] {
            assert_eq!(seed(9_000, Some(useless)), seed(9_000, None), "{useless:?}");
        }
    }
}
