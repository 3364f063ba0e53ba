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
    /// Who was the master of which epoch first, since this process began.
    master: Mutex<Option<(Epoch, String)>>,
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
    /// Another node is the master of its epoch.
    #[error("{master} is the master of epoch {epoch}")]
    Rival {
        /// The epoch both claim.
        epoch: Epoch,
        /// Who was there first.
        master: String,
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
        let (state_dir, node, master) = (state_dir.to_owned(), Mutex::new(node), Mutex::default());
        Ok(Self { state_dir, node, epochs, master })
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

    /// Lets `agent` in if its epoch is not older, and nobody else's; a newer one is saved first.
    pub fn admit(&self, epoch: Epoch, agent: &str) -> Result<(), FenceError> {
        let mut node = self.node();
        if epoch < node.epoch {
            return Err(FenceError::Fenced { known: node.epoch });
        }
        let mut master = self.master.lock().expect("no panic while it is held");
        match &*master {
            Some((known, first)) if *known == epoch && first != agent => {
                return Err(FenceError::Rival { epoch, master: first.clone() });
            }
            Some(_) | None => {}
        }
        if epoch > node.epoch {
            let next = Node { epoch, ..node.clone() };
            next.save(&self.state_dir).map_err(|source| FenceError::Save { source })?;
            *node = next;
            self.epochs.send_replace(epoch);
        }
        *master = Some((epoch, agent.to_owned()));
        Ok(())
    }

    fn node(&self) -> std::sync::MutexGuard<'_, Node> {
        self.node.lock().expect("no panic while it is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_master_in_an_epoch_and_none_of_an_older_one() {
        let state = tempfile::tempdir().unwrap();
        let node = Node { name: "mx2".into(), role: Role::Replica, epoch: Epoch(3) };
        node.create(state.path()).unwrap();
        let fence = Fence::open(state.path()).unwrap();
        assert!(matches!(
            fence.admit(Epoch(2), "mx1"),
            Err(FenceError::Fenced { known: Epoch(3) })
        ));
        fence.admit(Epoch(3), "mx1").unwrap();
        fence.admit(Epoch(3), "mx1").unwrap();
        let rival = fence.admit(Epoch(3), "mx9").unwrap_err();
        assert_eq!(rival.to_string(), "mx1 is the master of epoch 3");
        fence.admit(Epoch(4), "mx9").unwrap();
        assert!(matches!(fence.admit(Epoch(3), "mx1"), Err(FenceError::Fenced { .. })));
        assert_eq!(Fence::open(state.path()).unwrap().epoch(), Epoch(4), "it is on disk");
    }
}
