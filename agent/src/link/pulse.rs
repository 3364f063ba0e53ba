//! What an agent says beside its questions: that it is there, and what the replica has.

use mailtwin_host::net::Frame;
use mailtwin_logic::{
    ids::LogSeq,
    wire::message::{Beat, Control, FEATURE_STANDING, Standing},
};
use tokio::sync::watch;

use super::connection::message;

/// What is said next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pulse {
    /// The heartbeat.
    pub(crate) beat: Beat,
    /// As in [`Standing`].
    pub(crate) complete_to: Option<u64>,
}

impl Pulse {
    /// Before there is anything to say.
    pub(crate) fn none() -> Self {
        Self { beat: Beat { at: 0, head: LogSeq(0), cursor: LogSeq(0) }, complete_to: None }
    }
}

/// Says it, in the words that the replica knows.
pub(super) struct Heart {
    pulse: watch::Receiver<Pulse>,
    features: u64,
}

impl Heart {
    /// For a replica with these abilities.
    pub(super) fn new(pulse: watch::Receiver<Pulse>, features: u64) -> Self {
        Self { pulse, features }
    }

    /// One beat, and what goes before it if the replica knows it.
    pub(super) fn beat(&mut self) -> (Frame, Option<Frame>) {
        let Pulse { beat, complete_to } = *self.pulse.borrow_and_update();
        let standing = (self.features & FEATURE_STANDING != 0 && beat.at > 0).then(|| {
            let version = env!("CARGO_PKG_VERSION").to_owned();
            message(0, &Control::Standing(Standing { at: beat.at, complete_to, version }))
        });
        (message(0, &Control::Beat(beat)), standing)
    }
}
