//! The highest epoch this node has seen: on disk before it is on the wire. Whoever shows an older
//! one changes nothing here (I4).

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
};

use mailtwin_host::node::{Node, NodeError, Role};
use mailtwin_logic::ids::Epoch;
use tokio::sync::watch;

/// `node.json`, and the only one who writes it while the daemon runs.
#[derive(Debug)]
pub struct Fence {
    state_dir: PathBuf,
    node: Mutex<Node>,
    epochs: watch::Sender<Epoch>,
}

/// Why an agent may not speak.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// Its epoch is over.
    #[error("the epoch is over: {known} has begun")]
    Fenced {
        /// The epoch this node knows.
        known: Epoch,
    },
    /// The new epoch could not be made durable.
    #[error("save the epoch")]
    Save {
        /// Cause.
        source: NodeError,
    },
}

impl Fence {
    /// Reads `node.json`.
    pub fn open(state_dir: &Path) -> Result<Self, NodeError> {
        let node = Node::load(state_dir)?;
        let epochs = watch::Sender::new(node.epoch);
        Ok(Self { state_dir: state_dir.to_owned(), node: Mutex::new(node), epochs })
    }

    /// Whether this node is the master.
    pub fn is_master(&self) -> bool {
        self.node().role == Role::Master
    }

    /// The highest epoch known.
    pub fn epoch(&self) -> Epoch {
        self.node().epoch
    }

    /// Waits until an epoch after `epoch` has begun, and gives that one.
    pub(crate) async fn overtakes(&self, epoch: Epoch) -> Epoch {
        let mut epochs = self.epochs.subscribe();
        let newer = epochs.wait_for(|known| *known > epoch).await;
        *newer.expect("the sender is a part of the fence")
    }

    /// Lets `epoch` in if it is not older; a newer one is saved first.
    pub fn admit(&self, epoch: Epoch) -> Result<(), FenceError> {
        let mut node = self.node();
        if epoch < node.epoch {
            return Err(FenceError::Fenced { known: node.epoch });
        }
        if epoch > node.epoch {
            let next = Node { epoch, ..node.clone() };
            next.save(&self.state_dir).map_err(|source| FenceError::Save { source })?;
            *node = next;
            self.epochs.send_replace(epoch);
        }
        Ok(())
    }

    fn node(&self) -> std::sync::MutexGuard<'_, Node> {
        self.node.lock().expect("no panic while it is held")
    }
}
