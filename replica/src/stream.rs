//! One stream of a session, as its task sees it: frames in, replies out.

use std::sync::Arc;

use bytes::Bytes;
use mailtwin_host::net::{Frame, Kind};
use mailtwin_logic::{
    chain::Chain,
    wire::message::{Failure, Remedy, Reply, encode},
};
use mailtwin_store::{Reason, StoreError};
use tokio::sync::mpsc;

use crate::session::Shared;

/// The stream's session is gone, or its peer broke the protocol.
#[derive(Debug)]
pub(crate) struct Broken;

/// One stream.
pub(crate) struct Stream {
    id: u32,
    shared: Arc<Shared>,
    frames: mpsc::Receiver<Frame>,
    out: mpsc::Sender<Frame>,
}

impl Stream {
    pub(crate) fn new(
        id: u32,
        shared: Arc<Shared>,
        frames: mpsc::Receiver<Frame>,
        out: mpsc::Sender<Frame>,
    ) -> Self {
        Self { id, shared, frames, out }
    }

    /// What all streams of the session share.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Sends a reply.
    pub(crate) async fn send(&self, reply: &Reply) -> Result<(), Broken> {
        let frame = Frame { kind: Kind::Message, stream: self.id, payload: encode(reply).into() };
        self.out.send(frame).await.map_err(|_| Broken)
    }

    /// Says that the request failed, and why.
    pub(crate) async fn fail(&self, error: &StoreError) -> Result<(), Broken> {
        let reply = if let StoreError::Stale(head) = error {
            Reply::Stale(*head)
        } else if let StoreError::Message { uid, .. } = error {
            Reply::FailedMessage(*uid, failure(error))
        } else {
            Reply::Failed(failure(error))
        };
        tracing::debug!(error = %Chain(error), "a request failed");
        self.send(&reply).await
    }

    /// Waits for octets. Anything else ends the stream: the agent's message is gone.
    pub(crate) async fn octets(&mut self) -> Result<Bytes, Broken> {
        match self.frames.recv().await {
            Some(Frame { kind: Kind::Octets, payload, .. }) => Ok(payload),
            Some(_) | None => Err(Broken),
        }
    }

    /// Octets that are there already.
    pub(crate) fn octets_now(&mut self) -> Result<Option<Bytes>, Broken> {
        match self.frames.try_recv() {
            Ok(Frame { kind: Kind::Octets, payload, .. }) => Ok(Some(payload)),
            Ok(_) | Err(mpsc::error::TryRecvError::Disconnected) => Err(Broken),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
        }
    }
}

/// What the agent needs to know of a store's error. A full disk, a wrong store or a mail server that is
/// away is the whole replica's trouble, not one mailbox's.
fn failure(error: &StoreError) -> Failure {
    let reason = error.reason();
    let remedy = match reason {
        _ if error.is_fatal() || error.is_away() => Remedy::Reconnect,
        Reason::Full | Reason::WrongStore => Remedy::Reconnect,
        Reason::Busy
        | Reason::Missing
        | Reason::GuidMismatch
        | Reason::Conflict
        | Reason::Name
        | Reason::Locked
        | Reason::Corrupt
        | Reason::Denied
        | Reason::OverQuota
        | Reason::Io
        | Reason::Refused
        | Reason::Unreadable
        | Reason::Brake => Remedy::SetAside,
    };
    Failure { remedy, reason: reason.to_string(), detail: Chain(error).to_string() }
}

#[cfg(test)]
mod tests {
    use std::io;

    use mailtwin_logic::ids::Uid;

    use super::*;

    #[test]
    fn a_quota_is_one_mailboxes_trouble() {
        let error = |kind: io::ErrorKind| StoreError::Io {
            op: "write",
            path: "tmp".into(),
            source: kind.into(),
        };
        let quota = failure(&error(io::ErrorKind::QuotaExceeded).of_message(Uid(7)));
        assert_eq!((quota.remedy, quota.reason.as_str()), (Remedy::SetAside, "over-quota"));
        let full = failure(&error(io::ErrorKind::StorageFull).of_message(Uid(7)));
        assert_eq!((full.remedy, full.reason.as_str()), (Remedy::Reconnect, "full"));
        let denied = error(io::ErrorKind::PermissionDenied).of_message(Uid(7));
        assert!(matches!(denied, StoreError::Message { uid: Uid(7), .. }));
        assert_eq!(failure(&denied).reason, "denied");
    }
}
