//! Fuzz targets: octets from the sync log, the state directory and the command line
//! (docs/testing.md says how they are run).

use mailtwin_logic::{entry::Entry, ids::Account};

use crate::{cursor, log, quarantine};

/// One segment of the sync log.
pub fn segments(input: &[u8]) {
    log::fuzz_segment(input);
}

/// The directory of the sync log, with one or two segments, is opened, and again.
pub fn recovery(input: &[u8]) {
    log::fuzz_recovery(input);
}

/// Entries of the sync log.
pub fn entries(input: &[u8]) {
    let Some(entry) = Entry::decode(input) else { return };
    assert_eq!(Entry::decode(&entry.encode()).as_ref(), Some(&entry));
    assert!(!entry.target.to_string().chars().any(char::is_control));
}

/// Cursors and quarantine.
pub fn agent_state(input: &[u8]) {
    cursor::fuzz(input);
    quarantine::fuzz(input);
}

/// What `replctl` calls accounts and mailboxes.
pub fn targets(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(target) = mailtwin_host::admin::answer::target(text) else { return };
    let account = target.account().map_or("", Account::as_str);
    assert!(text.starts_with(account) && !account.split('/').any(|part| part == ".."));
}

#[cfg(test)]
mod tests {
    use mailtwin_fuzz::{replay, replay_some};

    #[test]
    fn segments() {
        replay("segments", super::segments);
    }

    #[test]
    fn recovery() {
        // Each waits for the disk several times.
        replay_some("recovery", 200, super::recovery);
    }

    #[test]
    fn entries() {
        replay("entries", super::entries);
    }

    #[test]
    fn agent_state() {
        replay("agent_state", super::agent_state);
    }

    #[test]
    fn targets() {
        replay("targets", super::targets);
    }
}
