//! What a link finds out about its own standing: whether its place in the log holds, and how far a
//! copy of everything is.

use std::{sync::Arc, time::Duration};

use mailtwin_host::codes::KeyTrouble;
use mailtwin_logic::{
    cursor::{Claim, Cursor},
    ids::LogSeq,
    link::{Input, Phase},
    wire::message::Beat,
};

use super::{Copying, Driver, LinkStatus, pulse::Pulse};

/// How often the age of the lag is published.
const PUBLISH_EVERY: Duration = Duration::from_secs(5);
/// How often it is published how far a copy is.
const COPY_SHOWN_EVERY: Duration = Duration::from_secs(1);

/// Since when a cursor is behind the end of the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behind {
    cursor: LogSeq,
    at: u64,
}

impl Driver {
    /// Tells everybody how the link does.
    pub(super) fn publish(&mut self) {
        self.show_aside();
        let head = self.durable();
        let cursor = self.link.cursor().min(head);
        self.judge_claim(cursor);
        let phase = self.link.phase();
        let status = LinkStatus {
            name: self.parts.replica.clone(),
            phase,
            connected: self.connection.is_some(),
            cursor,
            lag_entries: head.0.saturating_sub(cursor.0),
            oldest_at: self.link.oldest_at().or_else(|| self.behind_since(head, cursor)),
            last_error: self.last_error.clone(),
            key_trouble: self.key_trouble,
            aside: Arc::clone(&self.aside),
            brake: self.parts.brake.engaged(),
            claim: self.claim,
            copy: self.copy(phase),
        };
        let now = self.parts.clock.unix_ms();
        self.parts.metrics.publish(&status, now);
        let (beat, complete_to) = (Beat { at: now, head, cursor }, self.link.complete_to(now));
        self.pulse.send_replace(Pulse { beat, complete_to });
        self.parts.status.send_if_modified(|shown| {
            let news = *shown != status;
            *shown = status;
            news
        });
    }

    /// When the oldest entry beyond the cursor was appended: of a replica that is away nothing is
    /// read ahead, and it lags all the same.
    fn behind_since(&mut self, head: LogSeq, cursor: LogSeq) -> Option<u64> {
        if cursor >= head {
            self.behind = None;
            return None;
        }
        // Kept while the cursor stays, so that it is known also when the entry has left the log.
        if let Some(known) = self.behind.filter(|known| known.cursor == cursor) {
            return Some(known.at);
        }
        // What cannot be read is reported when it is read to be replayed.
        let at = self.parts.log.first_at(cursor).ok().flatten()?;
        self.behind = Some(Behind { cursor, at });
        Some(at)
    }

    /// Says once what becomes of the replica's place in the log.
    fn judge_claim(&mut self, cursor: LogSeq) {
        let extent = self.parts.log.extent();
        let claim = extent.claim(Cursor { log: extent.id, seq: cursor });
        let before = std::mem::replace(&mut self.claim, claim);
        if before == claim {
            return;
        }
        let (replica, cursor) = (&self.parts.replica, cursor.0);
        match claim {
            Claim::Ok => {
                tracing::info!(%replica, cursor, "its place in the sync log is safe again");
            }
            Claim::AtRisk => {
                tracing::warn!(code = "log-place-at-risk", %replica, cursor, "what it still needs fills most of the sync log: raise log.bound, or bring it back soon");
            }
            Claim::Lost => {
                tracing::error!(code = "log-place-lost", %replica, cursor, "the sync log has outgrown log.bound and what it still needs is gone: it is compared with everything when it is back");
            }
        }
    }

    /// The connection is gone, or never was.
    pub(super) fn lose(&mut self, why: &str) {
        self.lose_over(None, why);
    }

    /// The same, and whether a key is why.
    pub(super) fn lose_over(&mut self, key: Option<KeyTrouble>, why: &str) {
        self.close();
        self.life += 1; // whatever the old connection still reports is late
        let wait = self.parts.retry.next_wait();
        let news = self.last_error.as_deref() != Some(why);
        match key {
            _ if !news => {}
            Some(key) => {
                tracing::error!(code = key.as_str(), replica = %self.parts.replica, why, "refused over a key: nothing is replicated to it until an admin has looked");
            }
            None => {
                tracing::warn!(code = "not-connected", replica = %self.parts.replica, why, retry_ms = wait.as_millis(), "not connected");
            }
        }
        self.key_trouble = key;
        self.last_error = Some(why.to_owned());
        self.feed(Input::Lost(self.start.elapsed() + wait));
    }

    /// How soon what is shown may be old.
    pub(super) fn publish_within(&self) -> Duration {
        let copied = self.progress.now();
        if copied.there < copied.of { COPY_SHOWN_EVERY } else { PUBLISH_EVERY }
    }

    /// How far the copy is, while there is one.
    fn copy(&mut self, phase: Phase) -> Option<Copying> {
        let copied = self.progress.now();
        self.pace.note(self.start.elapsed(), copied.acked);
        let is_due = phase == Phase::Replaying && copied.there < copied.of;
        let per_kilosecond = self.pace.per_kilosecond();
        is_due.then_some(Copying { copied, per_kilosecond })
    }
}
