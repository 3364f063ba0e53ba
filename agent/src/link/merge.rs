//! What a link does first with a replica that was not there when the epoch began.

use std::sync::Arc;

use mailtwin_logic::ids::Epoch;

use super::{Driver, Event};
use crate::visit::{Merging, Visitor};

impl Driver {
    /// The replica was not there when this epoch began. If that was forced, it may have mail that
    /// nobody else has.
    pub(super) fn merge(&mut self, visitor: Visitor, merged: Epoch) {
        let (life, events, stop) = (self.life, self.events.clone(), self.life_stop.clone());
        let epoch = self.parts.epoch;
        let merging = self.parts.forced.filter(|&forced| merged < forced).map(|forced| Merging {
            state_dir: self.parts.state_dir.clone(),
            epoch,
            forced,
            node: self.parts.replica.clone(),
            clock: Arc::clone(&self.parts.clock),
        });
        self.parts.tasks.spawn("merge", async move {
            let merge = async {
                match merging {
                    Some(merging) => visitor.merge(&merging).await,
                    None => visitor.tell_merged(epoch).await,
                }
            };
            let result = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                result = merge => result,
            };
            let _ = events.send(Event::Merged { life, result }).await;
        });
    }
}
