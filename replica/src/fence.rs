//! The highest epoch this node has seen: on disk before it is on the wire. Whoever shows an older
//! one changes nothing here (I4).

use std::sync::Arc;

use mailtwin_host::{
    admin::HistoryEntry,
    clock::SystemClock,
    codes::HistoryKind,
    history,
    node::{ChangeError, Node, NodeFile, Role},
};
use mailtwin_logic::{chain::Chain, ids::Epoch};

/// Tells agents that may speak from those that may not.
#[derive(Clone, Debug)]
pub struct Fence {
    file: Arc<NodeFile>,
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
    /// This node was the master until now: from here on it is a replica, once it is ready.
    #[error("this node was the master, and is becoming a replica of {master} now")]
    SteppedDown {
        /// The master of the newer epoch.
        master: String,
    },
    /// The new epoch could not be made durable.
    #[error("save the epoch")]
    Save(#[from] ChangeError),
}

impl Fence {
    /// What `file` says counts.
    pub fn new(file: Arc<NodeFile>) -> Self {
        Self { file }
    }

    /// Whether this node is the master.
    pub fn is_master(&self) -> bool {
        self.file.now().role == Role::Master
    }

    /// The highest epoch known.
    pub fn epoch(&self) -> Epoch {
        self.file.now().epoch
    }

    /// What this node is.
    pub fn node(&self) -> Node {
        self.file.now()
    }

    /// Waits until an epoch after `epoch` has begun, and gives that one.
    pub(crate) async fn overtakes(&self, epoch: Epoch) -> Epoch {
        let mut nodes = self.file.subscribe();
        let newer = nodes.wait_for(|node| node.epoch > epoch).await;
        newer.expect("the sender is a part of the fence").epoch
    }

    /// Lets `agent` in if its epoch is not older, and nobody else's; a newer one is saved first.
    pub fn admit(&self, epoch: Epoch, agent: &str) -> Result<(), FenceError> {
        let known = self.file.now();
        if epoch == known.epoch && known.master.as_deref() == Some(agent) {
            return Ok(());
        }
        let mut stepped_down = false;
        self.file.change(|node| {
            if epoch < node.epoch {
                return Err(FenceError::Fenced { known: node.epoch });
            }
            let is_ours = node.role == Role::Master;
            let first = if is_ours { Some(&node.name) } else { node.master.as_ref() };
            if let Some(first) = first.filter(|first| *first != agent && epoch == node.epoch) {
                return Err(FenceError::Rival { epoch, master: first.clone() });
            }
            stepped_down = node.role == Role::Master;
            node.role = Role::Replica;
            node.epoch = epoch;
            node.master = Some(agent.to_owned());
            Ok(())
        })?;
        if stepped_down {
            self.note(HistoryKind::SteppedDown, epoch, &known.name, agent);
            return Err(FenceError::SteppedDown { master: agent.to_owned() });
        }
        Ok(())
    }

    /// Makes this node the master of `epoch`, the one after the present one, if `from` is the
    /// master of that.
    pub fn promote(
        &self,
        epoch: Epoch,
        from: &str,
        forced: Option<Epoch>,
    ) -> Result<(), FenceError> {
        self.file.change(|node| {
            if node.role == Role::Master && node.epoch == epoch {
                return Ok(()); // told twice
            }
            if node.epoch.0 + 1 != epoch.0 {
                return Err(FenceError::Fenced { known: node.epoch });
            }
            if let Some(master) = node.master.as_ref().filter(|master| *master != from) {
                let (epoch, master) = (node.epoch, master.clone());
                return Err(FenceError::Rival { epoch, master });
            }
            node.role = Role::Master;
            (node.epoch, node.merged) = (epoch, epoch);
            node.forced = forced.max(node.forced);
            node.master = Some(node.name.clone());
            Ok(())
        })?;
        self.note(HistoryKind::Promoted, epoch, from, &self.file.now().name);
        Ok(())
    }

    /// Begins an epoch without the old master: from here on no agent of an older one is let in.
    pub fn claim(&self) -> Result<Epoch, FenceError> {
        let node = self.file.change::<FenceError>(|node| {
            node.epoch = Epoch(node.epoch.0 + 1);
            node.master = Some(node.name.clone());
            Ok(())
        })?;
        Ok(node.epoch)
    }

    /// Makes this node the master of the epoch it has claimed.
    pub fn rise(&self, epoch: Epoch, from: Option<&str>) -> Result<(), FenceError> {
        self.file.change::<FenceError>(|node| {
            if node.epoch != epoch {
                return Err(FenceError::Fenced { known: node.epoch });
            }
            node.role = Role::Master;
            node.merged = epoch;
            node.forced = Some(epoch);
            Ok(())
        })?;
        self.note(HistoryKind::Force, epoch, from.unwrap_or("?"), &self.file.now().name);
        Ok(())
    }

    /// Notes that the master of `epoch`, `agent`, has all that this node had.
    pub fn merged(&self, epoch: Epoch, agent: &str) -> Result<(), FenceError> {
        self.file.change::<FenceError>(|node| {
            if node.epoch != epoch || node.master.as_deref() != Some(agent) {
                return Err(FenceError::Fenced { known: node.epoch });
            }
            node.merged = epoch;
            Ok(())
        })?;
        Ok(())
    }

    /// Writes a line into the node's history; what cannot be written is logged.
    fn note(&self, kind: HistoryKind, epoch: Epoch, from: &str, to: &str) {
        let entry = HistoryEntry {
            at: SystemClock::shared().unix_ms(),
            kind: kind.as_str().to_owned(),
            outcome: "done".to_owned(),
            epoch: epoch.0,
            from: Some(from.to_owned()),
            to: Some(to.to_owned()),
            gate_closed_ms: None,
            detail: format!("{to} is the master of epoch {epoch}"),
        };
        if let Err(error) = history::append(self.file.state_dir(), &entry) {
            tracing::error!(code = "history-unwritten", error = %Chain(&error), ?entry, "cannot write the history of failovers");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(state: &std::path::Path) -> Fence {
        Fence::new(Arc::new(NodeFile::open(state, "mx2").unwrap()))
    }

    #[test]
    fn one_master_in_an_epoch_and_none_of_an_older_one() {
        let state = tempfile::tempdir().unwrap();
        let node = Node { epoch: Epoch(3), ..Node::new("mx2", Role::Replica) };
        node.create(state.path()).unwrap();
        let first = fence(state.path());
        assert!(matches!(
            first.admit(Epoch(2), "mx1"),
            Err(FenceError::Fenced { known: Epoch(3) })
        ));
        first.admit(Epoch(3), "mx1").unwrap();
        first.admit(Epoch(3), "mx1").unwrap();
        let rival = fence(state.path()).admit(Epoch(3), "mx9").unwrap_err();
        assert_eq!(rival.to_string(), "mx1 is the master of epoch 3", "it is on disk");
        first.admit(Epoch(4), "mx9").unwrap();
        assert!(matches!(first.admit(Epoch(3), "mx1"), Err(FenceError::Fenced { .. })));
        assert_eq!(fence(state.path()).epoch(), Epoch(4), "it is on disk");
    }

    #[test]
    fn a_master_is_made_by_the_one_before_it_and_steps_down_for_the_next() {
        let state = tempfile::tempdir().unwrap();
        Node::new("mx2", Role::Replica).create(state.path()).unwrap();
        let fence = fence(state.path());
        fence.admit(Epoch(1), "mx1").unwrap();
        assert!(matches!(fence.promote(Epoch(2), "mx9", None), Err(FenceError::Rival { .. })));
        assert!(matches!(fence.promote(Epoch(3), "mx1", None), Err(FenceError::Fenced { .. })));
        fence.promote(Epoch(2), "mx1", None).unwrap();
        fence.promote(Epoch(2), "mx1", None).unwrap();
        assert!(fence.is_master() && fence.epoch() == Epoch(2));
        assert!(matches!(fence.admit(Epoch(1), "mx1"), Err(FenceError::Fenced { .. })));
        assert!(matches!(fence.admit(Epoch(2), "mx1"), Err(FenceError::Rival { .. })));
        assert!(fence.is_master());
        assert!(matches!(fence.admit(Epoch(3), "mx1"), Err(FenceError::SteppedDown { .. })));
        assert!(!fence.is_master());
        fence.admit(Epoch(3), "mx1").unwrap();
    }
}
