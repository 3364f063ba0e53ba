//! `node.json` while daemons run: both of a node may change it, and both want to know of it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mailtwin_disk::{DiskError, lock::FileLock};
use mailtwin_logic::ids::Epoch;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Node, NodeError};
use crate::tasks::Tasks;

/// How often a change by the node's other daemon is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// `node.json`. Every change goes through one lock, and its epoch never falls.
#[derive(Debug)]
pub struct NodeFile {
    state_dir: PathBuf,
    node: watch::Sender<Node>,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The file.
    #[error(transparent)]
    File(#[from] NodeError),
    /// It would have gone back to an epoch that is over.
    #[error("epoch {wanted} is over: this node knows epoch {known}")]
    Older {
        /// What was to be written.
        wanted: Epoch,
        /// What stands there.
        known: Epoch,
    },
}

impl NodeFile {
    /// Reads it, for a node that the configuration calls `configured`.
    pub fn open(state_dir: &Path, configured: &str) -> Result<Self, NodeError> {
        let node = watch::Sender::new(Node::load_as(state_dir, configured)?);
        Ok(Self { state_dir: state_dir.to_owned(), node })
    }

    /// Where it lies.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// What it said when it was last looked at.
    pub fn now(&self) -> Node {
        self.node.borrow().clone()
    }

    /// Tells of changes, by whichever daemon.
    pub fn subscribe(&self) -> watch::Receiver<Node> {
        self.node.subscribe()
    }

    /// Changes what `change` changes, from what the file says now, and returns what it says then;
    /// durable on return. Blocks for as long as the node's other daemon writes.
    pub fn change<E: From<ChangeError>>(
        &self,
        change: impl FnOnce(&mut Node) -> Result<(), E>,
    ) -> Result<Node, E> {
        let file = |error: DiskError| E::from(ChangeError::File(error.into()));
        let _lock = FileLock::wait_for(&self.state_dir.join("node.lock")).map_err(file)?;
        let before = Node::load(&self.state_dir).map_err(|error| E::from(error.into()))?;
        let mut node = before.clone();
        change(&mut node)?;
        if node.epoch < before.epoch {
            let (wanted, known) = (node.epoch, before.epoch);
            return Err(ChangeError::Older { wanted, known }.into());
        }
        if node != before {
            node.save(&self.state_dir).map_err(|error| E::from(error.into()))?;
        }
        self.publish(node.clone());
        Ok(node)
    }

    /// What it says now.
    pub fn look(&self) -> Result<Node, NodeError> {
        let node = Node::load(&self.state_dir)?;
        self.publish(node);
        Ok(self.now())
    }

    /// Looks at the file regularly until `stop`.
    pub fn spawn_watch(self: &Arc<Self>, tasks: &Tasks, stop: CancellationToken) {
        let file = Arc::clone(self);
        tasks.spawn("node file", async move {
            let mut ticks = tokio::time::interval(LOOK_EVERY);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = ticks.tick() => {}
                }
                // One that cannot be read now is reported by whoever changes it next.
                let _ = file.look();
            }
        });
    }

    fn publish(&self, new: Node) {
        self.node.send_if_modified(|node| {
            // A look that was overtaken by a change must not undo it.
            let is_news = *node != new && new.epoch >= node.epoch;
            if is_news {
                *node = new;
            }
            is_news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Role, *};

    fn older(file: &NodeFile) -> Result<Node, ChangeError> {
        file.change(|node| {
            node.epoch = Epoch(1);
            Ok(())
        })
    }

    #[tokio::test]
    async fn both_daemons_see_a_change_and_none_goes_back() {
        let state = tempfile::tempdir().unwrap();
        Node::new("mx1", Role::Master).create(state.path()).unwrap();
        let files = [(); 2].map(|()| Arc::new(NodeFile::open(state.path(), "mx1").unwrap()));
        let tasks = Tasks::new(CancellationToken::new());
        files[1].spawn_watch(&tasks, tasks.stop().clone());
        let raised = files[0].change::<ChangeError>(|node| {
            node.epoch = Epoch(node.epoch.0 + 1);
            node.role = Role::Replica;
            Ok(())
        });
        let raised = raised.unwrap();
        assert_eq!((files[0].now(), raised.epoch), (raised.clone(), Epoch(2)));
        files[1].subscribe().wait_for(|node| *node == raised).await.unwrap();
        assert!(matches!(older(&files[1]), Err(ChangeError::Older { .. })));
        assert_eq!(Node::load(state.path()).unwrap(), raised);
        tasks.shutdown(Duration::from_secs(10)).await.unwrap();
    }
}
