//! Fuzz targets: octets that were read from files of our own (docs/testing.md says how they are run).

/// Files of checksummed records: the sync log.
pub fn records(input: &[u8]) {
    crate::append::fuzz(input);
}

/// Values of the index, in pieces.
pub fn index_values(input: &[u8]) {
    crate::index::fuzz(input);
}

/// Files of lines: quarantine, conflicts, ledger.
pub fn lines(input: &[u8]) {
    crate::lines::fuzz(input);
}

#[cfg(test)]
mod tests {
    use mailtwin_fuzz::replay;

    #[test]
    fn records() {
        replay("records", super::records);
    }

    #[test]
    fn index_values() {
        replay("index_values", super::index_values);
    }

    #[test]
    fn lines() {
        replay("lines", super::lines);
    }
}
