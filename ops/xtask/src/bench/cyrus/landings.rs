//! When messages become durable in mailboxes of a Cyrus.
//!
//! `sync_server` puts a message's file, synced, into the mailbox's directory, then writes the index
//! and syncs it, and only then closes it. A message has landed when the index is closed for the first
//! time after its file showed.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Result;
use mailtwin_disk::clock::Clock;
use rustix::fs::inotify::WatchFlags;

use crate::bench::events::{Notes, Places, Watch};

const INDEX: &[u8] = b"cyrus.index";

/// When each message landed, by the number of its mailbox and its UID.
pub(super) type Landed = BTreeMap<(usize, u32), Duration>;

#[derive(Debug, Default)]
struct Mailboxes {
    landed: Landed,
    /// By mailbox: files that show, and are not yet in an index that was closed.
    placed: BTreeMap<usize, Vec<u32>>,
}

impl Notes for Mailboxes {
    type Place = usize;

    fn note(&mut self, mailbox: usize, name: &[u8], now: Duration) {
        if name == INDEX {
            for uid in self.placed.remove(&mailbox).unwrap_or_default() {
                self.landed.entry((mailbox, uid)).or_insert(now);
            }
        } else if let Some(uid) = uid(name) {
            self.placed.entry(mailbox).or_default().push(uid);
        }
    }
}

/// A running watch.
#[derive(Debug)]
pub(super) struct Landings(Watch<Mailboxes>);

impl Landings {
    /// Watches mailboxes' directories, which are numbered in their order.
    pub(super) fn watch(clock: &Arc<dyn Clock>, mailboxes: &[PathBuf]) -> Result<Self> {
        let mut places = Places::new()?;
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
        for (number, path) in mailboxes.iter().enumerate() {
            places.add(path, flags, number)?;
        }
        Watch::start(clock, places, Mailboxes::default()).map(Self)
    }

    pub(super) fn count(&self) -> Result<usize> {
        self.0.look(|mailboxes| mailboxes.landed.len())
    }

    pub(super) fn times(&self) -> Result<Landed> {
        self.0.look(|mailboxes| mailboxes.landed.clone())
    }
}

/// The UID in the name of a message's file.
fn uid(name: &[u8]) -> Option<u32> {
    std::str::from_utf8(name.strip_suffix(b".")?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_lands_with_the_index() {
        let mut mailboxes = Mailboxes::default();
        let at = Duration::from_millis;
        for (ms, mailbox, name) in [
            (1, 0, "7."),
            (2, 1, "cyrus.index"), // of another mailbox
            (3, 0, "cyrus.cache"),
            (4, 0, "8."),
            (5, 0, "cyrus.index"),
            (6, 0, "9."),
        ] {
            mailboxes.note(mailbox, name.as_bytes(), at(ms));
        }
        assert_eq!(mailboxes.landed, [((0, 7), at(5)), ((0, 8), at(5))].into());
    }
}
