//! The 40 octets from which Dovecot starts a mailbox's transaction log: with them its MODSEQs stand
//! above any a client saw on another node, and CONDSTORE and QRESYNC tell the truth after a
//! failover.

/// The file.
pub(crate) const NAME: &[u8] = b"dovecot.index.log";

/// What must not stand beside a fresh one.
pub(crate) const COMPANIONS: [&[u8]; 4] =
    [b"dovecot.index", b"dovecot.index.backup", b"dovecot.index.cache", b"dovecot.index.log.2"];

/// A log header (Dovecot 2.3 `mail-transaction-log.h`, little endian) whose first MODSEQ is
/// `now_ms`: that stays ahead of a master that makes less than a change per millisecond.
pub(crate) fn seed(now_ms: u64) -> [u8; 40] {
    let secs = u32::try_from(now_ms / 1000).unwrap_or(u32::MAX).to_le_bytes();
    let mut header = [0; 40];
    let fields: [(usize, &[u8]); 7] = [
        (0, &[1, 3]),                // version
        (2, &40_u16.to_le_bytes()),  // octets of this header
        (4, &secs),                  // index identity
        (8, &1_u32.to_le_bytes()),   // sequence of this file
        (20, &secs),                 // made at
        (24, &now_ms.to_le_bytes()), // first MODSEQ
        (32, &[1]),                  // little endian
    ];
    for (at, octets) in fields {
        header.iter_mut().skip(at).zip(octets).for_each(|(place, octet)| *place = *octet);
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_dovecot_reads_them() {
        let header = seed(0x0102_0304_0506);
        assert_eq!(header[..4], [1, 3, 40, 0]);
        assert_eq!(header[4..8], header[20..24]);
        assert_eq!(header[8..12], [1, 0, 0, 0]);
        assert_eq!(header[24..32], [6, 5, 4, 3, 2, 1, 0, 0]);
        assert_eq!(header[32..], [1, 0, 0, 0, 0, 0, 0, 0]);
    }
}
