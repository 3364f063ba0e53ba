//! The index of a node's store, opened and, if it was damaged, announced.

use std::path::Path;

use mailtwin_disk::index::{Index, IndexError, Opened};
use tokio_util::sync::CancellationToken;

use crate::node::{Node, Role};

/// How often an index that another process has is tried again, about once a second.
const TRIES: u32 = 15;

/// Opens the index in `state_dir`. One that is damaged is set aside and rebuilt by scanning: that
/// costs time, never mail, and nothing is deleted on a replica before both sides were compared.
///
/// A node's other daemon may have it for a moment while the node's role changes: it is waited for,
/// unless the role is no longer `role`, which is what this daemon opens it for.
///
/// One that fails later is out of use until it is opened again: `fatal` is cancelled then, and the
/// next start repairs it.
pub fn open_index(
    state_dir: &Path,
    role: Role,
    fatal: &CancellationToken,
) -> Result<Index, IndexError> {
    let mut tries = 1;
    let (index, opened) = loop {
        match Index::open(&state_dir.join("index")) {
            Err(error @ IndexError::Held(_)) => {
                let moved = Node::load(state_dir).is_ok_and(|node| node.role != role);
                if moved || tries == TRIES {
                    return Err(error);
                }
                tries += 1;
            }
            result => break result?,
        }
    };
    match opened {
        Opened::Fresh | Opened::Kept => {}
        Opened::Replaced { why, aside } => {
            let aside = aside.display();
            tracing::warn!(code = "index-damaged", why, %aside, "the index was damaged: rebuilding it from the mail; the old one is kept");
        }
    }
    let (fatal, dir) = (fatal.clone(), state_dir.join("index"));
    index.on_failure(move || {
        let dir = dir.display();
        tracing::error!(code = "index-failed", %dir, "the index failed: ending, so that the next start repairs it");
        fatal.cancel();
    });
    Ok(index)
}
