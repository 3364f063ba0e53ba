//! Fuzz targets: octets from mail directories, and names and hints from other nodes
//! (docs/testing.md says how they are run).

use crate::maildir::fuzz;

/// `dovecot-uidlist`, and the hints that come from other nodes' lists.
pub fn uidlist(input: &[u8]) {
    fuzz::uidlist(input);
}

/// `dovecot-keywords`.
pub fn keywords(input: &[u8]) {
    fuzz::keywords(input);
}

/// Names of message files.
pub fn file_names(input: &[u8]) {
    fuzz::file_names(input);
}

/// Where accounts and mailboxes lie, for any name: modified UTF-7 or not.
pub fn places(input: &[u8]) {
    fuzz::places(input);
}

/// A mailbox's directory: message files of any name, list of UIDs, keywords, subscriptions, lock.
pub fn mailboxes(input: &[u8]) {
    fuzz::mailboxes(input);
}

/// What the index remembers of a mailbox.
pub fn snapshots(input: &[u8]) {
    fuzz::snapshots(input);
}

/// A file of what only Cyrus has, as another node may send it.
pub fn extras(input: &[u8]) {
    crate::cyrus::fuzz_extras(input);
}

#[cfg(test)]
mod tests {
    use mailtwin_fuzz::{replay, replay_some};

    #[test]
    fn uidlist() {
        replay("uidlist", super::uidlist);
    }

    #[test]
    fn keywords() {
        replay("keywords", super::keywords);
    }

    #[test]
    fn file_names() {
        replay("file_names", super::file_names);
    }

    #[test]
    fn places() {
        replay("places", super::places);
    }

    #[test]
    fn extras() {
        replay("extras", super::extras);
    }

    #[test]
    fn mailboxes() {
        // Each fills directories and reads them.
        replay_some("mailboxes", 400, super::mailboxes);
    }

    #[test]
    fn snapshots() {
        replay("snapshots", super::snapshots);
    }
}
