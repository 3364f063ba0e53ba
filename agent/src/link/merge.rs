//! What a link does first with a replica that was not there when the epoch began.

use std::{collections::BTreeSet, sync::Arc};

use mailtwin_logic::{
    entry::Target,
    ids::{Account, Epoch},
};

use super::{Driver, Event, Input};
use crate::visit::{Merging, Unmerged, VisitError, Visitor};

impl Driver {
    /// What is to be merged with a replica that was there last in the epoch `merged`: only of one that was
    /// not when a forced one began.
    pub(super) fn unmerged(&self, merged: Epoch) -> Unmerged {
        let forced = self.parts.forced.filter(|&forced| merged < forced);
        Unmerged::new(forced.map(|forced| Merging {
            state_dir: self.parts.state_dir.clone(),
            epoch: self.parts.epoch,
            forced,
            node: self.parts.replica.clone(),
            clock: Arc::clone(&self.parts.clock),
        }))
    }

    /// The replica was not there when this epoch began. If that was forced, it may have mail that
    /// nobody else has.
    pub(super) fn merge(&mut self, visitor: Visitor) {
        let (life, events, stop) = (self.life, self.events.clone(), self.life_stop.clone());
        let epoch = self.parts.epoch;
        self.parts.tasks.spawn("merge", async move {
            let result = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                result = visitor.merge(epoch) => result,
            };
            let _ = events.send(Event::Merged { life, result }).await;
        });
    }

    pub(super) fn on_merged(&mut self, result: Result<BTreeSet<Account>, VisitError>) {
        match result {
            Ok(left) => {
                self.feed(Input::Welcome);
                // They are set aside, or merged after all.
                self.feed(Input::Found(left.into_iter().map(Target::Account).collect()));
            }
            Err(VisitError::Gone) => self.lose("the connection broke"),
            Err(
                VisitError::Replica(trouble)
                | VisitError::Target(trouble)
                | VisitError::Message(_, trouble),
            ) => self.lose(&trouble.detail),
        }
    }
}
